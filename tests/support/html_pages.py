"""A page of HTML, read back."""

from collections import Counter
from html.parser import HTMLParser


class Elements(HTMLParser):
    """Tags, attributes, and the text of every table cell and script of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.rows: list[list[str]] = []
        self.scripts: list[str] = []
        self._into: list[str] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th", "script"):
            self._into = self.rows[-1] if tag != "script" else self.scripts
            self._into.append("")

    def handle_endtag(self, tag: str) -> None:
        self._into = None if tag in ("td", "th", "script") else self._into

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            self._into[-1] += data
