from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ortho_group

import deepfeat
from deepfeat.errors import DataError, UsageError


def cka_by_gram_matrices(X, Y):
    """Kornblith et al. 2019, equation 3 with the centring of section 3, written out."""
    n = len(X)
    H = np.eye(n) - 1 / n
    K, L = H @ (X @ X.T) @ H, H @ (Y @ Y.T) @ H
    return np.trace(K @ L) / np.sqrt(np.trace(K @ K) * np.trace(L @ L))


@pytest.mark.parametrize("n", [5, 12, 40, 200])
@pytest.mark.parametrize("widths", [(3, 30), (30, 30), (1, 8)])
def test_values_are_those_of_the_gram_matrices(n, widths):
    rng = np.random.default_rng(n)
    common = rng.normal(size=(n, 1))
    X, Y = (rng.normal(size=(n, width)) + 2 * common + 5 for width in widths)
    table = deepfeat.linear_cka({"X": X, "Y": Y})
    assert table.loc["X", "Y"] == table.loc["Y", "X"] == pytest.approx(cka_by_gram_matrices(X, Y), rel=1e-9)
    assert np.diag(table).tolist() == [1, 1]


@pytest.mark.parametrize("dtype", ["float16", "uint8", "int64"])
def test_narrow_numbers_do_not_overflow(dtype):
    X, Y = np.random.default_rng(0).integers(0, 255, (2, 60, 20))
    table = deepfeat.linear_cka({"X": X.astype(dtype), "Y": Y.astype(dtype)})
    assert table.loc["X", "Y"] == pytest.approx(cka_by_gram_matrices(X, Y), rel=1e-5)


def test_rotation_scale_and_shift_change_nothing(random_features):
    X = random_features(100, 6).astype(float)
    turned = 3 * X @ ortho_group(6, seed=0).rvs() + 7
    assert deepfeat.linear_cka({"X": X, "turned": turned}).loc["X", "turned"] == pytest.approx(1)


def test_unrelated_blocks_are_near_zero_with_many_images():
    rng = np.random.default_rng(0)
    table = deepfeat.linear_cka({"X": rng.normal(size=(5000, 4)), "Y": rng.normal(size=(5000, 4))})
    assert table.loc["X", "Y"] < 0.01


def test_block_that_is_the_same_for_all_images_is_undefined(random_features):
    table = deepfeat.linear_cka({"X": random_features(9, 2), "flat": np.ones((9, 3))})
    assert table.loc["X", "X"] == 1
    assert table["flat"].isna().all()


def test_blocks_of_a_store_are_compared_on_images_that_all_have(
    tmp_path, build_store, make_spec, make_table, random_features
):
    X, Y = random_features(30, 4), random_features(30, 7)
    store = build_store(tmp_path / "s.h5", make_table(30, label="NV"), [(make_spec("NetA"), X), (make_spec("NetB"), Y)])
    table = deepfeat.linear_cka(store)
    assert table.index.tolist() == table.columns.tolist() == ["NetA", "NetB"]
    assert table.loc["NetA", "NetB"] == pytest.approx(cka_by_gram_matrices(X, Y), rel=1e-4)
    assert deepfeat.linear_cka(store.path, "NetB").shape == (1, 1)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        ({"X": np.ones((3, 2)), "Y": np.ones((4, 2))}, UsageError, r"shapes .*\(4, 2\)"),
        ({"X": np.ones(3)}, UsageError, r"pass arrays of shape \(n, dim\)"),
        ({"X": np.ones((1, 2))}, DataError, r"X has 1 row\(s\)"),
        ({"X": np.full((3, 2), np.inf)}, DataError, "not finite"),
    ],
)
def test_wrong_arrays_are_refused(features, error, message):
    with pytest.raises(error, match=message):
        deepfeat.linear_cka(features)


def test_heat_map_is_drawn(tmp_path):
    table = pd.DataFrame([[1, 0.4], [0.4, 1]], ["NetA", "NetB"], ["NetA", "NetB"])
    deepfeat.plot_similarity(table, tmp_path / "cka.svg")
    assert (tmp_path / "cka.svg").read_text().startswith("<?xml")
    with pytest.raises(UsageError, match="no blocks"):
        deepfeat.plot_similarity(pd.DataFrame(), tmp_path / "none.png")
