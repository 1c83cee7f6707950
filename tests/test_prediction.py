from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_network import small_cnn

import deepfeat
from deepfeat.backbones.network import PREPROCESSINGS, untrained
from deepfeat.bundle import bundle_of
from deepfeat.cli.classifiers import _check_weights

#: Where the patch of each picture is: row and column of four by four cells.
CELLS = [(row, column) for row in range(4) for column in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Grey pictures, twice as wide as high, with a red or a blue patch in one of sixteen cells."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for label, channel in (("blue", 2), ("red", 0)):
        (root / label).mkdir()
        for number, (row, column) in enumerate(CELLS):
            picture = rng.integers(100, 110, (32, 64, 3), np.uint8)
            picture[8 * row : 8 * row + 8, 16 * column : 16 * column + 16, channel] = 250
            Image.fromarray(picture).save(root / label / f"{label}{number:02d}.png")
    return root


def cells(input_shape):
    """Each position sees a patch of four by four pixels, and no other."""
    import keras

    layers = keras.layers
    inputs = [keras.Input(input_shape), layers.AveragePooling2D(4), layers.Conv2D(3, 1, name="mixed")]
    return keras.Sequential(inputs, name="cells")


def pooled_backbone():
    import keras

    def build(input_shape):
        layers = keras.layers
        return keras.Sequential([keras.Input(input_shape), layers.Conv2D(3, 4), layers.GlobalMaxPooling2D()])

    network = untrained("Pooled", build, 16, PREPROCESSINGS["tf"])
    return deepfeat.Backbone("Pooled", weights=None, network=network, pooling="flatten")


def cells_backbone(**options):
    network = untrained("Cells", cells, 32, PREPROCESSINGS["tf"])
    return deepfeat.Backbone("Cells", weights=None, network=network, **options)


@pytest.fixture(scope="module")
def fit(folder, tmp_path_factory):
    """Extract, fit, save and load; all with half of the images as a test."""

    def make(backbones, views=None, dtype="float32", weights=(), given=None, table=None, **options):
        path = tmp_path_factory.mktemp("fit")
        table = deepfeat.read_folder(folder) if table is None else table
        store = deepfeat.extract(table, backbones, path / "f.h5", views=views, dtype=dtype, progress=False)
        grid = {"C": [1.0], **({"gamma": [0.1]} if options.get("kernel") == "rbf" else {})}
        result = deepfeat.fit_svm(store, param_grid=grid, test=0.5, cv=3, **options)
        result.save(path / "a.deepfeat", weights)
        return result, deepfeat.load(path / "a.deepfeat", backbones if given is None else given)

    return make


VIEWS = ["original", "hflip", "rot90", "top_left"]

#: Settings of a fit with their backbones.
FITS = {
    "linear": ([cells_backbone()], {}),
    "two networks": ([cells_backbone(), small_cnn()], {}),
    "late fusion": ([cells_backbone(), small_cnn()], {"fusion": "late"}),
    "aligned": ([cells_backbone(), small_cnn()], {"fusion": "aligned"}),
    "views averaged": ([cells_backbone()], {"views": VIEWS}),
    "one view": ([cells_backbone()], {"views": ["top_left"]}),
    "flattened": ([cells_backbone(pooling="flatten")], {}),
    "cropped": ([cells_backbone(resize="crop")], {}),
    "padded": ([cells_backbone(resize="pad")], {}),
    "positive": ([cells_backbone()], {"positive": "red", "threshold": "recall>=0.9", "calibrate": True}),
    "linear SVC": ([cells_backbone()], {"classifier": "SVC"}),
    "a layer": ([small_cnn(layer="first")], {}),
}

KERNELS = {
    "rbf": ([cells_backbone()], {"kernel": "rbf"}),
    "rbf of two networks and views": ([cells_backbone(), small_cnn()], {"kernel": "rbf", "views": VIEWS}),
}


@pytest.mark.parametrize("case", [*FITS, *KERNELS])
def test_new_images_have_the_decision_values_of_the_fit_and_their_explanation_adds_up(case, fit, folder):
    backbones, options = {**FITS, **KERNELS}[case]
    result, classifier = fit(backbones, **options)
    expected = result.predictions[result.predictions["fold"] == "test"]
    found = classifier.predict(folder).loc[expected.index]
    np.testing.assert_allclose(
        found[result.classes].to_numpy(float), expected[result.classes].to_numpy(float), atol=1e-4
    )
    assert found["label"].tolist() == expected["predicted"].tolist()
    chances = [name for name in expected if str(name).startswith("probability")]
    assert [name for name in found if str(name).startswith("probability")] == chances
    np.testing.assert_allclose(found[chances].to_numpy(float), expected[chances].to_numpy(float), atol=1e-4)
    image, label = found["path"].iloc[0], result.classes[0]
    explanation = classifier.explain(image, label)
    assert explanation.decision == pytest.approx(found[label].iloc[0], abs=1e-4)
    assert list(explanation.maps) == list(result.blocks)
    if case in KERNELS:
        assert (explanation.method, explanation.constant) == ("occlusion", 0)
        return
    assert explanation.method == "activation"
    assert explanation.total.sum() == pytest.approx(explanation.decision, abs=1e-4)
    by_block = sum(values.sum() for values in explanation.maps.values()) + explanation.constant
    assert by_block == pytest.approx(explanation.decision, abs=1e-4)


PLACES = {
    "squash": ([cells_backbone()], {}),
    "crop": ([cells_backbone(resize="crop")], {}),
    "pad": ([cells_backbone(resize="pad")], {}),
    "oblong": ([cells_backbone(input_size=(32, 48), resize="pad")], {}),
    "mirrored": ([cells_backbone()], {"views": ["hflip"]}),
    "upside down": ([cells_backbone()], {"views": ["vflip"]}),
    "turned": ([cells_backbone()], {"views": ["rot90"]}),
    "turned twice": ([cells_backbone()], {"views": ["rot180"]}),
    "turned back": ([cells_backbone(input_size=(32, 48))], {"views": ["rot270"]}),
    "turned and padded": ([cells_backbone(input_size=(32, 48), resize="pad")], {"views": ["rot90"]}),
    "cropped view": ([cells_backbone()], {"views": ["top_left"]}),
    "views": ([cells_backbone()], {"views": VIEWS}),
    "rbf": ([cells_backbone()], {"kernel": "rbf"}),
    "rbf turned": ([cells_backbone()], {"kernel": "rbf", "views": ["rot90"]}),
}


@pytest.mark.parametrize("case", PLACES)
def test_what_speaks_for_a_class_is_found_where_it_is(case, fit, folder):
    backbones, options = PLACES[case]
    _, classifier = fit(backbones, **options)
    for number in (5, 6, 9):  # in the middle, so that no crop leaves them out
        row, column = CELLS[number]
        explanation = classifier.explain(folder / "red" / f"red{number:02d}.png", "red")
        height, width = explanation.total.shape
        top = np.unravel_index(explanation.total.argmax(), explanation.total.shape)
        middle = ((top[0] + 0.5) / height * 4, (top[1] + 0.5) / width * 4)
        assert (row <= middle[0] <= row + 1, column <= middle[1] <= column + 1) == (True, True), middle


def test_overlap_keeps_sums_and_places():
    from deepfeat.explanation import overlap

    np.testing.assert_allclose(overlap(2, 4, 0, 1), [[0.5, 0], [0.5, 0], [0, 0.5], [0, 0.5]])
    np.testing.assert_allclose(overlap(2, 2, 0, 0.5), [[1, 1], [0, 0]])
    np.testing.assert_allclose(overlap(3, 2, -0.5, 1.5), [[1, 0.5, 0], [0, 0.5, 1]], atol=1e-12)
    for n_source, n_target, low, high in ((7, 10, 0.1, 0.9), (7, 3, -0.4, 1.4), (1, 1, 0, 1), (10, 7, 0.2, 1)):
        np.testing.assert_allclose(overlap(n_source, n_target, low, high).sum(axis=0), 1)


def test_float16_features_are_rounded_as_in_the_store(fit, folder):
    result, classifier = fit([cells_backbone()], dtype="float16")
    expected = result.predictions[result.predictions["fold"] == "test"]
    found = classifier.predict(folder).loc[expected.index]
    np.testing.assert_allclose(found["red"].astype(float), expected["red"].astype(float), atol=1e-4)


def test_explain_images_takes_a_result_and_many_images(fit, folder):
    result, classifier = fit([cells_backbone()])
    paths = [folder / "red" / "red05.png", folder / "blue" / "blue06.png"]
    explained = deepfeat.explain_images(result, paths, backbones=[cells_backbone()])
    assert [e.label for e in explained] == ["red", "blue"]
    same = deepfeat.explain_images(classifier, paths, "red")
    np.testing.assert_allclose(same[0].total, explained[0].total)
    np.testing.assert_allclose(same[1].total, -explained[1].total, atol=1e-6)
    assert explained[0].picture.shape == (32, 64, 3)


def test_an_explanation_is_drawn(fit, folder, tmp_path):
    _, classifier = fit([cells_backbone(), small_cnn()])
    classifier.explain(folder / "red" / "red05.png").save(tmp_path / "a.png")
    assert np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).std() > 10


