"""Newton's method on the active rows, for the problem that LinearSVC solves for one class against the rest.

With scaled rows x that end in a one for the intercept, which liblinear penalises like any other coefficient:

    minimise over w   |w|²/2 + Σ cᵢ max(0, 1 - yᵢ w·xᵢ)^q,   q = 2 (squared_hinge) or 1 (hinge)

With q = 2 this is piecewise quadratic, and a step goes from the minimum of one piece to that of the next
(Keerthi and DeCoste 2005, A modified finite Newton method for fast solution of large scale linear SVMs, JMLR 6;
Chapelle 2007, Training a support vector machine in the primal, Neural Computation 19). With q = 1 the augmented
Lagrangian of the constraints is piecewise quadratic, and is minimised several times with new multipliers (Yan and Li
2020, An efficient augmented Lagrangian method for support vector machine, Optimization Methods and Software 35).

Either way the dual variable of a row is u = clip(shift + slope (1 - y w·x), 0, cap), and the Hessian is
I + Σ slope x xᵀ over the active rows, those with 0 < u < cap. Whole steps are taken as long as the number of rows that
change between active and not falls now and then, as in block pivoting (Kim and Park 2011, Fast nonnegative matrix
factorization, SIAM J. Sci. Comput. 33, section 4). After that the way to a value of C leads over one between it and the
value before; where that is near, steps of the best length are taken from where the whole ones began, which always
converge.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import numpy as np

from deepfeat.svm.systems import Systems, multiply, scatter, sum_rows

#: Newton steps at one value of C, and rounds of new multipliers for the hinge loss, at most.
MAX_STEPS, MAX_ROUNDS = 100, 100

#: Whole steps without fewer changes of the active rows, before they are given up.
_PATIENCE = 3

#: How many times the value before a value of C may be without another between them.
_NEAR = 1.5

#: Longest step along a direction, where 1 leads to the minimum of the piece.
_LONGEST = 10.0

#: At most so much do the slopes of the first round add to the Hessian's trace for each active row.
_FIRST_SLOPE = 10.0

#: Gap at which rounds end where one does not halve it.
_ROUNDING = 1e-7

#: A round of new multipliers that leaves more than this part of the gap doubles the slope for the next.
_PROGRESS = 0.2


class Problem(NamedTuple):
    """A binary problem.

    Attributes
    ----------
    rows : ndarray of shape (n, p), float32 or float64
        Scaled features and a last column of ones.
    signs : ndarray of shape (n,), float64
        1 for rows of the class, -1 for the rest.
    costs : ndarray of shape (n,), float64
        Weight of each row's loss at C = 1.
    loss : {"squared_hinge", "hinge"}
    """

    rows: np.ndarray
    signs: np.ndarray
    costs: np.ndarray
    loss: str = "squared_hinge"

    def gap(self, C: float, w: np.ndarray, f: np.ndarray, u: np.ndarray, v: np.ndarray) -> float:
        """Duality gap over objective.

        Parameters
        ----------
        C : float
        w, f : ndarray of shape (p,) and (n,)
            Coefficients, and their products with the rows.
        u, v : ndarray of shape (n,) and (p,)
            Feasible dual variables, and the sum of u y x.
        """
        excess = np.maximum(1 - self.signs * f, 0)
        bound = u.sum() - 0.5 * v @ v
        if self.loss == "squared_hinge":
            excess *= excess
            bound -= (u * u / self.costs).sum() / (4 * C)
        objective = 0.5 * w @ w + C * (self.costs @ excess)
        return float((objective - bound) / objective)


class Pieces(NamedTuple):
    """The dual variable of each row as a function of its margin: clip(shift + slope (1 - y f), 0, cap)."""

    slope: np.ndarray
    shift: np.ndarray
    cap: np.ndarray

    def unclipped(self, signs: np.ndarray, f: np.ndarray) -> np.ndarray:
        """Dual variables before they are clipped."""
        return np.asarray(self.shift + self.slope * (1 - signs * f))

    def are_active(self, unclipped: np.ndarray) -> np.ndarray:
        """Whether each row is on the slanted piece."""
        return (unclipped > 0) & (unclipped < self.cap)


class State:
    """Coefficients w, their products f with the rows, dual variables u that are feasible, and the relative gap."""

    def __init__(self, n: int, p: int) -> None:
        self.w, self.f, self.u, self.gap = np.zeros(p), np.zeros(n), np.zeros(n), np.inf

    def resume(self, problem: Problem, C: float, w: np.ndarray) -> None:
        """Take coefficients that nearly solve the problem, of the squared hinge loss, for a value of C."""
        self.w, self.f = w, multiply(problem.rows, w)
        self.u = 2 * C * problem.costs * np.maximum(1 - problem.signs * self.f, 0)


def solve(problem: Problem, C: float, before: float, state: State, systems: Systems, tolerance: float) -> int:
    """Solve a problem, from the solution for the value of C before, or from nothing where that is 0.

    The state is changed in place.

    Returns
    -------
    steps : int
        Number of Newton steps.
    """
    if problem.loss == "squared_hinge":
        return _approach(problem, C, before, state, systems, tolerance)
    cap = C * problem.costs
    multipliers = np.minimum(state.u * (C / before), cap) if before else np.zeros_like(cap)
    # With steep slopes the pieces are narrow, and it takes many steps to cross them from afar.
    slope, steps, last = np.minimum(cap, _FIRST_SLOPE / mean_square(problem.rows)), 0, np.inf
    for _ in range(MAX_ROUNDS):
        steps += minimise(problem, C, Pieces(slope, multipliers, cap), state, systems, tolerance)[0]
        # Steeper slopes would tell rounding apart, and nothing else.
        if state.gap <= tolerance or (state.gap <= _ROUNDING and state.gap > 0.5 * last):
            break
        if state.gap > _PROGRESS * last:
            slope = 2 * slope
        multipliers, last = state.u, state.gap
    return steps


def _approach(problem: Problem, C: float, before: float, state: State, systems: Systems, tolerance: float) -> int:
    """Solve a problem with the squared hinge loss, by way of a value of C between where whole steps do not lead to it.

    They do not where the active rows become as many as there are coefficients, and one more or less moves all.
    """
    cap = C * problem.costs
    pieces, far = Pieces(2 * cap, 0 * cap, cap + np.inf), 0 < _NEAR * before < C
    steps, arrived = minimise(problem, C, pieces, state, systems, tolerance, whole=far)
    if not arrived:
        between = math.sqrt(before * C)
        steps += _approach(problem, between, before, state, systems, tolerance)
        steps += _approach(problem, C, between, state, systems, tolerance)
    return steps


def minimise(
    problem: Problem,
    C: float,
    pieces: Pieces,
    state: State,
    systems: Systems,
    tolerance: float,
    *,
    whole: bool = False,
) -> tuple[int, bool]:
    """Take steps until the gap is small, or until the pieces stay the same.

    Parameters
    ----------
    whole : bool
        Take none but whole steps.

    Returns
    -------
    steps : int
    arrived : bool
        Whether steps did not end because whole ones do not lead on; the state is then as it was.
    """
    rows, signs, start = problem.rows, problem.signs, copy.copy(state)
    patience, fewest = _PATIENCE, len(rows) + 1
    unclipped, state.gap = pieces.unclipped(signs, state.f), np.inf
    step = 0
    while step < MAX_STEPS:
        step += 1
        active, capped = pieces.are_active(unclipped), unclipped >= pieces.cap
        where = np.flatnonzero(active)
        base = sum_rows(rows, np.where(capped, signs * pieces.cap, 0.0)) if capped.any() else np.zeros(rows.shape[1])
        w, solved, total = systems.solve(where, signs, pieces, base, state, unclipped[where])
        f = multiply(rows, w)
        if patience > 0:
            state.w, state.f = w, f
            unclipped = pieces.unclipped(signs, f)
            unclipped[where] = solved
            state.u = np.where(capped, pieces.cap, 0.0)
            state.u[where] = np.clip(solved, 0, pieces.cap[where])
            v = total - sum_rows(rows, scatter(signs[where] * (solved - state.u[where]), where, len(f)))
        else:
            length = search_line(pieces, signs, state, w - state.w, f - state.f)
            state.w, state.f = state.w + length * (w - state.w), state.f + length * (f - state.f)
            unclipped = pieces.unclipped(signs, state.f)
            state.u = np.clip(unclipped, 0, pieces.cap)
            v = sum_rows(rows, signs * state.u)
        last, state.gap = state.gap, problem.gap(C, state.w, state.f, state.u, v)
        changes = int(
            np.count_nonzero((pieces.are_active(unclipped) != active) | ((unclipped >= pieces.cap) != capped))
        )
        # On the same piece again, what is left of the gap is the system's residual, until it is rounding.
        if state.gap <= tolerance or (not changes and state.gap > 0.5 * last):
            break
        if patience > 0:
            patience = _PATIENCE if changes < fewest else patience - 1
            if not patience:
                # They may have led far away.
                state.w, state.f, state.u = start.w, start.f, start.u
                unclipped = pieces.unclipped(signs, state.f)
                if whole:
                    return step, False
        fewest = min(fewest, changes)
    return step, True


def mean_square(rows: np.ndarray) -> float:
    """Mean of the rows' squared norms."""
    return float(np.vdot(rows, rows)) / len(rows)


def search_line(pieces: Pieces, signs: np.ndarray, state: State, direction: np.ndarray, product: np.ndarray) -> float:
    """Find the minimum of a piecewise quadratic along a direction of descent.

    Its derivative is piecewise linear and grows: Newton's method on it, kept inside a bracket, ends on the root. The
    bracket is bounded, since a direction that is rounding alone promises a descent at any length.
    """
    change, here = signs * product, pieces.unclipped(signs, state.f)
    first, square = state.w @ direction, direction @ direction
    start = abs(first - np.clip(here, 0, pieces.cap) @ change)
    low, high, length = 0.0, _LONGEST, 1.0
    for _ in range(50):
        u = here - length * pieces.slope * change
        derivative = first + length * square - np.clip(u, 0, pieces.cap) @ change
        if abs(derivative) <= 1e-4 * start:
            break
        low, high = (length, high) if derivative < 0 else (low, length)
        curvature = square + (pieces.slope * change**2)[pieces.are_active(u)].sum()
        newton = length - derivative / curvature
        length = newton if low < newton < high else 0.5 * (low + high)
    return float(length)
