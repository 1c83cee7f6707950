from __future__ import annotations

import errno
import hashlib
import itertools
import json
import operator
import os
import pickle
import re

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deepfeat
from deepfeat.errors import DataError, LockedError, StoreError, UsageError
from deepfeat.store import (
    DONE,
    FAILED,
    MISSING,
    RECORD,
    FeatureStore,
    StoreWriter,
    block_key,
    canonical_json,
    layout,
    reading,
)
from deepfeat.store.journal import changing, viewing
from deepfeat.store.layout import row_checksums

FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))

plain_names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
odd_file_names = st.binary(min_size=1, max_size=8).map(os.fsdecode)
long_names = st.integers(1000, 40_000).map(lambda n: "ä" * n)
names = plain_names | odd_file_names | long_names
optional = st.none() | names


@pytest.fixture
def path(tmp_path):
    return tmp_path / "features.h5"


@pytest.fixture
def mixed_store(path, make_spec, make_table, make_records, random_features):
    """Five images: 0 and 3 done, 1 and 4 failed, 2 missing; and a second block with everything done."""
    with StoreWriter(path) as writer:
        writer.add_images(make_table(5))
        block = writer.add_block(make_spec("NetA"), (3,), {})
        writer.write(block, [0, 3], random_features(2, 3), make_records("ab"))
        writer.write_records(block, [1], make_records("c", FAILED, "not an image: é".encode()))
        writer.write_records(block, [4], make_records("d", FAILED, b"truncated"))
        full = writer.add_block(make_spec("NetB"), (2,), {})
        writer.write(full, range(5), random_features(5, 2), make_records("abcde"))
    return deepfeat.open_features(path)


def table_values(table):
    return [[None if pd.isna(v) else v for v in table[c]] for c in ("image_id", "path", "label", "group", "split")]


# Round trips


@given(
    rows=st.lists(
        st.tuples(names, names, optional, optional, st.sampled_from([None, "train", "val", "test"])), max_size=8
    )
)
@FEW
def test_table_round_trip(tmp_path_factory, rows):
    rows = list({row[0]: row for row in rows}.values())
    table = pd.DataFrame(rows, columns=["image_id", "path", "label", "group", "split"], dtype=object)
    path = tmp_path_factory.mktemp("table") / "features.h5"
    with StoreWriter(path) as writer:
        positions = writer.add_images(table)
    assert positions.tolist() == list(range(len(rows)))
    assert table_values(deepfeat.open_features(path).table) == table_values(table)


def test_table_round_trip_of_empty_optional_values(path, make_table):
    with StoreWriter(path) as writer:
        writer.add_images(make_table(3, label=["", None, float("nan")], split=["train", None, "test"]))
    table = deepfeat.open_features(path).table
    assert table_values(table)[2:] == [[None] * 3, [None] * 3, ["train", None, "test"]]


@given(
    n_images=st.integers(1, 9), shape=st.lists(st.integers(1, 5), min_size=1, max_size=3), seed=st.integers(0, 2**32)
)
@FEW
def test_features_round_trip_bit_by_bit(tmp_path_factory, build_store, make_spec, make_table, n_images, shape, seed):
    bits = np.random.default_rng(seed).integers(0, 2**32, (n_images, *shape), np.uint32)
    path = tmp_path_factory.mktemp("features") / "features.h5"
    store = build_store(path, make_table(n_images), [(make_spec(), bits.view(np.float32))])
    features = store.features("NetA")
    assert features.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(features).view(np.uint32), bits)
    order = np.random.default_rng(seed).permutation(n_images)
    ids = [f"img{i:03d}" for i in order]
    np.testing.assert_array_equal(store.features("NetA", ids).view(np.uint32), bits[order])


def test_records_round_trip(path, build_store, make_spec, make_table, make_records, random_features):
    store = build_store(path, make_table(3), [(make_spec(), random_features(3, 4))], contents=["x", "y", "x"])
    records, expected = store.records("NetA"), make_records(["x", "y", "x"])
    for name in ("size", "mtime_ns", "digest"):
        np.testing.assert_array_equal(records[name], expected[name])
    assert records["state"].tolist() == [DONE] * 3
    assert (records["digest"][0] == records["digest"][2]).all()
    assert (records["digest"][0] != records["digest"][1]).any()


def splitmix64():
    """Steele, Lea and Flood's generator from seed 0, in plain integers."""
    state = 0
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        yield z ^ (z >> 31)


