"""The HDF5 layout, format version 1: where things are in a file, read with distrust.

A store may come from a stranger or from a failing disk. Nothing is read
through HDF5 but groups, attributes and the places of contiguous data sets, all
of which HDF5 keeps under checksums; and each place must lie inside the file.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import h5py
import numpy as np

from deepfeat.errors import StoreError
from deepfeat.provenance import DIGEST, TrainedOn
from deepfeat.store.journal import Overlay

FORMAT = "deepfeat features"
FORMAT_VERSION = 1

MISSING, DONE, FAILED = 0, 1, 2

#: What is known of one row of a block, beside its features; packed, little-endian. The state
#: comes last, so that a record that was cut off in being written says that its row is missing.
RECORD = np.dtype(
    [
        ("size", "<i8"),
        ("mtime_ns", "<i8"),
        ("digest", "u1", (32,)),
        ("reason", "S80"),
        ("checksum", "<u4"),
        ("seal", "<u4"),
        ("state", "u1"),
    ]
)

#: Size and modification time of what is to be looked at again: those of no file.
NO_STAMP = -1

#: What the seal of a record is computed from; a whole number of 32-bit words.
_SEALED = np.dtype(
    [
        ("key", "S32"),
        ("row", "<i8"),
        ("state", "<u4"),
        ("digest", "u1", (32,)),
        ("reason", "S80"),
        ("checksum", "<u4"),
    ]
)

COLUMNS = ("image_id", "path", "label", "group", "split")

#: Types in which features may be stored.
DTYPES = ("float32", "float16")

#: How the weights of a block begin whose features were made elsewhere.
IMPORTED = "imported:"

_REQUIRED_SPEC = frozenset({"backbone", "weights", "layer", "pooling"})
_KEY = re.compile("[0-9a-f]{32}")
_LARGEST_ATTRIBUTE = 1 << 20


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


@dataclass(frozen=True)
class Place:
    """Where a contiguous array begins in the file, and what it is."""

    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    def map(self, file: BinaryIO) -> np.ndarray:
        """Map the array of an open file into memory, read-only."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        return cast(np.ndarray, np.memmap(file, self.dtype, "r", self.offset, self.shape))

    def read(self, raw: BinaryIO | Overlay) -> np.ndarray:
        """Read the array from an open file."""
        raw.seek(self.offset)
        data = raw.read(self.dtype.itemsize * math.prod(self.shape))
        return np.frombuffer(data, self.dtype, math.prod(self.shape)).reshape(self.shape)

    @property
    def end(self) -> int:
        """Offset of the first byte after the array."""
        return self.offset + self.dtype.itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class Segment:
    """A run of rows of one block."""

    start: int
    features: Place
    records: Place

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.records.shape[0]

    @property
    def stop(self) -> int:
        """Row after the last."""
        return self.start + self.count


@dataclass(frozen=True)
class Provenance:
    """Where the digests lie of what a fine-tuned network was trained on, and their checksum."""

    images: Place
    groups: Place
    sha256: str

    def read(self, raw: BinaryIO | Overlay) -> TrainedOn:
        """Read both lists from an open file."""
        return TrainedOn(self.images.read(raw), self.groups.read(raw))


@dataclass(frozen=True)
class Block:
    """One feature block as the file describes it."""

    key: str
    spec: dict[str, Any]
    versions: dict[str, str]
    shape: tuple[int, ...]
    segments: tuple[Segment, ...]
    provenance: Provenance | None = None

    @property
    def name(self) -> str:
        """Backbone, with the layer where one was named, and the view where it is not the image itself."""
        layer, view = self.spec["layer"], self.spec.get("view", "original")
        named = f"{self.spec['backbone']}:{layer}" if layer else str(self.spec["backbone"])
        return named if view == "original" else f"{named}@{view}"

    @property
    def dim(self) -> int:
        """Number of values of one row."""
        return int(np.prod(self.shape))

    @property
    def dtype(self) -> np.dtype:
        """Type of the stored values."""
        return feature_dtype(self.spec)

    @property
    def n_rows(self) -> int:
        """Number of rows that have space in the file."""
        return sum(segment.count for segment in self.segments)


@dataclass(frozen=True)
class Structure:
    """Everything that HDF5 knows of a store."""

    n_images: int
    columns: dict[str, tuple[Place, Place]]
    table_digest: str
    blocks: tuple[Block, ...]


