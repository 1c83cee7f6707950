"""A classifier with its networks: from image files to labels, and to what in an image spoke for them."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline

from deepfeat.backbones import Backbone, Preprocessing, load_backbone
from deepfeat.backbones.registry import as_backbones
from deepfeat.bundle import Bundle, bundle_of, read_bundle
from deepfeat.computation import CHUNK, batched, build_network, count_cores
from deepfeat.datasets import as_table
from deepfeat.errors import BackboneError, DataWarning, ImageError, UsageError
from deepfeat.evaluation import class_scores
from deepfeat.explanation import Explanation, Maps, split_decision
from deepfeat.images import LoadedImage, Preparation, decode_image, load_image, read_bytes, stream_images
from deepfeat.runtimes.selection import Runtime, open_runtime
from deepfeat.svm import SVMResult
from deepfeat.svm.calibration import probabilities
from deepfeat.verification import backbone_of, digest_weights, matches

#: What the spec of a block says that a network of deepfeat made.
_NEEDED = frozenset(
    {"backbone", "weights", "layer", "pooling", "input_size", "resize", "preprocessing", "precision", "dtype", "view"}
)


def load(
    path: str | os.PathLike[str], backbones: Backbone | Sequence[Backbone] | None = None, *, runtime: str = "auto"
) -> Classifier:
    """Load a classifier that `SVMResult.save` wrote.

    Nothing in the file is run. Before anything is built, every member, array and type in it is compared with what a
    classifier of deepfeat consists of, and whatever else there is has the file refused. That keeps strangers' code
    out; it does not tell who wrote the file or whether the classifier is any good.

    Parameters
    ----------
    path : path
    backbones : Backbone or list of Backbone, optional
        The networks whose weights are neither in the file nor those of `list_backbones`: registered networks, files
        of weights, ONNX files. Their digests must be those with which the classifier was fitted.
    runtime : {"auto", "keras", "openvino"}
        What runs the networks, see `deepfeat.extract`.

    Returns
    -------
    Classifier

    Raises
    ------
    BundleError
        If the file is no classifier, is damaged, or holds something that is not known.
    UsageError
        If a given backbone belongs to no block of the classifier.

    Examples
    --------
    >>> import deepfeat
    >>> classifier = deepfeat.load("skin.deepfeat")
    >>> classifier.predict(["photos/MEL/mel01.png", "photos/NV/nv01.png"])[["label"]]
                         label
    image_id
    photos/MEL/mel01.png   MEL
    photos/NV/nv01.png      NV
    """
    return Classifier(read_bundle(path), backbones, runtime)


def explain_images(
    classifier: Classifier | SVMResult,
    images: Any,
    label: Any = None,
    *,
    backbones: Backbone | Sequence[Backbone] | None = None,
) -> list[Explanation]:
    """Explain the decision values of several images.

    Parameters
    ----------
    classifier : Classifier or SVMResult
    images : pandas.DataFrame, path, or sequence of paths
    label : label, optional
        The class that is explained; of each image the predicted one if None.
    backbones : Backbone or list of Backbone, optional
        With a result, as in `load`.

    Returns
    -------
    list of Explanation
        In the order of the images.

    Raises
    ------
    ImageError
        For the first image that cannot be read.
    UsageError
        If the classifier has no such class, or a block has no feature maps or is not pooled by an average.
    BackboneError
        If a network is not to be had.

    Examples
    --------
    >>> import deepfeat
    >>> classifier = deepfeat.load("skin.deepfeat")
    >>> explanations = deepfeat.explain_images(classifier, ["photos/MEL/mel01.png", "photos/NV/nv01.png"], "MEL")
    >>> [explanation.label for explanation in explanations]
    ['MEL', 'MEL']
    """
    if isinstance(classifier, SVMResult):
        classifier = Classifier(bundle_of(classifier), backbones)
    return [classifier.explain(path, label) for path in as_table(images)["path"]]


class Classifier:
    """A fitted classifier together with the networks that make its features; see `deepfeat.load`.

    Parameters
    ----------
    bundle : deepfeat.bundle.Bundle
    backbones : Backbone or list of Backbone, optional
    runtime : str

    Attributes
    ----------
    pipeline : sklearn.pipeline.Pipeline
        From features to decision values; it works without any network.
    classes : list
    positive : label or None
        The class that was set against all others.
    threshold : float or None
        From which decision value on images are positive.
    description : dict
        What is known of the fit: blocks, best_params, per_class, provenance, warnings and so on.

    Raises
    ------
    UsageError
        If a given backbone belongs to no block of the classifier.

    Examples
    --------
    >>> import deepfeat
    >>> classifier = deepfeat.load("skin.deepfeat")
    >>> classifier
    <Classifier of MEL, NV on EfficientNetLite0>
    >>> classifier.description["best_params"]["C"]
    0.001
    """

    def __init__(
        self, bundle: Bundle, backbones: Backbone | Sequence[Backbone] | None = None, runtime: str = "auto"
    ) -> None:
        self.pipeline: Pipeline = bundle.pipeline
        self.classes: list[Any] = bundle.classes
        self.positive, self.threshold = bundle.positive, bundle.threshold
        self.description = bundle.description
        self._bundle, self._runtime = bundle, runtime
        self._given = as_backbones(backbones) if backbones else []
        specs = [block["spec"] for block in bundle.blocks if "spec" in block]
        for backbone in self._given:
            if not any(_matches_at_layer(backbone, spec) for spec in specs):
                msg = (
                    f"{backbone.name} has other weights or settings than each block of the classifier: "
                    f"{', '.join(block['name'] for block in bundle.blocks)}"
                )
                raise UsageError(msg)

    def __repr__(self) -> str:
        blocks = " + ".join(block["name"] for block in self._bundle.blocks)
        return f"<Classifier of {', '.join(map(str, self.classes))} on {blocks}>"

    @property
    def metrics(self) -> pd.DataFrame:
        """What the classifier scored when it was fitted; indexed by metric: value, low and high."""
        return pd.DataFrame.from_dict(self.description["metrics"], orient="index").rename_axis("metric")

    def predict(self, images: Any) -> pd.DataFrame:
        """Classify images.

        Parameters
        ----------
        images : pandas.DataFrame, path, or sequence of paths
            A table, a folder, or image files.

        Returns
        -------
        pandas.DataFrame
            Indexed by image id: path; label, the predicted class; a decision value for each class; where the
            classifier is calibrated, one "probability CLASS" for each; and failure, the reason why an image could not
            be read, whose other values are missing then.

        Raises
        ------
        BackboneError
            If a network or its weights are not to be had, or differ from those of the fit.

        Warns
        -----
        DataWarning
            For images that cannot be read.

        Examples
        --------
        >>> import deepfeat
        >>> classifier = deepfeat.load("skin.deepfeat")
        >>> table = classifier.predict("photos")
        >>> list(table.columns)
        ['path', 'label', 'MEL', 'NV', 'failure']
        >>> table.loc["NV/nv01.png", "label"]
        'NV'
        """
        table = pd.concat(list(self.stream(images)))
        failed = table[table["failure"].notna()]
        if len(failed):
            reasons = [f"{name!r}: {reason}" for name, reason in failed["failure"].head(3).items()]
            more = "; …" if len(failed) > 3 else ""
            msg = f"{len(failed)} of {len(table)} images failed ({'; '.join(reasons)}{more}): see the column failure"
            warnings.warn(msg, DataWarning, stacklevel=2)
        return table

    def stream(self, images: Any) -> Iterator[pd.DataFrame]:
        """Classify images, and hand on each batch as soon as it is done.

        Parameters
        ----------
        images : pandas.DataFrame, path, or sequence of paths

        Yields
        ------
        pandas.DataFrame
            As from `predict`, for up to 32 images.

        Raises
        ------
        BackboneError
            If a network or its weights are not to be had, or differ from those of the fit.

        Examples
        --------
        >>> import deepfeat
        >>> classifier = deepfeat.load("skin.deepfeat")
        >>> [len(part) for part in classifier.stream("photos")]
        [24]
        """
        table = as_table(images)
        for loaded in self._load(table["path"].tolist()):
            rows = [image.row for image in loaded]
            yield self._classify(table.iloc[rows], loaded)

    def decision_function(self, images: Any) -> np.ndarray:
        """Compute decision values as scikit-learn has them.

        Parameters
        ----------
        images : pandas.DataFrame, path, or sequence of paths

        Returns
        -------
        ndarray of shape (n,) for two classes, else (n, n_classes), float64

        Raises
        ------
        ImageError
            For the first image that cannot be read.
        BackboneError
            If a network or its weights are not to be had, or differ from those of the fit.

        Examples
        --------
        >>> import deepfeat
        >>> classifier = deepfeat.load("skin.deepfeat")
        >>> classifier.decision_function("photos").shape
        (24,)
        """
        table = self.predict_strictly(images)
        values = table[self.classes].to_numpy(float)
        return np.asarray(values[:, 1] if len(self.classes) == 2 else values)

    def predict_strictly(self, images: Any) -> pd.DataFrame:
        """Classify images as `predict` does, and raise an error for the first that cannot be read.

        Parameters
        ----------
        images : pandas.DataFrame, path, or sequence of paths

        Returns
        -------
        pandas.DataFrame
            As from `predict`.

        Raises
        ------
        ImageError
            For the first image that cannot be read.
        BackboneError
            If a network or its weights are not to be had, or differ from those of the fit.

        Examples
        --------
        >>> import deepfeat
        >>> classifier = deepfeat.load("skin.deepfeat")
        >>> bool(classifier.predict_strictly("photos/MEL/mel01.png")["failure"].isna().all())
        True
        """
        parts = []
        for part in self.stream(images):
            for row in part[part["failure"].notna()].itertuples():
                msg = f"{row.path}: {row.failure}"
                raise ImageError(msg)
            parts.append(part)
        return pd.concat(parts)

    def explain(self, image: str | os.PathLike[str], label: Any = None) -> Explanation:
        """Tell where in an image the decision value of a class comes from.

        With a linear kernel the decision value is split exactly; with another, each position is left out of the
        average. See docs/prediction.md.

        Parameters
        ----------
        image : path
        label : label, optional
            The class that is explained; the predicted one if None.

        Returns
        -------
        Explanation

        Raises
        ------
        ImageError
            If the image cannot be read.
        UsageError
            If the classifier has no such class, or a block has no feature maps or is not pooled by an average.
        BackboneError
            If a network is not to be had.

        Examples
        --------
        >>> import deepfeat
        >>> classifier = deepfeat.load("skin.deepfeat")
        >>> explanation = classifier.explain("photos/MEL/mel01.png", "MEL")
        >>> explanation.label, explanation.total.shape  # the evidence at each place of the feature maps
        ('MEL', (7, 7))
        """
        if label is not None and label not in self.classes:
            msg = f"label is {label!r}: the classes are {', '.join(map(repr, self.classes))}"
            raise UsageError(msg)
        path = os.fspath(image)
        picture = _read_picture(path)
        maps = self._maps(path)
        features = np.concatenate([_pool(m) for m in maps])[np.newaxis]
        decision = class_scores(self.pipeline.decision_function(features))
        column = self._choose(features, decision)[0] if label is None else self.classes.index(label)
        split = split_decision(self.pipeline, maps, column, (picture.shape[0], picture.shape[1]))
        return Explanation(path, self.classes[column], float(decision[0, column]), *split, picture)

    def _classify(self, table: pd.DataFrame, loaded: Sequence[LoadedImage]) -> pd.DataFrame:
        good = np.array([image.reason is None for image in loaded])
        decision = np.full((len(loaded), len(self.classes)), np.nan)
        chances, label = decision.copy(), np.full(len(loaded), None, object)
        if good.any():
            features = self._features([image for image in loaded if image.reason is None])
            decision[good] = class_scores(self.pipeline.decision_function(features))
            label[good] = np.array(self.classes, object)[self._choose(features, decision[good])]
            if self._bundle.calibrator is not None:
                chances[good] = probabilities(self._bundle.calibrator, decision[good])
        found = pd.DataFrame({"path": table["path"].to_numpy(object), "label": label}, dtype=object)
        found.index = pd.Index(table["image_id"], dtype=object, name="image_id")
        found[self.classes] = decision
        if self._bundle.calibrator is not None:
            found[[f"probability {name}" for name in self.classes]] = chances
        found["failure"] = pd.Series([image.reason for image in loaded], index=found.index, dtype=object)
        return found

    def _choose(self, features: np.ndarray, decision: np.ndarray) -> np.ndarray:
        """Number of the predicted class of each row."""
        if self.threshold is not None:
            return np.asarray(decision[:, 1] >= self.threshold, int)
        return np.asarray(np.searchsorted(self.pipeline.classes_, self.pipeline.predict(features)))

    def _load(self, paths: Sequence[str]) -> Iterator[list[LoadedImage]]:
        """Decode images beside the networks, in batches; the networks are looked for first."""
        wanted = {source.preparation for source in self._sources}
        items = ((row, path, wanted) for row, path in enumerate(paths))
        workers = count_cores()
        yield from batched(stream_images(items, workers=workers, ahead=2 * CHUNK + workers), CHUNK)

    def _features(self, images: Sequence[LoadedImage]) -> np.ndarray:
        return np.concatenate([source.features(images) for source in self._sources], axis=1)

    def _maps(self, path: str) -> list[Maps]:
        loaded = load_image(0, path, {source.preparation for source in self._sources})
        if loaded.reason is not None:
            msg = f"{path}: {loaded.reason}"
            raise ImageError(msg)
        return [source.maps(loaded) for source in self._sources]

    @cached_property
    def _sources(self) -> list[_Source]:
        """What makes the columns of the pipeline, in their order."""
        without = [block["name"] for block in self._bundle.blocks if not set(block.get("spec", ())) >= _NEEDED]
        if without:
            msg = (
                f"the features {without[0]!r} were not made by a network of deepfeat: "
                "give features to classifier.pipeline instead of images"
            )
            raise BackboneError(msg)
        networks = [_Network(self._backbone(block), block["spec"], self._runtime) for block in self._bundle.blocks]
        views, named = self._bundle.views, [block["name"] for block in self._bundle.blocks]
        return [
            # Alone, each block is of the view that it was extracted with.
            _Source(name, network, view if len(views) > 1 else network.spec["view"])
            for view in views
            for name, network in zip(named, networks, strict=True)
        ]

    def _backbone(self, block: Mapping[str, Any]) -> Backbone:
        """The network of a block: a given one, one whose weights are in the file, or one of `list_backbones`."""
        spec = block["spec"]
        for backbone in self._given:
            if _matches_at_layer(backbone, spec):
                return dataclasses.replace(backbone, layer=spec["layer"])
        digest = str(spec["weights"]).removeprefix("sha256:")
        file = next((self._folder / name for name in self._bundle.weights if _is_of(name, digest)), None)
        if file is None:
            return backbone_of(spec, block["name"])
        backbone = _open(file, spec)
        if not matches(backbone, spec):
            msg = f"{block['name']} was computed with other settings than the network in the file has here"
            raise BackboneError(msg)
        return backbone

    @cached_property
    def _folder(self) -> Path:
        """Where the weights of the file are as long as the classifier is."""
        self._temporary = tempfile.TemporaryDirectory(prefix="deepfeat-")
        folder = Path(self._temporary.name)
        for name, data in self._bundle.weights.items():
            (folder / name).write_bytes(data)
        return folder


class _Network:
    """A backbone with its runtimes, which are made when they are first needed."""

    def __init__(self, backbone: Backbone, spec: Mapping[str, Any], runtime: str) -> None:
        self.backbone, self.spec, self._runtime = backbone, spec, runtime

    @cached_property
    def pooled(self) -> Runtime:
        return self._open(self.backbone)

    @cached_property
    def unpooled(self) -> tuple[Runtime, str | None]:
        """The network up to its maps, and how the features come from them."""
        without = dataclasses.replace(self.backbone, pooling=None)
        runtime = self._open(without)
        if len(runtime.shapes[0]) > 1 or self.backbone.network.onnx is not None:
            return runtime, self.backbone.pooling
        from deepfeat.runtimes.keras import averaged_layer

        # A fine-tuned network averages its maps itself.
        name = averaged_layer(build_network(self.backbone), self.backbone.layers[0])
        return (runtime, None) if name is None else (self._open(dataclasses.replace(without, layer=name)), "avg")

    def _open(self, backbone: Backbone) -> Runtime:
        return open_runtime(
            backbone,
            digest_weights(backbone),
            lambda: build_network(backbone),
            runtime=self._runtime,
            precision=self.spec["precision"],
            batch_size=CHUNK,
        )


@dataclasses.dataclass(frozen=True)
class _Source:
    """One view of one block."""

    name: str
    network: _Network
    view: str

    @property
    def preparation(self) -> Preparation:
        return Preparation(self.network.backbone.input_shape[:2], self.network.backbone.resize, self.view)

    def features(self, images: Iterable[LoadedImage]) -> np.ndarray:
        pixels = np.stack([image.pixels[self.preparation] for image in images])
        # As a store keeps them.
        return self.network.pooled(pixels)[0].astype(self.network.spec["dtype"]).astype(np.float32)

    def maps(self, image: LoadedImage) -> Maps:
        runtime, pooling = self.network.unpooled
        values = runtime(image.pixels[self.preparation][np.newaxis])[0][0]
        backbone = self.network.backbone
        height, width, _ = backbone.input_shape
        return Maps(self.name, self.view, values, pooling, backbone.resize, width / height)


def _pool(maps: Maps) -> np.ndarray:
    values = maps.values
    if values.ndim != 3 or maps.pooling == "flatten":
        return values.reshape(-1)
    return np.asarray(values.mean(axis=(0, 1)))


def _matches_at_layer(backbone: Backbone, spec: Mapping[str, Any]) -> bool:
    return spec["layer"] in backbone.layers and matches(dataclasses.replace(backbone, layer=spec["layer"]), spec)


def _is_of(name: str, digest: str) -> bool:
    return name.partition(".")[0] == digest and not name.endswith(".json")


def _open(file: Path, spec: Mapping[str, Any]) -> Backbone:
    """Make a backbone of a file of weights."""
    settings = {name: spec[name] for name in ("layer", "pooling", "resize")}
    size = tuple(spec["input_size"])
    if file.suffix != ".keras":
        return Backbone(spec["backbone"], weights=file, input_size=size, **settings)
    numbers = spec["preprocessing"]
    pixels = Preprocessing(numbers["channels"], tuple(numbers["mean"]), tuple(numbers["std"]))
    backbone = load_backbone(file, preprocess=pixels, input_size=size, **settings)
    return dataclasses.replace(backbone, name=spec["backbone"])


def _read_picture(path: str) -> np.ndarray:
    try:
        return np.asarray(decode_image(read_bytes(path)))
    except ImageError as error:
        msg = f"{path}: {error}"
        raise ImageError(msg) from error
