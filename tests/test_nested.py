from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, StratifiedKFold

import deepfeat
from deepfeat.errors import UsageError
from deepfeat.evaluation import evaluate, scored_rows
from deepfeat.splits import make_folds, merge_groups

GRID = {"C": [1e-4, 1e-2, 1.0]}


def lesions(n_images=120, dim=8, seed=0, signal=1.0):
    """Two classes, three images to a lesion, of which they hold the features almost alone."""
    rng = np.random.default_rng(seed)
    lesion = np.arange(n_images) // 3
    truth = (lesion % 2).astype(int)
    X = rng.normal(size=(n_images // 3, dim))[lesion] + 0.2 * rng.normal(size=(n_images, dim))
    X[:, 0] += signal * truth
    return X, np.array(["benign", "malignant"])[truth], lesion


def test_nested_predictions_are_those_of_a_fit_on_each_outer_part():
    X, y, groups = lesions()
    options = {"param_grid": GRID, "positive": "malignant", "threshold": "recall>=0.8", "calibrate": True}
    result = deepfeat.fit_svm((X, y, groups), test=None, nested=True, cv=4, seed=2, **options)
    assert result.evaluated_on == "nested"
    ids = np.arange(len(y)).astype(str)
    for number, (train, test) in enumerate(make_folds(y == "malignant", merge_groups(groups), 4, 2)):
        split = np.where(np.isin(np.arange(len(y)), test), "test", "train")
        inner = make_folds((y == "malignant")[train], merge_groups(groups)[train], 4, 2)
        alone = deepfeat.fit_svm((X[train], y[train], groups[train]), test=None, cv=inner, seed=2, **options)
        decision = alone.pipeline.decision_function(X[test])
        rows = result.predictions.loc[ids[split == "test"]]
        assert set(rows["fold"]) == {number}
        np.testing.assert_allclose(rows["malignant"], decision, rtol=1e-6)
        expected = np.where(decision >= alone.threshold, "malignant", "not malignant")
        np.testing.assert_array_equal(rows["predicted"], expected)
        chances = alone.calibrator.predict_proba(decision[:, None])[:, 1]
        np.testing.assert_allclose(rows["probability malignant"], chances, rtol=1e-5)
        assert result.nested_choices.loc[number, "C"] == alone.best_params["C"]
        assert result.nested_choices.loc[number, "threshold"] == pytest.approx(alone.threshold)


@pytest.mark.parametrize(
    ("options", "on", "n_folds"),
    [({}, "out-of-fold", 4), ({"nested": True}, "nested", 4), ({"test": 0.4, "nested": True}, "test", 1)],
)
def test_intervals_of_folds_are_wider_than_those_of_a_test(options, on, n_folds):
    result = deepfeat.fit_svm(lesions(), cv=4, param_grid={"C": [0.01]}, **{"test": None, **options})
    assert result.evaluated_on == on
    scored = scored_rows(result.predictions, on)
    expected = evaluate(
        scored["label"],
        scored["predicted"],
        scored[result.classes].to_numpy(),
        result.classes,
        groups=scored["group"],
        strata=scored["fold"] if on == "nested" else None,
        n_folds=n_folds,
    )
    pd.testing.assert_frame_equal(result.metrics, expected.metrics)
    pd.testing.assert_frame_equal(result.per_class, expected.per_class, check_names=False)


def test_optimism_is_plain_less_nested():
    X, y, groups = lesions(signal=0)
    result = deepfeat.fit_svm((X, y, groups), test=None, nested=True, param_grid=GRID)
    plain = deepfeat.fit_svm((X, y, groups), test=None, param_grid=GRID)
    pd.testing.assert_frame_equal(result.nested[["value", "low", "high"]], result.metrics)
    np.testing.assert_allclose(result.nested["optimism"], result.nested["plain"] - result.nested["value"])
    # Ranks are compared within folds here, and over all of them there.
    ranked = ["auroc_macro", "average_precision_macro"]
    same = result.nested["plain"].drop(ranked)
    pd.testing.assert_series_equal(same, plain.metrics["value"].drop(ranked), check_names=False)
    assert result.best_params == plain.best_params


def test_ranks_of_classifiers_on_different_scales_are_compared_within_folds():
    X, y, groups = lesions(signal=1.5)
    result = deepfeat.fit_svm((X, y, groups), test=None, nested=True, param_grid=GRID, positive="malignant")
    parts = [part for _, part in result.predictions.groupby("fold")]
    right = [roc_auc_score(part["label"] == "malignant", part["malignant"].astype(float)) for part in parts]
    pairs = [(part["label"] == "malignant").sum() * (part["label"] != "malignant").sum() for part in parts]
    assert result.metrics.value["auroc"] == pytest.approx(np.average(right, weights=pairs))
    assert len(set(result.nested_choices["C"])) > 1
    pooled = roc_auc_score(result.predictions["label"] == "malignant", result.predictions["malignant"].astype(float))
    assert result.metrics.value["auroc"] != pytest.approx(pooled)


def test_choosing_among_useless_features_is_optimistic_only_in_the_plain_score():
    optimism, nested = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        X, y = rng.normal(size=(60, 40)), np.arange(60) % 2
        result = deepfeat.fit_svm(
            (X, y),
            test=None,
            nested=True,
            param_grid={"C": [10.0**k for k in range(-4, 2)]},
            class_weight=None,
            seed=seed,
        )
        optimism.append(result.cv_results["mean"].max() - result.nested.value["balanced_accuracy"])
        nested.append(result.nested.value["balanced_accuracy"])
    assert np.mean(optimism) > 0.02
    assert np.mean(nested) == pytest.approx(0.5, abs=3 * np.std(nested) / np.sqrt(len(nested)) + 0.01)


def test_test_rows_keep_the_headline_and_the_nested_estimate_stands_beside():
    X, y, groups = lesions()
    result = deepfeat.fit_svm((X, y, groups), test=0.25, nested=True, param_grid=GRID)
    plain = deepfeat.fit_svm((X, y, groups), test=0.25, param_grid=GRID)
    assert result.evaluated_on == "test"
    pd.testing.assert_frame_equal(result.metrics, plain.metrics)
    trained = result.predictions["fold"] != "test"
    right = (result.predictions["label"] == result.predictions["predicted"])[trained].mean()
    assert result.nested.value["accuracy"] == pytest.approx(right)
    assert "nested estimate" in result.summary()


class Recorder(GroupKFold):
    """Remembers the groups of every split that it makes."""

    def split(self, X, y=None, groups=None):
        for train, test in super().split(X, y, groups):
            self.seen.append((set(np.asarray(groups)[train]), set(np.asarray(groups)[test])))
            yield train, test


def test_groups_are_whole_in_outer_and_inner_folds():
    X, y, groups = lesions()
    recorder = Recorder(3)
    recorder.seen = []
    deepfeat.fit_svm((X, y, groups), test=None, nested=True, cv=recorder, param_grid=GRID)
    assert len(recorder.seen) == 3 + 3 * 3
    outer, inner = recorder.seen[:3], recorder.seen[3:]
    for number, (train, _) in enumerate(outer):
        for inner_train, inner_test in inner[3 * number : 3 * number + 3]:
            assert inner_train | inner_test == train
            assert not inner_train & inner_test


def test_blocks_are_chosen_anew_in_each_outer_fold(tmp_path, build_store, make_spec, make_table):
    X, y, groups = lesions()
    table = make_table(len(X), label=list(y), group=[str(g) for g in groups])
    blocks = [(make_spec("NetA"), X[:, :4].astype(np.float32)), (make_spec("NetB"), X[:, 4:].astype(np.float32))]
    path = build_store(tmp_path / "features.h5", table, blocks).path
    result = deepfeat.fit_svm(path, backbones="top-1", test=None, nested=True, param_grid=GRID)
    assert set(result.nested_choices["blocks"]) <= {"NetA", "NetB"}
    assert "NetA" in set(result.nested_choices["blocks"])
    assert [block["name"] for block in result.provenance["blocks"]] == list(result.blocks)
    assert result.provenance["store"] == str(path)


def test_fixed_folds_cannot_be_nested():
    X, y, _ = lesions()
    folds = list(StratifiedKFold(3).split(X, y))
    with pytest.raises(
        UsageError, match="nested=True makes folds of the training part of each fold: pass cv as a number"
    ):
        deepfeat.fit_svm((X, y), test=None, nested=True, cv=folds, param_grid=GRID)


def test_threshold_needs_a_positive_class():
    X, y, _ = lesions()
    with pytest.raises(UsageError, match="needs one class to be the positive one: pass positive="):
        deepfeat.fit_svm((X, y), test=None, threshold="f1", param_grid=GRID)


def test_threshold_is_granted_on_the_test_by_choice_on_the_folds():
    X, y, groups = lesions(2400, signal=1.5)
    result = deepfeat.fit_svm((X, y, groups), test=0.4, positive="malignant", threshold="recall>=0.9", param_grid=GRID)
    tested = result.predictions[result.predictions["fold"] == "test"]
    called = tested["malignant"] >= result.threshold
    assert f"threshold  {result.threshold:.4g} on the decision value of malignant, chosen for" in result.summary()
    np.testing.assert_array_equal(called, tested["predicted"] == "malignant")
    assert result.metrics.value["recall"] == pytest.approx(0.9, abs=0.08)
    assert result.wish == "recall>=0.9"
    fixed = deepfeat.fit_svm(
        (X, y, groups), test=0.4, positive="malignant", threshold=result.threshold, param_grid=GRID
    )
    assert fixed.wish is None
    pd.testing.assert_frame_equal(fixed.metrics, result.metrics)


def test_provenance_tells_rows_and_folds_apart():
    X, y, groups = lesions()
    once = deepfeat.fit_svm((X, y, groups), test=None, param_grid=GRID).provenance
    again = deepfeat.fit_svm((X, y, groups), test=None, param_grid={"C": [1.0]}, kernel="linear").provenance
    assert (once["rows"], once["folds"]) == (again["rows"], again["folds"])
    other_folds = deepfeat.fit_svm((X, y, groups), test=None, param_grid=GRID, seed=1).provenance
    assert once["rows"] == other_folds["rows"]
    assert once["folds"] != other_folds["folds"]
    other_rows = deepfeat.fit_svm((X, y[::-1].copy(), groups), test=None, param_grid=GRID).provenance
    assert once["rows"] != other_rows["rows"]
    assert once["n_groups"] == 40
    assert once["settings"]["param_grid"] == GRID


def test_provenance_takes_numbers_of_numpy():
    X, y, groups = lesions()
    result = deepfeat.fit_svm((X, y, groups), test=np.float64(0.4), param_grid=GRID, seed=np.int64(3))
    settings = result.provenance["settings"]
    assert (settings["test"], settings["seed"]) == (0.4, 3)
    assert type(settings["seed"]) is int


def test_numbers_as_labels_keep_their_columns():
    rng = np.random.default_rng(0)
    y = np.arange(120) % 12
    X = np.eye(12)[y] + 0.1 * rng.normal(size=(120, 12))
    result = deepfeat.fit_svm((X, y), test=0.25, param_grid={"C": [1.0]})
    assert result.metrics.value["accuracy"] == 1
    np.testing.assert_array_equal(
        result.predictions[result.classes].astype(float).idxmax(axis=1), result.predictions["label"]
    )
