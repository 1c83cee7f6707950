"""Local response normalisation, which Keras does not have; imported only where Keras is."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("deepfeat")
class LocalResponseNormalization(keras.layers.Layer):
    """Divide each activation by what its neighbours among the channels do at the same place.

    ``b[i] = a[i] / (k + alpha * sum(a[j] ** 2)) ** beta``, where ``j`` runs over ``depth`` channels around ``i``.

    Parameters
    ----------
    depth : int
        Number of neighbouring channels, itself included; odd.
    k, alpha, beta : float
        As published.

    References
    ----------
    Krizhevsky, Sutskever and Hinton (2012), ImageNet classification with deep convolutional
    neural networks, NIPS 25, section 3.3.
    """

    def __init__(self, depth: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75, **options: Any) -> None:
        super().__init__(**options)
        self.depth, self.k, self.alpha, self.beta = depth, k, alpha, beta

    def call(self, inputs: Any) -> Any:
        """Normalise activations of shape (n, height, width, channels)."""
        # In bfloat16 the sum would vanish beside k.
        x = ops.cast(inputs, "float32")
        channels, reach = x.shape[-1], self.depth // 2
        squares = ops.pad(ops.square(x), [[0, 0], [0, 0], [0, 0], [reach, reach]])
        around = sum(squares[..., i : i + channels] for i in range(self.depth))
        return ops.cast(x * ops.power(self.k + self.alpha * around, -self.beta), inputs.dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the shape unchanged."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return what a saved model needs to build the layer again."""
        return {**super().get_config(), "depth": self.depth, "k": self.k, "alpha": self.alpha, "beta": self.beta}
