"""The main job on real dermoscopic images, with really pretrained networks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deepfeat
from deepfeat.resizing import resize_image

SHARED = Path(os.environ.get("DEEPFEAT_DATA") or Path(__file__).parents[2] / "shared")
IMAGES = SHARED / "data" / "ham10000" / "images"
LABELS = SHARED / "data" / "ham10000" / "labels_mini.csv"
WEIGHTS = SHARED / "weights" / "mobilenet_v2_notop.weights.h5"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(
        not (LABELS.exists() and WEIGHTS.exists()),
        reason=f"NO REAL DATA: {LABELS} or {WEIGHTS} is missing; set DEEPFEAT_DATA, see CONTRIBUTING.md",
    ),
]


@pytest.fixture(scope="module")
def table():
    with pytest.warns(deepfeat.DataWarning, match=r"9095 image\(s\) .* without a row left out"):
        return deepfeat.read_csv(LABELS, IMAGES, group="lesion_id")


@pytest.fixture(scope="module")
def store(table, tmp_path_factory):
    backbones = ["EfficientNetLite0", deepfeat.Backbone("MobileNetV2", weights=WEIGHTS)]
    return deepfeat.extract(table, backbones, tmp_path_factory.mktemp("ham") / "features.h5", progress=False)


def test_every_image_has_features_of_both_networks(store):
    assert store.blocks["name"].tolist() == ["EfficientNetLite0", "MobileNetV2"]
    assert store.blocks["done"].tolist() == [920, 920]
    assert (store.table["label"].value_counts() == 115).all()


@pytest.mark.parametrize("name", ["EfficientNetLite0", "MobileNetV2"])
def test_features_agree_with_the_keras_model_on_the_decoded_array(store, table, name):
    backbone = deepfeat.Backbone(name, weights="imagenet" if name == "EfficientNetLite0" else WEIGHTS)
    rows = table.iloc[::60]
    x = np.stack([resize_image(Image.open(p).convert("RGB"), (224, 224), "squash") for p in rows["path"]]).astype(
        "float32"
    )
    preprocess = backbone.network.preprocess
    x = (x - np.float32(preprocess.mean)) / np.float32(preprocess.std)
    expected = np.asarray(backbone.build()(x, training=False)).mean(axis=(1, 2))
    found = store.features(name, rows["image_id"])
    assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-4


def test_second_run_leaves_the_file_as_it_is(store, table):
    before = store.path.read_bytes()
    deepfeat.extract(table, "EfficientNetLite0", store.path)
    assert store.path.read_bytes() == before


def test_fit_is_far_above_chance_and_lesions_stay_together(store):
    result = deepfeat.fit_svm(store, param_grid={"C": [1e-4]}, n_jobs=2)
    # Chance is 1/8; one standard deviation of 920 such draws is 0.016.
    assert result.metrics.value["balanced_accuracy"] > 0.48
    groups = store.table.set_index("image_id")["group"]
    assert result.predictions["fold"].groupby(groups[result.predictions.index].to_numpy()).nunique().max() == 1


def test_melanoma_against_the_rest_ranks_well(store):
    result = deepfeat.fit_svm(store, positive="MEL", param_grid={"C": [1e-4]})
    assert result.metrics.value["auroc"] > 0.78
