"""The run folder: its names, its lock, its summary, and the signals that end a run early.

Everything a run produced is found from this folder alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

from gantrain import checkpoints
from gantrain.errors import BusyError, CheckpointError, StorageError
from gantrain.files import write_whole


class Interrupted(BaseException):
    """A signal ended the run after the current step; `exit_code` is 128 + its number.

    Like KeyboardInterrupt it is no Exception, so that it also ends a sweep, which goes on after a failed run.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class RunFolder:
    """One run's files. Creating the object touches nothing on disk."""

    _held: ClassVar[set[Path]] = set()

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.log = self.path / "train.log"
        self.config = self.path / ".hydra" / "config.yaml"

    @property
    def has_progress(self) -> bool:
        """Whether something was trained here that a new start would lose."""
        return self.read_summary().get("status") == "finished" or bool(checkpoints.listed(self.checkpoints))

    def read_summary(self) -> dict[str, Any]:
        """What `summary.json` holds; empty when there is none. Raises CheckpointError for a damaged one."""
        try:
            summary = json.loads(self.summary.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.summary} cannot be read: {error}") from error
        return summary if isinstance(summary, dict) else {}

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace `summary.json`."""
        write_whole(self.summary, json.dumps(summary, indent=2) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; the lock dies with it. Raises BusyError naming the other holder.

        A process that holds it already may ask again.
        """
        if (here := self.path.resolve()) in self._held:
            yield
            return
        try:
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(f"{self.path} cannot hold a run: {error.strerror}; give another run_dir") from error
        with open(descriptor, "r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = file.read().strip() or "another process"
                raise BusyError(f"{self.path} is in use by {holder}; wait for it, or give another run_dir") from error
            except OSError as error:
                raise StorageError(f"the file system of {self.path} has no locks; give another run_dir") from error
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            self._held.add(here)
            try:
                yield
            finally:
                self._held.remove(here)


def claim(parent: Path, name: str) -> Path:
    """A new folder `parent/name`, or `name-2`, `name-3`, … where that is taken: never shared by two processes."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 10_000):
            path = parent / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path
    except OSError as error:
        raise StorageError(f"the run folder {parent / name} cannot be made: {error.strerror or error}") from error
    raise StorageError(f"{parent} already has 9,999 folders named {name}-…; choose another run_dir")


class StopRequest:
    """Turns SIGINT, SIGTERM and SIGHUP into a wish that the loop looks up between steps.

    A second SIGINT stops at once: files are whole at any moment.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.number: int | None = None

    def __enter__(self) -> StopRequest:
        self.previous = {number: signal.signal(number, self._receive) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def raise_if_asked(self, where: str) -> None:
        """Raise Interrupted when a signal has come; `where` says how to go on."""
        if self.number is not None:
            raise Interrupted(f"stopped by {signal.Signals(self.number).name}; {where}", self.number)
