"""Several processes on one run, clocks that jump, and runs that last."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import gantrain
from faults.processes import Command, run, signal_itself, stand_still
from faults.runs import SMALL, assert_same_run, training
from gantrain.runs import checkpoints


def test_a_second_process_on_a_run_folder_is_refused(tried, uninterrupted, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    fault = partial(stand_still, "gantrain.training.step:Step.discriminator_step", tmp_path / "never", call=8)
    first = Command(log, *training(folder), fault=fault)
    first.wait_until(lambda: f"checkpoint {checkpoints.file_name(350)}" in first.output)
    before = sorted(path.name for path in (folder / "checkpoints").iterdir())
    for arguments in (training(folder), ["train", f"run_dir={folder}", *SMALL], ["resume", folder, "device=cpu"]):
        with tried("a second process on a run folder"):
            code, output = run(tmp_path / "second", *arguments)
            assert code == 6, output
            assert f"process {first.pid} on " in output
            (tmp_path / "second").unlink()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == before
    with tried("a lock whose process was killed"):
        first.send(signal.SIGKILL)
        first.wait()
        assert run(log, *training(folder))[0] == 0
        assert_same_run(uninterrupted, folder)


def test_two_sweeps_in_one_folder(tried, tmp_path):
    root = tmp_path / "sweep"
    sweep = ["train", "-m", f"run_dir={root}", "seed=0,1", *SMALL]
    with tried("a second sweep in a folder"):
        first = Command(tmp_path / "first", *sweep)
        first.wait_until(lambda: list(root.glob("*/summary.json")))
        code, output = run(tmp_path / "second", *sweep)
        assert code == 6, output
        assert f"process {first.pid} on " in output
        assert first.wait() == 0, first.output
        code, output = run(tmp_path / "third", *sweep)
        assert code == 6, output
        assert "already holds a sweep" in output


def test_reading_while_training_saves_and_prunes(tried, times, tmp_path):
    """Every checkpoint that a reader finds is whole, and in each way of finding it they only get newer."""
    folder = tmp_path / "run"
    overrides = ["train.checkpoint_every_images=50", "train.keep_checkpoints=2", "train.report_every_images=100000"]
    images = times(2_500, soak=30_000)
    command = Command(tmp_path / "log", *training(folder, f"train.images={images}", *overrides))
    command.wait_until(lambda: (folder / "checkpoints" / "last.pt").exists())
    seen = [0, 0, 0]
    while command.process.exitcode is None:
        with tried("reading while training saves and prunes"):
            _, newest, problems = checkpoints.load_newest(folder / "checkpoints")
            last = checkpoints.load(folder / "checkpoints" / "last.pt")
            generator = gantrain.load(folder)
            assert not problems
            assert generator.sample(4).isfinite().all()
            found = [newest["images"], last["images"], generator.images]
            assert all(before <= now for before, now in zip(seen, found, strict=True))
            seen = found
    assert command.wait() == 0, command.output
    assert min(seen) > 0
    assert len(checkpoints.list_files(folder / "checkpoints")) == 2


def jumping(clock: Callable[[], float], seconds: float) -> Callable[[], float]:
    """A clock that is off by up to so many seconds, differently each time."""
    jumps = random.Random(0)
    return lambda: max(0.0, clock() + jumps.uniform(-seconds, seconds))


def clocks_jump() -> None:
    year = 365 * 24 * 3600.0
    time.time, time.monotonic = jumping(time.time, 20 * year), jumping(time.monotonic, year)


def clocks_stand_still() -> None:
    time.time, time.monotonic = lambda: 1e9, lambda: 1e5


def test_clocks_that_jump_or_stand_still_change_nothing(tried, times, uninterrupted, tmp_path):
    for fault in (clocks_jump, clocks_stand_still)[: times(1, soak=2)]:
        folder, log = tmp_path / fault.__name__, tmp_path / f"log-{fault.__name__}"
        with tried("clocks that jump or stand still"):
            stop = partial(stop_late, fault)
            code, output = run(log, *training(folder), fault=stop)
            assert code == 143, output
            code, output = run(log, *training(folder), fault=clocks_stand_still)
            assert code == 0, output
            due = {path.name for path in (uninterrupted / "samples").iterdir()}
            for grid in (folder / "samples").iterdir():
                if grid.name not in due:  # drawn with a checkpoint that the jump made overdue
                    grid.unlink()
            assert_same_run(uninterrupted, folder)


def stop_late(fault: Callable[[], None]) -> None:
    fault()
    signal_itself("gantrain.training.step:Step.discriminator_step", signal.SIGTERM, call=7)


def usage(pid: int, folder: Path) -> dict[str, int]:
    """Resident bytes, open files, threads, and checkpoints."""
    process = Path("/proc", str(pid))
    return {
        "memory": int((process / "statm").read_text().split()[1]) * resource.getpagesize(),
        "open files": len(list((process / "fd").iterdir())),
        "threads": len(list((process / "task").iterdir())),
        "checkpoints": len(checkpoints.list_files(folder / "checkpoints")),
    }


def test_many_steps_leave_everything_flat(tried, times, measured, tmp_path):
    """Reports, grids, curves and checkpoints included: the least that is in use, between writes, does not grow."""
    steps, reports = times(300, soak=20_000), times(18, soak=60)
    folder = tmp_path / "run"
    images = 20 * steps
    intervals = [f"train.{name}_every_images={images // reports}" for name in ("report", "sample", "checkpoint")]
    arguments = training(folder, "train.batch_size=20", f"train.images={images}", *intervals)
    command = Command(tmp_path / "log", *arguments, fault=draw_curves_often if times.soak else None)
    seen: list[tuple[int, dict[str, int]]] = []
    with tried(f"{steps:,} steps"):
        while command.process.exitcode is None:
            with suppress(FileNotFoundError):  # it has just ended, or a file has just been pruned
                seen.append((len(list((folder / "samples").glob("images_*.png"))), usage(command.pid, folder)))
            time.sleep(0.01)
        assert command.wait() == 0, command.output
        first, second = (
            {name: min(used[name] for done, used in seen if low <= done < high) for name in seen[0][1]}
            for low, high in ((reports // 4, reports // 2), (reports // 2, reports))
        )
        assert second["memory"] <= first["memory"] + 2**24
        assert second | {"memory": 0} == first | {"memory": 0}
    measured(
        f"resident memory over {steps:,} steps",
        f"{first['memory'] >> 20} MiB in the first half, {second['memory'] >> 20} MiB in the second",
    )


def draw_curves_often() -> None:
    """At every report instead of once a minute."""
    import gantrain.training.outputs

    gantrain.training.outputs.SECONDS_BETWEEN_CURVES = 0.0


def test_a_copied_run_is_a_run(uninterrupted, tmp_path):
    """Its checkpoints, `last.pt` among them, have their checksums beside them wherever the folder goes."""
    copy = shutil.copytree(uninterrupted, tmp_path / "copy")
    ours, theirs = (gantrain.load(run).sample(8) for run in (copy, uninterrupted / "checkpoints" / "last.pt"))
    assert torch.equal(ours, theirs)


def test_what_checkpoints_cost(times, measured, tmp_path):
    """The share of a run's time that goes into saving, at the default interval and on the smallest networks."""
    if not times.soak:
        pytest.skip("a measurement of a minute, for scripts/soak")
    folder, spent = tmp_path / "run", tmp_path / "spent"
    arguments = ["train", f"run_dir={folder}", "train.checkpoint_min_seconds=0", "train.images=400000"]
    code, output = run(tmp_path / "log", *arguments, fault=partial(clock_saving, spent))
    assert code == 0, output
    seconds = json.loads((folder / "summary.json").read_text())["seconds"]
    measured("time spent on checkpoints every 50,000 images of the digits", f"{float(spent.read_text()) / seconds:.2%}")


def clock_saving(spent: Path) -> None:
    """Note how many seconds saving has taken."""
    save, total = checkpoints.save, 0.0

    def timed(*arguments: Any, **keys: Any) -> Path:
        nonlocal total
        begin = time.monotonic()
        path = save(*arguments, **keys)
        total += time.monotonic() - begin
        spent.write_text(str(total))
        return path

    checkpoints.save = timed
