"""What a classifier is fitted on: rows of features with labels, groups and splits."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import issparse

from deepfeat.datasets import relabel
from deepfeat.errors import DataError, UsageError
from deepfeat.fusion import one_space
from deepfeat.splits import known_groups, merge_groups, refuse_mixed
from deepfeat.store import Block, FeatureStore, open_features
from deepfeat.svm.sources import Source, choose_sources


@dataclass(frozen=True)
class Samples:
    """Rows ready for scikit-learn.

    Attributes
    ----------
    X : ndarray of shape (n, sum of widths), float32 or float64
        The blocks side by side; all of the first view, then all of the second, and so on.
    y : ndarray of shape (n,), object or bool
    sets : ndarray of shape (n,), int
        Images that must stay together, see `deepfeat.splits.merge_groups`.
    ids : ndarray of shape (n,), object
    split : ndarray of shape (n,), object
        "train", "val", "test" or None.
    blocks : dict of str to int
        Name and width of each block of one view.
    averageable : bool
        Whether the blocks are of one embedding space.
    notes : list of str
        What the user should know of rows left out or put together.
    views : tuple of str
        Names of the views.
    seen : dict of str to ndarray of shape (n,), bool
        For each block of a fine-tuned network, which images it was fine-tuned on, or on others that
        must stay together with them.
    folds : tuple of str
        The blocks that are put together of a network for each fold.
    contents : ndarray of shape (n,), object
        Digest of each image's file as bytes; None for plain arrays.
    origin : dict
        Path of the store, and for each block what the store knows of it.
    """

    X: np.ndarray
    y: np.ndarray
    sets: np.ndarray
    ids: np.ndarray
    split: np.ndarray
    blocks: dict[str, int]
    averageable: bool
    notes: list[str]
    views: tuple[str, ...] = ("original",)
    seen: Mapping[str, np.ndarray] = field(default_factory=dict)
    folds: tuple[str, ...] = ()
    contents: np.ndarray = field(default_factory=lambda: np.empty(0, object))
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def target(self) -> np.ndarray:
        """Labels in an array of their own type, of shape (n,), as scikit-learn wants them."""
        return np.array(self.y.tolist())

    def select(self, chosen: Sequence[str]) -> Samples:
        """Return the same rows with some of the blocks, of every view."""
        numbers = np.repeat(list(self.blocks), list(self.blocks.values()))
        columns = np.tile(np.isin(numbers, list(chosen)), len(self.views))
        return replace(
            self,
            X=self.X[:, columns],
            blocks={name: self.blocks[name] for name in self.blocks if name in chosen},
            seen={name: rows for name, rows in self.seen.items() if name in chosen},
            folds=tuple(name for name in self.folds if name in chosen),
        )


#: Rows that are looked at at once, so that no temporary array is as large as the features.
_AT_A_TIME = 65_536

#: Features beyond it overflow where their squares are summed.
_LARGEST = 1e100

#: What becomes of images without a group.
UNGROUPED = ("own", "drop", "raise")


@dataclass(frozen=True)
class Grouping:
    """What stays together besides the images of one group; see `deepfeat.fit_svm`.

    Attributes
    ----------
    ungrouped : {"own", "drop", "raise"}
    duplicates : pandas.DataFrame or None
        With the columns image_a and image_b.
    """

    ungrouped: str = "own"
    duplicates: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        if self.ungrouped not in UNGROUPED:
            msg = f"ungrouped is {self.ungrouped!r}: use one of {', '.join(map(repr, UNGROUPED))}"
            raise UsageError(msg)

    def keep(self, table: pd.DataFrame, kept: np.ndarray, notes: list[str]) -> np.ndarray:
        """Leave out, refuse or note images without a group."""
        missing = kept & table["group"].isna().to_numpy()
        n_missing, n_kept = int(missing.sum()), int(kept.sum())
        if not n_missing:
            return kept
        first = table["image_id"].to_numpy(object)[missing][0]
        if self.ungrouped == "raise" or (self.ungrouped == "drop" and n_missing == n_kept):
            msg = (
                f"{n_missing} of {n_kept} image(s) have no group (first: {first!r}): give each its patient or lesion, "
                "or pass ungrouped='own', which takes each for a group of its own"
            )
            raise DataError(msg)
        if self.ungrouped == "drop":
            notes.append(f"{n_missing} image(s) without a group left out (first: {first!r})")
            return np.asarray(kept & ~missing)
        if n_missing < n_kept:
            notes.append(f"{n_missing} image(s) without a group count as a group of their own")
        return kept

    def pairs(self, ids: np.ndarray) -> np.ndarray | None:
        """Row numbers, of shape (m, 2), of the duplicates; all must be among the ids."""
        if self.duplicates is None:
            return None
        if not {"image_a", "image_b"} <= set(getattr(self.duplicates, "columns", ())):
            msg = "duplicates has no columns image_a and image_b: pass the table of deepfeat.find_duplicates"
            raise UsageError(msg)
        given = self.duplicates[["image_a", "image_b"]].to_numpy(object)
        rows = np.asarray(pd.Index(ids, dtype=object).get_indexer(given.astype(str).ravel())).reshape(-1, 2)
        if (rows < 0).any():
            strange = given[rows < 0][0]
            msg = f"duplicates names {strange!r}, which is none of the images: find them again in this store"
            raise DataError(msg)
        return rows


def load_samples(
    features: Any,
    backbones: str | Sequence[str] | None,
    labels: Any,
    *,
    views: bool = True,
    grouping: Grouping = Grouping(),
) -> Samples:
    """Accept a store, a path, or plain arrays."""
    if isinstance(features, tuple):
        return _from_arrays(features, backbones, labels, grouping)
    if isinstance(features, str | os.PathLike):
        features = open_features(features)
    if not isinstance(features, FeatureStore):
        msg = f"features is a {type(features).__name__}: pass a path, a FeatureStore, or (X, y) or (X, y, groups)"
        raise UsageError(msg)
    return _from_store(features, backbones, labels, views, grouping)


def binarise(samples: Samples, positive: str) -> Samples:
    """Turn the labels into True for one class and False for the rest."""
    if not isinstance(positive, Hashable) or positive not in set(samples.y):
        msg = f"positive is {positive!r}, which no image has: the labels are {sorted(set(samples.y), key=str)}"
        raise UsageError(msg)
    return replace(samples, y=samples.y == positive)


def _from_arrays(arrays: tuple[Any, ...], backbones: Any, labels: Any, grouping: Grouping) -> Samples:
    if len(arrays) not in (2, 3) or backbones is not None or isinstance(labels, pd.Series):
        msg = "plain arrays are passed as (X, y) or (X, y, groups), without backbones and without a Series of labels"
        raise UsageError(msg)
    if issparse(arrays[0]):
        raise UsageError("X is a sparse matrix: pass X.toarray()")
    _refuse_masked(arrays)
    X, y = np.asarray(arrays[0]), np.asarray(arrays[1], dtype=object)
    has_groups = len(arrays) == 3 and arrays[2] is not None
    groups = np.asarray(arrays[2], dtype=object) if has_groups else np.full(X.shape[:1], None)
    if X.ndim != 2 or not X.size or not y.shape == groups.shape == X.shape[:1]:
        msg = f"X has shape {X.shape}, y {y.shape}, groups {groups.shape}: X is (n, d), not empty, and the others (n,)"
        raise UsageError(msg)
    ids = np.array([str(i) for i in range(len(X))], dtype=object)
    if any(isinstance(label, bool | np.bool_) for label in y):
        raise UsageError("y holds True and False: name the classes, such as np.where(y, 'MEL', 'other')")
    table = pd.DataFrame({"image_id": ids, "label": y, "group": known_groups(groups), "split": None}, dtype=object)
    if labels is not None:
        table = relabel(table, labels)
    notes: list[str] = []
    keep = grouping.keep(table, _labelled(table, notes), notes)
    rows = table[keep]
    if rows.empty:
        msg = f"none of the {len(X)} images has a label: give y the class of each image that is to be fitted on"
        raise DataError(msg)
    X = X if keep.all() else X[keep]
    if X.dtype not in (np.float32, np.float64):
        X = _as_numbers(X)
    _refuse_not_finite(X, rows["image_id"].to_numpy(object))
    _refuse_overflow(X)
    tied = merge_groups(table["group"].tolist(), None, grouping.pairs(ids))
    return _samples(X, rows, tied[keep], {"X": X.shape[1]}, True, notes)


def _refuse_masked(arrays: tuple[Any, ...]) -> None:
    for name, array in zip(("X", "y", "groups"), arrays, strict=False):
        if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
            msg = f"{name} is an array with masked values, which would be used: fill them, or leave these images out"
            raise UsageError(msg)


def _as_numbers(X: np.ndarray) -> np.ndarray:
    if X.dtype.kind == "c":
        raise UsageError("X holds complex numbers: pass real ones, such as np.hstack([X.real, X.imag])")
    try:
        return X.astype(np.float32 if X.dtype == np.float16 else np.float64)
    except (TypeError, ValueError) as error:
        msg = f"X holds something other than numbers ({error}): leave such columns out"
        raise UsageError(msg) from error


def _from_store(
    store: FeatureStore,
    backbones: str | Sequence[str] | None,
    labels: pd.Series | Mapping[str, str | None] | None,
    views: bool,
    grouping: Grouping,
) -> Samples:
    by_view = choose_sources(store, backbones, views)
    sources = [source for group in by_view.values() for source in group]
    if not sources:
        msg = f"{store.path} has no features: run deepfeat.extract first (class scores are taken only where named)"
        raise DataError(msg)
    blocks = [block for source in sources for block in source.members]
    _refuse_maps(blocks)
    table = store.table if labels is None else relabel(store.table, labels)
    notes: list[str] = []
    done, digests = _done_everywhere(store, [block.key for block in blocks], notes)
    keep = grouping.keep(table, done & _labelled(table, notes), notes)
    rows = table[keep]
    if rows.empty:
        msg = f"no image of {store.path} has both features and a label: pass labels= or extract with a labelled table"
        raise DataError(msg)
    ids = rows["image_id"].to_numpy(object)
    tied = merge_groups(table["group"].tolist(), digests.tolist(), grouping.pairs(table["image_id"].to_numpy(object)))
    X = _join(store, sources, ids.tolist(), tied)
    _refuse_not_finite(X, ids)
    first = next(iter(by_view.values()))
    named = dict(zip(_unique_names(first), first, strict=True))
    widths = {name: source.dim for name, source in named.items()}
    samples = _samples(X, rows, tied[keep], widths, one_space([source.spec for source in first]), notes)
    seen = {name: source.seen(store, tied)[keep] for name, source in named.items() if source.is_tuned}
    folds = tuple(name for name, source in named.items() if source.is_folds)
    origin = {"store": str(store.path), "blocks": {name: _describe(source) for name, source in named.items()}}
    contents = digests[keep]
    _note_repeated(rows, contents, notes)
    return replace(samples, views=tuple(by_view), seen=seen, folds=folds, contents=contents, origin=origin)


def _note_repeated(rows: pd.DataFrame, contents: np.ndarray, notes: list[str]) -> None:
    """Note images that count several times, as after a class was renamed, and above all as several classes."""
    repeated = pd.Series(contents).duplicated(keep=False).to_numpy()
    if not repeated.any():
        return
    files = [part for _, part in rows[repeated].groupby(contents[repeated], sort=False)]
    several = [part for part in files if len(set(part["label"])) > 1]
    labelled = f", and {len(several)} of these files have several labels" if several else ""
    first = ", ".join(map(repr, (several or files)[0]["image_id"][:2]))
    notes.append(f"{repeated.sum()} images are {len(files)} files, each under several ids{labelled} (first: {first})")


def _join(store: FeatureStore, sources: Sequence[Source], ids: list[str], tied: np.ndarray) -> np.ndarray:
    """Features of all sources side by side; one source may be mapped from the file."""
    if len(sources) == 1:
        return sources[0].features(store, ids, tied)
    X = np.empty((len(ids), sum(source.dim for source in sources)), np.float32)
    stops = np.cumsum([source.dim for source in sources])
    for source, stop in zip(sources, stops, strict=True):
        X[:, stop - source.dim : stop] = source.features(store, ids, tied)
    return X


def _describe(source: Source) -> dict[str, Any]:
    keys = [block.key for block in source.members]
    return {"key": keys[0], "keys": keys, "dim": source.dim, "spec": dict(source.spec), "trained": source.is_tuned}


def _samples(
    X: np.ndarray, rows: pd.DataFrame, tied: np.ndarray, blocks: dict[str, int], averageable: bool, notes: list[str]
) -> Samples:
    # Numbered anew, since images that are left out tie others together, and number sets.
    sets = np.unique(tied, return_inverse=True)[1]
    split = np.array([None if pd.isna(s) else s for s in rows["split"]], dtype=object)
    ids, y = rows["image_id"].to_numpy(object), rows["label"].to_numpy(object)
    refuse_mixed(y, "labels")
    _refuse_no_classes(y)
    _refuse_changed(y)
    _refuse_undecodable(y)
    return Samples(X, y, sets, ids, split, blocks, averageable, notes)


def _done_everywhere(store: FeatureStore, keys: Sequence[str], notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Which images every block has, and the digest of the content that all of them saw."""
    digests = store.contents(keys)
    done = np.array([digest is not None for digest in digests], bool)
    lacking = np.flatnonzero(~done)
    if len(lacking):
        first = store.table["image_id"][lacking[0]]
        notes.append(f"{len(lacking)} image(s) without features in every block left out (first: {first!r})")
    return done, digests


