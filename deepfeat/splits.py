"""Leak-free index sets: stratified by label, with every group on one side."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from deepfeat.errors import DataError, UsageError

Indices = np.ndarray
Fold = tuple[Indices, Indices]


def merge_groups(groups: Sequence[Any], digests: Sequence[Any] | None = None) -> np.ndarray:
    """Number the sets of images that must stay together.

    Images stay together if they share a group or if their files are equal byte
    for byte, and so on transitively. An image with neither is a set of its own.

    Parameters
    ----------
    groups : sequence of n values
        Patient or lesion of each image; None or NaN where unknown.
    digests : sequence of n values, optional
        Content digest of each image.

    Returns
    -------
    ndarray of shape (n,), int
        The number of each image's set, from 0.
    """
    n_images = len(groups)
    ties = [_codes(groups)] if digests is None else [_codes(groups), _codes(digests)]
    rows, columns, offset = [], [], n_images
    for codes in ties:
        known = np.flatnonzero(codes >= 0)
        rows.append(known)
        columns.append(codes[known] + offset)
        offset += int(codes.max(initial=-1)) + 1
    i, j = np.concatenate(rows), np.concatenate(columns)
    graph = coo_array((np.ones(len(i), np.int8), (i, j)), shape=(offset, offset))
    _, component = connected_components(graph, directed=False)
    return np.unique(component[:n_images], return_inverse=True)[1]


def hold_out(labels: np.ndarray, groups: Sequence[Any], test_size: float | Fraction, seed: int) -> Fold:
    """Split once into train and test rows, stratified by label, groups whole.

    Without any repeated group this is scikit-learn's stratified
    `train_test_split`; with groups, the union of folds of a shuffled
    `StratifiedGroupKFold` whose number makes the nearest fraction to
    ``test_size``.

    Raises
    ------
    UsageError
        If ``test_size`` is not between 0 and 1.
    DataError
        If there is one class only, or a class too small for both sides.
    """
    if not 0 < test_size < 1:
        msg = f"test_size is {float(test_size)}: use a share between 0 and 1, such as 0.2"
        raise UsageError(msg)
    sets = merge_groups(groups)
    _refuse_small_classes(labels, sets, 2, "both a train and a test side")
    if len(np.unique(sets)) == len(sets):
        train, test = train_test_split(
            np.arange(len(labels)), test_size=float(test_size), random_state=seed, stratify=labels
        )
        train, test = np.sort(train), np.sort(test)
    else:
        share = Fraction(test_size).limit_denominator(20)
        share = min(max(share, Fraction(1, 20)), Fraction(19, 20))
        with warnings.catch_warnings():
            # A class with fewer images than twenty folds is expected here, and checked below.
            warnings.simplefilter("ignore", UserWarning)
            splitter = StratifiedGroupKFold(share.denominator, shuffle=True, random_state=seed)
            folds = [test for _, test in splitter.split(labels, labels, sets)]
        test = np.sort(np.concatenate(folds[: share.numerator]))
        train = np.setdiff1d(np.arange(len(labels)), test)
    for side, rows in (("train", train), ("test", test)):
        _refuse_absent_classes(labels, rows, f"the {side} side of the split", "another seed or a larger share")
    return train, test


def make_folds(labels: np.ndarray, sets: np.ndarray, cv: Any, seed: int) -> list[Fold]:
    """Make cross-validation folds, stratified by label, sets of images whole.

    Parameters
    ----------
    labels : ndarray of shape (n,)
        Class of each image.
    sets : ndarray of shape (n,), int
        From `merge_groups`: images of one set share a fold.
    cv : int or splitter
        Number of folds, or a scikit-learn splitter, which is given the sets as
        groups, or an iterable of (train, test) index arrays.
    seed : int
        Seed of the shuffling; a splitter brings its own.

    Returns
    -------
    list of (train, test) pairs of ndarray of int

    Raises
    ------
    UsageError
        If ``cv`` is none of these.
    DataError
        If there is one class only, a class has fewer sets than folds, a fold
        trains without one of the classes, or a set is in train and test of one fold.
    """
    if isinstance(cv, bool) or (isinstance(cv, int) and cv < 2):
        msg = f"cv is {cv}: use 2 or more folds, or a scikit-learn splitter"
        raise UsageError(msg)
    if isinstance(cv, int):
        _refuse_small_classes(labels, sets, cv, f"cv={cv} folds")
        if len(np.unique(sets)) < len(sets):
            folds = list(StratifiedGroupKFold(cv, shuffle=True, random_state=seed).split(labels, labels, sets))
        else:
            folds = list(StratifiedKFold(cv, shuffle=True, random_state=seed).split(labels, labels))
    elif hasattr(cv, "split"):
        _refuse_small_classes(labels, sets, 2, "cross-validation")
        folds = list(cv.split(np.zeros(len(labels)), labels, sets))
    elif isinstance(cv, Iterable):
        folds = [(np.asarray(train), np.asarray(test)) for train, test in cv]
    else:
        msg = f"cv is a {type(cv).__name__}: use a number of folds, a scikit-learn splitter, or index arrays"
        raise UsageError(msg)
    for number, (train, test) in enumerate(folds):
        _refuse_absent_classes(labels, train, f"the training part of fold {number}", "fewer folds or another seed")
        shared = np.intersect1d(sets[train], sets[test])
        if len(shared):
            msg = f"fold {number} has {len(shared)} groups in both its training and its test part: use a group splitter"
            raise DataError(msg)
    return folds


def _codes(values: Sequence[Any]) -> np.ndarray:
    return pd.factorize(pd.Series(list(values), dtype=object))[0]


def _refuse_small_classes(labels: np.ndarray, sets: np.ndarray, least: int, purpose: str) -> None:
    counts = pd.DataFrame({"label": labels, "set": sets}).groupby("label")["set"].nunique()
    if len(counts) < 2:
        msg = f"all {len(labels)} images are of the class {str(counts.index[0])!r}: a classifier needs two"
        raise DataError(msg)
    small = counts[counts < least]
    if len(small):
        named = ", ".join(f"{label!s} ({count})" for label, count in small.items())
        msg = (
            f"too few images or groups for {purpose} in {len(small)} class(es): {named}; "
            f"use at most {counts.min()} folds, or drop or merge classes with labels={{old: new or None}}"
        )
        raise DataError(msg)


def _refuse_absent_classes(labels: np.ndarray, rows: np.ndarray, where: str, remedy: str) -> None:
    absent = sorted(set(labels) - set(labels[rows]), key=str)
    if absent:
        msg = f"class {str(absent[0])!r} has no image in {where}, since its few groups fell together: try {remedy}"
        raise DataError(msg)
