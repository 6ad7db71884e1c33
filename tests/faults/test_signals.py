"""SIGTERM, SIGINT and SIGHUP, whatever the run is doing: nothing is lost, and the message says how to go on."""

from __future__ import annotations

import itertools
import os
import pty
import shlex
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from support.waiting import wait_until

from faults.processes import Command, run, signal_itself
from faults.runs import SMALL, STEPS, assert_same_run, training
from gantrain.config.overrides import quote
from gantrain.runs import checkpoints

SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP]
# What the run is doing, and the call at whose beginning the signal comes.
PHASES = {
    "a step of D": ("gantrain.training.step:Step.discriminator_step", 7),
    "a step of G": ("gantrain.training.step:Step.generator_step", 7),
    "a report": ("gantrain.reporting.reporter:Reporter.report", 2),
    "evaluation": ("gantrain.training.outputs:Writer.compute_held_out_outputs", 2),
    "sampling": ("gantrain.plotting:save_grid", 2),
    "saving": ("gantrain.runs.checkpoints:save", 2),
    "the write of a checkpoint": ("gantrain.files:sync_folder", 3),
    "pruning": ("gantrain.runs.checkpoints:_prune", 4),
}
PREPARATION = {
    "reading the data": "gantrain.data.memory_map:divide",
    "building the networks": "gantrain.networks:build",
}


def assert_stopped(code: int, output: str, number: signal.Signals) -> None:
    assert code == 128 + number, output
    assert f"stopped by {number.name}" in output
    assert "Traceback" not in output


def test_a_signal_finishes_the_step_and_saves(tried, times, uninterrupted, tmp_path):
    for phase, number in times.of(itertools.product(PHASES, SIGNALS), 2):
        folder, log = tmp_path / f"{phase} {number}", tmp_path / f"log {phase} {number}"
        function, call = PHASES[phase]
        with tried(f"a signal during {phase}"):
            code, output = run(log, *training(folder), fault=partial(signal_itself, function, number, call=call))
            assert_stopped(code, output, number)
            assert f"gantrain resume {shlex.quote(str(folder))}" in output
            assert f"checkpoint {checkpoints.list_files(folder / 'checkpoints')[0].name}" in output
            code, output = run(log, "resume", folder)
            assert code == 0, output
            assert_same_run(uninterrupted, folder)


def test_a_signal_before_the_first_step_stops_at_once(tried, times, uninterrupted, tmp_path):
    """A new run and a resumed one: there is nothing to save, and the same command goes on."""
    for phase, number in times.of(itertools.product(PREPARATION, SIGNALS), 1):
        folder, log = tmp_path / f"{phase} {number}", tmp_path / f"log {phase} {number}"
        interrupted = partial(signal_itself, PREPARATION[phase], number)
        with tried(f"a signal while {phase}"):
            code, output = run(log, *training(folder), fault=interrupted)
            assert_stopped(code, output, number)
            assert "nothing was lost" in output
            assert not (folder / "checkpoints").exists()
        with tried(f"a signal while {phase}, resuming"):
            in_the_loop = partial(signal_itself, PHASES["a step of D"][0], number, call=7)
            assert_stopped(*run(log, *training(folder), fault=in_the_loop), number)
            assert_stopped(*run(log, "resume", folder, fault=interrupted), number)
            assert run(log, "resume", folder)[0] == 0
            assert_same_run(uninterrupted, folder)


def test_a_second_interrupt_stops_at_once_and_leaves_whole_files(tried, times, uninterrupted, tmp_path):
    for phase in times.of(["the write of a checkpoint", "pruning", "a step of G", "sampling", "a report"], 1):
        folder, log = tmp_path / phase, tmp_path / f"log {phase}"
        function, call = PHASES[phase]
        twice = partial(signal_itself, function, signal.SIGINT, signal.SIGINT, call=call)
        with tried("a second interrupt"):
            code, output = run(log, *training(folder), fault=twice)
            assert code == 130, output
            assert "stopped at once, by an interrupt after SIGINT" in output
            assert "Traceback" not in output
            assert all(map(checkpoints.is_whole, checkpoints.list_files(folder / "checkpoints")))
            assert run(log, *training(folder))[0] == 0
            assert_same_run(uninterrupted, folder)


