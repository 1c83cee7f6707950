"""Charts as inline SVG, whose colours are those of the page, in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepfeat.markup import Markup, element

#: Colours that the style sheet has for classes.
N_COLOURS = 12


@dataclass(frozen=True)
class Axis:
    """One axis: its ends, what is written at which places, and its name."""

    low: float
    high: float
    ticks: Sequence[float]
    name: str
    form: str = "{:g}"


def share_axis(name: str) -> Axis:
    """Axis from 0 to 1."""
    return Axis(0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1), name)


@dataclass(frozen=True)
class Frame:
    """A rectangle with two axes, in which values become places.

    Attributes
    ----------
    x, y : Axis
    width, height : float
        Of the whole drawing; the page scales it.
    """

    x: Axis
    y: Axis
    width: float = 440
    height: float = 400

    _LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 14, 48

    def at_x(self, values: Any) -> np.ndarray:
        """Horizontal places of values."""
        span = self.width - self._LEFT - self._RIGHT
        return self._LEFT + span * (np.asarray(values, float) - self.x.low) / (self.x.high - self.x.low)

    def at_y(self, values: Any) -> np.ndarray:
        """Vertical places of values."""
        span = self.height - self._TOP - self._BOTTOM
        return self.height - self._BOTTOM - span * (np.asarray(values, float) - self.y.low) / (self.y.high - self.y.low)

    def draw(self, *marks: Markup, title: str) -> Markup:
        """Draw axes and marks; ``title`` is what a screen reader says of it."""
        options = {"viewBox": f"0 0 {self.width:g} {self.height:g}", "role": "img", "aria_label": title}
        return element("svg", self._axes(), *marks, class_="chart", **options)

    def line(self, x: Any, y: Any, **attributes: Any) -> Markup:
        """Draw a line through points."""
        return element("polyline", points=_points(self.at_x(x), self.at_y(y)), **attributes)

    def band(self, x: np.ndarray, low: np.ndarray, high: np.ndarray, **attributes: Any) -> Markup:
        """Fill what lies between two lines."""
        across = np.concatenate([x, x[::-1]])
        return element(
            "polygon", points=_points(self.at_x(across), self.at_y(np.append(low, high[::-1]))), **attributes
        )

    def dot(self, x: float, y: float, r: float = 5, **attributes: Any) -> Markup:
        """Draw a point."""
        return element("circle", cx=_place(self.at_x(x)), cy=_place(self.at_y(y)), r=f"{r:g}", **attributes)

    def upright(self, x: float, low: float, high: float, **attributes: Any) -> Markup:
        """Draw an upright line."""
        return self.line([x, x], [low, high], **attributes)

    def bar(self, left: float, right: float, height: float, **attributes: Any) -> Markup:
        """Draw a bar that stands on the horizontal axis."""
        (x0, x1), (y0, y1) = self.at_x([left, right]), self.at_y([self.y.low, height])
        sides = {"x": _place(x0), "y": _place(y1), "width": _place(x1 - x0), "height": _place(y0 - y1)}
        return element("rect", **sides, **attributes)

    def _axes(self) -> Markup:
        left, right = self._LEFT, self.width - self._RIGHT
        top, bottom = self._TOP, self.height - self._BOTTOM
        parts: list[Markup] = []
        for value in self.y.ticks:
            y = _place(self.at_y(value))
            parts += [
                element("line", x1=left, x2=right, y1=y, y2=y, class_="grid"),
                element("text", self.y.form.format(value), x=left - 8, y=y, dy="0.35em", text_anchor="end"),
            ]
        for value in self.x.ticks:
            x = _place(self.at_x(value))
            parts += [
                element("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"),
                element("text", self.x.form.format(value), x=x, y=bottom + 18, text_anchor="middle"),
            ]
        middle = (top + bottom) / 2
        turned = {"transform": f"translate(14 {middle:g}) rotate(-90)", "text_anchor": "middle", "class_": "axis"}
        across = {"x": (left + right) / 2, "y": self.height - 8, "text_anchor": "middle", "class_": "axis"}
        return element("g", parts, element("text", self.x.name, **across), element("text", self.y.name, **turned))


def colour(number: int) -> str:
    """Name the style of a class."""
    return f"k{number % N_COLOURS}"


def _points(x: np.ndarray, y: np.ndarray) -> str:
    return " ".join(f"{_place(a)},{_place(b)}" for a, b in zip(x, y, strict=True) if a == a and b == b)


def _place(value: Any) -> str:
    return f"{float(value):.1f}".removesuffix(".0")
