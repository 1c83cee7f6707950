from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

import deepfeat
from deepfeat.errors import DataError, DataWarning, StoreError, UsageError
from deepfeat.evaluation import evaluate

GRID = {"param_grid": {"C": [0.01]}, "cv": 3}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    lesion = np.arange(180) // 2
    X = (1.5 * ((lesion % 3)[:, None] == np.arange(3)) + rng.normal(size=(180, 3))).astype(np.float32)
    return X, np.array(["BCC", "MEL", "NV"])[lesion % 3], lesion


@pytest.fixture
def store(tmp_path, build_store, make_spec, make_table, data):
    X, y, lesion = data
    table = make_table(180, label=list(y), group=[str(number) for number in lesion])
    return build_store(tmp_path / "features.h5", table, [(make_spec(), X)])


FITS = [
    {},
    {"test": 0.3},
    {"positive": "MEL", "threshold": "recall>=0.8"},
    {"calibrate": True},
    {"nested": True, "class_weight": {"MEL": 2, "NV": 1, "BCC": 1}},
    {"positive": "MEL", "calibrate": True, "test": 0.3, "threshold": 0.25},
]


@pytest.mark.parametrize("options", FITS, ids=str)
def test_entry_has_the_predictions_and_metrics_of_the_result(store, options):
    result = deepfeat.fit_svm(store, **GRID, **options)
    ledger = deepfeat.open_ledger(store.path)
    (name,) = ledger.table.index
    entry = ledger.entry(name)
    pd.testing.assert_frame_equal(entry.predictions, result.predictions, check_dtype=False)
    assert (entry.classes, entry.positive, entry.evaluated_on) == (
        result.classes,
        result.positive,
        result.evaluated_on,
    )
    assert entry.provenance == result.provenance
    again = ledger.evaluate(name)
    pd.testing.assert_frame_equal(again.metrics, result.metrics)
    pd.testing.assert_frame_equal(again.per_class, result.per_class)
    pd.testing.assert_frame_equal(again.confusion, result.confusion)


def test_table_has_one_row_for_each_fit_in_their_order(store):
    results = [deepfeat.fit_svm(store, **GRID, **options) for options in FITS[:3]]
    table = deepfeat.open_ledger(store.path).table
    assert len(table) == 3
    assert table["balanced_accuracy"].tolist() == [r.metrics["value"]["balanced_accuracy"] for r in results]
    assert set(table["rows"]) == {result.provenance["rows"] for result in results}
    assert set(table["blocks"]) == {"NetA"}
    assert table["created"].is_monotonic_increasing


@pytest.mark.parametrize(("options", "n_scored"), [({}, 180), ({"test": 0.3}, 54), ({"nested": True}, 180)], ids=str)
def test_table_tells_the_scored_images_from_all_of_the_fit(store, options, n_scored):
    result = deepfeat.fit_svm(store, **GRID, **options)
    table = deepfeat.open_ledger(store.path).table
    assert table[["n_scored", "n_images"]].to_numpy().tolist() == [[n_scored, 180]]
    assert n_scored == result.per_class["support"].sum()


def test_images_that_no_fold_tested_are_not_among_the_scored(data, tmp_path):
    lesion = data[2]
    folds = [(np.flatnonzero(lesion % 5 != k), np.flatnonzero(lesion % 5 == k)) for k in range(2)]
    deepfeat.fit_svm(data, ledger=tmp_path, param_grid={"C": [0.01]}, cv=folds)
    assert deepfeat.open_ledger(tmp_path).table[["n_scored", "n_images"]].to_numpy().tolist() == [[72, 180]]


def test_ledger_is_made_only_where_it_is_wanted(store, data, tmp_path):
    deepfeat.fit_svm(store, ledger=False, **GRID)
    deepfeat.fit_svm(data, **GRID)
    assert [path.name for path in tmp_path.iterdir()] == ["features.h5"]
    with pytest.raises(StoreError, match="there is no ledger"):
        deepfeat.open_ledger(store.path)
    deepfeat.fit_svm(data, ledger=tmp_path / "mine", **GRID)
    assert len(deepfeat.open_ledger(tmp_path / "mine")) == 1


