from __future__ import annotations

import argparse
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_network import build

import deepfeat
from deepfeat.backbones.network import PREPROCESSINGS
from deepfeat.cli import main, make_parser
from deepfeat.cli.classifiers import _explain
from deepfeat.cli.networks import _print_next_steps
from deepfeat.cli.options import advise_weights, read_backbones, read_table
from deepfeat.cli.output import find_obstacle
from deepfeat.errors import BackboneError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Bright and dark pictures: two classes that any network tells apart."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for label, low in (("bright", 150), ("dark", 0)):
        (root / label).mkdir()
        for number in range(12):
            picture = rng.integers(low, low + 100, (32, 32, 3), np.uint8)
            Image.fromarray(picture).save(root / label / f"{label}{number}.png")
    return root


@pytest.fixture(scope="module")
def cache(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "features.h5"
    assert main(extract_command(folder, path)) == 0
    return path


def extract_command(folder, cache, *more):
    backbone = ["--backbone", "EfficientNetLite0", "--input-size", "32"]
    return ["extract", str(folder), *backbone, "--cache", str(cache), "--quiet", *more]


def test_extract_prints_the_blocks_and_computes_nothing_twice(folder, cache, capsys):
    before = cache.read_bytes()
    assert main(extract_command(folder, cache, "--json")) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["images"], record["labels"]) == (24, {"bright": 12, "dark": 12})
    assert [(b["name"], b["dim"], b["done"]) for b in record["blocks"]] == [("EfficientNetLite0", 1280, 24)]
    assert cache.read_bytes() == before


def test_store_info_shows_counts(cache, capsys):
    assert main(["store", "info", str(cache)]) == 0
    out = capsys.readouterr().out
    assert "24 images, 2 classes" in out
    assert "EfficientNetLite0" in out


def test_fit_prints_the_summary_and_writes_predictions(cache, tmp_path, capsys):
    csv, plot = tmp_path / "predictions.csv", tmp_path / "result.png"
    files = ["--predictions", str(csv), "--plot", str(plot)]
    assert main(["fit", str(cache), "--C", "0.001", "--jobs", "1", *files]) == 0
    assert plot.stat().st_size > 1000
    out = capsys.readouterr().out
    assert "C=0.001" in out
    assert "on 24 out-of-fold images" in out
    predictions = pd.read_csv(csv)
    assert sorted(predictions["image_id"]) == sorted(deepfeat.open_features(cache).table["image_id"])


