"""The mirror to Weights & Biases, offline: what its own files hold, and that it never costs a run."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Answer
from support.waiting import PATIENCE_SECONDS

from gantrain.errors import ConfigError
from gantrain.files import replace_non_finite
from gantrain.reporting import wandb as wandb_mirror
from gantrain.reporting.reporter import Reporter
from gantrain.runs.metrics_file import read_metrics

INSTALLED = importlib.util.find_spec("wandb") is not None
needs_wandb = pytest.mark.skipif(not INSTALLED, reason="wandb is not installed: pip install 'gantrain[wandb]'")

SMALL = ["dataset=ring", "train.images=100", "train.report_every_images=50", "train.sample_every_images=100"]
SMALL += ["train.batch_size=50", "train.held_out_images=20", "dataset.label=${oc.env:SECRET_LABEL}"]
SMALL += ["logger=[tensorboard,wandb]"]
SECRET = "a-secret-of-the-environment"
BLOCK, HEADER = 2**15, struct.Struct("<IHB")  # of the log format of LevelDB, in which wandb keeps its records


def offline(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, which reaches no network."""
    command = [sys.executable, "-m", "gantrain.cli", *map(str, arguments)]
    environment = os.environ | {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", "SECRET_LABEL": SECRET}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)


def records(run: Path) -> Iterator[Any]:
    """All records of a run's mirrors, in the order of time."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        data, place, parts = path.read_bytes(), 7, b""
        while place + HEADER.size < len(data):
            if BLOCK - place % BLOCK < HEADER.size:
                place += BLOCK - place % BLOCK
                continue
            _, length, kind = HEADER.unpack_from(data, place)
            parts += data[place + HEADER.size : place + HEADER.size + length]
            place += HEADER.size + length
            if kind in (1, 4):  # whole, or the last part
                yield Record.FromString(parts)
                parts = b""


def history(run: Path) -> dict[int, dict[str, Any]]:
    """What was mirrored at each clock."""
    found: dict[int, dict[str, Any]] = {}
    for record in records(run):
        if record.WhichOneof("record_type") == "history":
            values = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            found[record.history.step.num] = {name: json.loads(value) for name, value in values.items()}
    return found


@needs_wandb
def test_a_run_and_its_continuation_are_mirrored_at_the_clock(tmp_path: Path) -> None:
    run = tmp_path / "run"
    answer = offline("train", f"run_dir={run}", *SMALL)
    assert answer.returncode == 0, answer.stderr
    assert "the run is mirrored to" in answer.stdout
    identity = (run / "wandb_id").read_text()
    answer = offline("resume", run, "train.images=200")
    assert answer.returncode == 0, answer.stderr
    assert (run / "wandb_id").read_text() == identity

    mirrored, reports = history(run), read_metrics(run / "metrics.jsonl")
    assert list(mirrored) == [row["images"] for row in reports] == [50, 100, 150, 200]
    for row in reports:
        ours = {name: value for name, value in row.items() if name != "images"}
        theirs = {name: mirrored[row["images"]][name] for name in ours}
        assert replace_non_finite(theirs) == pytest.approx(ours)
    assert [clock for clock, values in mirrored.items() if "samples/path" in values] == [100, 200]

    told = [record.run for record in records(run) if record.WhichOneof("record_type") == "run"]
    assert {each.run_id for each in told} == {identity.strip()}
    assert {each.display_name for each in told} == {"run"}
    assert {each.project for each in told} == {"gantrain"}
    settings = {item.key: json.loads(item.value_json) for item in told[0].config.update}
    assert settings["dataset"]["label"] == "${oc.env:SECRET_LABEL}"
    assert not [path for path in run.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_a_missing_package_is_told_before_data_are_read(
    tmp_path: Path, gantrain: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name))
    answer = gantrain("train", "run_dir=run", "dataset=cifar10", "dataset.root=nowhere", "logger=[wandb]")
    assert answer.code == 2
    assert "pip install 'gantrain[wandb]'" in answer.err
    assert not list(tmp_path.iterdir())


def test_a_folder_of_an_earlier_run_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match="pip install"):
        wandb_mirror.check_installed()


@pytest.mark.parametrize("kept", ["", "../../elsewhere", "UPPER"])
def test_an_id_that_is_none_is_made_anew(tmp_path: Path, kept: str) -> None:
    (tmp_path / "wandb_id").write_text(kept)
    made = wandb_mirror.read_identity(tmp_path)
    assert wandb_mirror.ID.fullmatch(made)
    assert wandb_mirror.read_identity(tmp_path) == made


def test_a_mirror_that_cannot_be_opened_costs_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def failing() -> wandb_mirror.Mirror:
        with wandb_mirror.convert_errors():
            raise RuntimeError("no such project")
        raise AssertionError

    with Reporter(tmp_path, 100, loggers=[failing]) as reporter:
        reporter.report(100, {"loss/discriminator": 1.0})
    assert "the run goes on without them: Weights & Biases: no such project" in capsys.readouterr().out
    assert [row["images"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [100]


def test_without_a_logger_there_is_metrics_jsonl_alone(tmp_path: Path, gantrain: Callable[..., Answer]) -> None:
    answer = gantrain("train", "run_dir=run", "dataset=ring", "train.images=100", "logger=[]")
    assert answer.code == 0, answer.err
    assert not list((tmp_path / "run").glob("events.out.*"))
    assert not (tmp_path / "run" / "wandb").exists()
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 1


@pytest.mark.parametrize("value", ["[wandbb]", "null"])
def test_what_is_no_list_of_loggers_is_refused(value: str, gantrain: Callable[..., Answer]) -> None:
    answer = gantrain("train", "run_dir=run", f"logger={value}")
    assert answer.code == 2, answer.out
    assert "logger" in answer.err
