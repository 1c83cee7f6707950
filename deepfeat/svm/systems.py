"""The linear systems of Newton's steps, and the factors with which they are solved.

A factor is kept as long as it serves as a preconditioner: along the path of C the active rows change by ever fewer,
and a few conjugate gradients cost less than a new factor. Where there are few active rows for the number of
coefficients, the system is that of the dual variables, with the rows' Gram matrix; otherwise that of the coefficients.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from deepfeat.svm.bordered import Bordered, Products
from deepfeat.svm.cholesky import Factor
from deepfeat.svm.fortran import add_products, multiply_symmetric

if TYPE_CHECKING:
    from deepfeat.svm.newton import Pieces, State

#: A system is solved to this part of its right side; a kept factor may take so many iterations, a new one so many.
_FORCING, _STALE, _MAX_ITERATIONS = 1e-3, 10, 50

#: A kept factor is given up when it seems to need more than this many times its iterations: the rate tends to rise.
_HOPE = 1.3

#: The system of the dual variables is solved up to this many times as many active rows as coefficients.
FEW = 1.25

#: Rows whose products with one another are remembered, as a multiple of the coefficients.
_REMEMBERED = 4

#: Rows that are cut out of a matrix at once.
_BAND = 32

#: Rows that are gathered at once.
_AT_ONCE = 512

#: Part of the rows from which on all are taken instead of gathering some.
_MOST = 0.5

#: Part of the active rows that may have come or gone since a factor was made, and part that counts as nearly all rows.
_CHANGED, _NEARLY_ALL = 0.1, 0.9

Apply = Callable[[np.ndarray], np.ndarray]


class Rows:
    """What all problems on the same rows share.

    Parameters
    ----------
    rows : ndarray of shape (n, p), float32 or float64
    moment : ndarray of shape (p, p), optional
        Rows transposed times rows, where that is known.
    gram : callable, optional
        Makes a new array of the products of some rows with others, both given by their numbers; nearly, where it is
        given.
    n_problems : int
        How many share the rows.
    """

    def __init__(
        self, rows: np.ndarray, moment: np.ndarray | None = None, gram: Products | None = None, n_problems: int = 1
    ) -> None:
        self.rows, self._n_problems = rows, n_problems
        self.gram = gram or Gram(rows).of
        self._moment, self._lock = moment, threading.RLock()
        self._factors: dict[int, Factor] = {}

    @property
    def moment(self) -> np.ndarray:
        """Rows transposed times rows, of shape (p, p); computed when it is first wanted, where it is not known."""
        with self._lock:
            if self._moment is None:
                self._moment = self.rows.T @ self.rows
            return self._moment

    @property
    def price(self) -> float:
        """Rows whose products would take as long as a problem's share of the moment."""
        return 0.0 if self._moment is not None else len(self.rows) / self._n_problems

    def factor(self, scale: float) -> Factor:
        """Return a factor of I + scale * moment, or of a scale within a factor of 2 of it."""
        power = round(math.log2(scale))
        with self._lock:
            if power not in self._factors:
                self._factors[power] = factorise(partial(scaled, self.moment, 2.0**power), 1.0)
            return self._factors[power]

    @cached_property
    def double(self) -> Rows:
        """The same in float64."""
        with self._lock:
            return self if self.rows.dtype == np.float64 else Rows(self.rows.astype(np.float64))