def test_a_table_keeps_its_ids_and_failed_images_are_named(fit, folder, tmp_path):
    _, classifier = fit([cells_backbone()])
    (tmp_path / "empty.png").touch()
    paths = [
        folder / "red" / "red00.png",
        tmp_path / "empty.png",
        tmp_path / "none.png",
        folder / "blue" / "blue00.png",
    ]
    table = pd.DataFrame({"image_id": list("abcd"), "path": list(map(str, paths))})
    with pytest.warns(deepfeat.DataWarning, match=r"2 of 4 images failed \('b': empty file; 'c': file not found\)"):
        found = classifier.predict(table)
    assert found.index.tolist() == list("abcd")
    assert found["label"].tolist() == ["red", None, None, "blue"]
    assert found["failure"].tolist() == [None, "empty file", "file not found", None]
    assert found[["red", "blue"]].isna().any(axis=1).tolist() == [False, True, True, False]
    with pytest.raises(deepfeat.ImageError, match=r"empty\.png: empty file"):
        classifier.decision_function(table)
    with pytest.raises(deepfeat.ImageError, match=r"none\.png: file not found"):
        classifier.explain(tmp_path / "none.png")


def test_decision_function_has_the_shape_of_scikit_learn(fit, folder, tmp_path):
    _, classifier = fit([cells_backbone()])
    found = classifier.predict(folder)
    np.testing.assert_allclose(classifier.decision_function(folder), found["red"].astype(float))
    table = deepfeat.read_folder(folder)
    table["label"] = np.array(["a", "b", "c"])[np.arange(32) % 3]
    _, of_three = fit([cells_backbone()], table=table)
    assert of_three.decision_function(folder).shape == (32, 3)
    assert of_three.metrics.loc["accuracy", "value"] >= 0


