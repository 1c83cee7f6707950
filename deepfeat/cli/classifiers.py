"""Commands of classifiers: fit, compare, report, predict and explain."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepfeat.cli.options import (
    NETWORK_OPTIONS,
    add_classifier_options,
    add_command,
    add_network_options,
    add_scheduler,
    advise_weights,
    complete_from,
    connect_client,
    given_option,
    name_blocks,
    number,
    number_or_name,
    read_backbones,
    read_test,
    refuse_lists,
    refuse_stray,
)
from deepfeat.cli.output import check_outputs, print_json, to_plain
from deepfeat.errors import DeepfeatError, UsageError

#: What compare does unless it is told; defaults of the parser could not be told from what --ledger refuses.
_COMPARED: dict[str, Any] = {"test": "split", "cv": 5, "nested": False, "jobs": -1, "seed": 0}


def fit(arguments: argparse.Namespace) -> None:
    """Choose, fit and score an SVM on a feature store."""
    refuse_stray(arguments, "--save", "--weights")
    check_outputs(arguments.predictions, page=arguments.report, picture=arguments.plot, replaced=arguments.save)
    if arguments.weights:
        _check_weights(arguments.weights, arguments.cache)
    result = _fit(arguments)
    if arguments.report:
        result.report(arguments.report)
    if arguments.plot:
        result.plot(arguments.plot)
    if arguments.predictions:
        result.predictions.to_csv(arguments.predictions, errors="surrogateescape")
    if arguments.save:
        result.save(arguments.save, arguments.weights or ())
    if not arguments.json:
        print(result.summary())
        return
    record = {
        "blocks": result.blocks,
        "engine": result.engine,
        "best_params": result.best_params,
        "evaluated_on": result.evaluated_on,
        "metrics": result.metrics.to_dict("index"),
        "nested": None if result.nested is None else result.nested.to_dict("index"),
        "threshold": result.threshold,
        "per_class": result.per_class.to_dict("index"),
        "confusion": result.confusion.to_dict("index"),
        "cv_results": result.cv_results.to_dict("records"),
        "subsets": None if result.subsets is None else result.subsets.to_dict("records"),
        "warnings": result.warnings,
    }
    print_json(record)


def report(arguments: argparse.Namespace) -> None:
    """Choose, fit and score an SVM, and write all about it as one HTML page."""
    refuse_stray(arguments, "--network", *NETWORK_OPTIONS)
    check_outputs(page=arguments.output)
    result = _fit(arguments)
    result.report(
        arguments.output,
        arguments.images,
        explain=_explain(arguments) if arguments.maps or arguments.network else None,
        method=arguments.map,
        n_points=arguments.points,
        n_errors=arguments.errors,
        title=arguments.title,
    )
    print(f"wrote {arguments.output}")


def predict(arguments: argparse.Namespace) -> None:
    """Classify images by a classifier that fit --save wrote."""
    import deepfeat

    classifier = deepfeat.load(arguments.model, read_backbones(arguments), runtime=arguments.runtime)
    images = arguments.images[0] if len(arguments.images) == 1 else arguments.images
    total = failed = 0
    with _advise_weights(arguments, classifier):
        for table in classifier.stream(images):
            _print_predictions(table, arguments.json_lines, header=not total)
            for row in table[table["failure"].notna()].itertuples():
                print(f"failed: {row.Index}: {row.failure}", file=sys.stderr)
                failed += 1
            total += len(table)
    if failed == total:
        raise DeepfeatError("no image could be read")


def explain(arguments: argparse.Namespace) -> None:
    """Draw where in an image the decision value of a class comes from."""
    import deepfeat

    check_outputs(picture=arguments.output)
    if Path(arguments.image).is_dir():
        msg = f"{arguments.image} is a folder: give one image file"
        raise UsageError(msg)
    classifier = deepfeat.load(arguments.model, read_backbones(arguments), runtime=arguments.runtime)
    names = {str(name): name for name in classifier.classes}
    with _advise_weights(arguments, classifier):
        explanation = classifier.explain(arguments.image, names.get(arguments.label, arguments.label))
    explanation.save(arguments.output)
    print(
        f"{explanation.label}: decision value {explanation.decision:.4g}, by {explanation.method}: {arguments.output}"
    )


def compare(arguments: argparse.Namespace) -> None:
    """Compare classifiers on the same folds, or list all fits that a ledger has."""
    if arguments.ledger:
        of_fits = ("--backbone", "--label", "--positive", "--C", "--test", "--cv", "--nested", "--jobs", "--seed")
        if stray := [option for option in of_fits if given_option(arguments, option) is not None]:
            msg = f"--ledger lists all fits that were recorded: leave out {', '.join(stray)}"
            raise UsageError(msg)
        _print_leaderboard(arguments)
        return
    import deepfeat

    refuse_lists(arguments)
    given = {name: getattr(arguments, name) for name in _COMPARED}
    chosen = {name: default if given[name] is None else given[name] for name, default in _COMPARED.items()}
    settings = {"positive": arguments.positive, "n_jobs": chosen.pop("jobs"), "test": read_test(chosen.pop("test"))}
    table = deepfeat.compare(
        arguments.cache,
        {name: {"backbones": name.split("+")} for name in arguments.backbone} if arguments.backbone else None,
        metric=arguments.metric,
        label=arguments.label,
        param_grid={"C": arguments.C} if arguments.C else None,
        **settings,
        **chosen,
    )
    if arguments.json:
        print_json({"pairs": table.to_dict("records")})
        return
    print("\n".join(table["sentence"]))


def _fit(arguments: argparse.Namespace) -> Any:
    """Run fit_svm with the options of the command line."""
    import deepfeat

    grid = {name: values for name in ("C", "gamma") if (values := getattr(arguments, name))}
    if arguments.widen and grid:
        raise UsageError("--widen starts from the default grid: leave out --C and --gamma")
    if arguments.choose and arguments.backbone:
        raise UsageError("--choose takes its pick of all blocks: leave out --backbone")
    refuse_lists(arguments)
    weights = [None if weight == "none" else weight for weight in arguments.class_weight]
    with connect_client(arguments.scheduler) as client:
        return deepfeat.fit_svm(
            arguments.cache,
            backbones=arguments.choose or arguments.backbone,
            fusion=arguments.fusion,
            views=None if arguments.views == "none" else arguments.views,
            kernel=arguments.kernel,
            loss=arguments.loss,
            classifier=arguments.classifier,
            param_grid="auto" if arguments.widen else grid,
            class_weight=weights,
            positive=arguments.positive,
            ungrouped=arguments.ungrouped,
            duplicates=_read_pairs(arguments.duplicates),
            test=read_test(arguments.test),
            cv=arguments.cv,
            nested=arguments.nested,
            calibrate=arguments.calibrate or False,
            threshold=None if arguments.threshold is None else number_or_name(arguments.threshold),
            scoring=arguments.scoring,
            engine=arguments.engine,
            max_memory=None if arguments.max_memory is None else arguments.max_memory * 1e9,
            n_jobs=arguments.jobs,
            seed=arguments.seed,
            ledger=not arguments.no_ledger,
            client=client,
        )


def _check_weights(files: Sequence[str], cache: str) -> None:
    """Refuse what are no weights of a store's blocks before the fit that they are to be saved with."""
    import deepfeat
    from deepfeat.bundle import read_weights

    store = deepfeat.open_features(cache)
    blocks = [
        {"name": row.name, "spec": row.spec, "trained": store.trained_on(row.key) is not None}
        for row in store.blocks[["name", "key", "spec"]].itertuples(index=False)
    ]
    for file in files:
        read_weights(Path(file), blocks)


