"""Every network of keras.applications, by its name there."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from deepfeat.backbones import efficientnet_lite
from deepfeat.backbones.network import PREPROCESSINGS, Network, Shape
from deepfeat.errors import BackboneError

if TYPE_CHECKING:
    import keras

_TF_KERNELS = "weights_tf_dim_ordering_tf_kernels"


class Application(NamedTuple):
    """What must be known of a network before Keras is imported."""

    input_size: int
    preprocess: str
    weights_file: str


#: Default input size, preprocessing and file of ImageNet weights without the top, as in
#: Keras 3. A file name with {rows} depends on the input size.
APPLICATIONS = {
    **{
        f"ConvNeXt{s}": Application(224, "none", f"convnext_{s.lower()}_notop.h5")
        for s in ("Tiny", "Small", "Base", "Large", "XLarge")
    },
    **{f"DenseNet{n}": Application(224, "torch", f"densenet{n}_{_TF_KERNELS}_notop.h5") for n in (121, 169, 201)},
    **{
        f"EfficientNetB{i}": Application(size, "none", f"efficientnetb{i}_notop.h5")
        for i, size in enumerate((224, 240, 260, 300, 380, 456, 528, 600))
    },
    **{
        f"EfficientNetV2{v}": Application(size, "none", f"efficientnetv2-{v.lower()}_notop.h5")
        for v, size in {"B0": 224, "B1": 240, "B2": 260, "B3": 300, "S": 384, "M": 480, "L": 480}.items()
    },
    "InceptionResNetV2": Application(299, "tf", f"inception_resnet_v2_{_TF_KERNELS}_notop.h5"),
    "InceptionV3": Application(299, "tf", f"inception_v3_{_TF_KERNELS}_notop.h5"),
    "MobileNet": Application(224, "tf", "mobilenet_1_0_{rows}_tf_no_top.h5"),
    "MobileNetV2": Application(224, "tf", f"mobilenet_v2_{_TF_KERNELS}_1.0_{{rows}}_no_top.h5"),
    **{
        f"MobileNetV3{s}": Application(224, "none", f"weights_mobilenet_v3_{s.lower()}_224_1.0_float_no_top_v2.h5")
        for s in ("Small", "Large")
    },
    "NASNetLarge": Application(331, "tf", "nasnet_large_no_top.h5"),
    "NASNetMobile": Application(224, "tf", "nasnet_mobile_no_top.h5"),
    **{f"ResNet{n}": Application(224, "caffe", f"resnet{n}_{_TF_KERNELS}_notop.h5") for n in (50, 101, 152)},
    **{f"ResNet{n}V2": Application(224, "tf", f"resnet{n}v2_{_TF_KERNELS}_notop.h5") for n in (50, 101, 152)},
    **{f"VGG{n}": Application(224, "caffe", f"vgg{n}_{_TF_KERNELS}_notop.h5") for n in (16, 19)},
    "Xception": Application(299, "tf", f"xception_{_TF_KERNELS}_notop.h5"),
}

#: Square input sizes for which Keras has MobileNet weights of their own; others take those of 224.
_MOBILENET_ROWS = {"MobileNet": (128, 160, 192, 224), "MobileNetV2": (96, 128, 160, 192, 224)}


def networks() -> list[Network]:
    """One `Network` for each of keras.applications."""
    return [
        Network(
            name,
            build=partial(_build, name),
            input_size=(facts.input_size, facts.input_size),
            preprocess=PREPROCESSINGS[facts.preprocess],
            pretrained=partial(_pretrained, name),
            weights_file=partial(_weights_file, name),
            offline=partial(_offline, name),
            reproducible=True,
        )
        for name, facts in APPLICATIONS.items()
    ]


def _constructor(name: str) -> Callable[..., keras.Model]:
    import keras

    constructor: Callable[..., keras.Model] = getattr(keras.applications, name)
    return constructor


def _build(name: str, shape: Shape) -> keras.Model:
    return _constructor(name)(include_top=False, weights=None, input_shape=shape)


def _pretrained(name: str, shape: Shape) -> keras.Model:
    """Build with ImageNet weights, which Keras downloads into its cache."""
    try:
        return _constructor(name)(include_top=False, weights="imagenet", input_shape=shape)
    # Keras reports a failed download as a bare Exception.
    except Exception as error:
        file = _weights_file(name, shape)
        if file.is_file():
            msg = f"the ImageNet weights of {name} in {file} cannot be loaded: {error}"
        else:
            offline = ", ".join(n.name for n in (*efficientnet_lite.networks(), *networks()) if n.offline())
            msg = (
                f"the ImageNet weights of {name} could not be downloaded: put {file.name} into {file.parent}, "
                f"pass weights=<file>, or use a backbone whose weights are on this machine: {offline or 'none'}"
            )
        raise BackboneError(msg) from error


def weights_folder() -> Path:
    """Where Keras keeps the weights that it downloads."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"


def _weights_file(name: str, shape: Shape) -> Path:
    """Where Keras keeps the ImageNet weights of a network."""
    rows = shape[0] if shape[0] == shape[1] and shape[0] in _MOBILENET_ROWS.get(name, ()) else 224
    return weights_folder() / APPLICATIONS[name].weights_file.format(rows=rows)


def _offline(name: str) -> bool:
    size = APPLICATIONS[name].input_size
    return _weights_file(name, (size, size, 3)).is_file()