def test_fit_json_is_what_the_library_returns(cache, capsys):
    command = ["fit", str(cache), "--C", "0.001", "0.01", "--positive", "dark", "--test", "0.25", "--jobs", "1"]
    assert main([*command, "--class-weight", "none", "balanced", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    result = deepfeat.fit_svm(
        cache, param_grid={"C": [0.001, 0.01]}, positive="dark", test=0.25, class_weight=[None, "balanced"]
    )
    assert record["best_params"] == result.best_params
    found = {metric: row["value"] for metric, row in record["metrics"].items()}
    assert found == pytest.approx(result.metrics["value"].to_dict())
    assert record["metrics"]["accuracy"]["low"] == pytest.approx(result.metrics.low["accuracy"])
    assert len(record["cv_results"]) == 4
    assert record["confusion"] == result.confusion.to_dict("index")


def test_reader_that_leaves_early_is_no_error(cache):
    command = (
        f"{sys.executable} -m deepfeat.cli fit {cache} --C 0.001 --no-ledger --json | true; echo ${{PIPESTATUS[0]}}"
    )
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "141"
    assert "Broken pipe" not in run.stderr


def test_fit_nested_calibrated_with_a_threshold(cache, capsys):
    command = ["fit", str(cache), "--C", "0.001", "0.01", "--positive", "dark", "--test", "none", "--cv", "3"]
    assert main([*command, "--nested", "--calibrate", "sigmoid", "--threshold", "recall>=0.8", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["evaluated_on"] == "nested"
    assert set(record["nested"]["brier"]) == {"value", "low", "high", "plain", "optimism"}
    assert isinstance(record["threshold"], float)


@pytest.fixture(scope="module")
def model(cache, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "light.deepfeat"
    command = ["fit", str(cache), "--C", "0.001", "--positive", "dark", "--calibrate", "sigmoid", "--test", "0.25"]
    assert main([*command, "--save", str(path), "--json"]) == 0
    return path


def test_predict_prints_csv_and_json_lines_of_a_folder(model, folder, capsys):
    capsys.readouterr()
    assert main(["predict", str(model), str(folder)]) == 0
    csv = capsys.readouterr().out
    table = pd.read_csv(io.StringIO(csv), index_col="image_id")
    assert list(table.columns) == [
        *("path", "label", "not dark", "dark", "probability not dark", "probability dark", "failure")
    ]
    expected = deepfeat.load(model).predict(folder)
    assert table["label"].tolist() == expected["label"].tolist()
    assert table["dark"].tolist() == pytest.approx(expected["dark"].tolist(), abs=1e-4)
    assert main(["predict", str(model), str(folder), "--json-lines"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["image_id"] for record in records] == table.index.tolist()
    assert [record["dark"] for record in records] == pytest.approx(table["dark"].tolist(), abs=1e-4)
    assert {record["failure"] for record in records} == {None}


def test_predict_names_failed_images_and_goes_on(model, folder, tmp_path, capsys):
    capsys.readouterr()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    assert main(["predict", str(model), str(broken), str(folder / "dark" / "dark0.png"), "--json-lines"]) == 0
    captured = capsys.readouterr()
    first, second = map(json.loads, captured.out.splitlines())
    assert (first["label"], first["dark"], first["failure"]) == (None, None, "not an image of a known format")
    expected = deepfeat.load(model).predict([folder / "dark" / "dark0.png"])
    assert (second["label"], second["failure"]) == (expected["label"].iloc[0], None)
    assert f"failed: {broken}: not an image" in captured.err
    assert main(["predict", str(model), str(broken)]) == 1
    assert "no image could be read" in capsys.readouterr().err


def test_explain_draws_a_picture(model, folder, tmp_path, capsys):
    capsys.readouterr()
    output = tmp_path / "dark.png"
    image = str(folder / "dark" / "dark0.png")
    assert main(["explain", str(model), image, "--label", "dark", "--output", str(output)]) == 0
    assert capsys.readouterr().out.startswith("dark: decision value ")
    assert np.asarray(Image.open(output).convert("RGB")).std() > 10
    assert main(["explain", str(model), image, "--label", "grey"]) == 2
    assert "label is 'grey': the classes are 'not dark', 'dark'" in capsys.readouterr().err


def test_extract_with_a_label_file(folder, tmp_path, capsys):
    csv = tmp_path / "labels.csv"
    rows = [f"{n};{n[:4]};p{i // 2}" for i, n in enumerate(f"dark{k}.png" for k in range(12))]
    csv.write_text("\n".join(["file;diagnosis;patient", *rows]), encoding="utf-8")
    columns = ["--image-column", "file", "--label-column", "diagnosis", "--group-column", "patient"]
    command = extract_command(folder, tmp_path / "c.h5", "--csv", str(csv), *columns)
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "note: 12 image(s) in" in captured.err
    assert deepfeat.open_features(tmp_path / "c.h5").table["group"].nunique() == 6


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        (["predict", "missing.deepfeat", "."], 1, "there is no file 'missing.deepfeat'"),
        (["explain", "missing.deepfeat", "a.png"], 1, "there is no file 'missing.deepfeat'"),
        (["fit", "missing.h5"], 1, "there is no feature store 'missing.h5'"),
        (["store", "info", "missing.h5"], 1, "there is no feature store"),
        (["extract", "missing", "--backbone", "VGG16"], 2, "does not exist"),
        (["extract", ".", "--backbone", "VGG17"], 2, "there is no backbone 'VGG17': did you mean VGG"),
        (["extract", ".", "--backbone", "VGG16=nothing.h5"], 2, "'nothing.h5' is not a file"),
        (
            ["extract", ".", "--backbone", "VGG16="],
            2,
            "'VGG16=' names no weights: use VGG16, VGG16=random or VGG16=FILE",
        ),
        (["compare", "f.h5", "--ledger", "--C", "1"], 2, "--ledger lists all fits that were recorded: leave out --C"),
        (["compare", "f.h5", "--ledger", "--nested", "--label", "a"], 2, "leave out --label, --nested"),
        (
            ["compare", "f.h5", "--ledger", "--seed", "0", "--cv", "5", "--test", "split", "--jobs", "-1"],
            2,
            "leave out --test, --cv, --jobs, --seed",
        ),
        (["fit", "f.h5", "--widen", "--C", "1"], 2, "--widen starts from the default grid"),
        (["fit", "f.h5", "--choose", "top-2", "--backbone", "VGG16"], 2, "leave out --backbone"),
        (["extract", ".", "--backbone", "mine.keras"], 2, "there is no file 'mine.keras': name the .keras or .onnx"),
        (["finetune", "missing", "--backbone", "VGG16"], 2, "does not exist"),
        (["finetune", ".", "--backbone", "VGG17"], 2, "there is no backbone 'VGG17'"),
        (["extract", ".", "--backbone", "VGG16", "--metadata", "m.csv"], 2, "--metadata goes with --isic"),
        (["extract", ".", "--backbone", "VGG16", "--cache", "."], 2, "'.' is a folder, and a feature store is a file"),
        (["extract", ".", "--backbone", "VGG16=a.keras"], 2, "weights 'a.keras' is not a file: use 'imagenet'"),
        (["store", "merge", ".", "a.h5"], 2, "'.' is a folder, and a feature store is a file: use 'features.h5'"),
        (["store", "import", ".", "a.npy", "--csv", "a.csv"], 2, "'.' is a folder, and a feature store is a file"),
        (["store", "export", "a.h5", "."], 2, "cannot write .: it is a folder, and a file is wanted"),
        (["store", "duplicates", "a.h5", "--csv", "."], 2, "cannot write .: it is a folder, and a file is wanted"),
        (["finetune", ".", "--backbone", "VGG16", "--output", "no/x.keras"], 2, "there is no folder 'no'"),
        (["report", "f.h5", "rep.pdf"], 2, "cannot write rep.pdf: its name ends in '.pdf', use .html or .htm"),
        (["report", "f.h5", "--backbone", "A", "B"], 2, "cannot write B: its name ends in '', use .html or .htm"),
        (["explain", "m.deepfeat", "."], 2, ". is a folder: give one image file"),
        (["extract", ".", "--backbone", "VGG16,ResNet50"], 2, "as in --backbone VGG16 --backbone ResNet50"),
        (["finetune", ".", "--backbone", "VGG16,=random"], 2, "--backbone is 'VGG16,=random': repeat --backbone"),
    ],
)
def test_failure_is_one_sentence_and_an_exit_code(command, status, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(command) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("deepfeat: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


EXTRACT = ["extract", ".", "--backbone", "VGG16"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([*EXTRACT, "--group-column", "lesion"], "--group-column goes with --csv: give --csv too, or leave out"),
        ([*EXTRACT, "--split-column", "split"], "--split-column goes with --csv"),
        ([*EXTRACT, "--label-column", "dx"], "--label-column goes with --csv"),
        ([*EXTRACT, "--image-column", "file"], "--image-column goes with --csv"),
        ([*EXTRACT, "--isic", "t.csv", "--group-column", "x"], "give --isic its groups, which are lesions, by"),
        ([*EXTRACT, "--isic", "t.csv", "--split-column", "x"], "--split-column goes with --csv"),
        (["bench", *EXTRACT[1:], "--group-column", "lesion"], "--group-column goes with --csv"),
        (["finetune", *EXTRACT[1:], "--group-column", "lesion"], "--group-column goes with --csv"),
        ([*EXTRACT, "--preprocess", "tf"], "--preprocess goes with a .keras or .onnx file, and VGG16 is none"),
        (["finetune", *EXTRACT[1:], "--preprocess", "tf"], "--preprocess goes with a .keras or .onnx file"),
        (["fit", "f.h5", "--weights", "w.keras"], "--weights goes with --save: give --save too, or leave out"),
        (["store", "verify", "f.h5", "--backbone", "VGG16"], "--backbone goes with --sample"),
        (["store", "verify", "f.h5", "--sample", "4", "--pooling", "max"], "--pooling goes with --backbone"),
        (["predict", "m.deepfeat", ".", "--input-size", "48"], "--input-size goes with --backbone"),
        (["explain", "m.deepfeat", "a.png", "--resize", "crop"], "--resize goes with --backbone"),
        (["report", "f.h5", "--layer", "top"], "--layer goes with --network"),
    ],
)
def test_option_that_would_be_without_effect_is_refused(command, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(deepfeat, "verify_features", lambda *_, **__: pd.DataFrame())
    assert main(command) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_preprocessing_is_that_of_the_files_among_the_networks(tmp_path):
    build((16, 16, 3)).save(tmp_path / "mine.keras")
    names = ["--backbone", "EfficientNetLite0", "--backbone", str(tmp_path / "mine.keras")]
    arguments = make_parser().parse_args(["extract", ".", *names, "--preprocess", "caffe"])
    found = {backbone.name: backbone.network.preprocess for backbone in read_backbones(arguments)}
    assert found == {"EfficientNetLite0": PREPROCESSINGS["lite"], "mine": PREPROCESSINGS["caffe"]}


@pytest.mark.parametrize(
    ("options", "pooling"), [([], "avg"), (["--pooling", "none"], None), (["--pooling", "max"], "max")]
)
def test_pooling_is_the_average_unless_told(options, pooling):
    (backbone,) = read_backbones(make_parser().parse_args([*EXTRACT, *options]))
    assert backbone.pooling == pooling


def test_columns_of_a_label_file_have_names_by_default(folder, tmp_path):
    csv = tmp_path / "labels.csv"
    rows = [f"{label}/{label}{number}.png,{label}" for label in ("bright", "dark") for number in range(12)]
    csv.write_text("\n".join(["image,label", *rows]), encoding="utf-8")
    table = read_table(make_parser().parse_args(["extract", str(folder), "--backbone", "VGG16", "--csv", str(csv)]))
    assert table["label"].value_counts().to_dict() == {"bright": 12, "dark": 12}
    assert table["group"].isna().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--positive", "grey"], "positive is 'grey', which no image has"),
        (["--test", "half"], "--test is 'half'"),
        (["--test", "1.5"], "between 0 and 1"),
        (["--cv", "1"], "cv"),
        (["--C", "-1"], "numbers above 0"),
        (["--backbone", "VGG16"], "has no block 'VGG16'"),
    ],
)
def test_fit_with_a_wrong_option_says_so(cache, options, message, capsys):
    assert main(["fit", str(cache), *options]) in (1, 2)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", [["extract"], ["fit"], ["nonsense"], ["fit", "x.h5", "--kernel", "poly"]])
def test_wrong_use_exits_with_2(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"deepfeat( \w+)?: .* \(see deepfeat( \w+)? --help\)\n", said)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["fit", "f.h5", "--postive", "MEL"], "deepfeat fit: there is no option --postive: did you mean --positive?"),
        (["fit", "f.h5", "--postive=MEL"], "there is no option --postive=MEL: did you mean --positive?"),
        (["fit", "f.h5", "--zzz"], "deepfeat fit: there is no option --zzz (see deepfeat fit --help)"),
        (["store", "info", "f.h5", "--jsn"], "deepfeat store info: there is no option --jsn: did you mean --json?"),
        (["fit", "f.h5", "g.h5"], "deepfeat fit: 'g.h5' is one argument too many"),
        (["report", "f.h5", "a.html", "b.html"], "deepfeat report: 'b.html' is one argument too many"),
        (["report", "f.h5", "--postive", "MEL"], "deepfeat report: there is no option --postive: did you mean --pos"),
        (
            ["extract", ".", "--backbone", "A", "B", "C"],
            "deepfeat extract: --backbone takes one value, and 'B' is another: repeat --backbone for each",
        ),
        (["fit", "f.h5", "--backbone=A", "B"], "--backbone takes one value, and 'B' is another: repeat --backbone"),
        (["fit", "f.h5", "--positive", "in", "situ"], "--positive takes one value, and 'situ' is another: quote a"),
        (["fit", "f.h5", "--C", "1", "--nested", "g.h5"], "deepfeat fit: 'g.h5' is one argument too many"),
    ],
)
def test_argument_that_nothing_takes_is_named_by_its_command(command, said, capsys):
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "output"),
    [
        (["report", "f.h5"], "report.html"),
        (["report", "f.h5", "--positive", "MEL"], "report.html"),
        (["report", "f.h5", "--positive", "MEL", "rep.html"], "rep.html"),
        (["report", "f.h5", "rep.html", "--positive", "MEL"], "rep.html"),
        (["report", "--positive", "MEL", "f.h5", "rep.html"], "rep.html"),
    ],
)
def test_page_may_be_named_before_and_after_the_options(command, output):
    arguments = make_parser().parse_args(command)
    assert (arguments.cache, arguments.output) == ("f.h5", output)


