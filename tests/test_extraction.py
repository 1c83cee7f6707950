from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import deepfeat
from deepfeat import computation
from deepfeat.backbones import registry
from deepfeat.backbones.network import PREPROCESSINGS, untrained
from deepfeat.computation import Output
from deepfeat.errors import DataError, DataWarning, ImageError, StoreError, UsageError
from deepfeat.extraction import find_unfit, plan_rows
from deepfeat.images import FileStamp, LoadedImage
from deepfeat.resizing import resize_image, resizer
from deepfeat.runtimes.keras import KerasRuntime
from deepfeat.store import DONE, FAILED, RECORD
from deepfeat.verification import backbone_of


def tiny(input_shape):
    inputs = keras.Input(input_shape)
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="first")(inputs)
    return keras.Model(inputs, keras.layers.Conv2D(6, 3, padding="same", name="second")(x), name="tiny")


@pytest.fixture(scope="module", autouse=True)
def tiny_network():
    registry.find_network("EfficientNetLite0")
    deepfeat.register_backbone("Tiny", tiny, input_size=16, preprocess="tf")
    yield
    del registry._REGISTRY["Tiny"]


TINY = {"name": "Tiny", "weights": None, "pooling": "avg"}


def save_picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    for number in range(10):
        save_picture(tmp_path / "photos" / "ab"[number % 2] / f"{number:02d}.png", number)
    return tmp_path / "photos"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "features.h5"


def extract(images, cache, backbones=None, **options):
    chosen = deepfeat.Backbone(**TINY) if backbones is None else backbones
    return deepfeat.extract(images, chosen, cache, progress=False, **{"runtime": "keras", **options})


@pytest.fixture
def computed(monkeypatch):
    """Number of images that each call of a network got."""
    calls = []
    original = KerasRuntime.__call__

    def count(self, images):
        calls.append(len(images))
        return original(self, images)

    monkeypatch.setattr(KerasRuntime, "__call__", count)
    return calls


def expected_features(folder, ids, layer="second"):
    backbone = deepfeat.Backbone(**TINY)
    model = backbone.build()
    x = (
        np.stack([resize_image(Image.open(folder / i).convert("RGB"), (16, 16), "squash") for i in ids]).astype(
            "float32"
        )
        / 127.5
        - 1
    )
    maps = keras.Model(model.inputs[0], model.get_layer(layer).output)(x)
    return np.asarray(maps).mean(axis=(1, 2))


def test_features_are_those_of_each_image(folder, cache):
    store = extract(folder, cache, batch_size=4)
    assert store.table["image_id"].tolist() == sorted(store.table["image_id"])
    assert store.table["label"].tolist() == [i[0] for i in store.table["image_id"]]
    np.testing.assert_allclose(
        store.features("Tiny"), expected_features(folder, store.table["image_id"]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64, "auto"])
def test_features_do_not_depend_on_the_batch_size(folder, cache, tmp_path, batch_size):
    first = extract(folder, cache, batch_size=5).features("Tiny")
    other = extract(folder, tmp_path / "other.h5", batch_size=batch_size).features("Tiny")
    assert np.abs(first - other).max() / np.abs(first).max() < 1e-4


def test_second_run_computes_nothing_and_builds_nothing(folder, cache, monkeypatch):
    first = extract(folder, cache).features("Tiny").copy()
    before = cache.read_bytes()

    def forbidden(*args, **kwargs):
        raise AssertionError("the network was built")

    monkeypatch.setattr(deepfeat.Backbone, "build", forbidden)
    np.testing.assert_array_equal(extract(folder, cache).features("Tiny"), first)
    assert cache.read_bytes() == before


def test_only_new_images_are_computed(folder, cache, computed):
    extract(folder, cache)
    save_picture(folder / "a" / "new.png", 99)
    store = extract(folder, cache)
    assert computed == [10, 1]
    np.testing.assert_allclose(
        store.features("Tiny"), expected_features(folder, store.table["image_id"]), rtol=1e-4, atol=1e-5
    )


def test_changed_image_is_computed_again_and_touched_one_is_not(folder, cache, computed):
    extract(folder, cache)
    save_picture(folder / "a" / "00.png", 77)
    os.utime(folder / "b" / "01.png", ns=(1, 1))
    store = extract(folder, cache)
    assert computed == [10, 1]
    np.testing.assert_allclose(
        store.features("Tiny"), expected_features(folder, store.table["image_id"]), rtol=1e-4, atol=1e-5
    )
    extract(folder, cache)
    assert computed == [10, 1]


def test_vanished_file_keeps_its_features(folder, cache, computed):
    table = deepfeat.read_folder(folder)
    first = extract(table, cache).features("Tiny").copy()
    shutil.rmtree(folder)
    np.testing.assert_array_equal(extract(table, cache).features("Tiny"), first)
    assert computed == [10]


