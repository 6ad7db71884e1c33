"""Runs of a sweep in parallel processes: each as it would be alone, none affected by the end of another."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from support.runs import assert_equal_runs
from support.waiting import wait_until

from faults.processes import Command
from gantrain.devices import choose_device
from gantrain.launch.parallel import Worker, build_workers, count_cores
from gantrain.runs import checkpoints
from gantrain.runs.folder import RunFolder

Gantrain = Callable[..., Any]
TINY = (
    *("device=cpu", "train.images=400", "train.batch_size=20", "train.held_out_images=40", "optimizer=sgd"),
    *("train.report_every_images=100", "train.sample_every_images=200", "train.checkpoint_every_images=200"),
    "train.checkpoint_min_seconds=0",
)
PARALLEL = ("train", "-m", "hydra/launcher=parallel")
ENDLESS = "train.images=100000000"


class Sweep:
    """A parallel sweep in a session of its own, as at a terminal."""

    def __init__(self, place: Path, *arguments: str, jobs: int = 2) -> None:
        self.folder = place / "sweep"
        typed = [*PARALLEL, f"run_dir={self.folder}", *TINY, *arguments, f"hydra.launcher.jobs={jobs}"]
        self.command = Command(place / "log", *typed, fault=begin_session, daemon=False)

    def end(self) -> tuple[int, str]:
        """Return the exit code and the output, at the end."""
        return self.command.wait(), self.command.output

    @property
    def runs(self) -> list[RunFolder]:
        """The runs that have begun."""
        return [RunFolder(path) for path in sorted(self.folder.glob("[0-9]*"))]

    @property
    def endings(self) -> list[tuple[str, int | None]]:
        """Status and exit code of each run that has a summary."""
        return [(summary["status"], summary.get("exit_code")) for run in self.runs if (summary := run.read_summary())]

    @property
    def workers(self) -> list[int]:
        """Numbers of the worker processes, in the order of their start."""
        processes = Path(f"/proc/{self.command.pid}/task/{self.command.pid}/children").read_text().split()
        return sorted(int(pid) for pid in processes if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())

    @property
    def has_first_worker(self) -> bool:
        """Whether the process of the first run has left the sweep's process group: it has begun to import."""
        workers = self.workers
        return bool(workers) and os.getpgid(workers[0]) == workers[0]

    def wait_until_saved(self, *numbers: int) -> None:
        """Wait until the runs with these numbers have a checkpoint."""
        saved = [f"{number}*/checkpoints/last.pt" for number in numbers]
        self.command.wait_until(lambda: all(any(self.folder.glob(pattern)) for pattern in saved))


def begin_session() -> None:
    os.setsid()
    os.environ["OMP_NUM_THREADS"] = "2"


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Sweep]]:
    """`begin(*arguments)` begins a sweep; none outlives the test."""
    sweeps: list[Sweep] = []

    def begin(*arguments: str, jobs: int = 2) -> Sweep:
        sweeps.append(Sweep(tmp_path / str(len(sweeps)), *arguments, jobs=jobs))
        return sweeps[-1]

    yield begin
    for sweep in sweeps:
        sweep.command.process.kill()  # its workers end with it


def process_of(folder: RunFolder) -> int:
    """Return the number of the process that trains a run."""
    return int((folder.path / ".lock").read_text().split()[1])


def test_each_run_equals_its_solo_run_and_failures_stay_alone(begin, gantrain: Gantrain, tmp_path: Path) -> None:
    """Of four runs one trains, one diverges, two are refused."""
    sweep = begin("disc_div=kl", "optimizer.lr=0.01,1e30", "gen_div=kl,total_variation")
    code, output = sweep.end()
    assert (code, sweep.endings) == (2, [("finished", 0), ("failed", 2), ("failed", 5), ("failed", 2)])
    assert output.startswith("4 runs on cpu, 2 at once\n")
    assert "1 of 4 runs finished" in output
    runs = [run.path for run in sweep.runs]
    listed = output.partition("3 runs failed")[2]
    for folder, reason in ((runs[1], "total_variation"), (runs[2], "not finite"), (runs[3], "total_variation")):
        assert re.search(rf"^  .*{re.escape(folder.name)}.*: .*{reason}", listed, re.MULTILINE)
    assert RunFolder(runs[0]).read_summary()["threads"] == 1
    names = "|".join(re.escape(folder.name) for folder in runs)
    assert re.search(rf"^{re.escape(runs[0].name)}  images 400/400 ", output, re.MULTILINE)
    lines = output.partition("1 of 4 runs finished")[0].splitlines()[1:]
    assert all(re.match(rf"({names})  ", line) for line in lines if line)

    alone = tmp_path / "alone"
    typed = ["disc_div=kl", "optimizer.lr=0.01", "gen_div=kl", f"run_dir={alone}"]
    assert gantrain("train", *TINY, *typed).code == 0
    assert_equal_runs(runs[0], alone)
    logs = {path.name: (path / "train.log").read_text().splitlines() for path in (runs[0], runs[2])}
    for name, logged in logs.items():
        assert all({f"{name}  {line}", f"{name}  failed: {line}"} & {*lines} for line in logged)
    assert sum(line.startswith("images 400/400 ") for line in logs[runs[0].name]) == 1
    assert "not finite" in "".join(logs[runs[2].name])


