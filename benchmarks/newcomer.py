"""A newcomer's walk: what the README says to type, in a new virtual environment with an empty home and no caches.

    python benchmarks/newcomer.py --table docs/results/newcomer.md

Works on the last commit, in temporary folders, and downloads all packages.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: Beginnings of the variables that are kept: how pip reaches its packages from this machine.
KEPT = ("PIP_", "SSL_", "REQUESTS_", "HTTP", "http", "LANG")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="write the results here, as Markdown")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = walk(Path(folder))
    print(table)
    if arguments.table:
        arguments.table.write_text(table, encoding="utf-8")


def walk(folder: Path) -> str:
    """Type everything, one after the other."""
    checkout, home = folder / "deepfeat", folder / "home"
    checkout.mkdir()
    home.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "x"], cwd=checkout, input=archive.stdout, check=True)
    environment = {name: value for name, value in os.environ.items() if name.startswith(KEPT)}
    environment |= {"HOME": str(home), "PATH": f"{folder}/venv/bin:/usr/bin:/bin", "PIP_NO_CACHE_DIR": "1"}
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    rows = []
    for shown, command in commands(checkout):
        start = time.perf_counter()
        done = subprocess.run(
            command, cwd=checkout, env=environment, shell=True, capture_output=True, text=True, check=False
        )
        rows.append((shown, time.perf_counter() - start, said(done)))
        print(*rows[-1], file=sys.stderr)
        if done.returncode:
            sys.exit(f"{shown} failed:\n{done.stderr[-3000:]}")
    sizes = {name: _size(folder / name) for name in ("venv", "home")}
    return describe(rows, sizes)


def commands(checkout: Path) -> list[tuple[str, str]]:
    """What is to be typed, as the README shows it and as a shell takes it."""
    readme = (checkout / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    lines = [line for language, text in blocks if language == "sh" for line in text.splitlines()]
    copy = re.search(r"`(cp -r [^`]+)`", readme)
    assert copy is not None
    place = next(number for number, line in enumerate(lines) if "my_images" in line)
    lines.insert(place, copy[1])
    (checkout / "walk.py").write_text(dict(blocks)["python"], encoding="utf-8")
    return [*((line, line) for line in lines), ("the block of Python", "python walk.py")]


def said(done: subprocess.CompletedProcess[str]) -> str:
    """The accuracy that was printed, or nothing."""
    found = re.search(r"^accuracy +([\d.]+)", done.stdout, re.MULTILINE)
    return f"accuracy {found[1]}" if found else ""


def describe(rows: list[tuple[str, float, str]], sizes: dict[str, int]) -> str:
    total = sum(seconds for _, seconds, _ in rows)
    body = "\n".join(f"| `{shown}` | {seconds:.1f} | {text} |" for shown, seconds, text in rows)
    return f"""# A newcomer's walk

Made by `python benchmarks/newcomer.py --table docs/results/newcomer.md`: the README's commands as written, one after
the other, in a new virtual environment, with an empty home and no caches. The accuracies are those of the digits.
{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}.

| typed | seconds | printed |
| --- | --- | --- |
{body}
| together | {total:.0f} | |

The virtual environment has {sizes["venv"] / 1e9:.1f} GB afterwards, most of it TensorFlow. In the home there are
{sizes["home"] / 1e6:.0f} MB: the networks as converted for OpenVINO, and settings of Keras.
"""


def _size(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


if __name__ == "__main__":
    main()
