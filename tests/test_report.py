from __future__ import annotations

import base64
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pages import HOSTILE_LABELS, colour_of, hostile_result, hostile_store
from PIL import Image
from sklearn.metrics import auc, roc_auc_score

import deepfeat
from deepfeat.cli import main
from deepfeat.curves import Scores, precision_recall, reliability, roc, take_scores
from deepfeat.errors import DataError, DeepfeatError, StoreError, UsageError
from deepfeat.markup import Markup, element, join
from deepfeat.report.figures import _percent_form, _round_ticks, _whole_ticks
from deepfeat.report.gallery import hardest_errors
from deepfeat.report.pictures import load_pictures, make_sheets, overlay, picture_source
from deepfeat.report.projection import project
from deepfeat.report.sections import _choices
from deepfeat.report.tables import fold_table
from deepfeat.store import StoreWriter


@pytest.fixture(scope="module")
def store(tmp_path_factory, build_store, make_spec, make_table):
    return hostile_store(tmp_path_factory.mktemp("hostile"), build_store, make_spec, make_table)


@pytest.fixture(scope="module")
def result(store):
    return hostile_result(store)


@pytest.fixture(scope="module")
def arrays():
    """Two classes, ten lesions of four images each."""
    rng = np.random.default_rng(3)
    y = np.repeat([True, False], 20)
    X = rng.normal(size=(40, 5)) + 0.8 * y[:, None]
    return X, np.where(y, "MEL", "NV"), np.arange(40) // 4


@pytest.fixture(scope="module")
def melanoma(arrays):
    return deepfeat.fit_svm(
        arrays, positive="MEL", test=None, cv=3, param_grid={"C": [0.01, 0.1]}, threshold="recall>=0.8", nested=True
    )


def written(result, tmp_path, *given, **options):
    result.report(tmp_path / "report.html", *given, **{"method": "pca", **options})
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def section(page, anchor):
    return re.search(rf'<section id="{anchor}".*?</section>', page, re.DOTALL)[0]


# Markup


@pytest.mark.parametrize(
    ("children", "attributes", "expected"),
    [
        (("a < b & c",), {}, "<p>a &lt; b &amp; c</p>"),
        (("'\"",), {}, "<p>&#x27;&quot;</p>"),
        ((Markup("<b>x</b>"),), {}, "<p><b>x</b></p>"),
        ((None, 3, ["a", (Markup("<i>"), "<i>")]), {}, "<p>3a<i>&lt;i&gt;</p>"),
        ((), {"title": '"><script>'}, '<p title="&quot;&gt;&lt;script&gt;"></p>'),
        (
            (),
            {"class_": "x", "data_k": 0, "hidden": True, "id": None, "open": False},
            '<p class="x" data-k="0" hidden></p>',
        ),
        (("\ud800\0",), {}, "<p>?\N{REPLACEMENT CHARACTER}</p>"),
    ],
)
def test_everything_but_markup_is_escaped(children, attributes, expected):
    assert element("p", *children, **attributes) == expected


def test_markup_joined_with_text_is_text_again():
    assert element("p", Markup("<b>") + "<i>") == "<p>&lt;b&gt;&lt;i&gt;</p>"
    assert join("<", Markup("<")) == "&lt;<"


# Curves


@pytest.mark.parametrize("number", [0, 1, 2])
def test_areas_under_the_curves_are_those_of_the_table(result, number):
    scores = take_scores(result)
    row = result.per_class.iloc[number]
    curve = roc(scores, number)
    assert auc(curve.x, curve.y) == pytest.approx(row["auroc"], abs=0.003)
    assert row["auroc"] == pytest.approx(roc_auc_score(scores.truth == number, scores.decision[:, number]))
    steps = precision_recall(scores, number)
    assert np.sum(np.diff(steps.x) * steps.y[1:]) == pytest.approx(row["average_precision"], abs=0.005)


