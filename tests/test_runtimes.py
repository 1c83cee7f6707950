from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import deepfeat
from deepfeat.backbones import Preprocessing
from deepfeat.backbones.network import Network
from deepfeat.errors import BackboneError, DataWarning, UsageError
from deepfeat.images import VIEWS
from deepfeat.runtimes import keras as keras_runtime
from deepfeat.runtimes import openvino as openvino_runtime
from deepfeat.runtimes import selection, startup
from deepfeat.runtimes.keras import KerasRuntime

BACKEND = keras.backend.backend()
needs_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason=f"Keras is on {BACKEND}")
needs_openvino = pytest.mark.skipif(
    BACKEND != "tensorflow" or not openvino_runtime.is_installed(),
    reason=f"the extra openvino is not installed, or cannot convert from {BACKEND}",
)
needs_bfloat16 = pytest.mark.skipif(
    not openvino_runtime.is_installed() or not openvino_runtime.has_bfloat16(),
    reason="OpenVINO finds no bfloat16 in this processor",
)


def tiny(input_shape):
    inputs = keras.Input(input_shape)
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", name="first")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.ReLU(6.0)(x)
    return keras.Model(inputs, keras.layers.DepthwiseConv2D(3, padding="same", name="second")(x), name="tiny")


def backbone(reproducible=False, build=tiny, **options):
    network = Network(
        "RuntimeTiny",
        build,
        (16, 16),
        Preprocessing(mean=(127.5,) * 3, std=(127.5,) * 3),
        pretrained=build,
        weights_file=lambda shape: None,
        offline=lambda: True,
        reproducible=reproducible,
    )
    return deepfeat.Backbone("RuntimeTiny", weights=None, network=network, **options)