def checksum(row):
    """docs/store-format.md in plain integers."""
    words = np.asarray(row).view(f"u{row.dtype.itemsize}").ravel().tolist()
    weights = splitmix64()
    return sum(itertools.starmap(operator.mul, zip(words, weights, strict=False)), next(weights)) % 2**64 >> 32


def test_splitmix64_gives_the_published_numbers():
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert list(itertools.islice(splitmix64(), 3)) == published


@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
def test_row_checksums_do_not_depend_on_the_rows_together(random_features, dtype):
    features = random_features(40, 70).astype(dtype)
    assert row_checksums(features).tolist() == [checksum(row) for row in features]
    assert row_checksums(features[3:4]).tolist() == [checksum(features[3])]
    assert row_checksums(features.reshape(40, 7, 2, 5)).tolist() == row_checksums(features).tolist()
    assert row_checksums(features[:0]).tolist() == []


def test_row_checksums_find_every_single_flipped_bit(random_features):
    row = random_features(1, 300)
    flipped = np.repeat(row.view("<u4"), 300 * 32, axis=0)
    number = np.arange(300 * 32)
    flipped[number, number // 32] ^= np.uint32(1) << (number % 32).astype(np.uint32)
    assert (row_checksums(flipped.view("<f4")) != row_checksums(row)).all()


def test_row_checksums_tell_changed_places_and_signs(random_features):
    features = random_features(1, 300)
    assert row_checksums(features[:, ::-1]) != row_checksums(features)
    assert row_checksums(-features) != row_checksums(features)
    assert row_checksums(np.roll(features, 1)) != row_checksums(features)


def test_checksum_is_what_the_format_says(path, build_store, make_spec, make_table, random_features):
    features = random_features(4, 7)
    store = build_store(path, make_table(4), [(make_spec(), features)])
    assert store.records("NetA")["checksum"].tolist() == [checksum(row) for row in features]


@pytest.mark.parametrize("given_as", [np.float64, ">f4", "strided"])
def test_write_converts_to_little_endian_float32(path, build_store, make_spec, make_table, random_features, given_as):
    features = random_features(4, 3)
    written = np.repeat(features, 2, axis=1)[:, ::2] if given_as == "strided" else features.astype(given_as)
    store = build_store(path, make_table(4), [(make_spec(), written)])
    np.testing.assert_array_equal(store.features("NetA"), features)
    assert store.records("NetA")["checksum"].tolist() == [checksum(row) for row in features]


def test_write_of_another_width_is_refused_and_changes_nothing(mixed_store, path, make_records):
    with StoreWriter(path) as writer, pytest.raises(ValueError, match="reshape"):
        writer.write(writer.store.find("NetA"), [0, 1], np.zeros((2, 4), np.float32), make_records("ab"))
    np.testing.assert_array_equal(deepfeat.open_features(path).records("NetA"), mixed_store.records("NetA"))


def test_write_of_scattered_rows_leaves_the_others(path, make_spec, make_table, make_records, random_features):
    features = random_features(8, 2)
    with StoreWriter(path) as writer:
        writer.add_images(make_table(8))
        block = writer.add_block(make_spec(), (2,), {})
        order = [6, 1, 2, 7, 4]
        writer.write(block, order, features[order], make_records(order))
    store = deepfeat.open_features(path)
    assert store.records("NetA")["state"].tolist() == [0, 1, 1, 0, 1, 0, 1, 1]
    ready = store.ready("NetA")
    assert ready.tolist() == ["img001", "img002", "img004", "img006", "img007"]
    np.testing.assert_array_equal(store.features("NetA", ready), features[[1, 2, 4, 6, 7]])


# Keys


def test_key_is_the_head_of_sha256_of_canonical_json(make_spec):
    spec = make_spec("Nét")
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert canonical_json(spec) == text
    assert block_key(spec) == hashlib.sha256(text.encode()).hexdigest()[:32]


def test_key_does_not_depend_on_the_order_of_entries(make_spec):
    spec = make_spec()
    shuffled = {k: spec[k] for k in reversed(spec)}
    shuffled["preprocessing"] = dict(reversed(spec["preprocessing"].items()))
    assert block_key(shuffled) == block_key(spec)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("backbone", "NetB"),
        ("weights", "1" * 64),
        ("layer", "conv5"),
        ("pooling", "max"),
        ("pooling", None),
        ("input_size", [224, 225]),
        ("resize", "crop"),
        ("pixels", 4),
        ("preprocessing", {"channels": "bgr", "mean": [127.5] * 3, "std": [127.5] * 3}),
        ("preprocessing", {"channels": "rgb", "mean": [127.5, 127.5, 127.49999], "std": [127.5] * 3}),
        ("precision", "float16"),
        ("view", "hflip"),
        ("new entry", 1),
    ],
)
def test_key_depends_on_every_entry(make_spec, entry, value):
    assert block_key(make_spec(**{entry: value})) != block_key(make_spec())


