"""Runs on several devices: a process of theirs is killed at any moment, and the run goes on to the same end."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from support.ranks import main as compare_cases
from support.ranks import run_in_processes
from support.tolerance import assert_close_to_largest
from support.waiting import PATIENCE_SECONDS, wait_until

from faults.processes import Command, run
from gantrain.cli import main
from gantrain.runs.folder import RunFolder

TINY = (
    *("device=cpu", "train.images=1200", "train.batch_size=24", "train.held_out_images=40", "optimizer=sgd"),
    *("train.report_every_images=240", "train.sample_every_images=1200", "train.checkpoint_every_images=120"),
    *("train.checkpoint_min_seconds=0", "architecture=mlp_digits", "logger=[]"),
)
ENDLESS = "train.images=100000000"


def training(folder: Path, devices: int, *more: str) -> list[str]:
    return ["train", *TINY, f"run_dir={folder}", f"devices={devices}", "resume=auto", *more]


def find_family(pid: int) -> list[int]:
    """The numbers of a process and of all that it has started, and these."""
    found = [pid]
    for parent in found:
        children = Path(f"/proc/{parent}/task/{parent}/children")
        found += map(int, children.read_text().split()) if children.exists() else []
    return found


@contextmanager
def frozen(processes: list[int]) -> Iterator[None]:
    """Stop processes for the time of the block."""
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    yield
    for pid in processes:
        os.kill(pid, signal.SIGCONT)


def weights(folder: Path) -> torch.Tensor:
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["state"]
    return torch.cat([v.double().flatten() for name in ("generator", "discriminator") for v in state[name].values()])


def test_killed_at_random_moments(tried, times, tmp_path):
    """The victim is the command, torchrun, or a process for a device; the number of devices changes at each start."""
    if not times.soak:
        pytest.skip("tests/test_ranks.py kills one")
    whole, moments = tmp_path / "whole", random.Random(0)
    begun = time.monotonic()
    code, output = run(tmp_path / "log", *training(whole, 1))
    assert code == 0, output
    duration = time.monotonic() - begun
    for number in range(times(0, soak=10)):
        folder, log = tmp_path / f"run{number}", tmp_path / f"log{number}"
        for devices in (4, 2, 3):
            with tried("SIGKILL of one process of a run on several devices"):
                command = Command(log, *training(folder, devices), daemon=False)
                command.process.join(moments.uniform(0.5, 4) * duration)
                with suppress(ProcessLookupError):  # it has ended
                    os.kill(moments.choice(find_family(command.pid)), signal.SIGKILL)
                assert command.wait() in (0, 137, -signal.SIGKILL), command.output
                assert "Traceback" not in command.output
        with tried("a run of which processes were killed, on one device to its end"):
            code, output = run(log, *training(folder, 1))
            assert code == 0, output
            assert_close_to_largest(weights(folder), weights(whole), 1e-4)
        shutil.rmtree(folder)


def test_torchrun_killed_at_the_start(tried, tmp_path):
    """The processes for the devices do not wait for it, though they have not joined yet."""
    with tried("SIGKILL of torchrun when its processes have just begun"):
        command = Command(tmp_path / "log", *training(tmp_path / "run", 2), daemon=False)
        command.wait_until(lambda: len(find_family(command.pid)) == 4)
        _, torchrun, *workers = find_family(command.pid)
        begun = time.monotonic()
        os.kill(torchrun, signal.SIGKILL)
        assert command.wait() == 137, command.output
        assert time.monotonic() - begun < PATIENCE_SECONDS / 4
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
        assert "Traceback" not in command.output


def test_four_processes_have_the_same_weights_after_fifty_iterations(tried, times, tmp_path):
    """Of every update, objective, regularizer, augmentation and layer. Apart from one process they are only rounded."""
    if not times.soak:
        pytest.skip("tests/test_ranks.py has two processes and five iterations")
    found = tmp_path / "found.json"
    with tried("fifty iterations of each game on four devices"):
        ends = run_in_processes(4, partial(compare_cases, found, 50))
        assert [code for code, *_ in ends] == [0] * 4, ends
        for name, one in json.loads(found.read_text()).items():
            assert one["same_bits"], name
            assert one["apart"] < (0.1 if "bf16" in name else 1e-3), (name, one)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_a_run_of_four(tried, times, tmp_path, number):
    if not times.soak:
        pytest.skip("tests/test_ranks.py has one")
    folder = tmp_path / "run"
    with tried(f"{signal.Signals(number).name} to a run on four devices"):
        command = Command(tmp_path / "log", *training(folder, 4, ENDLESS), daemon=False)
        command.wait_until(lambda: list(folder.glob("checkpoints/*.pt")))
        command.send(number)
        assert command.wait() == 128 + number, command.output
        summary = RunFolder(folder).read_summary()
        assert (summary["status"], summary["exit_code"]) == ("stopped", 128 + number)


def test_a_sweep_in_parallel_trains_each_run_on_two_devices(tried, times, tmp_path):
    if not times.soak:
        pytest.skip("it takes a minute")
    sweep = tmp_path / "sweep"
    typed = ["train", "-m", *TINY, f"run_dir={sweep}", "devices=2", "seed=0,1", "hydra/launcher=parallel"]
    with tried("a parallel sweep of runs on two devices"):
        command = Command(tmp_path / "log", *typed, "hydra.launcher.jobs=2", daemon=False)
        assert command.wait() == 0, command.output
        assert command.output.count("on 2 × cpu") == 2
        assert "0-seed-0  finished" in command.output
        summaries = [RunFolder(path).read_summary() for path in sorted(sweep.glob("[0-9]*"))]
        assert [(one["status"], one["devices"]) for one in summaries] == [("finished", 2)] * 2


def test_a_checkpoint_that_cannot_be_written_ends_all_processes(tried, times, tmp_path):
    if not times.soak:
        pytest.skip("it takes a minute")
    folder = tmp_path / "run"
    with tried("a checkpoint that cannot be written, on two devices"):
        command = Command(tmp_path / "log", *training(folder, 2, ENDLESS), daemon=False)
        command.wait_until(lambda: list(folder.glob("checkpoints/*.pt")))
        with frozen(find_family(command.pid)):
            shutil.rmtree(folder / "checkpoints")
            (folder / "checkpoints").write_text("in the way")
        assert command.wait() == 7, command.output
        assert RunFolder(folder).read_summary()["exit_code"] == 7


def test_data_that_one_process_lacks_end_all_processes(tried, times, tmp_path):
    """As on a machine to which the data were not copied."""
    if not times.soak:
        pytest.skip("it takes half a minute")
    folders = [tmp_path / "here", tmp_path / "there"]
    for folder in folders:
        folder.mkdir()
    np.save(folders[0] / "X.npy", np.random.default_rng(0).integers(0, 256, (200, 8, 8), np.uint8))
    typed = ["train", *TINY, "dataset=array", "dataset.path=X.npy", "dataset.size=8", "run_dir=run"]
    with tried("data that one of two processes does not have"):
        first, other = run_in_processes(2, partial(main, typed), folders=folders)
        assert (first[0], other[0]) == (3, 0)
        assert "process 1: X.npy does not exist" in first[2]
        assert RunFolder(folders[0] / "run").read_summary()["exit_code"] == 3
