"""The images of a training: which they are, their pixels, and the batches that are made of them."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.class_weight import compute_class_weight

from deepfeat.backbones import Backbone
from deepfeat.computation import count_cores
from deepfeat.datasets import as_table, digest_repeated
from deepfeat.errors import DataError, DataWarning, UsageError
from deepfeat.images import Preparation, stream_images
from deepfeat.splits import hold_out, merge_groups

#: Bytes of pixels from which on they lie in a file instead of in memory.
IN_MEMORY = 2**32


@dataclass(frozen=True, eq=False)
class Samples:
    """Labelled images.

    Attributes
    ----------
    table : pandas.DataFrame
        One row per image, without those of the test.
    digests : list of bytes
        SHA-256 of each file.
    classes : list of str
    labels : ndarray of shape (n,), int
        Number of each image's class.
    sets : ndarray of shape (n,), int
        Images that must stay together.
    left_out : int
        Rows of the given table that are none of these: of the test, without a label, or not to be read.
    """

    table: pd.DataFrame
    digests: list[bytes]
    classes: list[str]
    labels: np.ndarray
    sets: np.ndarray
    left_out: int

    @property
    def names(self) -> np.ndarray:
        """Class of each image."""
        return np.asarray(np.array(self.classes, object)[self.labels])

    def take(self, rows: np.ndarray) -> Samples:
        """Some of the images."""
        return replace(
            self,
            table=self.table.iloc[rows].reset_index(drop=True),
            digests=[self.digests[row] for row in rows],
            labels=self.labels[rows],
            sets=self.sets[rows],
        )


def find_samples(images: Any, positive: str | None) -> Samples:
    """Choose the images to train on: those with a label, without those of the test, that can be read.

    Raises
    ------
    DataError
        If no image is left, there is one class only, or a group or a file's content is in train and test.
    UsageError
        If no image has the positive label.
    """
    table = as_table(images)
    labelled = table[table["label"].notna()]
    if len(labelled) < len(table):
        _warn(f"{len(table) - len(labelled)} image(s) without a label left out")
    in_test = labelled["split"] == "test"
    _refuse_shared_groups(labelled[~in_test], labelled[in_test])
    _refuse_shared_files(labelled[~in_test], labelled[in_test])
    # Images without a label still tell which others stay together.
    known, digests = _digest_files(table[table["split"] != "test"].reset_index(drop=True))
    has_label = known["label"].notna().to_numpy()
    train = known[has_label].reset_index(drop=True)
    if train.empty:
        raise DataError("there are no images to train on: they need a label, and a split other than test")
    names = train["label"].to_numpy(object)
    if positive is not None:
        if positive not in set(names):
            msg = f"positive is {positive!r}, which no image has: the labels are {sorted(set(names))}"
            raise UsageError(msg)
        names = np.where(names == positive, positive, f"not {positive}")
    classes = sorted(set(names)) if positive is None else [f"not {positive}", positive]
    if len(set(names)) < 2:
        msg = f"all {len(names)} images are of the class {names[0]!r}: training needs two"
        raise DataError(msg)
    labels = np.array([classes.index(name) for name in names])
    tied = merge_groups(known["group"].tolist(), digests)[has_label]
    sets = np.unique(tied, return_inverse=True)[1]
    return Samples(
        train, list(itertools.compress(digests, has_label)), classes, labels, sets, left_out=len(table) - len(train)
    )


def split_validation(samples: Samples, val_size: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows that tell when to stop: those of the split "val", or a grouped stratified share."""
    given = (samples.table["split"] == "val").to_numpy()
    if not given.any():
        try:
            return hold_out(samples.names, samples.sets.tolist(), val_size, seed)
        except DataError as error:
            msg = f"a share of {val_size:g} of {len(given)} images cannot be kept for validation: {error}"
            raise DataError(msg) from error
    train, validation = np.flatnonzero(~given), np.flatnonzero(given)
    shared = np.intersect1d(samples.sets[train], samples.sets[validation])
    if len(shared):
        first = samples.table["image_id"].to_numpy(object)[validation][np.isin(samples.sets[validation], shared)][0]
        msg = f"{len(shared)} group(s) of images are in both train and val of the split (first: that of {first!r})"
        raise DataError(msg)
    absent = set(range(len(samples.classes))) - set(samples.labels[train])
    if absent:
        msg = f"class {samples.classes[absent.pop()]!r} has no image to train on: all are of the split 'val'"
        raise DataError(msg)
    return train, validation


