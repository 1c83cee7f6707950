"""The record of a backbone, the registry of networks, and the digest of what decides the numbers."""

from __future__ import annotations

import difflib
import hashlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from deepfeat.errors import BackboneError, UsageError
from deepfeat.images import PIXELS_VERSION, RESIZE_POLICIES

if TYPE_CHECKING:
    import keras

Shape = tuple[int, int, int]

POOLINGS = ("avg", "max", "gem", "flatten", None)


@dataclass(frozen=True)
class Preprocessing:
    """From uint8 RGB to a network's input: ``(x[channels] - mean) / std``.

    Attributes
    ----------
    channels : {"rgb", "bgr"}
        Order in which the network expects the channels.
    mean, std : tuple of three floats
        In that order, in units of 0 to 255.
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
    """

    name: str
    build: Callable[[Shape], keras.Model]
    input_size: tuple[int, int]
    preprocess: Preprocessing
    pretrained: Callable[[Shape], keras.Model]
    weights_file: Callable[[Shape], Path | None]
    offline: Callable[[], bool]


_REGISTRY: dict[str, Network] = {}


@dataclass(frozen=True)
class Backbone:
    """A network, its weights, and which of its numbers are the features.

    Parameters
    ----------
    name : str
        One of `list_backbones`.
    weights : "imagenet", None or path
        Pretrained weights; random ones from ``seed``; or a file of weights for
        this network. For a registered backbone "imagenet" stands for the
        weights that it was registered with.
    layer : None, str or sequence of str
        Output of the network, or of one or several named layers, in one pass;
        each layer is a feature block of its own.
    pooling : {"avg", "max", "gem", "flatten", None}
        How the positions of a feature map become one vector: average, maximum,
        generalised mean with p = 3 [1]_, all values in a row, or not at all.
    input_size : int or tuple of int, optional
        Height and width in pixels; the network's own if None.
    resize : {"squash", "crop", "pad"}
        What happens to the aspect ratio, see `deepfeat.images.resize_image`.
    seed : int
        Seed of random weights.

    Raises
    ------
    UsageError
        For a name, pooling, size or resize policy that does not exist.

    References
    ----------
    .. [1] Radenović, Tolias, Chum (2019), Fine-tuning CNN image retrieval with
       no human annotation, IEEE TPAMI 41(7), equation 3.

    Examples
    --------
    >>> import deepfeat
    >>> deepfeat.Backbone("VGG16", layer="block4_pool", pooling="max").input_size
    (224, 224)
    """

    name: str
    weights: str | os.PathLike[str] | None = "imagenet"
    layer: str | Sequence[str] | None = None
    pooling: str | None = "avg"
    input_size: int | tuple[int, int] | None = None
    resize: str = "squash"
    seed: int = 0
    network: Network = field(default=None, repr=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.network is None:
            object.__setattr__(self, "network", find_network(self.name))
        _check_choice("pooling", self.pooling, POOLINGS)
        _check_choice("resize", self.resize, RESIZE_POLICIES)
        object.__setattr__(self, "input_size", _size(self.input_size, self.network.input_size))
        if self.layer is not None and not isinstance(self.layer, str):
            object.__setattr__(self, "layer", tuple(self.layer))
        if self.weights not in (None, "imagenet") and not Path(str(self.weights)).is_file():
            msg = f"weights {os.fspath(self.weights)!r} is not a file: use 'imagenet', None, or a file of weights"
            raise UsageError(msg)

    @property
    def input_shape(self) -> Shape:
        """Height, width and the three channels."""
        height, width = self.input_size  # type: ignore[misc]
        return int(height), int(width), 3

    @property
    def layers(self) -> tuple[str | None, ...]:
        """Names of the layers, one for each feature block."""
        return self.layer if isinstance(self.layer, tuple) else (self.layer,)

    def build(self) -> keras.Model:
        """Build the Keras network with its weights, from preprocessed images to features.

        Raises
        ------
        BackboneError
            If weights cannot be found or do not fit.
        """
        if self.weights is None:
            model = self.network.build(self.input_shape)
            randomise(model, self.seed)
        elif self.weights == "imagenet":
            model = self.network.pretrained(self.input_shape)
        else:
            model = load_weights(self.network.build(self.input_shape), Path(str(self.weights)))
        return model

    def weights_digest(self) -> str | None:
        """Name the weights by their content, without building the network; None where that needs the network."""
        if self.weights is None:
            return f"random:{self.seed}"
        if self.weights != "imagenet":
            return file_digest(Path(str(self.weights)))
        file = self.network.weights_file(self.input_shape)
        return file_digest(file) if file is not None and file.is_file() else None

    def specs(self, weights_digest: str) -> list[dict[str, Any]]:
        """Everything that decides the numbers of each feature block, as JSON values.

        Parameters
        ----------
        weights_digest : str
            From `weights_digest`, or `model_digest` where that is None.

        Returns
        -------
        list of dict
            One for each layer.
        """
        preprocess = self.network.preprocess
        return [
            {
                "backbone": self.name,
                "weights": weights_digest,
                "layer": layer,
                "pooling": self.pooling,
                "input_size": list(self.input_shape[:2]),
                "resize": self.resize,
                "pixels": PIXELS_VERSION,
                "preprocessing": {
                    "channels": preprocess.channels,
                    "mean": list(preprocess.mean),
                    "std": list(preprocess.std),
                },
                "precision": "float32",
                "view": "original",
            }
            for layer in self.layers
        ]


def register_backbone(
    name: str,
    build: Callable[[Shape], keras.Model],
    *,
    input_size: int | tuple[int, int],
    preprocess: str | Preprocessing,
    weights: str | os.PathLike[str] | None = None,
) -> None:
    """Make a network of one's own known under a name.

    Parameters
    ----------
    name : str
        A new name. It is part of the key of the features: give changed code a new name.
    build : callable
        ``build((height, width, 3)) -> keras.Model``, from preprocessed images to features.
    input_size : int or tuple of int
        Default height and width in pixels.
    preprocess : str or Preprocessing
        "none" (0 to 255 as they are), "tf" (-1 to 1), "torch" (ImageNet mean and
        standard deviation), "caffe" (BGR less the ImageNet mean), "lite", or a
        `Preprocessing`. Anything else belongs into the network, as Keras layers.
    weights : path, optional
        Weights to load into the built network; if None, those that ``build``
        gives it are used, and digested.

    Raises
    ------
    UsageError
        If the name is taken, or preprocess or weights do not exist.

    Examples
    --------
    >>> import deepfeat
    >>> def tiny(input_shape):
    ...     import keras
    ...     return keras.Sequential([keras.Input(input_shape), keras.layers.Conv2D(4, 3)])
    >>> deepfeat.register_backbone("Tiny", tiny, input_size=32, preprocess="tf")
    >>> deepfeat.Backbone("Tiny", weights=None).input_size
    (32, 32)
    """
    if name in _REGISTRY:
        msg = f"the name {name!r} is taken: features are stored under it, so choose another"
        raise UsageError(msg)
    file = None if weights is None else Path(weights)
    if file is not None and not file.is_file():
        msg = f"weights {str(file)!r} is not a file"
        raise UsageError(msg)
    add_network(
        Network(
            name,
            build,
            _size(input_size, None),
            resolve_preprocessing(preprocess),
            pretrained=build if file is None else lambda shape: load_weights(build(shape), file),
            weights_file=lambda shape: file,
            offline=lambda: True,
        )
    )


def add_network(network: Network) -> None:
    """Put a network into the registry under its name."""
    _REGISTRY[network.name] = network


def find_network(name: str) -> Network:
    """Return the network of a name, or say which names are near."""
    _load_builtin()
    if name not in _REGISTRY:
        folded = {known.casefold(): known for known in _REGISTRY}
        near = [folded[n] for n in difflib.get_close_matches(str(name).casefold(), folded, 3)]
        hint = f"did you mean {' or '.join(near)}?" if near else "deepfeat.list_backbones() names them all"
        msg = f"there is no backbone {name!r}: {hint}"
        raise UsageError(msg)
    return _REGISTRY[name]


def list_backbones() -> pd.DataFrame:
    """List the known backbones.

    Returns
    -------
    pandas.DataFrame
        Indexed by name: ``input_size`` (height, width) and ``offline``, whether
        the pretrained weights are on this machine.

    Examples
    --------
    >>> import deepfeat
    >>> "EfficientNetLite0" in deepfeat.list_backbones().index
    True
    """
    _load_builtin()
    return pd.DataFrame(
        {
            "input_size": [n.input_size for n in _REGISTRY.values()],
            "offline": [n.offline() for n in _REGISTRY.values()],
        },
        index=pd.Index(_REGISTRY, name="name"),
    ).sort_index()


def offline_backbones() -> list[str]:
    """Names of the backbones whose pretrained weights are on this machine."""
    return [name for name, offline in list_backbones()["offline"].items() if offline]


def resolve_preprocessing(preprocess: str | Preprocessing) -> Preprocessing:
    """Turn the name of a preprocessing into its numbers."""
    if isinstance(preprocess, Preprocessing):
        return preprocess
    _check_choice("preprocess", preprocess, tuple(PREPROCESSINGS))
    return PREPROCESSINGS[preprocess]


def load_weights(model: keras.Model, file: Path) -> keras.Model:
    """Load a file of weights into a model; say so where they do not fit."""
    try:
        with warnings.catch_warnings():
            # Keras only warns where a file holds no weights for a layer, which then stays random.
            warnings.simplefilter("error", UserWarning)
            model.load_weights(file)
    # Keras raises many types here, h5py's among them.
    except Exception as error:
        msg = f"the weights in {file} do not fit the network {model.name!r}: {error}"
        raise BackboneError(msg) from error
    return model


def randomise(model: keras.Model, seed: int) -> None:
    """Draw every kernel from a normal distribution with variance 2 / fan-in (He et al. 2015, eq. 10).

    Vectors (biases, scales, statistics) keep their initial values. NumPy draws,
    so that a seed means the same numbers under every Keras backend.
    """
    generator = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        shape = tuple(weight.shape)
        if len(shape) > 1:
            deviation = np.sqrt(2 / np.prod(shape[:-1] if shape[-1] > 1 else shape[:-2]))
            weight.assign(generator.standard_normal(shape, np.float32) * np.float32(deviation))


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


def as_backbones(backbones: str | Backbone | Sequence[str | Backbone]) -> list[Backbone]:
    """Accept a name, a Backbone, or a list of either."""
    listed = [backbones] if isinstance(backbones, str | Backbone) else list(backbones)
    if not listed:
        raise UsageError("the list of backbones is empty")
    return [Backbone(b) if isinstance(b, str) else b for b in listed]


def _load_builtin() -> None:
    """Register deepfeat's own networks, once."""
    if "EfficientNetLite0" not in _REGISTRY:
        from deepfeat.backbones import applications, efficientnet_lite

        for network in (*applications.networks(), *efficientnet_lite.networks()):
            add_network(network)


def _size(size: Any, default: tuple[int, int] | None) -> tuple[int, int]:
    if size is None and default is not None:
        return default
    pair = (size, size) if isinstance(size, int | np.integer) else size
    if not (
        isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(n, int | np.integer) and n > 0 for n in pair)
    ):
        msg = f"input_size is {size!r}: use a number of pixels, or height and width"
        raise UsageError(msg)
    return int(pair[0]), int(pair[1])


def _check_choice(name: str, value: Any, allowed: Sequence[Any] | Mapping[Any, Any]) -> None:
    if value not in allowed:
        msg = f"{name} is {value!r}: use one of {', '.join(map(repr, allowed))}"
        raise UsageError(msg)
