"""Commands of feature stores: `deepfeat store` and what comes after it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from deepfeat.cli.options import (
    NETWORK_OPTIONS,
    add_backbone_options,
    add_command,
    advise_columns,
    advise_weights,
    complete_from,
    count,
    name_blocks,
    read_backbones,
    refuse_lists,
    refuse_stray,
)
from deepfeat.cli.output import check_outputs, check_store, print_json, print_store
from deepfeat.errors import DeepfeatError, UsageError


def info(arguments: argparse.Namespace) -> None:
    """Show what a feature store holds."""
    import deepfeat

    print_store(deepfeat.open_features(arguments.cache), arguments.json)


def verify(arguments: argparse.Namespace) -> None:
    """Compare every row with its checksum, and a sample with features computed again."""
    import deepfeat

    refuse_stray(arguments, "--sample", "--backbone", *NETWORK_OPTIONS)
    damaged = deepfeat.verify_features(arguments.cache, repair=arguments.repair)
    for row in damaged.itertuples():
        print(f"damaged: {row.image_id} ({row.block})")
    if arguments.sample:
        compared = _verify_sample(arguments)
        print(compared[["block", "images", "largest_difference"]].to_string(index=False))
        # Not ">": features that are no number any more agree with nothing.
        off = compared[(compared["images"] > 0) & ~(compared["largest_difference"] <= 1e-3)]
        if len(off):
            msg = f"{', '.join(off['block'])} differ from what is computed now by more than 0.001 of the largest value"
            raise DeepfeatError(msg)
        changed = compared["changed"].max()
        if changed:
            msg = (
                f"{changed} file(s) of those that were read have other contents than when their features were computed "
                "and the same size and time: give them the time of now (touch) and extract again"
            )
            raise DeepfeatError(msg)
    if len(damaged) and not arguments.repair:
        msg = f"{len(damaged)} row(s) are damaged: run with --repair and extract again, which computes just these"
        raise DeepfeatError(msg)
    print(f"{len(damaged)} damaged rows are missing now" if len(damaged) else "all rows match their checksums")


def _verify_sample(arguments: argparse.Namespace) -> Any:
    import deepfeat

    backbones = read_backbones(arguments)
    if backbones is not None:
        return deepfeat.verify_sample(arguments.cache, arguments.sample, backbones)
    specs = deepfeat.open_features(arguments.cache).blocks["spec"]
    with advise_weights(arguments.cache, specs, "--backbone", ()):
        return deepfeat.verify_sample(arguments.cache, arguments.sample)


def merge(arguments: argparse.Namespace) -> None:
    """Merge feature stores into one; conflicts are named, not chosen."""
    import deepfeat

    check_store(arguments.target)
    print_store(deepfeat.merge_features(arguments.sources, arguments.target), arguments.json)


def export(arguments: argparse.Namespace) -> None:
    """Write labels and features as .parquet, .npz or .csv."""
    import deepfeat

    check_outputs(arguments.output)
    refuse_lists(arguments)
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


def import_(arguments: argparse.Namespace) -> None:
    """Put features made elsewhere (.npy, or a data set of an .h5 file) into a store, with a CSV of ids and labels."""
    import deepfeat

    check_store(arguments.cache)
    columns = {name: getattr(arguments, f"{name}_column") for name in ("image", "label", "group")}
    with advise_columns(columns):
        table, features = deepfeat.read_features(
            arguments.features, arguments.csv, dataset=arguments.dataset, **columns
        )
    print_store(deepfeat.import_features(features, table, arguments.cache, name=arguments.name), arguments.json)


def duplicates(arguments: argparse.Namespace) -> None:
    """List images that seem to show the same, and those whose files are equal."""
    import deepfeat

    check_outputs(arguments.csv)
    refuse_lists(arguments)
    pairs = deepfeat.find_duplicates(arguments.cache, arguments.backbone, threshold=arguments.threshold)
    if arguments.csv:
        pairs.to_csv(arguments.csv, index=False, errors="surrogateescape")
    if arguments.json:
        print_json({"pairs": pairs.to_dict("records")})
        return
    new = pairs[~pairs["same_group"]]
    labelled = new.dropna(subset=["label_a", "label_b"])
    differ = int((labelled["label_a"] != labelled["label_b"]).sum())
    print(
        f"{len(pairs)} pairs of a similarity of {arguments.threshold:g} or more, or of equal files "
        f"({pairs['identical'].sum()}); {len(new)} are not of one group, {differ} of these of two labels"
    )
    if len(new):
        print(new[["image_a", "image_b", "similarity", "label_a", "label_b"]].to_string(index=False))


def similarity(arguments: argparse.Namespace) -> None:
    """Show which blocks say the same, by linear centred kernel alignment."""
    import deepfeat

    check_outputs(picture=arguments.plot)
    refuse_lists(arguments)
    table = deepfeat.linear_cka(arguments.cache, arguments.backbone)
    if arguments.plot:
        deepfeat.plot_similarity(table, arguments.plot)
    if arguments.json:
        print_json(table.to_dict("index"))
        return
    print(table.to_string(float_format="{:.3f}".format))


def add_commands(commands: Any) -> None:
    """Add these commands to a parser."""
    store = commands.add_parser("store", help="look at a feature store").add_subparsers(
        required=True, metavar="COMMAND"
    )
    command = add_command(store, "info", info, "deepfeat store info features.h5")
    command.add_argument("cache", help="feature store")
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")
    command = add_command(store, "verify", verify, "deepfeat store verify features.h5 --sample 32")
    command.add_argument("cache", help="feature store")
    command.add_argument("--repair", action="store_true", help="declare damaged rows missing, to be extracted again")
    command.add_argument("--sample", type=count, metavar="N", help="compute N images of each block again")
    add_backbone_options(command, required=False)

    command = add_command(store, "merge", merge, "deepfeat store merge all.h5 part1.h5 part2.h5")
    command.add_argument("target", help="feature store to make or extend")
    command.add_argument("sources", nargs="+", help="feature stores, which stay as they are")
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")

    command = add_command(store, "export", export, "deepfeat store export features.h5 features.parquet")
    command.add_argument("cache", help="feature store")
    command.add_argument("output", help="file to write: .parquet, .npz or .csv")
    action = command.add_argument("--backbone", action="append", help="block to write, by name or key; may be repeated")
    complete_from(action, name_blocks)

    command = add_command(store, "import", import_, "deepfeat store import features.h5 vit.npy --csv labels.csv")
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


def _add_looks(store: Any) -> None:
    command = add_command(store, "duplicates", duplicates, "deepfeat store duplicates features.h5 --csv pairs.csv")
    command.add_argument("cache", help="feature store")
    action = command.add_argument(
        "--backbone", action="append", help="block, by name or key; may be repeated (default: all)"
    )
    complete_from(action, name_blocks)
    command.add_argument("--threshold", type=float, default=0.9, help="least cosine of a pair (default: 0.9)")
    command.add_argument("--csv", metavar="FILE", help="write the pairs here, for `deepfeat fit --duplicates`")
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")
    command = add_command(store, "similarity", similarity, "deepfeat store similarity features.h5 --plot cka.png")
    command.add_argument("cache", help="feature store")
    action = command.add_argument(
        "--backbone", action="append", help="block, by name or key; may be repeated (default: all)"
    )
    complete_from(action, name_blocks)
    command.add_argument("--plot", metavar="FILE", help="draw a heat map: .png, .svg or .pdf")
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")