def test_key_refuses_what_json_does_not_have(make_spec):
    with pytest.raises(ValueError, match="not JSON compliant"):
        block_key(make_spec(mean=float("nan")))


def test_spec_of_a_backbone_holds_no_path(tmp_path):
    weights = tmp_path / "mine.weights.h5"
    weights.write_bytes(b"any")
    (spec,) = deepfeat.Backbone("MobileNetV2", weights=weights).specs("d" * 64)
    assert "mine" not in canonical_json(spec)
    assert str(tmp_path) not in canonical_json(spec)
    assert "time" not in canonical_json(spec)


def test_stored_spec_is_what_was_given_and_nothing_more(path, build_store, make_spec, make_table, random_features):
    store = build_store(path, make_table(2), [(make_spec(), random_features(2, 2))])
    assert store.blocks["spec"][0] == make_spec()
    with h5py.File(path) as file:
        group = file["blocks"][block_key(make_spec())]
        assert group.attrs["spec"].decode() == canonical_json(make_spec())
        assert set(group.attrs) == {"spec", "versions", "shape"}


# States


def test_blocks_counts_states(mixed_store):
    blocks = mixed_store.blocks.set_index("name")
    columns = ["backbone", "dim", "dtype", "done", "missing", "failed"]
    assert blocks.loc["NetA", columns].tolist() == ["NetA", 3, "float32", 2, 1, 2]
    assert blocks.loc["NetB", columns].tolist() == ["NetB", 2, "float32", 5, 0, 0]
    assert mixed_store.records("NetA")["state"].tolist() == [DONE, FAILED, MISSING, DONE, FAILED]


def test_blocks_of_a_store_without_any(path, make_table):
    with StoreWriter(path) as writer:
        writer.add_images(make_table(2))
    store = deepfeat.open_features(path)
    assert store.blocks.empty
    assert {"name", "key", "done", "spec"} <= set(store.blocks.columns)
    assert store.failures.empty
    assert repr(store) == f"<FeatureStore '{path}': 2 images, no blocks>"


def test_failures_tell_the_reasons(mixed_store):
    assert mixed_store.failures.to_dict("records") == [
        {"image_id": "img001", "block": "NetA", "reason": "not an image: é"},
        {"image_id": "img004", "block": "NetA", "reason": "truncated"},
    ]


@pytest.mark.parametrize(
    ("rows", "beginning"),
    [
        (None, "3 of 5 images have no NetA features (1 missing, 2 failed; first: 'img001')"),
        (["img000", "img002"], "1 of 2 images have no NetA features (1 missing, 0 failed; first: 'img002')"),
        (["img004", "img003", "img004"], "2 of 3 images have no NetA features (0 missing, 2 failed; first: 'img004')"),
    ],
)
def test_features_of_rows_without_any_are_refused(mixed_store, rows, beginning):
    with pytest.raises(StoreError) as caught:
        mixed_store.features("NetA", rows)
    assert str(caught.value) == f"{beginning}: pass rows=store.ready('NetA')"


def test_features_of_ready_rows(mixed_store, random_features):
    np.testing.assert_array_equal(mixed_store.features("NetA", mixed_store.ready("NetA")), random_features(2, 3))


@pytest.mark.parametrize(
    ("blocks", "ids"), [(["NetA"], [0, 3]), (["NetB"], [0, 1, 2, 3, 4]), (["NetA", "NetB"], [0, 3]), ([], range(5))]
)
def test_ready_names_images_done_in_every_block(mixed_store, blocks, ids):
    assert mixed_store.ready(*blocks).tolist() == [f"img{i:03d}" for i in ids]


def test_failed_row_can_be_done_later_and_the_reverse(mixed_store, path, make_records):
    with StoreWriter(path) as writer:
        block = writer.store.find("NetA")
        writer.write(block, [1], np.full((1, 3), 7), make_records("c"))
        writer.write_records(block, [0], make_records("a", FAILED, b"gone"))
    store = deepfeat.open_features(path)
    assert store.ready("NetA").tolist() == ["img001", "img003"]
    np.testing.assert_array_equal(store.features("NetA", ["img001"]), [[7, 7, 7]])
    assert store.failures["reason"].tolist() == ["gone", "truncated"]