class Systems:
    """The systems of one problem.

    Parameters
    ----------
    shared : Rows
    """

    def __init__(self, shared: Rows) -> None:
        self._shared, self._rows = shared, shared.rows
        self._moment = _Moment(shared)
        self._hessian: tuple[float, Factor] | None = None
        self._kernel: Bordered | None = None

    def solve(
        self,
        active: np.ndarray,
        signs: np.ndarray,
        pieces: Pieces,
        base: np.ndarray,
        state: State,
        unclipped: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find the minimum of the piece on which some rows are active.

        Parameters
        ----------
        active : ndarray of int
            Numbers of the active rows.
        signs : ndarray of shape (n,)
        pieces : Pieces
        base : ndarray of shape (p,)
            Sum of cap y x over the rows at their cap.
        state : State
            To start from.
        unclipped : ndarray
            Dual variables of the active rows at the state.

        Returns
        -------
        w : ndarray of shape (p,), float64
        u : ndarray, float64
            Dual variables of the active rows, not clipped.
        v : ndarray of shape (p,), float64
            Sum of u y x over the active rows and those at their cap; w, but for what the system is not solved exactly.
        """
        if not len(active):
            return base, np.zeros(0), base
        part = type(pieces)(*(values[active] for values in pieces))
        if len(active) <= FEW * len(base):
            start = np.clip(state.u[active], 0, part.cap)
            return self._solve_few(active, signs[active], part, base, start)
        return self._solve_many(active, signs[active], part, base, state.w, unclipped)

    def _solve_few(
        self, active: np.ndarray, signs: np.ndarray, part: Pieces, base: np.ndarray, u: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Solve (1/slope + Y K Y) u = 1 + shift/slope - Y f(base), with K the active rows' Gram matrix.

        That is (1/slope + K) Y u = Y (1 + shift/slope) - f(base), since the signs Y are their own inverse.
        """
        rows, ridge = self._rows[active], 1 / part.slope

        def system(x: np.ndarray) -> np.ndarray:
            product: np.ndarray = ridge * x
            product += rows @ (x.astype(rows.dtype, copy=False) @ rows)
            return product

        def new() -> Apply:
            gram = self._shared.gram
            factor = factorise(partial(gram, active, active), ridge)
            self._kernel = Bordered(len(self._rows), active, factor, gram)
            return factor.solve

        ways: list[Callable[[], Apply]] = [new]
        kept = self._kernel
        if kept is None:
            ways.insert(0, lambda: lambda r: r / ridge)
        elif kept.count_changes(active) <= _CHANGED * len(active):
            ways.insert(0, lambda: kept.inverse(active, ridge))
        x = signs * u
        x += _iterate(system, ways, signs * (1 + part.shift * ridge) - multiply(rows, base) - system(x))
        w = base + sum_all(rows, x)
        return w, signs * x, w

    def _solve_many(
        self,
        active: np.ndarray,
        signs: np.ndarray,
        part: Pieces,
        base: np.ndarray,
        w: np.ndarray,
        unclipped: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Solve (I + Σ slope x xᵀ) change = base + Σ u y x - w, with the dual variables u of the active rows at w."""
        n, scale = len(self._rows), float(part.slope.max())
        self._moment.aim(scatter(part.slope / scale, active, n))

        def system(x: np.ndarray) -> np.ndarray:
            return x + scale * self._moment.times(x)

        def kept() -> Apply:
            assert self._hessian is not None
            return self._hessian[1].solve

        def new() -> Apply:
            self._hessian = scale, factorise(partial(scaled, self._moment.settle(), scale), 1.0)
            return self._hessian[1].solve

        ways = [new]
        if self._hessian is not None and 0.5 < scale / self._hessian[0] < 2:
            ways.insert(0, kept)
        elif len(active) > _NEARLY_ALL * n:
            ways.insert(0, lambda: self._shared.factor(scale).solve)
        change = _iterate(system, ways, base + sum_rows(self._rows, scatter(signs * unclipped, active, n)) - w)
        u = unclipped - part.slope * signs * multiply_rows(self._rows, active, change)
        return w + change, u, base + sum_rows(self._rows, scatter(signs * u, active, n))


class _Moment:
    """The sum of weight x xᵀ over rows: a matrix for some weights, and rows whose weight has changed since.

    Of the matrix the lower triangle counts.
    """

    def __init__(self, shared: Rows) -> None:
        self._shared, self._rows = shared, shared.rows
        self._matrix = np.empty((0, 0))
        self._weights = self._aim = np.empty(0)
        self._some, self._change = np.empty(0, int), np.empty(0)
        self._changed: np.ndarray | None = None

    def aim(self, weights: np.ndarray) -> None:
        """Take weights, of shape (n,), from where it takes the fewest rows: the last ones, one weight for all, or 0."""
        values, counts = np.unique(weights, return_counts=True)
        common = float(values[counts.argmax()])
        last = np.count_nonzero(weights != self._weights) if len(self._weights) else np.inf
        anew, nothing = len(weights) - counts.max() + self._shared.price, np.count_nonzero(weights)
        if min(anew, nothing) < last:
            uniform = common if anew < nothing else 0.0
            self._matrix = np.zeros((self._rows.shape[1],) * 2, self._rows.dtype)
            if uniform:
                self._matrix = scaled(self._shared.moment, uniform)
            self._weights = np.full(len(weights), uniform)
        change = weights - self._weights
        self._aim, self._some, self._changed = weights, np.flatnonzero(change), None
        self._change = change[self._some]

    def times(self, x: np.ndarray) -> np.ndarray:
        """Multiply with a vector of shape (p,)."""
        product = multiply_symmetric(self._matrix, x).astype(np.float64)
        if self._changed is None:
            self._changed = self._rows[self._some]
        return np.asarray(product + sum_all(self._changed, self._change * multiply(self._changed, x)))

    def settle(self) -> np.ndarray:
        """Bring the matrix to its weights, and return it; it must not be changed."""
        for sign in (1, -1):
            mine = sign * self._change > 0
            roots = np.sqrt(np.abs(self._change[mine])).astype(self._rows.dtype)
            for part, rows in gather(self._rows, self._some[mine]):
                rows *= roots[part, None]
                add_products(self._matrix, rows, sign)
        self._weights, self._some, self._change, self._changed = self._aim, self._some[:0], self._change[:0], None
        return self._matrix


class Gram:
    """Products of rows with one another, computed for rows when they are first asked for.

    Parameters
    ----------
    rows : ndarray of shape (n, p)
        Only so many are remembered at a time; asked for others, it forgets and begins anew.
    """

    def __init__(self, rows: np.ndarray) -> None:
        self._rows, self._lock = rows, threading.Lock()
        capacity = remembered(*rows.shape)
        # Memory is taken by what is written, not by what is reserved.
        self._matrix = np.empty((capacity, capacity), rows.dtype)
        self._place = np.full(len(rows), -1)
        self._known = np.empty(0, int)

    def fill(self, some: np.ndarray) -> None:
        """Compute the products of some rows, if so many are remembered, which takes less time than bit by bit."""
        with self._lock:
            fresh = some[self._place[some] < 0]
            if len(self._known) + len(fresh) <= len(self._matrix):
                self._grow(fresh)

    def of(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return a new array of the products of some rows with others."""
        with self._lock:
            wanted = left if right is left else np.union1d(left, right)
            fresh = wanted[self._place[wanted] < 0]
            if len(self._known) + len(fresh) > len(self._matrix):
                self._place[:] = -1
                self._known, fresh = fresh[:0], wanted
            if len(fresh):
                self._grow(fresh)
            places = self._place[left], self._place[right]
            if len(self._matrix) < len(self._rows):
                return cut(self._matrix, *places)
        # What is never forgotten is not written again.
        return cut(self._matrix, *places)

    def _grow(self, fresh: np.ndarray) -> None:
        new, old = self._rows[fresh], len(self._known)
        matrix = self._matrix[: old + len(fresh), : old + len(fresh)]
        # Often there is hardly a new one, and all others are to be gathered.
        for part, known in gather(self._rows, self._known):
            np.matmul(known, new.T, out=matrix[part, old:])
        matrix[old:, :old] = matrix[:old, old:].T
        np.matmul(new, new.T, out=matrix[old:, old:])
        self._place[fresh] = np.arange(old, old + len(fresh))
        self._known = np.concatenate([self._known, fresh])


def cut(matrix: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Take some rows and columns: in bands, which stay in the cache from one to the other."""
    taken = np.empty((len(rows), len(columns)), matrix.dtype)
    for start in range(0, len(rows), _BAND):
        band = slice(start, start + _BAND)
        # Numbers are not checked where they are clipped, and the result is not written twice.
        np.take(matrix[rows[band]], columns, axis=1, out=taken[band], mode="clip")
    return taken


def gather(rows: np.ndarray, some: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Some of the rows, a few at a time in one array, which stays in the cache, and their places among the some."""
    space = np.empty((min(len(some), _AT_ONCE), rows.shape[1]), rows.dtype)
    for start in range(0, len(some), _AT_ONCE):
        part = slice(start, min(start + _AT_ONCE, len(some)))
        yield part, np.take(rows, some[part], axis=0, out=space[: part.stop - start], mode="clip")


def remembered(n: int, p: int) -> int:
    """How many of n rows in p coordinates have their products remembered."""
    return min(n, _REMEMBERED * p)


def _iterate(system: Apply, ways: Sequence[Callable[[], Apply]], right: np.ndarray) -> np.ndarray:
    """Conjugate gradients with one preconditioner after the other, each for a few iterations but the last."""
    x, goal = np.zeros_like(right), _FORCING * float(np.linalg.norm(right))
    for way in ways:
        last = way is ways[-1]
        limit = _MAX_ITERATIONS if last else _STALE
        change, right, solved = conjugate_gradients(system, way(), right, goal, limit, patient=last)
        x += change
        if solved:
            break
    return x


def conjugate_gradients(
    system: Apply, precondition: Apply, right: np.ndarray, goal: float, limit: int, *, patient: bool = True
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Solve a symmetric positive definite system by preconditioned conjugate gradients.

    Parameters
    ----------
    system, precondition : callable
        Multiply a vector with the matrix, and nearly with its inverse.
    right : ndarray of shape (p,)
    goal : float
        Norm of the residual with which the solution is good enough.
    limit : int
        Iterations at most.
    patient : bool
        Whether to go on to the limit where the pace so far will not lead to the goal by then.

    Returns
    -------
    solution, residual : ndarray of shape (p,)
    solved : bool
        Whether the goal was reached.
    """
    x, r, product = np.zeros_like(right), right.copy(), 1.0
    direction, start = np.zeros_like(right), math.sqrt(right @ right)
    for iteration in range(limit):
        size = math.sqrt(r @ r)
        if size <= goal:
            return x, r, True
        if not patient and iteration > 1 and not _is_on_course(iteration, limit, size / start, goal / start):
            return x, r, False
        z = precondition(r)
        product, before = float(r @ z), product
        direction = z + (product / before) * direction if iteration else z
        q = system(direction)
        step = product / (direction @ q)
        x += step * direction
        r = r - step * q
    return x, r, math.sqrt(r @ r) <= goal


def _is_on_course(iteration: int, limit: int, reached: float, wanted: float) -> bool:
    """Whether a residual that falls at the same rate is as small as wanted by the limit, or not much later."""
    return math.log(reached) * _HOPE * limit <= math.log(wanted) * iteration


def factorise(make: Callable[[], np.ndarray], ridge: np.ndarray | float) -> Factor:
    """Factorise a matrix plus a ridge, with a larger ridge where rounding makes that indefinite.

    Parameters
    ----------
    make : callable
        Makes the matrix, which is overwritten by its factor, anew.
    ridge : ndarray of shape (p,) or float

    Raises
    ------
    numpy.linalg.LinAlgError
        If the matrix is far from positive semidefinite.
    """
    more = 0.0
    while more < 1e-2:
        matrix = make()
        np.fill_diagonal(matrix, matrix.diagonal() * (1 + more) + ridge)
        try:
            return Factor(matrix)
        except np.linalg.LinAlgError:
            more = 10 * max(more, float(np.finfo(matrix.dtype).eps))
    raise np.linalg.LinAlgError("the matrix is not positive definite, not even with a ridge")


def scaled(matrix: np.ndarray, scale: float) -> np.ndarray:
    """Return a new array, scale * matrix, in the precision of the matrix."""
    return np.asarray(matrix * matrix.dtype.type(scale))


def scatter(values: np.ndarray, where: np.ndarray, n: int) -> np.ndarray:
    """Return an array of n numbers that are 0 but in some places."""
    scattered = np.zeros(n)
    scattered[where] = values
    return scattered


def multiply(rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Products of the rows with a vector, in the precision of the rows, as float64."""
    return np.asarray((rows @ vector.astype(rows.dtype)).astype(np.float64))


def multiply_rows(rows: np.ndarray, some: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Products of some of the rows with a vector."""
    return multiply(rows, vector)[some] if len(some) > _MOST * len(rows) else multiply(rows[some], vector)


def sum_all(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sum of the rows, in their precision, as float64."""
    return np.asarray((weights.astype(rows.dtype) @ rows).astype(np.float64))


def sum_rows(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sum of the rows whose weight is not 0."""
    some = np.flatnonzero(weights)
    return sum_all(rows, weights) if len(some) > _MOST * len(rows) else sum_all(rows[some], weights[some])
