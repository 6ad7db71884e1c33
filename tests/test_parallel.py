"""Runs of a sweep in parallel processes: each as it would be alone, none affected by the end of another."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.waiting import PATIENCE_SECONDS, wait_until

from gantrain.launch.parallel import build_workers, count_cores
from gantrain.runs import checkpoints
from gantrain.runs.folder import RunFolder
from gantrain.runs.signals import StopRequest

Gantrain = Callable[..., Any]
TINY = (
    *("device=cpu", "train.images=400", "train.batch_size=20", "train.held_out_images=40", "optimizer=sgd"),
    *("train.report_every_images=100", "train.sample_every_images=200", "train.checkpoint_every_images=200"),
    "train.checkpoint_min_seconds=0",
)
PROGRAM = (sys.executable, "-m", "gantrain.cli")
SWEEP = ("train", "-m", "hydra/launcher=parallel", "run_dir=sweep")
ENDLESS = "train.images=100000000"
DIVERGING = "1e30"


class Sweep:
    """A sweep in a process group of its own, as at a terminal; its output goes to files."""

    def __init__(self, place: Path, arguments: Sequence[str]) -> None:
        self.folder, self.out, self.err = place / "sweep", place / "out", place / "err"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [*PROGRAM, *SWEEP, *TINY, *arguments],
                cwd=place,
                env=os.environ | {"OMP_NUM_THREADS": "2"},
                start_new_session=True,
                stdout=out,
                stderr=err,
            )

    def end(self) -> tuple[int, str, str]:
        """Exit code and output, at the end."""
        return self.process.wait(PATIENCE_SECONDS), self.out.read_text(), self.err.read_text()

    @property
    def runs(self) -> list[RunFolder]:
        """The runs that have begun."""
        return [RunFolder(path) for path in sorted(self.folder.glob("[0-9]*"))]

    def wait_until_saved(self, count: int) -> None:
        """Wait until this many runs have a checkpoint."""
        wait_until(lambda: self.process.poll() is not None or sum(map(is_saved, self.runs)) == count)


Begin = Callable[..., Sweep]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """`begin(*arguments)` begins a sweep; none outlives the test."""
    sweeps: list[Sweep] = []

    def begin(*arguments: str) -> Sweep:
        sweeps.append(Sweep(tmp_path, arguments))
        return sweeps[-1]

    yield begin
    for sweep in sweeps:
        sweep.process.kill()  # its workers end with it


def is_saved(run: RunFolder) -> bool:
    return (run.checkpoints / "last.pt").exists()


def process_of(run: RunFolder) -> int:
    """The number of the process that trains a run."""
    return int((run.path / ".lock").read_text().split()[1])


def endings(sweep: Sweep) -> list[tuple[str, int | None]]:
    return [(summary["status"], summary.get("exit_code")) for run in sweep.runs if (summary := run.read_summary())]


def results(run: Path) -> dict[str, Any]:
    """All that a run came to: its state, and what it reported but for speed and system."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: v for name, v in row.items() if not name.startswith(("speed/", "system/"))} for row in rows]
    return {"state": checkpoints.load_newest(run / "checkpoints")[1]["state"], "reports": kept}


def assert_same(ours: Any, theirs: Any) -> None:
    """Nested values are equal, bit for bit."""
    if isinstance(ours, dict | list):
        assert type(ours) is type(theirs)
        assert len(ours) == len(theirs)
        for key in ours if isinstance(ours, dict) else range(len(ours)):
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs


def test_each_run_equals_its_solo_run_and_failures_stay_alone(begin: Begin, tmp_path: Path) -> None:
    """Of four runs one trains, one diverges, two are refused."""
    swept = ["disc_div=kl", f"optimizer.lr=0.01,{DIVERGING}", "gen_div=kl,total_variation"]
    sweep = begin(*swept, "hydra.launcher.jobs=2")
    code, out, err = sweep.end()
    assert (code, endings(sweep)) == (2, [("finished", 0), ("failed", 2), ("failed", 5), ("failed", 2)])
    assert out.startswith("4 runs on cpu, 2 at once\n")
    assert "1 of 4 runs finished" in out
    runs = [run.path for run in sweep.runs]
    listed = err.partition("3 runs failed")[2]
    for run, reason in ((runs[1], "total_variation"), (runs[2], "not finite"), (runs[3], "total_variation")):
        assert re.search(rf"^  .*{re.escape(run.name)}.*: .*{reason}", listed, re.MULTILINE)
    assert RunFolder(runs[0]).read_summary()["threads"] == 1
    names = "|".join(re.escape(run.name) for run in runs)
    assert re.search(rf"^{re.escape(runs[0].name)}  images 400/400 ", out, re.MULTILINE)
    lines = out.partition("1 of 4 runs finished")[0].splitlines()[1:]
    assert all(re.match(rf"({names})  ", line) for line in lines if line)

    alone = [*TINY, "disc_div=kl", "optimizer.lr=0.01", "gen_div=kl", "run_dir=alone"]
    subprocess.run([*PROGRAM, "train", *alone], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    assert_same(results(runs[0]), results(tmp_path / "alone"))
    assert {path.name for path in runs[0].iterdir()} >= {"losses.png", "train.log", "samples", ".hydra"}


def test_a_signal_saves_all_runs_and_begins_none(begin: Begin) -> None:
    sweep = begin(ENDLESS, "seed=0,1,2", "hydra.launcher.jobs=2")
    sweep.wait_until_saved(2)
    sweep.process.send_signal(signal.SIGTERM)
    code, _, err = sweep.end()
    assert (code, endings(sweep)) == (143, [("stopped", 143)] * 2)
    assert "gantrain: stopped by SIGTERM; every run that had begun to train is saved\n" in err
    for run in sweep.runs:
        assert checkpoints.load_newest(run.checkpoints)[1]["images"] == run.read_summary()["images"]


@pytest.mark.parametrize("is_begun", [True, False], ids=["training", "importing"])
def test_a_terminals_interrupt_reaches_each_run_once(begin: Begin, is_begun: bool) -> None:
    """It is sent to all processes of the terminal, and must neither be an error nor count twice."""
    sweep = begin(ENDLESS, "seed=0,1", "hydra.launcher.jobs=2")
    if is_begun:
        sweep.wait_until_saved(2)
    else:
        wait_until(lambda: (sweep.folder / "multirun.yaml").exists())
        time.sleep(2)
    os.killpg(sweep.process.pid, signal.SIGINT)
    code, out, err = sweep.end()
    assert (code, "Traceback" in out + err) == (130, False)
    assert endings(sweep) == [("stopped", 130)] * 2 * is_begun
    assert "go on with: gantrain resume sweep" in err


def test_a_killed_process_is_that_runs_failure_alone(begin: Begin) -> None:
    """Another one trains what is waiting."""
    sweep = begin("train.images=100000000,400,420,440", "hydra.launcher.jobs=2")
    wait_until(lambda: sweep.process.poll() is not None or is_saved(RunFolder(sweep.folder / "0")))
    os.kill(process_of(sweep.runs[0]), signal.SIGKILL)
    code, out, err = sweep.end()
    assert code == 137
    assert "3 of 4 runs finished" in out
    reason = "its process ended without a word: killed by SIGKILL, as the system does when memory runs out"
    assert f"1 run failed:\n  0: {reason}; a lower hydra.launcher.jobs needs less" in err
    assert [status for status, _ in endings(sweep)[1:]] == ["finished"] * 3


def test_runs_are_saved_and_processes_end_when_the_sweeps_process_is_gone(begin: Begin) -> None:
    sweep = begin(ENDLESS, "seed=0,1", "hydra.launcher.jobs=2")
    sweep.wait_until_saved(2)
    processes = list(map(process_of, sweep.runs))
    sweep.process.kill()
    wait_until(lambda: not any(Path(f"/proc/{process}").exists() for process in processes))
    assert endings(sweep) == [("stopped", 143)] * 2
    sweep.end()


def test_a_stopped_sweep_goes_on(gantrain: Gantrain, tmp_path: Path) -> None:
    """One run is finished, one was saved in the middle, one has not begun, and the checkpoints of one are damaged: its
    error is its own, not how it had ended before."""
    assert gantrain("train", "-m", *TINY, "seed=0,1,2,3", "run_dir=sweep").code == 0
    finished, begun, missing, damaged = sorted((tmp_path / "sweep").glob("*-seed-*"))
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

    answer = gantrain(*SWEEP, *TINY, "seed=0,1,2,3", "resume=auto")
    assert answer.code == 4
    assert "3 of 4 runs finished" in answer.out
    assert re.search(r"3-seed-3: .*checkpoint", answer.err.partition("1 run failed")[2])
    assert {path: path.read_bytes() for path in before} == before
    resumed = [RunFolder(run).read_summary().get("resumed_at_images") for run in (finished, begun, missing)]
    assert resumed == [None, [200], None]
    assert {path.name for path in (missing / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}


def test_devices_are_assigned_by_override_and_may_be_others_later(gantrain: Gantrain, tmp_path: Path) -> None:
    typed = [*SWEEP, *TINY[1:], "seed=0,1"]
    assert gantrain(*typed, "hydra.launcher.devices=[cpu]", "hydra.launcher.jobs=1").code == 0
    runs = [RunFolder(tmp_path / f"sweep/{seed}-seed-{seed}") for seed in (0, 1)]
    for run in runs:
        assert "- device=cpu\n" in (run.path / ".hydra/overrides.yaml").read_text()
        assert "\ndevice: cpu\n" in "\n" + run.config.read_text()
    shutil.rmtree(runs[1].path)
    answer = gantrain("resume", "sweep")
    assert (answer.code, answer.err) == (0, "")
    assert "2 of 2 runs finished" in answer.out
    shutil.rmtree(runs[1].path)
    typed[typed.index("hydra/launcher=parallel")] = "hydra/launcher=basic"
    assert gantrain(*typed, "resume=auto").code == 0
    assert "device=cpu" not in (runs[1].path / ".hydra/overrides.yaml").read_text()


def test_workers_fill_devices_evenly() -> None:
    def devices(jobs: int, *names: str) -> list[str]:
        return [worker.device for worker in build_workers(jobs, names, is_assigned=True)]

    assert devices(0, "cuda:0", "cuda:1") == ["cuda:0", "cuda:1"]
    assert devices(2, "cuda:0", "cuda:1") == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert devices(0, "cpu") == ["cpu"] * count_cores()
    assert devices(0, "cuda", "cpu")[:2] == ["cuda", "cpu"]


def test_what_a_nested_block_finds_deferred_stays_deferred() -> None:
    with StopRequest() as outer:
        with StopRequest() as inner:
            inner.defer()
        assert not outer.deferred
        outer.defer()
        with StopRequest():
            pass
        assert outer.deferred


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("hydra/launcher=paralel", "did you mean parallel?"),
        ("hydra/launcher=packed", "hydra/launcher=parallel"),
        ("hydra.launcher.jobs=-1", "hydra.launcher.jobs=-1 must be at least 0"),
        ("hydra.launcher.jobs=1025", "hydra.launcher.jobs=1025 must be at least 0 and at most 1,024"),
        ("hydra.launcher.jobs=many", "hydra.launcher.jobs: Value 'many'"),
        ("hydra.launcher.workers=3", "hydra.launcher.workers"),
        ("hydra.launcher.devices=cpu", "hydra.launcher.devices"),
        ("hydra.launcher.devices=[gpu:1]", "hydra.launcher.devices: device=gpu:1 is called device=cuda:1 here"),
        ("hydra.launcher.devices=[cuda:99]", "hydra.launcher.devices: device=cuda:99 is not on this machine"),
        ("hydra.launcher.devices=[cpu,cpu]", "names a device more than once"),
        ("hydra.launcher.devices=[cpu]", "device=cpu and hydra.launcher.devices both choose the device"),
    ],
)
def test_a_mistyped_launcher_is_refused(gantrain: Gantrain, tmp_path: Path, typed: str, says: str) -> None:
    launcher = [] if typed.startswith("hydra/") else ["hydra/launcher=parallel"]
    answer = gantrain("train", "-m", *TINY, "seed=0,1", *launcher, typed)
    assert answer.code == 2
    assert says in answer.err
    assert not list(tmp_path.rglob("summary.json"))
