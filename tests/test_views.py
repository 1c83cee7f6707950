from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import make_pipeline as pipe
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import deepfeat
from deepfeat.errors import DataError, UsageError
from deepfeat.fusion import ViewsClassifier
from deepfeat.store import RECORD, StoreWriter

C = {"C": [0.01]}


def views_of(n_images=60, width=6, n_views=3, classes=2, seed=0):
    """Rows with the views of an image side by side, each view a noisy copy."""
    generator = np.random.default_rng(seed)
    y = np.arange(n_images) % classes
    centre = generator.standard_normal((classes, width))[y] + generator.standard_normal((n_images, width))
    X = np.concatenate([centre + generator.standard_normal((n_images, width)) for _ in range(n_views)], axis=1)
    return X, y


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("rule", ["vote", "augment"])
def test_views_classifier_is_fitted_on_all_views(rule, classes):
    X, y = views_of(classes=classes)
    svm = pipe(StandardScaler(), LinearSVC(random_state=0))
    fitted = ViewsClassifier(svm, 3, rule).fit(X, y)
    parts = [X[:, 6 * v : 6 * v + 6] for v in range(3)]
    stacked = np.stack(parts, axis=1).reshape(-1, 6)
    reference = pipe(StandardScaler(), LinearSVC(random_state=0)).fit(stacked, np.repeat(y, 3))
    values = [reference.decision_function(part) for part in parts]
    expected = np.mean(values, axis=0) if rule == "vote" else values[0]
    np.testing.assert_allclose(fitted.decision_function(X), expected)
    guess = (expected > 0).astype(int) if classes == 2 else expected.argmax(axis=1)
    np.testing.assert_array_equal(fitted.predict(X), guess)


def test_views_of_unequal_width_are_refused():
    with pytest.raises(UsageError, match="18 columns are not 4 views of one width"):
        ViewsClassifier(None, 4).fit(*views_of())


def add_views(path, table, blocks):
    """Blocks of the images of a table: (backbone, view, features)."""
    spec = {
        "weights": "sha256:0",
        "layer": None,
        "pooling": "avg",
        "input_size": [8, 8],
        "resize": "squash",
        "pixels": 3,
        "preprocessing": {"channels": "rgb", "mean": [0.0] * 3, "std": [1.0] * 3},
        "precision": "float32",
        "dtype": "float32",
    }
    with StoreWriter(path) as writer:
        rows = writer.add_images(table)
        records = np.zeros(len(table), RECORD)
        for row, record in enumerate(records):
            record["digest"] = np.frombuffer(f"{row:032d}".encode(), np.uint8)
        for backbone, view, features in blocks:
            block = writer.add_block({**spec, "backbone": backbone, "view": view}, features.shape[1:], {})
            writer.write(block, rows.tolist(), features, records)
    return deepfeat.open_features(path)


@pytest.fixture
def two_views(tmp_path):
    X, y = views_of(n_views=2, classes=2)
    Z, _ = views_of(n_views=2, classes=2, seed=1)
    ids = [f"i{n:02d}" for n in range(len(y))]
    table = pd.DataFrame(
        {"image_id": ids, "path": ids, "label": np.array(["a", "b"])[y], "group": None, "split": None}, dtype=object
    )
    blocks = [
        ("A", "original", X[:, :6]),
        ("A", "hflip", X[:, 6:]),
        ("B", "original", Z[:, :6]),
        ("B", "hflip", Z[:, 6:]),
    ]
    return (
        add_views(tmp_path / "f.h5", table, [(b, v, f.astype(np.float32)) for b, v, f in blocks]),
        X,
        Z,
        table["label"],
    )


def test_average_of_views_is_the_mean_embedding(two_views):
    store, X, _, labels = two_views
    result = deepfeat.fit_svm(store, backbones="A", param_grid=C, test=None)
    mean = np.mean([X[:, :6].astype(np.float32), X[:, 6:].astype(np.float32)], axis=0)
    expected = deepfeat.fit_svm((mean, labels.to_numpy()), param_grid=C, test=None)
    assert result.views == ("original", "hflip")
    assert result.blocks == {"A": 6}
    np.testing.assert_allclose(
        result.predictions[["a", "b"]].to_numpy(float), expected.predictions[["a", "b"]].to_numpy(float), rtol=1e-4
    )


@pytest.mark.parametrize("views", ["average", "augment", "vote"])
@pytest.mark.parametrize("fusion", ["concat", "late", "aligned"])
def test_views_go_with_every_fusion(two_views, views, fusion):
    store = two_views[0]
    result = deepfeat.fit_svm(store, fusion=fusion, views=views, param_grid=C, test=0.25)
    assert result.blocks == {"A": 6, "B": 6}
    assert result.pipeline.n_features_in_ == 24
    assert result.best_params["C"] == 0.01
    assert result.metrics.value["accuracy"] > 0.6
    assert "of the views original, hflip" in result.summary()


def test_augmentation_without_the_image_itself_is_refused(tmp_path):
    X, y = views_of(n_views=2)
    ids = [f"i{n:02d}" for n in range(len(y))]
    table = pd.DataFrame(
        {"image_id": ids, "path": ids, "label": y.astype(str), "group": None, "split": None}, dtype=object
    )
    blocks = [("net", view, X[:, :6].astype(np.float32)) for view in ("hflip", "rot90")]
    add_views(tmp_path / "f.h5", table, blocks)
    with pytest.raises(UsageError, match="there are only its views hflip, rot90: take 'original' along"):
        deepfeat.fit_svm(tmp_path / "f.h5", views="augment", param_grid=C)
    assert deepfeat.fit_svm(tmp_path / "f.h5", views="vote", param_grid=C, test=None).views == ("hflip", "rot90")


def test_folds_hold_an_image_with_all_its_views(two_views):
    result = deepfeat.fit_svm(two_views[0], views="vote", param_grid=C, test=None)
    assert len(result.predictions) == 60
    assert result.predictions.index.is_unique


def test_without_views_the_image_itself_counts(two_views):
    store, X, Z, labels = two_views
    result = deepfeat.fit_svm(store, views=None, param_grid=C, test=None)
    alone = np.concatenate([X[:, :6], Z[:, :6]], axis=1).astype(np.float32)
    expected = deepfeat.fit_svm((alone, labels.to_numpy()), param_grid=C, test=None)
    np.testing.assert_allclose(
        result.predictions[["a", "b"]].to_numpy(float), expected.predictions[["a", "b"]].to_numpy(float), rtol=1e-4
    )


def test_view_that_is_named_stands_alone(two_views):
    result = deepfeat.fit_svm(two_views[0], backbones="A@hflip", param_grid=C, test=None)
    assert result.blocks == {"A@hflip": 6}
    assert result.views == ("original",)


def test_views_that_not_all_backbones_have_are_refused(two_views, tmp_path):
    store, X, _, _ = two_views
    more = add_views(store.path, store.table, [("A", "vflip", X[:, :6].astype(np.float32))])
    with pytest.raises(DataError, match="B has no view 'vflip', and other blocks have: extract it, or pass views=None"):
        deepfeat.fit_svm(more, param_grid=C, test=None)


def test_unknown_rule():
    with pytest.raises(UsageError, match="views is 'mean': use one of 'average', 'augment', 'vote', None"):
        deepfeat.fit_svm(views_of(), views="mean")
