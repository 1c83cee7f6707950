"""The folder in which examples of docstrings run, and a home of the tests' own for converted networks.

Each example runs in an empty folder of its own, in which it finds those of the files in `MAKERS` that it names.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import deepfeat

#: Classes of the pictures, the colour of their spots, and how many there are of each.
CLASSES = {"MEL": (70, 40, 40), "NV": (150, 100, 70)}
PICTURES = 12
EDGE = 32


@pytest.fixture(scope="session", autouse=True)
def conversions(tmp_path_factory):
    """A folder of the tests' own for converted networks."""
    folder = tmp_path_factory.mktemp("conversions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPFEAT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    """The folder in which the files for examples are made once."""
    return tmp_path_factory.mktemp("scene")


@pytest.fixture(scope="session")
def example_file(scene):
    """Make one of `MAKERS`, which is not to be changed."""
    return lambda name: make(scene, name)


@pytest.fixture(autouse=True)
def example_folder(request, tmp_path, monkeypatch):
    """Run an example of a docstring where the files are that it names."""
    if not isinstance(request.node, pytest.DoctestItem):
        return
    monkeypatch.chdir(tmp_path)
    if "benchmark(" in request.node.dtest.docstring:
        monkeypatch.setattr("deepfeat.benchmarking._SECONDS", 0.05)
    for name in MAKERS:
        if name in request.node.dtest.docstring:
            made = request.getfixturevalue("example_file")(name)
            (shutil.copytree if made.is_dir() else shutil.copy)(made, tmp_path / name)


def make(folder: Path, name: str) -> Path:
    """Make a file for examples, if it is not there yet."""
    path = folder / name
    if not path.exists():
        MAKERS[name](path)
    return path


def draw_photos(folder: Path) -> None:
    """Spots on skin, one sub-folder per class."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:EDGE, :EDGE]
    for label, colour in CLASSES.items():
        (folder / label).mkdir(parents=True)
        for number in range(1, PICTURES + 1):
            centre, radius = rng.uniform(12, 20, 2), rng.uniform(5, 10)
            inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
            pixels = np.where(inside[..., np.newaxis], colour, (225, 190, 170)) + rng.normal(0, 12, (EDGE, EDGE, 3))
            picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            picture.save(folder / label / f"{label.lower()}{number:02d}.png")


def _photos(folder: Path) -> pd.DataFrame:
    return deepfeat.read_folder(make(folder, "photos"))


def write_labels(path: Path) -> None:
    """Names, classes and patients, two pictures of each."""
    table = _photos(path.parent)
    names = [Path(name).stem for name in table["image_id"]]
    patients = [f"p{number // 2:02d}" for number in range(len(table))]
    pd.DataFrame({"image": names, "label": table["label"], "patient": patients}).to_csv(path, index=False)


def write_truth(path: Path) -> None:
    """Classes in the way of the ISIC challenges."""
    labels = pd.read_csv(make(path.parent, "labels.csv"))
    one_hot = {label: (labels["label"] == label).astype(float) for label in CLASSES}
    pd.DataFrame({"image": labels["image"], **one_hot}).to_csv(path, index=False)


def write_metadata(path: Path) -> None:
    """Lesions in the way of the ISIC challenges."""
    labels = pd.read_csv(make(path.parent, "labels.csv"))
    labels[["image", "patient"]].set_axis(["image", "lesion_id"], axis=1).to_csv(path, index=False)


def extract_features(path: Path) -> None:
    """Features of a network, and mean and deviation of the colours."""
    make(path.parent, "labels.csv")
    table = deepfeat.read_csv(path.parent / "labels.csv", path.parent / "photos", group="patient")
    deepfeat.extract(table, "EfficientNetLite0", path, progress=False)
    pixels = np.stack([np.asarray(Image.open(name), np.float32) for name in table["path"]])
    colours = np.concatenate([pixels.mean(axis=(1, 2)), pixels.std(axis=(1, 2))], axis=1)
    deepfeat.import_features(colours, table, path, name="colour")


def save_classifier(path: Path) -> None:
    """A classifier on the features of the network."""
    store = make(path.parent, "skin.h5")
    result = deepfeat.fit_svm(store, backbones="EfficientNetLite0", param_grid={"C": [0.001]}, cv=3, ledger=False)
    result.save(path)


def save_network(path: Path) -> None:
    """A small network of one's own."""
    from deepfeat.runtimes.keras import keras

    keras.utils.set_random_seed(0)
    # Named, since Keras counts the layers of the whole process in its own names.
    convolutions = [
        keras.layers.Conv2D(width, 3, strides=2, activation="relu", name=f"conv{number}")
        for number, width in enumerate((8, 16), 1)
    ]
    keras.Sequential([keras.Input((EDGE, EDGE, 3)), *convolutions]).save(path)


#: What makes each file that examples may name.
MAKERS: dict[str, Callable[[Path], None]] = {
    "photos": draw_photos,
    "labels.csv": write_labels,
    "truth.csv": write_truth,
    "metadata.csv": write_metadata,
    "mine.keras": save_network,
    "skin.h5": extract_features,
    "skin.deepfeat": save_classifier,
}
