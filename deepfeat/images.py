"""Image files become uint8 RGB arrays of one size, or a failure with a reason."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from deepfeat.errors import ImageError

RESIZE_POLICIES = ("squash", "crop", "pad")

#: Version of the way from file to pixels; part of every feature block's key.
PIXELS_VERSION = 1

#: File name endings, lower case, by which an image is recognised in a folder.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff"}
    | {".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"}
)

_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")


@cache
def decodable_formats() -> tuple[str, ...]:
    """Raster formats that Pillow may decode, as far as it was built with them.

    Formats that start other programs (EPS) stay out; phones' MPO files open as JPEG.
    """
    Image.init()
    wanted = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
    return tuple(name for name in wanted if name in Image.OPEN)


@dataclass(frozen=True)
class FileStamp:
    """Size in bytes and modification time in ns: a cheap hint that a file has changed."""

    size: int
    mtime_ns: int


@dataclass(frozen=True)
class LoadedImage:
    """What came of one file: pixels, or the reason why there are none."""

    row: int
    stamp: FileStamp | None
    digest: bytes | None
    pixels: np.ndarray | None
    reason: str | None


def stamp_file(path: str) -> FileStamp | None:
    """Return the stamp of a file, or None where it cannot be seen."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: no file can have this name
        return None
    return FileStamp(status.st_size, status.st_mtime_ns)


def read_bytes(path: str) -> bytes:
    """Read a whole file; failures become an ImageError with a short reason."""
    try:
        # A pipe or a device would be waited for, for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError("not a regular file")
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError as error:
        raise ImageError("file not found") from error
    except OSError as error:
        msg = f"unreadable: {error.strerror or error}"
        raise ImageError(msg) from error
    except ValueError as error:
        msg = f"not a file name: {error}"
        raise ImageError(msg) from error
    if not data:
        raise ImageError("empty file")
    return data


def decode_image(data: bytes) -> Image.Image:
    """Decode the bytes of an image file to an upright 8-bit RGB picture.

    The EXIF orientation is applied; 16-bit grey values are scaled to 8 bits;
    transparent pixels are laid over white; of an animation the first frame
    counts; CMYK and palette images are converted by Pillow without a colour
    profile.

    Parameters
    ----------
    data : bytes
        The whole file.

    Returns
    -------
    PIL.Image.Image
        Mode "RGB".

    Raises
    ------
    ImageError
        For a file that is not an image, is damaged, or is larger than Pillow's
        bound on decompressed pixels (``2 * PIL.Image.MAX_IMAGE_PIXELS``).
    """
    try:
        with Image.open(io.BytesIO(data), formats=decodable_formats()) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image), image.format)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not an image of a known format") from error
    except Image.DecompressionBombError as error:
        raise ImageError("too many pixels") from error
    # Pillow's plugins raise almost anything on damaged input, struct.error and
    # IndexError included; one bad file must never end a night of extraction.
    except Exception as error:
        msg = f"damaged: {str(error) or type(error).__name__}"
        raise ImageError(msg) from error


def _to_rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    # Pillow opens 16-bit PGM files in its 32-bit mode, and a transposed picture forgets its format.
    if image.mode in _SIXTEEN_BIT or (image.mode == "I" and file_format == "PPM"):
        grey = np.asarray(image).astype(np.float32)
        return Image.fromarray(np.rint(grey / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        msg = f"32-bit pixels (mode {image.mode}) have no defined range; convert the file to 8 or 16 bits"
        raise ImageError(msg)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(paper, image).convert("RGB")
    return image.convert("RGB")


def resize_image(image: Image.Image, size: tuple[int, int], policy: str) -> np.ndarray:
    """Resize with an antialiased bilinear filter.

    Parameters
    ----------
    image : PIL.Image.Image
        Mode "RGB".
    size : tuple of int
        Height and width in pixels.
    policy : {"squash", "crop", "pad"}
        Ignore the aspect ratio; keep it and cut the longer side about the
        centre; or keep it and fill the shorter side with black.

    Returns
    -------
    ndarray of shape (height, width, 3), uint8
    """
    width_height = (size[1], size[0])
    bilinear = Image.Resampling.BILINEAR
    if policy == "crop":
        image = ImageOps.fit(image, width_height, bilinear)
    elif policy == "pad":
        image = _pad(image, *width_height)
    else:
        image = image.resize(width_height, bilinear)
    return np.asarray(image)


def _pad(image: Image.Image, width: int, height: int) -> Image.Image:
    """As `PIL.ImageOps.pad`, except that a very thin picture keeps one pixel instead of none."""
    if image.width * height > image.height * width:
        inner = (width, max(1, round(image.height / image.width * width)))
    else:
        inner = (max(1, round(image.width / image.height * height)), height)
    paper = Image.new("RGB", (width, height))
    corner = (round((width - inner[0]) / 2), round((height - inner[1]) / 2))
    paper.paste(image.resize(inner, Image.Resampling.BILINEAR), corner)
    return paper


def load_image(row: int, path: str, size: tuple[int, int], policy: str) -> LoadedImage:
    """Read, digest (SHA-256 of the file), decode and resize one file; never raises for a bad one."""
    stamp = stamp_file(path)
    digest = None
    try:
        data = read_bytes(path)
        digest = hashlib.sha256(data).digest()
        pixels = resize_image(decode_image(data), size, policy)
    except ImageError as error:
        return LoadedImage(row, stamp, digest, None, str(error))
    return LoadedImage(row, stamp, digest, pixels, None)


def stream_images(
    paths: Mapping[int, str], size: tuple[int, int], policy: str, *, workers: int, ahead: int
) -> Iterator[LoadedImage]:
    """Load images in threads, in order, with at most ``ahead`` of them waiting in memory.

    Parameters
    ----------
    paths : mapping of int to str
        File of each row.
    size, policy
        As in `resize_image`.
    workers : int
        Number of threads.
    ahead : int
        Bound on the images that are loaded or being loaded.
    """
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[LoadedImage]] = deque()
        try:
            for row, path in paths.items():
                waiting.append(pool.submit(load_image, row, path, size, policy))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
