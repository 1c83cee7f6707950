"""The record of a backbone, and the registry of networks by name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from deepfeat.backbones import alexnet, applications, deep_cnn, efficientnet_lite
from deepfeat.backbones.manifest import refuse_finetuned
from deepfeat.backbones.network import (
    Network,
    Preprocessing,
    Shape,
    check_choice,
    file_digest,
    load_weights,
    parse_size,
    randomise,
    resolve_preprocessing,
)
from deepfeat.backbones.onnx import onnx_digest
from deepfeat.errors import UsageError
from deepfeat.images import PIXELS_VERSION
from deepfeat.provenance import TrainedOn
from deepfeat.resizing import RESIZE_POLICIES
from deepfeat.runtimes.startup import single_precision, start_keras

if TYPE_CHECKING:
    import keras

POOLINGS = ("avg", "max", "gem", "flatten", None)


_REGISTRY: dict[str, Network] = {
    network.name: network
    for module in (applications, efficientnet_lite, alexnet, deep_cnn)
    for network in module.networks()
}


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
        What happens to the aspect ratio, see `deepfeat.resizing.resize_image`.
    seed : int
        Seed of random weights.
    network : deepfeat.backbones.network.Network, optional
        What the name stands for; found by the name if None, as everybody but `load_backbone` leaves it.

    Raises
    ------
    UsageError
        For a name, pooling, size or resize policy that does not exist, a list of layers that names none, or a network
        of `finetune` as weights of another, since `load_backbone` knows what it was trained on.

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
        check_choice("pooling", self.pooling, POOLINGS)
        check_choice("resize", self.resize, RESIZE_POLICIES)
        object.__setattr__(self, "input_size", parse_size(self.input_size, self.network.input_size))
        if self.layer is not None and not isinstance(self.layer, str):
            object.__setattr__(self, "layer", _parse_layers(self.layer))
        if self.weights not in (None, "imagenet"):
            file = Path(str(self.weights))
            if not file.is_file():
                msg = f"weights {os.fspath(self.weights)!r} is not a file: use 'imagenet', None, or a file of weights"
                raise UsageError(msg)
            refuse_finetuned(file)

    @property
    def input_shape(self) -> Shape:
        """Height, width and the three channels."""
        height, width = self.input_size  # type: ignore[misc]
        return int(height), int(width), 3

    @property
    def layers(self) -> tuple[str | None, ...]:
        """Names of the layers, one for each feature block."""
        return self.layer if isinstance(self.layer, tuple) else (self.layer,)

    @property
    def trained_on(self) -> TrainedOn | None:
        """Digests of the images and groups that the network was fine-tuned on; None if it was not."""
        return None if self.network.manifest is None else self.network.manifest.trained_on

    @property
    def history(self) -> pd.DataFrame:
        """Loss, accuracy and learning rate of each epoch of fine-tuning; without rows if there was none."""
        return pd.DataFrame([] if self.network.manifest is None else self.network.manifest.history)

    @property
    def classes(self) -> list[str]:
        """Classes that the network was fine-tuned to, in the order of the layer ``scores``; empty if it was not."""
        return [] if self.network.manifest is None else self.network.manifest.classes

    def build(self) -> keras.Model:
        """Build the Keras network with its weights, from preprocessed images to features.

        Returns
        -------
        keras.Model
            It takes images as `Preprocessing` leaves them, of shape (n, height, width, 3), float32. Neither layer nor
            pooling is applied: runtimes do that.

        Raises
        ------
        BackboneError
            If weights cannot be found or do not fit.

        Examples
        --------
        >>> import deepfeat
        >>> deepfeat.Backbone("DeepCNN", weights=None, input_size=32).build().input_shape
        (None, 32, 32, 3)
        """
        start_keras()
        with single_precision():
            if self.weights == "imagenet":
                return self.network.pretrained(self.input_shape)
            model = self.network.build(self.input_shape)
            if self.weights is None:
                randomise(model, lambda: self.network.build(self.input_shape), self.seed)
            else:
                load_weights(model, Path(str(self.weights)))
            return model

    def weights_digest(self) -> str | None:
        """Name the weights by their content, without building the network.

        Returns
        -------
        str or None
            "sha256:" and the digest of a file, or "random:" and the seed; None where only the built network tells.

        Examples
        --------
        >>> import deepfeat
        >>> deepfeat.Backbone("VGG16", weights=None, seed=3).weights_digest()
        'random:3'
        """
        if self.network.onnx is not None:
            return onnx_digest(self.network.onnx)
        if self.weights is None:
            return f"random:{self.seed}"
        if self.weights != "imagenet":
            return file_digest(Path(str(self.weights)))
        file = self.network.weights_file(self.input_shape)
        return file_digest(file) if file is not None and file.is_file() else None

    def specs(
        self, weights_digest: str, dtype: str = "float32", precision: str = "float32", view: str = "original"
    ) -> list[dict[str, Any]]:
        """Everything that decides the numbers of each feature block, as JSON values.

        Parameters
        ----------
        weights_digest : str
            From `weights_digest`, or `model_digest` where that is None.
        dtype : {"float32", "float16"}
            Type in which features are stored.
        precision : {"float32", "bfloat16"}
            In which the network computes.
        view : str
            One of `deepfeat.images.VIEWS`.

        Returns
        -------
        list of dict
            One for each layer.

        Examples
        --------
        >>> import deepfeat
        >>> backbone = deepfeat.Backbone("VGG16", weights=None, layer=["block4_pool", "block5_pool"])
        >>> [spec["layer"] for spec in backbone.specs(backbone.weights_digest())]
        ['block4_pool', 'block5_pool']
        """
        preprocess = self.network.preprocess
        specs: list[dict[str, Any]] = [
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
                "precision": precision,
                "dtype": dtype,
                "view": view,
            }
            for layer in self.layers
        ]
        space = None if self.network.manifest is None else self.network.manifest.space
        return [{**spec, "space": space} if space and spec["layer"] is None else spec for spec in specs]


def _parse_layers(layers: Any) -> tuple[str | None, ...]:
    """Several names of layers."""
    names = tuple(layers) if isinstance(layers, Iterable) else ()
    if not names or not all(isinstance(name, str | None) for name in names):
        msg = f"layer is {layers!r}: use None, for the output, the name of a layer, or a list of these"
        raise UsageError(msg)
    return names


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
        If the name is taken, preprocess or weights do not exist, or the weights are a network of `finetune`.

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
    file = None if weights is None else Path(weights).absolute()
    if file is not None and not file.is_file():
        msg = f"weights {str(file)!r} is not a file"
        raise UsageError(msg)
    if file is not None:
        refuse_finetuned(file)
    _REGISTRY[name] = Network(
        name,
        build,
        parse_size(input_size),
        resolve_preprocessing(preprocess),
        pretrained=build if file is None else lambda shape: load_weights(build(shape), file),
        weights_file=lambda shape: file,
        offline=lambda: True,
    )


def find_network(name: str) -> Network:
    """Return the network of a name, or say which names are near."""
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
    return pd.DataFrame(
        {
            "input_size": [n.input_size for n in _REGISTRY.values()],
            "offline": [n.offline() for n in _REGISTRY.values()],
        },
        index=pd.Index(_REGISTRY, name="name"),
    ).sort_index()


def as_backbones(backbones: str | Backbone | Sequence[str | Backbone]) -> list[Backbone]:
    """Accept a name, a Backbone, or a list of either."""
    listed = [backbones] if isinstance(backbones, str | Backbone) else list(backbones)
    if not listed:
        raise UsageError("the list of backbones is empty")
    for one in listed:
        if not isinstance(one, str | Backbone):
            msg = f"backbones holds {one!r}: use names, or deepfeat.Backbone"
            raise UsageError(msg)
    return [Backbone(b) if isinstance(b, str) else b for b in listed]