def pictures(count, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def relative(ours, theirs):
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def open_openvino(chosen, precision="float32"):
    return openvino_runtime.open_runtime(chosen, chosen.weights_digest(), chosen.build, precision)


# ------------------------------------------------------------------------------------------------------ OpenVINO


@needs_openvino
@pytest.mark.parametrize(
    "options",
    [{}, {"pooling": "max"}, {"pooling": "gem"}, {"pooling": None}, {"layer": ["first", "second"]}, {"input_size": 21}],
)
def test_openvino_computes_what_keras_does(options):
    chosen = backbone(**options)
    x = pictures(11, chosen.input_size[0])
    ours, theirs = open_openvino(chosen), KerasRuntime(chosen, chosen.build(), 4)
    assert ours.shapes == theirs.shapes
    for a, b in zip(ours(x), theirs(x), strict=True):
        assert a.dtype == np.float32
        assert a.shape == b.shape
        assert relative(a, b) < 2e-5


@needs_openvino
def test_openvino_features_do_not_depend_on_the_batch():
    runtime, x = open_openvino(backbone()), pictures(23)
    (whole,) = runtime(x)
    one_by_one = np.concatenate([runtime(x[i : i + 1])[0] for i in range(len(x))])
    np.testing.assert_allclose(one_by_one, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", ["keras", pytest.param("openvino", marks=needs_openvino)])
def test_threads_that_compute_at_a_time_get_each_its_own_features(engine):
    chosen, batches = backbone(), [pictures(5 + n, seed=n) for n in range(6)]
    runtime = open_openvino(chosen) if engine == "openvino" else KerasRuntime(chosen, chosen.build(), "auto")
    alone = [runtime(x)[0] for x in batches]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(runtime, batches))
    for (features,), expected in zip(together, alone, strict=True):
        assert relative(features, expected) < 2e-5


@needs_openvino
def test_openvino_goes_on_after_images_that_it_cannot_compute():
    runtime, x = open_openvino(backbone()), pictures(9)
    (expected,) = runtime(x)
    with pytest.raises(RuntimeError):
        runtime(x[:, :, :, :2])
    np.testing.assert_array_equal(runtime(x)[0], expected)


@needs_openvino
def test_openvino_computes_in_float32_unless_asked():
    chosen = backbone()
    (reference,) = KerasRuntime(chosen, chosen.build(), 8)(pictures(8))
    assert relative(open_openvino(chosen)(pictures(8))[0], reference) < 2e-5


@needs_openvino
@needs_bfloat16
def test_openvino_computes_in_bfloat16_where_asked():
    chosen = backbone()
    (reference,) = KerasRuntime(chosen, chosen.build(), 8)(pictures(8))
    assert 1e-4 < relative(open_openvino(chosen, "bfloat16")(pictures(8))[0], reference) < 5e-2


@needs_openvino
def test_processor_without_bfloat16(monkeypatch):
    """OpenVINO would compute in float32, and the features would have the other precision in their key."""
    monkeypatch.setattr(openvino_runtime, "has_bfloat16", lambda: False)
    chosen = backbone()
    with pytest.raises(
        BackboneError, match=r"no bfloat16, and OpenVINO would run .* in float32 instead: use precision="
    ):
        open_any(chosen, runtime="openvino", precision="bfloat16")
    with pytest.warns(DataWarning, match="has no bfloat16.*: Keras runs it instead"):
        taken = open_any(chosen, precision="bfloat16")
    (exact,) = KerasRuntime(chosen, chosen.build(), 8)(pictures(8))
    assert taken.engine == BACKEND
    assert 1e-4 < relative(taken(pictures(8))[0], exact) < 5e-2


@needs_openvino
@pytest.mark.parametrize("reproducible", [True, False])
def test_conversion_is_kept_only_where_the_name_decides_the_network(conversions, monkeypatch, reproducible, tmp_path):
    monkeypatch.setenv("DEEPFEAT_CACHE", str(tmp_path / "kept"))
    chosen = backbone(reproducible)
    first = open_openvino(chosen)(pictures(3))
    assert (tmp_path / "kept").exists() == reproducible

    def forbidden():
        raise AssertionError("the network was built")

    if reproducible:
        again = openvino_runtime.open_runtime(chosen, chosen.weights_digest(), forbidden, "float32")
        np.testing.assert_array_equal(again(pictures(3))[0], first[0])
        assert [file.suffix for file in (tmp_path / "kept").iterdir()] == [".openvino"]


@needs_openvino
@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d[:50] + b"x" + d[51:], lambda d: b""])
def test_damaged_conversion_is_made_again(monkeypatch, tmp_path, damage):
    monkeypatch.setenv("DEEPFEAT_CACHE", str(tmp_path))
    chosen = backbone(reproducible=True)
    first = open_openvino(chosen)(pictures(3))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    np.testing.assert_array_equal(open_openvino(chosen)(pictures(3))[0], first[0])
    # Not of the same bytes: Keras numbers the names in a graph.
    assert openvino_runtime._read(file) is not None


@needs_openvino
@pytest.mark.parametrize("change", [{"pooling": "max"}, {"seed": 1}, {"layer": "first"}, {"input_size": 20}])
def test_other_settings_are_another_conversion(monkeypatch, tmp_path, change):
    monkeypatch.setenv("DEEPFEAT_CACHE", str(tmp_path))
    open_openvino(backbone(reproducible=True))
    open_openvino(backbone(reproducible=True, **change))
    assert len(list(tmp_path.iterdir())) == 2


