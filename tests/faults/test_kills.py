"""Killed at any moment, a run goes on to the same end; and a checkpoint is whole, or is known not to be."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from types import FrameType

import pytest
import torch
from support.waiting import PATIENCE_SECONDS

from faults.processes import FORKS, Command, run, when_called
from faults.runs import assert_same_run, assert_same_sweep, sweeping, training
from gantrain.launch.sweep_folder import is_sweep
from gantrain.runs import checkpoints

WRITE = "gantrain.runs.checkpoints:write_with_checksum"


def kill_after(seconds: float, log: Path, *arguments: object) -> None:
    """Kill the command at that age, or let it end."""
    command = Command(log, *arguments)
    command.process.join(seconds)
    command.process.kill()
    assert command.wait() in (0, -signal.SIGKILL), command.output


def finish(log: Path, folder: Path, uninterrupted: Path) -> str:
    """Resume the run, or start it if it has no checkpoint, compare its end, and return what was printed."""
    code, output = run(log, *training(folder))
    assert code == 0, output
    assert_same_run(uninterrupted, folder)
    return output


def test_killed_at_random_moments(tried, times, uninterrupted, tmp_path):
    if not times.soak:
        pytest.skip("the moments below are enough in the fast form")
    moments = random.Random(0)
    duration = (uninterrupted / "summary.json").stat().st_mtime - (uninterrupted / ".lock").stat().st_mtime
    for number in range(50):
        folder, log = tmp_path / f"run{number}", tmp_path / f"log{number}"
        with tried("SIGKILL at a random moment"), tried("SIGKILL again, while it resumes"):
            kill_after(moments.uniform(0.3, 1.2) * duration, log, *training(folder))
            kill_after(moments.uniform(0.2, 0.8) * duration, log, *training(folder))
            finish(log, folder, uninterrupted)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_sweep_killed_at_random_moments(tried, times, tmp_path):
    whole, moments = tmp_path / "whole", random.Random(1)
    begun = time.monotonic()
    code, output = run(tmp_path / "log", *sweeping(whole))
    assert code == 0, output
    duration = time.monotonic() - begun
    for number in range(times(1, soak=20)):
        folder, log = tmp_path / f"sweep{number}", tmp_path / f"log{number}"

        def go_on(folder: Path = folder) -> list[str]:
            return ["resume", str(folder)] if is_sweep(folder) else sweeping(folder)

        with tried("SIGKILL of a sweep at a random moment"), tried("SIGKILL of a sweep again, while it resumes"):
            kill_after(moments.uniform(0.2, 1.0) * duration, log, *go_on())
            kill_after(moments.uniform(0.2, 0.8) * duration, log, *go_on())
            code, output = run(log, *go_on())
            assert code == 0, output
            assert_same_sweep(whole, folder)
        shutil.rmtree(folder, ignore_errors=True)


def die_at_byte(position: int, checkpoint: int) -> None:
    """The kernel ends this process at a byte of the given checkpoint's file."""

    def limit(*_: object) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (position, position))

    when_called(WRITE, limit, call=checkpoint)


