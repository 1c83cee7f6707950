from __future__ import annotations

import keras
import numpy as np
import pytest
from scipy.signal import correlate

import deepfeat
from deepfeat.backbones.network import Network, Preprocessing
from deepfeat.runtimes import openvino as openvino_runtime
from deepfeat.runtimes import winograd
from deepfeat.runtimes.keras import KerasRuntime

ov = pytest.importorskip("openvino", reason="the extra openvino is not installed: Winograd's algorithm NOT tested")
ops = pytest.importorskip("openvino.opset8")

needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason=f"OpenVINO cannot convert from {keras.backend.backend()}"
)

#: Largest error, relative to the largest value: half of what networks may differ by from Keras (test_runtimes.py).
TOLERANCE = 1e-5

SAME, VALID = ((1, 1), (1, 1)), ((0, 0), (0, 0))


def filters_of(n_out, n_in, side=3):
    return np.random.default_rng(1).standard_normal((n_out, n_in, side, side), np.float32)


def images_of(n, channels, height, width):
    return np.random.default_rng(2).random((n, channels, height, width), np.float32)


def network_of(filters, height, width, pads=SAME, strides=(1, 1), dilations=(1, 1)):
    """A convolution whose result leaves the network both as it is and after its activation."""
    given = ops.parameter([-1, filters.shape[1], height, width], np.float32)
    result = ops.convolution(given, ops.constant(filters), strides, *pads, dilations)
    result.output(0).set_names({"maps"})
    return ov.Model([result, ops.relu(result)], [given], "one convolution")


def run(network, images):
    compiled = ov.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = compiled(images)
    return outputs[0], outputs[1]


def convolve(images, filters, pads):
    """By the definition, in float64."""
    padded = np.pad(images.astype(np.float64), ((0, 0), (0, 0), *zip(*pads, strict=True)))
    return np.array([[correlate(image, f, "valid")[0] for f in filters.astype(np.float64)] for image in padded])


@pytest.fixture
def every_size(monkeypatch):
    monkeypatch.setattr(winograd, "CHANNELS", 0)
    monkeypatch.setattr(winograd, "SIDE", 1)


@pytest.mark.usefixtures("every_size")
@pytest.mark.parametrize("pads", [SAME, VALID, ((0, 1), (2, 0)), ((2, 2), (2, 2))])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (12, 16), (7, 9), (14, 13), (4, 3), (3, 35)])
@pytest.mark.parametrize("n", [1, 3])
def test_convolution_is_that_of_the_definition(n, height, width, pads):
    filters, images = filters_of(7, 5), images_of(n, 5, height, width)
    network = network_of(filters, height, width, pads)
    assert winograd.rewrite_convolutions(network) == 1
    assert "Convolution" not in {node.get_type_name() for node in network.get_ops()}
    maps, activated = run(network, images)
    expected = convolve(images, filters, pads)
    assert maps.shape == expected.shape
    assert np.abs(maps - expected).max() < TOLERANCE * np.abs(expected).max()
    np.testing.assert_array_equal(activated, np.maximum(maps, 0))
    assert network.output(0).get_names() == {"maps"}


@pytest.mark.usefixtures("every_size")
def test_convolutions_in_a_row():
    given = ops.parameter([-1, 4, 10, 10], np.float32)
    first, second = filters_of(6, 4), filters_of(3, 6)
    inner = ops.convolution(given, ops.constant(first), [1, 1], *SAME, [1, 1])
    outer = ops.convolution(inner, ops.constant(second), [1, 1], *VALID, [1, 1])
    network = ov.Model([outer, ops.relu(inner)], [given], "two convolutions")
    assert winograd.rewrite_convolutions(network) == 2
    images = images_of(2, 4, 10, 10)
    maps, activated = run(network, images)
    middle = convolve(images, first, SAME)
    expected = convolve(middle, second, VALID)
    assert np.abs(maps - expected).max() < TOLERANCE * np.abs(expected).max()
    assert np.abs(activated - np.maximum(middle, 0)).max() < TOLERANCE * middle.max()


def test_large_values_lose_no_digits():
    """Pixels of 0 to 255 with an offset, as of a network without preprocessing."""
    filters, images = filters_of(128, 128), 255 * images_of(1, 128, 16, 16)
    network = network_of(filters, 16, 16)
    assert winograd.rewrite_convolutions(network) == 1
    expected = convolve(images, filters[:4], SAME)
    assert np.abs(run(network, images)[0][:, :4] - expected).max() < TOLERANCE * np.abs(expected).max()


