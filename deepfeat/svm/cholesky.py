"""Cholesky factors of large matrices, computed beside one another by threads.

SciPy's own functions hold Python's global lock while LAPACK works. The same routines
are taken here from SciPy's interface for Cython, and called without it.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from scipy.linalg import cython_blas, cython_lapack

#: Fewer right sides than this are solved sooner one by one.
_SEVERAL = 5

_LETTERS = {np.dtype(np.float32): "s", np.dtype(np.float64): "d"}


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
        self._letter = _LETTERS[matrix.dtype]
        info = ctypes.c_int(0)
        _call(cython_lapack, f"{self._letter}potrf", b"U", len(matrix), matrix, len(matrix), info)
        if info.value:
            raise np.linalg.LinAlgError("the matrix is not positive definite")

    def solve(self, right: np.ndarray) -> np.ndarray:
        """Return the inverse of the matrix times a vector of shape (n,), or times each row of an array (m, n)."""
        if right.ndim > 1 and len(right) < _SEVERAL:
            return np.array([self.solve(each) for each in right], self.dtype).reshape(right.shape)
        n, solution = len(self._factor), right.astype(self.dtype, order="C")
        for transposed in (b"T", b"N"):
            if right.ndim == 1:
                _call(cython_blas, f"{self._letter}trsv", b"U", transposed, b"N", n, self._factor, n, solution, 1)
            else:
                shape, one = (n, len(right)), np.ones(1, solution.dtype)
                sides = b"L", b"U", transposed, b"N"
                _call(cython_blas, f"{self._letter}trsm", *sides, *shape, one, self._factor, n, solution, n)
        return solution

    def inverse(self) -> np.ndarray:
        """Return the inverse of the matrix, which takes the place of the factor: nothing can be solved after it.

        It takes longer than the factor, and pays where it is multiplied with often.
        """
        info = ctypes.c_int(0)
        _call(cython_lapack, f"{self._letter}potri", b"U", len(self._factor), self._factor, len(self._factor), info)
        lower = np.tril(self._factor)
        lower += np.triu(lower.T, 1)
        return lower


def _call(module: Any, name: str, *arguments: bytes | int | np.ndarray | ctypes.c_int) -> None:
    """Call a Fortran routine, which takes all of its arguments by reference."""
    passed: list[Any] = []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            passed.append(argument.ctypes.data)
        elif isinstance(argument, bytes):
            passed.append(argument)
        else:
            passed.append(ctypes.byref(argument if isinstance(argument, ctypes.c_int) else ctypes.c_int(argument)))
    kinds = tuple(ctypes.c_char_p if isinstance(argument, bytes) else ctypes.c_void_p for argument in arguments)
    _routine(module, name, kinds)(*passed)


@cache
def _routine(module: Any, name: str, kinds: tuple[Any, ...]) -> Any:
    capsule = module.__pyx_capi__[name]
    api = ctypes.pythonapi
    title = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", api))(capsule)
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", api))
    # A function of this kind releases the global lock while it runs.
    return ctypes.CFUNCTYPE(None, *kinds)(pointer(capsule, title))