@needs_openvino
def test_conversion_that_cannot_be_kept_is_said(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEEPFEAT_CACHE", str(tmp_path / "file" / "folder"))
    (features,) = open_openvino(backbone(reproducible=True))(pictures(2))
    assert features.shape == (2, 8)
    assert "could not be kept" in caplog.text


@pytest.mark.parametrize("runtime", ["keras", pytest.param("openvino", marks=needs_openvino)])
def test_file_that_changed_after_its_digest_was_taken_is_refused(monkeypatch, tmp_path, runtime):
    """Its features would be stored, and its conversion kept, as those of the file before."""
    monkeypatch.setenv("DEEPFEAT_CACHE", str(tmp_path / "kept"))
    file = tmp_path / "mine.keras"
    tiny((16, 16, 3)).save(file)
    chosen = deepfeat.load_backbone(file, preprocess="tf")
    digest = chosen.weights_digest()
    tiny((16, 16, 3)).save(file)
    given = {"runtime": runtime, "precision": "float32", "batch_size": 4}
    with pytest.raises(
        BackboneError, match=r"^the file of mine changed meanwhile: try again when nothing writes to it$"
    ):
        selection.open_runtime(chosen, digest, chosen.build, **given)
    assert not (tmp_path / "kept").exists()
    selection.open_runtime(chosen, chosen.weights_digest(), chosen.build, **given)


@needs_openvino
def test_kept_conversion_does_not_outlive_the_code_of_a_layer(monkeypatch, tmp_path):
    monkeypatch.setenv("DEEPFEAT_CACHE", str(tmp_path / "kept"))
    chosen = backbone(build=holding)
    chosen.build().save(tmp_path / "mine.keras")
    first, second = (open_openvino(deepfeat.load_backbone(tmp_path / "mine.keras", preprocess="tf")) for _ in range(2))
    before = first(pictures(2))[0]
    np.testing.assert_allclose(second(pictures(2))[0], before, rtol=1e-4)
    monkeypatch.setattr(Block, "call", lambda self, x: 2 * self.inner(x))
    edited = open_openvino(deepfeat.load_backbone(tmp_path / "mine.keras", preprocess="tf"))
    np.testing.assert_allclose(edited(pictures(2))[0], 2 * before, rtol=1e-4)


@needs_openvino
def test_warm_start_needs_neither_keras_nor_tensorflow(tmp_path, conversions):
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.fromarray(pictures(1, 64, number)[0]).save(tmp_path / "photos" / f"{number}.png")
    code = (
        "import sys, deepfeat; "
        "b = deepfeat.Backbone('MobileNetV2', weights=None, input_size=64); "
        "s = deepfeat.extract(sys.argv[1], b, sys.argv[2], progress=False, runtime='openvino'); "
        "print(s.features('MobileNetV2').shape, sorted({'keras', 'tensorflow'} & set(sys.modules)))"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "photos"), str(tmp_path / f"{run}.h5")],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for run in range(2)
    ]
    assert said == ["(3, 1280) ['keras', 'tensorflow']\n", "(3, 1280) []\n"]


# ----------------------------------------------------------------------------------------------------- selection


def open_any(chosen, **options):
    given = {"runtime": "auto", "precision": "auto", "batch_size": "auto", **options}
    return selection.open_runtime(chosen, chosen.weights_digest(), chosen.build, **given)


@needs_openvino
def test_auto_takes_openvino_in_float32_and_says_so(caplog):
    with caplog.at_level("INFO", "deepfeat"):
        assert open_any(backbone()).engine == "openvino"
    assert "RuntimeTiny: OpenVINO, float32" in caplog.text


def test_auto_takes_keras_where_openvino_is_not_installed(monkeypatch, caplog):
    monkeypatch.setattr(openvino_runtime, "is_installed", lambda: False)
    with caplog.at_level("INFO", "deepfeat"):
        assert open_any(backbone()).engine == BACKEND
    assert "RuntimeTiny: Keras, float32" in caplog.text
    with pytest.raises(UsageError, match=r"pip install 'deepfeat\[openvino\]'"):
        open_any(backbone(), runtime="openvino")