def test_areas_under_the_curves_of_a_nested_estimate_are_those_of_the_table():
    rng = np.random.default_rng(0)
    y = np.where(np.arange(300) % 6 == 0, "MEL", "NV")
    X = rng.normal(size=(300, 5)) + 1.2 * (y == "MEL")[:, None] * np.eye(5)[0]
    result = deepfeat.fit_svm((X, y), positive="MEL", test=None, nested=True, param_grid={"C": [1e-4, 1e-2, 1]})
    assert len(set(result.nested_choices["C"])) > 1
    scores, row = take_scores(result), result.per_class.loc["MEL"]
    curve, steps = roc(scores, 1), precision_recall(scores, 1)
    # Pairs of two folds are in the area and not in the number.
    assert auc(curve.x, curve.y) == pytest.approx(row["auroc"], abs=0.01)
    assert np.sum(np.diff(steps.x) * steps.y[1:]) == pytest.approx(row["average_precision"], abs=0.005)


def test_operating_point_of_a_fixed_threshold_is_on_the_curves(arrays):
    result = deepfeat.fit_svm(arrays, positive="MEL", test=0.4, cv=2, param_grid={"C": [0.01]}, threshold=-0.1)
    curve, row = roc(take_scores(result), 1), result.per_class.loc["MEL"]
    at = np.flatnonzero(np.isclose(curve.x, 1 - row["specificity"]))
    assert np.isclose(curve.y[at], row["recall"]).any()