def test_bad_images_are_recorded_with_their_reasons_and_tried_again(folder, cache, computed):
    table = deepfeat.read_folder(folder)
    whole = (folder / "a" / "02.png").read_bytes()
    (folder / "a" / "00.png").unlink()
    (folder / "a" / "02.png").write_bytes(whole[:200])
    (folder / "b" / "03.png").write_bytes(b"")
    (folder / "b" / "05.png").write_text("hello")
    with pytest.warns(DataWarning, match=r"4 of 10 images failed for Tiny \('a/00.png': file not found; "):
        store = extract(table, cache)
    reasons = dict(zip(store.failures["image_id"], store.failures["reason"], strict=True))
    assert reasons.keys() == {"a/00.png", "a/02.png", "b/03.png", "b/05.png"}
    assert (reasons["a/00.png"], reasons["b/03.png"]) == ("file not found", "empty file")
    assert reasons["b/05.png"] == "not an image of a known format"
    assert store.blocks.loc[0, ["done", "missing", "failed"]].tolist() == [6, 0, 4]
    with pytest.raises(StoreError, match="4 failed"):
        store.features("Tiny")
    (folder / "a" / "02.png").write_bytes(whole)
    with pytest.warns(DataWarning, match="3 of 10 images failed"):
        store = extract(table, cache)
    assert computed == [6, 1]
    np.testing.assert_allclose(
        store.features("Tiny", ["a/02.png"]), expected_features(folder, ["a/02.png"]), rtol=1e-4, atol=1e-5
    )


def test_image_that_turns_bad_loses_its_features(folder, cache):
    extract(folder, cache)
    (folder / "a" / "00.png").write_bytes(b"broken")
    with pytest.warns(DataWarning, match="1 of 10 images failed"):
        store = extract(folder, cache)
    assert "a/00.png" not in store.ready("Tiny")


def test_all_images_bad_is_recorded(tmp_path, cache):
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "photos" / "a" / "0.png").write_bytes(b"no")
    with pytest.warns(DataWarning, match="1 of 1 images failed"):
        store = extract(tmp_path / "photos", cache)
    assert store.blocks["failed"].tolist() == [1]


def test_on_error_raise_names_the_image_and_keeps_what_is_stored(folder, cache, computed):
    (folder / "b" / "07.png").write_bytes(b"no")
    with pytest.raises(ImageError, match=r"07\.png: not an image"):
        extract(folder, cache, on_error="raise", batch_size=3)
    states = deepfeat.open_features(cache).records("Tiny")["state"]
    assert states.tolist() == [DONE] * 8 + [FAILED] + [0]
    (folder / "b" / "07.png").unlink()
    extract(folder, cache, batch_size=3)
    assert computed[-1] == 1


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_interrupted_run_keeps_its_batches_and_ends_like_an_uninterrupted_one(
    folder, cache, tmp_path, monkeypatch, computed, interruption
):
    original = computation._run

    def stop_at_third(backbone, images):
        if images[0].row == 6:
            raise interruption
        return original(backbone, images)

    with monkeypatch.context() as patch:
        patch.setattr(computation, "_run", stop_at_third)
        with pytest.raises(interruption):
            extract(folder, cache, batch_size=3)
    assert deepfeat.open_features(cache).blocks["done"].tolist() == [6]
    computed.clear()
    resumed = extract(folder, cache, batch_size=3)
    assert sorted(computed) == [1, 3]
    whole = extract(folder, tmp_path / "whole.h5", batch_size=3)
    np.testing.assert_array_equal(resumed.features("Tiny"), whole.features("Tiny"))


def test_layers_are_blocks_of_one_pass(folder, cache, computed):
    backbone = deepfeat.Backbone(**TINY, layer=["first", "second"])
    store = extract(folder, cache, backbone)
    assert computed == [10]
    assert store.blocks["name"].tolist() == ["Tiny:first", "Tiny:second"]
    assert store.blocks["dim"].tolist() == [4, 6]
    for layer in ("first", "second"):
        np.testing.assert_allclose(
            store.features(f"Tiny:{layer}"),
            expected_features(folder, store.table["image_id"], layer),
            rtol=1e-4,
            atol=1e-5,
        )


