"""Full, read-only, vanished or exhausted storage ends a run with exit 7 and leaves its last good checkpoint."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from faults.processes import Command, Fault, run, stand_still, when_called
from faults.runs import SMALL, assert_same_run, sweeping, training
from gantrain.runs import bundles, checkpoints

SAVE = "gantrain.runs.checkpoints:save"
as_root = pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")


@contextmanager
def mounted(*options: str) -> Iterator[None]:
    """Something mounted on the folder that is named last."""
    subprocess.run(["mount", *options], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", options[-1]], check=True)


def assert_stopped_by_storage(code: int, output: str, *, remedy: str) -> None:
    """The message names the failure, what helps, and the checkpoint that stands, and the exit code is 7."""
    assert code == 7, output
    message = output[output.index("gantrain: ") :]
    assert remedy in message
    assert "the last good checkpoint is " in message
    good = Path(message.rpartition("the last good checkpoint is ")[2].strip())
    assert bundles.is_whole(good)
    assert "Traceback" not in output


def go_on(log: Path, folder: Path, uninterrupted: Path) -> None:
    code, output = run(log, *training(folder))
    assert code == 0, output
    assert "resuming from" in output
    assert_same_run(uninterrupted, folder)


def at_checkpoint(number: int, effect: Fault) -> None:
    """Before the given checkpoint is saved, something happens to the machine."""
    when_called(SAVE, lambda *_, **__: effect(), call=number)


def at_first_report(effect: Fault) -> None:
    """Before the first report, likewise."""
    when_called("gantrain.reporting.reporter:Reporter.report", lambda *_, **__: effect())


def limit_file_size(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def exhaust_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))


@pytest.mark.parametrize(
    ("fault", "effect", "remedy"),
    [
        ("a limit on the size of files", partial(limit_file_size, 300_000), "File too large; raise the limit"),
        ("exhausted descriptors", exhaust_descriptors, "Too many open files; raise the limit"),
    ],
)
def test_a_limit_is_hit_while_saving(tried, times, fault, effect, remedy, uninterrupted, tmp_path):
    for number in times.of(range(2, 11), 1):
        folder, log = tmp_path / f"run{number}", tmp_path / f"log{number}"
        with tried(fault):
            code, output = run(log, *training(folder), fault=partial(at_checkpoint, number, effect))
            assert_stopped_by_storage(code, output, remedy=remedy)
            assert not list((folder / "checkpoints").glob(".*"))
            go_on(log, folder, uninterrupted)


@as_root
def test_a_full_disk(tried, times, uninterrupted, tmp_path):
    """Another program fills it: before a checkpoint, up to so many bytes, or within the write of one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    before = [partial(at_checkpoint, 4, partial(fill, disk, spare)) for spare in (0, 1, 4096, 2**16, 2**20, 2**22)]
    for number, fault in enumerate(times.of([partial(fill_within_a_write, disk), *before], 1)):
        with (
            mounted("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)),
            tried("a full disk" if number else "a disk that fills up within a write"),
        ):
            folder, log = disk / "run", tmp_path / f"log{number}"
            code, output = run(log, *training(folder), fault=fault)
            assert_stopped_by_storage(code, output, remedy="No space left on device; free some space on its disk")
            assert "MiB" in output
            assert not list((folder / "checkpoints").glob(".*"))
            (disk / "others").unlink()
            go_on(log, folder, uninterrupted)


def fill(disk: Path, spare: int) -> None:
    """Another program takes all but `spare` bytes of the disk."""
    with (disk / "others").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - spare)


def fill_within_a_write(disk: Path) -> None:
    """It does so after the free space has been looked at."""
    when_called("gantrain.runs.bundles:replace_file", lambda *_, **__: fill(disk, 2**20), call=4)