# Rows


def test_features_in_the_order_asked_and_repeated(mixed_store):
    everything = mixed_store.features("NetB")
    wanted = [4, 0, 0, 2, 4]
    rows = mixed_store.features("NetB", [f"img{i:03d}" for i in wanted])
    np.testing.assert_array_equal(rows, everything[wanted])
    assert mixed_store.features("NetB", []).shape == (0, 2)


def test_unknown_ids_are_counted_and_the_first_is_named(mixed_store, path):
    with pytest.raises(StoreError) as caught:
        mixed_store.features("NetB", ["img000", "IMG000", None])
    assert str(caught.value) == f"2 image id(s) are not in {path} (first: 'IMG000')"


def test_features_of_one_segment_are_a_read_only_map(mixed_store):
    features = mixed_store.features("NetB")
    assert isinstance(features.base, np.memmap)
    assert not features.flags.writeable
    assert not features.flags.owndata


def test_features_of_named_rows_are_a_copy(mixed_store):
    features = mixed_store.features("NetB", ["img000"])
    assert not isinstance(features.base, np.memmap)
    assert features.flags.writeable


def test_features_without_pooling_keep_their_shape(path, build_store, make_spec, make_table, random_features):
    maps = random_features(3, 4, 5, 2)
    store = build_store(path, make_table(3), [(make_spec(pooling=None), maps)])
    np.testing.assert_array_equal(store.features("NetA"), maps)
    np.testing.assert_array_equal(store.features("NetA", ["img002", "img000"]), maps[[2, 0]])
    assert store.blocks["dim"].tolist() == [40]
    frame = store.to_frame("NetA", ["img001"])
    assert frame.shape == (1, 3 + 40)
    np.testing.assert_array_equal(frame.iloc[0, 3:].to_numpy(np.float32), maps[1].ravel())


@pytest.mark.parametrize("rows", [None, ["img003", "img001"], []])
def test_to_frame_is_indexed_by_image(mixed_store, rows):
    frame = mixed_store.to_frame("NetB", rows)
    assert frame.index.name == "image_id"
    assert frame.index.tolist() == (mixed_store.table["image_id"].tolist() if rows is None else rows)
    assert frame.columns.tolist() == ["label", "group", "split", "NetB_0", "NetB_1"]
    np.testing.assert_array_equal(frame[["NetB_0", "NetB_1"]].to_numpy(), mixed_store.features("NetB", rows))


# Finding blocks


@pytest.fixture
def four_blocks(path, build_store, make_spec, make_table):
    specs = [
        make_spec("NetA"),
        make_spec("NetA", layer="conv5", pooling="max"),
        make_spec("NetB", layer="fc1"),
        make_spec("NetC", resize="squash"),
        make_spec("NetC", resize="pad"),
    ]
    return build_store(path, make_table(2), [(spec, np.zeros((2, 3), np.float32)) for spec in specs])


@pytest.mark.parametrize(
    ("asked", "backbone", "layer"),
    [("NetA", "NetA", None), ("NetA:conv5", "NetA", "conv5"), ("NetB:fc1", "NetB", "fc1"), ("NetB", "NetB", "fc1")],
)
def test_find_by_name_or_backbone(four_blocks, asked, backbone, layer):
    found = four_blocks.find(asked)
    assert (found.spec["backbone"], found.spec["layer"]) == (backbone, layer)


@pytest.mark.parametrize("length", [4, 8, 32])
def test_find_by_the_beginning_of_the_key(four_blocks, make_spec, length):
    key = block_key(make_spec("NetC", resize="pad"))
    assert four_blocks.find(key[:length]).spec["resize"] == "pad"


def test_find_several_names_how_they_differ(four_blocks, make_spec, path):
    with pytest.raises(StoreError) as caught:
        four_blocks.find("NetC")
    message = str(caught.value)
    assert message.startswith(f"'NetC' fits 2 blocks of {path}: name one by its key: ")
    for resize in ("squash", "pad"):
        assert f"{block_key(make_spec('NetC', resize=resize))[:8]} (resize='{resize}')" in message


@pytest.mark.parametrize("order", [1, -1])
def test_find_several_names_entries_that_only_one_has(path, build_store, make_spec, make_table, order):
    specs = [make_spec(), make_spec(views=3)][::order]
    store = build_store(path, make_table(1), [(spec, np.zeros((1, 1), np.float32)) for spec in specs])
    with pytest.raises(StoreError, match=r"\(views=3\)") as caught:
        store.find("NetA")
    assert "(views=None)" in str(caught.value)


