"""Image files become uint8 RGB arrays of one size, or a failure with a reason."""

from __future__ import annotations

import hashlib
import io
import math
import os
import stat
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from deepfeat.errors import ImageError, UsageError
from deepfeat.resizing import resize_image

#: Version of the way from file to pixels; part of every feature block's key. Since 2, large JPEGs
#: are decoded at a fraction of their size; since 3, cykooz-resizer resizes.
PIXELS_VERSION = 3

#: A JPEG is decoded at 1/2, 1/4 or 1/8 as long as both its sides keep this many times the pixels wanted.
OVERSAMPLING = 2

#: Part of each side that a crop view keeps.
CROP = 0.8

#: Mirrored and turned views, by what makes them.
TURNS = {
    "hflip": Image.Transpose.FLIP_LEFT_RIGHT,
    "vflip": Image.Transpose.FLIP_TOP_BOTTOM,
    "rot90": Image.Transpose.ROTATE_90,
    "rot180": Image.Transpose.ROTATE_180,
    "rot270": Image.Transpose.ROTATE_270,
}

#: Left and top edge of each crop, as parts of what a crop leaves out.
CROPS = {
    "center": (0.5, 0.5),
    "top_left": (0.0, 0.0),
    "top_right": (1.0, 0.0),
    "bottom_left": (0.0, 1.0),
    "bottom_right": (1.0, 1.0),
}

#: Views of an image: itself, mirrored, turned anticlockwise by degrees, or cropped to `CROP` of each side.
VIEWS = ("original", *TURNS, *CROPS)

#: File name endings, lower case, by which an image is recognised in a folder.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff"}
    | {".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"}
)

#: Bytes that a file may have: as many as Pillow's own bound on pixels comes to at 16 bits for each of three colours.
#: Larger ones, such as slides, would fill the memory before Pillow could tell how many pixels they have.
MAX_FILE_BYTES = 2**30

_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")

#: The least and the greatest time in ns that a store can hold.
_TIMES = (-(2**63), 2**63 - 1)

# Tags of TIFF, and values of theirs.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 258, 262, 284, 339
_WHITE_IS_ZERO, _SEPARATE, _SIGNED = 0, 2, 2


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


class Preparation(NamedTuple):
    """How a picture becomes a network's input: height and width, resize policy, view."""

    size: tuple[int, int]
    policy: str
    view: str = "original"


@dataclass(frozen=True)
class LoadedImage:
    """What came of one file: pixels for each preparation, or the reason why there are none."""

    row: int
    stamp: FileStamp | None
    digest: bytes | None
    pixels: dict[Preparation, np.ndarray]
    reason: str | None


def stamp_file(path: str) -> FileStamp | None:
    """Return the stamp of a file, or None where it cannot be seen; times beyond those of int64 (year 2262) are cut."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: no file can have this name
        return None
    least, greatest = _TIMES
    return FileStamp(status.st_size, min(max(status.st_mtime_ns, least), greatest))


def read_bytes(path: str) -> bytes:
    """Read a whole file of up to `MAX_FILE_BYTES`; failures become an ImageError with a short reason."""
    try:
        _check_status(os.stat(path))
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
    except MemoryError as error:
        raise ImageError("not enough memory to read the file") from error
    if not data:
        raise ImageError("empty file")
    return data


def _check_status(status: os.stat_result) -> None:
    """Refuse what must not be read: a pipe or a device would be waited for, for ever."""
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        size, most = (f"{n / 2**30:.3g} GiB" for n in (status.st_size, MAX_FILE_BYTES))
        msg = f"file of {size} is too large: an image may have {most}"
        raise ImageError(msg)


def _refuse_truncated() -> None:
    """Refuse to go on where Pillow is told to fill up files that are cut off, by which they would count as whole.

    The switch is of the whole process, and others may want it: setting it back here would not be safe with threads.

    Raises
    ------
    UsageError
        If ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES`` is set.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        msg = (
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, by which files that are cut off pass as whole: "
            "set it to False in the process that reads images"
        )
        raise UsageError(msg)


def decode_image(data: bytes, at_least: int | None = None) -> Image.Image:
    """Decode the bytes of an image file to an upright 8-bit RGB picture.

    The EXIF orientation is applied, if it can be read; 16-bit grey values are scaled to 8 bits;
    transparent pixels are laid over white; of an animation the first frame
    counts; CMYK and palette images are converted by Pillow without a colour
    profile.

    A file that is cut off is a failure, and so is a JPEG whose end is zeros, as a broken download leaves it. Zeros in
    the middle of a file cannot be told from pixels, nor can they at the end of a format without an end mark (BMP, PPM,
    TIFF, WebP, AVIF).

    Parameters
    ----------
    data : bytes
        The whole file.
    at_least : int, optional
        Pixels that both sides must keep: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where
        that leaves as many, which libjpeg does several times faster. At full size if None.

    Returns
    -------
    PIL.Image.Image
        Mode "RGB".

    Raises
    ------
    ImageError
        For a file that is not an image, is damaged, or is larger than Pillow's
        bound on decompressed pixels (``2 * PIL.Image.MAX_IMAGE_PIXELS``); for a TIFF whose
        pixels Pillow would get wrong.
    UsageError
        If Pillow is told to fill up files that are cut off.
    """
    _refuse_truncated()
    try:
        with Image.open(io.BytesIO(data), formats=decodable_formats()) as image:
            _refuse_wrong_pixels(image)
            if image.format in ("JPEG", "MPO"):
                _refuse_endless_jpeg(data)
            if at_least is not None:
                _scale_down(image, at_least)
            image.load()
            file_format = image.format
            _turn_upright(image)
            # Without a conversion to what it is: copies take a fifth of the time of decoding.
            return image if image.mode == "RGB" and not image.has_transparency_data else _to_rgb(image, file_format)
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


