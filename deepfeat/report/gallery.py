"""The errors that the classifier was surest of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from deepfeat.curves import Scores
from deepfeat.errors import DeepfeatError
from deepfeat.markup import Markup, element, join, name
from deepfeat.report.pictures import GALLERY_EDGE, Loaded, load_pictures, overlay, picture_source
from deepfeat.report.tables import class_name, legend

if TYPE_CHECKING:
    from deepfeat.svm import SVMResult

logger = logging.getLogger(__name__)

#: Of the result, paths and a label: for each path the evidence for the label, of shape (height, width), or what has it
#: as its ``total``.
Explain = Callable[[Any, Sequence[str], Any], Sequence[Any]]


def hardest_errors(scores: Scores, threshold: float | None, n_errors: int) -> pd.DataFrame:
    """Choose errors: the hardest of each class, then the next hardest of each, one image of each group.

    Returns
    -------
    pandas.DataFrame
        The hardest first: row (number among the scored rows) and margin: how far the decision value of what was
        predicted lies above that of the truth; with a threshold, how far from the threshold.
    """
    rows = np.arange(len(scores.truth))
    if threshold is None:
        margin = scores.decision[rows, scores.guess] - scores.decision[rows, scores.truth]
    else:
        margin = np.abs(scores.decision[:, 1] - threshold)
    table = pd.DataFrame(
        {"row": rows, "margin": margin, "truth": scores.truth, "group": scores.rows["group"].to_numpy()}
    )
    wrong = table[scores.truth != scores.guess].sort_values("margin", ascending=False, kind="stable")
    wrong = wrong.drop_duplicates("group")
    turn = wrong.groupby("truth").cumcount()
    chosen = wrong.assign(turn=turn).sort_values("turn", kind="stable").head(n_errors)
    return chosen.sort_values("margin", ascending=False, kind="stable")[["row", "margin"]]


def gallery(
    result: SVMResult, scores: Scores, errors: pd.DataFrame, paths: Mapping[str, str], explain: Explain | None
) -> tuple[Markup, list[str]]:
    """Show errors as pictures, and say what is missing."""
    ids = scores.rows.index[errors["row"]].astype(str).tolist()
    pictures = load_pictures(paths, ids, GALLERY_EDGE)
    maps, problems = _explained(result, scores, errors, ids, pictures, paths, explain)
    cards = [
        _card(scores, row, image_id, margin, picture, evidence)
        for row, margin, image_id, picture, evidence in zip(
            errors["row"], errors["margin"], ids, pictures, maps, strict=True
        )
    ]
    present = sorted(set(scores.truth[errors["row"]].tolist()))
    switch = None
    if any(evidence is not None for evidence in maps):
        box = element("input", type="checkbox", class_="show-maps", checked=True)
        switch = element(
            "label",
            box,
            " activation maps: red speaks more for the predicted class than the rest of the image, blue less",
        )
    return join(
        element("div", legend(scores, present), switch, class_="bar-of-controls"),
        element("div", cards, class_="gallery"),
    ), problems


def _explained(
    result: SVMResult,
    scores: Scores,
    errors: pd.DataFrame,
    ids: Sequence[str],
    pictures: Sequence[Loaded],
    paths: Mapping[str, str],
    explain: Explain | None,
) -> tuple[list[np.ndarray | None], list[str]]:
    """Evidence for what was predicted, one call for each predicted class."""
    maps: list[np.ndarray | None] = [None] * len(ids)
    if explain is None:
        return maps, []
    guess = scores.guess[errors["row"]]
    try:
        for k in np.unique(guess):
            wanted = [i for i in np.flatnonzero(guess == k).tolist() if pictures[i].picture is not None]
            found = explain(result, [str(paths[ids[i]]) for i in wanted], scores.classes[k]) if wanted else []
            for i, evidence in zip(wanted, found, strict=True):
                maps[i] = getattr(evidence, "total", evidence)
    except DeepfeatError as error:
        # In the page alone, it would be found only by those who look for the maps.
        said = f"No activation maps: {error}"
        logger.warning("%s", said)
        return maps, [said]
    return maps, []


def _card(scores: Scores, row: int, image_id: str, margin: float, loaded: Loaded, evidence: Any) -> Markup:
    truth, guess = scores.truth[row], scores.guess[row]
    told = f"{image_id}: {scores.classes[truth]} taken for {scores.classes[guess]}"
    if loaded.picture is None:
        shown = element("div", f"no picture: {loaded.reason}", class_="absent")
    else:
        shown = element("img", src=picture_source(loaded.picture), alt=told, class_="picture")
        if evidence is not None:
            laid = picture_source(overlay(loaded.picture, evidence))
            shown = join(shown, element("img", src=laid, alt=f"activation map of {told}", class_="overlay"))
    facts = [f"margin {margin:.2f}", _fold(scores.rows["fold"].iloc[row])]
    if scores.probabilities is not None:
        facts.insert(1, f"probability {scores.probabilities[row, guess]:.2f}")
    return element(
        "figure",
        element("div", shown, class_="frame"),
        element(
            "figcaption",
            element("div", class_name(truth, scores.classes[truth]), " → ", class_name(guess, scores.classes[guess])),
            element("div", name(image_id), class_="id"),
            element("div", " · ".join(facts), class_="quiet"),
        ),
        data_k=truth,
    )


def _fold(fold: Any) -> str:
    return "test" if fold == "test" else f"fold {fold}"
