"""Takes Markdown from outside of docs/ along to the site, and points links there.

A link is written as it works on GitHub. READMEs of folders, CONTRIBUTING, CHANGELOG and the tables
of results become pages under ``repository/``; links to other files become plain text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PREFIX = 'repository/'
TAKEN = (
    'CHANGELOG.md',
    'CONTRIBUTING.md',
    'benchmarks/README.md',
    'benchmarks/results/*.md',
    'configs/README.md',
)
# Whichever begins first: a link may have code for its text, and code may look like a link.
CODE_OR_LINK = re.compile(
    r'^```.*?^```$|`[^`\n]+`|(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)', re.M | re.S
)


def taken() -> list[str]:
    """Paths in the repository of the pages that come along."""
    return [path.relative_to(ROOT).as_posix() for glob in TAKEN for path in sorted(ROOT.glob(glob))]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages; those of results are in no menu."""
    for path in taken():
        file = File.generated(config, PREFIX + path, content=(ROOT / path).read_text())
        if path.startswith('benchmarks/results/'):
            file.inclusion = type(file.inclusion).NOT_IN_NAV
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the links of a page for its place on the site."""
    uri = page.file.src_uri
    source = uri.removeprefix(PREFIX) if uri.startswith(PREFIX) else f'docs/{uri}'
    return CODE_OR_LINK.sub(lambda match: _link(match, source, uri), markdown)


def _link(match: re.Match[str], source: str, uri: str) -> str:
    image, text, link = match.groups()
    if link is None or re.match(r'^(https?:|mailto:|#)', link):  # None: code
        return match[0]
    path, hash_, anchor = link.partition('#')
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if target == 'README.md':
        place = 'index.md'
    elif target.startswith('docs/'):
        place = target.removeprefix('docs/')
    elif target in taken():
        place = PREFIX + target
    else:
        return text
    relative = posixpath.relpath(place, posixpath.dirname(uri) or '.')
    return f'{image}[{text}]({relative}{hash_}{anchor})'
