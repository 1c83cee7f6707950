"""A small piece of work on a store, and ways to make it fail at a chosen moment.

Every byte written, every rename and every removal is a step; the work ends,
by SIGKILL or by an error, when its steps are used up, in the middle of a
write if that is where they end.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from deepfeat.store import RECORD, StoreWriter, journal, writing

SPECS = [
    {"backbone": "NetA", "weights": "sha256:a", "layer": None, "pooling": "avg", "dtype": "float32"},
    {"backbone": "NetB", "weights": "sha256:b", "layer": "top", "pooling": "max", "dtype": "float16"},
]
WIDTHS = (700, 33)
BATCH = 4


def table(n_images: int) -> pd.DataFrame:
    ids = [f"image {i:03d}" for i in range(n_images)]
    labels = ["ab"[i % 2] for i in range(n_images)]
    return pd.DataFrame({"image_id": ids, "path": ids, "label": labels, "group": None, "split": None}, dtype=object)


def features(block: int, rows: range) -> np.ndarray:
    return np.stack([np.random.default_rng((block, row)).normal(size=WIDTHS[block]).astype(np.float32) for row in rows])


def records(rows: range) -> np.ndarray:
    described = np.zeros(len(rows), RECORD)
    for record, row in zip(described, rows, strict=True):
        record["digest"] = np.frombuffer(hashlib.sha256(str(row).encode()).digest(), np.uint8)
        record["size"], record["mtime_ns"] = row + 1, 10**18 + row
    return described


def work(path: Path, done: list[tuple[int, int]] | None = None, told: int | None = None) -> None:
    """Fill a store with 24 images, then with 16 more; what is there already is left alone.

    Each finished batch is told to a pipe as two bytes: block and first row.
    """
    for n_images in (24, 40):
        with StoreWriter(path) as writer:
            writer.add_images(table(max(n_images, writer.store.n_images)))
            for number, spec in enumerate(SPECS):
                block = writer.add_block(spec, (WIDTHS[number],), {"keras": "3"})
                states = writer.store.records(block.key)["state"]
                for start in range(0, n_images, BATCH):
                    rows = range(start, start + BATCH)
                    if (states[start : start + BATCH] != 1).any():
                        writer.write(block, rows, features(number, rows), records(rows))
                        if told is not None:
                            os.write(told, bytes([number, start]))


class Steps:
    """Counts steps and ends the work after the last one."""

    def __init__(self, budget: int | None, error: bool = False) -> None:
        self.taken, self.budget, self.error = 0, budget, error

    def take(self, wanted: int) -> int:
        """Return how many of the wanted steps may be taken."""
        allowed = wanted if self.budget is None else min(wanted, self.budget - self.taken)
        self.taken += allowed
        return allowed

    def end(self) -> None:
        if self.error:
            raise OSError(errno.ENOSPC, "No space left on device")
        os.kill(os.getpid(), signal.SIGKILL)


class CountedFile:
    """A file whose writes are steps."""

    def __init__(self, file, steps: Steps) -> None:
        self._file, self._steps = file, steps

    def write(self, data) -> int:
        data = memoryview(data).cast("B")
        allowed = self._steps.take(len(data))
        written = self._file.write(data[:allowed])
        if allowed < len(data):
            self._file.flush()
            self._steps.end()
        return written

    def truncate(self, size=None):
        counted_call(self._file.truncate, self._steps)(size)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *reason):
        return self._file.__exit__(*reason)

    def __getattr__(self, name):
        return getattr(self._file, name)


def counted_call(function, steps: Steps):
    def call(*args, **kwargs):
        if steps.take(1) < 1:
            steps.end()
        return function(*args, **kwargs)

    return call


@contextlib.contextmanager
def counting(steps: Steps) -> Iterator[Steps]:
    """Let every write, rename and removal of the store's code be a step."""

    def counted_open(file, mode="r", *args, **kwargs):
        opened = open(file, mode, *args, **kwargs)  # noqa: SIM115 -- the caller closes it
        return opened if mode == "rb" else CountedFile(opened, steps)

    replace, unlink = os.replace, Path.unlink
    journal.open = writing.open = counted_open
    if not steps.error:  # renaming and removing need no space
        os.replace = counted_call(replace, steps)
        Path.unlink = lambda path, missing_ok=False: counted_call(unlink, steps)(path, missing_ok=missing_ok)
    try:
        yield steps
    finally:
        del journal.open, writing.open
        os.replace, Path.unlink = replace, unlink


def work_until_killed(path: Path, budget: int) -> set[tuple[int, int]]:
    """Do the work in a child process that is killed after so many steps; return the batches that it told of."""
    reader, told = os.pipe()
    child = os.fork()
    if not child:
        # Nothing of the test's own process may run here but this.
        try:
            os.close(reader)
            with counting(Steps(budget)):
                work(path, told=told)
        finally:
            os._exit(0)
    os.close(told)
    with os.fdopen(reader, "rb") as pipe:
        lines = pipe.read()
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the work was over before its steps were"
    return set(zip(lines[::2], lines[1::2], strict=True))
