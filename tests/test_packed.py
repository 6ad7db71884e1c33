"""Runs side by side: each as it would be alone, none touched by the end of another, no more at once than have room."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tolerance import assert_close_to_largest
from support.waiting import PATIENCE_SECONDS, wait_until

from gantrain import data
from gantrain import networks as architectures
from gantrain.config import checks
from gantrain.config.compose import compose
from gantrain.data import published
from gantrain.errors import ConfigError
from gantrain.launch import memory
from gantrain.launch.memory import Need
from gantrain.launch.packed import common_device
from gantrain.launch.packed.opened import OpenedRun
from gantrain.launch.packed.processes import RunInProcess, cores, listen
from gantrain.launch.packed.queue import Room, side_by_side
from gantrain.launch.packed.turns import RunInTurns, SharedData, own_stream, take_turns
from gantrain.launch.run import launch
from gantrain.launch.sweep import FAILURES
from gantrain.runs import checkpoints
from gantrain.runs.folder import Interrupted, RunFolder, StopRequest

Gantrain = Callable[..., Any]
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CPU = torch.device("cpu")
SMALL = (
    *("train.batch_size=20", "train.held_out_images=40", "train.checkpoint_min_seconds=0", "optimizer=sgd"),
    *("train.report_every_images=100", "train.sample_every_images=200", "train.checkpoint_every_images=200"),
)
TINY = ("device=cpu", "train.images=400", *SMALL)
PACKED = ("train", "-m", "hydra/launcher=packed", "run_dir=sweep")
DIVERGING = "1e30"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    FAILURES.clear()


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def trained(run: Path) -> dict[str, Any]:
    """All that a run came to: its state bundle, and what it reported but for speed and system."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: v for name, v in row.items() if not name.startswith(("speed/", "system/"))} for row in rows]
    return {"state": checkpoints.newest(run / "checkpoints")[1]["state"], "reports": kept}


def assert_same(ours: Any, theirs: Any, rtol: float | None = None) -> None:
    """Nested values are equal, bit for bit unless a tolerance is given."""
    if isinstance(ours, dict | list):
        assert type(ours) is type(theirs)
        assert len(ours) == len(theirs)
        for key in ours if isinstance(ours, dict) else range(len(ours)):
            assert_same(ours[key], theirs[key], rtol)
    elif isinstance(ours, torch.Tensor | float) and rtol is not None:
        assert_close_to_largest(ours, theirs, rtol)
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs


def opened(path: Path, *typed: str) -> OpenedRun:
    path.mkdir()
    return OpenedRun(compose(list(typed)), RunFolder(path), list(typed), goes_on=False)


# ---------------------------------------------------------------------------------------------------------------------
# On a CPU: processes


def test_each_run_equals_its_solo_run_and_failures_stay_alone(gantrain: Gantrain, tmp_path: Path) -> None:
    """Of four runs two train, one diverges, one is refused."""
    swept = ["disc_div=kl", f"optimizer.lr=0.01,{DIVERGING}", "gen_div=kl,total_variation"]
    answer = gantrain(*PACKED, *TINY, *swept, "hydra.launcher.jobs=3")
    assert "4 runs on cpu, 3 at once" in answer.out
    assert "1 of 4 runs finished" in answer.out
    runs = sorted((tmp_path / "sweep").glob("?-*"))
    assert [summary(run)["exit_code"] for run in runs] == [0, 2, 5, 2]
    assert answer.code == 2
    listed = answer.err.partition("3 runs failed")[2]
    for run, reason in ((runs[1], "total_variation"), (runs[2], "not finite"), (runs[3], "total_variation")):
        assert re.search(rf"^  .*{re.escape(run.name)}.*: .*{reason}", listed, re.MULTILINE)
    assert summary(runs[0])["threads"] == 1
    names = "|".join(re.escape(run.name) for run in runs)
    assert re.search(rf"^{re.escape(runs[0].name)}  images 400/400 ", answer.out, re.MULTILINE)
    told = answer.out.partition("runs finished in")[0].splitlines()[1:-1]
    assert all(re.match(rf"({names})  ", line) for line in told if line)

    alone = gantrain("train", *TINY, "disc_div=kl", "optimizer.lr=0.01", "gen_div=kl", "run_dir=alone")
    assert alone.code == 0
    assert_same(trained(runs[0]), trained(tmp_path / "alone"))
    assert {path.name for path in runs[0].iterdir()} >= {"losses.png", "train.log", "samples", ".hydra"}


