"""ONNX files as networks, read by OpenVINO."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np

from deepfeat.backbones.network import GEM_FLOOR, GEM_P, Preprocessing, Shape, file_digest
from deepfeat.errors import BackboneError, UsageError
from deepfeat.runtimes.startup import load_openvino

#: In ONNX's protocol buffers: the key "location", and the length of the name of a file beside it that holds weights,
#: seven bits in each byte, of which all but the last have the eighth, too.
_LOCATION = re.compile(rb"\n\x08location\x12([\x80-\xff]?[\x01-\x7f])", re.DOTALL)

#: OpenVINO's types of whole numbers that hold 0 to 255.
_WIDE = ("u8", "i16", "u16", "i32", "u32", "i64", "u64")


def onnx_digest(file: Path) -> str:
    """SHA-256 of a file, and of the files beside it in which it keeps weights."""
    data = file.read_bytes()
    names = {data[m.end() : m.end() + _length(m)].decode("utf-8", "replace") for m in _LOCATION.finditer(data)}
    missing = [name for name in sorted(names) if not (file.parent / name).is_file()]
    if missing:
        msg = f"{file} keeps weights in {', '.join(missing)}, which is not beside it"
        raise BackboneError(msg)
    digests = [file_digest(path) for path in (file, *(file.parent / name for name in sorted(names)))]
    return digests[0] if not names else f"sha256:{hashlib.sha256(' '.join(digests).encode()).hexdigest()}"


def _length(location: re.Match[bytes]) -> int:
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(location.group(1)))


def read_onnx(file: Path, size: tuple[int, int] | None = None) -> Any:
    """Read a network of one batch of RGB images.

    Parameters
    ----------
    file : Path
    size : tuple of int, optional
        Height and width to which its input is set.

    Returns
    -------
    openvino.Model

    Raises
    ------
    UsageError
        If the package openvino is not installed.
    BackboneError
        If OpenVINO cannot read it, or it does not take one RGB image.
    """
    if importlib.util.find_spec("openvino") is None:
        raise UsageError("ONNX files need the package openvino: run `pip install 'deepfeat[openvino]'`")
    ov = load_openvino()

    try:
        network = ov.Core().read_model(file)
    # Its message is long, and ends with the reason.
    except RuntimeError as error:
        msg = f"{file} cannot be read as an ONNX file: {str(error).strip().splitlines()[-1]}"
        raise BackboneError(msg) from error
    shapes = [value.partial_shape for value in network.inputs]
    if len(shapes) != 1 or shapes[0].rank.is_dynamic or len(shapes[0]) != 4 or _layout(network) is None:
        said = ", ".join(map(str, shapes))
        msg = (
            f"{file} has inputs of shape {said}: a backbone takes one batch of RGB images, "
            "[n,3,height,width] or [n,height,width,3]"
        )
        raise BackboneError(msg)
    if size is not None:
        _reshape(network, -1, size, file)
    return network


def _reshape(network: Any, n: int, size: tuple[int, int], file: Path) -> None:
    try:
        network.reshape([n, 3, *size] if _layout(network) == "NCHW" else [n, *size, 3])
    except RuntimeError as error:
        said = str(error).strip().splitlines()[-1]
        msg = f"{file} does not take images of {size[0]} x {size[1]} pixels: {said}"
        raise BackboneError(msg) from error


def declared_size(file: Path) -> tuple[int, int]:
    """Height and width that a network is made for.

    Raises
    ------
    UsageError
        If it leaves them open.
    """
    network = read_onnx(file)
    start = 2 if _layout(network) == "NCHW" else 1
    sides = list(network.inputs[0].partial_shape)[start : start + 2]
    if any(side.is_dynamic for side in sides):
        msg = f"{file} leaves its input size open: pass input_size"
        raise UsageError(msg)
    return sides[0].get_length(), sides[1].get_length()


def _layout(network: Any) -> str | None:
    """Order of the input's axes, told by where the three channels are."""
    shape = list(network.inputs[0].partial_shape)
    return next((name for name, axis in (("NCHW", 1), ("NHWC", 3)) if shape[axis] == 3), None)