@pytest.mark.parametrize("asked", ["NetD", "neta", "", "0"])
def test_find_none_names_the_blocks(four_blocks, path, asked):
    with pytest.raises(StoreError) as caught:
        four_blocks.find(asked)
    names = "'NetA', 'NetA:conv5', 'NetB:fc1', 'NetC', 'NetC'"
    assert str(caught.value) == f"{path} has no block {asked!r}: its blocks are {names}"


def test_has_block_takes_whole_keys_only(four_blocks, make_spec):
    key = block_key(make_spec("NetA"))
    assert four_blocks.has_block(key)
    assert not four_blocks.has_block(key[:8])
    assert not four_blocks.has_block("NetA")
    assert (four_blocks.records_or_missing("NetA") == np.zeros(2, RECORD)).all()


# Growth


@pytest.fixture
def grown_store(path, make_spec, make_table, make_records, random_features):
    """Three, then two, then four images; each time the block gets another segment."""
    features = random_features(9, 3)
    for start, count in ((0, 3), (3, 2), (5, 4)):
        with StoreWriter(path) as writer:
            rows = writer.add_images(make_table(count, start))
            assert rows.tolist() == list(range(start, start + count))
            block = writer.add_block(make_spec(), (3,), {})
            writer.write(block, rows, features[rows], make_records(rows))
    return deepfeat.open_features(path), features


def test_growth_adds_segments(grown_store):
    store, _ = grown_store
    block = store.find("NetA")
    assert [(s.start, s.count) for s in block.segments] == [(0, 3), (3, 2), (5, 4)]
    assert (block.n_rows, store.n_images) == (9, 9)


@pytest.mark.parametrize("order", [range(9), [8, 0, 4, 2, 3, 3, 5], [1], [4, 5]])
def test_growth_gathers_across_segments(grown_store, order):
    store, features = grown_store
    rows = [f"img{i:03d}" for i in order]
    np.testing.assert_array_equal(store.features("NetA", rows), features[list(order)])
    np.testing.assert_array_equal(store.features("NetA"), features)
    assert store.records("NetA")["checksum"].tolist() == [checksum(row) for row in features]


def test_growth_writes_across_segments(grown_store, path, make_records):
    _, features = grown_store
    with StoreWriter(path) as writer:
        block = writer.store.find("NetA")
        writer.write(block, range(1, 8), -features[1:8], make_records(range(1, 8)))
    expected = np.concatenate([features[:1], -features[1:8], features[8:]])
    np.testing.assert_array_equal(deepfeat.open_features(path).features("NetA"), expected)


def test_images_without_space_in_a_block_are_missing(mixed_store, path, make_table):
    with StoreWriter(path) as writer:
        writer.add_images(make_table(2, start=5))
    store = deepfeat.open_features(path)
    assert store.blocks.set_index("name").loc["NetB", ["done", "missing"]].tolist() == [5, 2]
    with pytest.raises(StoreError, match=r"2 of 7 images have no NetB features \(2 missing, 0 failed; first: 'img005'"):
        store.features("NetB")


def test_add_block_again_changes_nothing(mixed_store, path, make_spec):
    before = path.read_bytes()
    with StoreWriter(path) as writer:
        block = writer.add_block(make_spec("NetA"), (3,), {"keras": "another"})
    assert len(block.segments) == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("n_images", [5, 7])
def test_add_block_of_another_shape_is_refused_and_changes_nothing(mixed_store, path, make_spec, make_table, n_images):
    """A registered network was changed and kept its name."""
    with StoreWriter(path) as writer:
        writer.add_images(make_table(n_images))
        before = path.read_bytes()
        with pytest.raises(
            UsageError, match=r"NetA gives each image features of shape \(4,\), and the block .* has \(3,\): register"
        ):
            writer.add_block(make_spec("NetA"), (4,), {})
    assert path.read_bytes() == before


def test_open_store_is_a_snapshot(mixed_store, path, make_table):
    unread = deepfeat.open_features(path)
    with StoreWriter(path) as writer:
        writer.add_images(make_table(3, start=5))
    for store in (mixed_store, unread):
        assert store.table["image_id"].tolist() == [f"img{i:03d}" for i in range(5)]
        assert store.ready("NetB").tolist() == store.table["image_id"].tolist()
        assert store.features("NetB").shape == (5, 2)


