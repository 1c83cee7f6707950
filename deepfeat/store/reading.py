"""A feature store opened for reading."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from joblib import cpu_count

from deepfeat.display import describe, draw_table
from deepfeat.errors import DamageError, DataError, StoreError, UsageError
from deepfeat.outputs import check_folder
from deepfeat.provenance import TrainedOn
from deepfeat.store.journal import View, viewing
from deepfeat.store.layout import (
    COLUMNS,
    DONE,
    FAILED,
    MISSING,
    RECORD,
    STRUCTURE_ERRORS,
    Block,
    Place,
    Structure,
    canonical_json,
    damaged_records,
    decode_text,
    read_structure,
    row_checksums,
    table_digest,
)
from deepfeat.store.lock import lock_path

#: Bytes that are copied and checked at a time, so that they are still in the processor's cache.
_READ_AT_ONCE = 2**22
#: What `numpy.savez` takes under its name and does not store.
_ARGUMENTS_OF_SAVEZ = ("file", "allow_pickle")
_BYTES = np.dtype((np.void, RECORD.itemsize))


def open_features(path: str | os.PathLike[str]) -> FeatureStore:
    """Open a feature store for reading.

    Parameters
    ----------
    path : path
        An HDF5 file made by `deepfeat.extract`.

    Returns
    -------
    FeatureStore
        A snapshot: it does not see images that are added later.

    Raises
    ------
    StoreError
        If there is no such file, or it is not a feature store that this version can read.

    Examples
    --------
    >>> import deepfeat
    >>> store = deepfeat.open_features("skin.h5")
    >>> store.blocks[["name", "dim", "done", "missing", "failed"]]
                    name   dim  done  missing  failed
    0  EfficientNetLite0  1280    24        0       0
    1             colour     6    24        0       0
    """
    return FeatureStore(path)


class FeatureStore:
    """A feature store opened for reading; see `deepfeat.open_features`.

    Every row is checked against its checksum when it is first read; the file
    may be written by another process meanwhile. Where another file takes its
    place, nothing more is read.

    Attributes
    ----------
    path : pathlib.Path
    n_images : int
    structure : deepfeat.store.layout.Structure
        What HDF5 knows of the file.
    table : pandas.DataFrame
        One row per image: image_id, path, label, group, split.
    blocks : pandas.DataFrame
        One row per feature block: name, backbone, key, dim, dtype, the numbers of
        images that are done, missing and failed, the whole spec, and versions of libraries.
    failures : pandas.DataFrame
        One row per failed image and block: image_id, block, reason.

    Examples
    --------
    >>> import deepfeat
    >>> store = deepfeat.open_features("skin.h5")
    >>> store.n_images, list(store.blocks["name"])
    (24, ['EfficientNetLite0', 'colour'])
    >>> store.table[["image_id", "label", "group"]].head(2)
      image_id label group
    0    mel01   MEL   p00
    1    mel02   MEL   p00
    >>> len(store.failures)
    0
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        # Kept open: a file made anew may have the number of one that nobody has open.
        self._file = _open(self.path)
        weakref.finalize(self, self._file.close)
        self.structure, self._pending_table = load_structure(self.path)
        self.n_images = self.structure.n_images
        self._maps: dict[Place, np.ndarray] = {}
        self._seen_blocks: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def __repr__(self) -> str:
        names = ", ".join(block.name for block in self.structure.blocks) or "no blocks"
        return f"<FeatureStore {str(self.path)!r}: {self.n_images} images, {names}>"

    def __reduce__(self) -> tuple[type[FeatureStore], tuple[Path]]:
        return FeatureStore, (self.path,)

    def _repr_html_(self) -> str:
        columns = ["name", "dim", "dtype", "done", "missing", "failed"]
        return describe(
            f"FeatureStore {self.path}: {self.n_images} images", draw_table(self.blocks[columns], index=False)
        )

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per image: image_id, path, label, group, split; read on first use."""
        self._refuse_another_file()
        columns = self._pending_table or {
            name: (offsets.map(self._file), utf8.map(self._file))
            for name, (offsets, utf8) in self.structure.columns.items()
        }
        if table_digest(columns) != self.structure.table_digest:
            msg = f"{self.path} is damaged: the image table does not match its checksum"
            raise DamageError(msg)
        texts = {name: list(decode_text(*columns[name])) for name in COLUMNS}
        return pd.DataFrame(
            {name: values if name in COLUMNS[:2] else [v or None for v in values] for name, values in texts.items()},
            dtype=object,
        )

    @property
    def blocks(self) -> pd.DataFrame:
        """One row per feature block: name, key, dim, the numbers of images done, missing and failed, spec and so on."""
        rows = []
        for block in self.structure.blocks:
            states = self.records(block.key)["state"]
            done, failed = int((states == DONE).sum()), int((states == FAILED).sum())
            rows.append(
                {
                    "name": block.name,
                    "backbone": block.spec["backbone"],
                    "key": block.key,
                    "dim": block.dim,
                    "dtype": block.dtype.name,
                    "done": done,
                    "missing": self.n_images - done - failed,
                    "failed": failed,
                    "spec": block.spec,
                    "versions": block.versions,
                }
            )
        columns = ["name", "backbone", "key", "dim", "dtype", "done", "missing", "failed", "spec", "versions"]
        return pd.DataFrame(rows, columns=columns)

    @property
    def failures(self) -> pd.DataFrame:
        """One row per failed image and block: image_id, block, reason."""
        rows = []
        for block in self.structure.blocks:
            records = self.records(block.key)
            for row in np.flatnonzero(records["state"] == FAILED):
                reason = bytes(records["reason"][row]).decode("utf-8", "replace")
                rows.append({"image_id": self.table["image_id"][row], "block": block.name, "reason": reason})
        # As they are: Arrow, in which pandas keeps text, takes no names that are not UTF-8.
        return pd.DataFrame(rows, columns=["image_id", "block", "reason"], dtype=object)

    def find(self, block: str) -> Block:
        """Find a block by its name, its backbone's name, or the beginning of its key.

        Parameters
        ----------
        block : str
            Of a key at least four characters.

        Returns
        -------
        deepfeat.store.Block
            With name, key, dim, shape, dtype, spec and versions.

        Raises
        ------
        StoreError
            If none or several fit; the message names them and how they differ.

        Examples
        --------
        >>> import deepfeat
        >>> store = deepfeat.open_features("skin.h5")
        >>> block = store.find("EfficientNetLite0")
        >>> block.dim, block.spec["pooling"]
        (1280, 'avg')
        >>> store.find(block.key[:8]).name
        'EfficientNetLite0'
        """
        known = self.structure.blocks
        for fits in (
            [b for b in known if b.key == block],
            [b for b in known if b.name == block],
            [b for b in known if b.spec["backbone"] == block],
            [b for b in known if len(block) >= 4 and b.key.startswith(block)],
        ):
            if len(fits) == 1:
                return fits[0]
            if fits:
                msg = f"{block!r} fits {len(fits)} blocks of {self.path}: name one by its key: {_differences(fits)}"
                raise StoreError(msg)
        names = ", ".join(repr(b.name) for b in known) or "none"
        msg = f"{self.path} has no block {block!r}: its blocks are {names}"
        raise StoreError(msg)

    def has_block(self, key: str) -> bool:
        """Whether there is a block with just this key.

        Parameters
        ----------
        key : str
            The whole key, see `deepfeat.store.block_key`.

        Returns
        -------
        bool

        Examples
        --------
        >>> import deepfeat
        >>> store = deepfeat.open_features("skin.h5")
        >>> store.has_block(store.find("colour").key), store.has_block("colour")
        (True, False)
        """
        return any(block.key == key for block in self.structure.blocks)

    def records_or_missing(self, key: str) -> np.ndarray:
        """As `records`; all rows are missing where there is no block with this key.

        Parameters
        ----------
        key : str
            The whole key.

        Returns
        -------
        ndarray of shape (n_images,), dtype `deepfeat.store.RECORD`

        Raises
        ------
        DamageError
            If a record does not match its seal.

        Examples
        --------
        >>> import deepfeat
        >>> records = deepfeat.open_features("skin.h5").records_or_missing("0" * 64)
        >>> len(records), int(records["state"].max())
        (24, 0)
        """
        return self.records(key) if self.has_block(key) else np.zeros(self.n_images, RECORD)

    def records(self, block: str) -> np.ndarray:
        """What is known of each image in one block, in the table's order.

        Parameters
        ----------
        block : str
            Name or key, see `find`.

        Returns
        -------
        ndarray of shape (n_images,), dtype `deepfeat.store.RECORD`
            State, digest, size and time of the file, checksum, reason. A copy; images without space in the block are
            missing.

        Raises
        ------
        StoreError
            If there is no such block.
        DamageError
            If a record does not match its seal.

        Examples
        --------
        >>> import deepfeat
        >>> from deepfeat.store import DONE
        >>> records = deepfeat.open_features("skin.h5").records("colour")
        >>> int((records["state"] == DONE).sum())
        24
        """
        records, damaged = self.read_records(block)
        if len(damaged):
            raise self._damage(self.find(block), damaged, "records")
        return records

    def read_records(self, block: str) -> tuple[np.ndarray, np.ndarray]:
        """As `records`, and tell which are damaged instead of raising an error.

        Parameters
        ----------
        block : str
            Name or key, see `find`.

        Returns
        -------
        records : ndarray of shape (n_images,), dtype `deepfeat.store.RECORD`
        damaged : ndarray of shape (n_damaged,), int
            Numbers of the rows whose record does not match its seal.

        Raises
        ------
        StoreError
            If there is no such block.

        Examples
        --------
        >>> import deepfeat
        >>> records, damaged = deepfeat.open_features("skin.h5").read_records("colour")
        >>> len(records), len(damaged)
        (24, 0)
        """
        found = self.find(block)
        records = self._copy_records(found)
        damaged = self._check_seals(found, records)
        if len(damaged) and lock_path(self.path).exists():
            # A writer may be in the middle of just these.
            time.sleep(0.02)
            records = self._copy_records(found)
            damaged = self._check_seals(found, records)
        return records, damaged

    def _copy_records(self, block: Block) -> np.ndarray:
        records = np.zeros(self.n_images, RECORD)
        for segment in block.segments:
            records[segment.start : segment.stop] = self._map(segment.records)
        return records

    def _map(self, place: Place) -> np.ndarray:
        """Map an array of the file, once: what was read stays mapped."""
        self._refuse_another_file()
        if place not in self._maps:
            self._maps[place] = place.map(self._file)
        return self._maps[place]

    def _refuse_another_file(self) -> None:
        try:
            now = os.stat(self.path)
        except FileNotFoundError:
            return  # what was deleted is still open here
        if not os.path.samestat(now, os.fstat(self._file.fileno())):
            msg = f"{self.path} was made anew, or replaced, since it was opened: open it again"
            raise StoreError(msg)

    def _check_seals(self, block: Block, records: np.ndarray) -> np.ndarray:
        """Numbers of the rows whose record is not what it was, and does not match its seal."""
        sealed, good = self._seen(block)
        changed = np.flatnonzero(records.view(_BYTES) != sealed.view(_BYTES))
        damaged = damaged_records(block.key, changed, records[changed])
        sound = np.setdiff1d(changed, damaged, assume_unique=True)
        sealed[sound], good[changed] = records[sound], False
        return damaged

    def _seen(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """Records that matched their seals, and whether the features matched these records."""
        empty = (np.zeros(self.n_images, RECORD), np.zeros(self.n_images, bool))
        return self._seen_blocks.setdefault(block.key, empty)

    def trained_on(self, block: str) -> TrainedOn | None:
        """What the network of a block was fine-tuned on.

        Parameters
        ----------
        block : str
            Name or key, see `find`.

        Returns
        -------
        deepfeat.provenance.TrainedOn or None
            Digests of images and groups; None where the network was not fine-tuned.

        Raises
        ------
        StoreError
            If there is no such block.
        DamageError
            If the lists do not match their checksum.

        Examples
        --------
        >>> import deepfeat
        >>> store = deepfeat.open_features("skin.h5")
        >>> store.trained_on("EfficientNetLite0") is None
        True
        """
        provenance = self.find(block).provenance
        if provenance is None:
            return None
        self._refuse_another_file()
        # A journal that is not carried out yet may hold the lists.
        with viewing(self.path) as view:
            trained_on = provenance.read(view.raw)
        if trained_on.digest() != provenance.sha256:
            msg = (
                f"{self.path} is damaged: what {block} was trained on does not match its checksum: make the store "
                "again with deepfeat.extract"
            )
            raise DamageError(msg)
        return trained_on

    def seen(self, block: str) -> np.ndarray:
        """Which images the network of a block was fine-tuned on, or on others of their group.

        Features of these images flatter: a classifier's score on them is no estimate of anything.

        Parameters
        ----------
        block : str
            Name or key, see `find`.

        Returns
        -------
        ndarray of shape (n_images,), bool
            In the table's order. An image is known by the digest of its content where the block has its features,
            and by its group.

        Raises
        ------
        StoreError
            If there is no such block.
        DamageError
            If what the network was trained on does not match its checksum.

        Examples
        --------
        >>> import deepfeat
        >>> bool(deepfeat.open_features("skin.h5").seen("EfficientNetLite0").any())
        False
        """
        trained_on = self.trained_on(block)
        if trained_on is None:
            return np.zeros(self.n_images, bool)
        return trained_on.saw(self.records(block)["digest"], self.table["group"].tolist())

    def ready(self, *blocks: str) -> np.ndarray:
        """Ids of the images that have features in all the named blocks, in the table's order.

        Parameters
        ----------
        *blocks : str
            Names or keys, see `find`.

        Returns
        -------
        ndarray of shape (n,), str as dtype object

        Raises
        ------
        StoreError
            If there is no such block.

        Examples
        --------
        >>> import deepfeat
        >>> store = deepfeat.open_features("skin.h5")
        >>> ids = store.ready("EfficientNetLite0", "colour")
        >>> len(ids), ids[0]
        (24, 'mel01')
        """
        done = np.ones(self.n_images, bool)
        for block in blocks:
            done &= self.records(block)["state"] == DONE
        return np.asarray(self.table["image_id"].to_numpy(object)[done])

    def contents(self, blocks: Sequence[str], rows: Sequence[str] | None = None) -> np.ndarray:
        """Which content of each image the named blocks saw, all of them the same.

        Parameters
        ----------
        blocks : sequence of str
            One or more names or keys, see `find`.
        rows : sequence of str, optional
            Image ids; all images of the table if None.

        Returns
        -------
        ndarray of shape (n,), bytes or None as dtype object
            SHA-256 of the image's file; None where not all the blocks have features of the image.

        Raises
        ------
        StoreError
            If there is no such block or id.
        DataError
            If two blocks saw different contents of an image, so that their features must not be joined.

        Examples
        --------
        >>> import deepfeat
        >>> store = deepfeat.open_features("skin.h5")
        >>> contents = store.contents(["EfficientNetLite0", "colour"])
        >>> len(contents), len(contents[0])
        (24, 32)
        """
        positions = np.arange(self.n_images) if rows is None else self.positions(rows)
        first, *others = records = [self.records(block)[positions] for block in blocks]
        done = np.logical_and.reduce([r["state"] == DONE for r in records])
        for block, other in zip(blocks[1:], others, strict=True):
            differ = np.flatnonzero(done & (other["digest"] != first["digest"]).any(axis=1))
            if len(differ):
                msg = (
                    f"{self.find(blocks[0]).name} and {self.find(block).name} saw different contents of "
                    f"{len(differ)} image(s) (first: {self.table['image_id'][positions[differ[0]]]!r}), or one does "
                    "not know which: extract both again, or import again what was imported"
                )
                raise DataError(msg)
        digests = [digest.tobytes() if known else None for digest, known in zip(first["digest"], done, strict=True)]
        return np.array(digests, dtype=object)

    def features(self, block: str, rows: Sequence[str] | None = None) -> np.ndarray:
        """Features of one block.

        Parameters
        ----------
        block : str
            Name or key, see `find`.
        rows : sequence of str, optional
            Image ids, in the order wanted; all images of the table if None.

        Returns
        -------
        ndarray of shape (n, dim), float32
            Read-only view of the file where all rows are wanted, lie together and
            are stored as float32, otherwise a copy. Blocks with ``pooling=None`` have
            shape (n, height, width, channels).

        Raises
        ------
        StoreError
            If an id is unknown, or any wanted row is missing or failed: nobody
            gets zeros for an image without features.
        DamageError
            If a row does not match its checksum; the message names the rows and the way out.

        Examples
        --------
        >>> import deepfeat
        >>> store = deepfeat.open_features("skin.h5")
        >>> store.features("EfficientNetLite0").shape
        (24, 1280)
        >>> store.features("colour", rows=["nv03", "mel01"]).shape
        (2, 6)
        """
        found = self.find(block)
        positions = np.arange(self.n_images) if rows is None else self.positions(rows)
        records = self.records(found.key)
        states = records["state"][positions]
        if (states != DONE).any():
            failed, missing = int((states == FAILED).sum()), int((states == MISSING).sum())
            first = self.table["image_id"][positions[np.flatnonzero(states != DONE)[0]]]
            msg = (
                f"{failed + missing} of {len(positions)} images have no {found.name} features "
                f"({missing} missing, {failed} failed; first: {first!r}): pass rows=store.ready({found.name!r})"
            )
            raise StoreError(msg)
        viewed = rows is None and len(found.segments) == 1 and found.dtype == np.float32
        features = None if viewed else np.empty((len(positions), *found.shape), np.float32)
        damaged = self.check_rows(found, records, positions, features)
        if len(damaged):
            raise self._damage(found, damaged, "features")
        return np.asarray(self._map(found.segments[0].features)) if features is None else features

    def to_frame(self, blocks: str | Sequence[str] | None = None, rows: Sequence[str] | None = None) -> pd.DataFrame:
        """Labels and features as one table.

        Parameters
        ----------
        blocks : str or sequence of str, optional
            Names or keys; all blocks if None.
        rows : sequence of str, optional
            Image ids; those that have features in all the blocks if None.

        Returns
        -------
        pandas.DataFrame
            Indexed by image id: label, group, split, and for each block its columns,
            which are named by the block and numbered.

        Raises
        ------
        StoreError
            If there is no such block or id, or an id without features in one of the blocks.
        UsageError
            If a block is named twice.
        DataError
            If the blocks saw different contents of an image.

        Examples
        --------
        >>> import deepfeat
        >>> frame = deepfeat.open_features("skin.h5").to_frame("colour")
        >>> frame.shape, list(frame.columns[:5])
        ((24, 9), ['label', 'group', 'split', 'colour_0', 'colour_1'])
        """
        keys, names, ids = self.choose(blocks, rows)
        index = pd.Index(ids, dtype=object, name="image_id")
        parts = [self.table.loc[self.positions(ids), list(COLUMNS[2:])].set_axis(index)]
        for key, name in zip(keys, names, strict=True):
            values = self.features(key, ids).reshape(len(ids), -1 if len(ids) else self.find(key).dim)
            parts.append(pd.DataFrame(values, parts[0].index, [f"{name}_{i}" for i in range(values.shape[1])]))
        return pd.concat(parts, axis=1)

    def to_parquet(
        self, path: str | os.PathLike[str], blocks: str | Sequence[str] | None = None, rows: Sequence[str] | None = None
    ) -> None:
        """Write `to_frame` as a Parquet file, which needs the package pyarrow.

        Parameters
        ----------
        path : path
            A file of this name is replaced.
        blocks : str or sequence of str, optional
            Names or keys; all blocks if None.
        rows : sequence of str, optional
            Image ids; those that have features in all the blocks if None.

        Raises
        ------
        StoreError
            If there is no such block or id, an id has no features in one of the blocks, pyarrow is not installed, or
            the name of a file is not UTF-8.
        UsageError
            If a block is named twice, or there is no folder for the file.
        DataError
            If the blocks saw different contents of an image.

        Examples
        --------
        >>> import deepfeat
        >>> import pandas as pd
        >>> deepfeat.open_features("skin.h5").to_parquet("skin.parquet", "colour")
        >>> pd.read_parquet("skin.parquet").shape
        (24, 9)
        """
        check_folder(path)
        try:
            self.to_frame(blocks, rows).to_parquet(path)
        except ImportError as error:
            msg = "Parquet files need the package pyarrow: run `pip install 'deepfeat[parquet]'`"
            raise StoreError(msg) from error
        except UnicodeEncodeError as error:
            msg = f"Parquet files hold UTF-8 alone, and there is {error.object!r}: write .npz or .csv"
            raise StoreError(msg) from error

    def to_npz(
        self, path: str | os.PathLike[str], blocks: str | Sequence[str] | None = None, rows: Sequence[str] | None = None
    ) -> None:
        """Write a NumPy archive: image_id, label, group, split, and one array for each block under its name.

        Nothing in it is pickled; a missing label, group or split is an empty text.

        Parameters
        ----------
        path : path
            A file of this name is replaced.
        blocks : str or sequence of str, optional
            Names or keys; all blocks if None.
        rows : sequence of str, optional
            Image ids; those that have features in all the blocks if None.

        Raises
        ------
        StoreError
            If there is no such block or id, or an id has no features in one of the blocks.
        UsageError
            If a block is named twice, or has a name that an archive has for something else, or there is no folder for
            the file.
        DataError
            If the blocks saw different contents of an image.

        Examples
        --------
        >>> import deepfeat
        >>> import numpy as np
        >>> deepfeat.open_features("skin.h5").to_npz("skin.npz")
        >>> archive = np.load("skin.npz")
        >>> archive["EfficientNetLite0"].shape, str(archive["label"][0])
        ((24, 1280), 'MEL')
        """
        check_folder(path)
        keys, names, ids = self.choose(blocks, rows)
        table = self.table.loc[self.positions(ids), list(COLUMNS[2:])]
        arrays: dict[str, Any] = {"image_id": np.array(ids, dtype=str)}
        arrays |= {name: np.array(table[name].fillna("").tolist(), dtype=str) for name in table}
        _refuse_names(names, {*arrays, *_ARGUMENTS_OF_SAVEZ})
        arrays |= {name: self.features(key, ids) for key, name in zip(keys, names, strict=True)}
        np.savez(path, **arrays)

    def choose(
        self, blocks: str | Sequence[str] | None, rows: Sequence[str] | None
    ) -> tuple[list[str], list[str], list[str]]:
        """Settle which blocks and images are meant.

        Parameters
        ----------
        blocks : str, sequence of str or None
            Names or keys, see `find`; all blocks if None.
        rows : sequence of str or None
            Image ids; all that have features in every block if None.

        Returns
        -------
        keys : list of str
        names : list of str
            Distinct: where several blocks have one name, with the beginning of their keys.
        ids : list of str

        Raises
        ------
        StoreError
            If there is no such block, or several fit.
        UsageError
            If a block is named twice.
        DataError
            If the blocks saw different contents of an image that is meant.

        Examples
        --------
        >>> import deepfeat
        >>> keys, names, ids = deepfeat.open_features("skin.h5").choose(None, None)
        >>> names, len(ids)
        (['EfficientNetLite0', 'colour'], 24)
        """
        wanted = [blocks] if isinstance(blocks, str) else blocks
        found = self.structure.blocks if wanted is None else [self.find(block) for block in wanted]
        common = [block.name for block in found]
        names = [n if common.count(n) == 1 else f"{n} ({b.key[:8]})" for n, b in zip(common, found, strict=True)]
        keys = [block.key for block in found]
        if len(set(keys)) < len(keys):
            msg = f"blocks is {blocks!r}, which names a block twice: name each once"
            raise UsageError(msg)
        ids = list(self.ready(*keys)) if rows is None else list(rows)
        if len(keys) > 1:
            self.contents(keys, ids)
        return keys, names, ids

    def positions(self, rows: Sequence[str]) -> np.ndarray:
        """Row numbers of image ids in the table.

        Parameters
        ----------
        rows : sequence of str
            Image ids.

        Returns
        -------
        ndarray of shape (n,), int

        Raises
        ------
        StoreError
            If an id is not in the table.

        Examples
        --------
        >>> import deepfeat
        >>> deepfeat.open_features("skin.h5").positions(["mel02", "mel01"])
        array([1, 0])
        """
        positions = pd.Index(self.table["image_id"], dtype=object).get_indexer(pd.Index(list(rows), dtype=object))
        if (positions < 0).any():
            first = list(rows)[int(np.flatnonzero(positions < 0)[0])]
            msg = f"{int((positions < 0).sum())} image id(s) are not in {self.path} (first: {first!r})"
            raise StoreError(msg)
        return np.asarray(positions)

    def check_rows(
        self, block: Block, records: np.ndarray, positions: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Compare rows that were not read before with their checksums.

        Parameters
        ----------
        block : deepfeat.store.Block
        records : ndarray of shape (n_images,), dtype `deepfeat.store.RECORD`
            Those of the block.
        positions : ndarray of shape (n,), int
            Row numbers, whose images are done.
        out : ndarray of shape (n, ...), float32; optional
            Where the features are copied to, each of the shape that the block has.

        Returns
        -------
        ndarray of shape (n_damaged,), int
            Numbers of the rows that do not match.

        Raises
        ------
        OSError
            If the file cannot be read any more.

        Examples
        --------
        >>> import numpy as np
        >>> import deepfeat
        >>> store = deepfeat.open_features("skin.h5")
        >>> store.check_rows(store.find("colour"), store.records("colour"), np.arange(24))
        array([], dtype=int64)
        """
        _, good = self._seen(block)
        step = max(1, _READ_AT_ONCE // (block.dim * block.dtype.itemsize))
        wrong = np.zeros(len(positions), bool)

        def check(stored: np.ndarray, start: int, part: np.ndarray) -> None:
            rows = positions[part]
            values = stored[_as_slice(rows - start)]
            if out is not None:
                out[_as_slice(part)] = values
            if not good[rows].all():
                wrong[part] = row_checksums(values) != records["checksum"][rows]

        with ThreadPoolExecutor(cpu_count()) as pool:
            for segment in block.segments:
                inside = np.flatnonzero((positions >= segment.start) & (positions < segment.stop))
                inside = inside if out is not None else inside[~good[positions[inside]]]
                parts = [inside[i : i + step] for i in range(0, len(inside), step)]
                list(pool.map(partial(check, self._map(segment.features), segment.start), parts))
        good[positions[~wrong]] = True
        return np.unique(positions[wrong])

    def _damage(self, block: Block, damaged: np.ndarray, what: str) -> DamageError:
        ids = ", ".join(repr(i) for i in self.table["image_id"].to_numpy(object)[damaged[:3]])
        msg = (
            f"{self.path} is damaged: the {what} of {len(damaged)} row(s) of {block.name} do not match their checksums "
            f"({'first: ' if len(damaged) > 3 else ''}{ids}): run `deepfeat store verify --repair` and extract again, "
            "which computes just these"
        )
        return DamageError(msg)


def _as_slice(numbers: np.ndarray) -> np.ndarray | slice:
    """Row numbers as a slice, which needs no copy, where they follow each other."""
    first, last = int(numbers[0]), int(numbers[-1])
    together = last - first == len(numbers) - 1 and (np.diff(numbers) == 1).all()
    return slice(first, last + 1) if together else numbers


Columns = dict[str, tuple[np.ndarray, np.ndarray]]


def _open(path: Path) -> BinaryIO:
    if not path.is_file():
        msg = f"there is no feature store {str(path)!r}: make one with deepfeat.extract or `deepfeat extract`"
        raise StoreError(msg)
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror or error}"
        raise StoreError(msg) from error


