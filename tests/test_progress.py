from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest
import tqdm.auto
import tqdm.std

from deepfeat import progress
from deepfeat.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(bar, steps):
    for _ in range(steps):
        bar.update(1)
    bar.close()


@pytest.fixture
def write_to(monkeypatch):
    def to(file):
        monkeypatch.setattr(sys, "stderr", file)
        return file

    return to


def test_terminal_has_a_bar_that_moves(write_to):
    terminal = write_to(Terminal())
    run(progress_bar(50, "NetA", "image", shown=True), 50)
    assert "\r" in terminal.getvalue()
    assert "50/50" in terminal.getvalue()


def test_notebook_has_tqdms_bar_though_its_stderr_is_no_terminal(write_to, monkeypatch):
    output = write_to(io.StringIO())
    kernel = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    run(progress_bar(50, "NetA", "image", shown=True), 50)
    assert "\r" in output.getvalue()


@pytest.mark.parametrize("shell", [None, SimpleNamespace(config={})])
def test_ipython_in_a_pipe_is_no_notebook(write_to, monkeypatch, shell):
    log = write_to(io.StringIO())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    run(progress_bar(50, "NetA", "image", shown=True), 50)
    assert log.getvalue() == ""


def test_log_has_nothing_of_what_is_soon_done(write_to):
    log = write_to(io.StringIO())
    run(progress_bar(100_000, "NetA", "image", shown=True), 100_000)
    assert log.getvalue() == ""


@pytest.mark.parametrize("leave", [True, False])
def test_log_has_a_line_for_each_interval(write_to, monkeypatch, leave):
    clock = iter(range(0, 10_000_000, 7))  # seven seconds for each image
    monkeypatch.setattr(tqdm.std, "time", lambda: next(clock))
    log = write_to(io.StringIO())
    run(progress_bar(300, "NetA", "image", shown=True, leave=leave), 300)
    text = log.getvalue()
    assert "\r" not in text
    assert "\x1b" not in text
    lines = text.splitlines()
    assert all(line.startswith("NetA: ") and "of 300 (" in line and "left" in line for line in lines)
    counts = [int(line.split()[1]) for line in lines]
    assert counts == sorted(counts)
    intervals = next(clock) / progress.LOG_INTERVAL
    assert intervals / 2 <= len(lines) <= intervals + 1
    assert (counts[-1] == 300) == leave


def test_log_tells_the_time_left_at_the_pace_of_the_last_interval(write_to, monkeypatch):
    now = 0.0
    monkeypatch.setattr(tqdm.std, "time", lambda: now)
    log = write_to(io.StringIO())
    bar = progress_bar(1_000, "NetA", "image", shown=True)
    # 500 images that were stored before take a minute, and each 30 others another.
    for images, seconds in ((500, 61.0), (30, 60.0), (30, 60.0)):
        now += seconds
        bar.update(images)
    bar.close()
    last = log.getvalue().splitlines()[2]
    assert last.startswith("NetA: 560 of 1000 (56 %)")
    # 440 images are left, of which 30 take a minute.
    assert " 0.50 image/s," in last
    assert last.endswith(" 14:40 left")


@pytest.mark.parametrize("file", [Terminal(), io.StringIO()])
def test_nothing_is_written_where_nothing_is_to_be_shown(write_to, file):
    write_to(file)
    run(progress_bar(10, "NetA", "image", shown=False), 10)
    assert file.getvalue() == ""


def test_a_process_without_standard_error_goes_on(write_to, monkeypatch):
    write_to(None)
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0.0)
    run(progress_bar(10, "NetA", "image", shown=True), 10)
