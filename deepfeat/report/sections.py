"""What each section of the page says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deepfeat.curves import Scores
from deepfeat.markup import Markup, element, join, name, share
from deepfeat.report import figures, tables
from deepfeat.report.gallery import Explain, gallery, hardest_errors
from deepfeat.report.pictures import THUMBNAIL_EDGE, load_pictures, make_sheets
from deepfeat.report.projection import project
from deepfeat.report.sources import Sources

if TYPE_CHECKING:
    from deepfeat.svm import SVMResult

#: Groups of a class that an interval should rest on.
_FEW_GROUPS = 20

_EVALUATED = {
    "test": "held-out test images",
    "nested": "images in nested cross-validation",
    "out-of-fold": "images, out-of-fold",
}

_METHODS = {
    "tsne": "t-SNE of their first 50 principal components: near images are alike, and far distances mean nothing",
    "pca": "their first two principal components",
}


def header(result: SVMResult, scores: Scores, title: str) -> Markup:
    """Title, what was scored, the main numbers, and the threshold."""
    params = ", ".join(f"{key} = {value}" for key, value in result.best_params.items())
    facts = [
        f"{len(scores.truth):,} {_EVALUATED[result.evaluated_on]}",
        f"{scores.rows['group'].nunique():,} groups",
        params,
        result.provenance.get("created", "").replace("T", " ").replace("+00:00", " UTC"),
    ]
    return element(
        "header",
        element("h1", name(title)),
        element("p", " · ".join(fact for fact in facts if fact), class_="quiet"),
        tables.headline(result),
        _threshold(result),
    )


def _threshold(result: SVMResult) -> Markup | None:
    if result.threshold is None:
        return None
    why = f", chosen on the inner folds for {result.wish}" if result.wish else ""
    told = (f" from a decision value of {result.threshold:.4g} on", why, ".")
    return element("p", "An image is called ", name(result.positive), told)


def warnings(result: SVMResult, scores: Scores) -> Markup:
    """What a reader of the numbers should know first."""
    found = [*result.warnings, *_torn_groups(result), *_small_classes(scores)]
    if result.evaluated_on == "out-of-fold":
        found.append(
            "the parameters were chosen on the folds that are scored here, so that the numbers are slightly "
            "optimistic: nested=True or a test tells by how much"
        )
    if not found:
        return element("p", "No warnings.", class_="quiet", id="warnings")
    heading = element("h2", f"{len(found)} warning{'s' * (len(found) > 1)}")
    return element(
        "section",
        heading,
        element("ul", (element("li", name(text)) for text in found)),
        id="warnings",
        class_="card warnings",
    )


def _torn_groups(result: SVMResult) -> list[str]:
    inside = result.predictions[result.predictions["fold"] != -1]
    torn = int((inside.groupby("group")["fold"].nunique() > 1).sum())
    return [f"{torn} group(s) have images in several folds, or in a fold and in the test"] if torn else []


def _small_classes(scores: Scores) -> list[str]:
    counts = {label: scores.rows["group"][scores.truth == k].nunique() for k, label in enumerate(scores.classes)}
    return [
        f"{label}: what is said of it rests on {n} group(s) of images" for label, n in counts.items() if n < _FEW_GROUPS
    ]


def data(result: SVMResult) -> Markup:
    """Classes, groups and split."""
    sizes = result.predictions["group"].value_counts()
    several, images = int((sizes > 1).sum()), f"{len(result.predictions):,} images"
    if several:
        text = (
            f"{images} in {len(sizes):,} groups, of which {several:,} have several images (at most "
            f"{int(sizes.max()):,}). A group is a patient or lesion, or files that are equal byte for byte; its images "
            "belong on one side of every split."
        )
    else:
        text = (
            f"{images}, each a group by itself. If several are of one patient or lesion, and the table does not say "
            "so, the numbers are too good."
        )
    return join(element("p", text), tables.data_table(result), tables.fold_table(result))


def metrics(result: SVMResult) -> Markup:
    """Metrics over all classes, and the nested estimate."""
    text = (
        "Intervals are the middle 95 % of a bootstrap that draws whole groups with replacement: what other images of "
        "the same kind would do to the number, with the classifier as it is. Accuracy, recall, specificity and "
        "precision of 0 or 1 have the exact interval of a binomial."
    )
    if result.nested is None:
        return join(element("p", text), tables.metrics_table(result))
    # Without a test the two would show the same numbers.
    plain = None if result.evaluated_on == "nested" else tables.metrics_table(result)
    told = (
        "In the nested estimate everything is chosen anew on the training part of each outer fold. Plain is the "
        "out-of-fold score at the chosen parameters, and optimism the difference: it flatters where that is above 0, "
        "for losses and errors below 0."
    )
    parts = [element("h3", "Nested estimate"), element("p", told), tables.nested_table(result.nested)]
    return join(element("p", text), plain, parts, _choices(result))


def _choices(result: SVMResult) -> Markup | None:
    if result.nested_choices is None:
        return None
    chosen = tables.frame_table(result.nested_choices.reset_index())
    return element("details", element("summary", "What each outer fold chose"), chosen)


def confusion(result: SVMResult) -> Markup:
    """The confusion matrix."""
    text = "Rows are true classes. The depth of the colour is the share of the row."
    return join(element("p", text), tables.confusion_table(result.confusion))


def curves(result: SVMResult, scores: Scores) -> Markup:
    """ROC and precision-recall curves; of one class against the rest, also the decision values."""
    point = "" if result.positive is not None else " (point at a class)"
    text = (
        "Each class against the rest, by its decision values. Dots are the operating points: what is predicted. "
        f"Bands hold 95 % of the resamples{point}; the dashed line is chance."
    )
    if result.evaluated_on == "nested":
        text += (
            " The classifiers of the folds have scales of their own: the curves, and the average precision, are of "
            "values standardised within each fold. The AUROC that is named is of pairs of one fold, and may differ a "
            "little from the area under the curve."
        )
    values = None if result.positive is None else figures.decisions(result, scores)
    return join(element("p", text), figures.curves(result, scores), values)


def calibration(result: SVMResult, scores: Scores) -> Markup:
    """Whether probabilities come true."""
    if scores.probabilities is None:
        text = (
            "There are no probabilities, since the decision values were not calibrated: pass calibrate=True to fit_svm."
        )
        return element("p", text, class_="quiet")
    values = result.metrics["value"]
    text = f"Brier score {share(values['brier'])}, calibration error {share(values['calibration_error'])}."
    return join(element("p", f"{text} Whiskers are 95 % intervals."), figures.calibration(scores))


def grid(result: SVMResult) -> Markup:
    """How the parameters and blocks were chosen."""
    best = result.cv_results.loc[result.cv_results["rank"].idxmin()]
    text = f"{result.scoring} in cross-validation on the training rows; the chosen candidate is framed."
    edges = [
        element("p", f"The best {name_} is at the edge of its grid: better values may lie beyond it.", class_="alert")
        for name_ in best["at_edge"]
    ]
    tried = None
    if result.subsets is not None:
        tried = join(element("h3", "Sets of blocks that were tried"), tables.frame_table(result.subsets))
    return join(element("p", text), edges, tables.grid_tables(result), tried)


def embedding(scores: Scores, sources: Sources, method: str, n_points: int, seed: int) -> Markup:
    """Map of the embeddings."""
    if sources.lacking is not None:
        return element("p", f"No map: {sources.lacking}", class_="quiet")
    n_rows = len(scores.truth)
    drawn = np.random.default_rng(seed).choice(n_rows, min(n_points, n_rows), replace=False)
    rows = np.sort(drawn)
    ids = scores.rows.index[rows].tolist()
    places = project(sources.features(ids), method, seed)
    pictures = [one.picture for one in load_pictures(sources.paths, ids, THUMBNAIL_EDGE, square=True)]
    known = [picture for picture in pictures if picture is not None]
    numbers = iter(range(len(known)))
    cells = [None if picture is None else next(numbers) for picture in pictures]
    which = f"{len(rows):,} of {n_rows:,} images, drawn at random" if len(rows) < n_rows else f"All {n_rows:,} images"
    absent = f" {len(pictures) - len(known):,} have no picture." if len(known) < len(pictures) else ""
    text = (
        f"{which}, as the features place them, by {_METHODS[method]}. Colours are true classes; errors are ringed. "
        f"Point at an image, or use the arrow keys, to see it.{absent}"
    )
    if sources.folds:
        text += (
            f" Of {', '.join(sources.folds)}, this is the network of the first fold, which has seen most of these "
            "images and sets them apart better than new ones."
        )
    return join(element("p", text), figures.embedding_map(scores, rows, places, make_sheets(known), cells))


def errors(result: SVMResult, scores: Scores, sources: Sources, explain: Explain | None, n_errors: int) -> Markup:
    """The errors that the classifier was surest of."""
    hardest = hardest_errors(scores, result.threshold, n_errors)
    wrong = int((scores.truth != scores.guess).sum())
    if hardest.empty:
        return element("p", f"{wrong:,} errors.")
    shown, problems = gallery(result, scores, hardest, sources.paths, explain)
    if explain is None:
        problems = [
            *problems,
            "No activation maps: pass explain=deepfeat.explain_images, or --maps on the command line.",
        ]
    how = "the difference of the two decision values" if result.threshold is None else "the distance from the threshold"
    which = "the hardest of each class in turn, one image of a group"
    text = f"{len(hardest)} of {wrong:,} errors: {which}; the margin is {how}."
    return join(element("p", text), (element("p", problem, class_="quiet") for problem in problems), shown)
