"""The search of `deepfeat.svm.search` for LinearSVC on rows that are read in blocks and never copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.class_weight import compute_class_weight

from deepfeat.splits import Fold
from deepfeat.svm.linear_path import CONVERGED
from deepfeat.svm.paths import by_weight, greatest, one_against_the_rest
from deepfeat.svm.resources import Resources
from deepfeat.svm.search import FoldScores, Scores, Search
from deepfeat.svm.streaming import Columns, Scaled, Stream, make_columns


def can_stream(pipeline: Pipeline) -> bool:
    """Whether the rows of a classifier can be read in blocks: scaling and LinearSVC with the squared hinge loss."""
    kinds = [type(step) for _, step in pipeline.steps]
    return kinds == [StandardScaler, LinearSVC] and pipeline[-1].loss == "squared_hinge"


def streamed_search(
    pipeline: Pipeline,
    grid: Mapping[str, Sequence[Any]],
    X: np.ndarray,
    y: np.ndarray,
    rows: np.ndarray,
    folds: Sequence[Fold],
    scoring: Any,
    use: Resources,
    *,
    extend: bool = False,
) -> Search:
    """Score every candidate on every fold, all folds and classes in the same passes, and fit the best on all rows.

    Parameters
    ----------
    pipeline : Pipeline
        One that `can_stream`.
    X : ndarray of shape (n, d)
        Of all rows, in memory or mapped from a file.
    y : ndarray of shape (len(rows),)
    rows : ndarray of int
        Training rows.
    folds : sequence of (train, test)
        Numbers within ``rows``.
    grid, scoring, use, extend
        As of `deepfeat.svm.search.exact_search`.
    """
    scores = _StreamedScores(pipeline, X, y, rows, folds, scoring, use)
    best, grid = scores.search(grid, extend=extend)
    fitted = scores.fit(best)
    return Search(fitted, best, scores.table(grid), "newton in blocks of rows", scores.out_of_fold())


class _StreamedScores(Scores):
    """Scores of which each value of C is solved from the one before, on all folds at once."""

    def __init__(
        self,
        pipeline: Pipeline,
        X: np.ndarray,
        y: np.ndarray,
        rows: np.ndarray,
        folds: Sequence[Fold],
        scoring: Any,
        use: Resources,
    ) -> None:
        super().__init__(pipeline, X, y, folds, scoring, use)
        self._rows = rows
        self._classes, codes = np.unique(y, return_inverse=True)
        self._codes = np.zeros(len(X), int)
        self._codes[rows] = codes
        self._stream = self._open([train for train, _ in folds])
        self._solved: dict[str, np.ndarray] = {}

    def _open(self, trains: Sequence[np.ndarray]) -> Stream:
        inside = np.zeros((len(self._X), len(trains)), bool)
        for fold, train in enumerate(trains):
            inside[self._rows[train], fold] = True
        return Stream(self._X, self._codes, inside, self._use.n_jobs)

    def _problems(self, weight: Any, trains: Sequence[np.ndarray]) -> Columns:
        codes, numbers = self._codes[self._rows], np.arange(len(self._classes))
        each = [compute_class_weight(weight, classes=self._classes, y=self._classes[codes[train]]) for train in trains]
        tables = [one_against_the_rest(numbers, len(numbers), weights) for weights in each]
        return make_columns(tables[0][0], [costs for _, costs in tables])

    def _score_folds(self, candidates: list[dict[str, Any]]) -> list[FoldScores]:
        n_folds, trains = len(self._folds), [train for train, _ in self._folds]
        gaps = np.empty((n_folds, len(candidates)))
        cells: list[list[Any]] = [[None] * len(candidates) for _ in self._folds]
        scores = np.empty((n_folds, len(candidates)))
        for weight, some in by_weight(candidates):
            columns = self._problems(weight, trains)
            coef = np.zeros((len(columns.fold), self._X.shape[1] + 1))
            for index in sorted(some, key=lambda i: candidates[i]["C"]):
                found = self._stream.solve(columns, candidates[index]["C"], coef)
                coef = found.coef
                gaps[:, index] = found.gap.reshape(n_folds, -1).max(axis=1)
                self._solved[repr(candidates[index])] = coef
                for fold, (_, test) in enumerate(self._folds):
                    mine = columns.fold == fold
                    decision = found.decision[self._rows[test]][:, mine].astype(float)
                    decision = decision[:, 0] if decision.shape[1] == 1 else decision
                    cell = self._classes[greatest(decision)], decision
                    make = partial(
                        self._pipeline_of, candidates[index], self._stream.folds[fold], coef[mine], found.steps[mine]
                    )
                    scores[fold, index] = self.score(test, self._classes, *cell, make)
                    cells[fold][index] = cell
        return [
            FoldScores(score.tolist(), gap, gap <= CONVERGED, outcomes)
            for score, gap, outcomes in zip(scores, gaps, cells, strict=True)
        ]

    def _take(self, rows: np.ndarray) -> np.ndarray:
        taken: np.ndarray = self._X[self._rows[rows]]
        return taken

    def fit(self, candidate: Mapping[str, Any]) -> Pipeline:
        """Fit the pipeline on all rows, from the mean of what the folds have found."""
        everything = [np.arange(len(self._rows))]
        start = self._solved[repr(dict(candidate))]
        start = start.reshape(len(self._folds), -1, start.shape[1]).mean(axis=0)
        stream = self._open(everything)
        found = stream.solve(self._problems(candidate["class_weight"], everything), candidate["C"], start)
        return self._pipeline_of(candidate, stream.folds[0], found.coef, found.steps)

    def _pipeline_of(
        self, candidate: Mapping[str, Any], scaled: Scaled, coef: np.ndarray, steps: np.ndarray
    ) -> Pipeline:
        (scale, _), (last, svm) = self._pipeline.steps
        scaler = StandardScaler()
        scaler.mean_, scaler.var_, scaler.scale_ = scaled.mean, scaled.variance, scaled.scale
        scaler.n_samples_seen_, scaler.n_features_in_ = scaled.n, len(scaled.mean)
        fitted = clone(svm).set_params(C=candidate["C"], class_weight=candidate["class_weight"])
        fitted.coef_, fitted.intercept_ = coef[:, :-1].copy(), coef[:, -1].copy()
        fitted.classes_, fitted.n_features_in_ = self._classes, len(scaled.mean)
        fitted.n_iter_ = int(steps.max())
        return Pipeline([(scale, scaler), (last, fitted)])
