"""Changes of an HDF5 file that happen whole or not at all.

HDF5 is not safe against being killed while it writes metadata. Here it
writes into memory, over the unchanged file; what it wrote is then put
into a journal beside the file (a redo log), synced, and only then copied into the
file. Whoever comes later finds either no complete journal and the old
file, or a complete one, and reads or repeats what it says.

The journal is: a magic line; the file's new size; the number of changed pages; for
each page its number and its 4,096 bytes; and the SHA-256 of all before. Numbers are
little-endian int64.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import h5py

PAGE = 4096
#: Bytes from which an array is aligned to pages.
_LARGE = 16 * PAGE
_MAGIC = b"deepfeat journal 1\n"


def journal_path(path: Path) -> Path:
    """Where the journal of a file is."""
    return path.with_name(f"{path.name}.journal")


class Overlay(io.RawIOBase):
    """A file with changes that are kept in memory, page by page."""

    def __init__(self, base: BinaryIO, pages: dict[int, bytearray] | None = None, size: int | None = None) -> None:
        self._base = base
        self._pages = {} if pages is None else pages
        self._size = os.fstat(base.fileno()).st_size if size is None else size
        self._position = 0

    @property
    def size(self) -> int:
        """Size of the file with the changes."""
        return self._size

    @property
    def pages(self) -> dict[int, bytearray]:
        """Changed pages by number."""
        return self._pages

    def readable(self) -> bool:
        """Yes."""
        return True

    def writable(self) -> bool:
        """Yes, in memory."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Change the size."""
        self._size = self._position if size is None else size
        return self._size

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read what is there, up to the size."""
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._position))
        for number, at, begin, length in self._spans(wanted):
            source = self._pages.get(number) or self._read_page(number)
            view[at : at + length] = source[begin : begin + length]
        self._position += wanted
        return wanted

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Change bytes in memory."""
        view = memoryview(data).cast("B")
        for number, at, begin, length in self._spans(len(view)):
            if number not in self._pages:
                self._pages[number] = bytearray(self._read_page(number))
            self._pages[number][begin : begin + length] = view[at : at + length]
        self._position += len(view)
        self._size = max(self._size, self._position)
        return len(view)

    def _spans(self, length: int) -> Iterator[tuple[int, int, int, int]]:
        """For each page from the position on: its number, place in the buffer, place in the page, bytes."""
        at = 0
        while at < length:
            number, begin = divmod(self._position + at, PAGE)
            step = min(PAGE - begin, length - at)
            yield number, at, begin, step
            at += step

    def _read_page(self, number: int) -> bytes:
        self._base.seek(number * PAGE)
        return self._base.read(PAGE).ljust(PAGE, b"\0")


@contextlib.contextmanager
def changing(path: Path) -> Iterator[h5py.File]:
    """Change an HDF5 file; all changes take place when the block ends, none if it raises."""
    with open(path, "rb") as base:
        overlay = Overlay(base)
        # Arrays begin on a page, so that they are mapped and copied at full speed.
        with h5py.File(overlay, "r+", libver="v110", alignment_threshold=_LARGE, alignment_interval=PAGE) as file:
            yield file
    _write_journal(path, overlay)
    replay(path)


@dataclass(frozen=True)
class View:
    """An HDF5 file as it is after its journal.

    Attributes
    ----------
    file : h5py.File
    raw : Overlay
        The same bytes, journal included.
    size : int
        Number of these bytes.
    pending : bool
        Whether there is a journal that is not carried out.
    """

    file: h5py.File
    raw: Overlay
    size: int
    pending: bool


@contextlib.contextmanager
def viewing(path: Path) -> Iterator[View]:
    """Read an HDF5 file as it is after its journal, if there is one; the file is not touched.

    HDF5's own locks stay off: many network drives lack them, and this package keeps its own. Nor is it given the path:
    what one thread has open, HDF5 gives to another as it was, though the file has changed since.
    """
    found = _read_journal(path)
    with open(path, "rb") as base:
        overlay = Overlay(base, *(found or ()))
        with h5py.File(overlay, "r") as file:
            yield View(file, overlay, overlay.size, pending=found is not None)


def replay(path: Path) -> bool:
    """Carry out a complete journal and remove it; an incomplete one is removed alone.

    Only for whoever holds the file's lock.

    Returns
    -------
    bool
        Whether there was a complete journal.
    """
    found = _read_journal(path)
    if found is not None:
        pages, size = found
        with open(path, "r+b") as file:
            for number in sorted(pages):
                file.seek(number * PAGE)
                file.write(pages[number][: size - number * PAGE])
            file.truncate(size)
            sync(file)
    journal_path(path).unlink(missing_ok=True)
    _draft_path(path).unlink(missing_ok=True)
    # A journal that came back after a power failure would undo rows written since.
    sync_folder(path.parent)
    return found is not None


def sync(file: BinaryIO) -> None:
    """Wait until everything written is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _draft_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.journal.draft")


def _write_journal(path: Path, overlay: Overlay) -> None:
    """Write the journal aside and give it its name when it is whole."""
    draft, digest = _draft_path(path), hashlib.sha256()
    with open(draft, "wb") as file:
        parts = [_MAGIC, struct.pack("<qq", overlay.size, len(overlay.pages))]
        parts += [struct.pack("<q", number) + bytes(overlay.pages[number]) for number in sorted(overlay.pages)]
        for part in parts:
            digest.update(part)
            file.write(part)
        file.write(digest.digest())
        sync(file)
    os.replace(draft, journal_path(path))
    sync_folder(path.parent)


def _read_journal(path: Path) -> tuple[dict[int, bytearray], int] | None:
    """Pages and new size of the file; None where there is no complete journal."""
    try:
        data = journal_path(path).read_bytes()
    except FileNotFoundError:
        return None
    head = len(_MAGIC) + 16
    if not data.startswith(_MAGIC) or hashlib.sha256(data[:-32]).digest() != data[-32:]:
        return None
    size, count = struct.unpack_from("<qq", data, len(_MAGIC))
    step = 8 + PAGE
    starts = range(head, head + count * step, step)
    return {struct.unpack_from("<q", data, at)[0]: bytearray(data[at + 8 : at + step]) for at in starts}, size
