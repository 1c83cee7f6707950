"""AlexNet and the deep CNNs: their parameters one by one, and what their layers compute."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import deepfeat
from deepfeat.backbones.response_normalisation import LocalResponseNormalization
from deepfeat.errors import BackboneError
from deepfeat.runtimes.keras import KerasRuntime


def convolution(edge, channels, filters, bias=True):
    return edge * edge * channels * filters + (filters if bias else 0)


def dense(inputs, outputs):
    return inputs * outputs + outputs


#: Krizhevsky et al. 2012, figure 2: filters of one tower times two; conv3 alone sees both towers.
ALEXNET = {
    "conv1": 2 * convolution(11, 3, 48),
    "conv2": 2 * convolution(5, 48, 128),
    "conv3": 2 * convolution(3, 256, 192),
    "conv4": 2 * convolution(3, 192, 192),
    "conv5": 2 * convolution(3, 192, 128),
    "fc6": dense(6 * 6 * 256, 4096),
    "fc7": dense(4096, 4096),
}
#: Krizhevsky 2014, in the widths of torchvision.
ONE_TOWER = {
    "conv1": convolution(11, 3, 64),
    "conv2": convolution(5, 64, 192),
    "conv3": convolution(3, 192, 384),
    "conv4": convolution(3, 384, 256),
    "conv5": convolution(3, 256, 256),
    "fc6": dense(6 * 6 * 256, 4096),
    "fc7": dense(4096, 4096),
}


def counts(model, names):
    return {
        name: sum(layer.count_params() for layer in model.layers if layer.name in (name, f"{name}_a", f"{name}_b"))
        for name in names
    }


@pytest.mark.parametrize(
    ("name", "layers", "published"),
    [("AlexNet", ALEXNET, 60_965_224), ("AlexNetOneTower", ONE_TOWER, 61_100_840)],
)
def test_alexnet_has_the_published_parameters_layer_by_layer(name, layers, published):
    model = deepfeat.Backbone(name, weights=None).build()
    assert counts(model, layers) == layers
    assert model.count_params() == sum(layers.values())
    assert model.count_params() + dense(4096, 1000) == published


def test_alexnet_has_the_published_shapes():
    model = deepfeat.Backbone("AlexNet", weights=None).build()
    shapes = {layer.name: layer.output.shape[1:] for layer in model.layers}
    for tower in "ab":
        assert shapes[f"conv1_{tower}"] == (55, 55, 48)
        assert shapes[f"conv2_{tower}"] == (27, 27, 128)
        assert shapes[f"conv3_{tower}"] == shapes[f"conv4_{tower}"] == (13, 13, 192)
        assert shapes[f"conv5_{tower}"] == (13, 13, 128)
    assert shapes["towers5"] == (6, 6, 256)
    assert shapes["fc6"] == shapes["fc7"] == (4096,)


def stages(first, later):
    """Parameters of four stages, each from channels to filters and from filters to filters, and of the dense layer."""
    channels, total = 3, 0
    for filters in (32, 64, 128, 256):
        total += first(channels, filters) + later(filters) + 2 * 4 * filters
        channels = filters
    return total + dense(256, 512)


#: Without biases; normalisation has four numbers for each filter.
DEEP = {
    "DeepCNN": stages(lambda c, f: convolution(3, c, f, False), lambda f: convolution(3, f, f, False)),
    "DeepCNNGrouped": stages(
        lambda c, f: convolution(3, c, f, False), lambda f: 4 * convolution(3, f // 4, f // 4, False)
    ),
    "DeepCNNMultiSize": stages(
        lambda c, f: sum(convolution(e, c, f // 4, False) for e in (1, 3, 5, 7)),
        lambda f: sum(convolution(e, f, f // 4, False) for e in (1, 3, 5, 7)),
    ),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_cnn_has_the_parameters_of_its_figure(name):
    model = deepfeat.Backbone(name, weights=None, input_size=32).build()
    assert model.count_params() == DEEP[name]
    assert model.output_shape == (None, 512)
    edges = [layer.output.shape[1] for layer in model.layers if isinstance(layer, keras.layers.MaxPooling2D)]
    assert edges == [16, 8, 4, 2]


def test_response_normalisation_is_the_published_formula():
    a = np.random.default_rng(0).normal(0, 40, (2, 3, 3, 7)).astype("float32")
    expected = np.empty_like(a)
    for i in range(7):
        near = a[..., max(0, i - 2) : i + 3]
        expected[..., i] = a[..., i] / (2 + 1e-4 * (near**2).sum(axis=-1)) ** 0.75
    np.testing.assert_allclose(LocalResponseNormalization()(a), expected, rtol=1e-5)


def test_response_normalisation_keeps_the_type_of_its_input():
    a = np.full((1, 1, 1, 5), 40.0, "float32")
    rounded = LocalResponseNormalization(dtype="bfloat16")(keras.ops.cast(a, "bfloat16"))
    assert keras.backend.standardize_dtype(rounded.dtype) == "bfloat16"
    np.testing.assert_allclose(np.asarray(keras.ops.cast(rounded, "float32")), LocalResponseNormalization()(a), 4e-3)


def test_towers_compute_what_a_grouped_convolution_does():
    model = deepfeat.Backbone("AlexNet", weights=None, input_size=67).build()
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 96)).astype("float32")
    weights = [model.get_layer(f"conv2_{t}").get_weights() for t in "ab"]
    grouped = keras.layers.Conv2D(256, 5, padding="same", groups=2, activation="relu")
    grouped.build(x.shape)
    grouped.set_weights([np.concatenate(parts, axis=-1) for parts in zip(*weights, strict=True)])
    towers = [model.get_layer(f"conv2_{t}")(part) for t, part in zip("ab", np.split(x, 2, axis=-1), strict=True)]
    np.testing.assert_allclose(grouped(x), np.concatenate(towers, axis=-1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["AlexNet", "AlexNetOneTower", *DEEP])
def test_imagenet_weights_of_a_network_without_any_are_an_error(name):
    with pytest.raises(BackboneError, match=rf"no published ImageNet weights of {name}: pass weights=None"):
        deepfeat.Backbone(name).build()
    assert not deepfeat.list_backbones().offline[name]


@pytest.mark.parametrize(("name", "least"), [("AlexNet", 67), ("AlexNetOneTower", 63), ("DeepCNN", 16)])
def test_smallest_input_builds_and_a_smaller_one_says_the_bound(name, least):
    assert deepfeat.Backbone(name, weights=None, input_size=least).build().count_params() > 0
    with pytest.raises(BackboneError, match=f"at least {least} x {least} pixels"):
        deepfeat.Backbone(name, weights=None, input_size=least - 1).build()


def test_dense_layers_and_towers_are_features(tmp_path):
    backbone = deepfeat.Backbone("AlexNet", weights=None, input_size=67, layer=["conv5_a", "fc6", "fc7"])
    images = np.random.default_rng(0).integers(0, 256, (3, 67, 67, 3), np.uint8)
    conv5, fc6, fc7 = KerasRuntime(backbone, backbone.build(), 2)(images)
    assert (conv5.shape, fc6.shape, fc7.shape) == ((3, 128), (3, 4096), (3, 4096))
    assert fc7.std(axis=0).max() > 0


def test_alexnet_saved_as_a_file_is_a_backbone_with_the_same_features(tmp_path):
    backbone = deepfeat.Backbone("AlexNet", weights=None, input_size=67)
    model = backbone.build()
    model.save(tmp_path / "mine.keras")
    loaded = deepfeat.load_backbone(tmp_path / "mine.keras", preprocess="torch")
    images = np.random.default_rng(0).integers(0, 256, (2, 67, 67, 3), np.uint8)
    expected = KerasRuntime(backbone, model, 2)(images)[0]
    np.testing.assert_allclose(KerasRuntime(loaded, loaded.build(), 2)(images)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["AlexNet", "DeepCNNGrouped", "DeepCNNMultiSize"])
def test_openvino_computes_the_same(name):
    pytest.importorskip("openvino")
    from deepfeat.runtimes import openvino

    backbone = deepfeat.Backbone(name, weights=None, input_size=67)
    # The conversion itself compares both runtimes and raises where they differ.
    assert openvino.open_runtime(backbone, "random:0", backbone.build, "float32").shapes[0][0] in (4096, 512)
