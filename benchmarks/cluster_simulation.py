"""Simulate extraction on a cluster of up to 256 workers: when does more of them no longer help?

    python benchmarks/cluster_simulation.py --rate 65 --caller 5000

Discrete events. Each worker computes one shard at a time at its rate, with some noise, and has another one waiting;
what it made stays on it until the caller has taken it; the caller takes one shard at a time. Workers fail after
exponentially distributed times, lose what they have, and come back after a while; what they had is handed out again.
Measured and given on the command line: the rate of a worker, the rate of the caller, the time until a worker is back.
"""

from __future__ import annotations

import argparse
import heapq
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from deepfeat.computation import CHUNK
from deepfeat.distributed import SHARD_BYTES, SHARD_SECONDS

#: Width of the features.
DIM = 1280

#: Numbers of workers.
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

#: Shards with a worker: one at work, and one to go on with.
_PER_WORKER = 2


@dataclass(frozen=True)
class Setting:
    """What a cluster is like.

    Attributes
    ----------
    rate, caller : float
        Images per second of a worker, and that the caller takes and stores.
    mean_life : float
        Seconds until a worker fails, on average.
    restart : float
        Seconds until it is back with its network opened; also at the beginning.
    noise : float
        Standard deviation of the logarithm of a shard's time.
    """

    rate: float
    caller: float
    mean_life: float = np.inf
    restart: float = 10.0
    noise: float = 0.1

    @property
    def shard(self) -> int:
        """Images in a shard."""
        return int(np.clip(SHARD_SECONDS * self.rate, CHUNK, SHARD_BYTES // (4 * DIM)))


@dataclass
class Worker:
    """A worker's shards: those that wait, the one at work, and those that are done."""

    life: int = 0
    is_up: bool = False
    working: int | None = None
    waiting: deque[int] = field(default_factory=deque)
    done: set[int] = field(default_factory=set)

    @property
    def held(self) -> list[int]:
        """All that is lost if it fails."""
        return [*([] if self.working is None else [self.working]), *self.waiting, *self.done]


@dataclass(frozen=True)
class Outcome:
    """Seconds in all, share of the time in which the caller was busy, and share of the shards that were begun again."""

    seconds: float
    caller_busy: float
    repeated: float


class Simulation:
    """One extraction."""

    def __init__(self, setting: Setting, n_workers: int, n_images: int, seed: int = 0) -> None:
        self._setting, self._random = setting, np.random.default_rng(seed)
        self._workers = [Worker() for _ in range(n_workers)]
        self._shards = deque(range(-(-n_images // setting.shard)))
        self._events: list[tuple[float, int, str, int, int, int]] = []
        self._finished: deque[tuple[int, int, int]] = deque()
        self._now = self._busy = 0.0
        self._number = self._begun = 0
        self._is_taking = False

    def run(self) -> Outcome:
        """Play all events until every shard is stored."""
        left = total = len(self._shards)
        for index in range(len(self._workers)):
            self._later(self._setting.restart, "up", index)
        while left:
            self._now, _, kind, index, life, shard = heapq.heappop(self._events)
            worker = self._workers[index]
            if kind == "taken":
                self._is_taking = False
                # Of a worker that failed meanwhile, the shard is computed again.
                if worker.life == life:
                    worker.done.discard(shard)
                    left -= 1
            elif worker.life == life:
                getattr(self, f"_{kind}")(index, worker, shard)
            self._hand_out()
            self._take()
        return Outcome(self._now, self._busy / self._now, (self._begun - total) / total)

    def _later(self, seconds: float, kind: str, index: int, shard: int = -1) -> None:
        self._number += 1
        heapq.heappush(self._events, (self._now + seconds, self._number, kind, index, self._workers[index].life, shard))

    def _up(self, index: int, worker: Worker, _: int) -> None:
        worker.is_up = True
        if np.isfinite(self._setting.mean_life):
            self._later(self._random.exponential(self._setting.mean_life), "failed", index)

    def _failed(self, index: int, worker: Worker, _: int) -> None:
        self._shards.extendleft(worker.held)
        self._workers[index] = Worker(life=worker.life + 1)
        self._later(self._setting.restart, "up", index)

    def _completed(self, index: int, worker: Worker, shard: int) -> None:
        worker.working = None
        worker.done.add(shard)
        self._finished.append((index, worker.life, shard))

    def _hand_out(self) -> None:
        """Fill the workers up, those with the fewest shards first, and have the idle ones start."""
        up = [i for i, worker in enumerate(self._workers) if worker.is_up]
        for index in sorted(up, key=lambda i: len(self._workers[i].held)):
            worker = self._workers[index]
            while self._shards and len(worker.held) < _PER_WORKER:
                worker.waiting.append(self._shards.popleft())
            if worker.working is None and worker.waiting:
                self._start(index, worker)

    def _start(self, index: int, worker: Worker) -> None:
        worker.working = worker.waiting.popleft()
        self._begun += 1
        mean = self._setting.shard / self._setting.rate
        took = mean * self._random.lognormal(-(self._setting.noise**2) / 2, self._setting.noise)
        self._later(took, "completed", index, worker.working)

    def _take(self) -> None:
        """Have the caller begin with the shard that has been done for the longest time."""
        while self._finished and not self._is_taking:
            index, life, shard = self._finished.popleft()
            if self._workers[index].life == life:
                self._is_taking = True
                took = self._setting.shard / self._setting.caller
                self._busy += took
                self._later(took, "taken", index, shard)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, required=True, help="images per second of a worker")
    parser.add_argument("--caller", type=float, required=True, help="images per second that the caller takes")
    parser.add_argument("--restart", type=float, default=10.0, help="seconds until a worker is ready")
    parser.add_argument("--lives", type=float, nargs="+", default=[np.inf, 24.0, 1.0], help="mean hours to a failure")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    arguments = parser.parse_args()
    print("| workers | mean life, h | images/s | of the workers' sum | minutes | caller busy | begun again |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for hours in arguments.lives:
        setting = Setting(arguments.rate, arguments.caller, mean_life=3600 * hours, restart=arguments.restart)
        for count in arguments.counts:
            found = Simulation(setting, count, arguments.images).run()
            rate = arguments.images / found.seconds
            print(
                f"| {count} | {'no failures' if np.isinf(hours) else f'{hours:g}'} | {rate:,.0f} | "
                f"{rate / (count * arguments.rate):.0%} | {found.seconds / 60:,.1f} | {found.caller_busy:.0%} | "
                f"{found.repeated:.2%} |"
            )


if __name__ == "__main__":
    main()
