"""The runs of a sweep side by side on one device: `gantrain train -m … hydra/launcher=packed`.

On a CPU each run is a process of one thread, as many at once as there are cores. On a CUDA device all runs are in this
process and take turns, an iteration each: the host only starts kernels and never waits between turns, so the device
works at several runs' iterations at once. There each run has a stream, a graph, its memory and its random numbers to
itself, and equal datasets lie on the device once.

A run begins when there is room for it (`gantrain.memory`), and else waits. Each comes out as it would have alone on as
many threads: nothing that happens to one, an error, a divergence, even its process killed, touches the others.
"""

from __future__ import annotations

import codecs
import io
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, env_override, run_job
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from gantrain import config, data, memory, parts, sweeps
from gantrain.commands import train
from gantrain.commands.resume import to_continue
from gantrain.errors import ConfigError, GantrainError
from gantrain.launch import launched
from gantrain.memory import Need
from gantrain.run import Interrupted, RunFolder, StopRequest
from gantrain.sweeps import FAILURES, RunFailed
from gantrain.terminal import printable, say, seen_or_not

if TYPE_CHECKING:
    import torch

    from gantrain.data import Dataset, Images

MOST_JOBS = 1024
# Runs that take turns, unless hydra.launcher.jobs says otherwise. By a model, not a measurement, an iteration of a
# small network keeps a large GPU busy for a fifth of its time: beyond a few runs more of them only make each later.
TURNS = 8
SHARE = 0.9  # of the free memory; the rest is for what estimates miss
SECONDS_TO_LISTEN = 0.2
# What a process that is forked for a run has imported already; optimizers would import the compiler, digits sklearn.
PRELOADED = [
    "gantrain.packed",
    "gantrain.trainer",
    "matplotlib.figure",
    "torch.utils.tensorboard",
    "torch._dynamo",
    "sklearn.datasets",
]


class Opened(NamedTuple):
    """A run whose folder Hydra has made."""

    composed: DictConfig
    folder: RunFolder
    typed: list[str]
    goes_on: bool  # where it stopped


def check(jobs: int, task_function: TaskFunction) -> None:
    """Raise ConfigError for a number of jobs that cannot be, and for a program that is not gantrain."""
    config.check_range("hydra.launcher.jobs", jobs, at_least=0, above=-math.inf, at_most=MOST_JOBS)
    if task_function is not train.job:
        raise ConfigError("hydra/launcher=packed is for the runs of gantrain train; choose another hydra/launcher")


def launch(configs: Sequence[DictConfig], context: HydraContext, jobs: int) -> list[JobReturn]:
    """Train what each of `configs` describes, at most `jobs` at once, or as many as the device has room for.

    Raises ConfigError for runs that are not all on one device, Interrupted after all runs were saved.
    """
    checked = [settings_or_none(each) for each in configs]
    device = common_device({parts.choose_device(settings["device"]) for settings in checked if settings is not None})
    needs = [need_or_base(settings, device) for settings in checked]
    waiting, returned = list(zip(configs, needs, strict=True)), []

    def opened(whole: DictConfig) -> Opened | None:
        job = run_job(opening, whole, "hydra.sweep.dir", "hydra.sweep.subdir", context)
        run: Opened | None = job.return_value
        job.return_value = None
        returned.append(job)
        return run

    if device.type == "cpu":
        room = Room(jobs or cores(), "a core each", device)
        with env_override({"OMP_NUM_THREADS": "1"}):
            side_by_side(waiting, lambda whole: (run := opened(whole)) and Child(run), listen, room)
    else:
        room, load = Room(jobs or TURNS, "enough to fill the device", device), SharedData()
        side_by_side(waiting, lambda whole: (run := opened(whole)) and Turns(run, device, load), take_turns, room)
    return returned


def settings_or_none(whole: DictConfig) -> dict[str, Any] | None:
    """A job's checked settings; None for a config that its run will refuse, in its own words."""
    composed = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
    try:
        config.refuse_untyped_object(composed, whole.hydra.overrides.task)
        settings = config.checked(composed)
        parts.choose_device(settings["device"])
    except GantrainError:
        return None
    return settings


