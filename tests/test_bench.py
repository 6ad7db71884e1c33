"""The benchmark compares like with like, and writes what it measured."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.tolerance import assert_close_to_largest

from gantrain.training.iteration import Iteration
from gantrain.training.setup import UPDATES, Execution

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench"


@pytest.fixture(scope="module")
def bench():
    return runpy.run_path(str(SCRIPT))


def test_the_usual_loop_has_the_same_networks(bench):
    state, table = bench["new_state"](), bench["TABLE"]
    x, z = torch.rand(3, 3, 32, 32), torch.randn(3, 64)
    for network, rows, given in (
        (state.generator, table["generator"], z),
        (state.discriminator, table["discriminator"], x),
    ):
        usual = bench["stock"](network, rows)
        assert not any(type(part).__module__.startswith("gantrain") for part in usual)
        assert sum(isinstance(part, torch.nn.Dropout) for part in usual) == sum(row["dropout"] > 0 for row in rows)
        assert_close_to_largest(usual.eval()(given), network.eval()(given))


def test_a_measurement_is_a_table_and_a_file(bench, tmp_path, capsys):
    short = ["--rounds=1", "--iterations=1", "--warm-up=1", f"--json={tmp_path / 'x'}", "--batch-sizes", "2"]
    threads = torch.get_num_threads()
    try:
        assert bench["main"](["float32 simultaneous", *short]) == 0
    finally:
        torch.set_num_threads(threads)
    rows = {row["variant"]: row for row in json.loads((tmp_path / "x").read_text())["rows"]}
    assert rows["naive"]["wall_ratio"] == {"median": 1, "least": 1, "most": 1}
    assert rows["float32 simultaneous"]["images_per_second"] > 0
    assert "| float32 simultaneous | 2 |" in capsys.readouterr().out


def test_a_sweep_is_timed_in_processes(bench, capsys):
    short = ["float32 simultaneous", "--rounds=1", "--iterations=1", "--threads=1", "--batch-sizes", "2", "--sweep=1"]
    (row,) = bench["sweep"](bench["parsed"](short))
    assert (row["runs"], row["least"]) == (1, row["most"])
    assert 0 < row["ratio"] < 10
    assert "1 runs in parallel" in capsys.readouterr().out


def test_a_whole_run_is_held_against_its_iterations(bench, capsys):
    short = ["float32 simultaneous", "--batch-sizes", "10", "--warm-up=1", "--threads=1"]
    (row,) = bench["whole"](bench["parsed"]([*short, "--whole=50"]))
    assert row["images"] == 50
    assert 0 < row["share_of_iterations"] <= 1
    assert row["memory_bytes"][0] > 2**26


def test_a_profile_has_the_layers_rooflines(bench, capsys):
    options = bench["parsed"](["--rounds=1", "--iterations=1", "--batch-sizes", "2"])
    rows = bench["rooflines"]("float32 alternating", options)
    assert [row["layer"][0] for row in rows] == ["G"] * 7 + ["D"] * 8
    assert all(0 < row["share_of_roofline"] < 2 for row in rows)


def test_a_variant_that_is_not_known_is_refused(bench):
    with pytest.raises(SystemExit):
        bench["main"](["float64"])


WAITS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "_to_cpu"}


def launched(bench, update: str, held: bool) -> list[str]:
    """What an iteration of the appendix network launches after the first, which makes the optimizers' state."""
    iteration = Iteration(bench["new_state"](), bench["experiment"](Execution(update), 2), guard_on_device=held)
    iteration.play()
    return bench["operations"](iteration.play)


@pytest.mark.parametrize(("update", "most"), [("alternating", 275), ("simultaneous", 220)])
def test_an_iteration_of_the_appendix_network_is_few_operations(bench, update, most):
    names = [name for name in launched(bench, update, held=False) if name not in WAITS]
    assert most - 20 < len(names) <= most, sorted((names.count(name), name) for name in set(names))


@pytest.mark.parametrize("update", UPDATES)
def test_an_iteration_that_the_device_watches_waits_for_nothing(bench, update):
    assert not WAITS & set(launched(bench, update, held=True))


def test_what_stands_between_iterations_is_timed(bench, monkeypatch, capsys):
    def build_small(*arguments):
        setup = bench["experiment"](*arguments)
        return replace(setup, schedule=replace(setup.schedule, held_out_images=20))

    monkeypatch.setitem(bench["around"].__globals__, "experiment", build_small)
    short = ["float32 simultaneous", "--batch-sizes", "10", "--warm-up=1", "--rounds=1", "--around"]
    (row,) = bench["around"](bench["parsed"](short))
    assert min(row[work] for work in ("iteration", "report", "curves", "sample", "checkpoint")) > 0
    assert 0 < row["share_of_iterations"] <= 1
    assert "share_of_iterations" in capsys.readouterr().out
