"""A run on a device that is not the CPU, of which `accelerator` is a stand-in, comes to the CPU's numbers."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerator import WAIT, stand_in, stand_in_without_float64
from faults.processes import run
from support.runs import assert_equal_runs
from support.tolerance import assert_close_to_largest

SMALL = ["train.images=600", "train.batch_size=50", "train.report_every_images=200", "train.held_out_images=100"]

SMALL_D = (
    "architecture.discriminator=[{{op: linear, features: 16, norm: {}, activation: leaky_relu}},"
    "{{op: linear, features: 1}}]"
)


def trained(folder: Path, *typed: str) -> tuple[Path, str]:
    """The run of `typed`, and what its command printed."""
    code, output = run(folder.with_suffix(".log"), "train", f"run_dir={folder}", *typed, fault=stand_in)
    assert code == 0, output
    return folder, output


def waits(output: str) -> Counter[str]:
    """How often the host waited for the device, by the place that made it."""
    return Counter(re.findall(rf"{WAIT} (.*)", output))


@pytest.mark.parametrize(
    "typed",
    [
        ["dataset.flip=true", "ema=0.99", "regularizer=label_smoothing", "latent.prior=uniform"],
        ["architecture=conv8", "train.discriminator_steps=2", "regularizer=gradient_penalty"],
        [
            *("update=simultaneous", "gen_div=kl", "optimizer.lr={from: 1e-3, to: 1e-4, images: 500}"),
            *("regularizer=r1", "regularizer.weight={from: 10, to: 1, images: 400}"),
        ],
        ["augment=diffaugment", "augment.p={from: 0, to: 1, images: 400}", "dataset.flip=true"],
        ["augment=ada", "augment.measure=held_out", "augment.p=0.3", "augment.ramp_images=1000", "augment.cutout=1"],
        ["regularizer=[r2,lecam]", "regularizer.r2.every=3"],
        ["regularizer=consistency", "regularizer.consistency.fake_weight=1", SMALL_D.format("none")],
        ["regularizer=[lecam,feature_matching]", SMALL_D.format("spectral")],
        [
            "dataset=ring",
            "regularizer=instance_noise",
            "head=nowozin",
            "evaluate.every_images=300",
            "evaluate.count=100",
        ],
        ["dataset=mixture1d", "architecture=affine", "gen_objective=ratio", "head=ratio", "optimizer=rmsprop"],
    ],
    ids=lambda typed: typed[0],
)
def test_a_run_comes_to_the_cpus_numbers(tmp_path: Path, typed: list[str]) -> None:
    """Every tensor lies on the device that the others lie on, and no number depends on it."""
    there, output = trained(tmp_path / "there", "device=cuda", *SMALL, *typed)
    assert waits(output)
    assert_equal_runs(trained(tmp_path / "here", "device=cpu", *SMALL, *typed)[0], there)


@pytest.mark.parametrize("typed", [["regularizer=r1", "gen_div=kl"], ["dataset=ring", "gen_objective=ratio"]])
def test_a_device_needs_no_float64(tmp_path: Path, typed: list[str]) -> None:
    folder = tmp_path / "there"
    command = ["train", f"run_dir={folder}", "device=cuda", *SMALL, *typed]
    code, output = run(tmp_path / "log", *command, fault=stand_in_without_float64)
    assert code == 0, output


@pytest.mark.parametrize("typed", [(), ("augment=ada", "augment.p=0.3")], ids=["plain", "ada"])
def test_the_host_waits_for_reports_and_never_for_an_iteration(tmp_path: Path, typed: tuple[str, ...]) -> None:
    """Twice as many iterations between two reports, the same waits; all in one epoch, of which the order is brought."""
    few, many = (
        waits(trained(tmp_path / str(images), "device=cuda", f"train.images={images}", *SMALL[1:], *often, *typed)[1])
        for images, often in ((800, ["train.report_every_images=400"]), (1600, ["train.report_every_images=800"]))
    )
    assert any(place.endswith(":read") for place in few), "the guard is read at a report"
    assert few == many


def test_commands_move_what_they_load(tmp_path: Path) -> None:
    """A classifier is trained, a run measured and sampled, on either device with the same result, but for rounding."""
    begun, _ = trained(tmp_path / "begun", "device=cuda", *SMALL)
    weights, metrics, grids = [], [], []
    for device in ("cuda", "cpu"):
        out = tmp_path / device
        commands = {
            "classifier": ["evaluate", "dataset=digits", "train_classifier.epochs=1", f"classifier={out}.pt"],
            "evaluate": ["evaluate", begun, "count=100", f"classifier={tmp_path / 'cuda.pt'}", f"out={out}"],
            "sample": ["sample", begun, "count=4", f"out={out / 'samples'}"],
        }
        for name, arguments in commands.items():
            log = tmp_path / f"{name}_{device}.log"
            code, output = run(log, *arguments, f"device={device}", fault=stand_in)
            assert code == 0, output
            assert bool(waits(output)) == (device == "cuda")
        weights.append(torch.load(f"{out}.pt", weights_only=True)["state"])
        metrics.append(json.loads((out / "evaluation.json").read_text())["metrics"])
        grids.append((out / "samples" / "grid.png").read_bytes())
    for name, weight in weights[1].items():
        assert_close_to_largest(weights[0][name], weight, name=name)
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4)
    assert grids[0] == grids[1]
