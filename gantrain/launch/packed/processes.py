"""Runs on a CPU: each is a process of one thread, forked from a server that has imported everything and run nothing."""

from __future__ import annotations

import codecs
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import connection, forkserver, resource_tracker

from gantrain.console import say
from gantrain.errors import GantrainError
from gantrain.launch import sweep
from gantrain.launch.packed.opened import Lines, OpenedRun, iterations
from gantrain.launch.sweep import FAILURES, RunFailed
from gantrain.runs.folder import Interrupted, StopRequest

SECONDS_TO_LISTEN = 0.2
# What a process that is forked for a run has imported already; optimizers would import the compiler.
PRELOADED = [
    "gantrain.launch.packed",
    "gantrain.training.loop",
    "matplotlib.figure",
    "torch.utils.tensorboard",
    "torch._dynamo",
]


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class RunInProcess:
    """A run in a process of its own, whose output comes through a pipe."""

    def __init__(self, run: OpenedRun) -> None:
        processes = fork_server()
        self.folder, self.lines = run.folder, Lines(run.folder.path.name, sys.stdout)
        self.output, end = processes.Pipe(duplex=False)
        self.process = processes.Process(target=child_main, args=(run, end, os.getcwd(), dict(os.environ)))
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
        if exit_code == 0 or sweep.summary(self.folder.path).get("exit_code") == exit_code:
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


def fork_server() -> multiprocessing.context.ForkServerContext:
    """Where processes are forked from; a terminal's interrupt reaches the server too, and must not end it.

    It is blocked there, not just ignored: one that is meant for a process that has hardly been forked waits in it.
    """
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOADED)
    resource_tracker.ensure_running()  # first: to start it unblocks the signal
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return processes


def listen(children: list[RunInProcess]) -> list[RunInProcess]:
    """Wait a moment for children to say something; those that are not done."""
    ready = connection.wait([child.output for child in children], SECONDS_TO_LISTEN)
    return [child for child in children if child.output not in ready or child.pass_on()]


def child_main(run: OpenedRun, output: connection.Connection, place: str, environment: dict[str, str]) -> None:
    """A child's life: one run on one thread, whose output goes to the parent."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it, and blocks it
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output.fileno(), stream.fileno())
    output.close()
    os.chdir(place)
    os.environ.update(environment)
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.exit(exit_code(run))


def exit_code(run: OpenedRun) -> int:
    """Train on one thread."""
    import torch

    torch.set_num_threads(1)
    try:
        with StopRequest():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
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
