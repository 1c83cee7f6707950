"""What decides a training besides images and network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from numbers import Integral, Real
from typing import Any

import pandas as pd

from deepfeat.backbones.network import check_choice
from deepfeat.errors import UsageError
from deepfeat.runtimes.selection import PRECISIONS
from deepfeat.training.augmentation import AUGMENTATIONS

SCHEDULES = ("plateau", "cyclical", "constant")
IMBALANCES = ("class_weight", "resample", None)

#: Bounds of numbers: type, least, and the value that it stays below.
_BOUNDS: dict[str, tuple[type, float, float]] = {
    "head_epochs": (Integral, 0, inf),
    "epochs": (Integral, 0, inf),
    "patience": (Integral, 1, inf),
    "batch_size": (Integral, 1, inf),
    "head_learning_rate": (Real, 0, inf),
    "learning_rate": (Real, 0, inf),
    "l2": (Real, 0, inf),
    "dropout": (Real, 0, 1),
    "seed": (Integral, 0, inf),
}


@dataclass(frozen=True)
class Settings:
    """The arguments of `deepfeat.finetune`, which explains them."""

    positive: str | None = None
    unfreeze: str | float = 0.3
    head_epochs: int = 3
    epochs: int = 50
    patience: int = 8
    batch_size: int = 32
    head_learning_rate: float = 1e-3
    learning_rate: float = 1e-4
    schedule: str = "plateau"
    imbalance: str | Mapping[str, float] | None = "class_weight"
    augment: Sequence[str] | None = ("flip", "rotate", "color")
    l2: float = 1e-4
    dropout: float = 0.3
    embedding_dim: int | None = None
    val_size: float = 0.15
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        named = () if self.augment is None else self.augment
        augment = [named] if isinstance(named, str) else list(named)
        self._set("augment", tuple(dict.fromkeys(augment)))
        for name in augment:
            check_choice("augment", name, AUGMENTATIONS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("precision", self.precision, PRECISIONS)
        self._set("imbalance", _read_imbalance(self.imbalance))
        for name, (kind, least, below) in _BOUNDS.items():
            self._set(name, _read_number(name, getattr(self, name), kind, least, below))
        if not isinstance(self.unfreeze, str):
            self._set("unfreeze", _read_number("unfreeze", self.unfreeze, Real, 0, 1.0000001))
        if self.embedding_dim is not None:
            self._set("embedding_dim", _read_number("embedding_dim", self.embedding_dim, Integral, 2, inf))
        if not isinstance(self.val_size, Real) or not 0 < self.val_size < 1:
            msg = f"val_size is {self.val_size!r}: use a share between 0 and 1, such as 0.15"
            raise UsageError(msg)
        self._set("val_size", float(self.val_size))
        if self.head_epochs + self.epochs == 0:
            raise UsageError("head_epochs and epochs are both 0: there is nothing to train")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def to_record(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def _read_imbalance(given: Any) -> Any:
    """Check what is done about classes of different sizes; weights become numbers of Python by label."""
    if not isinstance(given, Mapping | pd.Series):
        check_choice("imbalance", given, IMBALANCES)
        return given
    return {str(label): _read_number(f"imbalance of {label!r}", w, Real, 0, inf) for label, w in given.items()}


def _read_number(name: str, value: Any, kind: type[Any], least: float, below: float) -> int | float:
    """Check a number, which becomes one of Python: Keras and JSON do not take all of NumPy's."""
    if not isinstance(value, kind) or isinstance(value, bool) or not least <= value < below:
        what = "a whole number" if kind is Integral else "a finite number" if below == inf else "a number"
        upper = "" if below == inf else f" and at most {below:.6g}" if below > 1 else f" and below {below:g}"
        msg = f"{name} is {value!r}: use {what} of at least {least:g}{upper}"
        raise UsageError(msg)
    return int(value) if kind is Integral else float(value)
