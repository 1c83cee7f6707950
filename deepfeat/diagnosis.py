"""What this machine has, and what would make deepfeat faster on it: `deepfeat doctor`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# NumPy and SciPy are imported for the BLAS that each brings with it.
import numpy as np  # noqa: F401
import scipy.linalg  # noqa: F401
from threadpoolctl import threadpool_info

from deepfeat.backbones.applications import weights_folder
from deepfeat.computation import count_cores
from deepfeat.resizing import KNOWN_PILLOWS, resizer
from deepfeat.runtimes.openvino import conversions_folder
from deepfeat.runtimes.selection import has_gpu_driver
from deepfeat.store import RECORD

PACKAGES = ("numpy", "scipy", "scikit-learn", "h5py", "pandas", "pillow", "keras", "tensorflow")

#: Extras, the package that each needs, and what for.
EXTRAS = {
    "openvino": ("openvino", "extraction on a CPU runs up to twice as fast"),
    "plot": ("matplotlib", "plots as .png, .svg and .pdf"),
    "parquet": ("pyarrow", "export to Parquet"),
}

#: Bytes of an image's id, path and labels in a store, roughly.
_ROW = 200

#: Where Linux describes the processor.
CPUINFO = Path("/proc/cpuinfo")

#: Flags of processors that compute in bfloat16 by themselves.
_BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


class Finding(NamedTuple):
    """One line of the diagnosis.

    Attributes
    ----------
    topic : str
    found : str
    advice : str
        What to do; empty where nothing is to be done.
    is_fault : bool
        Whether deepfeat cannot work like this.
    """

    topic: str
    found: str
    advice: str = ""
    is_fault: bool = False


def diagnose(cache: Path, n_images: int | None = None, dim: int = 1280) -> list[Finding]:
    """Look at Python, packages, backend, BLAS, processor, folders and disk.

    Parameters
    ----------
    cache : path
        Feature store that exists or is to be made.
    n_images : int, optional
        Images to be extracted; the store's size is estimated for as many.
    dim : int
        Width of all embeddings of an image together.

    Returns
    -------
    list of Finding
    """
    found = [Finding("python", f"{platform.python_version()} on {platform.system()}, {platform.machine()}")]
    found += [*_packages(), *_resizing(), *_extras(), *_backend(), *_processor(), *_blas()]
    found += [_folder("weights of Keras", weights_folder()), _folder("converted networks", conversions_folder())]
    found += [_folder("feature store", cache.absolute().parent), *_disk(cache, n_images, dim)]
    return found


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            yield Finding(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "is not installed", f"run `pip install {name}`", is_fault=True)


def _resizing() -> Iterator[Finding]:
    found, known = resizer(), " or ".join(map(str, KNOWN_PILLOWS))
    advice = f"with cykooz-resizer and Pillow {known}, where pip has both for this platform, images are read faster"
    yield Finding("resizing", found, advice if found.startswith("pillow") else "")


def _extras() -> Iterator[Finding]:
    for extra, (package, purpose) in EXTRAS.items():
        if importlib.util.find_spec(package) is None:
            yield Finding(extra, "is not installed", f"run `pip install 'deepfeat[{extra}]'`: {purpose}")
        else:
            yield Finding(extra, importlib.metadata.version(package))


def _backend() -> Iterator[Finding]:
    """What Keras computes with; a broken backend is a finding, not an error."""
    try:
        from deepfeat.runtimes.keras import keras

        devices = keras.distribution.list_devices("gpu")
        yield Finding("backend of Keras", keras.backend.backend())
    except Exception as error:
        advice = "set KERAS_BACKEND to tensorflow, jax or torch, of which one is installed"
        yield Finding("backend of Keras", f"does not start: {str(error).splitlines()[0]}", advice, is_fault=True)
        return
    yield Finding("GPUs", ", ".join(map(str, devices)) or "none that Keras sees", "" if devices else _gpu_advice())


def _gpu_advice() -> str:
    """A driver without a GPU for Keras is worth a hint; a machine without one is not."""
    return "there is a driver: run `pip install 'deepfeat[gpu]'`" if has_gpu_driver() else ""


def _processor() -> Iterator[Finding]:
    yield Finding("cores", f"{count_cores()} usable of {os.cpu_count()}")
    flags = _flags()
    if flags is None:
        return
    native = [flag for flag in _BFLOAT16_FLAGS if flag in flags]
    if native:
        advice = "precision='bfloat16' runs up to twice as fast, with slightly other embeddings"
        yield Finding("bfloat16", f"native ({', '.join(native)})", advice)
    else:
        yield Finding("bfloat16", "not native: it would be slower than float32")


def _flags() -> set[str] | None:
    """Features of the processor, where the system tells."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    listed = [line for line in lines if line.startswith(("flags", "Features"))]
    return set(listed[0].partition(":")[2].split()) if listed else None


def _blas() -> Iterator[Finding]:
    for library in threadpool_info():
        if library["user_api"] != "blas":
            continue
        threads = library["num_threads"]
        alone = threads == 1 and count_cores() > 1
        advice = "OPENBLAS_NUM_THREADS or OMP_NUM_THREADS holds it back: unset them, or pass n_jobs" if alone else ""
        shown = f"{library['internal_api']} {library['version']}, {threads} thread(s)"
        yield Finding(f"BLAS of {Path(library['filepath']).parent.name}", shown, advice)


def _folder(purpose: str, folder: Path) -> Finding:
    """Whether a folder, or the first above it that exists, can be written to."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if os.access(existing, os.W_OK) and existing.is_dir():
        return Finding(purpose, f"{folder} can be written to")
    return Finding(purpose, f"{folder} cannot be written to", f"give {existing} write permission", is_fault=True)


def _disk(cache: Path, n_images: int | None, dim: int) -> Iterator[Finding]:
    existing = next(parent for parent in cache.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if n_images is None:
        yield Finding("free disk", f"{free / 1e9:.1f} GB")
        return
    needed = n_images * bytes_per_image(dim)
    short = needed > free
    advice = "make room, or pass dtype='float16' to extract, which takes half" if short else ""
    shown = f"{free / 1e9:.1f} GB; {n_images:,} images of {dim:,} values take {needed / 1e9:.2f} GB"
    yield Finding("free disk", shown, advice, is_fault=short)


def bytes_per_image(dim: int) -> int:
    """Bytes of an image in a store: its float32 features, the row's record, and its entry in the table."""
    return 4 * dim + RECORD.itemsize + _ROW
