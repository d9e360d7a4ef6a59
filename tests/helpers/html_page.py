"""Reads a page as a browser would."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """Collects what a browser would load, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads, self.words, self.tags, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ('meta', 'img', 'image', 'rect', 'link', 'source'):
            self.open.append(tag)
        self.loads += [value for key, value in attrs if key in ('src', 'href', 'srcset', 'data')]

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for key, value in attrs if key in ('src', 'href', 'srcset', 'data')]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
