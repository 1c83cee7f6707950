from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics.pairwise import cosine_similarity

import deepfeat
from deepfeat import duplicates
from deepfeat.errors import DataError, StoreError, UsageError
from deepfeat.splits import merge_groups

N = 60


@pytest.fixture
def features():
    """Images that all lie in one narrow cone; 10 is nearly 3, 11 nearly 4, and 12 equals 5."""
    rng = np.random.default_rng(0)
    X = (20 + rng.normal(size=(N, 16))).astype(np.float32)
    X[10] = X[3] + 0.02 * rng.normal(size=16)
    X[11] = X[4] + 0.02 * rng.normal(size=16)
    X[12] = X[5]
    return X


@pytest.fixture
def store(tmp_path, build_store, make_spec, make_table, features):
    groups = [f"lesion {i}" for i in range(N)]
    groups[11] = groups[4]
    contents = list(range(N))
    contents[12], contents[40] = contents[5], contents[41]
    table = make_table(N, label=["NV", "MEL"] * (N // 2), group=groups)
    return build_store(tmp_path / "s.h5", table, [(make_spec(), features)], contents)


def as_set(table):
    return set(zip(table["image_a"], table["image_b"], strict=True))


def test_near_and_equal_images_are_found_and_described(store):
    pairs = deepfeat.find_duplicates(store)
    assert as_set(pairs) == {("img003", "img010"), ("img004", "img011"), ("img005", "img012"), ("img040", "img041")}
    by_first = pairs.set_index("image_a")
    assert by_first["identical"].to_dict() == {"img003": False, "img004": False, "img005": True, "img040": True}
    assert by_first["same_group"].to_dict() == {"img003": False, "img004": True, "img005": True, "img040": True}
    assert by_first.loc["img003", ["label_a", "label_b", "group_b"]].tolist() == ["MEL", "NV", "lesion 10"]
    assert by_first.loc["img005", "similarity"] == pytest.approx(1, abs=1e-6)
    assert by_first.loc["img040", "similarity"] < 0.9
    assert pairs["similarity"].is_monotonic_decreasing


@pytest.mark.parametrize("step", [1, 7, 10**6])
@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_pairs_are_those_of_all_cosines(store, features, monkeypatch, step, threshold):
    monkeypatch.setattr(duplicates, "_AT_A_TIME", step * N)
    cosines = cosine_similarity(features.astype(float) - features.astype(float).mean(axis=0))
    expected = set(zip(*np.nonzero(np.triu(cosines >= threshold, 1)), strict=True)) | {(40, 41)}
    pairs = deepfeat.find_duplicates(store, threshold=threshold)
    found = [(int(a[3:]), int(b[3:])) for a, b in zip(pairs["image_a"], pairs["image_b"], strict=True)]
    assert len(found) == len(set(found))
    assert set(found) == expected
    np.testing.assert_allclose(pairs["similarity"], [cosines[pair] for pair in found], atol=1e-5)


def test_similarity_of_several_blocks_is_the_mean_cosine(tmp_path, build_store, make_spec, make_table, features):
    other = np.random.default_rng(1).normal(size=(N, 5)).astype(np.float32)
    blocks = [(make_spec("NetA"), features), (make_spec("NetB"), 1000 * other)]
    store = build_store(tmp_path / "s.h5", make_table(N, label="NV"), blocks)
    centred = [block.astype(float) - block.astype(float).mean(axis=0) for block in (features, other)]
    cosines = np.mean([cosine_similarity(block) for block in centred], axis=0)
    pairs = deepfeat.find_duplicates(store, threshold=0.6)
    assert len(pairs) == (np.triu(cosines, 1) >= 0.6).sum()
    assert len(deepfeat.find_duplicates(store, "NetA")) == 3


def test_group_joins_what_pairs_and_groups_tie(store):
    pairs = deepfeat.find_duplicates(store, threshold=0.9)
    assert pairs["group"].nunique() == 4
    chain = pd.DataFrame({"image_a": ["img000", "img004"], "image_b": ["img004", "img020"]})
    result = deepfeat.fit_svm(store, duplicates=chain, cv=3, param_grid={"C": [0.01]}, ledger=False)
    tied = result.predictions.loc[["img000", "img004", "img011", "img020"]]
    assert len(set(tied["group"])) == len(set(tied["fold"])) == 1


def test_duplicates_are_never_parted_by_the_test(store):
    pairs = deepfeat.find_duplicates(store, threshold=0.5)
    assert len(pairs) > 20
    for seed in range(3):
        options = {"test": 0.3, "cv": 2, "param_grid": {"C": [0.01]}, "seed": seed, "ledger": False}
        folds = deepfeat.fit_svm(store, duplicates=pairs, **options).predictions["fold"].astype(str)
        assert folds[pairs["image_a"]].tolist() == folds[pairs["image_b"]].tolist()


def test_merge_groups_takes_pairs_along():
    pairs = np.array([[0, 3], [3, 4]])
    assert merge_groups(["a", "b", "b", None, "c", None], None, pairs).tolist() == [0, 1, 1, 0, 0, 2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"threshold": 0}, UsageError, "threshold is 0: use a cosine above 0"),
        ({"threshold": 1.1}, UsageError, "at most 1"),
        ({"threshold": float("nan")}, UsageError, "threshold is nan"),
        ({"backbones": "NetZ"}, StoreError, "no block 'NetZ'"),
        ({"backbones": []}, DataError, "has no image with features in every block"),
    ],
)
def test_wrong_arguments_are_named(store, arguments, error, message):
    with pytest.raises(error, match=message):
        deepfeat.find_duplicates(store, **arguments)


