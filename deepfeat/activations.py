"""What the layers of networks make of one image."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np

from deepfeat.backbones.registry import Backbone, as_backbones
from deepfeat.computation import build_network
from deepfeat.errors import ImageError, UsageError
from deepfeat.images import Preparation, load_image
from deepfeat.plots import draw_activation_maps, draw_feature_maps

#: Layers shown of a network that names none.
SHOWN_LAYERS = 5


def feature_maps(image: str | os.PathLike[str], backbone: str | Backbone) -> dict[str, np.ndarray]:
    """Compute the feature maps of one image.

    Parameters
    ----------
    image : path
        Of an image file.
    backbone : str or Backbone
        With ``layer``, these layers; otherwise the last layer of each size, at most five.

    Returns
    -------
    dict of str to ndarray of shape (height, width, channels), float32
        In the order of the layers.

    Raises
    ------
    ImageError
        If the image cannot be read.
    UsageError
        If a layer has no maps.

    Examples
    --------
    >>> import deepfeat
    >>> mine = deepfeat.load_backbone("mine.keras", preprocess="tf")
    >>> maps = deepfeat.feature_maps("photos/MEL/mel01.png", mine)
    >>> {name: values.shape for name, values in maps.items()}
    {'conv1': (15, 15, 8), 'conv2': (7, 7, 16)}
    """
    chosen = as_backbones(backbone)[0]
    return _feature_maps(_picture(image, chosen), chosen)


def plot_feature_maps(
    image: str | os.PathLike[str],
    backbones: str | Backbone | Sequence[str | Backbone],
    path: str | os.PathLike[str],
    *,
    channels: int = 4,
) -> None:
    """Draw feature maps of one image, networks side by side, a row for each layer.

    Of each layer those channels are shown that vary most over the image, each from its least value (dark)
    to its greatest (bright). Networks of one name are numbered.

    Parameters
    ----------
    image : path
        Of an image file.
    backbones : str, Backbone, or a list of either
        See `feature_maps` for the layers that are shown.
    path : path
        Its ending decides the format: .png, .svg or .pdf.
    channels : int
        Maps of each layer.

    Raises
    ------
    ImageError
        If the image cannot be read.
    UsageError
        If a layer has no maps, no channel is wanted, or matplotlib is not installed.

    Examples
    --------
    >>> import deepfeat
    >>> mine = deepfeat.load_backbone("mine.keras", preprocess="tf")
    >>> deepfeat.plot_feature_maps("photos/MEL/mel01.png", mine, "maps.png", channels=3)
    """
    if not isinstance(channels, Integral) or channels < 1:
        msg = f"channels is {channels!r}: use a whole number of at least 1"
        raise UsageError(msg)
    pictures, maps = _maps_of_all(image, backbones)
    draw_feature_maps(pictures, maps, path, channels)


def plot_activation_maps(
    image: str | os.PathLike[str],
    backbones: str | Backbone | Sequence[str | Backbone],
    path: str | os.PathLike[str],
) -> None:
    """Draw where each layer is active, laid over the image; a row for each network.

    Shown is the sum of squares over all channels [1]_, dark to bright from its second to its 98th percentile.

    Parameters
    ----------
    image : path
        Of an image file.
    backbones : str, Backbone, or a list of either
        See `feature_maps` for the layers that are shown.
    path : path
        Its ending decides the format: .png, .svg or .pdf.

    Raises
    ------
    ImageError
        If the image cannot be read.
    UsageError
        If a layer has no maps, or matplotlib is not installed.

    References
    ----------
    .. [1] Zagoruyko and Komodakis (2017), Paying more attention to attention, ICLR, arXiv:1612.03928, section 3.1.

    Examples
    --------
    >>> import deepfeat
    >>> mine = deepfeat.load_backbone("mine.keras", preprocess="tf")
    >>> deepfeat.plot_activation_maps("photos/MEL/mel01.png", mine, "activation.png")
    """
    pictures, maps = _maps_of_all(image, backbones)
    draw_activation_maps(pictures, maps, path)


def _maps_of_all(image: Any, backbones: Any) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    chosen: dict[str, Backbone] = {}
    for backbone in as_backbones(backbones):
        # One network may be shown with several layers or sizes.
        before = sum(other.name == backbone.name for other in chosen.values())
        chosen[f"{backbone.name} ({before + 1})" if before else backbone.name] = backbone
    pictures = {name: _picture(image, backbone) for name, backbone in chosen.items()}
    return pictures, {name: _feature_maps(pictures[name], backbone) for name, backbone in chosen.items()}


def _picture(image: str | os.PathLike[str], backbone: Backbone) -> np.ndarray:
    prepared = Preparation(backbone.input_shape[:2], backbone.resize)
    loaded = load_image(0, os.fspath(image), [prepared])
    if loaded.reason:
        msg = f"{os.fspath(image)}: {loaded.reason}"
        raise ImageError(msg)
    return loaded.pixels[prepared]


def _feature_maps(picture: np.ndarray, backbone: Backbone) -> dict[str, np.ndarray]:
    model = build_network(backbone)
    from deepfeat.runtimes.keras import KerasRuntime

    names = _shown_layers(model) if backbone.layer is None else [str(name) for name in backbone.layers]
    if not names:
        msg = f"no layer of {backbone.name} gives maps: choose another network"
        raise UsageError(msg)
    runtime = KerasRuntime(dataclasses.replace(backbone, layer=names, pooling=None), model, 1)
    maps = {name: layer[0] for name, layer in zip(names, runtime(picture[np.newaxis]), strict=True)}
    flat = [name for name, values in maps.items() if values.ndim != 3]
    if flat:
        msg = f"layer {flat[0]!r} of {backbone.name} gives {maps[flat[0]].shape}, which is no map: name another layer"
        raise UsageError(msg)
    return maps


def _shown_layers(model: Any) -> list[str]:
    """The last layer of each size, at most `SHOWN_LAYERS` of them from first to last."""
    from deepfeat.runtimes.keras import named_layers

    last = {}
    for name, layer in named_layers(model).items():
        shape = getattr(layer.output, "shape", ())
        if len(shape) == 4:
            last[shape[1:3]] = name
    names = list(last.values())
    chosen = np.unique(np.linspace(0, len(names) - 1, min(SHOWN_LAYERS, len(names))).round().astype(int))
    return [names[number] for number in chosen]
