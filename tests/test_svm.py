from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import skops.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

import deepfeat
from deepfeat.errors import DataError, StoreError, UsageError
from deepfeat.svm import search
from deepfeat.svm.sources import choose_sources

C_GRID = {"C": [0.001, 0.01, 0.1]}
LABELS = ("AK", "MEL", "NV")


def clusters(n_images=90, dim=6, seed=0, labels=LABELS):
    """Overlapping classes of unequal size, two images to a lesion."""
    rng = np.random.default_rng(seed)
    lesion = np.arange(n_images) // 2
    weights = np.arange(1, len(labels) + 1) / sum(range(1, len(labels) + 1))
    codes = np.concatenate([np.arange(len(labels)).repeat(8), rng.choice(len(labels), n_images, p=weights)])[lesion]
    X = rng.normal(size=(n_images, dim)) + rng.normal(size=(len(labels), dim))[codes]
    return X.astype(np.float32), np.array(labels, object)[codes], np.array([f"L{i}" for i in lesion], object)


@pytest.fixture
def store(tmp_path, build_store, make_spec, make_table):
    X, y, groups = clusters()
    table = make_table(len(X), label=list(y), group=list(groups))
    blocks = [(make_spec("NetA"), X[:, :4].copy()), (make_spec("NetB"), X[:, 4:].copy())]
    return build_store(tmp_path / "features.h5", table, blocks)


# The same as scikit-learn by hand


@pytest.mark.parametrize("class_weight", ["balanced", None])
@pytest.mark.parametrize("kernel", ["linear", "hinge", "rbf"])
@pytest.mark.parametrize("grouped", [True, False])
def test_reference_equals_grid_search_by_hand(kernel, class_weight, grouped):
    X, y, groups = clusters()
    if kernel == "rbf":
        svm, grid = SVC(class_weight=class_weight), {"C": [0.5, 5.0], "gamma": [0.01, 0.1]}
    else:
        loss = "hinge" if kernel == "hinge" else "squared_hinge"
        svm, grid = LinearSVC(class_weight=class_weight, loss=loss, random_state=3), C_GRID
    pipeline = Pipeline([("scale", StandardScaler()), ("svm", svm)])
    splitter = (StratifiedGroupKFold if grouped else StratifiedKFold)(4, shuffle=True, random_state=3)
    folds = list(splitter.split(X, y.astype(str), groups if grouped else None))
    reference = GridSearchCV(
        pipeline, {f"svm__{k}": v for k, v in grid.items()}, scoring="balanced_accuracy", cv=folds
    ).fit(X, y.astype(str))
    result = deepfeat.fit_svm(
        (X, y, groups) if grouped else (X, y),
        kernel="rbf" if kernel == "rbf" else "linear",
        loss="hinge" if kernel == "hinge" else "squared_hinge",
        param_grid=grid,
        class_weight=class_weight,
        engine="sklearn",
        cv=4,
        seed=3,
        test=None,
    )
    assert {f"svm__{k}": v for k, v in result.best_params.items() if k != "class_weight"} == reference.best_params_
    for fold in range(4):
        np.testing.assert_allclose(result.cv_results[f"fold{fold}"], reference.cv_results_[f"split{fold}_test_score"])
    np.testing.assert_allclose(result.cv_results["mean"], reference.cv_results_["mean_test_score"])
    np.testing.assert_allclose(result.pipeline.decision_function(X), reference.decision_function(X), rtol=1e-9)
    best = reference.best_estimator_
    for number, (train, test) in enumerate(folds):
        fitted = best.fit(X[train], y[train].astype(str))
        rows = result.predictions.loc[[str(i) for i in test]]
        assert set(rows["fold"]) == {number}
        assert rows["predicted"].tolist() == fitted.predict(X[test]).tolist()
        np.testing.assert_allclose(rows[list(LABELS)].to_numpy(float), fitted.decision_function(X[test]), rtol=1e-9)
    pooled = result.predictions
    assert result.metrics.value["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(pooled["label"], pooled["predicted"])
    )


