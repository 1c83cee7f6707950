"""A user's own model file, of Keras or ONNX, as a backbone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfeat.backbones.manifest import read_config, read_manifest
from deepfeat.backbones.network import (
    PREPROCESSINGS,
    Network,
    Preprocessing,
    Shape,
    parse_size,
    resolve_preprocessing,
)
from deepfeat.backbones.onnx import declared_size
from deepfeat.backbones.registry import Backbone
from deepfeat.errors import BackboneError, UsageError
from deepfeat.runtimes.startup import single_precision, start_keras

if TYPE_CHECKING:
    import keras


def load_backbone(
    path: str | os.PathLike[str],
    *,
    preprocess: str | Preprocessing | None = None,
    input_size: int | tuple[int, int] | None = None,
    layer: str | Sequence[str] | None = None,
    pooling: str | None = "avg",
    resize: str | None = None,
    custom_objects: Mapping[str, Any] | None = None,
) -> Backbone:
    """Use a saved Keras model, or an ONNX file, as a backbone.

    A Keras file is loaded in Keras' safe mode, which refuses to run code stored in it. An ONNX file is
    run by OpenVINO, without Keras; its input may have the channels first or last, and its
    feature maps come out with the channels last.

    Parameters
    ----------
    path : path
        A ``.keras`` or ``.onnx`` file. Its features are known by its content and the name of the file, or by the name
        that `finetune` gave. The code of layers of one's own is in neither: give the file another name when it changes.
    preprocess : str or Preprocessing
        What the model was trained with, see `register_backbone`; it has no
        default, since a wrong one goes unnoticed. A network of `finetune` brings its own.
    input_size : int or tuple of int, optional
        Height and width in pixels; needed where the model leaves them open. Where a Keras file fixes them, any other
        size is refused when the network is built.
    layer, pooling, resize
        As in `Backbone`. A classifier's own output is its class scores: name
        the layer before them, in an ONNX file a node or a node's output. Of a Keras model's outputs in a list the first
        is taken; where outputs have names, in a dict or an ONNX file, several need a layer. The output of a network of
        `finetune` is its embedding, and its layer ``scores`` has the probabilities of the classes.
    custom_objects : mapping, optional
        Classes and functions of one's own that a Keras model names.

    Returns
    -------
    Backbone

    Raises
    ------
    UsageError
        If the path is no such file, its preprocessing or an open input size is not given, or it is an ONNX
        file and the package openvino is not installed.
    BackboneError
        If it cannot or must not be loaded, or does not take one RGB image, or the manifest of a network of
        `finetune` is missing.

    Examples
    --------
    >>> import deepfeat
    >>> mine = deepfeat.load_backbone("mine.keras", preprocess="tf")
    >>> mine.input_size
    (32, 32)
    >>> store = deepfeat.extract("photos", mine, "features.h5", progress=False)
    >>> store.features("mine").shape
    (24, 16)
    """
    file = Path(path)
    if file.suffix not in (".keras", ".onnx"):
        msg = f"{os.fspath(path)!r} is not a .keras or .onnx file: save the model with model.save('name.keras')"
        raise UsageError(msg)
    if not file.is_file():
        msg = f"there is no file {os.fspath(path)!r}: name the .keras or .onnx file of a network"
        raise UsageError(msg)
    file = file.absolute()  # other processes have other working folders
    manifest = read_manifest(file) if file.suffix == ".keras" else None
    if manifest is not None:
        preprocess, input_size = manifest.preprocessing, input_size or manifest.input_size
        resize = resize or manifest.resize
    elif preprocess is None:
        msg = f"{file} does not say how its pixels are scaled: pass preprocess, one of {', '.join(PREPROCESSINGS)}"
        raise UsageError(msg)
    if file.suffix == ".onnx":
        size = declared_size(file) if input_size is None else parse_size(input_size)
        network = _onnx_network(file, size, resolve_preprocessing(preprocess))
        resize = resize or "squash"
        return Backbone(file.stem, layer=layer, pooling=pooling, input_size=size, resize=resize, network=network)
    objects = dict(custom_objects or {})
    size = parse_size(input_size if input_size is not None else _declared_size(_load(file, objects), file))
    name = file.stem if manifest is None else manifest.name

    def build(shape: Shape) -> keras.Model:
        model = _load(file, objects)
        _check_size(model, file, shape[:2])
        return model

    network = Network(
        name,
        build,
        size,
        resolve_preprocessing(preprocess),
        pretrained=build,
        weights_file=lambda shape: file,
        offline=file.is_file,
        reproducible=not objects and set(_packages(read_config(file))) <= {"keras", "deepfeat"},
        manifest=manifest,
    )
    return Backbone(name, layer=layer, pooling=pooling, input_size=size, resize=resize or "squash", network=network)


def _onnx_network(file: Path, size: tuple[int, int], preprocessing: Preprocessing) -> Network:
    def build(shape: Shape) -> keras.Model:
        msg = f"{file} is an ONNX file, which OpenVINO runs: there is no Keras model of it"
        raise BackboneError(msg)

    return Network(
        file.stem,
        build,
        size,
        preprocessing,
        pretrained=build,
        weights_file=lambda shape: file,
        offline=file.is_file,
        onnx=file,
    )


def _load(file: Path, custom_objects: Mapping[str, Any]) -> keras.Model:
    start_keras()
    import keras

    from deepfeat.backbones.response_normalisation import LocalResponseNormalization

    # The layer of a fine-tuned AlexNet that Keras does not have.
    objects = {"deepfeat>LocalResponseNormalization": LocalResponseNormalization, **custom_objects}
    try:
        with single_precision():
            model = keras.saving.load_model(file, custom_objects=objects, compile=False, safe_mode=True)
    # Keras raises many types here; its message names the class that is missing or refused.
    except Exception as error:
        msg = f"{file} cannot be loaded: {error}"
        raise BackboneError(msg) from error
    if len(model.inputs) != 1 or len(model.inputs[0].shape) != 4 or model.inputs[0].shape[-1] not in (3, None):
        shapes = [tuple(i.shape) for i in model.inputs]
        msg = f"{file} has inputs of shape {shapes}: a backbone takes one batch of RGB images, (None, height, width, 3)"
        raise BackboneError(msg)
    return model


def _packages(config: Any) -> Iterator[str]:
    """Packages of the classes and functions that a part of a .keras file names."""
    parts = config if isinstance(config, list) else []
    if isinstance(config, dict):
        # Keras' names for values, such as "__tensor__", are no classes; how to train is not loaded.
        if "class_name" in config and not str(config["class_name"]).startswith("__"):
            yield str(config.get("module")).split(".")[0]
        parts = [part for name, part in config.items() if name != "compile_config"]
    for part in parts:
        yield from _packages(part)


def _check_size(model: keras.Model, file: Path, size: tuple[int, int]) -> None:
    """Refuse images of another size than the input is fixed to; a side that is left open takes any."""
    fixed = model.inputs[0].shape[1:3]
    if any(edge is not None and edge != wanted for edge, wanted in zip(fixed, size, strict=True)):
        asked, taken = (" x ".join("any" if edge is None else str(edge) for edge in pair) for pair in (size, fixed))
        advice = "pass such a size" if None in fixed else "leave out input_size"
        msg = f"input_size is {asked}, and {file} takes {taken}: {advice}"
        raise UsageError(msg)


def _declared_size(model: keras.Model, file: Path) -> tuple[int, int]:
    _, height, width, _ = model.inputs[0].shape
    if height is None or width is None:
        msg = f"{file} leaves its input size open: pass input_size"
        raise UsageError(msg)
    return int(height), int(width)
