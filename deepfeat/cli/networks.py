"""Commands that run networks: extract, bench and finetune."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepfeat.cli.options import (
    add_backbone_options,
    add_command,
    add_label_options,
    add_network_options,
    add_runtime_options,
    add_scheduler,
    complete_from,
    connect_client,
    name_networks,
    number_or_name,
    read_backbones,
    read_table,
)
from deepfeat.cli.output import check_outputs, check_store, print_json, print_store
from deepfeat.errors import UsageError


def extract(arguments: argparse.Namespace) -> None:
    """Bring a feature store up to date with a folder of images."""
    import deepfeat

    check_store(arguments.cache)
    backbones = read_backbones(arguments)
    with connect_client(arguments.scheduler) as client:
        store = deepfeat.extract(
            read_table(arguments),
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
    print_store(store, arguments.json)


def bench(arguments: argparse.Namespace) -> None:
    """Measure the speed, size and score of backbones on some of the images."""
    import deepfeat

    check_outputs(picture=arguments.plot)

    table = deepfeat.benchmark(
        read_table(arguments),
        read_backbones(arguments),
        n_images=arguments.images_drawn,
        runtime=arguments.runtime,
        precision=arguments.precision,
        seed=arguments.seed,
    )
    if arguments.plot:
        from deepfeat.plots import plot_benchmark

        plot_benchmark(table, arguments.plot)
    if arguments.json:
        print_json(table.to_dict("index"))
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


def finetune(arguments: argparse.Namespace) -> None:
    """Train a backbone on labelled images, and keep it with what is known of the training."""
    import deepfeat

    check_outputs(arguments.output, picture=arguments.plot)
    settings = _read_settings(arguments)
    (backbone,), table = read_backbones(arguments), read_table(arguments)
    if arguments.test is not None:
        table = deepfeat.split_table(table, arguments.test, arguments.seed)
        _check_split_file(arguments.output, table)
    given = (table, backbone, arguments.output)
    progress = not arguments.quiet
    if arguments.folds is not None:
        networks = deepfeat.finetune_folds(*given, cv=arguments.folds, progress=progress, **settings)
    else:
        networks = [deepfeat.finetune(*given, progress=progress, **settings)]
    if arguments.test is not None:
        _split_file(arguments.output).write_bytes(_as_csv(table))
    if arguments.plot:
        deepfeat.plot_history(networks, arguments.plot)
    records = {network.name: _training_record(network) for network in networks}
    if arguments.json:
        print_json(records)
        return
    for name, record in records.items():
        print(
            f"{name}: {record['epochs']} epochs, the best was {record['best_epoch']}: validation loss "
            f"{record['val_loss']:.3f}, balanced accuracy {record['val_balanced_accuracy']:.3f}"
        )
    if arguments.test is not None:
        _print_next_steps(arguments, [network.name for network in networks], is_grouped=table["group"].notna().any())


def _read_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What decides a training besides images and network, as finetune has it."""
    names = [
        *("positive", "head_epochs", "epochs", "patience", "batch_size", "head_learning_rate", "learning_rate"),
        *("schedule", "l2", "dropout", "embedding_dim", "val_size", "precision", "seed"),
    ]
    settings = {name: getattr(arguments, name) for name in names}
    settings["unfreeze"] = number_or_name(arguments.unfreeze)
    settings["imbalance"] = None if arguments.imbalance == "none" else arguments.imbalance
    if "none" in arguments.augment and len(arguments.augment) > 1:
        msg = f"--augment is {' '.join(arguments.augment)!r}: give 'none' alone, or leave it out"
        raise UsageError(msg)
    settings["augment"] = [name for name in arguments.augment if name != "none"]
    return settings


def _split_file(output: str) -> Path:
    """Where the split of a network is kept."""
    return Path(output).with_suffix(".csv")


def _as_csv(table: Any) -> bytes:
    """A table as `read_csv` reads it, without the columns that are empty."""
    columns = table[["image_id", "label", "group", "split"]].dropna(axis=1, how="all")
    text: str = columns.rename(columns={"image_id": "image"}).to_csv(index=False, lineterminator="\n")
    return text.encode("utf-8", "surrogateescape")


