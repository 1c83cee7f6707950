from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from deepfeat.errors import DataError, UsageError
from deepfeat.operating_points import Wish, choose_threshold, read_wish

SCORES = {
    "recall": sk.recall_score,
    "specificity": lambda truth, guess: sk.recall_score(~truth, ~guess),
    "precision": lambda truth, guess: sk.precision_score(truth, guess, zero_division=0),
    "f1": sk.f1_score,
    "accuracy": sk.accuracy_score,
    "balanced_accuracy": sk.balanced_accuracy_score,
}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        (0, 0.0),
        (-0.25, -0.25),
        (np.float32(0.5), 0.5),
        ("recall>=0.9", Wish("recall", 0.9)),
        (" specificity >= 1 ", Wish("specificity", 1.0)),
        ("precision>=.5", Wish("precision", 0.5)),
        ("recall>=1.", Wish("recall", 1.0)),
        ("f1", Wish("f1", None)),
        ("balanced_accuracy", Wish("balanced_accuracy", None)),
    ],
)
def test_wish_is_read(given, expected):
    assert read_wish(given) == expected


@pytest.mark.parametrize(
    "given",
    [
        "recall",
        "recall>=1.5",
        "recall>=0",
        "recall>=.",
        "recall>=0.9.5",
        "recall>0.9",
        "auroc>=0.9",
        "f1>=0.9",
        "",
        True,
        np.nan,
        [0.1],
    ],
)
def test_other_wishes_are_refused(given):
    with pytest.raises(UsageError, match="use 'METRIC>=SHARE' with recall, specificity, precision, one of f1"):
        read_wish(given)


@pytest.mark.parametrize(
    "wish", ["recall>=0.8", "specificity>=0.8", "precision>=0.6", "f1", "accuracy", "balanced_accuracy"]
)
@pytest.mark.parametrize("seed", range(12))
def test_threshold_is_the_best_of_all(wish, seed):
    rng = np.random.default_rng(seed)
    truth = np.arange(40) % 3 == 0
    values = (rng.normal(size=40) + 2 * truth).round(int(rng.integers(4)))
    read = read_wish(wish)
    traded = {"recall": "specificity", "specificity": "recall", "precision": "recall"}.get(read.metric, read.metric)
    guess = values >= choose_threshold(truth, values, read)
    every = [values >= threshold for threshold in [*np.unique(values), np.inf]]
    granted = [g for g in every if read.least is None or SCORES[read.metric](truth, g) >= read.least - 1e-12]
    assert read.least is None or SCORES[read.metric](truth, guess) >= read.least - 1e-12
    assert SCORES[traded](truth, guess) == pytest.approx(max(SCORES[traded](truth, g) for g in granted))


def test_threshold_lies_between_two_images():
    truth, values = np.array([False, False, True, True]), np.array([-3.0, -1.0, 1.0, 5.0])
    assert choose_threshold(truth, values, Wish("recall", 1.0)) == 0
    assert choose_threshold(truth, values, Wish("specificity", 0.1)) == 0
    assert choose_threshold(truth, np.array([1.0, 1, -3, -5]), Wish("recall", 1.0)) == -5


@pytest.mark.parametrize("wish", ["accuracy", "specificity>=0.95", "specificity>=1"])
def test_nobody_is_positive_where_that_is_best(wish):
    truth, values = np.arange(20) == 0, np.arange(20.0)
    threshold = choose_threshold(truth, values, read_wish(wish))
    assert threshold == np.nextafter(19, 20)
    assert not (values >= threshold).any()


@pytest.mark.parametrize("wish", ["recall>=0.5", "precision>=0.05", "f1", "balanced_accuracy"])
def test_other_wishes_call_someone_positive(wish):
    truth, values = np.arange(20) == 0, np.arange(20.0)
    assert (values >= choose_threshold(truth, values, read_wish(wish))).all()


def test_nobody_is_positive_only_where_that_is_better():
    # With the first two images called positive, as many are right as with none.
    truth, values = np.array([False, True, False, False]), np.array([4.0, 3, 2, 1])
    assert choose_threshold(truth, values, Wish("accuracy", None)) == 2.5
    assert choose_threshold(truth, values, Wish("specificity", 0.5)) == 2.5


@pytest.mark.parametrize("lower", [1.0, np.nextafter(1, 2), np.nextafter(-1, 0), 0.0])
def test_threshold_between_adjacent_numbers_parts_them(lower):
    values = np.array([lower, np.nextafter(lower, np.inf)])
    threshold = choose_threshold(np.array([False, True]), values, Wish("precision", 1.0))
    assert (values >= threshold).tolist() == [False, True]


def test_wish_that_cannot_be_granted_is_an_error_with_the_most():
    truth, values = np.array([True, False, False, True]), np.array([1.0, 2.0, 3.0, -1.0])
    with pytest.raises(DataError, match=r"no threshold reaches precision>=0.9: the most is 0.500; wish for less"):
        choose_threshold(truth, values, Wish("precision", 0.9))