def load_structure(path: Path) -> tuple[Structure, Columns | None]:
    """Read the structure; a change that takes place meanwhile is waited for.

    Where a dead writer left a journal that is not carried out, the image table
    is read through it, and rows that have no space in the file yet are missing.
    """
    for pause in (0.02, 0.1, 0.5, None):
        try:
            with viewing(path) as view:
                structure = read_structure(view.file, path, view.size)
                return _without_journal(structure, view, path) if view.pending else (structure, None)
        except STRUCTURE_ERRORS as error:
            # A writer may be just changing the structure.
            if pause is None or not lock_path(path).exists():
                raise DamageError(_describe(path, error)) from error
            time.sleep(pause)
    raise AssertionError


def _without_journal(structure: Structure, view: View, path: Path) -> tuple[Structure, Columns]:
    size = path.stat().st_size
    blocks = tuple(
        replace(block, segments=tuple(s for s in block.segments if max(s.features.end, s.records.end) <= size))
        for block in structure.blocks
    )
    columns = {name: (a.read(view.raw), b.read(view.raw)) for name, (a, b) in structure.columns.items()}
    return replace(structure, blocks=blocks), columns


def _refuse_names(names: Sequence[str], taken: Collection[str]) -> None:
    for name in names:
        if name in taken:
            msg = (
                f"an archive of NumPy has no room for a block that is called {name!r}, since it has this name for "
                "something else: write .parquet or .csv"
            )
            raise UsageError(msg)


def _describe(path: Path, problem: Exception) -> str:
    text = " ".join(str(problem).split()) or type(problem).__name__
    if isinstance(problem, OSError) and "file signature not found" in text:
        return f"{path} is not a feature store that can be read: it is no HDF5 file"
    return f"{path} is damaged: {text}"


def _differences(blocks: Sequence[Block]) -> str:
    """Name each block by the entries of its spec that are not the same in all."""
    names = list(dict.fromkeys(name for block in blocks for name in block.spec))
    varying = [n for n in names if len({canonical_json({"": b.spec.get(n)}) for b in blocks}) > 1]
    return "; ".join(f"{b.key[:8]} ({', '.join(f'{n}={b.spec.get(n)!r}' for n in varying)})" for b in blocks)
