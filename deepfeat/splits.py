"""Leak-free index sets: stratified by label, with every group on one side."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from fractions import Fraction
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import PredefinedSplit, StratifiedGroupKFold, StratifiedKFold, train_test_split

from deepfeat.errors import DataError, UsageError

Indices = np.ndarray
Fold = tuple[Indices, Indices]


def merge_groups(
    groups: Sequence[Any], digests: Sequence[Any] | np.ndarray | None = None, pairs: np.ndarray | None = None
) -> np.ndarray:
    """Number the sets of images that must stay together.

    Images stay together if they share a group, if their files are equal byte
    for byte, or if they are a pair, and so on transitively. An image without any of these is a set of its own.

    Parameters
    ----------
    groups : sequence of n values
        Patient or lesion of each image, all text or all numbers; None, NaN or blank text where unknown.
    digests : sequence of n values, optional
        Content digest of each image.
    pairs : ndarray of shape (m, 2), int, optional
        Numbers of images that stay together besides.

    Returns
    -------
    ndarray of shape (n,), int
        The number of each image's set, from 0, in the sorted order of the
        groups: where groups alone decide, scikit-learn's shuffled splitters
        make the same folds of these numbers as of the groups themselves.

    Raises
    ------
    DataError
        If some groups are text and others are not.
    """
    n_images = len(groups)
    group_codes = _codes(known_groups(groups))
    ties = [group_codes] if digests is None else [group_codes, _codes(digests)]
    rows, columns, offset = [], [], n_images
    for codes in ties:
        known = np.flatnonzero(codes >= 0)
        rows.append(known)
        columns.append(codes[known] + offset)
        offset += int(codes.max(initial=-1)) + 1
    if pairs is not None:
        rows.append(pairs[:, 0])
        columns.append(pairs[:, 1])
    i, j = np.concatenate(rows), np.concatenate(columns)
    graph = coo_array((np.ones(len(i), np.int8), (i, j)), shape=(offset, offset))
    _, component = connected_components(graph, directed=False)
    component = component[:n_images]
    rank = np.where(group_codes >= 0, group_codes, group_codes.max(initial=-1) + 1 + np.arange(n_images))
    first = np.full(component.max(initial=-1) + 1, offset)
    np.minimum.at(first, component, rank)
    return np.unique(first[component], return_inverse=True)[1]


def known_groups(groups: Iterable[Any]) -> list[Any]:
    """Groups with None where they are blank, as in tables, or say that one patient may have two names, 7 and "7"."""
    known = [None if pd.isna(group) or (isinstance(group, str) and not group.strip()) else group for group in groups]
    refuse_mixed(known, "groups")
    return known


def refuse_mixed(names: Iterable[Any], what: str) -> None:
    """Refuse names of which some are text and others are not; None is neither.

    Raises
    ------
    DataError
    """
    known = [name for name in names if name is not None]
    text = next((name for name in known if isinstance(name, str)), None)
    other = next((name for name in known if not isinstance(name, str)), None)
    if text is not None and other is not None:
        msg = f"{what} are of several types, such as {text!r} and {other!r}: use text for all, or numbers for all"
        raise DataError(msg)


def hold_out(labels: np.ndarray, groups: Sequence[Any], test_size: float, seed: int) -> Fold:
    """Split once into train and test rows, stratified by label, groups whole.

    Without any repeated group this is scikit-learn's stratified
    `train_test_split`; with groups, the union of folds of a shuffled
    `StratifiedGroupKFold` whose number, at most 20 and at most the number of
    groups of the largest class, makes the nearest fraction to ``test_size``.

    Raises
    ------
    UsageError
        If ``test_size`` is not between 0 and 1, or ``seed`` is none that NumPy takes.
    DataError
        If there is one class only, or a class too small for both sides.
    """
    if not isinstance(test_size, Real) or not 0 < test_size < 1:
        msg = f"test_size is {test_size!r}: use a share between 0 and 1, such as 0.2"
        raise UsageError(msg)
    check_seed(seed)
    share = float(test_size)
    sets = merge_groups(groups)
    sets_per_class = _refuse_small_classes(labels, sets, 2, "a train and a test side")
    if len(np.unique(sets)) == len(sets):
        _refuse_small_side(len(labels), len(sets_per_class), share)
        train, test = train_test_split(np.arange(len(labels)), test_size=share, random_state=seed, stratify=labels)
        train, test = np.sort(train), np.sort(test)
    else:
        most_folds = min(20, int(sets_per_class.max()))
        fraction = Fraction(share).limit_denominator(most_folds)
        fraction = min(max(fraction, Fraction(1, most_folds)), Fraction(most_folds - 1, most_folds))
        with warnings.catch_warnings():
            # A class with fewer images than folds is expected here, and checked below.
            warnings.simplefilter("ignore", UserWarning)
            splitter = _StratifiedGroupKFold(fraction.denominator, shuffle=True, random_state=seed)
            folds = [test for _, test in splitter.split(labels, labels, sets)]
        test = np.sort(np.concatenate(folds[: fraction.numerator]))
        train = np.setdiff1d(np.arange(len(labels)), test)
    for side, rows in (("train", train), ("test", test)):
        _refuse_absent_classes(labels, rows, f"the {side} side of the split", "another seed or a share nearer to 0.5")
    return train, test


def make_folds(labels: np.ndarray, sets: np.ndarray, cv: Any, seed: int) -> list[Fold]:
    """Make cross-validation folds, stratified by label, sets of images whole.

    Parameters
    ----------
    labels : ndarray of shape (n,)
        Class of each image.
    sets : ndarray of shape (n,), int
        From `merge_groups`: images of one set share a fold.
    cv : int, splitter or iterable
        Number of folds, or a scikit-learn splitter, which is given the sets as
        groups, or (train, test) arrays of row numbers.
    seed : int
        Seed of the shuffling; a splitter brings its own.

    Returns
    -------
    list of (train, test) pairs of ndarray of int

    Raises
    ------
    UsageError
        If ``cv`` is none of these, or ``seed`` is none that NumPy takes.
    DataError
        If there is one class only, a class has fewer sets than folds, a fold
        trains without one of the classes, a set is in train and test of one fold,
        or the splitter refuses the data; or if some sets are text and others are not.
    """
    check_seed(seed)
    if sets.dtype == object:
        known_groups(sets)
    if isinstance(cv, bool) or (isinstance(cv, Integral) and cv < 2):
        msg = f"cv is {cv}: use 2 or more folds, or a scikit-learn splitter"
        raise UsageError(msg)
    if isinstance(cv, Integral):
        _refuse_small_classes(labels, sets, int(cv), f"{cv} folds")
        if len(np.unique(sets)) < len(sets):
            folds = list(_StratifiedGroupKFold(int(cv), shuffle=True, random_state=seed).split(labels, labels, sets))
        else:
            folds = list(StratifiedKFold(int(cv), shuffle=True, random_state=seed).split(labels, labels))
    elif isinstance(cv, str | type) or not (hasattr(cv, "split") or isinstance(cv, Iterable)):
        shown = repr(cv) if isinstance(cv, str) else getattr(cv, "__name__", f"a {type(cv).__name__}")
        msg = f"cv is {shown}: use a number of folds, a scikit-learn splitter object, or (train, test) index arrays"
        raise UsageError(msg)
    elif hasattr(cv, "split"):
        _refuse_other_rows(cv, len(labels))
        _refuse_small_classes(labels, sets, 2, "cross-validation")
        try:
            with warnings.catch_warnings():
                # They are not, below.
                warnings.filterwarnings("ignore", "The groups parameter is ignored")
                folds = list(cv.split(np.zeros(len(labels)), labels, sets))
        except ValueError as error:
            msg = f"cv={cv} cannot split the {len(labels)} images: {error}"
            raise DataError(msg) from error
        folds = _index_arrays(folds, len(labels))
    else:
        _refuse_small_classes(labels, sets, 1, "cross-validation")
        folds = _index_arrays(cv, len(labels))
    remedy = "fewer folds or another seed" if isinstance(cv, Integral) else "a stratified splitter"
    for number, (train, test) in enumerate(folds):
        _refuse_absent_classes(labels, train, f"the training part of fold {number}", remedy)
        shared = np.intersect1d(sets[train], sets[test])
        if len(shared):
            msg = (
                f"fold {number} has {len(shared)} group(s) in both its training and its test part: use a group splitter"
            )
            raise DataError(msg)
    return folds


class _StratifiedGroupKFold(StratifiedGroupKFold):  # type: ignore[misc]
    """scikit-learn's splitter and its folds, to the last image, in a fraction of the time.

    scikit-learn asks for each group and each fold how even the classes would be if the group came into that fold. Here
    that is one question for all folds. The method is private: should it be called no more, time is lost and nothing
    else.
    """

    def _find_best_fold(
        self, y_counts_per_fold: np.ndarray, y_cnt: np.ndarray, group_y_counts: np.ndarray
    ) -> int | None:
        """Return the fold in which the group leaves the classes most even; among equal ones, that with the fewest."""
        folds = np.arange(self.n_splits)
        counts = np.repeat(y_counts_per_fold[None], self.n_splits, axis=0)
        counts[folds, folds] += group_y_counts
        unevenness = np.std(counts / y_cnt, axis=1).mean(axis=1).tolist()
        best, least, fewest = None, math.inf, math.inf
        for fold, (value, images) in enumerate(zip(unevenness, y_counts_per_fold.sum(axis=1).tolist(), strict=True)):
            # The tolerances of numpy.isclose, as in scikit-learn.
            is_close = abs(value - least) <= 1e-8 + 1e-5 * least < math.inf
            if value < least or (is_close and images < fewest):
                best, least, fewest = fold, value, images
        return best


def _codes(values: Sequence[Any] | np.ndarray) -> np.ndarray:
    return np.asarray(pd.factorize(pd.Series(list(values), dtype=object), sort=True)[0])


def _index_arrays(cv: Iterable[Any], n_images: int) -> list[Fold]:
    try:
        folds = [(np.asarray(train), np.asarray(test)) for train, test in cv]
    except (TypeError, ValueError) as error:
        msg = f"cv is an iterable of something other than (train, test) pairs of index arrays: {error}"
        raise UsageError(msg) from error
    if not folds:
        raise UsageError("cv holds no folds: give at least one (train, test) pair of index arrays")
    for number, fold in enumerate(folds):
        for part, rows in zip(("training", "test"), fold, strict=True):
            if rows.ndim != 1 or rows.dtype.kind not in "iu" or len(rows) == 0:
                msg = (
                    f"the {part} part of fold {number} is an array of shape {rows.shape} and type {rows.dtype}: "
                    "use one dimension of row numbers"
                )
                raise UsageError(msg)
            if rows.min() < 0 or rows.max() >= n_images:
                msg = (
                    f"the {part} part of fold {number} has the rows {rows.min()} to {rows.max()}: "
                    f"use row numbers from 0 to {n_images - 1}"
                )
                raise UsageError(msg)
    return folds


def _refuse_other_rows(cv: Any, n_images: int) -> None:
    """Refuse a splitter that has the folds of its own rows, where others are to be split."""
    if isinstance(cv, PredefinedSplit) and len(cv.test_fold) != n_images:
        msg = (
            f"cv is a PredefinedSplit of {len(cv.test_fold)} rows, and {n_images} are to be split: give it a fold for "
            "each training image, in their order; nested folds need a number or another splitter"
        )
        raise UsageError(msg)


def check_seed(seed: Any) -> None:
    """Refuse a seed that NumPy's generators do not take."""
    if not isinstance(seed, Integral) or not 0 <= int(seed) < 2**32:
        msg = f"seed is {seed!r}: use a whole number from 0 to {2**32 - 1}"
        raise UsageError(msg)


