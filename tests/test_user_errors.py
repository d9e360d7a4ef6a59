"""Which errors of the tools are one sentence, and which keep their traceback."""

from __future__ import annotations

import pytest
from mmengine.registry import Registry

from mmkd_plugin.checkpoints.download import fetch
from mmkd_plugin.checks import check_keys
from mmkd_plugin.cli.errors import UsageError, one_line_errors, sentence_of
from mmkd_plugin.errors import CheckpointError

PARTS = Registry('part')


@PARTS.register_module()
class Part:
    def __init__(self, size: int = 1, slip: str | None = None) -> None:
        if slip == 'key':
            check_keys(dict(siez=1), ['size'], 'part')
        if slip == 'own':
            raise ValueError('this class of somebody says so')
        if slip == 'attribute':
            size.nothing()


def caught(call, *args) -> Exception:
    with pytest.raises(Exception) as error:
        call(*args)
    return error.value


def in_registry(error_of, levels: int = 2) -> None:
    """What MMEngine 0.10.7 does at every level that it builds."""
    try:
        error_of() if levels == 0 else in_registry(error_of, levels - 1)
    except Exception as error:
        raise type(error)(f'class `Part{levels}` in some/where.py: {error}')  # noqa: B904


def slip() -> None:
    check_keys(dict(wieght=1), ['weight'], 'terms[0]')


def test_our_own_sentences_are_mistakes_of_the_user():
    assert 'nearest' in sentence_of(caught(slip))
    assert 'gone.pth' in sentence_of(caught(fetch, 'gone.pth', 'teacher.checkpoint'))
    assert isinstance(caught(fetch, 'gone.pth', 'teacher.checkpoint'), CheckpointError)


def test_a_registry_around_a_sentence_is_taken_off():
    sentence = sentence_of(caught(in_registry, slip))
    assert sentence == sentence_of(caught(slip)) and 'class `' not in sentence


@pytest.mark.parametrize(
    'config, words',
    [
        (dict(type='Prat'), ['Prat is not in the', '--debug']),
        (dict(type='Part', siez=3), ["unexpected keyword argument 'siez'", '--debug']),
        (dict(type='Part', slip='key'), ["part has an unknown key 'siez'"]),
    ],
)
def test_what_a_config_may_get_wrong(config, words):
    sentence = sentence_of(caught(PARTS.build, config))
    assert all(word in sentence for word in words), sentence
    assert '\n' not in sentence


@pytest.mark.parametrize('kind', ['own', 'attribute'])
def test_the_code_of_others_keeps_its_traceback(kind):
    error = caught(PARTS.build, dict(type='Part', slip=kind))
    assert sentence_of(error) is None
    with pytest.raises(type(error)), one_line_errors():
        raise error


def test_operations_of_ours_that_go_wrong_are_no_sentences():
    """Nobody wrote them for the user: they are faults of this package."""
    assert sentence_of(caught(check_keys, None, [], 'x')) is None  # iterates over None
    assert sentence_of(caught(fetch, object(), 'x')) is not None  # a file that is not there


def test_missing_files_of_a_data_set():
    error = caught(open, 'annotations/gone.json')
    assert 'annotations/gone.json' in sentence_of(error) and '--debug' in sentence_of(error)


def test_an_error_of_a_worker_is_its_last_line():
    text = (
        'Caught FileNotFoundError in DataLoader worker process 0.\nOriginal Traceback (most '
        "recent call last):\n  File 'x.py', line 1\nFileNotFoundError: no file train/7.png\n"
    )

    def raise_it():
        raise FileNotFoundError(text)

    assert sentence_of(caught(raise_it)).startswith('no file train/7.png')


def test_the_line_ends_the_tool_with_status_one(capsys):
    with pytest.raises(SystemExit) as ended, one_line_errors():
        slip()
    assert isinstance(ended.value, UsageError)
    assert str(ended.value.code).startswith('error: terms[0]') and ended.value.__suppress_context__


def test_debug_shows_everything():
    with pytest.raises(ValueError, match='wieght'), one_line_errors(debug=True):
        slip()
