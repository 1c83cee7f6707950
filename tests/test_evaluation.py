from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom
from sklearn import metrics as sk

from deepfeat.errors import DataError
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
@pytest.mark.parametrize("seed", range(50))
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


def score(truth, guess, **options):
    """Two classes, of which the second is positive."""
    return evaluate(truth, guess, class_scores(np.where(guess, 1.0, -1.0)), [0, 1], 1, **options)


def ends(found, metric):
    return found.metrics.loc[metric, ["low", "high"]].tolist()


def test_rates_that_are_certain_have_an_interval_all_the_same():
    truth = np.arange(60) < 6
    right = score(truth, truth)
    assert ends(right, "recall") == pytest.approx([0.5407, 1], abs=1e-4)
    assert ends(right, "precision") == pytest.approx([0.5407, 1], abs=1e-4)
    assert ends(right, "specificity") == pytest.approx([0.025 ** (1 / 54), 1])
    assert ends(right, "accuracy") == pytest.approx([0.025 ** (1 / 60), 1])
    np.testing.assert_allclose(right.per_class["recall_low"], [0.025 ** (1 / 54), 0.025 ** (1 / 6)])
    wrong = score(truth, ~truth)
    assert ends(wrong, "recall") == pytest.approx([0, 0.4593], abs=1e-4)
    assert ends(wrong, "accuracy") == pytest.approx([0, 1 - 0.025 ** (1 / 60)])


def test_certain_rates_count_groups_and_not_images():
    truth = np.arange(60) < 18
    assert ends(score(truth, truth, groups=np.arange(60) // 3), "recall") == pytest.approx([0.025 ** (1 / 6), 1])
    # Of 18 groups in five folds, 8 are drawn.
    assert ends(score(truth, truth, n_folds=5), "recall") == pytest.approx([0.025 ** (1 / 8), 1])


def test_rate_that_is_not_certain_keeps_its_interval():
    truth, guess = np.arange(60) < 20, np.arange(60) < 19
    found = score(truth, guess)
    assert found.metrics.low["precision"] == pytest.approx(0.025 ** (1 / 19))
    assert found.metrics.low["recall"] == pytest.approx(0.85, abs=0.03)
    assert found.metrics.high["recall"] == 1


def expected_average_precision(n_positive, n):
    """Of a random order, equation 4 of Bestgen (2015)."""
    harmonic = (1 / np.arange(1, n + 1)).sum()
    return ((n_positive - 1) / (n - 1) * (n - harmonic) + harmonic) / n


def test_average_precision_of_noise_in_strata_is_that_of_all_images():
    truth, values, held = np.arange(200) < 10, [], 0
    for seed in range(60):
        noise = np.random.default_rng(seed).normal(size=200)
        found = evaluate(
            truth, noise > 0, class_scores(noise), [0, 1], 1, strata=np.arange(200) % 5, n_folds=5, n_resamples=100
        )
        values.append(found.metrics.value["average_precision"])
        held += found.metrics.low["average_precision"] <= 0.05 <= found.metrics.high["average_precision"]
    # In each stratum alone, with 2 of 40 images, it would be 0.13.
    assert np.mean(values) == pytest.approx(expected_average_precision(10, 200), abs=0.01)
    assert held >= 55


def test_scales_of_strata_do_not_matter_to_ranking_metrics():
    rng = np.random.default_rng(0)
    truth, strata = rng.random(120) < 0.3, rng.integers(3, size=120)
    values = rng.normal(size=120) + truth
    one, other = (
        evaluate(truth, truth, class_scores(v), [0, 1], 1, strata=strata, n_resamples=50).metrics
        for v in (values, values * 10.0**strata - 3 * strata)
    )
    ranked = ["auroc", "average_precision", "average_precision_macro"]
    np.testing.assert_array_equal(one.loc[ranked], other.loc[ranked])


def test_calibration_error_has_no_interval():
    rng = np.random.default_rng(0)
    chance = rng.random(300)
    truth = rng.random(300) < chance
    options = {"probabilities": np.column_stack([1 - chance, chance])}
    found = evaluate(truth, chance > 0.5, class_scores(chance - 0.5), [0, 1], **options).metrics
    assert 0 < found.value["calibration_error"] < 0.2
    assert np.isnan(ends(score(truth, chance > 0.5, **options), "calibration_error")).all()
    assert found.low["brier"] < found.value["brier"] < found.high["brier"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["a", "x"]}, "labels has 'x', which is none of the classes: use 'a', 'b'"),
        ({"predicted": ["a", np.nan]}, "predicted has nan, which is none of the classes: use 'a', 'b'"),
        ({"groups": [np.nan, 1]}, "groups are missing for 1 of 2 images: give each image a value"),
        ({"strata": [None, 1]}, "strata are missing for 1 of 2 images: give each image a value"),
    ],
)
def test_labels_and_groups_that_are_not_known_are_refused(change, message):
    given = {"labels": ["a", "b"], "predicted": ["a", "a"], "decision": np.eye(2), "classes": ["a", "b"], **change}
    with pytest.raises(DataError, match=message):
        evaluate(**given)


def test_class_scores_of_a_binary_decision_are_two_columns():
    np.testing.assert_array_equal(class_scores(np.array([2.0, -1])), [[-2, 2], [1, -1]])
    three = np.arange(6.0).reshape(2, 3)
    assert class_scores(three) is three
