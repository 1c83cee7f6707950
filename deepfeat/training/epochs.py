"""Epoch by epoch: batches, learning rates, when to stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import balanced_accuracy_score

from deepfeat.errors import BackboneError
from deepfeat.progress import progress_bar
from deepfeat.runtimes.keras import keras
from deepfeat.training.augmentation import augment
from deepfeat.training.checkpoints import Checkpoints, State
from deepfeat.training.classifier import seed_layers, set_trainable
from deepfeat.training.settings import Settings

logger = logging.getLogger(__name__)

#: Epochs without a lower validation loss after which the learning rate is lowered, and by which factor.
PLATEAU_PATIENCE, PLATEAU_FACTOR = 2, 0.5

#: Epochs from the least learning rate of a cycle to the greatest, and what the least is of that
#: (Smith 2017, Cyclical learning rates for training neural networks, WACV, section 3).
CYCLE_EPOCHS, CYCLE_LEAST = 2, 0.25

#: Threads that prepare batches while the network learns.
_WORKERS = 2


@dataclass(frozen=True, eq=False)
class Data:
    """What a network learns from.

    Attributes
    ----------
    pixels : ndarray of shape (n, height, width, 3), uint8
    targets : ndarray of shape (n, n_classes), float32
        One-hot.
    train, validation : ndarray of int
        Row numbers.
    weights : ndarray of shape (n_classes,), float32
        Of each class in the training loss.
    val_weights : ndarray of shape (n_classes,), float32
        Of each class in the validation loss.
    """

    pixels: np.ndarray
    targets: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    weights: np.ndarray
    val_weights: np.ndarray


class Phase(NamedTuple):
    """A stretch of epochs with the same layers learning."""

    name: str
    epochs: int
    rate: float


def train(
    trainer: Any,
    network: Any,
    data: Data,
    settings: Settings,
    checkpoints: Checkpoints,
    *,
    frozen_statistics: bool,
    progress: bool,
) -> list[dict[str, Any]]:
    """Train the head, then the unfrozen layers with it, and leave the network with its best weights.

    Returns
    -------
    list of dict
        One for each epoch: epoch, phase, loss, accuracy, val_loss, val_accuracy, val_balanced_accuracy,
        learning_rate, seconds. Losses are cross-entropies weighted by class, without the penalty on weights.
    """
    state = checkpoints.state
    phases = (
        Phase("head", settings.head_epochs, settings.head_learning_rate),
        Phase("finetune", settings.epochs, settings.learning_rate),
    )
    for number, phase in enumerate(phases):
        if number < state.phase or phase.epochs == 0:
            continue
        set_trainable(network, settings.unfreeze, phase.name == "head", frozen_statistics)
        compile_trainer(trainer, network, phase.rate, settings, len(data.train))
        if number == state.phase:
            checkpoints.restore(network, trainer.optimizer)
        else:
            _begin(number, phase, network, settings, checkpoints)
        while state.epoch < phase.epochs and state.waited < settings.patience:
            log = _run_epoch(trainer, data, settings, phase, state, progress)
            if _advance(state, log, settings.schedule):
                checkpoints.save_best(network)
            checkpoints.save(network, trainer.optimizer)
    checkpoints.load_best(network)
    return state.history


def _begin(number: int, phase: Phase, network: Any, settings: Settings, checkpoints: Checkpoints) -> None:
    """Begin a phase, from the best weights of the one before."""
    state = checkpoints.state
    if state.best_epoch:
        checkpoints.load_best(network)
    seed_layers(network, settings.seed + number)
    state.phase, state.epoch, state.rate = number, 0, phase.rate
    state.phase_best, state.waited, state.stalled = float("inf"), 0, 0


def compile_trainer(trainer: Any, network: Any, rate: float, settings: Settings, n_images: int) -> None:
    """Give a model its loss, penalty, optimizer and learning rate, once it is known which layers learn."""
    penalty = keras.regularizers.L2(settings.l2) if settings.l2 else None
    for weight in network.trainable_weights:
        if len(weight.shape) > 1:
            weight.regularizer = penalty
    if settings.schedule == "cyclical":
        rate = TriangularRate(rate, CYCLE_EPOCHS * -(-n_images // settings.batch_size))
    trainer.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss=keras.losses.CategoricalCrossentropy(),
        metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        weighted_metrics=[keras.metrics.CategoricalCrossentropy(name="cross_entropy")],
        # XLA is slower than TensorFlow's own kernels on a CPU.
        jit_compile=False if keras.backend.backend() == "tensorflow" else "auto",
    )
    trainer.optimizer.build(trainer.trainable_variables)


class TriangularRate(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """A learning rate that goes up and down between a quarter of its greatest value and that (Smith 2017).

    Parameters
    ----------
    greatest : float
    half_cycle : int
        Steps from the least to the greatest.
    """

    def __init__(self, greatest: float, half_cycle: int) -> None:
        self.greatest, self.half_cycle = greatest, half_cycle

    def __call__(self, step: Any) -> Any:
        """Learning rate of a step."""
        place = keras.ops.cast(step, "float32") / self.half_cycle
        height = 1 - keras.ops.abs(keras.ops.mod(place, 2.0) - 1)
        return self.greatest * (CYCLE_LEAST + (1 - CYCLE_LEAST) * height)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {"greatest": self.greatest, "half_cycle": self.half_cycle}


def _run_epoch(
    trainer: Any, data: Data, settings: Settings, phase: Phase, state: State, progress: bool
) -> dict[str, Any]:
    """Train for one epoch and look at the validation images."""
    start = time.perf_counter()
    number = len(state.history) + 1
    if settings.schedule != "cyclical":
        trainer.optimizer.learning_rate = state.rate
    batches = Batches(data, settings, number)
    bar = _Bar(f"{phase.name} epoch {state.epoch + 1}", len(batches), progress)
    logs = trainer.fit(batches, epochs=1, verbose=0, shuffle=False, callbacks=[bar]).history
    log = {
        "epoch": number,
        "phase": phase.name,
        "loss": float(logs["cross_entropy"][-1]),
        "accuracy": float(logs["accuracy"][-1]),
        **_validate(trainer, data, settings.batch_size),
        "learning_rate": float(keras.ops.convert_to_numpy(trainer.optimizer.learning_rate)),
        "seconds": round(time.perf_counter() - start, 3),
    }
    if not np.isfinite([logs["loss"][-1], log["val_loss"]]).all():
        msg = f"the loss is not finite after {number} epoch(s): use a smaller learning_rate or head_learning_rate"
        raise BackboneError(msg)
    logger.info(
        "epoch %d (%s): loss %.3f, validation %.3f, balanced accuracy %.3f",
        number,
        phase.name,
        log["loss"],
        log["val_loss"],
        log["val_balanced_accuracy"],
    )
    return log


def _advance(state: State, log: dict[str, Any], schedule: str) -> bool:
    """Note an epoch, and lower the learning rate on a plateau; whether it was the best so far."""
    state.history.append(log)
    state.epoch += 1
    loss = log["val_loss"]
    lower = loss < state.phase_best
    state.waited, state.stalled = (0, 0) if lower else (state.waited + 1, state.stalled + 1)
    state.phase_best = min(state.phase_best, loss)
    if schedule == "plateau" and state.stalled >= PLATEAU_PATIENCE:
        state.rate, state.stalled = state.rate * PLATEAU_FACTOR, 0
    if loss < state.best:
        state.best, state.best_epoch = loss, log["epoch"]
        return True
    return False


def _validate(trainer: Any, data: Data, batch_size: int) -> dict[str, float]:
    """Loss, accuracy and balanced accuracy of the validation images, which are seen as they are."""
    scores = np.concatenate(list(_scores(trainer, data, batch_size)))
    truth = data.targets[data.validation].argmax(axis=1)
    weights = data.val_weights[truth]
    entropy = -np.log(np.maximum(scores[np.arange(len(truth)), truth], 1e-7))
    guess = scores.argmax(axis=1)
    return {
        "val_loss": float((weights * entropy).sum() / weights.sum()) if np.isfinite(entropy).all() else float("nan"),
        "val_accuracy": float((guess == truth).mean()),
        "val_balanced_accuracy": float(balanced_accuracy_score(truth, guess)),
    }


def _scores(trainer: Any, data: Data, batch_size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(data.validation), batch_size):
        images = data.pixels[data.validation[start : start + batch_size]]
        lacking = batch_size - len(images)
        filled = np.pad(images, ((0, lacking), (0, 0), (0, 0), (0, 0))) if lacking else images
        yield np.asarray(trainer.predict_on_batch(filled), np.float32)[: len(images)]


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """The training images of one epoch: shuffled, or drawn so that classes are even, and changed at random.

    Everything random is decided by the seed, the number of the epoch and the number of the batch.
    """

    def __init__(self, data: Data, settings: Settings, epoch: int) -> None:
        super().__init__(workers=_WORKERS, max_queue_size=4)
        self._data, self._settings, self._epoch = data, settings, epoch
        rng = np.random.default_rng([settings.seed, epoch])
        self._rows = _drawn_evenly(data, rng) if settings.imbalance == "resample" else rng.permutation(data.train)

    def __len__(self) -> int:
        return -(-len(self._rows) // self._settings.batch_size)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        size = self._settings.batch_size
        rows = self._rows[number * size : (number + 1) * size]
        rng = np.random.default_rng([self._settings.seed, self._epoch, number])
        images = augment(self._data.pixels[rows], tuple(self._settings.augment or ()), rng)
        targets = self._data.targets[rows]
        return images, targets, targets @ self._data.weights


def _drawn_evenly(data: Data, rng: np.random.Generator) -> np.ndarray:
    """As many rows as there are, each class as often as every other: all of its images before any a second time."""
    truth = data.targets[data.train].argmax(axis=1)
    present = np.unique(truth)
    share = -(-len(data.train) // len(present))
    drawn = []
    for label in present:
        rows = data.train[truth == label]
        whole = np.concatenate([rng.permutation(rows) for _ in range(-(-share // len(rows)))])
        drawn.append(whole[:share])
    return rng.permutation(np.concatenate(drawn))


class _Bar(keras.callbacks.Callback):  # type: ignore[misc]
    """A progress bar of one epoch on standard error."""

    def __init__(self, title: str, steps: int, shown: bool) -> None:
        super().__init__()
        self._bar = progress_bar(steps, title, "batch", shown=shown, leave=False)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._bar.update(1)

    def on_train_end(self, logs: Any = None) -> None:
        self._bar.close()
