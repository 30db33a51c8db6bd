"""Follow every link of a built site to another place of it: `python docs/_ext/check_links.py site`."""

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, and the places in it that can be linked to."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.links.add(value)
            elif name in ("id", "name") and value:
                self.places.add(value)


def broken_links(site: Path) -> list[str]:
    """
    Links to files that the site doesn't have, or to places that a page of it doesn't have, each after its page.

    Raises:
        `ValueError`: for a folder without a front page, in which nothing would be broken.
    """
    if not (site / "index.html").is_file():
        raise ValueError(f"There is no site in {str(site)!r}: build it first.")
    read = cache(Page)
    broken = []
    for path in sorted(site.rglob("*.html")):
        for link in sorted(read(path).links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path.parent / unquote(parts.path) if parts.path else path
            if target.is_dir():
                target = target / "index.html"
            is_page = target.suffix == ".html" and target.is_file()
            if not target.is_file() or is_page and unquote(parts.fragment) not in read(target.resolve()).places:
                broken.append(f"{path.relative_to(site)}: {link}")
    return broken


if __name__ == "__main__":
    broken = broken_links(Path(sys.argv[1]).resolve())
    print("\n".join(broken) or "Every link leads somewhere.")
    sys.exit(bool(broken))
