"""Parallel training of the runs of a sweep on one machine: `gantrain train -m … hydra/launcher=parallel`.

Jobs begin in order. Each device has one or more worker processes, which train one job after the other; on a CPU with
one thread each, so a run equals the one that is trained alone with OMP_NUM_THREADS=1. A job that fails or is killed
does not affect the others.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TextIO

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, env_override, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from gantrain.console import ignore_closed_output, printable, say
from gantrain.devices import check_device_name, choose_device, count_cores
from gantrain.errors import ConfigError
from gantrain.files import refuse_replaced
from gantrain.launch.job import JobResult
from gantrain.launch.sweep import RunFailed
from gantrain.ranges import Numbers
from gantrain.runs.signals import Interrupted, StopRequest

MOST_JOBS = 1024
SECONDS_TO_WAIT = 0.2  # for a job to end, until the next look at signals
Job = Callable[[DictConfig], JobReturn]


def check(config: DictConfig, jobs: int, devices: Sequence[str]) -> None:
    """Raise ConfigError if the launcher's settings are out of range, or name a device that is not on this machine."""
    Numbers(whole=True, at_least=0, at_most=MOST_JOBS).check("hydra.launcher.jobs", jobs)
    try:
        for name in devices:
            check_device_name(name)
        found = {(device.type, device.index or 0) for device in map(choose_device, devices)}
    except ConfigError as error:
        raise ConfigError(f"hydra.launcher.devices: {error}") from error
    if len(found) < len(devices):
        raise ConfigError(
            f"hydra.launcher.devices=[{','.join(devices)}] names a device more than once; hydra.launcher.jobs=2 trains "
            "two jobs at once on each"
        )
    typed = [text for text in config.hydra.overrides.task if text.lstrip("+").startswith("device=")]
    if devices and typed:
        raise ConfigError(
            f"{typed[0]} and hydra.launcher.devices both choose the device; leave one of them out, or give "
            "hydra.launcher.devices=[]"
        )


def launch(
    job_overrides: Sequence[Sequence[str]],
    first_number: int,
    *,
    context: HydraContext,
    config: DictConfig,
    task_function: TaskFunction,
    jobs: int,
    devices: Sequence[str],
) -> list[JobReturn]:
    """Train one run for each list of overrides, and return Hydra's results in the same order.

    Args:
        job_overrides: the overrides of each job.
        first_number: number of the first job in the sweep.
        context, config, task_function: what Hydra gives to a launcher.
        jobs: number of jobs at once on each device; 0 means the number of cores on a CPU, and 1 on other devices.
        devices: the devices to train on, of which a job gets one by the override `device=…`; if empty, jobs are trained
            on the device that their config names.

    Raises Interrupted if a signal came, after the runs were saved.
    """
    setup_globals()
    names = [name_device(name) for name in devices or [str(config.device)]]
    processes = config.devices if isinstance(config.devices, int) else 1
    workers = build_workers(jobs, names, processes, is_assigned=bool(devices))[: len(job_overrides)]
    say(f"{len(job_overrides)} runs on {', '.join(dict.fromkeys(w.device for w in workers))}, {len(workers)} at once")
    configs = (compose_job(context, config, each, number) for number, each in enumerate(job_overrides, first_number))
    job = partial(run_in_worker, context=context, task_function=task_function)
    with StopRequest() as stop:
        stop.defer()
        try:
            returned = train_all(configs, workers, job, stop)
        finally:
            for worker in workers:
                worker.end()
        stop.raise_if_asked("every run that had begun to train is saved")
    return [returned[number] for number in sorted(returned)]


def train_all(
    configs: Iterator[DictConfig], workers: Sequence[Worker], job: Job, stop: StopRequest
) -> dict[int, JobReturn]:
    """Train the jobs in order, each as soon as a worker is free, and return their results by number."""
    returned: dict[int, JobReturn] = {}
    config = next(configs, None)
    while config is not None or any(worker.future for worker in workers):
        for worker in workers:
            if worker.future is None and config is not None:
                worker.begin(config, job)
                config = next(configs, None)
        wait([worker.future for worker in workers if worker.future], SECONDS_TO_WAIT, FIRST_COMPLETED)
        if stop.number is not None:
            config = None
            for worker in workers:
                worker.stop(stop.number)
        for worker in workers:
            if worker.future and worker.future.done():
                returned[worker.config.hydra.job.num] = worker.take_result()
    return returned


def compose_job(context: HydraContext, config: DictConfig, overrides: Sequence[str], number: int) -> DictConfig:
    """Return the config of one job of the sweep `config`. Raises StorageError if the sweep's folder was moved."""
    refuse_replaced(Path(config.hydra.sweep.dir))
    composed = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number
    return composed


