"""Files that are to be written, checked before the work for them begins."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from deepfeat.errors import UsageError


def check_output(path: str | os.PathLike[str], endings: Sequence[str]) -> None:
    """Refuse a file whose ending is another, or whose folder is not there.

    Parameters
    ----------
    path : path
    endings : sequence of str
        Two or more, with their dots, in small letters.

    Raises
    ------
    UsageError
    """
    file = Path(path)
    if file.suffix.lower() not in endings:
        allowed = f"{', '.join(endings[:-1])} or {endings[-1]}"
        msg = f"cannot write {file}: its name ends in {file.suffix!r}, use {allowed}"
        raise UsageError(msg)
    check_folder(file)


def check_folder(path: str | os.PathLike[str]) -> None:
    """Refuse a file whose folder is not there.

    Raises
    ------
    UsageError
    """
    folder = Path(path).parent
    if not folder.is_dir():
        msg = f"cannot write {os.fspath(path)}: there is no folder {str(folder)!r}"
        raise UsageError(msg)