def _labelled(table: pd.DataFrame, notes: list[str]) -> np.ndarray:
    known = table["label"].notna().to_numpy()
    if not known.all():
        first = table["image_id"].to_numpy(object)[~known][0]
        notes.append(f"{(~known).sum()} image(s) without a label left out (first: {first!r})")
    return np.asarray(known)


def _refuse_no_classes(labels: np.ndarray) -> None:
    for label in labels:
        if not (isinstance(label, str) or _is_whole(label)):
            msg = f"a label is {label!r}, which is no name of a class: use text, or whole numbers of 64 bits"
            raise DataError(msg)


def _is_whole(label: Any) -> bool:
    is_number = isinstance(label, int | float | np.integer | np.floating)
    return is_number and -(2**63) <= label < 2**63 and float(label).is_integer()


def _refuse_changed(labels: np.ndarray) -> None:
    """Refuse labels that others take the place of in an array of one type, as scikit-learn wants them."""
    for label, instead in zip(labels, np.array(labels.tolist()).tolist(), strict=True):
        if label != instead:
            msg = (
                f"the label {label!r} would become {instead!r} in an array of all labels: use text without null "
                "characters at its end, or whole numbers without floats among them"
            )
            raise DataError(msg)


def _refuse_undecodable(labels: np.ndarray) -> None:
    """Refuse names of folders in another encoding before the search, whose tables could not hold them."""
    for label in {label for label in labels if isinstance(label, str)}:
        try:
            label.encode()
        except UnicodeEncodeError as error:
            msg = (
                f"the label {label!r} has bytes that are not UTF-8: rename the folder that it comes from, "
                f"or pass labels={{{label!r}: 'another name'}}"
            )
            raise DataError(msg) from error