def test_killed_at_a_byte_of_a_checkpoint(tried, times, uninterrupted, tmp_path):
    size = checkpoints.list_files(uninterrupted / "checkpoints")[0].stat().st_size
    positions = [0, 1, *(size * n // 40 for n in range(1, 40)), size - 1]
    for number, position in enumerate(times.of(positions[20:] + positions[:20], 1)):
        folder, log = tmp_path / f"run{number}", tmp_path / f"log{number}"
        with tried("death at a byte of a checkpoint's file"):
            code, output = run(log, *training(folder), fault=partial(die_at_byte, position, 1 + number % 4))
            assert code == -signal.SIGXFSZ, output
            (torn,) = (folder / "checkpoints").glob(".images_*.tmp")
            assert torn.stat().st_size == position
            finish(log, folder, uninterrupted)
            assert not list((folder / "checkpoints").glob(".*"))
        shutil.rmtree(folder, ignore_errors=True)


def bundle(images: int) -> dict:
    """A checkpoint's contents, small."""
    rest: dict = {"config": {}, "generator": {}, "data": {}, "made_with": {}}
    return {"format": checkpoints.FORMAT, "images": images, "state": {"weights": torch.full((1000,), images)}} | rest


def save_and_die(folder: Path, call: int) -> None:
    """Save a checkpoint, and die as it makes its given call of the operating system or of a file's method."""
    import os
    import sys

    calls = 0

    def count(_: FrameType, event: str, function: object) -> None:
        nonlocal calls
        module = getattr(function, "__module__", None) or type(getattr(function, "__self__", None)).__module__
        if event == "c_call" and module in ("posix", "_io"):
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)

    warm_up = folder.with_name("warm")
    warm_up.mkdir(exist_ok=True)
    checkpoints.save(warm_up, bundle(1), keep=2)  # what is imported on the way is no part of it
    sys.setprofile(count)
    checkpoints.save(folder, bundle(4), keep=2)
    sys.setprofile(None)
    print("calls:", calls)


def test_killed_at_every_call_of_a_save(tried, times, tmp_path):
    """Two whole checkpoints stand at any moment, and the next save leaves no trace of the kill."""
    call, alive = 1, False
    while not alive:
        folder = tmp_path / f"checkpoints{call}"
        folder.mkdir()
        for images in (1, 2, 3):
            checkpoints.save(folder, bundle(images), keep=2)
        process = FORKS.Process(target=save_and_die, args=(folder, call))
        process.start()
        process.join(PATIENCE_SECONDS)
        alive = process.exitcode == 0
        with tried("SIGKILL at a call within a save"):
            assert process.exitcode in (0, -signal.SIGKILL)
            _, found, problems = checkpoints.load_newest(folder)
            assert found["images"] in (3, 4)
            assert problems == []
            assert torch.equal(found["state"]["weights"], bundle(found["images"])["state"]["weights"])
            assert sum(checkpoints.is_whole(path) for path in checkpoints.list_files(folder)) >= 2
            assert checkpoints.load(folder / "last.pt")["images"] in (3, 4)
            checkpoints.save(folder, bundle(5), keep=2)
            assert checkpoints.list_files(folder)[0].name == checkpoints.file_name(5)
            assert not list(folder.glob(".*"))
        shutil.rmtree(folder)
        call += times(11, soak=1)
    assert call > 40  # it was no empty loop


def test_flipped_bits(tried, times, uninterrupted, tmp_path):
    """In a checkpoint or in its checksum, one costs one interval."""
    folder = shutil.copytree(uninterrupted / "checkpoints", tmp_path / "checkpoints")
    newest, older = checkpoints.list_files(folder)[:2]
    recorded, places = newest.with_name(f"{newest.name}.sha256"), random.Random(0)
    size = 8 * newest.stat().st_size
    flips = [("a checkpoint", newest, places.randrange(size)) for _ in range(times(20, soak=300))]
    flips += [("a checksum", recorded, bit) for bit in range(0, 8 * 64, times(64, soak=8))]
    for what, flipped, bit in flips:
        damaged = bytearray(content := flipped.read_bytes())
        damaged[bit // 8] ^= 1 << bit % 8
        with tried(f"a flipped bit in {what}"):
            flipped.write_bytes(damaged)
            path, _, (problem,) = checkpoints.load_newest(folder)
            assert path == older
            assert f"{newest.name} " in problem
            assert "checksum" in problem
        flipped.write_bytes(content)
    assert checkpoints.load_newest(folder)[0] == newest


def test_a_damaged_checkpoint_is_named_with_what_it_costs(tried, uninterrupted, tmp_path):
    folder = shutil.copytree(uninterrupted, tmp_path / "run")
    newest, older = checkpoints.list_files(folder / "checkpoints")[:2]
    newest.write_bytes(newest.read_bytes()[:-1])
    with tried("a truncated checkpoint, resumed"):
        output = finish(tmp_path / "log", folder, uninterrupted)
        assert f"passed over: {newest}" in output
        assert f"resuming from {older.name}, at 450 images; the next 50 images are trained again" in output


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "without checksum": lambda path: path.with_name(f"{path.name}.sha256").unlink(),
}


def test_without_any_good_checkpoint_nothing_starts_afresh(tried, times, uninterrupted, tmp_path):
    for damage in times.of(DAMAGES, 2):
        folder = shutil.copytree(uninterrupted, tmp_path / damage)
        for path in checkpoints.list_files(folder / "checkpoints"):
            DAMAGES[damage](path)
        for arguments in (["resume", folder], training(folder)):
            with tried("a run whose checkpoints are all damaged"):
                code, output = run(tmp_path / f"log {damage}", *arguments)
                assert code == 4, output
                assert "checkpoint" in output
