"""The feature store: one HDF5 file with an image table and blocks of features.

HDF5 describes where things are; rows are then read through a memory map and
written in place. See docs/store-format.md for the layout.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast
from zlib import crc32

import h5py
import numpy as np
import pandas as pd

from deepfeat.errors import StoreError

FORMAT = "deepfeat features"
FORMAT_VERSION = 1

MISSING, DONE, FAILED = 0, 1, 2

#: What is known of one row of a block, beside its features; packed, little-endian.
RECORD = np.dtype(
    [
        ("state", "u1"),
        ("checksum", "<u4"),
        ("size", "<i8"),
        ("mtime_ns", "<i8"),
        ("digest", "u1", (32,)),
        ("reason", "S80"),
    ]
)

COLUMNS = ("image_id", "path", "label", "group", "split")

_REQUIRED_SPEC = frozenset({"backbone", "weights", "layer", "pooling"})


def block_key(spec: Mapping[str, Any]) -> str:
    """Digest of everything that decides a block's numbers.

    Parameters
    ----------
    spec : mapping
        JSON values only; never a path or a time.

    Returns
    -------
    str
        32 hexadecimal digits: the head of the SHA-256 of the canonical JSON.
    """
    return hashlib.sha256(canonical_json(spec).encode()).hexdigest()[:32]


def canonical_json(spec: Mapping[str, Any]) -> str:
    """JSON with sorted keys and no spaces, so that equal specs are equal text."""
    return json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def open_features(path: str | os.PathLike[str]) -> FeatureStore:
    """Open a feature store for reading.

    Parameters
    ----------
    path : path
        An HDF5 file made by `deepfeat.extract`.

    Returns
    -------
    FeatureStore
        A snapshot: it does not see rows that are added later.

    Raises
    ------
    StoreError
        If there is no such file, or it is not a feature store that this version can read.

    Examples
    --------
    >>> store = deepfeat.open_features("features.h5")      # doctest: +SKIP
    >>> store.blocks[["name", "dim", "done"]]              # doctest: +SKIP
    """
    return FeatureStore(path)


@dataclass(frozen=True)
class Segment:
    """A run of rows of one block: where in the file its features and records begin."""

    start: int
    count: int
    features_at: int
    records_at: int


@dataclass(frozen=True)
class Block:
    """One feature block as the file describes it."""

    key: str
    spec: dict[str, Any]
    versions: dict[str, str]
    shape: tuple[int, ...]
    segments: tuple[Segment, ...]

    @property
    def name(self) -> str:
        """Backbone, with the layer where one was named."""
        layer = self.spec["layer"]
        return f"{self.spec['backbone']}:{layer}" if layer else str(self.spec["backbone"])

    @property
    def dim(self) -> int:
        """Number of values of one row."""
        return int(np.prod(self.shape))

    @property
    def n_rows(self) -> int:
        """Number of rows that have space in the file."""
        return sum(segment.count for segment in self.segments)


class FeatureStore:
    """A feature store opened for reading.

    Attributes
    ----------
    path : pathlib.Path
    table : pandas.DataFrame
        One row per image: image_id, path, label, group, split.
    blocks : pandas.DataFrame
        One row per feature block: name, backbone, key, dim, dtype, the numbers of
        images that are done, missing and failed, and the whole spec.
    failures : pandas.DataFrame
        One row per failed image and block: image_id, block, reason.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with _reading(self.path) as file:
            self.n_images, self._blocks = _read_structure(file)

    def __repr__(self) -> str:
        names = ", ".join(block.name for block in self._blocks) or "no blocks"
        return f"<FeatureStore {str(self.path)!r}: {self.n_images} images, {names}>"

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per image, read on first use."""
        with _reading(self.path) as file:
            # Images that were added since the store was opened stay out of sight.
            columns = {name: _read_text(file["images"][name], self.n_images) for name in COLUMNS}
        return pd.DataFrame(
            {name: values if name in COLUMNS[:2] else [v or None for v in values] for name, values in columns.items()}
        )

    @property
    def blocks(self) -> pd.DataFrame:
        """One row per feature block."""
        rows = []
        for block in self._blocks:
            states = self.records(block.key)["state"]
            done, failed = int((states == DONE).sum()), int((states == FAILED).sum())
            rows.append(
                {
                    "name": block.name,
                    "backbone": block.spec["backbone"],
                    "key": block.key,
                    "dim": block.dim,
                    "dtype": "float32",
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
        """One row per failed image and block."""
        rows = []
        for block in self._blocks:
            records = self.records(block.key)
            for row in np.flatnonzero(records["state"] == FAILED):
                reason = bytes(records["reason"][row]).decode("utf-8", "replace")
                rows.append({"image_id": self.table["image_id"][row], "block": block.name, "reason": reason})
        return pd.DataFrame(rows, columns=["image_id", "block", "reason"])

    def find(self, block: str) -> Block:
        """Find a block by its name, its backbone's name, or the beginning of its key.

        Raises
        ------
        StoreError
            If none or several fit; the message names them and how they differ.
        """
        for fits in (
            [b for b in self._blocks if b.key == block],
            [b for b in self._blocks if b.name == block],
            [b for b in self._blocks if b.spec["backbone"] == block],
            [b for b in self._blocks if len(block) >= 4 and b.key.startswith(block)],
        ):
            if len(fits) == 1:
                return fits[0]
            if fits:
                msg = f"{block!r} fits {len(fits)} blocks of {self.path}: name one by its key: {_differences(fits)}"
                raise StoreError(msg)
        names = ", ".join(repr(b.name) for b in self._blocks) or "none"
        msg = f"{self.path} has no block {block!r}: its blocks are {names}"
        raise StoreError(msg)

    def has_block(self, key: str) -> bool:
        """Whether there is a block with just this key."""
        return any(block.key == key for block in self._blocks)

    def records_or_missing(self, key: str) -> np.ndarray:
        """As `records`; all rows are missing where there is no block with this key."""
        return self.records(key) if self.has_block(key) else np.zeros(self.n_images, RECORD)

    def records(self, block: str) -> np.ndarray:
        """What is known of each image in one block, in the table's order.

        Returns
        -------
        ndarray of shape (n_images,), dtype `deepfeat.store.RECORD`
            A copy; images without space in the block are missing.
        """
        found = self.find(block)
        records = np.zeros(self.n_images, RECORD)
        for segment in found.segments:
            records[segment.start : segment.start + segment.count] = _map(
                self.path, RECORD, segment.records_at, (segment.count,)
            )
        return records

    def ready(self, *blocks: str) -> np.ndarray:
        """Ids of the images that have features in all the named blocks, in the table's order.

        Returns
        -------
        ndarray of str
        """
        done = np.ones(self.n_images, bool)
        for block in blocks:
            done &= self.records(block)["state"] == DONE
        return self.table["image_id"].to_numpy(object)[done]

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
            Read-only view of the file where all rows are wanted and lie
            together, otherwise a copy. Blocks with ``pooling=None`` have shape (n, height,
            width, channels).

        Raises
        ------
        StoreError
            If an id is unknown, or any wanted row is missing or failed: nobody
            gets zeros for an image without features.
        """
        found = self.find(block)
        positions = np.arange(self.n_images) if rows is None else self.positions(rows)
        states = self.records(found.key)["state"][positions]
        if (states != DONE).any():
            failed, missing = int((states == FAILED).sum()), int((states == MISSING).sum())
            first = self.table["image_id"][positions[np.flatnonzero(states != DONE)[0]]]
            msg = (
                f"{failed + missing} of {len(positions)} images have no {found.name} features "
                f"({missing} missing, {failed} failed; first: {first!r}): pass rows=store.ready({found.name!r})"
            )
            raise StoreError(msg)
        return self._gather(found, None if rows is None else positions)

    def to_frame(self, block: str, rows: Sequence[str] | None = None) -> pd.DataFrame:
        """Features of one block as a table.

        Parameters
        ----------
        block, rows
            As in `features`.

        Returns
        -------
        pandas.DataFrame of shape (n, dim)
            Indexed by image id; columns are named by the block and numbered.
        """
        found = self.find(block)
        ids = self.table["image_id"].tolist() if rows is None else list(rows)
        values = self.features(found.key, rows).reshape(len(ids), found.dim)
        columns = [f"{found.name}_{i}" for i in range(values.shape[1])]
        return pd.DataFrame(values, index=pd.Index(ids, name="image_id"), columns=columns)

    def positions(self, rows: Sequence[str]) -> np.ndarray:
        """Row numbers of image ids in the table."""
        positions = pd.Index(self.table["image_id"]).get_indexer(pd.Index(list(rows), dtype=object))
        if (positions < 0).any():
            first = list(rows)[int(np.flatnonzero(positions < 0)[0])]
            msg = f"{int((positions < 0).sum())} image id(s) are not in {self.path} (first: {first!r})"
            raise StoreError(msg)
        return positions

    def _gather(self, block: Block, positions: np.ndarray | None) -> np.ndarray:
        maps = [
            _map(self.path, np.dtype("<f4"), segment.features_at, (segment.count, *block.shape))
            for segment in block.segments
        ]
        if positions is None:
            return maps[0] if len(maps) == 1 else np.concatenate(maps)
        features = np.empty((len(positions), *block.shape), np.float32)
        for segment, rows in zip(block.segments, maps, strict=True):
            inside = (positions >= segment.start) & (positions < segment.start + segment.count)
            features[inside] = rows[positions[inside] - segment.start]
        return features


