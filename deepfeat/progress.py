"""Progress bars for terminals and notebooks, and a line now and then where only a log is written."""

from __future__ import annotations

import io
import sys
from typing import Any, TextIO

from tqdm.auto import tqdm

#: Seconds between two lines in a log.
LOG_INTERVAL = 60.0

_LINE = "{desc}: {n_fmt} of {total_fmt} ({percentage:.0f} %), {rate_noinv_fmt}, {elapsed} gone, {remaining} left"


def progress_bar(total: int, title: str, unit: str, *, shown: bool, leave: bool = True) -> Any:
    """Make a progress bar on standard error.

    Terminals and notebooks have a bar that moves. Anything else, such as a file or a cluster's log, gets a line each
    minute, and none of what takes less.

    Parameters
    ----------
    total : int
        Number of units.
    title : str
    unit : str
        What is counted, in the singular.
    shown : bool
        Nothing is written if False.
    leave : bool
        Whether the bar stays when all is done.

    Returns
    -------
    tqdm.tqdm
        To be updated and closed.
    """
    options: dict[str, Any] = {"total": total, "desc": title, "unit": unit, "leave": leave, "disable": not shown}
    if shown and not _moves():
        # maxinterval too, since tqdm redraws after ten seconds otherwise; no line before the first interval is over.
        # The rate is that of the last interval: a mean would remember for long how fast the beginning was, where what
        # an earlier run has stored is only looked at.
        pace = {**dict.fromkeys(("mininterval", "maxinterval", "delay"), LOG_INTERVAL), "miniters": 1, "smoothing": 1}
        options |= {"file": _Lines(sys.stderr), "unit": f" {unit}", "bar_format": _LINE, **pace}
    return tqdm(**options)


def _moves() -> bool:
    """Whether standard error is shown where a line may be drawn again."""
    return _in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def _in_notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and "IPKernelApp" in shell.config


class _Lines(io.TextIOBase):
    """A file on which what is drawn over and over comes out as lines."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file

    def write(self, text: str) -> int:
        line = text.strip()
        if line and self._file is not None:
            self._file.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()
