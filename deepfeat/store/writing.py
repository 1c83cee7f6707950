"""Adding images, blocks and rows to a feature store."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

import h5py
import numpy as np
import pandas as pd

from deepfeat.errors import StoreError, UsageError
from deepfeat.provenance import TrainedOn
from deepfeat.store.journal import changing, discard, replay, sync, sync_folder
from deepfeat.store.layout import (
    COLUMNS,
    DONE,
    MISSING,
    NO_STAMP,
    RECORD,
    Block,
    Place,
    Segment,
    add_segment,
    block_key,
    row_checksums,
    seal_records,
    write_block,
    write_empty,
    write_table,
)
from deepfeat.store.lock import Lock
from deepfeat.store.reading import FeatureStore

#: Seconds, and bytes of features, after which everything written is put on the disk at the latest.
COMMIT_INTERVAL = 5.0
COMMIT_BYTES = 2**25

_STAMP_BYTES = RECORD.fields["digest"][1]  # type: ignore[index]


class StoreWriter:
    """Adds images, blocks and rows to a store; a context manager that holds the store's lock.

    Structure is changed through a journal in short steps, before the long
    work. Rows are written in place: features first, and then the record,
    whose last byte declares them done, so that a process may be killed at any moment.
    Against a power failure, everything is synced at commit points, and
    rows that a dead writer left are compared with their checksums.

    Parameters
    ----------
    path : path
        Made if it does not exist.

    Raises
    ------
    LockedError
        If another process is writing the store.
    StoreError
        If the file is no feature store, or cannot be made.
    UsageError
        If it is a folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # Once, so that everything is done to one file though the link may change.
        self.path = Path(os.path.realpath(path) if os.path.islink(path) else path)
        self._resources = ExitStack()

    def __enter__(self) -> StoreWriter:
        refuse_folder(self.path)
        if not self.path.parent.is_dir():
            msg = f"cannot create {self.path}: there is no folder {str(self.path.parent)!r}"
            raise StoreError(msg)
        with ExitStack() as resources:
            lock = resources.enter_context(Lock(self.path))
            if not self.path.exists():
                _create(self.path)
            FeatureStore(self.path)  # another program's file is refused before anything touches it
            replay(self.path)
            self._store = FeatureStore(self.path)
            self._file: BinaryIO = resources.enter_context(open(self.path, "r+b", buffering=0))
            # The disk works while further rows are computed and written.
            self._thread = resources.enter_context(ThreadPoolExecutor(1, "deepfeat store"))
            self._syncing: Future[None] | None = None
            self._unsynced, self._synced_at = 0, time.monotonic()
            self._states: dict[int, np.ndarray] = {}
            if lock.inherited:
                self.reset_damaged_rows()
            self._resources = resources.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._resources:
            self.commit()

    @property
    def store(self) -> FeatureStore:
        """The store as it is now."""
        return self._store

    def add_images(self, table: pd.DataFrame) -> np.ndarray:
        """Add images that are new and take over path, label, group and split of known ones.

        A column without any value in ``table`` leaves the stored one as it is. The file of a row that gets another
        path has to be looked at again: by size and time alone it may seem to be the one before.

        Returns
        -------
        ndarray of int
            Row number in the store of each row of ``table``.
        """
        stored = self._store.table
        merged = {name: stored[name].tolist() for name in COLUMNS}
        places = {image_id: row for row, image_id in enumerate(merged["image_id"])}
        rows = np.array([places.setdefault(image_id, len(places)) for image_id in table["image_id"]], int)
        merged["image_id"] = list(places)
        for name in COLUMNS[1:]:
            merged[name] += [None] * (len(places) - len(stored))
            given = [None if pd.isna(value) else value for value in table[name]]
            if any(value is not None for value in given):
                for row, value in zip(rows, given, strict=True):
                    merged[name][row] = value
        moved = [row for row, path in enumerate(stored["path"]) if not _are_same_file(path, merged["path"][row])]
        if moved:
            # First: a process that is killed between the two has a few files looked at for nothing.
            self._forget_stamps(moved)
        if any(merged[name] != stored[name].tolist() for name in COLUMNS):
            with changing(self.path) as file:
                write_table(file, merged)
            self._store = FeatureStore(self.path)
        return rows

    def add_block(
        self,
        spec: Mapping[str, object],
        shape: tuple[int, ...],
        versions: Mapping[str, str],
        trained_on: TrainedOn | None = None,
    ) -> Block:
        """Give a block space for every image of the table and return it.

        ``trained_on`` is what the network was fine-tuned on; it is written once, with the block.

        Raises
        ------
        UsageError
            If a row of this shape has no numbers, or is a number and no vector; a store with it could not be read. If
            the store has the block, and its rows are of another shape.
        """
        if not shape or min(shape) < 1:
            msg = (
                f"{spec['backbone']} gives each image features of shape {shape}, and a store takes vectors or maps of "
                "one number or more: name another layer"
            )
            raise UsageError(msg)
        key = block_key(spec)
        known = self._store.find(key) if self._store.has_block(key) else None
        if known is not None and known.shape != shape:
            msg = (
                f"{known.name} gives each image features of shape {shape}, and the block with the same weights and "
                f"settings in {self.path} has {known.shape}: register the network under another name, or give it "
                "other weights"
            )
            raise UsageError(msg)
        start = known.n_rows if known is not None else 0
        if start == 0 or start < self._store.n_images:
            with changing(self.path) as file:
                group = write_block(file, spec, shape, versions, trained_on)
                add_segment(group, spec, start, self._store.n_images - start, shape)
            self._store = FeatureStore(self.path)
        return self._store.find(key)

    def write(self, block: Block, rows: Sequence[int], features: np.ndarray, records: np.ndarray) -> None:
        """Write features and then the records that declare them done.

        Parameters
        ----------
        block : Block
        rows : sequence of int
            Row numbers in the table.
        features : ndarray of shape (len(rows), *block.shape)
            Converted to the block's type.
        records : ndarray of shape (len(rows),), dtype `RECORD`
            With size, mtime_ns and digest; state, checksum and seal are filled in here.
        """
        features = np.ascontiguousarray(features, block.dtype).reshape(len(rows), block.dim)
        records = records.copy()
        records["state"] = DONE
        runs = _find_runs(block, rows)
        self._clear(runs)
        records["checksum"] = row_checksums(features)
        self._write_runs(runs, "features", features)
        self._write_records(block, rows, runs, records)

    def write_records(self, block: Block, rows: Sequence[int], records: np.ndarray) -> None:
        """Write records alone, of failed images; the seal is filled in here."""
        runs = _find_runs(block, rows)
        self._clear(runs)
        self._write_records(block, rows, runs, records.copy())

    def write_stamps(self, block: Block, rows: Sequence[int], records: np.ndarray) -> None:
        """Note the size and time of files whose content was seen before; nothing else of the records is written."""
        stamps = np.ascontiguousarray(records.view(np.uint8).reshape(-1, RECORD.itemsize)[:, :_STAMP_BYTES])
        for run in _find_runs(block, rows):
            for at, stamp in enumerate(stamps[run.part], run.at):
                self._write_at(run.segment.records.offset + at * RECORD.itemsize, stamp.data)

    def _forget_stamps(self, rows: Sequence[int]) -> None:
        """Have the files of some rows looked at again, by all blocks."""
        for block in self._store.structure.blocks:
            here = [row for row in rows if row < block.n_rows]
            if here:
                records = np.zeros(len(here), RECORD)
                records["size"] = records["mtime_ns"] = NO_STAMP
                self.write_stamps(block, here, records)

    def _write_records(self, block: Block, rows: Sequence[int], runs: list[_Run], records: np.ndarray) -> None:
        records["seal"] = seal_records(block.key, np.asarray(rows), records)
        self._write_runs(runs, "records", records)
        self._unsynced += len(rows) * block.dim * block.dtype.itemsize
        if self._unsynced >= COMMIT_BYTES or time.monotonic() - self._synced_at > COMMIT_INTERVAL:
            self._begin_commit()

    def _clear(self, runs: list[_Run]) -> None:
        """Declare rows missing, a byte each, before anything of them is written over."""
        for run in runs:
            place = run.segment.records
            states = self._states.get(place.offset)
            if states is None:
                states = self._states[place.offset] = place.map(self._file)["state"]
            for row in np.flatnonzero(states[run.at : run.at + run.n_rows]).tolist():
                end = place.offset + (run.at + row + 1) * RECORD.itemsize
                self._write_at(end - 1, memoryview(bytes([MISSING])))

    def commit(self) -> None:
        """Wait until everything written is on the disk."""
        self._end_commit()
        sync(self._file)

    def _begin_commit(self) -> None:
        """Have everything written so far put on the disk in the background."""
        self._end_commit()
        self._syncing = self._thread.submit(sync, self._file)
        self._unsynced, self._synced_at = 0, time.monotonic()

    def _end_commit(self) -> None:
        """Wait for the commit in the background; it raises here if it failed."""
        if self._syncing is not None:
            syncing, self._syncing = self._syncing, None
            syncing.result()

    def reset_damaged_rows(self) -> dict[str, np.ndarray]:
        """Declare rows missing that do not match their checksums.

        Returns
        -------
        dict of str to ndarray of int
            Row numbers by key of the block, for blocks with damaged rows.
        """
        found = {}
        for block in self._store.structure.blocks:
            damaged = damaged_rows(self._store, block)
            if len(damaged):
                self._clear(_find_runs(block, damaged.tolist()))
                found[block.key] = damaged
        return found

    def _write_runs(self, runs: list[_Run], part: str, values: np.ndarray) -> None:
        """Write values in place, one write for each run."""
        for run in runs:
            place: Place = getattr(run.segment, part)
            width = place.dtype.itemsize * math.prod(place.shape[1:])
            self._write_at(place.offset + run.at * width, values[run.part].data.cast("B"))

    def _write_at(self, offset: int, data: memoryview) -> None:
        self._file.seek(offset)
        while data:
            data = data[self._file.write(data) :]