def test_a_killed_process_is_that_runs_failure_alone(tried, begin) -> None:
    """Killed before its folder is made, and while it trains; another process trains what is waiting."""
    with tried("SIGKILL of a process of a parallel sweep"):
        sweep = begin("train.images=100000000,200000000,420")
        sweep.command.wait_until(lambda: sweep.has_first_worker)
        os.kill(sweep.workers[0], signal.SIGKILL)
        sweep.wait_until_saved(1, 2)
        os.kill(process_of(RunFolder(sweep.folder / "1")), signal.SIGKILL)
        code, output = sweep.end()
        assert (code, sweep.endings[-1]) == (137, ("finished", 0))
        assert not (sweep.folder / "0").exists()
        assert "1 of 3 runs finished" in output
        reason = "its process ended without a result: killed by SIGKILL, as the system does when memory runs out"
        assert f"2 runs failed:\n  0, 1: {reason}; a lower hydra.launcher.jobs needs less" in output


def test_a_process_that_is_killed_between_two_jobs_is_replaced(tried) -> None:
    worker, config = Worker("cpu", is_assigned=False), OmegaConf.create({"device": "cpu"})
    worker.begin(config, len)
    with tried("SIGKILL of a process of a parallel sweep"):
        assert worker.take_result() == 1
        worker.process.kill()
        worker.process.join()
        worker.begin(config, len)
        assert worker.take_result() == 1
    worker.end()


# What is signalled, with what, and when: a terminal sends an interrupt to all processes of the session.
SIGNALLED = {
    "a terminal's interrupt while runs train": (os.killpg, signal.SIGINT, True),
    "a signal to the sweep": (os.kill, signal.SIGTERM, True),
    "a terminal's interrupt while processes start": (os.killpg, signal.SIGINT, False),
}


def test_a_signal_saves_all_runs_and_begins_none(tried, times, begin) -> None:
    """It reaches each run once, and is no error."""
    for name in times.of(SIGNALLED, 1):
        send, number, is_begun = SIGNALLED[name]
        with tried(f"{name}, in parallel"):
            sweep = begin(ENDLESS, "seed=0,1,2")
            if is_begun:
                sweep.wait_until_saved(0, 1)
            else:
                sweep.command.wait_until((sweep.folder / "multirun.yaml").exists)
                time.sleep(2)
            send(sweep.command.pid, number)
            code, output = sweep.end()
            assert (code, "Traceback" in output) == (128 + number, False)
            assert sweep.endings == [("stopped", 128 + number)] * 2 * is_begun
            assert f"gantrain: stopped by {number.name}; every run that had begun to train is saved\n" in output
            assert f"go on with: gantrain resume {sweep.folder}" in output
            for folder in sweep.runs if is_begun else ():
                newest = checkpoints.load_newest(folder.checkpoints)[1]
                assert newest["images"] == folder.read_summary()["images"]


def test_runs_are_saved_and_processes_end_when_the_sweeps_process_is_gone(tried, times, begin) -> None:
    jobs = times(1, soak=2)
    with tried("SIGKILL of a parallel sweep"):
        sweep = begin(ENDLESS, "seed=0,1", jobs=jobs)
        sweep.wait_until_saved(*range(jobs))
        processes = list(map(process_of, sweep.runs))
        sweep.command.process.kill()
        wait_until(lambda: not any(Path(f"/proc/{process}").exists() for process in processes))
        assert sweep.endings == [("stopped", 143)] * jobs