class StoreWriter:
    """Adds images, blocks and rows to a store; a context manager.

    Structure is changed through HDF5 in short steps, before and between the
    long work; rows are written in place, features first and then the record
    that declares them done.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.exists():
            _create(self.path)
        self._store = FeatureStore(self.path)
        self._file: BinaryIO | None = None

    def __enter__(self) -> StoreWriter:
        self._file = open(self.path, "r+b", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()

    @property
    def store(self) -> FeatureStore:
        """The store as it is now."""
        return self._store

    def add_images(self, table: pd.DataFrame) -> np.ndarray:
        """Add images that are new and take over path, label, group and split of known ones.

        A column without any value in ``table`` leaves the stored one as it is.

        Returns
        -------
        ndarray of int
            Row number in the store of each row of ``table``.
        """
        stored = self._store.table.set_index("image_id", drop=False)
        given = table.set_index("image_id", drop=False)
        merged = stored.reindex(stored.index.append(given.index.difference(stored.index, sort=False)))
        merged["image_id"] = merged.index
        for column in COLUMNS[1:]:
            if given[column].notna().any():
                merged[column] = merged[column].astype(object)
                merged.loc[given.index, column] = given[column].astype(object)
        merged = merged[list(COLUMNS)]
        if len(merged) != len(stored) or not _same(merged, stored):
            with self._restructure() as file:
                _write_table(file, merged)
        return self._store.positions(table["image_id"].tolist())

    def add_block(self, spec: Mapping[str, Any], shape: tuple[int, ...], versions: Mapping[str, str]) -> Block:
        """Give a block space for every image of the table and return it."""
        key = block_key(spec)
        start = self._store.find(key).n_rows if self._store.has_block(key) else 0
        if start == 0 or start < self._store.n_images:
            with self._restructure() as file:
                group = file.require_group(f"blocks/{key}")
                group.attrs["spec"] = canonical_json(spec)
                group.attrs["versions"] = canonical_json(versions)
                group.attrs["shape"] = np.asarray(shape, np.int64)
                _add_segment(group, start, self._store.n_images - start, shape)
        return self._store.find(key)

    def write(self, block: Block, rows: Sequence[int], features: np.ndarray, records: np.ndarray) -> None:
        """Write features and then the records that declare them done.

        Parameters
        ----------
        block : Block
        rows : sequence of int
            Row numbers in the table.
        features : ndarray of shape (len(rows), *block.shape), float32
        records : ndarray of shape (len(rows),), dtype `RECORD`
            With state, size, mtime_ns and digest; the checksum is filled in here.
        """
        features = np.ascontiguousarray(features, "<f4").reshape(len(rows), block.dim)
        records = records.copy()
        records["state"] = DONE
        records["checksum"] = [crc32(row.data) for row in features]
        self._write_runs(block, rows, features, "features_at")
        self._write_runs(block, rows, records, "records_at")

    def write_records(self, block: Block, rows: Sequence[int], records: np.ndarray) -> None:
        """Write records alone: of failed images, or of unchanged ones with a new file stamp."""
        self._write_runs(block, rows, records, "records_at")

    def _write_runs(self, block: Block, rows: Sequence[int], values: np.ndarray, base: str) -> None:
        """Write values in place, one write for each run of neighbouring rows."""
        assert self._file is not None, "used outside its with statement"
        width = values[:1].nbytes
        positions = np.asarray(rows)
        ends = np.array([segment.start + segment.count for segment in block.segments])
        owner = np.searchsorted(ends, positions, side="right")
        breaks = np.flatnonzero((np.diff(positions) != 1) | (np.diff(owner) != 0)) + 1
        for run in np.split(np.arange(len(positions)), breaks):
            segment = block.segments[owner[run[0]]]
            self._file.seek(getattr(segment, base) + (int(positions[run[0]]) - segment.start) * width)
            _write_all(self._file, values[run].tobytes())

    @contextlib.contextmanager
    def _restructure(self) -> Iterator[h5py.File]:
        with h5py.File(self.path, "r+", libver="v110") as file:
            yield file
        self._store = FeatureStore(self.path)


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _create(path: Path) -> None:
    """Make an empty store beside its place and move it there whole."""
    if not path.parent.is_dir():
        msg = f"cannot create {path}: there is no folder {str(path.parent)!r}"
        raise StoreError(msg)
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with h5py.File(draft, "w", libver="v110") as file:
            file.attrs["format"] = FORMAT
            file.attrs["format_version"] = FORMAT_VERSION
            file.create_group("blocks")
            _write_table(file, pd.DataFrame({name: [] for name in COLUMNS}, dtype=object))
        os.replace(draft, path)
    except OSError as error:
        msg = f"cannot create {path}: {error}"
        raise StoreError(msg) from error
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    if not path.is_file():
        msg = f"there is no feature store {str(path)!r}: make one with deepfeat.extract or `deepfeat extract`"
        raise StoreError(msg)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        msg = f"{path} is not a feature store that can be read: {error}"
        raise StoreError(msg) from error
    with file:
        if file.attrs.get("format") != FORMAT:
            msg = f"{path} is an HDF5 file, but not a feature store of deepfeat"
            raise StoreError(msg)
        version = int(file.attrs.get("format_version", 0))
        if version != FORMAT_VERSION:
            known = f"this deepfeat reads version {FORMAT_VERSION}"
            msg = f"{path} has format version {version}, and {known}: upgrade deepfeat"
            raise StoreError(msg)
        yield file


def _read_structure(file: h5py.File) -> tuple[int, list[Block]]:
    try:
        count = int(file["images"].attrs["count"])
        blocks = [_read_block(key, group) for key, group in file["blocks"].items()]
    except (KeyError, OSError, TypeError, AttributeError) as error:
        msg = f"{file.filename} is damaged: {error}"
        raise StoreError(msg) from error
    return count, sorted(blocks, key=lambda block: (block.name, block.key))


def _read_block(key: str, group: h5py.Group) -> Block:
    segments = [
        Segment(
            int(segment.attrs["start"]),
            len(segment["records"]),
            segment["features"].id.get_offset(),
            segment["records"].id.get_offset(),
        )
        for segment in group.get("segments", {}).values()
    ]
    return Block(
        key,
        _read_spec(key, group),
        json.loads(group.attrs["versions"]),
        tuple(int(n) for n in group.attrs["shape"]),
        tuple(sorted(segments, key=lambda segment: segment.start)),
    )


def _read_spec(key: str, group: h5py.Group) -> dict[str, Any]:
    """Read a block's spec, which must have the digest under which it is stored."""
    try:
        spec: dict[str, Any] = json.loads(group.attrs["spec"])
        intact = spec.keys() >= _REQUIRED_SPEC and block_key(spec) == key
    except (ValueError, AttributeError):
        intact = False
    if not intact:
        msg = f"block {key} of {group.file.filename} does not match its own description: the file is damaged"
        raise StoreError(msg)
    return spec