def test_blocks_that_have_a_row_keep_it_when_another_view_or_layer_lacks_it(folder, cache, computed):
    """Three files are gone, and one is new, when a view and a layer are added."""
    one, both = (deepfeat.Backbone(**TINY, layer=layer) for layer in (["first"], ["first", "second"]))
    store = extract(folder, cache, one)
    before, records = store.features("Tiny:first"), store.records("Tiny:first")
    for number in range(3):
        (folder / "ab"[number % 2] / f"{number:02d}.png").unlink()
    save_picture(folder / "b" / "new.png", 99)
    table = pd.concat([store.table, deepfeat.read_folder(folder).query("image_id == 'b/new.png'")])
    computed.clear()
    with pytest.warns(DataWarning, match="file not found"):
        store = extract(table, cache, both, views=["original", "hflip"])
    assert computed == [2 * 8]  # one of them for its sake, the rest for the new blocks
    np.testing.assert_array_equal(store.features("Tiny:first", table["image_id"][:10].tolist()), before)
    np.testing.assert_array_equal(store.records("Tiny:first")[:10], records)
    states = store.blocks.set_index("name")[["done", "failed"]]
    assert states.loc["Tiny:first"].tolist() == [11, 0]
    assert all(states.loc[name].tolist() == [8, 3] for name in states.index[1:])
    kept = [image for image in table["image_id"] if (folder / image).exists()]
    np.testing.assert_allclose(
        store.features("Tiny:second", kept), expected_features(folder, kept), rtol=1e-4, atol=1e-5
    )


def test_output_and_a_layer_are_blocks_of_one_pass(folder, cache, computed):
    store = extract(folder, cache, deepfeat.Backbone(**TINY, layer=[None, "first"]))
    assert store.blocks["name"].tolist() == ["Tiny", "Tiny:first"]
    assert computed == [10]


def test_rows_without_numbers_have_nothing_that_does_not_fit():
    assert find_unfit(Output([0, 1], [np.empty((2, 3, 3, 0), np.float32)]), "float16") == {}
    layer = np.array([[1.0, -7e4], [-np.inf, 0], [np.nan, 1], [1, 2]], np.float32)
    assert find_unfit(Output([4, 5, 6, 7], [layer]), "float16").keys() == {4, 5, 6}
    assert find_unfit(Output([4, 5, 6, 7], [layer]), "float32").keys() == {5, 6}


def test_view_that_is_added_is_computed_alone(folder, cache, computed):
    extract(folder, cache, views="original")
    store = extract(folder, cache, views=["original", "hflip"])
    assert computed == [10, 10]
    assert store.blocks["name"].tolist() == ["Tiny", "Tiny@hflip"]
    alone = extract(folder, cache.with_name("alone.h5"), views="hflip").features("Tiny@hflip")
    np.testing.assert_array_equal(store.features("Tiny@hflip"), alone)


def test_features_that_are_no_numbers_in_the_stored_type_are_failures(folder, cache):
    """A sum over many pixels that float16 does not reach, but for one black picture; and a division by zero."""

    def build(shape):
        inputs = keras.Input(shape)
        x = keras.layers.Conv2D(2, 16, name="sum")(keras.layers.Rescaling(1e4)(inputs))
        return keras.Model(inputs, keras.layers.Lambda(lambda x: x / x, name="ratio")(x))

    backbone = deepfeat.Backbone(
        "Sum", weights=None, network=untrained("Sum", build, 16, PREPROCESSINGS["none"]), layer=["sum"]
    )
    Image.new("RGB", (16, 16)).save(folder / "a" / "black.png")
    assert extract(folder, cache, backbone).blocks["done"].tolist() == [11]
    reason = "the largest feature is .*, and float16 ends at 65,504: store them as float32"
    with pytest.warns(DataWarning, match=f"10 of 11 images failed .*{reason}"):
        store = extract(folder, cache.with_name("half.h5"), backbone, dtype="float16")
    np.testing.assert_array_equal(store.features("Sum:sum", ["a/black.png"]), np.zeros((1, 2)))
    with pytest.warns(DataWarning, match="the network gives nan among its features"):
        store = extract(folder, cache, replace(backbone, layer=("ratio",)))
    assert store.failures["image_id"].tolist() == ["a/black.png"]
    with pytest.raises(ImageError, match=r"black\.png: the network gives nan among its features"):
        extract(folder, cache, replace(backbone, layer=("ratio",)), on_error="raise")


def test_feature_maps_keep_their_shape(folder, cache):
    backbone = deepfeat.Backbone(**{**TINY, "pooling": None})
    assert extract(folder, cache, backbone).features("Tiny").shape == (10, 8, 8, 6)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"pooling": "max"}, {"resize": "pad"}, {"input_size": 12}, {"layer": "second"}]
)
def test_other_settings_make_another_block(folder, cache, change):
    extract(folder, cache)
    store = extract(folder, cache, deepfeat.Backbone(**{**TINY, **change}))
    assert len(store.blocks) == 2
    assert store.blocks["key"].nunique() == 2
    assert store.blocks["done"].tolist() == [10, 10]


def test_swapped_weights_under_one_name_make_another_block(folder, cache, tmp_path, caplog):
    weights = tmp_path / "tiny.weights.h5"
    with caplog.at_level("INFO", "deepfeat"):
        for _ in range(2):
            tiny((16, 16, 3)).save_weights(weights)  # initial weights differ from call to call
            store = extract(folder, cache, deepfeat.Backbone("Tiny", weights=weights))
    assert "Tiny: a new block, since weights is another than in " in caplog.text
    first, second = (store.features(key) for key in store.blocks["key"])
    assert not np.allclose(first, second)


