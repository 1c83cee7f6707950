from __future__ import annotations

import hashlib
import os
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

import deepfeat
from deepfeat.errors import DataError, DataWarning, StoreError, UsageError
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


def test_files_of_other_paths_are_to_be_looked_at_again_after_a_merge(
    tmp_path, build_store, make_spec, make_table, random_features
):
    """Two machines, each with another network: the table can name one file alone for each image."""
    tables = make_table(3), make_table(3).assign(path=["/photos/img000.png", "/b/1", "/b/2"])
    parts = [
        build_store(tmp_path / f"{name}.h5", table, [(make_spec(name), random_features(3, 4))])
        for name, table in zip(("NetA", "NetB"), tables, strict=True)
    ]
    merged = deepfeat.merge_features([p.path for p in parts], tmp_path / "all.h5")
    assert merged.table["path"].tolist() == parts[0].table["path"].tolist()
    np.testing.assert_array_equal(merged.records("NetA")["size"], parts[0].records("NetA")["size"])
    assert merged.records("NetB")[["size", "mtime_ns"]][1:].tolist() == [(-1, -1)] * 2
    assert merged.records("NetB")["size"][0] == parts[1].records("NetB")["size"][0]


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


def test_merge_names_blocks_of_different_shapes(tmp_path, build_store, make_spec, make_table, random_features):
    """A registered network was changed and kept its name; the images need not be the same ones."""
    target = build_store(tmp_path / "a.h5", make_table(4), [(make_spec(), random_features(4, 3))]).path
    source = build_store(tmp_path / "b.h5", make_table(4, start=4), [(make_spec(), random_features(4, 5))]).path
    before = target.read_bytes()
    with pytest.raises(StoreError, match=r"hold NetA features of shapes \(3,\) and \(5,\) under one description: regi"):
        deepfeat.merge_features([source], target)
    assert target.read_bytes() == before


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


@pytest.mark.parametrize("sources", ["syn.h5", b"syn.h5", Path("syn.h5")], ids=lambda sources: type(sources).__name__)
def test_merge_of_one_path_instead_of_a_list(tmp_path, sources):
    with pytest.raises(UsageError, match=r"^sources is one path, b?'syn\.h5': pass a list of paths, as in \[b?'syn"):
        deepfeat.merge_features(sources, tmp_path / "z.h5")
    assert not (tmp_path / "z.h5").exists()


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


@pytest.mark.parametrize("name", ["image_id", "label", "group", "split", "file", "allow_pickle"])
def test_export_to_npz_of_a_block_with_a_name_of_the_archive(make_part, tmp_path, name):
    store = make_part("a.h5", 0, 2, ("NetA", name))
    with pytest.raises(UsageError, match=f"no room for a block that is called '{name}', .*: write .parquet or .csv"):
        store.to_npz(tmp_path / "f.npz")
    assert not (tmp_path / "f.npz").exists()
    assert f"{name}_0" in store.to_frame()


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
    with pytest.warns(DataWarning, match="imported as 'vit'"):
        other = deepfeat.import_features(features, table, tmp_path / "f.h5", name="vit")
    assert len(other.blocks) == 2
    assert other.blocks["key"].map(lambda key: block_key(other.find(key).spec)).tolist() == other.blocks["key"].tolist()


def test_features_imported_again_under_one_name_are_not_joined_with_the_old_ones(tmp_path):
    table, X = separable()
    deepfeat.import_features(X, table, tmp_path / "f.h5", name="vit")
    deepfeat.import_features(X, table, tmp_path / "f.h5", name="vit")
    with pytest.warns(DataWarning, match="has other features that were imported as 'vit' .*, and keeps them"):
        store = deepfeat.import_features(2 * X, table, tmp_path / "f.h5", name="vit")
    with pytest.raises(DataError, match=r"several imported blocks 'vit' \(\w{8} and \w{8}\): name the one"):
        deepfeat.fit_svm(store, test=None, param_grid={"C": [0.1]})
    new = store.blocks["key"].iloc[-1]
    assert list(deepfeat.fit_svm(store, backbones=new, test=None, param_grid={"C": [0.1]}).blocks) == ["vit"]


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


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (None, r"from \S+vit\.h5: name one of the file's data sets as dataset \(--dataset\): 'deep/x', 'y'$"),
        ("deep", r"vit\.h5, data set 'deep': it is a group; name one of .*: 'deep/x', 'y'$"),
        ("z", r"vit\.h5, data set 'z': it is not there; name one of .*: 'deep/x', 'y'$"),
        ("y/z", r"vit\.h5, data set 'y/z': it is not there; name one of .*: 'deep/x', 'y'$"),
    ],
)
def test_data_sets_of_a_file_are_named(tmp_path, dataset, message):
    (tmp_path / "table.csv").write_text("image\na\n")
    with h5py.File(tmp_path / "vit.h5", "w") as file:
        file["deep/x"] = file["y"] = np.ones((1, 2))
    with pytest.raises(UsageError, match=message):
        deepfeat.read_features(tmp_path / "vit.h5", tmp_path / "table.csv", dataset=dataset)