def test_store_and_plain_arrays_give_the_same(store):
    X, y, groups = clusters()
    options = {"param_grid": C_GRID, "test": None}
    from_store = deepfeat.fit_svm(store, **options)
    from_path = deepfeat.fit_svm(store.path, **options)
    from_arrays = deepfeat.fit_svm((X, y, groups), **options)
    for other in (from_path, from_arrays):
        pd.testing.assert_frame_equal(from_store.metrics, other.metrics)
        ours, theirs = (r.predictions[list(LABELS)].to_numpy(float) for r in (from_store, other))
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert from_store.blocks == {"NetA": 4, "NetB": 2}


def test_two_jobs_and_the_same_seed_give_the_same(store):
    first, second = (deepfeat.fit_svm(store, param_grid=C_GRID, n_jobs=n) for n in (None, 2))
    pd.testing.assert_frame_equal(first.predictions, second.predictions)


# No leak


def fold_coefficients(X, y, folds, monkeypatch):
    seen = {}
    original = search.fit_path

    def spy(estimator, rows, *args):
        # Scaling overwrites them.
        given = rows.copy()
        path = original(estimator, rows, *args)
        pipeline = path.estimator(0)
        # Threads fit folds beside one another: which comes first is chance.
        for number, (train, _) in enumerate(folds):
            if np.array_equal(given, X[train]):
                seen[number] = pipeline["svm"].coef_, pipeline["scale"].mean_
        return path

    monkeypatch.setattr(search, "fit_path", spy)
    deepfeat.fit_svm((X, y), param_grid={"C": [0.01]}, cv=folds, test=None)
    return seen


def test_held_out_rows_do_not_reach_the_fit(monkeypatch):
    X, y, _ = clusters()
    folds = list(StratifiedKFold(3).split(X, y.astype(str)))
    clean = fold_coefficients(X, y, folds, monkeypatch)
    poisoned = X.copy()
    poisoned[folds[1][1]] = 1e6
    dirty = fold_coefficients(poisoned, y, folds, monkeypatch)
    assert sorted(clean) == sorted(dirty) == [0, 1, 2]
    for a, b in zip(clean[1], dirty[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(clean[0][1], dirty[0][1])


def test_test_rows_do_not_reach_the_fit(store, tmp_path, build_store, make_spec, make_table):
    X, y, groups = clusters()
    split = ["test" if i < 30 else "train" for i in range(len(X))]
    coefficients = []
    for number, factor in enumerate((1, 1e5)):
        features = X.copy()
        features[:30] *= factor
        table = make_table(len(X), label=list(y), group=list(groups), split=split)
        path = tmp_path / f"{number}.h5"
        other = build_store(path, table, [(make_spec(), features)])
        coefficients.append(deepfeat.fit_svm(other, param_grid=C_GRID).pipeline["svm"].coef_)
    np.testing.assert_array_equal(*coefficients)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10_000), test=st.sampled_from([None, 0.2, 0.3]))
def test_no_group_is_on_two_sides(seed, test):
    X, y, groups = clusters(seed=seed)
    result = deepfeat.fit_svm((X, y, groups), param_grid={"C": [0.01]}, cv=3, test=test, seed=seed)
    folds = result.predictions["fold"].astype(str)
    assert sorted(result.predictions.index, key=int) == [str(i) for i in range(len(X))]
    sides = folds.groupby(groups[result.predictions.index.astype(int)]).nunique()
    assert sides.max() == 1
    assert set(folds) == {"0", "1", "2"} | ({"test"} if test else set())


def test_equal_files_of_different_groups_share_a_fold(tmp_path, build_store, make_spec, make_table):
    X, y, _ = clusters()
    contents = [f"content {i % 45}" for i in range(90)]
    X, y = np.tile(X[:45], (2, 1)), np.tile(y[:45], 2)
    store = build_store(tmp_path / "s.h5", make_table(90, label=list(y)), [(make_spec(), X)], contents)
    folds = deepfeat.fit_svm(store, param_grid={"C": [0.01]}, cv=3).predictions["fold"]
    assert folds.groupby(np.array(contents)[[int(i[3:]) for i in folds.index]]).nunique().max() == 1


