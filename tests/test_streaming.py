"""LinearSVC in blocks of rows, against the engine that has all rows at once and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.metrics import recall_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import deepfeat
from deepfeat.errors import UsageError
from deepfeat.svm import procedure, streaming
from deepfeat.svm.resources import Resources, Size, take_products
from deepfeat.svm.search import exact_search, make_pipeline, make_svm
from deepfeat.svm.shared import can_stream, shared_search

ENGINE = "newton in blocks of rows"


def problem(n_classes=3, n=1500, d=30, seed=0, dtype=np.float32):
    """Features on very different scales, one of them constant."""
    weights = [0.75] if n_classes == 2 else [0.6, 0.3]
    X, codes = make_classification(
        n, d, n_informative=10, n_classes=n_classes, weights=weights, class_sep=0.8, random_state=seed
    )
    X = (np.maximum(X, -1) * np.geomspace(0.01, 30, d) + 3).astype(dtype)
    X[:, 4] = 2.5
    return X, np.array(["AK", "BCC", "MEL", "NV"])[codes]


def too_small(X, n_classes, n_folds=5):
    """Bytes that are enough to fit in blocks of rows, and for nothing else."""
    size = Size(len(X), X.shape[1], X.itemsize)
    needed = size.streamed(n_folds * (1 if n_classes == 2 else n_classes)).of(1)
    assert needed < size.linear().of(1)
    return needed


def macro_recall(estimator, X, y):
    """A scorer that looks at the fitted estimator."""
    return recall_score(y, estimator.predict(X), average="macro")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", 128)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 1e-3), (np.float64, 1e-4)])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("seed", range(2))
def test_search_finds_what_the_engine_finds_on_all_rows_at_once(seed, n_classes, dtype, rtol):
    X, y = problem(n_classes, seed=seed, dtype=dtype)
    rows = np.random.default_rng(seed).permutation(len(X))[:1200]
    folds = list(StratifiedKFold(4, shuffle=True, random_state=seed).split(rows, y[rows]))
    pipeline = make_pipeline(make_svm("linear", "squared_hinge", "auto", 0), "concat", [X.shape[1]])
    weights = ["balanced", {"AK": 2, "BCC": 0.5, "MEL": 3}] if n_classes == 3 else ["balanced", None]
    grid = {"C": [1.0, 1e-4, 1e-2], "class_weight": weights}
    use = Resources(take_products(None), [X.shape[1]], 1 + seed % 2)
    whole = exact_search(pipeline, grid, X[rows], y[rows], folds, "balanced_accuracy", use)
    found = shared_search(pipeline, grid, X, y[rows], rows, folds, "balanced_accuracy", use)
    assert (found.engine, found.best_params) == (ENGINE, whole.best_params)
    np.testing.assert_allclose(found.cv_results["mean"], whole.cv_results["mean"], atol=2e-3)
    assert found.cv_results["converged"].all()
    assert found.cv_results["gap"].max() < 1e-5
    scale = np.abs(whole.out_of_fold[1]).max()
    np.testing.assert_allclose(found.out_of_fold[1], whole.out_of_fold[1], atol=rtol * scale)
    np.testing.assert_array_equal(found.out_of_fold[2], whole.out_of_fold[2])
    expected = whole.pipeline.decision_function(X)
    np.testing.assert_allclose(found.pipeline.decision_function(X), expected, atol=rtol * np.abs(expected).max())


def test_final_pipeline_is_what_scikit_learn_fits():
    X, y = problem(3)
    result = deepfeat.fit_svm((X, y), test=None, param_grid={"C": [1e-3]}, max_memory=too_small(X, 3))
    assert result.engine == ENGINE
    svm = LinearSVC(C=1e-3, class_weight="balanced", dual=False, tol=1e-9, max_iter=100_000)
    expected = Pipeline([("scale", StandardScaler()), ("svm", svm)]).fit(X.astype(float), y)
    scaler, fitted = result.pipeline[0], result.pipeline[-1]
    np.testing.assert_allclose(scaler.mean_, expected[0].mean_, rtol=1e-5)
    np.testing.assert_allclose(scaler.scale_, expected[0].scale_, rtol=1e-5)
    assert scaler.scale_[4] == 1
    np.testing.assert_allclose(fitted.coef_, expected[-1].coef_, atol=1e-3 * np.abs(expected[-1].coef_).max())
    assert (result.pipeline.predict(X) == expected.predict(X)).mean() > 0.998


@pytest.mark.parametrize(
    "options",
    [
        {"test": 0.25},
        {"nested": True},
        {"positive": "MEL", "calibrate": True, "threshold": "recall>=0.9"},
        {"scoring": macro_recall},
        {"param_grid": "auto"},
        {"backbones": "all-subsets"},
    ],
    ids=", ".join,
)
def test_whatever_is_asked_for_comes_out_as_with_memory(
    options, tmp_path, monkeypatch, build_store, make_spec, make_table
):
    X, y = problem(3, n=900)
    table = make_table(len(y), label=list(y), group=[str(number // 2) for number in range(len(y))])
    blocks = [(make_spec("A"), X[:, :12]), (make_spec("B", dtype="float16"), X[:, 12:].astype(np.float16))]
    store = build_store(tmp_path / "features.h5", table, blocks)
    options = {"test": None, "cv": 3, "n_jobs": 1, "param_grid": {"C": [1e-4, 1e-2]}, "ledger": False, **options}
    plenty = deepfeat.fit_svm(store, **options)
    monkeypatch.setattr(procedure, "fits_memory", lambda needs, max_memory: False)
    scarce = deepfeat.fit_svm(store, **options)
    assert (plenty.engine, scarce.engine) == ("newton", ENGINE)
    assert scarce.best_params == plenty.best_params
    assert list(scarce.blocks) == list(plenty.blocks)
    # Where two classes are as near as rounding, one of 900 may go to the other.
    same = scarce.predictions["predicted"].eq(plenty.predictions["predicted"]) | plenty.predictions["predicted"].isna()
    assert same.mean() > 0.998
    found, expected = (result.predictions[plenty.classes].to_numpy(float) for result in (scarce, plenty))
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_rows_are_taken_from_a_mapped_file_and_folds_may_overlap(tmp_path):
    X, y = problem(2)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    rng = np.random.default_rng(0)
    halves = [rng.permutation(len(X)) for _ in range(3)]
    folds = [(half[:700], half[700:]) for half in halves]
    options = {"test": None, "cv": folds, "param_grid": {"C": [1e-3, 1e-1]}}
    plenty = deepfeat.fit_svm((X, y), **options)
    scarce = deepfeat.fit_svm((mapped, y), max_memory=too_small(X, 2, 3), **options)
    assert (plenty.engine, scarce.engine) == ("newton", ENGINE)
    columns = ["fold0", "fold1", "fold2"]
    np.testing.assert_allclose(scarce.cv_results[columns], plenty.cv_results[columns], atol=2e-3)


def test_only_scaling_and_linear_svc_with_the_squared_hinge_are_streamed():
    X, y = problem(2)
    plain = make_pipeline(make_svm("linear", "squared_hinge", "auto", 0), "concat", [10, 20])
    assert can_stream(plain)
    assert not can_stream(make_pipeline(make_svm("linear", "hinge", "auto", 0), "concat", [10, 20]))
    assert not can_stream(make_pipeline(make_svm("linear", "squared_hinge", "auto", 0), "late", [10, 20]))
    assert not can_stream(make_pipeline(make_svm("rbf", "hinge", "auto", 0), "concat", [10, 20]))
    with pytest.raises(UsageError, match="use a larger max_memory"):
        deepfeat.fit_svm((X, y), loss="hinge", test=None, max_memory=too_small(X, 2))


def test_memory_that_is_too_small_even_for_blocks_of_rows():
    with pytest.raises(UsageError, match=r"engine needs .* use a larger max_memory, fewer rows"):
        deepfeat.fit_svm(problem(3), test=None, max_memory=1000)


def test_steps_that_lead_too_far_are_halved(monkeypatch):
    X, y = problem(2, dtype=np.float64)
    options = {"test": None, "param_grid": {"C": [1e-2]}, "n_jobs": 1, "max_memory": too_small(X, 2)}
    expected = deepfeat.fit_svm((X, y), **options)
    direction = streaming.Stream._newton_direction
    monkeypatch.setattr(streaming.Stream, "_newton_direction", lambda self, *given: 5 * direction(self, *given))
    monkeypatch.setattr(streaming, "_PATIENCE", 30)
    found = deepfeat.fit_svm((X, y), **options)
    assert found.cv_results["converged"].all()
    np.testing.assert_allclose(found.pipeline[-1].coef_, expected.pipeline[-1].coef_, atol=1e-3)


def test_what_does_not_converge_is_said(monkeypatch):
    monkeypatch.setattr(streaming, "_MAX_STEPS", 1)
    X, y = problem(2)
    result = deepfeat.fit_svm((X, y), test=None, param_grid={"C": [1.0]}, max_memory=too_small(X, 2))
    assert not result.cv_results["converged"].any()
    assert any("converge" in warning for warning in result.warnings)