def saved(run: RunFolder) -> bool:
    return (run.checkpoints / "last.pt").exists()


def in_processes(runs: list[OpenedRun], at_once: int, then: Callable[[list[RunInProcess]], None]) -> None:
    """Runs in processes; `then` is called once all that run at first have saved something."""
    called: list[bool] = []

    def go_on(children: list[RunInProcess]) -> list[RunInProcess]:
        if not called and all(saved(child.folder) for child in children):
            called.append(True)
            then(children)
        return listen(children)

    side_by_side([(run, Need(0)) for run in runs], RunInProcess, go_on, Room(at_once, "", CPU))


def test_a_signal_saves_all_runs_and_begins_none(tmp_path: Path) -> None:
    runs = [opened(tmp_path / f"{seed}", *TINY, f"seed={seed}", "train.images=100000000") for seed in range(3)]
    with pytest.raises(Interrupted, match=r"^stopped by SIGINT; every run that had begun to train is saved$") as end:
        in_processes(runs, 2, lambda children: os.kill(os.getpid(), signal.SIGINT))
    assert end.value.exit_code == 130
    assert not runs[2].folder.summary.exists()
    for run in runs[:2]:
        ending = summary(run.folder.path)
        assert (ending["status"], ending["exit_code"]) == ("stopped", 130)
        assert checkpoints.newest(run.folder.checkpoints)[1]["images"] == ending["images"]


def test_a_killed_process_is_that_runs_failure_alone(tmp_path: Path) -> None:
    lengths = {"killed": 100_000_000, "other": 400, "last": 400}
    runs = [opened(tmp_path / name, *TINY, f"train.images={length}") for name, length in lengths.items()]
    in_processes(runs, 2, lambda children: os.kill(children[0].process.pid, signal.SIGKILL))
    (failed,) = FAILURES.items()
    assert failed[0].name == "killed"
    assert re.search(r"killed by SIGKILL.* out of memory.*hydra\.launcher\.jobs", str(failed[1]))
    assert failed[1].exit_code == 137
    assert [summary(run.folder.path)["status"] for run in runs] == ["running", "finished", "finished"]


def test_a_run_that_cannot_go_on_is_told_by_its_own_error(gantrain: Gantrain, tmp_path: Path) -> None:
    """And not by how it had ended before."""
    assert gantrain(*PACKED, *TINY, "seed=0,1").code == 0
    run = RunFolder(tmp_path / "sweep/1-seed-1")
    run.write_summary({**run.read_summary(), "status": "stopped", "reason": "by SIGINT", "exit_code": 130})
    for path in run.checkpoints.iterdir():
        path.write_bytes(b"damaged")
    answer = gantrain("resume", "sweep")
    assert answer.code == 4
    assert re.search(r"1-seed-1: .*checkpoint", answer.err.partition("1 run failed")[2])


def test_a_terminals_interrupt_before_the_first_step_is_no_error(tmp_path: Path) -> None:
    """It reaches the server that processes are forked from as well, while that still imports."""
    command = [sys.executable, "-m", "gantrain.cli", *PACKED, *TINY, "train.images=100000000", "seed=0,1"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    sweep = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **pipes)
    wait_until(lambda: list(tmp_path.glob("sweep/0-*")))
    time.sleep(0.5)
    os.killpg(sweep.pid, signal.SIGINT)
    said, failed = sweep.communicate(timeout=PATIENCE_SECONDS)
    assert (sweep.returncode, "Traceback" in said + failed) == (130, False)
    assert "go on with: gantrain resume sweep" in failed


def test_runs_are_saved_when_the_sweeps_process_is_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gantrain.cli", *PACKED, *TINY, "train.images=100000000", "seed=0,1"]
    sweep = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    runs = [RunFolder(tmp_path / f"sweep/{seed}-seed-{seed}") for seed in range(cores())][:2]
    wait_until(lambda: sweep.poll() is not None or all(map(saved, runs)))
    sweep.kill()
    sweep.communicate(timeout=PATIENCE_SECONDS)
    wait_until(lambda: all(run.read_summary()["status"] == "stopped" for run in runs))


# ---------------------------------------------------------------------------------------------------------------------
# In one process: turns


def in_turns(runs: list[OpenedRun], device: torch.device, go_on: Any = take_turns, bytes_each: int = 0) -> None:
    room, load = Room(len(runs), "", device), SharedData()
    side_by_side([(run, Need(bytes_each)) for run in runs], lambda run: RunInTurns(run, device, load), go_on, room)