def build_workers(jobs: int, devices: Sequence[str], processes: int, *, is_assigned: bool) -> list[Worker]:
    """Return workers for `jobs` of some processes at once on each device, in an order that fills all devices evenly."""
    cores = max(count_cores() // processes, 1)
    numbers = {device: jobs or (cores if device == "cpu" else 1) for device in devices}
    return [Worker(name, is_assigned) for n in range(max(numbers.values())) for name in devices if n < numbers[name]]


def name_device(name: str) -> str:
    """Return what `auto` stands for; "cpu" for a device that is not on this machine, which the runs will refuse."""
    try:
        return str(choose_device(name))
    except ConfigError:
        return "cpu"


class Worker:
    """A process that trains one job after the other on one device; it is started when needed, also after it was killed.

    Args:
        device: the device whose jobs it trains.
        is_assigned: whether jobs get this device by override, or name it themselves.
    """

    config: DictConfig  # of the current job

    def __init__(self, device: str, is_assigned: bool) -> None:
        self.device, self.is_assigned, self.is_stopped = device, is_assigned, False
        self.executor: ProcessPoolExecutor | None = None
        self.process: BaseProcess | None = None
        self.future: Future[JobReturn] | None = None

    def begin(self, config: DictConfig, job: Job) -> None:
        """Train the job that `config` describes."""
        self.config = config
        if self.is_assigned:  # after composition, because the override is not a part of the name of the run's folder
            config.device = self.device
            with open_dict(config):
                config.hydra.overrides.task.append(f"device={self.device}")
        if self.process and not self.process.is_alive():  # it was killed after its last job
            self.end()
        if self.executor is None:
            self.executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), prepare_process)
        others = multiprocessing.active_children()
        with interrupts_blocked(), env_override({"OMP_NUM_THREADS": "1"} if self.device == "cpu" else {}):
            self.future = self.executor.submit(job, config)
        started = (process for process in multiprocessing.active_children() if process not in others)
        self.process = next(started, self.process)

    def take_result(self) -> JobReturn:
        """Return the result of the finished job; a job whose process was killed is reported as failed."""
        assert self.future is not None
        future, self.future = self.future, None
        try:
            return future.result()
        except BrokenExecutor:
            self.end()
            returned = JobReturn(overrides=list(self.config.hydra.overrides.task), status=JobStatus.COMPLETED)
            if not self.is_stopped:
                returned.return_value = self.report_killed()
            return returned

    def report_killed(self) -> JobResult:
        """Print and return the failure of a run whose process ended without a result."""
        code = (self.process and self.process.exitcode) or 1
        reason = "its process ended without a result"
        if code < 0:
            reason += f": killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            reason += ", as the system does when memory runs out; a lower hydra.launcher.jobs needs less"
        HydraConfig.instance().set_config(self.config)  # the folder's name refers to it
        folder = Path(self.config.hydra.sweep.dir, self.config.hydra.sweep.subdir)
        say(f"{folder.name}  failed: {reason}", error=True)
        return JobResult(folder, RunFailed(reason, code if code > 0 else 128 - code))

    def stop(self, number: int) -> None:
        """Pass a signal on to the job, once; a terminal's interrupt does not reach it."""
        if not self.is_stopped:
            self.is_stopped = True
            self.send(number)

    def end(self) -> None:
        """End the process; a job is saved first, or ends at once if it was asked to stop before."""
        self.send(signal.SIGINT)
        if self.executor:
            self.executor.shutdown()
            self.executor = None

    def send(self, number: int) -> None:
        """Send a signal to the process if it trains a job."""
        if self.future and self.process and self.process.is_alive() and self.process.pid:
            os.kill(self.process.pid, number)


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Block SIGINT; a process that is started inside the block has it blocked too, until it unblocks it."""
    resource_tracker.ensure_running()  # now, because its start unblocks SIGINT
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


# ---------------------------------------------------------------------------------------------------------------------
# In a worker's process


def prepare_process() -> None:
    """Leave the terminal's foreground, so that only the parent gets its interrupts, and end with the parent."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # else `stty tostop` would halt it at its first line of output
    threading.Thread(target=stop_with_parent, daemon=True).start()


def stop_with_parent() -> None:
    """Stop the run, saved, when the parent is gone; a later signal, which finds no run, ends the process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


def run_in_worker(config: DictConfig, *, context: HydraContext, task_function: TaskFunction) -> JobReturn:
    """Train one job."""
    setup_globals()
    returned = run_job(partial(train, task_function), config, "hydra.sweep.dir", "hydra.sweep.subdir", context)
    returned.cfg = returned.hydra_cfg = None  # large, and not needed by the parent
    return returned


def train(task_function: TaskFunction, composed: DictConfig) -> Any:
    """Call Hydra's task function; each line of output begins with the name of the run's folder."""
    name = Path(HydraConfig.get().runtime.output_dir).name
    with redirect_stdout(PrefixedLines(name, sys.stdout)), redirect_stderr(PrefixedLines(name, sys.stderr)):
        try:
            with StopRequest():
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
                return task_function(composed)
        except (Interrupted, KeyboardInterrupt) as stop:
            say(str(stop) or "stopped at once", error=True)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


class PrefixedLines(io.TextIOBase):
    """A text stream that writes whole lines to `screen`, each after `prefix`. It is no terminal: no progress bars."""

    def __init__(self, prefix: str, screen: TextIO) -> None:
        self.prefix, self.screen, self.rest = prefix, screen, ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in filter(None, lines):
            with ignore_closed_output(self.screen):
                print(printable(f"{self.prefix}  {line}"), file=self.screen, flush=True)
        return len(text)

    def fileno(self) -> int:
        return self.screen.fileno()
