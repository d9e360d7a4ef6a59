"""Shows the equations and roles of the docstrings on the site.

The docstrings are Google's with a little reStructuredText, which Markdown would show as it is:
``.. math::``, ``:math:`x```, ``:class:`X``` and literal blocks after ``::``.
"""

from __future__ import annotations

import re
import textwrap

import griffe

BLOCK = re.compile(r'^([ ]*)\.\. math::[ ]*(.*(?:\n(?:\1[ ]+.*|[ ]*(?=\n\1[ ]+)))*)', re.M)
LITERAL = re.compile(r'::\n\n((?:[ ]{4,}.*\n?|\n(?=[ ]{4,}))+)')


def to_markdown(text: str) -> str:
    """A docstring with Markdown in place of its reStructuredText."""
    text = BLOCK.sub(_equation, text)
    text = re.sub(r':math:`([^`]+)`', r'$\1$', text)
    text = re.sub(r':(?:class|func|meth|mod|attr|data):`~?([^`]+)`', r'`\1`', text)
    text = LITERAL.sub(lambda m: ':\n\n' + _fenced(m[1]), text)
    return re.sub(r'``([^`]+)``', r'`\1`', text)


def _equation(match: re.Match[str]) -> str:
    indent, body = match.groups()
    lines = [line.strip() for line in body.splitlines() if line.strip()]
    body = '\n'.join(lines)
    if '&' in body:
        body = f'\\begin{{aligned}}\n{body}\n\\end{{aligned}}'
    return textwrap.indent(f'\n$$\n{body}\n$$\n', indent)


def _fenced(block: str) -> str:
    return f'```text\n{textwrap.dedent(block).rstrip()}\n```\n'


class RestInDocstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
