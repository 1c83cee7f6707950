from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_network import OPTIONS, small_cnn

import deepfeat
from deepfeat.backbones.network import PREPROCESSINGS, Preprocessing, untrained
from deepfeat.errors import BackboneError, DataError, DataWarning, LockedError, UsageError
from deepfeat.provenance import digest_group
from deepfeat.resizing import resize_image
from deepfeat.runtimes.keras import KerasRuntime, keras
from deepfeat.splits import merge_groups
from deepfeat.store.lock import Lock
from deepfeat.training import classifier, epochs, finetuning, samples
from deepfeat.training.augmentation import AUGMENTATIONS, augment
from deepfeat.training.checkpoints import State
from deepfeat.training.settings import Settings

N_IMAGES = 48
FAST = {"batch_size": 8, "progress": False}
SCRATCH = {"unfreeze": 1.0, "head_epochs": 0, "epochs": 2, **FAST}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Three classes of 16 pictures, which differ in hue and a little in brightness; two pictures of each lesion."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(N_IMAGES):
        label = number % 3
        picture = rng.integers(0, 160, (20, 20, 3))
        picture[..., label] += 60
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{number}.png")
        rows.append((f"{number}", str(folder / f"{number}.png"), "ABC"[label], f"lesion {number % 3}{number // 6}"))
    return pd.DataFrame(rows, columns=["image_id", "path", "label", "group"])


def lite(**options):
    return deepfeat.Backbone("EfficientNetLite0", input_size=32, **options)


@pytest.fixture(scope="module")
def trained(table, tmp_path_factory):
    """A network with trained weights and BatchNorm, fine-tuned in both phases."""
    path = tmp_path_factory.mktemp("trained") / "skin.keras"
    return deepfeat.finetune(
        table,
        lite(),
        path,
        embedding_dim=6,
        head_epochs=1,
        epochs=2,
        learning_rate=1e-3,
        unfreeze="block14_expand_conv",
        **FAST,
    )


def file_of(backbone) -> Path:
    return backbone.network.weights_file(backbone.input_shape)


# What comes back


def test_finetuned_backbone_knows_its_history_classes_and_images(trained, table):
    assert trained.name == "skin"
    assert trained.classes == ["A", "B", "C"]
    assert trained.history["phase"].tolist() == ["head", "finetune", "finetune"]
    assert trained.history["epoch"].tolist() == [1, 2, 3]
    assert np.isfinite(trained.history[["loss", "val_loss", "accuracy", "val_balanced_accuracy"]].to_numpy()).all()
    assert (trained.trained_on.images.shape, trained.trained_on.groups.shape) == ((N_IMAGES, 32), (24, 32))
    assert digest_group("lesion 00") in {row.tobytes() for row in trained.trained_on.groups}


def test_load_backbone_restores_everything_from_the_manifest(trained):
    loaded = deepfeat.load_backbone(file_of(trained))
    assert (loaded.name, loaded.input_shape, loaded.resize) == (trained.name, (32, 32, 3), "squash")
    assert loaded.network.preprocess == PREPROCESSINGS["lite"]
    pd.testing.assert_frame_equal(loaded.history, trained.history)
    assert loaded.trained_on.digest() == trained.trained_on.digest()
    assert loaded.specs("w") == trained.specs("w")


def test_manifest_tells_settings_base_and_versions(trained):
    manifest = json.loads(file_of(trained).with_suffix(".json").read_text())
    assert manifest["settings"]["unfreeze"] == "block14_expand_conv"
    assert manifest["settings"]["seed"] == 0
    assert manifest["base"]["name"] == "EfficientNetLite0"
    assert manifest["base"]["weights"].startswith("sha256:")
    assert manifest["versions"]["deepfeat"] == deepfeat.__version__
    assert len(manifest["trained_on"]["images"]) == N_IMAGES


def test_embedding_has_unit_length_and_scores_are_probabilities(trained, table):
    images = np.stack([np.asarray(Image.open(p).resize((32, 32))) for p in table["path"][:5]])
    (embedding,) = KerasRuntime(trained, trained.build(), 5)(images)
    assert embedding.shape == (5, 6)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-5)
    scores = deepfeat.load_backbone(file_of(trained), layer="scores")
    (probabilities,) = KerasRuntime(scores, scores.build(), 5)(images)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    # The classifier is the fixed simplex.
    logits = classifier.SCALE * embedding @ classifier.class_directions(3, 6)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-3, atol=1e-5)


def test_finished_training_is_not_repeated(trained, table):
    before = file_of(trained).stat().st_mtime_ns
    again = deepfeat.finetune(
        table,
        lite(),
        file_of(trained),
        embedding_dim=6,
        head_epochs=1,
        epochs=2,
        learning_rate=1e-3,
        unfreeze="block14_expand_conv",
        **FAST,
    )
    assert again.history["val_loss"].tolist() == trained.history["val_loss"].tolist()
    assert file_of(trained).stat().st_mtime_ns == before


def test_path_of_another_training_is_refused(trained, table):
    with pytest.raises(UsageError, match="was made by other images or settings"):
        deepfeat.finetune(table, lite(), file_of(trained), **FAST)


def test_nothing_but_the_network_and_its_manifest_is_left(trained):
    assert sorted(os.listdir(file_of(trained).parent)) == ["skin.json", "skin.keras"]


def moved(trained, folder, *, manifest=True):
    file = folder / "skin.keras"
    file.write_bytes(file_of(trained).read_bytes())
    if manifest:
        file.with_suffix(".json").write_text(file_of(trained).with_suffix(".json").read_text())
    return file


