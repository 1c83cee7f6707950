"""
On a cluster, with a worker that dies
=====================================

With a million images or many machines, the call stays the same and gets a Dask client. Workers decode images and run
the network; this process alone writes the store. When a worker dies, its images go to another.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from distributed import Client

import deepfeat
from deepfeat.demo import write_digits

folder = Path(tempfile.mkdtemp())
write_digits(folder / "digits")
table = deepfeat.read_folder(folder / "digits").groupby("label").head(100)

# %%
# Workers
# -------
#
# A scheduler and two workers, each a process, started as they would be on the machines of a cluster; they find one
# another by a file. With SLURM or Kubernetes, ``dask_jobqueue.SLURMCluster`` or
# ``dask_kubernetes.operator.KubeCluster`` do this, and the rest stays as it is.

meeting = ["--scheduler-file", str(folder / "scheduler.json")]
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
dask = [sys.executable, "-m", "dask"]
processes = [
    subprocess.Popen([*dask, "scheduler", *meeting, "--port", "0", "--dashboard-address", ":0"], **quiet),
    *(subprocess.Popen([*dask, "worker", *meeting, "--nthreads", "1", "--no-nanny"], **quiet) for _ in range(2)),
]
client = Client(scheduler_file=str(folder / "scheduler.json"), timeout=60)
client.wait_for_workers(2)

# %%
# A worker is killed
# ------------------
#
# A thread watches how many rows are stored, as any reader may while a store is written, and kills one of the workers
# when there are some.

cache, watched, killed = folder / "features.h5", [], []


def watch():
    while len(watched) == 0 or watched[-1][1] < len(table):
        time.sleep(0.1)
        try:
            done = int(deepfeat.open_features(cache).blocks["done"].sum())
        except deepfeat.StoreError:
            continue
        watched.append((time.perf_counter(), done))
        if done > 100 and not killed:
            os.kill(processes[-1].pid, signal.SIGKILL)
            killed.append((time.perf_counter(), done))


watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
store = deepfeat.extract(table, "EfficientNetLite0", cache, client=client, progress=False)
watcher.join()
store.blocks[["name", "dim", "done", "missing", "failed"]]

# %%
# What is seen: rows arrive shard by shard, more slowly after the kill, and all of them do.

seconds, done = np.array(watched).T
start = seconds[0]
figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
axes.step(seconds - start, done, color="#1f5a8c", where="post")
axes.axvline(killed[0][0] - start, color="#b3432b", linestyle=":")
axes.annotate(
    "a worker is killed", (killed[0][0] - start, len(table)), (5, -12), textcoords="offset points", color="#b3432b"
)
axes.set(xlabel="seconds", ylabel="images that are stored")
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# The same numbers
# ----------------
#
# Without Dask, on some of the images:

some = table.iloc[::20]
here = deepfeat.extract(some, "EfficientNetLite0", folder / "here.h5", progress=False)
ids = some["image_id"].tolist()
there, near = store.features("EfficientNetLite0", rows=ids), here.features("EfficientNetLite0", rows=ids)
print(f"largest difference {np.abs(there - near).max() / np.abs(near).max():.1e} of the largest feature")

client.close()
for process in processes:
    process.kill()
    process.wait()
