"""`init=RUN`: the networks begin with the weights of another run; optimizers, clock and data are the new run's own."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Answer
from support.runs import assert_equal, assert_equal_runs, train, train_until

import gantrain as package
from gantrain.cli import main
from gantrain.comparison.runs import provenance, read_run
from gantrain.errors import CheckpointError
from gantrain.runs import checkpoints

Gantrain = Callable[..., Answer]

RING = ["dataset=ring", "train.held_out_images=20", "train.batch_size=20"]
STILL = ["optimizer=sgd", "optimizer.lr=0"]  # no update changes a weight
NETWORKS = ("generator", "discriminator", "average")
pytestmark = pytest.mark.usefixtures("plain_figures")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose average differs from its generator."""
    folder = tmp_path_factory.mktemp("source") / "run"
    every = ["train.checkpoint_every_images=100", "train.checkpoint_min_seconds=0"]
    assert main(["train", f"run_dir={folder}", *RING, *every, "train.images=200", "ema=0.9", "optimizer.lr=0.01"]) == 0
    return folder


def bundle(run: Path) -> dict[str, Any]:
    return checkpoints.load_newest(run / "checkpoints")[1]


def summary(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text()))


def test_networks_begin_with_the_weights_and_all_else_anew(gantrain: Gantrain, source: Path, tmp_path: Path) -> None:
    answer = gantrain("train", *RING, *STILL, f"init={source}", "ema=1", "seed=5", "train.images=60", "run_dir=run")
    assert answer.code == 0, answer.err
    ours, theirs = bundle(tmp_path / "run"), bundle(source)
    for name in NETWORKS:
        assert_equal(ours["state"][name], theirs["state"][name])
    assert (ours["images"], theirs["images"]) == (60, 200)

    adam = ["train", *RING, f"init={source}", "ema=0.9", "train.images=60", "run_dir=adam"]
    assert gantrain(*adam).code == 0
    for player in ("generator", "discriminator"):
        state = bundle(tmp_path / "adam")["state"][f"{player}_optimizer"]["state"]
        assert {int(values["step"]) for values in state.values()} == {3}


def test_the_average_goes_on_without_the_ramp_of_random_weights(
    gantrain: Gantrain, source: Path, tmp_path: Path
) -> None:
    begin = bundle(source)["state"]
    once = ["train", *RING, *STILL, "train.images=20"]
    assert gantrain(*once, f"init={source}", "ema=0.75", "run_dir=averaged").code == 0
    for key, average in bundle(tmp_path / "averaged")["state"]["average"].items():
        torch.testing.assert_close(average, 0.75 * begin["average"][key] + 0.25 * begin["generator"][key])
    # A run without an average gives its generator for it.
    assert gantrain(*once, f"init={source}", "ema=0", "run_dir=plain").code == 0
    assert "average" not in bundle(tmp_path / "plain")["state"]
    assert gantrain(*once, "init=plain", "ema=1", "run_dir=again").code == 0
    assert_equal(bundle(tmp_path / "again")["state"]["average"], begin["generator"])


def test_the_source_is_recorded_and_not_needed_afterwards(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, chosen = tmp_path / "copy", "images_000000000100.pt"
    shutil.copytree(source, copy)
    typed = ["dataset=ring", f"init={copy}/checkpoints/{chosen}", "train.held_out_images=20"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train_until(monkeypatch, 10**6, whole, *typed) == 0
    assert train_until(monkeypatch, 500, stopped, *typed) == 143
    shutil.rmtree(copy)
    (stopped / "summary.json").write_text("")  # which a resumed run makes anew
    assert main(["resume", str(stopped)]) == 0
    assert_equal_runs(whole, stopped)
    checksum = hashlib.sha256((source / "checkpoints" / chosen).read_bytes()).hexdigest()
    origin = {"run": str(copy), "checkpoint": chosen, "images": 100, "sha256": checksum}
    assert summary(whole)["init"] == summary(stopped)["init"] == origin
    assert train(stopped, "resume=auto", *typed) == 0
    assert provenance(read_run(whole))["initial weights"] == f"{copy}, {chosen}, 100 images"


def test_another_source_is_another_run(gantrain: Gantrain, source: Path) -> None:
    assert gantrain("train", *RING, f"init={source}", "train.images=40", "run_dir=run").code == 0
    answer = gantrain("resume", "run", "train.images=80", "init=elsewhere")
    assert (answer.code, f"init: {source} → elsewhere" in answer.err) == (4, True)


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (
            ["latent.size=3"],
            ["generator.0.linear.weight: the checkpoint has float32 [128, 2], this run float32 [128, 3]"],
        ),
        (["architecture=affine"], ["generator.", "this run nothing", "and "]),
        (["dataset=digits", "architecture=mlp"], ["[128, 2], this run float32 [128, 64]", "samples of shape 2"]),
    ],
)
def test_other_networks_are_refused_before_a_folder_is_made(
    gantrain: Gantrain, source: Path, tmp_path: Path, typed: list[str], named: list[str]
) -> None:
    answer = gantrain("train", "dataset=ring", *typed, f"init={source}", "run_dir=run")
    assert answer.code == 4
    for words in [*named, "architecture=mlp latent.size=2"]:
        assert words in answer.err
    assert answer.err.count("\n") < 12
    assert not (tmp_path / "run").exists()


def test_what_is_no_run_is_refused_before_a_folder_is_made(gantrain: Gantrain, source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "tree" / "damaged")
    for file in (tmp_path / "tree/damaged/checkpoints").glob("*.pt"):
        file.write_bytes(file.read_bytes()[:-1])
    for init, reason in (("absent", "absent does not exist"), ("tree", "tree/damaged"), ("tree/damaged", "damaged:")):
        for sweep in ([], ["-m", "seed=0,1"]):
            answer = gantrain("train", *RING, f"init={init}", *sweep)
            assert (answer.code, reason in answer.err) == (4, True), answer.err
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_a_sweep_may_sweep_it(gantrain: Gantrain, source: Path, tmp_path: Path) -> None:
    first = source / "checkpoints/images_000000000100.pt"
    answer = gantrain("train", "-m", *RING, "train.images=40", f"init={source},{first}", "run_dir=sweep")
    assert answer.code == 0, answer.err
    runs = sorted(path.parent for path in (tmp_path / "sweep").glob("*/summary.json"))
    assert [summary(run)["init"]["images"] for run in runs] == [200, 100]
    assert gantrain("resume", "sweep").code == 0


def test_python_takes_a_run_or_a_path(source: Path, tmp_path: Path) -> None:
    short = {"dataset": "ring", "train.images": 20, "train.batch_size": 20, "train.held_out_images": 20}
    for init in (package.load(source), source, str(source)):
        run = package.train(init=init, run_dir=tmp_path / str(type(init).__name__), **short)
        assert run.summary["init"]["images"] == 200
    with pytest.raises(CheckpointError, match="does not exist"):
        package.train(init=tmp_path / "absent", run_dir=tmp_path / "none", **short)
