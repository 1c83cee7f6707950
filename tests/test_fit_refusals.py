"""What fit_svm refuses before it searches, and what it no longer gets wrong in silence."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from decimal import Decimal
from enum import Enum

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array
from sklearn.model_selection import LeaveOneGroupOut, PredefinedSplit, ShuffleSplit, StratifiedKFold

import deepfeat
from deepfeat.errors import DataError, UsageError
from deepfeat.svm import experiment, procedure, shared
from deepfeat.svm.samples import Grouping, load_samples

GRID = {"C": [0.01]}


def clusters(n=60, labels=("MEL", "NV"), seed=0):
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % len(labels)
    X = rng.normal(size=(n, 5)) + codes[:, None]
    return X.astype(np.float32), np.array(labels, object)[codes], np.array([f"L{i // 6}" for i in range(n)], object)


@pytest.fixture
def no_search(monkeypatch):
    """Whatever is refused is refused before the search."""
    for name in ("exact_search", "shared_search", "grid_search"):
        monkeypatch.setattr(procedure, name, lambda *given, **more: pytest.fail("the search was begun"))


# Labels and features


@pytest.mark.parametrize(
    ("labels", "strange"),
    [
        ((0.5, 1.0), "0.5"),
        ((b"MEL", b"NV"), "b'MEL'"),
        ((date(2020, 1, 1), date(2021, 1, 1)), r"datetime.date\(2020, 1, 1\)"),
        ((pd.Timestamp(2020, 1, 1), pd.Timestamp(2021, 1, 1)), "Timestamp"),
        ((Decimal(1), Decimal(2)), r"Decimal\('1'\)"),
        ((1j, 2j), "1j"),
        (tuple(Enum("Kind", "MEL NV")), "Kind.MEL"),
        ((2**63, -1), "9223372036854775808"),
        ((1e30, 1.0), "1e[+]30"),
    ],
)
def test_labels_that_name_no_classes_are_refused(labels, strange, no_search):
    with pytest.raises(DataError, match=f"a label is .*{strange}.*: use text, or whole numbers"):
        deepfeat.fit_svm(clusters(labels=labels), param_grid=GRID)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("MEL\0", "MEL", "NV"), r"the label 'MEL\\x00' would become 'MEL' in an array"),
        ((2**53 + 1, 2**53, 5.0), "the label 9007199254740993 would become 9007199254740992.0 in an array"),
    ],
)
def test_labels_that_an_array_would_merge_are_refused(labels, message, no_search):
    with pytest.raises(DataError, match=message):
        deepfeat.fit_svm(clusters(labels=labels), param_grid=GRID)


def test_labels_of_any_whole_numbers_are_taken():
    labels = (np.int64(2**53 + 1), 2**53, np.uint8(5))
    assert load_samples(clusters(labels=labels), None, None).target.tolist()[:3] == [2**53 + 1, 2**53, 5]
    nullable = pd.array([None, *[1, 2] * 29, 1], dtype="Int64")
    assert len(load_samples((clusters()[0], nullable), None, None).y) == 59


def test_images_without_any_label_are_refused(no_search):
    X, y, _ = clusters()
    with pytest.raises(DataError, match="none of the 60 images has a label: give y the class of each image"):
        deepfeat.fit_svm((X, [None] * 60))
    with pytest.raises(DataError, match="none of the 60 images has a label"):
        deepfeat.fit_svm((X, y), labels={"MEL": None, "NV": None})


def test_masked_values_are_not_used(no_search):
    arrays = clusters()
    for number, name in enumerate(("X", "y", "groups")):
        given = list(arrays)
        given[number] = np.ma.masked_array(
            arrays[number], np.arange(len(arrays[number].ravel())).reshape(arrays[number].shape) == 7
        )
        with pytest.raises(UsageError, match=f"{name} is an array with masked values, which would be used: fill them"):
            deepfeat.fit_svm(tuple(given))
    assert len(load_samples((np.ma.masked_array(arrays[0], False), arrays[1]), None, None).y) == 60


def test_features_of_which_squares_overflow_are_refused(no_search):
    X, y, _ = clusters()
    X = X.astype(float)
    X[7, 3] = -1e120
    with pytest.raises(DataError, match=r"column 3 of X holds 1e\+120, and squares .* beyond 1e\+100 overflow: scale"):
        deepfeat.fit_svm((X, y))


def test_features_that_are_no_numbers_are_refused(no_search):
    X, y, _ = clusters()
    with pytest.raises(UsageError, match=r"X is a sparse matrix: pass X.toarray\(\)"):
        deepfeat.fit_svm((csr_array(X), y), param_grid=GRID)
    with pytest.raises(UsageError, match="X holds complex numbers: pass real ones"):
        deepfeat.fit_svm((X + 1j, y), param_grid=GRID)
    with pytest.raises(UsageError, match=r"X holds something other than numbers .*: leave such columns out"):
        deepfeat.fit_svm((pd.DataFrame(X).assign(sex="f"), y), param_grid=GRID)


def test_labels_of_arrays_keep_their_type_when_some_are_renamed():
    X, y, _ = clusters(labels=(0, 1, 2))
    options = {"labels": {2: None}, "param_grid": GRID, "test": None}
    result = deepfeat.fit_svm((X, y), positive=1, class_weight={"not 1": 1.0, 1: 2.0}, **options)
    assert result.predictions["label"].value_counts().to_dict() == {"not 1": 20, 1: 20}
    assert deepfeat.fit_svm((X, y), **options).pipeline.predict(X[:2]).tolist() == [0, 1]


def test_weights_of_one_class_against_the_rest_can_be_given_back():
    X, y, _ = clusters(labels=("MEL", "NV"))
    weights = {"not MEL": 1.0, "MEL": 5.0}
    result = deepfeat.fit_svm((X, y), positive="MEL", class_weight=weights, param_grid=GRID, test=None)
    assert result.best_params["class_weight"] == result.cv_results["class_weight"][0] == weights
    again = deepfeat.fit_svm(
        (X, y), positive="MEL", class_weight=result.best_params["class_weight"], param_grid=GRID, test=None
    )
    np.testing.assert_array_equal(again.pipeline[-1].coef_, result.pipeline[-1].coef_)


@pytest.mark.parametrize("other", [3, 2.5, None])
def test_labels_of_several_types_are_refused(other, no_search):
    X, y, groups = clusters()
    y[:5] = other
    if other is None:
        y[5:8] = 7
    with pytest.raises(DataError, match=r"several types, such as '\w+' and [37\d.]+: use text for all, or numbers"):
        deepfeat.fit_svm((X, y, groups), param_grid=GRID)


def test_half_precision_is_computed_in_single():
    X, y, _ = clusters(400)
    X = np.hstack([X, np.random.default_rng(1).normal(size=(400, 295))]).astype(np.float16)
    half = deepfeat.fit_svm((X, y), param_grid=GRID, test=None)
    single = deepfeat.fit_svm((X.astype(np.float32), y), param_grid=GRID, test=None)
    assert half.pipeline[-1].coef_.dtype == np.float64
    np.testing.assert_array_equal(half.pipeline[-1].coef_, single.pipeline[-1].coef_)


@pytest.mark.parametrize(
    ("X", "y"),
    [(np.ones((0, 3)), []), (3, [1]), (np.ones((4, 0)), ["a", "b"] * 2), (np.ones((4, 3)), np.eye(4)[:, :2])],
)
def test_shapes_that_do_not_fit(X, y, no_search):
    with pytest.raises(UsageError, match=r"X has shape .*: X is \(n, d\), not empty, and the others \(n,\)"):
        deepfeat.fit_svm((X, y))


@pytest.mark.parametrize("name", ["label", "predicted", "group", "fold", "path", "failure", "image_id"])
def test_classes_called_as_columns_are_refused(name, no_search):
    X, y, groups = clusters(labels=("MEL", name))
    with pytest.raises(DataError, match=f"a class is called '{name}', as is a column of the predictions: rename it"):
        deepfeat.fit_svm((X, y, groups))
    # By the way that is named.
    samples = load_samples((X, y, groups), None, {name: f"{name}_"})
    assert set(samples.y) == {"MEL", f"{name}_"}


@pytest.mark.parametrize("calibrate", [False, True])
def test_class_called_as_the_probability_of_another_is_refused(calibrate, no_search):
    with pytest.raises(DataError, match="a class is called 'probability MEL', as is a column of the predictions"):
        deepfeat.fit_svm(clusters(labels=("MEL", "NV", "probability MEL")), calibrate=calibrate)
    assert set(load_samples(clusters(labels=("MEL", "probability of MEL")), None, None).y) == {
        "MEL",
        "probability of MEL",
    }


# Ties


def test_groups_of_text_and_numbers_are_refused(no_search):
    X, y, _ = clusters()
    groups = [i // 2 if i % 2 else str(i // 2) for i in range(60)]
    with pytest.raises(DataError, match="groups are of several types, such as '0' and 0: use text for all, or numbers"):
        deepfeat.fit_svm((X, y, groups), test=0.25)


@pytest.mark.parametrize("blank", ["", "  ", None])
def test_blank_groups_are_none(blank, no_search):
    X, y, groups = clusters()
    groups[:10] = blank
    samples = load_samples((X, y, groups), None, None)
    assert len(np.unique(samples.sets)) == 10 + 9
    assert samples.notes == ["10 image(s) without a group count as a group of their own"]
    with pytest.raises(DataError, match=r"10 of 60 image\(s\) have no group"):
        deepfeat.fit_svm((X, y, groups), ungrouped="raise")


def test_numbers_of_groups_are_sorted_as_numbers():
    X, y, _ = clusters()
    groups = 11 - np.arange(60) // 5
    assert load_samples((X, y, groups), None, None).sets.tolist() == groups.tolist()


def test_images_that_are_left_out_tie_others_together():
    X, y, _ = clusters()
    y[1] = None
    pairs = pd.DataFrame({"image_a": ["0", "1"], "image_b": ["1", "2"]})
    samples = load_samples((X, y), None, None, grouping=Grouping(duplicates=pairs))
    ids = samples.ids.tolist()
    assert "1" not in ids
    assert samples.sets[ids.index("0")] == samples.sets[ids.index("2")]
    assert len(np.unique(samples.sets)) == 58
    assert samples.sets.max() == 57


def test_contents_of_images_that_are_left_out_tie_others_together(tmp_path, build_store, make_spec, make_table):
    X, y, groups = clusters()
    y[1] = None
    # Image 1 is of the group of 0, and its file is that of 59.
    groups[:] = [f"own{i}" for i in range(60)]
    groups[1] = groups[0]
    contents = [f"file {i}" for i in range(60)]
    contents[1] = contents[59]
    store = build_store(
        tmp_path / "s.h5", make_table(60, label=list(y), group=list(groups)), [(make_spec("A"), X)], contents=contents
    )
    samples = load_samples(store, None, None)
    assert len(samples.y) == 59
    assert samples.sets[0] == samples.sets[-1]
    assert len(np.unique(samples.sets)) == 58


def test_duplicates_by_number_are_found_by_their_text():
    X, y, _ = clusters()
    samples = load_samples(
        (X, y), None, None, grouping=Grouping(duplicates=pd.DataFrame({"image_a": [4], "image_b": [9]}))
    )
    assert samples.sets[4] == samples.sets[9]


# Tests and folds


def test_class_of_the_stored_test_alone_is_refused(tmp_path, build_store, make_spec, make_table, no_search):
    X, y, groups = clusters()
    y[-6:] = "rare"
    split = ["train"] * 48 + ["test"] * 12
    table = make_table(60, label=list(y), group=list(groups), split=split)
    store = build_store(tmp_path / "s.h5", table, [(make_spec("A"), X)])
    with pytest.raises(DataError, match="images of the class 'rare' in the test alone: make another"):
        deepfeat.fit_svm(store, param_grid=GRID, cv=3)


def test_nested_folds_are_made_before_the_search(no_search):
    X, y, _ = clusters()
    fixed = [(np.arange(30), np.arange(30, 60)), (np.arange(30, 60), np.arange(30))]
    with pytest.raises(UsageError, match="pass cv as a number or a splitter"):
        deepfeat.fit_svm((X, y), cv=fixed, nested=True)
    y[y == "NV"] = [*["rare"] * 5, *["NV"] * 25]
    with pytest.raises(DataError, match=r"training part of fold 0, in which every class needs .* rare \(4\)"):
        deepfeat.fit_svm((X, y), cv=5, nested=True)


def test_nested_takes_numbers_of_numpy():
    X, y, _ = clusters()
    result = deepfeat.fit_svm((X, y), cv=np.int64(3), nested=True, param_grid=GRID, test=None)
    assert len(result.nested_choices) == 3


def test_calibration_with_one_fold_is_refused(no_search):
    X, y, _ = clusters()
    with pytest.raises(DataError, match="need two folds or more: cv gives one"):
        deepfeat.fit_svm((X, y), cv=[(np.arange(30), np.arange(30, 60))], calibrate=True, test=None)


def test_rows_that_no_fold_tests_have_no_prediction():
    X, y, _ = clusters()
    result = deepfeat.fit_svm(
        (X, np.where(y == "MEL", 7, 3)), cv=ShuffleSplit(1, test_size=0.5, random_state=0), param_grid=GRID, test=None
    )
    untested = result.predictions["fold"] == -1
    assert untested.sum() == 30
    assert result.predictions["predicted"][untested].isna().all()
    assert set(result.predictions["predicted"][~untested]) <= {3, 7}


def test_nested_estimate_on_images_that_a_network_has_seen_is_refused(monkeypatch, no_search):
    X, y, groups = clusters()
    samples = load_samples((X, y, groups), None, None)
    split = np.array(["train"] * 30 + ["test"] * 30, object)
    seen = replace(samples, seen={"tuned": np.arange(60) < 30}, split=split)
    monkeypatch.setattr(experiment, "load_samples", lambda *given, **more: seen)
    with pytest.raises(DataError, match=r"30 of the 30 images to be scored, .* that tuned was fine-tuned on"):
        deepfeat.fit_svm((X, y, groups), cv=2, nested=True)


# Scores


@pytest.mark.parametrize(
    ("scoring", "labels"),
    [
        ("f1", ("MEL", "NV")),
        ("average_precision", ("MEL", "NV")),
        ("neg_log_loss", ("MEL", "NV")),
        ("roc_auc_ovr", ("AK", "MEL", "NV")),
        ("roc_auc", ("AK", "MEL", "NV")),
        ("r2", ("AK", "MEL", "NV")),
    ],
)
def test_scorers_that_cannot_score_an_svm_are_refused(scoring, labels, no_search):
    X, y, _ = clusters(labels=labels)
    message = f"scoring is '{scoring}', which cannot score the decisions of an SVM on {len(labels)} classes"
    with pytest.raises(UsageError, match=message):
        deepfeat.fit_svm((X, y), scoring=scoring)


@pytest.mark.parametrize(
    ("scoring", "options"),
    [("f1", {"positive": "MEL"}), ("average_precision", {"positive": "MEL"}), ("roc_auc", {}), ("f1_macro", {})],
)
def test_scorers_that_can_are_taken(scoring, options):
    X, y, _ = clusters()
    result = deepfeat.fit_svm((X, y), scoring=scoring, param_grid=GRID, cv=3, test=None, **options)
    assert 0.5 < result.cv_results["mean"][0] <= 1


@pytest.mark.parametrize("options", [{}, {"engine": "sklearn"}, {"nested": True}])
def test_scorer_that_cannot_score_a_fold_is_refused(options, no_search):
    X, y, groups = clusters(90, ("AK", "MEL", "NV"))
    groups[:] = np.where(y == "NV", "A", np.arange(90) // 6 % 3)
    groups[np.flatnonzero(y == "NV")[:20]] = "B"
    groups[np.flatnonzero(y == "NV")[20:25]] = "C"
    message = "scoring is 'top_k_accuracy', which cannot score fold 0, whose test part has no image of the class 'NV'"
    with pytest.raises(DataError, match=message) as caught:
        deepfeat.fit_svm((X, y, groups), cv=LeaveOneGroupOut(), scoring="top_k_accuracy", test=None, **options)
    assert ("training part of fold" in str(caught.value)) == ("nested" in options)


@pytest.mark.parametrize("engine", ["auto", "sklearn"])
@pytest.mark.filterwarnings("ignore:Only one class is present", "ignore:One or more of the test scores")
def test_score_that_is_not_defined_is_an_error(engine):
    X, y, groups = clusters()
    groups[:] = np.where(np.arange(60) < 30, "A", "B")
    groups[np.flatnonzero(y == "NV")[:5]] = "C"
    with pytest.raises(DataError, match="the score is not defined on fold 2"):
        deepfeat.fit_svm(
            (X, y, groups), cv=LeaveOneGroupOut(), scoring="roc_auc", param_grid=GRID, test=None, engine=engine
        )


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed is -1: use a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296: use a whole number"),
        ({"seed": 1.5, "test": 0.2}, "seed is 1.5: use a whole number"),
        ({"max_memory": "4GB"}, "max_memory is '4GB': use a number, or None"),
        ({"n_jobs": "2"}, "n_jobs is '2': use a whole number, or None"),
        ({"n_jobs": 2.0}, "n_jobs is 2.0: use a whole number, or None"),
        ({"scoring": ["accuracy", "f1_macro"]}, r"scoring is \['accuracy', 'f1_macro'\]: use the name of one scorer"),
        ({"class_weight": pd.Series({"MEL": 2.0, "NV": 1.0})}, "class_weight is a Series: use 'balanced', None"),
        ({"param_grid": [1, 2]}, "param_grid is a list: use a mapping"),
        ({"class_weight": []}, "class_weight is an empty list: use 'balanced', None, {label: weight}, or a list of"),
        ({"fusion": np.array(["concat"])}, r"fusion is array\(\['concat'\], .*\): use one of 'concat'"),
        ({"test": np.arange(3)}, r"test is array\(\[0, 1, 2\]\): use 'split', a share such as 0.2, or None"),
        ({"positive": "MEL", "threshold": np.array([0, 1])}, "threshold is of type ndarray: use one decision value"),
        ({"positive": ["MEL"]}, r"positive is \['MEL'\], which no image has"),
        ({"positive": "MEL", "threshold": "recall>=0.9.5"}, "threshold is 'recall>=0.9.5': use 'METRIC>=SHARE'"),
        (
            {"positive": "MEL", "class_weight": {"NV": 3}},
            r"class_weight names 'NV': the classes are \['not MEL', 'MEL'\]",
        ),
    ],
)
def test_arguments_are_refused_in_a_sentence(arguments, message, no_search):
    X, y, _ = clusters()
    with pytest.raises(UsageError, match=message):
        deepfeat.fit_svm((X, y), **arguments)


@pytest.mark.parametrize("key", [True, np.True_])
def test_class_weights_of_true_where_classes_are_numbers_are_refused(key, no_search):
    with pytest.raises(UsageError, match=r"class_weight names .*True.*: the classes are \[0, 1\]"):
        deepfeat.fit_svm(clusters(labels=(0, 1)), class_weight={key: 5.0})


def test_final_fit_of_the_passes_that_does_not_converge_is_made_by_the_engine(monkeypatch):
    X, y, _ = clusters(400)
    monkeypatch.setattr(shared, "_LEAST", 0)
    expected = deepfeat.fit_svm((X, y), param_grid=GRID, test=None)
    gap = shared.CONVERGED
    monkeypatch.setattr(shared, "CONVERGED", -1.0)
    result = deepfeat.fit_svm((X, y), param_grid=GRID, test=None)
    assert gap > 0
    # The cells are still those of the passes, and say so; the final fit is not.
    assert not result.cv_results["converged"].any()
    assert not any("final fit" in warning for warning in result.warnings)
    np.testing.assert_allclose(result.pipeline[-1].coef_, expected.pipeline[-1].coef_, atol=1e-4)


# Folds that calibration or a threshold cannot do with


def test_calibration_by_folds_that_do_not_test_every_class_is_refused():
    X, y, _ = clusters(150)
    y[:4] = "BKL"
    with pytest.raises(DataError, match="fewer than two images of 'BKL', too few to calibrate: use folds that test"):
        deepfeat.fit_svm(
            (X, y), calibrate=True, cv=ShuffleSplit(2, test_size=0.02, random_state=0), test=None, param_grid=GRID
        )


def test_threshold_by_images_of_one_class_is_refused():
    X, y, _ = clusters(60)
    rows = np.arange(60)
    folds = [(rows[40:], rows[:40:2]), (rows[20:], rows[1:20:2])]
    with pytest.raises(DataError, match="a threshold is to be chosen are of one class: use stratified folds"):
        deepfeat.fit_svm((X, y), positive="MEL", threshold="f1", cv=folds, test=None, param_grid=GRID)


@pytest.mark.parametrize("wanted", [{"calibrate": True}, {"threshold": "f1", "positive": "MEL"}])
def test_groups_that_several_folds_test_are_refused_for_calibration(wanted):
    X, y, _ = clusters(80)
    groups = np.arange(80) % 40
    rest, half = np.arange(40, 80), np.arange(40)
    groups[rest] += 100
    folds = [(rest, half[::2]), (rest, half[1::2])]
    groups[half] = half // 4
    with pytest.raises(DataError, match=r"images of one group are tested by different folds .*: use a group splitter"):
        deepfeat.fit_svm((X, y, groups), cv=folds, test=None, param_grid=GRID, **wanted)
    assert deepfeat.fit_svm((X, y, groups), cv=folds, test=None, param_grid=GRID).calibrator is None


@pytest.mark.parametrize("options", [{"test": 0.2}, {"test": None, "nested": True}])
def test_splitter_that_knows_other_rows_is_refused(options, no_search):
    X, y, _ = clusters()
    message = "cv is a PredefinedSplit of 60 rows, and .* are to be split: give it a fold for each training image"
    with pytest.raises(UsageError, match=message):
        deepfeat.fit_svm((X, y), cv=PredefinedSplit(np.arange(60) % 5), param_grid=GRID, **options)


def test_splitter_without_groups_is_no_reason_to_warn(recwarn):
    X, y, _ = clusters()
    deepfeat.fit_svm((X, y), cv=StratifiedKFold(3), test=None, param_grid=GRID)
    assert not [w for w in recwarn if "groups parameter" in str(w.message)]


@pytest.mark.parametrize("calibrate", [1, np.True_])
def test_calibration_takes_what_is_true(calibrate):
    X, y, _ = clusters()
    options = {"param_grid": GRID, "test": np.float32(0.25)}
    result = deepfeat.fit_svm((X, y), calibrate=calibrate, **options)
    assert result.calibrator.method == "sigmoid"