def is_imported(spec: Mapping[str, Any]) -> bool:
    """Whether a spec describes features that were made elsewhere, so that no network here computes them."""
    return str(spec["weights"]).startswith(IMPORTED)


def feature_dtype(spec: Mapping[str, Any]) -> np.dtype:
    """Type in which a block stores its values."""
    dtype: np.dtype = np.dtype(spec.get("dtype", "float32"))
    return dtype.newbyteorder("<")


# Seals and checksums


def seal_records(key: str, rows: np.ndarray, records: np.ndarray) -> np.ndarray:
    """Checksum of each record together with the block and the row that it belongs to.

    Parameters
    ----------
    key : str
        Of the block.
    rows : ndarray of shape (n,), int
        Row numbers in the table.
    records : ndarray of shape (n,), dtype `RECORD`

    Returns
    -------
    ndarray of shape (n,), uint32
        Of the key's 32 ASCII digits, the row as int64, the state as uint32, and the bytes
        from digest to checksum. Size and time of the file are hints, and may change without it.
    """
    sealed = np.empty(len(records), _SEALED)
    sealed["key"], sealed["row"] = key.encode(), rows
    for name in ("state", "digest", "reason", "checksum"):
        sealed[name] = records[name]
    return row_checksums(sealed.view("<u4").reshape(len(records), _SEALED.itemsize // 4))


def damaged_records(key: str, rows: np.ndarray, records: np.ndarray) -> np.ndarray:
    """Those of the rows whose record does not say that they are missing, and does not match its seal."""
    used = records["state"] != MISSING
    wrong = (seal_records(key, rows, records) != records["seal"]) | (records["state"] > FAILED)
    return np.asarray(rows[used & wrong])


def row_checksums(features: np.ndarray) -> np.ndarray:
    """Checksum of each row.

    Rows of one length that differ have the same checksum with probability 2**-32: the hash is
    strongly universal, and faster than a CRC in NumPy.

    Parameters
    ----------
    features : ndarray of shape (n, ...), values of 2 or 4 bytes, little-endian

    Returns
    -------
    ndarray of shape (n,), uint32
        The upper half of ``(w[0] + sum(w[i + 1] * x[i])) mod 2**64``, where ``x`` is the row's
        values read as unsigned integers and ``w`` the output of SplitMix64 from seed 0.

    References
    ----------
    Lemire and Kaser, Strongly universal string hashing is fast, Computer Journal 57 (2014),
    the family MULTILINEAR. Steele, Lea and Flood, Fast splittable pseudorandom number
    generators, OOPSLA 2014, for SplitMix64.
    """
    rows = np.ascontiguousarray(features)
    words = rows.view(f"<u{rows.dtype.itemsize}").reshape(len(rows), math.prod(rows.shape[1:]))
    weights = _weights(words.shape[1] + 1)
    return np.asarray(((weights[0] + np.einsum("ij,j->i", words, weights[1:])) >> np.uint64(32)).astype("<u4"))


@functools.cache
def _weights(count: int) -> np.ndarray:
    """Return the first numbers of SplitMix64."""
    state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def table_digest(columns: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """SHA-256 of all columns' offsets and text, in the order of `COLUMNS`."""
    digest = hashlib.sha256()
    for name in COLUMNS:
        for part in columns[name]:
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


# Reading the structure


def read_structure(file: h5py.File, path: Path, size: int) -> Structure:
    """Read and check everything that HDF5 knows of a store in a file of ``size`` bytes.

    Raises
    ------
    StoreError
        If the file is no store, is of another version, is damaged, or reaches beyond itself.
    """
    if not _has_format(file):
        msg = f"{path} is an HDF5 file, but not a feature store of deepfeat"
        raise StoreError(msg)
    version = _attribute(file, "format_version", default=0)
    if version != FORMAT_VERSION:
        msg = f"{path} has format version {version}, and this deepfeat reads version {FORMAT_VERSION}: upgrade deepfeat"
        raise StoreError(msg)
    images = _group(file, "images")
    n_images = int(_attribute(images, "count"))
    columns = {name: _text_places(_group(images, name), n_images, size) for name in COLUMNS}
    blocks = [_read_block(key, _group(file["blocks"], key), n_images, size) for key in _group(file, "blocks")]
    return Structure(
        n_images,
        columns,
        str(_attribute(images, "sha256")),
        tuple(sorted(blocks, key=lambda block: (block.name, block.key))),
    )


def _has_format(file: h5py.File) -> bool:
    try:
        return bool(_attribute(file, "format", default=None) == FORMAT)
    except StructureError:
        return False


def _read_block(key: str, group: h5py.Group, n_images: int, size: int) -> Block:
    spec = _read_spec(key, group)
    shape = tuple(int(n) for n in np.atleast_1d(_attribute(group, "shape")))
    if not shape or min(shape) < 1:
        _refuse(f"block {key} has rows of shape {shape}")
    segments = []
    for name in sorted(_group(group, "segments")):
        segment = _group(group["segments"], name)
        records = _place(segment, "records", RECORD, 1, size)
        features = _place(segment, "features", feature_dtype(spec), 1 + len(shape), size)
        if features.shape != (*records.shape, *shape):
            _refuse(f"segment {name} of block {key} has features of shape {features.shape}")
        segments.append(Segment(int(_attribute(segment, "start")), features, records))
    starts = np.cumsum([0, *(segment.count for segment in segments)])
    if [segment.start for segment in segments] != starts[:-1].tolist() or starts[-1] > n_images:
        _refuse(f"the segments of block {key} do not follow each other")
    versions = json.loads(_attribute(group, "versions"))
    return Block(key, spec, versions, shape, tuple(segments), _read_provenance(group, size))


def _read_provenance(group: h5py.Group, size: int) -> Provenance | None:
    if "trained_on" not in group:
        return None
    lists = _group(group, "trained_on")
    images, groups = (_place(lists, name, np.dtype("u1"), 2, size) for name in ("images", "groups"))
    if images.shape[1] != DIGEST or groups.shape[1] != DIGEST:
        _refuse(f"digests are {images.shape[1]} and {groups.shape[1]} bytes long")
    return Provenance(images, groups, str(_attribute(lists, "sha256")))


def _read_spec(key: str, group: h5py.Group) -> dict[str, Any]:
    """Read a block's spec, which must have the digest under which it is stored."""
    try:
        spec: dict[str, Any] = json.loads(_attribute(group, "spec"))
        intact = _KEY.fullmatch(key) and spec.keys() >= _REQUIRED_SPEC and block_key(spec) == key
        intact = intact and spec.get("dtype", "float32") in DTYPES
    except (ValueError, AttributeError, TypeError):
        intact = False
    if not intact:
        _refuse(f"block {key} does not match its own description")
    return spec


class StructureError(Exception):
    """The structure contradicts itself; the reader adds which file it is."""


def _refuse(problem: str) -> NoReturn:
    raise StructureError(problem)


#: What reading a damaged or hostile structure may raise.
STRUCTURE_ERRORS = (
    StructureError,
    KeyError,
    OSError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
    OverflowError,
    MemoryError,
)


def _group(parent: h5py.Group, name: str) -> h5py.Group:
    """Open a group that is in this very file."""
    if not isinstance(parent.get(name, getlink=True), h5py.HardLink):
        _refuse(f"{name!r} is a link to somewhere else")
    group = parent[name]
    if not isinstance(group, h5py.Group):
        _refuse(f"{name!r} is not a group")
    return group


_UNSET = object()


def _attribute(group: h5py.Group, name: str, default: Any = _UNSET) -> Any:
    """Read a small attribute of numbers or fixed-length text."""
    if default is not _UNSET and name not in group.attrs:
        return default
    attribute = h5py.h5a.open(group.id, name.encode())
    kind = attribute.get_type()
    fixed_text = isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str()
    if not (fixed_text or isinstance(kind, h5py.h5t.TypeIntegerID)):
        _refuse(f"attribute {name!r} is neither a number nor text of fixed length")
    if attribute.get_storage_size() > _LARGEST_ATTRIBUTE:
        _refuse(f"attribute {name!r} is too large")
    value = group.attrs[name]
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _place(group: h5py.Group, name: str, dtype: np.dtype, n_axes: int, file_size: int) -> Place:
    """Find an array that is whole, plain, of the expected type and inside the file."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        _refuse(f"{name!r} is a link to somewhere else")
    data = group[name]
    if not isinstance(data, h5py.Dataset):
        _refuse(f"{name!r} is not a data set")
    properties = data.id.get_create_plist()
    plain = properties.get_layout() == h5py.h5d.CONTIGUOUS and not properties.get_external_count()
    if not plain or properties.get_nfilters() or data.dtype != dtype or len(data.shape) != n_axes:
        _refuse(f"{name!r} is not a contiguous array of {dtype} with {n_axes} axes")
    shape = tuple(int(n) for n in data.shape)
    if 0 in shape:
        return Place(0, dtype, shape)
    offset = data.id.get_offset()
    place = Place(-1 if offset is None else int(offset), dtype, shape)
    if offset is None or place.end > file_size:
        _refuse(f"{name!r} reaches beyond the end of the file")
    return place


# Writing the structure


def write_empty(file: h5py.File) -> None:
    """Lay out a store without images."""
    file.attrs["format"] = np.bytes_(FORMAT)
    file.attrs["format_version"] = FORMAT_VERSION
    file.create_group("blocks")
    write_table(file, {name: [] for name in COLUMNS})


def write_table(file: h5py.File, table: Mapping[str, Sequence[str | None]]) -> None:
    """Replace the image table."""
    # Text that cannot be encoded must fail before anything is taken away.
    columns = {name: _encode_text([value or "" for value in table[name]]) for name in COLUMNS}
    images = file.create_group("images.new")
    images.attrs["count"] = len(table["image_id"])
    images.attrs["sha256"] = np.bytes_(table_digest(columns))
    for name, (offsets, utf8) in columns.items():
        images[f"{name}/offsets"], images[f"{name}/utf8"] = offsets, utf8
    # The old table's space is given up only now, and never used again: somebody may be reading there.
    if "images" in file:
        del file["images"]
    file.move("images.new", "images")


def write_block(
    file: h5py.File,
    spec: Mapping[str, Any],
    shape: tuple[int, ...],
    versions: Mapping[str, str],
    trained_on: TrainedOn | None = None,
) -> h5py.Group:
    """Describe a block, new or known."""
    group = file.require_group(f"blocks/{block_key(spec)}")
    group.attrs["spec"] = np.bytes_(canonical_json(spec).encode())
    group.attrs["versions"] = np.bytes_(canonical_json(versions).encode())
    group.attrs["shape"] = np.asarray(shape, np.int64)
    group.require_group("segments")
    if trained_on is not None and "trained_on" not in group:
        lists = group.create_group("trained_on")
        lists.attrs["sha256"] = np.bytes_(trained_on.digest())
        lists["images"], lists["groups"] = trained_on.images, trained_on.groups
    return group


def add_segment(group: h5py.Group, spec: Mapping[str, Any], start: int, count: int, shape: tuple[int, ...]) -> None:
    """Give a block space for more rows, all of them missing."""
    segments = group["segments"]
    segment = segments.create_group(f"{len(segments):06d}")
    segment.attrs["start"] = start
    for name, extent, dtype in (("features", (count, *shape), feature_dtype(spec)), ("records", (count,), RECORD)):
        segment.create_dataset(name, extent, dtype, dcpl=_allocated())


def _allocated() -> h5py.h5p.PropDCID:
    """Creation properties of an array with its space at the end of the file from the beginning.

    The space is not written: the file grows by a hole, which reads as zeros, and zeros mean missing.
    """
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return properties


# Text columns, laid out as Apache Arrow does


def _encode_text(values: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Lay out text: where each value begins and ends, and all bytes in a row."""
    encoded = [value.encode("utf-8", "surrogateescape") for value in values]
    offsets = np.cumsum([0, *map(len, encoded)], dtype="<i8")
    return offsets, np.frombuffer(b"".join(encoded), np.uint8)


def decode_text(offsets: np.ndarray, utf8: np.ndarray) -> Iterator[str]:
    """Yield the values of a text column."""
    data, ends = utf8.tobytes(), offsets.tolist()
    for begin, end in itertools.pairwise(ends):
        yield data[begin:end].decode("utf-8", "surrogateescape")


def _text_places(group: h5py.Group, count: int, file_size: int) -> tuple[Place, Place]:
    offsets = _place(group, "offsets", np.dtype("<i8"), 1, file_size)
    if offsets.shape != (count + 1,):
        _refuse(f"a text column has {offsets.shape[0]} offsets for {count} images")
    return offsets, _place(group, "utf8", np.dtype("u1"), 1, file_size)
