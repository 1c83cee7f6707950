"""Print pip constraints to the oldest versions that setup.cfg allows, one requirement a line.

    python .ci/oldest.py > constraints.txt
    pip install -c constraints.txt '.[dev]'

Made anew from setup.cfg each time, so that the two cannot tell different stories.
"""

import configparser
import re
from pathlib import Path

SETUP = Path(__file__).parents[1] / "setup.cfg"
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[\w,-]+\])?(>=|==)(?P<version>[\w.]+)")


def oldest(setup: Path = SETUP) -> dict[str, str]:
    """Read the lowest version of every requirement, those of the extras included."""
    config = configparser.ConfigParser()
    config.read(setup, encoding="utf-8")
    lists = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    found = (REQUIREMENT.fullmatch(line.strip()) for text in lists for line in text.splitlines())
    return {match["name"]: match["version"] for match in found if match}


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in oldest().items()))
