from __future__ import annotations

import hashlib

import h5py
import numpy as np
import pytest

import deepfeat
from deepfeat.errors import DamageError
from deepfeat.fusion import one_space
from deepfeat.provenance import TrainedOn, digest_group
from deepfeat.store import StoreWriter
from deepfeat.store.journal import changing, replay


def digest(text):
    return hashlib.sha256(str(text).encode()).digest()


def stacked(*texts):
    return np.frombuffer(b"".join(map(digest, texts)), np.uint8).reshape(-1, 32)


@pytest.mark.parametrize(
    ("digests", "groups", "expected"),
    [
        ("abc", ["p", "q", None], [True, True, False]),
        ("xyz", ["p", "q", "r"], [False, True, False]),
        ("xyz", [None, float("nan"), None], [False, False, False]),
        ("axa", ["r", "r", None], [True, False, True]),
    ],
)
def test_an_image_was_seen_by_its_content_or_its_group(digests, groups, expected):
    trained_on = TrainedOn.of(map(digest, "ab"), ["q", None, "q"])
    assert trained_on.saw(stacked(*digests), groups).tolist() == expected


def test_twenty_thousand_digests_are_found_and_no_other():
    trained_on = TrainedOn.of(map(digest, range(20_000)), [])
    seen = trained_on.saw(stacked(*range(19_000, 21_000)), [None] * 2_000)
    assert seen.tolist() == [True] * 1_000 + [False] * 1_000


def test_lists_are_sorted_and_without_repetition():
    first, second = TrainedOn.of(map(digest, "abca"), "pqp"), TrainedOn.of(map(digest, "cba"), "qp")
    assert first.digest() == second.digest()
    assert first.images.shape == (3, 32)
    assert {row.tobytes() for row in first.groups} == {digest_group("p"), digest_group("q")}


def test_digest_tells_images_from_groups():
    one, two = TrainedOn(stacked("a"), stacked("b")), TrainedOn(stacked("a", "b"), stacked()[:0].reshape(0, 32))
    assert one.digest() != two.digest()


def test_union_has_what_either_has():
    both = TrainedOn.of([digest("a")], ["p"]).union(TrainedOn.of([digest("b"), digest("a")], []))
    assert both.digest() == TrainedOn.of([digest("a"), digest("b")], ["p"]).digest()


# In a store


TRAINED_ON = TrainedOn.of(map(digest, ["img000", "img002"]), ["lesion 3"])


@pytest.fixture
def store(tmp_path, make_spec, make_table, make_records, random_features):
    """Five images; the network of "skin" has seen img000, img002 and the group of img003 and img004."""
    table = make_table(5, group=[None, "lesion 1", "lesion 2", "lesion 3", "lesion 3"])
    with StoreWriter(tmp_path / "f.h5") as writer:
        rows = writer.add_images(table)
        for name, seen in (("skin", TRAINED_ON), ("other", TrainedOn.of([], [])), ("NetA", None)):
            block = writer.add_block(make_spec(name), (3,), {}, seen)
            writer.write(block, rows, random_features(5, 3), make_records(table["image_id"].tolist()))
    return deepfeat.open_features(tmp_path / "f.h5")


def test_store_tells_what_each_network_has_seen(store):
    assert store.seen("skin").tolist() == [True, False, True, True, True]
    assert store.seen("other").tolist() == store.seen("NetA").tolist() == [False] * 5
    assert store.trained_on("skin").digest() == TRAINED_ON.digest()
    assert len(store.trained_on("other").images) == 0
    assert store.trained_on("NetA") is None


def test_layout_is_as_documented(store):
    with h5py.File(store.path, "r") as file:
        lists = file[f"blocks/{store.find('skin').key}/trained_on"]
        images, groups = lists["images"][()], lists["groups"][()]
        expected = hashlib.sha256(len(images).to_bytes(8, "little") + images.tobytes() + groups.tobytes()).hexdigest()
        assert lists.attrs["sha256"].decode() == expected
        assert [row.tobytes() for row in images] == sorted([digest("img000"), digest("img002")])
        assert groups[0].tobytes() == hashlib.sha256(b"lesion 3").digest()


def test_images_added_later_are_known_by_their_group(store, make_spec, make_table):
    with StoreWriter(store.path) as writer:
        writer.add_images(make_table(2, start=5, group=["lesion 3", "lesion 5"]))
        writer.add_block(make_spec("skin"), (3,), {}, TRAINED_ON)
    assert deepfeat.open_features(store.path).seen("skin").tolist() == [True, False, True, True, True, True, False]


def test_merging_takes_it_along(store, tmp_path):
    merged = deepfeat.merge_features([store.path], tmp_path / "merged.h5")
    assert merged.trained_on("skin").digest() == TRAINED_ON.digest()
    assert merged.trained_on("NetA") is None


@pytest.mark.parametrize("part", ["images", "groups"])
def test_changed_list_is_damage(store, part):
    place = getattr(store.find("skin").provenance, part)
    with open(store.path, "r+b") as file:
        file.seek(place.offset + 7)
        byte = file.read(1)[0]
        file.seek(place.offset + 7)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(DamageError, match="what skin was trained on does not match its checksum"):
        deepfeat.open_features(store.path).seen("skin")


def test_lists_are_read_through_a_journal_that_is_not_carried_out(store, make_spec, monkeypatch):
    from deepfeat.store import layout

    monkeypatch.setattr("deepfeat.store.journal.replay", lambda path: None)
    with changing(store.path) as file:
        spec = make_spec("late")
        layout.write_block(file, spec, (3,), {}, TRAINED_ON)
    pending = deepfeat.open_features(store.path)
    assert pending.trained_on("late").digest() == TRAINED_ON.digest()
    monkeypatch.undo()
    replay(store.path)
    assert pending.trained_on("late").digest() == TRAINED_ON.digest()


@pytest.mark.parametrize("wrong", ["width", "type"])
def test_strange_lists_are_refused(store, wrong):
    with h5py.File(store.path, "r+") as file:
        lists = file[f"blocks/{store.find('skin').key}/trained_on"]
        del lists["images"]
        lists["images"] = np.zeros((2, 31), np.uint8) if wrong == "width" else np.zeros((2, 32), np.int32)
    with pytest.raises(DamageError, match="is damaged"):
        deepfeat.open_features(store.path)


# Spaces


@pytest.mark.parametrize(
    ("spaces", "expected"),
    [(("s", "s"), True), (("s", "t"), False), (("s", None), False), ((None, "s"), False), ((None, None), False)],
)
def test_networks_are_of_one_space_if_their_specs_name_the_same(make_spec, spaces, expected):
    specs = [make_spec(name, weights=name, space=space) for name, space in zip("ab", spaces, strict=True)]
    specs = [{k: v for k, v in spec.items() if v is not None or k == "layer"} for spec in specs]
    assert one_space(specs) is expected


def test_views_of_one_network_stay_of_one_space(make_spec):
    assert one_space([make_spec("a", view="original", space="s"), make_spec("a", view="hflip", space="s")])