def test_network_without_its_manifest_is_refused(trained, tmp_path):
    with pytest.raises(BackboneError, match=r"skin\.json is not beside it"):
        deepfeat.load_backbone(moved(trained, tmp_path, manifest=False), preprocess="lite")


def test_manifest_of_another_file_is_refused(trained, tmp_path):
    file = moved(trained, tmp_path)
    file.with_suffix(".json").write_text(
        file.with_suffix(".json").read_text().replace('"weights": "sha256:', '"weights": "sha256:0')
    )
    with pytest.raises(BackboneError, match="manifest of another file"):
        deepfeat.load_backbone(file)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "deepfeat backbone", "format_version": 99}'])
def test_damaged_manifest_is_an_error_with_its_name(trained, tmp_path, text):
    file = moved(trained, tmp_path)
    file.with_suffix(".json").write_text(text)
    with pytest.raises(BackboneError, match=r"skin\.json cannot be read"):
        deepfeat.load_backbone(file)


def test_renamed_network_keeps_the_name_of_its_features(trained, tmp_path):
    file = moved(trained, tmp_path)
    for ending in (".keras", ".json"):
        file.with_suffix(ending).rename(tmp_path / f"other{ending}")
    assert deepfeat.load_backbone(tmp_path / "other.keras").name == "skin"


# The store


def test_store_tells_which_images_the_network_has_seen(trained, table, tmp_path):
    rng = np.random.default_rng(1)
    new = []
    for number, group in enumerate(["lesion 00", "lesion new", None]):
        path = tmp_path / f"new{number}.png"
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(path)
        new.append((f"new{number}", str(path), "A", group))
    copy = tmp_path / "copy.png"
    copy.write_bytes(Path(table["path"][5]).read_bytes())
    new.append(("copy", str(copy), "C", "lesion other"))
    everything = pd.concat([table, pd.DataFrame(new, columns=table.columns)], ignore_index=True)
    scores = deepfeat.load_backbone(file_of(trained), layer="scores")
    with pytest.warns(DataWarning, match="equal byte for byte"):
        store = deepfeat.extract(
            everything, [trained, scores, lite()], tmp_path / "f.h5", progress=False, runtime="keras"
        )
    for block in ("skin", "skin:scores"):
        seen = dict(zip(store.table["image_id"], store.seen(block), strict=True))
        assert all(seen[i] for i in table["image_id"])
        assert [seen[i] for i in ("new0", "new1", "new2", "copy")] == [True, False, False, True]
        assert store.trained_on(block).digest() == trained.trained_on.digest()
    assert store.trained_on("EfficientNetLite0") is None
    assert not store.seen("EfficientNetLite0").any()
    assert store.find("skin").spec["space"].startswith("simplex:")
    assert "space" not in store.find("skin:scores").spec


# Frozen means frozen


def test_frozen_weights_and_moving_statistics_do_not_change(trained):
    before = {w.path: np.asarray(w) for w in lite().build().weights}
    after = {w.path: np.asarray(w) for w in trained.build().weights}
    changed = {path for path in before if before[path].tobytes() != after[path].tobytes()}
    learning = {
        path
        for path in before
        if (path.startswith("head") or (path.startswith("block") and int(path[5:].split("_")[0]) >= 14))
        and "_bn" not in path
    }
    assert learning
    assert changed == learning


def test_head_alone_leaves_the_whole_backbone_as_it_is(table, tmp_path):
    before = small_cnn().build()
    before.save(tmp_path / "mine.keras")
    mine = deepfeat.load_backbone(tmp_path / "mine.keras", preprocess="tf")
    made = deepfeat.finetune(table, mine, tmp_path / "head.keras", unfreeze=0, head_epochs=1, epochs=1, **FAST)
    after = made.build()
    for layer in ("first", "norm", "second"):
        for old, new in zip(before.get_layer(layer).weights, after.get_layer(layer).weights, strict=True):
            assert np.asarray(old).tobytes() == np.asarray(new).tobytes()


def test_statistics_of_random_weights_are_learned(table, tmp_path):
    made = deepfeat.finetune(table, small_cnn(), tmp_path / "scratch.keras", **SCRATCH)
    statistics = [w for w in made.build().weights if "moving_mean" in w.path]
    assert statistics
    assert all(np.asarray(w).any() for w in statistics)


@pytest.mark.parametrize(
    ("unfreeze", "first"),
    [
        (0.0, None),
        (1.0, "stem_conv"),
        (0.3, "block11_depthwise_conv"),
        ("block15_project_conv", "block15_project_conv"),
    ],
)
def test_unfreeze_names_a_layer_or_a_part_of_the_layers_with_weights(unfreeze, first):
    network = classifier.build_classifier(lite(), 3, None, 0.3, 0)
    classifier.set_trainable(network, unfreeze, False, True)
    names = [w.path.split("/")[0] for w in network.trainable_weights]
    assert names[0] == (first or "logits")
    assert not [name for name in names if name.endswith("_bn")]
    assert names[-1] == "logits"


def test_unfreeze_from_an_unknown_layer_names_some():
    network = classifier.build_classifier(lite(), 3, None, 0.3, 0)
    with pytest.raises(BackboneError, match=r"no layer 'block99' to unfreeze from.*head_conv"):
        classifier.set_trainable(network, "block99", False, True)


