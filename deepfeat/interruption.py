"""What Ctrl-C leaves behind, said where it is seen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def interruptible(left: str) -> Iterator[None]:
    """Note on a KeyboardInterrupt what is left and how to go on.

    Python shows the note below the traceback, and the command line shows it alone. Of work within work the outer has
    the say.

    Parameters
    ----------
    left : str
        A sentence without its full stop.
    """
    try:
        yield
    except KeyboardInterrupt as interruption:
        interruption.__notes__ = [left]
        raise
