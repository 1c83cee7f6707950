"""Classifiers on the same images: which is better, and whether that is more than chance."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd

from deepfeat.bootstrap import PER_CLASS, draw_counts, percentile_interval, resampled_metrics
from deepfeat.errors import DataError, UsageError
from deepfeat.evaluation import count_folds, probabilities_of, scored_rows, strata_of
from deepfeat.ledger import Entry
from deepfeat.splits import check_seed
from deepfeat.store import FeatureStore, open_features
from deepfeat.svm import SVMResult, fit_svm
from deepfeat.svm.sources import choose_sources

#: Metrics of which less is better.
LOSSES = ("hinge_loss", "brier")

_Fit = SVMResult | Entry


def compare(
    features: Any,
    candidates: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    metric: str = "balanced_accuracy",
    label: Any = None,
    n_resamples: int = 2000,
    seed: int = 0,
    **settings: Any,
) -> pd.DataFrame:
    """Compare classifiers in pairs on the same images and folds.

    Parameters
    ----------
    features : path, FeatureStore or tuple; or results
        What `deepfeat.fit_svm` takes, for fits that are made here. Or fits that are at hand: a mapping of name to
        `deepfeat.SVMResult` or entry of a ledger, or a list of them, all of the same images.
    candidates : mapping of str to mapping, optional
        Name and arguments of `deepfeat.fit_svm` for each classifier, such as ``{"rbf": {"kernel": "rbf"}}``. If None,
        each block of the store by itself and all of them joined.
    metric : str
        One of the index of ``SVMResult.metrics`` or, with ``label``, of the columns of ``per_class``.
    label : label, optional
        Compare the metric of this class.
    n_resamples : int
        Of the bootstrap, which draws whole groups, the same ones for all classifiers. No p is below 2 in this many,
        and the correction multiplies that by the number of pairs: draw more for many pairs.
    seed : int
        Of the bootstrap, and of the splits and folds of fits that are made here.
    **settings
        Arguments of `deepfeat.fit_svm` for all candidates.

    Returns
    -------
    pandas.DataFrame
        One row per pair, in the order given: a, b, value_a, value_b, difference (a less b), low and high (its 95 %
        interval), p (two-sided), p_holm (corrected for the number of pairs), and a sentence.

    Raises
    ------
    UsageError
        If there are fewer than two classifiers, the metric is none, or another argument is not allowed.
    DataError
        If they were scored on different images, labels or folds.

    Notes
    -----
    Each resample gives each classifier one value; the interval is the middle 95 % of their differences. p is twice the
    share of resamples on the far side of 0, which is the level of the interval that just touches 0; one is added to
    both counts, so that p is never 0 (Davison and Hinkley 1997, Bootstrap methods and their application). The
    correction is that of Holm (1979), A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6.
    In cross-validation fewer groups are drawn than there are, since folds teach one another, see docs/statistics.md.

    Where the parameters were chosen on the images that score them, the candidate with more to choose from has the
    advantage: hold out a test or pass ``nested=True``.

    Examples
    --------
    >>> import deepfeat
    >>> from sklearn.datasets import load_wine
    >>> data = load_wine(return_X_y=True)
    >>> candidates = {"weak": {"param_grid": {"C": [1e-5]}}, "strong": {"param_grid": {"C": [0.1]}}}
    >>> bool(deepfeat.compare(data, candidates, cv=3)["difference"][0] < 0)
    True
    """
    check_seed(seed)
    if not isinstance(n_resamples, Integral):
        msg = f"n_resamples is {n_resamples!r}: use a whole number, such as 2000"
        raise UsageError(msg)
    if n_resamples < 100:
        msg = f"n_resamples is {n_resamples}: an interval needs 100 or more"
        raise UsageError(msg)
    fits = _results(features, candidates, {**settings, "seed": seed}, metric, label)
    if len(fits) < 2:
        msg = f"{len(fits)} classifier(s) to compare: give two or more candidates, results, or blocks of a store"
        raise UsageError(msg)
    rows = _same_rows(fits)
    first = next(iter(rows.values()))
    counts = draw_counts(first["group"].to_numpy(), n_resamples, seed, count_folds(first))
    # The images themselves are resampled along, in the first row.
    counts = np.vstack([np.ones_like(counts[:1]), counts])
    replicates = {name: _replicates(fits[name], table, counts, metric, label) for name, table in rows.items()}
    compared = pd.DataFrame([_compare_pair(a, b, replicates) for a, b in combinations(fits, 2)])
    compared["p_holm"] = holm(compared["p"].to_numpy())
    shown = metric if label is None else f"{metric} of {label}"
    compared["sentence"] = [_sentence(row, shown, metric in LOSSES, len(compared)) for row in compared.itertuples()]
    return compared


def holm(p: np.ndarray) -> np.ndarray:
    """Correct p-values of shape (m,) for their number by Holm's procedure; NaN stays NaN and counts as none."""
    corrected = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * (len(order) - np.arange(len(order)))
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps))
    return corrected


