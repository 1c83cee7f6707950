"""Local response normalisation, which Keras does not have; imported only where Keras is."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable("deepfeat")
class LocalResponseNormalization(keras.layers.Layer):  # type: ignore[misc]
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
        around = ops.matmul(ops.square(x), self._neighbours(x.shape[-1]))
        # A power takes several times as long as its logarithm and exponential.
        return ops.cast(x * ops.exp(-self.beta * ops.log(self.k + self.alpha * around)), inputs.dtype)

    def _neighbours(self, channels: int) -> np.ndarray:
        """Which channels are summed for which: a band of ones about the diagonal."""
        number = np.arange(channels)
        return np.asarray((np.abs(number[:, np.newaxis] - number) <= self.depth // 2).astype(np.float32))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the shape unchanged."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return what a saved model needs to build the layer again."""
        return {**super().get_config(), "depth": self.depth, "k": self.k, "alpha": self.alpha, "beta": self.beta}
