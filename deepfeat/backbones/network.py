"""A network as a record: how it is built, what it wants to see, and which weights it has."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepfeat.errors import BackboneError, UsageError

if TYPE_CHECKING:
    import keras

    from deepfeat.backbones.manifest import Manifest

Shape = tuple[int, int, int]

#: Generalised-mean pooling: its exponent, and the least value of a feature map that it takes.
GEM_P, GEM_FLOOR = 3.0, 1e-6


@dataclass(frozen=True)
class Preprocessing:
    """From uint8 RGB to a network's input: ``(x[channels] - mean) / std``.

    Parameters
    ----------
    channels : {"rgb", "bgr"}
        Order in which the network expects the channels.
    mean, std : tuple of three floats
        In that order, in units of 0 to 255.

    Raises
    ------
    UsageError
        For other channels, or means and deviations that are not three numbers each, or a deviation of 0.

    Examples
    --------
    >>> import deepfeat
    >>> pixels = deepfeat.Preprocessing("bgr", mean=(104, 117, 123))
    >>> pixels.std
    (1.0, 1.0, 1.0)
    """

    channels: str = "rgb"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.channels not in ("rgb", "bgr") or len(self.mean) != 3 or len(self.std) != 3 or 0 in self.std:
            msg = (
                f"{self} is not a preprocessing: use channels 'rgb' or 'bgr', three means, and three stds other than 0"
            )
            raise UsageError(msg)


#: The preprocessing of keras.applications by the names used there, and of EfficientNet-Lite.
PREPROCESSINGS = {
    "none": Preprocessing(),
    "tf": Preprocessing(mean=(127.5,) * 3, std=(127.5,) * 3),
    "torch": Preprocessing(mean=(0.485 * 255, 0.456 * 255, 0.406 * 255), std=(0.229 * 255, 0.224 * 255, 0.225 * 255)),
    "caffe": Preprocessing("bgr", mean=(103.939, 116.779, 123.68)),
    "lite": Preprocessing(mean=(127.0,) * 3, std=(128.0,) * 3),
}


@dataclass(frozen=True)
class Network:
    """A registered network: how to build it, and what it wants to see.

    Attributes
    ----------
    name : str
    build : callable
        ``build((height, width, 3)) -> keras.Model``: the network with its initial weights,
        from preprocessed images to features.
    input_size : tuple of int
        Default height and width, in pixels.
    preprocess : Preprocessing
    pretrained : callable
        ``pretrained((height, width, 3)) -> keras.Model`` with pretrained weights.
    weights_file : callable
        ``weights_file((height, width, 3)) -> Path or None``: the file that holds
        the pretrained weights, which need not exist yet; None where there is no file.
    offline : callable
        ``offline() -> bool``: whether the pretrained weights are on this machine.
    reproducible : bool
        Whether name, weights and versions of the libraries decide the network; a
        user's own code may change under the same name.
    onnx : Path, optional
        The file of a network that is no Keras model.
    manifest : Manifest or None
        What is known of a fine-tuned network.
    """

    name: str
    build: Callable[[Shape], keras.Model]
    input_size: tuple[int, int]
    preprocess: Preprocessing
    pretrained: Callable[[Shape], keras.Model]
    weights_file: Callable[[Shape], Path | None]
    offline: Callable[[], bool]
    reproducible: bool = False
    onnx: Path | None = None
    manifest: Manifest | None = None


def untrained(name: str, build: Callable[[Shape], keras.Model], edge: int, preprocess: Preprocessing) -> Network:
    """Describe a network for which nobody has published weights that could be had here."""

    def refuse(shape: Shape) -> keras.Model:
        msg = (
            f"there are no published ImageNet weights of {name}: pass weights=None and train it with "
            "deepfeat.finetune, or weights=<file>"
        )
        raise BackboneError(msg)

    return Network(
        name,
        build,
        (edge, edge),
        preprocess,
        pretrained=refuse,
        weights_file=lambda shape: None,
        offline=lambda: False,
        reproducible=True,
    )


def resolve_preprocessing(preprocess: str | Preprocessing) -> Preprocessing:
    """Turn the name of a preprocessing into its numbers."""
    if isinstance(preprocess, Preprocessing):
        return preprocess
    check_choice("preprocess", preprocess, tuple(PREPROCESSINGS))
    return PREPROCESSINGS[preprocess]


def load_weights(model: keras.Model, file: Path) -> keras.Model:
    """Load a file of weights into a model; say so where they do not fit."""
    try:
        with warnings.catch_warnings():
            # Keras only warns where a file holds no weights for a layer, which then stays random. Its warnings alone:
            # filters hold in all threads, and images are decoded meanwhile.
            warnings.filterwarnings("error", category=UserWarning, module=r"(keras|deepfeat\.backbones)\.")
            model.load_weights(file)
    # Keras raises many types here, h5py's among them.
    except Exception as error:
        msg = f"the weights in {file} do not fit the network {model.name!r}: {error}"
        raise BackboneError(msg) from error
    return model


def randomise(model: keras.Model, build: Callable[[], keras.Model], seed: int) -> None:
    """Draw every kernel from a normal distribution with variance 2 / fan-in (He et al. 2015, eq. 10).

    What else ``build`` draws by itself, such as frozen kernels, is drawn likewise, after the kernels that can be
    trained. Constants (biases, scales, statistics, filters of one's own) keep their initial values. NumPy
    draws, so that a seed means the same numbers under every Keras backend.

    Raises
    ------
    BackboneError
        If ``build`` gives the same weights to each network, and they may be random.
    """
    generator = np.random.default_rng(seed)
    kernels = [weight for weight in model.trainable_weights if len(weight.shape) > 1]
    for weight in [*kernels, *_drawn_by_build(model, kernels, build)]:
        shape = tuple(weight.shape)
        deviation = np.sqrt(2 / np.prod(shape[:-2] if shape[-1:] == (1,) else shape[:-1]))
        weight.assign(generator.standard_normal(shape, np.float32) * np.float32(deviation))


def _drawn_by_build(model: keras.Model, kernels: Sequence[Any], build: Callable[[], keras.Model]) -> list[Any]:
    """Weights other than these kernels that differ from one build to the next."""
    known = {id(kernel) for kernel in kernels}
    values = {number: weight.numpy() for number, weight in enumerate(model.weights) if id(weight) not in known}
    rest = {number: value for number, value in values.items() if value.size}
    varied = [number for number, value in rest.items() if (value != value.flat[0]).any()]
    # Nearly always, so that nothing need be built twice.
    if not varied:
        return []
    others = build().weights
    shared = [model.weights[number].path for number in varied if others[number] is model.weights[number]]
    if shared:
        msg = (
            f"{model.name!r} has the same weights in each call of the function that builds it ({shared[0]}), which may "
            "be random: let the function make a new network in each call, or pass weights=<file>"
        )
        raise BackboneError(msg)
    return [model.weights[number] for number, value in rest.items() if (value != others[number].numpy()).any()]


def model_digest(model: keras.Model) -> str:
    """Digest of the weights of a built model: shapes and bytes in order."""
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(repr((weight.shape, str(weight.dtype))).encode())
        digest.update(np.ascontiguousarray(weight).tobytes())
    return f"arrays:{digest.hexdigest()}"


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def parse_size(size: Any, default: tuple[int, int] | None = None) -> tuple[int, int]:
    """Height and width from one number, a pair, or None for the default."""
    if size is None and default is not None:
        return default
    pair = (size, size) if isinstance(size, int | np.integer) else size
    if not (
        isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(n, int | np.integer) and n > 0 for n in pair)
    ):
        msg = f"input_size is {size!r}: use a number of pixels, or height and width"
        raise UsageError(msg)
    return int(pair[0]), int(pair[1])


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Refuse a value that is not one of those allowed."""
    if value not in allowed:
        msg = f"{name} is {value!r}: use one of {', '.join(map(repr, allowed))}"
        raise UsageError(msg)