def test_a_threshold_decides_instead_of_the_sign(fit, folder):
    result, _ = fit([cells_backbone()], positive="red", threshold=10.0)
    classifier = deepfeat.prediction.Classifier(bundle_of(result), [cells_backbone()])
    found = classifier.predict(folder)
    assert set(found["label"]) == {"not red"}
    assert (found["red"] > 0).any()
    assert classifier.explain(found["path"].iloc[0]).label == "not red"


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (cells_backbone(seed=1), "Cells has other weights or settings than each block of the classifier: Cells"),
        (cells_backbone(resize="crop"), "other weights or settings"),
        (cells_backbone(input_size=16), "other weights or settings"),
        (small_cnn(), "SmallCNN has other weights"),
    ],
)
def test_a_given_network_must_be_that_of_the_fit(fit, backbone, message):
    with pytest.raises(deepfeat.UsageError, match=message):
        fit([cells_backbone()], given=[backbone])


def test_a_network_that_is_not_known_must_be_given(fit, folder):
    _, classifier = fit([cells_backbone()], given=[])
    with pytest.raises(deepfeat.BackboneError, match=r"there is no backbone 'Cells'.*: pass the backbone"):
        classifier.predict(folder)


UNEXPLAINED = {
    "max": ([cells_backbone(pooling="max")], {}, "has the pooling 'max'.*use 'avg' or 'flatten'"),
    "no positions": ([pooled_backbone()], {}, r"Pooled is a layer of shape \(3,\) without positions"),
    "flattened rbf": ([cells_backbone(pooling="flatten")], {"kernel": "rbf"}, "'flatten'.*use 'avg'"),
}


@pytest.mark.parametrize("case", UNEXPLAINED)
def test_what_cannot_be_explained_says_so(case, fit, folder):
    backbones, options, message = UNEXPLAINED[case]
    _, classifier = fit(backbones, **options)
    with pytest.raises(deepfeat.UsageError, match=message):
        classifier.explain(folder / "red" / "red00.png")
    with pytest.raises(deepfeat.UsageError, match="label is 'green': the classes are 'blue', 'red'"):
        classifier.explain(folder / "red" / "red00.png", "green")


