from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom
from sklearn import metrics as sk

from deepfeat.evaluation import class_scores, evaluate


def random_case(seed, n_classes, missing=()):
    rng = np.random.default_rng(seed)
    classes = [f"c{k}" for k in range(n_classes)]
    n_images = int(rng.integers(2 * n_classes, 80))
    allowed = [k for k in range(n_classes) if k not in missing]
    truth = rng.choice(allowed, n_images)
    truth[: len(allowed)] = allowed
    decision = rng.normal(size=(n_images, n_classes)).round(1) + np.eye(n_classes)[truth] * rng.uniform(0, 2)
    if n_classes == 2:
        decision = class_scores(decision[:, 1] - decision[:, 0])
    guess = decision.argmax(axis=1)
    return classes, truth, guess, decision


def named(codes, classes):
    return [classes[k] for k in codes]


@pytest.mark.parametrize("n_classes", [2, 3, 8])
@pytest.mark.parametrize("seed", range(160))
def test_metrics_equal_those_of_scikit_learn(seed, n_classes):
    classes, truth, guess, decision = random_case(seed, n_classes)
    found = evaluate(named(truth, classes), named(guess, classes), decision, classes, n_resamples=0)
    values = found.metrics["value"]
    expected = {
        "accuracy": sk.accuracy_score(truth, guess),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, guess),
        "precision_macro": sk.precision_score(truth, guess, average="macro", zero_division=0),
        "recall_macro": sk.recall_score(truth, guess, average="macro"),
        "f1_macro": sk.f1_score(truth, guess, average="macro"),
        "auroc_macro": np.mean([sk.roc_auc_score(truth == k, decision[:, k]) for k in range(n_classes)]),
        "average_precision_macro": np.mean(
            [sk.average_precision_score(truth == k, decision[:, k]) for k in range(n_classes)]
        ),
        "hinge_loss": sk.hinge_loss(truth, decision[:, 1] if n_classes == 2 else decision),
    }
    assert values.to_dict() == pytest.approx(expected, abs=1e-12)
    np.testing.assert_array_equal(found.confusion, sk.confusion_matrix(truth, guess))
    precision, recall, f1, support = sk.precision_recall_fscore_support(truth, guess, zero_division=np.nan)
    for name, values in {"precision": precision, "recall": recall, "f1": f1, "support": support}.items():
        np.testing.assert_allclose(found.per_class[name], values, atol=1e-12)
    for k, name in enumerate(classes):
        specificity = sk.recall_score(truth != k, guess != k)
        assert found.per_class.loc[name, "specificity"] == pytest.approx(specificity)


@pytest.mark.parametrize("seed", range(30))
def test_class_without_images_is_left_out_of_macro_averages(seed):
    classes, truth, guess, decision = random_case(seed, 4, missing=(2,))
    found = evaluate(named(truth, classes), named(guess, classes), decision, classes, n_resamples=0)
    present = [0, 1, 3]
    assert np.isnan(found.per_class.loc["c2", "auroc"])
    assert np.isnan(found.per_class.loc["c2", "recall"])
    recalls = sk.recall_score(truth, guess, labels=present, average=None)
    assert found.metrics.value["balanced_accuracy"] == pytest.approx(recalls.mean())
    f1 = sk.f1_score(truth, guess, labels=present, average="macro")
    assert found.metrics.value["f1_macro"] == pytest.approx(f1)


def test_class_never_predicted_has_no_precision():
    decision = np.array([[1.0, -1, 0], [1, -1, 0], [1, -1, 0]])
    found = evaluate(["a", "b", "c"], ["a", "a", "a"], decision, ["a", "b", "c"])
    assert found.per_class["precision"].tolist() == pytest.approx([1 / 3, np.nan, np.nan], nan_ok=True)
    assert found.metrics.value["precision_macro"] == pytest.approx(1 / 9)


@pytest.mark.parametrize("seed", range(30))
def test_positive_class_is_reported_beside_the_averages(seed):
    classes, truth, guess, decision = random_case(seed, 2)
    values = evaluate(named(truth, classes), named(guess, classes), decision, classes, "c1").metrics["value"]
    expected = {
        "precision": sk.precision_score(truth, guess, zero_division=np.nan),
        "recall": sk.recall_score(truth, guess),
        "f1": sk.f1_score(truth, guess),
        "specificity": sk.recall_score(truth, guess, pos_label=0),
        "auroc": sk.roc_auc_score(truth, decision[:, 1]),
        "average_precision": sk.average_precision_score(truth, decision[:, 1]),
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected, nan_ok=True)


def test_interval_of_repeated_images_is_that_of_the_groups():
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=150)
    decision = class_scores(rng.normal(size=150) + truth)
    guess = decision.argmax(axis=1)
    once = evaluate(truth, guess, decision, [0, 1])
    four = [np.repeat(values, 4, axis=0) for values in (truth, guess, decision)]
    grouped = evaluate(*four, [0, 1], groups=np.arange(600) // 4)
    naive = evaluate(*four, [0, 1])
    for metric in ("accuracy", "balanced_accuracy", "auroc_macro"):
        widths = [float(e.metrics.high[metric] - e.metrics.low[metric]) for e in (once, grouped, naive)]
        assert widths[0] == pytest.approx(widths[1])
        assert widths[2] == pytest.approx(widths[0] / 2, rel=0.2)
    np.testing.assert_allclose(once.per_class["recall_low"], grouped.per_class["recall_low"])


def test_interval_of_an_accuracy_is_that_of_the_binomial_distribution():
    truth = np.zeros(400, int)
    guess = (np.arange(400) < 100).astype(int)
    found = evaluate(truth, guess, class_scores(np.where(guess, 1.0, -1.0)), [0, 1], n_resamples=4000)
    low, high = binom.ppf([0.025, 0.975], 400, 0.75) / 400
    assert found.metrics.low["accuracy"] == pytest.approx(low, abs=0.004)
    assert found.metrics.high["accuracy"] == pytest.approx(high, abs=0.004)
    assert np.isnan(found.metrics.low["auroc_macro"])


def test_class_scores_of_a_binary_decision_are_two_columns():
    np.testing.assert_array_equal(class_scores(np.array([2.0, -1])), [[-2, 2], [1, -1]])
    three = np.arange(6.0).reshape(2, 3)
    assert class_scores(three) is three