def test_no_more_than_ten_data_sets_are_named(tmp_path):
    (tmp_path / "table.csv").write_text("image\na\n")
    with h5py.File(tmp_path / "vit.h5", "w") as file:
        for number in range(12):
            file[f"x{number:02d}"] = np.ones((1, 2))
    with pytest.raises(UsageError, match=r": 'x00', 'x01', .*, 'x09' and 2 more$"):
        deepfeat.read_features(tmp_path / "vit.h5", tmp_path / "table.csv")


def test_file_without_a_data_set(tmp_path):
    (tmp_path / "table.csv").write_text("image\na\n")
    h5py.File(tmp_path / "vit.h5", "w").close()
    with pytest.raises(UsageError, match=r"vit\.h5: the file has no data set$"):
        deepfeat.read_features(tmp_path / "vit.h5", tmp_path / "table.csv")


# Import into a store that has images


def digests(store, block):
    return [digest.tobytes() for digest in store.records(block)["digest"]]


def sha256(text):
    return hashlib.sha256(text.encode()).digest()


@pytest.fixture
def extracted(tmp_path, make_spec, make_table, make_records):
    """A store whose block NetA was made of four files, of which each holds its own name."""

    def make(name="f.h5", states=(DONE,) * 4, n_images=4):
        table = make_table(n_images, label=["ab"[i % 2] for i in range(n_images)])
        table["path"] = [str(tmp_path / f"{image_id}.png") for image_id in table["image_id"]]
        for image_id, path in zip(table["image_id"], table["path"], strict=True):
            Path(path).write_text(f"{image_id} on disk")
        records = make_records([f"{image_id} on disk" for image_id in table["image_id"]])
        features = np.arange(3.0 * n_images).reshape(n_images, 3)
        with StoreWriter(tmp_path / name) as writer:
            rows = writer.add_images(table)
            block = writer.add_block(make_spec("NetA"), (3,), {})
            done = np.flatnonzero(np.array(states) == DONE)
            writer.write(block, rows[done], features[done], records[done])
        return deepfeat.open_features(tmp_path / name)

    return make


def test_import_keeps_the_paths_that_the_table_lacks(extracted, make_table):
    store = extracted()
    ids = store.table["image_id"]
    known = store.table["path"].tolist()
    after = deepfeat.import_features(np.eye(4), pd.DataFrame({"image_id": ids}), store.path, name="vit")
    assert after.table.equals(store.table)
    # Some rows with a path, and an image that the store does not know.
    table = make_table(5)
    table["path"] = [None, "/elsewhere/1.png", " ", float("nan"), None]
    after = deepfeat.import_features(np.eye(5), table, store.path, name="five")
    assert after.table["path"].tolist() == [known[0], "/elsewhere/1.png", known[2], known[3], "img004"]


def test_import_without_paths_is_of_the_contents_that_were_extracted(extracted, tmp_path):
    store = extracted(n_images=20, states=(DONE,) * 20)
    # Even where the files are gone, or have changed since.
    for number, path in enumerate(store.table["path"]):
        os.remove(path) if number % 2 else Path(path).write_text("changed")
    table = store.table[["image_id", "label"]]
    after = deepfeat.import_features(np.eye(20) * 7, table, store.path, name="vit")
    assert digests(after, "vit") == digests(store, "NetA") == [sha256(f"{i} on disk") for i in table["image_id"]]
    for name in ("size", "mtime_ns"):
        np.testing.assert_array_equal(after.records("vit")[name], store.records("NetA")[name])
    np.testing.assert_array_equal(after.features("vit"), np.eye(20, dtype=np.float32) * 7)
    np.testing.assert_array_equal(after.records("NetA"), store.records("NetA"))
    assert deepfeat.fit_svm(after, ledger=False, cv=2, param_grid={"C": [0.1]}).blocks == {"NetA": 3, "vit": 20}


