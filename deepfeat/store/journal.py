"""Changes of an HDF5 file that happen whole or not at all.

HDF5 is not safe against being killed while it writes metadata. Here it
writes into memory, over the unchanged file; what it wrote is then put
into a journal beside the file (a redo log), synced, and only then copied into the
file. Whoever comes later finds either no complete journal and the old
file, or a complete one, and reads or repeats what it says.

The journal is: a magic line; the file's new size; the number of changed pages; for
each page, in ascending order, its number and its 4,096 bytes; what those of them that the
file had, which are the first, were before; and the SHA-256 of all that. Numbers are
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
import numpy as np

from deepfeat.errors import StoreError

PAGE = 4096
#: Bytes from which an array is aligned to pages.
_LARGE = 16 * PAGE
_MAGIC = b"deepfeat journal 1\n"


def journal_path(path: Path) -> Path:
    """Where the journal of a file is: beside the file itself, whatever links lead to it."""
    file = Path(os.path.realpath(path))
    return file.with_name(f"{file.name}.journal")


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

    def before(self) -> Iterator[bytes]:
        """Yield the changed pages that the file has as they are there, in ascending order."""
        size = os.fstat(self._base.fileno()).st_size
        return (_read_page(self._base, number) for number in sorted(self._pages) if number * PAGE < size)

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
            source = self._pages.get(number) or _read_page(self._base, number)
            view[at : at + length] = source[begin : begin + length]
        self._position += wanted
        return wanted

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Change bytes in memory."""
        view = memoryview(data).cast("B")
        for number, at, begin, length in self._spans(len(view)):
            if number not in self._pages:
                self._pages[number] = bytearray(_read_page(self._base, number))
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


@dataclass(frozen=True)
class _Journal:
    """A change of a file.

    Attributes
    ----------
    pages : dict of int to bytearray
        Changed pages by number.
    size : int
        Of the file with the change.
    before : bytes
        What the first of the pages were before; a journal of an early version does not say.
    """

    pages: dict[int, bytearray]
    size: int
    before: bytes

    def fits(self, path: Path) -> bool:
        """Whether a file is as it was before the change, as after it, or partly both, as a kill leaves it."""
        # What was read ahead a moment ago may have changed.
        with open(path, "rb", buffering=0) as file:
            for number, at in zip(sorted(self.pages), range(0, len(self.before), PAGE), strict=False):
                end = max(0, self.size - number * PAGE)
                pages = _read_page(file, number), self.before[at : at + PAGE], self.pages[number]
                now, old, new = (np.frombuffer(page, np.uint8)[:end] for page in pages)
                if not ((now == old) | (now == new)).all():
                    return False
        return True


@contextlib.contextmanager
def changing(path: Path) -> Iterator[h5py.File]:
    """Change an HDF5 file; all changes take place when the block ends, none if it raises."""
    with open(path, "r+b") as base:
        overlay = Overlay(base)
        # Arrays begin on a page, so that they are mapped and copied at full speed.
        with h5py.File(overlay, "r+", libver="v110", alignment_threshold=_LARGE, alignment_interval=PAGE) as file:
            yield file
        # Rows written so far share pages with what was changed; a power failure must not tell file and journal apart.
        sync(base)
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

    Raises
    ------
    StoreError
        If the journal is of another file.
    """
    with open(path, "rb") as base:
        found = _find_journal(path)
        overlay = Overlay(base, found.pages, found.size) if found else Overlay(base)
        with h5py.File(overlay, "r") as file:
            yield View(file, overlay, overlay.size, pending=found is not None)


def replay(path: Path) -> bool:
    """Carry out a complete journal and remove it; an incomplete one is removed alone.

    Only for whoever holds the file's lock.

    Returns
    -------
    bool
        Whether there was a complete journal.

    Raises
    ------
    StoreError
        If the journal is of another file.
    """
    found = _find_journal(path)
    if found is not None:
        with open(path, "r+b") as file:
            for number in sorted(found.pages):
                file.seek(number * PAGE)
                file.write(found.pages[number][: found.size - number * PAGE])
            file.truncate(found.size)
            sync(file)
    discard(path)
    return found is not None


def discard(path: Path) -> None:
    """Remove the journal of a file, whatever is in it; only for whoever holds the file's lock."""
    journal_path(path).unlink(missing_ok=True)
    _draft_path(path).unlink(missing_ok=True)
    # A journal that came back after a power failure would undo what was written since.
    sync_folder(journal_path(path).parent)


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
    return journal_path(path).with_suffix(".journal.draft")


def _read_page(file: BinaryIO | io.RawIOBase, number: int) -> bytes:
    file.seek(number * PAGE)
    return file.read(PAGE).ljust(PAGE, b"\0")


def _write_journal(path: Path, overlay: Overlay) -> None:
    """Write the journal aside and give it its name when it is whole."""
    draft, digest = _draft_path(path), hashlib.sha256()
    with open(draft, "wb") as file:
        parts = [_MAGIC, struct.pack("<qq", overlay.size, len(overlay.pages))]
        parts += [struct.pack("<q", number) + bytes(overlay.pages[number]) for number in sorted(overlay.pages)]
        parts += overlay.before()
        for part in parts:
            digest.update(part)
            file.write(part)
        file.write(digest.digest())
        sync(file)
    os.replace(draft, journal_path(path))
    sync_folder(draft.parent)


def _find_journal(path: Path) -> _Journal | None:
    """Read the journal of a file; None where there is no complete one, and an error where it is of another file."""
    while (journal := _read_journal(path)) is not None and not journal.fits(path):
        # Where it is gone, a writer has carried it out meanwhile, and may have written rows since.
        if _read_journal(path) == journal:
            msg = (
                f"{journal_path(path)} is a change of another file than {path} now is: remove it if you replaced that "
                "file on purpose, as by a backup"
            )
            raise StoreError(msg)
    return journal


def _read_journal(path: Path) -> _Journal | None:
    """Read a journal; None where there is no complete one."""
    try:
        data = journal_path(path).read_bytes()
    except FileNotFoundError:
        return None
    head = len(_MAGIC) + 16
    if not data.startswith(_MAGIC) or hashlib.sha256(data[:-32]).digest() != data[-32:]:
        return None
    size, count = struct.unpack_from("<qq", data, len(_MAGIC))
    step = 8 + PAGE
    end = head + count * step
    pages = {
        struct.unpack_from("<q", data, at)[0]: bytearray(data[at + 8 : at + step]) for at in range(head, end, step)
    }
    return _Journal(pages, size, data[end:-32])
