"""Random changes of training images that leave their class as it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

AUGMENTATIONS = ("flip", "rotate", "color")

#: Largest change of brightness, contrast and saturation, as a part of what they are.
STRENGTH = 0.2

#: Weights of red, green and blue in brightness (ITU-R BT.601).
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def augment(images: np.ndarray, kinds: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """Change each image in its own way.

    Parameters
    ----------
    images : ndarray of shape (n, height, width, 3), uint8
    kinds : sequence of str
        Of `AUGMENTATIONS`: "flip" mirrors left to right and top to bottom, each with even odds; "rotate" turns by
        a random number of quarter turns, or half turns where the sides differ, so that nothing is
        interpolated and no corner is empty; "color" changes brightness, contrast and saturation by at most `STRENGTH`.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of shape (n, height, width, 3), uint8
        A copy.
    """
    images = images.copy()
    if "flip" in kinds:
        _flip(images, rng)
    if "rotate" in kinds:
        _rotate(images, rng)
    return _recolor(images, rng) if "color" in kinds else images


def _flip(images: np.ndarray, rng: np.random.Generator) -> None:
    for axis in (1, 2):
        chosen = rng.random(len(images)) < 0.5
        images[chosen] = np.flip(images[chosen], axis)


def _rotate(images: np.ndarray, rng: np.random.Generator) -> None:
    step = 1 if images.shape[1] == images.shape[2] else 2
    turns = rng.choice(np.arange(0, 4, step), len(images))
    for count in range(step, 4, step):
        images[turns == count] = np.rot90(images[turns == count], count, axes=(1, 2))


def _recolor(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    brightness, contrast, saturation = rng.uniform(1 - STRENGTH, 1 + STRENGTH, (3, len(images), 1, 1, 1)).astype("f4")
    x = images * brightness
    grey = (x @ _LUMA)[..., np.newaxis]
    mean = grey.mean(axis=(1, 2), keepdims=True)
    # Saturation moves each pixel from its grey, contrast from the grey of the whole image.
    x = mean + contrast * (grey - mean + saturation * (x - grey))
    return np.asarray(np.rint(np.clip(x, 0, 255)).astype(np.uint8))