def test_auto_takes_a_gpu_in_bfloat16(monkeypatch, tmp_path):
    monkeypatch.setattr(selection, "_GPU_FILES", [str(tmp_path)])
    monkeypatch.setattr(keras_runtime, "count_gpus", lambda: 1)
    assert selection.resolve("auto", "auto") == ("keras", "bfloat16")
    assert selection.resolve("keras", "float32") == ("keras", "float32")
    monkeypatch.setattr(keras_runtime, "count_gpus", lambda: 0)
    assert selection.resolve("keras", "auto") == ("keras", "float32")


def test_auto_takes_keras_where_its_backend_is_none_that_openvino_converts(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert selection.resolve("auto", "auto") == ("keras", "float32")
    monkeypatch.setattr(KerasRuntime, "engine", "jax")
    with pytest.raises(BackboneError, match="while Keras is on jax: set KERAS_BACKEND=tensorflow, or use"):
        open_openvino(backbone())


def test_number_of_gpus_can_be_asked_under_every_backend():
    assert keras_runtime.count_gpus() == 0 or any(Path(name).exists() for name in selection._GPU_FILES)


@needs_openvino
def test_network_that_openvino_gets_wrong_is_run_by_keras(monkeypatch):
    monkeypatch.setattr(openvino_runtime, "TOLERANCE", -1.0)
    with pytest.warns(DataWarning, match=r"RuntimeTiny with a difference of .* from Keras: Keras runs it instead"):
        assert open_any(backbone()).engine == BACKEND
    with pytest.raises(BackboneError, match="with a difference of"):
        open_any(backbone(), runtime="openvino")


def test_fault_that_keras_has_too_is_no_reason_to_take_it(recwarn):
    with pytest.raises(BackboneError, match="has no layer 'nope'"):
        open_any(backbone(layer="nope"))
    assert not [warning for warning in recwarn if "Keras runs it instead" in str(warning.message)]


def test_nan_of_any_layer_is_a_difference():
    numbers, nan = np.ones((2, 3), np.float32), np.full((2, 3), np.nan, np.float32)
    assert openvino_runtime._difference([numbers, numbers], [numbers, numbers]) == 0
    assert np.isnan(openvino_runtime._difference([numbers, nan], [numbers, numbers]))


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on the size of files stands for a full disk")
def test_full_disk_leaves_no_part_of_a_conversion(tmp_path, caplog):
    code = (
        "import resource, signal, sys; from pathlib import Path; from deepfeat.runtimes import openvino; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); "
        "openvino._keep(Path(sys.argv[1]) / 'a.openvino', b'model', bytes(5000))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "kept")], capture_output=True, text=True)
    assert run.returncode == 0
    assert "the conversion could not be kept in" in run.stderr
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "onnx"}, "runtime is 'onnx': use one of 'auto', 'keras', 'openvino'"),
        ({"precision": "int8"}, "precision is 'int8': use one of 'auto', 'float32', 'bfloat16'"),
    ],
)
def test_unknown_runtime_or_precision(options, message):
    with pytest.raises(UsageError, match=message):
        open_any(backbone(), **options)


# --------------------------------------------------------------------------------------------------------- Keras


def test_auto_batch_size_gives_the_same_features_while_it_is_sought():
    chosen = backbone()
    model = chosen.build()
    x = pictures(200)
    tuned = KerasRuntime(chosen, model)
    found = np.concatenate([tuned(x[i : i + 50])[0] for i in range(0, 200, 50)])
    assert tuned.batch_size in keras_runtime.BATCH_SIZES
    assert relative(found, KerasRuntime(chosen, model, 1)(x)[0]) < 1e-5


def test_auto_batch_size_is_the_last_that_was_faster():
    runtime = KerasRuntime(backbone(), backbone().build())
    seconds = {8: 8.0, 16: 8.0, 32: 16.0}
    while runtime._untried:
        runtime._tune(runtime.batch_size, seconds[runtime.batch_size])
    assert runtime.batch_size == 16