def need_or_base(settings: dict[str, Any] | None, device: torch.device) -> Need:
    """What a run will take; only the base where it will be refused before it takes more."""
    try:
        return Need(memory.BASE[device.type]) if settings is None else memory.needed(settings, device)
    except GantrainError:
        return Need(memory.BASE[device.type])


def common_device(devices: set[torch.device]) -> torch.device:
    """The one device that all runs are on; the CPU where there are none. Raises ConfigError for several."""
    device, *others = sorted(devices or {parts.choose_device("cpu")}, key=str)
    if others or device.type not in memory.BASE:
        raise ConfigError(
            f"hydra/launcher=packed is for one CPU or one CUDA device, not {', '.join(map(str, [device, *others]))}; "
            "choose one device for all runs, or another hydra/launcher"
        )
    return device


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def opening(composed: DictConfig) -> Opened | None:
    """What Hydra is to call in a job's place; None for a run that cannot go on, whose error is kept in FAILURES."""
    context = HydraConfig.get()
    folder = RunFolder(context.runtime.output_dir)
    try:
        train.keep_hydra_files(composed, folder)
        return Opened(composed, folder, list(context.overrides.task), train.goes_on(composed, folder))
    except GantrainError as error:
        FAILURES[folder.path.resolve()] = error
        say(f"failed: {error}", error=True)
        return None


def iterations(run: Opened, load: Callable[..., Dataset] = data.load) -> Generator[None, None, None]:
    """The run, an iteration at a time."""
    with run.folder.locked():
        bundle = None
        if run.goes_on and (bundle := to_continue(run.folder, run.composed, run.typed)) is None:
            return
        yield from launched(run.composed, run.folder, run.typed, bundle, load)


# ---------------------------------------------------------------------------------------------------------------------
# The queue


@dataclass
class Room:
    """How many runs there may be at once on a device, why so many, and how much memory was free to begin with."""

    most: int
    reason: str
    device: torch.device

    def __post_init__(self) -> None:
        self.free_at_first = memory.free(self.device)

    def takes(self, need: Need, running: Sequence[Need]) -> bool:
        """Whether one more run may begin: one may always, and others where both what was free and what is free now
        suffice. What runs have not yet taken is free now, what others took since was free at first."""
        if not running:
            return True
        fits = memory.total([*running, need]) <= SHARE * self.free_at_first
        return len(running) < self.most and fits and memory.total([need]) <= SHARE * memory.free(self.device)

    def told(self, needs: Sequence[Need]) -> str:
        """How many of runs with these needs will begin at once, and why not more."""
        begun: list[Need] = []
        while len(begun) < len(needs) and self.takes(needs[len(begun)], begun):
            begun.append(needs[len(begun)])
        reason = "all" if len(begun) == len(needs) else self.reason if len(begun) == self.most else "more would not fit"
        largest = max(memory.total([need]) for need in needs) / 2**30
        free = f"up to about {largest:.1f} GiB each, of {self.free_at_first / 2**30:.1f} GiB of free memory"
        return f"{len(needs)} runs on {self.device}, {len(begun)} at once ({reason}); {free}"


def side_by_side(
    waiting: list[tuple[DictConfig, Need]],
    begin: Callable[[DictConfig], Any],
    go_on: Callable[[list[Any]], list[Any]],
    room: Room,
) -> None:
    """Begin the runs in order, each as soon as there is room, and let them `go_on`, which gives those not yet done.

    A signal stops all of them. Raises Interrupted once they are saved.
    """
    say(room.told([need for _, need in waiting]))
    running: dict[Any, Need] = {}
    ended = True  # whether one has, so that there may be room: a GPU has to be waited for to know
    with StopRequest() as stop:
        stop.defer()
        try:
            while waiting or running:
                while ended and waiting and room.takes(waiting[0][1], list(running.values())):
                    whole, need = waiting.pop(0)
                    if run := begin(whole):
                        running[run] = need
                still = go_on(list(running))
                ended = len(still) < len(running)
                running = {run: running[run] for run in still}
                if stop.number is not None:
                    waiting.clear()
                    for run in running:
                        run.stop(stop.number)
        finally:
            for run in running:  # a second interrupt has come, which the others have not seen
                run.stop_at_once()
        stop.raise_if_asked("every run that had begun to train is saved")