@as_root
def test_a_folder_that_becomes_read_only(tried, uninterrupted, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    with tried("a run folder that becomes read-only"):
        go = tmp_path / "go"
        command = Command(log, *training(folder), fault=partial(stand_still, SAVE, go, call=3))
        command.wait_until(lambda: len(checkpoints.list_files(folder / "checkpoints")) >= 2)
        with mounted("--bind", str(folder), str(folder)):
            subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
            go.touch()
            code = command.wait()
            assert_stopped_by_storage(code, command.output, remedy="Read-only file system; make it writable")
            assert run(log, "resume", folder, "device=cpu")[0] == 7
        go_on(log, folder, uninterrupted)


def test_a_place_that_cannot_hold_a_run(tried, times, tmp_path):
    (tmp_path / "file").write_text("")
    for place in times.of(["/proc/run", tmp_path / "file", "/sys/run", tmp_path / "file" / "run", "/dev/full"], 2):
        with tried("a place that cannot hold a run"):
            code, output = run(tmp_path / "log", *training(Path(place)))
            assert code == 7, output
            assert str(place) in output
            assert "Traceback" not in output


def test_a_run_folder_that_vanishes(tried, uninterrupted, tmp_path):
    """Moved away while it trains, it is not made again in the old place, and goes on in the new one."""
    folder, log = tmp_path / "run", tmp_path / "log"
    with tried("a run folder that vanishes"):
        moved = tmp_path / "moved"
        code, output = run(log, *training(folder), fault=partial(at_first_report, partial(folder.rename, moved)))
        assert code == 7, output
        assert f"{folder} is gone" in output
        assert "which is no longer there" in output
        assert not folder.exists()
        go_on(log, moved, uninterrupted)


# Where a moved run first finds that another one has its place: all that it writes is refused there.
WRITES = {
    "reports and logs": ("gantrain.reporting.reporter:Reporter.report", 2),
    "grids": ("gantrain.plotting:save_grid", 2),
    "curves": ("gantrain.reporting.pictures:save_curves", 1),
    "checkpoints": (SAVE, 4),
    "old checkpoints, which are deleted": ("gantrain.runs.checkpoints:_prune", 5),
    "the end of the event file": ("gantrain.reporting.reporter:Reporter.close", 1),
    "the summary": ("gantrain.runs.folder:RunFolder.write_summary", 3),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_run_folder_that_another_run_takes(tried, write, uninterrupted, tmp_path):
    """Moved away while it trains, a run writes nothing into the folder or the link that has its old place."""
    folder, moved, go = tmp_path / "run", tmp_path / "moved", tmp_path / "go"
    function, call = WRITES[write]
    with tried("a run folder that is moved, and another run in its place"):
        command = Command(tmp_path / "log", *training(folder), fault=partial(stand_still, function, go, call=call))
        command.wait_until(lambda: (tmp_path / "waiting").exists())
        folder.rename(moved)
        if write == "reports and logs":
            code, output = run(tmp_path / "second", *training(folder, "seed=1"))
            assert code == 0, output
        else:
            shutil.copytree(uninterrupted, other := tmp_path / "other")
            folder.symlink_to(other) if write == "grids" else other.rename(folder)
        before = read_files(folder)
        go.touch()
        assert command.wait() == 7, command.output
        assert f"{folder} was moved or removed while this run trained" in command.output
        assert command.output.count("another folder has its place") == 1
        assert "Traceback" not in command.output
        assert read_files(folder) == before
        go_on(tmp_path / "third", moved, uninterrupted)


def test_a_sweep_folder_that_another_sweep_takes(tried, tmp_path):
    root, go = tmp_path / "sweep", tmp_path / "go"
    with tried("a sweep folder that is moved, and another sweep in its place"):
        fault = partial(stand_still, "gantrain.reporting.reporter:Reporter.report", go, call=2)
        command = Command(tmp_path / "log", *sweeping(root), fault=fault)
        command.wait_until(lambda: (tmp_path / "waiting").exists())
        root.rename(tmp_path / "moved")
        code, output = run(tmp_path / "second", "train", "-m", "gen_div=kl", f"run_dir={root}", *SMALL)
        assert code == 0, output
        before = read_files(root)
        go.touch()
        assert command.wait() == 7, command.output
        assert read_files(root) == before
        code, output = run(tmp_path / "third", "resume", tmp_path / "moved")
        assert code == 0, output
        assert "2 of 2 runs finished" in output


def read_files(folder: Path) -> dict[Path, bytes | None]:
    """What lies in and below a folder: the content of every file."""
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_logs_and_pictures_that_cannot_be_written_cost_nothing(tried, uninterrupted, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    for taken in ("metrics.jsonl", "losses.png"):
        (folder / taken).mkdir(parents=True)
    (folder / "samples").write_text("")
    with tried("logs and pictures that cannot be written"):
        code, output = run(log, *training(folder))
        assert code == 0, output
        assert "the run goes on without them" in output
        ours, theirs = (checkpoints.load_newest(run / "checkpoints")[1]["images"] for run in (folder, uninterrupted))
        assert ours == theirs


def test_a_limit_that_only_logs_exceed(tried, tmp_path):
    """A tiny network's checkpoints stay below the limit on file sizes; TensorBoard's file and pictures do not."""
    folder, log = tmp_path / "run", tmp_path / "log"
    with tried("a limit that only logs and pictures exceed"):
        overrides = ["dataset=mixture1d", "architecture=affine", "train.report_every_images=50"]
        code, output = run(log, *training(folder, *overrides), fault=partial(limit_file_size, 80_000))
        assert code == 0, output
        assert "File too large" in output
        assert checkpoints.load_newest(folder / "checkpoints")[1]["images"] == 500


def test_a_full_disk_under_standard_output_costs_nothing(tried, tmp_path):
    with tried("standard output on a full disk"):
        assert Command(Path("/dev/full"), *training(tmp_path / "run")).wait() == 0
        assert checkpoints.load_newest(tmp_path / "run" / "checkpoints")[1]["images"] == 500