def test_an_image_that_cannot_be_read_is_not_explained(fit, tmp_path):
    _, classifier = fit([cells_backbone()])
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(deepfeat.ImageError, match=r"broken\.png"):
        classifier.explain(tmp_path / "broken.png")


def test_of_many_images_one_that_cannot_be_read_is_named(fit, folder, tmp_path):
    result, _ = fit([cells_backbone()])
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(deepfeat.ImageError, match=r"broken\.png"):
        deepfeat.explain_images(result, [tmp_path / "broken.png"], backbones=[cells_backbone()])


def test_a_keras_file_travels_along(fit, folder, tmp_path):
    file = tmp_path / "mine.keras"
    model = small_cnn().build()
    model.save(file)
    mine = deepfeat.load_backbone(file, preprocess="tf")
    result, classifier = fit([mine], weights=file, given=[])
    file.unlink()
    expected = result.predictions[result.predictions["fold"] == "test"]
    found = classifier.predict(folder).loc[expected.index]
    np.testing.assert_allclose(found["red"].astype(float), expected["red"].astype(float), atol=1e-4)


def test_a_keras_file_that_gives_other_features_is_refused(fit, folder, tmp_path, monkeypatch):
    file = tmp_path / "mine.keras"
    small_cnn().build().save(file)
    _, classifier = fit([deepfeat.load_backbone(file, preprocess="tf")], weights=file, given=[])
    monkeypatch.setattr(deepfeat.prediction, "matches", lambda backbone, spec: False)
    with pytest.raises(deepfeat.BackboneError, match="computed with other settings than the network in the file"):
        classifier.predict(folder)


def test_weights_of_a_registered_network_travel_along(fit, folder, tmp_path):
    file = tmp_path / "lite.weights.h5"
    deepfeat.Backbone("EfficientNetLite0", weights=None, seed=3).build().save_weights(file)
    given = deepfeat.Backbone("EfficientNetLite0", weights=file, input_size=32)
    result, classifier = fit([given], weights=[file], given=[])
    file.unlink()
    expected = result.predictions[result.predictions["fold"] == "test"]
    found = classifier.predict(folder).loc[expected.index]
    np.testing.assert_allclose(found["red"].astype(float), expected["red"].astype(float), atol=1e-4)


def test_a_finetuned_network_travels_with_its_manifest(fit, folder, tmp_path):
    table = deepfeat.split_table(deepfeat.read_folder(folder), 0.5)
    options = {"head_epochs": 1, "epochs": 1, "unfreeze": 1.0, "batch_size": 8, "progress": False}
    tuned = deepfeat.finetune(table, small_cnn(), tmp_path / "tuned.keras", **options)
    store = deepfeat.extract(table, tuned, tmp_path / "f.h5", progress=False)
    result = deepfeat.fit_svm(store, param_grid={"C": [1.0]}, test="split", cv=2)
    manifest = (tmp_path / "tuned.json").rename(tmp_path / "elsewhere.json")
    for save in (partial(result.save, tmp_path / "a.deepfeat"), partial(_check_weights, cache=store.path)):
        with pytest.raises(deepfeat.UsageError, match=r"its manifest tuned\.json is not beside it"):
            save([tmp_path / "tuned.keras"])
    manifest.rename(tmp_path / "tuned.json")
    result.save(tmp_path / "a.deepfeat", weights=tmp_path / "tuned.keras")
    (tmp_path / "tuned.keras").unlink()
    classifier = deepfeat.load(tmp_path / "a.deepfeat")
    expected = result.predictions[result.predictions["fold"] == "test"]
    found = classifier.predict(folder).loc[expected.index]
    np.testing.assert_allclose(found["red"].astype(float), expected["red"].astype(float), atol=1e-4)
    explanation = classifier.explain(folder / "red" / "red05.png")
    assert explanation.total.sum() == pytest.approx(explanation.decision, abs=1e-4)


def test_a_bundle_of_a_result_is_that_of_its_file(fit, folder):
    result, classifier = fit([cells_backbone()])
    direct = deepfeat.prediction.Classifier(bundle_of(result), [cells_backbone()])
    pd.testing.assert_frame_equal(direct.predict(folder), classifier.predict(folder))
    assert repr(direct) == "<Classifier of blue, red on Cells>"
    explanation = direct.explain(folder / "red" / "red00.png", "red")
    assert repr(explanation).startswith(f"<Explanation of red for {folder / 'red' / 'red00.png'}: decision value ")
    assert dataclasses.replace(bundle_of(result), weights={}).classes == ["blue", "red"]
