"""Passes that all folds and classes share for small values of C, against the engine that takes fold after fold."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.metrics import recall_score
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler

import deepfeat
from deepfeat.svm import linear_path, procedure, shared, streaming
from deepfeat.svm.cholesky import Factor
from deepfeat.svm.paths import one_against_the_rest
from deepfeat.svm.resources import Resources, take_products
from deepfeat.svm.search import exact_search, make_pipeline, make_svm
from deepfeat.svm.shared import pays_to_share, shared_search
from deepfeat.svm.systems import Systems

D = 30


def problem(n_classes=3, n=1200, seed=0, dtype=np.float32):
    """Features on very different scales, one of them constant and one of them rare."""
    weights = [0.75] if n_classes == 2 else [0.6, 0.3]
    X, codes = make_classification(
        n, D, n_informative=10, n_classes=n_classes, weights=weights, class_sep=0.8, random_state=seed
    )
    X = (np.maximum(X, -1) * np.geomspace(0.01, 30, D) + 3).astype(dtype)
    X[:, 4], X[:, 5] = 2.5, np.arange(n) % 97 == 0
    return X, np.array(["AK", "BCC", "MEL"])[codes]


def searches(X, y, grid, *, scoring="balanced_accuracy", n_threads=2, extend=False, refit="auto"):
    """What the engine finds with and without sharing."""
    folds = list(StratifiedKFold(4, shuffle=True, random_state=0).split(X, y))
    pipeline = make_pipeline(make_svm("linear", "squared_hinge", "auto", 0), "concat", [D])
    use = Resources(take_products(None), [D], n_threads)
    options = {"extend": extend, "refit": refit}
    alone = exact_search(pipeline, grid, X, y, folds, scoring, use, **options)
    together = shared_search(pipeline, grid, X, y, np.arange(len(y)), folds, scoring, use, **options)
    return alone, together


def check_same(alone, together, rtol):
    assert together.engine == alone.engine == "newton"
    assert together.best_params == alone.best_params
    assert together.cv_results["converged"].all()
    assert together.cv_results["gap"].max() < 1e-5
    np.testing.assert_allclose(together.cv_results["mean"], alone.cv_results["mean"], atol=2e-3)
    scale = np.abs(alone.out_of_fold[1]).max()
    np.testing.assert_allclose(together.out_of_fold[1], alone.out_of_fold[1], atol=rtol * scale)
    np.testing.assert_array_equal(together.out_of_fold[2], alone.out_of_fold[2])


def one_against_the_rest_of_all(n_classes):
    signs, costs = one_against_the_rest(np.arange(n_classes), n_classes, np.ones(n_classes))
    return signs, [costs]


def is_easy(limit):
    return lambda self, candidate: candidate["C"] <= limit


@pytest.mark.parametrize("limit", [0.0, 1e-4, 1e-2, 1e3])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 1e-3), (np.float64, 1e-4)])
def test_search_finds_the_same_wherever_sharing_ends(dtype, rtol, n_classes, limit, monkeypatch):
    monkeypatch.setattr(shared._SharedScores, "are_easy", is_easy(limit))
    X, y = problem(n_classes, dtype=dtype)
    weights = ["balanced", {"AK": 2, "BCC": 0.5, "MEL": 3}] if n_classes == 3 else ["balanced", None]
    grid = {"C": [1.0, 1e-5, 1e-2, 1e-4, 10.0], "class_weight": weights}
    alone, together = searches(X, y, grid)
    check_same(alone, together, rtol)
    expected = alone.pipeline.decision_function(X)
    found = together.pipeline.decision_function(X)
    np.testing.assert_allclose(found, expected, atol=rtol * np.abs(expected).max())


def macro_recall(estimator, X, y):
    """A scorer that looks at the fitted estimator."""
    return recall_score(y, estimator.predict(X), average="macro")


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("options", [{"scoring": macro_recall}, {"extend": True}, {"refit": "sklearn"}], ids=", ".join)
def test_options(options, n_threads, monkeypatch):
    monkeypatch.setattr(shared._SharedScores, "are_easy", is_easy(1e-2))
    X, y = problem(3)
    alone, together = searches(X, y, {"C": [1e-4, 1e-3], "class_weight": ["balanced"]}, n_threads=n_threads, **options)
    check_same(alone, together, 1e-3)
    np.testing.assert_allclose(together.pipeline[-1].coef_, alone.pipeline[-1].coef_, atol=1e-3)


def test_what_passes_found_is_not_solved_again(monkeypatch):
    monkeypatch.setattr(shared._SharedScores, "are_easy", is_easy(1e-2))
    followed = []
    solve = linear_path.solve

    def record(problem, C, before, *given):
        followed.append((C, before))
        return solve(problem, C, before, *given)

    monkeypatch.setattr(linear_path, "solve", record)
    X, y = problem(3)
    folds = list(StratifiedKFold(4).split(X, y))
    pipeline = make_pipeline(make_svm("linear", "squared_hinge", "auto", 0), "concat", [D])
    use = Resources(take_products(None), [D], 1)
    grid = {"C": [1e-4, 1e-2, 1.0], "class_weight": [None]}
    options = {"refit": "sklearn"}
    shared_search(pipeline, grid, X, y, np.arange(len(y)), folds, "accuracy", use, **options)
    assert followed == [(1.0, 1e-2)] * 12


@pytest.mark.parametrize(("n_classes", "limit"), [(2, 1 / 6), (3, 1 / 3)])
def test_large_costs_are_not_shared(n_classes, limit):
    """Two for each problem that shares a pass, as five of two classes do; fifteen of three may have 20, and not 30."""
    X, y = problem(n_classes)
    folds = list(StratifiedKFold(4).split(X, y))
    pipeline = make_pipeline(make_svm("linear", "squared_hinge", "auto", 0), "concat", [D])
    use = Resources(take_products(None), [D], 1)
    scores = shared._SharedScores(pipeline, X, y, np.arange(len(y)), folds, "accuracy", use, keep=True)
    # 2 C times 30 features.
    easy = [scores.are_easy({"C": C, "class_weight": None}) for C in (1e-3, 0.999 * limit, 1.001 * limit, 10.0)]
    assert easy == [True, True, False, False]
    assert not scores.are_easy({"C": 0.999 * limit, "class_weight": {"AK": 1.1, "BCC": 1.1, "MEL": 1.1}})


def test_no_more_costs_are_shared_where_folds_have_fewer_rows_than_features():
    X, y = problem(3)
    X, y = X[:36], np.resize(["AK", "BCC", "MEL"], 36)
    folds = list(StratifiedKFold(4).split(X, y))
    pipeline = make_pipeline(make_svm("linear", "squared_hinge", "auto", 0), "concat", [D])
    use = Resources(take_products(None), [D], 1)
    scores = shared._SharedScores(pipeline, X, y, np.arange(36), folds, "accuracy", use, keep=True)
    # 2 C times 30 features may be 20.
    assert [scores.are_easy({"C": C, "class_weight": None}) for C in (0.333, 0.334)] == [True, False]


@pytest.mark.parametrize("seed", range(3))
def test_steps_go_on_while_the_objective_falls(seed):
    """Labels are noise, and about as many rows are active as there are coefficients: the gap rises before it falls."""
    rng = np.random.default_rng(seed)
    X, codes = rng.standard_normal((210, 100)), rng.integers(2, size=210)
    stream = streaming.Stream(X, codes, np.ones((210, 1), bool), 1, keep=lambda kept: kept.T @ kept)
    columns = streaming.make_columns(*one_against_the_rest_of_all(2))
    start = stream.solve(columns, 1e-2, np.zeros((1, 101))).coef
    found = stream.solve(columns, 10.0, start)
    assert found.gap.max() < 1e-9
    # Which is found from elsewhere, too.
    straight = stream.solve(columns, 10.0, np.zeros((1, 101))).coef
    np.testing.assert_allclose(found.coef, straight, atol=1e-4 * np.abs(straight).max())


@pytest.mark.parametrize(
    ("n", "d", "expected"), [(1000, 1000, True), (999, 1001, False), (10_000, 99, False), (2500, 2048, True)]
)
def test_where_sharing_pays(n, d, expected):
    assert pays_to_share(n, d) == expected


def test_fit_svm_shares_where_it_pays(monkeypatch):
    X, y = problem(3)
    options = {"test": None, "param_grid": {"C": [1e-4, 1e-2]}, "class_weight": None}
    alone = deepfeat.fit_svm((X, y), **options)
    calls = []
    search = procedure.shared_search
    monkeypatch.setattr(shared, "_LEAST", 0)
    monkeypatch.setattr(procedure, "shared_search", lambda *given, **more: calls.append(1) or search(*given, **more))
    together = deepfeat.fit_svm((X, y), **options)
    assert calls == [1]
    assert together.engine == alone.engine == "newton"
    np.testing.assert_allclose(together.cv_results["mean"], alone.cv_results["mean"], atol=2e-3)


def test_rows_of_a_fold_alone_decide(monkeypatch):
    """Held-out rows are in the preconditioner, and in nothing that is found."""
    monkeypatch.setattr(shared._SharedScores, "are_easy", is_easy(1e-2))
    X, y = problem(2, dtype=np.float64)
    other = X.copy()
    held = np.arange(0, len(X), 4)
    other[held] = 5 * other[held] + 40
    pipeline = make_pipeline(make_svm("linear", "squared_hinge", "auto", 0), "concat", [D])
    use, folds = Resources(take_products(None), [D], 1), [(np.setdiff1d(np.arange(len(X)), held), held)]
    pipelines = []

    def keep(estimator, X, y):
        pipelines.append(estimator)
        return 0.5

    for features in (X, other):
        grid = {"C": [1e-3, 1e-1], "class_weight": ["balanced"]}
        shared_search(pipeline, grid, features, y, np.arange(len(y)), folds, keep, use, refit="sklearn")
    half = len(pipelines) // 2
    for one, another in zip(pipelines[:half], pipelines[half:], strict=True):
        np.testing.assert_allclose(another[0].scale_, one[0].scale_, rtol=1e-7)
        largest = np.abs(one[-1].coef_).max()
        np.testing.assert_allclose(another[-1].coef_, one[-1].coef_, atol=1e-4 * largest)


@pytest.mark.parametrize("keep", [None, lambda rows: rows.T @ rows], ids=["read", "kept"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1200, 5350, 6920])
def test_rows_are_scaled_as_scikit_learn_scales_them(n, dtype, keep):
    """Units that answer to one image are constant where it is held out, and others vary little about a large value."""
    rng = np.random.default_rng(n)
    X = rng.standard_normal((n, 200))
    rare, large = np.arange(60), np.arange(60, 80)
    X[:, rare] = 0
    X[rng.choice(1000, 60, replace=False), rare] = rng.uniform(0.01, 3, 60)
    X[:, large] = 2**13 + X[:, large] * np.geomspace(1e-9 if dtype == np.float64 else 1e-2, 1, 20)
    X[:, 80], X[:, 81:83] = 1 / 3, 1e-7 * X[:, 81:83]
    X = X.astype(dtype)
    trains = [train for train, _ in KFold(3).split(X)]
    inside = np.zeros((n, 3), np.float32)
    for fold, train in enumerate(trains):
        inside[train, fold] = 1
    stream = streaming.Stream(X, np.zeros(n, int), inside, 1, keep=keep)
    n_constant = []
    for found, train in zip(stream.folds, trains, strict=True):
        expected = StandardScaler().fit(X[train])
        np.testing.assert_allclose(found.scale, expected.scale_, rtol=1e-3)
        np.testing.assert_allclose(found.mean, expected.mean_, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(found.scale == 1, expected.scale_ == 1)
        n_constant.append(int((expected.scale_ == 1).sum()))
    assert max(n_constant) > 5


@pytest.mark.parametrize("limit", [0.0, 1e-2, 1e3])
def test_features_that_held_out_rows_alone_have_do_no_harm(limit, monkeypatch):
    monkeypatch.setattr(shared._SharedScores, "are_easy", is_easy(limit))
    X, y = problem(3)
    rows = np.random.default_rng(0).choice(len(X), 15, replace=False)
    X[:, 10:25] = 0
    X[rows, np.arange(10, 25)] = 0.3
    alone, together = searches(X, y, {"C": [1e-4, 1e-2], "class_weight": [None]})
    check_same(alone, together, 1e-3)


@pytest.mark.parametrize("limit", [0.0, 1e-2, 1e3])
def test_rows_that_a_fold_repeats_count_as_often(limit, monkeypatch):
    monkeypatch.setattr(shared._SharedScores, "are_easy", is_easy(limit))
    X, y = problem(2)
    oversampled = [
        (np.concatenate([train, np.repeat(train[y[train] == "BCC"], 4)]), test)
        for train, test in StratifiedKFold(4).split(X, y)
    ]
    pipeline = make_pipeline(make_svm("linear", "squared_hinge", "auto", 0), "concat", [D])
    use, grid = Resources(take_products(None), [D], 1), {"C": [1e-4, 1e-2, 1.0], "class_weight": ["balanced", None]}
    alone = exact_search(pipeline, grid, X, y, oversampled, "accuracy", use)
    together = shared_search(pipeline, grid, X, y, np.arange(len(y)), oversampled, "accuracy", use, refit="auto")
    check_same(alone, together, 1e-3)


def test_inverses_are_as_precise_as_the_scale_wants():
    mean = np.diag([400.0, 1e-3])
    curvature = streaming._Curvature(mean)
    for power, rtol in ((0, 1e-6), (20, 1e-14)):
        inverse = curvature.inverse(1.2 * 2.0**power, 1)
        expected = np.diag(1 / (1 + 2.0**power * mean.diagonal()))
        np.testing.assert_allclose(inverse.multiply(np.eye(2), 1, run), expected, rtol=rtol)
    # Classes without an active row.
    np.testing.assert_allclose(curvature.inverse(0.0, 1).multiply(np.eye(2), 1, run), np.eye(2), atol=1e-6)


def run(function, items):
    for item in items:
        function(item)


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("m", [1, 3, 7])
def test_inverse_is_made_where_it_is_used_often(m, n_threads):
    rng = np.random.default_rng(0)
    A, vectors = np.diag(np.arange(1.0, 31.0)) + 0.1 * np.cov(rng.normal(size=(30, 90))), rng.normal(size=(m, 30))
    inverse, made = streaming._Inverse(Factor(A.copy())), []
    for _ in range(20):
        found = inverse.multiply(vectors, n_threads, run)
        np.testing.assert_allclose(found, np.linalg.solve(A, vectors.T).T, atol=1e-12)
        made.append(inverse._factor is None)
    # From the first that makes it more than half of the 30 coefficients.
    assert made == [m * uses > 15 for uses in range(1, 21)]


def test_paths_begin_a_step_ahead_where_many_rows_are_active(monkeypatch):
    """A matrix of many rows is made for no problem, and one of a few rows is not put off."""
    monkeypatch.setattr(shared._SharedScores, "are_easy", is_easy(1e-3))
    stepped, made = [], []
    step, solve_many = streaming.Stream.step, Systems._solve_many

    def record(self, columns, C, coef):
        stepped.append((len(columns.fold), C))
        return step(self, columns, C, coef)

    def count(self, active, *given):
        made.append(len(active))
        return solve_many(self, active, *given)

    monkeypatch.setattr(streaming.Stream, "step", record)
    monkeypatch.setattr(Systems, "_solve_many", count)
    X, y = make_classification(1200, 400, n_informative=20, class_sep=2.0, flip_y=0, random_state=0)
    use = Resources(take_products(None), [400], 2)
    pipeline = make_pipeline(make_svm("linear", "squared_hinge", "auto", 0), "concat", [400])
    folds = list(StratifiedKFold(4, shuffle=True, random_state=0).split(X, y))
    grid = {"C": [1.0, 1e-1, 1e-3], "class_weight": ["balanced"]}
    alone = exact_search(pipeline, grid, X, y, folds, "accuracy", use)
    assert len(made) >= 4
    made.clear()
    together = shared_search(pipeline, grid, X, y, np.arange(len(y)), folds, "accuracy", use, refit="auto")
    check_same(alone, together, 1e-4)
    assert stepped == [(4, 1e-1)]
    assert not made


@pytest.mark.parametrize("first_rows", [0.0, 9.0])
def test_kept_rows_and_rows_that_are_read_have_the_same_products(first_rows, monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", 300)
    X, _ = problem(2)
    X[:300] += first_rows
    inside = np.ones((len(X), 2), bool)
    inside[::3, 0] = False
    kept = streaming.Stream(X, np.zeros(len(X), int), inside, 1, keep=lambda rows: rows.T @ rows)
    read = streaming.Stream(X, np.zeros(len(X), int), inside, 1)
    scaled = np.column_stack([StandardScaler().fit_transform(X.astype(float)), np.ones(len(X))])
    for stream in (kept, read):
        np.testing.assert_allclose(stream.mean_product, scaled.T @ scaled / len(X), atol=1e-4)
    # A fold's own centre, and the scale of all rows.
    gram, rows = shared.Gram(kept.rows), np.flatnonzero(inside[:, 0])
    centred = (X[rows].astype(float) - X[rows].mean(axis=0, dtype=float)) / kept._unit
    some = np.arange(0, len(rows), 7)
    found = shared._products(gram, rows, *kept.centred(0), some, some[:9])
    np.testing.assert_allclose(found, (centred @ centred.T + 1)[np.ix_(some, some[:9])], atol=1e-2)


def test_second_fit_with_other_weights_computes_no_products_again(monkeypatch):
    monkeypatch.setattr(shared, "_LEAST", 0)
    X, y = problem(3, seed=5)
    options = {"test": None, "param_grid": {"C": [1e-4, 1e-2]}}
    products = take_products(None)
    before = products.computed
    deepfeat.fit_svm((X, y), class_weight=None, **options)
    first = products.computed
    deepfeat.fit_svm((X, y), class_weight="balanced", **options)
    assert products.computed == first > before