def test_statistics_inside_a_network_in_the_network_stay_frozen():
    inner = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()])
    inputs = keras.Input((8, 8, 3))
    outer = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inner(inputs)))
    dropout = keras.layers.Dropout(0.1, name="head_dropout")(outer.output)
    network = keras.Model(inputs, keras.layers.Dense(2, name="logits")(dropout))
    classifier.set_trainable(network, 1.0, False, True)
    kinds = [w.path.split("/")[-1] for w in network.trainable_weights]
    assert kinds == ["kernel", "bias", "kernel", "bias"]


# The fixed classifier


def test_image_without_any_feature_does_no_harm(table, tmp_path):
    """ReLU may leave nothing of an image, and the direction of nothing has no gradient."""
    blind = small_cnn()
    blind = replace(blind, network=replace(blind.network, preprocess=Preprocessing(std=(1e9,) * 3)))
    made = deepfeat.finetune(table, blind, tmp_path / "x.keras", embedding_dim=4, unfreeze=0, **{**FAST, "epochs": 1})
    assert np.isfinite(made.history[["loss", "val_loss"]].to_numpy()).all()


@pytest.mark.parametrize(("n_classes", "width"), [(2, 2), (3, 6), (8, 64)])
def test_class_directions_are_a_regular_simplex(n_classes, width):
    directions = classifier.class_directions(n_classes, width)
    cosines = directions.T @ directions
    expected = np.full((n_classes, n_classes), -1 / (n_classes - 1)) + np.eye(n_classes) * n_classes / (n_classes - 1)
    np.testing.assert_allclose(cosines, expected, atol=1e-6)
    np.testing.assert_array_equal(directions, classifier.class_directions(n_classes, width))


