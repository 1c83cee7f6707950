"""One writer at a time, by a file beside the store that names its owner.

The lock is made by exclusive creation, which works on every file system,
network drives included. Its owner touches it every few seconds; it is free
when its owner is known to be dead (same machine, no such process) or has not touched
it for long (another machine or container, or an owner that cannot be read). What time it
is, the file system says.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from deepfeat.errors import LockedError, StoreError

#: Seconds between two signs of life, and seconds of silence after which an owner that cannot be seen counts as dead.
HEARTBEAT, SILENCE = 10.0, 120.0


def lock_path(path: Path) -> Path:
    """Where the lock of a store is: beside the file itself, whatever links lead to it."""
    file = Path(os.path.realpath(path))
    return file.with_name(f"{file.name}.lock")


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes
    ----------
    host : str
    pid : int
    started : str
        When the process started, in the words of its system: process ids are used again.
    since : str
        When the lock was taken, UTC.
    token : str
        Of this very lock.
    namespace : str
        In which the process id counts: containers on one host have their own.
    """

    host: str
    pid: int
    started: str
    since: str
    token: str
    namespace: str = ""

    def is_dead(self) -> bool | None:
        """Whether the process is gone; None where that cannot be seen from here."""
        here = (socket.gethostname(), _process_namespace())
        if (self.host, self.namespace) != here or sys.platform == "win32":
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return _process_start(self.pid) != self.started


class Lock:
    """Holds the lock of a store; a context manager.

    Parameters
    ----------
    path : pathlib.Path
        The store.

    Attributes
    ----------
    inherited : bool
        Whether a dead owner's lock was found, so that its work ended unclean.

    Raises
    ------
    LockedError
        If another process that lives, or may live, holds it.
    """

    def __init__(self, path: Path) -> None:
        self._path = lock_path(path)
        self._store = path
        since, token = datetime.now(UTC).isoformat(timespec="seconds"), uuid.uuid4().hex
        started, namespace = _process_start(os.getpid()), _process_namespace()
        self._owner = Owner(socket.gethostname(), os.getpid(), started, since, token, namespace)
        self.inherited = False
        self._stop = threading.Event()

    def __enter__(self) -> Lock:
        while not self._take():
            owner = read_owner(self._path)
            if _is_abandoned(self._path, owner):
                self._remove(owner)
                self.inherited = True
            elif os.path.lexists(self._path):
                raise LockedError(self._describe(owner))
        self._heart = threading.Thread(target=self._beat, name="deepfeat lock", daemon=True)
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._heart.join()
        if read_owner(self._path) == self._owner:
            self._path.unlink(missing_ok=True)

    def _take(self) -> bool:
        """Make the lock whole under a name of its own, and link it to its place if that is free."""
        draft = self._path.with_name(f"{self._path.name}.{self._owner.token}")
        try:
            draft.write_text(json.dumps(asdict(self._owner)), encoding="utf-8")
            return _create_exclusively(draft, self._path)
        except FileExistsError:
            return False
        except OSError as error:
            msg = f"{self._store} cannot be locked for writing: {error.strerror or error}"
            raise StoreError(msg) from error
        finally:
            draft.unlink(missing_ok=True)

    def _describe(self, owner: Owner | None) -> str:
        who = f"process {owner.pid} on {owner.host} since {owner.since}" if owner else "a process that it does not name"
        return f"{self._store} is being written by {who}: wait for it; if you know that it is dead, remove {self._path}"

    def _remove(self, owner: Owner | None) -> None:
        """Remove a dead owner's lock; one that somebody else took meanwhile is put back."""
        aside = self._path.with_name(f"{self._path.name}.{self._owner.token}.dead")
        try:
            os.rename(self._path, aside)
        except FileNotFoundError:
            return
        if read_owner(aside) != owner or not _is_abandoned(aside, owner):
            with contextlib.suppress(FileExistsError):
                _create_exclusively(aside, self._path)
        aside.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(self._path)


def read_owner(path: Path) -> Owner | None:
    """Read who holds a lock; None where there is none, or nobody can tell whose it is."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _is_abandoned(path: Path, owner: Owner | None) -> bool:
    """Whether a lock's owner is dead; without a word of that, whether the lock was silent for long."""
    dead = owner.is_dead() if owner else None
    return _age(path) > SILENCE if dead is None else dead


def _create_exclusively(draft: Path, path: Path) -> bool:
    """Give a complete file a second name, unless that exists."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:
        # File systems without hard links; the content follows the creation there, and until then nobody can read it.
        with open(path, "x", encoding="utf-8") as file:
            file.write(draft.read_text(encoding="utf-8"))
    return True


def _age(path: Path) -> float:
    """Seconds since a file was touched, by the clock of its file system."""
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}.now")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except OSError:
        return time.time() - path.stat().st_mtime if path.exists() else 0.0
    finally:
        probe.unlink(missing_ok=True)


def _process_start(pid: int) -> str:
    """When a process started, in clock ticks since boot, with the boot's id; empty where the system does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # pragma: no cover - not on Linux
        return ""
    return f"{boot} {stat.rsplit(')', 1)[1].split()[19]}"


def _process_namespace() -> str:
    """In which namespace this process has its id; empty where the system does not say."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:  # pragma: no cover - not on Linux
        return ""
