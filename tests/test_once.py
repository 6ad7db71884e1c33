"""Each step from the command line to the loop is taken once: parsing, composing, checking, building."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from gantrain.config import checks
from gantrain.config.compose import Composer
from gantrain.launch import build
from gantrain.objectives.objective import Objective

pytestmark = pytest.mark.usefixtures("plain_figures")
TINY = ["device=cpu", "train.images=40", "train.batch_size=20", "train.held_out_images=20"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each step was taken, and how often each argument was parsed."""
    counted: Counter[str] = Counter()

    def count(home: Any, name: str, what: Callable[..., list[str]]) -> None:
        original = getattr(home, name)

        def counting(*given: Any, **named: Any) -> Any:
            counted.update(what(*given, **named))
            return original(*given, **named)

        monkeypatch.setattr(home, name, counting)

    count(Composer, "_compose", lambda *_: ["compositions"])
    count(checks, "check_config", lambda *_: ["checks"])
    count(Objective, "__init__", lambda *_, **__: ["objectives"])
    count(build, "create_factories", lambda *_: ["optimizers"])
    count(OverridesParser, "parse_overrides", lambda _, overrides: overrides)
    return counted


def test_one_run_takes_each_step_once(gantrain: Callable[..., Any], calls: Counter[str]) -> None:
    """Hydra parses each argument once more, when it composes."""
    typed = [*TINY, "gen_div=kl", "run_dir=run"]
    answer = gantrain("train", *typed)
    assert (answer.code, answer.err) == (0, "")
    once = {"compositions": 1, "checks": 1, "objectives": 1, "optimizers": 1}
    assert calls == once | dict.fromkeys(typed, 2)


def test_a_sweep_composes_a_job_at_most_once(gantrain: Callable[..., Any], calls: Counter[str], tmp_path: Path) -> None:
    answer = gantrain("train", "-m", *TINY, "gen_div=kl,js", "seed=0,1", "run_dir=sweep")
    assert (answer.code, answer.err) == (0, "")
    assert len(list(tmp_path.glob("sweep/*/summary.json"))) == 4
    assert calls["compositions"] <= 4 + 1
    assert calls["optimizers"] == 4
    assert calls["checks"] <= 4 + 1
