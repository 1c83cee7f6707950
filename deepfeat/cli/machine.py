"""Commands for the first steps on a machine: demo, doctor and completion."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from deepfeat.cli.options import add_command, count
from deepfeat.cli.output import print_json
from deepfeat.errors import DeepfeatError


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
    options = {"param_grid": {"C": [1e-4, 1e-3, 1e-2, 1e-1]}, "calibrate": "temperature", "n_jobs": arguments.jobs}
    result = deepfeat.fit_svm(cache, test=0.2, **options)
    values = result.metrics["value"]
    print(f"accuracy           {values['accuracy']:.3f}")
    print(f"balanced accuracy  {values['balanced_accuracy']:.3f}")
    result.report(folder / "report.html", title="scikit-learn's digits")
    print(f"report             {folder / 'report.html'}")
    print("\nOn a folder of your own, with one sub-folder per class:")
    print("  deepfeat extract my_images --backbone EfficientNetLite0 --cache features.h5")
    print("  deepfeat fit features.h5 --test 0.2")


def doctor(arguments: argparse.Namespace) -> None:
    """Show what this machine has, what is missing, and what would make deepfeat faster."""
    from deepfeat.diagnosis import diagnose

    found = diagnose(Path(arguments.cache), arguments.n_images, arguments.dim)
    if arguments.json:
        print_json({finding.topic: finding._asdict() for finding in found})
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


def add_commands(commands: Any) -> None:
    """Add these commands to a parser."""
    _add_demo(commands)
    _add_doctor(commands)
    _add_completion(commands)


def _add_demo(commands: Any) -> None:
    command = add_command(commands, "demo", demo, "deepfeat demo")
    command.add_argument("folder", nargs="?", default="deepfeat-demo", help="folder to make (default: deepfeat-demo)")
    command.add_argument("--jobs", type=int, default=-1, help="fits at a time (default: one per core)")


def _add_doctor(commands: Any) -> None:
    command = add_command(commands, "doctor", doctor, "deepfeat doctor --n-images 25331 --dim 2560")
    command.add_argument("--cache", default="features.h5", help="feature store to be made (default: features.h5)")
    command.add_argument("--n-images", type=count, help="to be extracted, for an estimate of the store's size")
    command.add_argument("--dim", type=count, default=1280, help="of all embeddings of an image (default: 1280)")
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _add_completion(commands: Any) -> None:
    command = add_command(commands, "completion", completion, 'eval "$(deepfeat completion bash)"  # in ~/.bashrc')
    command.add_argument("shell", choices=("bash", "zsh", "fish"), help="whose code is printed")
