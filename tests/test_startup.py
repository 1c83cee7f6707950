from __future__ import annotations

import subprocess
import sys

WORK = """
import sys
import deepfeat
folder, network = sys.argv[1:]
mine = deepfeat.load_backbone(network, preprocess="tf")
deepfeat.finetune(folder, mine, "skin.keras", head_epochs=1, epochs=0, progress=False)
deepfeat.extract(folder, mine, "keras.h5", runtime="keras", progress=False)
deepfeat.extract(folder, mine, "auto.h5", progress=False)
print("tensorflow" in sys.modules)
"""


def test_networks_start_and_learn_without_noise(example_file, tmp_path):
    command = [sys.executable, "-c", WORK, str(example_file("photos")), str(example_file("mine.keras"))]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("True\n", "")
