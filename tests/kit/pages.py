"""What a page shows, read from its HTML."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any


class Page(HTMLParser):
    """Text by `data-key` or `data-outcome`, all tags with attributes, and counts of SVG parts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.values: dict[str, str] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str | None] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in ("meta", "img", "br"):
            self._open.append(found.get("data-key") or found.get("data-outcome"))

    def handle_endtag(self, tag: str) -> None:
        if self._open:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and (key := self._open[-1]):
            self.values[key] = self.values.get(key, "") + data

    def count(self, tag: str, class_: str) -> int:
        """How many elements of a class there are."""
        return sum(t == tag and class_ in (a.get("class") or "").split() for t, a in self.tags)

    def addresses(self) -> list[str]:
        """All that an element may load or lead to."""
        names = ("src", "href", "xlink:href", "action", "data")
        found = (attributes.get(name) for _, attributes in self.tags for name in names)
        return [value for value in found if value]


def at(tree: Any, key: str) -> Any:
    """The value at a key of a page: names and places with dots, of which names may hold some."""
    if key == "":
        return tree
    parts = key.split(".")
    for many in range(len(parts), 0, -1):
        name, rest = ".".join(parts[:many]), ".".join(parts[many:])
        if isinstance(tree, dict) and name in tree:
            return at(tree[name], rest)
        if isinstance(tree, list) and many == 1:
            return at(tree[int(name)], rest)
    raise KeyError(key)
