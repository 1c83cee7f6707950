"""The engine against scikit-learn, on small problems of every kind."""

from __future__ import annotations

import itertools
from functools import partial

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

import deepfeat
from deepfeat.errors import UsageError
from deepfeat.svm import linear_path, newton, paths, resources, selection, systems
from deepfeat.svm.cholesky import Factor
from deepfeat.svm.gram import Block, Products, split_columns
from deepfeat.svm.linear_path import CONVERGED, solve_path
from deepfeat.svm.systems import Gram, conjugate_gradients, factorise
from deepfeat.svm.threads import in_threads

VALUES = [1e-4, 1e-2, 1.0]


def problem(shape, seed=0, dtype=np.float64):
    """Features and labels of one kind."""
    sizes = {"wide": (40, 90), "tall": (150, 12), "square": (60, 59)}
    n, d = sizes.get(shape, (120, 15))
    n_classes = 2 if shape in ("binary", "separable") else 4
    weights = [0.7, 0.2, 0.06] if shape == "imbalanced" else None
    X, y = make_classification(
        n,
        d,
        n_informative=min(8, d - 2),
        n_redundant=0,
        n_classes=n_classes,
        weights=weights,
        class_sep=4.0 if shape == "separable" else 0.8,
        flip_y=0.0 if shape == "separable" else 0.05,
        random_state=seed,
    )
    y = np.concatenate([y, np.repeat(np.arange(n_classes), 3)])
    X = np.vstack([X, np.random.default_rng(seed).normal(size=(3 * n_classes, d))])
    if shape == "duplicated":
        X, y = np.vstack([X, X[:50]]), np.concatenate([y, y[:50]])
    if shape == "constant":
        X[:, 3] = 7.0
    if shape == "collinear":
        X = np.column_stack([X, X[:, :5] @ np.ones((5, 4)), 2 * X[:, :2]])
    return X.astype(dtype), y


SHAPES = (
    "binary",
    "multi-class",
    "imbalanced",
    "separable",
    "wide",
    "tall",
    "square",
    "duplicated",
    "constant",
    "collinear",
)


def tight(loss, C, class_weight):
    """LinearSVC as exactly as liblinear can."""
    if loss == "hinge":
        return LinearSVC(loss="hinge", C=C, class_weight=class_weight, tol=1e-10, max_iter=2_000_000, random_state=0)
    return LinearSVC(C=C, class_weight=class_weight, dual=False, tol=1e-12, max_iter=100_000)


def engine_fit(X, y, C, class_weight, loss="squared_hinge", **options):
    return deepfeat.fit_svm(
        (X, y), param_grid={"C": [C]}, class_weight=class_weight, loss=loss, cv=2, test=None, **options
    ).pipeline


