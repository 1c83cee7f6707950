from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

import deepfeat
from deepfeat import comparison
from deepfeat.bootstrap import draw_counts
from deepfeat.comparison import holm
from deepfeat.errors import DataError, UsageError

OPTIONS = {"param_grid": {"C": [0.01]}, "cv": 3}


@pytest.fixture(scope="module")
def store(tmp_path_factory, build_store, make_spec, make_table):
    """A good network, a worse one, and one that sees nothing; two images to a lesion."""
    rng = np.random.default_rng(0)
    lesion = np.arange(240) // 2
    label = np.array(["BCC", "MEL", "NV"])[lesion % 3]
    code = (lesion % 3)[:, None] == np.arange(3)
    blocks = [
        (make_spec(name), (strength * code + rng.normal(size=(240, 3))).astype(np.float32))
        for name, strength in (("Good", 3), ("Fair", 1), ("Blind", 0))
    ]
    table = make_table(240, label=list(label), group=[str(number) for number in lesion])
    return build_store(tmp_path_factory.mktemp("stores") / "s.h5", table, blocks)


@pytest.fixture(scope="module")
def results(store):
    return {n: deepfeat.fit_svm(store, backbones=n, ledger=False, **OPTIONS) for n in ("Good", "Fair", "Blind")}


def test_each_block_and_all_joined_are_compared(store):
    table = deepfeat.compare(store, n_resamples=500, ledger=False, **OPTIONS)
    joined = "Blind + Fair + Good"
    assert table["a"].tolist() == ["Blind", "Blind", "Blind", "Fair", "Fair", "Good"]
    assert table["b"].tolist() == ["Fair", "Good", joined, "Good", joined, joined]
    np.testing.assert_allclose(table["difference"], table["value_a"] - table["value_b"])
    assert (table["p_holm"] >= table["p"]).all()
    assert table["sentence"][3].startswith("Good is better than Fair: balanced accuracy of Fair and Good 0.")
    assert "after correction for 6 pairs" in table["sentence"][0]


@pytest.mark.parametrize("metric", ["balanced_accuracy", "accuracy", "auroc_macro"])
def test_values_are_those_of_the_results(results, metric):
    table = deepfeat.compare(results, metric=metric, n_resamples=100)
    values = {name: result.metrics["value"][metric] for name, result in results.items()}
    np.testing.assert_allclose(table["value_a"], [values[name] for name in table["a"]])
    np.testing.assert_allclose(table["value_b"], [values[name] for name in table["b"]])


def test_metric_of_one_class_is_that_of_per_class(results):
    table = deepfeat.compare(results, metric="recall", label="MEL", n_resamples=100)
    assert table["value_a"][0] == pytest.approx(results["Good"].per_class.loc["MEL", "recall"])
    assert "recall of MEL" in table["sentence"][0]


def test_interval_and_p_are_of_paired_resamples_of_whole_groups(results):
    row = deepfeat.compare(results, n_resamples=150, seed=5).iloc[1]
    good, blind = results["Good"].predictions, results["Blind"].predictions.loc[results["Good"].predictions.index]
    drawn = [
        sk.balanced_accuracy_score(good["label"], good["predicted"], sample_weight=weight)
        - sk.balanced_accuracy_score(blind["label"], blind["predicted"], sample_weight=weight)
        for weight in draw_counts(good["group"], 150, 5, n_folds=3)
    ]
    np.testing.assert_allclose([row["low"], row["high"]], np.quantile(drawn, [0.025, 0.975]), rtol=1e-6)
    assert row["p"] == pytest.approx(2 / 151)


def test_classifier_and_itself_do_not_differ(results):
    row = deepfeat.compare({"one": results["Fair"], "two": results["Fair"]}, n_resamples=200).iloc[0]
    assert (row["difference"], row["low"], row["high"], row["p"], row["p_holm"]) == (0, 0, 0, 1, 1)
    assert row["sentence"].startswith("No difference is shown between one and two")


def test_less_of_a_loss_is_better(results):
    row = deepfeat.compare([results["Good"], results["Blind"]], metric="hinge_loss", n_resamples=200).iloc[0]
    assert row["difference"] < 0
    assert row["sentence"].startswith("Good is better than Blind: hinge loss")