def _refuse_small_side(n_images: int, n_classes: int, share: float) -> None:
    n_test = math.ceil(share * n_images)
    if min(n_test, n_images - n_test) < n_classes:
        msg = (
            f"test_size {share:g} of {n_images} images leaves {n_test} for the test and {n_images - n_test} to train, "
            f"too few for {n_classes} classes: use a share nearer to 0.5"
        )
        raise DataError(msg)


def _refuse_small_classes(labels: np.ndarray, sets: np.ndarray, least: int, purpose: str) -> pd.Series:
    """Return the number of sets of each class."""
    counts = pd.DataFrame({"label": labels, "set": sets}).groupby("label")["set"].nunique()
    if len(counts) < 2:
        msg = f"all {len(labels)} images are of the class {str(counts.index[0])!r}: a classifier needs two"
        raise DataError(msg)
    small = counts[counts < least]
    if len(small):
        named = ", ".join(f"{label!s} ({count})" for label, count in small.items())
        fewer = f"use at most {counts.min()} folds, or " if counts.min() > 1 else ""
        msg = (
            f"every class needs at least {least} images or groups for {purpose}, but {len(small)} class(es) "
            f"have fewer: {named}; {fewer}drop or merge classes (in fit_svm: labels={{old: new or None}})"
        )
        raise DataError(msg)
    return counts


def _refuse_absent_classes(labels: np.ndarray, rows: np.ndarray, where: str, remedy: str) -> None:
    absent = sorted(set(labels) - set(labels[rows]), key=str)
    if absent:
        msg = f"class {str(absent[0])!r} has no image in {where}: try {remedy}"
        raise DataError(msg)