def test_splitter_that_leaks_is_refused():
    X, y, groups = clusters()
    with pytest.raises(DataError, match="in both its training and its test part"):
        deepfeat.fit_svm((X, y, groups), cv=StratifiedKFold(3, shuffle=True, random_state=0), test=None)


def test_splitter_that_keeps_groups_is_used():
    X, y, groups = clusters()
    result = deepfeat.fit_svm((X, y, groups), cv=GroupKFold(4), param_grid=C_GRID, test=None)
    assert set(result.predictions["fold"]) == {0, 1, 2, 3}


# Test rows


def test_stored_split_is_the_test(tmp_path, build_store, make_spec, make_table):
    X, y, _ = clusters()
    split = ["test" if i % 3 == 0 else "val" if i % 3 == 1 else "train" for i in range(90)]
    store = build_store(tmp_path / "s.h5", make_table(90, label=list(y), split=split), [(make_spec(), X)])
    result = deepfeat.fit_svm(store, param_grid=C_GRID)
    tested = result.predictions[result.predictions["fold"] == "test"]
    assert tested.index.tolist() == [f"img{i:03d}" for i in range(0, 90, 3)]
    assert result.evaluated_on == "test"
    assert result.metrics.value["accuracy"] == pytest.approx((tested["label"] == tested["predicted"]).mean())
    assert tested["predicted"].tolist() == result.pipeline.predict(X[::3]).tolist()
    assert "30 test images" in result.summary()
    assert deepfeat.fit_svm(store, param_grid=C_GRID, test=None).evaluated_on == "out-of-fold"


def test_stored_split_without_training_images_is_refused(tmp_path, build_store, make_spec, make_table):
    X, y, _ = clusters()
    store = build_store(tmp_path / "s.h5", make_table(90, label=list(y), split="test"), [(make_spec(), X)])
    with pytest.raises(DataError, match=r"all images are test images in the stored split: pass test=0\.2 or test=None"):
        deepfeat.fit_svm(store)


def test_stored_split_that_cuts_a_group_is_refused(tmp_path, build_store, make_spec, make_table):
    X, y, groups = clusters()
    split = ["test" if i % 10 == 0 else "train" for i in range(90)]
    table = make_table(90, label=list(y), group=list(groups), split=split)
    store = build_store(tmp_path / "s.h5", table, [(make_spec(), X)])
    with pytest.raises(DataError, match=r"9 group\(s\) of images are in both train and test .*'img000'"):
        deepfeat.fit_svm(store)
    assert deepfeat.fit_svm(store, test=0.2, param_grid=C_GRID).evaluated_on == "test"


def test_share_is_held_out_stratified():
    X, y, _ = clusters()
    predictions = deepfeat.fit_svm((X, y), test=0.2, param_grid=C_GRID).predictions
    tested = predictions[predictions["fold"] == "test"]["label"].value_counts()
    expected = pd.Series(y).value_counts() * 0.2
    assert len(predictions[predictions["fold"] == "test"]) == 18
    assert ((tested - expected).abs() <= 1).all()


# Labels


def test_positive_is_one_class_against_the_rest(store):
    result = deepfeat.fit_svm(store, positive="MEL", param_grid=C_GRID, class_weight={"MEL": 3, "not MEL": 1})
    assert result.classes == ["not MEL", "MEL"]
    assert set(result.predictions["label"]) == {"not MEL", "MEL"}
    assert result.best_params["class_weight"] == {"MEL": 3, "not MEL": 1}
    chosen = result.predictions["MEL"] > 0
    assert (result.predictions["predicted"][chosen] == "MEL").all()
    assert (result.predictions["predicted"][~chosen] == "not MEL").all()
    assert {"recall", "specificity", "auroc", "f1"} <= set(result.metrics.index)
    assert result.pipeline.classes_.tolist() == [False, True]
    assert result.per_class.support["MEL"] == (store.table["label"] == "MEL").sum()