@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 3.0, 1: 0.5}], ids=["none", "balanced", "dict"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss", ["squared_hinge", "hinge"])
def test_decisions_equal_a_tight_fit(shape, loss, class_weight):
    X, y = problem(shape)
    scaled = StandardScaler().fit_transform(X)
    for C in VALUES:
        expected = tight(loss, C, class_weight).fit(scaled, y).decision_function(scaled)
        found = engine_fit(X, y, C, class_weight, loss).decision_function(X)
        np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_decisions_in_float32_equal_a_tight_fit(shape):
    X, y = problem(shape, dtype=np.float32)
    scaled = StandardScaler().fit_transform(X).astype(np.float64)
    for C in (*VALUES, 10.0):
        expected = tight("squared_hinge", C, "balanced").fit(scaled, y).decision_function(scaled)
        found = engine_fit(X, y, C, "balanced").decision_function(X)
        np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("shape", SHAPES)
def test_svc_equals_scikit_learn(shape, class_weight, kernel):
    X, y = problem(shape)
    grid = {"C": [0.1, 10.0], "gamma": [0.02, "scale"]} if kernel == "rbf" else {"C": [0.1, 10.0]}
    result = deepfeat.fit_svm(
        (X, y), kernel=kernel, classifier="SVC", param_grid=grid, class_weight=class_weight, cv=3, test=None
    )
    pipeline = Pipeline([("scale", StandardScaler()), ("svm", SVC(kernel=kernel, class_weight=class_weight))])
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    reference = GridSearchCV(
        pipeline, {f"svm__{k}": v for k, v in grid.items()}, cv=folds, scoring="balanced_accuracy"
    ).fit(X, y)
    for fold in range(3):
        np.testing.assert_allclose(result.cv_results[f"fold{fold}"], reference.cv_results_[f"split{fold}_test_score"])
    assert {f"svm__{k}": v for k, v in result.best_params.items() if k != "class_weight"} == reference.best_params_
    found, expected = (p.decision_function(X) for p in (result.pipeline, reference.best_estimator_))
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("loss", ["squared_hinge", "hinge"])
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_equal_scikit_learn_to_one_image(shape, loss):
    X, y = problem(shape)
    options = {"param_grid": {"C": VALUES}, "cv": 3, "test": None, "loss": loss, "scoring": "accuracy"}
    found = deepfeat.fit_svm((X, y), **options)
    expected = deepfeat.fit_svm((X, y), engine="sklearn", **options)
    for fold in range(3):
        test = (found.predictions["fold"] == fold).sum()
        difference = (found.cv_results[f"fold{fold}"] - expected.cv_results[f"fold{fold}"]).abs().max()
        assert difference <= 1 / test + 1e-12
    assert (found.engine, expected.engine) == ("newton", "sklearn")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d"), [(200, 600), (150, 130), (1000, 100)])
def test_hinge_loss_is_solved_along_the_whole_grid(n, d, dtype):
    """Rows that overlap, or can be told apart: after a hundred steps or so, where thousands do not help a bad start."""
    rng = np.random.default_rng(n)
    y = np.arange(n) % 2
    shared = rng.normal(size=(n, 20)) @ (rng.normal(size=(20, d)) * np.geomspace(10, 0.1, 20)[:, None])
    X = (shared + rng.normal(size=(n, d)) + 0.1 * y[:, None]).astype(dtype)
    result = deepfeat.fit_svm((X, y), loss="hinge", param_grid={"C": [1e-4, 0.01, 1, 1e4]}, cv=2, test=None)
    assert result.cv_results["gap"].between(-1e-12, 1e-6).all()
    C = 0.01
    scaled = StandardScaler().fit_transform(X).astype(np.float64)
    expected = tight("hinge", C, "balanced").fit(scaled, y).decision_function(scaled)
    found = engine_fit(X, y, C, "balanced", "hinge")
    np.testing.assert_allclose(found.decision_function(X), expected, atol=1e-3 * np.abs(expected).max(), rtol=0)
    assert found[-1].n_iter_ < 300


@pytest.mark.parametrize("C", [0.01, 10.0])
@pytest.mark.parametrize(("n", "d"), [(3000, 150), (2000, 60), (120, 150)])
def test_constant_columns_count_for_nothing(n, d, C):
    """Constant in all rows, or but for one that is tested: whatever a new image has there, in units of its own."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, d)).astype(np.float32)
    y = np.where(X[:, 0] + rng.normal(size=n) > 0, "a", "b")
    X[:, 5], X[:, 7], X[1, 7] = 0.3, 0, 1000
    folds = list(StratifiedKFold(3).split(X, y))
    result = deepfeat.fit_svm((X, y), cv=folds, param_grid={"C": [C]}, test=None)
    assert result.pipeline[-1].coef_[0, 5] == 0
    (train, test), *_ = (fold for fold in folds if 1 in fold[1])
    scaler = StandardScaler().fit(X[train])
    expected = tight("squared_hinge", C, "balanced").fit(scaler.transform(X[train]).astype(float), y[train])
    expected = expected.decision_function(scaler.transform(X[test]).astype(float))
    found = result.predictions["b"].to_numpy(float)[test]
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("p", [2, 3, 61, 64, 100, 128, 200])
def test_rows_that_are_reflected_keep_their_products(p):
    """To float32, however near the principal directions are to coordinates."""
    rng = np.random.default_rng(p)
    X = 3 * rng.normal(size=(3000, 5)) @ rng.normal(size=(5, p)) + rng.normal(size=(3000, p))
    X[:, 0], X[:, -1] = 0, 1
    rows = X.astype(np.float32)
    reflection = linear_path._Reflection(rows[:, :-1], rows.T @ rows, linear_path.Known(), 1)
    found = reflection.shared.rows.astype(float)
    np.testing.assert_allclose((found**2).sum(axis=1), (rows.astype(float) ** 2).sum(axis=1), rtol=1e-5)
    moment = reflection.shared.moment
    np.testing.assert_allclose(moment, found.T @ found, rtol=0, atol=2e-6 * np.abs(moment).max())
    np.testing.assert_allclose(reflection.back(reflection.back(rows)), rows, rtol=0, atol=1e-5 * np.abs(rows).max())


@pytest.mark.parametrize("n", [40, 400])
def test_coefficients_go_into_other_coordinates_and_back(n):
    """Where there are fewer rows than features, into as many as rows: what has no part in products is lost."""
    rng = np.random.default_rng(0)
    X, coef = rng.normal(size=(n, 60)), rng.normal(size=61)
    known = linear_path.Known()
    turn = linear_path._Compression(X) if n < 60 else linear_path._Reflection(X, None, known, 1)
    rows, there = np.column_stack([X, np.ones(n)]), turn.forth(coef)
    np.testing.assert_allclose(turn.shared.rows @ there, rows @ coef, atol=1e-9)
    np.testing.assert_allclose(rows @ turn.back(there[None])[0], rows @ coef, atol=1e-9)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_both_engines_widen_a_grid_alike(kernel):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 4))
    y = np.where(X[:, 0] * X[:, 1] > 0, "a", "b")
    fast, slow = (
        deepfeat.fit_svm((X, y), param_grid="auto", kernel=kernel, engine=engine, cv=3, test=None)
        for engine in ("auto", "sklearn")
    )
    assert fast.best_params == slow.best_params
    pd.testing.assert_frame_equal(fast.cv_results[["C", "mean"]], slow.cv_results[["C", "mean"]])


def test_kernel_of_constant_columns_is_scikit_learns():
    X, y = np.ones((30, 2)), np.arange(30) % 2
    grid = {"C": [1.0], "gamma": ["scale"]}
    fast, slow = (
        deepfeat.fit_svm((X, y), kernel="rbf", param_grid=grid, engine=engine, cv=3, test=None)
        for engine in ("auto", "sklearn")
    )
    assert fast.pipeline[-1]._gamma == slow.pipeline[-1]._gamma == 1.0
    np.testing.assert_array_equal(fast.cv_results["mean"], slow.cv_results["mean"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gap_is_certified(dtype):
    X, y = problem("multi-class", dtype=dtype)
    result = deepfeat.fit_svm((X, y), param_grid={"C": [1e-6, 1e-3, 1, 100]}, test=None)
    assert result.cv_results["converged"].all()
    assert (result.cv_results["gap"].between(-1e-12, CONVERGED)).all()


def test_what_float32_leaves_rough_is_solved_again_in_float64(monkeypatch):
    X, y = problem("tall", dtype=np.float32)
    monkeypatch.setattr(linear_path, "_SMALL", 0)
    rough = deepfeat.fit_svm((X, y), param_grid={"C": VALUES}, test=None)
    assert rough.cv_results["gap"].max() > 1e-13
    monkeypatch.setattr(linear_path, "CONVERGED", 1e-13)
    fine = deepfeat.fit_svm((X, y), param_grid={"C": VALUES}, test=None)
    assert abs(fine.cv_results["gap"]).max() < abs(rough.cv_results["gap"]).max() / 10


def test_other_estimators_have_no_path():
    with pytest.raises(TypeError, match="LogisticRegression has no path"):
        paths.fit_path(LogisticRegression(), np.zeros((4, 2)), np.zeros(4), [], None)


def test_missing_convergence_is_said(monkeypatch):
    X, y = problem("multi-class")
    monkeypatch.setattr(newton, "MAX_STEPS", 1)
    result = deepfeat.fit_svm((X, y), param_grid={"C": [1.0]}, test=None)
    assert not result.cv_results["converged"].any()
    assert any("did not converge" in note for note in result.warnings)


def test_path_does_not_depend_on_its_order_or_company():
    X, y = problem("multi-class")
    rows = StandardScaler().fit_transform(X)
    signs = np.where(y[:, None] == np.arange(4), 1.0, -1.0)
    costs = np.ones_like(signs)
    together = solve_path(rows, signs, costs, [1.0, 1e-3, 0.1])
    for place, C in enumerate([1.0, 1e-3, 0.1]):
        alone = solve_path(rows, signs[:, [2]], costs[:, [2]], [C])
        np.testing.assert_allclose(together.coef[place, 2], alone.coef[0, 0], atol=1e-4 * np.abs(alone.coef).max())


def test_steps_of_the_best_length_converge_where_whole_steps_are_not_allowed(monkeypatch):
    X, y = problem("imbalanced")
    expected = engine_fit(X, y, 1.0, "balanced").decision_function(X)
    monkeypatch.setattr(newton, "_PATIENCE", 0)
    found = engine_fit(X, y, 1.0, "balanced").decision_function(X)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_no_factor_is_made_where_the_ridge_is_all(monkeypatch):
    X, y = problem("wide")
    scaled = StandardScaler().fit_transform(X)
    expected = tight("squared_hinge", 1e-7, "balanced").fit(scaled, y).decision_function(scaled)
    made, make = [], systems.factorise
    monkeypatch.setattr(systems, "factorise", lambda *given: made.append(given) or make(*given))
    found = engine_fit(X, y, 1e-7, "balanced").decision_function(X)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    assert not made


def test_a_value_between_leads_where_whole_steps_do_not(monkeypatch):
    """Labels are noise, and about as many rows are active as there are coefficients."""
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((210, 100))
    signs = np.where(rng.random(210) < 0.5, 1.0, -1.0)[:, None]
    tried, minimise = [], newton.minimise

    def record(problem, C, *given, **options):
        steps, arrived = minimise(problem, C, *given, **options)
        tried.append((C, arrived))
        return steps, arrived

    monkeypatch.setattr(newton, "minimise", record)
    monkeypatch.setattr(newton, "_PATIENCE", 1)
    path = solve_path(rows, signs, np.ones_like(signs), [1e-2, 1e4])
    assert (path.gap < 1e-9).all()
    between = [C for C, _ in tried if 1e-2 < C < 1e4]
    assert between[0] == pytest.approx(10.0)
    # What is near is reached by steps of the best length.
    assert tried[0] == (1e-2, True)
    assert (1e4, False) in tried
    assert tried[-1] == (1e4, True)
    monkeypatch.undo()
    monkeypatch.setattr(newton, "_NEAR", np.inf)
    straight = solve_path(rows, signs, np.ones_like(signs), [1e4])
    np.testing.assert_allclose(path.coef[1], straight.coef[0], atol=1e-6 * np.abs(straight.coef).max())


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_threads_give_the_same(n_jobs):
    X, y = problem("multi-class")
    first, second = (deepfeat.fit_svm((X, y), param_grid={"C": VALUES}, test=None, n_jobs=n) for n in (None, n_jobs))
    np.testing.assert_allclose(
        first.predictions[[0, 1, 2, 3]].to_numpy(float), second.predictions[[0, 1, 2, 3]].to_numpy(float), atol=1e-6
    )


def test_final_fit_by_scikit_learn():
    X, y = problem("multi-class")
    result = deepfeat.fit_svm((X, y), param_grid={"C": [0.01]}, test=None, refit="sklearn", seed=3)
    pipeline = Pipeline(
        [("scale", StandardScaler()), ("svm", LinearSVC(C=0.01, class_weight="balanced", random_state=3))]
    )
    np.testing.assert_allclose(result.pipeline.decision_function(X), pipeline.fit(X, y).decision_function(X))


def test_final_fit_is_closer_to_the_optimum_than_scikit_learns():
    X, y = problem("tall", dtype=np.float32)
    scaled = StandardScaler().fit_transform(X).astype(np.float64)
    best = tight("squared_hinge", 1.0, None).fit(scaled, y)
    default = LinearSVC(C=1.0, random_state=0).fit(scaled, y)
    ours = engine_fit(X, y, 1.0, None)["svm"]
    assert np.abs(ours.coef_ - best.coef_).max() < np.abs(default.coef_ - best.coef_).max()


def test_scorer_that_looks_at_the_estimator_gets_a_fitted_one():
    X, y = problem("multi-class")

    def fewest_coefficients(estimator, X, y):
        return -np.abs(estimator[-1].coef_).sum()

    result = deepfeat.fit_svm((X, y), param_grid={"C": VALUES}, test=None, scoring=fewest_coefficients)
    assert result.best_params["C"] == min(VALUES)


# The grid that widens itself


def test_grid_widens_until_the_best_is_inside():
    X, y = problem("multi-class")
    result = deepfeat.fit_svm((X, y), param_grid="auto", test=None)
    assert result.cv_results.loc[result.cv_results["rank"].idxmin(), "at_edge"] == ()
    assert not any("edge" in note for note in result.warnings)
    fixed = deepfeat.fit_svm((X, y), test=None)
    assert set(fixed.cv_results["C"]) <= set(result.cv_results["C"])


def test_grid_does_not_widen_for_ever():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 5)), np.arange(60) % 2
    result = deepfeat.fit_svm((X, y), param_grid="auto", test=None, scoring=lambda e, X, y: -e[-1].C)
    assert result.cv_results["C"].min() == pytest.approx(1e-9)


def test_unknown_grid_is_named():
    with pytest.raises(UsageError, match="param_grid is 'wide': use 'auto'"):
        deepfeat.fit_svm(problem("binary"), param_grid="wide")


# Products, computed once


def test_products_of_blocks_add_up():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(7, 9)), rng.normal(size=(5, 9))
    products = Products(1e9)
    left, right = split_columns(X, [4, 5]), split_columns(Y, [4, 5])
    np.testing.assert_allclose(products.gram(left, right), X @ Y.T)
    np.testing.assert_allclose(products.distances(left, right), ((X[:, None] - Y) ** 2).sum(axis=2))
    np.testing.assert_allclose(products.moment(left), X.T @ X)
    assert products.computed == 2 + 2 + 3
    products.gram(left[:1], right[:1])
    products.moment([left[1]])
    assert products.computed == 7


def test_products_keep_to_their_limit():
    blocks = [Block(np.full((10, 10), float(i))) for i in range(5)]
    products = Products(2 * 800)
    for block in blocks:
        products.moment([block])
    assert sum(kept.nbytes for kept in products._kept.values()) <= 1600
    products.moment([blocks[-1]])
    assert products.computed == 5


def test_a_block_that_changes_in_one_value_is_another():
    rows = np.zeros((4, 4))
    other = rows.copy()
    other[2, 2] = 1e-300
    assert Block(rows).digest != Block(other).digest
    assert Block(rows).digest != Block(rows.reshape(2, 8)).digest


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_second_fit_computes_no_product_again(kernel):
    X, y = problem("multi-class", seed=11)
    options = {"kernel": kernel, "test": None, "param_grid": {"C": [0.01]}}
    deepfeat.fit_svm((X, y), **options)
    computed = resources._PRODUCTS.computed
    deepfeat.fit_svm((X, y), class_weight=None, **options)
    assert resources._PRODUCTS.computed == computed


# Memory


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_memory_that_does_not_suffice_is_said_with_the_ways_out(kernel):
    with pytest.raises(UsageError, match=r"engine needs .* GB in .* and max_memory is 0.0 GB: use .*engine='sklearn'"):
        deepfeat.fit_svm(problem("tall"), kernel=kernel, max_memory=1000)


def test_memory_for_the_linear_kernel_alone_is_said():
    with pytest.raises(UsageError, match="kernel='linear', which needs"):
        deepfeat.fit_svm(problem("tall"), kernel="rbf", max_memory=100_000)


# 1,000 rows of 100 float32 features: 1.28 MB, 1.24 MB a fold, and 0.12 MB a thread.
NEEDS = resources.Size(1000, 100, 4).linear()


@pytest.mark.parametrize(
    ("n_jobs", "n_parts", "megabytes", "expected"),
    [
        (None, 1, 100, (4, 5)),
        (None, 1, 5.5, (3, 3)),
        (-1, 1, 3, (1, 1)),
        (2, 1, 4.1, (2, 2)),
        (2, 1, 7.1, (2, 4)),
        (1, 1, 100, (1, 1)),
        (None, 4, 100, (4, 4)),
        (None, 4, 4.3, (4, 2)),
        (None, 4, 2.8, (2, 1)),
        (None, 4, 2.7, (1, 1)),
        (7, 4, 100, (7, 5)),
        (70, 4, 100, (20, 5)),
    ],
)
def test_threads_and_folds_are_as_many_as_memory_and_parts_allow(monkeypatch, n_jobs, n_parts, megabytes, expected):
    monkeypatch.setattr(resources, "effective_n_jobs", lambda n: {None: 1, -1: 4}.get(n, n))
    assert resources.count_threads(n_jobs, NEEDS, 5, n_parts, megabytes * 1e6, {}) == expected


def test_threads_that_were_asked_for_are_not_made_fewer_unsaid():
    with pytest.raises(UsageError, match=r"0.0 GB in 4 thread\(s\), .*: use a smaller n_jobs, a larger max_memory"):
        resources.count_threads(4, NEEDS, 5, 1, 4e6, {})
    with pytest.raises(UsageError, match="n_jobs is 0: use a number of threads"):
        deepfeat.fit_svm(problem("tall"), n_jobs=0)


def test_threads_of_a_joblib_context_are_kept_to():
    with joblib.parallel_config("threading", n_jobs=3):
        assert resources.count_threads(None, NEEDS, 5, 1, 1e9, {}) == (3, 5)


@pytest.mark.parametrize("value", [0, -1.0])
def test_memory_that_is_no_number_of_bytes(value):
    with pytest.raises(UsageError, match="use a number of bytes"):
        deepfeat.fit_svm(problem("tall"), max_memory=value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classifier": "LinearSVC", "kernel": "rbf"}, "has no kernel 'rbf'"),
        ({"classifier": "NuSVC"}, "classifier is 'NuSVC'"),
        ({"engine": "cuml"}, "engine is 'cuml'"),
        ({"refit": False}, "refit is False"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError, match=message):
        deepfeat.fit_svm(problem("tall"), **options)


# Choosing blocks


@pytest.fixture
def three_blocks(tmp_path, build_store, make_spec, make_table):
    X, y = problem("multi-class", dtype=np.float32)
    rng = np.random.default_rng(0)
    table = make_table(len(X), label=[str(label) for label in y], group=[None] * len(X))
    blocks = [
        (make_spec("NetA"), X[:, :8].copy()),
        (make_spec("Noise"), rng.normal(size=(len(X), 6)).astype(np.float32)),
        (make_spec("NetB"), X[:, 8:].copy()),
    ]
    return build_store(tmp_path / "features.h5", table, blocks)


def test_all_subsets_are_tried(three_blocks):
    options = {"param_grid": {"C": [0.01, 0.1]}, "test": None}
    result = deepfeat.fit_svm(three_blocks, backbones="all-subsets", **options)
    names = ("NetA", "Noise", "NetB")
    sets = [" + ".join(s) for r in (1, 2, 3) for s in itertools.combinations(names, r)]
    assert {frozenset(s.split(" + ")) for s in result.subsets["blocks"]} == {frozenset(s.split(" + ")) for s in sets}
    for row in result.subsets.itertuples():
        alone = deepfeat.fit_svm(three_blocks, backbones=row.blocks.split(" + "), **options)
        assert row.mean == pytest.approx(alone.cv_results["mean"].max())
    assert set(result.blocks) == set(result.subsets["blocks"][0].split(" + "))
    assert result.pipeline.n_features_in_ == sum(result.blocks.values())


def test_summary_lists_the_subsets_that_were_tried(three_blocks, monkeypatch):
    result = deepfeat.fit_svm(three_blocks, backbones="top-2", param_grid={"C": [0.01]}, test=None, cv=3)
    lines = result.summary().split("blocks tried\n")[1].splitlines()
    assert len(lines) == 1 + len(result.subsets)
    monkeypatch.setattr(selection, "_MOST", 2)
    with pytest.raises(UsageError, match=r"3 blocks have 7 subsets: name at most 2, or use 'top-3'"):
        deepfeat.fit_svm(three_blocks, backbones="all-subsets")


def test_top_blocks_are_joined(three_blocks):
    result = deepfeat.fit_svm(three_blocks, backbones="top-2", param_grid={"C": [0.01]}, test=0.25)
    alone = result.subsets[~result.subsets["blocks"].str.contains(r"\+")]
    assert set(result.blocks) == set(alone["blocks"][:2])
    assert len(result.subsets) == 4
    assert len(result.predictions) == len(three_blocks.table)


@pytest.mark.parametrize(
    ("backbones", "message"), [("top-4", "there are 3 blocks: use at most 'top-3'"), ("top-0", "top-0")]
)
def test_more_blocks_than_there_are(three_blocks, backbones, message):
    with pytest.raises(Exception, match=message):
        deepfeat.fit_svm(three_blocks, backbones=backbones)


# Linear algebra


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 65])
def test_factor_solves(n, dtype):
    rng = np.random.default_rng(0)
    A = rng.normal(size=(n, n))
    A = A @ A.T + n * np.eye(n)
    right = rng.normal(size=n)
    solution = Factor(A.astype(dtype)).solve(right)
    np.testing.assert_allclose(A @ solution, right, atol=1e-4 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_factor_solves_several_at_once(dtype):
    rng = np.random.default_rng(0)
    A = rng.normal(size=(20, 20))
    A = A @ A.T + 20 * np.eye(20)
    right = rng.normal(size=(7, 20))
    solution = Factor(A.astype(dtype)).solve(right)
    np.testing.assert_allclose(solution @ A, right, atol=1e-4 if dtype == np.float32 else 1e-12)


def test_factor_of_an_indefinite_matrix():
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        Factor(np.diag([1.0, -1.0]))


@pytest.mark.parametrize("n_sides", [0, 1, 4, 5, 20])
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 1e-4), (np.float64, 1e-10)])
def test_factor_solves_for_several_right_sides(dtype, rtol, n_sides):
    rng = np.random.default_rng(0)
    A, right = np.diag(np.arange(1.0, 31.0)), rng.normal(size=(n_sides, 30))
    A += 0.1 * np.cov(rng.normal(size=(30, 90)))
    solution = Factor(A.astype(dtype)).solve(right)
    assert solution.dtype == dtype
    np.testing.assert_allclose(solution, np.linalg.solve(A, right.T).T, atol=rtol)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 1e-4), (np.float64, 1e-10)])
def test_factor_becomes_the_inverse(dtype, rtol):
    A = np.diag(np.arange(1.0, 31.0)) + 0.1 * np.cov(np.random.default_rng(0).normal(size=(30, 90)))
    inverse = Factor(A.astype(dtype)).inverse()
    np.testing.assert_array_equal(inverse, inverse.T)
    np.testing.assert_allclose(inverse, np.linalg.inv(A), atol=rtol)
    with pytest.raises(np.linalg.LinAlgError, match="not even with a ridge"):
        factorise(lambda: np.diag([1.0, -1.0]), 0.0)


def test_factor_of_a_matrix_that_rounding_made_indefinite():
    x = np.ones((3, 1), np.float32)
    factor = factorise(lambda: x @ x.T - np.float32(1e-7) * np.eye(3, dtype=np.float32), 0.0)
    assert np.isfinite(factor.solve(np.ones(3))).all()


def test_final_fit_is_left_to_scikit_learn_where_the_engine_does_not_converge(monkeypatch):
    X, y = problem("tall")
    solved = paths.solve_path

    def unsettled(rows, *args, **options):
        path = solved(rows, *args, **options)
        return path if len(rows) < len(X) else path._replace(coef=0 * path.coef, gap=path.gap + 1)

    monkeypatch.setattr(paths, "solve_path", unsettled)
    found = engine_fit(X, y, 0.01, None).decision_function(X)
    expected = engine_fit(X, y, 0.01, None, refit="sklearn").decision_function(X)
    np.testing.assert_array_equal(found, expected)


def test_direction_of_rounding_alone_leads_nowhere():
    rng = np.random.default_rng(0)
    rows, signs = rng.normal(size=(30, 4)), np.where(rng.random(30) < 0.5, -1.0, 1.0)
    pieces = newton.Pieces(np.full(30, 2.0), np.zeros(30), np.full(30, np.inf))
    state = newton.State(30, 4)
    state.w = rng.normal(size=4)
    state.f = rows @ state.w
    for scale in (1e-17, 1e-15):
        direction = scale * rng.normal(size=4)
        length = newton.search_line(pieces, signs, state, direction, np.zeros(30) - scale)
        assert 0 <= length <= 10


def test_products_are_remembered_up_to_a_capacity():
    rows = np.random.default_rng(0).normal(size=(40, 3))
    gram = Gram(rows)
    gram.fill(np.arange(40))
    for wanted in ([3, 7, 9], [1, 3, 9, 20], [30, 31], [5, 6, 8, 10, 11, 12, 13, 14], [1, 3], range(12)):
        numbers = np.array(wanted)
        np.testing.assert_allclose(gram.of(numbers, numbers), rows[numbers] @ rows[numbers].T, atol=1e-12)
        np.testing.assert_allclose(gram.of(numbers[:2], numbers), rows[numbers[:2]] @ rows[numbers].T, atol=1e-12)


def test_products_of_rows_that_will_be_wanted_are_computed_at_once():
    rows = np.random.default_rng(0).normal(size=(11, 3))
    gram = Gram(rows)
    gram.fill(np.arange(1, 11))
    expected = rows @ rows.T
    rows[1:] = np.nan
    some = np.array([4, 2, 9])
    np.testing.assert_allclose(gram.of(some, some[:2]), expected[np.ix_(some, some[:2])])
    rows[0] = 1
    assert gram.of(np.array([0]), np.array([0])).item() == pytest.approx(3)


@pytest.mark.parametrize("shape", [(70, 100), (0, 5), (3, 0), (32, 32)])
def test_rows_and_columns_that_are_cut_out(shape):
    matrix, rng = np.arange(10_000.0).reshape(100, 100), np.random.default_rng(0)
    rows, columns = (rng.choice(100, size, replace=False) for size in shape)
    np.testing.assert_array_equal(systems.cut(matrix, rows, columns), matrix[np.ix_(rows, columns)])


def test_threads_share_the_products():
    rows = np.random.default_rng(0).normal(size=(300, 35)).astype(np.float32)
    gram, rng = Gram(rows), np.random.default_rng(1)
    wanted = [np.sort(rng.choice(300, 120, replace=False)) for _ in range(60)]
    found = in_threads([partial(gram.of, numbers, numbers) for numbers in wanted], 4)
    for numbers, products in zip(wanted, found, strict=True):
        np.testing.assert_allclose(products, rows[numbers] @ rows[numbers].T, atol=1e-4)


@pytest.mark.parametrize("known_already", [True, False])
@pytest.mark.parametrize("n_problems", [1, 100])
def test_moment_of_weights_by_whatever_way_it_is_reached(n_problems, known_already):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 6))
    moment = systems._Moment(systems.Rows(rows, rows.T @ rows if known_already else None, n_problems=n_problems))
    x = rng.normal(size=6)
    for share in (0.95, 0.9, 0.4, 0.1, 0.0, 0.7):
        weights = np.where(rng.random(200) < share, np.where(rng.random(200) < 0.2, 3.0, 0.5), 0.0)
        expected = (rows * weights[:, None]).T @ rows
        moment.aim(weights)
        np.testing.assert_allclose(moment.times(x), expected @ x, atol=1e-10)
        if share != 0.4:
            np.testing.assert_allclose(np.tril(moment.settle()), np.tril(expected), atol=1e-10)


def test_more_rows_than_are_remembered(monkeypatch):
    X, y = make_classification(300, 10, n_informative=5, n_classes=3, random_state=0)
    signs = np.where(y[:, None] == np.arange(3), 1.0, -1.0)
    values = [1e-3, 1e-1, 10.0]
    usual = solve_path(X, signs, np.ones((300, 3)), values)
    monkeypatch.setattr(systems, "FEW", 20)
    monkeypatch.setattr(systems, "_REMEMBERED", 27)
    few = solve_path(X, signs, np.ones((300, 3)), values, n_jobs=2)
    np.testing.assert_allclose(few.coef, usual.coef, atol=1e-5 * np.abs(usual.coef).max())


def test_conjugate_gradients_say_whether_they_reached_the_goal():
    A = np.diag(np.arange(1.0, 21.0))
    right = np.ones(20)
    x, _, solved = conjugate_gradients(lambda v: A @ v, lambda v: v, right, 1e-10, 40)
    assert solved
    np.testing.assert_allclose(x, right / np.arange(1, 21), rtol=1e-6)
    x, left, solved = conjugate_gradients(lambda v: A @ v, lambda v: v, right, 1e-10, 3)
    assert not solved
    np.testing.assert_allclose(left, right - A @ x, atol=1e-12)


def test_conjugate_gradients_give_up_early_where_they_are_too_slow():
    A, calls = np.diag(np.geomspace(1, 1e6, 200)), []

    def system(v):
        calls.append(v)
        return A @ v

    _, _, solved = conjugate_gradients(system, lambda v: v, np.ones(200), 1e-6, 10, patient=False)
    assert not solved
    assert len(calls) == 2
    x, _, solved = conjugate_gradients(system, lambda v: v / A.diagonal(), np.ones(200), 1e-6, 10, patient=False)
    assert solved
    np.testing.assert_allclose(x, 1 / A.diagonal())
