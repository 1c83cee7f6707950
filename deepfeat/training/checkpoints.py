"""The state of a training on disk, so that one that was killed goes on with the epoch that it was in."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deepfeat.errors import UsageError
from deepfeat.runtimes.keras import keras
from deepfeat.store.journal import sync, sync_folder


@dataclass
class State:
    """How far a training is.

    Attributes
    ----------
    phase : int
        0 for the head, 1 for the unfrozen layers.
    epoch : int
        Epochs of this phase that are done.
    rate : float
        Learning rate of the next epoch.
    best : float
        Least validation loss so far.
    best_epoch : int
        Number of the epoch, counted through, that had it; 0 if there was none.
    phase_best : float
        Least validation loss of this phase.
    waited : int
        Epochs since then.
    stalled : int
        Epochs since then, or since the learning rate was lowered.
    history : list of dict
        One for each epoch of both phases.
    """

    phase: int = -1
    epoch: int = 0
    rate: float = 0.0
    best: float = float("inf")
    best_epoch: int = 0
    phase_best: float = float("inf")
    waited: int = 0
    stalled: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class Checkpoints:
    """Weights, optimizer and state of one training, in a folder of its own.

    Every file is written beside its place and moved there whole. Random numbers need no file: shuffling and
    augmentation are drawn from seed and epoch, and dropout keeps its seeds among the variables of the network.
    A context manager, which leaves no folder behind in which nothing was saved.

    Parameters
    ----------
    folder : pathlib.Path
        Made if needed.
    run : str
        Digest of everything that decides the training.

    Raises
    ------
    UsageError
        If the folder holds another training.
    """

    def __init__(self, folder: Path, run: str) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._run = folder, run
        self._last = folder / "last.npz"
        self._arrays: dict[str, np.ndarray] = {}
        self.state = State()
        if self._last.exists():
            self._read()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._last.exists():
            self.remove()

    def _read(self) -> None:
        with np.load(self._last, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        record = json.loads(arrays.pop("state").tobytes())
        if record.pop("run") != self._run:
            msg = (
                f"{self._folder} holds an unfinished training with other images or settings: finish it with those, "
                "remove the folder, or pass another path"
            )
            raise UsageError(msg)
        self.state, self._arrays = State(**record), arrays

    def restore(self, network: Any, optimizer: Any) -> None:
        """Put the saved values into a network and an optimizer that are made like those that were saved."""
        for kind, variables in (("network", network.variables), ("optimizer", optimizer.variables)):
            for number, variable in enumerate(variables):
                variable.assign(self._arrays[f"{kind}/{number}"])
        self._arrays = {}

    def save(self, network: Any, optimizer: Any) -> None:
        """Write the state and everything that goes on from it; of the best weights keep those that it names."""
        text = json.dumps({**asdict(self.state), "run": self._run}).encode()
        arrays = {"state": np.frombuffer(text, np.uint8)}
        arrays |= _arrays("network", network.variables) | _arrays("optimizer", optimizer.variables)
        _write(self._last, arrays)
        for file in self._folder.glob("best-*.npz"):
            if file != self._best(self.state.best_epoch):
                file.unlink()

    def save_best(self, network: Any) -> None:
        """Write the weights of the epoch that the state calls the best; to be followed by `save`."""
        _write(self._best(self.state.best_epoch), _arrays("weights", network.weights))

    def load_best(self, network: Any) -> None:
        """Put the best weights into the network."""
        with np.load(self._best(self.state.best_epoch), allow_pickle=False) as archive:
            for number, weight in enumerate(network.weights):
                weight.assign(archive[f"weights/{number}"])

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _best(self, epoch: int) -> Path:
        return self._folder / f"best-{epoch:04d}.npz"


def _arrays(kind: str, variables: Sequence[Any]) -> dict[str, np.ndarray]:
    return {f"{kind}/{number}": keras.ops.convert_to_numpy(v) for number, v in enumerate(variables)}


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    draft = path.with_name(f"{path.name}.draft")
    with open(draft, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
        sync(file)
    os.replace(draft, path)
    sync_folder(path.parent)
