"""What find_duplicates finds: images of one lesion, strangers, and copies of images that were changed a little.

    python benchmarks/duplicates.py STORE IMAGES --backbone MobileNetV2=WEIGHTS --table docs/results/duplicates.md

STORE is a feature store with lesions as groups, and IMAGES the folder of its images.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance

import deepfeat

THRESHOLDS = (0.98, 0.95, 0.9, 0.85, 0.8)


def crop(image: Image.Image, share: float) -> Image.Image:
    dx, dy = (int(side * (1 - share) / 2) for side in image.size)
    return image.crop((dx, dy, image.width - dx, image.height - dy))


#: How a copy differs, and the JPEG quality with which it is stored.
CHANGES: dict[str, tuple[Callable[[Image.Image], Image.Image], int]] = {
    "stored again, quality 75": (lambda image: image, 75),
    "half the size": (lambda image: image.resize((image.width // 2, image.height // 2)), 95),
    "10 % brighter": (lambda image: ImageEnhance.Brightness(image).enhance(1.1), 95),
    "5 % of each side cut off": (lambda image: crop(image, 0.9), 95),
    "10 % of each side cut off": (lambda image: crop(image, 0.8), 95),
    "mirrored": (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 95),
    "turned by 180 degrees": (lambda image: image.transpose(Image.Transpose.ROTATE_180), 95),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("images", type=Path)
    parser.add_argument("--backbone", action="append", metavar="NAME[=WEIGHTS]", required=True)
    parser.add_argument("--copies", type=int, default=300, help="images to copy with each change")
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    text = report(arguments)
    print(text)
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")


def report(arguments: argparse.Namespace) -> str:
    store = deepfeat.open_features(arguments.store)
    names = [text.partition("=")[0] for text in arguments.backbone]
    started = time.perf_counter()
    pairs = deepfeat.find_duplicates(store, names, threshold=min(THRESHOLDS))
    seconds = time.perf_counter() - started
    sizes = store.table["group"].value_counts()
    together = int((sizes * (sizes - 1) // 2).sum())
    with tempfile.TemporaryDirectory() as folder:
        found = recalls(arguments, Path(folder))
    return TEXT.format(
        command=f"python benchmarks/duplicates.py STORE IMAGES {' '.join(f'--backbone {n}' for n in names)}",
        blocks=" and ".join(names),
        n=store.n_images,
        seconds=seconds,
        together=together,
        strangers=markdown(count(pairs)),
        copies=arguments.copies,
        changed=markdown(found),
    )


def count(pairs: pd.DataFrame) -> pd.DataFrame:
    rows = {}
    for threshold in THRESHOLDS:
        near = pairs[pairs["similarity"] >= threshold]
        other = near[~near["same_group"]]
        differ = (other["label_a"] != other["label_b"]).sum()
        rows[f"{threshold:g}"] = {"pairs": len(near), "of one lesion": near["same_group"].sum()} | {
            "of two lesions": len(other),
            "of two classes": differ,
        }
    return pd.DataFrame(rows).T.rename_axis("threshold")


def recalls(arguments: argparse.Namespace, folder: Path) -> pd.DataFrame:
    """Share of changed copies that are paired with their original."""
    files = sorted(arguments.images.glob("*.jpg"))
    chosen = np.random.default_rng(0).choice(len(files), arguments.copies, replace=False)
    for number in chosen:
        with Image.open(files[number]) as image:
            image = image.convert("RGB")
            image.save(folder / f"{number}_original.png")
            for at, (change, quality) in enumerate(CHANGES.values()):
                change(image).save(folder / f"{number}_{at}.jpg", quality=quality)
    table = pd.DataFrame({"path": sorted(map(str, folder.iterdir()))})
    table["image_id"] = [Path(path).name for path in table["path"]]
    table[["label", "group", "split"]] = None
    store = deepfeat.extract(table, [backbone(text) for text in arguments.backbone], folder / "s.h5", progress=False)
    pairs = deepfeat.find_duplicates(store, threshold=min(THRESHOLDS))
    known = {frozenset(row[:2]): row[2] for row in pairs[["image_a", "image_b", "similarity"]].itertuples(index=False)}
    rows = {}
    for at, change in enumerate(CHANGES):
        ids = [frozenset((f"{number}_original.png", f"{number}_{at}.jpg")) for number in chosen]
        similarity = np.array([known.get(pair, 0) for pair in ids])
        rows[change] = {f"{t:g}": f"{(similarity >= t).mean():.1%}" for t in THRESHOLDS}
    return pd.DataFrame(rows).T.rename_axis("copy")


def backbone(text: str) -> deepfeat.Backbone:
    name, _, weights = text.partition("=")
    return deepfeat.Backbone(name, weights=weights or "imagenet")


def markdown(table: pd.DataFrame) -> str:
    lines = [[table.index.name, *table.columns], ["---"] * (1 + table.shape[1])]
    lines += [[name, *row] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


TEXT = """# Near duplicates in HAM10000

Made by `{command}`
(with a file of weights where a network needs one, and `--table docs/results/duplicates.md`). Similarity is the mean
cosine of {blocks}, each less its mean over all images.

## In the data set

{n} images, all pairs compared in {seconds:.1f} s. {together} pairs are of one lesion by the data set's own lesion ids;
most of them are separate photographs, which are no near duplicates.

{strangers}

## Changed copies

{copies} images drawn at random, each with a copy of each kind, in one store: the share of copies that are paired with
their original.

{changed}
"""


if __name__ == "__main__":
    main()