def feature_network(
    file: Path, shape: Shape, preprocessing: Preprocessing, layers: tuple[str | None, ...], pooling: str | None
) -> Any:
    """Preprocessing, network and pooling as one OpenVINO network on uint8 images, channels last.

    ONNX has feature maps as (n, channels, height, width); they are turned to have channels last, as Keras
    has them. The output of a network whose input has channels last is taken to have them last, too.

    Raises
    ------
    BackboneError
        If there is no such layer, if no layer is named and there are several outputs, or if the type of the input does
        not hold the pixels after preprocessing.
    """
    ov = load_openvino()
    from openvino.preprocess import ColorFormat, PrePostProcessor

    network = read_onnx(file, shape[:2])
    _check_type(network, preprocessing, file)
    layout = _layout(network)
    maps = [_layer_output(network, layer, file) for layer in layers]
    last = [layout == "NHWC" and value in _sources(network) for value in maps]
    maps = [value.node.input_value(0) if value.node.get_type_name() == "Result" else value for value in maps]
    pooled = [_pool(value, pooling, channels_last) for value, channels_last in zip(maps, last, strict=True)]
    steps = PrePostProcessor(ov.Model(pooled, network.get_parameters(), "features"))
    given = steps.input()
    given.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC")).set_color_format(ColorFormat.RGB)
    given.model().set_layout(ov.Layout(layout))
    given.preprocess().convert_element_type(ov.Type.f32)
    if preprocessing.channels == "bgr":
        given.preprocess().convert_color(ColorFormat.BGR)
    given.preprocess().mean(list(preprocessing.mean)).scale(list(preprocessing.std))
    return steps.build()


def _check_type(network: Any, preprocessing: Preprocessing, file: Path) -> None:
    """Refuse an input of whole numbers that does not hold the pixels: OpenVINO would cut them to its type."""
    taken = network.inputs[0].element_type
    is_wide, is_plain = taken.to_string() in _WIDE, set(preprocessing.mean) == {0} and set(preprocessing.std) == {1}
    if not (taken.is_real() or (is_wide and is_plain)):
        advice = "use preprocess='none', or export it" if is_wide else "export it"
        msg = f"{file} takes numbers of type {taken.to_string()}, which do not hold the pixels: {advice} for float32"
        raise BackboneError(msg)


def _sources(network: Any) -> list[Any]:
    """The network's outputs, and the values of which they are the outputs."""
    return [*network.outputs, *(output.node.input_value(0) for output in network.outputs)]


def _layer_output(network: Any, name: str | None, file: Path) -> Any:
    """What a node of a name, or one whose output has that name, computes; the network's only output, if None."""
    if name is None:
        if len(network.outputs) > 1:
            named = ", ".join(repr(output.any_name) for output in network.outputs)
            msg = f"{file} has outputs {named}: name the layer that gives features"
            raise BackboneError(msg)
        return network.outputs[0]
    values = {op.get_friendly_name(): op.output(0) for op in network.get_ordered_ops() if op.get_output_size()}
    values |= {n: value for op in network.get_ordered_ops() for value in op.outputs() for n in value.names}
    if name not in values:
        near = difflib.get_close_matches(name, values, 3) or list(values)[-3:]
        msg = f"{file} has no layer {name!r}: near are {', '.join(map(repr, near))}"
        raise BackboneError(msg)
    return values[name]


def _pool(value: Any, pooling: str | None, channels_last: bool) -> Any:
    """Reduce every axis between the batch and the channels, as `deepfeat.runtimes.keras` does."""
    from openvino import opset13 as ops

    rank = len(value.partial_shape)
    if rank == 4 and not channels_last:
        value = ops.transpose(value, np.array([0, 2, 3, 1])).output(0)
    axes = np.arange(1, rank - 1)
    if pooling == "flatten":
        return ops.reshape(
            value, np.array([0, int(np.prod([n.get_length() for n in list(value.partial_shape)[1:]]))]), True
        )
    if len(axes) == 0 or pooling is None:
        return value
    if pooling == "gem":
        cubes = ops.power(ops.maximum(value, np.float32(GEM_FLOOR)), np.float32(GEM_P))
        return ops.power(ops.reduce_mean(cubes, axes), np.float32(1 / GEM_P))
    return (ops.reduce_mean if pooling == "avg" else ops.reduce_max)(value, axes)


def count_onnx(file: Path, size: tuple[int, int]) -> tuple[int, int]:
    """Number of parameters, and multiply-accumulates of one image in convolutions and products with weights."""
    network = read_onnx(file)
    _reshape(network, 1, size, file)
    parameters = macs = 0
    for op in network.get_ordered_ops():
        if op.get_type_name() == "Constant" and op.get_element_type().is_real():
            parameters += int(np.prod(op.get_output_shape(0)))
        if op.get_type_name() in ("Convolution", "GroupConvolution"):
            macs += int(np.prod(op.input(1).get_shape())) * int(np.prod(op.get_output_shape(0)[2:]))
        if op.get_type_name() == "MatMul":
            shape = op.input(0).get_shape()
            inner = shape[-2] if op.get_attributes().get("transpose_a") else shape[-1]
            macs += int(np.prod(op.get_output_shape(0))) * inner
    return parameters, macs
