"""Aligned feature blocks become one matrix, or one decision.

Blocks lie side by side in the columns of one matrix, in the order named, and
every estimator here knows how wide each of them is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin, clone
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from deepfeat.errors import UsageError

FUSIONS = ("concat", "average", "aligned", "late")

#: What is done with several views of each image.
VIEW_RULES = ("average", "augment", "vote", None)

#: What two blocks must share for their columns to mean the same.
_SPACE = ("backbone", "weights", "layer", "pooling", "preprocessing", "precision")


def one_space(specs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether blocks are of one embedding space.

    Those are one network, seen through different image preparation, and networks that were fine-tuned to one shared,
    fixed classifier, which their specs name as their ``space``.
    """
    shared = specs[0].get("space")
    if shared is not None and all(spec.get("space") == shared for spec in specs):
        return True
    return all(spec.get(key) == specs[0].get(key) for spec in specs for key in _SPACE)


def slice_columns(widths: Sequence[int] | None, n_features: int) -> Iterator[slice]:
    """Columns of each block; all columns are one block where no widths are given."""
    widths = [n_features] if widths is None else list(widths)
    if sum(widths) != n_features:
        msg = f"widths {widths} add up to {sum(widths)}, and X has {n_features} features"
        raise UsageError(msg)
    start = 0
    for width in widths:
        yield slice(start, start + width)
        start += width


class BlockAverage(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Average blocks of one embedding space.

    Parameters
    ----------
    widths : sequence of int, optional
        Number of columns of each block, all equal; one block if None.

    Attributes
    ----------
    n_features_in_ : int
    """

    def __init__(self, widths: Sequence[int] | None = None) -> None:
        self.widths = widths

    def fit(self, X: Any, y: Any = None) -> BlockAverage:
        """Check the widths.

        Raises
        ------
        UsageError
            If the widths differ, or do not add up to the columns of X.
        """
        X = validate_data(self, X, dtype=(np.float64, np.float32))
        widths = {s.stop - s.start for s in slice_columns(self.widths, X.shape[1])}
        if len(widths) > 1:
            msg = f"blocks of widths {sorted(widths)} cannot be averaged: use fusion='aligned', 'concat' or 'late'"
            raise UsageError(msg)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the mean of the blocks, of shape (n, width)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        return np.asarray(np.mean([X[:, s] for s in slice_columns(self.widths, X.shape[1])], axis=0))


class AlignedAverage(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Average blocks of different spaces after turning them onto one another.

    Each block is standardised and reduced by PCA to the width of the
    narrowest, scaled to unit mean square, and rotated onto the first block by
    orthogonal Procrustes [1]_; the mean of all is handed on. Everything is
    fitted on the rows given to `fit`.

    Parameters
    ----------
    widths : sequence of int, optional
        Number of columns of each block; one block if None.

    Attributes
    ----------
    n_components_ : int
        Common width: the least of the blocks' widths and the number of rows less one.
    scalers_ : list of StandardScaler
    projections_ : list of ndarray of shape (width, n_components_)
        PCA, scale and rotation of each block in one matrix.

    References
    ----------
    .. [1] Schönemann (1966), A generalized solution of the orthogonal
       Procrustes problem, Psychometrika 31, equation 3.
    """

    def __init__(self, widths: Sequence[int] | None = None) -> None:
        self.widths = widths

    def fit(self, X: Any, y: Any = None) -> AlignedAverage:
        """Fit scaling, PCA and rotation of every block."""
        X = validate_data(self, X, dtype=(np.float64, np.float32), ensure_min_samples=2)
        slices = list(slice_columns(self.widths, X.shape[1]))
        self.n_components_ = min(len(X) - 1, *(s.stop - s.start for s in slices))
        self.scalers_ = [StandardScaler().fit(X[:, s]) for s in slices]
        self.projections_ = []
        reference = None
        for scaler, columns in zip(self.scalers_, slices, strict=True):
            block = scaler.transform(X[:, columns])
            # The standardised block has mean zero, so that PCA's own centring has nothing left to do.
            components = PCA(self.n_components_, svd_solver="full").fit(block).components_.T
            scores = block @ components
            scale = 1 / (np.sqrt(np.mean(scores**2)) or 1.0)
            if reference is None:
                reference = scores * scale
                rotation = np.eye(self.n_components_)
            else:
                left, _, right = np.linalg.svd(scores.T @ reference)
                rotation = left @ right
            self.projections_.append(components * scale @ rotation)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the mean of the aligned blocks, of shape (n, n_components_)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        parts = zip(slice_columns(self.widths, X.shape[1]), self.scalers_, self.projections_, strict=True)
        return np.asarray(np.mean([scaler.transform(X[:, s]) @ projection for s, scaler, projection in parts], axis=0))


class LateFusionClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """One classifier per block; the average of their decision values decides.

    Parameters
    ----------
    estimator : classifier with decision_function, optional
        Cloned for each block; LinearSVC if None.
    widths : sequence of int, optional
        Number of columns of each block; one block if None.

    Attributes
    ----------
    classes_ : ndarray
    estimators_ : list of classifiers
    """

    def __init__(self, estimator: Any = None, widths: Sequence[int] | None = None) -> None:
        self.estimator = estimator
        self.widths = widths

    def fit(self, X: Any, y: Any) -> LateFusionClassifier:
        """Fit one clone on the columns of each block."""
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32))
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        estimator = LinearSVC() if self.estimator is None else self.estimator
        self.estimators_ = [clone(estimator).fit(X[:, s], y) for s in slice_columns(self.widths, X.shape[1])]
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the mean decision values: of shape (n,) for two classes, else (n, n_classes)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        columns = slice_columns(self.widths, X.shape[1])
        decisions = [e.decision_function(X[:, s]) for e, s in zip(self.estimators_, columns, strict=True)]
        return np.asarray(np.mean(decisions, axis=0))

    def predict(self, X: Any) -> np.ndarray:
        """Return the class with the greatest mean decision value."""
        decision = self.decision_function(X)
        return np.asarray(self.classes_[(decision > 0).astype(int) if decision.ndim == 1 else decision.argmax(axis=1)])


class ViewsClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """One classifier for all views of an image, which lie side by side in a row.

    Every view of a training image is a training row. Since a row holds all views of
    one image, no way of splitting rows can part them.

    Parameters
    ----------
    estimator : classifier with decision_function, optional
        LinearSVC if None.
    n_views : int
        Number of views; each has as many columns.
    rule : {"vote", "augment"}
        Decide by the mean of the decision values of all views, or by the first view alone.

    Attributes
    ----------
    classes_ : ndarray
    estimator_ : classifier
        Fitted on the views one below the other.
    """

    def __init__(self, estimator: Any = None, n_views: int = 1, rule: str = "vote") -> None:
        self.estimator = estimator
        self.n_views = n_views
        self.rule = rule

    def fit(self, X: Any, y: Any) -> ViewsClassifier:
        """Fit a clone on every view of every row.

        Raises
        ------
        UsageError
            If the columns cannot be divided by the number of views.
        """
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32))
        check_classification_targets(y)
        if X.shape[1] % self.n_views:
            msg = f"{X.shape[1]} columns are not {self.n_views} views of one width"
            raise UsageError(msg)
        self.classes_ = np.unique(y)
        estimator = LinearSVC() if self.estimator is None else self.estimator
        rows = X.reshape(len(X) * self.n_views, X.shape[1] // self.n_views)
        self.estimator_ = clone(estimator).fit(rows, np.repeat(y, self.n_views))
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the decision values: of shape (n,) for two classes, else (n, n_classes)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        width = X.shape[1] // self.n_views
        if self.rule == "augment":
            return np.asarray(self.estimator_.decision_function(X[:, :width]))
        values = self.estimator_.decision_function(X.reshape(len(X) * self.n_views, width))
        return np.asarray(values.reshape(len(X), self.n_views, *values.shape[1:]).mean(axis=1))

    def predict(self, X: Any) -> np.ndarray:
        """Return the class with the greatest decision value."""
        decision = self.decision_function(X)
        return np.asarray(self.classes_[(decision > 0).astype(int) if decision.ndim == 1 else decision.argmax(axis=1)])
