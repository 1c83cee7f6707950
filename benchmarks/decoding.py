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

from deepfeat.images import Preparation, decode_image, prepare_image, resize_image

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
    ways = {name: way for name, (package, way) in WAYS.items() if package is None or importlib.util.find_spec(package)}
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
        lines.append(f"| {name} | {one:.0f} | {two:.0f} | {mean:.2f} | {most} |")
    return lines


# The ways


def pillow(data: bytes) -> np.ndarray:
    return resize_image(decode_image(data), (SIZE, SIZE), "squash")


def deepfeat(data: bytes) -> np.ndarray:
    return prepare_image(data, [PREPARATION])[PREPARATION]


def reducing_gap(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, reducing_gap=2.0))


def simplejpeg(data: bytes) -> np.ndarray:
    import simplejpeg as package

    return resize_image(Image.fromarray(package.decode_jpeg(data)), (SIZE, SIZE), "squash")


def simplejpeg_scaled(data: bytes) -> np.ndarray:
    import simplejpeg as package

    pixels = package.decode_jpeg(data, min_height=2 * SIZE, min_width=2 * SIZE)
    return resize_image(Image.fromarray(pixels), (SIZE, SIZE), "squash")


def turbojpeg(data: bytes) -> np.ndarray:
    return resize_image(Image.fromarray(turbo().decode(data, pixel_format=0)), (SIZE, SIZE), "squash")


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


#: Package that each needs, and the way.
WAYS = {
    "Pillow, whole picture": (None, pillow),
    "deepfeat: Pillow draft, at least twice the size": (None, deepfeat),
    "Pillow, box filter before (`reducing_gap=2`)": (None, reducing_gap),
    "simplejpeg, Pillow resizes": ("simplejpeg", simplejpeg),
    "simplejpeg scaled, at least twice the size": ("simplejpeg", simplejpeg_scaled),
    "PyTurboJPEG, Pillow resizes": ("turbojpeg", turbojpeg),
    "OpenCV, area": ("cv2", opencv("INTER_AREA")),
    "OpenCV, linear, not antialiased": ("cv2", opencv("INTER_LINEAR")),
}


def versions() -> str:
    from importlib import metadata

    packages = [("pillow", "PIL"), ("simplejpeg",) * 2, ("PyTurboJPEG", "turbojpeg"), ("opencv-python-headless", "cv2")]
    return ", ".join(
        f"{name} {metadata.version(name)}" for name, module in packages if importlib.util.find_spec(module)
    )


if __name__ == "__main__":
    main()