def test_results_in_a_list_are_named_by_their_blocks(results):
    table = deepfeat.compare([results["Good"], results["Fair"], results["Good"]], n_resamples=100)
    assert table[["a", "b"]].to_numpy().tolist()[:2] == [["Good (1)", "Fair"], ["Good (1)", "Good (2)"]]


def test_candidates_have_arguments_of_their_own(store):
    candidates = {"linear": {}, "rbf": {"kernel": "rbf", "param_grid": {"C": [1], "gamma": [0.1]}}}
    table = deepfeat.compare(store, candidates, n_resamples=100, backbones="Good", ledger=False, **OPTIONS)
    assert (table["a"][0], table["b"][0]) == ("linear", "rbf")
    expected = deepfeat.fit_svm(store, backbones="Good", ledger=False, **{**OPTIONS, **candidates["rbf"]})
    assert table["value_b"][0] == pytest.approx(expected.metrics["value"]["balanced_accuracy"])


def test_folds_that_are_given_once_serve_all_candidates():
    X, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 2
    table = deepfeat.compare(
        (X, y),
        {"a": {}, "b": {"loss": "hinge"}},
        cv=iter([(np.arange(30), np.arange(30, 60)), (np.arange(30, 60), np.arange(30))]),
        test=None,
        param_grid={"C": [0.1]},
    )
    assert len(table) == 1


def test_metric_that_is_not_defined_is_said():
    row = SimpleNamespace(a="Good", b="Fair", difference=np.nan, p=np.nan)
    sentence = comparison._sentence(row, "average_precision", False, 1)
    assert sentence == "Good and Fair cannot be compared: the average precision is not defined."


def test_null_classifiers_differ_in_about_five_of_a_hundred():
    """Predictions that are right by chance, two images to a group that are right together."""
    rng = np.random.default_rng(3)
    truth, group = np.arange(200) // 2 % 2, np.arange(200) // 2
    wrong = 0
    for _ in range(80):
        sides = [np.repeat(rng.random(100) < 0.7, 2) for _ in range(2)]
        fits = {
            name: stand_in(truth, np.where(right, truth, 1 - truth), group)
            for name, right in zip("ab", sides, strict=True)
        }
        wrong += deepfeat.compare(fits, metric="accuracy", n_resamples=200)["p"][0] < 0.05
    assert wrong <= 10


def stand_in(truth, guess, group):
    """An entry of a ledger with the least that a comparison needs."""
    index = pd.Index([f"img{i}" for i in range(len(truth))])
    table = pd.DataFrame({"label": truth, "predicted": guess, 0: -1.0 * guess, 1: 1.0 * guess}, index)
    table["group"], table["fold"] = group, 0
    return deepfeat.ledger.Entry("id", {"blocks": {}}, [0, 1], None, "out-of-fold", table)


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.5, 0.6], [1, 1]),
        ([0.02], [0.02]),
        ([0.01, np.nan, 0.02], [0.02, np.nan, 0.02]),
        ([], []),
    ],
)
def test_holm(p, expected):
    np.testing.assert_allclose(holm(np.array(p)), expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda r: [r["Good"]], UsageError, r"1 classifier\(s\) to compare"),
        (lambda r: [], UsageError, "0 classifier"),
        (lambda r: [r["Good"], 3], UsageError, "there is a int among the results"),
        (lambda r: {"a": r["Good"], "b": change_predictions(r["Fair"], lambda t: t.iloc[1:])}, DataError, "on 239"),
        (lambda r: {"a": r["Good"], "b": relabelled(r["Fair"])}, DataError, "other labels for the same images"),
        (lambda r: {"a": r["Good"], "b": refolded(r["Fair"])}, DataError, "other folds for the same images"),
    ],
)
def test_what_cannot_be_compared_is_refused(results, change, error, message):
    with pytest.raises(error, match=message):
        deepfeat.compare(change(results))