def test_backbones_given_by_name_are_run_in_order(folder, cache, computed):
    deepfeat.extract(folder, "Tiny", cache, progress=False, runtime="keras")
    assert computed == [10]


def test_random_weights_are_said_aloud(folder, cache, caplog):
    extract(folder, cache)
    assert "Tiny has random weights (seed 0)" in caplog.text


def test_equal_files_are_reported(folder, cache):
    shutil.copy(folder / "a" / "00.png", folder / "b" / "copy.png")
    with pytest.warns(DataWarning, match=r"1 set\(s\) of images are equal byte for byte \(first: 'a/00.png', 'b/copy"):
        extract(folder, cache)


def test_images_as_a_list_of_paths(folder, cache):
    paths = [folder / "b" / "01.png", folder / "a" / "00.png"]
    store = extract(paths, cache)
    assert store.table["image_id"].tolist() == [str(p) for p in paths]
    np.testing.assert_allclose(
        store.features("Tiny"), expected_features(folder, ["b/01.png", "a/00.png"]), rtol=1e-4, atol=1e-5
    )


def test_labels_of_a_new_table_replace_the_stored_ones(folder, cache, computed):
    table = deepfeat.read_folder(folder)
    extract(table, cache)
    store = extract(table.assign(label="z"), cache)
    assert set(store.table["label"]) == {"z"}
    assert computed == [10]


@pytest.mark.parametrize("name", ["übung Ωß", "with  spaces", "x" * 200, "日本語", "a'b\"c"])
def test_names_of_every_kind(tmp_path, cache, name):
    save_picture(tmp_path / "photos" / name / f"{name}.png", 0)
    store = extract(tmp_path / "photos", cache)
    assert store.ready("Tiny").tolist() == [f"{name}/{name}.png"]
    assert store.table["label"].tolist() == [name]


def test_name_that_is_not_utf8(tmp_path, cache):
    save_picture(tmp_path / "photos" / "a" / "0.png", 0)
    os.rename(tmp_path / "photos" / "a" / "0.png", os.fsencode(tmp_path / "photos" / "a") + b"/\xff.png")
    store = extract(tmp_path / "photos", cache)
    assert store.blocks["done"].tolist() == [1]
    assert extract(tmp_path / "photos", cache).n_images == 1


def test_symbolic_links_are_images_like_others(tmp_path, folder, cache):
    links = tmp_path / "links" / "a"
    links.mkdir(parents=True)
    (links / "0.png").symlink_to(folder / "a" / "00.png")
    (links / "1.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.warns(DataWarning, match="1 of 2 images failed"):
        store = extract(tmp_path / "links", cache)
    assert store.ready("Tiny").tolist() == ["a/0.png"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, UsageError, "batch_size is 0: use 'auto' or a number of images"),
        ({"batch_size": "big"}, UsageError, "batch_size is 'big'"),
        ({"batch_size": True}, UsageError, "batch_size is True"),
        ({"on_error": "ignore"}, UsageError, "use 'record' or 'raise'"),
        ({"backbones": []}, UsageError, "the list of backbones is empty"),
        ({"backbones": ["Nope"]}, UsageError, "there is no backbone 'Nope'"),
    ],
)
def test_wrong_argument(folder, cache, options, error, message):
    with pytest.raises(error, match=message):
        extract(folder, cache, **options)
    assert not cache.exists()


def test_empty_folder_and_missing_one(tmp_path, cache):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images found"):
        extract(tmp_path / "empty", cache)
    with pytest.raises(UsageError, match="missing' does not exist"):
        extract(tmp_path / "missing", cache)


def test_cache_that_is_another_file(folder, cache):
    cache.write_text("precious")
    with pytest.raises(StoreError, match="not a feature store"):
        extract(folder, cache)
    assert cache.read_text() == "precious"


@pytest.mark.parametrize(
    ("record", "stamp", "planned"),
    [
        ((DONE, 5, 7), FileStamp(5, 7), False),
        ((DONE, 5, 7), FileStamp(5, 8), True),
        ((DONE, 5, 7), FileStamp(6, 7), True),
        ((DONE, 5, 7), None, False),
        ((FAILED, 5, 7), FileStamp(5, 7), True),
        ((FAILED, 0, 0), None, True),
        ((0, 0, 0), FileStamp(5, 7), True),
        ((0, 0, 0), None, True),
    ],
)
def test_plan_row(record, stamp, planned):
    records = np.zeros(3, RECORD)
    records[2]["state"], records[2]["size"], records[2]["mtime_ns"] = record
    assert plan_rows(records, {2: stamp}) == ([2] if planned else [])


