"""Cholesky factors of large matrices, computed beside one another by threads."""

from __future__ import annotations

import ctypes

import numpy as np
from scipy.linalg import cython_blas, cython_lapack

from deepfeat.svm.fortran import LETTERS, call

#: Fewer right sides than this are solved sooner one by one.
_SEVERAL = 5


class Factor:
    """The Cholesky factor of a symmetric positive definite matrix.

    Parameters
    ----------
    matrix : ndarray of shape (n, n), float32 or float64, C-contiguous
        Overwritten.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the matrix is not positive definite in its precision.
    """

    def __init__(self, matrix: np.ndarray) -> None:
        self._factor, self.dtype = matrix, matrix.dtype
        self._letter = LETTERS[matrix.dtype]
        info = ctypes.c_int(0)
        call(cython_lapack, f"{self._letter}potrf", b"U", len(matrix), matrix, len(matrix), info)
        if info.value:
            raise np.linalg.LinAlgError("the matrix is not positive definite")

    def solve(self, right: np.ndarray) -> np.ndarray:
        """Return the inverse of the matrix times a vector of shape (n,), or times each row of an array (m, n)."""
        if right.ndim > 1 and len(right) < _SEVERAL:
            return np.array([self.solve(each) for each in right], self.dtype).reshape(right.shape)
        n, solution = len(self._factor), right.astype(self.dtype, order="C")
        for transposed in (b"T", b"N"):
            if right.ndim == 1:
                call(cython_blas, f"{self._letter}trsv", b"U", transposed, b"N", n, self._factor, n, solution, 1)
            else:
                shape, one = (n, len(right)), np.ones(1, solution.dtype)
                sides = b"L", b"U", transposed, b"N"
                call(cython_blas, f"{self._letter}trsm", *sides, *shape, one, self._factor, n, solution, n)
        return solution

    def inverse(self) -> np.ndarray:
        """Return the inverse of the matrix, which takes the place of the factor: nothing can be solved after it.

        It takes longer than the factor, and pays where it is multiplied with often.
        """
        info = ctypes.c_int(0)
        call(cython_lapack, f"{self._letter}potri", b"U", len(self._factor), self._factor, len(self._factor), info)
        lower = np.tril(self._factor)
        lower += np.triu(lower.T, 1)
        return lower