def test_a_sweep_on_devices_goes_on_with_another_choice_of_device(gantrain: Gantrain, tmp_path: Path) -> None:
    """One run is finished, one was saved in the middle, one has not begun, and the checkpoints of one are damaged: its
    error is its own, not how it had ended before."""
    typed = [*PARALLEL, "run_dir=sweep", *TINY[1:], "seed=0,1,2,3", "hydra.launcher.jobs=1"]
    assert gantrain(*typed, "hydra.launcher.devices=[auto]").code == 0
    device = choose_device("auto")
    finished, begun, missing, damaged = sorted((tmp_path / "sweep").glob("*-seed-*"))
    assert f"- device={device}\n" in (finished / ".hydra/overrides.yaml").read_text()
    assert f"\ndevice: {device}\n" in "\n" + RunFolder(finished).config.read_text()
    for checkpoint in (begun / "checkpoints").glob("*400.pt*"):
        checkpoint.unlink()
    (begun / "summary.json").unlink()
    shutil.rmtree(missing)
    stopped = {"status": "stopped", "reason": "by SIGINT", "exit_code": 130}
    RunFolder(damaged).write_summary(RunFolder(damaged).read_summary() | stopped)
    for path in (damaged / "checkpoints").iterdir():
        path.write_bytes(b"damaged")
    kept = [path for path in finished.rglob("*") if path.is_file() and path.name not in ("train.log", ".lock")]
    before = {path: path.read_bytes() for path in kept}

    answer = gantrain("resume", "sweep", "device=cpu", "hydra.launcher.jobs=2")
    assert answer.code == 4
    assert answer.out.startswith("4 runs on cpu, 2 at once\n")
    assert "3 of 4 runs finished" in answer.out
    assert re.search(r"3-seed-3: .*checkpoint", answer.err.partition("1 run failed")[2])
    assert {path: path.read_bytes() for path in before} == before
    resumed = [RunFolder(folder).read_summary().get("resumed_at_images") for folder in (finished, begun, missing)]
    assert resumed == [None, [200], None]
    assert {path.name for path in (missing / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}


def test_workers_fill_devices_evenly() -> None:
    def devices(jobs: int, *names: str, processes: int = 1) -> list[str]:
        return [worker.device for worker in build_workers(jobs, names, processes, is_assigned=True)]

    assert devices(0, "cuda:0", "cuda:1") == ["cuda:0", "cuda:1"]
    assert devices(2, "cuda:0", "cuda:1") == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert devices(0, "cpu") == ["cpu"] * count_cores()
    assert devices(0, "cpu", processes=10**6) == ["cpu"]
    assert devices(2, "cpu", processes=10**6) == ["cpu"] * 2
    assert devices(0, "cuda", "cpu")[:2] == ["cuda", "cpu"]


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("hydra/launcher=paralel", "did you mean parallel?"),
        ("hydra/launcher=packed", "hydra/launcher=parallel"),
        ("hydra.launcher.jobs=-1", "hydra.launcher.jobs=-1 must be at least 0 and at most 1,024"),
        ("hydra.launcher.jobs=many", "hydra.launcher.jobs: Value 'many'"),
        ("hydra.launcher.workers=3", "hydra.launcher.workers"),
        ("hydra.launcher.devices=cpu", "hydra.launcher.devices"),
        ("hydra.launcher.devices=[gpu:1]", "hydra.launcher.devices: device=gpu:1 is called device=cuda:1 here"),
        ("hydra.launcher.devices=[cuda:99]", "hydra.launcher.devices: device=cuda:99 is not on this machine"),
        ("hydra.launcher.devices=[cpu,cpu]", "names a device more than once"),
        ("hydra.launcher.devices=[cpu,auto]", "names a device more than once"),
        ("hydra.launcher.devices=[cpu]", "device=cpu and hydra.launcher.devices both choose the device"),
    ],
)
def test_a_mistyped_launcher_is_refused(
    gantrain: Gantrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, says: str
) -> None:
    for kind in ("cuda", "backends.mps"):  # auto is the CPU
        monkeypatch.setattr(f"torch.{kind}.is_available", lambda: False)
    launcher = [] if typed.startswith("hydra/") else ["hydra/launcher=parallel"]
    answer = gantrain("train", "-m", *TINY, "seed=0,1", *launcher, typed)
    assert answer.code == 2
    assert says in answer.err
    assert not list(tmp_path.rglob("summary.json"))