def test_auto_batch_size_stays_within_the_memory(monkeypatch):
    monkeypatch.setattr(keras_runtime, "_free_memory", lambda: 0.0)
    runtime = KerasRuntime(backbone(), backbone().build())
    runtime(pictures(60))
    assert runtime.batch_size == keras_runtime.BATCH_SIZES[0]


class ResourceExhaustedError(Exception):
    """As TensorFlow's."""


@pytest.mark.parametrize("error", [ResourceExhaustedError(), MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: oom")])
def test_batch_size_is_halved_when_memory_is_exhausted(monkeypatch, error, caplog):
    chosen = backbone()
    model = chosen.build()
    runtime, x = KerasRuntime(chosen, model, 32), pictures(40)
    original = runtime._forward

    def small_only(batch):
        if len(batch) > 8:
            raise error
        return original(batch)

    monkeypatch.setattr(runtime, "_forward", small_only)
    (features,) = runtime(x)
    assert runtime.batch_size == 8
    assert "out of memory, going on with batches of 8" in caplog.text
    assert relative(features, KerasRuntime(chosen, model, 4)(x)[0]) < 1e-5


def test_auto_batch_size_is_no_larger_than_what_comes():
    runtime = KerasRuntime(backbone(), backbone().build())
    runtime._best, runtime.batch_size = (1.0, 8), 16
    assert len(runtime(pictures(12))[0]) == 12
    assert runtime.batch_size == 8


def test_image_that_never_fits_is_one_sentence(monkeypatch):
    runtime = KerasRuntime(backbone(), backbone().build(), 4)

    def never(batch):
        raise MemoryError

    monkeypatch.setattr(runtime, "_forward", never)
    with pytest.raises(BackboneError, match="RuntimeTiny does not fit into memory, not even with one image"):
        runtime(pictures(3))


def test_other_errors_are_passed_on(monkeypatch):
    runtime = KerasRuntime(backbone(), backbone().build(), 4)

    def broken(batch):
        raise ValueError("broken")

    monkeypatch.setattr(runtime, "_forward", broken)
    with pytest.raises(ValueError, match="broken"):
        runtime(pictures(3))


def test_keras_in_bfloat16_is_near_float32_and_not_equal():
    chosen = backbone()
    model = chosen.build()
    (exact,), (mixed,) = (KerasRuntime(chosen, model, 8, p)(pictures(8)) for p in ("float32", "bfloat16"))
    assert mixed.dtype == np.float32
    assert 0 < relative(mixed, exact) < 5e-2


@keras.saving.register_keras_serializable("runtimes")
class Block(keras.layers.Layer):
    """A layer of one's own that holds another, and does not hand its type on."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = keras.layers.Conv2D(4, 3)

    def call(self, x):
        return self.inner(x)


def holding(shape):
    """A network that holds a network, and a layer that holds a layer."""
    inputs = keras.Input(shape)
    return keras.Model(inputs, Block()(tiny(shape)(inputs)), name="holding")


def test_bfloat16_reaches_layers_inside_networks_and_layers():
    seen = {layer.name: layer.compute_dtype for layer in keras_runtime.as_mixed(holding((16, 16, 3)))._flatten_layers()}
    assert {seen[name] for name in seen if name in ("first", "second") or name.startswith(("block", "conv2d"))} == {
        "bfloat16"
    }
    chosen = backbone(build=holding)
    (exact,), (mixed,) = (KerasRuntime(chosen, chosen.build(), 8, p)(pictures(8)) for p in ("float32", "bfloat16"))
    assert 1e-4 < relative(mixed, exact) < 5e-2


@pytest.fixture
def keras_defaults():
    """Put Keras' defaults back."""
    policy, floatx = keras.config.dtype_policy(), keras.config.floatx()
    yield
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)


def set_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")


def set_floatx():
    keras.config.set_floatx("bfloat16")
    keras.config.set_dtype_policy("bfloat16")


@pytest.mark.parametrize("change", [set_policy, set_floatx])
@pytest.mark.parametrize("as_file", [False, True])
def test_networks_are_float32_whatever_keras_is_set_to(keras_defaults, tmp_path, change, as_file):
    """Their key says float32."""
    chosen = backbone()
    if as_file:
        chosen.build().save(tmp_path / "mine.keras")
        chosen = deepfeat.load_backbone(tmp_path / "mine.keras", preprocess="tf")
    (expected,) = KerasRuntime(chosen, chosen.build(), 8)(pictures(8))
    change()
    before = keras.config.dtype_policy().name, keras.config.floatx()
    model = chosen.build()
    assert (keras.config.dtype_policy().name, keras.config.floatx()) == before
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    assert relative(KerasRuntime(chosen, model, 8)(pictures(8))[0], expected) < 1e-6


def test_keras_is_set_to_float32_until_the_last_thread_is_done(keras_defaults):
    """None waits for another: what builds a network may have others build networks."""
    keras.config.set_floatx("bfloat16")
    entered, leave, seen = threading.Event(), threading.Event(), []

    def enter():
        with startup.single_precision():
            entered.set()
            leave.wait(10)
            seen.append(keras.config.floatx())

    thread = threading.Thread(target=enter)
    with startup.single_precision():
        thread.start()
        assert entered.wait(10)
    assert keras.config.floatx() == "float32"
    leave.set()
    thread.join()
    assert seen == ["float32"]
    assert keras.config.floatx() == "bfloat16"


@keras.saving.register_keras_serializable()
class Counting(keras.layers.Layer):
    """Counts how often Python runs it: once for each time that a model is traced."""

    calls = 0

    def call(self, x):
        Counting.calls += 1
        return x


@needs_tensorflow
def test_network_is_traced_once_whatever_the_batch():
    def build(shape):
        inputs = keras.Input(shape)
        return keras.Model(inputs, Counting()(keras.layers.Conv2D(4, 3)(inputs)))

    chosen = backbone(build=build)
    runtime = KerasRuntime(chosen, chosen.build())
    before = Counting.calls
    for count in (1, 7, 8, 100, 33):
        assert runtime(pictures(count))[0].shape == (count, 4)
    assert runtime.batch_size != keras_runtime.BATCH_SIZES[0] or not runtime._untried
    assert Counting.calls == before


@needs_tensorflow
@pytest.mark.parametrize("limit", [None, 100])
def test_weights_become_constants_unless_they_are_too_many(monkeypatch, limit):
    from deepfeat.runtimes import tensorflow

    chosen, x = backbone(), pictures(3)
    features = keras_runtime.feature_model(chosen, chosen.build())
    if limit:
        monkeypatch.setattr(tensorflow, "_LARGEST", limit)
    frozen = tensorflow.freeze(features)
    assert bool(frozen.captured_inputs) == bool(limit)
    assert relative(np.asarray(frozen(x)[0]), features.predict_on_batch(x)) < 1e-5


DEVICES = """
import sys, keras, numpy as np
sys.path.insert(0, sys.argv[1])
from test_runtimes import KerasRuntime, backbone, pictures
chosen = backbone(layer=["first", "second"])
features = {}
for size in (1, 4, 5):
    for layer, values in enumerate(KerasRuntime(chosen, chosen.build(), size)(pictures(11))):
        features[f"{size}, layer {layer}"] = values
np.savez(sys.argv[2], **features)
print(len(keras.distribution.list_devices()))
"""


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed: several devices NOT tested")
def test_several_devices_compute_what_one_does(tmp_path):
    file = tmp_path / "features.npz"
    said = subprocess.run(
        [sys.executable, "-c", DEVICES, str(Path(__file__).parent), str(file)],
        env={**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "2\n"
    found = np.load(file)
    chosen = backbone(layer=["first", "second"])
    alone = KerasRuntime(chosen, chosen.build(), 4)(pictures(11))
    assert len(found) == 6
    for name, features in found.items():
        assert relative(features, alone[int(name[-1])]) < 1e-5


def test_collector_has_nothing_to_look_at_when_python_ends():
    code = (
        "import atexit, gc\n"
        "atexit.register(lambda: print(gc.get_freeze_count()))\n"
        "from deepfeat.runtimes.startup import start_keras\n"
        "start_keras()\n"
        "print(gc.isenabled(), gc.get_freeze_count())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = done.stdout.splitlines()
    assert before == "True 0"
    assert int(after) > 100_000


def test_collector_is_paused_and_goes_on():
    assert gc.isenabled()
    with startup.paused_collection(), startup.paused_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError, match="inside"), startup.paused_collection():
        raise ValueError("inside")
    assert gc.isenabled()


# ---------------------------------------------------------------------------- one decoding for many, and views


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(7):
        Image.fromarray(pictures(1, 40, number)[0][:30]).save(folder / f"{number}.png")
    return folder


@needs_openvino
def test_openvino_is_imported_without_its_telemetry(tmp_path):
    """It would send a message, and leave a number that names the user in the home folder."""
    code = (
        "import importlib.util, sys\n"
        "from deepfeat.runtimes.startup import load_openvino\n"
        "assert load_openvino() is load_openvino() is sys.modules['openvino']\n"
        "assert not any(name.startswith('openvino_telemetry') for name in sys.modules)\n"
        "assert importlib.util.find_spec('openvino_telemetry')"
    )
    home = {**os.environ, "HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=home)
    assert not list(tmp_path.iterdir())


def test_backbones_of_one_input_size_share_one_decoding(photos, tmp_path, monkeypatch):
    decoded = []
    original = deepfeat.images.decode_image

    def count(*arguments):
        decoded.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(deepfeat.images, "decode_image", count)
    chosen = [backbone(pooling="avg"), backbone(pooling="max"), backbone(pooling="max", input_size=24)]
    store = deepfeat.extract(photos, chosen, tmp_path / "f.h5", progress=False)
    assert len(decoded) == 2 * 7
    for one in chosen:
        alone = deepfeat.extract(photos, one, tmp_path / f"{one.pooling}{one.input_size}.h5", progress=False)
        key = alone.structure.blocks[0].key
        np.testing.assert_allclose(store.features(key), alone.features(key), rtol=1e-5)


def test_backbone_that_has_an_image_already_does_not_compute_it_again(photos, tmp_path, caplog):
    cache = tmp_path / "f.h5"
    deepfeat.extract(photos, backbone(), cache, progress=False)
    Image.fromarray(pictures(1, 40, 99)[0]).save(photos / "new.png")
    with caplog.at_level("INFO", "deepfeat"):
        store = deepfeat.extract(photos, [backbone(), backbone(pooling="max")], cache, progress=False)
    assert "RuntimeTiny: 7 done before, 1 computed" in caplog.text
    assert "RuntimeTiny: 8 computed" in caplog.text
    assert store.blocks["done"].tolist() == [8, 8]


def test_views_are_the_features_of_the_views_pixels(photos, tmp_path):
    cache = tmp_path / "f.h5"
    store = deepfeat.extract(photos, backbone(), cache, views=["original", "hflip", "rot90"], progress=False)
    assert store.blocks["name"].tolist() == ["RuntimeTiny", "RuntimeTiny@hflip", "RuntimeTiny@rot90"]
    for view, transpose in (("hflip", Image.Transpose.FLIP_LEFT_RIGHT), ("rot90", Image.Transpose.ROTATE_90)):
        shown = tmp_path / view
        shown.mkdir()
        for number in range(7):
            Image.open(photos / f"{number}.png").transpose(transpose).save(shown / f"{number}.png")
        expected = deepfeat.extract(shown, backbone(), tmp_path / f"{view}.h5", progress=False)
        np.testing.assert_allclose(
            store.features(f"RuntimeTiny@{view}"), expected.features("RuntimeTiny"), rtol=1e-5, atol=1e-6
        )


def test_view_is_added_to_what_is_there(photos, tmp_path):
    cache = tmp_path / "f.h5"
    first = deepfeat.extract(photos, backbone(), cache, progress=False).features("RuntimeTiny").copy()
    store = deepfeat.extract(photos, backbone(), cache, views=VIEWS, progress=False)
    np.testing.assert_allclose(store.features("RuntimeTiny"), first, rtol=1e-5)
    assert len(store.blocks) == len(VIEWS)


def test_layers_and_views_keep_apart(photos, tmp_path):
    both = backbone(layer=["first", "second"], pooling="flatten")
    store = deepfeat.extract(photos, both, tmp_path / "f.h5", views=["original", "vflip"], progress=False)
    assert set(store.blocks["name"]) == {f"RuntimeTiny:{x}{v}" for x in ("first", "second") for v in ("", "@vflip")}
    for layer in ("first", "second"):
        alone = deepfeat.extract(
            photos, backbone(layer=layer, pooling="flatten"), tmp_path / f"{layer}.h5", views="vflip", progress=False
        )
        name = f"RuntimeTiny:{layer}@vflip"
        np.testing.assert_allclose(store.features(name), alone.features(name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("views", "message"), [("mirror", "views is 'mirror': use one of 'original'"), ([], "the list of views is empty")]
)
def test_wrong_views(photos, tmp_path, views, message):
    with pytest.raises(UsageError, match=message):
        deepfeat.extract(photos, backbone(), tmp_path / "f.h5", views=views)


@needs_openvino
def test_precisions_never_mix(photos, tmp_path):
    cache = tmp_path / "f.h5"
    deepfeat.extract(photos, backbone(), cache, progress=False, runtime="openvino")
    store = deepfeat.extract(photos, backbone(), cache, progress=False, runtime="keras", precision="bfloat16")
    assert sorted(spec["precision"] for spec in store.blocks["spec"]) == ["bfloat16", "float32"]


def test_start_is_quiet_unless_it_fails(capfd):
    with startup.quiet_start():
        os.write(2, b"compiler flags")
    with pytest.raises(ImportError), startup.quiet_start():
        raise ImportError(os.write(2, b"why it failed"))
    os.write(2, b", and what came later")
    assert capfd.readouterr().err == "why it failed, and what came later"


def test_start_without_a_standard_error(monkeypatch):
    def fail(number):
        raise OSError

    monkeypatch.setattr(os, "dup", fail)
    with startup.quiet_start():
        started = True
    assert started


@pytest.mark.parametrize(
    ("system", "variables", "expected"),
    [
        ("linux", {}, "home/.cache/deepfeat"),
        ("linux", {"XDG_CACHE_HOME": "caches"}, "caches/deepfeat"),
        ("linux", {"DEEPFEAT_CACHE": "here"}, "here"),
        ("darwin", {}, "home/Library/Caches/deepfeat"),
        ("win32", {}, "home/AppData/Local/deepfeat"),
        ("win32", {"LOCALAPPDATA": "local"}, "local/deepfeat"),
    ],
)
def test_conversions_are_kept_where_the_system_keeps_caches(system, variables, expected, monkeypatch):
    for name in ("DEEPFEAT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(Path, "home", lambda: Path("home"))
    assert openvino_runtime.conversions_folder() == Path(expected)


@needs_openvino
def test_network_that_openvino_cannot_convert_is_one_sentence(monkeypatch):
    def fail(frozen):
        raise RuntimeError("no such operation")

    monkeypatch.setattr(openvino_runtime, "_read_graph", fail)
    with pytest.raises(BackboneError, match="OpenVINO cannot convert RuntimeTiny: no such operation"):
        openvino_runtime.open_runtime(backbone(), "sha256:0", lambda: tiny((16, 16, 3)), "float32")