def test_import_with_paths_is_of_the_files_that_they_name(extracted):
    store = extracted()
    Path(store.table["path"][1]).write_text("changed")
    os.remove(store.table["path"][2])
    after = deepfeat.import_features(np.eye(4), store.table, store.path, name="vit")
    # What the caller points to decides where it is there, and what was seen before where it is not.
    expected = ["img000 on disk", "changed", "img002 on disk", "img003 on disk"]
    assert digests(after, "vit") == [sha256(text) for text in expected]
    assert after.records("vit")["size"][1] == len("changed")


def test_import_of_images_without_one_known_content_reads_their_files(extracted, make_spec, make_records):
    # Image 1 has no features; image 2 has some of two contents; the file of image 3, without features, is gone.
    store = extracted(states=(DONE, FAILED, DONE, FAILED))
    with StoreWriter(store.path) as writer:
        block = writer.add_block(make_spec("NetB"), (3,), {})
        writer.write(block, [2], np.ones((1, 3)), make_records(["img002 before"]))
    os.remove(store.table["path"][3])
    Path(store.table["path"][2]).write_text("img002 now")
    after = deepfeat.import_features(np.eye(4), store.table[["image_id"]], store.path, name="vit")
    expected = ["img000 on disk", "img001 on disk", "img002 now", "img003"]
    assert digests(after, "vit") == [sha256(text) for text in expected]


def test_import_before_extraction_is_joined_after_it_was_repeated(extracted, tmp_path, make_spec, make_records):
    table = extracted("other.h5").table
    store = deepfeat.import_features(np.eye(4), table[["image_id", "label"]], tmp_path / "f.h5", name="vit")
    assert digests(store, "vit") == [sha256(image_id) for image_id in table["image_id"]]
    store = extracted("f.h5")
    assert digests(store, "vit") != digests(store, "NetA")
    again = deepfeat.import_features(np.eye(4), table[["image_id"]], store.path, name="vit")
    assert digests(again, "vit") == digests(again, "NetA")
    assert len(again.blocks) == 2
    # A digest that stands for no content is no second content beside that of NetA.
    deepfeat.import_features(np.eye(4), pd.DataFrame({"image_id": ["x", *table["image_id"][1:]]}), store.path, name="x")
    other = deepfeat.import_features(2 * np.eye(4), table[["image_id"]], store.path, name="other")
    assert digests(other, "other")[:4] == digests(other, "NetA")[:4]


def test_imported_features_stay_those_of_the_old_content(extracted, make_records):
    store = extracted()
    deepfeat.import_features(np.eye(4), store.table[["image_id"]], store.path, name="vit")
    with StoreWriter(store.path) as writer:
        writer.write(writer.store.find("NetA"), [1], np.ones((1, 3)), make_records(["new content"]))
    with pytest.raises(DataError, match=r"NetA and vit saw different contents of 1 image\(s\) \(first: 'img001'\)"):
        deepfeat.fit_svm(store.path, ledger=False)
    again = deepfeat.import_features(np.eye(4), store.table[["image_id"]], store.path, name="vit")
    assert digests(again, "vit") == digests(again, "NetA")
    assert digests(again, "vit")[1] == sha256("new content")


def test_import_of_images_that_the_store_does_not_know_is_warned_of(extracted):
    store = extracted()
    table = pd.DataFrame({"image_id": ["a/img000.png", "a/img001.png"]})
    message = (
        r"^no image id of the table is in .*f\.h5: 'a/img000\.png' is one of the table, 'img000' one of the store, "
        r"which gets 2 new image\(s\): where they are the same images, give them the same ids$"
    )
    with pytest.warns(DataWarning, match=message) as caught:
        after = deepfeat.import_features(np.eye(2), table, store.path, name="vit")
    assert caught[0].filename == __file__
    assert after.n_images == 6
    assert after.blocks.set_index("name")["done"].to_dict() == {"NetA": 4, "vit": 2}


def test_import_of_a_table_without_ids(tmp_path):
    with pytest.raises(DataError, match="no column 'image_id'"):
        deepfeat.import_features(np.eye(2), pd.DataFrame({"label": ["a", "b"]}), tmp_path / "f.h5", name="vit")
