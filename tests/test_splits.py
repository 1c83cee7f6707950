from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    LeaveOneGroupOut,
    PredefinedSplit,
    RepeatedStratifiedKFold,
    StratifiedGroupKFold,
    StratifiedKFold,
    train_test_split,
)

from deepfeat.errors import DataError, UsageError
from deepfeat.splits import hold_out, make_folds, merge_groups


def objects(values):
    return np.array(list(values), dtype=object)


def lesions(sizes, seed=0):
    """Labels and groups: so many groups of each class, of one to four images each, in random order."""
    rng = np.random.default_rng(seed)
    owner = [label for label, n_groups in sizes.items() for _ in range(n_groups)]
    groups = rng.permutation(np.repeat(np.arange(len(owner)), rng.integers(1, 5, len(owner))))
    return objects(owner)[groups], groups


def assert_leak_free(folds, labels, sets):
    for train, test in folds:
        assert not set(sets[train]) & set(sets[test])
        assert set(labels[train]) == set(labels)


def assert_cover_each_row_once(folds, n_rows):
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(n_rows))
    for train, test in folds:
        assert sorted([*train.tolist(), *test.tolist()]) == list(range(n_rows))


# --------------------------------------------------------------------------------------------------- merge_groups


@pytest.mark.parametrize(
    ("groups", "digests", "expected"),
    [
        pytest.param([], None, [], id="nothing"),
        pytest.param(["a"], None, [0], id="one image"),
        pytest.param(["a", "b", "a"], None, [0, 1, 0], id="groups alone"),
        pytest.param([None, None, None], None, [0, 1, 2], id="no groups"),
        pytest.param([None, float("nan"), "a", np.nan, "a"], None, [0, 1, 2, 3, 2], id="None and NaN are own sets"),
        pytest.param([7, 8, 7], None, [0, 1, 0], id="numbers"),
        pytest.param(["a", "", " ", "a", ""], None, [0, 1, 2, 0, 3], id="blanks are own sets"),
        pytest.param([None] * 3, [b"x", b"y", b"x"], [0, 1, 0], id="digests alone"),
        pytest.param([None] * 3, [None] * 3, [0, 1, 2], id="no digests"),
        pytest.param(["a", "a", "b", "c"], [b"1", b"2", b"2", b"3"], [0, 0, 0, 1], id="joined by one file"),
        pytest.param([*"abcd"], [b"1", b"1", b"2", b"2"], [0, 0, 1, 1], id="joined by two files"),
        pytest.param(["a", "b", "b", "c", "c", "d"], [b"1", b"1", b"2", b"2", b"3", b"3"], [0] * 6, id="a chain"),
        pytest.param(["a", None, "b", None], [b"1", b"1", b"2", b"2"], [0, 0, 1, 1], id="known by the file alone"),
        pytest.param(["a", "b"], ["b", "a"], [0, 1], id="a group and a digest of one name are no tie"),
    ],
)
def test_merge_groups(groups, digests, expected):
    sets = merge_groups(groups, digests)
    assert sets.dtype.kind == "i"
    # Only which images share a number matters.
    assert [sets.tolist().index(s) for s in sets] == [expected.index(s) for s in expected]
    assert set(sets.tolist()) == set(range(len(set(expected))))


@pytest.mark.parametrize("groups", [["7", 7, None], [np.float64(7), "7"], [None, np.str_("a"), 1]])
def test_groups_of_text_and_numbers_are_refused(groups):
    labels = objects("ab" * 10)
    message = r"groups are of several types, such as .*'[7a]'\)? and .*: use text for all, or numbers for all"
    for made in (
        lambda: merge_groups(groups),
        lambda: hold_out(labels, groups * 6, 0.5, 0),
        lambda: make_folds(labels, objects((groups * 7)[:20]), 2, 0),
    ):
        with pytest.raises(DataError, match=message):
            made()


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.none() | st.integers(0, 6), st.none() | st.integers(0, 12)), max_size=20))
def test_merge_groups_finds_the_connected_images(pairs):
    groups, digests = [p[0] for p in pairs], [p[1] for p in pairs]
    expected = list(range(len(pairs)))
    for _ in pairs:
        for i, (group, digest) in enumerate(pairs):
            for j in range(i):
                if (group is not None and group == groups[j]) or (digest is not None and digest == digests[j]):
                    expected[i] = expected[j] = min(expected[i], expected[j])
    sets = merge_groups(groups, digests).tolist()
    assert [sets.index(s) for s in sets] == expected


