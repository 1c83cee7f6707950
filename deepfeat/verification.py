"""Stored features compared with features computed again."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from deepfeat.backbones.network import model_digest
from deepfeat.backbones.registry import Backbone, as_backbones
from deepfeat.computation import build_network
from deepfeat.errors import BackboneError, StoreError, UsageError
from deepfeat.images import VIEWS, FileStamp, LoadedImage, Preparation, load_image
from deepfeat.runtimes.selection import PRECISIONS, open_runtime
from deepfeat.store import DONE, Block, FeatureStore, block_key, open_features
from deepfeat.store.layout import DTYPES, is_imported

logger = logging.getLogger(__name__)


def verify_sample(
    cache: str | os.PathLike[str],
    sample: int = 32,
    backbones: str | Backbone | Sequence[str | Backbone] | None = None,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute some stored rows again and compare, as after an upgrade of a library.

    Parameters
    ----------
    cache : path
        A feature store.
    sample : int
        Number of images for each block, 1 or more, drawn among those whose file can be read and has not changed.
    backbones : str, Backbone or list of either, optional
        Those whose blocks are verified; needed where weights came from a file or
        the network is of one's own. If None, all blocks by the name of their backbone; blocks that
        `import_features` made are passed over, since no network here computes them.
    seed : int
        Of the draw.

    Returns
    -------
    pandas.DataFrame
        One row per block: block, key, images compared, and the largest difference
        relative to the largest value; 0 and NaN where no image could be compared, as in blocks that are passed over.
        Then how many files, of those looked at, have other contents than those that their features are of, but the same
        size and time, so that no extraction will notice.

    Raises
    ------
    UsageError
        If the sample is not a number of images.
    BackboneError
        If no given backbone has the weights and settings of a block.
    StoreError
        If nothing at all could be compared, so that nobody takes this for agreement.

    Examples
    --------
    >>> import deepfeat
    >>> compared = deepfeat.verify_sample("skin.h5", 4, "EfficientNetLite0")
    >>> int(compared["images"][0]), bool(compared["largest_difference"][0] < 1e-4)
    (4, True)
    """
    _check_sample(sample)
    store = open_features(cache)
    if backbones is None:
        compared = _compare_blocks(store, _backbones_of(store), sample, seed)
        compared += _pass_over(store)
    else:
        chosen = as_backbones(backbones)
        compared = _compare_blocks(store, chosen, sample, seed)
        if not compared:
            msg = f"{store.path} has no block with the weights and settings of {', '.join(b.name for b in chosen)}"
            raise BackboneError(msg)
    if not any(row["images"] or row["changed"] for row in compared):
        _refuse_nothing(store, compared)
    return pd.DataFrame(compared).drop_duplicates("key", ignore_index=True)


def _check_sample(sample: int) -> None:
    if not isinstance(sample, int | np.integer) or isinstance(sample, bool) or sample < 1:
        msg = f"sample is {sample!r}: use a number of images, 1 or more"
        raise UsageError(msg)


def _backbones_of(store: FeatureStore) -> list[Backbone]:
    return [backbone_of(block.spec, block.name) for block in store.structure.blocks if not is_imported(block.spec)]


def _compare_blocks(store: FeatureStore, backbones: Sequence[Backbone], sample: int, seed: int) -> list[dict[str, Any]]:
    """Compare the blocks that the backbones compute, in every type, precision and view that is stored."""
    done = []
    for backbone in backbones:
        digest = digest_weights(backbone)
        for dtype, precision, view in itertools.product(DTYPES, PRECISIONS[1:], VIEWS):
            for layer, key in enumerate(map(block_key, backbone.specs(digest, dtype, precision, view))):
                if store.has_block(key):
                    done.append(_compare_sample(store, store.find(key), backbone, layer, sample, seed))
    return done


def _pass_over(store: FeatureStore) -> list[dict[str, Any]]:
    """Name the blocks that were imported, as blocks of which no image was compared."""
    imported = [block for block in store.structure.blocks if is_imported(block.spec)]
    for block in imported:
        logger.info("%s: imported, passed over, since no network here computes it", block.name)
    return [_describe(block, 0, float("nan"), 0) for block in imported]


