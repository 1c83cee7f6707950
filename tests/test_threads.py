"""Threads that take over what others have not begun."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError
from functools import partial

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from deepfeat.svm import threads
from deepfeat.svm.threads import give_way, in_threads


def nested(n_parts, number):
    """A task that sums what its parts give."""
    return sum(in_threads([partial(int, number * part) for part in range(n_parts)], 1))


@pytest.mark.parametrize("at_once", [None, 1, 2, 3, 7])
@pytest.mark.parametrize("n_threads", [1, 2, 3, 8])
def test_results_are_in_order(n_threads, at_once):
    found = in_threads((partial(nested, 5, number) for number in range(7)), n_threads, at_once)
    assert found == [10 * number for number in range(7)]


def test_no_tasks():
    assert in_threads([], 3) == []
    assert in_threads([partial(nested, 0, 1)], 3) == [0]


def test_each_thread_has_one_blas_thread():
    np.ones((4, 4)) @ np.ones((4, 4))
    before = [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]
    inside = in_threads([lambda: [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]], 2)
    assert set(inside[0]) == {1}
    assert [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"] == before


def test_a_thread_with_nothing_to_do_takes_over_parts():
    """Of one task with two parts, which wait for one another."""
    both = threading.Barrier(2)
    parts = [partial(both.wait, 60)] * 2
    assert sorted(in_threads([partial(in_threads, parts, 1)], 2)[0]) == [0, 1]


def test_no_more_than_so_many_at_once():
    going, most, lock = 0, 0, threading.Lock()

    def task():
        nonlocal going, most
        with lock:
            going += 1
            most = max(most, going)
        time.sleep(0.01)
        with lock:
            going -= 1

    in_threads([task] * 9, 4, 2)
    assert most == 2


def test_those_that_give_way_take_turns():
    """Five of four steps each, of which no more than two are taken at a time."""
    going, most, begun, steps, lock = 0, 0, [], [], threading.Lock()

    def task(number):
        nonlocal going, most
        begun.append(number)
        while len(begun) < 5:
            time.sleep(0.001)
            give_way()
        for step in range(4):
            with lock:
                going += 1
                most = max(most, going)
                steps.append(step)
            time.sleep(0.01)
            with lock:
                going -= 1
            give_way()
        return number

    assert in_threads([partial(task, number) for number in range(5)], 2, 5) == [0, 1, 2, 3, 4]
    assert most == 2
    # Two by two, the first would end before the third begins.
    assert steps.index(3) >= 10


def test_way_is_given_to_parts_that_another_has_begun():
    """Which wait for one another, and so for a turn of those whose parts they are."""

    def task():
        give_way()
        return sum(in_threads([partial(time.sleep, 0.005)] * 4 + [give_way], 1) == [None] * 5 for _ in range(5))

    assert in_threads([task] * 4, 2, 4) == [5] * 4


def test_nothing_gives_way_outside_of_threads():
    give_way()
    assert in_threads([give_way, give_way], 1) == [None, None]


def test_failure_ends_those_that_give_way():
    ended = []

    def fail():
        raise ValueError("no such row")

    def task():
        try:
            for _ in range(1000):
                time.sleep(0.005)
                give_way()
        except CancelledError:
            ended.append(True)
            raise

    with pytest.raises(ValueError, match="no such row"):
        in_threads([task, task, fail], 2, 3)
    assert ended == [True, True]


@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_failure_is_raised_and_ends_the_rest(n_threads):
    begun = []

    def task(number):
        begun.append(number)
        if number == 1:
            raise ValueError("no such row")
        in_threads([partial(time.sleep, 0.01)] * 5, 1)

    with pytest.raises(ValueError, match="no such row"):
        in_threads([partial(task, number) for number in range(40)], n_threads)
    assert len(begun) < 10


def test_failure_of_a_part_is_raised():
    def fail():
        raise ValueError("a part")

    with pytest.raises(ValueError, match="a part"):
        in_threads([partial(in_threads, [partial(int, 1), fail, partial(int, 2)], 1)], 3)


def test_parts_that_come_after_a_failure_are_not_begun():
    failed, begun, ended = threading.Event(), [], []

    def fail():
        failed.set()
        raise ValueError("no such row")

    def late():
        failed.wait()
        # By then no thread takes anything more.
        time.sleep(0.2)
        try:
            in_threads([partial(begun.append, number) for number in range(3)], 1)
        except CancelledError:
            ended.append(True)
            raise

    with pytest.raises(ValueError, match="no such row"):
        in_threads([late, fail], 2)
    assert (begun, ended) == ([], [True])


def test_interrupt_ends_parts_that_have_not_begun(monkeypatch):
    """As Ctrl-C does, which the waiting thread gets."""
    began, ended = threading.Event(), []

    def part():
        began.set()
        time.sleep(0.05)

    def task():
        try:
            in_threads([part] * 200, 1)
        except CancelledError:
            ended.append(True)
            raise

    def interrupt(*given, **more):
        if threading.current_thread() is not threading.main_thread():
            return waited(*given, **more)
        began.wait()
        raise KeyboardInterrupt

    waited = threads.wait
    monkeypatch.setattr(threads, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        in_threads([task], 2)
    assert ended == [True]
