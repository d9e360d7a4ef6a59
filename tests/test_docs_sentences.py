"""One thought a sentence: no sentence of the documents has more than 35 words.

The lab book is left out: it is a record, and its sentences carry their numbers with them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 35
PAGES = [
    *(ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')),
    *sorted(p for p in (ROOT / 'docs').rglob('*.md') if p.name != 'lab-book.md'),
]
# What counts as one word, whatever is in it.
ONE_WORD = (r'\$\$.*?\$\$', r'\$[^$\n]+\$', r'`[^`]+`')
END = re.compile(r'(?<=[.!?])[)*"\']*\s+(?=[A-Z`*"\'(\[0-9])')


def sentences(text: str) -> list[str]:
    """The sentences of a page: of its paragraphs, its items and the cells of its tables."""
    text = re.sub(r'^```.*?^```$', '', text, flags=re.M | re.S)
    text = re.sub(r'<!--.*?-->|!\[[^\]]*\]\([^)]*\)', '', text, flags=re.S)
    for pattern in ONE_WORD:
        text = re.sub(pattern, 'Word', text, flags=re.S)
    text = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', text)
    # A new piece begins at an item, a row, a heading.
    text = re.sub(r'^[ ]*(?:[-*]|\d+\.)[ ]+|^#+[ ]+', '\n\n', text, flags=re.M)
    text = re.sub(r'^\|.*$', lambda row: row[0].replace('|', '\n\n'), text, flags=re.M)
    return [
        ' '.join(sentence.split())
        for piece in re.split(r'\n\s*\n', text)
        for sentence in END.split(' '.join(piece.split()))
        if words(sentence)
    ]


def words(sentence: str) -> int:
    return sum(any(c.isalnum() for c in word) for word in sentence.split())


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_sentences_are_short(page):
    long = [(words(s), s) for s in sentences(page.read_text()) if words(s) > LIMIT]
    assert not long, '\n'.join(f'{count} words: {sentence}' for count, sentence in long)


def test_sentences_are_counted_as_a_reader_would():
    page = (
        '# Title\n\nOne two. Three `a b c` four ([five](six.md)).\nSeven $x y$ eight.\n'
        '- item\n  goes on\n- item\n\n| a b | c. D |\n|---|---|\n\n```text\nnot. This\n```\n'
        'It ends. <!-- table: x -->\n'
    )
    found = sentences(page)
    assert [words(s) for s in found] == [1, 2, 4, 3, 3, 1, 2, 1, 1, 2], found
    assert sentences('a ' * 40 + '.') == [' '.join(['a'] * 40) + ' .']
