"""A kept factor, used for rows that came and went since it was made."""

from __future__ import annotations

import numpy as np
import pytest

from deepfeat.svm.bordered import Bordered
from deepfeat.svm.cholesky import Factor

N = 60


def setting(dtype=np.float64, known=range(5, 40)):
    rows = np.random.default_rng(0).normal(size=(N, 80)).astype(dtype)
    ridge = np.linspace(0.5, 2, N)
    known = np.array(known)
    gram = lambda left, right: rows[left] @ rows[right].T  # noqa: E731
    matrix = gram(known, known) + np.diag(ridge[known]).astype(dtype)
    return rows.astype(np.float64), ridge, Bordered(N, known, Factor(matrix), gram)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 1e-4), (np.float64, 1e-10)])
@pytest.mark.parametrize(
    ("wanted", "changes"),
    [
        (range(5, 40), 0),
        (range(7, 40), 2),
        (range(5, 43), 3),
        ([1, *range(8, 30), 32, *range(34, 45)], 1 + 3 + 2 + 1 + 5),
        ([0, 59], 35 + 2),
    ],
    ids=["none", "gone", "come", "both", "all"],
)
def test_inverse_is_that_of_the_wanted_rows(wanted, changes, dtype, rtol):
    rows, ridge, bordered = setting(dtype)
    wanted = np.array(wanted)
    assert bordered.count_changes(wanted) == changes
    matrix = rows[wanted] @ rows[wanted].T + np.diag(ridge[wanted])
    right = np.random.default_rng(1).normal(size=len(wanted))
    found = bordered.inverse(wanted, ridge[wanted])(right)
    expected = np.linalg.solve(matrix, right)
    np.testing.assert_allclose(found, expected, atol=rtol * np.abs(expected).max())


def test_rows_that_come_and_go_again_and_again():
    rows, ridge, bordered = setting()
    rng = np.random.default_rng(2)
    for _ in range(10):
        wanted = np.flatnonzero(rng.random(N) < 0.5)
        matrix = rows[wanted] @ rows[wanted].T + np.diag(ridge[wanted])
        right = rng.normal(size=len(wanted))
        np.testing.assert_allclose(bordered.inverse(wanted, ridge[wanted])(right), np.linalg.solve(matrix, right))


def test_each_row_is_solved_for_once(monkeypatch):
    solved = []
    solve = Factor.solve
    monkeypatch.setattr(Factor, "solve", lambda self, right: solved.append(right.shape) or solve(self, right))
    _, ridge, bordered = setting()
    for wanted in ([*range(7, 40), 50], range(8, 40), [*range(7, 40), 50]):
        bordered.inverse(np.array(wanted), ridge[np.array(wanted)])
    assert [shape for shape in solved if len(shape) > 1] == [(3, 35), (1, 35)]
