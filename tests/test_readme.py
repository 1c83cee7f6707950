"""Everything that the README tells a newcomer to type."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from sklearn.datasets import load_digits

import deepfeat.demo
from deepfeat.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a newcomer is, who is patient for a hundred of the digits."""
    digits = load_digits()
    few = SimpleNamespace(images=digits.images[:100], target=digits.target[:100])
    folder = tmp_path_factory.mktemp("newcomer")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(deepfeat.demo, "load_digits", lambda: few)
        yield folder


def test_every_block_is_run_by_one_of_the_tests_below():
    assert [language for language, _ in BLOCKS] == ["sh", "sh", "python"]
    assert [line.split()[0] for line in COMMANDS] == ["pip", "deepfeat", "deepfeat", "deepfeat"]


def test_extras_that_are_installed_exist():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    command, where = shlex.split(COMMANDS[0])[1:]
    assert command == "install"
    assert set(re.fullmatch(r"\.\[([\w,]+)\]", where)[1].split(",")) <= set(setup["options.extras_require"])


def test_commands_run_one_after_the_other(folder, capsys):
    for line in COMMANDS[1:]:
        if "my_images" in line:
            shutil.copytree("deepfeat-demo/digits", "my_images")
        assert main(shlex.split(line)[1:]) == 0, line
    shown = capsys.readouterr().out
    assert re.search(r"^features.h5: 100 images, 10 classes$", shown, re.MULTILINE)
    assert re.search(r"^accuracy +[\d.]+ +[\d.]+ to [\d.]+$", shown, re.MULTILINE)
    assert (folder / "deepfeat-demo" / "report.html").exists()


def test_python_runs_after_the_commands(folder, capsys, caplog):
    caplog.set_level("INFO", "deepfeat")
    names = {}
    exec(compile(dict(BLOCKS)["python"], "README.md", "exec"), names)
    assert "</html>" in (folder / "report.html").read_text(encoding="utf-8")
    assert (names["result"].predictions["fold"] == "test").sum() == 20
    assert names["store"].features("EfficientNetLite1").shape == (100, 1280)
    assert "EfficientNetLite0: 100 done before" in caplog.messages
    assert "EfficientNetLite1: 100 computed" in caplog.messages
    shown = capsys.readouterr().out
    assert re.search(r"^9/0092.png +9$", shown, re.MULTILINE)
    assert re.search(r"^accuracy +[\d.]+ +[\d.]+ to [\d.]+$", shown, re.MULTILINE)


def test_python_has_a_dozen_lines():
    lines = [line for line in dict(BLOCKS)["python"].splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 12


@pytest.mark.parametrize("number", re.findall(r"\d\.\d{3}|\d+(?= s\b)", README))
def test_measured_figures_are_those_of_the_results(number):
    assert number in (ROOT / "docs" / "results" / "ham10000.md").read_text(encoding="utf-8")
