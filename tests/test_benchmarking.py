from __future__ import annotations

import json
import math

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import deepfeat
from deepfeat.backbones import registry
from deepfeat.benchmarking import count_macs, measure_peak
from deepfeat.cli import main
from deepfeat.errors import DataError, UsageError
from deepfeat.plots import plot_benchmark


def tiny(input_shape):
    inputs = keras.Input(input_shape)
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", use_bias=True)(inputs)
    x = keras.layers.DepthwiseConv2D(3, padding="same")(x)
    return keras.Model(inputs, x, name="tiny")


@pytest.fixture(scope="module", autouse=True)
def network():
    registry.find_network("EfficientNetLite0")
    deepfeat.register_backbone("BenchTiny", tiny, input_size=16, preprocess="tf")
    yield
    del registry._REGISTRY["BenchTiny"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Forty pictures: dark ones are of class a, bright ones of class b, and two of c."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(40):
        label = "c" if number < 2 else "ab"[number % 2]
        (folder / label).mkdir(exist_ok=True)
        level = {"a": 0, "b": 120, "c": 60}[label]
        picture = generator.integers(level, level + 100, (20, 24, 3), np.uint8)
        Image.fromarray(picture).save(folder / label / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def measured(photos, network):
    return deepfeat.benchmark(photos, [deepfeat.Backbone("BenchTiny", weights=None)])


def test_sizes_are_exact(measured):
    row = measured.loc["BenchTiny"]
    assert row["parameters"] == (3 * 9 * 4 + 4) + (4 * 9 + 4)
    assert row["macs"] == 8 * 8 * (3 * 9 * 4 + 4 * 9)
    assert row["dim"] == 4
    assert row["bytes_per_image"] == 4 * 4 + 137


def test_speeds_are_numbers_that_fit_together(measured):
    row = measured.loc["BenchTiny"]
    assert (row[["decode", "network", "both", "peak_fraction"]] > 0).all()
    assert row["both"] < row["decode"]
    assert row["peak_memory"] >= 0 or math.isnan(row["peak_memory"])


def test_score_has_its_interval_and_small_classes_stay_out(measured):
    row = measured.loc["BenchTiny"]
    assert 0 <= row["low"] <= row["score"] <= row["high"] <= 1
    assert row["score"] > 0.9


def test_images_without_labels_have_no_score(photos):
    paths = sorted((photos / "a").iterdir())
    row = deepfeat.benchmark(paths, deepfeat.Backbone("BenchTiny", weights=None), n_images=5).loc["BenchTiny"]
    assert row[["score", "low", "high"]].isna().all()


@pytest.mark.parametrize(("name", "giga"), [("VGG16", 15.3), ("ResNet50", 3.86), ("MobileNetV2", 0.30)])
def test_macs_of_known_networks(name, giga):
    """As published, without the classifier: VGG and ResNet papers; MobileNetV2, table 4."""
    model = deepfeat.Backbone(name, weights=None).build()
    assert count_macs(model) == pytest.approx(giga * 1e9, rel=0.03)


def test_macs_of_a_network_within_a_network():
    import keras

    inner = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 1, use_bias=False)])
    outer = keras.Sequential([keras.Input((8, 8, 3)), inner, keras.layers.Conv2D(2, 1, use_bias=False)])
    assert count_macs(outer) == 64 * (3 * 4 + 4 * 2)


def test_peak_is_plausible():
    assert 1e8 < measure_peak() < 1e15


@pytest.mark.parametrize("n_images", [0, True, "many"])
def test_wrong_number_of_images(photos, n_images):
    with pytest.raises(UsageError, match=r"n_images is .*: use a number of images"):
        deepfeat.benchmark(photos, "BenchTiny", n_images=n_images)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5])
def test_wrong_seed(photos, seed):
    with pytest.raises(UsageError, match=r"seed is .*: use a whole number from 0 to 4294967295"):
        deepfeat.benchmark(photos, "BenchTiny", n_images=1, seed=seed)


def test_images_that_cannot_be_read_do_not_count(photos, tmp_path, caplog):
    few = tmp_path / "few"
    few.mkdir()
    for file in sorted(photos.rglob("*.png"))[:6]:
        (few / file.name).write_bytes(file.read_bytes())
    (few / "broken.png").write_bytes(b"no image")
    table = deepfeat.benchmark(few, deepfeat.Backbone("BenchTiny", weights=None))
    assert (table["both"] > 0).all()
    assert "1 of 7 images drawn cannot be read and do not count (first: broken.png: not an image" in caplog.text


def test_no_image_that_can_be_read_is_an_error(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^none of the 1 images drawn can be read .first: broken.png: not an im"):
        deepfeat.benchmark(tmp_path, deepfeat.Backbone("BenchTiny", weights=None))


def test_command_prints_a_table_or_json_and_draws(photos, tmp_path, capsys):
    command = ["bench", str(photos), "--backbone", "BenchTiny=random", "--n-images", "30"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "BenchTiny" in said
    assert "/s" in said
    plot = tmp_path / "bench.png"
    assert main([*command, "--json", "--plot", str(plot)]) == 0
    assert json.loads(capsys.readouterr().out)["BenchTiny"]["dim"] == 4
    assert Image.open(plot).size == (1050, 675)


def test_nothing_to_draw_is_one_sentence(tmp_path):
    table = pd.DataFrame({"score": [float("nan")]})
    with pytest.raises(UsageError, match="there are no scores to draw"):
        plot_benchmark(table, tmp_path / "bench.png")
