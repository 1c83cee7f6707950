"""The Python on the how-to pages runs; where it runs a network, in `make docs` alone."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import deepfeat
from deepfeat.demo import write_spots

PAGES = Path(__file__).parents[1] / "docs" / "howto"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LISTED = (PAGES / "index.md").read_text(encoding="utf-8").partition(":hidden:")[2]
NAMES = re.findall(r"^([\w-]+)$", LISTED, re.MULTILINE)
#: Pages that run networks, which takes a minute.
SLOW = {
    "compute-features",
    "use-your-network",
    "choose-layers",
    "make-it-faster",
    "check-a-store",
    "classify-new-images",
}
ALL = bool(os.environ.get("DEEPFEAT_PAGES"))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The folder that the pages speak of; features are drawn where networks are not run."""
    folder = tmp_path_factory.mktemp("howto")
    write_spots(folder, n_lesions=80)
    table = deepfeat.read_csv(folder / "labels.csv", folder / "images", group="lesion")
    if ALL:
        deepfeat.extract(table, "EfficientNetLite0", folder / "features.h5", progress=False)
    else:
        rng = np.random.default_rng(0)
        kinds = {label: rng.normal(size=24) for label in sorted(set(table["label"]))}
        drawn = np.stack([kinds[label] + rng.normal(0, 2, 24) for label in table["label"]])
        deepfeat.import_features(drawn, table, folder / "features.h5", name="EfficientNetLite0")
    return folder


def code_of(name):
    return BLOCK.findall((PAGES / f"{name}.md").read_text(encoding="utf-8"))


def test_every_page_is_listed():
    assert sorted(NAMES) == sorted(page.stem for page in PAGES.glob("*.md") if page.stem != "index")
    assert set(NAMES) >= SLOW


@pytest.mark.parametrize("name", [name for name in NAMES if code_of(name)])
def test_python_of_a_page_runs(name, workplace, monkeypatch):
    if name in SLOW and not ALL:
        pytest.skip("runs a network: `make docs` does, by DEEPFEAT_PAGES=1")
    monkeypatch.chdir(workplace)
    namespace = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", deepfeat.DataWarning)
        for block in code_of(name):
            exec(compile(block, f"{name}.md", "exec"), namespace)