# ------------------------------------------------------------------------------------------------------- hold_out


def test_hold_out_without_groups_is_scikit_learns_split():
    labels = objects("AAABB" * 20)
    for groups in ([None] * 100, list(range(100))):
        train, test = hold_out(labels, groups, 0.2, seed=3)
        expected = train_test_split(np.arange(100), test_size=0.2, random_state=3, stratify=labels)
        np.testing.assert_array_equal(train, np.sort(expected[0]))
        np.testing.assert_array_equal(test, np.sort(expected[1]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.25, 1 / 3, 0.5, 0.7, 0.95])
def test_hold_out_is_stratified_with_groups_whole(share, seed):
    labels, groups = lesions({"NV": 300, "MEL": 90, "DF": 40}, seed)
    train, test = hold_out(labels, groups.tolist(), share, seed)
    assert_leak_free([(train, test), (test, train)], labels, groups)
    assert sorted([*train, *test]) == list(range(len(labels)))
    assert len(test) / len(labels) == pytest.approx(share, abs=0.02)
    for label in set(labels):
        assert (labels[test] == label).sum() / (labels == label).sum() == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize("grouped", [False, True])
def test_hold_out_depends_on_the_seed_alone(grouped):
    labels, groups = lesions({"NV": 60, "MEL": 40})
    groups = groups.tolist() if grouped else [None] * len(labels)
    first, again, other = (hold_out(labels, groups, 0.2, seed)[1].tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_hold_out_of_labels_that_are_true_and_false():
    labels, groups = lesions({True: 40, False: 40})
    train, test = hold_out(labels.astype(bool), groups.tolist(), 0.25, 0)
    assert_leak_free([(train, test)], labels, groups)


@pytest.mark.parametrize("share", [0.01, 0.15, 0.2, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("pairs", [2, 3, 5])
def test_hold_out_of_few_groups(share, pairs):
    labels, groups = objects("AABB" * pairs), np.repeat(np.arange(2 * pairs), 2)
    train, test = hold_out(labels, groups.tolist(), share, 0)
    assert_leak_free([(train, test), (test, train)], labels, groups)


def test_hold_out_leaves_no_warning():
    labels, groups = lesions({"NV": 60, "MEL": 4})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hold_out(labels, groups.tolist(), 0.2, 0)


@pytest.mark.parametrize("share", [0, 1, -0.2, 1.2, 3, float("nan"), float("inf"), "0.2", None, True, [0.2]])
def test_hold_out_refuses_a_share(share):
    with pytest.raises(UsageError, match=r"^test_size is .*: use a share between 0 and 1, such as 0.2$"):
        hold_out(objects("AABB"), [None] * 4, share, 0)


def test_hold_out_accepts_numpy_numbers():
    for share in (np.float32(0.5), np.float64(0.5)):
        assert len(hold_out(objects("AABB"), [None] * 4, share, 0)[1]) == 2


@pytest.mark.parametrize(
    ("labels", "groups", "share", "message"),
    [
        pytest.param(
            "AAAA", [None] * 4, 0.5, r"^all 4 images are of the class 'A': a classifier needs two$", id="one class"
        ),
        pytest.param(
            "AAAB",
            [None] * 4,
            0.5,
            r"^every class needs at least 2 images or groups for a train and a test side, but .*: B \(1\); drop or",
            id="one image",
        ),
        pytest.param(
            "AAAABBCC", [*"abcdeeff"], 0.5, r"but 2 class\(es\) have fewer: B \(1\), C \(1\); drop", id="one group each"
        ),
        pytest.param(
            "AAABBBCCC",
            [None] * 9,
            0.1,
            r"^test_size 0.1 of 9 images leaves 1 for the test and 8 to train, too few for 3 classes: use",
            id="small test",
        ),
        pytest.param(
            "AAABBBCCC", [None] * 9, 0.9, r"leaves 9 for the test and 0 to train, too few for 3 classes", id="no train"
        ),
        pytest.param(
            "A" * 98 + "BB",
            [None] * 100,
            0.1,
            r"^class 'B' has no image in the test side of the split: try another seed or a share nearer to 0.5$",
            id="rare class",
        ),
    ],
)
def test_hold_out_refuses(labels, groups, share, message):
    with pytest.raises(DataError, match=message):
        hold_out(objects(labels), groups, share, 0)


# ----------------------------------------------------------------------------------------------------- make_folds


@pytest.mark.parametrize("cv", [2, 5, 10, np.int64(3)])
def test_make_folds_without_groups_are_scikit_learns(cv):
    labels = objects("AAAB" * 20)
    folds = make_folds(labels, np.arange(80), cv, seed=4)
    expected = StratifiedKFold(int(cv), shuffle=True, random_state=4).split(labels, labels)
    for (train, test), (expected_train, expected_test) in zip(folds, expected, strict=True):
        np.testing.assert_array_equal(train, expected_train)
        np.testing.assert_array_equal(test, expected_test)


@pytest.mark.parametrize("cv", [2, 3, 5, 10])
@pytest.mark.parametrize("seed", range(3))
def test_make_folds_are_stratified_with_groups_whole(cv, seed):
    labels, groups = lesions({"NV": 300, "MEL": 90, "DF": 40}, seed)
    folds = make_folds(labels, groups, cv, seed)
    assert len(folds) == cv
    assert_cover_each_row_once(folds, len(labels))
    assert_leak_free(folds, labels, groups)
    whole = Counter(labels)
    for _, test in folds:
        for label, count in Counter(labels[test]).items():
            assert count == pytest.approx(whole[label] / cv, abs=0.35 * whole[label] / cv)


@pytest.mark.parametrize("grouped", [False, True])
def test_make_folds_depend_on_the_seed_alone(grouped):
    labels, groups = lesions({"NV": 60, "MEL": 40})
    sets = groups if grouped else np.arange(len(labels))
    first, again, other = ([test.tolist() for _, test in make_folds(labels, sets, 3, seed)] for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.filterwarnings("ignore:The groups parameter is ignored")
@pytest.mark.parametrize(
    ("labels", "sets", "cv", "message"),
    [
        pytest.param(
            "AAAA", [0, 1, 2, 3], 2, r"^all 4 images are of the class 'A': a classifier needs two$", id="one class"
        ),
        pytest.param("AAAA", [0, 1, 2, 3], KFold(2), r"^all 4 images are of the class 'A'", id="one class, splitter"),
        pytest.param(
            "AAAA", [0, 1, 2, 3], [([0, 1], [2, 3])], r"^all 4 images are of the class 'A'", id="one class, arrays"
        ),
        pytest.param(
            "AAAAABBB",
            range(8),
            5,
            r"^every class needs at least 5 images or groups for 5 folds, but 1 class\(es\) have fewer: B \(3\); "
            r"use at most 3 folds, or drop or merge classes \(in fit_svm: labels=\{old: new or None\}\)$",
            id="class smaller than cv",
        ),
        pytest.param(
            "AAAAABBBBB",
            [0, 1, 2, 3, 4, 5, 5, 5, 6, 6],
            3,
            r"but 1 class\(es\) have fewer: B \(2\); use at most 2 folds",
            id="fewer groups than folds",
        ),
        pytest.param(
            "AAABBC",
            range(6),
            3,
            r"but 2 class\(es\) have fewer: B \(2\), C \(1\); drop or merge",
            id="no number of folds would do",
        ),
        pytest.param(
            "AAAB",
            range(4),
            KFold(2),
            r"^every class needs at least 2 images or groups for cross-validation, .*: B \(1\); drop",
            id="one image, splitter",
        ),
        pytest.param(
            "ABAABB",
            [0, 1, 2, 0, 3, 4],
            KFold(2),
            r"^fold 0 has 1 group\(s\) in both its training and its test part: use a group splitter$",
            id="leaking splitter",
        ),
        pytest.param(
            "ABAB",
            [0, 0, 1, 1],
            [([0, 1, 2, 3], [0, 1])],
            r"^fold 0 has 1 group\(s\) in both its training",
            id="test rows in training",
        ),
        pytest.param(
            "ABABAB",
            [0, 1, 2, 3, 2, 4],
            [([0, 1], [2, 3]), ([1, 2], [4])],
            r"^fold 1 has 1 group\(s\) in both",
            id="second fold leaks",
        ),
        pytest.param(
            "AABB",
            range(4),
            KFold(2),
            r"^class 'A' has no image in the training part of fold 0: try a stratified splitter$",
            id="class not trained",
        ),
        pytest.param(
            "AABB",
            range(4),
            [([0, 1], [2])],
            r"^class 'B' has no image in the training part of fold 0",
            id="class not trained, arrays",
        ),
        pytest.param("AABB", [0, 0, 1, 2], GroupKFold(4), r"A \(1\); drop", id="group splitter, class of one group"),
        pytest.param(
            "AABB" * 2,
            [0, 1, 2, 3] * 2,
            GroupKFold(5),
            r"^cv=GroupKFold\(.*\) cannot split the 8 images: .*n_splits=5 greater than the number of groups: 4",
            id="splitter refuses",
        ),
        pytest.param(
            "AABB",
            range(4),
            StratifiedKFold(3),
            r"cannot split the 4 images: n_splits=3 cannot be greater",
            id="stratified splitter refuses",
        ),
    ],
)
def test_make_folds_refuses_data(labels, sets, cv, message):
    with pytest.raises(DataError, match=message):
        make_folds(objects(labels), np.array(sets), cv, 0)


@pytest.mark.parametrize(
    ("cv", "message"),
    [
        (1, r"^cv is 1: use 2 or more folds, or a scikit-learn splitter$"),
        (0, r"^cv is 0: use 2 or more"),
        (-3, r"^cv is -3: use 2 or more"),
        (np.int64(1), r"^cv is 1: use 2 or more"),
        (True, r"^cv is True: use 2 or more"),
        (False, r"^cv is False: use 2 or more"),
        (
            2.0,
            r"^cv is a float: use a number of folds, a scikit-learn splitter object, or \(train, test\) index arrays$",
        ),
        (None, r"^cv is a NoneType: use"),
        (object(), r"^cv is a object: use"),
        ("5", r"^cv is '5': use a number of folds"),
        (KFold, r"^cv is KFold: use .* splitter object"),
        ([], r"^cv holds no folds: give at least one"),
        ([1, 2], r"^cv is an iterable of something other than \(train, test\) pairs of index arrays: cannot unpack"),
        ([([0], [1], [2])], r"^cv is an iterable of something other than .*: too many values"),
        (
            [([], [1, 3])],
            r"^the training part of fold 0 is an array of shape \(0,\) and type float64: use one dimension",
        ),
        ([(np.array([True, False, True, False]), [3])], r"^the training part of fold 0 is .* type bool: use"),
        ([([0, 2], [[1], [3]])], r"^the test part of fold 0 is an array of shape \(2, 1\)"),
        ([([0, 2], [1]), ([0, 2], ["b"])], r"^the test part of fold 1 is an array of shape \(1,\) and type <U1: use"),
        ([([0, 2], [1, 99])], r"^the test part of fold 0 has the rows 1 to 99: use row numbers from 0 to 3$"),
        ([([0, -2], [1])], r"^the training part of fold 0 has the rows -2 to 0: use row numbers from 0 to 3$"),
    ],
)
def test_make_folds_refuses_a_cv(cv, message):
    with pytest.raises(UsageError, match=message):
        make_folds(objects("AABB"), np.arange(4), cv, 0)


@pytest.mark.parametrize(
    "splitter",
    [
        KFold(4, shuffle=True, random_state=0),
        StratifiedKFold(4),
        RepeatedStratifiedKFold(n_splits=4, n_repeats=2, random_state=0),
        PredefinedSplit([-1, 0, 1, 2] * 10),
    ],
    ids=lambda splitter: type(splitter).__name__,
)
@pytest.mark.filterwarnings("ignore:The groups parameter is ignored")
def test_make_folds_with_a_splitter_gives_its_folds(splitter):
    labels = objects("AABAB" * 8)
    folds = make_folds(labels, np.arange(40), splitter, 0)
    expected = list(splitter.split(np.zeros(40), labels))
    assert [(a.tolist(), b.tolist()) for a, b in folds] == [(a.tolist(), b.tolist()) for a, b in expected]


@pytest.mark.parametrize(
    "splitter",
    [GroupKFold(3), StratifiedGroupKFold(3), LeaveOneGroupOut()],
    ids=lambda splitter: type(splitter).__name__,
)
def test_make_folds_gives_a_group_splitter_the_sets(splitter):
    labels, sets = objects("AAABBB" * 4), np.repeat(np.arange(8), 3)
    folds = make_folds(labels, sets, splitter, 0)
    assert len(folds) == (8 if isinstance(splitter, LeaveOneGroupOut) else 3)
    assert_cover_each_row_once(folds, 24)
    assert_leak_free(folds, labels, sets)


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_make_folds_with_index_arrays(kind):
    pairs = [([0, 2, 4], [1, 3, 5]), (np.array([1, 3, 5]), range(0, 6, 2))]
    folds = make_folds(objects("AABBBA"), np.arange(6), kind(pairs), 0)
    assert [(a.tolist(), b.tolist()) for a, b in folds] == [([0, 2, 4], [1, 3, 5]), ([1, 3, 5], [0, 2, 4])]


# ---------------------------------------------------------------------------------------------------- any data set

DATA_SETS = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.sampled_from("ABC"), min_size=n, max_size=n),
        st.lists(st.none() | st.integers(0, n), min_size=n, max_size=n),
    )
)


@settings(max_examples=120, deadline=None)
@given(DATA_SETS, st.integers(2, 5), st.integers(0, 3))
def test_make_folds_of_any_data_are_leak_free_or_refused(data, cv, seed):
    labels, sets = objects(data[0]), merge_groups(data[1])
    sets_per_class = [len(set(sets[labels == label])) for label in set(labels)]
    try:
        folds = make_folds(labels, sets, cv, seed)
    except DataError:
        possible = len(sets_per_class) > 1 and min(sets_per_class) >= cv
        # With enough sets, only sets of several classes that fall together may still prevent it.
        assert not possible or len(set(sets)) < len(sets)
        return
    assert len(folds) == cv
    assert min(sets_per_class) >= cv
    assert_cover_each_row_once(folds, len(labels))
    assert_leak_free(folds, labels, sets)
    if len(set(sets)) == len(sets):
        for label, count in Counter(labels).items():
            in_test = [(labels[test] == label).sum() for _, test in folds]
            assert count // cv <= min(in_test)
            assert max(in_test) <= -(-count // cv)


@settings(max_examples=120, deadline=None)
@given(DATA_SETS, st.floats(0, 1, exclude_min=True, exclude_max=True), st.integers(0, 3))
def test_hold_out_of_any_data_is_leak_free_or_refused(data, share, seed):
    labels, groups = objects(data[0]), data[1]
    try:
        train, test = hold_out(labels, groups, share, seed)
    except DataError:
        return
    assert sorted([*train, *test]) == list(range(len(labels)))
    assert_leak_free([(train, test), (test, train)], labels, merge_groups(groups))


def test_sets_are_numbered_in_the_order_of_the_groups():
    assert merge_groups(["c", "a", None, "b", "a"]).tolist() == [2, 0, 3, 1, 0]
    assert merge_groups(["c", "a", None, "b", "a"], [1, 2, 1, 3, 4]).tolist() == [2, 0, 2, 1, 0]


@pytest.mark.parametrize(("n_classes", "n_folds"), [(2, 2), (2, 5), (3, 20), (8, 5), (12, 3)])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mixed", [False, True])
def test_folds_of_grouped_images_equal_those_of_scikit_learn(seed, n_classes, n_folds, mixed):
    rng = np.random.default_rng(seed)
    codes = np.sort(rng.integers(0, 60 * n_classes, 150 * n_classes))
    # Classes of very different sizes; equal counts in many groups, so that ties have to be broken alike.
    labels = rng.integers(0, n_classes, len(codes)) if mixed else np.floor(n_classes * (codes / 60 / n_classes) ** 2)
    groups, labels = np.array([f"g{code}" for code in codes], object), np.array([f"c{code:g}" for code in labels])
    folds = make_folds(labels, merge_groups(groups), n_folds, seed)
    expected = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed).split(labels, labels, groups)
    for (train, test), (other_train, other_test) in zip(folds, expected, strict=True):
        np.testing.assert_array_equal(train, other_train)
        np.testing.assert_array_equal(test, other_test)


def test_folds_of_grouped_images_do_not_take_scikit_learns_time(monkeypatch):
    """That its search for the best fold is another one here, which is private and could lose its name."""
    asked = []
    monkeypatch.setattr(StratifiedGroupKFold, "_find_best_fold", lambda *a, **k: asked.append(1) or 0)
    groups = np.repeat(np.arange(20), 2)
    make_folds(np.tile(["a", "b"], 20), merge_groups(groups), 4, 0)
    assert not asked
    list(StratifiedGroupKFold(4).split(groups, np.tile(["a", "b"], 20), groups))
    assert asked
