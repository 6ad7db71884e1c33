"""One run on several devices: the numbers are those of one process, and so are its ends, messages and files."""

from __future__ import annotations

import errno
import io
import json
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from faults.processes import Command
from support.ranks import cases, processes, run_in_processes
from support.ranks import main as compare_cases
from support.tolerance import assert_close_to_largest
from support.waiting import wait_until

from gantrain.cli import main
from gantrain.distributed import join
from gantrain.errors import ConfigError, DataError
from gantrain.failures import describe_failure
from gantrain.launch import worker
from gantrain.runs.folder import RunFolder
from gantrain.runs.signals import Interrupted, StopRequest

TINY = (
    *("device=cpu", "train.images=600", "train.batch_size=20", "train.held_out_images=40", "optimizer=sgd"),
    *("train.report_every_images=200", "train.sample_every_images=600", "train.checkpoint_every_images=200"),
    *("train.checkpoint_min_seconds=0", "architecture=mlp_digits", "logger=[]"),
)


def read_summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes found of each case."""
    path = tmp_path_factory.mktemp("ranks") / "found.json"
    ends = run_in_processes(2, partial(compare_cases, path, 5))
    assert [code for code, *_ in ends] == [0, 0], ends
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", [name for name, _ in cases()])
def test_two_processes_train_as_one(compared: dict[str, Any], name: str) -> None:
    """Each has half of every batch; all losses, penalties and moments are those of the whole one."""
    found = compared[name]
    assert found["same_bits"]
    if "bf16" in name:  # whose products are rounded in another order, and to 3 digits
        assert found["statistics"] < 0.05
    else:
        assert found["apart"] < 2e-5
        assert found["statistics"] < 5e-6


# ---------------------------------------------------------------------------------------------------------------------
# Ends


def read_weights(folder: Path) -> torch.Tensor:
    """The parameters and buffers of the networks in a run's last checkpoint."""
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["state"]
    return torch.cat([v.double().flatten() for name in ("generator", "discriminator") for v in state[name].values()])


def test_a_stopped_run_goes_on_with_another_number_of_devices(gantrain, tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    typed = ["train", *TINY, "train.images=100000", f"run_dir={two}", "devices=2"]
    command = Command(tmp_path / "log", *typed, daemon=False)
    command.wait_until(lambda: list(two.glob("checkpoints/*.pt")))
    command.send(signal.SIGTERM)
    assert command.wait() == 143
    assert command.output.endswith(f"\ngantrain: stopped by SIGTERM; go on with: gantrain resume {two}\n")
    assert "on 2 × cpu" in command.output
    summary = read_summary(two)
    assert (summary["status"], summary["exit_code"]) == ("stopped", 143)

    length = f"train.images={summary['images'] + 200}"
    assert gantrain("resume", two, "devices=1", length).code == 0
    assert gantrain("train", *TINY, f"run_dir={one}", length).code == 0
    assert read_summary(two)["images"] == read_summary(one)["images"]
    assert_close_to_largest(read_weights(two), read_weights(one), 1e-4)


def test_a_run_that_diverges_ends_all_processes_with_its_code(tmp_path: Path) -> None:
    typed = ["train", *TINY, f"run_dir={tmp_path / 'run'}", "optimizer.lr=1e30"]
    first, other = run_in_processes(2, partial(main, typed))
    assert first[0] == read_summary(tmp_path / "run")["exit_code"] == 5
    assert "not finite" in first[2]
    assert "Traceback" not in first[2]
    assert (other[0], other[1]) == (0, "")


def test_a_killed_process_ends_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    typed = ["train", *TINY, "train.images=100000", f"run_dir={folder}"]
    with processes(2, partial(main, typed)) as (first, other):
        wait_until(lambda: list(folder.glob("checkpoints/*.pt")) or first.process.exitcode is not None)
        other.process.kill()
        code, _, err = first.wait()
    assert code == read_summary(folder)["exit_code"] == 137
    assert "another process of this run ended without an error message" in err
    assert "the last good checkpoint is" in err
    assert "Traceback" not in err


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["devices=0"], "devices=0 must be at least 1"),
        (["devices=two"], "devices=two must be a whole number, or auto"),
        (["devices=3"], "train.batch_size=20 cannot be divided among 3 devices; choose train.batch_size=18 or 21"),
        (["devices=3", "train.batch_size=2"], "choose train.batch_size=3 or 6, or another number of devices"),
        (["devices=2", "graph=on", "device=cpu"], "graph=on"),
        (
            ["devices=2", "augment=ada", "augment.measure=held_out"],
            "augment.measure=held_out compares a batch with 5 held-out images, which 2 devices cannot share",
        ),
        (["devices=2", "device=cuda:0"], "device=cuda:0"),
    ],
)
def test_what_several_devices_cannot_train_is_refused(gantrain, typed: Sequence[str], said: str) -> None:
    answer = gantrain("train", *TINY, *typed)
    assert answer.code == 2
    assert said in answer.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), 7, "/data/x: "),
        (MemoryError("cannot allocate"), 8, "lower train.batch_size"),
        (DataError("x.png is damaged"), DataError.exit_code, "x.png is damaged"),
        (KeyError("x"), 1, "internal error: KeyError"),
    ],
)
def test_what_ends_one_process_ends_the_run_with_its_exit_code(error: Exception, code: int, said: str) -> None:
    found = describe_failure(error, rank=1)
    assert found["exit_code"] == code
    assert found["message"].startswith("process 1: ")
    assert said in found["message"]


