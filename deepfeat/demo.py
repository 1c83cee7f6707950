"""Images to try things on: scikit-learn's digits as files, and drawn spots with what medical images have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits

#: Edge of the written digits, in pixels; the originals have 8.
EDGE = 64

#: Share of the lesions, irregularity of the outline, unevenness of the colour, and mean colour of each kind of spot.
_SPOTS = {
    "nevus": (0.65, 0.04, 0.25, (130, 86, 66)),
    "keratosis": (0.20, 0.06, 0.90, (132, 88, 68)),
    "melanoma": (0.15, 0.22, 0.45, (122, 78, 64)),
}
#: Edge of what is drawn of a lesion, and of what is photographed of it, which lies inside when it is turned.
_LESION_EDGE, _SPOT_EDGE = 160, 96


def write_digits(folder: Path) -> None:
    """Write the 1,797 digits as PNG files, one sub-folder per class; existing files stay as they are.

    Parameters
    ----------
    folder : pathlib.Path
        Made if needed.
    """
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        file = folder / str(label) / f"{number:04d}.png"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            grey = np.rint(image / 16 * 255).astype(np.uint8)
            Image.fromarray(grey).resize((EDGE, EDGE), Image.Resampling.NEAREST).save(file)


def write_spots(folder: Path, n_lesions: int = 200, seed: int = 0) -> None:
    """Draw spots on skin into ``folder/images``, and write their labels into ``folder/labels.csv``.

    They are as awkward as data sets of skin lesions are: of 20 lesions 13 are nevi, 4 keratoses and 3 melanomas, a
    lesion has one to four images, and kinds overlap. They look like nothing that a physician has seen.

    Parameters
    ----------
    folder : pathlib.Path
        Made if needed.
    n_lesions : int
        At least 20.
    seed : int
        Of all that is drawn at random.
    """
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    shares = np.cumsum([share for share, *_ in _SPOTS.values()])
    kinds = np.array(list(_SPOTS))[np.searchsorted(shares, (np.arange(n_lesions) % 20 + 0.5) / 20)]
    rows: list[dict[str, str]] = []
    for lesion, kind in enumerate(rng.permutation(kinds)):
        colours = _draw_lesion(rng, *_SPOTS[kind][1:])
        for _ in range(rng.integers(1, 5)):
            name = f"spot{len(rows):04d}.png"
            _photograph(colours, rng).save(folder / "images" / name)
            rows.append({"image": name, "label": kind, "lesion": f"lesion{lesion:03d}"})
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)


def _draw_lesion(
    rng: np.random.Generator, irregularity: float, unevenness: float, colour: tuple[int, int, int]
) -> np.ndarray:
    """Colours of shape (edge, edge, 3), float, of a spot with skin around it."""
    y, x = np.mgrid[-1 : 1 : _LESION_EDGE * 1j, -1 : 1 : _LESION_EDGE * 1j]
    angle, radius = np.arctan2(y, x), np.hypot(x, y * rng.uniform(0.8, 1.25))
    # The strength of the outline's waves differs from lesion to lesion, so that kinds overlap.
    strength = irregularity * rng.lognormal(0, 0.5)
    waves = [rng.normal() / np.sqrt(k) * np.cos(k * angle + rng.uniform(0, 7)) for k in range(2, 9)]
    outline = rng.uniform(0.3, 0.46) * np.clip(1 + strength * np.sum(waves, axis=0), 0.4, 1.7)
    inside = 1 / (1 + np.exp((radius - outline) * 45))
    skin = np.array([222, 178, 152]) + rng.normal(0, 14)
    spot = np.array(colour) + rng.normal(0, 14) + rng.normal(0, 9, 3)
    mottling = 40 * unevenness * rng.lognormal(0, 0.4) * _cloud(rng, rng.uniform(1.5, 7))
    colours: np.ndarray = skin + inside[..., None] * (spot - skin + mottling[..., None])
    return colours


def _cloud(rng: np.random.Generator, width: float) -> np.ndarray:
    """Smooth noise of shape (edge, edge), mean 0 and standard deviation 1."""
    noise: np.ndarray = ndimage.gaussian_filter(rng.normal(size=(_LESION_EDGE, _LESION_EDGE)), width, mode="wrap")
    noise -= noise.mean()
    noise /= noise.std()
    return noise


def _photograph(colours: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Turn, move, zoom and light a lesion as another picture of it would."""
    picture = Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))
    picture = picture.rotate(rng.uniform(0, 360), Image.Resampling.BILINEAR)
    width = _SPOT_EDGE * rng.uniform(0.9, 1.1)
    left, top = (_LESION_EDGE - width) / 2 + rng.uniform(-6, 6, 2)
    box = (left, top, left + width, top + width)
    pixels = picture.resize((_SPOT_EDGE, _SPOT_EDGE), Image.Resampling.BILINEAR, box)
    light = rng.normal(0, 7) + rng.normal(0, 5, (_SPOT_EDGE, _SPOT_EDGE, 1))
    return Image.fromarray(np.clip(np.asarray(pixels) + light, 0, 255).astype(np.uint8))