# ---------------------------------------------------------------------------------------------------------------------
# On a CPU: a process for each run


class Child:
    """A run in a process of its own, forked from a server that has imported everything and run nothing."""

    def __init__(self, run: Opened) -> None:
        processes = forks()
        self.folder, self.lines = run.folder, Lines(run.folder.path.name, sys.stdout)
        self.output, end = processes.Pipe(duplex=False)
        self.process = processes.Process(target=alone, args=(run, end, os.getcwd(), dict(os.environ)))
        self.process.start()
        end.close()
        self.stopped = False
        self.decoded = codecs.getincrementaldecoder("utf-8")("replace").decode

    def pass_on(self) -> bool:
        """Print what the run has said. False at its end."""
        said = os.read(self.output.fileno(), 2**16)
        self.lines.write(self.decoded(said))
        if not said:
            self.process.join()
            self.lines.end()
            self.note_failure(self.process.exitcode or 0)
        return bool(said)

    def note_failure(self, exit_code: int) -> None:
        """Keep what ended the process, where the run could not write it into its summary."""
        if exit_code == 0 or sweeps.summary(self.folder.path).get("exit_code") == exit_code:
            return
        reason = f"its process ended with exit code {exit_code}: {self.lines.last}"
        if exit_code < 0:
            reason = f"its process was killed by {signal.Signals(-exit_code).name}"
        if exit_code == -signal.SIGKILL:
            reason += ", as a system does that is out of memory: a lower hydra.launcher.jobs needs less"
        failed = RunFailed(reason, exit_code if exit_code > 0 else 128 - exit_code)
        FAILURES[self.folder.path.resolve()] = failed
        self.lines.write(f"failed: {failed}\n")

    def stop(self, number: int) -> None:
        """Pass a signal on, once; a terminal's reaches only the foreground, where this process is not."""
        if not self.stopped:
            self.stopped = True
            self.send(number)

    def stop_at_once(self) -> None:
        """Wait for the end of a run that is interrupted once more."""
        self.send(signal.SIGINT)
        self.output.close()
        self.process.join()

    def send(self, number: int) -> None:
        """Send the process a signal, if it is still there."""
        if self.process.is_alive():
            assert self.process.pid is not None
            os.kill(self.process.pid, number)


def forks() -> multiprocessing.context.ForkServerContext:
    """Where processes are forked from; a terminal's interrupt reaches the server too, and must not end it."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOADED)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
    return processes


def listen(children: list[Child]) -> list[Child]:
    """Wait a moment for children to say something; those that are not done."""
    ready = connection.wait([child.output for child in children], SECONDS_TO_LISTEN)
    return [child for child in children if child.output not in ready or child.pass_on()]


def alone(run: Opened, output: connection.Connection, place: str, environment: dict[str, str]) -> None:
    """A child's life: one run on one thread, whose output goes to the parent."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output.fileno(), stream.fileno())
    output.close()
    os.chdir(place)
    os.environ.update(environment)
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.exit(exit_code(run))


def exit_code(run: Opened) -> int:
    """Train on one thread."""
    import torch

    torch.set_num_threads(1)
    try:
        with StopRequest():
            for _ in iterations(run):
                pass
    except (GantrainError, Interrupted) as error:
        say(f"failed: {error}" if isinstance(error, GantrainError) else str(error), error=True)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def end_with_parent() -> None:
    """Stop as at a signal, saved, when the sweep's process is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


# ---------------------------------------------------------------------------------------------------------------------
# On a CUDA device: turns in one process


class Turns:
    """A run in this process, which plays one iteration at each of its turns."""

    def __init__(self, run: Opened, device: torch.device, load: Callable[..., Dataset]) -> None:
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


def take_turns(runs: list[Turns]) -> list[Turns]:
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


# ---------------------------------------------------------------------------------------------------------------------
# The screen


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