def _results(features: Any, candidates: Any, settings: dict[str, Any], metric: str, label: Any) -> dict[str, _Fit]:
    fits = _at_hand(features)
    if fits is not None:
        if candidates is not None or set(settings) != {"seed"}:
            raise UsageError("results are compared as they are: pass neither candidates nor arguments of fit_svm")
        return fits
    if isinstance(features, str | os.PathLike):
        features = open_features(features)
    if candidates is None:
        if "backbones" in settings:
            raise UsageError("backbones says what one fit joins: pass candidates={name: {'backbones': ...}} instead")
        if not isinstance(features, FeatureStore):
            raise UsageError("plain arrays have no blocks to compare: pass candidates={name: arguments of fit_svm}")
        candidates = _each_block(features)
    _check_candidates(candidates)
    if isinstance(settings.get("cv"), Iterator):
        settings["cv"] = list(settings["cv"])
    asked = {str(name): {**settings, **given} for name, given in candidates.items()}
    # Before the first fit and not after the last.
    for each in asked.values():
        _check_metric(metric, label, _metrics_of(each))
    if len(asked) < 2:
        return dict.fromkeys(asked)  # type: ignore[return-value]
    made: dict[str, _Fit] = {}
    for name, each in asked.items():
        made[name] = fit_svm(features, **each)
        _check_label(label, made[name].classes)
    return made


def _check_candidates(candidates: Any) -> None:
    if not isinstance(candidates, Mapping):
        msg = f"candidates is a {type(candidates).__name__}: use a mapping such as {{'rbf': {{'kernel': 'rbf'}}}}"
        raise UsageError(msg)
    for name, given in candidates.items():
        if not isinstance(given, Mapping):
            msg = f"the candidate {name!r} is {given!r}: use its arguments of fit_svm, such as {{'kernel': 'rbf'}}"
            raise UsageError(msg)


def _metrics_of(settings: Mapping[str, Any]) -> list[str]:
    """Metrics that a fit of these settings has: those that two images get, since nothing else lists them."""
    classes, ones = np.arange(2), np.ones((1, 2), int)
    positive = None if settings.get("positive") is None else 1
    probabilities = np.eye(2) if settings.get("calibrate") else None
    return list(resampled_metrics(classes, classes, np.eye(2), ones, positive, probabilities)[0])


def _check_metric(metric: str, label: Any, overall: Iterable[str]) -> None:
    allowed = overall if label is None else PER_CLASS
    if metric not in allowed:
        of = "" if label is None else f" of {label!r}"
        msg = f"metric is {metric!r}{of}: use one of {', '.join(allowed)}"
        raise UsageError(msg)


def _check_label(label: Any, classes: Sequence[Any]) -> None:
    if label is not None and label not in classes:
        msg = f"label is {label!r}: use one of {', '.join(map(repr, classes))}"
        raise UsageError(msg)


def _at_hand(features: Any) -> dict[str, _Fit] | None:
    """Fits by name, where features are fits."""
    if isinstance(features, Mapping):
        fits = {str(name): fit for name, fit in features.items()}
    elif isinstance(features, list):
        fits = dict(zip(_names(features), features, strict=True))
    else:
        return None
    strange = [type(fit).__name__ for fit in fits.values() if not isinstance(fit, _Fit)]
    if strange:
        msg = f"there is a {strange[0]} among the results: pass what fit_svm gave, or entries of a ledger"
        raise UsageError(msg)
    return fits


def _names(fits: Sequence[Any]) -> list[str]:
    """Blocks of each fit, numbered where that is not unique."""
    blocks = [fit.record["blocks"] if isinstance(fit, Entry) else getattr(fit, "blocks", {}) for fit in fits]
    names = [" + ".join(each) for each in blocks]
    return [n if names.count(n) == 1 else f"{n} ({names[: i + 1].count(n)})" for i, n in enumerate(names)]


