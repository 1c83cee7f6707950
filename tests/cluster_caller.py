"""A process that extracts on a cluster, slowly stores what comes, and says how much memory that took."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from distributed import Client
from small_network import small_cnn

import deepfeat
import deepfeat.distributed
from deepfeat.store import StoreWriter

SIZE = 64


def peak_memory() -> int:
    """Bytes in which the process lay at the most."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def slow(write):
    def write_slowly(*args):
        time.sleep(0.02)
        sys.stdout.write("storing\n")
        sys.stdout.flush()
        write(*args)

    return write_slowly


def main(scheduler, folder, cache):
    deepfeat.distributed.SHARD_BYTES = 2**21
    StoreWriter.write = slow(StoreWriter.write)
    # What a first call imports and opens is not of the rows.
    with Client(scheduler) as client:
        backbone = small_cnn(pooling=None, input_size=SIZE)
        deepfeat.extract(sorted(Path(folder).iterdir())[:8], backbone, f"{cache}.first", client=client, progress=False)
        before = peak_memory()
        deepfeat.extract(folder, backbone, cache, client=client, progress=False)
    sys.stdout.write(f"{peak_memory() - before}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