def test_what_is_no_place_for_a_ledger_is_refused_before_the_search(data):
    with pytest.raises(UsageError, match=r"ledger is None: use True \(beside the store\), False, or the path"):
        deepfeat.fit_svm(data, ledger=None, **GRID)


def test_results_of_a_ledger_can_be_compared(store):
    for C in (1e-6, 0.1):
        deepfeat.fit_svm(store, param_grid={"C": [C]}, cv=3)
    ledger = deepfeat.open_ledger(store.path)
    weak, strong = ledger.table.index
    table = deepfeat.compare({"weak": ledger.entry(weak), "strong": ledger.entry(strong)}, n_resamples=100)
    values = ledger.table["balanced_accuracy"]
    assert table["difference"][0] == pytest.approx(values[weak] - values[strong])


# Scoring again


@pytest.fixture(scope="module")
def recorded(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ledger")
    plain = deepfeat.fit_svm(data, ledger=folder, **GRID)
    ledger = deepfeat.open_ledger(folder)
    return ledger, ledger.table.index[0], plain


def test_threshold_for_a_wish_is_the_one_that_a_fit_would_choose(data, tmp_path):
    for options in ({}, {"test": 0.3}):
        folder = tmp_path / str(len(options))
        deepfeat.fit_svm(data, positive="MEL", ledger=folder, **GRID, **options)
        wished = deepfeat.fit_svm(data, positive="MEL", threshold="recall>=0.9", **GRID, **options)
        ledger = deepfeat.open_ledger(folder)
        again = ledger.evaluate(ledger.table.index[0], threshold="recall>=0.9")
        pd.testing.assert_frame_equal(again.metrics, wished.metrics)


def test_one_class_against_the_rest_by_its_decision_value(recorded):
    ledger, name, result = recorded
    table = result.predictions
    truth, guess = table["label"] == "MEL", table["MEL"] >= -0.2
    again = ledger.evaluate(name, positive="MEL", threshold=-0.2, n_resamples=0)
    values = again.metrics["value"]
    assert values["recall"] == pytest.approx(sk.recall_score(truth, guess))
    assert values["precision"] == pytest.approx(sk.precision_score(truth, guess))
    assert values["auroc"] == pytest.approx(sk.roc_auc_score(truth, table["MEL"]))
    assert again.confusion.index.tolist() == ["not MEL", "MEL"]
    predicted = ledger.evaluate(name, positive="MEL", n_resamples=0).metrics["value"]
    assert predicted["accuracy"] == pytest.approx(((table["predicted"] == "MEL") == truth).mean())


def test_one_class_against_the_rest_keeps_its_probabilities(store):
    result = deepfeat.fit_svm(store, calibrate=True, **GRID)
    ledger = deepfeat.open_ledger(store.path)
    values = ledger.evaluate(ledger.table.index[0], positive="MEL", n_resamples=0).metrics["value"]
    truth = (result.predictions["label"] == "MEL").astype(float)
    assert values["brier"] == pytest.approx(((result.predictions["probability MEL"] - truth) ** 2).mean())


def test_ledger_and_entries_name_the_essentials(recorded):
    ledger, name, _ = recorded
    assert repr(ledger) == f"<Ledger {str(ledger.path)!r}: {len(ledger)} fits>"
    assert re.fullmatch(rf"<Entry {re.escape(name)}: .*, out-of-fold>", repr(ledger.entry(name)))


def test_subset_is_scored_alone(recorded):
    ledger, name, result = recorded
    table = result.predictions
    chosen = table.index[::3]
    expected = sk.accuracy_score(table.loc[chosen, "label"], table.loc[chosen, "predicted"])
    by_ids = ledger.evaluate(name, subset=chosen)
    by_flags = ledger.evaluate(name, subset=pd.Series(table.index.isin(chosen), table.index))
    assert by_ids.metrics["value"]["accuracy"] == pytest.approx(expected)
    pd.testing.assert_frame_equal(by_ids.metrics, by_flags.metrics)


def test_images_of_one_fold_have_the_interval_of_a_cross_validation(recorded):
    ledger, name, result = recorded
    fold = result.predictions[result.predictions["fold"] == 0]
    found = ledger.evaluate(name, subset=fold.index).metrics
    decision = fold[result.classes].to_numpy()
    n_folds = result.predictions["fold"].nunique()
    wide, narrow = (
        evaluate(fold["label"], fold["predicted"], decision, result.classes, groups=fold["group"], n_folds=n).metrics
        for n in (n_folds, 1)
    )
    pd.testing.assert_frame_equal(found, wide)
    assert (found["high"] - found["low"])["accuracy"] > 1.2 * (narrow["high"] - narrow["low"])["accuracy"]


def test_numbers_as_labels_have_a_threshold(data, tmp_path):
    X, y, groups = data
    numbers = np.array([{"BCC": 0, "MEL": 1, "NV": 2}[name] for name in y])
    result = deepfeat.fit_svm((X, numbers, groups), ledger=tmp_path, **GRID)
    ledger = deepfeat.open_ledger(tmp_path)
    values = ledger.evaluate(ledger.table.index[0], positive=1, threshold=-0.2, n_resamples=0).metrics["value"]
    truth, guess = result.predictions["label"] == 1, result.predictions[1] >= -0.2
    assert values["recall"] == pytest.approx(sk.recall_score(truth, guess))


def test_threshold_is_not_chosen_on_classifiers_with_other_parameters(data, tmp_path):
    deepfeat.fit_svm(data, positive="MEL", nested=True, test=0.3, ledger=tmp_path, **GRID)
    ledger = deepfeat.open_ledger(tmp_path)
    (name,) = ledger.table.index
    with pytest.raises(UsageError, match=r"the fit was nested.*pass the wish to fit_svm, or a number here"):
        ledger.evaluate(name, threshold="recall>=0.9")
    assert ledger.evaluate(name, threshold=0.0, n_resamples=0).metrics["value"]["recall"] > 0


def test_images_that_no_fold_tested_have_no_prediction(data, tmp_path):
    _, y, groups = data
    [(train, tested), *_] = deepfeat.splits.make_folds(y, groups, 3, 0)
    result = deepfeat.fit_svm(data, param_grid={"C": [0.01]}, cv=[(train, tested)], ledger=tmp_path)
    ledger = deepfeat.open_ledger(tmp_path)
    entry = ledger.entry(ledger.table.index[0])
    assert entry.predictions["predicted"].isna().sum() == len(y) - len(tested)
    pd.testing.assert_frame_equal(entry.predictions, result.predictions, check_dtype=False)
    assert f"out-of-fold ({len(tested)} images)" in repr(result)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"subset": pd.Series([True, None])}, UsageError, "subset is a Series of object with 1 unknown: use True and"),
        ({"subset": pd.Series([True, None], dtype="boolean")}, UsageError, "Series of boolean with 1 unknown"),
        ({"subset": pd.Series(["5", "7"])}, UsageError, "subset is a Series of .* with 0 unknown"),
        ({"threshold": 0.1}, UsageError, "positive is None: use one of 'BCC', 'MEL', 'NV'"),
        ({"positive": "SCC"}, UsageError, "positive is 'SCC'"),
        ({"positive": "MEL", "threshold": "recal>=0.9"}, UsageError, "threshold is 'recal>=0.9'"),
        ({"subset": ["no such image"]}, DataError, "none of the images to score is in the subset"),
    ],
)
def test_wrong_arguments_are_named(recorded, arguments, error, message):
    ledger, name, _ = recorded
    with pytest.raises(error, match=message):
        ledger.evaluate(name, **arguments)


