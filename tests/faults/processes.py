"""The command line in processes of their own, which can be killed, limited and watched.

A server imports everything once; each command is a fork of it, so it starts at once and computes for itself. Its
figures are checksums of what is in them (`support.pictures`). What is to happen inside such a process is a `fault`: a
function of this or a test's module, called there before the command.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from functools import reduce, wraps
from pathlib import Path
from typing import Any

import torch
from support.pictures import draw_checksums
from support.waiting import PATIENCE_SECONDS, wait_until

from gantrain.cli import main

PRELOADED = [
    *("torch", "torch.utils.tensorboard", "torchvision", "hydra", "matplotlib.backends.backend_agg", "pytest"),
    *(f"gantrain.{name}" for name in ("cli", "commands.train", "commands.sample", "training.loop", "plotting")),
]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["__main__", *PRELOADED])

Fault = Callable[[], None]


class Command:
    """`gantrain *arguments` in a process of its own; what it prints lies in `log`. A daemon cannot start processes."""

    def __init__(self, log: Path, *arguments: object, fault: Fault | None = None, daemon: bool = True) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self.process = FORKS.Process(target=_run, args=(log, [str(a) for a in arguments], fault), daemon=daemon)
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit code; that of a process that a signal killed is minus its number."""
        self.process.join(PATIENCE_SECONDS)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {PATIENCE_SECONDS} s:\n{self.output}")
        return self.process.exitcode

    def wait_until(self, happened: Callable[[], Any]) -> None:
        """Wait for something that the process does. Fails where the process ends without it."""
        wait_until(lambda: happened() or self.process.exitcode is not None)
        assert happened(), f"ended with {self.process.exitcode} before that:\n{self.output}"


def run(log: Path, *arguments: object, fault: Fault | None = None) -> tuple[int, str]:
    """The exit code and the output of `gantrain *arguments`."""
    command = Command(log, *arguments, fault=fault)
    return command.wait(), command.output


def _run(log: Path, arguments: list[str], fault: Fault | None) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    os.close(descriptor)
    sys.argv = ["gantrain"]
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    draw_checksums()
    if fault is not None:
        fault()
    sys.exit(main(arguments))


def when_called(function: str, effect: Callable[..., object], *, call: int = 1) -> None:
    """Before the given call of `module:qualified.name`, call `effect` with the same arguments."""
    module, _, path = function.partition(":")
    *owners, name = path.split(".")
    owner = reduce(getattr, owners, importlib.import_module(module))
    original, calls = getattr(owner, name), 0

    @wraps(original)
    def watched(*arguments: Any, **keys: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            effect(*arguments, **keys)
        return original(*arguments, **keys)

    setattr(owner, name, watched)


def delete_working_directory(folder: Path) -> None:
    """Make a folder, and delete it with this process in it, as after `cd` in a shell."""
    folder.mkdir()
    os.chdir(folder)
    os.environ["PWD"] = str(folder)
    folder.rmdir()


def signal_itself(function: str, *numbers: int, call: int = 1) -> None:
    """Send the signals to this process before the given call of a function."""

    def send(*_: object, **__: object) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    when_called(function, send, call=call)


def stand_still(function: str, until_exists: Path, *, call: int = 1) -> None:
    """Before the given call of a function, make the file `waiting` beside another, and wait until that exists."""

    def wait(*_: object, **__: object) -> None:
        until_exists.with_name("waiting").touch()
        wait_until(until_exists.exists)

    when_called(function, wait, call=call)