def ignore_then_send(number: int) -> None:
    signal.signal(number, signal.SIG_IGN)
    signal_itself(PHASES["a step of D"][0], number, call=7)


IGNORED = {
    "a signal during the last step": partial(signal_itself, PHASES["a step of G"][0], signal.SIGTERM, call=STEPS),
    "a hangup under nohup": partial(ignore_then_send, signal.SIGHUP),
}


@pytest.mark.parametrize("name", IGNORED)
def test_a_signal_lets_the_run_finish(tried, name, uninterrupted, tmp_path):
    with tried(name):
        code, output = run(tmp_path / "log", *training(tmp_path / "run"), fault=IGNORED[name])
        assert code == 0, output
        assert_same_run(uninterrupted, tmp_path / "run")


# When the signal comes; one run has finished by then.
SWEPT = {
    "during a run": ("gantrain.training.step:Step.discriminator_step", STEPS + 5),
    "in a run's last step": ("gantrain.training.step:Step.generator_step", STEPS),
    "as a run begins": ("gantrain.launch.job:train_sweep_job", 2),
    "between two runs": ("hydra._internal.config_loader_impl:ConfigLoaderImpl.load_sweep_config", 5),
}


def test_a_signal_ends_a_whole_sweep(tried, times, tmp_path):
    for number, moment in times.of(itertools.product(SIGNALS, SWEPT), 1):
        function, call = SWEPT[moment]
        root, log = tmp_path / f"{moment} {number}", tmp_path / f"log {moment} {number}"
        with tried(f"a signal to a sweep {moment}"):
            arguments = ["train", "-m", f"run_dir={quote(root)}", "seed=0,1,2", *SMALL]
            code, output = run(log, *arguments, fault=partial(signal_itself, function, number, call=call))
            assert_stopped(code, output, number)
            said = output[output.index("gantrain: stopped") :]
            assert (
                f"1 runs of the sweep in {root} finished; go on with: gantrain resume {shlex.quote(str(root))}\n"
                in said
            )
            code, output = run(log, "resume", root)
            assert (code, "3 of 3 runs finished" in output) == (0, True), output


def test_a_terminal_that_is_closed(tried, uninterrupted, tmp_path):
    """The run's terminal goes away under it: SIGHUP comes, and nothing can be printed any more."""
    folder = tmp_path / "run"
    with tried("a terminal that is closed"):
        ours, theirs = pty.openpty()
        command = Command(Path(os.ttyname(theirs)), *training(folder))
        wait_until(lambda: read(ours) is not None and checkpoints.list_files(folder / "checkpoints"))
        os.close(ours)
        os.close(theirs)
        command.send(signal.SIGHUP)
        assert command.wait() == 129
        assert run(tmp_path / "log", "resume", folder)[0] == 0
        assert_same_run(uninterrupted, folder)


def read(terminal: int) -> bytes:
    """What stands there, so that it does not fill up."""
    os.set_blocking(terminal, False)
    with suppress(BlockingIOError):
        return os.read(terminal, 2**16)
    return b""


def test_signals_at_random_moments(tried, times, uninterrupted, tmp_path):
    """From outside, whatever the program is doing, from its first import to its end."""
    if not times.soak:
        pytest.skip("the moments above are enough in the fast form")
    for attempt in range(20):
        folder, log, number = tmp_path / f"run{attempt}", tmp_path / f"log{attempt}", SIGNALS[attempt % 3]
        with tried("a signal at a random moment"):
            command = Command(log, *training(folder))
            command.process.join(0.5 + attempt / 8)
            with suppress(ProcessLookupError):  # it has come to its end
                command.send(number)
            assert command.wait() in (0, 128 + number, -number), command.output
            assert "Traceback" not in command.output
            assert run(log, *training(folder))[0] == 0
            assert_same_run(uninterrupted, folder)
