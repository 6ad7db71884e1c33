"""Each step from the command line to the loop is taken once: parsing, composing, checking, building."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from gantrain.config import checks, overrides
from gantrain.config.compose import Composer
from gantrain.launch import build
from gantrain.objectives.objective import Objective

TINY = ["device=cpu", "train.images=40", "train.batch_size=20", "train.held_out_images=20"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each step was taken."""
    counted: Counter[str] = Counter()

    def count(home: Any, name: str, what: str) -> None:
        original = getattr(home, name)

        def counting(*given: Any, **named: Any) -> Any:
            counted[what] += 1
            return original(*given, **named)

        monkeypatch.setattr(home, name, counting)

    count(Composer, "_compose", "compositions")
    count(checks, "check_config", "checks")
    count(Objective, "__init__", "objectives")
    count(build, "create_factories", "optimizers")
    count(overrides, "_parse", "parsed arguments")
    return counted


def test_one_run_takes_each_step_once(gantrain: Callable[..., Any], calls: Counter[str]) -> None:
    answer = gantrain("train", *TINY, "gen_div=kl", "run_dir=run")
    assert (answer.code, answer.err) == (0, "")
    assert calls == {"compositions": 1, "checks": 1, "objectives": 1, "optimizers": 1, "parsed arguments": 6}


def test_an_argument_is_parsed_once_by_us(monkeypatch: pytest.MonkeyPatch, gantrain: Callable[..., Any]) -> None:
    """Hydra parses them once more, when it composes."""
    parsed: Counter[str] = Counter()
    original = OverridesParser.parse_overrides

    def counting(self: OverridesParser, overrides: list[str]) -> Any:
        parsed.update(overrides)
        return original(self, overrides)

    monkeypatch.setattr(OverridesParser, "parse_overrides", counting)
    assert gantrain("train", *TINY, "run_dir=run").code == 0
    assert max(parsed.values()) == 2


@pytest.mark.parametrize(("listed", "jobs"), [(["seed=0,1"], 2), (["gen_div=kl,js,gan", "seed=0,1"], 6)])
def test_a_sweep_composes_a_job_at_most_once(
    gantrain: Callable[..., Any], calls: Counter[str], tmp_path: Path, listed: list[str], jobs: int
) -> None:
    answer = gantrain("train", "-m", *TINY, *listed, "run_dir=sweep")
    assert (answer.code, answer.err) == (0, "")
    assert len(list(tmp_path.glob("sweep/*/summary.json"))) == jobs
    assert calls["compositions"] <= jobs + 1
    assert calls["optimizers"] == jobs
    assert calls["checks"] <= jobs + 1
