"""Near duplicates: images whose embeddings point the same way."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from deepfeat.errors import DataError, UsageError
from deepfeat.provenance import SCORES
from deepfeat.splits import merge_groups
from deepfeat.store import DONE, FeatureStore, open_features

#: Similarities that are in memory at a time.
_AT_A_TIME = 2**24

#: Pairs for each image from which on a threshold is taken for a mistake.
_MOST_PAIRS = 50

_COLUMNS = ["image_a", "image_b", "similarity", "identical", "label_a", "label_b", "group_a", "group_b", "same_group"]


def find_duplicates(
    store: FeatureStore | str | os.PathLike[str],
    backbones: str | Sequence[str] | None = None,
    *,
    threshold: float = 0.9,
) -> pd.DataFrame:
    """Propose pairs of images that show the same.

    Every pair of images is compared, and images whose files are equal byte for byte are always reported. Whether two
    images show one lesion, the features cannot know: look at the pairs, above all at those with different labels, and
    hand the table, or the rows that you keep, to ``fit_svm(duplicates=...)``, which never parts them.

    Parameters
    ----------
    store : path or FeatureStore
    backbones : str or list of str, optional
        Blocks by name or key; all if None, without the class scores of fine-tuned networks.
    threshold : float
        Least similarity of a pair, above 0 and at most 1; docs/comparison.md shows what each value finds.

    Returns
    -------
    pandas.DataFrame
        One row per pair, the most similar first: image_a, image_b, similarity, identical (the files are equal),
        label_a, label_b, group_a, group_b, same_group (kept together already: by their group, or by equal files), and
        group, the number of the set of images that the pairs, groups and equal files tie together.

    Raises
    ------
    UsageError
        For a threshold that is not allowed, or one that so many pairs reach that it cannot be meant.
    DataError
        If there are no features, some that are not finite, or blocks that saw different contents of an image.
    StoreError
        If there is no such store or block.

    Notes
    -----
    The similarity is the cosine of embeddings less their mean over all images, averaged over the blocks. The mean is
    taken off since the embeddings of a rectified layer all lie in one narrow cone, where even strangers have a
    cosine near 1. It is exact: the products are those of all images, a few hundred rows at a time.

    Examples
    --------
    >>> import deepfeat
    >>> pairs = deepfeat.find_duplicates("skin.h5", "EfficientNetLite0", threshold=0.8)
    >>> labelled = pairs[~pairs["same_group"]].dropna(subset=["label_a", "label_b"])
    >>> differ = labelled[labelled["label_a"] != labelled["label_b"]]  # to be looked at first
    >>> result = deepfeat.fit_svm("skin.h5", duplicates=pairs, cv=2)
    """
    if not 0 < threshold <= 1:
        msg = f"threshold is {threshold!r}: use a cosine above 0 and at most 1, such as 0.9"
        raise UsageError(msg)
    store = store if isinstance(store, FeatureStore) else open_features(store)
    if backbones is None:
        backbones = [block.key for block in store.structure.blocks if block.spec["layer"] != SCORES]
    keys, _, ids = store.choose(backbones, None)
    if not keys or not len(ids):
        msg = f"{store.path} has no image with features in every block: extract them, or name a block that is there"
        raise DataError(msg)
    contents = _contents(store, keys, ids)
    pairs, similarity = _similar_pairs(_directions(store, keys, ids), threshold, contents)
    return _describe(store, ids, contents, pairs, similarity)


def _directions(store: FeatureStore, keys: Sequence[str], ids: Sequence[str]) -> np.ndarray:
    """Rows whose products are the mean cosine of the blocks."""
    parts = []
    for key in keys:
        features = store.features(key, ids).reshape(len(ids), -1)
        if not np.isfinite(features).all():
            msg = f"{store.find(key).name} holds features that are not finite: extract it again"
            raise DataError(msg)
        centred = features - features.mean(axis=0, dtype=np.float64).astype(np.float32)
        length = np.linalg.norm(centred, axis=1, keepdims=True)
        parts.append(centred / np.where(length > 0, length, 1) / np.float32(np.sqrt(len(keys))))
    return np.concatenate(parts, axis=1)


def _similar_pairs(rows: np.ndarray, threshold: float, contents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of shape (m, 2) and their similarities: above the threshold, or with equal contents."""
    found, values, n_found = [], [], 0
    for start, products in _products(rows):
        # Rounding must not lose a pair that is equal in every bit.
        first, second = np.nonzero(np.triu(products >= threshold - 1e-6, 1))
        n_found += len(first)
        if n_found > _MOST_PAIRS * len(rows):
            msg = (
                f"more than {_MOST_PAIRS} pairs for each image have a similarity of {threshold:g}: use a greater "
                "threshold, or a backbone that tells the images apart"
            )
            raise UsageError(msg)
        found.append(np.column_stack([first, second]) + start)
        values.append(products[first, second])
    equal = _equal_pairs(contents)
    pairs = np.concatenate([*found, equal])
    similarity = np.concatenate([*values, np.einsum("ij,ij->i", rows[equal[:, 0]], rows[equal[:, 1]])])
    _, kept = np.unique(pairs, axis=0, return_index=True)
    return pairs[kept], np.minimum(similarity[kept], 1)


def _products(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Products of some rows with themselves and all that follow."""
    step = max(1, _AT_A_TIME // len(rows))
    for start in range(0, len(rows), step):
        yield start, rows[start : start + step] @ rows[start:].T


def _contents(store: FeatureStore, keys: Sequence[str], ids: Sequence[str]) -> np.ndarray:
    """Digest of each image's file, as one number for each content."""
    records = store.records(keys[0])[store.positions(ids)]
    assert (records["state"] == DONE).all()
    return np.unique(records["digest"], axis=0, return_inverse=True)[1].ravel()


def _equal_pairs(contents: np.ndarray) -> np.ndarray:
    """Each image with the next one of the same content."""
    order = np.argsort(contents, kind="stable")
    equal = np.flatnonzero(np.diff(contents[order]) == 0)
    return np.column_stack([order[equal], order[equal + 1]])


def _describe(
    store: FeatureStore, ids: Sequence[str], contents: np.ndarray, pairs: np.ndarray, similarity: np.ndarray
) -> pd.DataFrame:
    rows = store.table.loc[store.positions(ids)].reset_index(drop=True)
    groups = rows["group"].tolist()
    before, after = merge_groups(groups, contents), merge_groups(groups, contents, pairs)
    a, b = pairs.T
    columns = {"similarity": similarity, "identical": contents[a] == contents[b], "same_group": before[a] == before[b]}
    for side, numbers in (("a", a), ("b", b)):
        columns |= {f"{name}_{side}": rows[name].to_numpy(object)[numbers] for name in ("label", "group")}
        columns[f"image_{side}"] = rows["image_id"].to_numpy(object)[numbers]
    table = pd.DataFrame(columns)[_COLUMNS].assign(group=after[a])
    return table.sort_values(["similarity", "image_a"], ascending=[False, True], ignore_index=True)
