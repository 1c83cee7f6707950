"""Curves, calibration and the map of the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deepfeat.bootstrap import N_BINS
from deepfeat.curves import Curve, Scores, precision_recall, reliability, roc, shown_classes
from deepfeat.markup import Markup, element, join, share
from deepfeat.report.charts import Axis, Frame, colour, share_axis
from deepfeat.report.pictures import SHEET_EDGE, THUMBNAIL_EDGE, Sheet
from deepfeat.report.tables import legend

if TYPE_CHECKING:
    from deepfeat.svm import SVMResult

#: Width and height of the map.
_MAP = (1000, 640)


def curves(result: SVMResult, scores: Scores) -> Markup:
    """ROC and precision-recall curves, with the operating point of each class."""
    numbers = shown_classes(result, scores)
    each = result.per_class.reset_index(drop=True)
    false_alarms = 1 - each["specificity"]
    notes = {k: f"AUROC {share(each['auroc'][k])} · AP {share(each['average_precision'][k])}" for k in numbers}
    return join(
        legend(scores, numbers, notes),
        element(
            "div",
            _curve_chart(
                "ROC curve", ("1 − specificity", "recall"), numbers, scores, roc, (false_alarms, each["recall"]), True
            ),
            _curve_chart(
                "Precision–recall curve",
                ("recall", "precision"),
                numbers,
                scores,
                precision_recall,
                (each["recall"], each["precision"]),
                False,
            ),
            class_="pair",
        ),
    )


def _curve_chart(
    title: str, axes: tuple[str, str], numbers: Sequence[int], scores: Scores, make: Any, points: Any, chance: bool
) -> Markup:
    frame = Frame(share_axis(axes[0]), share_axis(axes[1]))
    found = {k: curve for k in numbers if (curve := make(scores, k)) is not None}
    alone = " alone" if len(numbers) == 1 else ""
    marks = [frame.line([0, 1], [0, 1], class_="chance")] if chance else []
    marks += [_band(frame, k, curve, alone) for k, curve in found.items()]
    marks += [frame.line(c.x, c.y, class_=f"curve {colour(k)}", data_k=k) for k, c in found.items()]
    for k in found:
        x, y = points[0][k], points[1][k]
        if x == x and y == y:
            marks.append(frame.dot(x, y, 5.5, class_=f"operating {colour(k)}", data_k=k))
    return _figure(title, frame.draw(*marks, title=f"{title} of {len(found)} class(es)"))


def _band(frame: Frame, number: int, curve: Curve, alone: str) -> Markup:
    return frame.band(curve.band_x, curve.low, curve.high, class_=f"band{alone} {colour(number)}", data_k=number)


def decisions(result: SVMResult, scores: Scores) -> Markup:
    """How the decision values of the positive class and of the rest lie about the threshold."""
    values = scores.decision[:, 1]
    low, high = np.quantile(values, (0.002, 0.998))
    edges = np.linspace(low, high if high > low else low + 1, 41)
    shares = [np.histogram(values[scores.truth == k], edges)[0] / max(1, (scores.truth == k).sum()) for k in (0, 1)]
    top = float(max(map(np.max, shares))) * 1.08 or 1.0
    ticks, shown_shares = _round_ticks(edges[0], edges[-1]), _round_ticks(0, top)
    frame = Frame(
        Axis(edges[0], edges[-1], ticks, "decision value"),
        Axis(0, top, shown_shares, "share of the class", _percent_form(shown_shares)),
        900,
        260,
    )
    marks = [
        frame.bar(a, b, s, class_=f"histogram {colour(k)}", data_k=k)
        for k in (0, 1)
        for a, b, s in zip(edges[:-1], edges[1:], shares[k], strict=True)
        if s
    ]
    threshold = 0.0 if result.threshold is None else result.threshold
    if edges[0] < threshold < edges[-1]:
        marks.append(frame.upright(threshold, 0, top, class_="threshold"))
    chart = frame.draw(*marks, title="Histogram of decision values by class")
    return join(legend(scores, (0, 1)), _figure(f"Decision values; the line is the threshold, {threshold:.4g}", chart))


def calibration(scores: Scores) -> Markup:
    """Reliability diagram, with how many images each bin holds below it."""
    bins = reliability(scores)
    binary = len(scores.classes) == 2
    what = ("probability", "share of the class") if binary else ("greatest probability", "share predicted rightly")
    frame = Frame(share_axis(what[0]), share_axis(what[1]))
    marks = [frame.line([0, 1], [0, 1], class_="chance")]
    marks += [
        frame.upright(x, lo, hi, class_="whisker")
        for x, lo, hi in zip(bins.predicted, bins.low, bins.high, strict=True)
    ]
    marks.append(frame.line(bins.predicted, bins.observed, class_="curve accent"))
    marks += [
        frame.dot(x, y, 4.5, class_="operating accent") for x, y in zip(bins.predicted, bins.observed, strict=True)
    ]
    top = float(bins.n_images.max()) * 1.08
    below = Frame(share_axis(what[0]), Axis(0, top, _whole_ticks(top), "images", "{:,.0f}"))
    edges = np.linspace(0, 1, N_BINS + 1)
    bars = [
        below.bar(a + 0.004, b - 0.004, n, class_="histogram accent")
        for a, b, n in zip(edges[:-1], edges[1:], bins.n_images, strict=True)
        if n
    ]
    return element(
        "div",
        _figure(
            "Reliability; on the diagonal, probabilities come true", frame.draw(*marks, title="Reliability diagram")
        ),
        _figure("Images at each probability", below.draw(*bars, title="Histogram of probabilities")),
        class_="pair",
    )


def embedding_map(scores: Scores, rows: np.ndarray, places: np.ndarray, sheets: Sequence[Sheet], cells: Any) -> Markup:
    """Draw a point for each image, which shows its thumbnail when it is pointed at.

    Parameters
    ----------
    scores : Scores
    rows : ndarray of int
        Which of the scored rows are drawn.
    places : ndarray of shape (n, 2)
        Of these rows, between 0 and 1.
    sheets : sequence of Sheet
    cells : sequence of int or None
        Number of each row's thumbnail over all sheets.
    """
    width, height = _MAP
    spread = np.ptp(places, axis=0)
    scale = min((width - 40) / (spread[0] or 1), (height - 40) / (spread[1] or 1))
    centred = (places - places.min(axis=0) - spread / 2) * scale + np.array([width, height]) / 2
    truth, guess = scores.truth[rows], scores.guess[rows]
    circles = [
        element(
            "circle",
            cx=f"{x:.1f}",
            cy=f"{y:.1f}",
            r="4.2" if t != g else "3.4",
            class_=f"point {colour(t)}" + (" miss" if t != g else ""),
            data_k=t,
        )
        for (x, y), t, g in zip(centred, truth, guess, strict=True)
    ]
    record = {
        "names": [str(i) for i in scores.rows.index[rows]],
        "classes": [str(label) for label in scores.classes],
        "points": [[int(t), int(g), -1 if c is None else int(c)] for t, g, c in zip(truth, guess, cells, strict=True)],
        "sheet": SHEET_EDGE,
        "edge": THUMBNAIL_EDGE,
    }
    drawing = element("svg", circles, class_="chart", viewBox=f"0 0 {width} {height}", aria_hidden="true")
    note = element(
        "div",
        element("canvas", width=THUMBNAIL_EDGE * 2, height=THUMBNAIL_EDGE * 2),
        element("div"),
        class_="tip",
        hidden=True,
        role="status",
    )
    stored = [element("img", src=sheet.source, alt="", class_="sheet") for sheet in sheets]
    told = "Map of the embeddings: the arrow keys go from image to image"
    only = element("label", element("input", type="checkbox", class_="only-misses"), " only errors")
    present = [k for k in range(len(scores.classes)) if (truth == k).any()]
    return join(
        element("div", legend(scores, present), only, class_="bar-of-controls"),
        element("div", drawing, note, class_="map", tabindex=0, role="application", aria_label=told),
        element("div", stored, hidden=True),
        element("script", _json(record), type="application/json", id="map-data"),
    )


def _json(record: Any) -> Markup:
    """Write JSON that cannot end the element around it."""
    text = (
        json.dumps(record, separators=(",", ":"))
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
    )
    return Markup(text)


def _figure(title: str, chart: Markup) -> Markup:
    return element("figure", element("figcaption", title), chart)


def _round_ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two."""
    raw = (high - low) / 5
    power = 10.0 ** np.floor(np.log10(raw))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    first = np.ceil(low / step)
    return [float(step * n) for n in np.arange(first, np.floor(high / step) + 1)]


def _whole_ticks(top: float) -> list[float]:
    """About five round numbers of things, from none on."""
    return [tick for tick in _round_ticks(0, top) if tick.is_integer()]


def _percent_form(ticks: Sequence[float]) -> str:
    """How to write shares in percent, with as many decimals as tell each from the next."""
    decimals = next(n for n in range(9) if all(abs(tick - round(tick, n + 2)) < 1e-9 for tick in ticks))
    return f"{{:.{decimals}%}}"
