"""JPEG files to 224 x 224 pixels: ways to decode and resize, their speed, and their distance from plain Pillow.

    python benchmarks/decoding.py IMAGES --table docs/results/decoding.md

IMAGES is a folder of JPEGs. Each is also written again larger, with the quality of 90. Needs simplejpeg, PyTurboJPEG
with libturbojpeg, and opencv-python-headless beside deepfeat; a way that is not installed is left out and named.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deepfeat.images import Preparation, decode_image, prepare_image

SIZE = 224
SCALES = (1.0, 1024 / 600, 2.5)
PREPARATION = Preparation((SIZE, SIZE), "squash")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--table", type=Path, help="write the table here instead of printing it")
    arguments = parser.parse_args()
    originals = [file.read_bytes() for file in sorted(arguments.images.glob("*.jpg"))]
    ways = {name: way for name, way in WAYS.items() if is_installed(way, originals[0])}
    lines = [
        "# Decoding JPEGs",
        "",
        "Made by `python benchmarks/decoding.py IMAGES --table docs/results/decoding.md`: "
        f"{len(originals)} JPEGs to {SIZE} x {SIZE} pixels, median of {arguments.rounds} rounds in which the ways "
        f"take turns, {os.cpu_count()} cores, {platform.machine()}, {versions()}. The difference is from plain Pillow, "
        "whole picture decoded and resized with its antialiased bilinear filter, in units of 0 to 255.",
    ]
    for scale in SCALES:
        files = originals if scale == 1 else [enlarge(data, scale) for data in originals]
        lines += table(ways, files, arguments.rounds)
    missing = [name for name in WAYS if name not in ways]
    text = "\n".join([*lines, *([f"\nLeft out: {', '.join(missing)}."] if missing else []), ""])
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")
    print(text)


def is_installed(way: Callable[[bytes], np.ndarray], data: bytes) -> bool:
    try:
        way(data)
    except (ImportError, RuntimeError):  # PyTurboJPEG without its library
        return False
    return True


def enlarge(data: bytes, scale: float) -> bytes:
    image = Image.open(io.BytesIO(data))
    out = io.BytesIO()
    image.resize((round(image.width * scale), round(image.height * scale))).save(out, "JPEG", quality=90)
    return out.getvalue()


def table(ways: dict[str, Callable[[bytes], np.ndarray]], files: list[bytes], rounds: int) -> list[str]:
    seconds: dict[tuple[str, int], list[float]] = {(name, n): [] for name in ways for n in (1, 2)}
    for _ in range(rounds):
        for (name, threads), taken in seconds.items():
            with ThreadPoolExecutor(threads) as pool:
                start = time.perf_counter()
                list(pool.map(ways[name], files))
                taken.append(time.perf_counter() - start)
    plain = [pillow(data).astype(int) for data in files]
    width, height = Image.open(io.BytesIO(files[0])).size
    lines = [
        "",
        f"{width} x {height}:",
        "",
        "| way | img/s, 1 thread | 2 threads | mean difference | largest |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, way in ways.items():
        one, two = (len(files) / statistics.median(seconds[name, n]) for n in (1, 2))
        apart = [np.abs(way(data).astype(int) - p) for data, p in zip(files, plain, strict=True)]
        mean, most = np.mean([a.mean() for a in apart]), max(a.max() for a in apart)
        lines.append(f"| {name} | {one:.0f} | {two:.0f} | {mean:.3f} | {most} |")
    return lines


# The ways


def resized(image: Image.Image, **options: Any) -> np.ndarray:
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, **options))


def pillow(data: bytes) -> np.ndarray:
    return resized(decode_image(data))


def deepfeat(data: bytes) -> np.ndarray:
    return prepare_image(data, [PREPARATION])[PREPARATION]


def draft(data: bytes) -> np.ndarray:
    return resized(decode_image(data, 2 * SIZE))


def one_step(data: bytes) -> np.ndarray:
    from cykooz_resizer import FilterType, ResizeAlg, ResizeOptions, Resizer

    options = ResizeOptions(ResizeAlg.convolution(FilterType.bilinear), use_alpha=False)
    image = Image.new("RGB", (SIZE, SIZE))
    Resizer().resize_pil(decode_image(data, 2 * SIZE), image, options)
    return np.asarray(image)


def reducing_gap(data: bytes) -> np.ndarray:
    return resized(Image.open(io.BytesIO(data)), reducing_gap=2.0)


def simplejpeg(data: bytes) -> np.ndarray:
    import simplejpeg as package

    return resized(Image.fromarray(package.decode_jpeg(data)))


def simplejpeg_scaled(data: bytes) -> np.ndarray:
    import simplejpeg as package

    return resized(Image.fromarray(package.decode_jpeg(data, min_height=2 * SIZE, min_width=2 * SIZE)))


def turbojpeg(data: bytes) -> np.ndarray:
    return resized(Image.fromarray(turbo().decode(data, pixel_format=0)))


@cache
def turbo() -> Any:
    """The library, found once for all threads."""
    from turbojpeg import TurboJPEG

    return TurboJPEG()


def opencv(interpolation: str) -> Callable[[bytes], np.ndarray]:
    def way(data: bytes) -> np.ndarray:
        import cv2

        cv2.setNumThreads(1)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        return cv2.resize(image, (SIZE, SIZE), interpolation=getattr(cv2, interpolation))

    return way


WAYS = {
    "Pillow, whole picture": pillow,
    "Pillow draft, at least twice the size": draft,
    "deepfeat: the same, cykooz-resizer resizes": deepfeat,
    "cykooz-resizer in one step": one_step,
    "Pillow, box filter before (`reducing_gap=2`)": reducing_gap,
    "simplejpeg, Pillow resizes": simplejpeg,
    "simplejpeg scaled, at least twice the size": simplejpeg_scaled,
    "PyTurboJPEG, Pillow resizes": turbojpeg,
    "OpenCV, area": opencv("INTER_AREA"),
    "OpenCV, linear, not antialiased": opencv("INTER_LINEAR"),
}


def versions() -> str:
    from importlib import metadata

    packages = [
        ("pillow", "PIL"),
        ("cykooz-resizer", "cykooz_resizer"),
        ("simplejpeg", "simplejpeg"),
        ("PyTurboJPEG", "turbojpeg"),
        ("opencv-python-headless", "cv2"),
    ]
    return ", ".join(
        f"{name} {metadata.version(name)}" for name, module in packages if importlib.util.find_spec(module)
    )


if __name__ == "__main__":
    main()
