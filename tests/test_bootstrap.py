from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta
from sklearn import metrics as sk

from deepfeat import bootstrap
from deepfeat.bootstrap import (
    N_BINS,
    calibration_error,
    count_independent,
    draw_counts,
    percentile_interval,
    resampled_metrics,
    standardised_within,
    widen_certain,
)
from deepfeat.errors import DataError


def test_groups_are_drawn_whole_and_as_many_as_there_are():
    groups = np.array(["b", "a", "a", "c", "b", "d"])
    counts = draw_counts(groups, 500, seed=1)
    assert counts.shape == (500, 6)
    np.testing.assert_array_equal(counts[:, 0], counts[:, 4])
    np.testing.assert_array_equal(counts[:, 1], counts[:, 2])
    np.testing.assert_array_equal(counts[:, [0, 1, 3, 5]].sum(axis=1), 4)
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.15)
    np.testing.assert_array_equal(counts, draw_counts(groups, 500, seed=1))
    assert (counts != draw_counts(groups, 500, seed=2)).any()


@pytest.mark.parametrize(("n_folds", "variance"), [(1, 1), (2, 3), (5, 2.25), (10, 19 / 9), (900, 1 + 900 / 899)])
def test_variance_of_pooled_folds_is_that_of_nadeau_and_bengio(n_folds, variance):
    rng = np.random.default_rng(n_folds)
    right = rng.random(900) < 0.7
    counts = draw_counts(np.arange(900), 20_000, 0, n_folds).astype(float)
    means = counts @ right / counts.sum(axis=1)
    np.testing.assert_allclose(means.mean(), right.mean(), atol=1e-3)
    np.testing.assert_allclose(means.var(), variance * right.var() / 900, rtol=0.05)


def test_one_group_is_drawn_of_one_or_two():
    assert draw_counts(["a", "a"], 3, 0, 2).tolist() == [[1, 1]] * 3
    assert draw_counts(["a", "b"], 20, 0, 5).sum(axis=1).tolist() == [1] * 20


@pytest.mark.parametrize(
    "groups", [[1.0, np.nan, np.nan], [None, 2, None], np.array([np.nan, np.nan, 1]), ["a", np.nan, None]]
)
def test_missing_groups_are_refused(groups):
    with pytest.raises(DataError, match="groups are missing for 2 of 3 images: give each image a value"):
        draw_counts(groups)


@pytest.mark.parametrize("n", [1, 6, 20, 300])
def test_certain_rates_have_the_interval_of_clopper_and_pearson(n):
    values = np.array([1.0, 0.0, 0.5, np.nan])
    low, high = widen_certain(values, np.array([1, 0, 0.3, np.nan]), np.array([1, 0, 0.7, np.nan]), np.full(4, n))
    np.testing.assert_allclose(low, [beta.ppf(0.025, n, 1), 0, 0.3, np.nan])
    np.testing.assert_allclose(high, [1, beta.ppf(0.975, 1, n), 0.7, np.nan])


@pytest.mark.parametrize(("n_folds", "expected"), [(1, 90), (2, 30), (5, 40)])
def test_groups_of_folds_count_as_fewer(n_folds, expected):
    assert count_independent(90, n_folds) == expected
    assert count_independent(0, n_folds) == 1


def test_interval_leaves_out_undefined_replicates():
    replicates = np.column_stack([np.arange(101.0), np.full(101, np.nan)])
    replicates[3, 0] = np.nan
    low, high = percentile_interval(replicates, 0.9)
    expected = np.nanquantile(replicates[:, 0], [0.05, 0.95])
    np.testing.assert_allclose([low[0], high[0]], expected)
    assert np.isnan([low[1], high[1]]).all()


def macro(values, weights, truth, fill=np.nan):
    present = np.array([weights[truth == k].sum() > 0 for k in range(len(values))])
    return np.nanmean(np.where(np.isnan(values), fill, values)[present])


