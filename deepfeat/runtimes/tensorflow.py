"""A Keras model as one TensorFlow graph, for Keras' TensorFlow backend."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

#: TensorFlow keeps a graph with its constants in one message, which ends at 2 GiB.
_LARGEST = 2**31 - 2**24


def freeze(model: keras.Model) -> Any:
    """Trace a model once, for batches of any size, with its weights as constants.

    TensorFlow can then fold what only depends on weights, such as batch normalisation, into the
    convolutions; reading variables prevents that. Weights beyond 2 GB stay variables.

    Parameters
    ----------
    model : keras.Model
        Of one input.

    Returns
    -------
    tensorflow ConcreteFunction
        From a batch of images to a list of tensors, one for each of the model's outputs.
    """
    weights = [(variable, variable.numpy()) for variable in model.variables]
    if sum(values.nbytes for _, values in weights) > _LARGEST:
        weights = []

    def call(images: tf.Tensor) -> list[tf.Tensor]:
        with keras.StatelessScope(state_mapping=[(variable, tf.constant(values)) for variable, values in weights]):
            outputs: list[tf.Tensor] = keras.tree.flatten(model(images, training=False))
            return outputs

    image = model.inputs[0]
    # XLA is slower than TensorFlow's own kernels on a CPU.
    traced = tf.function(call, autograph=False, jit_compile=False)
    return traced.get_concrete_function(tf.TensorSpec((None, *image.shape[1:]), image.dtype))
