"""Files that are there as a whole or not at all."""

import pytest

from mmkd_plugin.files import whole_file


def test_a_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / 'note.json'
    path.write_text('old')
    with whole_file(path) as part:
        part.write_text('new')
        assert path.read_text() == 'old'
    assert path.read_text() == 'new' and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt])
def test_after_an_error_the_old_file_stays(tmp_path, error):
    path = tmp_path / 'note.json'
    path.write_text('old')
    with pytest.raises(error), whole_file(path) as part:
        part.write_text('half')
        raise error
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / 'note.json'
    with whole_file(path) as first:
        first.write_text('first')
        with whole_file(path) as second:
            second.write_text('second')
    assert path.read_text() == 'first' and list(tmp_path.iterdir()) == [path]