def _each_block(store: FeatureStore) -> dict[str, dict[str, Any]]:
    """Each block by itself with all its views, and all of them joined."""
    sources = next(iter(choose_sources(store, None, views=True).values()), [])
    names = [s.name if s.is_folds or _is_only(store, s.name) else s.members[0].key for s in sources]
    alone = {name: {"backbones": name} for name in names}
    return alone if len(alone) < 2 else {**alone, " + ".join(names): {"backbones": names}}


def _is_only(store: FeatureStore, name: str) -> bool:
    return [block.name for block in store.structure.blocks].count(name) == 1


def _same_rows(fits: Mapping[str, _Fit]) -> dict[str, pd.DataFrame]:
    """Scored predictions of each fit, in one order."""
    rows = {name: scored_rows(fit.predictions, fit.evaluated_on) for name, fit in fits.items()}
    first, reference = next(iter(rows.items()))
    kind, classes = fits[first].evaluated_on, fits[first].classes
    for name, table in rows.items():
        if fits[name].evaluated_on != kind or not table.index.sort_values().equals(reference.index.sort_values()):
            msg = (
                f"{first} was scored on {len(reference)} {kind} images and {name} on {len(table)} "
                f"{fits[name].evaluated_on} images that are not the same: compare fits on one test or one set of images"
            )
            raise DataError(msg)
        rows[name] = table = table.loc[reference.index]
        for column in ("label", "group", "fold"):
            if fits[name].classes != classes or not _same(table[column], reference[column]):
                msg = f"{first} and {name} have other {column}s for the same images: fit both with the same {column}s"
                raise DataError(msg)
    return rows


def _same(one: pd.Series, other: pd.Series) -> bool:
    """Whether two columns are equal; groups, which are numbers, where they part the images in the same way."""
    if one.name == "group":
        return np.array_equal(pd.factorize(one)[0], pd.factorize(other)[0])
    return bool(one.tolist() == other.tolist())


def _replicates(fit: _Fit, table: pd.DataFrame, counts: np.ndarray, metric: str, label: Any) -> np.ndarray:
    """The metric of every resample, of shape (n_resamples,)."""
    classes = list(fit.classes)
    truth, guess = (pd.Categorical(table[side], classes).codes.astype(int) for side in ("label", "predicted"))
    overall, per_class = resampled_metrics(
        truth,
        guess,
        table[classes].to_numpy(float),
        counts,
        None if fit.positive is None else classes.index(fit.positive),
        probabilities_of(table, classes),
        strata_of(table, fit.evaluated_on),
    )
    _check_metric(metric, label, overall.columns)
    _check_label(label, classes)
    return overall[metric].to_numpy() if label is None else per_class[metric][:, classes.index(label)]


def _compare_pair(a: str, b: str, replicates: Mapping[str, np.ndarray]) -> dict[str, Any]:
    differences = replicates[a] - replicates[b]
    drawn = differences[1:]
    low, high = percentile_interval(drawn)
    known = drawn[~np.isnan(drawn)]
    tail = min((known <= 0).sum(), (known >= 0).sum())
    return {
        "a": a,
        "b": b,
        "value_a": replicates[a][0],
        "value_b": replicates[b][0],
        "difference": differences[0],
        "low": float(low),
        "high": float(high),
        "p": min(1.0, 2 * (1 + tail) / (1 + len(known))) if len(known) else np.nan,
    }


def _sentence(row: Any, metric: str, is_loss: bool, n_pairs: int) -> str:
    name = metric.replace("_", " ")
    if np.isnan(row.difference) or np.isnan(row.p):
        return f"{row.a} and {row.b} cannot be compared: the {name} is not defined."
    numbers = f"{row.value_a:.3f} and {row.value_b:.3f}"
    corrected = f" after correction for {n_pairs} pairs" if n_pairs > 1 else ""
    doubt = f"95 % interval of the difference {row.low:+.3f} to {row.high:+.3f}, p = {row.p_holm:.2g}{corrected}"
    if row.p_holm < 0.05:
        better, worse = (row.a, row.b) if (row.difference > 0) != is_loss else (row.b, row.a)
        return f"{better} is better than {worse}: {name} of {row.a} and {row.b} {numbers} ({doubt})."
    return f"No difference is shown between {row.a} and {row.b}: {name} {numbers} ({doubt})."
