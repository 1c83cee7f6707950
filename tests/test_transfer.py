from __future__ import annotations

import hashlib

import h5py
import numpy as np
import pandas as pd
import pytest

import deepfeat
from deepfeat.errors import DataError, StoreError, UsageError
from deepfeat.store import DONE, FAILED, StoreWriter, block_key


@pytest.fixture
def make_part(tmp_path, build_store, make_spec, make_table, random_features):
    """A store of images [start, stop) with the features that these images have everywhere."""

    def make(name, start, stop, backbones=("NetA",), **columns):
        features = random_features(40, 3)
        blocks = [(make_spec(b), features[start:stop] * (1 + i)) for i, b in enumerate(backbones)]
        table = make_table(stop - start, start=start, **{"label": ["ab"[i % 2] for i in range(start, stop)], **columns})
        return build_store(tmp_path / name, table, blocks)

    return make


# Merging


def test_merge_of_disjoint_stores_is_the_store_of_all(make_part, tmp_path):
    parts = [make_part("a.h5", 0, 15), make_part("b.h5", 15, 40)]
    merged = deepfeat.merge_features([p.path for p in parts], tmp_path / "all.h5")
    whole = make_part("whole.h5", 0, 40)
    assert merged.table.equals(whole.table)
    np.testing.assert_array_equal(merged.features("NetA"), whole.features("NetA"))
    np.testing.assert_array_equal(merged.records("NetA"), whole.records("NetA"))
    assert merged.blocks["versions"].tolist() == whole.blocks["versions"].tolist()


def test_merge_of_overlapping_stores_with_different_blocks(make_part, tmp_path):
    parts = [make_part("a.h5", 0, 20), make_part("b.h5", 10, 30, ("NetA", "NetB"))]
    merged = deepfeat.merge_features([p.path for p in parts], tmp_path / "all.h5")
    assert merged.blocks.set_index("name")[["done", "missing"]].to_dict("index") == {
        "NetA": {"done": 30, "missing": 0},
        "NetB": {"done": 20, "missing": 10},
    }
    ids = parts[1].table["image_id"]
    for name in ("NetA", "NetB"):
        np.testing.assert_array_equal(merged.features(name, ids), parts[1].features(name))


def test_merge_into_a_store_that_is_there(make_part):
    target, source = make_part("a.h5", 0, 20), make_part("b.h5", 20, 25)
    merged = deepfeat.merge_features([source.path], target.path)
    assert merged.blocks["done"].tolist() == [25]
    np.testing.assert_array_equal(merged.features("NetA")[:20], target.features("NetA"))


def test_merge_keeps_failures_and_prefers_features(tmp_path, make_spec, make_table, make_records, make_part):
    good = make_part("a.h5", 0, 4)
    with StoreWriter(tmp_path / "b.h5") as writer:
        rows = writer.add_images(make_table(6))
        block = writer.add_block(make_spec("NetA"), (3,), {})
        writer.write_records(block, rows, make_records(range(6), FAILED, b"not an image"))
    for order in ([good.path, tmp_path / "b.h5"], [tmp_path / "b.h5", good.path]):
        merged = deepfeat.merge_features(order, tmp_path / f"{order[0].stem}-first.h5")
        assert merged.records("NetA")["state"].tolist() == [DONE] * 4 + [FAILED] * 2
        assert merged.failures["reason"].tolist() == ["not an image"] * 2


def test_merge_fills_labels_that_one_store_lacks(make_part, tmp_path):
    parts = [make_part("a.h5", 0, 4, label=None), make_part("b.h5", 0, 4)]
    merged = deepfeat.merge_features([p.path for p in parts], tmp_path / "all.h5")
    assert merged.table["label"].tolist() == list("abab")


@pytest.mark.parametrize("column", ["label", "group", "split"])
def test_merge_names_labels_that_contradict(make_part, tmp_path, column):
    values = ["train", "test"]
    parts = [make_part(f"{v}.h5", 0, 4, **{column: v}) for v in values]
    with pytest.raises(StoreError, match=rf"disagree on the {column} of 4 image\(s\) \(first: 'img000' has \['tr"):
        deepfeat.merge_features([p.path for p in parts], tmp_path / "all.h5")
    assert not (tmp_path / "all.h5").exists()


