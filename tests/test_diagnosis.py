from __future__ import annotations

import builtins
import json
import shutil
from collections import namedtuple

import pytest

from deepfeat import diagnosis, resizing
from deepfeat.cli import main
from deepfeat.diagnosis import diagnose


def by_topic(tmp_path, **options):
    return {finding.topic: finding for finding in diagnose(tmp_path / "features.h5", **options)}


def test_healthy_machine_has_no_fault(tmp_path):
    found = by_topic(tmp_path, n_images=1000)
    assert not [finding for finding in found.values() if finding.is_fault]
    assert found["keras"].found[0].isdigit()
    assert found["backend of Keras"].found in ("tensorflow", "jax", "torch")
    assert str(tmp_path) in found["feature store"].found
    assert any(topic.startswith("BLAS of ") for topic in found)


def test_missing_packages_are_named_with_what_installs_them(tmp_path, monkeypatch):
    monkeypatch.setattr(diagnosis, "PACKAGES", ("numpy", "no-such-package"))
    monkeypatch.setattr(diagnosis, "EXTRAS", {"fast": ("no_such_module", "everything at once")})
    found = by_topic(tmp_path)
    assert found["no-such-package"].is_fault
    assert found["no-such-package"].advice == "run `pip install no-such-package`"
    assert not found["fast"].is_fault
    assert found["fast"].advice == "run `pip install 'deepfeat[fast]'`: everything at once"


@pytest.mark.parametrize(("has_cykooz", "name", "advice"), [(True, "cykooz-resizer", ""), (False, "pillow", "faster")])
def test_what_resizes_is_named(tmp_path, monkeypatch, has_cykooz, name, advice):
    if has_cykooz:
        pytest.importorskip("cykooz_resizer", reason="no cykooz-resizer for this platform: its finding is NOT tested")
    monkeypatch.setattr(resizing, "_has_cykooz", lambda: has_cykooz)
    found = by_topic(tmp_path)["resizing"]
    assert found.found.split()[0] == name
    assert advice in found.advice
    assert not found.is_fault


def test_backend_that_does_not_start_is_a_fault(tmp_path, monkeypatch):
    usual = builtins.__import__

    def broken(name, *args, **options):
        if name == "deepfeat.runtimes.keras":
            raise ImportError("libcuda.so is missing\nand more")
        return usual(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", broken)
    found = by_topic(tmp_path)["backend of Keras"]
    assert found.is_fault
    assert found.found == "does not start: libcuda.so is missing"


@pytest.mark.parametrize(
    ("flags", "shown"),
    [({"avx2"}, "not native"), ({"avx512_bf16", "avx2"}, "native (avx512_bf16)"), ({"amx_bf16"}, "native (amx_bf16)")],
)
def test_bfloat16_of_the_processor(tmp_path, monkeypatch, flags, shown):
    monkeypatch.setattr(diagnosis, "_flags", lambda: flags)
    assert by_topic(tmp_path)["bfloat16"].found.startswith(shown)


def test_processor_that_no_system_describes(tmp_path, monkeypatch):
    monkeypatch.setattr(diagnosis, "CPUINFO", tmp_path / "missing")
    assert "bfloat16" not in by_topic(tmp_path)


def test_disk_that_is_too_small_is_a_fault(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 5_000_000_000))
    assert not by_topic(tmp_path, n_images=500_000, dim=2048)["free disk"].is_fault
    found = by_topic(tmp_path, n_images=1_000_000, dim=2048)["free disk"]
    assert found.is_fault
    assert found.found.startswith("5.0 GB; 1,000,000 images of 2,048 values take 8.")


def test_estimate_of_the_size_is_near_the_truth(tmp_path, build_store, make_spec, make_table):
    import numpy as np

    features = np.zeros((3000, 256), np.float32)
    store = build_store(tmp_path / "f.h5", make_table(3000), [(make_spec(), features)])
    assert store.path.stat().st_size == pytest.approx(3000 * diagnosis.bytes_per_image(256), rel=0.25)


def test_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    found = by_topic(tmp_path)["feature store"]
    assert found.is_fault
    assert found.advice == f"give {tmp_path} write permission"


def test_command_line(tmp_path, capsys, monkeypatch):
    assert main(["doctor", "--cache", str(tmp_path / "f.h5"), "--n-images", "100", "--json"]) == 0
    topics = list(json.loads(capsys.readouterr().out))
    assert topics[0] == "python"
    assert topics[-1] == "free disk"
    monkeypatch.setattr(diagnosis, "PACKAGES", ("no-such-package",))
    assert main(["doctor", "--cache", str(tmp_path / "f.h5")]) == 1
    captured = capsys.readouterr()
    assert "! no-such-package" in captured.out
    assert "1 fault(s) to be mended: no-such-package" in captured.err
