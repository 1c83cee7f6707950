"""Routines of BLAS and LAPACK that work beside one another in threads, and write where they are told to.

SciPy's own functions hold Python's global lock while they work, and NumPy's make new arrays. The same routines are
taken here from SciPy's interface for Cython, and called without either.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from scipy.linalg import cython_blas

#: What names of routines begin with.
LETTERS = {np.dtype(np.float32): "s", np.dtype(np.float64): "d"}


def add_products(matrix: np.ndarray, rows: np.ndarray, factor: float) -> None:
    """Add factor * rowsᵀ rows to the lower triangle of a matrix.

    Parameters
    ----------
    matrix : ndarray of shape (p, p), float32 or float64, C-contiguous
        Changed in place. The rest of it stays as it is.
    rows : ndarray of shape (n, p), of the same type, C-contiguous
    factor : float
    """
    (n, p), dtype = rows.shape, matrix.dtype
    scale, one = np.full(1, factor, dtype), np.ones(1, dtype)
    # Fortran reads rows as columns, and the lower triangle as the upper one.
    call(cython_blas, f"{LETTERS[dtype]}syrk", b"U", b"N", p, n, scale, rows, p, one, matrix, p)


def multiply_symmetric(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Multiply a symmetric matrix, of which the lower triangle is read, with a vector of shape (p,) of its type."""
    p, product = len(matrix), np.zeros(len(matrix), matrix.dtype)
    one, x = np.ones(1, matrix.dtype), np.ascontiguousarray(vector, matrix.dtype)
    call(cython_blas, f"{LETTERS[matrix.dtype]}symv", b"U", p, one, matrix, p, x, 1, one, product, 1)
    return product


def call(module: Any, name: str, *arguments: bytes | int | np.ndarray | ctypes.c_int) -> None:
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
