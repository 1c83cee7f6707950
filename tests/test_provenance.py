from __future__ import annotations

import hashlib

import h5py
import numpy as np
import pandas as pd
import pytest

import deepfeat
from deepfeat.errors import DamageError, DataError, StoreError
from deepfeat.fusion import one_space
from deepfeat.provenance import TrainedOn, digest_group
from deepfeat.store import StoreWriter
from deepfeat.store.journal import changing, replay
from deepfeat.svm.samples import load_samples


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


def test_lists_of_a_store_that_was_replaced_are_refused(store):
    other = store.path.with_name("other.h5")
    other.write_bytes(store.path.read_bytes())
    other.replace(store.path)
    with pytest.raises(StoreError, match="open it again"):
        store.trained_on("skin")


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


# No score on what a network has seen

C = {"C": [0.1]}


@pytest.fixture
def tuned_store(tmp_path, make_spec, make_table, make_records):
    """Builds a store of 40 images, two of each lesion, and random features of networks that have seen some lesions."""

    def build(networks, name="f.h5", contents=None, **columns):
        labels = ["A" if i // 2 % 2 else "B" for i in range(40)]
        table = make_table(40, label=labels, group=[f"lesion {i // 2}" for i in range(40)], **columns)
        with StoreWriter(tmp_path / name) as writer:
            rows = writer.add_images(table)
            for number, (backbone, lesions, spec) in enumerate(networks):
                seen = None if lesions is None else TrainedOn.of([], [f"lesion {k}" for k in lesions])
                block = writer.add_block(make_spec(backbone, **spec), (3,), {}, seen)
                features = np.full((40, 3), number, np.float32) + np.arange(40, dtype=np.float32)[:, None] / 100
                writer.write(block, rows, features, make_records(contents or table["image_id"].tolist()))
        return deepfeat.open_features(tmp_path / name)

    return build


def space(number):
    return {"space": "simplex:s", "weights": str(number) * 64}


SPLIT = ["train"] * 28 + ["test"] * 12


@pytest.mark.parametrize(
    ("lesions", "test", "said"),
    [
        (
            range(14),
            None,
            "28 of the 40 images to be.*in 14 group.*first: 'img000'.*test='split'.*finetune_folds",
        ),
        ([19], None, "2 of the 40 images to be scored, in 1 group.*first: 'img038'"),
        ([14, 15], "split", "4 of the 12 images to be scored, in 2 group.*first: 'img028'"),
        (range(20), 0.25, "10 of the 10 images to be scored"),
    ],
)
def test_images_that_the_network_has_seen_are_not_scored(tuned_store, lesions, test, said):
    store = tuned_store([("NetA", None, {}), ("skin", lesions, {})], split=SPLIT)
    with pytest.raises(DataError, match=said):
        deepfeat.fit_svm(store, test=test, param_grid=C)
    deepfeat.fit_svm(store, backbones="NetA", test=test, param_grid=C)


def test_training_images_may_have_been_seen_and_the_result_says_so(tuned_store):
    result = deepfeat.fit_svm(tuned_store([("skin", range(14), {})], split=SPLIT), param_grid=C)
    assert result.evaluated_on == "test"
    assert any("skin was fine-tuned on 28 of the 28 training images" in note for note in result.warnings)
    fresh = deepfeat.fit_svm(tuned_store([("skin", [], {})], "g.h5", split=SPLIT), param_grid=C)
    assert not any("fine-tuned" in note for note in fresh.warnings)


def test_set_that_holds_a_seen_image_counts_as_seen(tuned_store):
    """img039 equals img000 byte for byte, whose lesion was seen; img038 is of the same lesion as img039."""
    contents = [f"img{i:03d}" for i in range(39)] + ["img000"]
    store = tuned_store([("skin", [0], {})], contents=contents)
    with pytest.raises(DataError, match=r"4 of the 40 images to be scored, in 1 group"):
        deepfeat.fit_svm(store, test=None, param_grid=C)


def test_image_without_label_ties_others_to_what_was_seen(tuned_store):
    """img010, without a label, equals img000 byte for byte, and is of one lesion with img011."""
    contents = [f"img{i:03d}" if i != 10 else "img000" for i in range(40)]
    store = tuned_store([("skin", [0], {})], contents=contents)
    labels = dict(zip(store.table["image_id"], store.table["label"], strict=True))
    labels = pd.Series({name: label for name, label in labels.items() if name != "img010"})
    with pytest.raises(DataError, match="3 of the 39 images to be scored"):
        deepfeat.fit_svm(store, labels=labels, test=None, param_grid=C)


@pytest.mark.parametrize("backbones", ["top-1", "all-subsets", ["NetA", "skin"]])
def test_choice_among_blocks_is_guarded_too(tuned_store, backbones):
    store = tuned_store([("NetA", None, {}), ("skin", [0], {})])
    with pytest.raises(DataError, match="images that skin was fine-tuned on"):
        deepfeat.fit_svm(store, backbones=backbones, test=None, param_grid=C)


FOLDS = [(f"skin@fold{k}", [n for n in range(20) if n % 4 != k], space(k)) for k in range(4)]


@pytest.mark.parametrize("backbones", ["skin@folds", None])
def test_folds_give_each_image_the_network_that_has_not_seen_it(tuned_store, backbones):
    scores = [(name, lesions, {**spec, "layer": "scores"}) for name, lesions, spec in FOLDS]
    samples = load_samples(tuned_store([*FOLDS, *scores]), backbones, None)
    assert samples.blocks == {"skin@folds": 3}
    np.testing.assert_array_equal(np.floor(samples.X[:, 0]), np.arange(40) // 2 % 4)
    assert not samples.seen["skin@folds"].any()
    assert samples.folds == ("skin@folds",)


def test_folds_are_scored_and_averaged_like_any_block(tuned_store):
    store = tuned_store([*FOLDS, ("other", [], space(7))])
    result = deepfeat.fit_svm(store, backbones="skin@folds", test=None, param_grid=C)
    assert result.evaluated_on == "out-of-fold"
    assert any("as in stacking" in note for note in result.warnings)
    both = deepfeat.fit_svm(store, backbones=["skin@folds", "other"], fusion="average", test=None, param_grid=C)
    assert both.blocks == {"skin@folds": 3, "other": 3}


def test_lacking_fold_leaves_images_that_all_networks_have_seen(tuned_store):
    with pytest.raises(DataError, match=r"10 of the 40 images .*extract all networks that deepfeat.finetune_folds"):
        deepfeat.fit_svm(tuned_store(FOLDS[:3]), backbones="skin@folds", test=None, param_grid=C)


@pytest.mark.parametrize("spaces", [(None, None), ("s", "t")])
def test_folds_of_different_spaces_are_not_put_together(tuned_store, spaces):
    folds = [
        (name, lesions, {"weights": str(k) * 64, **({"space": s} if s else {})})
        for k, ((name, lesions, _), s) in enumerate(zip(FOLDS, spaces, strict=False))
    ]
    with pytest.raises(DataError, match=r"skin@fold0 and skin@fold1 are different embedding spaces.*embedding_dim"):
        deepfeat.fit_svm(tuned_store(folds), test=None, param_grid=C)


def test_single_fold_is_named_like_any_block_and_guarded(tuned_store):
    split = ["test" if i // 2 % 4 == 1 else "train" for i in range(40)]
    store = tuned_store(FOLDS, split=split)
    assert deepfeat.fit_svm(store, backbones="skin@fold1", param_grid=C).blocks == {"skin@fold1": 3}
    with pytest.raises(DataError, match="skin@fold2 was fine-tuned on"):
        deepfeat.fit_svm(store, backbones="skin@fold2", param_grid=C)


def test_fold_named_brings_its_views(tuned_store):
    name, lesions, spec = FOLDS[0]
    store = tuned_store([FOLDS[0], (name, lesions, {**spec, "view": "hflip"})])
    assert load_samples(store, "skin@fold0", None).views == ("original", "hflip")
    assert load_samples(store, "skin@folds", None).views == ("original", "hflip")
    assert load_samples(store, "skin@fold0@hflip", None).views == ("original",)
    assert load_samples(store, "skin@folds", None, views=False).views == ("original",)


def test_view_that_lacks_a_fold_is_refused(tuned_store):
    name, lesions, spec = FOLDS[0]
    store = tuned_store([*FOLDS, (name, lesions, {**spec, "view": "hflip"})])
    with pytest.raises(DataError, match="views of skin@folds have different folds"):
        load_samples(store, "skin@folds", None)
    assert load_samples(store, "skin@folds", None, views=False).views == ("original",)


def test_fold_that_has_seen_a_tied_image_is_not_chosen(tuned_store):
    """img004, of lesion 2, equals img000 byte for byte, whose lesion the first network has seen."""
    contents = [f"img{i:03d}" if i != 4 else "img000" for i in range(40)]
    folds = [("skin@fold0", [0], space(0)), ("skin@fold1", [n for n in range(20) if n not in {0, 2}], space(1))]
    samples = load_samples(tuned_store(folds, contents=contents), "skin@folds", None)
    assert np.floor(samples.X[[0, 1, 4, 5], 0]).tolist() == [1, 1, 1, 1]
    assert not samples.seen["skin@folds"].any()


def test_unknown_folds_are_an_error_with_the_names(tuned_store):
    with pytest.raises(StoreError, match=r"no embeddings of deepfeat.finetune_folds for 'mole@folds'.*'skin@fold0'"):
        deepfeat.fit_svm(tuned_store(FOLDS), backbones="mole@folds")


def test_backbone_that_only_looks_like_a_fold_stands_for_itself(tuned_store):
    store = tuned_store([("net@fold0", None, {}), ("net@fold1", None, {})])
    assert list(load_samples(store, None, None).blocks) == ["net@fold0", "net@fold1"]


def test_class_scores_are_taken_where_named(tuned_store):
    store = tuned_store([("skin", [], {}), ("skin", [], {"layer": "scores"})])
    assert list(load_samples(store, None, None).blocks) == ["skin"]
    assert list(load_samples(store, "skin:scores", None).blocks) == ["skin:scores"]
