"""The command line: one function per command, imports inside it."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from deepfeat import __version__
from deepfeat.errors import DataWarning, DeepfeatError, UsageError

#: Options that say how a network is used, and go with its name.
_NETWORK_OPTIONS = ("--layer", "--pooling", "--input-size", "--resize", "--preprocess")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process if None.

    Returns
    -------
    int
        0, 1 if the work failed, 2 for wrong use, 130 if interrupted, 141 if nobody reads the output any more.
    """
    parser = _parser()
    _complete(parser)
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help(sys.stderr)
        return 2
    arguments = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files need not be UTF-8, and a line about one of them must not end the work.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings(), _shown_log():
            warnings.simplefilter("always", DataWarning)
            warnings.showwarning = _show_warning
            arguments.run(arguments)
        sys.stdout.flush()
    except UsageError as error:
        return _complain(error, 2)
    except BrokenPipeError:  # pragma: no cover - in processes of their own
        # Whoever read the output, such as `head`, has enough; nothing more is to be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (DeepfeatError, OSError) as error:
        return _complain(error, 1)
    except KeyboardInterrupt as interruption:
        left = getattr(interruption, "__notes__", ["nothing was changed"])
        print(f"deepfeat: stopped; {left[0]}", file=sys.stderr)
        return 130
    return 0


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks what may come next, see `deepfeat completion`; that ends the process."""
    if "_ARGCOMPLETE" in os.environ:  # pragma: no cover - in processes of shells
        import argcomplete

        argcomplete.autocomplete(parser)


def demo(arguments: argparse.Namespace) -> None:
    """Run both stages on scikit-learn's digits, as a user would on a folder of images."""
    import deepfeat
    from deepfeat.demo import write_digits

    folder = Path(arguments.folder)
    images, cache = folder / "digits", folder / "features.h5"
    print(f"Writing scikit-learn's digits as PNG files into {images}, one folder per class", file=sys.stderr)
    write_digits(images)
    deepfeat.extract(images, "EfficientNetLite0", cache)
    print("Choosing C by cross-validation and scoring the held-out fifth", file=sys.stderr)
    options = {"param_grid": {"C": [1e-4, 1e-3, 1e-2]}, "calibrate": True, "n_jobs": arguments.jobs}
    result = deepfeat.fit_svm(cache, test=0.2, **options)
    values = result.metrics["value"]
    print(f"accuracy           {values['accuracy']:.3f}")
    print(f"balanced accuracy  {values['balanced_accuracy']:.3f}")
    result.report(folder / "report.html", title="scikit-learn's digits")
    print(f"report             {folder / 'report.html'}")
    print("\nOn a folder of your own, with one sub-folder per class:")
    print("  deepfeat extract my_images --backbone EfficientNetLite0 --cache features.h5")
    print("  deepfeat fit features.h5 --test 0.2")


def extract(arguments: argparse.Namespace) -> None:
    """Bring a feature store up to date with a folder of images."""
    import deepfeat

    _check_store(arguments.cache)
    backbones = _backbones(arguments)
    with _client(arguments.scheduler) as client:
        store = deepfeat.extract(
            _read_table(arguments),
            backbones,
            arguments.cache,
            batch_size=arguments.batch_size,
            runtime=arguments.runtime,
            precision=arguments.precision,
            views=arguments.view,
            dtype=arguments.dtype,
            on_error=arguments.on_error,
            client=client,
            progress=not arguments.quiet,
        )
    _print_store(store, arguments.json)


def _client(scheduler: str | None) -> Any:
    """Connect to a Dask scheduler, where one is named."""
    if scheduler is None:
        return contextlib.nullcontext()
    from deepfeat.cluster import connect

    return connect(scheduler)


def fit(arguments: argparse.Namespace) -> None:
    """Choose, fit and score an SVM on a feature store."""
    _refuse_stray(arguments, "--save", "--weights")
    _check_outputs(arguments.report, arguments.predictions, picture=arguments.plot, replaced=arguments.save)
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
    _print_json(record)


def report(arguments: argparse.Namespace) -> None:
    """Choose, fit and score an SVM, and write all about it as one HTML page."""
    _refuse_stray(arguments, "--network", *_NETWORK_OPTIONS)
    _check_outputs(arguments.output)
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


def _check_outputs(*files: str | None, picture: str | None = None, replaced: str | None = None) -> None:
    """Refuse files that could not be written before the work begins, and not after it."""
    if picture is not None:
        from deepfeat.plots import check_picture

        check_picture(picture)
    for file in (*files, picture, replaced):
        obstacle = None if file is None else _obstacle(Path(file), is_replaced=file == replaced)
        if obstacle is not None:
            msg = f"cannot write {file or repr(file)}: {obstacle}"
            raise UsageError(msg)


def _obstacle(file: Path, *, is_replaced: bool) -> str | None:
    """What keeps a file from being written, into the file that is there or by a new one in its place."""
    folder = file.parent
    if not folder.is_dir():
        return f"there is no folder {str(folder)!r}"
    if file.is_dir():
        return "it is a folder, and a file is wanted: add a name"
    if file.exists() and not os.access(file, os.W_OK):
        return "the file that is there may not be changed: use another name, or give it write permission"
    if file.exists() and not is_replaced:
        return None
    try:
        # Tried, since permissions do not tell all: root has every one, and /proc takes no files.
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"no file can be made in {str(folder)!r} ({error.strerror}): use another folder"