def test_store_made_anew_under_an_open_reader_is_refused(path, build_store, make_spec, make_table):
    """Its blocks have the same keys and places, but other images."""
    features = np.ones((5, 3), np.float32)
    store = build_store(path, make_table(5), [(make_spec(), features)])
    assert store.table["image_id"][0] == "img000"
    path.unlink()
    np.testing.assert_array_equal(store.features("NetA"), features)
    build_store(path, make_table(5, start=5), [(make_spec(), 2 * features)])
    for read in (store.records, store.features, store.to_frame):
        with pytest.raises(StoreError, match=r"features\.h5 was made anew, or replaced, since .*: open it again"):
            read("NetA")


def test_table_of_a_store_that_was_replaced_is_refused(mixed_store, path, tmp_path, make_table, build_store):
    store = deepfeat.open_features(path)
    os.replace(build_store(tmp_path / "other.h5", make_table(2), []).path, path)
    with pytest.raises(StoreError, match="open it again"):
        _ = store.table


def test_store_in_another_process_opens_the_file_anew(mixed_store):
    copied = pickle.loads(pickle.dumps(mixed_store))
    assert copied.table.equals(mixed_store.table)
    np.testing.assert_array_equal(copied.features("NetB"), mixed_store.features("NetB"))


# Links


def test_writers_through_a_link_and_without_it_exclude_each_other(mixed_store, path, tmp_path, make_table):
    link = tmp_path / "elsewhere" / "link.h5"
    link.parent.mkdir()
    link.symlink_to(path)
    for first, second in ((path, link), (link, path)):
        with StoreWriter(first), pytest.raises(LockedError, match=r"features\.h5 is being written"):
            start_writing(second)
    with StoreWriter(link) as writer:
        writer.add_images(make_table(2, start=5))
    assert link.is_symlink()
    assert deepfeat.open_features(link).n_images == deepfeat.open_features(path).n_images == 7


def test_link_to_a_store_that_is_not_there_yet_leads_to_it(path, tmp_path):
    link = tmp_path / "link.h5"
    link.symlink_to(path)
    start_writing(link)
    assert link.is_symlink()
    assert not path.is_symlink()
    assert deepfeat.open_features(path).n_images == 0


# Blocks that saw different contents


@pytest.fixture
def torn_store(path, make_spec, make_table, make_records, random_features):
    """Three images, of which the second was another one when NetB saw it."""
    with StoreWriter(path) as writer:
        writer.add_images(make_table(3))
        for name, contents in (("NetA", "abc"), ("NetB", "aBc")):
            writer.write(
                writer.add_block(make_spec(name), (2,), {}), range(3), random_features(3, 2), make_records(contents)
            )
    return deepfeat.open_features(path)


@pytest.mark.parametrize("export", ["to_frame", "to_parquet", "to_npz"])
def test_blocks_that_saw_different_contents_are_not_exported_together(torn_store, tmp_path, export):
    to = [] if export == "to_frame" else [tmp_path / "out"]
    with pytest.raises(DataError, match=r"NetA and NetB saw different contents of 1 image\(s\) \(first: 'img001'\)"):
        getattr(torn_store, export)(*to)
    assert not (tmp_path / "out").exists()


def test_images_of_which_blocks_saw_the_same_contents_are_joined(torn_store, make_records):
    assert torn_store.to_frame(rows=["img002", "img000"]).index.tolist() == ["img002", "img000"]
    contents = torn_store.contents(["NetA", "NetB"], ["img002", "img000"])
    assert contents.tolist() == [record.tobytes() for record in make_records("ca")["digest"]]
    assert len(torn_store.to_frame("NetB")) == 3


def test_contents_are_those_of_images_that_all_blocks_have(mixed_store, make_records):
    contents = mixed_store.contents(["NetA"]).tolist()
    first, second = (record.tobytes() for record in make_records("ab")["digest"])
    assert contents == [first, None, None, second, None]


def test_block_named_twice_is_refused(mixed_store, make_spec):
    key = block_key(make_spec("NetB"))
    with pytest.raises(UsageError, match=r"blocks is \['NetB', '.*'\], which names a block twice: name each once"):
        mixed_store.to_frame(["NetB", key])


# The table's update


def test_add_images_known_and_new_keeps_positions(mixed_store, path, make_table):
    with StoreWriter(path) as writer:
        rows = writer.add_images(make_table(3, image_id=["new", "img003", "img000"]))
    assert rows.tolist() == [5, 3, 0]
    assert deepfeat.open_features(path).table["image_id"].tolist() == [*mixed_store.table["image_id"], "new"]


