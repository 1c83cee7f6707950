"""What a fit was made of, for ledgers, bundles and reports."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

import deepfeat
from deepfeat.provenance import digest_contents
from deepfeat.splits import Fold
from deepfeat.svm.samples import Samples

_PACKAGES = ("numpy", "scipy", "scikit-learn", "pandas", "h5py")


def describe_fit(
    samples: Samples,
    blocks: Mapping[str, int],
    train: np.ndarray,
    folds: Sequence[Fold],
    settings: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """Describe a fit by values that JSON can hold.

    Parameters
    ----------
    samples : Samples
    blocks : mapping of str to int
        Name and width of the chosen blocks.
    train : ndarray of int
        Rows of the samples.
    folds : sequence of (train, test)
        Numbers within ``train``.
    settings : mapping
        Arguments of `deepfeat.fit_svm`.
    seconds : float

    Returns
    -------
    dict
        deepfeat, versions, created (ISO 8601, UTC), seconds, store, blocks, rows, contents and folds (SHA-256),
        n_images, n_groups, settings. Equal ``rows`` are the same images with the same contents, labels, groups and
        split; equal ``contents`` are the same images with the same contents (None for arrays); equal ``folds`` are
        the same images in the same folds.
    """
    known = samples.origin.get("blocks", {})
    return {
        "deepfeat": deepfeat.__version__,
        "versions": {"python": platform.python_version(), **{n: importlib.metadata.version(n) for n in _PACKAGES}},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "store": samples.origin.get("store"),
        "blocks": [{"name": name, "dim": dim, **known.get(name, {})} for name, dim in blocks.items()],
        "rows": _digest(_rows(samples)),
        "contents": digest_contents(samples.ids, samples.contents) if len(samples.contents) else None,
        "folds": _digest(_fold_ids(samples, train, folds)),
        "n_images": len(samples.y),
        "n_groups": len(np.unique(samples.sets)),
        "settings": {name: _plain(value) for name, value in settings.items()},
    }


def _rows(samples: Samples) -> Iterable[str]:
    contents = [digest.hex() for digest in samples.contents] or [""] * len(samples.y)
    columns = (samples.ids, contents, samples.y, samples.sets, samples.split)
    return sorted(repr(tuple(map(str, row))) for row in zip(*columns, strict=True))


def _fold_ids(samples: Samples, train: np.ndarray, folds: Sequence[Fold]) -> Iterable[str]:
    for fold in folds:
        for rows in fold:
            yield repr(sorted(samples.ids[train[rows]]))


def _digest(texts: Iterable[str]) -> str:
    total = hashlib.sha256()
    for text in texts:
        total.update(text.encode() + b"\n")
    return total.hexdigest()


def _plain(value: Any) -> Any:
    """A value as JSON has it; what it has no words for is described."""
    if isinstance(value, pd.DataFrame):
        return f"table of {len(value)} rows, SHA-256 {_digest(map(repr, value.itertuples()))}"
    if isinstance(value, pd.Series):
        return f"Series of {len(value)} labels, SHA-256 {_digest(map(repr, value.items()))}"
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return repr(value) if hasattr(value, "split") else f"a {type(value).__name__}"
