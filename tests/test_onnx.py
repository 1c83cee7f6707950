"""ONNX files as backbones, against the same arithmetic in NumPy."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import deepfeat
from deepfeat.backbones import onnx as onnx_backbone
from deepfeat.backbones.network import PREPROCESSINGS
from deepfeat.cli import main
from deepfeat.errors import BackboneError, UsageError
from deepfeat.runtimes import openvino, selection

onnx = pytest.importorskip("onnx", reason="the package onnx writes the files of these tests")
pytest.importorskip("openvino", reason="the extra openvino is not installed")
from onnx import helper, numpy_helper  # noqa: E402

SIDE = 6
KERNEL = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
POOLINGS = {
    "avg": lambda maps: maps.mean(axis=(1, 2)),
    "max": lambda maps: maps.max(axis=(1, 2)),
    "gem": lambda maps: np.cbrt((np.maximum(maps, 1e-6) ** 3).mean(axis=(1, 2))),
    "flatten": lambda maps: maps.reshape(len(maps), -1),
    None: lambda maps: maps,
}


def write(file, *, last=False, side=SIDE, batch="n", channels=3, external=False, kind=None, outputs=None):
    """A convolution of one pixel, named "first", and a rectifier; channels last by transposing at both ends.

    External weights are in "weights.bin", or the file that is named; an input of another kind is cast.
    """
    kernel = np.ones((4, channels), np.float32) if channels != 3 else KERNEL
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["maps"], name="first"),
        helper.make_node("Relu", ["maps"], ["y"], name="second"),
    ]
    shapes = [batch, channels, side, side], [batch, 4, side, side]
    given, made = "x", "y"
    if last:
        nodes = [
            helper.make_node("Transpose", ["given"], ["x"], perm=[0, 3, 1, 2]),
            *nodes,
            helper.make_node("Transpose", ["y"], ["made"], perm=[0, 2, 3, 1]),
        ]
        shapes = [batch, side, side, channels], [batch, side, side, 4]
        given, made = "given", "made"
    if kind is not None:
        nodes = [helper.make_node("Cast", ["whole"], [given], to=onnx.TensorProto.FLOAT), *nodes]
        given = "whole"
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(given, kind or onnx.TensorProto.FLOAT, shapes[0])],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shapes[1]) for name in outputs or [made]],
        [numpy_helper.from_array(kernel[:, :, None, None], "kernel")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    location = external if isinstance(external, str) else "weights.bin"
    onnx.save(model, file, save_as_external_data=bool(external), location=location, size_threshold=0)
    return file


def maps_of(images, preprocess="tf", rectified=True):
    given = PREPROCESSINGS[preprocess]
    x = images[..., ::-1] if given.channels == "bgr" else images
    maps = (x - np.float32(given.mean)) / np.float32(given.std) @ KERNEL.T
    return np.maximum(maps, 0) if rectified else maps


def pictures(count, side=SIDE):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def open_any(backbone, **options):
    given = {"runtime": "auto", "precision": "float32", "batch_size": "auto", **options}
    return selection.open_runtime(backbone, backbone.weights_digest(), backbone.build, **given)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("preprocess", ["tf", "caffe", "torch"])
def test_features_are_what_numpy_computes(tmp_path, pooling, last, preprocess):
    file = write(tmp_path / "mine.onnx", last=last)
    backbone = deepfeat.load_backbone(file, preprocess=preprocess, pooling=pooling)
    assert (backbone.name, backbone.input_shape) == ("mine", (SIDE, SIDE, 3))
    (features,) = open_any(backbone)(pictures(5))
    np.testing.assert_allclose(features, POOLINGS[pooling](maps_of(pictures(5), preprocess)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("names", [("first", "y"), ("maps", "y")])
def test_layers_are_named_by_node_or_output(tmp_path, names, last):
    file = write(tmp_path / "mine.onnx", last=last)
    runtime = open_any(deepfeat.load_backbone(file, preprocess="tf", layer=names, pooling=None))
    first, second = runtime(pictures(2))
    np.testing.assert_allclose(first, maps_of(pictures(2), rectified=False), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(second, maps_of(pictures(2)), rtol=1e-4, atol=1e-4)


def test_one_of_several_outputs_is_named_and_not_guessed(tmp_path):
    file = write(tmp_path / "mine.onnx", outputs=("y", "maps"))
    with pytest.raises(BackboneError, match="has outputs 'y', 'maps': name the layer that gives features"):
        open_any(deepfeat.load_backbone(file, preprocess="tf"))
    (features,) = open_any(deepfeat.load_backbone(file, preprocess="tf", layer="maps"))(pictures(2))
    np.testing.assert_allclose(features, maps_of(pictures(2), rectified=False).mean(axis=(1, 2)), rtol=1e-4, atol=1e-4)


def test_size_and_batch_of_the_file_can_be_other(tmp_path):
    file = write(tmp_path / "mine.onnx", side="side", batch=1)
    with pytest.raises(UsageError, match="leaves its input size open: pass input_size"):
        deepfeat.load_backbone(file, preprocess="tf")
    (features,) = open_any(deepfeat.load_backbone(file, preprocess="tf", input_size=9))(pictures(3, 9))
    np.testing.assert_allclose(features, maps_of(pictures(3, 9)).mean(axis=(1, 2)), rtol=1e-4, atol=1e-4)


def test_key_holds_the_content_of_all_files(tmp_path):
    alone = deepfeat.load_backbone(write(tmp_path / "a.onnx"), preprocess="tf").weights_digest()
    backbone = deepfeat.load_backbone(write(tmp_path / "b.onnx", external=True), preprocess="tf")
    split = backbone.weights_digest()
    assert alone != split
    np.testing.assert_allclose(open_any(backbone)(pictures(2))[0], maps_of(pictures(2)).mean(axis=(1, 2)), rtol=1e-4)
    weights = tmp_path / "weights.bin"
    weights.write_bytes(bytes(len(weights.read_bytes())))
    assert backbone.weights_digest() not in (alone, split)
    weights.unlink()
    with pytest.raises(BackboneError, match=r"keeps weights in weights\.bin, which is not beside it"):
        backbone.weights_digest()


@pytest.mark.parametrize("length", [1, 127, 128, 200])
def test_key_holds_the_weights_of_a_file_whose_name_has_any_length(tmp_path, length):
    weights = tmp_path / ("w" * length)
    backbone = deepfeat.load_backbone(write(tmp_path / "mine.onnx", external=weights.name), preprocess="tf")
    before = backbone.weights_digest()
    weights.write_bytes(bytes(len(weights.read_bytes())))
    assert backbone.weights_digest() != before


@pytest.mark.parametrize("kind", ["UINT8", "INT32"])
def test_input_of_whole_numbers_takes_pixels_as_they_are(tmp_path, kind):
    file = write(tmp_path / "mine.onnx", kind=getattr(onnx.TensorProto, kind))
    (features,) = open_any(deepfeat.load_backbone(file, preprocess="none"))(pictures(3))
    np.testing.assert_allclose(features, maps_of(pictures(3), "none").mean(axis=(1, 2)), rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "preprocess", "message"),
    [
        ("UINT8", "tf", "numbers of type u8, which do not hold the pixels: use preprocess='none', or export it for fl"),
        ("INT32", "torch", "numbers of type i32, which do not hold the pixels: use preprocess='none', or export"),
        ("INT8", "none", "numbers of type i8, which do not hold the pixels: export it for float32"),
    ],
)
def test_input_of_whole_numbers_is_not_given_others(tmp_path, kind, preprocess, message):
    file = write(tmp_path / "mine.onnx", kind=getattr(onnx.TensorProto, kind))
    with pytest.raises(BackboneError, match=rf"^\S+mine\.onnx takes {message}"):
        open_any(deepfeat.load_backbone(file, preprocess=preprocess))


def test_file_that_changed_after_its_digest_was_taken_is_refused(tmp_path):
    file = write(tmp_path / "mine.onnx")
    backbone = deepfeat.load_backbone(file, preprocess="tf")
    digest = backbone.weights_digest()
    write(file, last=True)
    with pytest.raises(BackboneError, match="the file of mine changed meanwhile"):
        selection.open_runtime(backbone, digest, backbone.build, runtime="auto", precision="float32", batch_size="auto")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"channels": 1}, r"inputs of shape \[\?,1,6,6\]: a backbone takes one batch"),
        (None, "cannot be read as"),
    ],
)
def test_unusable_file_is_one_sentence(tmp_path, content, message):
    file = tmp_path / "mine.onnx"
    file.write_bytes(b"nothing") if content is None else write(file, **content)
    with pytest.raises(BackboneError, match=message):
        deepfeat.load_backbone(file, preprocess="tf")


def test_unknown_layer_keras_and_missing_openvino_are_one_sentence(tmp_path, monkeypatch):
    file = write(tmp_path / "mine.onnx")
    with pytest.raises(BackboneError, match=r"has no layer 'frist': near are .*'first'"):
        open_any(deepfeat.load_backbone(file, preprocess="tf", layer="frist"))
    with pytest.raises(UsageError, match="which only OpenVINO runs"):
        open_any(deepfeat.load_backbone(file, preprocess="tf"), runtime="keras")
    with pytest.raises(BackboneError, match="there is no Keras model of it"):
        deepfeat.load_backbone(file, preprocess="tf").build()
    monkeypatch.setattr(onnx_backbone.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'deepfeat\[openvino\]'"):
        deepfeat.load_backbone(file, preprocess="tf")


def test_costs_are_exact(tmp_path):
    assert onnx_backbone.count_onnx(write(tmp_path / "mine.onnx"), (SIDE, SIDE)) == (12, 12 * SIDE * SIDE)


@pytest.mark.parametrize("turned", [False, True])
def test_costs_of_a_product_with_weights(tmp_path, turned):
    """Twelve values to four: 12 x 4 multiplications, however the values lie."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["rows"]),
        helper.make_node("Gemm", ["rows", "kernel"], ["y"], transA=int(turned)),
    ]
    constants = [
        numpy_helper.from_array(np.array([12, 1] if turned else [1, 12]), "shape"),
        numpy_helper.from_array(np.ones((12, 4), np.float32), "kernel"),
    ]
    shapes = [1, 3, 2, 2], [1, 4]
    given, made = (value(n, onnx.TensorProto.FLOAT, s) for n, s in zip("xy", shapes, strict=True))
    model = helper.make_model(
        helper.make_graph(nodes, "product", [given], [made], constants),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "product.onnx")
    assert onnx_backbone.count_onnx(tmp_path / "product.onnx", (2, 2))[1] == 48


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for number, picture in enumerate(pictures(7)):
        Image.fromarray(picture).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