def test_renamed_image_of_known_content_is_copied(folder, cache, computed, caplog):
    first = extract(folder, cache)
    known = first.features("Tiny", ["a/00.png"]).copy()
    (folder / "a" / "00.png").rename(folder / "b" / "other name.png")
    with caplog.at_level("INFO", "deepfeat"), pytest.warns(DataWarning, match="are equal byte for byte|files are gone"):
        store = extract(folder, cache)
    assert computed == [10]
    assert "Tiny: 9 done before, 1 copied" in caplog.text
    np.testing.assert_array_equal(store.features("Tiny", ["b/other name.png"]), known)


@pytest.mark.parametrize("batch_size", [1, 10])
def test_images_that_swap_their_contents_swap_their_features(folder, cache, batch_size):
    extract(folder, cache, batch_size=batch_size)
    first, second = folder / "a" / "00.png", folder / "b" / "09.png"
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    store = extract(folder, cache, batch_size=batch_size)
    np.testing.assert_allclose(
        store.features("Tiny"), expected_features(folder, store.table["image_id"]), rtol=1e-4, atol=1e-5
    )


def test_versions_of_what_computed_a_block_are_kept(folder, cache):
    versions = extract(folder, cache).blocks["versions"][0]
    assert versions["keras"] == keras.__version__
    assert versions["deepfeat"] == deepfeat.__version__
    assert versions.keys() == {"python", "deepfeat", "keras", "numpy", "pillow", "resizer", keras.backend.backend()}
    assert versions["resizer"] == resizer()


def test_what_was_done_is_said(folder, cache, caplog):
    with caplog.at_level("INFO", "deepfeat"):
        extract(folder, cache)
        save_picture(folder / "a" / "00.png", 77)
        os.utime(folder / "b" / "01.png", ns=(1, 1))
        (folder / "b" / "03.png").write_bytes(b"")
        with pytest.warns(DataWarning, match="1 of 10 images failed"):
            extract(folder, cache)
        (folder / "b" / "03.png").unlink()
        extract(folder, cache)
    assert "Tiny: 10 computed" in caplog.text
    assert "Tiny: 7 done before, 1 touched but unchanged, 1 computed, 1 failed" in caplog.text
    assert "Tiny: 9 done before" in caplog.text


def test_float16_is_a_block_of_its_own_with_three_digits(folder, cache):
    exact = extract(folder, cache).features("Tiny")
    store = extract(folder, cache, dtype="float16")
    assert store.blocks["dtype"].tolist().count("float16") == 1
    key = store.blocks.set_index("dtype")["key"]["float16"]
    half = store.features(key)
    assert half.dtype == np.float32
    np.testing.assert_array_equal(half, exact.astype(np.float16).astype(np.float32))
    with pytest.raises(UsageError, match="dtype is 'int8': use one of 'float32', 'float16'"):
        extract(folder, cache, dtype="int8")


def test_other_versions_are_warned_of_when_rows_are_added(folder, cache, monkeypatch):
    extract(folder, cache)
    now = computation.versions("tensorflow")
    monkeypatch.setattr(computation, "versions", lambda engine: {**now, "keras": "99.0"})
    extract(folder, cache)
    save_picture(folder / "a" / "new.png", 99)
    with pytest.warns(
        DataWarning, match=rf"computed with keras {now['keras']} \(now 99\.0\): `deepfeat store verify --sam"
    ):
        extract(folder, cache)


@pytest.mark.parametrize("content", [b"", None], ids=["failed before", "another before"])
def test_other_versions_are_warned_of_where_space_is_there_already(folder, cache, monkeypatch, content):
    file = folder / "a" / "00.png"
    whole = file.read_bytes()
    file.write_bytes((folder / "b" / "01.png").read_bytes() if content is None else content)
    with pytest.warns(DataWarning, match="1 of 10 images failed|equal byte for byte"):
        extract(folder, cache)
    file.write_bytes(whole)
    now = computation.versions("tensorflow")
    monkeypatch.setattr(computation, "versions", lambda engine: {**now, "keras": "99.0"})
    with pytest.warns(DataWarning, match=r"the rows of Tiny so far were computed with keras .* \(now 99\.0\)"):
        extract(folder, cache)


# What the store has besides


def test_class_that_is_renamed_is_told_of(folder, cache):
    """Its images have other ids now, and the same contents as the old ones, which stay."""
    extract(folder, cache)
    (folder / "b").rename(folder / "c")
    with pytest.warns(DataWarning) as told:
        store = extract(folder, cache)
    assert store.n_images == 15
    said = [str(warning.message) for warning in told]
    assert said[0] == "5 set(s) of images are equal byte for byte (first: 'b/01.png', 'c/01.png')"
    assert said[1].startswith(f"5 image(s) of {cache} are not given any more, and their files are gone (first: b/01")


def test_images_of_earlier_calls_are_noted_and_not_warned_of(folder, cache, caplog):
    table = deepfeat.read_folder(folder)
    extract(table[:6], cache)
    with caplog.at_level("INFO", "deepfeat"):
        extract(table[6:], cache)
    assert f"{cache} has 6 image(s) besides those given, which fits take, too" in caplog.messages