def _refuse_wrong_pixels(image: Image.Image) -> None:
    """Refuse the kinds of TIFF that Pillow opens without a word and gets wrong."""
    if not isinstance(image, TiffImageFile):
        return
    tags = image.tag_v2
    bits = max(tags.get(_BITS_PER_SAMPLE, (1,)))
    if bits == 12:
        raise ImageError("12-bit pixels cannot be read; convert the file to unsigned 8 or 16 bits")
    if bits < 32 and _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise ImageError("signed pixels have no defined range; convert the file to unsigned 8 or 16 bits")
    if image.mode in _SIXTEEN_BIT and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise ImageError("16-bit grey with white as zero cannot be read; convert it to black as zero")
    # Pillow takes 8 of the 16 bits unless libtiff unpacks them, and mixes up grey and transparency.
    is_mixed_up = (bits > 8 and image.info["compression"] == "raw") or image.mode in ("LA", "PA")
    if tags.get(_PLANAR) == _SEPARATE and is_mixed_up:
        raise ImageError("channels in separate planes cannot be read; save the file with one plane")


def _refuse_endless_jpeg(data: bytes) -> None:
    """Refuse a JPEG without an end mark: decoders take the zeros that stand for its rest as grey."""
    # Data of a picture never hold the mark. Anything may follow it, as phones append films.
    if data.rfind(b"\xff\xd9", _find_first_scan(data)) < 0:
        raise ImageError("cut off: the JPEG has no end mark (FF D9)")


def _find_first_scan(data: bytes) -> int:
    """Offset of a JPEG's first scan, behind the headers and the thumbnail in them, which has an end mark of its own."""
    at = 2
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 3:
        marker = data[at + 1]
        if marker == 0xDA:
            return at
        if marker == 0xFF:  # filler
            at += 1
        elif marker <= 1 or 0xD0 <= marker <= 0xD9:  # without content
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return len(data)


def _turn_upright(image: Image.Image) -> None:
    """Apply the EXIF orientation in place; a picture whose EXIF data cannot be read lies as it lies."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    # Its pixels are sound. Pillow raises SyntaxError, struct.error and others here.
    except Exception:
        return


def _scale_down(image: Image.Image, at_least: int) -> None:
    """Have a JPEG decoded at the least of 1, 1/2, 1/4 and 1/8 of its size that is large enough."""
    scale = max(d for d in (1, 2, 4, 8) if d == 1 or min(image.size) >= d * at_least)
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))


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


def show_view(image: Image.Image, view: str) -> Image.Image:
    """Mirror, turn or crop a picture; see `VIEWS`."""
    if view in TURNS:
        return image.transpose(TURNS[view])
    if view in CROPS:
        width, height = (max(1, round(CROP * side)) for side in image.size)
        left, top = CROPS[view]
        left, top = round(left * (image.width - width)), round(top * (image.height - height))
        return image.crop((left, top, left + width, top + height))
    return image


def prepare_image(data: bytes, preparations: Iterable[Preparation]) -> dict[Preparation, np.ndarray]:
    """Decode a file once for each size that is needed, and make every preparation from that.

    The pixels of a preparation do not depend on the others.
    """
    by_least: dict[int, list[Preparation]] = {}
    for preparation in preparations:
        kept = CROP if preparation.view in CROPS else 1.0
        by_least.setdefault(math.ceil(OVERSAMPLING * max(preparation.size) / kept), []).append(preparation)
    pixels = {}
    for at_least, group in by_least.items():
        image = decode_image(data, at_least)
        for preparation in group:
            pixels[preparation] = resize_image(show_view(image, preparation.view), preparation.size, preparation.policy)
    return pixels


def load_image(row: int, path: str, preparations: Iterable[Preparation]) -> LoadedImage:
    """Read, digest (SHA-256 of the file), decode and resize one file; never raises for a bad one."""
    stamp = stamp_file(path)
    digest = None
    try:
        data = read_bytes(path)
        digest = hashlib.sha256(data).digest()
        pixels = prepare_image(data, preparations)
    except ImageError as error:
        return LoadedImage(row, stamp, digest, {}, str(error))
    return LoadedImage(row, stamp, digest, pixels, None)


def stream_images(
    wanted: Iterable[tuple[int, str, Collection[Preparation]]], *, workers: int, ahead: int
) -> Iterator[LoadedImage]:
    """Load images in threads, in order, with at most ``ahead`` of them waiting in memory.

    Parameters
    ----------
    wanted : iterable of (row, path, preparations)
    workers : int
        Number of threads; Pillow decodes and resizes outside Python's lock.
    ahead : int
        Bound on the images that are loaded or being loaded.
    """
    with ThreadPoolExecutor(workers, "deepfeat decode") as pool:
        waiting: deque[Future[LoadedImage]] = deque()
        try:
            for item in wanted:
                waiting.append(pool.submit(load_image, *item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
