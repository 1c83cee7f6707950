"""The inverse of a Gram matrix with a ridge, for rows that come and go, from the factor that some of them had."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deepfeat.svm.cholesky import Factor

#: Products of some rows with others, of shape (m, k), for the numbers of m rows and of k.
Products = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Bordered:
    """A factor made for some rows, and what it takes to use it for others.

    With A = K + ridge of the rows that were known, a row that has left is a variable that must be 0, and one that has
    come is a variable more. Both border the matrix by a column u: a unit vector, or the row's products with
    the known ones. The bordered system is solved by way of its Schur complement (Hager 1989, Updating the inverse of
    a matrix, SIAM Review 31), for which A⁻¹ u is computed once for each row, when it first comes or goes.

    Parameters
    ----------
    n : int
        Number of all rows.
    known : ndarray of int
        Numbers of those that were known, which ascend.
    factor : Factor
        Of their Gram matrix with a ridge.
    gram : callable
        Products of the rows.
    """

    def __init__(self, n: int, known: np.ndarray, factor: Factor, gram: Products) -> None:
        self._known, self._factor, self._gram = known, factor, gram
        #: Where among the known a row is, and where among the columns that have been solved for; -1 for nowhere.
        self._place, self._column = np.full(n, -1), np.full(n, -1)
        self._place[known] = np.arange(len(known))
        self._solved = np.empty((0, len(known)), factor.dtype)

    def count_changes(self, wanted: np.ndarray) -> int:
        """How many rows have come and gone."""
        both = int(np.count_nonzero(self._place[wanted] >= 0))
        return len(wanted) + len(self._known) - 2 * both

    def inverse(self, wanted: np.ndarray, ridge: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Return a function that multiplies with the inverse of the wanted rows' matrix.

        Parameters
        ----------
        wanted : ndarray of int
            Numbers of the rows, which ascend.
        ridge : ndarray of the same shape
            What counts is that of rows that have come.
        """
        place = self._place[wanted]
        stays, comes = place >= 0, np.flatnonzero(place < 0)
        left = np.ones(len(self._known), bool)
        left[place[stays]] = False
        gone = np.flatnonzero(left)
        if not len(gone) and not len(comes):
            return self._factor.solve
        place, fresh, n_gone = place[stays], wanted[comes], len(gone)
        solved = self._solve(np.concatenate([self._known[gone], fresh]))
        complement = np.empty((len(solved), len(solved)))
        complement[:n_gone] = -solved[:, gone].T
        complement[n_gone:] = -self._gram(fresh, self._known) @ solved.T
        complement[n_gone:, n_gone:] += self._gram(fresh, fresh) + np.diag(ridge[comes])
        border = np.linalg.inv(complement)

        def apply(r: np.ndarray) -> np.ndarray:
            right = np.zeros(len(self._known), solved.dtype)
            right[place] = r[stays]
            y = -(solved @ right).astype(np.float64)
            y[n_gone:] += r[comes]
            y = border @ y
            z = np.empty(len(r))
            z[stays] = (self._factor.solve(right) - y.astype(solved.dtype) @ solved)[place]
            z[comes] = y[n_gone:]
            return z

        return apply

    def _solve(self, numbers: np.ndarray) -> np.ndarray:
        """Solve for the columns of some rows, each of them once."""
        new = numbers[self._column[numbers] < 0]
        if len(new):
            place = self._place[new]
            inside = np.flatnonzero(place >= 0)
            columns = np.zeros((len(new), len(self._known)), self._solved.dtype)
            columns[inside, place[inside]] = 1
            columns[place < 0] = self._gram(new[place < 0], self._known)
            self._column[new] = len(self._solved) + np.arange(len(new))
            self._solved = np.concatenate([self._solved, self._factor.solve(columns)])
        solved: np.ndarray = self._solved[self._column[numbers]]
        return solved