def _check_weights(files: Sequence[str], cache: str) -> None:
    """Refuse what are no weights of a store's blocks before the fit that they are to be saved with."""
    import deepfeat
    from deepfeat.bundle import read_weights

    blocks = deepfeat.open_features(cache).blocks[["name", "spec"]].to_dict("records")
    for file in files:
        read_weights(Path(file), blocks)


def _check_store(cache: str) -> None:
    """Refuse a folder where a feature store is to be made or extended."""
    if Path(cache).is_dir():
        msg = f"{cache!r} is a folder, and a feature store is a file: use {str(Path(cache) / 'features.h5')!r}"
        raise UsageError(msg)


def _explain(arguments: argparse.Namespace) -> Any:
    """What makes activation maps, by the networks that are named, or those that deepfeat finds by itself."""
    import deepfeat

    return functools.partial(deepfeat.explain_images, backbones=_backbones(arguments, "--network"))


def _fit(arguments: argparse.Namespace) -> Any:
    """Run fit_svm with the options of the command line."""
    import deepfeat

    grid = {name: values for name in ("C", "gamma") if (values := getattr(arguments, name))}
    if arguments.widen and grid:
        raise UsageError("--widen starts from the default grid: leave out --C and --gamma")
    if arguments.choose and arguments.backbone:
        raise UsageError("--choose takes its pick of all blocks: leave out --backbone")
    weights = [None if weight == "none" else weight for weight in arguments.class_weight]
    with _client(arguments.scheduler) as client:
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
            test=_test(arguments.test),
            cv=arguments.cv,
            nested=arguments.nested,
            calibrate=arguments.calibrate or False,
            threshold=None if arguments.threshold is None else _number_or_name(arguments.threshold),
            scoring=arguments.scoring,
            engine=arguments.engine,
            max_memory=None if arguments.max_memory is None else arguments.max_memory * 1e9,
            n_jobs=arguments.jobs,
            seed=arguments.seed,
            ledger=not arguments.no_ledger,
            client=client,
        )


def predict(arguments: argparse.Namespace) -> None:
    """Classify images by a classifier that fit --save wrote."""
    import deepfeat

    classifier = deepfeat.load(arguments.model, _backbones(arguments), runtime=arguments.runtime)
    images = arguments.images[0] if len(arguments.images) == 1 else arguments.images
    total = failed = 0
    for table in classifier.stream(images):
        _print_predictions(table, arguments.json_lines, header=not total)
        for row in table[table["failure"].notna()].itertuples():
            print(f"failed: {row.Index}: {row.failure}", file=sys.stderr)
            failed += 1
        total += len(table)
    if failed == total:
        raise DeepfeatError("no image could be read")


