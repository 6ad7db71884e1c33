"""The benchmark compares like with like, and writes what it measured."""

import json
import runpy
from pathlib import Path

import pytest
import torch

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
        torch.testing.assert_close(usual.eval()(given), network.eval()(given))


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


def test_a_variant_that_is_not_known_is_refused(bench):
    with pytest.raises(SystemExit):
        bench["main"](["float64"])
