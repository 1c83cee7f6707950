"""The report: one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import os
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfeat.curves import take_scores
from deepfeat.errors import UsageError
from deepfeat.markup import Markup, element
from deepfeat.outputs import check_output
from deepfeat.report import sections, tables
from deepfeat.report.gallery import Explain
from deepfeat.report.projection import METHODS
from deepfeat.report.sources import find_sources

if TYPE_CHECKING:
    from deepfeat.svm import SVMResult

#: Endings of the files that pages are written to.
FORMATS = (".html", ".htm")


def check_page(path: str | os.PathLike[str]) -> None:
    """Refuse a file whose ending is not that of a page, or whose folder is not there.

    Raises
    ------
    UsageError
    """
    check_output(path, FORMATS)


def write_report(
    result: SVMResult,
    path: str | os.PathLike[str],
    images: Any,
    *,
    features: Any,
    explain: Explain | None,
    method: str,
    n_points: int,
    n_errors: int,
    title: str | None,
    seed: int,
) -> None:
    """Write the page; see `deepfeat.SVMResult.report`."""
    check_page(path)
    if method not in METHODS:
        msg = f"method is {method!r}: use one of {', '.join(map(repr, METHODS))}"
        raise UsageError(msg)
    for argument, value in (("n_points", n_points), ("n_errors", n_errors)):
        if value < 1:
            msg = f"{argument} is {value}: use 1 or more"
            raise UsageError(msg)
    scores = take_scores(result)
    sources = find_sources(result, features, images)
    title = title or _title(result)
    parts = [
        ("data", "Data and split", sections.data(result)),
        ("metrics", "Metrics", sections.metrics(result)),
        ("classes", "Classes", tables.per_class_table(result)),
        ("confusion", "Confusion matrix", sections.confusion(result)),
        ("curves", "Curves", sections.curves(result, scores)),
        ("calibration", "Calibration", sections.calibration(result, scores)),
        ("grid", "Choice of parameters", sections.grid(result)),
        ("map", "Map of the embeddings", sections.embedding(scores, sources, method, n_points, seed)),
        ("errors", "Hardest errors", sections.errors(result, scores, sources, explain, n_errors)),
        ("provenance", "Provenance", tables.provenance(result)),
    ]
    top = [sections.header(result, scores, title), sections.warnings(result, scores)]
    Path(path).write_text(_page(title, top, parts), encoding="utf-8")


def _title(result: SVMResult) -> str:
    task = f"{result.positive} against the rest" if result.positive is not None else f"{len(result.classes)} classes"
    return f"{task}: {' + '.join(result.blocks)}"


def _page(title: str, top: list[Markup], parts: list[tuple[str, str, Markup]]) -> str:
    script = _resource("script.js")
    links = [element("a", heading, href=f"#{anchor}") for anchor, heading, _ in parts]
    theme = element("button", "light / dark", type="button", id="theme")
    body = element(
        "body",
        element("a", "Skip to the content", href="#content", class_="skip"),
        element("nav", element("div", links, class_="links"), theme, aria_label="Sections"),
        element("main", top, (_section(*part) for part in parts), id="content"),
        element(
            "footer", "Made by deepfeat. Pictures and names are those of the data set: share the page as you may them."
        ),
        element("script", script),
    )
    return f"<!DOCTYPE html>\n{element('html', _head(title, script), body, lang='en')}\n"


def _head(title: str, script: str) -> Markup:
    # Whatever might slip through: no script runs but this one, and nothing is fetched.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", _resource("style.css")),
    )


def _section(anchor: str, heading: str, content: Markup) -> Markup:
    return element("section", element("h2", heading), content, id=anchor, class_="card")


def _resource(file: str) -> Markup:
    return Markup(resources.files("deepfeat.report").joinpath(file).read_text("utf-8"))
