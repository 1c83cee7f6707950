"""What `make build` builds. That it can be installed and used is shown by .ci/smoke."""

from __future__ import annotations

import email
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

import deepfeat

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "deepfeat"
BUILT = shutil.ignore_patterns("*.egg-info", "__pycache__", "auto_examples", "generated", "uses")
SOURCES = ["deepfeat", "tests", "docs", "examples", "benchmarks", ".ci", "Makefile", "MANIFEST.in", "LICENSE"]


def run_build(folder, output, *options):
    # Not isolated: setuptools comes with the extra `test`, and nothing is to be downloaded.
    command = [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", str(output), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the wheel and the source distribution, of a copy, so that the checkout stays clean."""
    copy, output = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=BUILT)
    for file in [file for file in ROOT.iterdir() if file.is_file() and file.name != ".git"]:
        shutil.copy(file, copy)
    run_build(copy, output)
    return output


@pytest.fixture(scope="module")
def wheel(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        yield archive


@pytest.fixture(scope="module")
def sources(built):
    """Names in the source distribution, below its one folder."""
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        return {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in archive.getnames()}


def test_wheel_holds_every_file_of_the_package_as_it_is(wheel):
    files = [file for file in PACKAGE.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == {file.relative_to(ROOT).as_posix() for file in files}
    assert {"deepfeat/py.typed", "deepfeat/report/style.css", "deepfeat/report/script.js"} <= names
    for file in files:
        assert wheel.read(file.relative_to(ROOT).as_posix()) == file.read_bytes()


def test_metadata_of_the_wheel(wheel):
    folder = f"deepfeat-{deepfeat.__version__}.dist-info"
    metadata = email.message_from_bytes(wheel.read(f"{folder}/METADATA"))
    assert metadata["Version"] == deepfeat.__version__
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert {"openvino", "plot", "parquet", "gpu", "lite"} <= set(metadata.get_all("Provides-Extra"))
    assert wheel.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert b"deepfeat = deepfeat.cli:main" in wheel.read(f"{folder}/entry_points.txt")


def test_source_distribution_holds_what_a_packager_needs(sources):
    wanted = [
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "Makefile",
        "setup.cfg",
        "pyproject.toml",
        "conftest.py",
        ".ci/run",
    ]
    wanted += [f"tests/{file.name}" for file in (ROOT / "tests").glob("*.py")]
    wanted += [file.relative_to(ROOT).as_posix() for file in (ROOT / "tests" / "data").rglob("*") if file.is_file()]
    wanted += [file.relative_to(ROOT).as_posix() for file in (ROOT / "docs").glob("*.md")]
    assert not set(wanted) - sources
    assert not [name for name in sources if "__pycache__" in name]


def test_wheel_of_the_checkout_is_that_of_the_source_distribution(built, wheel, tmp_path):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    run_build(next(tmp_path.iterdir()), tmp_path, "--wheel")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as again:
        assert {name: again.read(name) for name in again.namelist()} == {
            name: wheel.read(name) for name in wheel.namelist()
        }


def test_oldest_versions_are_those_of_setup_cfg():
    command = [sys.executable, str(ROOT / ".ci" / "oldest.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    pins = dict(line.split("==") for line in done.stdout.splitlines())
    text = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    assert {"numpy", "tensorflow", "openvino", "pytest", "ruff"} <= pins.keys()
    for name, version in pins.items():
        assert re.search(rf"^    {name}(\[[\w,-]+\])?[>=]={version}(,.*)?( *;.*)?$", text, re.MULTILINE), name


@pytest.mark.parametrize("line", ["numpy", "numpy>1.26", "numpy<3", "numpy<3,>=1.26"])
def test_oldest_versions_ask_for_a_lower_bound(line, tmp_path):
    setup = tmp_path / "setup.cfg"
    setup.write_text(
        f"[metadata]\nname = deepfeat\n[options]\ninstall_requires =\n    {line}\n[options.extras_require]\n"
    )
    oldest = runpy.run_path(str(ROOT / ".ci" / "oldest.py"))["oldest"]
    with pytest.raises(ValueError, match=re.escape(f"setup.cfg asks for {line!r}")):
        oldest(setup)
