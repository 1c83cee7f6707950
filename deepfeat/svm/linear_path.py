"""LinearSVC's problems along the path of C: every class and every value, exactly.

Newton's method (see `deepfeat.svm.newton`) goes from each value of C to the next. Before that the rows are turned
into others with the same products: into as many coordinates as there are rows, where there are more
features than that, and so that the principal directions with the largest variance are coordinates of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular
from sklearn.preprocessing import StandardScaler

from deepfeat.svm.bordered import Products
from deepfeat.svm.newton import Problem, State, solve
from deepfeat.svm.systems import Rows, Systems, cut
from deepfeat.svm.threads import give_way, in_threads

#: Steps end when the duality gap is below this part of the objective; rounding does not let it be seen further.
TOLERANCE = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 1e-7}

#: Rows with no more values than this are turned into float64 as a whole.
_SMALL = 100_000

#: A solution whose duality gap in float64 is below this part of the objective counts as converged.
CONVERGED = 1e-5

#: Principal directions that become coordinates; of few coordinates the half.
_LEADING = 64

#: Rows that are turned at once, into float64 or other coordinates.
_CHUNK = 512


class Known(NamedTuple):
    """What is known of problems before their path is followed.

    Attributes
    ----------
    C : float
        A value below those that are wanted.
    coef : ndarray of shape (k, d + 1), float64, or None
        Solutions for it, of the squared hinge loss, or what is between them and the first that are wanted.
    gram : callable, or None
        Gives nearly the products of the rows with one another, see `deepfeat.svm.systems.Rows`: what is computed with
        them are preconditioners.
    directions : ndarray of shape (p, q), or None
        An orthonormal basis of nearly the principal directions with the largest variance.
    scaler : StandardScaler, or None
        Fitted to the rows.
    """

    C: float = 0.0
    coef: np.ndarray | None = None
    gram: Products | None = None
    directions: np.ndarray | None = None
    scaler: StandardScaler | None = None


class Path(NamedTuple):
    """Solutions of k problems for each value of C.

    Attributes
    ----------
    coef : ndarray of shape (n_values, k, p), float64
    gap : ndarray of shape (n_values, k), float64
        Duality gap over objective.
    steps : ndarray of shape (n_values, k), int
        Newton steps.
    """

    coef: np.ndarray
    gap: np.ndarray
    steps: np.ndarray


def solve_path(
    X: np.ndarray,
    signs: np.ndarray,
    costs: np.ndarray,
    values: Sequence[float],
    loss: str = "squared_hinge",
    *,
    moment: np.ndarray | None = None,
    known: Known | None = None,
    n_jobs: int = 1,
) -> Path:
    """Solve k binary problems for each value of C, the least first, each from the solution before.

    Parameters
    ----------
    X : ndarray of shape (n, d), float32 or float64
        Scaled features. With a last column of ones, for the intercept, they are the rows of p = d + 1 values.
    signs, costs : ndarray of shape (n, k), float64
        See `deepfeat.svm.newton.Problem`.
    values : sequence of float
        Values of C, in any order.
    loss : {"squared_hinge", "hinge"}
    moment : ndarray of shape (p, p), optional
        Rows transposed times rows, where that is known already.
    known : Known, optional
    n_jobs : int
        Threads, each of which takes one problem at a time.

    Returns
    -------
    Path
        In the order of ``values``.
    """
    (n, k), known = signs.shape, known or Known()
    # The hinge loss takes slopes that grow until float32 does not see what they change.
    if X.dtype != np.float64 and (X.size <= _SMALL or loss == "hinge"):
        X, moment = X.astype(np.float64), None
    turn = _Compression(X) if X.shape[1] >= n else _Reflection(X, moment, known, k)
    coef = np.empty((len(values), k, turn.shared.rows.shape[1]))
    dual, steps = np.empty((len(values), k, n)), np.zeros((len(values), k), int)

    def follow(column: int) -> None:
        state, systems, before = State(n, coef.shape[2]), Systems(turn.shared), 0.0
        problem = Problem(turn.shared.rows, signs[:, column], costs[:, column], loss)
        if known.coef is not None:
            before = known.C
            state.resume(problem, before, turn.forth(known.coef[column]))
        for place in np.argsort(values, kind="stable"):
            C = float(values[place])
            steps[place, column] = solve(problem, C, before, state, systems, TOLERANCE[X.dtype])
            coef[place, column], dual[place, column] = state.w, state.u
            before = C
            give_way()

    def polish(place: int, column: int) -> None:
        shared = turn.shared.double
        problem = Problem(shared.rows, signs[:, column], costs[:, column], loss)
        state = State(n, coef.shape[2])
        state.w, state.u, C = coef[place, column], dual[place, column], float(values[place])
        state.f = shared.rows @ state.w
        steps[place, column] += solve(problem, C, C, state, Systems(shared), TOLERANCE[shared.rows.dtype])
        coef[place, column], dual[place, column] = state.w, state.u

    # Problems with many rows of both signs take the longest; no thread is to be left alone with one at the end.
    order = np.argsort(-np.minimum((signs > 0).sum(axis=0), (signs < 0).sum(axis=0)), kind="stable")
    in_threads((partial(follow, int(column)) for column in order), n_jobs)
    gap = _gaps(turn.shared.rows, signs, costs, values, loss, coef, dual)
    rough = np.argwhere((gap > CONVERGED) & (X.dtype != np.float64))
    if len(rough):
        in_threads((partial(polish, int(place), int(column)) for place, column in rough), n_jobs)
        gap = _gaps(turn.shared.rows, signs, costs, values, loss, coef, dual)
    coef = turn.back(coef.reshape(-1, coef.shape[2])).reshape(len(values), k, -1)
    return Path(coef, gap, steps)


class _Compression:
    """Rows in as many coordinates as there are rows: the Cholesky factor of their products."""

    def __init__(self, X: np.ndarray) -> None:
        self._rows = np.column_stack([X.astype(np.float64), np.ones(len(X))])
        exact = self._rows @ self._rows.T
        single = exact.astype(X.dtype)
        # Equal rows make it singular; the ridge is as small as rounding.
        np.fill_diagonal(exact, exact.diagonal() + 1e-12 * len(exact) * exact.diagonal().max())
        self._factor = np.linalg.cholesky(exact)
        self.shared = Rows(self._factor.astype(X.dtype), gram=partial(cut, single))

    def forth(self, coef: np.ndarray) -> np.ndarray:
        """Turn coefficients of the features, of shape (p,), into those that have the same products with the rows."""
        return np.asarray(solve_triangular(self._factor, self._rows @ coef, lower=True))

    def back(self, coef: np.ndarray) -> np.ndarray:
        """Turn coefficients, one set in a row, into those of the features."""
        return np.asarray(solve_triangular(self._factor, coef.T, lower=True, trans="T").T @ self._rows)


class _Reflection:
    """Rows with the leading principal directions as their first coordinates.

    Features share a few directions in which they vary a thousand times more than in others, and rounding in those
    would drown the rest. On coordinates of their own they do no harm: Cholesky's rounding is relative to the
    diagonal (Higham 2002, Accuracy and Stability of Numerical Algorithms, theorem 10.6).
    """

    def __init__(self, X: np.ndarray, moment: np.ndarray | None, known: Known, n_problems: int) -> None:
        basis = known.directions
        if basis is None:
            if moment is None:
                rows = np.column_stack([X, np.ones(len(X), X.dtype)])
                moment = rows.T @ rows
            basis = leading_directions(moment)
        left, _, right = np.linalg.svd(basis[: basis.shape[1]])
        # Turned within its span, the basis differs from the first coordinates by what one reflection undoes.
        normals, sizes, _ = np.linalg.svd(basis @ (left @ right).T - np.eye(*basis.shape), full_matrices=False)
        # Of unit length: short ones, of directions that are nearly coordinates already, would let rounding grow.
        self._normals = normals[:, sizes > 1e-8]
        turned = None if moment is None else self.back(self.back(moment).T)
        self.shared = Rows(self._turn(X), turned, known.gram, n_problems)

    def _turn(self, X: np.ndarray) -> np.ndarray:
        """Reflect features and a one, some rows at once, which stay in the cache."""
        turned = np.empty((len(X), X.shape[1] + 1), X.dtype)
        for start in range(0, len(X), _CHUNK):
            rows = turned[start : start + _CHUNK]
            rows[:, :-1], rows[:, -1] = X[start : start + _CHUNK], 1
            rows[:] = self.back(rows)
        return turned

    def back(self, rows: np.ndarray) -> np.ndarray:
        """Reflect rows or coefficients, of shape (n, p) or (p,); twice makes what was."""
        normals = self._normals.astype(rows.dtype)
        return np.asarray(rows - (rows @ (2 * normals)) @ normals.T)

    forth = back


def leading_directions(moment: np.ndarray) -> np.ndarray:
    """Nearly the principal directions with the largest variance, by subspace iteration; of shape (p, q)."""
    basis = np.random.default_rng(0).standard_normal((len(moment), min(_LEADING, len(moment) // 2)))
    for _ in range(4):
        basis = np.linalg.qr((moment @ basis.astype(moment.dtype)).astype(np.float64))[0]
    return basis


def _gaps(
    rows: np.ndarray,
    signs: np.ndarray,
    costs: np.ndarray,
    values: Sequence[float],
    loss: str,
    coef: np.ndarray,
    dual: np.ndarray,
) -> np.ndarray:
    """Duality gap over objective of every solution, in float64 whatever the rows are."""
    (n_values, k, p), n = coef.shape, len(rows)
    w, f = coef.reshape(-1, p), np.empty((n_values * k, n))
    weights, v = (dual * signs.T).reshape(-1, n), np.zeros((n_values * k, p))
    for start in range(0, n, _CHUNK):
        part = slice(start, start + _CHUNK)
        chunk = rows[part].astype(np.float64)
        f[:, part] = w @ chunk.T
        v += weights[:, part] @ chunk
    gaps = np.empty((n_values, k))
    for place, C in enumerate(values):
        for column in range(k):
            cell = place * k + column
            problem = Problem(rows, signs[:, column], costs[:, column], loss)
            gaps[place, column] = problem.gap(float(C), w[cell], f[cell], dual[place, column], v[cell])
    return gaps