def _print_predictions(table: Any, json_lines: bool, header: bool) -> None:
    """Print one line for each image; undecodable bytes of file names as they came."""
    if json_lines:
        for name, row in table.iterrows():
            print(json.dumps(_plain({"image_id": name, **row}), allow_nan=False), flush=True)
    else:
        text = table.to_csv(header=header, lineterminator="\n")
        sys.stdout.write(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
        sys.stdout.flush()


def explain(arguments: argparse.Namespace) -> None:
    """Draw where in an image the decision value of a class comes from."""
    import deepfeat

    _check_outputs(picture=arguments.output)
    classifier = deepfeat.load(arguments.model, _backbones(arguments), runtime=arguments.runtime)
    names = {str(name): name for name in classifier.classes}
    explanation = classifier.explain(arguments.image, names.get(arguments.label, arguments.label))
    explanation.save(arguments.output)
    print(
        f"{explanation.label}: decision value {explanation.decision:.4g}, by {explanation.method}: {arguments.output}"
    )


def finetune(arguments: argparse.Namespace) -> None:
    """Train a backbone on labelled images, and keep it with what is known of the training."""
    import deepfeat

    _check_outputs(arguments.output, picture=arguments.plot)
    names = [
        *("positive", "head_epochs", "epochs", "patience", "batch_size", "head_learning_rate", "learning_rate"),
        *("schedule", "l2", "dropout", "embedding_dim", "val_size", "precision", "seed"),
    ]
    settings = {name: getattr(arguments, name) for name in names}
    settings["unfreeze"] = _number_or_name(arguments.unfreeze)
    settings["imbalance"] = None if arguments.imbalance == "none" else arguments.imbalance
    settings["augment"] = [name for name in arguments.augment if name != "none"]
    (backbone,), table = _backbones(arguments), _read_table(arguments)
    if arguments.test is not None:
        table = deepfeat.split_table(table, arguments.test, arguments.seed)
    given = (table, backbone, arguments.output)
    progress = not arguments.quiet
    if arguments.folds:
        networks = deepfeat.finetune_folds(*given, cv=arguments.folds, progress=progress, **settings)
    else:
        networks = [deepfeat.finetune(*given, progress=progress, **settings)]
    if arguments.plot:
        deepfeat.plot_history(networks, arguments.plot)
    records = {network.name: _training_record(network) for network in networks}
    if arguments.json:
        _print_json(records)
        return
    for name, record in records.items():
        print(
            f"{name}: {record['epochs']} epochs, the best was {record['best_epoch']}: validation loss "
            f"{record['val_loss']:.3f}, balanced accuracy {record['val_balanced_accuracy']:.3f}"
        )


def _training_record(network: Any) -> dict[str, Any]:
    """What a script would want to know of a fine-tuned backbone."""
    history = network.history
    best = history.loc[history["val_loss"].idxmin()]
    return {
        "classes": network.classes,
        "images": len(network.trained_on.images),
        "groups": len(network.trained_on.groups),
        "epochs": len(history),
        "best_epoch": best["epoch"],
        "val_loss": best["val_loss"],
        "val_accuracy": best["val_accuracy"],
        "val_balanced_accuracy": best["val_balanced_accuracy"],
        "history": history.to_dict("records"),
    }


def _number_or_name(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def bench(arguments: argparse.Namespace) -> None:
    """Measure the speed, size and score of backbones on some of the images."""
    import deepfeat

    _check_outputs(picture=arguments.plot)

    table = deepfeat.benchmark(
        _read_table(arguments),
        _backbones(arguments),
        n_images=arguments.images_drawn,
        runtime=arguments.runtime,
        precision=arguments.precision,
        seed=arguments.seed,
    )
    if arguments.plot:
        from deepfeat.plots import plot_benchmark

        plot_benchmark(table, arguments.plot)
    if arguments.json:
        _print_json(table.to_dict("index"))
        return
    print(_readable(table).to_string())


def _readable(table: Any) -> Any:
    """A benchmark's table in units for people."""
    import pandas as pd

    columns = {
        "parameters": "{:.1f} M".format,
        "macs": "{:.2f} G".format,
        "dim": "{:.0f}".format,
        "decode": "{:.0f}/s".format,
        "network": "{:.0f}/s".format,
        "both": "{:.0f}/s".format,
        "peak_memory": "{:.0f} MB".format,
        "bytes_per_image": "{:.0f} B".format,
        "peak_fraction": "{:.0%}".format,
    }
    scales = {"parameters": 1e-6, "macs": 1e-9, "peak_memory": 1e-6}
    shown = {name: (table[name] * scales.get(name, 1)).map(write) for name, write in columns.items()}
    score = [
        "" if pd.isna(row.score) else f"{row.score:.3f} ({row.low:.3f} to {row.high:.3f})" for row in table.itertuples()
    ]
    return pd.DataFrame({**shown, "score": score}, index=table.index)


def doctor(arguments: argparse.Namespace) -> None:
    """Show what this machine has, what is missing, and what would make deepfeat faster."""
    from deepfeat.diagnosis import diagnose

    found = diagnose(Path(arguments.cache), arguments.n_images, arguments.dim)
    if arguments.json:
        _print_json({finding.topic: finding._asdict() for finding in found})
    else:
        width = max(len(finding.topic) for finding in found)
        for finding in found:
            mark = "!" if finding.is_fault else " "
            print(f"{mark} {finding.topic:{width}}  {finding.found}")
            if finding.advice:
                print(f"  {'':{width}}  -> {finding.advice}")
    faults = [finding.topic for finding in found if finding.is_fault]
    if faults:
        msg = f"{len(faults)} fault(s) to be mended: {', '.join(faults)}"
        raise DeepfeatError(msg)


def completion(arguments: argparse.Namespace) -> None:
    """Print what has a shell complete commands, options, names of networks and blocks, and files."""
    try:
        import argcomplete
    except ImportError as error:
        msg = "completion needs the package argcomplete: run `pip install 'deepfeat[completion]'`"
        raise DeepfeatError(msg) from error
    print(argcomplete.shellcode(["deepfeat"], shell=arguments.shell))


def store_info(arguments: argparse.Namespace) -> None:
    """Show what a feature store holds."""
    import deepfeat

    _print_store(deepfeat.open_features(arguments.cache), arguments.json)


def store_verify(arguments: argparse.Namespace) -> None:
    """Compare every row with its checksum, and a sample with features computed again."""
    import deepfeat

    _refuse_stray(arguments, "--sample", "--backbone", *_NETWORK_OPTIONS)
    damaged = deepfeat.verify_features(arguments.cache, repair=arguments.repair)
    for row in damaged.itertuples():
        print(f"damaged: {row.image_id} ({row.block})")
    if arguments.sample:
        compared = deepfeat.verify_sample(arguments.cache, arguments.sample, _backbones(arguments))
        print(compared[["block", "images", "largest_difference"]].to_string(index=False))
        # Not ">": features that are no number any more agree with nothing.
        off = compared[(compared["images"] > 0) & ~(compared["largest_difference"] <= 1e-3)]
        if len(off):
            msg = f"{', '.join(off['block'])} differ from what is computed now by more than 0.001 of the largest value"
            raise DeepfeatError(msg)
    if len(damaged) and not arguments.repair:
        msg = f"{len(damaged)} row(s) are damaged: run with --repair and extract again, which computes just these"
        raise DeepfeatError(msg)
    print(f"{len(damaged)} damaged rows are missing now" if len(damaged) else "all rows match their checksums")


def store_merge(arguments: argparse.Namespace) -> None:
    """Merge feature stores into one; conflicts are named, not chosen."""
    import deepfeat

    _check_store(arguments.target)
    _print_store(deepfeat.merge_features(arguments.sources, arguments.target), arguments.json)


def store_export(arguments: argparse.Namespace) -> None:
    """Write labels and features as .parquet, .npz or .csv."""
    import deepfeat

    _check_outputs(arguments.output)
    store, path = deepfeat.open_features(arguments.cache), Path(arguments.output)
    if path.suffix == ".parquet":
        store.to_parquet(path, arguments.backbone)
    elif path.suffix == ".npz":
        store.to_npz(path, arguments.backbone)
    elif path.suffix == ".csv":
        store.to_frame(arguments.backbone).to_csv(path, errors="surrogateescape")
    else:
        msg = f"{path.name} ends in {path.suffix!r}: use .parquet, .npz or .csv"
        raise UsageError(msg)
    print(f"wrote {path}")


def store_import(arguments: argparse.Namespace) -> None:
    """Put features made elsewhere (.npy, or a data set of an .h5 file) into a store, with a CSV of ids and labels."""
    import deepfeat

    _check_store(arguments.cache)
    table, features = deepfeat.read_features(
        arguments.features,
        arguments.csv,
        dataset=arguments.dataset,
        image=arguments.image_column,
        label=arguments.label_column,
        group=arguments.group_column,
    )
    _print_store(deepfeat.import_features(features, table, arguments.cache, name=arguments.name), arguments.json)


def compare(arguments: argparse.Namespace) -> None:
    """Compare classifiers on the same folds, or list all fits that a ledger has."""
    if arguments.ledger:
        of_fits = ("--backbone", "--label", "--positive", "--C", "--nested")
        if stray := [option for option in of_fits if _given(arguments, option)]:
            msg = f"--ledger lists all fits that were recorded: leave out {', '.join(stray)}"
            raise UsageError(msg)
        _print_leaderboard(arguments)
        return
    import deepfeat

    settings = {
        "positive": arguments.positive,
        "cv": arguments.cv,
        "nested": arguments.nested,
        "n_jobs": arguments.jobs,
    }
    table = deepfeat.compare(
        arguments.cache,
        {name: {"backbones": name.split("+")} for name in arguments.backbone} if arguments.backbone else None,
        metric=arguments.metric,
        label=arguments.label,
        test=_test(arguments.test),
        param_grid={"C": arguments.C} if arguments.C else None,
        seed=arguments.seed,
        **settings,
    )
    if arguments.json:
        _print_json({"pairs": table.to_dict("records")})
        return
    print("\n".join(table["sentence"]))


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
        _print_json({"fits": table.reset_index().to_dict("records")})
        return
    columns = ["blocks", "best_params", metric, "auroc_macro", "seconds", "created"]
    for scored, part in table.groupby("scored", sort=False):
        first = part.iloc[0]
        task = f"{first['positive']} against the rest" if part["positive"].notna().all() else "all classes"
        print(f"{task}, {first['evaluated_on']}, {first['n_scored']} images ({scored[:8]})")
        print(part[list(dict.fromkeys(columns))].to_string(float_format="{:.3f}".format), end="\n\n")


def store_duplicates(arguments: argparse.Namespace) -> None:
    """List images that seem to show the same, and those whose files are equal."""
    import deepfeat

    _check_outputs(arguments.csv)
    pairs = deepfeat.find_duplicates(arguments.cache, arguments.backbone, threshold=arguments.threshold)
    if arguments.csv:
        pairs.to_csv(arguments.csv, index=False, errors="surrogateescape")
    if arguments.json:
        _print_json({"pairs": pairs.to_dict("records")})
        return
    new = pairs[~pairs["same_group"]]
    differ = int((new["label_a"] != new["label_b"]).sum())
    print(
        f"{len(pairs)} pairs of a similarity of {arguments.threshold:g} or more, or of equal files "
        f"({pairs['identical'].sum()}); {len(new)} are not of one group, {differ} of these of two labels"
    )
    if len(new):
        print(new[["image_a", "image_b", "similarity", "label_a", "label_b"]].to_string(index=False))


def store_similarity(arguments: argparse.Namespace) -> None:
    """Show which blocks say the same, by linear centred kernel alignment."""
    import deepfeat

    _check_outputs(picture=arguments.plot)

    table = deepfeat.linear_cka(arguments.cache, arguments.backbone)
    if arguments.plot:
        deepfeat.plot_similarity(table, arguments.plot)
    if arguments.json:
        _print_json(table.to_dict("index"))
        return
    print(table.to_string(float_format="{:.3f}".format))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deepfeat",
        description="Extract image features once; fit SVMs on them in seconds.",
        epilog="first steps: deepfeat demo, then deepfeat COMMAND --help; deepfeat doctor looks at the machine",
    )
    parser.add_argument("--version", action="version", version=f"deepfeat {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_extract(commands)
    _add_bench(commands)
    _add_finetune(commands)
    _add_doctor(commands)
    _add_fit(commands)
    _add_compare(commands)
    _add_report(commands)
    _add_predict(commands)
    _add_explain(commands)
    _add_store(commands)
    _add_completion(commands)
    return parser


def _add_demo(commands: Any) -> None:
    command = _command(commands, "demo", demo, "deepfeat demo")
    command.add_argument("folder", nargs="?", default="deepfeat-demo", help="folder to make (default: deepfeat-demo)")
    command.add_argument("--jobs", type=int, default=-1, help="fits at a time (default: one per core)")


def _add_extract(commands: Any) -> None:
    command = _command(
        commands, "extract", extract, "deepfeat extract photos --backbone EfficientNetLite0 --cache features.h5"
    )
    command.add_argument(
        "images", help="folder of images; one sub-folder per class unless --csv or --isic gives labels"
    )
    _add_backbone_options(command, required=True)
    command.add_argument(
        "--cache", default="features.h5", help="feature store to make or extend (default: features.h5)"
    )
    _add_label_options(command)
    command.add_argument("--batch-size", type=_batch_size, default="auto", help="images at once (default: as measured)")
    _add_runtime_options(command)
    command.add_argument(
        "--view", action="append", metavar="VIEW", help="original, hflip, rot90, center, …; may be repeated"
    )
    command.add_argument("--dtype", default="float32", choices=("float32", "float16"), help="of the stored features")
    command.add_argument(
        "--on-error", default="record", choices=("record", "raise"), help="for a bad image (default: record)"
    )
    _add_scheduler(command)
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _add_scheduler(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--scheduler", metavar="ADDRESS", help="of a Dask cluster whose workers compute, such as tcp://10.0.0.1:8786"
    )


def _add_bench(commands: Any) -> None:
    command = _command(
        commands, "bench", bench, "deepfeat bench photos --backbone EfficientNetLite0 --backbone VGG16 --plot bench.png"
    )
    command.add_argument("images", help="folder of images, as for extract")
    _add_backbone_options(command, required=True)
    _add_label_options(command)
    _add_runtime_options(command)
    command.add_argument("--n-images", dest="images_drawn", type=int, default=512, help="to draw (default: 512)")
    command.add_argument("--seed", type=int, default=0, help="of all that is drawn at random (default: 0)")
    command.add_argument("--plot", metavar="FILE", help="draw score against speed: .png, .svg or .pdf")
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _add_finetune(commands: Any) -> None:
    command = _command(
        commands,
        "finetune",
        finetune,
        "deepfeat finetune photos --backbone EfficientNetLite0 --output skin.keras --test 0.2 --plot skin.png",
    )
    command.add_argument("images", help="folder of images, as for extract")
    _add_finetune_options(command)
    _add_label_options(command)
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _add_doctor(commands: Any) -> None:
    command = _command(commands, "doctor", doctor, "deepfeat doctor --n-images 25331 --dim 2560")
    command.add_argument("--cache", default="features.h5", help="feature store to be made (default: features.h5)")
    command.add_argument("--n-images", type=int, help="to be extracted, for an estimate of the store's size")
    command.add_argument("--dim", type=int, default=1280, help="of all embeddings of an image (default: 1280)")
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _add_completion(commands: Any) -> None:
    command = _command(commands, "completion", completion, 'eval "$(deepfeat completion bash)"  # in ~/.bashrc')
    command.add_argument("shell", choices=("bash", "zsh", "fish"), help="whose code is printed")


def _add_fit(commands: Any) -> None:
    command = _command(commands, "fit", fit, "deepfeat fit features.h5 --positive MEL --test 0.2")
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
    command = _command(
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
    _add_network_options(command)


def _add_predict(commands: Any) -> None:
    command = _command(commands, "predict", predict, "deepfeat predict skin.deepfeat new_photos --csv > labels.csv")
    command.add_argument("model", help="file that `deepfeat fit --save` or result.save wrote")
    command.add_argument("images", nargs="+", help="a folder, or image files")
    lines = command.add_mutually_exclusive_group()
    lines.add_argument("--csv", action="store_true", help="one line for each image, with a header (the default)")
    lines.add_argument(
        "--json-lines", action="store_true", help="one JSON object for each image, as soon as it is done"
    )
    _add_classifier_options(command)


def _add_explain(commands: Any) -> None:
    command = _command(
        commands, "explain", explain, "deepfeat explain skin.deepfeat mole.jpg --label MEL --output mole.png"
    )
    command.add_argument("model", help="file that `deepfeat fit --save` or result.save wrote")
    command.add_argument("image", help="image file")
    command.add_argument("--label", help="class (default: the predicted one)")
    command.add_argument("--output", default="explanation.png", help=".png, .svg or .pdf (default: explanation.png)")
    _add_classifier_options(command)


def _add_store(commands: Any) -> None:
    store = commands.add_parser("store", help="look at a feature store").add_subparsers(
        required=True, metavar="COMMAND"
    )
    command = _command(store, "info", store_info, "deepfeat store info features.h5")
    command.add_argument("cache", help="feature store")
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")
    command = _command(store, "verify", store_verify, "deepfeat store verify features.h5 --sample 32")
    command.add_argument("cache", help="feature store")
    command.add_argument("--repair", action="store_true", help="declare damaged rows missing, to be extracted again")
    command.add_argument("--sample", type=_sample, metavar="N", help="compute N images of each block again")
    _add_backbone_options(command, required=False)

    command = _command(store, "merge", store_merge, "deepfeat store merge all.h5 part1.h5 part2.h5")
    command.add_argument("target", help="feature store to make or extend")
    command.add_argument("sources", nargs="+", help="feature stores, which stay as they are")
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")

    command = _command(store, "export", store_export, "deepfeat store export features.h5 features.parquet")
    command.add_argument("cache", help="feature store")
    command.add_argument("output", help="file to write: .parquet, .npz or .csv")
    action = command.add_argument("--backbone", action="append", help="block to write, by name or key; may be repeated")
    _complete_from(action, _blocks)

    command = _command(store, "import", store_import, "deepfeat store import features.h5 vit.npy --csv labels.csv")
    command.add_argument("cache", help="feature store to make or extend")
    command.add_argument("features", help=".npy file, or .h5 file with --dataset")
    command.add_argument("--csv", required=True, help="one row for each row of the features, in their order")
    command.add_argument("--name", help="name of the block (default: that of the file)")
    command.add_argument("--dataset", help="data set in an .h5 file")
    command.add_argument("--image-column", default="image", help="ids in the CSV (default: image)")
    command.add_argument("--label-column", help="labels in the CSV")
    command.add_argument("--group-column", help="patient or lesion in the CSV")
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")
    _add_looks(store)


def _add_compare(commands: Any) -> None:
    command = _command(commands, "compare", compare, "deepfeat compare features.h5 --backbone VGG16 --backbone A+B")
    command.add_argument("cache", help="feature store")
    command.add_argument("--ledger", action="store_true", help="list the fits that were recorded, the best first")
    action = command.add_argument(
        "--backbone",
        action="append",
        metavar="NAME[+NAME]",
        help="blocks of one candidate; to be repeated (default: each block alone, and all joined)",
    )
    _complete_from(action, _blocks)
    command.add_argument("--metric", default="balanced_accuracy", help="(default: balanced_accuracy)")
    command.add_argument("--label", help="compare the metric of this class")
    command.add_argument("--positive", metavar="LABEL", help="this class against all others")
    command.add_argument("--C", type=float, nargs="+", help="values to try")
    command.add_argument("--test", default="split", help="as for fit")
    command.add_argument("--cv", type=int, default=5, help="number of folds (default: 5)")
    command.add_argument("--nested", action="store_true", help="also repeat the whole choice in each fold")
    command.add_argument("--jobs", type=int, default=-1, help="threads (default: one per core)")
    command.add_argument("--seed", type=int, default=0, help="of all that is drawn at random (default: 0)")
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _add_looks(store: Any) -> None:
    command = _command(store, "duplicates", store_duplicates, "deepfeat store duplicates features.h5 --csv pairs.csv")
    command.add_argument("cache", help="feature store")
    action = command.add_argument(
        "--backbone", action="append", help="block, by name or key; may be repeated (default: all)"
    )
    _complete_from(action, _blocks)
    command.add_argument("--threshold", type=float, default=0.9, help="least cosine of a pair (default: 0.9)")
    command.add_argument("--csv", metavar="FILE", help="write the pairs here, for `deepfeat fit --duplicates`")
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")
    command = _command(store, "similarity", store_similarity, "deepfeat store similarity features.h5 --plot cka.png")
    command.add_argument("cache", help="feature store")
    action = command.add_argument(
        "--backbone", action="append", help="block, by name or key; may be repeated (default: all)"
    )
    _complete_from(action, _blocks)
    command.add_argument("--plot", metavar="FILE", help="draw a heat map: .png, .svg or .pdf")
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _add_fit_options(command: argparse.ArgumentParser) -> None:
    action = command.add_argument(
        "--backbone",
        action="append",
        help="block to use, by name or key, or NAME@folds for all folds of a network; may be repeated (default: all)",
    )
    _complete_from(action, _blocks)
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
    command.add_argument("--C", type=float, nargs="+", help="values to try")
    command.add_argument("--gamma", type=float, nargs="+", help="values to try, for the rbf kernel")
    command.add_argument("--widen", action="store_true", help="widen the default grid while the best is at its edge")
    command.add_argument(
        "--class-weight", nargs="+", default=["balanced"], choices=("balanced", "none"), help="values to try"
    )
    command.add_argument("--positive", metavar="LABEL", help="this class against all others")
    command.add_argument("--test", default="split", help="'split' (stored test rows), a share such as 0.2, or 'none'")
    command.add_argument("--cv", type=int, default=5, help="number of folds (default: 5)")
    command.add_argument("--scoring", default="balanced_accuracy", help="a scorer of scikit-learn")
    command.add_argument("--engine", default="auto", choices=("auto", "sklearn"), help="what solves the SVMs")
    command.add_argument("--max-memory", type=float, metavar="GB", help="(default: half of the machine's)")
    command.add_argument("--jobs", type=int, default=-1, help="threads (default: one per core)")
    _add_scheduler(command)
    command.add_argument("--seed", type=int, default=0, help="of all that is drawn at random (default: 0)")
    command.add_argument("--nested", action="store_true", help="also repeat the whole choice in each fold")
    command.add_argument(
        "--calibrate", choices=("sigmoid", "isotonic"), help="decision values to probabilities by this"
    )
    command.add_argument("--threshold", help="with --positive: 'recall>=0.9', 'f1', …, or a decision value")
    command.add_argument(
        "--ungrouped", default="own", choices=("own", "drop", "raise"), help="what becomes of images without a group"
    )
    command.add_argument(
        "--duplicates", metavar="CSV", help="pairs that stay together, from `deepfeat store duplicates`"
    )
    command.add_argument("--no-ledger", action="store_true", help="do not record the fit beside the store")


def _add_finetune_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--output", default="finetuned.keras", help="file to make (default: finetuned.keras)")
    command.add_argument("--test", type=float, help="share of the images for a test split, which training never sees")
    command.add_argument("--folds", type=int, help="train one network without each of so many folds")
    command.add_argument("--positive", metavar="LABEL", help="this class against all others")
    command.add_argument(
        "--unfreeze",
        default="0.3",
        help="share of layers that learn, or the name of the first that does (default: 0.3)",
    )
    command.add_argument("--head-epochs", type=int, default=3, help="of the classifier alone (default: 3)")
    command.add_argument("--epochs", type=int, default=50, help="at most, of the unfrozen layers (default: 50)")
    command.add_argument("--patience", type=int, default=8, help="epochs without a lower loss (default: 8)")
    command.add_argument("--batch-size", type=int, default=32, help="images at once (default: 32)")
    command.add_argument("--head-learning-rate", type=float, default=1e-3, help="of the first phase (default: 1e-3)")
    command.add_argument("--learning-rate", type=float, default=1e-4, help="of the second (default: 1e-4)")
    command.add_argument(
        "--schedule", default="plateau", choices=("plateau", "cyclical", "constant"), help="of the learning rate"
    )
    command.add_argument(
        "--imbalance", default="class_weight", choices=("class_weight", "resample", "none"), help="of classes"
    )
    kinds = ("flip", "rotate", "color")
    command.add_argument("--augment", nargs="+", default=kinds, choices=(*kinds, "none"), help="(default: all)")
    command.add_argument("--l2", type=float, default=1e-4, help="penalty on weights (default: 1e-4)")
    command.add_argument("--dropout", type=float, default=0.3, help="before the classifier (default: 0.3)")
    command.add_argument("--embedding-dim", type=int, help="width of an embedding that several networks share")
    command.add_argument("--val-size", type=float, default=0.15, help="share that tells when to stop (default: 0.15)")
    command.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"), help="of the network")
    command.add_argument("--seed", type=int, default=0, help="of all that is drawn at random (default: 0)")
    command.add_argument("--plot", metavar="FILE", help="draw loss and accuracy: .png, .svg or .pdf")
    action = command.add_argument("--backbone", required=True, metavar="NAME[=WEIGHTS]", help="as for extract")
    _complete_from(action, _networks)
    _add_network_options(command)


def _add_backbone_options(command: argparse.ArgumentParser, *, required: bool) -> None:
    action = command.add_argument(
        "--backbone",
        action="append",
        required=required,
        metavar="NAME[=WEIGHTS]",
        help="network, or a .keras or .onnx file; WEIGHTS is a file or 'random' (default: ImageNet); may be repeated",
    )
    _complete_from(action, _networks)
    _add_network_options(command)


def _add_classifier_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--runtime", default="auto", choices=("auto", "keras", "openvino"), help="what runs networks")
    _add_backbone_options(command, required=False)


def _add_network_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--layer", action="append", help="named layer instead of the network's output; may be repeated"
    )
    command.add_argument(
        "--pooling",
        choices=("avg", "max", "gem", "flatten", "none"),
        help="of feature maps (default: avg)",
    )
    command.add_argument("--input-size", type=int, help="pixels (default: the network's own)")
    command.add_argument("--resize", choices=("squash", "crop", "pad"), help="(default: squash)")
    command.add_argument(
        "--preprocess", help="for a .onnx file, or a .keras file not of finetune: none, tf, torch, caffe or lite"
    )


def _add_label_options(command: argparse.ArgumentParser) -> None:
    labels = command.add_mutually_exclusive_group()
    labels.add_argument("--csv", help="label file with a header line")
    labels.add_argument("--isic", metavar="GROUND_TRUTH", help="one-hot ground truth of ISIC 2018 or 2019")
    command.add_argument("--metadata", help="with --isic: CSV with image and lesion_id")
    command.add_argument("--image-column", help="with --csv (default: image)")
    command.add_argument("--label-column", help="with --csv (default: label)")
    command.add_argument("--group-column", help="with --csv: patient or lesion")
    command.add_argument("--split-column", help="with --csv: train, val or test")


def _add_runtime_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--runtime", default="auto", choices=("auto", "keras", "openvino"), help="what runs networks")
    command.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"), help="of the network")


def _command(commands: Any, name: str, run: Any, example: str) -> argparse.ArgumentParser:
    summary = run.__doc__.strip()
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary[0].lower() + summary[1:].rstrip("."), description=summary, epilog=f"example: {example}"
    )
    command.set_defaults(run=run)
    return command


def _refuse_stray(arguments: argparse.Namespace, needed: str, *options: str) -> None:
    """Refuse options that would be without effect, for lack of the one that they go with."""
    if _given(arguments, needed):
        return
    for option in options:
        if _given(arguments, option) is not None:
            msg = f"{option} goes with {needed}: give {needed} too, or leave out {option}"
            raise UsageError(msg)


def _given(arguments: argparse.Namespace, option: str) -> Any:
    """The value of an option as the command line has it."""
    return getattr(arguments, option.removeprefix("--").replace("-", "_"))


def _backbones(arguments: argparse.Namespace, option: str = "--backbone") -> Any:
    """The networks that are named, in a list; None where there are none."""
    _refuse_stray(arguments, option, *_NETWORK_OPTIONS)
    given = _given(arguments, option)
    if given is None:
        return None
    names = [given] if isinstance(given, str) else given
    if arguments.preprocess is not None and not any(map(_is_model_file, names)):
        msg = f"--preprocess goes with a .keras or .onnx file, and {', '.join(names)} is none: leave it out"
        raise UsageError(msg)
    return [_backbone(name, arguments) for name in names]


def _is_model_file(name: str) -> bool:
    return name.endswith((".keras", ".onnx"))


def _backbone(text: str, arguments: argparse.Namespace) -> Any:
    import deepfeat

    poolings = {None: "avg", "none": None}
    options = {
        "layer": arguments.layer if arguments.layer is None or len(arguments.layer) > 1 else arguments.layer[0],
        "pooling": poolings.get(arguments.pooling, arguments.pooling),
        "input_size": arguments.input_size,
    }
    if _is_model_file(text):
        return deepfeat.load_backbone(text, preprocess=arguments.preprocess, resize=arguments.resize, **options)
    name, separator, weights = text.partition("=")
    if separator and not weights:
        msg = f"{text!r} names no weights: use {name}, {name}=random or {name}=FILE"
        raise UsageError(msg)
    chosen = None if weights == "random" else weights or "imagenet"
    return deepfeat.Backbone(name, weights=chosen, resize=arguments.resize or "squash", **options)


def _read_table(arguments: argparse.Namespace) -> Any:
    import deepfeat

    if arguments.isic and arguments.group_column is not None:
        raise UsageError("--group-column goes with --csv: give --isic its groups, which are lesions, by --metadata")
    columns = ("image", "label", "group", "split")
    _refuse_stray(arguments, "--csv", *(f"--{name}-column" for name in columns))
    _refuse_stray(arguments, "--isic", "--metadata")
    if arguments.isic:
        return deepfeat.read_isic(arguments.images, arguments.isic, arguments.metadata)
    if arguments.csv:
        named = {name: _given(arguments, f"--{name}-column") for name in columns}
        given = {name: column for name, column in named.items() if column is not None}
        return deepfeat.read_csv(arguments.csv, arguments.images, **given)
    return deepfeat.read_folder(arguments.images)


def _complete_from(action: argparse.Action, names: Callable[..., list[str]]) -> None:
    """Let a shell complete the values of an option from what a function of ``prefix`` and ``parsed_args`` names."""
    action.completer = names  # type: ignore[attr-defined]


def _networks(**_: Any) -> list[str]:  # pragma: no cover - in processes of shells
    import deepfeat

    return list(deepfeat.list_backbones().index)


def _blocks(parsed_args: argparse.Namespace, **_: Any) -> list[str]:  # pragma: no cover - in processes of shells
    """Names of the blocks of the store that the command line has so far."""
    import deepfeat

    with contextlib.suppress(DeepfeatError):
        return list(dict.fromkeys(deepfeat.open_features(parsed_args.cache).blocks["name"]))
    return []


def _batch_size(text: str) -> int | str:
    if text == "auto" or text.isdecimal():
        return text if text == "auto" else int(text)
    msg = f"it is {text!r}: use 'auto' or a number of images"
    raise argparse.ArgumentTypeError(msg)


def _sample(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    msg = f"it is {text!r}: use a number of images, 1 or more"
    raise argparse.ArgumentTypeError(msg)


def _sets_of_blocks(text: str) -> str:
    from deepfeat.svm.selection import is_choice

    if is_choice(text):
        return text
    msg = f"it is {text!r}: use 'all-subsets', or 'top-N' such as 'top-2'"
    raise argparse.ArgumentTypeError(msg)


def _read_pairs(path: str | None) -> Any:
    import pandas as pd

    try:
        return None if path is None else pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:
        msg = f"{path} cannot be read as a table of pairs: {error}"
        raise UsageError(msg) from error


def _test(text: str) -> str | float | None:
    if text in ("split", "none"):
        return None if text == "none" else text
    try:
        return float(text)
    except ValueError as error:
        msg = f"--test is {text!r}: use 'split', 'none', or a share such as 0.2"
        raise UsageError(msg) from error


def _print_store(store: Any, as_json: bool) -> None:
    blocks = store.blocks
    if as_json:
        labels = store.table["label"].value_counts().sort_index().to_dict()
        _print_json({"images": store.n_images, "labels": labels, "blocks": blocks.to_dict("records")})
        return
    print(f"{store.path}: {store.n_images} images, {store.table['label'].nunique()} classes")
    shown = blocks[["name", "key", "dim", "done", "missing", "failed"]].assign(key=blocks["key"].str[:8])
    print(shown.to_string(index=False) if len(blocks) else "no feature blocks yet")
    for row in store.failures.head(10).itertuples():
        print(f"failed: {row.image_id} ({row.block}): {row.reason}")


def _print_json(record: dict[str, Any]) -> None:
    """Print JSON; what is not a number there becomes null."""
    print(json.dumps(_plain(record), indent=2, allow_nan=False, ensure_ascii=False))


def _plain(value: Any) -> Any:
    import pandas as pd

    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and pd.isna(value) else value


@contextlib.contextmanager
def _shown_log() -> Iterator[None]:
    """Print what the library logs on standard error, a line each."""
    logger, handler = logging.getLogger("deepfeat"), logging.StreamHandler()
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"note: {message}", file=sys.stderr)


def _complain(error: Exception, status: int) -> int:
    print(f"deepfeat: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
