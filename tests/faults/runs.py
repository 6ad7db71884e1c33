"""A run of a second that writes much, and what it means that another one equals it."""

from __future__ import annotations

import json
from pathlib import Path

from support.runs import assert_equal_runs, read_table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gantrain.runs.metrics_file import read_metrics

# Ten steps, with a checkpoint at each, so that a random moment often lies within one.
STEPS = 10
SMALL = [
    "train.images=500",
    "train.batch_size=50",
    "train.report_every_images=150",
    "train.sample_every_images=200",
    "train.checkpoint_every_images=50",
    "train.checkpoint_min_seconds=0",
    "train.held_out_images=50",
]


def training(folder: Path, *overrides: str) -> list[str]:
    """The arguments that train the small run in `folder`, from the start or from where it is."""
    return ["train", f"run_dir={folder}", "resume=auto", *SMALL, *overrides]


def sweeping(folder: Path) -> list[str]:
    """The arguments that train two of them in `folder`."""
    return ["train", "-m", "gen_div=kl,js", f"run_dir={folder}", *SMALL]


def assert_same_sweep(one: Path, other: Path) -> None:
    """Every run is the same, and so are the report's numbers and, to the byte, its figures."""
    runs = sorted(path.parent.name for path in one.glob("*/summary.json"))
    assert len(runs) == 2
    for name in runs:
        assert_same_run(one / name, other / name)
    assert read_table(one) == read_table(other)
    figures = sorted(path.name for path in one.glob("compare-*.png"))
    assert figures
    for name in figures:
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert (other / "report.html").exists()


def assert_same_run(one: Path, other: Path) -> None:
    """Every number of the state, every report, picture and curve is the same, once."""
    assert_equal_runs(one, other)
    ours, theirs = curves(one), curves(other)
    assert ours == theirs
    reports = [report["images"] for report in read_metrics(other / "metrics.jsonl")]
    assert all([step for step, _ in curve] == reports for curve in theirs.values())
    assert summary(one) == summary(other)


def curves(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """TensorBoard's scalars as text, in which NaN equals itself, without those that measure the machine."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(("speed/", "system/"))]
    return {tag: [(event.step, repr(event.value)) for event in events.Scalars(tag)] for tag in tags}


def summary(folder: Path) -> dict[str, object]:
    """What a summary says of the run itself."""
    found = json.loads((folder / "summary.json").read_text())
    metrics = {name: v for name, v in found["metrics"].items() if not name.startswith(("speed/", "system/"))}
    return {key: found[key] for key in ("status", "reason", "images", "exit_code", "data")} | {"metrics": metrics}