def test_features_of_an_image_do_not_depend_on_the_others():
    network = network_of(filters_of(128, 128), 28, 28)
    assert winograd.rewrite_convolutions(network) == 1
    images = images_of(5, 128, 28, 28)
    whole = run(network, images)[0]
    parts = np.concatenate([run(network, images[:1])[0], run(network, images[1:])[0]])
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize(
    ("sizes", "options", "side"),
    [
        ((128, 128, 5), {"pads": ((2, 2), (2, 2))}, 28),
        ((128, 128, 1), {"pads": VALID}, 28),
        ((128, 128, 3), {"strides": (2, 2)}, 28),
        ((128, 128, 3), {"dilations": (2, 2)}, 28),
        ((64, 64, 3), {}, 28),  # too few channels
        ((512, 3, 3), {}, 28),
        ((128, 128, 3), {}, 13),  # too small a map
        ((128, 128, 3), {"pads": VALID}, 15),
    ],
)
def test_other_convolutions_stay(sizes, options, side):
    network = network_of(filters_of(*sizes), side, side, **options)
    assert winograd.rewrite_convolutions(network) == 0
    assert "Convolution" in {node.get_type_name() for node in network.get_ops()}


def test_convolutions_of_a_kind_that_is_not_known_stay():
    images = ops.parameter([-1, 128, 28, 28], np.float32)
    filters = ops.parameter([128, 128, 3, 3], np.float32)
    open_filters = ops.convolution(images, filters, [1, 1], *SAME, [1, 1])
    open_size = ops.parameter([-1, 128, -1, -1], np.float32)
    of_any = ops.convolution(open_size, ops.constant(filters_of(128, 128)), [1, 1], *SAME, [1, 1])
    network = ov.Model([open_filters, of_any], [images, filters, open_size], "open")
    assert winograd.rewrite_convolutions(network) == 0


def test_filters_are_transformed_on_both_sides():
    filters = filters_of(3, 2)
    g = np.array([[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6]])
    g = np.concatenate([g, [[1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]])
    expected = np.einsum("ij,abjk,lk->ilab", g, filters.astype(np.float64), g).reshape(36, 3, 2)
    found = winograd.transform_filters(filters)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------------------------------------- Under extraction


def wide(input_shape):
    inputs = keras.Input(input_shape)
    maps = keras.layers.Conv2D(128, 3, activation="relu", padding="same", name="narrow")(inputs)
    maps = keras.layers.Conv2D(128, 3, padding="same", name="wide")(maps)
    maps = keras.layers.BatchNormalization()(maps)
    return keras.Model(inputs, keras.layers.ReLU(name="last")(maps))


def backbone_of(*layers):
    network = Network(
        "Wide", wide, (16, 16), Preprocessing(), pretrained=wide, weights_file=lambda shape: None, offline=lambda: True
    )
    return deepfeat.Backbone("Wide", weights=None, network=network, layer=list(layers))


@pytest.fixture
def replaced(monkeypatch):
    """Number of convolutions replaced in each network that is opened, as on an x86."""
    counts = []
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(
        openvino_runtime, "rewrite_convolutions", lambda network: counts.append(winograd.rewrite_convolutions(network))
    )
    return counts


@needs_tensorflow
def test_a_keras_network_computes_the_same(replaced):
    backbone = backbone_of("wide", "last")
    runtime = openvino_runtime.open_runtime(backbone, backbone.weights_digest(), backbone.build, "float32")
    assert replaced == [1]
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    for ours, theirs in zip(runtime(images), KerasRuntime(backbone, backbone.build(), 4)(images), strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < TOLERANCE * np.abs(theirs).max()


@needs_tensorflow
def test_bfloat16_and_other_processors_keep_their_convolutions(replaced, monkeypatch):
    backbone = backbone_of("last")
    converted, _ = openvino_runtime._convert(backbone, backbone.build())
    replaced.clear()
    openvino_runtime.OpenVinoRuntime(*converted, precision="bfloat16")
    assert replaced == []
    openvino_runtime.OpenVinoRuntime(*converted, precision="float32")
    assert replaced == [1]
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    openvino_runtime.OpenVinoRuntime(*converted, precision="float32")
    assert replaced == [1]