@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("seed", range(25))
def test_metrics_of_a_resample_equal_those_of_scikit_learn_with_sample_weights(seed, n_classes):
    rng = np.random.default_rng(seed)
    n_images = int(rng.integers(12, 70))
    truth, guess = rng.integers(n_classes, size=(2, n_images))
    decision = rng.normal(size=(n_images, n_classes)).round(1)
    if n_classes == 2:
        decision[:, 0] = -decision[:, 1]
    probabilities = rng.dirichlet(np.ones(n_classes), n_images)
    counts = draw_counts(rng.integers(n_images // 2, size=n_images), 70, seed)
    overall, per_class = resampled_metrics(truth, guess, decision, counts, 1, probabilities)
    for row in (0, 35, 69):
        weights = counts[row].astype(float)
        found = overall.iloc[row]
        options = {"sample_weight": weights, "labels": np.arange(n_classes), "zero_division": np.nan}
        precision, recall, f1, support = sk.precision_recall_fscore_support(truth, guess, **options)
        for name, values in {"precision": precision, "recall": recall, "f1": f1}.items():
            known = (support > 0) if name != "precision" else ~np.isnan(values)
            np.testing.assert_allclose(per_class[name][row][known], values[known], atol=1e-6)
        assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, guess, sample_weight=weights))
        assert found["balanced_accuracy"] == pytest.approx(macro(recall, weights, truth))
        assert found["f1_macro"] == pytest.approx(macro(f1, weights, truth))
        assert found["precision_macro"] == pytest.approx(macro(precision, weights, truth, 0))
        assert found["recall"] == pytest.approx(recall[1], nan_ok=True)
        shown = decision[:, 1] if n_classes == 2 else decision
        hinge = sk.hinge_loss(truth, shown, sample_weight=weights, labels=np.arange(n_classes))
        assert found["hinge_loss"] == pytest.approx(hinge)
        for k in range(n_classes):
            if 0 < weights[truth == k].sum() < weights.sum():
                auroc = sk.roc_auc_score(truth == k, decision[:, k], sample_weight=weights)
                average = sk.average_precision_score(truth == k, decision[:, k], sample_weight=weights)
                assert per_class["auroc"][row, k] == pytest.approx(auroc)
                assert per_class["average_precision"][row, k] == pytest.approx(average)
            else:
                assert np.isnan(per_class["auroc"][row, k])
        if n_classes == 2:
            brier = sk.brier_score_loss(truth, probabilities[:, 1], sample_weight=weights)
        else:
            squares = ((probabilities - np.eye(n_classes)[truth]) ** 2).sum(axis=1)
            brier = np.average(squares, weights=weights)
        assert found["brier"] == pytest.approx(brier)


@pytest.mark.parametrize("seed", range(5))
def test_images_are_compared_within_strata(seed):
    rng = np.random.default_rng(seed)
    truth, guess = rng.integers(2, size=(2, 60))
    strata = rng.integers(4, size=60)
    values = rng.normal(size=60).round(1) * 10.0**strata
    counts = draw_counts(np.arange(60), 5, seed)
    found = resampled_metrics(truth, guess, np.column_stack([-values, values]), counts, 1, None, strata)[0]
    comparable = np.empty(60)
    for number in range(4):
        inside = values[strata == number]
        comparable[strata == number] = (inside - inside.mean()) / inside.std()
    np.testing.assert_allclose(standardised_within(values[:, None], strata)[:, 0], comparable)
    for row, weights in enumerate(counts.astype(float)):
        aurocs, pairs = [], []
        for number in range(4):
            inside = strata == number
            t, v, w = truth[inside], values[inside], weights[inside]
            if 0 < w[t == 1].sum() < w.sum():
                aurocs.append(sk.roc_auc_score(t, v, sample_weight=w))
                pairs.append(w[t == 1].sum() * w[t == 0].sum())
        assert found["auroc"][row] == pytest.approx(np.average(aurocs, weights=pairs))
        average = sk.average_precision_score(truth, comparable, sample_weight=weights)
        assert found["average_precision"][row] == pytest.approx(average)


def test_blocks_of_resamples_do_not_show(monkeypatch):
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(3, size=(2, 40))
    decision, counts = rng.normal(size=(40, 3)), draw_counts(np.arange(40) // 2, 50)
    whole, classes = resampled_metrics(truth, guess, decision, counts)
    monkeypatch.setattr(bootstrap, "_AT_A_TIME", 300)
    parts, classes_in_parts = resampled_metrics(truth, guess, decision, counts)
    np.testing.assert_allclose(whole, parts, rtol=1e-12)
    np.testing.assert_array_equal(classes["auroc"], classes_in_parts["auroc"])


def test_calibration_error_by_hand():
    # Two bins: 0.9 said and 2 of 3 right; 0.5 said and 0 of 1 right.
    probabilities = np.array([[0.9, 0.1, 0.0], [0.05, 0.9, 0.05], [0.9, 0.0, 0.1], [0.2, 0.3, 0.5]])
    truth = np.array([0, 1, 2, 0])
    assert calibration_error(truth, probabilities) == pytest.approx((3 * abs(0.9 - 2 / 3) + 0.5) / 4)


def test_calibration_error_of_two_classes_is_that_of_the_second():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.0, 1.0]])
    found = calibration_error(np.array([0, 1, 1]), probabilities)
    assert found == pytest.approx(2 * abs(0.1 - 0.5) / 3)
    assert N_BINS == 15