def test_images_that_are_not_given_any_more_are_left_out_by_their_label(folder, cache):
    extract(folder, cache)
    (folder / "a" / "00.png").unlink()
    with pytest.warns(DataWarning, match=r"1 image\(s\) of .* \(first: a/00.png\)"):
        store = extract(folder, cache)
    labels = store.table.set_index("image_id")["label"]
    labels["a/00.png"] = None
    result = deepfeat.fit_svm(store, labels=labels, test=None, cv=2, param_grid={"C": [1.0]}, ledger=False)
    assert len(result.predictions) == 9


# Other files under known ids


def make_twins(tmp_path):
    """Two folders with files of the same names, sizes and times, but other contents."""
    folders = tmp_path / "site 1", tmp_path / "site 2"
    for number, folder in enumerate(folders):
        for name in ("0.bmp", "1.bmp", "2.bmp"):
            save_picture(folder / "x" / name, 10 * number + int(name[0]))
            os.utime(folder / "x" / name, ns=(10**18, 10**18))
    return folders


@pytest.mark.parametrize("is_gone", [False, True])
def test_file_of_another_path_is_read_whatever_its_size_and_time(tmp_path, cache, is_gone):
    """Each block looks, also one that a later call extends."""
    first, second = make_twins(tmp_path)
    extract(first, cache)
    extract(first, cache, deepfeat.Backbone(**TINY, layer="first"))
    if is_gone:
        shutil.rmtree(first)
        store = extract(second, cache)
    else:
        with pytest.warns(DataWarning, match=r"3 image\(s\) have the id of another file that is still there"):
            store = extract(second, cache)
    np.testing.assert_allclose(store.features("Tiny"), expected_features(second, store.table["image_id"]), rtol=1e-4)
    store = extract(second, cache, deepfeat.Backbone(**TINY, layer="first"))
    expected = expected_features(second, store.table["image_id"], "first")
    np.testing.assert_allclose(store.features("Tiny:first"), expected, rtol=1e-4, atol=1e-5)


def test_folder_that_was_moved_is_looked_at_and_not_computed_again(folder, cache, tmp_path, computed):
    before = extract(folder, cache).features("Tiny").copy()
    folder.rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    computed.clear()
    for name in ("moved", "link"):
        store = extract(tmp_path / name, cache)
        assert store.table["path"][0] == str(tmp_path / name / "a" / "00.png")
        np.testing.assert_array_equal(store.features("Tiny"), before)
    assert computed == []


def test_path_where_nothing_is_keeps_features_and_is_told_of(folder, cache):
    before = extract(folder, cache).features("Tiny").copy()
    table = deepfeat.read_folder(folder)
    table["path"] = [path.replace("photos", "elsewhere") for path in table["path"]]
    with pytest.warns(DataWarning, match=r"10 image\(s\) have another path than before, where no file can be seen"):
        store = extract(table, cache)
    np.testing.assert_array_equal(store.features("Tiny"), before)
    assert store.blocks["failed"].tolist() == [0]


def test_relative_paths_are_those_of_the_working_folder_of_the_call(folder, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = deepfeat.read_folder(folder)
    table["path"] = [os.path.relpath(path) for path in table["path"]]
    assert extract(table, cache).table["path"][0] == str(folder / "a" / "00.png")


def test_stopping_leaves_what_waits_to_be_decoded(folder, monkeypatch):
    """A chunk of a GPU may be hundreds of large images."""
    loaded, closing = [], threading.Event()

    def load(row, *rest):
        loaded.append(row)
        if row >= 4:
            closing.wait(20)
            time.sleep(0.2)
        return LoadedImage(row, None, None, {}, "not read")

    monkeypatch.setattr(computation, "load_image", load)
    wanted = (computation.Wanted(row, "", {}) for row in range(20))
    job = computation.Job(deepfeat.Backbone(**TINY), "", ("original",), "keras", "float32", "float32", 4)
    chunks = computation.compute_chunks(computation.Plan([job], [()], [True]), wanted, [], 1)
    assert len(next(chunks).images) == 4
    closing.set()
    chunks.close()
    assert len(loaded) < 12


def test_next_chunk_is_with_the_network_before_the_last_one_is_through(monkeypatch):
    job = computation.Job(deepfeat.Backbone(**TINY), "", ("original",), "keras", "float32", "float32", 4)
    (preparation,) = job.preparations

    def load(row, *rest):
        return LoadedImage(row, None, bytes([row]), {preparation: np.full((16, 16, 3), row, np.uint8)}, None)

    class Waiting(computation.LoadedBackbone):
        both = threading.Barrier(2, timeout=20)

        def __call__(self, pixels):
            self.both.wait()
            return [pixels[:, 0, 0, :1].astype(np.float32)]

    monkeypatch.setattr(computation, "load_image", load)
    wanted = (computation.Wanted(row, "", {0: None}) for row in range(16))
    chunks = list(computation.compute_chunks(computation.Plan([job], [()], [True]), wanted, [Waiting(job)], 2))
    rows = [image.row for chunk in chunks for image in chunk.images]
    features = np.concatenate([chunk.outputs[0].layers[0] for chunk in chunks])
    assert rows == features[:, 0].astype(int).tolist() == list(range(16))


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ([[(0.0, 4.0), (6.0, 10.0)]], "80 % of 10.0 s"),
        ([[(0.0, 4.0), (3.0, 7.0), (3.5, 5.0), (7.5, 10.0)]], "95 % of 10.0 s"),
        ([[(2.0, 12.0)], [(4.0, 6.0), (10.0, 14.0)]], "100 % of 12.0 s"),
    ],
)
def test_time_of_networks_that_run_at_once_counts_once(spans, said, caplog):
    with caplog.at_level("INFO", "deepfeat"):
        computation.log_busy([SimpleNamespace(spans=each) for each in spans])
    assert caplog.messages == [f"networks were busy for {said}"]