def test_entry_is_found_by_the_beginning_or_end_of_its_name(recorded):
    ledger, name, _ = recorded
    assert ledger.entry(name[:10]).id == ledger.entry(name[-8:]).id == name
    with pytest.raises(UsageError, match=r"0 fits of .* are named 'nothing'"):
        ledger.entry("nothing")


# Trouble


def torn(path):
    path.write_bytes(path.read_bytes()[:-20])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def pickled(path):
    path.write_bytes(pickle.dumps({"record": 1}))


def objects(path):
    np.savez(path, record=np.array([{"version": 1}], object))


def newer(path):
    np.savez(path, record=np.array('{"version": 2}'))


@pytest.mark.parametrize("damage", [torn, flipped, empty, pickled, objects, newer])
def test_damaged_entry_is_named_and_the_others_are_read(data, tmp_path, damage):
    for _ in range(2):
        deepfeat.fit_svm(data, ledger=tmp_path, **GRID)
    first, second = sorted(tmp_path.iterdir())
    damage(first)
    with pytest.warns(DataWarning, match=f"{first.name} .*is left out"):
        ledger = deepfeat.open_ledger(tmp_path)
    assert ledger.table.index.tolist() == [second.stem]
    assert ledger.damaged == [first.name]


def test_entry_of_a_newer_version_is_called_that(tmp_path):
    newer(tmp_path / "fit.npz")
    with pytest.warns(DataWarning, match="fit.npz is an entry of version 2, and this deepfeat reads version 1"):
        deepfeat.open_ledger(tmp_path)


