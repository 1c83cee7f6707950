"""A user's own model file as a backbone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfeat.backbones.manifest import read_manifest
from deepfeat.backbones.network import (
    PREPROCESSINGS,
    Network,
    Preprocessing,
    Shape,
    parse_size,
    resolve_preprocessing,
)
from deepfeat.backbones.registry import Backbone
from deepfeat.errors import BackboneError, UsageError

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
    """Use a saved Keras model as a backbone.

    The file is loaded in Keras' safe mode, which refuses to run code stored in it.

    Parameters
    ----------
    path : path
        A ``.keras`` file. Its features are known by its content and the name of the file.
    preprocess : str or Preprocessing
        What the model was trained with, see `register_backbone`; it has no
        default, since a wrong one goes unnoticed. A network of `finetune` brings its own.
    input_size : int or tuple of int, optional
        Height and width in pixels; needed where the model leaves them open.
    layer, pooling, resize
        As in `Backbone`. A classifier's own output is its class scores: name
        the layer before them. The output of a network of `finetune` is its embedding,
        and its layer ``scores`` has the probabilities of the classes.
    custom_objects : mapping, optional
        Classes and functions of one's own that the model names.

    Returns
    -------
    Backbone

    Raises
    ------
    UsageError
        If the path is not a ``.keras`` file, its preprocessing is not given, or its input size is open and not given.
    BackboneError
        If Keras cannot or will not load it, or it does not take one RGB image, or the
        manifest of a network of `finetune` is missing.

    Examples
    --------
    >>> mine = deepfeat.load_backbone("mine.keras", preprocess="tf")      # doctest: +SKIP
    >>> deepfeat.extract("photos", mine)                                   # doctest: +SKIP
    """
    file = Path(path)
    if file.suffix != ".keras" or not file.is_file():
        msg = f"{os.fspath(path)!r} is not a .keras file: save the model with model.save('name.keras')"
        raise UsageError(msg)
    objects = dict(custom_objects or {})
    manifest = read_manifest(file)
    if manifest is not None:
        preprocess, input_size = manifest.preprocessing, input_size or manifest.input_size
        resize = resize or manifest.resize
    elif preprocess is None:
        msg = f"{file} does not say how its pixels are scaled: pass preprocess, one of {', '.join(PREPROCESSINGS)}"
        raise UsageError(msg)
    size = parse_size(input_size if input_size is not None else _declared_size(_load(file, objects), file))
    name = file.stem if manifest is None else manifest.name

    def build(shape: Shape) -> keras.Model:
        return _load(file, objects)

    network = Network(
        name,
        build,
        size,
        resolve_preprocessing(preprocess),
        pretrained=build,
        weights_file=lambda shape: file,
        offline=file.is_file,
        reproducible=not objects,
        manifest=manifest,
    )
    return Backbone(name, layer=layer, pooling=pooling, input_size=size, resize=resize or "squash", network=network)


def _load(file: Path, custom_objects: Mapping[str, Any]) -> keras.Model:
    import keras

    from deepfeat.backbones.response_normalisation import LocalResponseNormalization

    # The layer of a fine-tuned AlexNet that Keras does not have.
    objects = {"deepfeat>LocalResponseNormalization": LocalResponseNormalization, **custom_objects}
    try:
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


def _declared_size(model: keras.Model, file: Path) -> tuple[int, int]:
    _, height, width, _ = model.inputs[0].shape
    if height is None or width is None:
        msg = f"{file} leaves its input size open: pass input_size"
        raise UsageError(msg)
    return int(height), int(width)
