"""A run of the sweep: the folder that Hydra has made for it, its iterations, and its lines on the screen."""

from __future__ import annotations

import io
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, NamedTuple, TextIO

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from gantrain import data
from gantrain.commands import train
from gantrain.commands.resume import to_continue
from gantrain.console import printable, say, seen_or_not
from gantrain.errors import GantrainError
from gantrain.launch.run import launched
from gantrain.launch.sweep import FAILURES
from gantrain.runs.folder import RunFolder

if TYPE_CHECKING:
    from gantrain.data import Dataset


class OpenedRun(NamedTuple):
    """A run whose folder Hydra has made."""

    composed: DictConfig
    folder: RunFolder
    typed: list[str]
    goes_on: bool  # where it stopped


def open_run(composed: DictConfig) -> OpenedRun | None:
    """What Hydra is to call in a job's place; None for a run that cannot go on, whose error is kept in FAILURES."""
    context = HydraConfig.get()
    folder = RunFolder(context.runtime.output_dir)
    try:
        train.keep_hydra_files(composed, folder)
        return OpenedRun(composed, folder, list(context.overrides.task), train.goes_on(composed, folder))
    except GantrainError as error:
        FAILURES[folder.path.resolve()] = error
        say(f"failed: {error}", error=True)
        return None


def iterations(run: OpenedRun, load: Callable[..., Dataset] = data.load) -> Generator[None, None, None]:
    """The run, an iteration at a time."""
    with run.folder.locked():
        bundle = None
        if run.goes_on and (bundle := to_continue(run.folder, run.composed, run.typed)) is None:
            return
        yield from launched(run.composed, run.folder, run.typed, bundle, load)


class Lines(io.TextIOBase):
    """A run's output on its way to `screen`: whole lines, each after the run's name.

    It is no terminal, so a run reports in lines of its own rather than in one that is drawn over.
    """

    def __init__(self, name: str, screen: TextIO) -> None:
        self.name, self.screen = name, screen
        self.rest = self.last = ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in filter(None, lines):
            self.last = line
            with seen_or_not(self.screen):
                print(printable(f"{self.name}  {line}"), file=self.screen, flush=True)
        return len(text)

    def end(self) -> None:
        """Show the last line also where it was never ended."""
        self.write("\n")

    def fileno(self) -> int:
        return self.screen.fileno()