def _refuse_maps(blocks: Sequence[Block]) -> None:
    for block in blocks:
        if len(block.shape) > 1:
            msg = (
                f"{block.name} holds feature maps of shape {block.shape}: extract it with another pooling, or 'flatten'"
            )
            raise UsageError(msg)


def _refuse_not_finite(X: np.ndarray, ids: np.ndarray) -> None:
    parts = range(0, len(X), _AT_A_TIME)
    wrong = np.concatenate(
        [start + np.flatnonzero(~np.isfinite(X[start : start + _AT_A_TIME]).all(axis=1)) for start in parts]
    )
    if len(wrong):
        msg = f"{len(wrong)} row(s) hold features that are not finite (first: {ids[wrong[0]]!r})"
        raise DataError(msg)


def _refuse_overflow(X: np.ndarray) -> None:
    if X.dtype != np.float64:
        # The others end before.
        return
    most = np.maximum(X.max(axis=0), -X.min(axis=0))
    beyond = np.flatnonzero(most > _LARGEST)
    if len(beyond):
        msg = (
            f"column {beyond[0]} of X holds {most[beyond[0]]:g}, and squares of numbers beyond {_LARGEST:g} overflow: "
            "scale the column, or leave it out"
        )
        raise DataError(msg)


def _unique_names(sources: Sequence[Source]) -> list[str]:
    names = [source.name for source in sources]
    return [
        name if names.count(name) == 1 else f"{name} ({source.members[0].key[:8]})"
        for name, source in zip(names, sources, strict=True)
    ]
