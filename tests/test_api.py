"""The public Python calls: repeated, inside another program of Hydra, and without a trace in the process."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import gantrain
from gantrain.api import to_text
from gantrain.config.overrides import parse
from gantrain.errors import CheckpointError, ConfigError, DataError

TINY = {"device": "cpu", "train.images": 40, "train.batch_size": 20, "train.held_out_images": 20}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> gantrain.Run:
    """A finished run on points of a ring."""
    return gantrain.train(dataset="ring", gen_div="kl", run_dir=tmp_path_factory.mktemp("api") / "a b", **TINY)


def test_a_run_tells_what_it_is(run: gantrain.Run) -> None:
    assert (run.summary["status"], run.metrics[-1]["images"]) == ("finished", 40)
    assert (run.settings.gen_div.name, run.settings.train.batch_size) == ("kl", 20)
    assert run.sample(3, seed=1).shape == (3, 2)
    assert torch.equal(run.sample(3, seed=1), gantrain.load(run.path).sample(3, seed=1))
    assert run.log_ratio(run.sample(3)).shape == (3,)


def test_a_run_goes_on(run: gantrain.Run) -> None:
    again = gantrain.resume(run.path, **{"train.images": 80})
    assert (again.path, again.summary["images"]) == (run.path, 80)
    with pytest.raises(CheckpointError, match="another one"):
        gantrain.resume(run.path, seed=3)
    assert gantrain.compare(run.path).runs[0].path == run.path


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"gen_div": "kll"}, ConfigError, "did you mean kl"),
        ({"sed": 1}, ConfigError, "did you mean seed"),
        ({"experiment": "paper_figure2"}, ConfigError, "is a sweep"),
        ({"dataset": "folder", "dataset.path": Path("no where")}, DataError, "no where"),
    ],
)
def test_errors_are_exceptions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict, error: type, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        gantrain.train(**settings)


def test_nothing_is_left_behind_in_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside another program of Hydra, with its own handlers of signals and logs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/config.yaml").write_text("mine: 1\n")

    def state() -> list[object]:
        signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        return [*signals, logging.getLogger().handlers[:], sys.argv[:], os.getcwd(), torch.get_num_threads()]

    with hydra.initialize_config_dir(str(tmp_path / "theirs"), version_base="1.2"):
        app, before = GlobalHydra.instance().hydra, state()
        for number in range(2):
            gantrain.train(dataset="ring", run_dir=f"run{number}", **TINY)
        assert GlobalHydra.instance().hydra is app
        assert hydra.compose("config").mine == 1
        assert state() == before


@pytest.mark.parametrize(
    "value",
    ["kl", "a b", "it's", "null", "true", "1e3", "a,b", "", None, True, 3, 0.5, [1, 2.5], ["a", "b c"], {"a": 1}],
)
def test_values_come_back_from_the_grammar(value: object) -> None:
    assert parse([f"x={to_text(value)}"])[0].override.value() == value


def test_the_package_offers_its_names_without_torch() -> None:
    assert {"train", "resume", "compare", "load", "Run"} <= set(dir(gantrain))