def test_merge_names_images_of_different_content(tmp_path, build_store, make_spec, make_table, random_features):
    for name, contents in (("a.h5", list("wxyz")), ("b.h5", list("wXyz"))):
        build_store(tmp_path / name, make_table(4), [(make_spec(), random_features(4, 3))], contents)
    with pytest.raises(StoreError, match=r"NetA from different contents of 1 image\(s\) \(first: 'img001'\)"):
        deepfeat.merge_features([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "all.h5")
    assert not (tmp_path / "all.h5").exists()


@pytest.mark.parametrize(("change", "refused"), [(1e-7, False), (1e-2, True)])
def test_merge_allows_rounding_and_names_other_values(
    tmp_path, build_store, make_spec, make_table, random_features, change, refused
):
    features = random_features(4, 3)
    build_store(tmp_path / "a.h5", make_table(4), [(make_spec(), features)])
    features = features.copy()
    features[2, 1] += change * np.abs(features).max()
    build_store(tmp_path / "b.h5", make_table(4), [(make_spec(), features)])
    sources = [tmp_path / "a.h5", tmp_path / "b.h5"]
    if refused:
        with pytest.raises(
            StoreError, match=r"different NetA features of 1 image\(s\) of equal content \(first: 'img002'"
        ):
            deepfeat.merge_features(sources, tmp_path / "all.h5")
    else:
        assert deepfeat.merge_features(sources, tmp_path / "all.h5").n_images == 4


def test_merge_with_nothing_or_with_itself(make_part, tmp_path):
    part = make_part("a.h5", 0, 4)
    with pytest.raises(UsageError, match="no stores to merge"):
        deepfeat.merge_features([], tmp_path / "all.h5")
    with pytest.raises(UsageError, match="both a source and the target"):
        deepfeat.merge_features([part.path], part.path)


# Export


def test_export_to_npz_parquet_and_frame(make_part, tmp_path):
    store = make_part("a.h5", 0, 5, ("NetA", "NetB"), group="g")
    frame = store.to_frame()
    assert frame.columns.tolist()[:3] == ["label", "group", "split"]
    np.testing.assert_array_equal(frame.iloc[:, 3:], np.hstack([store.features("NetA"), store.features("NetB")]))
    store.to_npz(tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz", allow_pickle=False) as archive:
        assert set(archive) == {"image_id", "label", "group", "split", "NetA", "NetB"}
        assert archive["image_id"].tolist() == store.table["image_id"].tolist()
        assert archive["label"].tolist() == list("ababa")
        np.testing.assert_array_equal(archive["NetB"], store.features("NetB"))
    pytest.importorskip("pyarrow", reason="NOT TESTED: pyarrow is not installed")
    store.to_parquet(tmp_path / "f.parquet", "NetB")
    read = pd.read_parquet(tmp_path / "f.parquet")
    assert read.columns.tolist() == ["label", "group", "split", "NetB_0", "NetB_1", "NetB_2"]
    assert read.index.tolist() == store.table["image_id"].tolist()
    np.testing.assert_array_equal(read.iloc[:, 3:], store.features("NetB"))


def test_export_leaves_out_images_without_features(make_part, tmp_path):
    store = deepfeat.merge_features(
        [make_part("a.h5", 0, 4).path, make_part("b.h5", 2, 6, ("NetA", "NetB")).path], tmp_path / "all.h5"
    )
    assert store.to_frame().index.tolist() == [f"img{i:03d}" for i in range(2, 6)]
    assert store.to_frame("NetA").index.tolist() == [f"img{i:03d}" for i in range(6)]


def test_parquet_without_pyarrow_names_the_extra(make_part, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise ImportError("no pyarrow")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", refuse)
    with pytest.raises(StoreError, match=r"pip install 'deepfeat\[parquet\]'"):
        make_part("a.h5", 0, 2).to_parquet(tmp_path / "f.parquet")


# Import


def separable(n_images=60):
    rng = np.random.default_rng(0)
    labels = ["ab"[i % 2] for i in range(n_images)]
    features = rng.normal(size=(n_images, 5)) + 3 * (np.arange(n_images) % 2)[:, None]
    return pd.DataFrame({"image_id": [f"i{k}" for k in range(n_images)], "label": labels}), features


def test_imported_features_are_fitted_like_others(tmp_path):
    table, features = separable()
    store = deepfeat.import_features(features, table, tmp_path / "f.h5", name="vit")
    np.testing.assert_array_equal(store.features("vit"), features.astype(np.float32))
    assert deepfeat.fit_svm(store).metrics.value["accuracy"] > 0.9


def test_imported_and_extracted_blocks_are_joined_by_content(tmp_path):
    table, features = separable(4)
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(bytes([i]))
    table["path"] = [str(tmp_path / f"{i}.jpg") for i in range(4)]
    store = deepfeat.import_features({"a": features, "b": features[:, :2]}, table, tmp_path / "f.h5")
    assert store.blocks["name"].tolist() == ["a", "b"]
    for name in ("a", "b"):
        record = store.records(name)[2]
        assert record["digest"].tobytes() == hashlib.sha256(b"\x02").digest()
        assert record["size"] == 1


def test_imported_values_decide_the_key(tmp_path):
    table, features = separable()
    deepfeat.import_features(features, table, tmp_path / "f.h5", name="vit")
    again = deepfeat.import_features(features, table, tmp_path / "f.h5", name="vit")
    assert len(again.blocks) == 1
    features[7, 3] += 1
    other = deepfeat.import_features(features, table, tmp_path / "f.h5", name="vit")
    assert len(other.blocks) == 2
    assert other.blocks["key"].map(lambda key: block_key(other.find(key).spec)).tolist() == other.blocks["key"].tolist()


@pytest.mark.parametrize("kind", ["npy", "h5"])
def test_read_features_from_a_file_and_a_csv(tmp_path, kind):
    table, features = separable()
    rows = table.rename(columns={"image_id": "id", "label": "class"}).assign(patient=table["image_id"])
    rows.to_csv(tmp_path / "rows.csv", index=False, sep=";")
    if kind == "npy":
        np.save(tmp_path / "vit.npy", features)
    else:
        with h5py.File(tmp_path / "vit.h5", "w") as file:
            file["deep/x"] = features
    options = {"dataset": "deep/x"} if kind == "h5" else {}
    read, arrays = deepfeat.read_features(
        tmp_path / f"vit.{kind}", tmp_path / "rows.csv", image="id", label="class", group="patient", **options
    )
    assert list(arrays) == ["vit"]
    np.testing.assert_array_equal(arrays["vit"], features)
    assert read["image_id"].tolist() == table["image_id"].tolist()
    assert read["group"].tolist() == table["image_id"].tolist()
    store = deepfeat.import_features(arrays, read, tmp_path / "f.h5", name="other")
    assert store.blocks["name"].tolist() == ["other"]


@pytest.mark.parametrize(
    ("features", "options", "error", "message"),
    [
        (np.ones((2, 3)), {}, UsageError, "need a name"),
        (np.ones(2), {"name": "x"}, UsageError, r"float64 of shape \(2,\): use numbers of shape \(2, dim\)"),
        (np.ones((3, 2)), {"name": "x"}, UsageError, r"of shape \(3, 2\): use numbers of shape \(2, dim\)"),
        (np.ones((2, 0)), {"name": "x"}, UsageError, r"of shape \(2, 0\)"),
        (np.array([["a"], ["b"]]), {"name": "x"}, UsageError, "use numbers"),
        (np.array([[1.0], [np.nan]]), {"name": "x"}, DataError, "1 image.s. are not finite float32 .first: 'q'"),
        (np.array([[1.0], [1e300]]), {"name": "x"}, DataError, "not finite float32"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_features_that_cannot_be_imported(tmp_path, features, options, error, message):
    table = pd.DataFrame({"image_id": ["p", "q"]})
    with pytest.raises(error, match=message):
        deepfeat.import_features(features, table, tmp_path / "f.h5", **options)
    assert not (tmp_path / "f.h5").exists()


@pytest.mark.parametrize("name", ["missing.npy", "pickled.npy", "text.h5", "table.csv"])
def test_files_that_are_no_features(tmp_path, name):
    (tmp_path / "table.csv").write_text("image\na\n")
    (tmp_path / "text.h5").write_text("no")
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match=f"cannot read features from .*{name}"):
        deepfeat.read_features(tmp_path / name, tmp_path / "table.csv", dataset="x")