def load_pixels(samples: Samples, backbone: Backbone, scratch: Path) -> np.ndarray:
    """Decode every image once.

    Returns
    -------
    ndarray of shape (n, height, width, 3), uint8
        In memory, or in a file in ``scratch`` where that would take more than `IN_MEMORY` bytes.
    """
    prepared = Preparation(backbone.input_shape[:2], backbone.resize)
    shape = (len(samples.labels), *backbone.input_shape)
    large = np.prod(shape, dtype=np.int64) > IN_MEMORY
    pixels: np.ndarray = np.memmap(scratch / "pixels", np.uint8, "w+", shape=shape) if large else np.empty(shape, "u1")
    workers = count_cores()
    wanted = ((row, path, [prepared]) for row, path in enumerate(samples.table["path"]))
    for image in stream_images(wanted, workers=workers, ahead=64 + workers):
        if image.reason:
            msg = f"{samples.table['path'][image.row]} was readable before, and is not any more: {image.reason}"
            raise DataError(msg)
        pixels[image.row] = image.pixels[prepared]
    return pixels


def class_weights(labels: np.ndarray, classes: Sequence[str], imbalance: Any) -> np.ndarray:
    """Weight of each class in the loss: as given, or n / (number of classes * images of the class), or 1.

    Raises
    ------
    UsageError
        If weights are given for other classes than there are.
    """
    if imbalance is None:
        return np.ones(len(classes), np.float32)
    if isinstance(imbalance, str):
        present = np.unique(labels)
        weights = np.zeros(len(classes), np.float32)
        weights[present] = compute_class_weight("balanced", classes=present, y=labels)
        return weights
    if set(imbalance) != set(classes):
        msg = f"imbalance has weights for {sorted(imbalance)}: give one for each of {list(classes)}"
        raise UsageError(msg)
    return np.array([imbalance[name] for name in classes], np.float32)


def _digest_files(table: pd.DataFrame) -> tuple[pd.DataFrame, list[bytes]]:
    """Digest every file; decode each at the smallest size, so that a damaged one is known before the work begins."""
    glance = Preparation((1, 1), "squash")
    wanted = ((row, path, [glance]) for row, path in enumerate(table["path"]))
    workers = count_cores()
    loaded = list(stream_images(wanted, workers=workers, ahead=64 + workers))
    failed = [image for image in loaded if image.reason and pd.notna(table["label"][image.row])]
    if failed:
        first = f"{table['path'][failed[0].row]}: {failed[0].reason}"
        _warn(f"{len(failed)} image(s) cannot be read and are left out (first: {first})")
    good = [image for image in loaded if not image.reason]
    return table.iloc[[image.row for image in good]].reset_index(drop=True), [i.digest for i in good if i.digest]


def _refuse_shared_groups(train: pd.DataFrame, test: pd.DataFrame) -> None:
    shared = sorted(set(train["group"].dropna()) & set(test["group"].dropna()))
    if shared:
        msg = (
            f"{len(shared)} group(s) are in both train and test of the split (first: {shared[0]!r}): make a split with "
            "deepfeat.split_table"
        )
        raise DataError(msg)


def _refuse_shared_files(train: pd.DataFrame, test: pd.DataFrame) -> None:
    """Refuse images of the test that the network would see under another name."""
    if test.empty:
        return
    digests = digest_repeated([*train["path"], *test["path"]])
    learned = set(digests[: len(train)]) - {None}
    copies = [name for name, digest in zip(test["image_id"], digests[len(train) :], strict=True) if digest in learned]
    if copies:
        msg = (
            f"{len(copies)} image(s) of the test equal one to train on byte for byte (first: {copies[0]!r}): make a "
            "split with deepfeat.split_table, or leave the copies out"
        )
        raise DataError(msg)


def _warn(message: str) -> None:
    warnings.warn(message, DataWarning, stacklevel=4)
