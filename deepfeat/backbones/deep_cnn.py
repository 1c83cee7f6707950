"""Convolutional networks to be trained from scratch on data sets of some thousand images.

Three of one depth: plain; in parallel pathways, the idea of AlexNet's towers (Krizhevsky et al. 2012;
named cardinality by Xie et al. 2017, arXiv:1611.05431); and with filters of several sizes side by side
(Szegedy et al. 2015, arXiv:1409.4842, figure 2a).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from deepfeat.backbones.network import PREPROCESSINGS, Network, Shape, untrained
from deepfeat.errors import BackboneError

if TYPE_CHECKING:
    import keras

#: Filters of each stage; a stage is two convolutions and a pooling to half the size.
STAGES = (32, 64, 128, 256)
#: Width of the dense layer before the classifier.
WIDTH = 512
#: Number of pathways of the grouped network.
PATHWAYS = 4
#: Edges of the filters that lie side by side in the network with several sizes, an equal part of the filters each.
EDGES = (1, 3, 5, 7)

Convolution = Callable[["keras.KerasTensor", int, str], "keras.KerasTensor"]


def networks() -> list[Network]:
    """One `Network` for each kind."""
    kinds = {"DeepCNN": deep_cnn, "DeepCNNGrouped": deep_cnn_grouped, "DeepCNNMultiSize": deep_cnn_multi_size}
    return [untrained(name, build, 224, PREPROCESSINGS["torch"]) for name, build in kinds.items()]


def deep_cnn(input_shape: Shape) -> keras.Model:
    """Build the plain network: eight 3 x 3 convolutions, and a dense layer ``fc`` on their average."""
    return _assemble(input_shape, "DeepCNN", partial(_convolve, edge=3))


def deep_cnn_multi_size(input_shape: Shape) -> keras.Model:
    """Build the network with filters of several sizes side by side in each of its eight layers."""

    def convolve(x: keras.KerasTensor, filters: int, name: str) -> keras.KerasTensor:
        from keras import layers

        part = filters // len(EDGES)
        return layers.Concatenate(name=name)([_convolve(x, part, f"{name}_{edge}x{edge}", edge) for edge in EDGES])

    return _assemble(input_shape, "DeepCNNMultiSize", convolve)


def deep_cnn_grouped(input_shape: Shape) -> keras.Model:
    """Build the network of parallel pathways, which meet after each stage as AlexNet's towers do in conv3."""
    import keras
    from keras import layers

    _refuse_small(input_shape)
    x = inputs = keras.Input(input_shape)
    for number, filters in enumerate(STAGES, 1):
        pathways = []
        for pathway in range(1, PATHWAYS + 1):
            y = _convolve(x, filters // PATHWAYS, f"conv{number}_1_{pathway}", 3)
            pathways.append(_convolve(y, filters // PATHWAYS, f"conv{number}_2_{pathway}", 3))
        x = layers.Concatenate(name=f"conv{number}")(pathways)
        x = layers.MaxPooling2D(2, name=f"pool{number}")(x)
    return keras.Model(inputs, _head(x), name="DeepCNNGrouped")


def _assemble(input_shape: Shape, name: str, convolve: Convolution) -> keras.Model:
    import keras
    from keras import layers

    _refuse_small(input_shape)
    x = inputs = keras.Input(input_shape)
    for number, filters in enumerate(STAGES, 1):
        x = convolve(x, filters, f"conv{number}_1")
        x = convolve(x, filters, f"conv{number}_2")
        x = layers.MaxPooling2D(2, name=f"pool{number}")(x)
    return keras.Model(inputs, _head(x), name=name)


def _convolve(x: keras.KerasTensor, filters: int, name: str, edge: int) -> keras.KerasTensor:
    """Convolution, normalisation over the batch (Ioffe and Szegedy 2015, arXiv:1502.03167), ReLU."""
    from keras import layers

    x = layers.Conv2D(filters, edge, padding="same", use_bias=False, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def _head(x: keras.KerasTensor) -> keras.KerasTensor:
    from keras import layers

    x = layers.GlobalAveragePooling2D(name="average")(x)
    return layers.Dense(WIDTH, activation="relu", name="fc")(x)


def _refuse_small(input_shape: Shape) -> None:
    least = 2 ** len(STAGES)
    if min(input_shape[:2]) < least:
        msg = f"a deep CNN needs images of at least {least} x {least} pixels, and input_size is {input_shape[:2]}"
        raise BackboneError(msg)
