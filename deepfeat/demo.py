"""The data of `deepfeat demo`: scikit-learn's handwritten digits as image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

#: Edge of the written images, in pixels; the originals have 8.
EDGE = 64


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
