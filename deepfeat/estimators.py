"""Fitted estimators from a file: whether their parts fit one another.

skops builds what it is told to; that the types are known does not make their content sound, and libsvm reads where
its numbers point.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.calibration import CalibratedClassifierCV
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC

from deepfeat.archives import AuditError
from deepfeat.evaluation import class_scores


def check_estimators(pipeline: Any, calibrator: Any, width: int, classes: list[Any], positive: Any) -> None:
    """Check that a pipeline and a calibrator do what their description says.

    Parameters
    ----------
    pipeline, calibrator : object
        As they were built.
    width : int
        Number of columns.
    classes : list
    positive : label or None

    Raises
    ------
    AuditError
        If they are of other types, have parts that do not fit, or do not give one finite decision value for each class.
    """
    if type(pipeline) is not Pipeline or not (calibrator is None or type(calibrator) is CalibratedClassifierCV):
        raise AuditError("its pipeline or calibrator is something else")
    for part in _parts([pipeline, calibrator]):
        if isinstance(part, Pipeline) and part.memory is not None:
            raise AuditError("its pipeline would write into a folder")
        if isinstance(part, SVC) and not _is_template(part):
            _check_svc(part)
    try:
        fits = pipeline.n_features_in_ == width
        decision = class_scores(pipeline.decision_function(np.zeros((1, pipeline.n_features_in_), np.float32)))
        labels = [False, True] if positive is not None else classes
        same = pipeline.classes_.tolist() == labels
        chances = None if calibrator is None else calibrator.predict_proba(_inputs(decision))
    # An attribute of another type than it has after a fit may fail in any way.
    except Exception as error:
        msg = f"its classifier does not work ({type(error).__name__}: {str(error)[:200]})"
        raise AuditError(msg) from error
    if not fits:
        raise AuditError("its classifier takes other features than its blocks have")
    if not same or decision.shape != (1, len(classes)) or not np.isfinite(decision).all():
        raise AuditError("its classifier does not give a finite decision value for each of its classes")
    if chances is not None and (chances.shape != decision.shape or not np.isfinite(chances).all()):
        raise AuditError("its calibrator does not give a probability for each of its classes")


def _inputs(decision: np.ndarray) -> np.ndarray:
    return decision[:, 1:] if decision.shape[1] == 2 else decision


def _parts(front: list[Any]) -> Iterator[Any]:
    seen: set[int] = set()
    while front:
        value = front.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, list | tuple):
            front.extend(value)
        elif isinstance(value, BaseEstimator) or type(value).__module__ == "sklearn.calibration":
            yield value
            front.extend(vars(value).values())


def _is_template(svc: SVC) -> bool:
    """Whether an SVM has parameters alone, as what is cloned for each block or view: it cannot predict."""
    return set(vars(svc)) <= set(vars(SVC()))


def _check_svc(svc: SVC) -> None:
    """Check the arrays that libsvm takes at their word."""
    try:
        vectors, counts = svc.support_vectors_, svc._n_support
        n_vectors, width = vectors.shape
        n_classes = len(svc.classes_)
        pairs = n_classes * (n_classes - 1) // 2
        whole = (
            svc.kernel in ("linear", "rbf")
            and svc._sparse is False
            and svc.n_features_in_ == width
            and svc.shape_fit_[1] == width
            and (counts >= 0).all()
            and (counts.dtype.kind, counts.shape, int(counts.sum())) == ("i", (n_classes,), n_vectors)
            and svc.support_.shape == (n_vectors,)
            and {svc._dual_coef_.shape, svc.dual_coef_.shape} == {(n_classes - 1, n_vectors)}
            and {svc._intercept_.shape, svc.intercept_.shape} == {(pairs,)}
            and all(np.isfinite(a).all() for a in (vectors, svc._dual_coef_, svc._intercept_))
            and np.isfinite(svc._gamma)
        )
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        msg = f"its SVM lacks a part ({str(error)[:100]})"
        raise AuditError(msg) from error
    if not whole:
        raise AuditError("the parts of its SVM do not fit one another")