@pytest.mark.parametrize("scoring", ["f1", "roc_auc", "average_precision", "recall"])
def test_scorers_for_two_classes_work_with_positive(store, scoring):
    result = deepfeat.fit_svm(store, positive="AK", scoring=scoring, param_grid=C_GRID)
    assert result.scoring == scoring
    if scoring == "f1":
        best = result.cv_results.loc[result.cv_results["rank"].idxmin()]
        folds = result.predictions.groupby("fold")
        by_hand = [f1_score(p["label"] == "AK", p["predicted"] == "AK") for _, p in folds]
        assert best["mean"] == pytest.approx(np.mean(by_hand))


def test_labels_by_image_replace_the_stored_ones(store):
    ids = store.table["image_id"]
    new = pd.Series(["x" if i % 4 < 2 else "y" for i in range(len(ids))], index=ids)
    result = deepfeat.fit_svm(store, labels=new, param_grid=C_GRID)
    assert result.predictions["label"].sort_index().equals(new.sort_index().rename("label").astype(object))


def test_labels_by_mapping_merge_and_drop_classes(store):
    counts = store.table["label"].value_counts()
    merged = deepfeat.fit_svm(store, labels={"AK": "other", "NV": "other"}, param_grid=C_GRID)
    assert merged.per_class.support.to_dict() == {"MEL": counts["MEL"], "other": counts["AK"] + counts["NV"]}
    dropped = deepfeat.fit_svm(store, labels={"AK": None}, param_grid=C_GRID)
    assert dropped.classes == ["MEL", "NV"]
    assert any(f"{counts['AK']} image(s) without a label left out" in note for note in dropped.warnings)


def test_labels_of_plain_arrays_can_be_mapped():
    X, y, groups = clusters()
    result = deepfeat.fit_svm((X, y, groups), labels={"AK": "other", "NV": "other"}, param_grid=C_GRID)
    assert result.classes == ["MEL", "other"]


def test_labels_that_are_numbers():
    X, y, _ = clusters(labels=(0, 1, 2))
    result = deepfeat.fit_svm((X, y.astype(int)), param_grid=C_GRID, test=None)
    assert result.classes == [0, 1, 2]


def test_class_weights_in_a_list_are_searched(store):
    weights = ["balanced", None, {"AK": 5.0}]
    result = deepfeat.fit_svm(store, class_weight=weights, param_grid=C_GRID)
    assert len(result.cv_results) == 9
    assert result.cv_results["class_weight"].map(repr).nunique() == 3
    assert result.best_params["class_weight"] in weights


# Fusion


@pytest.mark.parametrize("fusion", ["concat", "aligned", "late"])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_fusion_of_different_spaces(store, fusion, kernel):
    result = deepfeat.fit_svm(store, fusion=fusion, kernel=kernel, cv=3)
    X = np.hstack([store.features("NetA"), store.features("NetB")])
    assert result.pipeline.predict(X).shape == (90,)
    assert result.metrics.value["accuracy"] > 0.5
    assert result.cv_results["converged"].all()


def test_average_across_spaces_names_the_ways_out(store):
    with pytest.raises(UsageError, match=r"not defined for NetA and NetB.*'concat', 'late', or 'aligned'"):
        deepfeat.fit_svm(store, fusion="average")


def test_average_within_a_space_is_the_mean_of_the_blocks(tmp_path, build_store, make_spec, make_table):
    X, y, _ = clusters()
    blocks = [(make_spec(), X), (make_spec(resize="crop"), X[:, ::-1].copy())]
    store = build_store(tmp_path / "s.h5", make_table(90, label=list(y)), blocks)
    averaged = deepfeat.fit_svm(store, fusion="average", param_grid=C_GRID)
    by_hand = deepfeat.fit_svm(((X + X[:, ::-1]) / 2, y), param_grid=C_GRID, test=None)
    np.testing.assert_allclose(
        averaged.predictions[list(LABELS)].to_numpy(float), by_hand.predictions[list(LABELS)].to_numpy(float), rtol=1e-4
    )
    assert len(averaged.blocks) == 2