@pytest.mark.parametrize(
    ("given_labels", "stored"),
    [
        ([None, None], ["a", "b", "c"]),
        (["x", "y"], ["a", "x", "y"]),
        (["x", None], ["a", "x", None]),
        ([None, "b"], ["a", None, "b"]),
    ],
)
def test_add_images_updates_a_column_that_has_values(path, make_table, given_labels, stored):
    with StoreWriter(path) as writer:
        writer.add_images(make_table(3, label=["a", "b", "c"], group="g", split=["train", "val", "test"]))
        writer.add_images(make_table(2, start=1, label=given_labels))
    table = table_values(deepfeat.open_features(path).table)
    assert table[2:] == [stored, ["g"] * 3, ["train", "val", "test"]]


@pytest.mark.parametrize("export", ["to_npz", "to_parquet"])
def test_export_into_a_folder_that_is_not_there_says_so_at_once(mixed_store, tmp_path, export):
    file = tmp_path / "nowhere" / "a.npz"
    with pytest.raises(UsageError, match=rf"cannot write {re.escape(str(file))}: there is no folder '.*nowhere'"):
        getattr(mixed_store, export)(file)


def test_add_images_takes_over_a_new_path(path, make_table):
    table = make_table(2)
    with StoreWriter(path) as writer:
        writer.add_images(table)
        writer.add_images(table.assign(path=["/elsewhere/0.png", "/elsewhere/1.png"]))
    assert deepfeat.open_features(path).table["path"].tolist() == ["/elsewhere/0.png", "/elsewhere/1.png"]


def test_add_images_without_news_leaves_the_file(path, make_table):
    table = make_table(3, label=["a", None, "b"])
    with StoreWriter(path) as writer:
        writer.add_images(table)
    before = path.read_bytes()
    with StoreWriter(path) as writer:
        assert writer.add_images(table.iloc[[2, 0]]).tolist() == [2, 0]
    assert path.read_bytes() == before


def test_add_images_that_cannot_be_written_leaves_the_table(mixed_store, path, make_table):
    with StoreWriter(path) as writer, pytest.raises(UnicodeEncodeError):
        writer.add_images(make_table(1, image_id=["\ud800"]))
    assert deepfeat.open_features(path).table.equals(mixed_store.table)


# Files that are no stores


def break_format(path):
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = "something else"


def break_version(path):
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 2


def break_spec(path):
    with h5py.File(path, "r+") as file:
        group = next(iter(file["blocks"].values()))
        group.attrs["spec"] = np.bytes_(group.attrs["spec"].replace(b"squash", b"crop"))


def break_json(path):
    with h5py.File(path, "r+") as file:
        next(iter(file["blocks"].values())).attrs["spec"] = np.bytes_(b"{")


def break_spec_entries(path):
    with h5py.File(path, "r+") as file:
        spec = {"backbone": "NetA"}
        group = file["blocks"].create_group(block_key(spec))
        group.attrs["spec"] = np.bytes_(canonical_json(spec).encode())


def drop_images(path):
    with h5py.File(path, "r+") as file:
        del file["images"]


def drop_shape(path):
    with h5py.File(path, "r+") as file:
        del next(iter(file["blocks"].values())).attrs["shape"]


def start_writing(path):
    with StoreWriter(path):
        pass


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize("opens", [deepfeat.open_features, FeatureStore, start_writing, deepfeat.fit_svm])
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.unlink(), "there is no feature store '{path}': make one with deepfeat.extract or"),
        (lambda path: path.write_text("image,label\n"), "{path} is not a feature store that can be read: "),
        (lambda path: path.write_bytes(b""), "{path} is not a feature store that can be read: "),
        (cut, "{path} is damaged: "),
        (break_format, "{path} is an HDF5 file, but not a feature store of deepfeat"),
        (break_version, "{path} has format version 2, and this deepfeat reads version 1: upgrade deepfeat"),
        (break_spec, "{path} is damaged: block {key} does not match its own description"),
        (break_json, "{path} is damaged: block {key} does not match its own description"),
        (break_spec_entries, "does not match its own description"),
        (drop_images, "{path} is damaged: "),
        (drop_shape, "{path} is damaged: "),
    ],
)
def test_file_that_is_no_store_is_refused(
    path, build_store, make_spec, make_table, random_features, opens, damage, sentence
):
    build_store(path, make_table(400), [(make_spec(), random_features(400, 3))])
    damage(path)
    if opens is start_writing and not path.exists():
        pytest.skip("a writer makes the file")
    with pytest.raises(StoreError) as caught:
        opens(path)
    message = str(caught.value)
    assert sentence.format(path=path, key=block_key(make_spec())) in message
    assert "\n" not in message


