"""Shells asked for real what may come next."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from deepfeat.cli import main

pytest.importorskip("argcomplete")


def ask(line, cwd):
    """What argcomplete answers a shell for a command line."""
    answer = cwd / "answer"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer)}
    environment = {**os.environ, **asked, "COMP_LINE": line, "COMP_POINT": str(len(line))}
    subprocess.run([sys.executable, "-m", "deepfeat.cli"], cwd=cwd, env=environment, check=True, capture_output=True)
    return [word.strip() for word in answer.read_text().split("\n") if word.strip()]


def test_commands_and_options_are_completed(tmp_path):
    assert {"extract", "fit", "store", "completion"} <= set(ask("deepfeat ", tmp_path))
    assert ask("deepfeat fit features.h5 --ker", tmp_path) == ["--kernel"]


def test_networks_and_blocks_are_completed(example_file, tmp_path):
    assert set(ask("deepfeat extract photos --backbone EfficientNetLite", tmp_path)) == {
        f"EfficientNetLite{number}" for number in range(3)
    }
    store = example_file("skin.h5")
    assert ask(f"deepfeat fit {store} --backbone ", tmp_path) == ["EfficientNetLite0", "colour"]
    assert ask("deepfeat fit nothing.h5 --backbone ", tmp_path) == []


#: How each shell completes `deepfeat comple` after it has read what `deepfeat completion` printed.
SHELLS = {
    "bash": "source ./code; COMP_WORDS=(deepfeat comple); COMP_CWORD=1; COMP_LINE='deepfeat comple'; COMP_POINT=15; "
    'COMP_TYPE=9; _python_argcomplete deepfeat; echo "${COMPREPLY[@]}"',
    "fish": "source ./code; complete --do-complete 'deepfeat comple'",
    "zsh": "autoload -U compinit; compinit -u; source ./code; whence -w _python_argcomplete",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_take_the_code(shell, tmp_path, capsys):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert main(["completion", shell]) == 0
    (tmp_path / "code").write_text(capsys.readouterr().out)
    program = tmp_path / "deepfeat"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m deepfeat.cli "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    run = subprocess.run(
        [shell, "-c", SHELLS[shell]], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert {"completion", "function"} & set(run.stdout.split()), run.stderr


def test_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    assert main(["completion", "bash"]) == 1
    assert "pip install 'deepfeat[completion]'" in capsys.readouterr().err


def test_unknown_shell_is_wrong_use(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["completion", "powershell"])
    assert caught.value.code == 2
