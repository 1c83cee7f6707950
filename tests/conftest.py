"""Small synthetic feature stores, made without any network."""

from __future__ import annotations

import hashlib
import zlib

import numpy as np
import pandas as pd
import pytest

from deepfeat.store import DONE, RECORD, StoreWriter, open_features

COLUMNS = ["image_id", "path", "label", "group", "split"]


@pytest.fixture(scope="session")
def make_spec():
    """Everything that decides a block's numbers, as `Backbone.specs` says it, with changes."""

    def make(backbone="NetA", **changes):
        return {
            "backbone": backbone,
            "weights": "0" * 64,
            "layer": None,
            "pooling": "avg",
            "input_size": [224, 224],
            "resize": "squash",
            "pixels": 3,
            "preprocessing": {"channels": "rgb", "mean": [127.5] * 3, "std": [127.5] * 3},
            "precision": "float32",
            "dtype": "float32",
            "view": "original",
            **changes,
        }

    return make


@pytest.fixture(scope="session")
def make_table():
    """A table of images named img000, img001, …; a column is a list, or one value for all."""

    def make(n_images, start=0, **columns):
        ids = columns.pop("image_id", [f"img{i:03d}" for i in range(start, start + n_images)])
        table = pd.DataFrame({"image_id": ids, "path": [f"/photos/{i}.png" for i in ids]}, dtype=object)
        for name in COLUMNS[2:]:
            table[name] = pd.Series(columns.get(name), index=table.index, dtype=object)
        return table

    return make


@pytest.fixture(scope="session")
def make_records():
    """Records of images, whose content is known by any text."""

    def make(contents, state=DONE, reason=b""):
        records = np.zeros(len(contents), RECORD)
        records["state"], records["reason"] = state, reason
        for record, content in zip(records, contents, strict=True):
            digest = hashlib.sha256(str(content).encode()).digest()
            record["digest"] = np.frombuffer(digest, np.uint8)
            record["size"], record["mtime_ns"] = zlib.crc32(digest), 10**18 + zlib.adler32(digest)
        return records

    return make


@pytest.fixture(scope="session")
def build_store(make_records):
    """A store of one table and blocks [(spec, features), …], all rows done; contents default to the image ids."""

    def build(path, table, blocks, contents=None):
        with StoreWriter(path) as writer:
            rows = writer.add_images(table)
            for spec, features in blocks:
                block = writer.add_block(spec, features.shape[1:], {"keras": "3"})
                writer.write(block, rows, features, make_records(contents or table["image_id"].tolist()))
        return open_features(path)

    return build


def pytest_configure(config):
    """Let no warning of data pass; named in pyproject.toml, it would be imported before coverage is measured."""
    config.addinivalue_line("filterwarnings", "error::deepfeat.errors.DataWarning")


@pytest.fixture
def random_features():
    return lambda *shape: np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="session")
def cluster(conversions):
    """Two workers in processes of their own, which find converted networks where the tests keep them."""
    reason = "NO CLUSTER TESTS: the package distributed is missing"
    dask_distributed = pytest.importorskip("distributed", reason=reason)
    options = {"dashboard_address": ":0", "memory_limit": 0}
    with dask_distributed.LocalCluster(n_workers=2, threads_per_worker=1, **options) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def client(cluster):
    import distributed

    with distributed.Client(cluster) as client:
        yield client
