"""How long a stage-2 script takes to start, against importing scikit-learn and h5py alone.

    python benchmarks/startup.py --table docs/results/startup.md

Every statement runs in a new interpreter; rounds are interleaved and the median counts.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

STATEMENTS = {
    "import sklearn.svm, h5py": "import sklearn.svm, h5py",
    "import deepfeat": "import deepfeat",
    "import deepfeat; deepfeat.fit_svm": "import deepfeat; deepfeat.fit_svm",
    "import deepfeat; deepfeat.open_features": "import deepfeat; deepfeat.open_features",
    "import keras": "import keras",
}


def seconds(statement: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--table", type=Path, help="write the table here instead of printing it")
    arguments = parser.parse_args()
    rounds = [{name: seconds(code) for name, code in STATEMENTS.items()} for _ in range(arguments.rounds + 1)][1:]
    medians = {name: statistics.median(r[name] for r in rounds) for name in STATEMENTS}
    base = next(iter(medians.values()))
    lines = [
        "# Start-up time",
        "",
        "Made by `python benchmarks/startup.py --table docs/results/startup.md`: median of "
        f"{arguments.rounds} new interpreters each, Python {platform.python_version()}, {platform.machine()}.",
        "",
        "| statement | seconds | ratio |",
        "| --- | --- | --- |",
        *(f"| `{name}` | {value:.2f} | {value / base:.2f} |" for name, value in medians.items()),
        "",
    ]
    text = "\n".join(lines)
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
