from __future__ import annotations

from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_network import small_cnn

import deepfeat
from deepfeat.errors import ImageError, UsageError
from deepfeat.plots import draw_activation_maps, draw_feature_maps, plot_history


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    return path


def read(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_feature_maps_are_the_outputs_of_the_layers(photo):
    backbone = small_cnn(layer=["first", "second"])
    maps = deepfeat.feature_maps(photo, backbone)
    assert {name: values.shape for name, values in maps.items()} == {"first": (7, 7, 8), "second": (5, 5, 12)}
    model = backbone.build()
    x = np.asarray(Image.open(photo), np.float32)[np.newaxis] / 127.5 - 1
    np.testing.assert_allclose(maps["first"], np.asarray(model.get_layer("first")(x))[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(maps["second"], np.asarray(model(x))[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("DeepCNN", ["conv1_2_relu", "conv2_2_relu", "conv3_2_relu", "conv4_2_relu", "pool4"]),
        ("AlexNet", ["norm1_b", "norm2_b", "conv5_b", "towers5"]),
    ],
)
def test_layers_shown_are_the_last_of_each_size(photo, name, layers):
    backbone = deepfeat.Backbone(name, weights=None, input_size=96)
    assert list(deepfeat.feature_maps(photo, backbone)) == layers


def test_networks_inside_are_not_shown(photo, tmp_path):
    inner = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(4, 3)], name="inner")
    last = keras.layers.Conv2D(2, 3, name="last")
    keras.Sequential([keras.Input((16, 16, 3)), inner, last]).save(tmp_path / "mine.keras")
    assert list(deepfeat.feature_maps(photo, deepfeat.load_backbone(tmp_path / "mine.keras", preprocess="tf"))) == [
        "last"
    ]


def test_network_without_maps_is_refused(photo, tmp_path):
    keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Flatten()]).save(tmp_path / "mine.keras")
    with pytest.raises(UsageError, match="no layer of mine gives maps: choose another network"):
        deepfeat.feature_maps(photo, deepfeat.load_backbone(tmp_path / "mine.keras", preprocess="tf"))


def test_layer_without_maps_is_refused(photo):
    with pytest.raises(UsageError, match=r"layer 'fc6' of AlexNet gives \(4096,\), which is no map"):
        deepfeat.feature_maps(photo, deepfeat.Backbone("AlexNet", weights=None, input_size=67, layer="fc6"))


def test_image_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"nothing\.png: file not found"):
        deepfeat.feature_maps(tmp_path / "nothing.png", small_cnn())


def test_both_pictures_of_two_networks_are_written(photo, tmp_path):
    other = deepfeat.Backbone("DeepCNN", weights=None, input_size=32)
    deepfeat.plot_feature_maps(photo, [small_cnn(), other], tmp_path / "maps.png", channels=3)
    deepfeat.plot_activation_maps(photo, [small_cnn(), other], tmp_path / "activations.png")
    assert min(read(tmp_path / "maps.png").shape[:2]) > 500
    assert min(read(tmp_path / "activations.png").shape[:2]) > 300


def test_networks_of_one_name_are_all_shown(photo, tmp_path, monkeypatch):
    shown = {}
    for kind in ("feature", "activation"):
        monkeypatch.setattr(f"deepfeat.activations.draw_{kind}_maps", lambda pictures, maps, *_: shown.update(maps))
        same = [small_cnn(layer="first"), small_cnn(layer="second"), small_cnn(layer=["first", "second"])]
        getattr(deepfeat, f"plot_{kind}_maps")(photo, same, tmp_path / "maps.png")
        found = {name: list(layers) for name, layers in shown.items()}
        names = ["SmallCNN", "SmallCNN (2)", "SmallCNN (3)"]
        assert found == dict(zip(names, (["first"], ["second"], ["first", "second"]), strict=True))
        shown.clear()


@pytest.mark.parametrize("channels", [0, -1, 1.5, "4"])
def test_number_of_channels_that_cannot_be_drawn_is_refused(photo, tmp_path, channels):
    with pytest.raises(UsageError, match=f"^channels is {channels!r}: use a whole number of at least 1$"):
        deepfeat.plot_feature_maps(photo, small_cnn(), tmp_path / "maps.png", channels=channels)


def bright_in(quarter, size=8):
    values = np.zeros((size, size, 2), np.float32)
    rows, columns = (slice(0, 4), slice(4, 8))[quarter // 2], (slice(0, 4), slice(4, 8))[quarter % 2]
    values[rows, columns, 0] = 1
    return values


@pytest.mark.parametrize("quarter", range(4))
def test_activation_map_is_bright_where_the_layer_is_active(tmp_path, quarter):
    pictures = {"net": np.zeros((40, 40, 3), np.uint8)}
    draw_activation_maps(pictures, {"net": {"layer": bright_in(quarter)}}, tmp_path / "a.png")
    image = read(tmp_path / "a.png")
    # The right half of the figure is the map: on a black picture, only what is active is bright and coloured.
    right = image[:, image.shape[1] // 2 :]
    yellow = (right[..., 0] > 120) & (right[..., 2] < 150)
    rows, columns = np.nonzero(yellow)
    dark = np.argwhere(right.sum(axis=-1) < 200)
    middle = (dark.min(axis=0) + dark.max(axis=0)) / 2 if quarter in (0, 3) else np.array(right.shape[:2]) / 2
    assert len(rows) > 100
    assert (rows.mean() > middle[0]) == (quarter >= 2)
    assert (columns.mean() > middle[1]) == (quarter % 2 == 1)


def test_most_varied_channel_comes_first(tmp_path):
    pictures = {"net": np.zeros((8, 8, 3), np.uint8)}
    maps = [np.stack([np.zeros((8, 8)), np.eye(8)], axis=-1), np.stack([np.eye(8), np.zeros((8, 8))], axis=-1)]
    for number, values in enumerate(maps):
        draw_feature_maps(pictures, {"net": {"layer": values.astype("f4")}}, tmp_path / f"{number}.png", 1)
    np.testing.assert_array_equal(read(tmp_path / "0.png"), read(tmp_path / "1.png"))


def history(n_head, losses):
    phase = ["head"] * n_head + ["finetune"] * (len(losses) - n_head)
    columns = {"loss": losses, "val_loss": losses, "accuracy": 0.5, "val_balanced_accuracy": 0.5}
    return pd.DataFrame({"epoch": range(1, len(losses) + 1), "phase": phase, **columns})


def test_history_is_drawn_with_its_two_panels(tmp_path):
    backbones = [
        SimpleNamespace(name="one", history=history(1, [3.0, 2.0, 2.5])),
        SimpleNamespace(name="two", history=history(0, [3.0])),
    ]
    plot_history(backbones, tmp_path / "h.png")
    plot_history(backbones[0], tmp_path / "h.svg")
    assert Image.open(tmp_path / "h.png").size == (1500, 630)
    assert "<svg" in (tmp_path / "h.svg").read_text()


@pytest.mark.parametrize("backbones", [[], small_cnn()])
def test_history_of_a_network_without_any_is_refused(tmp_path, backbones):
    with pytest.raises(UsageError, match="there is no history to draw of"):
        plot_history(backbones, tmp_path / "h.png")