def test_networks_that_did_not_run_are_not_spoken_of(caplog):
    with caplog.at_level("INFO", "deepfeat"):
        computation.log_busy([SimpleNamespace(spans=[])])
    assert not caplog.messages


def test_two_runs_at_once_are_refused(folder, cache):
    extract(folder, cache)
    with deepfeat.store.StoreWriter(cache), pytest.raises(deepfeat.LockedError, match=str(os.getpid())):
        extract(folder, cache)


# Verifying a sample


def test_sample_that_is_computed_again_agrees(folder, cache):
    extract(folder, cache, deepfeat.Backbone(**TINY, layer=["first", "second"]))
    compared = deepfeat.verify_sample(cache, 4, deepfeat.Backbone(**TINY, layer=["first", "second"]))
    assert compared["images"].tolist() == [4, 4]
    assert (compared["largest_difference"] < 1e-6).all()


def test_sample_by_the_name_of_the_backbone(folder, cache):
    extract(folder, cache)
    assert deepfeat.verify_sample(cache, 3)["images"].tolist() == [3]


def test_sample_finds_features_that_are_not_what_is_computed_now(folder, cache):
    store = extract(folder, cache)
    with deepfeat.store.StoreWriter(cache) as writer:
        block = writer.store.find("Tiny")
        writer.write(block, range(10), 1.1 * store.features("Tiny"), store.records("Tiny"))
    compared = deepfeat.verify_sample(cache, 10)
    assert compared["largest_difference"][0] == pytest.approx(0.1 / 1.1, rel=0.05)


def test_sample_leaves_changed_images_out(folder, cache):
    extract(folder, cache)
    for number in range(0, 10, 2):
        save_picture(folder / "a" / f"{number:02d}.png", 50 + number)
    assert deepfeat.verify_sample(cache, 10)["images"].tolist() == [5]


def test_sample_counts_files_that_changed_and_kept_size_and_time(tmp_path, cache):
    first, second = make_twins(tmp_path)
    extract(first, cache)
    assert deepfeat.verify_sample(cache, 3)["changed"].tolist() == [0]
    for name in ("0.bmp", "2.bmp"):
        shutil.copy2(second / "x" / name, first / "x" / name)
    compared = deepfeat.verify_sample(cache, 3)
    assert compared[["images", "changed"]].to_numpy().tolist() == [[1, 2]]
    shutil.copy2(second / "x" / "1.bmp", first / "x" / "1.bmp")
    assert deepfeat.verify_sample(cache, 3)[["images", "changed"]].to_numpy().tolist() == [[0, 3]]


def test_sample_of_another_backbone_is_refused(folder, cache):
    extract(folder, cache)
    with pytest.raises(deepfeat.BackboneError, match="has no block with the weights and settings of Tiny"):
        deepfeat.verify_sample(cache, 2, deepfeat.Backbone(**{**TINY, "seed": 5}))


def test_sample_of_weights_from_a_file_needs_the_backbone(folder, cache, tmp_path):
    weights = tmp_path / "tiny.weights.h5"
    tiny((16, 16, 3)).save_weights(weights)
    backbone = deepfeat.Backbone("Tiny", weights=weights)
    extract(folder, cache, backbone)
    with pytest.raises(deepfeat.BackboneError, match=r"Tiny was computed with other weights .* pass the backbone"):
        deepfeat.verify_sample(cache, 2)
    assert deepfeat.verify_sample(cache, 2, backbone)["largest_difference"][0] < 1e-6


def import_beside(cache, table, name="vit"):
    return deepfeat.import_features(np.eye(len(table)), table[["image_id"]], cache, name=name)


