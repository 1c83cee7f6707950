"""How much two feature blocks say the same."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from deepfeat.errors import DataError, UsageError
from deepfeat.store import FeatureStore, open_features


def linear_cka(
    features: FeatureStore | str | os.PathLike[str] | Mapping[str, Any],
    backbones: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """Linear centred kernel alignment of every two blocks.

    1 where two blocks have the same similarities between images, up to one scale, and so up to a rotation of the
    features; near 0 where they have nothing to do with one another. Blocks that say the same add little to each other.

    Parameters
    ----------
    features : path, FeatureStore, or mapping of str to ndarray of shape (n, dim)
        The rows of all arrays are the same images.
    backbones : str or list of str, optional
        Blocks of the store by name or key; all if None.

    Returns
    -------
    pandas.DataFrame of shape (n_blocks, n_blocks)
        Symmetric, with ones on the diagonal; NaN for a block that is the same for all images.

    Raises
    ------
    UsageError
        If arrays do not fit together.
    DataError
        If fewer than two images are in every block, or features are not finite.
    StoreError
        If there is no such store or block.

    Notes
    -----
    Kornblith et al. (2019), Similarity of neural network representations revisited, ICML: their section 3,
    ``||Yᵀ X||² / (||Xᵀ X|| ||Yᵀ Y||)`` in Frobenius norms, of columns less their means. Where there are fewer images
    than features the same numbers come from the Gram matrices. With few images for many features
    even unrelated blocks come out well above 0: compare thousands of images.

    Examples
    --------
    >>> import deepfeat
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(500, 3))
    >>> float(deepfeat.linear_cka({"A": X, "B": -2 * X[:, ::-1]}).loc["A", "B"].round(6))
    1.0
    """
    blocks = {name: _centred(name, block) for name, block in _blocks(features, backbones).items()}
    names = list(blocks)
    table = pd.DataFrame(np.nan, names, names)
    norms = {name: np.sqrt(_alignment(X, X)) for name, X in blocks.items()}
    for i, first in enumerate(names):
        for second in names[: i + 1]:
            scale = norms[first] * norms[second]
            if scale > 0:
                value = 1.0 if first == second else _alignment(blocks[first], blocks[second]) / scale
                table.loc[first, second] = table.loc[second, first] = value
    return table


def _blocks(features: Any, backbones: str | Sequence[str] | None) -> dict[str, np.ndarray]:
    if isinstance(features, Mapping):
        blocks = {str(name): np.asarray(block) for name, block in features.items()}
        shapes = {name: block.shape for name, block in blocks.items()}
        fit = all(len(shape) == 2 for shape in shapes.values()) and len({shape[0] for shape in shapes.values()}) < 2
        if backbones is not None or not fit:
            msg = f"arrays of shapes {shapes}: pass arrays of shape (n, dim) with one n, and name no backbones"
            raise UsageError(msg)
        return blocks
    store = features if isinstance(features, FeatureStore) else open_features(features)
    keys, names, ids = store.choose(backbones, None)
    return {name: store.features(key, ids).reshape(len(ids), -1) for key, name in zip(keys, names, strict=True)}


def _centred(name: str, block: np.ndarray) -> np.ndarray:
    if len(block) < 2 or not np.isfinite(block).all():
        msg = f"{name} has {len(block)} row(s) in common with the others, or values that are not finite: extract again"
        raise DataError(msg)
    # Sums of squares are beyond what float16 holds.
    block = block.astype(np.promote_types(block.dtype, np.float32), copy=False)
    return np.asarray(block - block.mean(axis=0, dtype=np.float64).astype(block.dtype))


def _alignment(X: np.ndarray, Y: np.ndarray) -> float:
    """Squared Frobenius norm of Yᵀ X, or what is the same, the sum of the products of both Gram matrices."""
    if len(X) >= min(X.shape[1], Y.shape[1]):
        return float(np.square(Y.T @ X, dtype=np.float64).sum())
    return float(np.multiply(X @ X.T, Y @ Y.T, dtype=np.float64).sum())