def test_command_line_extracts_and_benchmarks(tmp_path, photos, capsys):
    file, cache = write(tmp_path / "mine.onnx"), tmp_path / "f.h5"
    chosen = ["--backbone", str(file), "--preprocess", "tf"]
    assert main(["extract", str(photos), *chosen, "--cache", str(cache)]) == 0
    features = deepfeat.open_features(cache).features("mine")
    np.testing.assert_allclose(features, maps_of(pictures(7)).mean(axis=(1, 2)), rtol=1e-4, atol=1e-4)
    capsys.readouterr()
    assert main(["bench", str(photos), *chosen, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mine"]["parameters"] == 12


def test_keras_and_tensorflow_stay_out(tmp_path, photos):
    write(tmp_path / "mine.onnx")
    code = (
        "import sys, deepfeat; b = deepfeat.load_backbone(sys.argv[1], preprocess='tf'); "
        "deepfeat.extract(sys.argv[2], b, sys.argv[3], progress=False); "
        "print(sorted({'keras', 'tensorflow'} & set(sys.modules)))"
    )
    arguments = [str(tmp_path / "mine.onnx"), str(photos), str(tmp_path / "f.h5")]
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_graph_that_openvino_refuses_is_named(tmp_path, monkeypatch):
    def refuse(network, input_shape):
        raise RuntimeError("Check failed\nthe batch is fixed inside")

    backbone = deepfeat.load_backbone(write(tmp_path / "tiny.onnx"), preprocess="tf")
    monkeypatch.setattr(openvino, "_serialize", refuse)
    said = r"cannot run .*tiny\.onnx on batches of 6 x 6 pixels \(the batch is fixed inside\): export it for batches of"
    with pytest.raises(BackboneError, match=said):
        openvino._convert_onnx(backbone, tmp_path / "tiny.onnx")


def write_traced(file, shape, last, made):
    """A convolution whose maps are reshaped to a shape that was fixed when it was exported."""
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "kernel"], ["maps"]), helper.make_node("Reshape", ["maps", "s"], ["r"]), last],
        "traced",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, made)],
        [
            numpy_helper.from_array(KERNEL[:, :, None, None], "kernel"),
            numpy_helper.from_array(np.array(shape, np.int64), "s"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), file)
    return file