def test_blocks_are_chosen_and_ordered_by_name(store):
    result = deepfeat.fit_svm(store, backbones=["NetB", "NetA"], param_grid=C_GRID)
    assert list(result.blocks) == ["NetB", "NetA"]
    X = np.hstack([store.features("NetB"), store.features("NetA")])
    tested = result.pipeline.decision_function(X)
    assert tested.shape == (90, 3)
    assert deepfeat.fit_svm(store, backbones="NetB", param_grid=C_GRID).blocks == {"NetB": 2}


# The result


def test_result_table_has_a_row_for_each_candidate(store):
    result = deepfeat.fit_svm(store, kernel="rbf", param_grid={"C": [1, 10, 100], "gamma": [0.01, 0.1, 1]})
    table = result.cv_results
    assert list(table.columns[:3]) == ["C", "gamma", "class_weight"]
    assert len(table) == 9
    folds = table[[f"fold{i}" for i in range(5)]]
    np.testing.assert_allclose(table["mean"], folds.mean(axis=1))
    np.testing.assert_allclose(table["std"], folds.std(axis=1, ddof=0))
    edges = dict(zip(zip(table["C"], table["gamma"], strict=True), table["at_edge"], strict=True))
    assert edges[10, 0.1] == ()
    assert edges[10, 1] == ("gamma",)
    assert edges[1, 0.01] == ("C", "gamma")


def test_best_at_the_edge_of_the_grid_is_flagged():
    X, y, _ = clusters()
    result = deepfeat.fit_svm((X, y), param_grid={"C": [1e-9, 1e-8]}, test=None)
    assert result.warnings == ["the best C is at the edge of its grid: widen it"]
    assert "note: the best C is at the edge" in result.summary()


def test_labels_without_names_are_refused():
    X, y, _ = clusters()
    with pytest.raises(UsageError, match="y holds True and False: name the classes"):
        deepfeat.fit_svm((X, y == "MEL"))


def test_missing_convergence_is_flagged(monkeypatch):
    X, y, _ = clusters()
    original = search.make_pipeline

    def impatient(*args):
        return original(*args).set_params(svm__max_iter=1, svm__loss="hinge", svm__dual=True)

    monkeypatch.setattr("deepfeat.svm.procedure.make_pipeline", impatient)
    result = deepfeat.fit_svm((X * 100, y), param_grid={"C": [1e4]}, test=None, loss="hinge", engine="sklearn")
    assert result.cv_results["converged"].tolist() == [False]
    assert any("did not converge" in note for note in result.warnings)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["AK", "MEL"], "4 images are 2 files, each under several ids (first: 'img003', 'img090')"),
        (
            ["AK", "NV"],
            "4 images are 2 files, each under several ids, and 1 of these files have several labels (first: ",
        ),
    ],
)
def test_notes_tell_of_images_that_count_several_times(tmp_path, build_store, make_spec, make_table, labels, said):
    """A class that was renamed is there twice, under its old ids and its new ones."""
    X, y, _ = clusters()
    y[[3, 4]] = ["AK", "MEL"]
    rows = [*range(90), 3, 4]
    table = make_table(len(rows), label=[*y[:90], *labels])
    store = build_store(tmp_path / "f.h5", table, [(make_spec(), X[rows])], [f"{row}" for row in rows])
    notes = deepfeat.fit_svm(store, param_grid=C_GRID, test=None, ledger=False).warnings
    assert next(note for note in notes if "several ids" in note).startswith(said)


