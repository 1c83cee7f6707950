"""Everything that training rows decide, in one piece, so that it can be repeated on any part of them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from joblib import parallel_config
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC, LinearSVC

from deepfeat.errors import DataError
from deepfeat.evaluation import class_scores
from deepfeat.operating_points import Wish, choose_threshold
from deepfeat.splits import Fold
from deepfeat.svm.calibration import cross_calibrate, fit_calibrator, probabilities
from deepfeat.svm.crew import Crew
from deepfeat.svm.resources import Resources, Size, Threads, count_threads, fits_memory, take_products
from deepfeat.svm.samples import Samples
from deepfeat.svm.search import Search, exact_search, grid_search, make_grid, make_pipeline
from deepfeat.svm.selection import choose_blocks, is_choice
from deepfeat.svm.shared import can_stream, pays_to_share, shared_search


class Outcome(NamedTuple):
    """What a classifier says of some rows.

    Attributes
    ----------
    predicted : ndarray of shape (n,)
    decision : ndarray of shape (n, n_classes)
    probabilities : ndarray of shape (n, n_classes) or None
    fold : ndarray of shape (n,), object
        Number of the fold that tested the row, -1 for none, or "test".
    """

    predicted: np.ndarray
    decision: np.ndarray
    probabilities: np.ndarray | None
    fold: np.ndarray


@dataclass(frozen=True)
class Learned:
    """What training rows decided.

    Attributes
    ----------
    samples : Samples
        All rows, with the chosen blocks alone.
    search : Search
    tried : pandas.DataFrame or None
        Where blocks were chosen, the sets of blocks.
    calibrator : CalibratedClassifierCV or None
    threshold : float or None
        The second class is predicted from this decision value on.
    out_of_fold : Outcome
        Of the training rows. Each fold's threshold and calibrator are of the other folds.
    """

    samples: Samples
    search: Search
    tried: pd.DataFrame | None
    calibrator: CalibratedClassifierCV | None
    threshold: float | None
    out_of_fold: Outcome

    def predict(self, rows: np.ndarray, fold: Any) -> Outcome:
        """Apply the fitted classifier to rows that it was not fitted on."""
        X = self.samples.X[rows]
        decision = class_scores(self.search.pipeline.decision_function(X))
        predicted = self.search.pipeline.predict(X) if self.threshold is None else decision[:, 1] >= self.threshold
        chances = None if self.calibrator is None else probabilities(self.calibrator, decision)
        return Outcome(predicted, decision, chances, np.full(len(rows), fold, object))


@dataclass(frozen=True)
class Procedure:
    """How parameters, blocks, calibration and threshold are chosen; see `deepfeat.fit_svm` for the parts."""

    svm: LinearSVC | SVC
    kernel: str
    fusion: str
    views: str | None
    backbones: Any
    param_grid: Any
    class_weight: Any
    scoring: Any
    engine: str
    refit: str
    max_memory: float | None
    n_jobs: int | None
    calibrate: str | None
    threshold: Wish | float | None
    crew: Crew | None = None

    def learn(self, samples: Samples, rows: np.ndarray, folds: Sequence[Fold]) -> Learned:
        """Choose and fit on some rows.

        Parameters
        ----------
        samples : Samples
            All rows, of which no others than ``rows`` are looked at.
        rows : ndarray of int
        folds : sequence of (train, test)
            Numbers within ``rows``.
        """
        y = samples.target[rows]
        self._check_folds(len(folds))

        def search(chosen: Samples) -> Search:
            return self._search(chosen, rows, y, folds)

        tried = None
        if is_choice(self.backbones):
            samples, found, tried = choose_blocks(samples, self.backbones, search)
        else:
            found = search(samples)
        predicted, decision, fold = found.out_of_fold
        tested = fold >= 0
        self._check_folds(len(np.unique(fold[tested])))
        if self.calibrate is not None or isinstance(self.threshold, Wish):
            _refuse_sets_of_several_folds(samples.sets[rows][tested], fold[tested])
        chances = calibrator = None
        if self.calibrate is not None:
            _refuse_untested_classes(y, tested)
            calibrator = fit_calibrator(decision[tested], y[tested], self.calibrate)
            chances = np.full(decision.shape, np.nan)
            chances[tested] = cross_calibrate(decision[tested], y[tested], fold[tested], self.calibrate)
        if self.threshold is not None:
            predicted = predicted.copy()
            predicted[tested] = self._decide(decision[tested, 1], y[tested], fold[tested])
        outcome = Outcome(predicted, decision, chances, fold.astype(object))
        threshold = self._choose(y[tested], decision[tested, 1])
        return Learned(samples, found, tried, calibrator, threshold, outcome)

    def _search(self, samples: Samples, rows: np.ndarray, y: np.ndarray, folds: Sequence[Fold]) -> Search:
        widths = list(samples.blocks.values())
        grid = make_grid(self.kernel, self.param_grid, self.class_weight, sum(widths))
        pipeline = make_pipeline(self.svm, self.fusion, widths, len(samples.views), self.views)
        extend = isinstance(self.param_grid, str)
        if self.engine == "sklearn":
            with contextlib.nullcontext() if self.crew is None else parallel_config("dask", client=self.crew.client):
                return grid_search(pipeline, grid, samples.X[rows], y, folds, self.scoring, self.n_jobs, extend=extend)
        streamed, threads = self._plan(pipeline, samples, grid, len(rows), len(folds))
        elsewhere = None if self.crew is None else partial(self.crew.score, list(samples.blocks), rows)
        use = Resources(take_products(self.max_memory), widths, *threads, elsewhere)
        if streamed:
            return shared_search(pipeline, grid, samples.X, y, rows, folds, self.scoring, use, extend=extend)
        # Where these are all rows, no copy is made.
        X = samples.X if np.array_equal(rows, np.arange(len(samples.X))) else samples.X[rows]
        if self.crew is None and can_stream(pipeline) and pays_to_share(*X.shape):
            everything = np.arange(len(y))
            return shared_search(
                pipeline, grid, X, y, everything, folds, self.scoring, use, extend=extend, refit=self.refit
            )
        return exact_search(pipeline, grid, X, y, folds, self.scoring, use, extend=extend, refit=self.refit)

    def _plan(
        self, pipeline: Pipeline, samples: Samples, grid: Mapping[str, Sequence[Any]], n_rows: int, n_folds: int
    ) -> tuple[bool, Threads]:
        """Whether rows are read in blocks, for lack of memory, and the threads."""
        stacked = len(samples.views) if self.views in ("augment", "vote") else 1
        # The engine solves for the hinge loss in float64.
        itemsize = 8 if getattr(self.svm, "loss", None) == "hinge" else samples.X.dtype.itemsize
        size = Size(n_rows * stacked, samples.X.shape[1] // len(samples.views), itemsize)
        n_classes = len(np.unique(samples.target))
        n_parts = 1 if n_classes == 2 else n_classes
        needs, instead = size.linear(), {}
        if isinstance(self.svm, SVC):
            needs, instead = size.kernel(), {"kernel='linear'": size.linear()}
            n_parts = len(ParameterGrid(dict(grid)))
        streamed = can_stream(pipeline) and self.refit == "auto" and not fits_memory(needs, self.max_memory)
        if streamed:
            needs, n_parts = size.streamed(n_folds * n_parts), n_rows
        return streamed, count_threads(self.n_jobs, needs, n_folds, n_parts, self.max_memory, instead)

    def _check_folds(self, n_folds: int) -> None:
        if n_folds < 2 and (self.calibrate is not None or isinstance(self.threshold, Wish)):
            raise DataError("calibration and a threshold's wish need two folds or more: cv gives one")

    def _choose(self, y: np.ndarray, values: np.ndarray) -> float | None:
        return choose_threshold(y, values, self.threshold) if isinstance(self.threshold, Wish) else self.threshold

    def _decide(self, values: np.ndarray, y: np.ndarray, fold: np.ndarray) -> np.ndarray:
        """Predict each fold by a threshold of the other folds."""
        predicted = np.empty(len(y), bool)
        for number in np.unique(fold):
            inside = fold == number
            threshold = self._choose(y[~inside], values[~inside])
            predicted[inside] = values[inside] >= threshold
        return predicted


def _refuse_untested_classes(y: np.ndarray, tested: np.ndarray) -> None:
    for label in np.unique(y):
        if (y[tested] == label).sum() < 2:
            msg = (
                f"the folds test fewer than two images of {str(label)!r}, too few to calibrate: use folds that test "
                "every image"
            )
            raise DataError(msg)


def _refuse_sets_of_several_folds(sets: np.ndarray, fold: np.ndarray) -> None:
    """Refuse folds of which one would be calibrated, or given a threshold, by images of groups that it tests itself."""
    pairs = np.unique(np.column_stack([sets, fold]), axis=0)
    n_shared = len(pairs) - len(np.unique(sets))
    if n_shared:
        msg = (
            f"images of one group are tested by different folds ({n_shared} times), so that none could be calibrated, "
            "or given a threshold, without images of its group: use a group splitter"
        )
        raise DataError(msg)