def test_space_is_that_of_classes_and_width():
    names = [
        classifier.space_name(*facts) for facts in ((["A", "B"], 8), (["A", "B"], 8), (["B", "A"], 8), (["A", "B"], 9))
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_embedding_narrower_than_the_classes_is_refused(table, tmp_path):
    with pytest.raises(UsageError, match="embedding_dim is 2 with 3 classes"):
        deepfeat.finetune(table, small_cnn(), tmp_path / "x.keras", embedding_dim=2, **SCRATCH)


def test_average_of_networks_of_one_space_is_better_than_of_two_spaces(table, tmp_path, monkeypatch):
    split = deepfeat.split_table(table, 1 / 3)
    options = {
        "embedding_dim": 6,
        "augment": None,
        "learning_rate": 2e-3,
        "epochs": 12,
        "unfreeze": 1.0,
        "head_epochs": 0,
        "val_size": 0.3,
        **FAST,
    }
    one = deepfeat.finetune(split, small_cnn(seed=1), tmp_path / "one.keras", **options)
    two = deepfeat.finetune(split, small_cnn(seed=2), tmp_path / "two.keras", **options)
    monkeypatch.setattr(classifier, "SPACE_SEED", 1)
    apart = deepfeat.finetune(split, small_cnn(seed=2), tmp_path / "apart.keras", **options)
    store = deepfeat.extract(split, [one, two, apart], tmp_path / "f.h5", progress=False, runtime="keras")
    spread = {}
    for other in ("two", "apart"):
        mean = (store.features("one") + store.features(other)) / 2
        centres = np.stack([mean[(store.table["label"] == label).to_numpy()].mean(axis=0) for label in "ABC"])
        spread[other] = np.linalg.norm(centres - centres.mean(axis=0), axis=1).mean()
    # Classes of one space lie apart in the average; those of two spaces partly cancel.
    assert spread["two"] > 1.2 * spread["apart"]
    result = deepfeat.fit_svm(store, backbones=["one", "two"], fusion="average", param_grid={"C": [0.1]}, cv=2)
    assert result.blocks == {"one": 6, "two": 6}
    with pytest.raises(UsageError, match="fusion='average' is not defined for one and apart"):
        deepfeat.fit_svm(store, backbones=["one", "apart"], fusion="average", cv=2)


# Folds


def test_every_image_is_new_to_the_network_of_its_fold_alone(table, tmp_path):
    options = {**SCRATCH, "epochs": 1, "val_size": 0.3}
    networks = deepfeat.finetune_folds(table, small_cnn(), tmp_path / "skin.keras", cv=3, **options)
    assert [n.name for n in networks] == ["skin@fold0", "skin@fold1", "skin@fold2"]
    assert [n.network.manifest.fold for n in networks] == [{"number": k, "count": 3} for k in range(3)]
    store = deepfeat.extract(table, networks, tmp_path / "f.h5", progress=False, runtime="keras")
    unseen = ~np.stack([store.seen(n.name) for n in networks])
    assert (unseen.sum(axis=0) == 1).all()
    fold = unseen.argmax(axis=0)
    assert pd.Series(fold).groupby(store.table["group"].tolist()).nunique().max() == 1
    assert all((store.table["label"][fold == k].value_counts() >= 4).all() for k in range(3))


def test_triangular_rate_is_made_again_of_its_arguments():
    rate = epochs.TriangularRate(0.1, 4)
    again = epochs.TriangularRate(**rate.get_config())
    assert [float(again(step)) for step in range(9)] == [float(rate(step)) for step in range(9)]
    assert float(again(4)) == pytest.approx(0.1)


def test_all_images_for_validation_leave_none_to_train_on(table, tmp_path):
    first = table["label"].iloc[0]
    split = np.where(table["label"] == first, "val", "train")
    with pytest.raises(DataError, match=rf"class '{first}' has no image to train on: all are of the split 'val'"):
        deepfeat.finetune(table.assign(split=split), small_cnn(), tmp_path / "x.keras", **FAST)


def test_image_that_vanishes_after_it_was_read_is_named(table, tmp_path, monkeypatch):
    stream, shape = samples.stream_images, small_cnn().input_shape

    def broken(wanted, **options):
        for image in stream(wanted, **options):
            sought = any(pixels.shape == shape for pixels in image.pixels.values())
            yield replace(image, reason="it is gone") if sought else image

    monkeypatch.setattr(samples, "stream_images", broken)
    with pytest.raises(DataError, match="was readable before, and is not any more: it is gone"):
        deepfeat.finetune(table, small_cnn(), tmp_path / "x.keras", **FAST)


def test_score_on_folds_put_together_is_allowed(table, tmp_path):
    options = {**SCRATCH, "epochs": 1, "val_size": 0.3, "embedding_dim": 4}
    networks = deepfeat.finetune_folds(table, small_cnn(), tmp_path / "skin.keras", cv=3, **options)
    store = deepfeat.extract(table, networks, tmp_path / "f.h5", progress=False, runtime="keras")
    result = deepfeat.fit_svm(store, backbones="skin@folds", test=None, cv=3, param_grid={"C": [0.1]})
    assert result.blocks == {"skin@folds": 4}
    assert len(result.predictions) == N_IMAGES
    with pytest.raises(DataError, match="images that skin@fold0 was fine-tuned on"):
        deepfeat.fit_svm(store, backbones="skin@fold0", test=None, cv=3)


@pytest.mark.filterwarnings("ignore::deepfeat.errors.DataWarning")
def test_folds_as_row_numbers_are_of_a_table_that_is_trained_on_whole(table, tmp_path):
    group = pd.factorize(table["group"])[0]
    folds = [(np.flatnonzero(group % 4 != k), np.flatnonzero(group % 4 == k)) for k in (0, 1)]
    given = (small_cnn(), tmp_path / "x.keras")
    options = {**SCRATCH, "epochs": 1, "val_size": 0.3}
    for change in ({"label": table["label"].where(table.index > 2)}, {"split": SPLIT, "group": None}):
        count = 3 if "label" in change else 6
        with pytest.raises(UsageError, match=rf"{count} row\(s\) of the table are not trained on"):
            deepfeat.finetune_folds(table.assign(**change), *given, cv=iter(folds), **options)
    networks = deepfeat.finetune_folds(table, *given, cv=iter(folds), **options)
    seen = [samples.find_samples(table.iloc[train], None).digests for train, _ in folds]
    assert [{row.tobytes() for row in n.trained_on.images} for n in networks] == [set(digests) for digests in seen]


def test_folds_refuse_an_unknown_argument(table, tmp_path):
    with pytest.raises(UsageError, match="no argument 'epoch'"):
        deepfeat.finetune_folds(table, small_cnn(), tmp_path / "x.keras", epoch=3)


def test_network_made_from_a_finetuned_one_has_seen_what_that_saw(trained, table, tmp_path):
    part = table[table["group"].isin(sorted(set(table["group"]))[:18])]
    made = deepfeat.finetune(part, trained, tmp_path / "twice.keras", unfreeze=0, head_epochs=1, epochs=0, **FAST)
    assert len(made.trained_on.images) == N_IMAGES
    assert len(made.trained_on.groups) == 24


# Scores on what a network has seen


def memoriser():
    """A network large enough to learn noise by heart."""

    def build(input_shape):
        layers = keras.layers
        network = [keras.Input(input_shape), layers.Flatten(), layers.Dense(64, activation="relu", name="fc")]
        return keras.Sequential(network, name="memoriser")

    network = untrained("Memoriser", build, 12, PREPROCESSINGS["tf"])
    return deepfeat.Backbone("Memoriser", weights=None, network=network)


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Noise with random labels: nothing can be known of a new image, and val images nearly equal train ones."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(5)
    rows = []
    for number in range(160):
        picture, label = rng.integers(0, 256, (12, 12, 3), np.uint8), "AB"[rng.integers(2)]
        copies = {"train": picture, "val": np.maximum(picture, 8)} if number < 60 else {"test": picture}
        for split, pixels in copies.items():
            path = folder / f"{split}{number}.png"
            Image.fromarray(pixels).save(path)
            rows.append((path.stem, str(path), label, None, split))
    return pd.DataFrame(rows, columns=["image_id", "path", "label", "group", "split"], dtype=object)


@pytest.fixture(scope="module")
def overfitted(noise, tmp_path_factory):
    path = tmp_path_factory.mktemp("overfitted") / "heart.keras"
    options = {"epochs": 40, "augment": None, "dropout": 0.0, "l2": 0.0, "learning_rate": 1e-3}
    return deepfeat.finetune(noise, memoriser(), path, **{**SCRATCH, **options})


def test_naive_score_of_an_overfitted_network_is_a_lie_and_refused(overfitted, noise, tmp_path):
    store = deepfeat.extract(noise, overfitted, tmp_path / "f.h5", progress=False, runtime="keras")
    grid = {"param_grid": {"C": [0.01]}}
    learned = (store.table["split"] == "train").to_numpy()
    naive = deepfeat.fit_svm((store.features("heart")[learned], noise["label"][learned]), test=None, **grid)
    assert naive.metrics.value["balanced_accuracy"] > 0.95
    with pytest.raises(DataError, match=r"120 of the 220 images to be scored, in 120 group\(s\)"):
        deepfeat.fit_svm(store, test=None, **grid)
    honest = deepfeat.fit_svm(store, **grid)
    assert 0.35 < honest.metrics.value["balanced_accuracy"] < 0.65
    assert honest.cv_results["mean"].max() > 0.95
    assert any("heart was fine-tuned on 120 of the 120 training images" in note for note in honest.warnings)


def test_benchmark_gives_no_score_on_what_the_network_has_seen(overfitted, noise, caplog):
    measured = deepfeat.benchmark(noise, [overfitted, memoriser()], runtime="keras", n_images=100)
    assert measured.loc["heart", ["score", "low", "high"]].isna().all()
    assert np.isfinite(measured.loc["Memoriser", "score"])
    assert "no score:" in caplog.text
    assert "images that heart was fine-tuned on" in caplog.text


# Repeatable and resumable


def test_seed_decides_the_training(table, tmp_path):
    histories, weights = [], []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        made = deepfeat.finetune(table, small_cnn(), tmp_path / f"{name}.keras", seed=seed, **SCRATCH)
        histories.append(made.history[["loss", "val_loss"]].to_numpy())
        weights.append(np.concatenate([w.ravel() for w in made.build().get_weights()]))
    np.testing.assert_allclose(histories[0], histories[1], rtol=1e-4)
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-3, atol=1e-4)
    assert np.abs(histories[0] - histories[2]).max() > 1e-3


