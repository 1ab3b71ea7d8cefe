"""Elements of HTML whose text is escaped unless it is markup already."""

from __future__ import annotations

import html
from collections.abc import Iterable

from txeval.report.html.packing import plain_text

__all__ = ["Markup", "element", "label", "table"]

_EMPTY = frozenset({"meta", "br", "input", "hr", "img", "link", "col"})


class Markup(str):
    """Text that is HTML."""

    __slots__ = ()


Child = object


def escaped(child: Child) -> str:
    """HTML of a child: markup as it is, everything else as text; None and False are nothing."""
    if child is None or child is False:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, (list, tuple)):
        return "".join(map(escaped, child))
    return html.escape(plain_text(child), quote=True)


def element(tag: str, *children: Child, **attributes: object) -> Markup:
    """One element. `class_` and the like stand for `class`; an underscore inside a name becomes a hyphen."""
    parts = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        parts.append(name if value is True else f'{name}="{escaped(value)}"')
    start = f"<{' '.join(parts)}>"
    return Markup(start if tag in _EMPTY else f"{start}{escaped(children)}</{tag}>")


def label(text: object) -> Markup:
    """A label from data: kept apart from the direction of the text around it."""
    return element("bdi", text)


def table(
    header: Iterable[Child], rows: Iterable[Iterable[Child]], *, caption: Child = None, class_: str = ""
) -> Markup:
    """A table whose first column holds the names of its rows."""
    head = element("thead", element("tr", [element("th", cell, scope="col") for cell in header]))
    body = []
    for row in rows:
        first, *rest = row
        body.append(element("tr", element("th", first, scope="row"), [element("td", cell) for cell in rest]))
    title = element("caption", caption) if caption is not None else None
    return element("table", title, head, element("tbody", body), class_=class_ or None)