def _check_split_file(output: str, table: Any) -> None:
    """Refuse to write the split over any other file."""
    file = _split_file(output)
    check_outputs(str(file))
    if file.exists() and file.read_bytes() != _as_csv(table):
        msg = f"{file} is where the split of {output} belongs, and is another file: move it, or pass another --output"
        raise UsageError(msg)


def _print_next_steps(arguments: argparse.Namespace, names: Sequence[str], *, is_grouped: bool) -> None:
    """Print the commands that score the networks on the test that they have not seen."""
    output, split = Path(arguments.output), str(_split_file(arguments.output))
    is_single = arguments.folds is None
    files = [arguments.output] if is_single else [str(output.with_name(f"{name}.keras")) for name in names]
    group = ["--group-column", "group"] if is_grouped else []
    networks = [word for file in files for word in ("--backbone", file)]
    extract = ["deepfeat", "extract", arguments.images, *networks, "--csv", split, *group, "--split-column", "split"]
    # Features of several networks can be put together where they share an embedding.
    block = names[0] if is_single or arguments.embedding_dim is None else f"{output.stem}@folds"
    positive = [] if arguments.positive is None else ["--positive", arguments.positive]
    fit = ["deepfeat", "fit", "features.h5", "--backbone", block, *positive]
    print(f"The split is in {split}; to score the test images, which the training has not seen:")
    print(f"  {shlex.join(extract)}\n  {shlex.join(fit)}")


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


def _batch_size(text: str) -> int | str:
    if text == "auto" or text.isdecimal():
        return text if text == "auto" else int(text)
    msg = f"it is {text!r}: use 'auto' or a number of images"
    raise argparse.ArgumentTypeError(msg)


def add_commands(commands: Any) -> None:
    """Add these commands to a parser."""
    _add_extract(commands)
    _add_bench(commands)
    _add_finetune(commands)


def _add_extract(commands: Any) -> None:
    command = add_command(
        commands, "extract", extract, "deepfeat extract photos --backbone EfficientNetLite0 --cache features.h5"
    )
    command.add_argument(
        "images", help="folder of images; one sub-folder per class unless --csv or --isic gives labels"
    )
    add_backbone_options(command, required=True)
    command.add_argument(
        "--cache", default="features.h5", help="feature store to make or extend (default: features.h5)"
    )
    add_label_options(command)
    command.add_argument("--batch-size", type=_batch_size, default="auto", help="images at once (default: as measured)")
    add_runtime_options(command)
    command.add_argument(
        "--view", action="append", metavar="VIEW", help="original, hflip, rot90, center, …; may be repeated"
    )
    command.add_argument("--dtype", default="float32", choices=("float32", "float16"), help="of the stored features")
    command.add_argument(
        "--on-error", default="record", choices=("record", "raise"), help="for a bad image (default: record)"
    )
    add_scheduler(command)
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _add_bench(commands: Any) -> None:
    command = add_command(
        commands, "bench", bench, "deepfeat bench photos --backbone EfficientNetLite0 --backbone VGG16 --plot bench.png"
    )
    command.add_argument("images", help="folder of images, as for extract")
    add_backbone_options(command, required=True)
    add_label_options(command)
    add_runtime_options(command)
    command.add_argument("--n-images", dest="images_drawn", type=int, default=512, help="to draw (default: 512)")
    command.add_argument("--seed", type=int, default=0, help="of all that is drawn at random (default: 0)")
    command.add_argument("--plot", metavar="FILE", help="draw score against speed: .png, .svg or .pdf")
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _add_finetune(commands: Any) -> None:
    command = add_command(
        commands,
        "finetune",
        finetune,
        "deepfeat finetune photos --backbone EfficientNetLite0 --output skin.keras --test 0.2 --plot skin.png",
    )
    command.add_argument("images", help="folder of images, as for extract")
    _add_finetune_options(command)
    add_label_options(command)
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _add_finetune_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--output", default="finetuned.keras", help="file to make (default: finetuned.keras)")
    command.add_argument(
        "--test",
        type=float,
        help="share of the images for a test split, which training never sees; a .csv file beside the network keeps it",
    )
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
    complete_from(action, name_networks)
    add_network_options(command)