def _add_segment(group: h5py.Group, start: int, count: int, shape: tuple[int, ...]) -> None:
    segments = group.require_group("segments")
    segment = segments.create_group(f"{len(segments):06d}")
    segment.attrs["start"] = start
    segment.create_dataset("features", (count, *shape), "<f4", dcpl=_allocated(h5py.h5d.FILL_TIME_NEVER))
    segment.create_dataset("records", (count,), RECORD, dcpl=_allocated(h5py.h5d.FILL_TIME_ALLOC))


def _allocated(fill_time: int) -> h5py.h5p.PropDCID:
    """Creation properties of a dataset with its space in the file from the beginning."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(fill_time)
    return properties


def _write_table(file: h5py.File, table: pd.DataFrame) -> None:
    # Text that cannot be encoded must fail before anything is taken away.
    columns = {name: _encode_text(["" if pd.isna(v) else v for v in table[name]]) for name in COLUMNS}
    if "images" in file:
        del file["images"]
    images = file.create_group("images")
    images.attrs["count"] = len(table)
    for name, (offsets, utf8) in columns.items():
        images[f"{name}/offsets"], images[f"{name}/utf8"] = offsets, utf8


def _encode_text(values: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Lay out text as Arrow does: where each value begins and ends, and all bytes in a row."""
    encoded = [value.encode("utf-8", "surrogateescape") for value in values]
    offsets = np.cumsum([0, *map(len, encoded)], dtype="<i8")
    return offsets, np.frombuffer(b"".join(encoded), np.uint8)


def _read_text(group: h5py.Group, count: int) -> list[str]:
    data, ends = group["utf8"][()].tobytes(), group["offsets"][: count + 1].tolist()
    return [data[a:b].decode("utf-8", "surrogateescape") for a, b in itertools.pairwise(ends)]


def _map(path: Path, dtype: np.dtype, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    if 0 in shape:
        return np.empty(shape, dtype)
    return cast(np.ndarray, np.memmap(path, dtype, "r", offset, shape))


def _same(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    return all(a[name].fillna("").tolist() == b[name].fillna("").tolist() for name in COLUMNS)


def _differences(blocks: Sequence[Block]) -> str:
    """Name each block by the entries of its spec that are not the same in all."""
    names = list(dict.fromkeys(name for block in blocks for name in block.spec))
    varying = [n for n in names if len({canonical_json({"": b.spec.get(n)}) for b in blocks}) > 1]
    return "; ".join(f"{b.key[:8]} ({', '.join(f'{n}={b.spec.get(n)!r}' for n in varying)})" for b in blocks)
