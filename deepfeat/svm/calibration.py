"""Decision values become probabilities.

A calibrator is fitted on decision values of images that the classifier was not fitted on: those of the folds by which
its parameters were chosen, so that groups stay whole and nothing has to be fitted again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import KFold
from sklearn.utils.validation import check_is_fitted, validate_data

from deepfeat.errors import DataError

METHODS = ("sigmoid", "isotonic", "temperature")


class DecisionValues(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier whose features are decision values already.

    Attributes
    ----------
    classes_ : ndarray
    """

    def fit(self, X: Any, y: Any) -> DecisionValues:
        """Learn the names of the classes."""
        X, y = validate_data(self, X, y)
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Return X: of shape (n,) for two classes, else (n, n_classes)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False)
        return np.asarray(X[:, 0] if len(self.classes_) == 2 else X)

    def predict(self, X: Any) -> np.ndarray:
        """Return the class with the greatest decision value."""
        values = self.decision_function(X)
        return np.asarray(self.classes_[(values > 0).astype(int) if values.ndim == 1 else values.argmax(axis=1)])


def fit_calibrator(decision: np.ndarray, y: np.ndarray, method: str) -> CalibratedClassifierCV:
    """Fit the way from decision values to probabilities.

    Parameters
    ----------
    decision : ndarray of shape (n, n_classes), float
        Of each image, by a classifier that was not fitted on it or on others of its group.
    y : ndarray of shape (n,)
    method : {"sigmoid", "isotonic", "temperature"}
        Platt (1999) with equal treatment of images, Zadrozny and Elkan (2002), or Guo et al. (2017).

    Returns
    -------
    CalibratedClassifierCV
        What scikit-learn's ``CalibratedClassifierCV(classifier, ensemble=False, cv=folds)`` finds, in which the
        classifier is replaced by its decision values: `probabilities` asks it.

    Notes
    -----
    The estimator inside is frozen, so that scikit-learn's own folds change nothing.
    """
    inputs = _inputs(decision)
    known = FrozenEstimator(DecisionValues().fit(inputs, y))
    return CalibratedClassifierCV(known, method=method, ensemble=False, cv=KFold(2)).fit(inputs, y)


def probabilities(calibrator: CalibratedClassifierCV, decision: np.ndarray) -> np.ndarray:
    """Probabilities of shape (n, n_classes) for decision values of shape (n, n_classes)."""
    return np.asarray(calibrator.predict_proba(_inputs(decision)))


def cross_calibrate(decision: np.ndarray, y: np.ndarray, fold: np.ndarray, method: str) -> np.ndarray:
    """Probabilities of each fold's images by a calibrator fitted on the other folds.

    Parameters
    ----------
    decision : ndarray of shape (n, n_classes)
    y, fold : ndarray of shape (n,)
    method : str
        See `fit_calibrator`.

    Returns
    -------
    ndarray of shape (n, n_classes)

    Raises
    ------
    DataError
        If the other folds have fewer than two images of a class.
    """
    found = np.empty(decision.shape)
    for number in np.unique(fold):
        inside = fold == number
        for label in np.unique(y):
            if (y[~inside] == label).sum() < 2:
                msg = f"fewer than two images of {str(label)!r} are in folds other than {number}: too few to calibrate"
                raise DataError(msg)
        found[inside] = probabilities(fit_calibrator(decision[~inside], y[~inside], method), decision[inside])
    return found


def _inputs(decision: np.ndarray) -> np.ndarray:
    return decision[:, 1:] if decision.shape[1] == 2 else decision
