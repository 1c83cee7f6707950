"""The command line: one function per command, imports inside it, and its options beside it."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from deepfeat import __version__
from deepfeat.cli import classifiers, machine, networks, stores
from deepfeat.cli.parser import CommandParser
from deepfeat.errors import DataWarning, DeepfeatError, UsageError


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
    parser = make_parser()
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


def make_parser() -> argparse.ArgumentParser:
    """What reads the arguments of all commands."""
    parser = CommandParser(
        prog="deepfeat",
        description="Extract image features once; fit SVMs on them in seconds.",
        epilog="first steps: deepfeat demo, then deepfeat COMMAND --help; deepfeat doctor looks at the machine",
    )
    parser.add_argument("--version", action="version", version=f"deepfeat {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (machine, networks, classifiers, stores):
        module.add_commands(commands)
    return parser


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks what may come next, see `deepfeat completion`; that ends the process."""
    if "_ARGCOMPLETE" in os.environ:  # pragma: no cover - in processes of shells
        import argcomplete

        argcomplete.autocomplete(parser)


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
    # The library's advice is for Python.
    said = str(error).replace("pass weights=<file>", "pass --backbone NAME=FILE")
    print(f"deepfeat: {said}", file=sys.stderr)
    return status
