"""Small runs of the command line that can be stopped, and comparisons of what they leave."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from gantrain.cli import main
from gantrain.files import iterate_leaves
from gantrain.reporting.reporter import Reporter
from gantrain.runs import checkpoints
from gantrain.runs.metrics_file import read_metrics

SMALL = [
    "train.images=1000",
    "train.batch_size=50",
    "train.report_every_images=150",
    "train.sample_every_images=400",
    "train.checkpoint_every_images=300",
    "train.checkpoint_min_seconds=0",
    "train.keep_checkpoints=10",
]
# Words in the columns of compare.csv that depend on the machine or on the time of day.
TIMES = ("seconds", "images_per_second", "speed", "system", "folder", "started", "finished", "date", "path", "resumed")


def train(folder: Path, *overrides: str) -> int:
    return main(["train", f"run_dir={folder}", *SMALL, *overrides])


def train_until(monkeypatch: pytest.MonkeyPatch, images: int, folder: Path, *overrides: str) -> int:
    """Train, and send this process SIGTERM at the first step that reaches `images`."""
    progress = Reporter.advance

    def interrupting(reporter: Reporter, clock: int) -> None:
        if clock >= images:
            os.kill(os.getpid(), signal.SIGTERM)
        progress(reporter, clock)

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "advance", interrupting)
        return train(folder, *overrides)


def assert_equal(ours: Any, theirs: Any) -> None:
    """Assert that nested values are equal, tensors bit for bit."""
    one, other = dict(iterate_leaves(ours)), dict(iterate_leaves(theirs))
    assert one.keys() == other.keys()
    for key, value in one.items():
        same = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        assert same, key


def assert_equal_states(one: Path, other: Path) -> None:
    """Assert that the newest checkpoints of two runs hold the same state."""
    ours, theirs = (checkpoints.load_newest(run / "checkpoints")[1]["state"] for run in (one, other))
    assert_equal(ours, theirs)


def comparable(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return reports without the numbers that measure the machine."""
    return [{k: v for k, v in row.items() if not k.startswith(("speed/", "system/"))} for row in rows]


def assert_equal_runs(one: Path, other: Path) -> None:
    """Assert that two runs have the same state, reports and, to the byte, pictures."""
    assert_equal_states(one, other)
    assert comparable(read_metrics(one / "metrics.jsonl")) == comparable(read_metrics(other / "metrics.jsonl"))
    pictures = sorted(path.name for path in (one / "samples").iterdir())
    assert pictures == sorted(path.name for path in (other / "samples").iterdir())
    for name in [f"samples/{picture}" for picture in pictures] + ["losses.png"]:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def read_table(root: Path) -> list[dict[str, str]]:
    """Return the rows of compare.csv without the columns that depend on the machine or the time."""
    with (root / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name != "run" and not any(time in name for time in TIMES)]
    return [{name: row[name] for name in names} for row in rows]