def test_killed_training_goes_on_and_ends_as_if_nothing_had_been(table, tmp_path):
    table.to_csv(tmp_path / "table.csv", index=False)
    path = tmp_path / "killed.keras"
    program = Path(__file__).with_name("small_network.py")
    process = subprocess.Popen(
        [sys.executable, str(program), str(tmp_path / "table.csv"), str(path)], stderr=subprocess.DEVNULL
    )
    last = tmp_path / "killed.keras.training" / "last.npz"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.7))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with np.load(last) as archive:
        done = len(json.loads(archive["state"].tobytes())["history"])
    assert 0 < done < 15
    assert not path.exists()
    resumed = deepfeat.finetune(table, small_cnn(), path, **OPTIONS)
    whole = deepfeat.finetune(table, small_cnn(), tmp_path / "whole.keras", **OPTIONS)
    assert resumed.history["epoch"].tolist() == whole.history["epoch"].tolist() == list(range(1, 16))
    np.testing.assert_allclose(resumed.history["val_loss"], whole.history["val_loss"], rtol=0.01)
    assert not last.parent.exists()


def test_unfinished_training_with_other_settings_is_refused(table, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("deepfeat.training.finetuning._save", stop)
    with pytest.raises(KeyboardInterrupt):
        deepfeat.finetune(table, small_cnn(), tmp_path / "x.keras", **SCRATCH)
    with pytest.raises(
        UsageError, match=r"x\.keras\.training holds an unfinished training with other images or settings"
    ):
        deepfeat.finetune(table, small_cnn(), tmp_path / "x.keras", dropout=0.1, **SCRATCH)


def test_training_is_another_where_other_images_are_tied(table, tmp_path):
    """Image "tie" has no label; it equals image 0, and is of image 5's group."""
    tie = tmp_path / "tie.png"
    tie.write_bytes(Path(table["path"][0]).read_bytes())
    row = pd.DataFrame([("tie", str(tie), None, table["group"][5])], columns=table.columns)
    with pytest.warns(DataWarning, match="without a label"):
        tied = samples.find_samples(pd.concat([table, row], ignore_index=True), None)
    free = samples.find_samples(table, None)
    assert free.digests == tied.digests
    runs = [finetuning._run_digest(chosen, small_cnn(), "w", Settings()) for chosen in (free, tied)]
    assert runs[0] != runs[1]


@pytest.mark.parametrize("text", ['{"precious": 1}', "[1, 2]", "no JSON"])
def test_json_that_is_no_manifest_is_not_written_over(table, tmp_path, text):
    for name in ("x.json", "x@fold1.json"):
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=r"x\.json is where the manifest of x\.keras belongs, and is none: move it"):
        deepfeat.finetune(table, small_cnn(), tmp_path / "x.keras", **SCRATCH)
    with pytest.raises(UsageError, match=r"x@fold1\.json is where the manifest of x@fold1\.keras belongs"):
        deepfeat.finetune_folds(table, small_cnn(), tmp_path / "x.keras", cv=2, **SCRATCH)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x@fold1.json"]
    assert (tmp_path / "x.json").read_text() == text


def test_manifest_whose_network_is_gone_is_replaced(trained, table, tmp_path):
    moved(trained, tmp_path).unlink()
    made = deepfeat.finetune(table, small_cnn(), tmp_path / "skin.keras", **SCRATCH)
    assert json.loads((tmp_path / "skin.json").read_text())["run"] == made.network.manifest.run


def test_two_trainings_into_one_path_are_refused(table, tmp_path):
    with Lock(tmp_path / "x.keras"), pytest.raises(LockedError, match="is being written by process"):
        deepfeat.finetune(table, small_cnn(), tmp_path / "x.keras", **SCRATCH)


# Schedules and stopping


def run_losses(losses, schedule="plateau", rate=1.0):
    state = State(phase=1, rate=rate)
    rates, best = [], []
    for number, loss in enumerate(losses, 1):
        rates.append(state.rate)
        best.append(epochs._advance(state, {"epoch": number, "val_loss": loss}, schedule))
    return state, rates, best


def test_plateau_halves_the_rate_after_two_epochs_without_a_lower_loss():
    state, rates, best = run_losses([3, 2, 2.5, 2.5, 2.4, 2.3, 1, 1.5])
    assert rates == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25]
    assert best == [True, True, False, False, False, False, True, False]
    assert (state.best, state.best_epoch, state.waited) == (1, 7, 1)


