"""Where the features and the pictures of a result are now."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from deepfeat.datasets import as_table
from deepfeat.errors import DataError, StoreError, UsageError
from deepfeat.provenance import digest_contents
from deepfeat.store import FeatureStore, open_features
from deepfeat.store.layout import is_imported

if TYPE_CHECKING:
    from deepfeat.svm import SVMResult


@dataclass(frozen=True)
class Sources:
    """Features and pictures by image id.

    Attributes
    ----------
    store : FeatureStore or None
    keys : list of str
        The blocks of the store that the classifier was fitted on; of folds put together, the first.
    folds : list of str
        Names of the blocks that are folds put together.
    array : ndarray of shape (n, dim) or None
        What it was fitted on instead of a store.
    lacking : str or None
        Why there are no features.
    paths : mapping of str to str
        File of each image.
    """

    store: FeatureStore | None
    keys: list[str]
    folds: list[str]
    array: np.ndarray | None
    lacking: str | None
    paths: Mapping[str, str]

    def features(self, ids: Sequence[str]) -> np.ndarray:
        """Features of some images, the blocks side by side, of shape (n, sum of dims)."""
        if self.store is None:
            assert self.array is not None
            return self.array[[int(image_id) for image_id in ids]]
        return np.concatenate([self.store.features(key, ids) for key in self.keys], axis=1)


def find_sources(result: SVMResult, features: Any, images: Any) -> Sources:
    """Find features and pictures, as `deepfeat.SVMResult.report` describes.

    Raises
    ------
    UsageError
        If the features are not a store or those of the fit.
    DataError
        If none of the images is among those of the result.
    StoreError
        If a store that was named cannot be read, or lacks a block or an image, or has images of other contents.
    """
    blocks = [block for block in result.provenance.get("blocks", []) if "key" in block]
    keys = [block["key"] for block in blocks]
    store, array, lacking = _find_features(result, features, keys)
    folds = [block["name"] for block in blocks if len(block.get("keys", ())) > 1]
    return Sources(store, keys, folds, array, lacking, _find_paths(result, store, images))


def _find_features(
    result: SVMResult, features: Any, keys: Sequence[str]
) -> tuple[FeatureStore | None, np.ndarray | None, str | None]:
    """The store, or the array, or why there is neither."""
    if isinstance(features, FeatureStore):
        return _with_all(features, result, keys), None, None
    if isinstance(features, str | os.PathLike):
        return _with_all(open_features(features), result, keys), None, None
    if isinstance(features, tuple):
        return None, _fitted_array(result, features), None
    if features is not None:
        msg = f"features is a {type(features).__name__}: pass a path, a FeatureStore, or the arrays given to fit_svm"
        raise UsageError(msg)
    known = result.provenance.get("store")
    if known is None:
        return None, None, "the classifier was fitted on arrays; pass them as features."
    try:
        return _with_all(open_features(known), result, keys), None, None
    except StoreError as error:
        return None, None, f"{error}; or pass the store as features."


def _with_all(store: FeatureStore, result: SVMResult, keys: Sequence[str]) -> FeatureStore:
    """A store, if it has the blocks and the images of a result, with the contents that they had."""
    ids, contents = result.predictions.index.tolist(), result.provenance.get("contents")
    blocks = [store.find(key) for key in keys]
    positions = store.positions(ids)
    # The key of imported features holds their values; results that were saved before contents were recorded have none.
    checked = [] if contents is None else [block.key for block in blocks if not is_imported(block.spec)]
    for key in checked:
        if digest_contents(ids, map(bytes, store.records(key)["digest"][positions])) != contents:
            msg = (
                f"{store.path}: images have other contents than when the classifier was fitted, and their features "
                "are not those of its predictions: fit it again"
            )
            raise StoreError(msg)
    return store


def _fitted_array(result: SVMResult, features: tuple[Any, ...]) -> np.ndarray:
    X = np.asarray(features[0])
    wanted = sum(result.blocks.values())
    highest = max(int(i) if str(i).isdigit() else -1 for i in result.predictions.index)
    if X.ndim != 2 or X.shape[1] != wanted or not 0 <= highest < len(X):
        msg = f"features hold an array of shape {X.shape}: pass the arrays given to fit_svm, with {wanted} columns"
        raise UsageError(msg)
    return X


def _find_paths(result: SVMResult, store: FeatureStore | None, images: Any) -> dict[str, str]:
    table = _table_of(images) if images is not None else None if store is None else store.table
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


def _table_of(images: Any) -> pd.DataFrame:
    if isinstance(images, FeatureStore):
        return images.table
    if isinstance(images, str | os.PathLike) and os.path.isfile(images):
        return open_features(images).table
    return as_table(images)
