"""Numbers of the page: headline, data, metrics, confusion matrix, grid, provenance."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from deepfeat.bootstrap import PER_CLASS
from deepfeat.curves import Scores
from deepfeat.markup import Markup, element, join, name, share, shown_interval
from deepfeat.report.charts import colour

if TYPE_CHECKING:
    from deepfeat.svm import SVMResult

#: How metrics are written for readers.
TITLES = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "specificity": "specificity",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "brier": "Brier score",
}
#: What a value and its interval are called, and what their columns end in.
_ENDS = (("value", ""), ("low", "_low"), ("high", "_high"))

_HEADLINES = {
    True: ("balanced_accuracy", "recall", "specificity", "auroc"),
    False: ("balanced_accuracy", "accuracy", "f1_macro", "auroc_macro"),
}


def metric_title(metric: str) -> str:
    """Write the name of a metric for readers."""
    stem, macro, _ = metric.partition("_macro")
    return TITLES.get(stem, stem.replace("_", " ")) + (", macro" if macro else "")


def headline(result: SVMResult) -> Markup:
    """Four numbers and their intervals."""
    wanted = [m for m in _HEADLINES[result.positive is not None] if m in result.metrics.index]
    cards = [
        element(
            "div",
            element("div", metric_title(metric), class_="what"),
            element("div", share(row["value"]), class_="big"),
            _bar(row["value"], row["low"], row["high"]),
            element("div", f"95 % interval {shown_interval(row['low'], row['high'])}", class_="quiet"),
            class_="card number",
        )
        for metric, row in result.metrics.loc[wanted].iterrows()
    ]
    return element("div", cards, class_="cards")


def data_table(result: SVMResult) -> Markup:
    """Images and groups of each class, in training and in the test."""
    rows = result.predictions
    tested = rows["fold"] == "test"
    parts = {"all": rows} | ({"training": rows[~tested], "test": rows[tested]} if tested.any() else {})
    heads = [element("th", text, scope="col") for text in ("class", "share")]
    for part in parts:
        heads += [element("th", f"{word}, {part}", scope="col") for word in ("images", "groups")]
    body = []
    for number, label in enumerate(result.classes):
        cells: list[Any] = []
        for part in parts.values():
            inside = part[part["label"] == label]
            cells += [element("td", f"{len(inside):,}"), element("td", f"{inside['group'].nunique():,}")]
        ratio = float((rows["label"] == label).mean())
        body.append(element("tr", _class_head(number, label), element("td", _fill(ratio, number)), cells))
    totals = [element("td", f"{n:,}") for part in parts.values() for n in (len(part), part["group"].nunique())]
    body.append(element("tr", element("th", "all", scope="row"), element("td"), totals, class_="total"))
    return _table(heads, body)


def fold_table(result: SVMResult) -> Markup | None:
    """Images of each class in each fold."""
    inside = result.predictions[~result.predictions["fold"].isin(["test", -1])]
    if inside.empty:
        return None
    counts = pd.crosstab(inside["label"], inside["fold"]).reindex(result.classes, fill_value=0)
    heads = [element("th", "class", scope="col"), (element("th", f"fold {fold}", scope="col") for fold in counts)]
    body = [
        element("tr", _class_head(number, label), (element("td", f"{n:,}") for n in counts.loc[label]))
        for number, label in enumerate(result.classes)
    ]
    groups = [element("td", f"{n:,}") for n in inside.groupby("fold")["group"].nunique().reindex(counts.columns)]
    body.append(element("tr", element("th", "groups", scope="row"), groups, class_="total"))
    return element("details", element("summary", "Images of each class in each fold"), _table(heads, body))


def metrics_table(result: SVMResult) -> Markup:
    """Every metric over all classes, in two columns."""
    heads = [element("th", text, scope="col", class_="left") for text in ("metric", "value and 95 % interval")]
    body = [
        element(
            "tr", element("th", metric_title(str(metric)), scope="row"), element("td", _interval(row), class_="left")
        )
        for metric, row in result.metrics.iterrows()
    ]
    half = -(-len(body) // 2)
    return element(
        "div", (_table(heads, part, class_="lines") for part in (body[:half], body[half:]) if part), class_="pair"
    )


def nested_table(nested: pd.DataFrame) -> Markup:
    """The nested estimate, the plain one, and the difference."""
    heads = [element("th", text, scope="col", class_="left") for text in ("metric", "nested estimate, 95 % interval")]
    heads += [element("th", text, scope="col") for text in ("plain", "optimism")]
    body = [
        element(
            "tr",
            element("th", metric_title(str(metric)), scope="row"),
            element("td", _interval(row), class_="left"),
            element("td", share(row["plain"])),
            element("td", f"{row['optimism']:+.3f}"),
        )
        for metric, row in nested.iterrows()
    ]
    return _table(heads, body, class_="lines")


def per_class_table(result: SVMResult) -> Markup:
    """Metrics of each class with their intervals."""
    heads = [element("th", text, scope="col") for text in ("class", "images")]
    heads += [element("th", metric_title(metric), scope="col", class_="left") for metric in PER_CLASS]
    body = []
    for number, (label, row) in enumerate(result.per_class.iterrows()):
        cells = [
            element("td", _interval({end: row[m + tail] for end, tail in _ENDS}), class_="left") for m in PER_CLASS
        ]
        body.append(element("tr", _class_head(number, label), element("td", f"{int(row['support']):,}"), cells))
    return _table(heads, body)


def confusion_table(confusion: pd.DataFrame) -> Markup:
    """Counts with the share of each row as colour: blue where right, red where wrong."""
    labels = list(confusion.index)
    counts = confusion.to_numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.nan_to_num(counts / counts.sum(axis=1, keepdims=True))
    corner = element(
        "th", element("span", "true", class_="quiet"), " \\ ", element("span", "predicted", class_="quiet")
    )
    heads = [corner, (element("th", name(label), scope="col") for label in labels)]
    body = [
        element(
            "tr",
            _class_head(i, label),
            (
                _heat(
                    element("b", f"{counts[i, j]:,}"),
                    shares[i, j],
                    "right" if i == j else "wrong",
                    note=f"{shares[i, j]:.1%}",
                )
                for j in range(len(labels))
            ),
        )
        for i, label in enumerate(labels)
    ]
    return _table(heads, body, class_="heat")


def grid_tables(result: SVMResult) -> list[Markup]:
    """Cross-validated score of each candidate: C across; gamma and class weights, or the folds, down."""
    table = result.cv_results.copy()
    table["weights"] = ["none" if weight is None else str(weight) for weight in table["class_weight"]]
    table["chosen"] = table.index == table["rank"].idxmin()
    parts = list(table.groupby("weights", sort=False))
    least, most = table["mean"].min(), table["mean"].max()
    return [
        _grid_table(part, least, most, f"class weights: {weights}" if len(parts) > 1 else None)
        for weights, part in parts
    ]


def _grid_table(part: pd.DataFrame, least: float, most: float, title: str | None) -> Markup:
    columns = sorted(part["C"].unique())
    by_gamma = "gamma" in part
    folds = [] if by_gamma else [c for c in part if str(c).startswith("fold") and str(c)[4:].isdigit()]
    ways = [("mean of the folds", part)]
    if by_gamma:
        # gamma may be "scale".
        ways = sorted(part.groupby("gamma", sort=False), key=lambda way: (isinstance(way[0], str), way[0]))
    heads = [element("th", "gamma" if by_gamma else ""), (element("th", f"C = {c:g}", scope="col") for c in columns)]
    body = []
    for way, rows in ways:
        at = rows.drop_duplicates("C").set_index("C")
        head = element("th", f"{way:g}" if isinstance(way, float) else str(way), scope="row")
        body.append(
            element(
                "tr", head, (_grid_cell(at.loc[c], least, most) if c in at.index else element("td") for c in columns)
            )
        )
    at = part.drop_duplicates("C").set_index("C") if folds else part
    for fold in folds:
        cells = [element("td", share(at.loc[c, fold]), class_="quiet") for c in columns]
        body.append(element("tr", element("th", f"fold {fold[4:]}", scope="row", class_="quiet"), cells))
    return join(element("h3", title) if title else None, _table(heads, body, class_="heat grid"))


def _grid_cell(row: pd.Series, least: float, most: float) -> Markup:
    chosen, settled = bool(row["chosen"]), bool(row["converged"])
    notes = [f"± {row['std']:.3f}", "chosen" if chosen else None, None if settled else "not converged"]
    strength = (row["mean"] - least) / ((most - least) or 1)
    mark = "right chosen" if chosen else "right"
    return _heat(element("b", share(row["mean"])), strength, mark, note=" · ".join(n for n in notes if n))


def frame_table(frame: pd.DataFrame) -> Markup:
    """Any table as it is."""
    heads = [element("th", str(column).replace("_", " "), scope="col") for column in frame]
    body = [element("tr", (element("td", _text(value)) for value in row)) for row in frame.itertuples(index=False)]
    return _table(heads, body)


def provenance(result: SVMResult) -> Markup:
    """What the numbers came from."""
    known = result.provenance
    facts = {
        "made": known.get("created"),
        "took": f"{known['seconds']:.1f} s" if "seconds" in known else None,
        "feature store": known.get("store") or "arrays",
        "deepfeat": known.get("deepfeat"),
        "packages": ", ".join(f"{package} {version}" for package, version in known.get("versions", {}).items()),
        "engine": result.engine,
        "rows, SHA-256": known.get("rows"),
        "folds, SHA-256": known.get("folds"),
    }
    listed = [(element("dt", what), element("dd", name(value))) for what, value in facts.items() if value]
    settings = [(element("dt", key), element("dd", name(repr(v)))) for key, v in known.get("settings", {}).items()]
    chosen = [(element("dt", key), element("dd", name(repr(v)))) for key, v in result.best_params.items()]
    specs = {block["name"]: block.get("spec") for block in known.get("blocks", []) if block.get("spec")}
    return join(
        element("dl", listed, class_="facts"),
        element("h3", "Feature blocks"),
        _blocks_table(known.get("blocks") or [{"name": b, "dim": dim} for b, dim in result.blocks.items()]),
        element("h3", "Chosen parameters"),
        element("dl", chosen, class_="facts"),
        element("details", element("summary", "Arguments of fit_svm"), element("dl", settings, class_="facts")),
        element("details", element("summary", "Whole specs of the blocks"), element("pre", json.dumps(specs, indent=2)))
        if specs
        else None,
    )


def _blocks_table(blocks: Sequence[dict[str, Any]]) -> Markup:
    heads = [element("th", text, scope="col") for text in ("block", "columns", "key", "weights, SHA-256", "fine-tuned")]
    body = [
        element(
            "tr",
            element("th", name(block["name"]), scope="row"),
            element("td", f"{block['dim']:,}"),
            element("td", element("code", str(block.get("key") or "–")[:16])),
            element(
                "td", element("code", str((block.get("spec") or {}).get("weights") or "–").removeprefix("sha256:")[:16])
            ),
            element("td", "yes" if block.get("trained") else "no"),
        )
        for block in blocks
    ]
    return _table(heads, body)


def class_name(number: int, label: Any) -> Markup:
    """A label behind the colour of its class."""
    return element("span", element("i", class_=f"swatch {colour(number)}"), name(label), class_="class", title=label)


def legend(scores: Scores, numbers: Iterable[int], notes: dict[int, str] | None = None) -> Markup:
    """Buttons that show and hide the marks of each class in the section around them."""
    chips = [
        element(
            "button",
            class_name(k, scores.classes[k]),
            element("span", notes[k], class_="quiet") if notes else None,
            type="button",
            class_="chip",
            data_k=k,
            aria_pressed="true",
        )
        for k in numbers
    ]
    return element("div", chips, class_="legend", role="group", aria_label="Classes shown")


def _class_head(number: int, label: Any) -> Markup:
    return element("th", class_name(number, label), scope="row")


def _table(heads: Any, body: Any, class_: str | None = None) -> Markup:
    inner = element("table", element("thead", element("tr", heads)), element("tbody", body), class_=class_)
    return element("div", inner, class_="scroll", tabindex=0)


def _interval(row: Any) -> Markup:
    bar = _bar(row["value"], row["low"], row["high"])
    return element(
        "div",
        element("span", share(row["value"]), class_="value"),
        bar,
        element("span", shown_interval(row["low"], row["high"]), class_="quiet"),
        class_="ci",
    )


def _bar(value: float, low: float, high: float) -> Markup:
    """Draw an interval between 0 and 1; nothing for what is not between them."""
    if not 0 <= low <= value <= high <= 1:
        return element("span", class_="bar empty")
    style = f"--value:{value:.4f};--low:{low:.4f};--high:{high:.4f}"
    return element("span", element("span"), element("i"), class_="bar", style=style, aria_hidden="true")


def _fill(ratio: float, number: int) -> Markup:
    bar = element("i", class_=colour(number), style=f"width:{100 * ratio:.1f}%")
    return element("div", element("span", f"{ratio:.1%}"), element("div", bar, class_="track"), class_="fill")


def _heat(shown: Markup, strength: float, kind: str, note: str) -> Markup:
    content = (shown, element("span", note, class_="note"))
    return element("td", content, class_=kind, style=f"--share:{strength:.3f}")


def _text(value: Any) -> Any:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.4g}"
    return name(", ".join(f"{k}={v!r}" for k, v in value.items()) if isinstance(value, dict) else value)
