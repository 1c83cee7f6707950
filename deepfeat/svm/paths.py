"""A pipeline fitted for every candidate at once.

The parts of the pipeline before the SVM are fitted once, by scikit-learn; the SVM in its last step is solved for all
candidates by the engine for its kind. A path gives decision values for all candidates, and any one of them as
a genuine fitted estimator.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.utils.class_weight import compute_class_weight

from deepfeat.fusion import LateFusionClassifier, ViewsClassifier, slice_columns
from deepfeat.svm.gram import Block, split_columns
from deepfeat.svm.linear_path import CONVERGED, Known, solve_path
from deepfeat.svm.resources import Resources
from deepfeat.svm.threads import in_threads

Candidate = Mapping[str, Any]

#: A column with no larger values is a constant one that was centred.
_NOTHING = 1e-12


class FittedPath(Protocol):
    """An estimator fitted for all candidates.

    Attributes
    ----------
    gaps : ndarray of shape (n_candidates,)
        Largest duality gap over objective; NaN where the engine does not tell.
    converged : ndarray of shape (n_candidates,), bool
    """

    gaps: np.ndarray
    converged: np.ndarray

    def decision(self, X: np.ndarray) -> np.ndarray:
        """Return decision values of shape (n_candidates, n), or (n_candidates, n, n_classes)."""

    def choose(self, decision: np.ndarray) -> np.ndarray:
        """Return the numbers of the classes that a fitted estimator predicts from its decision values."""

    def estimator(self, index: int) -> Any:
        """Return the fitted estimator of one candidate."""


def fit_path(
    estimator: Any,
    X: np.ndarray,
    y: np.ndarray,
    candidates: Sequence[Candidate],
    use: Resources,
    known: Known | None = None,
) -> FittedPath:
    """Fit an estimator for all candidates.

    Parameters
    ----------
    estimator : Pipeline, LateFusionClassifier, ViewsClassifier, LinearSVC or SVC
        Not fitted.
    X : ndarray of shape (n, d)
        May be overwritten by what it is scaled to.
    y : ndarray of shape (n,)
    candidates : sequence of mappings
        "C", "class_weight" and, for SVC, "gamma".
    use : Resources
    known : Known, optional
        For scaling and LinearSVC, with candidates of one class weight.

    Returns
    -------
    FittedPath
    """
    given = () if known is None else (known,)
    for kind, path in _PATHS.items():
        if isinstance(estimator, kind):
            fitted: FittedPath = path(estimator, X, y, candidates, use, *given)
            return fitted
    msg = f"{type(estimator).__name__} has no path"
    raise TypeError(msg)


class _PipelinePath:
    def __init__(
        self,
        pipeline: Pipeline,
        X: Any,
        y: Any,
        candidates: Sequence[Candidate],
        use: Resources,
        known: Known | None = None,
    ) -> None:
        self._steps, scaler = [], known and known.scaler
        for name, step in pipeline.steps[:-1]:
            fitted = scaler or clone(step).fit(X, y)
            X = fitted.transform(X, copy=False) if isinstance(fitted, StandardScaler) else fitted.transform(X)
            self._steps.append((name, fitted))
        self._last, estimator = pipeline.steps[-1]
        self._path = fit_path(estimator, X, y, candidates, use, known)
        self.gaps, self.converged = self._path.gaps, self._path.converged

    def decision(self, X: np.ndarray) -> np.ndarray:
        for _, step in self._steps:
            X = step.transform(X)
        return self._path.decision(X)

    def choose(self, decision: np.ndarray) -> np.ndarray:
        return self._path.choose(decision)

    def estimator(self, index: int) -> Pipeline:
        return Pipeline([*self._steps, (self._last, self._path.estimator(index))])


class _LatePath:
    def __init__(
        self, late: LateFusionClassifier, X: Any, y: Any, candidates: Sequence[Candidate], use: Resources
    ) -> None:
        self._late, self._classes, self._width = late, np.unique(y), X.shape[1]
        self._paths = [fit_path(late.estimator, X[:, s], y, candidates, use) for s in self._slices()]
        self.gaps = np.max([path.gaps for path in self._paths], axis=0)
        self.converged = np.all([path.converged for path in self._paths], axis=0)

    def _slices(self) -> list[slice]:
        return list(slice_columns(self._late.widths, self._width))

    def decision(self, X: np.ndarray) -> np.ndarray:
        decisions = [path.decision(X[:, s]) for path, s in zip(self._paths, self._slices(), strict=True)]
        return np.asarray(np.mean(decisions, axis=0))

    def choose(self, decision: np.ndarray) -> np.ndarray:
        return greatest(decision)

    def estimator(self, index: int) -> LateFusionClassifier:
        fitted: LateFusionClassifier = clone(self._late)
        fitted.estimators_ = [path.estimator(index) for path in self._paths]
        fitted.estimator = clone(fitted.estimators_[0])
        fitted.classes_, fitted.n_features_in_ = self._classes, self._width
        return fitted


class _ViewsPath:
    def __init__(self, views: ViewsClassifier, X: Any, y: Any, candidates: Sequence[Candidate], use: Resources) -> None:
        self._views, self._classes, self._width = views, np.unique(y), X.shape[1] // views.n_views
        rows = X.reshape(len(X) * views.n_views, self._width)
        self._path = fit_path(views.estimator, rows, np.repeat(y, views.n_views), candidates, use)
        self.gaps, self.converged = self._path.gaps, self._path.converged

    def decision(self, X: np.ndarray) -> np.ndarray:
        if self._views.rule == "augment":
            return self._path.decision(X[:, : self._width])
        n_views = self._views.n_views
        values = self._path.decision(X.reshape(len(X) * n_views, self._width))
        return np.asarray(values.reshape(len(values), len(X), n_views, *values.shape[2:]).mean(axis=2))

    def choose(self, decision: np.ndarray) -> np.ndarray:
        return greatest(decision)

    def estimator(self, index: int) -> ViewsClassifier:
        fitted: ViewsClassifier = clone(self._views)
        fitted.estimator_ = self._path.estimator(index)
        fitted.estimator = clone(fitted.estimator_)
        fitted.classes_, fitted.n_features_in_ = self._classes, self._width * self._views.n_views
        return fitted


class _LinearPath:
    """LinearSVC, by Newton's method along the values of C, for each class weight."""

    def __init__(
        self,
        svm: LinearSVC,
        X: Any,
        y: Any,
        candidates: Sequence[Candidate],
        use: Resources,
        known: Known | None = None,
    ) -> None:
        self._svm, self._candidates = svm, candidates
        self._classes, codes = np.unique(y, return_inverse=True)
        k = 1 if len(self._classes) == 2 else len(self._classes)
        moment = None
        if X.shape[1] < len(X) and known is None:
            moment = use.products.moment([*split_columns(X, use.widths), Block(np.ones((len(X), 1), X.dtype))])
        self._coef = np.empty((len(candidates), k, X.shape[1] + 1))
        self.gaps, self._steps = np.empty(len(candidates)), np.empty(len(candidates), int)
        for weight, some in by_weight(candidates):
            signs, costs = one_against_the_rest(codes, len(self._classes), self._weights(weight, y))
            values = [candidates[i]["C"] for i in some]
            path = solve_path(X, signs, costs, values, svm.loss, moment=moment, known=known, n_jobs=use.n_jobs)
            self._coef[some], self.gaps[some] = path.coef, path.gap.max(axis=1)
            self._steps[some] = path.steps.max(axis=1)
        # Rounding gives it a coefficient all the same, and a new image may have anything in it.
        self._coef[..., :-1][..., np.maximum(X.max(axis=0), -X.min(axis=0)) <= _NOTHING] = 0
        self.converged = self.gaps <= CONVERGED

    def _weights(self, class_weight: Any, y: np.ndarray) -> np.ndarray:
        return np.asarray(compute_class_weight(class_weight, classes=self._classes, y=y))

    def decision(self, X: np.ndarray) -> np.ndarray:
        values = X.astype(np.float64) @ self._coef[:, :, :-1].reshape(-1, X.shape[1]).T
        values = values.reshape(len(X), len(self._coef), -1).transpose(1, 0, 2) + self._coef[:, None, :, -1]
        return values[:, :, 0] if values.shape[2] == 1 else values

    def choose(self, decision: np.ndarray) -> np.ndarray:
        return greatest(decision)

    def estimator(self, index: int) -> LinearSVC:
        parameters = {name: self._candidates[index][name] for name in ("C", "class_weight")}
        fitted = clone(self._svm).set_params(**parameters)
        fitted.coef_, fitted.intercept_ = self._coef[index, :, :-1].copy(), self._coef[index, :, -1].copy()
        fitted.classes_, fitted.n_features_in_ = self._classes, self._coef.shape[2] - 1
        fitted.n_iter_ = int(self._steps[index])
        return fitted