def test_damaged_predictions_are_found_when_they_are_read(data, tmp_path):
    deepfeat.fit_svm(data, ledger=tmp_path, **GRID)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        content[archive.getinfo("decision.npy").header_offset + 2000] ^= 1
    file.write_bytes(content)
    ledger = deepfeat.open_ledger(tmp_path)
    with pytest.raises(StoreError, match="is damaged"):
        ledger.entry(file.stem)


def test_draft_of_a_killed_writer_is_no_entry(data, tmp_path):
    deepfeat.fit_svm(data, ledger=tmp_path, **GRID)
    (tmp_path / ".20261125T000000-00000000.npz.draft").write_bytes(b"half")
    ledger = deepfeat.open_ledger(tmp_path)
    assert len(ledger) == 1
    assert not ledger.damaged


def test_draft_that_was_left_behind_is_named(data, tmp_path):
    deepfeat.fit_svm(data, ledger=tmp_path, **GRID)
    draft = tmp_path / ".20261125T000000-00000000.npz.draft"
    draft.write_bytes(b"half")
    os.utime(draft, (0, 0))
    ledger = deepfeat.open_ledger(tmp_path)
    assert len(ledger) == 1
    assert ledger.damaged == [draft.name]


def test_write_that_fails_leaves_no_draft(data, tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deepfeat.ledger.sync", full)
    with pytest.warns(DataWarning, match="No space left on device"):
        deepfeat.fit_svm(data, ledger=tmp_path, **GRID)
    assert not list(tmp_path.iterdir())


def test_fits_scored_on_the_same_images_are_told_from_others(data, tmp_path):
    other = {**GRID, "param_grid": {"C": [0.1]}}
    for options in (GRID, other, {**GRID, "test": 0.3}, {**GRID, "test": 0.3, "seed": 1}, {**GRID, "positive": "MEL"}):
        deepfeat.fit_svm(data, ledger=tmp_path, **options)
    scored = deepfeat.open_ledger(tmp_path).table["scored"].tolist()
    assert scored[0] == scored[1]
    assert len(set(scored)) == 4


def test_numbers_as_labels_against_the_rest(data, tmp_path):
    X, y, lesion = data
    numbers = np.unique(y, return_inverse=True)[1]
    result = deepfeat.fit_svm((X, numbers, lesion), ledger=tmp_path, **GRID)
    ledger = deepfeat.open_ledger(tmp_path)
    values = ledger.evaluate(ledger.table.index[0], positive=2, n_resamples=0).metrics["value"]
    assert values["auroc"] == pytest.approx(result.per_class.auroc[2])


def test_folder_that_cannot_be_written_costs_no_fit(data, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(DataWarning, match="the fit was not recorded"):
        result = deepfeat.fit_svm(data, ledger=tmp_path / "file", **GRID)
    assert result.metrics["value"]["accuracy"] > 0.5


def test_writers_at_once_do_not_mix(tmp_path):
    code = (
        "import sys, deepfeat; from sklearn.datasets import load_iris\n"
        "for _ in range(3): deepfeat.fit_svm(load_iris(return_X_y=True), ledger=sys.argv[1], param_grid={'C': [0.1]})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    ledger = deepfeat.open_ledger(tmp_path)
    assert len(ledger) == 6
    assert len(set(ledger.table["balanced_accuracy"])) == 1
    assert not list(tmp_path.glob(".*"))
