# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Check that every internal link, anchor and image of a built site exists: `python scripts/check_links.py build/docs`."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Collect the anchors and the link targets of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif value and (name == "href" or (name == "src" and tag == "img")):
                self.targets.append(value)


def broken_links(root: Path) -> list[str]:
    """Return one line per internal link under `root` whose file or anchor does not exist."""
    root = root.resolve()
    pages = {path: Page(path) for path in sorted(root.rglob("*.html"))}
    problems = []
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not file.is_file():
                problems.append(f"{path.relative_to(root)}: {target}: no such file")
            elif anchor and file in pages and anchor not in pages[file].anchors:
                problems.append(f"{path.relative_to(root)}: {target}: no such anchor")
    return problems


def main() -> int:
    if len(sys.argv) != 2 or not Path(sys.argv[1], "index.html").is_file():
        print("usage: check_links.py FOLDER   (a built site with index.html)", file=sys.stderr)
        return 2
    problems = broken_links(Path(sys.argv[1]))
    print("\n".join(problems) or "check_links: every internal link exists")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
