"""Print pip constraints to the oldest versions that setup.cfg allows, one requirement a line.

    python .ci/oldest.py > constraints.txt
    pip install -c constraints.txt '.[dev]'

Made anew from setup.cfg each time, so that the two cannot tell different stories.
"""

import configparser
import re
import sys
from pathlib import Path

SETUP = Path(__file__).parents[1] / "setup.cfg"
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[\w,-]+\])?(>=|==)(?P<version>[\w.]+)(,.*)?")


def oldest(setup: Path) -> dict[str, str]:
    """Read the lowest version of every requirement, those of the extras included."""
    config = configparser.ConfigParser()
    config.read(setup, encoding="utf-8")
    lists = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    lines = [line.partition(";")[0].strip() for text in lists for line in text.splitlines()]
    found = {}
    for line in lines:
        if not line or line.startswith(f"{config['metadata']['name']}["):
            continue
        match = REQUIREMENT.fullmatch(line)
        if match is None:
            msg = f"{setup.name} asks for {line!r}: write name>=version, so that somebody can test the oldest"
            raise ValueError(msg)
        found[match["name"]] = match["version"]
    return found


if __name__ == "__main__":
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in oldest(SETUP).items())