def _read_pairs(path: str | None) -> Any:
    import pandas as pd

    try:
        return None if path is None else pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:
        msg = f"{path} cannot be read as a table of pairs: {error}"
        raise UsageError(msg) from error


def _explain(arguments: argparse.Namespace) -> Any:
    """What makes activation maps, by the networks that are named, or those that deepfeat finds by itself."""
    import deepfeat

    backbones = read_backbones(arguments, "--network")

    def explain(result: Any, paths: Sequence[str], label: Any) -> Any:
        specs = _specs(result.provenance["blocks"])
        with advise_weights(arguments.cache, specs, "--network", arguments.network or ()):
            return deepfeat.explain_images(result, paths, label, backbones=backbones)

    return explain


def _advise_weights(arguments: argparse.Namespace, classifier: Any) -> contextlib.AbstractContextManager[None]:
    specs = _specs(classifier.description["blocks"])
    return advise_weights(arguments.model, specs, "--backbone", arguments.backbone or ())


def _specs(blocks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [block["spec"] for block in blocks if "spec" in block]


def _print_predictions(table: Any, json_lines: bool, header: bool) -> None:
    """Print one line for each image; undecodable bytes of file names as they came."""
    if json_lines:
        for name, row in table.iterrows():
            print(json.dumps(to_plain({"image_id": name, **row}), allow_nan=False), flush=True)
    else:
        text = table.to_csv(header=header, lineterminator="\n")
        sys.stdout.write(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
        sys.stdout.flush()


def _print_leaderboard(arguments: argparse.Namespace) -> None:
    """All fits, the best first; those of other images or other rows stand in tables of their own."""
    import deepfeat
    from deepfeat.comparison import LOSSES

    ledger, metric = deepfeat.open_ledger(arguments.cache), arguments.metric
    table = ledger.table
    if metric not in table:
        msg = f"--metric is {metric!r}: no fit of {ledger.path} has it"
        raise UsageError(msg)
    table = table.sort_values(metric, ascending=metric in LOSSES)
    if arguments.json:
        print_json({"fits": table.reset_index().to_dict("records")})
        return
    columns = ["blocks", "best_params", metric, "auroc_macro", "seconds", "created"]
    for scored, part in table.groupby("scored", sort=False):
        first = part.iloc[0]
        task = f"{first['positive']} against the rest" if part["positive"].notna().all() else "all classes"
        print(f"{task}, {first['evaluated_on']}, {first['n_scored']} images ({scored[:8]})")
        print(part[list(dict.fromkeys(columns))].to_string(float_format="{:.3f}".format), end="\n\n")


def _sets_of_blocks(text: str) -> str:
    from deepfeat.svm.selection import is_choice

    if is_choice(text):
        return text
    msg = f"it is {text!r}: use 'all-subsets', or 'top-N' such as 'top-2'"
    raise argparse.ArgumentTypeError(msg)


def add_commands(commands: Any) -> None:
    """Add these commands to a parser."""
    _add_fit(commands)
    _add_compare(commands)
    _add_report(commands)
    _add_predict(commands)
    _add_explain(commands)


def _add_fit(commands: Any) -> None:
    command = add_command(commands, "fit", fit, "deepfeat fit features.h5 --positive MEL --test 0.2")
    command.add_argument("cache", help="feature store")
    _add_fit_options(command)
    command.add_argument("--predictions", metavar="CSV", help="write one row per image here")
    command.add_argument("--report", metavar="HTML", help="write all about it as one page here, see `deepfeat report`")
    command.add_argument("--plot", metavar="FILE", help="draw confusion matrix and curves: .png, .svg or .pdf")
    command.add_argument("--save", metavar="FILE", help="write the classifier here, for `deepfeat predict`")
    command.add_argument(
        "--weights",
        action="append",
        metavar="FILE",
        help="with --save: .keras or .weights.h5 file that is to travel along; may be repeated",
    )
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _add_report(commands: Any) -> None:
    command = add_command(
        commands, "report", report, "deepfeat report features.h5 report.html --positive MEL --calibrate sigmoid"
    )
    command.add_argument("cache", help="feature store")
    command.add_argument("output", nargs="?", default="report.html", help="page to write (default: report.html)")
    _add_fit_options(command)
    command.add_argument("--images", metavar="FOLDER", help="where the images are, if not where the store says")
    command.add_argument("--map", default="tsne", choices=("tsne", "pca"), help="how embeddings are placed")
    command.add_argument("--points", type=int, default=2000, metavar="N", help="images on the map (default: 2000)")
    command.add_argument("--errors", type=int, default=24, metavar="N", help="images in the gallery (default: 24)")
    command.add_argument("--title", help="(default: task and blocks)")
    command.add_argument("--maps", action="store_true", help="activation maps of the errors; loads the networks")
    command.add_argument(
        "--network", action="append", metavar="NAME[=WEIGHTS]", help="network of a block for --maps, as for extract"
    )
    add_network_options(command)


def _add_predict(commands: Any) -> None:
    command = add_command(
        commands, "predict", predict, "deepfeat predict skin.deepfeat new_photos --csv > predicted.csv"
    )
    command.add_argument("model", help="file that `deepfeat fit --save` or result.save wrote")
    command.add_argument("images", nargs="+", help="a folder, or image files")
    lines = command.add_mutually_exclusive_group()
    lines.add_argument("--csv", action="store_true", help="one line for each image, with a header (the default)")
    lines.add_argument(
        "--json-lines", action="store_true", help="one JSON object for each image, as soon as it is done"
    )
    add_classifier_options(command)


def _add_explain(commands: Any) -> None:
    command = add_command(
        commands, "explain", explain, "deepfeat explain skin.deepfeat mole.jpg --label MEL --output mole.png"
    )
    command.add_argument("model", help="file that `deepfeat fit --save` or result.save wrote")
    command.add_argument("image", help="image file")
    command.add_argument("--label", help="class (default: the predicted one)")
    command.add_argument("--output", default="explanation.png", help=".png, .svg or .pdf (default: explanation.png)")
    add_classifier_options(command)


def _add_compare(commands: Any) -> None:
    command = add_command(commands, "compare", compare, "deepfeat compare features.h5 --backbone VGG16 --backbone A+B")
    command.add_argument("cache", help="feature store")
    command.add_argument("--ledger", action="store_true", help="list the fits that were recorded, the best first")
    action = command.add_argument(
        "--backbone",
        action="append",
        metavar="NAME[+NAME]",
        help="blocks of one candidate; to be repeated (default: each block alone, and all joined)",
    )
    complete_from(action, name_blocks)
    command.add_argument("--metric", default="balanced_accuracy", help="(default: balanced_accuracy)")
    command.add_argument("--label", help="compare the metric of this class")
    command.add_argument("--positive", metavar="LABEL", help="this class against all others")
    command.add_argument("--C", type=number, nargs="+", help="values to try")
    command.add_argument("--test", help="as for fit (default: split)")
    command.add_argument("--cv", type=int, help="number of folds (default: 5)")
    command.add_argument(
        "--nested", action="store_true", default=None, help="also repeat the whole choice in each fold"
    )
    command.add_argument("--jobs", type=int, help="threads (default: one per core)")
    command.add_argument("--seed", type=int, help="of all that is drawn at random (default: 0)")
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _add_fit_options(command: argparse.ArgumentParser) -> None:
    action = command.add_argument(
        "--backbone",
        action="append",
        help="block to use, by name or key, or NAME@folds for all folds of a network; may be repeated (default: all)",
    )
    complete_from(action, name_blocks)
    command.add_argument(
        "--choose",
        type=_sets_of_blocks,
        metavar="top-N|all-subsets",
        help="choose blocks by cross-validation: the N best alone, or any set",
    )
    command.add_argument(
        "--fusion",
        default="concat",
        choices=("concat", "average", "aligned", "late"),
        help="of blocks (default: concat)",
    )
    command.add_argument(
        "--views",
        default="average",
        choices=("average", "augment", "vote", "none"),
        help="of images (default: average)",
    )
    command.add_argument("--kernel", default="linear", choices=("linear", "rbf"), help="(default: linear)")
    command.add_argument(
        "--loss", default="squared_hinge", choices=("squared_hinge", "hinge"), help="(default: squared_hinge)"
    )
    command.add_argument(
        "--classifier", default="auto", choices=("auto", "LinearSVC", "SVC"), help="(default: by kernel)"
    )
    command.add_argument("--C", type=number, nargs="+", help="values to try")
    command.add_argument("--gamma", type=number, nargs="+", help="values to try, for the rbf kernel")
    command.add_argument("--widen", action="store_true", help="widen the default grid while the best is at its edge")
    command.add_argument(
        "--class-weight", nargs="+", default=["balanced"], choices=("balanced", "none"), help="values to try"
    )
    command.add_argument("--positive", metavar="LABEL", help="this class against all others")
    command.add_argument(
        "--test", default="split", help="'split' (stored test rows, the default), a share such as 0.2, or 'none'"
    )
    command.add_argument("--cv", type=int, default=5, help="number of folds (default: 5)")
    command.add_argument("--scoring", default="balanced_accuracy", help="a scorer of scikit-learn")
    command.add_argument("--engine", default="auto", choices=("auto", "sklearn"), help="what solves the SVMs")
    command.add_argument("--max-memory", type=float, metavar="GB", help="(default: half of the machine's)")
    command.add_argument("--jobs", type=int, default=-1, help="threads (default: one per core)")
    add_scheduler(command)
    command.add_argument("--seed", type=int, default=0, help="of all that is drawn at random (default: 0)")
    command.add_argument("--nested", action="store_true", help="also repeat the whole choice in each fold")
    command.add_argument(
        "--calibrate", choices=("sigmoid", "isotonic", "temperature"), help="decision values to probabilities by this"
    )
    command.add_argument("--threshold", help="with --positive: 'recall>=0.9', 'f1', …, or a decision value")
    command.add_argument(
        "--ungrouped", default="own", choices=("own", "drop", "raise"), help="what becomes of images without a group"
    )
    command.add_argument(
        "--duplicates", metavar="CSV", help="pairs that stay together, from `deepfeat store duplicates`"
    )
    command.add_argument("--no-ledger", action="store_true", help="do not record the fit beside the store")