def test_numbers_of_groups_do_not_matter(results):
    other = change_predictions(results["Fair"], lambda t: t.assign(group=1000 - t["group"]))
    usual = deepfeat.compare({"a": results["Good"], "b": results["Fair"]}, n_resamples=100)
    pd.testing.assert_frame_equal(deepfeat.compare({"a": results["Good"], "b": other}, n_resamples=100), usual)
    parted = change_predictions(results["Fair"], lambda t: t.assign(group=np.arange(len(t))))
    with pytest.raises(DataError, match="other groups for the same images"):
        deepfeat.compare({"a": results["Good"], "b": parted}, n_resamples=100)


def change_predictions(result, change):
    return deepfeat.ledger.Entry("id", {}, result.classes, None, "out-of-fold", change(result.predictions))


def relabelled(result):
    return change_predictions(result, lambda t: t.assign(label=["NV", *t["label"][1:]]))


def refolded(result):
    return change_predictions(result, lambda t: t.assign(fold=[9, *t["fold"][1:]]))


@pytest.mark.parametrize("settings", [{}, {"positive": "MEL"}, {"calibrate": "sigmoid"}])
def test_metrics_that_are_allowed_are_those_of_a_fit(store, settings):
    result = deepfeat.fit_svm(store, param_grid={"C": [0.001]}, cv=3, ledger=False, **settings)
    # Differences of calibration errors are those of their noise, see docs/statistics.md.
    assert comparison._metrics_of(settings) == list(result.metrics.index.drop("calibration_error", errors="ignore"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"metric": "kappa"}, "metric is 'kappa': use one of accuracy"),
        ({"metric": "brier"}, "metric is 'brier': use one of accuracy"),
        ({"metric": "recall"}, "metric is 'recall': use one of accuracy"),
        ({"metric": "calibration_error", "calibrate": True}, "metric is 'calibration_error': use one of accuracy"),
        ({"label": "MEL"}, "metric is 'balanced_accuracy' of 'MEL': use one of precision, recall"),
        ({"n_resamples": 10}, "n_resamples is 10"),
        ({"n_resamples": 500.0}, "n_resamples is 500.0: use a whole number, such as 2000"),
        ({"n_resamples": "500"}, "n_resamples is '500': use a whole number"),
        ({"seed": -1}, "seed is -1: use a whole number from 0"),
        ({"candidates": ["a", "b"]}, "candidates is a list: use a mapping such as {'rbf': {'kernel': 'rbf'}}"),
        ({"candidates": {"a": {}, "b": None}}, "the candidate 'b' is None: use its arguments of fit_svm, such as {'ke"),
        ({"backbones": ["NetA"]}, "backbones says what one fit joins: pass candidates="),
    ],
)
def test_wrong_arguments_are_refused_before_the_first_fit(store, monkeypatch, wrong, said):
    monkeypatch.setattr(comparison, "fit_svm", lambda *args, **kwargs: pytest.fail("fitted"))
    with pytest.raises(UsageError, match=said):
        deepfeat.compare(store, **wrong)


def test_label_that_no_class_has_costs_one_fit_and_not_all(store, monkeypatch):
    fits, fit = [], comparison.fit_svm
    monkeypatch.setattr(comparison, "fit_svm", lambda *args, **kwargs: fits.append(fit(*args, **kwargs)) or fits[-1])
    with pytest.raises(UsageError, match="label is 'MELL': use one of 'BCC', 'MEL', 'NV'"):
        deepfeat.compare(store, metric="recall", label="MELL", param_grid={"C": [0.001]}, cv=3)
    assert len(fits) == 1


def test_wrong_arguments_are_named(results, store):
    with pytest.raises(UsageError, match="metric is 'kappa': use one of accuracy, balanced_accuracy"):
        deepfeat.compare(results, metric="kappa", n_resamples=100)
    with pytest.raises(UsageError, match="label is 'SCC': use one of 'BCC', 'MEL', 'NV'"):
        deepfeat.compare(results, metric="recall", label="SCC", n_resamples=100)
    with pytest.raises(UsageError, match="compared as they are"):
        deepfeat.compare(results, cv=3)
    with pytest.raises(UsageError, match="n_resamples is 10"):
        deepfeat.compare(results, n_resamples=10)
    with pytest.raises(UsageError, match="plain arrays have no blocks"):
        deepfeat.compare((np.ones((4, 2)), list("abab")))
    with pytest.raises(UsageError, match=r"1 classifier\(s\)"):
        deepfeat.compare(store, {"one": {}})