def test_notes_tell_of_rows_left_out(tmp_path, build_store, make_spec, make_table, make_records):
    from deepfeat.store import StoreWriter

    X, y, groups = clusters()
    labels, lesions = list(y), list(groups)
    labels[5], lesions[7] = None, None
    store = build_store(tmp_path / "s.h5", make_table(90, label=labels, group=lesions), [(make_spec(), X)])
    with StoreWriter(store.path) as writer:
        writer.add_images(make_table(2, start=90, label=["AK", "NV"]))
    notes = deepfeat.fit_svm(store.path, param_grid=C_GRID, test=None).warnings
    assert "2 image(s) without features in every block left out (first: 'img090')" in notes
    assert "1 image(s) without a label left out (first: 'img005')" in notes
    assert "1 image(s) without a group count as a group of their own" in notes


def test_summary_and_repr_name_the_essentials(store):
    result = deepfeat.fit_svm(store, param_grid=C_GRID)
    assert "NetA + NetB (6 columns)" in result.summary()
    assert f"C={result.best_params['C']!r}" in result.summary()
    assert f"accuracy {result.metrics.value['accuracy']:.3f}" in repr(result)


@pytest.mark.parametrize("fusion", ["concat", "late", "aligned"])
def test_pipeline_works_alone_and_is_kept_by_pickle_and_skops(store, fusion):
    result = deepfeat.fit_svm(store, fusion=fusion, param_grid=C_GRID)
    X = np.hstack([store.features("NetA"), store.features("NetB")])
    expected = result.pipeline.decision_function(X)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(result.pipeline)).decision_function(X), expected)
    data = skops.io.dumps(result.pipeline)
    foreign = skops.io.get_untrusted_types(data=data)
    assert all(name.startswith("deepfeat.fusion.") for name in foreign)
    np.testing.assert_array_equal(skops.io.loads(data, trusted=foreign).decision_function(X), expected)


# Bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fusion": "sum"}, UsageError, "fusion is 'sum': use one of 'concat', 'average', 'aligned', 'late'"),
        ({"kernel": "poly"}, UsageError, "kernel is 'poly': use one of 'linear', 'rbf'"),
        ({"loss": "log"}, UsageError, "loss is 'log'"),
        ({"param_grid": {"gamma": [1]}}, UsageError, "param_grid names 'gamma': the linear kernel has C"),
        ({"param_grid": {"C": []}}, UsageError, r"param_grid\['C'\] is empty"),
        ({"param_grid": {"C": [1, -1]}}, UsageError, "holds -1: use numbers above 0"),
        ({"param_grid": {"C": ["a"]}}, UsageError, "holds 'a': use numbers above 0"),
        ({"class_weight": "auto"}, UsageError, "class_weight is 'auto': use 'balanced', None"),
        ({"class_weight": {"ZZ": 1}}, UsageError, r"class_weight names 'ZZ': the classes are \['AK', 'MEL', 'NV'\]"),
        ({"class_weight": {"AK": 0}}, UsageError, "weights are numbers above 0"),
        ({"positive": "ZZ"}, UsageError, r"positive is 'ZZ', which no image has: the labels are \['AK', 'MEL', 'NV'\]"),
        ({"test": "half"}, UsageError, "test is 'half': use 'split', a share such as 0.2, or None"),
        ({"test": 0.0}, UsageError, "between 0 and 1"),
        ({"cv": 1}, UsageError, "cv is 1"),
        ({"cv": 80}, DataError, "every class needs at least 80 images or groups for 80 folds"),
        ({"labels": {"ZZ": "a"}}, DataError, "'ZZ', which no image has"),
        ({"labels": {"AK": None, "NV": None}}, DataError, "all .* images are of the class 'MEL'"),
        ({"labels": {"AK": None, "NV": None, "MEL": None}}, DataError, "both features and a label"),
        ({"backbones": "NetZ"}, StoreError, "no block 'NetZ': its blocks are 'NetA', 'NetB'"),
        ({"backbones": []}, DataError, "no feature"),
    ],
)
def test_wrong_option(store, options, error, message):
    with pytest.raises(error, match=message) as caught:
        deepfeat.fit_svm(store, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (7, UsageError, "features is a int: pass a path, a FeatureStore, or"),
        ((np.zeros((4, 2)),), UsageError, "passed as"),
        ((np.zeros((4, 2)), list("abc")), UsageError, r"X has shape \(4, 2\), y \(3,\)"),
        ((np.zeros(4), list("abab")), UsageError, r"X is \(n, d\)"),
        ((np.full((4, 2), np.nan), list("abab")), DataError, "4 row.s. hold features that are not finite .first: '0'"),
        ((np.zeros((4, 2)), list("aaaa")), DataError, "class 'a'"),
        ((np.zeros((6, 2)), list("aaaaab")), DataError, r"b \(1\)"),
    ],
)
def test_wrong_features(features, error, message):
    with pytest.raises(error, match=message):
        deepfeat.fit_svm(features, test=None)


