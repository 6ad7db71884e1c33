"""Runs on a CUDA device: all are in this process and take turns, an iteration each.

The host only starts kernels and never waits between turns, so the device works at several runs' iterations at once.
Each run has a stream, a graph, its memory and its random numbers to itself; equal datasets lie on the device once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

from gantrain import data
from gantrain.errors import GantrainError
from gantrain.launch.packed.opened import Lines, OpenedRun, iterations
from gantrain.launch.sweep import FAILURES
from gantrain.runs.folder import Interrupted

if TYPE_CHECKING:
    import torch

    from gantrain.data import Dataset, Images

# Runs that take turns, unless hydra.launcher.jobs says otherwise. By a model, not a measurement, an iteration of a
# small network keeps a large GPU busy for a fifth of its time: beyond a few runs more of them only make each later.
TURNS = 8


class RunInTurns:
    """A run in this process, which plays one iteration at each of its turns."""

    def __init__(self, run: OpenedRun, device: torch.device, load: Callable[..., Dataset]) -> None:
        self.folder, self.lines = run.folder, Lines(run.folder.path.name, sys.stdout)
        self.iterations = iterations(run, load)
        self.on_its_own = own_stream(device)

    def take(self) -> bool:
        """One turn. False where it was the last one: at the run's end, or an error's, or a signal's."""
        try:
            with redirect_stdout(self.lines), redirect_stderr(self.lines), self.on_its_own():
                next(self.iterations)
            return True
        except StopIteration:
            pass
        except Interrupted as stop:
            self.lines.write(f"{stop}\n")
        except GantrainError as error:
            FAILURES[self.folder.path.resolve()] = error
            self.lines.write(f"failed: {error}\n")
        return False

    def stop(self, number: int) -> None:
        """Nothing to do: the run sees the signal itself, at its next turn."""

    def stop_at_once(self) -> None:
        """End the run where it is; its summary says so."""
        with suppress(KeyboardInterrupt):
            self.iterations.throw(KeyboardInterrupt)


def take_turns(runs: list[RunInTurns]) -> list[RunInTurns]:
    """A turn for each run; those that are not done."""
    return [run for run in runs if run.take()]


def own_stream(device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """What to play a run's turns in: on CUDA a stream and a state of the random number generator of its own.

    A captured graph reads seed and offset from the generator state that it was captured with, which two graphs that
    replay at the same time cannot share.
    """
    if device.type != "cuda":
        return nullcontext
    import torch

    index = torch.cuda.current_device() if device.index is None else device.index
    stream, default = torch.cuda.Stream(index), torch.cuda.default_generators[index]
    stream.wait_stream(torch.cuda.default_stream(index))
    numbers = default.clone_state()

    @contextmanager
    def on_its_own() -> Iterator[None]:
        before = default.graphsafe_get_state()
        default.graphsafe_set_state(numbers)
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            default.graphsafe_set_state(before)

    return on_its_own


class SharedData:
    """`data.load` for runs in one process: equal datasets are read once, and their pixels lie on the device once.

    They stay until the sweep is over: a run's stream may still read what another one has loaded.
    """

    def __init__(self) -> None:
        self.loaded: dict[str, Images] = {}

    def __call__(self, *, seed: int, device: torch.device, **settings: Any) -> Dataset:
        """The dataset in the order of `seed`. Raises what `data.load` raises."""
        if data.is_endless(settings["name"]):
            return data.load(**settings, seed=seed, device=device)
        key = repr(settings)
        if key not in self.loaded:
            found = data.load(**settings, seed=seed, device=device)
            assert isinstance(found, data.Images)
            self.loaded[key] = found
        return self.loaded[key].reordered(seed)
