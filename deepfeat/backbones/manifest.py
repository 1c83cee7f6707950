"""What is known of a fine-tuned network, as a JSON file beside its .keras file."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepfeat.backbones.network import Preprocessing, file_digest
from deepfeat.errors import BackboneError, UsageError
from deepfeat.provenance import DIGEST, TrainedOn

FORMAT, FORMAT_VERSION = "deepfeat fine-tuned backbone", 1

#: Name of every fine-tuned Keras model, by which its file is known when the manifest is missing.
MODEL_NAME = "deepfeat_finetuned"


@dataclass(frozen=True, eq=False)
class Manifest:
    """What a fine-tuned network is, and what made it.

    Attributes
    ----------
    name : str
        Of the backbone; it is part of the key of its features.
    weights : str
        Digest of the .keras file.
    base : dict
        Name, weights, layer, pooling and seed of the backbone that it was made from.
    input_size : tuple of int
    resize : str
    preprocessing : Preprocessing
    classes : list of str
        In the order of the columns of the layer ``scores``.
    space : str or None
        What the embeddings share with those of other networks, see docs/finetuning.md.
    fold : dict or None
        ``number`` and ``count``, of a network that was trained without one fold.
    run : str
        Digest of everything that decides the training.
    settings : dict
        The arguments of `deepfeat.finetune`.
    history : list of dict
        One for each epoch.
    versions : dict
        Of the libraries.
    trained_on : TrainedOn
    """

    name: str
    weights: str
    base: dict[str, Any]
    input_size: tuple[int, int]
    resize: str
    preprocessing: Preprocessing
    classes: list[str]
    space: str | None
    fold: dict[str, int] | None
    run: str
    settings: dict[str, Any]
    history: list[dict[str, Any]]
    versions: dict[str, str]
    trained_on: TrainedOn

    def to_json(self) -> str:
        """Describe the network as text; digests are hexadecimal."""
        lists = {"images": _to_hex(self.trained_on.images), "groups": _to_hex(self.trained_on.groups)}
        record = {**vars(self), "preprocessing": asdict(self.preprocessing), "trained_on": lists}
        return json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **record}, indent=1, default=float)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read what `to_json` wrote."""
        record = json.loads(text)
        if (record.pop("format"), record.pop("format_version")) != (FORMAT, FORMAT_VERSION):
            raise ValueError("it is of another format or version")
        lists = record.pop("trained_on")
        trained_on = TrainedOn(_from_hex(lists["images"]), _from_hex(lists["groups"]))
        numbers = record.pop("preprocessing")
        preprocessing = Preprocessing(numbers["channels"], tuple(numbers["mean"]), tuple(numbers["std"]))
        size = tuple(record.pop("input_size"))
        return cls(**record, input_size=size, preprocessing=preprocessing, trained_on=trained_on)


def manifest_path(file: Path) -> Path:
    """Where the manifest of a .keras file is."""
    return file.with_suffix(".json")


def read_manifest(file: Path) -> Manifest | None:
    """Read the manifest of a .keras file; None for a model that was not fine-tuned by deepfeat.

    Raises
    ------
    BackboneError
        If the manifest is missing, cannot be read or is of another file: nobody could tell any more on which images
        the network must not be tested.
    """
    beside = manifest_path(file)
    if not _is_finetuned(file):
        return None
    if not beside.is_file():
        msg = (
            f"{file} was fine-tuned by deepfeat, and {beside.name} is not beside it, which tells the images that it "
            "was trained on: put both into one folder, under the names that they had"
        )
        raise BackboneError(msg)
    try:
        manifest = Manifest.from_json(beside.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{beside} cannot be read: {error}"
        raise BackboneError(msg) from error
    if manifest.weights != file_digest(file):
        msg = f"{beside} is the manifest of another file than {file.name}: put those together that were made together"
        raise BackboneError(msg)
    return manifest


def refuse_finetuned(file: Path) -> None:
    """Refuse a fine-tuned network as weights of another, which would not tell what they were trained on.

    Raises
    ------
    UsageError
    """
    if _is_finetuned(file):
        msg = (
            f"weights {str(file)!r} is a whole network of deepfeat.finetune: load it by deepfeat.load_backbone, which "
            "knows the images that it was trained on"
        )
        raise UsageError(msg)


def _is_finetuned(file: Path) -> bool:
    """Whether the file says so itself, in the name of its model."""
    try:
        return bool(read_config(file)["config"]["name"] == MODEL_NAME)
    except (KeyError, TypeError):
        return False


def read_config(file: Path) -> Any:
    """Read what a .keras file says of its model; None where it cannot be read."""
    try:
        with zipfile.ZipFile(file) as archive:
            return json.loads(archive.read("config.json"))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError):
        return None


def _to_hex(digests: np.ndarray) -> list[str]:
    return [row.tobytes().hex() for row in digests]


def _from_hex(texts: list[str]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex("".join(texts)), np.uint8).reshape(len(texts), DIGEST)
