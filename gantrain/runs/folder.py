"""The run folder: its names, its lock, its summary, and the signals that end a run early.

Everything a run produced is found from this folder alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

from gantrain.console import one_line
from gantrain.errors import BusyError, CheckpointError, StorageError
from gantrain.files import reason, write_whole
from gantrain.runs import checkpoints


class Interrupted(BaseException):
    """The signal `number` ended the run; `exit_code` is 128 + its number.

    Like KeyboardInterrupt it is no Exception, so that it also ends a sweep, which goes on after a failed run.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number, self.exit_code = number, 128 + number


class RunFolder:
    """One run's files. Creating the object touches nothing on disk."""

    _held: ClassVar[dict[Path, int]] = {}  # open locks of this process

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

    def refuse_links(self) -> None:
        """Raise CheckpointError where one of the run's own names is a link or special file, and leads elsewhere."""
        names = (".lock", ".hydra", "checkpoints", "samples", "metrics.jsonl", "summary.json", "train.log")
        for name in (*names, "losses.png", "trajectory.png", "evaluation.json", "neighbours.png", "wandb_id"):
            refuse_link(self.path / name)
            for path in (self.path / name).rglob("*"):
                refuse_link(path)
        refuse_link(self.path / "wandb")  # inside, wandb makes links of its own, and new folders to write to

    def refuse_progress(self) -> None:
        """Raise BusyError where a new start would lose something."""
        if self.has_progress:
            resume = f"gantrain resume {shlex.quote(str(self.path))}"
            raise BusyError(f"{self.path} already holds a run; go on with `{resume}`, or give another run_dir")

    def read_summary(self) -> dict[str, Any]:
        """What `summary.json` holds; empty when there is none. Raises CheckpointError for a damaged one."""
        try:
            summary = json.loads(self.summary.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.summary} cannot be read: {error}") from error
        return summary if isinstance(summary, dict) else {}

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace `summary.json`. Raises StorageError."""
        try:
            write_whole(self.summary, json.dumps(summary, indent=2) + "\n")
        except OSError as error:
            raise StorageError(f"{self.summary} could not be written: {reason(error)}") from error

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
            raise StorageError(f"{self.path} cannot hold a run: {reason(error)}, or give another run_dir") from error
        with open(descriptor, "r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = file.readline(300).strip() or "another process"
                raise BusyError(f"{self.path} is in use by {holder}; wait for it, or give another run_dir") from error
            except OSError as error:
                raise StorageError(f"the file system of {self.path} has no locks; give another run_dir") from error
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            self._held[here] = file.fileno()
            try:
                yield
            finally:
                del self._held[here]

    def refuse_if_replaced(self) -> None:
        """Raise StorageError where the folder that this process holds is no longer the one at its path."""
        held = self._held.get(self.path.resolve())
        if held is None:
            return
        try:
            same = os.path.samestat(os.fstat(held), os.stat(self.path / ".lock"))
        except OSError as error:
            raise StorageError(f"{self.path} is gone: {reason(error)}") from error
        if not same:
            raise StorageError(f"{self.path} was removed and made anew while this run trained; it is left alone")


def refuse_link(path: Path) -> None:
    """Raise CheckpointError where a name is a link or a special file, and leads elsewhere."""
    if os.path.lexists(path) and not (stat.S_ISREG(mode := path.lstat().st_mode) or stat.S_ISDIR(mode)):
        raise CheckpointError(
            f"{one_line(str(path))} is a link or a special file, through which a run would write elsewhere; "
            "put what it stands for in its place, or remove it"
        )


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
    """Turns SIGINT, SIGTERM and SIGHUP into Interrupted: at once, or after `defer` when the loop looks between steps.

    A second SIGINT then stops at once: files are whole at any moment. Inside another block this one is that other one,
    so a signal ends a run and the sweep that it belongs to. A signal that is ignored, as under nohup, stays so.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    active: ClassVar[StopRequest | None] = None

    def __init__(self) -> None:
        self.number: int | None = None
        self.deferred = False
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if StopRequest.active is not None:
            self.deferred = StopRequest.active.deferred
            return StopRequest.active
        StopRequest.active = self
        heeded = [number for number in self.SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self.previous = {number: signal.signal(number, self._receive) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if StopRequest.active is self:
            StopRequest.active = None
        elif StopRequest.active is not None:
            StopRequest.active.deferred = self.deferred  # as it was outside

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            return
        self.number = number
        if signal.SIGINT in self.previous:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if not self.deferred:
            self.raise_if_asked("nothing was lost")

    def defer(self) -> None:
        """From here to the end of the block a signal waits for `raise_if_asked`."""
        self.deferred = True

    def raise_if_asked(self, where: str) -> None:
        """Raise Interrupted when a signal has come; `where` says how to go on."""
        if self.number is not None:
            raise Interrupted(f"stopped by {signal.Signals(self.number).name}; {where}", self.number)
