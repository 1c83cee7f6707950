"""An image folder to features on disk: deepfeat against what one would write otherwise.

Each way runs in a process of its own, is warmed up, and then takes its turn with the others, so that a
slow minute of the machine hits all of them. Networks have random weights; all resize to the same input
size. Beside TensorFlow and deepfeat with the extra openvino, the other ways need torch, torchvision,
timm, onnx, onnxruntime and h5py; a way that is not installed is left out and named.

    python benchmarks/extraction.py IMAGES --copies 48 --output docs/results/extraction.md
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

NETWORKS = ("MobileNetV2", "EfficientNetLite0", "ResNet50", "VGG16")
SIZE = 224
BATCH = 32

#: Packages that each way needs.
WAYS = {
    "deepfeat": ("openvino",),
    "deepfeat bfloat16": ("openvino",),
    "predict": ("tensorflow",),
    "predict, no autotune": ("tensorflow",),
    "predict, area": ("tensorflow",),
    "torch eager": ("torch", "torchvision", "timm"),
    "torch.compile": ("torch", "torchvision", "timm"),
    "onnxruntime": ("torch", "torchvision", "timm", "onnx", "onnxruntime"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("images", type=Path, help="folder of JPEGs")
    parser.add_argument("--copies", type=int, default=1, help="of each image, each a file of another content")
    parser.add_argument("--limit", type=int, help="images to take")
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "photos")
        count = multiply(arguments.images, folder / "all", arguments.copies, arguments.limit)
        shape = Image.open(next((folder / "all").iterdir())).size
        lines = [f"{count} JPEGs of {shape[0]} x {shape[1]} pixels, {os.cpu_count()} cores, {processor()}", ""]
        lines += table(arguments, folder, count)
    text = "\n".join(lines)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


def multiply(source, target, copies, limit):
    """Write each JPEG several times, with another comment at its end, so that no two files are equal."""
    target.mkdir(parents=True)
    files = sorted(source.glob("*.jpg"))[:limit]
    for copy in range(copies):
        for file in files:
            (target / f"{file.stem}_{copy}.jpg").write_bytes(file.read_bytes() + f"{copy}".encode())
    return copies * len(files)


def table(arguments, folder, count):
    missing = {w: [p for p in WAYS[w] if importlib.util.find_spec(p) is None] for w in arguments.ways}
    ways = [way for way in arguments.ways if not missing[way]]
    lines = [
        f"Images per second, median of {arguments.rounds} rounds; in brackets deepfeat's speed over it.",
        "",
        f"| network | {' | '.join(ways)} | network busy |",
        f"| --- |{' --- |' * (len(ways) + 1)}",
    ]
    for network in arguments.networks:
        seconds, busy = measure(network, ways, folder, arguments.rounds)
        rates = {way: count / statistics.median(values) for way, values in seconds.items()}
        cells = [f"{rates[way]:.1f} ({rates[ways[0]] / rates[way]:.2f})" for way in ways]
        lines.append(f"| {network} | {' | '.join(cells)} | {busy} |")
        print(lines[-1], flush=True)
    return lines + [f"\nLeft out: {way}, without {', '.join(m)}." for way, m in missing.items() if m]


def measure(network, ways, folder, rounds):
    """Seconds of each way in each round, in turns."""
    context = multiprocessing.get_context("spawn")
    workers = {}
    for way in ways:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, way, network, folder), daemon=True)
        process.start()
        theirs.close()  # or the end of the process would not be seen
        ours.recv()
        workers[way] = process, ours
    seconds, busy = {way: [] for way in ways}, ""
    for _ in range(rounds):
        for way, (_, pipe) in workers.items():
            pipe.send("go")
            taken, said = pipe.recv()
            seconds[way].append(taken)
            busy = said if way == "deepfeat" else busy
    for process, pipe in workers.values():
        pipe.send(None)
        process.join()
    return seconds, busy


def work(pipe, way, network, folder):
    run = START[way](network)
    files = sorted((folder / "all").iterdir())
    with tempfile.TemporaryDirectory() as scratch:
        warm = Path(scratch, "warm", "all")
        warm.mkdir(parents=True)
        for file in files[: 4 * BATCH]:
            (warm / file.name).symlink_to(file)
        run(warm.parent, Path(scratch, "warm.h5"))
        pipe.send("ready")
        turn = 0
        while pipe.recv() is not None:
            started = time.perf_counter()
            said = run(folder, Path(scratch, f"{turn}.h5"))
            pipe.send((time.perf_counter() - started, said))
            turn += 1


# The ways


def start_deepfeat(precision):
    def start(network):
        import deepfeat

        backbone = deepfeat.Backbone(network, weights=None)
        prefix, said = "networks were busy for ", []
        handler = logging.Handler()
        handler.emit = lambda record: said.append(record.getMessage())
        logging.getLogger("deepfeat").addHandler(handler)
        logging.getLogger("deepfeat").setLevel(logging.INFO)

        def run(folder, output):
            deepfeat.extract(folder, backbone, output, precision=precision, runtime="openvino", progress=False)
            return [line for line in said if line.startswith(prefix)][-1].removeprefix(prefix)

        return run

    return start


def start_predict(*, autotune, interpolation="bilinear"):
    def start(network):
        import keras
        import tensorflow as tf

        import deepfeat
        from deepfeat.runtimes.keras import feature_model

        backbone = deepfeat.Backbone(network, weights=None)
        model = feature_model(backbone, backbone.build())

        def run(folder, output):
            data = keras.utils.image_dataset_from_directory(
                folder,
                labels=None,
                shuffle=False,
                image_size=(SIZE, SIZE),
                batch_size=BATCH,
                interpolation=interpolation,
                verbose=False,
            )
            data = data.map(lambda x: tf.cast(tf.round(x), tf.uint8), num_parallel_calls=os.cpu_count())
            data = data.prefetch(2)
            if not autotune:
                options = tf.data.Options()
                options.autotune.enabled = False
                data = data.with_options(options)
            save(output, model.predict(data, verbose=0))

        return run

    return start


def torch_network(network):
    import timm
    import torch
    import torchvision

    names = {"MobileNetV2": "mobilenet_v2", "ResNet50": "resnet50", "VGG16": "vgg16", "InceptionV3": "inception_v3"}
    if network == "EfficientNetLite0":
        maps = timm.create_model("tf_efficientnet_lite0", num_classes=0, global_pool="")
    else:
        whole = torchvision.models.get_model(names[network], weights=None)
        maps = whole.features if hasattr(whole, "features") else torch.nn.Sequential(*list(whole.children())[:-2])

    class Features(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.maps = maps

        def forward(self, images):
            return self.maps(images / 127.5 - 1).mean(dim=(2, 3))

    return Features().eval()


def batches(folder):
    """Batches of float32 pixels in torch's layout, decoded by Pillow in threads ahead of the network."""

    def load(file):
        return np.asarray(Image.open(file).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))

    files = sorted((folder / "all").iterdir())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ahead = []
        for start in range(0, len(files), BATCH):
            ahead.append([pool.submit(load, file) for file in files[start : start + BATCH]])
            if len(ahead) == 3:
                yield stack(ahead.pop(0))
        for futures in ahead:
            yield stack(futures)


