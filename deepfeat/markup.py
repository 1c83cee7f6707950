"""HTML and SVG as text in which nothing but our own elements is markup."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

#: Elements without an end.
_VOID = frozenset({"meta", "img", "input", "br"})


class Markup(str):
    """Text that is HTML already; any other text is escaped where it enters an element."""

    __slots__ = ()


def element(tag: str, *children: Any, **attributes: Any) -> Markup:
    """Write one element.

    Parameters
    ----------
    tag : str
    *children : str, Markup, number, None, or iterable of these
        Everything but `Markup` is escaped; None is nothing.
    **attributes : str, number, bool or None
        ``class_`` is written as class and ``data_k`` as data-k. None and False leave an attribute out.

    Returns
    -------
    Markup

    Examples
    --------
    >>> element("td", "a < b", class_="number")
    '<td class="number">a &lt; b</td>'
    """
    written = "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{_escape(value)}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    start = f"<{tag}{written}>"
    return Markup(start) if tag in _VOID else Markup(f"{start}{join(*children)}</{tag}>")


def join(*children: Any) -> Markup:
    """Put children one after the other, as `element` does."""
    return Markup("".join(_flatten(children)))


def name(text: Any) -> Markup:
    """Write a name from the data, such as a label or a file's, whose letters cannot turn those around them."""
    return element("bdi", text)


def share(value: float) -> str:
    """Write a share with three digits; a dash where it is not defined."""
    return "–" if value != value else f"{value:.3f}"


def shown_interval(low: float, high: float) -> str:
    """Write the ends of an interval; a dash where there is none."""
    return "–" if low != low else f"{low:.3f} to {high:.3f}"


def _flatten(children: Iterable[Any]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, str):
            yield child if isinstance(child, Markup) else _escape(child)
        elif isinstance(child, Iterable):
            yield from _flatten(child)
        else:
            yield _escape(child)


def _escape(value: Any) -> str:
    # A null character or half a surrogate pair, which file names may hold, has no place in a page.
    text = str(value).encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    return value if isinstance(value, Markup) else html.escape(text)