class _Run(NamedTuple):
    """Neighbouring rows of one segment: the first one's number in it, and which of the given rows they are."""

    segment: Segment
    at: int
    part: slice

    @property
    def n_rows(self) -> int:
        return int(self.part.stop - self.part.start)


def _are_same_file(one: str, other: str) -> bool:
    """Whether two paths are known to lead to one file."""
    try:
        return one == other or os.path.samefile(one, other)
    # No path at all, and one that no file can have.
    except (OSError, TypeError, ValueError):
        return False


def _find_runs(block: Block, rows: Sequence[int]) -> list[_Run]:
    positions = np.asarray(rows)
    owner = np.searchsorted([segment.stop for segment in block.segments], positions, side="right")
    breaks = np.flatnonzero((np.diff(positions) != 1) | (np.diff(owner) != 0)) + 1
    starts = [0, *breaks.tolist(), len(positions)]
    runs = []
    for start, stop in itertools.pairwise(starts):
        segment = block.segments[owner[start]]
        runs.append(_Run(segment, int(positions[start]) - segment.start, slice(start, stop)))
    return runs


def damaged_rows(store: FeatureStore, block: Block) -> np.ndarray:
    """Numbers of the rows of a block whose record or features do not match their checksums."""
    records, broken = store.read_records(block.key)
    done = np.setdiff1d(np.flatnonzero(records["state"] == DONE), broken)
    return np.union1d(broken, store.check_rows(block, records, done))