def _refuse_nothing(store: FeatureStore, compared: Sequence[Mapping[str, Any]]) -> NoReturn:
    """Say why no image of any block could be compared."""
    blocks = [store.find(row["key"]) for row in compared]
    names = ", ".join(dict.fromkeys(block.name for block in blocks if not is_imported(block.spec)))
    if names:
        reason = f"no image of {names} has a file that can be read and is unchanged: run this where the image files are"
    elif blocks:
        reason = f"its blocks were all imported ({', '.join(b.name for b in blocks)}), and no network computes them"
    else:
        reason = "it has no features: run deepfeat.extract first"
    msg = f"nothing of {store.path} was compared: {reason}"
    raise StoreError(msg)


def backbone_of(spec: Mapping[str, Any], name: str) -> Backbone:
    """Make the backbone that the spec of a feature block describes, with weights that need no file.

    Parameters
    ----------
    spec : mapping
        Everything that decides the block's numbers, see `Backbone.specs`.
    name : str
        Of the block, for messages.

    Raises
    ------
    BackboneError
        If the features were imported, there is no network of this name, or it has other weights or settings here.
    """
    if is_imported(spec):
        msg = f"{name} was imported, and no network here computes its features: use blocks that deepfeat.extract made"
        raise BackboneError(msg)
    random = str(spec["weights"]).startswith("random:")
    try:
        backbone = Backbone(
            spec["backbone"],
            weights=None if random else "imagenet",
            layer=spec["layer"],
            pooling=spec["pooling"],
            input_size=tuple(spec["input_size"]),
            resize=spec["resize"],
            seed=int(spec["weights"].removeprefix("random:")) if random else 0,
        )
    except (UsageError, KeyError, ValueError, TypeError) as error:
        msg = f"{name} cannot be built from its description ({error}): pass the backbone"
        raise BackboneError(msg) from error
    if not matches(backbone, spec):
        msg = f"{name} was computed with other weights or settings than {backbone.name} has here: pass the backbone"
        raise BackboneError(msg)
    return backbone


def matches(backbone: Backbone, spec: Mapping[str, Any]) -> bool:
    """Whether a backbone computes the features that a spec describes."""
    kind = [str(spec.get(name)) for name in ("dtype", "precision", "view")]
    return block_key(spec) in map(block_key, backbone.specs(digest_weights(backbone), *kind))


def _compare_sample(
    store: FeatureStore, block: Block, backbone: Backbone, layer: int, sample: int, seed: int
) -> dict[str, Any]:
    records = store.records(block.key)
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(records["state"] == DONE))
    prepared = Preparation(backbone.input_shape[:2], backbone.resize, block.spec["view"])
    same, changed = list[LoadedImage](), 0
    for row in rows.tolist():
        if len(same) == sample:
            break
        image = load_image(row, store.table["path"][row], [prepared])
        if image.digest != records["digest"][row].tobytes():
            changed += image.stamp == FileStamp(int(records["size"][row]), int(records["mtime_ns"][row]))
        elif not image.reason:
            same.append(image)
    difference = float("nan")
    if same:
        runtime = open_runtime(
            backbone,
            digest_weights(backbone),
            lambda: build_network(backbone),
            runtime="auto",
            precision=block.spec["precision"],
            batch_size=len(same),
        )
        computed = runtime(np.stack([i.pixels[prepared] for i in same]))[layer]
        stored = store.features(block.key, store.table["image_id"].to_numpy(object)[[i.row for i in same]])
        difference = float(np.abs(computed - stored).max() / (np.abs(stored).max() or 1))
    return _describe(block, len(same), difference, changed)


def _describe(block: Block, images: int, difference: float, changed: int) -> dict[str, Any]:
    named = {"block": block.name, "key": block.key, "images": images}
    return {**named, "largest_difference": difference, "changed": changed}


def digest_weights(backbone: Backbone) -> str:
    """Name the weights by their content, building the network where that is needed."""
    return backbone.weights_digest() or model_digest(build_network(backbone))
