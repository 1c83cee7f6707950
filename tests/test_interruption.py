"""A real SIGINT in a process of its own: what is left, what is said, and that the same call goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import deepfeat
from deepfeat.interruption import interruptible

SECONDS, AGAIN, N_IMAGES = 120, 10, 96

thorough = pytest.mark.skipif("DEEPFEAT_KILLS" not in os.environ, reason="run by `make test-faults`")


def start(*command, cwd):
    """Begin a process in a group of its own, which Ctrl-C reaches even if these tests run in the background."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def interrupt(process, ready):
    """Send SIGINT to the whole group, as a terminal does, as soon as something is there, and wait for the end.

    Like a user it is sent again after a while, since Python drops a KeyboardInterrupt that is raised where no exception
    can be handed on, such as in a destructor or a callback from C.
    """
    deadline = time.monotonic() + SECONDS
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    try:
        while time.monotonic() < deadline:
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.communicate(timeout=AGAIN)
        pytest.fail("SIGINT did not end the process")
    finally:
        process.kill()


@pytest.fixture(scope="module")
def photos(tmp_path_factory, example_file):
    example_file("skin.h5")  # has the network converted, which is kept for the processes here
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(N_IMAGES):
        file = folder / "ab"[number % 2] / f"{number:03d}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(file)
    return folder


def n_done(cache):
    return int(deepfeat.open_features(cache).blocks["done"].sum()) if cache.exists() else 0


COMMAND = ("-m", "deepfeat.cli", "extract", "{photos}", "--backbone", "EfficientNetLite0")
SCRIPT = ("-c", "import deepfeat; deepfeat.extract('{photos}', 'EfficientNetLite0', 'features.h5', progress=False)")


@pytest.mark.parametrize(
    "command", [pytest.param(COMMAND, id="command"), pytest.param(SCRIPT, id="script", marks=thorough)]
)
def test_extract_keeps_what_was_computed_and_says_how_to_go_on(photos, tmp_path, command):
    cache, command = tmp_path / "features.h5", [part.format(photos=photos) for part in command]
    process = start(*command, cwd=tmp_path)
    errors = interrupt(process, lambda: n_done(cache) > 0)[1]
    said = "what was computed is in features.h5, and the same call goes on from there"
    if command[0] == "-m":
        assert process.returncode == 130
        assert errors.splitlines()[-1] == f"deepfeat: stopped; {said}"
        assert "Traceback" not in errors
    else:
        assert process.returncode == -signal.SIGINT
        assert errors.splitlines()[-2:] == ["KeyboardInterrupt", said]
    kept = n_done(cache)
    assert 0 < kept < N_IMAGES
    assert deepfeat.verify_features(cache).empty
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.h5"]
    before = deepfeat.open_features(cache)
    ids = before.ready("EfficientNetLite0")
    again = start(*command, cwd=tmp_path)
    assert again.communicate(timeout=SECONDS)
    assert again.returncode == 0
    after = deepfeat.open_features(cache)
    assert after.blocks["done"].tolist() == [N_IMAGES]
    np.testing.assert_array_equal(after.features("EfficientNetLite0", ids), before.features("EfficientNetLite0", ids))


FIT = """
import sys, threading, deepfeat
from deepfeat.cli import main
deepfeat.fit_svm
threading.Timer(0.3, lambda: open("ready", "w").close()).start()
sys.exit(main(["fit", "features.h5", "--kernel", "rbf", "--nested", "--test", "none"]))
"""


def test_fit_says_that_nothing_was_recorded(tmp_path):
    rng = np.random.default_rng(0)
    n = 4000
    table = pd.DataFrame({"image_id": [f"{i:04d}" for i in range(n)], "label": ["a", "b"] * (n // 2)})
    deepfeat.import_features(rng.normal(size=(n, 300)), table, tmp_path / "features.h5", name="noise")
    process = start("-c", FIT, cwd=tmp_path)
    errors = interrupt(process, (tmp_path / "ready").exists)[1]
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("deepfeat: stopped; nothing was recorded")
    assert "Traceback" not in errors
    assert not (tmp_path / "features.ledger").exists()
    assert n_done(tmp_path / "features.h5") == n


@thorough
def test_finetune_keeps_the_epochs_that_are_done(tmp_path, example_file):
    options = ("--backbone", example_file("mine.keras"), "--preprocess", "tf", "--epochs", 5000, "--patience", 5000)
    process = start("-m", "deepfeat.cli", "finetune", example_file("photos"), *options, cwd=tmp_path)
    checkpoint = tmp_path / "finetuned.keras.training" / "last.npz"
    errors = interrupt(process, checkpoint.exists)[1]
    assert process.returncode == 130
    said = "the epochs that are done are kept beside finetuned.keras, and the same call goes on with the next"
    assert errors.splitlines()[-1] == f"deepfeat: stopped; {said}"
    # Neither a traceback nor anything of TensorFlow.
    assert all(line.startswith(("epoch ", "note: ", "deepfeat: ")) for line in errors.splitlines()), errors
    with np.load(checkpoint) as state:
        assert b'"epoch": ' in state["state"].tobytes()
    assert not (tmp_path / "finetuned.keras").exists()


def test_the_outermost_work_has_the_say():
    with pytest.raises(KeyboardInterrupt) as caught, interruptible("outer"), interruptible("inner"):
        raise KeyboardInterrupt
    assert caught.value.__notes__ == ["outer"]
