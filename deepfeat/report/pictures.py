"""Pictures of the page: files become small JPEGs inside it, without anything else that the files hold."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from deepfeat.errors import ImageError
from deepfeat.images import decode_image, read_bytes

#: Edge of a picture of the gallery and of a thumbnail of the map, in pixels.
GALLERY_EDGE, THUMBNAIL_EDGE = 240, 64

#: Thumbnails side by side in a sheet, and rows of them.
SHEET_EDGE = 20


class Loaded(NamedTuple):
    """A picture, or the reason why there is none."""

    picture: Image.Image | None
    reason: str | None


class Sheet(NamedTuple):
    """Thumbnails in one JPEG, SHEET_EDGE in a row."""

    source: str
    n_pictures: int


def load_pictures(paths: Mapping[str, str], ids: Sequence[str], edge: int, *, square: bool = False) -> list[Loaded]:
    """Read pictures at the size of the page.

    Parameters
    ----------
    paths : mapping of str to str
        File of each image id.
    ids : sequence of str
    edge : int
        The longer side in pixels; both sides with ``square``, which cuts the longer one.
    """

    def load(image_id: str) -> Loaded:
        if pd.isna(path := paths.get(image_id)):
            return Loaded(None, "no file is known")
        try:
            picture = decode_image(read_bytes(str(path)), edge)
        except ImageError as error:
            return Loaded(None, str(error))
        size = (edge, edge)
        return Loaded(ImageOps.fit(picture, size) if square else ImageOps.contain(picture, size), None)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(load, ids))


def picture_source(picture: Image.Image, quality: int = 80) -> str:
    """Write a picture as the source of an img element."""
    buffer = io.BytesIO()
    # Pillow would write the comment of the file again, which may name the patient.
    Image.fromarray(np.asarray(picture)).save(buffer, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def make_sheets(pictures: Sequence[Image.Image]) -> list[Sheet]:
    """Put square thumbnails into sheets."""
    sheets = []
    for start in range(0, len(pictures), SHEET_EDGE**2):
        part = pictures[start : start + SHEET_EDGE**2]
        n_rows = -(-len(part) // SHEET_EDGE)
        sheet = Image.new("RGB", (SHEET_EDGE * THUMBNAIL_EDGE, n_rows * THUMBNAIL_EDGE))
        for number, picture in enumerate(part):
            row, column = divmod(number, SHEET_EDGE)
            sheet.paste(picture, (column * THUMBNAIL_EDGE, row * THUMBNAIL_EDGE))
        sheets.append(Sheet(picture_source(sheet, 70), len(part)))
    return sheets


def overlay(picture: Image.Image, evidence: Any) -> Image.Image:
    """Lay a map of evidence over a picture: red is more than the map's mean, blue is less.

    Parameters
    ----------
    picture : PIL.Image.Image
    evidence : array of shape (height, width)
    """
    values = np.asarray(evidence, float)
    values = values - values.mean()
    strongest = np.abs(values).max() or 1.0
    # A bicubic filter would overshoot, and so show evidence of the other sign about a peak.
    scaled = Image.fromarray((values / strongest).astype(np.float32)).resize(picture.size, Image.Resampling.BILINEAR)
    strength = np.clip(np.asarray(scaled), -1, 1)[..., None]
    tint = np.where(strength > 0, (226.0, 59.0, 46.0), (40.0, 110.0, 220.0))
    opacity = 0.75 * np.abs(strength)
    grey = np.asarray(picture.convert("L"), float)[..., None].repeat(3, axis=2)
    return Image.fromarray(np.rint(grey * (1 - opacity) + tint * opacity).astype(np.uint8))