def test_store_that_may_not_be_read(mixed_store, path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(reading, "open", refuse, raising=False)
    with pytest.raises(StoreError, match=r"features\.h5 cannot be read: Permission denied"):
        deepfeat.open_features(path)


def test_folder_instead_of_a_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match="there is no feature store"):
        deepfeat.open_features(tmp_path)


def test_writer_where_no_store_can_be_made(path, monkeypatch):
    def fail(*_):
        raise OSError("disk quota exceeded")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StoreError, match=r"cannot create .*: disk quota exceeded"):
        StoreWriter(path).__enter__()


def test_file_that_does_not_name_its_format_is_none_of_ours(mixed_store, path):
    with h5py.File(path, "r+") as file:
        del file.attrs["format"]
    with pytest.raises(StoreError, match="is an HDF5 file, but not a feature store of deepfeat"):
        deepfeat.open_features(path)


def test_attribute_that_would_fill_the_memory_is_refused(mixed_store, path, monkeypatch):
    monkeypatch.setattr(layout, "_LARGEST_ATTRIBUTE", 32)
    with pytest.raises(StoreError, match="is too large"):
        deepfeat.open_features(path)


def test_writer_in_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(StoreError) as caught:
        start_writing(tmp_path / "nowhere" / "f.h5")
    assert str(caught.value) == f"cannot create {tmp_path}/nowhere/f.h5: there is no folder '{tmp_path}/nowhere'"


def test_new_store_leaves_no_draft(tmp_path):
    start_writing(tmp_path / "f.h5")
    assert [p.name for p in tmp_path.iterdir()] == ["f.h5"]
    assert deepfeat.open_features(tmp_path / "f.h5").table.empty


# The format, seen from outside


def read_plainly(path):
    """What anybody reads with h5py alone."""
    with h5py.File(path) as file:

        def text(name):
            data, ends = file[f"images/{name}/utf8"][()].tobytes(), file[f"images/{name}/offsets"][()]
            return [data[a:b].decode("utf-8", "surrogateescape") for a, b in itertools.pairwise(ends)]

        blocks = {}
        for key, group in file["blocks"].items():
            segments = sorted(group["segments"].values(), key=lambda segment: segment.attrs["start"])
            blocks[key] = {
                "spec": json.loads(group.attrs["spec"]),
                "shape": group.attrs["shape"].tolist(),
                "features": np.concatenate([s["features"][()] for s in segments]),
                "records": np.concatenate([s["records"][()] for s in segments]),
            }
        attributes = {name: file.attrs[name] for name in ("format", "format_version")}
        return attributes, int(file["images"].attrs["count"]), text("image_id"), text("label"), blocks


def test_plain_h5py_reads_a_grown_store(grown_store, path, make_spec):
    store, features = grown_store
    attributes, count, ids, labels, blocks = read_plainly(path)
    assert attributes == {"format": b"deepfeat features", "format_version": 1}
    assert (count, ids, labels) == (9, store.table["image_id"].tolist(), [""] * 9)
    block = blocks[block_key(make_spec())]
    assert (block["spec"], block["shape"]) == (make_spec(), [3])
    np.testing.assert_array_equal(block["features"], features)
    assert block["features"].dtype == np.dtype("<f4")
    assert block["records"]["state"].tolist() == [1] * 9
    assert block["records"]["checksum"].tolist() == [checksum(row) for row in features]


def test_plain_h5py_reads_states_and_reasons(mixed_store, path, make_spec):
    records = read_plainly(path)[-1][block_key(make_spec("NetA"))]["records"]
    assert records["state"].tolist() == [1, 2, 0, 1, 2]
    assert records["reason"].tolist() == [b"", "not an image: é".encode(), b"", b"", b"truncated"]
    assert records.dtype.names == RECORD.names


def test_what_another_thread_has_open_is_read_as_it_is_now(tmp_path):
    """HDF5 shares what it knows of a file among all that opened it by its path in one process."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="v110") as file:
        file.attrs["images"] = 0
    with viewing(path) as before:
        assert before.file.attrs["images"] == 0
        with changing(path) as file:
            file.attrs["images"] = 1
            file.create_group("block")
        with viewing(path) as after:
            assert (after.file.attrs["images"], list(after.file)) == (1, ["block"])