@pytest.mark.parametrize("command", ["fit", "report"])
def test_help_has_the_default_of_the_test(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "'split' (stored test rows, the default)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", [["demo"], ["extract"], ["fit"], ["predict"], ["explain"], ["store", "info"]])
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert f"example: deepfeat {' '.join(command)}" in capsys.readouterr().out


def test_no_command_shows_all_commands(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["deepfeat"])
    assert main() == main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "bring a feature store up to date" in captured.err
    assert "first steps: deepfeat demo" in captured.err


def options(parser, path=()):
    """Every option and argument of every command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from options(command, (*path, name))
        else:
            yield " ".join([*path, *(action.option_strings or [action.dest])]), action


@pytest.mark.parametrize(("name", "action"), list(options(make_parser())))
def test_option_has_help(name, action):
    assert action.help


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scoring", "auc"], "scoring is 'auc': use a scorer of scikit-learn such as "),
        (["--plot", "curves.foo"], "ends in '.foo', use .png, .svg or .pdf"),
        (["--plot", "nowhere/curves.png"], "there is no folder 'nowhere'"),
        (["--report", "nowhere/report.html"], "there is no folder 'nowhere'"),
        (["--report", "report.pdf"], "cannot write report.pdf: its name ends in '.pdf', use .html or .htm"),
        (["--backbone", "A,B"], "--backbone is 'A,B': repeat --backbone for each, as in --backbone A --backbone B"),
        (["--save", "nowhere/skin.deepfeat"], "there is no folder 'nowhere'"),
        (["--predictions", "nowhere/rows.csv"], "there is no folder 'nowhere'"),
        (["--plot", "taken.png"], "cannot write taken.png: it is a folder, and a file is wanted"),
        (["--report", "taken.html"], "cannot write taken.html: it is a folder, and a file is wanted"),
        (["--save", "taken.png"], "cannot write taken.png: it is a folder, and a file is wanted"),
        (["--predictions", "taken.png"], "cannot write taken.png: it is a folder, and a file is wanted"),
        (["--save", ""], "cannot write '': it is a folder, and a file is wanted"),
        pytest.param(
            ["--save", "/proc/skin.deepfeat"],
            "no file can be made in '/proc'",
            marks=pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc"),
        ),
        (["--save", "a.deepfeat", "--weights", "no.keras"], "there is no file 'no.keras': name the weights"),
        (["--save", "a.deepfeat", "--weights", "a.onnx"], "'a.onnx' is not a .keras or .weights.h5 file"),
        (["--save", "a.deepfeat", "--weights", "other.keras"], "other.keras has weights that no block was computed"),
    ],
)
def test_wrong_use_of_fit_is_one_sentence_and_costs_no_fit(cache, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.png").mkdir()
    (tmp_path / "taken.html").mkdir()
    (tmp_path / "other.keras").write_bytes(b"other weights")
    monkeypatch.setattr("deepfeat.svm.procedure.Procedure.__init__", None)
    assert main(["fit", str(cache), *arguments]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_file_that_can_be_written_has_no_obstacle_and_is_left_as_it_is(tmp_path):
    (tmp_path / "old").write_text("old")
    for name in ("new", "old"):
        assert find_obstacle(tmp_path / name, is_replaced=True) is None
        assert find_obstacle(tmp_path / name, is_replaced=False) is None
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_file_that_may_not_be_changed_is_anfind_obstacle(tmp_path, monkeypatch):
    (tmp_path / "old").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path / "old", os.W_OK))
    assert find_obstacle(tmp_path / "old", is_replaced=False).startswith("the file that is there may not be changed")
    assert find_obstacle(tmp_path / "new", is_replaced=False) is None


def test_folder_that_takes_no_files_is_an_obstacle_to_new_ones_alone(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "old").touch()
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    said = f"no file can be made in {str(tmp_path)!r} (Permission denied): use another folder"
    assert find_obstacle(tmp_path / "new", is_replaced=False) == said
    assert find_obstacle(tmp_path / "old", is_replaced=True) == said
    assert find_obstacle(tmp_path / "old", is_replaced=False) is None


def test_other_size_than_a_file_is_fixed_to_is_one_sentence(folder, tmp_path, capsys):
    build((32, 32, 3)).save(tmp_path / "mine.keras")
    command = ["extract", str(folder), "--backbone", str(tmp_path / "mine.keras"), "--preprocess", "tf", "--quiet"]
    assert main([*command, "--input-size", "48", "--cache", str(tmp_path / "f.h5")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("deepfeat: input_size is 48 x 48, and ")
    assert said[-1].endswith("mine.keras takes 32 x 32: leave out input_size")
    assert "Traceback" not in "".join(said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["extract", "photos", "--backbone", "VGG16", "--batch-size", "many"], "it is 'many': use 'auto' or a number"),
        (["extract", "photos", "--backbone", "VGG16", "--batch-size", "-3"], "it is '-3': use 'auto' or a number"),
        (["store", "verify", "f.h5", "--sample", "0"], "it is '0': use a whole number, 1 or more"),
        (["store", "verify", "f.h5", "--sample", "-4"], "it is '-4': use a whole number, 1 or more"),
        (["doctor", "--n-images", "-5"], "it is '-5': use a whole number, 1 or more"),
        (["doctor", "--dim", "0"], "it is '0': use a whole number, 1 or more"),
        (["fit", "features.h5", "--choose", "best"], "it is 'best': use 'all-subsets', or 'top-N'"),
        (["fit", "f.h5", "--C", "1e-4,1e-3"], "--C: it is '1e-4,1e-3': use numbers such as 1e-4 1e-3, separated by"),
        (["fit", "f.h5", "--gamma", "1,2"], "--gamma: it is '1,2': use numbers such as 1e-4 1e-3, separated by blanks"),
        (["compare", "f.h5", "--C", "1,2"], "--C: it is '1,2': use numbers such as 1e-4 1e-3, separated by blanks"),
        (
            ["report", "f.h5", "--C", "1", "r.html"],
            "--C: it is 'r.html': use numbers such as 1e-4 1e-3, and name files",
        ),
    ],
)
def test_values_that_cannot_be_read_are_named(capsys, arguments, said):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_interruption_of_what_changes_nothing_says_so(cache, monkeypatch, capsys):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(deepfeat, "open_features", stop)
    assert main(["store", "info", str(cache)]) == 130
    assert capsys.readouterr().err == "deepfeat: stopped; nothing was changed\n"


def test_demo_runs_both_stages_from_nothing(tmp_path):
    """The main job, end to end, in a process of its own."""
    command = [sys.executable, "-m", "deepfeat.cli", "demo", "--jobs", "2"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    scores = {line.rsplit(None, 1)[0]: float(line.rsplit(None, 1)[1]) for line in lines[:2]}
    assert scores.keys() == {"accuracy", "balanced accuracy"}
    assert min(scores.values()) > 0.85
    assert lines[2].split() == ["report", "deepfeat-demo/report.html"]
    page = (tmp_path / "deepfeat-demo" / "report.html").read_text(encoding="utf-8")
    assert "no picture" not in page
    assert "No warnings." in page
    assert lines[-2].strip().startswith("deepfeat extract ")
    assert lines[-1].strip().startswith("deepfeat fit ")
    # No bar where there is no terminal, and nothing of what TensorFlow writes while it starts.
    assert "\r" not in run.stderr
    assert not re.search(r"^[IWEF]\d{4} |^WARNING|oneDNN|cuda", run.stderr, re.MULTILINE)
    store = deepfeat.open_features(tmp_path / "deepfeat-demo" / "features.h5")
    assert store.blocks["done"].tolist() == [1797]
    assert store.table["label"].value_counts().min() == 174


def test_store_verify_of_a_sound_store(cache, capsys):
    backbone = ["--backbone", "EfficientNetLite0", "--input-size", "32"]
    assert main(["store", "verify", str(cache), "--sample", "4", *backbone]) == 0
    out = capsys.readouterr().out
    assert "all rows match their checksums" in out
    assert "EfficientNetLite0       4" in out


def test_store_verify_finds_features_that_are_not_what_is_computed_now(cache, capsys, monkeypatch):
    def differ(*_):
        return pd.DataFrame({"block": ["EfficientNetLite0"], "images": [4], "largest_difference": [0.5], "changed": 0})

    monkeypatch.setattr(deepfeat, "verify_sample", differ)
    assert main(["store", "verify", str(cache), "--sample", "4"]) == 1
    assert "EfficientNetLite0 differ from what is computed now by more than 0.001" in capsys.readouterr().err


def test_store_verify_tells_of_files_that_no_extraction_will_look_at(folder, cache, capsys):
    file = folder / "dark" / "dark0.png"
    content, status = file.read_bytes(), file.stat()
    command = ["store", "verify", str(cache), "--sample", "24", "--backbone", "EfficientNetLite0", "--input-size", "32"]
    file.write_bytes(content[::-1])
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    try:
        assert main(command) == 1
        assert "1 file(s) of those that were read have other contents than when" in capsys.readouterr().err
    finally:
        file.write_bytes(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_features_that_are_no_numbers_any_more_are_not_what_was_computed(cache, capsys, monkeypatch):
    table = {"block": ["EfficientNetLite0", "vit"], "images": [4, 0], "largest_difference": [np.nan, np.nan]}
    monkeypatch.setattr(deepfeat, "verify_sample", lambda *_: pd.DataFrame(table))
    assert main(["store", "verify", str(cache), "--sample", "4"]) == 1
    assert "deepfeat: EfficientNetLite0 differ from what is computed now" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are any bytes on Linux")
def test_names_that_are_not_utf8_are_written(folder, tmp_path, capsys):
    photos = tmp_path / "photos"
    (photos / "a").mkdir(parents=True)
    (photos / "a" / "good\udcff.png").write_bytes((folder / "dark" / "dark0.png").read_bytes())
    (photos / "a" / "bad\udcff.png").write_bytes(b"no image")
    cache = tmp_path / "f.h5"
    command = [sys.executable, "-m", "deepfeat.cli", *extract_command(photos, cache)]
    run = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"})
    assert run.returncode == 0
    assert rb"failed: a/bad\udcff.png (EfficientNetLite0): not an image" in run.stdout
    assert main(["store", "export", str(cache), str(tmp_path / "f.csv")]) == 0
    assert b"a/good\xff.png" in (tmp_path / "f.csv").read_bytes()
    assert main(["store", "export", str(cache), str(tmp_path / "f.parquet")]) == 1
    assert "Parquet files hold UTF-8 alone, and there is 'a/good\\udcff.png': write .npz" in capsys.readouterr().err


def test_failed_images_are_named_with_the_store(folder, tmp_path, capsys):
    for name in ("bright/bright0.png", "dark/dark0.png"):
        (tmp_path / "few" / name).parent.mkdir(parents=True)
        (tmp_path / "few" / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "few" / "dark" / "broken.png").write_bytes(b"no image")
    assert main(extract_command(tmp_path / "few", tmp_path / "few.h5")) == 0
    assert "failed: dark/broken.png (EfficientNetLite0): " in capsys.readouterr().out


def test_extract_with_the_tables_of_isic(folder, tmp_path, capsys):
    truth = tmp_path / "truth.csv"
    truth.write_text("image,MEL,NV\nbright0,1.0,0.0\ndark0,0.0,1.0\n")
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("bright/bright0.png", "dark/dark0.png"):
        (photos / Path(name).name).write_bytes((folder / name).read_bytes())
    assert main(extract_command(photos, tmp_path / "isic.h5", "--isic", str(truth), "--json")) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == {"MEL": 1, "NV": 1}


def test_store_verify_finds_damage_and_repairs_it(cache, folder, tmp_path, capsys):
    copy = tmp_path / "copy.h5"
    copy.write_bytes(cache.read_bytes())
    segment = deepfeat.open_features(copy).structure.blocks[0].segments[0]
    with open(copy, "r+b") as file:
        file.seek(segment.features.offset + 3 * 5120)
        file.write(b"damage")
    assert main(["store", "verify", str(copy)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "damaged: bright/bright11.png (EfficientNetLite0)\n"
    assert "1 row(s) are damaged: run with --repair and extract again" in captured.err
    assert main(["fit", str(copy), "--C", "0.01"]) == 1
    assert "run `deepfeat store verify --repair`" in capsys.readouterr().err
    assert main(["store", "verify", str(copy), "--repair"]) == 0
    assert main(extract_command(folder, copy)) == 0
    assert "EfficientNetLite0: 23 done before, 1 computed" in capsys.readouterr().err
    assert main(["store", "verify", str(copy)]) == 0


def test_store_merge_export_and_import(cache, tmp_path, capsys):
    merged = tmp_path / "merged.h5"
    assert main(["store", "merge", str(merged), str(cache)]) == 0
    assert "24 images, 2 classes" in capsys.readouterr().out
    for name in ("f.npz", "f.csv", "f.parquet"):
        assert main(["store", "export", str(merged), str(tmp_path / name)]) == 0
    assert main(["store", "export", str(merged), str(tmp_path / "f.xlsx")]) == 2
    assert "use .parquet, .npz or .csv" in capsys.readouterr().err
    assert pd.read_parquet(tmp_path / "f.parquet").shape[0] == 24
    with np.load(tmp_path / "f.npz") as archive:
        np.save(tmp_path / "again.npy", archive["EfficientNetLite0"])
    command = ["store", "import", str(tmp_path / "i.h5"), str(tmp_path / "again.npy"), "--csv", str(tmp_path / "f.csv")]
    assert main([*command, "--image-column", "image_id", "--label-column", "label"]) == 0
    imported = deepfeat.open_features(tmp_path / "i.h5")
    np.testing.assert_array_equal(
        imported.features("again"), deepfeat.open_features(cache).features("EfficientNetLite0")
    )
    assert imported.table["label"].value_counts().to_dict() == {"bright": 12, "dark": 12}


FAST = ["--quiet", "--head-epochs", "1", "--epochs", "1", "--batch-size", "8"]


@pytest.fixture(scope="module")
def finetune_command(tmp_path_factory):
    """The command that trains a network which takes no time."""
    file = tmp_path_factory.mktemp("network") / "small.keras"
    build((32, 32, 3)).save(file)
    backbone = ["--backbone", str(file), "--preprocess", "tf", "--unfreeze", "second"]
    return lambda folder, output, *more: ["finetune", str(folder), *backbone, "--output", str(output), *FAST, *more]


def test_finetune_trains_draws_and_is_a_backbone_for_extract(folder, tmp_path, capsys):
    output, plot = tmp_path / "light.keras", tmp_path / "light.png"
    backbone = ["--backbone", "EfficientNetLite0", "--input-size", "32", "--unfreeze", "head_conv"]
    command = ["finetune", str(folder), *backbone, "--output", str(output), *FAST]
    assert main([*command, "--test", "0.25", "--plot", str(plot), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)["light"]
    assert (record["classes"], record["epochs"], record["images"]) == (["bright", "dark"], 2, 18)
    assert [epoch["phase"] for epoch in record["history"]] == ["head", "finetune"]
    assert Image.open(plot).size == (1500, 630)
    cache = str(tmp_path / "f.h5")
    assert main(["extract", str(folder), "--backbone", str(output), "--cache", cache, "--quiet", "--json"]) == 0
    assert [b["name"] for b in json.loads(capsys.readouterr().out)["blocks"]] == ["light"]
    assert deepfeat.open_features(cache).seen("light").sum() == 18


@pytest.mark.parametrize("more", [[], ["--positive", "dark"]], ids=["folders", "groups and a positive class"])
def test_finetune_prints_the_commands_that_score_its_test(
    finetune_command, folder, tmp_path, monkeypatch, capsys, more
):
    monkeypatch.chdir(tmp_path)
    if more:
        rows = [f"{name}{number},{name},{name[0]}{number // 2}" for name in ("bright", "dark") for number in range(12)]
        Path("labels.csv").write_text("\n".join(["file,dx,lesion", *rows]), encoding="utf-8")
        columns = ["--image-column", "file", "--label-column", "dx", "--group-column", "lesion"]
        more = [*more, "--csv", "labels.csv", *columns]
    assert main(finetune_command(folder, "the light.keras", "--test", "0.25", *more)) == 0
    first, second = (shlex.split(line) for line in capsys.readouterr().out.splitlines()[-2:])
    assert first[:2] == ["deepfeat", "extract"]
    assert ("--group-column" in first, "--positive" in second) == (bool(more), bool(more))
    assert main([*first[1:], "--quiet"]) == 0
    assert main([*second[1:], "--C", "0.001", "--cv", "2", "--jobs", "1"]) == 0
    assert "scores     on 6 test images" in capsys.readouterr().out
    table = deepfeat.open_features("features.h5").table
    assert not set(table["group"][table["split"] == "test"].dropna()) & set(table["group"][table["split"] == "train"])


def test_split_of_finetune_is_not_written_over_another_file(finetune_command, folder, tmp_path, capsys):
    csv = tmp_path / "light.csv"
    csv.write_text("precious")
    assert main(finetune_command(folder, tmp_path / "light.keras", "--test", "0.25")) == 2
    assert "light.csv is where the split of" in capsys.readouterr().err
    assert csv.read_text() == "precious"
    csv.unlink()
    csv.mkdir()
    assert main(finetune_command(folder, tmp_path / "light.keras", "--test", "0.25")) == 2
    assert "light.csv: it is a folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [csv]


@pytest.mark.parametrize(
    ("names", "embedding", "expected"),
    [
        ([], [], "--backbone a.keras --csv a.csv --split-column split\n  deepfeat fit features.h5 --backbone a\n"),
        (["--folds", "2"], [], "--backbone a@fold0.keras --backbone a@fold1.keras --csv a.csv"),
        (["--folds", "2"], [], "deepfeat fit features.h5 --backbone a@fold0\n"),
        (["--folds", "2"], ["--embedding-dim", "8"], "deepfeat fit features.h5 --backbone a@folds\n"),
    ],
)
def test_next_steps_name_all_networks(finetune_command, names, embedding, expected, capsys):
    arguments = make_parser().parse_args(finetune_command(".", "a.keras", "--test", "0.25", *names, *embedding))
    made = ["a@fold0", "a@fold1"] if names else ["a"]
    _print_next_steps(arguments, made, is_grouped=False)
    assert expected in capsys.readouterr().out


def test_finetune_by_folds_prints_a_line_for_each(finetune_command, folder, tmp_path, capsys):
    more = ["--folds", "2", "--augment", "none", "--imbalance", "none", "--val-size", "0.3"]
    assert main(finetune_command(folder, tmp_path / "light.keras", *more)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["light@fold0", "light@fold1"]
    assert "2 epochs" in lines[0]


@pytest.mark.parametrize(
    ("more", "status", "message"),
    [
        (["--unfreeze", "nothing"], 1, "no layer 'nothing' to unfreeze from"),
        (["--unfreeze", "2"], 2, "unfreeze is 2.0"),
        (["--dropout", "1"], 2, "dropout is 1.0"),
        (["--positive", "grey"], 2, "positive is 'grey'"),
        (["--output", "skin.h5"], 2, "ends in .keras"),
        (["--folds", "0"], 2, "cv is 0: use 2 or more folds"),
        (["--augment", "none", "flip"], 2, "--augment is 'none flip': give 'none' alone, or leave it out"),
    ],
)
def test_finetune_with_a_wrong_option_says_so(finetune_command, folder, tmp_path, more, status, message, capsys):
    assert main(finetune_command(folder, tmp_path / "x.keras", *more)) == status
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_compare_prints_a_sentence_and_the_ledger_lists_the_fits(folder, cache, tmp_path, capsys):
    copy = tmp_path / "features.h5"
    copy.write_bytes(cache.read_bytes())
    assert main(extract_command(folder, copy, "--pooling", "max")) == 0
    first, second = deepfeat.open_features(copy).blocks["key"].str[:8]
    capsys.readouterr()
    command = ["compare", str(copy), "--C", "0.001", "--cv", "3", "--jobs", "1"]
    assert main(command) == 0
    sentences = capsys.readouterr().out.strip().split("\n")
    assert len(sentences) == 3
    assert all("balanced accuracy" in sentence and "3 pairs" in sentence for sentence in sentences)
    assert main([*command, "--json", "--backbone", first, "--backbone", f"{first}+{second}"]) == 0
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    assert (pair["a"], pair["b"]) == (first, f"{first}+{second}")
    assert main(["compare", "--ledger", str(copy)]) == 0
    assert "all classes, out-of-fold, 24 images" in capsys.readouterr().out
    assert main(["compare", "--ledger", str(copy), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["fits"]) == 5
    assert main(["compare", "--ledger", str(copy), "--metric", "kappa"]) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--metric", "nope"], "metric is 'nope': use one of accuracy, balanced_accuracy, precision_macro, "),
        (["--metric", "recall"], "metric is 'recall': use one of accuracy"),
        (["--label", "dark"], "metric is 'balanced_accuracy' of 'dark': use one of precision, recall, f1, "),
    ],
)
def test_compare_refuses_a_metric_before_the_first_fit(cache, monkeypatch, capsys, options, said):
    monkeypatch.setattr("deepfeat.svm.procedure.Procedure.__init__", None)
    assert main(["compare", str(cache), *options]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_ledger_is_headed_by_the_number_of_images_that_were_scored(cache, tmp_path, capsys):
    copy = tmp_path / "features.h5"
    copy.write_bytes(cache.read_bytes())
    assert main(["fit", str(copy), "--C", "0.001", "--test", "0.25", "--jobs", "1"]) == 0
    capsys.readouterr()
    assert main(["compare", "--ledger", str(copy)]) == 0
    assert capsys.readouterr().out.startswith("all classes, test, 6 images (")
    assert main(["compare", "--ledger", str(copy), "--json"]) == 0
    (fit,) = json.loads(capsys.readouterr().out)["fits"]
    assert (fit["n_scored"], fit["n_images"]) == (6, 24)


def test_store_duplicates_writes_pairs_that_fit_keeps_together(cache, tmp_path, capsys):
    csv = tmp_path / "pairs.csv"
    assert main(["store", "duplicates", str(cache), "--threshold", "0.5", "--csv", str(csv)]) == 0
    assert "pairs of a similarity of 0.5 or more" in capsys.readouterr().out
    assert main(["store", "duplicates", str(cache), "--threshold", "0.5", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["pairs"]) == len(pd.read_csv(csv))
    assert main(["store", "duplicates", str(cache), "--threshold", "1"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    pairs = pd.read_csv(csv)
    pairs.head(4).to_csv(csv, index=False)
    predictions = tmp_path / "predictions.csv"
    command = ["fit", str(cache), "--duplicates", str(csv), "--cv", "3", "--C", "0.001", "--jobs", "1", "--no-ledger"]
    assert main([*command, "--predictions", str(predictions)]) == 0
    groups = pd.read_csv(predictions, index_col="image_id")["group"]
    assert len(pairs) >= 1
    assert all(groups[a] == groups[b] for a, b in pairs[["image_a", "image_b"]].head(4).to_numpy())
    assert main(["fit", str(cache), "--ungrouped", "raise"]) == 1
    assert "have no group" in capsys.readouterr().err


def test_compare_does_by_default_what_its_help_says(monkeypatch, capsys):
    given = []
    monkeypatch.setattr(
        deepfeat, "compare", lambda *_, **settings: given.append(settings) or pd.DataFrame({"sentence": []})
    )
    assert main(["compare", "f.h5"]) == 0
    assert main(["compare", "f.h5", "--test", "none", "--cv", "3", "--nested", "--jobs", "1", "--seed", "0"]) == 0
    names = ("test", "cv", "nested", "n_jobs", "seed")
    assert [[settings[name] for name in names] for settings in given] == [
        ["split", 5, False, -1, 0],
        [None, 3, True, 1, 0],
    ]


def test_pairs_that_are_no_table_are_named(cache, tmp_path, capsys):
    (tmp_path / "pairs.csv").touch()
    assert main(["fit", str(cache), "--duplicates", str(tmp_path / "pairs.csv")]) == 2
    assert "pairs.csv cannot be read as a table of pairs" in capsys.readouterr().err


def test_store_similarity_prints_and_draws(cache, tmp_path, capsys):
    assert main(["store", "similarity", str(cache), "--plot", str(tmp_path / "cka.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"EfficientNetLite0": {"EfficientNetLite0": 1.0}}
    assert (tmp_path / "cka.png").stat().st_size > 1000
    assert main(["store", "similarity", str(cache)]) == 0
    assert "EfficientNetLite0              1.000" in capsys.readouterr().out


def test_maps_are_made_by_the_networks_that_are_named(monkeypatch):
    asked = []
    monkeypatch.setattr(deepfeat, "explain_images", lambda *given, backbones: asked.append((given, backbones)))
    result = SimpleNamespace(provenance={"blocks": [{"name": "vit", "dim": 3}]})
    for command in (["report", "f.h5", "--maps"], ["report", "f.h5", "--network", "EfficientNetLite0"]):
        _explain(make_parser().parse_args(command))(result, ["a.png"], "MEL")
    (first, none), (second, [backbone]) = asked
    assert first == second == (result, ["a.png"], "MEL")
    assert (none, backbone.name) == (None, "EfficientNetLite0")


@pytest.mark.parametrize(
    ("reason", "given", "said"),
    [
        (
            "the ImageNet weights of MobileNetV2 could not be downloaded: put a.h5 into models, pass weights=<file>, "
            "or use a backbone whose weights are on this machine: MobileNet",
            (),
            "m.deepfeat was made with other weights of MobileNetV2 than are here: name theirs, --backbone "
            "MobileNetV2=FILE (the ImageNet weights of MobileNetV2 could not be downloaded: put a.h5 into models)",
        ),
        (
            "skin cannot be built from its description (there is no backbone 'skin'): pass the backbone",
            ("MobileNetV2=a.h5",),
            "m.deepfeat was made with other weights of skin than are here: name theirs, --backbone FILE "
            "(skin cannot be built from its description (there is no backbone 'skin'))",
        ),
        ("a.h5 are no weights of MobileNetV2", ("MobileNetV2=a.h5",), "a.h5 are no weights of MobileNetV2"),
        ("the features 'vit' were not made by a network", (), "the features 'vit' were not made by a network"),
    ],
)
def test_option_that_names_weights_is_named(reason, given, said):
    specs = [{"backbone": name} for name in ("MobileNet", "MobileNetV2", "skin")]
    with pytest.raises(BackboneError) as caught, advise_weights("m.deepfeat", [*specs, {}], "--backbone", given):
        raise BackboneError(reason)
    assert str(caught.value) == said


@pytest.fixture(scope="module")
def of_a_file(folder, tmp_path_factory):
    """A store, a classifier, and the file of the weights with which they were made."""
    root = tmp_path_factory.mktemp("weights")
    deepfeat.Backbone("EfficientNetLite0", weights=None, seed=5).build().save_weights(root / "a.weights.h5")
    named = ["--backbone", f"EfficientNetLite0={root / 'a.weights.h5'}", "--input-size", "32"]
    assert main(["extract", str(folder), *named, "--cache", str(root / "f.h5"), "--quiet"]) == 0
    assert main(["fit", str(root / "f.h5"), "--C", "1e-3", "--no-ledger", "--save", str(root / "m.deepfeat")]) == 0
    return root


def test_weights_of_a_file_are_asked_for_by_the_option(of_a_file, folder, tmp_path, capsys):
    store, model, image = str(of_a_file / "f.h5"), str(of_a_file / "m.deepfeat"), str(folder / "dark" / "dark0.png")
    wanted = "was made with other weights of EfficientNetLite0 than are here: name theirs, {} EfficientNetLite0=FILE ("
    files = ["--output", str(tmp_path / "e.png")]
    for command in (["predict", model, image], ["explain", model, image, *files], ["store", "verify", store]):
        assert main([*command, *(["--sample", "2"] if command[0] == "store" else [])]) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert wanted.format("--backbone") in said
        assert "pass the backbone" not in said
    named = ["--backbone", f"EfficientNetLite0={of_a_file / 'a.weights.h5'}", "--input-size", "32"]
    assert main(["predict", model, image, *named]) == 0


def test_maps_that_cannot_be_drawn_are_told_of_on_standard_error(of_a_file, folder, tmp_path, capsys):
    store, page = tmp_path / "f.h5", tmp_path / "page.html"
    # Labels that no network can tell, so that there are errors.
    table = deepfeat.read_folder(folder).assign(label=["a", "b"] * 12)
    backbone = deepfeat.Backbone("EfficientNetLite0", weights=of_a_file / "a.weights.h5", input_size=32)
    deepfeat.extract(table, backbone, store, progress=False)
    options = ["--maps", "--map", "pca", "--C", "1e-3", "--cv", "2", "--no-ledger"]
    assert main(["report", str(store), str(page), *options]) == 0
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("No activation maps: ")]
    assert "--network EfficientNetLite0=FILE" in said
    assert "No activation maps: " in page.read_text(encoding="utf-8")


def test_advice_for_python_is_not_given_on_the_command_line(monkeypatch, capsys):
    def refuse(*_, **__):
        raise BackboneError("the weights could not be downloaded: put them there, pass weights=<file>, or use others")

    monkeypatch.setattr(deepfeat, "extract", refuse)
    monkeypatch.setattr(deepfeat, "read_folder", lambda *_: None)
    assert main(["extract", ".", "--backbone", "VGG16"]) == 1
    assert "pass --backbone NAME=FILE, or use others" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "has no column 'label': it has ['image', 'dx']: name the one with the label by --label-column"),
        (
            ["--image-column", "id"],
            "has no column 'id': it has ['image', 'dx']: name the one with the image by --image",
        ),
        (["--label-column", "dx", "--group-column", "lesion"], "name the one with the group by --group-column"),
        (["--label-column", "dx", "--split-column", "set"], "name the one with the split by --split-column"),
    ],
)
def test_option_that_names_a_missing_column_is_named(folder, tmp_path, capsys, options, said):
    (tmp_path / "labels.csv").write_text("image,dx\ndark/dark0.png,a\n", encoding="utf-8")
    command = extract_command(folder, tmp_path / "f.h5", "--csv", str(tmp_path / "labels.csv"))
    assert main([*command, *options]) == 2
    assert said in capsys.readouterr().err


def test_option_that_names_a_missing_column_of_imported_features_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("vit.npy", np.zeros((1, 2)))
    (tmp_path / "labels.csv").write_text("id,dx\na,b\n", encoding="utf-8")
    assert main(["store", "import", "f.h5", "vit.npy", "--csv", "labels.csv"]) == 2
    assert "it has ['id', 'dx']: name the one with the image by --image-column" in capsys.readouterr().err


def test_name_of_a_block_may_have_a_comma(tmp_path, capsys):
    features = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
    table = pd.DataFrame({"image_id": [f"i{k}" for k in range(24)], "label": ["a", "b"] * 12})
    deepfeat.import_features(features, table, tmp_path / "f.h5", name="vit,large")
    assert main(["fit", str(tmp_path / "f.h5"), "--backbone", "vit,large", "--C", "1", "--no-ledger"]) == 0
    assert main(["store", "export", str(tmp_path / "f.h5"), str(tmp_path / "f.csv"), "--backbone", "vit,x"]) == 2
    assert "repeat --backbone for each, as in --backbone vit --backbone x" in capsys.readouterr().err


def test_pairs_without_labels_are_not_of_two_labels(tmp_path, capsys):
    X = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    X[1:8:2] = X[0:8:2]
    labels = [None, None, "a", None, "a", "a", "a", "b"] + ["a"] * 32
    table = pd.DataFrame({"image_id": [f"i{k}" for k in range(40)], "label": labels})
    deepfeat.import_features(X, table, tmp_path / "f.h5", name="f")
    assert main(["store", "duplicates", str(tmp_path / "f.h5")]) == 0
    assert "4 are not of one group, 1 of these of two labels" in capsys.readouterr().out