@pytest.mark.parametrize("make", [roc, precision_recall])
def test_bands_hold_the_curve_and_are_wider_for_images_in_groups(result, make):
    def width(curve):
        return (curve.high - curve.low).mean()

    curve = make(take_scores(result), 0)
    # At a jump the curve has no single height.
    middle = np.interp(curve.band_x, curve.x, curve.y)
    assert (curve.low - 0.1 <= middle).mean() > 0.95
    assert (middle <= curve.high + 0.1).mean() > 0.95
    ordered = result.predictions.sort_values(["label", "predicted", result.classes[0]])
    alone = ordered.assign(group=np.arange(len(ordered)))
    by_five = ordered.assign(group=np.arange(len(ordered)) // 5)
    narrow, wide = (make(take_scores(replace(result, predictions=rows)), 0) for rows in (alone, by_five))
    assert width(wide) > 1.2 * width(narrow)


def test_class_that_no_image_has_has_no_curve(result):
    one = result.predictions[result.predictions["label"] == result.classes[0]]
    scores = take_scores(replace(result, predictions=one))
    assert (roc(scores, 0), roc(scores, 1), precision_recall(scores, 1)) == (None, None, None)


@pytest.mark.parametrize("positive", [None, HOSTILE_LABELS[0]])
def test_reliability_adds_up_to_the_calibration_error(store, positive):
    result = hostile_result(store, positive=positive)
    bins = reliability(take_scores(result))
    filled = bins.n_images[bins.n_images > 0]
    error = np.sum(filled * np.abs(bins.predicted - bins.observed)) / bins.n_images.sum()
    assert error == pytest.approx(result.metrics.value["calibration_error"])
    assert (bins.low <= bins.observed).all()
    assert (bins.observed <= bins.high).all()


def test_bands_are_right_with_more_images_than_sixteen_bits_count():
    """As of 100,000 images in one bin, of which nine in ten are right."""
    n = 100_000
    truth = (np.arange(n) % 10 > 0).astype(int)
    chances = np.tile([0.1, 0.9], (n, 1))
    counts = np.ones((3, n), np.uint16)
    bins = reliability(Scores(pd.DataFrame(), ["a", "b"], truth, truth, chances, chances, counts))
    assert (bins.observed, bins.low, bins.high) == (pytest.approx([0.9]),) * 3


def test_resamples_without_the_class_have_no_precision():
    truth = np.array([1, 0, 0, 0])
    decision = np.array([[-2.0, 2.0], [1, -1], [2, -2], [3, -3]])
    counts = np.array([[1, 1, 1, 1], [0, 1, 2, 1], [2, 1, 1, 0]])
    curve = precision_recall(Scores(pd.DataFrame(), ["a", "b"], truth, truth, decision, None, counts), 1)
    np.testing.assert_array_equal([curve.low, curve.high], 1)


# Errors


def errors_of(truth, decision, groups, threshold=None, n_errors=10):
    decision = np.array(decision, float)
    guess = (decision[:, 1] >= threshold).astype(int) if threshold is not None else decision.argmax(axis=1)
    rows = pd.DataFrame({"group": groups})
    found = hardest_errors(
        SimpleNamespace(truth=np.array(truth), guess=guess, decision=decision, rows=rows), threshold, n_errors
    )
    return list(zip(found["row"].tolist(), found["margin"].round(3).tolist(), strict=True))


def test_hardest_errors_are_sorted_by_margin():
    decision = [[0, 1, 0], [0, 3, 0], [2, 0, 0], [0, 0, 1]]
    assert errors_of([0, 0, 1, 2], decision, [0, 1, 2, 3]) == [(1, 3.0), (2, 2.0), (0, 1.0)]


def test_one_image_of_a_group_is_shown():
    decision = [[0, 1], [0, 3], [0, 2]]
    assert errors_of([0, 0, 0], decision, [5, 5, 6]) == [(1, 3.0), (2, 2.0)]


def test_every_class_has_its_turn():
    decision = [[0, 9, 0], [0, 8, 0], [0, 7, 0], [0, 0, 1]]
    assert errors_of([0, 0, 0, 1], decision, [0, 1, 2, 3], n_errors=2) == [(0, 9.0), (3, 1.0)]


def test_margin_is_measured_from_a_threshold():
    decision = [[0.5, -0.5], [-2, 2], [1, -1]]
    assert errors_of([0, 0, 1], decision, [0, 1, 2], threshold=-0.6) == [(1, 2.6), (2, 0.4), (0, 0.1)]


# Pictures


def test_pictures_are_fitted_and_bad_files_have_reasons(tmp_path):
    Image.new("RGB", (300, 100)).save(tmp_path / "wide.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    paths = {"wide": str(tmp_path / "wide.png"), "bad": str(tmp_path / "bad.png"), "gone": str(tmp_path / "gone.png")}
    wide, bad, gone, unknown = load_pictures(paths, ["wide", "bad", "gone", "unknown"], 60)
    assert wide.picture.size == (60, 20)
    assert load_pictures(paths, ["wide"], 60, square=True)[0].picture.size == (60, 60)
    reasons = [bad.reason, gone.reason, unknown.reason]
    assert reasons == ["not an image of a known format", "file not found", "no file is known"]


def test_nothing_but_pixels_of_a_file_reaches_the_page(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "patient 4711"
    Image.new("RGB", (80, 80), "red").save(tmp_path / "a.jpg", exif=exif, comment=b"patient 4711")
    [loaded] = load_pictures({"a": str(tmp_path / "a.jpg")}, ["a"], 64)
    written = base64.b64decode(picture_source(loaded.picture).partition(",")[2])
    assert b"4711" in (tmp_path / "a.jpg").read_bytes()
    assert b"4711" not in written


def test_sheets_hold_thumbnails_row_by_row():
    pictures = [Image.new("RGB", (64, 64), (k % 256, 0, 0)) for k in range(401)]
    sheets = make_sheets(pictures)
    assert [sheet.n_pictures for sheet in sheets] == [400, 1]
    assert make_sheets([]) == []


def test_overlay_is_red_above_and_blue_below_the_mean():
    evidence = np.array([[6.0, 5.0, 4.0]])
    shown = np.asarray(overlay(Image.new("RGB", (300, 100), (120, 120, 120)), evidence)).astype(int)
    left, middle, right = shown[50, 5], shown[50, 150], shown[50, 295]
    assert left[0] > left[2] + 60
    assert right[2] > right[0] + 60
    assert np.ptp(middle) < 10
    peak = np.asarray(overlay(Image.new("RGB", (300, 100), (120, 120, 120)), np.eye(5)[2:3])).astype(int)
    # A quarter of the peak's strength is as far below the mean as all of the rest is.
    assert peak[50, 150, 0] - peak[50, 150, 2] > 60
    assert np.ptp((peak[..., 2] - peak[..., 0])[:, :90]) <= 2
    flat = np.asarray(overlay(Image.new("RGB", (30, 30), (120, 120, 120)), np.full((2, 2), 3.0)))
    assert (flat == 120).all()


# Projection


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_map_keeps_what_is_far_apart_apart(method):
    codes = np.arange(60) % 2
    features = np.random.default_rng(0).normal(size=(60, 30)) + 4 * codes[:, None]
    places = project(features, method, seed=0)
    assert places.shape == (60, 2)
    assert places.min() == 0
    assert places.max() == 1
    near = np.linalg.norm(places[:, None] - places, axis=2)
    np.fill_diagonal(near, np.inf)
    assert (codes[near.argmin(axis=1)] == codes).all()
    np.testing.assert_array_equal(places, project(features, method, seed=0))


@pytest.mark.parametrize("method", ["pca", "tsne"])
@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (3, 1), (5, 1), (6, 3)])
def test_map_of_few_images_or_columns(method, shape):
    places = project(np.random.default_rng(0).normal(size=shape), method, seed=0)
    assert places.shape == (shape[0], 2)
    assert np.isfinite(places).all()


# The page


class Reader(HTMLParser):
    """What a browser would make of the page, as far as scripts and addresses go."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.handlers, self.bdi, self._inside = [], [], [], [], False

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "action", "poster", "data", "srcset")]
        self.handlers += [k for k, _ in attrs if k.startswith("on")]
        self._inside = tag == "bdi"
        self.bdi += [""] if self._inside else []

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.bdi[-1] += data


def test_hostile_names_are_text(result, tmp_path):
    page = written(result, tmp_path, title="</title><script>window.hacked=1</script>")
    reader = Reader()
    reader.feed(page)
    assert reader.tags.count("script") == 2
    assert reader.tags.count("style") == 1
    assert "b" not in set(reader.bdi)
    assert reader.handlers == []
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in reader.addresses)
    assert set(HOSTILE_LABELS) <= set(reader.bdi)
    assert {i for i in result.predictions.index if i in reader.bdi}


def test_page_holds_the_numbers_of_the_result(result, tmp_path):
    page = written(result, tmp_path)
    for metric, row in result.metrics.iterrows():
        name = {"f1_macro": "F1, macro", "auroc_macro": "AUROC, macro", "brier": "Brier score"}.get(metric)
        line = rf"{name or metric.replace('_macro', ', macro').replace('_', ' ')}</th>.*?{row['value']:.3f}.*?"
        interval = ">–<" if metric == "calibration_error" else f"{row['low']:.3f} to {row['high']:.3f}"
        assert re.search(line + interval, section(page, "metrics"))
    counts = [int(n.replace(",", "")) for n in re.findall(r"<b>([\d,]+)</b>", section(page, "confusion"))]
    assert counts == result.confusion.to_numpy().ravel().tolist()
    means = re.findall(r"<b>(0\.\d{3})</b>", section(page, "grid"))
    assert means == [f"{v:.3f}" for v in result.cv_results.sort_values("C")["mean"]]
    for known in ("rows", "folds", "created", "deepfeat"):
        assert str(result.provenance[known]) in section(page, "provenance")


def test_data_section_counts_images_and_groups(arrays, tmp_path):
    result = deepfeat.fit_svm(arrays, test=0.4, cv=2, param_grid={"C": [0.01]})
    rows = re.findall(r"<tr>(.*?)</tr>", section(written(result, tmp_path), "data"), re.DOTALL)
    numbers = [[int(n) for n in re.findall(r"<td>(\d+)</td>", row)] for row in rows[1:3]]
    assert numbers == [[20, 5, 12, 3, 8, 2]] * 2
    assert "40 images in 10 groups, of which 10 have several images (at most 4)" in section(
        written(result, tmp_path), "data"
    )


def test_images_without_groups_are_told_from_groups(arrays, tmp_path):
    result = deepfeat.fit_svm(arrays[:2], test=None, cv=2, param_grid={"C": [0.01]})
    assert "40 images, each a group by itself" in section(written(result, tmp_path), "data")


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_plot_is_a_figure_of_hostile_labels(result, melanoma, tmp_path, ending, start):
    for number, one in enumerate((result, melanoma)):
        path = tmp_path / f"{number}.{ending}"
        one.plot(path)
        assert path.read_bytes().startswith(start)


def test_plot_draws_the_numbers_of_the_result(result, tmp_path):
    from deepfeat import plots

    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        new_figure = plots._new_figure
        patch.setattr(plots, "_new_figure", lambda *given: drawn.append(new_figure(*given)) or drawn[-1])
        result.plot(tmp_path / "figure.png")
    confusion, curves, _, calibration = drawn[0].axes
    assert [int(text.get_text()) for text in confusion.texts] == result.confusion.to_numpy().ravel().tolist()
    assert [text.get_text() for text in curves.get_legend().get_texts()] == list(result.classes)
    points = [line.get_xydata()[0] for line in curves.lines if line.get_marker() == "o"]
    expected = np.column_stack([1 - result.per_class["specificity"], result.per_class["recall"]])
    np.testing.assert_allclose(points, expected)
    assert calibration.get_xlabel() == "predicted probability"
    titles = ["Confusion matrix", "ROC curve", "Precision–recall curve", "Reliability"]
    assert [axes.get_title() for axes in drawn[0].axes] == titles


@pytest.mark.parametrize(
    ("speeds", "labels"),
    [
        ([11], {"10", "20", "50", "100"}),
        ([11, 14, 17], {"12", "14", "16"}),
        ([11, 140, 900], {"10", "20", "50", "100", "200", "500", "1000"}),
    ],
)
def test_speeds_are_labelled_with_round_numbers(speeds, labels, tmp_path, monkeypatch):
    from deepfeat import plots

    drawn, new_figure = [], plots._new_figure
    monkeypatch.setattr(plots, "_new_figure", lambda *given: drawn.append(new_figure(*given)) or drawn[-1])
    names = [f"net{k}" for k in range(len(speeds))]
    table = pd.DataFrame({"both": speeds, "score": 0.7, "low": 0.6, "high": 0.8}, index=names)
    plots.plot_benchmark(table, tmp_path / "bench.png")
    axis = drawn[0].axes[0].xaxis
    low, high = axis.get_view_interval()
    shown = [label.get_text() for label in axis.get_ticklabels() if low <= label.get_position()[0] <= high]
    assert labels <= set(shown)
    assert not any(axis.get_minorticklabels()[k].get_text() for k in range(len(axis.get_minorticklabels())))


def test_map_and_gallery_say_how_much_they_show(result, tmp_path):
    page = written(result, tmp_path, n_points=20, n_errors=3)
    assert "20 of 60 images, drawn at random" in page
    assert section(page, "map").count('class="point') == 20
    wrong = (result.predictions["label"] != result.predictions["predicted"]).sum()
    assert f"3 of {wrong} errors" in page
    assert section(page, "errors").count("<figure") == 3


def test_pictures_that_cannot_be_read_are_counted(result, tmp_path):
    assert " 2 have no picture." in written(result, tmp_path)


def test_pictures_of_another_folder(result, store, tmp_path):
    folder = tmp_path / "moved"
    folder.mkdir()
    table = store.table.assign(path=[str(folder / f"{n}.png") for n in range(store.n_images)])
    for path in table["path"]:
        Image.new("RGB", (40, 40), "green").save(path)
    assert "have no picture" not in written(result, tmp_path, table)
    assert written(result, tmp_path, store) == written(result, tmp_path, store.path) == written(result, tmp_path)


@pytest.mark.parametrize("wrap", [lambda total: total, lambda total: SimpleNamespace(total=total)])
def test_explanations_are_asked_for_what_was_predicted(result, store, tmp_path, wrap):
    asked = {}

    def explain(given, paths, label):
        assert given is result
        asked.update(dict.fromkeys(paths, label))
        return [wrap(np.full((3, 4), 2.0)) for _ in paths]

    page = written(result, tmp_path, explain=explain)
    ids = dict(zip(store.table["path"], store.table["image_id"], strict=True))
    assert asked
    assert all(result.predictions["predicted"][ids[path]] == label for path, label in asked.items())
    assert section(page, "errors").count('class="overlay"') == len(asked)


def test_explanation_that_fails_leaves_a_sentence(result, tmp_path, caplog):
    def explain(*_):
        raise DeepfeatError("the network <b> is not here")

    page = written(result, tmp_path, explain=explain)
    assert "No activation maps: the network &lt;b&gt; is not here" in page
    assert caplog.messages == ["No activation maps: the network <b> is not here"]
    assert 'class="overlay"' not in page


def test_result_of_arrays(melanoma, arrays, tmp_path):
    page = written(melanoma, tmp_path)
    assert "No map: the classifier was fitted on arrays; pass them as features." in page
    assert "no file is known" in page
    assert "Nested estimate" in page
    assert "chosen on the inner folds for recall&gt;=0.8" in page
    assert "pass calibrate=True" in page
    assert 'class="threshold"' in page
    assert section(written(melanoma, tmp_path, features=arrays), "map").count('class="point') == 40


def test_store_that_moved(result, store, tmp_path):
    gone = replace(result, provenance={**result.provenance, "store": str(tmp_path / "gone.h5")})
    assert "No map: there is no feature store" in written(gone, tmp_path)
    assert section(written(gone, tmp_path, features=store), "map").count('class="point') == 60


def test_store_that_was_made_anew(result, tmp_path, build_store, make_spec, make_table, random_features):
    """At the same place, and of other features or images: the page has no map, and is written."""
    for number, (n, spec) in enumerate([(60, make_spec("NetB")), (4, make_spec())]):
        anew = build_store(tmp_path / f"anew{number}.h5", make_table(n), [(spec, random_features(n, 8))])
        moved = replace(result, provenance={**result.provenance, "store": str(anew.path)})
        assert "No map: " in written(moved, tmp_path)


def test_store_whose_images_have_other_contents(arrays, tmp_path, build_store, make_spec, make_table, random_features):
    """The same names, and other pictures: their features beside the old predictions would be a lie."""
    X, y, _ = arrays
    table = make_table(len(X), label=y.tolist())
    ids, blocks = table["image_id"].tolist(), [(make_spec(), X.astype(np.float32))]
    store = build_store(tmp_path / "store.h5", table, blocks)
    result = deepfeat.fit_svm(store, test=None, cv=2, param_grid={"C": [0.01]})
    assert section(written(result, tmp_path), "map").count('class="point') == 40
    changed = build_store(tmp_path / "changed.h5", table, blocks, [*ids[:-1], "another picture"])
    with pytest.raises(StoreError, match="images have other contents than when the classifier was fitted"):
        written(result, tmp_path, features=changed)
    moved = replace(result, provenance={**result.provenance, "store": str(changed.path)})
    assert "images have other contents" in section(written(moved, tmp_path), "map")
    del moved.provenance["contents"]  # as of a result that was saved before there were any
    assert section(written(moved, tmp_path), "map").count('class="point') == 40


def test_imported_features_are_known_by_their_values(arrays, tmp_path, make_table):
    """What is known of the files may change: nothing at first, and their contents when a network has seen them."""
    X, y, _ = arrays
    table = make_table(len(X), label=y.tolist())
    deepfeat.import_features(X, table.drop(columns="path"), tmp_path / "f.h5", name="clinic")
    result = deepfeat.fit_svm(tmp_path / "f.h5", test=None, cv=2, param_grid={"C": [0.01]})
    with StoreWriter(tmp_path / "f.h5") as writer:
        block = writer.store.structure.blocks[0]
        records = writer.store.records(block.key).copy()
        records["digest"] += 1
        writer.write(block, list(range(len(X))), writer.store.features(block.key), records)
    assert section(written(result, tmp_path), "map").count('class="point') == 40


def test_map_of_folds_says_that_they_flatter(result, tmp_path):
    [block] = result.provenance["blocks"]
    folds = [{**block, "name": "skin@folds", "keys": [block["key"], "another"]}]
    page = written(replace(result, provenance={**result.provenance, "blocks": folds}), tmp_path)
    assert "Of skin@folds, this is the network of the first fold" in section(page, "map")
    assert "first fold" not in section(written(result, tmp_path), "map")


@pytest.mark.parametrize("labels", [[0, 1, 2], ["0", "1"], list(range(15))])
def test_labels_of_any_type_and_number(labels, tmp_path):
    rng = np.random.default_rng(0)
    y = np.repeat(np.array(labels), 6)
    X = rng.normal(size=(len(y), 4)) + np.repeat(np.arange(len(labels)), 6)[:, None]
    result = deepfeat.fit_svm((X, y), test=None, cv=2, param_grid={"C": [0.1]}, calibrate=True)
    page = written(result, tmp_path, features=(X, y))
    assert len(re.findall(r'<polyline [^>]*class="curve k', section(page, "curves"))) == 2 * min(12, len(labels))
    assert section(page, "confusion").count("<b>") == len(labels) ** 2


def test_warnings_come_first(result, tmp_path):
    torn = result.predictions.assign(group=0)
    page = written(replace(result, predictions=torn, warnings=["look <here>"]), tmp_path)
    found = re.findall("<li>(.*?)</li>", section(page, "warnings"))
    assert found[0] == "<bdi>look &lt;here&gt;</bdi>"
    assert "1 group(s) have images in several folds" in found[1]
    assert sum("rests on 1 group(s) of images" in text for text in found) == 3
    assert "slightly optimistic" in found[-1]
    assert page.index('id="warnings"') < page.index('id="data"')


def test_grid_of_two_parameters_and_class_weights(arrays, tmp_path):
    grid = {"C": [0.1, 1], "gamma": ["scale", 0.1, 0.01]}
    result = deepfeat.fit_svm(arrays, kernel="rbf", test=None, cv=2, param_grid=grid, class_weight=["balanced", None])
    text = section(written(result, tmp_path), "grid")
    assert len(re.findall(r"± 0\.\d{3}", text)) == 12
    assert re.findall(r'<th scope="row">(.*?)</th>', text) == ["0.01", "0.1", "scale"] * 2
    assert text.count("class weights: ") == 2
    assert text.count("· chosen") == 1
    best = result.cv_results.loc[result.cv_results["rank"].idxmin()]
    assert text.count("is at the edge of its grid") == len(best["at_edge"]) > 0


def test_blocks_that_were_tried_and_outer_choices_are_listed(tmp_path, build_store, make_spec, make_table):
    rng = np.random.default_rng(0)
    table = make_table(60, label=["a", "b"] * 30)
    features = [(make_spec(name), rng.normal(size=(60, 3)).astype(np.float32)) for name in ("NetA", "NetB")]
    store = build_store(tmp_path / "s.h5", table, features)
    result = deepfeat.fit_svm(store, backbones="all-subsets", nested=True, cv=3, param_grid={"C": [0.1]}, test=None)
    page = written(result, tmp_path)
    assert "Sets of blocks that were tried" in page
    assert "What each outer fold chose" in page


def test_result_without_a_warning_says_so(tmp_path):
    rng = np.random.default_rng(0)
    y = np.repeat(["a", "b"], 60)
    X = rng.normal(size=(120, 3)) + 2 * (y == "b")[:, None]
    result = deepfeat.fit_svm((X, y), test=0.5, cv=3, param_grid={"C": [1e-4, 1e-2, 1]})
    assert "No warnings." in written(replace(result, warnings=[]), tmp_path, features=(X, y))


def test_class_that_no_image_has_is_not_drawn(result, tmp_path):
    left = result.predictions[result.predictions["label"] != result.classes[0]]
    few = replace(result, predictions=left)
    few.plot(tmp_path / "few.png")
    assert (tmp_path / "few.png").stat().st_size > 1000


def test_plot_without_matplotlib_says_what_to_install(result, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"plots need the package matplotlib: run `pip install 'deepfeat\[plot\]'`"):
        result.plot(tmp_path / "a.png")


def test_no_errors_no_gallery(tmp_path):
    X, y = np.repeat([[0.0], [9.0]], 10, axis=0), np.repeat(["a", "b"], 10)
    result = deepfeat.fit_svm((X, y), test=None, cv=2, param_grid={"C": [1.0]})
    assert "0 errors." in section(written(result, tmp_path, features=(X, y)), "errors")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "umap"}, UsageError, "method is 'umap': use one of 'tsne', 'pca'"),
        ({"n_points": 0}, UsageError, "n_points is 0: use 1 or more"),
        ({"n_errors": 0}, UsageError, "n_errors is 0: use 1 or more"),
        ({"features": "nowhere.h5"}, StoreError, "there is no feature store 'nowhere.h5'"),
        ({"features": 3}, UsageError, "features is a int: pass a path, a FeatureStore, or the arrays"),
        (
            {"features": (np.zeros((60, 3)), None)},
            UsageError,
            r"shape \(60, 3\): pass the arrays given to fit_svm, with 8",
        ),
        ({"images": ["other.png"]}, DataError, "images has none of the 60 images of the result"),
        ({"images": "nowhere"}, UsageError, "nowhere"),
    ],
)
def test_wrong_arguments(result, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        written(result, tmp_path, **options)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("report.pdf", r"cannot write report.pdf: its name ends in '.pdf', use .html or .htm"),
        ("report", r"cannot write report: its name ends in '', use .html or .htm"),
        ("nowhere/report.html", r"cannot write nowhere/report.html: there is no folder 'nowhere'"),
    ],
)
def test_page_that_cannot_be_written_costs_no_work(result, tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("deepfeat.report.page.take_scores", None)
    with pytest.raises(UsageError, match=message):
        result.report(path)
    assert not list(tmp_path.iterdir())


def test_ending_of_a_page_may_be_short_or_in_capitals(result, tmp_path):
    for name in ("report.htm", "REPORT.HTML"):
        result.report(tmp_path / name, method="pca", n_points=1)
        assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.parametrize(
    ("top", "labels"),
    [
        (0.108, ["0.0%", "2.5%", "5.0%", "7.5%", "10.0%"]),
        (0.9, ["0%", "20%", "40%", "60%", "80%"]),
        (0.54, ["0%", "20%", "40%"]),
        (1.08, ["0%", "25%", "50%", "75%", "100%"]),
        (0.0108, ["0.00%", "0.25%", "0.50%", "0.75%", "1.00%"]),
    ],
)
def test_shares_have_as_many_decimals_as_tell_them_apart(top, labels):
    ticks = _round_ticks(0, top)
    assert [_percent_form(ticks).format(tick) for tick in ticks] == labels


@pytest.mark.parametrize(
    ("top", "ticks"), [(1.08, [0, 1]), (2.16, [0, 1, 2]), (10.8, [0, 5, 10]), (1080, [0, 250, 500, 750, 1000])]
)
def test_images_are_counted_in_whole_numbers(top, ticks):
    assert _whole_ticks(top) == ticks


def test_another_store_is_refused(result, tmp_path, build_store, make_spec, make_table, random_features):
    table = make_table(4)
    other = build_store(tmp_path / "other.h5", table, [(make_spec("NetB"), random_features(4, 8))])
    with pytest.raises(StoreError, match="has no block"):
        written(result, tmp_path, features=other)


# Command line


def test_report_on_the_command_line(store, tmp_path, capsys):
    page = tmp_path / "page.html"
    options = ["--test", "none", "--cv", "3", "--C", "0.01", "--jobs", "1"]
    more = ["--map", "pca", "--points", "10", "--errors", "2", "--title", "Mine"]
    assert main(["report", str(store.path), str(page), *options, *more]) == 0
    assert capsys.readouterr().out == f"wrote {page}\n"
    text = page.read_text(encoding="utf-8")
    assert "<title>Mine</title>" in text
    assert section(text, "map").count('class="point') == 10
    assert main(["fit", str(store.path), *options, "--report", str(page)]) == 0
    assert section(page.read_text(encoding="utf-8"), "map").count('class="point') == 60


def test_colours_of_test_images_survive_jpeg(tmp_path):
    Image.new("RGB", (64, 64), colour_of("x")).save(tmp_path / "x.png")
    [loaded] = load_pictures({"x": str(tmp_path / "x.png")}, ["x"], 64)
    assert loaded.picture.getpixel((5, 5)) == colour_of("x")


def test_images_of_a_test_alone_have_no_table_of_folds(melanoma):
    tested = melanoma.predictions.assign(fold="test")
    assert fold_table(replace(melanoma, predictions=tested)) is None
    assert fold_table(melanoma) is not None


def test_choices_of_outer_folds_are_shown_where_there_are_any(melanoma):
    assert "threshold" in str(_choices(melanoma))
    assert _choices(replace(melanoma, nested_choices=None)) is None