def test_sample_passes_over_imported_features_and_names_them(folder, cache, caplog):
    store = import_beside(cache, extract(folder, cache).table)
    with caplog.at_level("INFO", "deepfeat"):
        compared = deepfeat.verify_sample(cache, 4)
    assert compared["block"].tolist() == ["Tiny", "vit"]
    assert compared["key"].tolist() == [store.find(name).key for name in ("Tiny", "vit")]
    assert compared["images"].tolist() == [4, 0]
    assert compared["largest_difference"][0] < 1e-6
    assert np.isnan(compared["largest_difference"][1])
    assert "vit: imported, passed over, since no network here computes it" in caplog.messages
    assert deepfeat.verify_sample(cache, 4, deepfeat.Backbone(**TINY))["block"].tolist() == ["Tiny"]


def test_sample_of_imported_features_alone_compares_nothing(folder, cache):
    table = deepfeat.read_folder(folder)
    import_beside(cache, table)
    import_beside(cache, table, "clip")
    with pytest.raises(
        StoreError, match=r"nothing of .* was compared: its blocks were all imported \(clip, vit\), and"
    ):
        deepfeat.verify_sample(cache, 4)


def test_sample_of_images_whose_files_are_gone_compares_nothing(folder, cache):
    import_beside(cache, extract(folder, cache).table)
    shutil.rmtree(folder)
    message = "nothing of .* was compared: no image of Tiny has a file that can be read and is unchanged: run"
    for backbones in (None, deepfeat.Backbone(**TINY)):
        with pytest.raises(StoreError, match=message):
            deepfeat.verify_sample(cache, 4, backbones)


def test_files_of_one_id_in_two_folders_are_told(tmp_path, cache, recwarn):
    for number, name in enumerate("AB"):
        save_picture(tmp_path / name / "x" / "1.png", number)
        save_picture(tmp_path / name / "x" / f"{name}.png", 2)
    extract(tmp_path / "A", cache)
    assert not recwarn
    with pytest.warns(
        DataWarning, match=r"^1 image\(s\) have the id of another file that is still there \(first: x/1\.png"
    ):
        extract(tmp_path / "B", cache)


def test_files_that_have_moved_are_no_others(folder, cache, tmp_path, recwarn):
    extract(folder, cache)
    shutil.move(folder, tmp_path / "elsewhere")
    extract(tmp_path / "elsewhere", cache)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    extract(tmp_path / "link", cache)
    assert not recwarn


def test_gpu_is_given_as_many_images_as_its_batches_may_have(tmp_path, cache, monkeypatch):
    sizes = []
    for number in range(300):
        save_picture(tmp_path / "many" / f"{number}.png", number)
    monkeypatch.setattr("deepfeat.runtimes.selection._has_gpu", lambda: True)
    run = KerasRuntime.__call__
    monkeypatch.setattr(
        KerasRuntime, "__call__", lambda self, images: (sizes.append(len(images)), run(self, images))[1]
    )
    extract(tmp_path / "many", cache, precision="float32")
    # Either may be stacked first.
    assert sorted(sizes, reverse=True) == [computation.GPU_CHUNK, 300 - computation.GPU_CHUNK]


def test_sample_is_drawn_among_files_that_are_unchanged(folder, cache):
    table = extract(folder, cache).table
    for path in table["path"][:-2]:
        os.remove(path)
    assert deepfeat.verify_sample(cache, 2, deepfeat.Backbone(**TINY))["images"].tolist() == [2]


def test_sample_of_a_store_without_features_compares_nothing(folder, cache):
    with deepfeat.store.StoreWriter(cache) as writer:
        writer.add_images(deepfeat.read_folder(folder))
    with pytest.raises(
        StoreError, match=r"nothing of .* was compared: it has no features: run deepfeat\.extract first"
    ):
        deepfeat.verify_sample(cache, 4)


@pytest.mark.parametrize("sample", [-4, 0, True, 2.5, "4"])
def test_sample_that_is_no_number_of_images(folder, cache, sample):
    extract(folder, cache)
    with pytest.raises(UsageError, match=rf"^sample is {sample!r}: use a number of images, 1 or more$"):
        deepfeat.verify_sample(cache, sample)


def test_imported_features_have_no_backbone(folder, cache):
    store = import_beside(cache, deepfeat.read_folder(folder))
    with pytest.raises(
        deepfeat.BackboneError, match="vit was imported, and no network here computes its features: use"
    ):
        backbone_of(store.find("vit").spec, "vit")


def test_imported_features_are_not_joined_with_those_of_a_changed_file(folder, cache):
    import_beside(cache, extract(folder, cache).table)
    save_picture(folder / "a" / "00.png", 77)
    store = extract(folder, cache)
    differ = (store.records("Tiny")["digest"] != store.records("vit")["digest"]).any(axis=1)
    assert store.table["image_id"][differ].tolist() == ["a/00.png"]
    with pytest.raises(DataError, match=r"saw different contents of 1 image\(s\) \(first: 'a/00\.png'\)"):
        deepfeat.fit_svm(store, ledger=False)
