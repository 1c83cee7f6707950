"""Where the columns of a classifier come from: a block of the store, or the folds of one network put together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepfeat.errors import DataError, StoreError
from deepfeat.fusion import one_space
from deepfeat.provenance import SCORES
from deepfeat.store import Block, FeatureStore, block_key
from deepfeat.store.layout import is_imported

_FOLD = re.compile(r"(.+)@fold(\d+)")
_FOLDS = "@folds"


@dataclass(frozen=True)
class Source:
    """Features of one name, one row per image.

    Attributes
    ----------
    name : str
    members : tuple of Block
        One block; or those of `deepfeat.finetune_folds`, of which each image has the first that is new to it.
    """

    name: str
    members: tuple[Block, ...]

    @property
    def spec(self) -> dict[str, Any]:
        """Everything that decides the features; of the first fold, where there are folds."""
        return self.members[0].spec

    @property
    def dim(self) -> int:
        """Number of values of one row."""
        return self.members[0].dim

    @property
    def view(self) -> str:
        """Which view of the images this is."""
        return _view(self.members[0])

    @property
    def apart_from_view(self) -> str:
        """Equal for the views of one network."""
        return _apart_from_view(self.members[0])

    @property
    def is_folds(self) -> bool:
        """Whether folds are put together."""
        return self.name.endswith(_FOLDS)

    @property
    def is_tuned(self) -> bool:
        """Whether a network behind it was fine-tuned."""
        return any(block.provenance is not None for block in self.members)

    def seen(self, store: FeatureStore, sets: np.ndarray) -> np.ndarray:
        """Which images of the store have been seen by all networks behind it, or others of their set."""
        return np.asarray(self._seen_by_each(store, sets).all(axis=0))

    def features(self, store: FeatureStore, ids: Sequence[str], sets: np.ndarray) -> np.ndarray:
        """Features of some images, of shape (n, dim), where all images of the store are in ``sets``."""
        if len(self.members) == 1:
            # All images are those of the table, in its order, and need not be copied.
            return store.features(self.members[0].key, None if len(ids) == store.n_images else ids)
        first_new = (~self._seen_by_each(store, sets)).argmax(axis=0)[store.positions(ids)]
        joined = np.empty((len(ids), self.dim), np.float32)
        for number in np.unique(first_new):
            chosen = first_new == number
            joined[chosen] = store.features(self.members[number].key, np.asarray(ids, object)[chosen].tolist())
        return joined

    def _seen_by_each(self, store: FeatureStore, sets: np.ndarray) -> np.ndarray:
        return np.stack([np.isin(sets, sets[store.seen(block.key)]) for block in self.members])


def choose_sources(store: FeatureStore, names: str | Sequence[str] | None, views: bool) -> dict[str, list[Source]]:
    """Choose the sources of each view, in the same order for all views.

    A block named without a view brings all of its views. "skin@folds" stands for skin@fold0, skin@fold1 and so on.
    Where nothing is named, all blocks are taken, with folds put together, and without the class scores of
    fine-tuned networks, which are what a classifier is to replace. Without ``views``, each block stands for itself,
    and of those not named only the images' own.
    """
    found = _unnamed(store, views) if names is None else []
    for name in [names] if isinstance(names, str) else names or ():
        found += [source for source in _named(store, name, views) if source not in found]
    order = list(dict.fromkeys(source.apart_from_view for source in found))
    if len(found) == len(order) or not views:
        return {"original": found}
    by_view: dict[str, list[Source]] = {}
    for view in sorted({source.view for source in found}, key=lambda v: (v != "original", v)):
        by_view[view] = sorted((s for s in found if s.view == view), key=lambda s: order.index(s.apart_from_view))
        present = {source.apart_from_view for source in by_view[view]}
        lacking = [source.name for source in found if source.apart_from_view not in present]
        if lacking:
            msg = f"{lacking[0]} has no view {view!r}, and other blocks have: extract it, or pass views=None"
            raise DataError(msg)
    return by_view


def _named(store: FeatureStore, name: str, views: bool) -> list[Source]:
    if name.endswith(_FOLDS):
        return _folds(store, name, views)
    block = store.find(name)
    alone = not views or _view(block) != "original" or block.key.startswith(name)
    kin = [b for b in store.structure.blocks if _apart_from_view(b) == _apart_from_view(block)]
    return [Source(b.name, (b,)) for b in ([block] if alone else kin)]


def _unnamed(store: FeatureStore, views: bool) -> list[Source]:
    sources: list[Source] = []
    for block in store.structure.blocks:
        is_scores = block.provenance is not None and block.spec["layer"] == SCORES
        if is_scores or not (views or _view(block) == "original"):
            continue
        fold = _fold_of(block)
        if fold is None:
            sources.append(Source(block.name, (block,)))
        else:
            sources += [source for source in _folds(store, fold[0] + _FOLDS, views) if source not in sources]
    _refuse_versions(store, sources)
    return sources


def _refuse_versions(store: FeatureStore, sources: Sequence[Source]) -> None:
    """Refuse to join features that were imported under one name at several times: the later may replace the earlier."""
    imported = [source.members[0] for source in sources if is_imported(source.spec)]
    names = [block.name for block in imported]
    for name in names:
        if names.count(name) > 1:
            keys = " and ".join(block.key[:8] for block in imported if block.name == name)
            msg = (
                f"{store.path} has several imported blocks {name!r} ({keys}): name the one that is meant by its key, "
                "or import all images in one call"
            )
            raise DataError(msg)


def _folds(store: FeatureStore, name: str, views: bool) -> list[Source]:
    """The folds of one network, for each view."""
    stem = name.removesuffix(_FOLDS)
    by_view: dict[str, dict[int, Block]] = {}
    for block in store.structure.blocks:
        fold = _fold_of(block)
        wanted = block.spec["layer"] is None and (views or _view(block) == "original")
        if fold is None or fold[0] != stem or not wanted:
            continue
        if fold[1] in by_view.setdefault(_view(block), {}):
            msg = f"{store.path} has two blocks {block.name!r}: name blocks by their keys instead of {name!r}"
            raise StoreError(msg)
        by_view[_view(block)][fold[1]] = block
    if not by_view:
        names = ", ".join(repr(b.name) for b in store.structure.blocks) or "none"
        msg = f"{store.path} has no embeddings of deepfeat.finetune_folds for {name!r}: its blocks are {names}"
        raise StoreError(msg)
    if len({frozenset(blocks) for blocks in by_view.values()}) > 1:
        msg = f"the views of {name} have different folds: extract all views with all networks, or pass views=None"
        raise DataError(msg)
    found = [tuple(blocks[number] for number in sorted(blocks)) for blocks in by_view.values()]
    _refuse_spaces(found[0], name)
    return [Source(name, members) for members in found]


def _refuse_spaces(members: Sequence[Block], name: str) -> None:
    if not one_space([block.spec for block in members]):
        msg = (
            f"{' and '.join(block.name for block in members)} are different embedding spaces, which {name!r} cannot "
            "put together: fine-tune the folds with embedding_dim=64, or name single folds, each with a test that is "
            "new to it"
        )
        raise DataError(msg)


def _fold_of(block: Block) -> tuple[str, int] | None:
    """Name of the folds' network and number of the fold."""
    match = _FOLD.fullmatch(str(block.spec["backbone"]))
    return None if match is None or block.provenance is None else (match[1], int(match[2]))


def _view(block: Block) -> str:
    return str(block.spec.get("view", "original"))


def _apart_from_view(block: Block) -> str:
    return block_key({**block.spec, "view": None})
