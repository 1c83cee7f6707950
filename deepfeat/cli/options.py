"""Options that several commands have, and what is read from them."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from deepfeat.errors import BackboneError, DeepfeatError, UsageError

#: Options that say how a network is used, and go with its name.
NETWORK_OPTIONS = ("--layer", "--pooling", "--input-size", "--resize", "--preprocess")


def add_command(commands: Any, name: str, run: Any, example: str) -> argparse.ArgumentParser:
    """Add what runs as a command, which its docstring describes."""
    summary = run.__doc__.strip()
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary[0].lower() + summary[1:].rstrip("."), description=summary, epilog=f"example: {example}"
    )
    command.set_defaults(run=run)
    return command


def add_backbone_options(command: argparse.ArgumentParser, *, required: bool) -> None:
    """Networks by name or file, and how they are used."""
    action = command.add_argument(
        "--backbone",
        action="append",
        required=required,
        metavar="NAME[=WEIGHTS]",
        help="network, or a .keras or .onnx file; WEIGHTS is a file or 'random' (default: ImageNet); may be repeated",
    )
    complete_from(action, name_networks)
    add_network_options(command)


def add_classifier_options(command: argparse.ArgumentParser) -> None:
    """What a saved classifier needs to run on images."""
    command.add_argument("--runtime", default="auto", choices=("auto", "keras", "openvino"), help="what runs networks")
    add_backbone_options(command, required=False)


def add_network_options(command: argparse.ArgumentParser) -> None:
    """How networks are used, see `NETWORK_OPTIONS`."""
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


def add_label_options(command: argparse.ArgumentParser) -> None:
    """Where labels, groups and splits come from, see `read_table`."""
    labels = command.add_mutually_exclusive_group()
    labels.add_argument("--csv", help="label file with a header line")
    labels.add_argument("--isic", metavar="GROUND_TRUTH", help="one-hot ground truth of ISIC 2018 or 2019")
    command.add_argument("--metadata", help="with --isic: CSV with image and lesion_id")
    command.add_argument("--image-column", help="with --csv (default: image)")
    command.add_argument("--label-column", help="with --csv (default: label)")
    command.add_argument("--group-column", help="with --csv: patient or lesion")
    command.add_argument("--split-column", help="with --csv: train, val or test")


def add_runtime_options(command: argparse.ArgumentParser) -> None:
    """What runs networks, and in which precision."""
    command.add_argument("--runtime", default="auto", choices=("auto", "keras", "openvino"), help="what runs networks")
    command.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"), help="of the network")


def add_scheduler(command: argparse.ArgumentParser) -> None:
    """Where a cluster is, see `connect_client`."""
    command.add_argument(
        "--scheduler", metavar="ADDRESS", help="of a Dask cluster whose workers compute, such as tcp://10.0.0.1:8786"
    )


def complete_from(action: argparse.Action, names: Callable[..., list[str]]) -> None:
    """Let a shell complete the values of an option from what a function of ``prefix`` and ``parsed_args`` names."""
    action.completer = names  # type: ignore[attr-defined]


def name_networks(**_: Any) -> list[str]:
    """Names of all networks, for `complete_from`."""
    import deepfeat

    return list(deepfeat.list_backbones().index)


def name_blocks(parsed_args: argparse.Namespace, **_: Any) -> list[str]:  # pragma: no cover - in processes of shells
    """Names of the blocks of the store that the command line has so far, for `complete_from`."""
    import deepfeat

    with contextlib.suppress(DeepfeatError):
        return list(dict.fromkeys(deepfeat.open_features(parsed_args.cache).blocks["name"]))
    return []


def refuse_stray(arguments: argparse.Namespace, needed: str, *options: str) -> None:
    """Refuse options that would be without effect, for lack of the one that they go with."""
    if given_option(arguments, needed):
        return
    for option in options:
        if given_option(arguments, option) is not None:
            msg = f"{option} goes with {needed}: give {needed} too, or leave out {option}"
            raise UsageError(msg)


def given_option(arguments: argparse.Namespace, option: str) -> Any:
    """The value of an option as the command line has it."""
    return getattr(arguments, option.removeprefix("--").replace("-", "_"))


def read_backbones(arguments: argparse.Namespace, option: str = "--backbone") -> Any:
    """The networks that are named, in a list; None where there are none."""
    refuse_stray(arguments, option, *NETWORK_OPTIONS)
    given = given_option(arguments, option)
    if given is None:
        return None
    names = [given] if isinstance(given, str) else given
    for name in names:
        if "," in name.partition("=")[0] and not _is_model_file(name):
            _refuse_list(name, option)
    if arguments.preprocess is not None and not any(map(_is_model_file, names)):
        msg = f"--preprocess goes with a .keras or .onnx file, and {', '.join(names)} is none: leave it out"
        raise UsageError(msg)
    return [_backbone(name, arguments) for name in names]


def refuse_lists(arguments: argparse.Namespace) -> None:
    """Refuse several blocks in one word; of the blocks of a store, a name may have a comma."""
    listed = [name for name in arguments.backbone or () if "," in name]
    if not listed:
        return
    import deepfeat

    blocks = set(deepfeat.open_features(arguments.cache).blocks["name"])
    for name in listed:
        if not blocks.issuperset(name.split("+")):
            _refuse_list(name, "--backbone")


def _refuse_list(names: str, option: str) -> NoReturn:
    first, second, *_ = names.split(",")
    msg = f"{option} is {names!r}: repeat {option} for each, as in {option} {first} {option} {second.strip() or '…'}"
    raise UsageError(msg)


def _is_model_file(name: str) -> bool:
    # Not the weights of NAME=WEIGHTS; a file may have the character in its name.
    return name.endswith((".keras", ".onnx")) and ("=" not in name or os.path.isfile(name))


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


def read_table(arguments: argparse.Namespace) -> Any:
    """The table of the images, from a label file or by sub-folders."""
    import deepfeat

    if arguments.isic and arguments.group_column is not None:
        raise UsageError("--group-column goes with --csv: give --isic its groups, which are lesions, by --metadata")
    columns = ("image", "label", "group", "split")
    refuse_stray(arguments, "--csv", *(f"--{name}-column" for name in columns))
    refuse_stray(arguments, "--isic", "--metadata")
    if arguments.isic:
        return deepfeat.read_isic(arguments.images, arguments.isic, arguments.metadata)
    if arguments.csv:
        named = {name: given_option(arguments, f"--{name}-column") for name in columns}
        given = {name: column for name, column in named.items() if column is not None}
        with advise_columns({"image": "image", "label": "label", **given}):
            return deepfeat.read_csv(arguments.csv, arguments.images, **given)
    return deepfeat.read_folder(arguments.images)


@contextlib.contextmanager
def advise_columns(columns: Mapping[str, str | None]) -> Iterator[None]:
    """Say which option names a column, where a label file has no such."""
    try:
        yield
    except UsageError as error:
        for name, column in columns.items():
            if f" has no column {column!r}" in str(error):
                msg = f"{error}: name the one with the {name} by --{name}-column"
                raise UsageError(msg) from error
        raise


@contextlib.contextmanager
def advise_weights(file: str, specs: Sequence[Mapping[str, Any]], option: str, given: Sequence[str]) -> Iterator[None]:
    """Say which option names the weights, where those that deepfeat finds by itself are not those of a file.

    Parameters
    ----------
    file : str
        A classifier or a store, for the message.
    specs : sequence of mapping
        Of its blocks.
    option : str
        Which takes networks, and what it was given.
    given : sequence of str
    """
    try:
        yield
    except BackboneError as error:
        said = str(error)
        named = {spec["backbone"] for spec in specs if str(spec.get("backbone")) in said}
        if not named:
            raise
        # What comes first is at fault, and MobileNetV2 rather than the MobileNet in it.
        name = min(named, key=lambda network: (said.index(network), -len(network)))
        if any(text.startswith(f"{name}=") for text in given):
            raise
        wanted = f"{name}=FILE" if name in name_networks() else "FILE"
        # Without what is advised to those who write Python.
        reason = said.partition(", pass weights=")[0].removesuffix(": pass the backbone")
        msg = f"{file} was made with other weights of {name} than are here: name theirs, {option} {wanted} ({reason})"
        raise BackboneError(msg) from error


def read_test(text: str) -> str | float | None:
    """What `--test` means to fit_svm."""
    if text in ("split", "none"):
        return None if text == "none" else text
    try:
        return float(text)
    except ValueError as error:
        msg = f"--test is {text!r}: use 'split', 'none', or a share such as 0.2"
        raise UsageError(msg) from error


def count(text: str) -> int:
    """A whole number of things, for ``type`` of an option."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    msg = f"it is {text!r}: use a whole number, 1 or more"
    raise argparse.ArgumentTypeError(msg)


def number(text: str) -> float:
    """One of several numbers, for ``type`` of an option."""
    try:
        return float(text)
    except ValueError as error:
        more = ", separated by blanks" if "," in text else ", and name files before the option"
        msg = f"it is {text!r}: use numbers such as 1e-4 1e-3{more}"
        raise argparse.ArgumentTypeError(msg) from error


def number_or_name(text: str) -> float | str:
    """A number where the text is one."""
    try:
        return float(text)
    except ValueError:
        return text


def connect_client(scheduler: str | None) -> Any:
    """Connect to a Dask scheduler, where one is named."""
    if scheduler is None:
        return contextlib.nullcontext()
    from deepfeat.cluster import connect

    return connect(scheduler)
