"""What commands print and write, and what is checked before they begin."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from deepfeat.errors import UsageError


def check_outputs(
    *files: str | None, picture: str | None = None, page: str | None = None, replaced: str | None = None
) -> None:
    """Refuse files that could not be written before the work begins, and not after it."""
    if picture is not None:
        from deepfeat.plots import check_picture

        check_picture(picture)
    if page is not None:
        from deepfeat.report import check_page

        check_page(page)
    for file in (*files, picture, page, replaced):
        obstacle = None if file is None else find_obstacle(Path(file), is_replaced=file == replaced)
        if obstacle is not None:
            msg = f"cannot write {file or repr(file)}: {obstacle}"
            raise UsageError(msg)


def find_obstacle(file: Path, *, is_replaced: bool) -> str | None:
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


def check_store(cache: str) -> None:
    """Refuse a folder in place of a feature store."""
    from deepfeat.store.writing import refuse_folder

    refuse_folder(Path(cache))


def print_store(store: Any, as_json: bool) -> None:
    """Print what a store holds, and what failed."""
    blocks = store.blocks
    if as_json:
        labels = store.table["label"].value_counts().sort_index().to_dict()
        print_json({"images": store.n_images, "labels": labels, "blocks": blocks.to_dict("records")})
        return
    print(f"{store.path}: {store.n_images} images, {store.table['label'].nunique()} classes")
    shown = blocks[["name", "key", "dim", "done", "missing", "failed"]].assign(key=blocks["key"].str[:8])
    print(shown.to_string(index=False) if len(blocks) else "no feature blocks yet")
    for row in store.failures.head(10).itertuples():
        print(f"failed: {row.image_id} ({row.block}): {row.reason}")


def print_json(record: dict[str, Any]) -> None:
    """Print a record as JSON, see `to_plain`."""
    print(json.dumps(to_plain(record), indent=2, allow_nan=False, ensure_ascii=False))


def to_plain(value: Any) -> Any:
    """A value as JSON has it; what is not a number there is None."""
    import pandas as pd

    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and pd.isna(value) else value