def test_class_with_fewer_lesions_than_folds_is_named():
    X, y, groups = clusters()
    groups = groups.copy()
    groups[y == "AK"] = "one lesion"
    with pytest.raises(DataError, match=r"AK \(1\)"):
        deepfeat.fit_svm((X, y, groups), test=None)


def test_blocks_that_saw_different_contents_are_refused(tmp_path, build_store, make_spec, make_table, make_records):
    from deepfeat.store import StoreWriter

    X, y, _ = clusters()
    store = build_store(tmp_path / "s.h5", make_table(90, label=list(y)), [(make_spec("NetA"), X)])
    contents = store.table["image_id"].tolist()
    contents[3] = "changed since"
    with StoreWriter(store.path) as writer:
        block = writer.add_block(make_spec("NetB"), (6,), {})
        writer.write(block, range(90), X, make_records(contents))
    with pytest.raises(DataError, match=r"NetA and NetB saw different contents of 1 image\(s\) \(first: 'img003'\)"):
        deepfeat.fit_svm(store.path)


def test_feature_maps_are_refused(tmp_path, build_store, make_spec, make_table):
    maps = np.zeros((90, 2, 2, 3), np.float32)
    table = make_table(90, label=list(clusters()[1]))
    store = build_store(tmp_path / "s.h5", table, [(make_spec(pooling=None), maps)])
    with pytest.raises(UsageError, match=r"holds feature maps of shape \(2, 2, 3\)"):
        deepfeat.fit_svm(store)


def test_features_that_are_not_finite_name_their_image(tmp_path, build_store, make_spec, make_table):
    X, y, _ = clusters()
    X[4, 0] = np.inf
    store = build_store(tmp_path / "s.h5", make_table(90, label=list(y)), [(make_spec(), X)])
    with pytest.raises(DataError, match="'img004'"):
        deepfeat.fit_svm(store)


def test_labels_that_are_not_utf8_are_refused_before_the_search_and_can_be_renamed():
    X = np.repeat(np.eye(2), 6, axis=0)
    y = np.repeat(np.array(["caf\udce9", "b"], dtype=object), 6)
    with pytest.raises(DataError, match=r"the label 'caf\\udce9' has bytes that are not UTF-8: rename the folder"):
        deepfeat.fit_svm((X, y), cv=2)
    result = deepfeat.fit_svm((X, y), labels={"caf\udce9": "café"}, cv=2, param_grid={"C": [1.0]})
    assert result.classes == ["b", "café"]


def test_two_networks_of_one_fold_are_told_apart_by_their_keys():
    spec = {"backbone": "skin@fold0", "layer": None, "view": "original"}
    twins = [
        SimpleNamespace(name="skin@fold0", key=key, spec={**spec, "weights": key}, provenance=object())
        for key in ("1a", "2b")
    ]
    store = SimpleNamespace(path="f.h5", structure=SimpleNamespace(blocks=twins))
    with pytest.raises(StoreError, match=r"f\.h5 has two blocks 'skin@fold0': name blocks by their keys"):
        choose_sources(store, "skin@folds", views=True)
