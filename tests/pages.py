"""Results with pictures and hostile names, for the tests of the report."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

import deepfeat

#: Labels and file names that would run a script, end an element, or turn the text around them.
HOSTILE_LABELS = ("<script>window.hacked = 1</script>", '"onmouseover="window.hacked=1', "</style>&amp;<b>bold")
HOSTILE_NAMES = (
    "<img src=x onerror=window.hacked=1>",
    "</script><script>window.hacked=1",
    '"><svg onload=window.hacked=1>',
    "javascript:window.hacked=1",
    "https://example.org/pixel.png",
    "'-window.hacked=1-'",
    "{{7*7}}${7*7}",
    "a&lt;b&#39;",
    "\u202egnp.exe",
    "]]><!--",
)


def colour_of(image_id):
    """The colour that a test image is filled with: far enough from others to be told apart after JPEG."""
    return tuple(int(32 * (byte // 32) + 16) for byte in hashlib.sha256(image_id.encode()).digest()[:3])


def hostile_store(folder, build_store, make_spec, make_table, n_images=60):
    """A store of one block, whose images lie in ``folder`` and of which two are damaged."""
    rng = np.random.default_rng(0)
    lesion = np.arange(n_images) // 2
    codes = rng.permutation(np.arange(len(lesion)) % 3)[lesion]
    X = rng.normal(size=(n_images, 8)).astype(np.float32) + 1.6 * np.eye(8, dtype=np.float32)[codes]
    ids = [f"{HOSTILE_NAMES[i % len(HOSTILE_NAMES)]} {i}" for i in range(n_images)]
    paths = []
    for number, image_id in enumerate(ids):
        paths.append(str(folder / f"{number}.png"))
        if number < 2:
            (folder / f"{number}.png").write_bytes(b"no image")
        else:
            Image.new("RGB", (90, 60), colour_of(image_id)).save(paths[-1])
    table = make_table(
        n_images,
        image_id=ids,
        label=[HOSTILE_LABELS[k] for k in codes],
        group=[f"lesion {k}" for k in lesion],
    ).assign(path=paths)
    return build_store(folder / "features.h5", table, [(make_spec("Net<b>A</b>"), X)])


def hostile_result(store, **options):
    return deepfeat.fit_svm(store, test=None, cv=3, param_grid={"C": [0.001, 0.01]}, calibrate=True, **options)
