from __future__ import annotations

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from deepfeat.errors import UsageError
from deepfeat.fusion import AlignedAverage, BlockAverage, LateFusionClassifier, one_space


@parametrize_with_checks([BlockAverage(), AlignedAverage(), LateFusionClassifier()])
def test_estimator_keeps_the_conventions_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_block_average_is_the_mean_of_the_blocks(rng):
    blocks = rng.normal(size=(3, 5, 4))
    averaged = BlockAverage([4, 4, 4]).fit_transform(np.hstack(blocks))
    np.testing.assert_allclose(averaged, blocks.mean(axis=0))


def test_block_average_of_other_widths_names_the_ways_out(rng):
    with pytest.raises(UsageError, match="widths \\[2, 3\\] cannot be averaged: use fusion='aligned'"):
        BlockAverage([2, 3]).fit(rng.normal(size=(4, 5)))


@pytest.mark.parametrize("estimator", [BlockAverage, AlignedAverage])
def test_widths_that_do_not_add_up(rng, estimator):
    with pytest.raises(UsageError, match="add up to 4, and X has 5 features"):
        estimator([2, 2]).fit(rng.normal(size=(4, 5)))


def test_aligned_average_of_turned_copies_is_the_first_block(rng):
    """Blocks that differ by a permutation and a scale fall onto the first."""
    block = rng.normal(size=(60, 6)) @ np.diag([5, 3, 2, 1, 0.5, 0.2])
    copies = np.hstack([block, 7 * block[:, ::-1], -0.1 * np.roll(block, 2, axis=1)])
    alone = AlignedAverage([6]).fit_transform(block)
    together = AlignedAverage([6, 6, 6]).fit_transform(copies)
    np.testing.assert_allclose(together, alone, atol=1e-8)


def test_aligned_average_has_the_least_width_and_unit_mean_square(rng):
    X = rng.normal(size=(40, 12))
    aligned = AlignedAverage([9, 3]).fit(X)
    assert aligned.n_components_ == 3
    for scaler, projection, columns in zip(aligned.scalers_, aligned.projections_, ([0, 9], [9, 12]), strict=True):
        scores = scaler.transform(X[:, slice(*columns)]) @ projection
        assert np.mean(scores**2) == pytest.approx(1)
    assert aligned.transform(X).shape == (40, 3)


def test_aligned_average_rotation_is_that_of_scipy(rng):
    from scipy.linalg import orthogonal_procrustes

    X = rng.normal(size=(50, 8))
    aligned = AlignedAverage([4, 4]).fit(X)
    first, second = (
        scaler.transform(X[:, s]) @ projection
        for scaler, s, projection in zip(aligned.scalers_, (slice(4), slice(4, 8)), aligned.projections_, strict=True)
    )
    rotation, _ = orthogonal_procrustes(second, first)
    np.testing.assert_allclose(rotation, np.eye(4), atol=1e-8)  # nothing is left to turn


def test_aligned_average_is_fitted_on_the_training_rows_alone(rng):
    X = rng.normal(size=(30, 8))
    aligned = AlignedAverage([4, 4]).fit(X[:20])
    before = aligned.transform(X[20:])
    poisoned = X.copy()
    poisoned[25] = 1e6
    np.testing.assert_array_equal(aligned.transform(poisoned[20:])[:5], before[:5])


def test_late_fusion_is_the_mean_of_the_decisions(rng):
    X, y = rng.normal(size=(60, 7)), rng.choice(list("abc"), 60)
    inner = make_pipeline(StandardScaler(), LinearSVC(C=0.1, random_state=0))
    late = LateFusionClassifier(inner, [4, 3]).fit(X, y)
    parts = [inner.fit(X[:, s], y).decision_function(X[:, s]) for s in (slice(4), slice(4, 7))]
    np.testing.assert_allclose(late.decision_function(X), np.mean(parts, axis=0))
    np.testing.assert_array_equal(late.predict(X), np.array(list("abc"))[np.mean(parts, axis=0).argmax(axis=1)])


def test_late_fusion_of_two_classes_has_one_decision_value(rng):
    X, y = rng.normal(size=(40, 4)), np.arange(40) % 2 == 0
    late = LateFusionClassifier(SVC(), [2, 2]).fit(X, y)
    assert late.decision_function(X).shape == (40,)
    np.testing.assert_array_equal(late.predict(X), late.decision_function(X) > 0)


SPEC = {
    "backbone": "A",
    "weights": "sha256:0",
    "layer": None,
    "pooling": "avg",
    "preprocessing": {"mean": [0, 0, 0]},
    "precision": "float32",
    "resize": "squash",
    "input_size": [8, 8],
    "view": "original",
}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"resize": "crop"}, True),
        ({"input_size": [9, 9]}, True),
        ({"view": "flip"}, True),
        ({"backbone": "B"}, False),
        ({"weights": "sha256:1"}, False),
        ({"layer": "x"}, False),
        ({"pooling": "max"}, False),
        ({"preprocessing": {"mean": [1, 1, 1]}}, False),
    ],
)
def test_one_space_is_one_network_seen_through_other_image_preparation(change, same):
    assert one_space([SPEC, {**SPEC, **change}]) is same