def test_turns_equal_solo_runs_and_failures_stay_alone(tmp_path: Path) -> None:
    """Runs of different games, networks and lengths; one diverges in the middle, one finds no data."""
    base = [*TINY, "disc_div=kl", "gen_div=kl"]
    kinds = {
        "first": [*base, "optimizer.lr=0.01"],
        "diverges": [*base, "optimizer.lr=0.5", "train.images=4000"],
        "without_data": [*base, "dataset=folder", "dataset.path=missing", "dataset.size=8", "architecture=conv8"],
        "longer": [*TINY, "seed=3", "train.images=700"],
        "density": [*TINY, "dataset=ring", "optimizer.lr=0.01"],
    }
    in_turns([opened(tmp_path / name, *typed) for name, typed in kinds.items()], CPU)
    for name in ("first", "longer", "density"):
        alone = opened(tmp_path / f"{name}_alone", *kinds[name])
        launch(*alone[:3])
        assert_same(trained(tmp_path / name), trained(alone.folder.path))
    ends = {name: summary(tmp_path / name) for name in kinds}
    assert {name: end["exit_code"] for name, end in ends.items()} == {
        "first": 0,
        "diverges": 5,
        "without_data": 3,
        "longer": 0,
        "density": 0,
    }
    assert 0 < ends["diverges"]["images"] < 4000
    failed = {path.name for path in FAILURES}
    assert failed == {"diverges", "without_data"}


def test_a_stopped_sweep_goes_on_in_processes_and_in_turns(gantrain: Gantrain, tmp_path: Path) -> None:
    """One run is finished, one was saved in the middle, one has not begun."""
    assert gantrain(*PACKED, *TINY, "seed=0,1,2").code == 0
    finished, begun, missing = sorted((tmp_path / "sweep").glob("*-seed-*"))
    for checkpoint in (begun / "checkpoints").glob("*400.pt*"):
        checkpoint.unlink()
    (begun / "summary.json").unlink()
    shutil.rmtree(missing)
    copied = shutil.copytree(tmp_path / "sweep", tmp_path / "turns")
    kept = [path for path in finished.rglob("*") if path.is_file() and path.name not in ("train.log", ".lock")]
    before = {path: path.read_bytes() for path in kept}

    answer = gantrain("resume", "sweep")
    assert (answer.code, answer.err) == (0, "")
    assert "3 of 3 runs finished" in answer.out
    assert {path: path.read_bytes() for path in before} == before
    assert [summary(run).get("resumed_at_images") for run in (finished, begun, missing)] == [None, [200], None]
    assert {path.name for path in (missing / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}

    runs = [RunFolder(copied / name) for name in (finished.name, begun.name)]
    in_turns([OpenedRun(compose([*TINY, f"seed={n}"]), run, [], True) for n, run in enumerate(runs)], CPU)
    in_process, in_turn = (checkpoints.newest(run / "checkpoints")[1]["state"] for run in (begun, runs[1].path))
    assert_same(in_process, in_turn)


def test_turns_stop_together(tmp_path: Path) -> None:
    runs = [opened(tmp_path / f"{seed}", *TINY, f"seed={seed}", "train.images=100000000") for seed in range(3)]
    turns = [0]

    def go_on(running: list[RunInTurns]) -> list[RunInTurns]:
        turns[0] += 1
        if turns[0] == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_turns(running)

    with pytest.raises(Interrupted, match=r"^stopped by SIGTERM; every run that had begun to train is saved$") as end:
        in_turns(runs, CPU, go_on)
    assert end.value.exit_code == 143
    assert {summary(run.folder.path)["status"] for run in runs} == {"stopped"}
    assert {checkpoints.newest(run.folder.checkpoints)[1]["images"] for run in runs} == {20 * (20 - 1)}


def test_a_turn_that_is_stopped_at_once_says_so(tmp_path: Path) -> None:
    run = RunInTurns(opened(tmp_path / "run", *TINY), CPU, SharedData())
    assert all(run.take() for _ in range(5))
    run.stop_at_once()
    assert (summary(run.folder.path)["status"], summary(run.folder.path)["exit_code"]) == ("stopped", 130)
    assert not run.take()


def test_what_a_nested_block_finds_deferred_stays_deferred() -> None:
    with StopRequest() as outer:
        with StopRequest() as inner:
            inner.defer()
        assert not outer.deferred
        outer.defer()
        with StopRequest():
            pass
        assert outer.deferred


def test_equal_datasets_lie_in_memory_once() -> None:
    load = SharedData()
    settings = {"name": "digits", "held_out": 100}
    first, second = (load(**settings, seed=seed, device=CPU) for seed in (0, 1))
    other = load(name="digits", held_out=200, seed=0, device=CPU)
    assert first.train.data_ptr() == second.train.data_ptr() != other.train.data_ptr()
    for seed, shared in enumerate((first, second)):
        alone = data.load(**settings, seed=seed)
        for clock in (0, 1600, 1700, 5000):
            assert torch.equal(shared.batch(clock, 50), alone.batch(clock, 50))
    assert load(name="ring", seed=1, device=CPU).batch(0, 3).equal(data.load("ring", seed=1).batch(0, 3))


@NEEDS_CUDA
@pytest.mark.parametrize("graph", ["on", "off"])
def test_turns_on_cuda_equal_solo_runs(tmp_path: Path, graph: str) -> None:
    """Dropout's masks come from each run's own generator state, though the graphs replay at the same time."""
    kinds = [["device=cuda", "train.images=2000", *SMALL[:-4], f"graph={graph}", f"seed={seed}"] for seed in range(4)]
    in_turns([opened(tmp_path / f"{n}", *typed) for n, typed in enumerate(kinds)], torch.device("cuda"))
    for number, typed in enumerate(kinds):
        alone = opened(tmp_path / f"{number}_alone", *typed)
        launch(*alone[:3])
        assert_same(trained(tmp_path / f"{number}"), trained(alone.folder.path), rtol=1e-3)


@NEEDS_CUDA
def test_each_run_on_cuda_has_numbers_of_its_own() -> None:
    device = torch.device("cuda")
    before = torch.cuda.get_rng_state()
    first, second = own_stream(device), own_stream(device)
    drawn = []
    for place in (first, second, first, second):
        with place():
            if len(drawn) < 2:
                torch.cuda.manual_seed(7)
            drawn.append(torch.rand(3, device=device))
    torch.cuda.synchronize()
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[2], drawn[3])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.cuda.get_rng_state(), before)