def test_other_schedules_leave_the_rate_to_themselves():
    assert run_losses([1, 2, 3, 4], "cyclical")[1] == run_losses([1, 2, 3, 4], "constant")[1] == [1] * 4


def test_cyclical_rate_is_a_triangle():
    rate = epochs.TriangularRate(0.8, 4)
    np.testing.assert_allclose(
        [float(rate(step)) for step in range(0, 17, 2)], [0.2, 0.5, 0.8, 0.5, 0.2, 0.5, 0.8, 0.5, 0.2]
    )


def test_training_stops_early_and_keeps_the_best_weights(table, tmp_path):
    made = deepfeat.finetune(
        table,
        small_cnn(),
        tmp_path / "x.keras",
        unfreeze=1.0,
        head_epochs=0,
        epochs=30,
        patience=2,
        learning_rate=0.1,
        augment=None,
        val_size=0.3,
        **FAST,
    )
    losses = made.history["val_loss"].to_numpy()
    assert len(losses) < 30
    assert losses.argmin() == len(losses) - 3
    validation = samples.split_validation(samples.find_samples(table, None), 0.3, 0)[1]
    assert len(validation) > 6
    scores = deepfeat.load_backbone(tmp_path / "x.keras", layer="scores")
    images = np.stack([resize_image(Image.open(p), (16, 16), "squash") for p in table["path"][validation]])
    (probabilities,) = KerasRuntime(scores, scores.build(), 8)(images)
    truth = np.array([scores.classes.index(label) for label in table["label"][validation]])
    entropy = -np.log(np.maximum(probabilities[np.arange(len(truth)), truth], 1e-7))
    weights = samples.class_weights(np.delete(truth_of(table), validation), "ABC", "class_weight")[truth]
    assert (weights * entropy).sum() / weights.sum() == pytest.approx(losses.min(), rel=1e-3)


def truth_of(table):
    return np.array(["ABC".index(label) for label in table["label"]])


@pytest.mark.parametrize("schedule", ["cyclical", "constant"])
def test_schedule_trains(table, tmp_path, schedule):
    made = deepfeat.finetune(table, small_cnn(), tmp_path / "x.keras", schedule=schedule, learning_rate=1e-3, **SCRATCH)
    rates = made.history["learning_rate"].tolist()
    # After two epochs, half a cycle, the cyclical rate is at its greatest.
    assert rates == pytest.approx([0.625e-3, 1e-3] if schedule == "cyclical" else [1e-3, 1e-3])


def test_divergence_is_an_error(table, tmp_path):
    with pytest.raises(BackboneError, match="loss is not finite after 1 epoch"):
        deepfeat.finetune(table, small_cnn(), tmp_path / "x.keras", **{**SCRATCH, "learning_rate": 1e30})


# Validation, weights, drawing


def test_validation_never_shares_a_group_or_an_equal_file(table):
    chosen = samples.find_samples(table, None)
    for seed in range(20):
        train, validation = samples.split_validation(chosen, 0.25, seed)
        assert not set(chosen.table["group"][train]) & set(chosen.table["group"][validation])
        assert sorted([*train, *validation]) == list(range(N_IMAGES))
        assert set(chosen.labels[validation]) == {0, 1, 2}


def test_equal_files_of_different_groups_stay_on_one_side(table, tmp_path):
    twin = table.assign(group=[f"g{i}" for i in range(len(table))])
    for number in range(0, 24, 3):
        (tmp_path / f"{number}.png").write_bytes(Path(table["path"][number]).read_bytes())
        twin.loc[number + 24, "path"] = str(tmp_path / f"{number}.png")
    chosen = samples.find_samples(twin, None)
    assert merge_groups(chosen.digests)[0] == merge_groups(chosen.digests)[24]
    for seed in range(10):
        train, validation = samples.split_validation(chosen, 0.25, seed)
        assert not {chosen.digests[i] for i in train} & {chosen.digests[i] for i in validation}


def test_image_without_a_label_ties_others_together(table, tmp_path):
    """Image 24 has no label, is of image 25's lesion, and equals image 0 byte for byte."""
    tied = table.assign(group=[f"g{i}" for i in range(len(table))])
    tied.loc[24, "group"] = "g25"
    (tmp_path / "24.png").write_bytes(Path(table["path"][0]).read_bytes())
    tied.loc[24, "path"] = str(tmp_path / "24.png")
    tied.loc[24, "label"] = None
    with pytest.warns(DataWarning, match=r"1 image\(s\) without a label left out"):
        chosen = samples.find_samples(tied, None)
    assert chosen.table["image_id"].tolist() == [name for name in table["image_id"] if name != table["image_id"][24]]
    assert chosen.sets[0] == chosen.sets[24]
    assert len(set(chosen.sets)) == max(chosen.sets) + 1 == N_IMAGES - 2
    digests = [hashlib.sha256(Path(path).read_bytes()).digest() for path in chosen.table["path"]]
    assert chosen.digests == digests


def test_given_split_is_taken_and_the_test_never_read(table):
    split = table.assign(split=["train"] * 30 + ["val"] * 12 + ["test"] * 6)
    split.loc[42:, "path"] = "nowhere.png"
    chosen = samples.find_samples(split, None)
    train, validation = samples.split_validation(chosen, 0.5, 0)
    assert (train.tolist(), validation.tolist()) == (list(range(30)), list(range(30, 42)))