def stack(futures):
    pixels = np.stack([future.result() for future in futures])
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)


def start_torch(*, compiled):
    def start(network):
        import torch

        model = torch_network(network)
        layout = torch.channels_last if compiled else torch.contiguous_format
        if compiled:
            model = torch.compile(model.to(memory_format=layout))

        def run(folder, output):
            with torch.inference_mode():
                parts = []
                for x in batches(folder):
                    filled = np.concatenate([x, np.zeros((BATCH - len(x), *x.shape[1:]), np.float32)])
                    parts.append(model(torch.from_numpy(filled).to(memory_format=layout)).numpy()[: len(x)])
                save(output, np.concatenate(parts))

        return run

    return start


def start_onnxruntime(network):
    import onnxruntime
    import torch

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "network.onnx")
        torch.onnx.export(
            torch_network(network),
            torch.zeros(1, 3, SIZE, SIZE),
            file,
            input_names=["images"],
            dynamic_axes={"images": {0: "n"}},
            dynamo=False,
        )
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(folder, output):
        save(output, np.concatenate([session.run(None, {"images": x})[0] for x in batches(folder)]))

    return run


def save(output, features):
    with h5py.File(output, "w") as file:
        file["features"] = features
        file.flush()


START = {
    "deepfeat": start_deepfeat("float32"),
    "deepfeat bfloat16": start_deepfeat("bfloat16"),
    "predict": start_predict(autotune=True),
    "predict, no autotune": start_predict(autotune=False),
    # The only filter of image_dataset_from_directory that antialiases where a picture becomes smaller.
    "predict, area": start_predict(autotune=False, interpolation="area"),
    "torch eager": start_torch(compiled=False),
    "torch.compile": start_torch(compiled=True),
    "onnxruntime": start_onnxruntime,
}


def processor():
    names = ("deepfeat", "openvino", "tensorflow", "torch", "onnxruntime")
    found = {name: importlib.util.find_spec(name) for name in names}
    versions = {name: importlib.import_module("importlib.metadata").version(name) for name in names[1:] if found[name]}
    return f"{platform.machine()}, Python {platform.python_version()}, {json.dumps(versions)[1:-1]}"


if __name__ == "__main__":
    main()