def test_an_unexpected_error_of_the_first_process_is_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(worker, "validate", fail)
    worker.train_as_first({"folder": str(tmp_path), "config": "{}", "overrides": []}, tmp_path / "result.json")
    found = json.loads((tmp_path / "result.json").read_text())
    assert (found["exit_code"], found["signal"]) == (1, 0)
    assert "internal error: KeyError" in found["message"]
    assert "Traceback" in capsys.readouterr().err


def test_the_signal_of_a_preemption_is_passed_on_as_one_that_the_first_process_handles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And submitit's own handler, which queues the job again, is called when all has ended."""
    pipe, requeued, polls = io.StringIO(), [], iter([None, None, None, 0])
    agent = SimpleNamespace(stdin=pipe, poll=lambda: next(polls))

    @contextmanager
    def start(*_: object) -> Iterator[SimpleNamespace]:
        signal.raise_signal(signal.SIGUSR2)
        yield agent

    monkeypatch.setattr(worker, "describe_job", lambda prepared: {})
    monkeypatch.setattr(worker, "start_processes", start)
    monkeypatch.setattr(worker, "raise_result", lambda place, folder, passed_on: None)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    before = signal.signal(signal.SIGUSR2, lambda number, _: requeued.append(number))
    try:
        worker.train_in_processes(SimpleNamespace(processes=2), RunFolder(tmp_path), None)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert pipe.getvalue() == f"{int(signal.SIGTERM)}\n"
    assert requeued == [signal.SIGUSR2]


@pytest.mark.parametrize("stream", [None, SimpleNamespace(write=print)], ids=["none", "object"])
def test_the_program_may_have_any_object_as_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: SimpleNamespace | None
) -> None:
    """What the processes print then comes through a pipe."""
    started = []

    def start(*_: object, **keywords: Any) -> SimpleNamespace:
        started.append(keywords["stdout"])
        return SimpleNamespace(stdin=io.StringIO(), stdout=io.StringIO(), wait=lambda: 0)

    monkeypatch.setattr(worker.subprocess, "Popen", start)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with worker.start_processes(2, tmp_path):
            pass
    assert started == [worker.subprocess.PIPE]


def test_a_signal_before_the_processes_have_joined_is_what_stopped_the_run(tmp_path: Path) -> None:
    """The first process then ends without a result, as one does that is killed."""
    with pytest.raises(Interrupted, match="stopped by SIGTERM; the checkpoints") as raised:
        worker.raise_result(tmp_path, RunFolder(tmp_path), signal.SIGTERM)
    assert raised.value.exit_code == 143


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the second of two processes, which finds no other one."""
    for key, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(key, value)


@pytest.mark.parametrize(
    ("rank", "place", "typed", "code", "said"),
    [
        ("1", "127.0.0.1", ["sample", "nope"], 4, "nope does not exist"),
        ("1", "127.0.0.1", ["train", "--config-dir", "nope"], 2, "--config-dir nope is not a folder"),
        ("1", None, ["train", *TINY, "run_dir=run"], 2, "MASTER_ADDR"),
        ("x", "127.0.0.1", ["train", *TINY, "run_dir=run"], 2, "'x'; start the processes with torchrun"),
    ],
)
def test_a_process_that_has_not_joined_reports_its_own_errors(
    gantrain, second, monkeypatch, rank: str, place: str | None, typed: Sequence[str], code: int, said: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    if place is None:
        monkeypatch.delenv("MASTER_ADDR")
    answer = gantrain(*typed)
    assert answer.code == code
    assert said in answer.err


def test_a_port_in_use_is_named(gantrain, second, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        answer = gantrain("train", *TINY, "run_dir=run")
    assert answer.code == 2
    assert f"MASTER_PORT={port}" in answer.err
    assert "give a free port" in answer.err


def test_a_signal_ends_a_process_that_waits_for_the_others(second, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler in Python would not be called before all have joined."""
    numbers, found = (signal.SIGINT, signal.SIGTERM), []

    def wait(_: str) -> None:
        found.extend(map(signal.getsignal, numbers))
        raise ValueError("nobody came")

    monkeypatch.setattr(torch.distributed, "init_process_group", wait)
    with StopRequest():
        before = [*map(signal.getsignal, numbers)]
        with pytest.raises(ConfigError, match="nobody came"), join():
            pass
        assert [*map(signal.getsignal, numbers)] == before
    assert found == [signal.SIG_DFL] * 2


def test_devices_of_a_cpu_are_one(gantrain) -> None:
    assert "on cpu" in gantrain("train", *TINY, "devices=auto", "train.images=40").out