# ---------------------------------------------------------------------------------------------------------------------
# Room


def test_runs_wait_for_each_other_where_memory_is_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [opened(tmp_path / f"{seed}", *TINY, f"seed={seed}") for seed in range(3)]
    at_once: list[int] = []

    def go_on(running: list[RunInTurns]) -> list[RunInTurns]:
        at_once.append(len(running))
        return take_turns(running)

    in_turns(runs, CPU, go_on, int(0.6 * memory.free(CPU)))
    assert set(at_once) == {1}
    assert "3 runs on cpu, 1 at once (more would not fit)" in capsys.readouterr().out
    assert {summary(run.folder.path)["status"] for run in runs} == {"finished"}


def test_room_counts_runs_and_shared_data_once() -> None:
    room = Room(2, "", CPU)
    small, all_of_it = Need(2**20), Need(room.free_at_first)
    assert room.takes(all_of_it, []), "one may always begin"
    assert room.takes(small, [small])
    assert not room.takes(small, [small, small]), "there may be two"
    assert not room.takes(all_of_it, [small])
    shared = Need(2**20, ("cifar10", room.free_at_first // 2))
    assert room.takes(shared, [shared])
    assert not room.takes(shared, [Need(2**20, ("svhn", room.free_at_first // 2))])


def test_runs_on_several_devices_are_refused() -> None:
    assert common_device(set()) == CPU
    assert common_device({CPU}) == CPU
    for names in (["cpu", "cuda"], ["cuda:0", "cuda:1"], ["mps"]):
        with pytest.raises(ConfigError, match=f"one CUDA device, not {', '.join(names)}; choose one device"):
            common_device(set(map(torch.device, names)))


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("hydra/launcher=pakced", "did you mean packed?"),
        ("hydra.launcher.jobs=-1", "hydra.launcher.jobs=-1 must be at least 0"),
        ("hydra.launcher.jobs=1025", "hydra.launcher.jobs=1025 must be at least 0 and at most 1,024"),
        ("hydra.launcher.jobs=many", "hydra.launcher.jobs: Value 'many'"),
        ("hydra.launcher.workers=3", "hydra.launcher.workers"),
    ],
)
def test_a_mistyped_launcher_is_refused(gantrain: Gantrain, tmp_path: Path, typed: str, says: str) -> None:
    launcher = [] if typed.startswith("hydra/") else ["hydra/launcher=packed"]
    answer = gantrain("train", "-m", *TINY, "seed=0,1", *launcher, typed)
    assert answer.code == 2
    assert says in answer.err
    assert not list(tmp_path.rglob("summary.json"))


# ---------------------------------------------------------------------------------------------------------------------
# Memory


@pytest.mark.parametrize("typed", [[], ["dataset=mnist", "train.batch_size=7"], ["dataset=cifar10"]])
def test_a_runs_numbers_are_what_its_networks_hold(typed: list[str]) -> None:
    """Against the networks themselves: parameters counted, outputs of their rows seen by hooks."""
    settings = checks.checked(compose(typed))
    (shape,) = data.shapes(**settings["dataset"])
    networks = architectures.build(settings["architecture"], shape, settings["latent"]["size"])
    inputs = torch.zeros(2, settings["latent"]["size"]), torch.zeros(2, *shape)
    sizes = []
    for network, x in zip(networks, inputs, strict=True):
        seen = []
        for child in network.children():
            child.register_forward_hook(lambda module, given, out, seen=seen: seen.append(out[0].numel()))
        network(x)
        parameters = sum(p.numel() for p in network.parameters())
        sizes.append((parameters, sum(seen)))
    (p_g, a_g), (p_d, a_d) = sizes
    batch = settings["train"]["batch_size"]
    state = 3 * (p_g + p_d) + p_g
    assert memory.numbers_bytes(settings) == pytest.approx(
        4 * (2 * state + p_g + p_d + batch * 4 * (2 * a_d + a_g)), rel=0.1
    )
    assert memory.needed(settings, CPU).own > memory.BASE["cpu"] + memory.numbers_bytes(settings)


def test_pixels_are_counted_before_they_are_read(tmp_path: Path) -> None:
    images = data.load("digits")
    assert data.pixel_bytes("digits") == images.train.numel() + images.held.numel()
    assert data.pixel_bytes("ring") == 0
    rows = re.findall(
        r"^\| ([a-z].*?) \| ([\d,]+)(?: \(.*?\))?(?: \+ ([\d,]+))?", published.__doc__ or "", re.MULTILINE
    )
    counts = {name: (train, test) for names, train, test in rows for name in names.split(", ")}
    assert {name: source.total for name, source in data.IMAGES.items()} == {
        **{name: sum(int(n.replace(",", "")) for n in splits if n) for name, splits in counts.items()},
        "folder": 0,
    }
    for number in range(5):
        (tmp_path / f"{number}.png").touch()
    assert data.pixel_bytes("folder", path=tmp_path, size=16) == 5 * 3 * 16 * 16


def test_the_estimate_is_near_what_a_process_takes(tmp_path: Path) -> None:
    """The largest resident size of a process that trains the digits, and of one with larger networks."""
    code = (
        "import sys; from gantrain.cli import main; main(sys.argv[1:]);"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "train", *TINY, "run_dir=run"], cwd=tmp_path, capture_output=True, text=True
    )
    peak = 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout).group(1))
    estimate = memory.needed(checks.checked(compose(list(TINY))), CPU).own
    assert 0.5 < estimate / peak < 2


def test_free_memory_is_what_the_system_says() -> None:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0.01 * physical < memory.free(CPU) < physical


def test_limits_of_control_groups_count_at_every_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler's limit stands above a job's own group, and files read into memory can be had back."""
    own = tmp_path / "groups" / "job" / "step"
    own.mkdir(parents=True)
    for folder, most in ((own, "max"), (own.parent, "8000000"), (own.parent.parent, "9000000")):
        folder.joinpath("memory.max").write_text(f"{most}\n")
        folder.joinpath("memory.current").write_text("7000000\n")
        folder.joinpath("memory.stat").write_text("anon 4000000\ninactive_file 2500000\nactive_file 100\n")
    (tmp_path / "own").write_text("4:memory:/elsewhere\n0::/job/step\n")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "OWN_GROUP", tmp_path / "own")
    assert list(memory.group_free()) == [3_500_000, 4_500_000]
    assert memory.free(CPU) == 3_500_000
    (tmp_path / "own").write_text("4:memory:/elsewhere\n")
    assert memory.free(CPU) == pytest.approx(memory.machine_free(), rel=0.1)