class _KernelPath:
    """SVC, by libsvm on a kernel that is computed once for each gamma."""

    def __init__(self, svm: SVC, X: Any, y: Any, candidates: Sequence[Candidate], use: Resources) -> None:
        self._svm, self._candidates, self._X, self._use = svm, candidates, X, use
        self._blocks = split_columns(X, use.widths)
        self._gammas = [self._resolve(candidate) for candidate in candidates]
        self._fitted: list[SVC] = [None] * len(candidates)
        for gamma in dict.fromkeys(self._gammas):
            kernel = self._kernel(self._blocks, gamma)
            some = [i for i, other in enumerate(self._gammas) if other == gamma]
            fits = (partial(self._unfitted(i).fit, kernel, y) for i in some)
            for i, fitted in zip(some, in_threads(fits, use.n_jobs), strict=True):
                self._fitted[i] = fitted
        self.gaps = np.full(len(candidates), np.nan)
        self.converged = np.array([fitted.fit_status_ == 0 for fitted in self._fitted])

    def _resolve(self, candidate: Candidate) -> float | None:
        """The number behind gamma="scale", as in scikit-learn; None for the linear kernel."""
        if self._svm.kernel == "linear":
            return None
        gamma: float | str = candidate["gamma"]
        if gamma != "scale":
            return float(gamma)
        variance = self._X.var()
        return 1 / (self._X.shape[1] * variance) if variance else 1.0

    def _kernel(self, blocks: Sequence[Block], gamma: float | None) -> np.ndarray:
        if gamma is None:
            return self._use.products.gram(blocks, self._blocks)
        distances = self._use.products.distances(blocks, self._blocks)
        return np.asarray(np.exp(distances * distances.dtype.type(-gamma)).astype(np.float64))

    def _unfitted(self, index: int) -> SVC:
        parameters = {name: self._candidates[index][name] for name in ("C", "class_weight")}
        return clone(self._svm).set_params(kernel="precomputed", **parameters)

    def decision(self, X: np.ndarray) -> np.ndarray:
        blocks = split_columns(X, self._use.widths)
        values: list[np.ndarray] = [np.empty(0)] * len(self._fitted)
        for gamma in dict.fromkeys(self._gammas):
            kernel = self._kernel(blocks, gamma)
            some = [i for i, other in enumerate(self._gammas) if other == gamma]
            parts = (partial(self._fitted[i].decision_function, kernel) for i in some)
            for i, part in zip(some, in_threads(parts, self._use.n_jobs), strict=True):
                values[i] = part
        return np.array(values)

    def choose(self, decision: np.ndarray) -> np.ndarray:
        # Decision values are votes of one class against another, and a confidence below a half. Libsvm
        # predicts by the votes alone.
        return greatest(decision if decision.ndim == 1 else np.rint(decision))

    def estimator(self, index: int) -> SVC:
        """Return an SVC with the kernel itself: what libsvm found does not depend on who computed the kernel."""
        fitted = copy.deepcopy(self._fitted[index])
        fitted.kernel = self._svm.kernel
        if self._gammas[index] is not None:
            fitted.gamma, fitted._gamma = self._candidates[index]["gamma"], self._gammas[index]
        fitted.support_vectors_ = np.asarray(self._X[fitted.support_], np.float64)
        fitted.shape_fit_, fitted.n_features_in_ = self._X.shape, self._X.shape[1]
        return fitted


