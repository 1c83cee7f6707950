"""AlexNet in two towers and in one, up to the last layer before the classifier (fc7).

Two towers: Krizhevsky, Sutskever and Hinton (2012), ImageNet classification with deep
convolutional neural networks, NIPS 25, figure 2. One tower: Krizhevsky (2014), One weird trick
for parallelizing convolutional neural networks, arXiv:1404.5997, with the numbers of filters that have become
usual under its name (torchvision); a footnote there has 384 instead of 256 filters in conv4.

Pixels are centred as in the paper and also divided by the standard deviation of ImageNet, since training begins
with He's initial weights here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deepfeat.backbones.network import PREPROCESSINGS, Network, Shape, untrained
from deepfeat.errors import BackboneError

if TYPE_CHECKING:
    import keras

TOWERS = ("a", "b")


def networks() -> list[Network]:
    """Both variants."""
    torch = PREPROCESSINGS["torch"]
    return [untrained("AlexNet", alexnet, 227, torch), untrained("AlexNetOneTower", alexnet_one_tower, 224, torch)]


def alexnet(input_shape: Shape) -> keras.Model:
    """Build AlexNet as published: two towers, which see each other in conv3 and in the dense layers."""
    import keras
    from keras import layers

    _refuse_small(input_shape, 67)
    inputs = keras.Input(input_shape)
    x = _in_towers([inputs, inputs], "conv1", 48, 11, strides=4)
    x = _in_towers(_normalise(x, "norm1"), "pool1")
    x = _in_towers(x, "conv2", 128, 5, padding="same")
    x = _in_towers(_normalise(x, "norm2"), "pool2")
    both = layers.Concatenate(name="towers2")(x)
    x = _in_towers([both, both], "conv3", 192, 3, padding="same")
    x = _in_towers(x, "conv4", 192, 3, padding="same")
    x = _in_towers(x, "conv5", 128, 3, padding="same")
    both = layers.Concatenate(name="towers5")(_in_towers(x, "pool5"))
    return keras.Model(inputs, dense_layers(both, ("fc6", "fc7"), 4096), name="AlexNet")


def alexnet_one_tower(input_shape: Shape) -> keras.Model:
    """Build the variant in one tower, without response normalisation."""
    import keras
    from keras import layers

    _refuse_small(input_shape, 63)
    inputs = keras.Input(input_shape)
    x = layers.ZeroPadding2D(2, name="pad1")(inputs)
    x = layers.Conv2D(64, 11, strides=4, activation="relu", name="conv1")(x)
    x = layers.MaxPooling2D(3, 2, name="pool1")(x)
    x = layers.Conv2D(192, 5, padding="same", activation="relu", name="conv2")(x)
    x = layers.MaxPooling2D(3, 2, name="pool2")(x)
    x = layers.Conv2D(384, 3, padding="same", activation="relu", name="conv3")(x)
    x = layers.Conv2D(256, 3, padding="same", activation="relu", name="conv4")(x)
    x = layers.Conv2D(256, 3, padding="same", activation="relu", name="conv5")(x)
    x = layers.MaxPooling2D(3, 2, name="pool5")(x)
    return keras.Model(inputs, dense_layers(x, ("fc6", "fc7"), 4096), name="AlexNetOneTower")


def dense_layers(x: keras.KerasTensor, names: Sequence[str], width: int) -> keras.KerasTensor:
    """Dense layers with ReLU, each after dropout of a half (Krizhevsky et al. 2012, section 4.2)."""
    from keras import layers

    x = layers.Flatten(name="flatten")(x)
    for name in names:
        x = layers.Dropout(0.5, name=f"{name}_dropout")(x)
        x = layers.Dense(width, activation="relu", name=name)(x)
    return x


def _in_towers(inputs: Sequence[keras.KerasTensor], name: str, *size: int, **options: Any) -> list[keras.KerasTensor]:
    """One layer in each tower: a convolution of some filters and an edge, or a max pooling.

    A layer for each tower computes what ``Conv2D(groups=2)`` does, which takes ten times as long to train in
    TensorFlow on a CPU.
    """
    from keras import layers

    if size:
        made = [layers.Conv2D(*size, **options, activation="relu", name=f"{name}_{t}") for t in TOWERS]
    else:
        made = [layers.MaxPooling2D(3, 2, name=f"{name}_{t}") for t in TOWERS]
    return [layer(x) for layer, x in zip(made, inputs, strict=True)]


def _normalise(inputs: Sequence[keras.KerasTensor], name: str) -> list[keras.KerasTensor]:
    from deepfeat.backbones.response_normalisation import LocalResponseNormalization

    return [LocalResponseNormalization(name=f"{name}_{t}")(x) for t, x in zip(TOWERS, inputs, strict=True)]


def _refuse_small(input_shape: Shape, least: int) -> None:
    """Refuse an edge that leaves nothing for the last pooling."""
    if min(input_shape[:2]) < least:
        msg = f"AlexNet needs images of at least {least} x {least} pixels, and input_size is {input_shape[:2]}"
        raise BackboneError(msg)