def verify_features(path: str | os.PathLike[str], *, repair: bool = False) -> pd.DataFrame:
    """Compare every row of a store with its checksums.

    Parameters
    ----------
    path : path
        A feature store.
    repair : bool
        Whether to declare damaged rows missing, so that the next extraction computes just these.

    Returns
    -------
    pandas.DataFrame
        One row per damaged row: block, key, image_id. Empty for a sound store.

    Raises
    ------
    DamageError
        If the structure or the image table is damaged, so that rows cannot be told apart.
    LockedError
        With ``repair``, if another process is writing the store.

    Examples
    --------
    >>> import deepfeat
    >>> damaged = deepfeat.verify_features("skin.h5")
    >>> len(damaged), list(damaged.columns)
    (0, ['block', 'key', 'image_id'])
    """
    store = FeatureStore(path)
    ids = store.table["image_id"]
    found = [(b.name, b.key, ids[row]) for b in store.structure.blocks for row in damaged_rows(store, b)]
    if found and repair:
        with StoreWriter(path) as writer:
            writer.reset_damaged_rows()
    return pd.DataFrame(found, columns=["block", "key", "image_id"])


def refuse_folder(path: Path) -> None:
    """Refuse a folder where a feature store is to be made or extended."""
    if path.is_dir():
        msg = f"{str(path)!r} is a folder, and a feature store is a file: use {str(path / 'features.h5')!r}"
        raise UsageError(msg)


def _create(path: Path) -> None:
    """Make an empty store beside its place and move it there whole."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        # It would be of a file that was there before.
        discard(path)
        with h5py.File(draft, "w", libver="v110") as file:
            write_empty(file)
        with open(draft, "rb+") as written:
            sync(written)
        os.replace(draft, path)
        sync_folder(path.parent)
    except OSError as error:
        msg = f"cannot create {path}: {error}"
        raise StoreError(msg) from error
    finally:
        draft.unlink(missing_ok=True)
