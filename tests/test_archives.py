"""Stores written by earlier versions, which every later version reads."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

import deepfeat
from deepfeat.store import DONE, FAILED, MISSING, RECORD, StoreWriter

ARCHIVES = Path(__file__).parent / "data" / "archives"

FULL = {
    "backbone": "MobileNetV2",
    "weights": "sha256:" + 64 * "0",
    "layer": None,
    "pooling": "avg",
    "input_size": [224, 224],
    "resize": "squash",
    "pixels": 1,
    "preprocessing": {"channels": "rgb", "mean": [127.5, 127.5, 127.5], "std": [127.5, 127.5, 127.5]},
    "precision": "float32",
    "dtype": "float32",
    "view": "original",
}
HALF = {**FULL, "layer": "block_1", "pooling": None, "dtype": "float16"}
VERSIONS = {"deepfeat": "0.1.0", "keras": "3.15.1"}


def images(start, stop):
    import pandas as pd

    ids = [f"Nävus {i}.jpg" for i in range(start, stop)]
    return pd.DataFrame(
        {
            "image_id": ids,
            "path": [f"/photos/{i}" for i in ids],
            "label": ["NV", "MEL", None, "NV", "MEL"][start:stop],
            "group": ["L1", "L2", "L2", None, "L3"][start:stop],
            "split": ["train", "test", None, "train", "val"][start:stop],
        },
        dtype=object,
    )


def records(rows):
    described = np.zeros(len(rows), RECORD)
    for record, row in zip(described, rows, strict=True):
        record["size"], record["mtime_ns"] = 1000 + row, 10**18 + row
        record["digest"] = np.frombuffer(hashlib.sha256(bytes([row])).digest(), np.uint8)
    return described


def full(rows):
    return (np.arange(6, dtype=np.float32) / 7 + np.array(rows, np.float32)[:, None]).astype(np.float32)


def half(rows):
    return np.stack([np.full((2, 2, 3), row / 3, np.float32) for row in rows])


def write(path):
    """Make an archive: two segments, two types, all three states.

    python -c "import sys; sys.path.insert(0, 'tests'); import test_archives as t; t.write(t.ARCHIVES / 'v1.h5')"
    """
    with StoreWriter(path) as writer:
        writer.add_images(images(0, 3))
        block = writer.add_block(FULL, (6,), VERSIONS)
        writer.write(block, [0, 1], full([0, 1]), records([0, 1]))
        failed = records([2])
        failed["state"], failed["reason"] = FAILED, "damaged: überall".encode()
        writer.write_records(block, [2], failed)
        writer.add_images(images(3, 5))
        block = writer.add_block(FULL, (6,), VERSIONS)
        writer.write(block, [4], full([4]), records([4]))
        other = writer.add_block(HALF, (2, 2, 3), VERSIONS)
        writer.write(other, [0, 3, 4], half([0, 3, 4]), records([0, 3, 4]))


@pytest.fixture(params=sorted(path.name for path in ARCHIVES.glob("*.h5")))
def archive(request, tmp_path):
    copy = tmp_path / request.param
    copy.write_bytes((ARCHIVES / request.param).read_bytes())
    return copy


def test_there_is_an_archive_of_every_format_version():
    from deepfeat.store.layout import FORMAT_VERSION

    assert [p.name for p in sorted(ARCHIVES.glob("*.h5"))] == [f"v{v}.h5" for v in range(1, FORMAT_VERSION + 1)]


def test_archive_is_read(archive):
    store = deepfeat.open_features(archive)
    expected = images(0, 5)
    assert store.table.astype(object).where(store.table.notna(), None).to_dict("list") == expected.to_dict("list")
    assert store.blocks["name"].tolist() == ["MobileNetV2", "MobileNetV2:block_1"]
    assert store.blocks["spec"].tolist() == [FULL, HALF]
    assert store.blocks["versions"].tolist() == [VERSIONS, VERSIONS]
    assert store.blocks[["dim", "dtype", "done", "missing", "failed"]].to_numpy().tolist() == [
        [6, "float32", 3, 1, 1],
        [12, "float16", 3, 2, 0],
    ]
    assert store.records("MobileNetV2")["state"].tolist() == [DONE, DONE, FAILED, MISSING, DONE]
    assert store.failures.to_numpy().tolist() == [["Nävus 2.jpg", "MobileNetV2", "damaged: überall"]]
    key = store.find("MobileNetV2").key
    ids = expected["image_id"]
    np.testing.assert_array_equal(store.features(key, ids[[4, 0, 1]]), full([4, 0, 1]))
    np.testing.assert_array_equal(
        store.features("MobileNetV2:block_1", ids[[0, 3, 4]]), half([0, 3, 4]).astype(np.float16).astype(np.float32)
    )
    stored, given = store.records(key)[[0, 1, 4]], records([0, 1, 4])
    for field in ("size", "mtime_ns", "digest"):
        np.testing.assert_array_equal(stored[field], given[field])


def test_archive_is_extended(archive):
    with StoreWriter(archive) as writer:
        block = writer.add_block(FULL, (6,), VERSIONS)
        writer.write(block, [2, 3], full([2, 3]), records([2, 3]))
    store = deepfeat.open_features(archive)
    np.testing.assert_array_equal(store.features(store.find("MobileNetV2").key), full(range(5)))
    assert deepfeat.verify_features(archive).empty


# The page of the format holds what somebody needs who reads a store in another language


@pytest.fixture(scope="module")
def reader():
    """The reader that docs/store-format.md ends with."""
    page = (Path(__file__).parents[1] / "docs" / "store-format.md").read_text(encoding="utf-8")
    namespace = {"page": page}
    exec(compile(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], "store-format.md", "exec"), namespace)
    return namespace


def test_checksums_of_the_page(reader):
    rows = re.findall(r"^\| ([\d, ]+)(?: \(.*\))? \| 0x([0-9A-F]{8}) \|$", reader["page"], re.MULTILINE)
    assert len(rows) >= 4
    for words, checksum in rows:
        values = np.array([[int(word) for word in words.split(",")]], np.uint32)
        assert reader["checksums"](values)[0] == int(checksum, 16)


def test_reader_of_the_page_reads_the_archive(reader):
    store = deepfeat.open_features(ARCHIVES / "v1.h5")
    table, blocks = reader["read_store"](ARCHIVES / "v1.h5")
    assert table["image_id"] == store.table["image_id"].tolist()
    assert [value or None for value in table["label"]] == store.table["label"].tolist()
    assert sorted(blocks) == sorted(store.blocks["key"])
    for key, (spec, states, features) in blocks.items():
        assert spec == store.find(key).spec
        known = store.records(key)["state"]
        assert states.tolist() == known[: len(states)].tolist()
        assert not known[len(states) :].any()
        ready = store.ready(key)
        np.testing.assert_array_equal(features[states == DONE], store.features(key, ready))


@pytest.mark.parametrize("place", ["records", "features"])
def test_reader_of_the_page_finds_damage(reader, tmp_path, place):
    path = tmp_path / "v1.h5"
    path.write_bytes((ARCHIVES / "v1.h5").read_bytes())
    with h5py.File(path) as file:
        offset = next(iter(file["blocks"].values()))[f"segments/000000/{place}"].id.get_offset()
    with open(path, "r+b") as file:
        file.seek(offset + 16 * (place == "records"))
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(AssertionError):
        reader["read_store"](path)
