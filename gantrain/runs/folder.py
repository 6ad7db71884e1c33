"""The run folder: the names of its files, its lock and its summary. A run is found from this folder alone."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from gantrain.console import one_line
from gantrain.errors import BusyError, CheckpointError, DataError, StorageError
from gantrain.files import convert_write_errors, describe_os_error, hold_folder, read_regular_file, write_json
from gantrain.runs import checkpoints
from gantrain.runs.metrics_file import read_metrics

# Files and folders of a run that must not be links; inside `wandb`, the package makes links of its own.
FOLDERS = (".hydra", "checkpoints", "samples", "wandb")
FILES = (
    *(".lock", "metrics.jsonl", "summary.json", "train.log", "losses.png"),
    *("evaluation.json", "neighbours.png", "wandb_id"),
)
CHECKPOINT_AGE = "system/checkpoint_age_seconds"
KILLED = "killed"  # the status of a run whose summary says that it trains while no process holds it


class RunFolder:
    """One run's files. Creating the object touches nothing on disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.log = self.path / "train.log"
        self.config = self.path / ".hydra" / "config.yaml"
        self._lock = self.path / ".lock"

    @classmethod
    def containing(cls, path: Path) -> RunFolder:
        """Return the folder of a run that is given by its folder or by one of its checkpoints."""
        if path.is_dir():
            return cls(path)
        folder = path.parent
        if folder.name == "checkpoints":
            return cls(folder.parent)
        # A name alone is that of a file in the working directory.
        return cls(folder / ".." if folder.resolve().name == "checkpoints" else folder)

    @property
    def has_progress(self) -> bool:
        """Whether the folder holds a finished run or checkpoints, from which a run goes on."""
        return self.read_summary().get("status") == "finished" or bool(checkpoints.list_files(self.checkpoints))

    @property
    def has_begun(self) -> bool:
        """Whether a run has begun to train here, or was killed before it could write how it ended."""
        summary = self.read_summary()
        return "images" in summary or summary.get("status") == "running" or self.metrics.exists()

    @property
    def had_checkpoint(self) -> bool:
        """Whether the summary, or the age of a checkpoint in the reports, shows that one was once written."""
        summary = self.read_summary()
        has_age = any(CHECKPOINT_AGE in row for row in self.read_reports())
        return has_age or any(key in summary for key in ("checkpoint", "resumed_at_images"))

    def refuse_links(self) -> None:
        """Raise CheckpointError if one of the run's files is a link or a special file."""
        for name in (*FILES, *FOLDERS):
            refuse_link(self.path / name)
            for path in (self.path / name).rglob("*") if name != "wandb" else ():
                refuse_link(path)

    def refuse_progress(self) -> None:
        """Raise BusyError if a new start would lose a run, or mix its reports with those of another."""
        resume = f"gantrain resume {shlex.quote(str(self.path))}"
        if self.has_progress:
            raise BusyError(f"{self.path} already holds a run; go on with `{resume}`, or give another run_dir")
        if self.has_begun:
            raise BusyError(
                f"{self.path} already holds a run, which ended before its first checkpoint; give another run_dir, or "
                f"start it again with the command that `{resume}` shows"
            )

    def read_summary(self) -> dict[str, Any]:
        """Return the content of `summary.json`; empty if there is none or it is damaged, since a run makes it anew."""
        try:
            summary = json.loads(read_regular_file(self.summary))
        except (OSError, ValueError, RecursionError):
            return {}
        return summary if isinstance(summary, dict) else {}

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace `summary.json`. Raises StorageError."""
        with convert_write_errors(self.summary):
            write_json(self.summary, summary, durable=True)

    def read_clock(self) -> int:
        """Return the number of images at which the summary and the reports saw the run; 0 if they hold none."""
        clocks = [self.read_summary().get("images"), *(row["images"] for row in self.read_reports())]
        return max((clock for clock in clocks if type(clock) is int), default=0)

    def read_reports(self) -> list[dict[str, Any]]:
        """Return the reports of the run; empty if there are none that can be read."""
        try:
            return read_metrics(self.metrics)
        except DataError:
            return []

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder in the block; the lock ends with the process. Raises BusyError naming another holder.

        If it is moved meanwhile, nothing is written into what takes its place; see `files.refuse_replaced`.
        """
        holder, lock = self._read_holder(), FileLock(self._lock, mode=0o644)
        try:
            lock.acquire(blocking=False)
        except TimeoutError as error:
            raise BusyError(f"{self.path} is in use by {holder}; wait for it, or give another run_dir") from error
        except OSError as error:
            reason = describe_os_error(error)
            raise StorageError(f"{self.path} cannot hold a run: {reason}, or give another run_dir") from error
        try:
            with suppress(OSError):  # the text is only for the message of another process
                self._lock.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
            with hold_folder(self.path, self._lock):
                yield
        finally:
            lock.release()

    def hold(self) -> AbstractContextManager[None]:
        """Write into the folder in the block, while the process that has started this one has its lock."""
        return hold_folder(self.path, self._lock)

    def _read_holder(self) -> str:
        holder = ""
        refuse_link(self._lock)
        with suppress(OSError, UnicodeDecodeError), open(self._lock, encoding="utf-8") as file:
            holder = one_line(file.readline(300).strip())
        return holder or "another process"


def refuse_link(path: Path) -> None:
    """Raise CheckpointError if a path is a link or a special file."""
    if os.path.lexists(path) and not (stat.S_ISREG(mode := path.lstat().st_mode) or stat.S_ISDIR(mode)):
        raise CheckpointError(
            f"{one_line(str(path))} is a link or a special file, through which a run would write elsewhere; "
            "put what it stands for in its place, or remove it"
        )


def claim_folder(parent: Path, name: str) -> Path:
    """Make the folder `parent/name`, or `name-2`, `name-3`, … if that is taken; two processes never get the same."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 10_000):
            path = parent / (name if number == 1 else f"{name}-{number}")
            with suppress(FileExistsError):
                path.mkdir()
                return path
    except OSError as error:
        raise StorageError(f"the run folder {parent / name} cannot be made: {error.strerror or error}") from error
    raise StorageError(f"{parent} already has 9,999 folders named {name}-…; choose another run_dir")


def actual_status(path: Path, summary: Mapping[str, Any]) -> Any:
    """Return the status that the summary of the run at `path` names, or `KILLED` if it trains and nobody holds it."""
    status = summary.get("status")
    return KILLED if status == "running" and not is_held(path) else status


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock of the run at `path`, or may hold one that cannot be opened."""
    with suppress(FileNotFoundError):
        try:
            descriptor = os.open(path / ".lock", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        except PermissionError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
    return False