MEAN = helper.make_node("ReduceMean", ["r"], ["y"], axes=[2], keepdims=0)
SAME = helper.make_node("Identity", ["r"], ["y"])


@pytest.mark.parametrize(
    ("shape", "last", "made", "size"),
    [
        ([1, 4, -1], MEAN, [1, 4], None),
        ([1, -1], SAME, [1, 4 * SIDE**2], None),
        ([1, 4 * SIDE**2], SAME, [1, 4 * SIDE**2], None),
        ([-1, 4 * SIDE**2], SAME, [1, 4 * SIDE**2], 2 * SIDE),
        ([-1, 4 * SIDE**2], SAME, [1, 4 * SIDE**2], (SIDE, SIDE // 2)),
    ],
)
def test_images_of_a_batch_never_mix(tmp_path, photos, shape, last, made, size):
    """A size that tracing fixed would average two images, repeat a row or cut an image in two."""
    file = write_traced(tmp_path / "traced.onnx", shape, last, made)
    backbone = deepfeat.load_backbone(file, preprocess="tf", input_size=size)
    with pytest.raises(BackboneError, match=r"traced\.onnx .*export it for batches of") as caught:
        deepfeat.extract(photos, backbone, tmp_path / "f.h5", progress=False)
    assert "\n" not in str(caught.value)


def test_benchmark_of_an_input_size_that_the_file_cannot_take_is_one_sentence(tmp_path, photos):
    file = write_traced(tmp_path / "traced.onnx", [1, 4 * SIDE**2], SAME, [1, 4 * SIDE**2])
    backbone = deepfeat.load_backbone(file, preprocess="tf", input_size=2 * SIDE)
    with pytest.raises(BackboneError, match=r"traced\.onnx does not take images of 12 x 12 pixels: "):
        deepfeat.benchmark(photos, backbone)


def test_batch_that_may_have_any_size_is_no_trouble(tmp_path, photos):
    file = write_traced(tmp_path / "traced.onnx", [-1, 4 * SIDE**2], SAME, ["n", 4 * SIDE**2])
    backbone = deepfeat.load_backbone(file, preprocess="tf")
    store = deepfeat.extract(photos, backbone, tmp_path / "f.h5", progress=False)
    expected = maps_of(pictures(7), rectified=False).transpose(0, 3, 1, 2).reshape(7, -1)
    np.testing.assert_allclose(store.features("traced"), expected, rtol=1e-4, atol=1e-4)


def test_one_number_for_each_image_does_not_spoil_the_store(tmp_path, photos):
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1, 2, 3], keepdims=0)],
        "number",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n"])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "number.onnx"
    )
    good = deepfeat.load_backbone(write(tmp_path / "good.onnx"), preprocess="tf")
    cache = tmp_path / "f.h5"
    deepfeat.extract(photos, good, cache, progress=False)
    number = deepfeat.load_backbone(tmp_path / "number.onnx", preprocess="tf")
    with pytest.raises(UsageError, match=r"^number gives each image features of shape \(\), and a store takes vectors"):
        deepfeat.extract(photos, number, cache, progress=False)
    assert deepfeat.open_features(cache).features("good").shape == (7, 4)


def test_file_runs_in_float32_beside_a_gpu(tmp_path, photos, monkeypatch):
    """It runs on the CPU, whatever Keras has."""
    monkeypatch.setattr(selection, "_has_gpu", lambda: True)
    backbone = deepfeat.load_backbone(write(tmp_path / "mine.onnx"), preprocess="tf")
    store = deepfeat.extract(photos, backbone, tmp_path / "f.h5", progress=False)
    assert store.blocks["spec"][0]["precision"] == "float32"
    assert len(deepfeat.benchmark(photos, backbone)) == 1