SPLIT = ["train"] * 42 + ["test"] * 6


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"label": None}, DataError, "no images to train on"),
        ({"label": "A"}, DataError, "all 48 images are of the class 'A'"),
        ({"split": "test"}, DataError, "no images to train on"),
        (
            {"split": ["train"] * 3 + ["test"] * 45},
            DataError,
            r"in both train and test of the split \(first: 'lesion 00'\)",
        ),
        (
            {"path": lambda t: t["path"].where(t.index < 47, t["path"][0]), "group": None, "split": SPLIT},
            DataError,
            r"1 image\(s\) of the test equal one to train on byte for byte \(first: '47'\): make a split",
        ),
        ({"split": ["train"] * 3 + ["val"] * 45}, DataError, "in both train and val of the split"),
        ({"group": "one"}, DataError, "every class needs at least 2 images or groups"),
        ({"path": "nowhere.png"}, DataError, "no images to train on"),
        ({"image_id": "same"}, DataError, "same"),
    ],
)
@pytest.mark.filterwarnings("ignore::deepfeat.errors.DataWarning")
def test_unusable_table_is_refused(table, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        deepfeat.finetune(table.assign(**change), small_cnn(), tmp_path / "x.keras", **SCRATCH)
    assert not list(tmp_path.iterdir())


def test_images_that_cannot_be_read_are_left_out_with_a_warning(table, tmp_path):
    (tmp_path / "broken.png").write_bytes(Path(table["path"][0]).read_bytes()[:200])
    broken = table.copy()
    broken.loc[3, "path"] = str(tmp_path / "broken.png")
    with pytest.warns(
        DataWarning, match=r"1 image\(s\) cannot be read and are left out \(first: .*broken.png: damaged"
    ):
        chosen = samples.find_samples(broken, None)
    assert len(chosen.digests) == N_IMAGES - 1
    assert "3" not in set(chosen.table["image_id"])


def test_positive_makes_two_classes(table, tmp_path):
    made = deepfeat.finetune(table, small_cnn(), tmp_path / "x.keras", positive="B", **{**SCRATCH, "epochs": 1})
    assert made.classes == ["not B", "B"]
    with pytest.raises(UsageError, match="positive is 'D', which no image has"):
        deepfeat.finetune(table, small_cnn(), tmp_path / "y.keras", positive="D", **SCRATCH)


def test_class_weights_are_those_of_scikit_learn_or_as_given():
    labels = np.array([0, 0, 0, 1])
    np.testing.assert_allclose(samples.class_weights(labels, "AB", "class_weight"), [4 / 6, 2])
    np.testing.assert_array_equal(samples.class_weights(labels, "AB", None), [1, 1])
    np.testing.assert_array_equal(samples.class_weights(labels, "AB", {"B": 3, "A": 1}), [1, 3])
    with pytest.raises(UsageError, match=r"imbalance has weights for \['A'\]: give one for each of \['A', 'B'\]"):
        samples.class_weights(labels, ["A", "B"], {"A": 1})


def make_data(labels, n_classes=2):
    labels = np.array(labels)
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] + np.zeros((1, 2, 2, 3), np.uint8)
    ones = np.ones(n_classes, np.float32)
    return epochs.Data(
        pixels, np.eye(n_classes, dtype=np.float32)[labels], np.arange(len(labels)), np.arange(1), ones, ones
    )


def seen_rows(data, settings, epoch):
    batches = epochs.Batches(data, settings, epoch)
    return np.concatenate([batches[i][0][:, 0, 0, 0] for i in range(len(batches))])


def test_resampling_shows_classes_equally_often_and_every_image():
    data = make_data([0] * 18 + [1] * 3)
    rows = seen_rows(data, Settings(imbalance="resample", augment=None, batch_size=4), 1)
    assert (np.sum(rows < 18), np.sum(rows >= 18)) == (11, 11)
    assert set(rows[rows >= 18]) == {18, 19, 20}
    assert len(set(rows[rows < 18])) == 11


def test_each_epoch_has_its_own_order_that_the_seed_decides():
    data, settings = make_data([0, 1] * 10), Settings(augment=None, batch_size=8)
    first, second = seen_rows(data, settings, 1), seen_rows(data, settings, 2)
    assert sorted(first) == sorted(second) == list(range(20))
    assert first.tolist() != second.tolist()
    assert first.tolist() == seen_rows(data, settings, 1).tolist()
    assert first.tolist() != seen_rows(data, Settings(augment=None, batch_size=8, seed=1), 1).tolist()


def test_large_pixels_lie_in_a_file(table, tmp_path, monkeypatch):
    chosen = samples.find_samples(table, None)
    inside = samples.load_pixels(chosen, small_cnn(), tmp_path)
    monkeypatch.setattr(samples, "IN_MEMORY", 100)
    outside = samples.load_pixels(chosen, small_cnn(), tmp_path)
    assert isinstance(outside, np.memmap)
    np.testing.assert_array_equal(inside, outside)
    expected = resize_image(Image.open(table["path"][7]), (16, 16), "squash")
    np.testing.assert_array_equal(inside[7], expected)


# Augmentation


def picture(n=1, height=6, width=6, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), np.uint8)


@pytest.mark.parametrize(("size", "count"), [((6, 6), 8), ((6, 4), 4)])
def test_flips_and_turns_make_every_view_of_the_rectangle_and_no_other(size, count):
    image = picture(1, *size)[0]
    views = {np.rot90(m, k).tobytes() for m in (image, image[:, ::-1]) for k in range(0, 4, 1 if count == 8 else 2)}
    made = augment(np.stack([image] * 400), ("flip", "rotate"), np.random.default_rng(0))
    assert {m.tobytes() for m in made} == views
    assert len(views) == count


