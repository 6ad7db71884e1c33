"""What several test files share: the command line, called in this process from an empty folder."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from gantrain.cli import main


class Answer(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True, scope="session")
def signals() -> None:
    """As at a terminal, for the processes that tests start: what runs in a script's background ignores interrupts."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What commands keep for the next time is kept here, for all tests of all workers: not in the user's home."""
    base = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("XDG_CACHE_HOME", str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"))


@pytest.fixture(scope="module")
def plain_figures() -> Iterator[None]:
    """Let figures of this process become checksums of what is in them, instead of half of the time of a short run."""
    from support.pictures import draw_checksums

    with pytest.MonkeyPatch.context() as patch:
        draw_checksums(patch.setattr)
        yield


@pytest.fixture
def gantrain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """`gantrain(*arguments)`: the command's exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gantrain"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Answer(code, *capsys.readouterr())

    return call
