from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification

import deepfeat
from deepfeat.errors import DataError
from deepfeat.splits import make_folds, merge_groups
from deepfeat.svm.calibration import DecisionValues, cross_calibrate, fit_calibrator, probabilities


def problem(n_classes):
    X, y = make_classification(300, 12, n_informative=6, n_classes=n_classes, flip_y=0.2, random_state=n_classes)
    return X, np.array([f"c{label}" for label in y]), np.arange(300) // 2


@pytest.mark.parametrize("method", ["sigmoid", "isotonic", "temperature"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_probabilities_are_those_of_scikit_learn_on_grouped_folds(n_classes, method):
    X, y, groups = problem(n_classes)
    folds = make_folds(y, merge_groups(groups), 5, 0)
    result = deepfeat.fit_svm((X, y, groups), test=None, calibrate=method, param_grid={"C": [0.01]}, engine="sklearn")
    reference = CalibratedClassifierCV(result.pipeline, method=method, ensemble=False, cv=folds).fit(X, y)
    decision = result.pipeline.decision_function(X)
    found = probabilities(result.calibrator, np.column_stack([-decision, decision]) if n_classes == 2 else decision)
    np.testing.assert_allclose(found, reference.predict_proba(X), atol=1e-6)


def test_out_of_fold_probabilities_are_of_calibrators_that_have_not_seen_the_fold():
    X, y, groups = problem(2)
    result = deepfeat.fit_svm((X, y, groups), test=None, calibrate=True, param_grid={"C": [0.01]})
    rows = result.predictions
    chances = rows[["probability c0", "probability c1"]].to_numpy()
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    decision = rows[["c0", "c1"]].to_numpy()
    inside = (rows["fold"] == 2).to_numpy()
    other = fit_calibrator(decision[~inside], y[~inside], "sigmoid")
    np.testing.assert_allclose(chances[inside], probabilities(other, decision[inside]))
    # A change of one fold's labels must not move that fold's probabilities.
    swapped = np.where(inside, np.where(y == "c0", "c1", "c0"), y)
    moved = cross_calibrate(decision, swapped, rows["fold"].to_numpy(), "sigmoid")
    np.testing.assert_array_equal(moved[inside], chances[inside])
    assert (moved[~inside] != chances[~inside]).any()


def test_temperature_leaves_the_order_of_classes():
    X, y, groups = problem(3)
    fit = {"test": None, "class_weight": None, "param_grid": {"C": [0.01]}}
    rows = deepfeat.fit_svm((X, y, groups), calibrate="temperature", **fit).predictions
    likeliest = rows[["probability c0", "probability c1", "probability c2"]].to_numpy().argmax(axis=1)
    assert [f"c{number}" for number in likeliest] == rows["predicted"].tolist()
    usual = deepfeat.fit_svm((X, y, groups), calibrate=True, **fit).predictions
    assert usual["predicted"].tolist() == rows["predicted"].tolist()


def test_probabilities_come_with_their_metrics():
    X, y, groups = problem(3)
    calibrated = deepfeat.fit_svm((X, y, groups), test=0.3, calibrate=True, param_grid={"C": [0.01]})
    tested = calibrated.predictions[calibrated.predictions["fold"] == "test"]
    chances = tested[["probability c0", "probability c1", "probability c2"]].to_numpy(float)
    wanted = np.eye(3)[[int(label[1]) for label in tested["label"]]]
    assert calibrated.metrics.value["brier"] == pytest.approx(((chances - wanted) ** 2).sum(axis=1).mean())
    assert calibrated.metrics.value["calibration_error"] > 0
    assert "nan" not in calibrated.summary()
    plain = deepfeat.fit_svm((X, y, groups), test=0.3, param_grid={"C": [0.01]})
    assert "brier" not in plain.metrics.index
    assert plain.calibrator is None


@pytest.mark.parametrize(
    ("X", "y", "expected"),
    [
        ([[-1.0], [2.0]], ["a", "b"], ["a", "b"]),
        ([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 1.0, 2.0]], ["a", "b", "c"], ["a", "b", "c"]),
    ],
)
def test_decision_values_name_the_class_of_the_greatest(X, y, expected):
    assert DecisionValues().fit(X, y).predict(X).tolist() == expected


def test_one_fold_is_too_few():
    X, y, _ = problem(2)
    with pytest.raises(DataError, match="calibration and a threshold's wish need two folds or more: cv gives one"):
        deepfeat.fit_svm((X, y), test=None, calibrate=True, cv=[(np.arange(200), np.arange(200, 300))])


def test_folds_with_too_few_of_a_class_are_named():
    decision, y = np.zeros((6, 2)), np.array(["a", "b", "a", "b", "a", "a"])
    with pytest.raises(DataError, match="fewer than two images of 'b' are in folds other than 0: too few"):
        cross_calibrate(decision, y, np.array([0, 0, 1, 1, 0, 1]), "sigmoid")
