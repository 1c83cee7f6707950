"""The report: one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from deepfeat.datasets import as_table
from deepfeat.errors import DataError, StoreError, UsageError
from deepfeat.report import figures, tables
from deepfeat.report.gallery import Explain, gallery, hardest_errors
from deepfeat.report.markup import Markup, element, join, name, share
from deepfeat.report.pictures import THUMBNAIL_EDGE, load_pictures, make_sheets
from deepfeat.report.projection import METHODS, project
from deepfeat.report.scores import Scores, scored_rows
from deepfeat.store import FeatureStore, open_features

if TYPE_CHECKING:
    from deepfeat.svm import SVMResult

#: Groups of a class that an interval should rest on.
_FEW_GROUPS = 20


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
    if method not in METHODS:
        msg = f"method is {method!r}: use one of {', '.join(map(repr, METHODS))}"
        raise UsageError(msg)
    scores = scored_rows(result)
    store, doubt = _find_store(result, features)
    paths = _find_paths(result, store, images)
    title = title or _title(result)
    sections = [
        ("data", "Data and split", _data(result)),
        ("metrics", "Metrics", _metrics(result)),
        ("classes", "Classes", tables.per_class_table(result)),
        ("confusion", "Confusion matrix", _confusion(result)),
        ("curves", "Curves", _curves(result, scores)),
        ("calibration", "Calibration", _calibration(result, scores)),
        ("grid", "Choice of parameters", _grid(result)),
        ("map", "Map of the embeddings", _map(result, scores, features, store, doubt, paths, method, n_points, seed)),
        ("errors", "Hardest errors", _errors(result, scores, paths, explain, n_errors)),
        ("provenance", "Provenance", tables.provenance(result)),
    ]
    page = _page(title, _header(result, scores, title), _warnings(result, scores), sections)
    Path(path).write_text(page, encoding="utf-8")


def _page(title: str, header: Markup, warnings: Markup, sections: list[tuple[str, str, Markup]]) -> str:
    style, script = (resources.files("deepfeat.report").joinpath(f).read_text("utf-8") for f in ("style.css", "script.js"))
    # Whatever might slip through: no script runs but this one, and nothing is fetched.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(style)),
    )
    links = [element("a", heading, href=f"#{anchor}") for anchor, heading, _ in sections]
    theme = element("button", "light / dark", type="button", id="theme")
    body = element(
        "body",
        element("a", "Skip to the content", href="#content", class_="skip"),
        element("nav", element("div", links, class_="links"), theme, aria_label="Sections"),
        element("main", header, warnings, (_section(*section) for section in sections), id="content"),
        element("footer", "Made by deepfeat. Pictures and names in this page are those of the data set: share it as you may share them."),
        element("script", Markup(script)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _section(anchor: str, heading: str, content: Markup) -> Markup:
    return element("section", element("h2", heading), content, id=anchor, class_="card")


def _title(result: SVMResult) -> str:
    task = f"{result.positive} against the rest" if result.positive is not None else f"{len(result.classes)} classes"
    return f"{task}: {' + '.join(result.blocks)}"


def _header(result: SVMResult, scores: Scores, title: str) -> Markup:
    params = ", ".join(f"{key} = {value}" for key, value in result.best_params.items())
    facts = [
        f"{len(scores.truth):,} {tables.EVALUATED[result.evaluated_on]}",
        f"{scores.rows['group'].nunique():,} groups",
        params,
        result.provenance.get("created", "").replace("T", " ").replace("+00:00", " UTC"),
    ]
    return element(
        "header",
        element("h1", name(title)),
        element("p", " · ".join(fact for fact in facts if fact), class_="quiet"),
        tables.headline(result),
        _operating_point(result),
    )


def _operating_point(result: SVMResult) -> Markup | None:
    if result.threshold is None:
        return None
    why = f", chosen on the inner folds for {result.wish}" if result.wish else ""
    return element("p", f"An image is called ", name(result.positive), f" from a decision value of {result.threshold:.4g} on{why}.")


def _warnings(result: SVMResult, scores: Scores) -> Markup:
    found = [*result.warnings, *_split_groups(result), *_small_classes(scores)]
    if result.evaluated_on == "out-of-fold":
        found.append(
            "the parameters were chosen on the folds that are scored here: the numbers are slightly optimistic; "
            "nested=True or a test tell by how much"
        )
    if not found:
        return element("p", "No warnings.", class_="quiet")
    return element(
        "section",
        element("h2", f"{len(found)} warning{'s' * (len(found) > 1)}"),
        element("ul", (element("li", name(text)) for text in found)),
        class_="card warnings",
        id="warnings",
    )


def _split_groups(result: SVMResult) -> list[str]:
    inside = result.predictions[result.predictions["fold"] != -1]
    torn = int((inside.groupby("group")["fold"].nunique() > 1).sum())
    return [f"{torn} group(s) have images in several folds, or in a fold and in the test"] if torn else []


def _small_classes(scores: Scores) -> list[str]:
    found = []
    for k, label in enumerate(scores.classes):
        n_groups = scores.rows["group"][scores.truth == k].nunique()
        if n_groups < _FEW_GROUPS:
            found.append(f"{label}: what is said of it rests on {n_groups} group(s) of images")
    return found


def _data(result: SVMResult) -> Markup:
    sizes = result.predictions["group"].value_counts()
    text = (
        f"{len(result.predictions):,} images in {len(sizes):,} groups, of which {int((sizes > 1).sum()):,} have several "
        f"images (at most {int(sizes.max()):,}). A group is a patient or lesion, or files that are equal byte for byte; "
        "its images are on one side of every split."
    )
    return join(element("p", text), tables.data_table(result), tables.fold_table(result))


def _metrics(result: SVMResult) -> Markup:
    text = (
        "Intervals are the middle 95 % of a bootstrap that draws whole groups with replacement: what other images of "
        "the same kind would do to the number, with the classifier as it is."
    )
    nested = None
    if result.nested is not None:
        told = (
            "In the nested estimate everything is chosen anew on the training part of each outer fold. Plain is the "
            "out-of-fold score of the chosen parameters, and optimism how much that flatters."
        )
        nested = join(element("h3", "Nested estimate"), element("p", told), tables.nested_table(result.nested))
        if result.nested_choices is not None:
            choices = tables.frame_table(result.nested_choices.reset_index())
            nested = join(nested, element("details", element("summary", "What each outer fold chose"), choices))
    return join(element("p", text), tables.metrics_table(result), nested)


def _confusion(result: SVMResult) -> Markup:
    text = "Rows are true classes. The depth of the colour is the share of the row."
    return join(element("p", text), tables.confusion_table(result.confusion))


def _curves(result: SVMResult, scores: Scores) -> Markup:
    text = (
        f"Each class against the rest, by its decision values. Dots are the operating points: what is predicted. Bands hold 95 % of the resamples"
        f"{' (point at a class)' if result.positive is None else ''}; the dashed line is chance."
    )
    shown = [element("p", text), figures.curves(result, scores)]
    if result.positive is not None:
        shown.append(figures.decisions(result, scores))
    return join(shown)


def _calibration(result: SVMResult, scores: Scores) -> Markup:
    if scores.probabilities is None:
        return element("p", "The decision values were not calibrated, so there are no probabilities: pass calibrate=True to fit_svm.", class_="quiet")
    values = result.metrics["value"]
    text = f"Brier score {share(values['brier'])}, calibration error {share(values['calibration_error'])}. Whiskers are 95 % intervals."
    return join(element("p", text), figures.calibration(scores))


def _grid(result: SVMResult) -> Markup:
    best = result.cv_results.loc[result.cv_results["rank"].idxmin()]
    text = f"{result.scoring} in cross-validation on the training rows; the chosen candidate is framed."
    edges = [
        element("p", f"The best {parameter} is at the edge of its grid: better values may lie beyond it.", class_="alert")
        for parameter in best["at_edge"]
    ]
    tried = None
    if result.subsets is not None:
        tried = join(element("h3", "Sets of blocks that were tried"), tables.frame_table(result.subsets))
    return join(element("p", text), edges, tables.grid_tables(result), tried)


def _map(
    result: SVMResult,
    scores: Scores,
    features: Any,
    store: FeatureStore | None,
    doubt: str | None,
    paths: Mapping[str, str],
    method: str,
    n_points: int,
    seed: int,
) -> Markup:
    if not isinstance(features, tuple) and store is None:
        return element("p", f"No map: {doubt}", class_="quiet")
    rng = np.random.default_rng(seed)
    n_rows = len(scores.truth)
    rows = np.sort(rng.choice(n_rows, min(n_points, n_rows), replace=False))
    ids = scores.rows.index[rows].tolist()
    places = project(_features(result, features, store, ids), method, seed)
    loaded = load_pictures(paths, [str(i) for i in ids], THUMBNAIL_EDGE, square=True)
    pictures = [one.picture for one in loaded if one.picture is not None]
    numbers = iter(range(len(pictures)))
    cells = [None if one.picture is None else next(numbers) for one in loaded]
    how = {
        "tsne": "t-SNE of their first 50 principal components: near images are alike, and far distances mean nothing",
        "pca": "their first two principal components",
    }[method]
    drawn = f"{len(rows):,} of {n_rows:,} images, drawn at random" if len(rows) < n_rows else f"All {n_rows:,} images"
    absent = f" {len(loaded) - len(pictures):,} have no picture." if len(pictures) < len(loaded) else ""
    text = (
        f"{drawn}, as the features place them, by {how}. Colours are true classes; errors are ringed. Point at an image, or "
        f"use the arrow keys, to see it.{absent}"
    )
    return join(element("p", text), figures.embedding_map(scores, rows, places, make_sheets(pictures), cells))


def _errors(
    result: SVMResult, scores: Scores, paths: Mapping[str, str], explain: Explain | None, n_errors: int
) -> Markup:
    errors = hardest_errors(scores, result.threshold, n_errors)
    if errors.empty:
        return element("p", "No image was classified wrongly.")
    shown, problems = gallery(result, scores, errors, paths, explain)
    how = (
        "the difference of the two decision values" if result.threshold is None else "the distance from the threshold"
    )
    wrong = int((scores.truth != scores.guess).sum())
    text = (
        f"{len(errors)} of {wrong:,} errors: the hardest of each class in turn, one image of a group, by margin, {how}."
    )
    if explain is None:
        problems = [*problems, "No activation maps: pass explain=deepfeat.explain_images."]
    return join(element("p", text), (element("p", problem, class_="quiet") for problem in problems), shown)


def _find_store(result: SVMResult, features: Any) -> tuple[FeatureStore | None, str | None]:
    """The store behind the result; where it is not to be found, why."""
    if isinstance(features, FeatureStore):
        return features, None
    if isinstance(features, str | os.PathLike):
        return open_features(features), None
    if isinstance(features, tuple):
        return None, None
    known = result.provenance.get("store")
    if known is None:
        return None, "the classifier was fitted on arrays; pass them as features."
    try:
        return open_features(known), None
    except StoreError as error:
        return None, f"{error}; or pass the store as features."


def _features(result: SVMResult, features: Any, store: FeatureStore | None, ids: list[Any]) -> np.ndarray:
    """Features of some images, the chosen blocks side by side."""
    if store is None:
        return np.asarray(features[0])[[int(i) for i in ids]]
    keys = [block["key"] for block in result.provenance["blocks"]]
    return np.concatenate([store.features(key, ids) for key in keys], axis=1)


def _find_paths(result: SVMResult, store: FeatureStore | None, images: Any) -> dict[str, str]:
    """File of each image id."""
    if images is None:
        table = None if store is None else store.table
    elif isinstance(images, FeatureStore):
        table = images.table
    elif isinstance(images, str | os.PathLike) and os.path.isfile(images):
        table = open_features(images).table
    else:
        table = as_table(images)
    if table is None:
        return {}
    paths = dict(zip(table["image_id"], table["path"], strict=True))
    if not paths.keys() & set(result.predictions.index):
        msg = (
            f"images has none of the {len(result.predictions):,} images of the result (first: "
            f"{result.predictions.index[0]!r}): pass the table or folder that was given to extract"
        )
        raise DataError(msg)
    return paths