def test_threshold_that_all_pairs_reach_is_refused(tmp_path, build_store, make_spec, make_table):
    X = np.repeat(np.eye(2, 4, dtype=np.float32), 150, axis=0)
    store = build_store(tmp_path / "s.h5", make_table(300, label="NV"), [(make_spec(), X)])
    with pytest.raises(UsageError, match="more than 50 pairs for each image"):
        deepfeat.find_duplicates(store)


def test_images_that_are_all_the_same_to_the_network_are_no_pairs(tmp_path, build_store, make_spec, make_table):
    store = build_store(tmp_path / "s.h5", make_table(4, label="NV"), [(make_spec(), np.ones((4, 3), np.float32))])
    assert deepfeat.find_duplicates(store).empty
    assert "similarity" in deepfeat.find_duplicates(store)


def test_blocks_that_saw_different_contents_are_refused(tmp_path, build_store, make_spec, make_table, features):
    path = tmp_path / "s.h5"
    build_store(path, make_table(N), [(make_spec("NetA"), features)])
    store = build_store(path, make_table(N), [(make_spec("NetB"), features)], [*range(N)])
    with pytest.raises(DataError, match=r"NetA and NetB saw different contents of 60 image\(s\)"):
        deepfeat.find_duplicates(store)


def test_features_that_are_not_finite_are_refused(tmp_path, build_store, make_spec, make_table, features):
    features[7, 2] = np.nan
    store = build_store(tmp_path / "s.h5", make_table(N), [(make_spec(), features)])
    with pytest.raises(DataError, match="not finite"):
        deepfeat.find_duplicates(store)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (pd.DataFrame({"a": ["img000"]}), "no columns image_a and image_b"),
        ([("img000", "img001")], "no columns image_a and image_b"),
        (pd.DataFrame({"image_a": ["img000"], "image_b": ["img999"]}), "names 'img999', which is none"),
    ],
)
def test_tables_that_are_no_pairs_are_refused(store, pairs, message):
    with pytest.raises((UsageError, DataError), match=message):
        deepfeat.fit_svm(store, duplicates=pairs)


# Images without a group


@pytest.fixture
def half_grouped(random_features):
    y = np.array(["NV", "MEL"] * 30)
    X = random_features(60, 4)
    groups = [None if i < 10 else i // 2 for i in range(60)]
    return X, y, groups


def fit(data, **options):
    return deepfeat.fit_svm(data, test=None, cv=3, param_grid={"C": [0.01]}, **options)


def test_ungrouped_images_are_their_own_left_out_or_an_error(half_grouped):
    own = fit(half_grouped)
    assert len(own.predictions) == 60
    assert own.predictions["group"].nunique() == 10 + 25
    assert "10 image(s) without a group count as a group of their own" in own.warnings
    dropped = fit(half_grouped, ungrouped="drop")
    assert dropped.predictions.index.tolist() == [str(i) for i in range(10, 60)]
    assert "10 image(s) without a group left out (first: '0')" in dropped.warnings
    with pytest.raises(DataError, match=r"10 of 60 image\(s\) have no group \(first: '0'\)"):
        fit(half_grouped, ungrouped="raise")
    with pytest.raises(UsageError, match="ungrouped is 'keep': use one of 'own', 'drop', 'raise'"):
        fit(half_grouped, ungrouped="keep")


@pytest.mark.parametrize("ungrouped", ["drop", "raise"])
def test_data_without_any_group_is_refused_unless_each_is_its_own(half_grouped, ungrouped):
    X, y, _ = half_grouped
    assert fit((X, y)).warnings == fit((X, y), ungrouped="own").warnings
    with pytest.raises(DataError, match=r"60 of 60 image\(s\) have no group"):
        fit((X, y), ungrouped=ungrouped)
