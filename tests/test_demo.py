from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

import deepfeat
from deepfeat.demo import write_spots


@pytest.fixture(scope="module")
def spots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spots")
    write_spots(folder, n_lesions=40, seed=3)
    return folder


def test_spots_are_a_data_set_that_can_be_read(spots):
    table = deepfeat.read_csv(spots / "labels.csv", spots / "images", group="lesion")
    lesions = table.drop_duplicates("group")
    assert lesions["label"].value_counts().to_dict() == {"nevus": 26, "keratosis": 8, "melanoma": 6}
    assert set(table.groupby("group").size()) == {1, 2, 3, 4}
    assert table.groupby("group")["label"].nunique().max() == 1
    for path in table["path"]:
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("RGB", (96, 96))


def test_spots_are_those_of_the_seed(spots, tmp_path):
    write_spots(tmp_path / "again", n_lesions=40, seed=3)
    write_spots(tmp_path / "other", n_lesions=20, seed=4)
    name = "images/spot0005.png"
    assert (tmp_path / "again" / name).read_bytes() == (spots / name).read_bytes()
    assert (tmp_path / "other" / name).read_bytes() != (spots / name).read_bytes()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "again" / "labels.csv"), pd.read_csv(spots / "labels.csv"))


def test_spots_of_one_lesion_are_other_pictures(spots):
    table = deepfeat.read_csv(spots / "labels.csv", spots / "images", group="lesion")
    assert len({Path(path).read_bytes() for path in table["path"]}) == len(table)
