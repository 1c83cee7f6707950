"""finetune: from labelled images and a backbone to one that is trained on them, and says so."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepfeat.backbones import Backbone, load_backbone
from deepfeat.backbones.manifest import Manifest, manifest_path, read_manifest
from deepfeat.backbones.network import file_digest
from deepfeat.computation import versions
from deepfeat.errors import UsageError
from deepfeat.interruption import interruptible
from deepfeat.outputs import check_folder
from deepfeat.provenance import TrainedOn
from deepfeat.runtimes.keras import keras
from deepfeat.runtimes.selection import resolve
from deepfeat.splits import make_folds
from deepfeat.store import canonical_json
from deepfeat.store.lock import Lock
from deepfeat.training.checkpoints import Checkpoints
from deepfeat.training.classifier import build_classifier, build_trainer, space_name
from deepfeat.training.epochs import Data, train
from deepfeat.training.samples import Samples, class_weights, find_samples, load_pixels, split_validation
from deepfeat.training.settings import Settings
from deepfeat.verification import digest_weights

logger = logging.getLogger(__name__)


def finetune(
    images: Any,
    backbone: str | Backbone,
    path: str | os.PathLike[str] = "finetuned.keras",
    *,
    positive: str | None = None,
    unfreeze: str | float = 0.3,
    head_epochs: int = 3,
    epochs: int = 50,
    patience: int = 8,
    batch_size: int = 32,
    head_learning_rate: float = 1e-3,
    learning_rate: float = 1e-4,
    schedule: str = "plateau",
    imbalance: str | Mapping[str, float] | None = "class_weight",
    augment: str | Sequence[str] | None = ("flip", "rotate", "color"),
    l2: float = 1e-4,
    dropout: float = 0.3,
    embedding_dim: int | None = None,
    val_size: float = 0.15,
    precision: str = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Backbone:
    """Train a backbone on labelled images, and keep it with what is known of the training.

    First a classifier on top learns while the backbone is frozen, then the last layers of
    the backbone with it. The weights of the epoch with the least validation loss are kept.
    A training that was killed goes on with the epoch that it was in when it is called again in the same way;
    one that is finished is not repeated.

    Parameters
    ----------
    images : pandas.DataFrame or path
        A table with labels, or a folder with a sub-folder for each class. Images of the split "test" are
        never looked at, apart from whether they are copies; those of the split "val" tell when to stop.
    backbone : str or Backbone
        With ``weights=None`` it is trained from scratch: use ``unfreeze=1.0, head_epochs=0``.
    path : path
        Of the ``.keras`` file to make; its stem is the name of the new backbone. The manifest is
        put beside it, with the ending ``.json``, and the two belong together.
    positive : str, optional
        Train this label against all others.
    unfreeze : str or float
        The first layer of the backbone that learns in the second phase, or the part of its layers that do, from
        the end; 0 for none and 1 for all. BatchNorm layers of a backbone with trained weights stay frozen
        anyway: their statistics are applied and not changed.
    head_epochs, epochs : int
        Greatest number of epochs of the first and the second phase.
    patience : int
        Epochs without a lower validation loss after which a phase ends.
    batch_size : int
    head_learning_rate, learning_rate : float
        Of Adam, in the first and the second phase.
    schedule : {"plateau", "cyclical", "constant"}
        Halve the learning rate after two epochs without a lower validation loss; or let it go from a quarter
        of the value given to that and back in four epochs [1]_; or leave it.
    imbalance : {"class_weight", "resample", None}, or mapping or pandas.Series of label to weight
        Weigh each class in the loss by the inverse of its frequency; or show all classes equally often; or
        neither. The validation loss is weighted in the same way.
    augment : str, sequence of str or None
        Of "flip", "rotate" and "color", see `deepfeat.training.augmentation.augment`.
    l2 : float
        Factor of the penalty on the squares of kernels.
    dropout : float
        Part of the backbone's output that is left out at random, before the new layers.
    embedding_dim : int, optional
        Width of an embedding that networks share: it is trained onto fixed directions of the classes, so that
        the embeddings of several networks with the same width and classes may be averaged, see
        `deepfeat.training.classifier.class_directions`. If None, the embedding is the backbone's output.
    val_size : float
        Share of the images that tell when to stop, if no split says which: stratified, and groups
        and equal files stay whole.
    precision : {"auto", "float32", "bfloat16"}
        In which the network computes; "auto" is bfloat16 with float32 weights on a GPU, else float32.
    seed : int
        Of the validation images, new weights, order, augmentation and dropout.
    progress : bool
        Whether to show a progress bar on standard error.

    Returns
    -------
    Backbone
        As `load_backbone` gives it for ``path``: its output is the embedding, and its layer ``scores``
        has the probabilities of `Backbone.classes`. It knows its ``history`` and what it was ``trained_on``.

    Raises
    ------
    UsageError
        For an argument that is not allowed, or if the path holds another training, or something else is where the
        manifest belongs.
    DataError
        If the labels, groups or splits do not allow the training, or a file of the test equals one to train on.
    BackboneError
        If the network cannot be built, or the training diverges.
    LockedError
        If another process trains into the same path.

    Warns
    -----
    DataWarning
        For images that have no label or cannot be read, which are left out.

    Notes
    -----
    The loss is the cross-entropy of the softmax; for two classes that is the binary cross-entropy of
    the difference of the logits. Features of images that a network was trained on flatter: score classifiers
    on the test split, or use `finetune_folds`.

    References
    ----------
    .. [1] Smith (2017), Cyclical learning rates for training neural networks, WACV, section 3.

    Examples
    --------
    >>> import deepfeat
    >>> table = deepfeat.split_table(deepfeat.read_folder("photos"), test_size=0.25)
    >>> mine = deepfeat.load_backbone("mine.keras", preprocess="tf")
    >>> skin = deepfeat.finetune(table, mine, "skin.keras", head_epochs=1, epochs=1, progress=False)
    >>> skin.classes, skin.history["phase"].tolist()
    (['MEL', 'NV'], ['head', 'finetune'])
    >>> store = deepfeat.extract(table, skin, "features.h5", progress=False)
    >>> int(store.seen("skin").sum())  # the images of the test are new to the network
    18
    """
    given = dict(locals())
    settings = Settings(**{field.name: given[field.name] for field in dataclasses.fields(Settings)})
    file, base = _check(path, backbone)
    _refuse_other_json(file)
    return _train_one(find_samples(images, positive), base, file, settings, None, progress)


def finetune_folds(
    images: Any,
    backbone: str | Backbone,
    path: str | os.PathLike[str] = "finetuned.keras",
    *,
    cv: Any = 5,
    progress: bool = True,
    **settings: Any,
) -> list[Backbone]:
    """Fine-tune one network for each fold, on the images of the other folds.

    Every image is then new to one of the networks, so that features without leak exist for all. Which
    network that is, the networks say themselves: `FeatureStore.seen` tells for each image and block.

    Parameters
    ----------
    images, backbone
        As in `finetune`.
    path : path
        For "skin.keras" the networks are skin@fold0.keras, skin@fold1.keras and so on.
    cv : int, splitter or iterable of (train, test)
        Folds; stratified, and grouped where images have groups. Arrays of row numbers are of a table all of whose
        rows are trained on: none of the test, without a label or that cannot be read.
    progress : bool
        As in `finetune`.
    **settings
        As in `finetune`.

    Returns
    -------
    list of Backbone
        One for each fold.

    Raises
    ------
    UsageError, DataError, BackboneError, LockedError
        As `finetune`, and if the folds cannot be made.

    Examples
    --------
    >>> import deepfeat
    >>> mine = deepfeat.load_backbone("mine.keras", preprocess="tf")
    >>> networks = deepfeat.finetune_folds("photos", mine, "skin.keras", cv=2, head_epochs=1, epochs=0, progress=False)
    >>> [network.name for network in networks]
    ['skin@fold0', 'skin@fold1']
    >>> [len(network.trained_on.images) for network in networks]
    [12, 12]
    """
    unknown = sorted(set(settings) - {field.name for field in dataclasses.fields(Settings)})
    if unknown:
        msg = f"finetune_folds has no argument {unknown[0]!r}: it takes those of finetune"
        raise UsageError(msg)
    checked = Settings(**settings)
    file, base = _check(path, backbone)
    samples = find_samples(images, checked.positive)
    if samples.left_out and isinstance(cv, Iterable) and not hasattr(cv, "split"):
        msg = (
            f"cv has row numbers, and {samples.left_out} row(s) of the table are not trained on: take the rows of the "
            "test, without a label or that cannot be read out of the table, and number the others"
        )
        raise UsageError(msg)
    folds = make_folds(samples.names, samples.sets, cv, checked.seed)
    parts = [file.with_name(f"{file.stem}@fold{number}.keras") for number in range(len(folds))]
    for part in parts:
        _refuse_other_json(part)
    made = []
    for number, (part, (train_rows, _)) in enumerate(zip(parts, folds, strict=True)):
        fold = {"number": number, "count": len(folds)}
        made.append(_train_one(samples.take(np.sort(train_rows)), base, part, checked, fold, progress))
    return made


def _check(path: str | os.PathLike[str], backbone: str | Backbone) -> tuple[Path, Backbone]:
    file = Path(path)
    if file.suffix != ".keras":
        msg = f"path is {os.fspath(path)!r}: use a name that ends in .keras"
        raise UsageError(msg)
    check_folder(file)
    return file, Backbone(backbone) if isinstance(backbone, str) else backbone


def _refuse_other_json(file: Path) -> None:
    """Refuse to write a manifest over a file that is none."""
    beside = manifest_path(file)
    if not beside.exists():
        return
    try:
        Manifest.from_json(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{beside} is where the manifest of {file.name} belongs, and is none: move it, or pass another path"
        raise UsageError(msg) from error


def _train_one(
    samples: Samples, base: Backbone, file: Path, settings: Settings, fold: dict[str, int] | None, progress: bool
) -> Backbone:
    settings = dataclasses.replace(settings, precision=resolve("keras", settings.precision)[1])
    weights = digest_weights(base)
    run = _run_digest(samples, base, weights, settings)
    left = f"the epochs that are done are kept beside {file}, and the same call goes on with the next"
    with interruptible(left), Lock(file):
        if _is_finished(file, run):
            logger.info("%s is finished", file)
            return load_backbone(file)
        with Checkpoints(file.with_name(f"{file.name}.training"), run) as checkpoints:
            classifier, history = _train(samples, base, file, settings, checkpoints, progress)
            facts = {"base": _describe(base, weights), "fold": fold, "run": run, "history": history}
            _save(classifier, samples, base, settings, file, facts)
            checkpoints.remove()
    return load_backbone(file)


def _train(
    samples: Samples, base: Backbone, file: Path, settings: Settings, checkpoints: Checkpoints, progress: bool
) -> tuple[Any, list[dict[str, Any]]]:
    rows, validation = split_validation(samples, settings.val_size, settings.seed)
    labels, classes = samples.labels[rows], samples.classes
    val_imbalance = "class_weight" if settings.imbalance == "resample" else settings.imbalance
    data = Data(
        load_pixels(samples, base, file.with_name(f"{file.name}.training")),
        np.eye(len(classes), dtype=np.float32)[samples.labels],
        rows,
        validation,
        class_weights(labels, classes, None if settings.imbalance == "resample" else settings.imbalance),
        class_weights(labels, classes, val_imbalance),
    )
    if base.weights is None and (settings.unfreeze != 1.0 or settings.head_epochs):
        logger.warning(
            "%s has random weights, and some of them are frozen for some time: to train from scratch, use unfreeze=1.0 "
            "and head_epochs=0",
            base.name,
        )
    classifier = build_classifier(base, len(classes), settings.embedding_dim, settings.dropout, settings.seed)
    trainer, network = build_trainer(base, classifier, settings.precision)
    pretrained = base.weights is not None
    history = train(trainer, network, data, settings, checkpoints, frozen_statistics=pretrained, progress=progress)
    classifier.set_weights(network.get_weights())
    return classifier, history


def _save(
    classifier: Any, samples: Samples, base: Backbone, settings: Settings, file: Path, facts: Mapping[str, Any]
) -> None:
    """Write the network and its manifest, each whole or not at all; the network last, since it says that both exist."""
    draft = file.with_name(f"{file.stem}.draft.keras")
    classifier.save(draft)
    manifest = Manifest(
        name=file.stem,
        weights=file_digest(draft),
        input_size=base.input_shape[:2],
        resize=base.resize,
        preprocessing=base.network.preprocess,
        classes=samples.classes,
        space=space_name(samples.classes, settings.embedding_dim) if settings.embedding_dim else None,
        settings=settings.to_record(),
        versions=versions(keras.backend.backend()),
        trained_on=_trained_on(samples, base),
        **facts,
    )
    text = manifest_path(draft)
    text.write_text(manifest.to_json(), encoding="utf-8")
    os.replace(text, manifest_path(file))
    os.replace(draft, file)


def _trained_on(samples: Samples, base: Backbone) -> TrainedOn:
    """What the network has seen, with what its base had seen before."""
    new = TrainedOn.of(samples.digests, samples.table["group"])
    return new if base.trained_on is None else new.union(base.trained_on)


def _is_finished(file: Path, run: str) -> bool:
    """Whether the file is what this very training makes; another's is an error."""
    if not file.exists():
        return False
    manifest = read_manifest(file)
    if manifest is None or manifest.run != run:
        msg = f"{file} exists, and was made by other images or settings: pass another path, or remove it"
        raise UsageError(msg)
    return True


def _run_digest(samples: Samples, base: Backbone, weights: str, settings: Settings) -> str:
    """Digest of everything that decides the training."""
    digest = hashlib.sha256(canonical_json({"settings": settings.to_record(), "spec": base.specs(weights)[0]}).encode())
    columns = samples.table[["group", "split"]].fillna("").itertuples(index=False)
    for content, label, tie, row in zip(samples.digests, samples.names, samples.sets, columns, strict=True):
        digest.update(content + "\0".join([label, str(tie), *row]).encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def _describe(base: Backbone, weights: str) -> dict[str, Any]:
    return {"name": base.name, "weights": weights, "layer": base.layer, "pooling": base.pooling, "seed": base.seed}