_PATHS: dict[type, Any] = {
    Pipeline: _PipelinePath,
    LateFusionClassifier: _LatePath,
    ViewsClassifier: _ViewsPath,
    LinearSVC: _LinearPath,
    SVC: _KernelPath,
}


def greatest(decision: np.ndarray) -> np.ndarray:
    """Numbers of the classes with the greatest decision values, of shape (n,) or (n, n_classes)."""
    return (decision > 0).astype(int) if decision.ndim == 1 else decision.argmax(axis=1)


def by_weight(candidates: Sequence[Candidate]) -> list[tuple[Any, list[int]]]:
    """The candidates of each class weight."""
    groups: dict[str, tuple[Any, list[int]]] = {}
    for number, candidate in enumerate(candidates):
        weight = candidate["class_weight"]
        groups.setdefault(repr(weight), (weight, []))[1].append(number)
    return list(groups.values())


def one_against_the_rest(codes: np.ndarray, n_classes: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signs and costs of each sub-problem, as liblinear has them.

    With two classes there is one problem, in which both weights count; with more, a class's
    weight counts where the class is set against the rest, and the rest has weight 1.
    """
    if n_classes == 2:
        return np.where(codes == 1, 1.0, -1.0)[:, None], weights[codes][:, None]
    positive = codes[:, None] == np.arange(n_classes)
    return np.where(positive, 1.0, -1.0), np.where(positive, weights, 1.0)