def test_colour_stays_near_and_keeps_grey_grey():
    images = np.full((50, 4, 4, 3), 100, np.uint8)
    images[:, :2] = 120
    made = augment(images, ("color",), np.random.default_rng(0)).astype(int)
    assert np.ptp(made, axis=-1).max() == 0
    assert np.abs(made.mean(axis=(1, 2, 3)) - 110).max() <= 0.2 * 110 + 1
    assert len({m.tobytes() for m in made}) > 40


@pytest.mark.parametrize("kinds", [(kind,) for kind in AUGMENTATIONS] + [AUGMENTATIONS])
def test_augmentation_is_decided_by_the_generator_and_leaves_its_input_alone(kinds):
    images = picture(16)
    before = images.copy()
    made = [augment(images, kinds, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(made[0], made[1])
    assert (made[0] != made[2]).any()
    assert (made[0].dtype, made[0].shape) == (images.dtype, images.shape)


def test_no_augmentation_changes_nothing():
    np.testing.assert_array_equal(augment(picture(4), (), np.random.default_rng(0)), picture(4))


# Bad arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosine"}, "schedule is 'cosine': use one of 'plateau', 'cyclical', 'constant'"),
        ({"augment": ["flop"]}, "augment is 'flop': use one of 'flip', 'rotate', 'color'"),
        ({"imbalance": "smote"}, "imbalance is 'smote'"),
        ({"precision": "float16"}, "precision is 'float16'"),
        ({"epochs": -1}, "epochs is -1: use a whole number of at least 0"),
        ({"epochs": 0, "head_epochs": 0}, "nothing to train"),
        ({"epochs": 1.5}, "epochs is 1.5: use a whole number"),
        ({"patience": 0}, "patience is 0"),
        ({"batch_size": True}, "batch_size is True"),
        ({"dropout": 1.0}, "dropout is 1.0: use a number of at least 0 and below 1"),
        ({"l2": -1}, "l2 is -1"),
        ({"unfreeze": 1.5}, "unfreeze is 1.5"),
        ({"val_size": 0}, "use a share between 0 and 1"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast': use a finite number of at least 0"),
        ({"learning_rate": np.inf}, "learning_rate is inf: use a finite number of at least 0"),
        ({"imbalance": {"A": 1, "B": 1, "C": -1}}, "imbalance of 'C' is -1: use a finite number of at least 0"),
        ({"imbalance": {"A": 1, "B": np.nan, "C": 1}}, "imbalance of 'B' is nan: use a finite number of at least 0"),
        ({"imbalance": {"A": "1", "B": 1, "C": 1}}, "imbalance of 'A' is '1': use a finite number"),
        ({"imbalance": {"A": 1, "B": 1}}, r"imbalance has weights for \['A', 'B'\]"),
        ({"embedding_dim": 0}, "embedding_dim is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_argument_is_refused_with_what_is_allowed(table, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        deepfeat.finetune(table, small_cnn(), tmp_path / "x.keras", **{**SCRATCH, **options})
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_and_weights_as_a_series_are_taken(table, tmp_path):
    plain = {"seed": 1, "batch_size": 8, "learning_rate": 0.25, "dropout": 0.5, "val_size": 0.25, "embedding_dim": 4}
    options = {name: np.array(value, "i8" if isinstance(value, int) else "f4")[()] for name, value in plain.items()}
    weights = {"A": 1.0, "B": 2.0, "C": 0.0}
    options |= {"unfreeze": np.float32(1), "head_epochs": np.int64(0), "epochs": np.int64(1)}
    options |= {"imbalance": pd.Series(weights), "augment": np.array(["flip"])}
    made = deepfeat.finetune(table, small_cnn(), tmp_path / "x.keras", progress=False, **options)
    settings = made.network.manifest.settings
    assert {name: settings[name] for name in plain} == plain
    assert (settings["imbalance"], settings["augment"], settings["epochs"]) == (weights, ["flip"], 1)


@pytest.mark.parametrize("weights", [{0: np.float32(1), 1: np.int64(3)}, {"0": 1.0, "1": 3.0}])
def test_weights_are_by_the_labels_as_text(weights):
    assert Settings(imbalance=weights).imbalance == {"0": 1.0, "1": 3.0}


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (lambda: small_cnn(layer=["first", "second"]), "goes on from one layer"),
        (lambda: small_cnn(layer="second", pooling=None), "needs a vector for each image"),
    ],
)
def test_backbone_without_one_vector_is_refused(table, tmp_path, backbone, message):
    with pytest.raises(UsageError, match=message):
        deepfeat.finetune(table, backbone(), tmp_path / "x.keras", **SCRATCH)


@pytest.mark.parametrize(("name", "message"), [("x.h5", "ends in .keras"), ("no/x.keras", "there is no folder")])
def test_path_that_cannot_be_is_refused(table, tmp_path, name, message):
    with pytest.raises(UsageError, match=message):
        deepfeat.finetune(table, small_cnn(), tmp_path / name, **SCRATCH)


def test_bfloat16_trains_and_is_saved_as_float32(table, tmp_path):
    made = deepfeat.finetune(
        table, small_cnn(layer="second", pooling="gem"), tmp_path / "x.keras", precision="bfloat16", **SCRATCH
    )
    model = made.build()
    assert {layer.dtype_policy.name for layer in model.layers if layer.weights} == {"float32"}
    assert np.isfinite(made.history["val_loss"]).all()
