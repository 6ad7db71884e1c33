"""`gantrain evaluate`: the same numbers whichever way samples come, sane ones where the truth is known."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Answer
from PIL import Image
from scipy import linalg
from torch import Tensor

from gantrain import data
from gantrain.cli import main
from gantrain.data import arrays
from gantrain.errors import DataError, DivergedError, MemoryExhaustedError
from gantrain.evaluation import classifier, evaluation
from gantrain.evaluation import samples as stored
from gantrain.launch.evaluate import evaluate_sweep
from gantrain.launch.sweep import RunFailed
from gantrain.runs import checkpoints
from gantrain.training.generator import TrainedGenerator

SMALL = ["train.images=2000", "train.held_out_images=20", "architecture=mlp_digits"]
TINY = ["train.images=200", "train.batch_size=50", "train.held_out_images=50"]
pytestmark = pytest.mark.usefixtures("plain_figures")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the embedded digits."""
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    assert main(["train", f"run_dir={folder}", *SMALL]) == 0
    return folder


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two datasets and two seeds; not to be written into."""
    folder = tmp_path_factory.mktemp("evaluate") / "s"
    assert main(["train", "-m", "dataset=mixture1d,ring", "seed=0,1", *TINY, f"run_dir={folder}"]) == 0
    return folder


@pytest.fixture
def sweep(swept: Path, tmp_path: Path) -> Path:
    return shutil.copytree(swept, tmp_path / "s", symlinks=True)


@pytest.fixture
def with_config(sweep: Path) -> Callable[[dict[str, Any]], Path]:
    """A run of the ring whose checkpoint has these settings, as may come from another machine or from others."""
    (run,) = sweep.glob("2-*")

    def changed(sections: dict[str, Any]) -> Path:
        bundle = checkpoints.load_newest(run / "checkpoints")[1]
        settings = bundle["config"]
        new = {key: settings[key] | value if isinstance(value, dict) else value for key, value in sections.items()}
        checkpoints.save(run / "checkpoints", bundle | {"config": settings | new}, keep=1)
        return run

    return changed


@pytest.fixture(scope="module")
def digits() -> data.Images:
    images = data.load("digits")
    assert isinstance(images, data.Images)
    return images


Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture
def measured(gantrain: Callable[..., Answer], tmp_path: Path) -> Evaluate:
    """What the command writes about these 8-bit images, or about what the path holds."""

    def call(what: Tensor | Path, *arguments: str) -> dict[str, Any]:
        path = tmp_path / "samples.npz"
        if isinstance(what, Tensor):
            np.savez(path, what.numpy())
        answer = gantrain("evaluate", path if isinstance(what, Tensor) else what, "out=out", *arguments)
        assert answer.code == 0, answer.err
        return json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))

    return call


# Where samples come from


def test_a_run_is_evaluated_into_its_folder(trained: Path, gantrain: Callable[..., Answer]) -> None:
    answer = gantrain("evaluate", trained)
    assert answer.code == 0, answer.err
    source = "averaged generator, standing statistics"
    assert f"179 samples of the {source} at 2,000 images against 179 held-out examples of digits" in answer.out
    found = json.loads((trained / "evaluation.json").read_text(encoding="utf-8"))
    told = {key: found[key] for key in ("images", "checkpoint", "samples_from", "count", "split", "seed")}
    assert told == {
        "images": 2000,
        "checkpoint": "images_000000002000.pt",
        "samples_from": "averaged generator, standing statistics",
        "count": 179,
        "split": "held out",
        "seed": 0,
    }
    assert (found["features"]["name"], found["features"]["dataset"]) == ("classifier", "digits")
    assert found["features"]["accuracy"] >= 0.97
    assert (found["features"]["width"], found["features"]["epochs"]) == (16, 40)
    assert set(found["metrics"]) == set(found["reference"]) == {
        *("quality/fid_classifier", "quality/kid_classifier", "quality/kid_classifier_error"),
        *("quality/inception_score_classifier", "quality/precision", "quality/density"),
        *("diversity/recall", "diversity/coverage", "diversity/class_entropy", "diversity/class_tv"),
        *("diversity/class_kl", "diversity/missing_classes", "diversity/pairwise_distance", "diversity/support_size"),
        "diversity/support_ratio",
    }  # fmt: skip
    assert all(name in answer.out for name in found["metrics"] if not name.endswith("_error"))
    assert {whose: sum(counts.values()) for whose, counts in found["class_histogram"].items()} == {
        "data": 179,
        "samples": 179,
    }
    with Image.open(trained / "neighbours.png") as picture:
        assert picture.width == picture.height


def test_a_run_its_checkpoint_its_pictures_and_their_array_have_the_same_numbers(
    trained: Path, measured: Evaluate, gantrain: Callable[..., Answer], tmp_path: Path
) -> None:
    found = measured(trained, "count=100", "seed=3")
    assert gantrain("sample", trained, "count=100", "seed=3", f"out={tmp_path / 'pictures'}").code == 0
    pictures = stored.read_samples(tmp_path / "pictures", (1, 8, 8))
    others = [
        measured(trained / "checkpoints" / "last.pt", "count=100", "seed=3"),
        measured(tmp_path / "pictures", "dataset=digits", "count=100"),
        measured(pictures, "dataset=digits", "count=100"),
        measured(pictures[torch.randperm(100)].squeeze(1), "dataset=digits", "count=100"),
        measured(pictures.permute(0, 2, 3, 1) / 255, "dataset=digits", "count=100"),
    ]
    for other in others:
        assert other["metrics"] == pytest.approx(found["metrics"], rel=1e-4, abs=1e-6)
        assert other["class_histogram"] == found["class_histogram"]


# What is known of samples


def test_a_generator_that_misses_two_classes_is_reported_as_missing_them(
    measured: Evaluate, digits: data.Images, gantrain: Callable[..., Answer], tmp_path: Path
) -> None:
    labels = digits.labels()
    assert labels is not None
    there = digits.train[(labels.train != 3) & (labels.train != 7)]
    whole, missing = (measured(part, "dataset=digits", "count=179") for part in (digits.train, there))
    assert missing["metrics"]["diversity/missing_classes"] == 2
    assert whole["metrics"]["diversity/missing_classes"] == 0
    assert missing["class_histogram"]["samples"]["3"] <= 2
    assert "missing: 3, 7" in gantrain("evaluate", tmp_path / "samples.npz", "dataset=digits", "count=179").out
    distance, reference = (each["metrics"]["quality/fid_classifier"] for each in (missing, whole))
    assert distance > 1.5 * reference
    for name, sign in {"recall": -1, "class_entropy": -1, "class_tv": 1, "class_kl": 1}.items():
        value, reference = (each["metrics"][f"diversity/{name}"] for each in (missing, whole))
        assert sign * value > sign * reference


def test_numbers_agree_with_independent_arithmetic_on_the_same_features(
    measured: Evaluate, digits: data.Images
) -> None:
    samples = digits.train[:200]
    found = measured(samples, "dataset=digits", "split=held_out", "count=150", "seed=5")
    stored_classifier = classifier.load_classifier(classifier.cache_path(digits))
    assert found["features"]["checksum"] == stored_classifier.checksum[:16]
    samples, real = stored.choose_examples(samples, 150, "samples", seed=5), digits.held[:150]
    (x, _), (y, p) = (classifier.compute_features(stored_classifier.classifier, images) for images in (real, samples))
    a, b = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    fid = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert found["metrics"]["quality/fid_classifier"] == pytest.approx(float(fid), rel=1e-3)
    kl = (p * (p / p.mean(0)).log()).nan_to_num().sum(1).mean()
    assert found["metrics"]["quality/inception_score_classifier"] == pytest.approx(float(kl.exp()), rel=1e-6)


def test_fewer_training_images_than_samples_are_told(
    gantrain: Callable[..., Answer], tmp_path: Path, digits: data.Images
) -> None:
    np.save(tmp_path / "samples.npy", torch.cat([digits.train, digits.held]).numpy())
    answer = gantrain("evaluate", "samples.npy", "dataset=digits", "metrics=pairwise_distance", "count=5000")
    assert answer.code == 0, answer.err
    assert "1,797 samples of samples.npy against 179 held-out examples" in answer.out
    assert answer.out.splitlines()[1].split("  ")[-2].strip() == "1,618 training examples"
    found = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert (found["count"], found["real_count"], found["reference_count"]) == (1797, 179, 1618)


def test_a_picture_of_neighbours_needs_as_many_training_images_as_a_row(tmp_path: Path) -> None:
    for count, is_drawn in ((6, False), (7, True)):
        images = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
        folder = tmp_path / str(count)
        evaluation.write_evaluation(folder, {}, images[:3], data.Images("folder", "own", images, images))
        assert (folder / "evaluation.json").exists()
        assert (folder / "neighbours.png").exists() == is_drawn


def test_points_are_compared_with_draws_of_the_split_that_is_asked_for() -> None:
    ring = data.load("ring")
    for split, name, drawn in [
        ("held_out", "held out", ring.held_out(50)),
        ("training", "training", ring.batch(0, 50).images),
    ]:
        examples, found = stored.select_real_examples(ring, 50, split)
        assert found == name
        assert torch.equal(examples, drawn)


@pytest.mark.parametrize(("kept", "modes", "share"), [(2, 2, 0.989), (0, 0, 0.0)])
def test_points_of_a_density_need_no_classifier(
    kept: int, modes: int, share: float, tmp_path: Path, measured: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing"))
    ring = data.load("ring")
    assert isinstance(ring, data.Density)
    means = torch.tensor(ring.mixture.means)
    points = ring.batch(0, 4000).images
    near = torch.cdist(points, means).argmin(1) < kept
    np.save(tmp_path / "points.npy", (points[near] if kept else torch.full((500, 2), 9.0)).numpy())
    found = measured(tmp_path / "points.npy", "dataset=ring", "count=400")["metrics"]
    assert found["diversity/modes"] == modes
    assert found["quality/high_quality_share"] == pytest.approx(share, abs=0.02)
    assert found["diversity/missing_classes"] == 8 - kept
    if kept == 0:
        assert found["diversity/class_entropy"] is None
    assert not (tmp_path / "nothing").exists()


def test_only_the_metrics_that_are_named_are_measured(measured: Evaluate, digits: data.Images) -> None:
    found = measured(digits.held, "dataset=digits", "metrics=prdc,classes", "reference=false")
    assert list(found["metrics"])[:2] == ["quality/precision", "quality/density"]
    assert len(found["metrics"]) == 8
    assert (found["reference"], found["reference_count"]) == ({}, 0)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "evaluate RUN"),
        (["nowhere"], 4, "does not exist"),
        (["images"], 2, "dataset=…"),
        (["images", "dataset=digits", "metrics=fit"], 2, "did you mean fid"),
        (["images", "dataset=digits", "metrics=modes"], 2, "digits has other metrics"),
        (["images", "dataset=dirac"], 2, "dirac"),
        (["images", "dataset=digits", "count=5"], 2, "at least 20"),
        (["images", "dataset=digits"], 3, "too few"),
        (["colour", "dataset=digits"], 3, "in colour"),
        (["images", "dataset=ring"], 3, "no points"),
        (["empty", "dataset=digits"], 3, "no images"),
        (["shape.npy", "dataset=digits"], 3, "[30, 5, 5]"),
        (["range.npy", "dataset=digits"], 3, "8-bit"),
        (["words.npy", "dataset=digits"], 3, "no array"),
        (["number.npy", "dataset=digits"], 3, "float32 []"),
        (["long.npy", "dataset=digits"], 3, "numbers of up to 64 bits"),
        (["dark.npy", "dataset=digits"], 3, "8-bit"),
        (["lost.npy", "dataset=ring"], 3, "not finite"),
        (["broken.npz", "dataset=digits"], 3, "no array"),
        (["plain.npy", "dataset=array", "dataset.path=plain.npy"], 2, "without a known density"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    arguments: list[str], code: int, words: str, tmp_path: Path, gantrain: Callable[..., Answer]
) -> None:
    for name in ("images", "colour", "empty"):
        (tmp_path / name).mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "images" / "0.png")
    Image.fromarray(np.full((8, 8, 3), [255, 0, 0], np.uint8)).save(tmp_path / "colour" / "0.png")
    np.save(tmp_path / "shape.npy", np.zeros((30, 5, 5), np.uint8))
    np.save(tmp_path / "range.npy", np.full((30, 8, 8), 2.0))
    np.save(tmp_path / "words.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "broken.npz").write_bytes(b"PK")
    np.save(tmp_path / "plain.npy", np.random.default_rng(0).normal(size=(300, 3)))
    np.save(tmp_path / "number.npy", np.float32(1))
    np.save(tmp_path / "long.npy", np.zeros((30, 8, 8), np.longdouble))
    np.save(tmp_path / "dark.npy", np.where(np.arange(64).reshape(8, 8) == 9, np.nan, np.zeros((30, 1, 1))))
    np.save(tmp_path / "lost.npy", np.where(np.arange(30)[:, None] == 9, np.nan, np.zeros((30, 2))))
    answer = gantrain("evaluate", *arguments)
    assert answer.code == code, answer.err
    assert words in answer.err


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/out"])
def test_a_place_that_cannot_be_written_is_refused_before_measuring(
    out: str, trained: Path, tmp_path: Path, gantrain: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "build_reference_set", None)
    (tmp_path / "file").touch()
    answer = gantrain("evaluate", trained, f"out={out}")
    assert answer.code == 7
    assert f"{out} cannot be written: " in answer.err


def test_a_run_is_not_judged_by_images_that_have_changed(tmp_path: Path, gantrain: Callable[..., Answer]) -> None:
    for index in range(30):
        (tmp_path / "in" / f"{index % 2}").mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 255, (8, 8), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{index % 2}" / f"{index}.png")
    settings = ["dataset=folder", "dataset.path=in", "dataset.size=8", "architecture=mlp_digits"]
    assert gantrain("train", "run_dir=run", *settings, "train.images=40", "train.batch_size=20").code == 0
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "in" / "0" / "0.png")
    answer = gantrain("evaluate", "run")
    assert answer.code == 4
    assert "has changed" in answer.err


def test_an_array_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", np.zeros((1000, 8, 8), np.uint8))
    monkeypatch.setattr(arrays, "MAX_BYTES", 10_000)
    with pytest.raises(DataError, match="the most"):
        stored.read_samples(tmp_path / "a.npz", (1, 8, 8))


def test_the_suffix_of_samples_may_be_in_capitals(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((6, 2)))
    samples = (tmp_path / "a.npy").rename(tmp_path / "A.NPY")
    assert stored.read_samples(samples, (2,)).tolist() == [[1, 1]] * 6


def test_a_damaged_sample_is_named_and_never_left_out(gantrain, tmp_path):
    for number in range(30):
        (tmp_path / "samples").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "samples" / f"{number}.png")
    (tmp_path / "samples" / "7.png").write_bytes(b"none")
    for more in ([], ["dataset.on_bad=skip"]):
        answer = gantrain("evaluate", "samples", "dataset=digits", "metrics=prdc", *more)
        assert answer.code == 3
        assert "7.png" in answer.err
        assert "on_bad" not in answer.err


@pytest.mark.parametrize("kind", [">f4", ">f8", "<f4", "f2"])
def test_an_array_is_read_in_any_order_of_its_bytes(kind: str, tmp_path: Path) -> None:
    points, pixels = np.arange(12.0).reshape(6, 2), np.arange(256.0).reshape(4, 8, 8) / 255
    np.save(tmp_path / "points.npy", points.astype(kind))
    np.save(tmp_path / "pixels.npy", pixels.astype(kind))
    assert stored.read_samples(tmp_path / "points.npy", (2,)).tolist() == points.tolist()
    assert stored.read_samples(tmp_path / "pixels.npy", (1, 8, 8)).flatten().tolist() == list(range(256))


def test_the_runs_of_a_sweep_have_the_numbers_of_each_by_itself_from_data_read_once(
    gantrain: Callable[..., Answer], sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = sorted(path.parent for path in sweep.glob("*/checkpoints"))
    assert len(runs) == 4
    alone = []
    for run in runs:
        assert gantrain("evaluate", run, "count=120", "out=alone").code == 0
        alone.append((tmp_path / "alone" / "evaluation.json").read_bytes())

    load, read = data.load_dataset, []

    def counted(settings: data.DatasetSettings, **options: Any) -> Any:
        read.append(settings.name)
        return load(settings, **options)

    monkeypatch.setattr(data, "load_dataset", counted)
    answer = gantrain("evaluate", sweep, "count=120")
    assert (answer.code, answer.err) == (0, "")
    assert [(run / "evaluation.json").read_bytes() for run in runs] == alone
    assert len(set(alone)) == 4
    assert read == ["mixture1d", "ring"]
    assert "diversity/modes" in (sweep / "compare.csv").read_text().splitlines()[0]


def test_a_run_that_was_killed_before_its_checkpoint_is_named(gantrain: Callable[..., Answer], sweep: Path) -> None:
    runs = sorted(path.parent for path in sweep.glob("*/checkpoints"))
    for run in runs:
        (run / "summary.json").write_text('{"status": "running"}')
    shutil.rmtree(runs[0] / "checkpoints")
    answer = gantrain("evaluate", sweep, "count=120", "metrics=prdc", "reference=false")
    assert (answer.code, answer.out.count("\nkilled: ")) == (0, len(runs))
    for run in runs[1:]:
        shutil.rmtree(run / "checkpoints")
    answer = gantrain("sample", sweep)
    assert (answer.code, f"has a checkpoint; go on with: gantrain resume {sweep}" in answer.err) == (4, True)


def test_a_damaged_run_of_a_sweep_costs_no_other(gantrain: Callable[..., Answer], sweep: Path) -> None:
    damaged, *others = sorted(path.parent for path in sweep.glob("*/checkpoints"))
    for path in (damaged / "checkpoints").iterdir():
        path.write_bytes(b"damaged")
    answer = gantrain("evaluate", sweep, "count=120", "metrics=prdc", "reference=false")
    assert answer.code == 4
    assert f"1 run could not be measured:\n  {damaged.name}: " in answer.err
    assert all(json.loads((run / "evaluation.json").read_text())["count"] == 120 for run in others)
    assert gantrain("evaluate", sweep, "out=elsewhere").code == 2


# Readers that leave, and machines that lack something


class Leaving(io.TextIOWrapper):
    """A pipe whose reader leaves when it has seen so many parts."""

    def __init__(self, parts: int) -> None:
        self.reader, writer = os.pipe()
        super().__init__(os.fdopen(writer, "wb"), encoding="utf-8")
        self.parts = parts

    def flush(self) -> None:
        super().flush()
        self.parts -= 1
        if self.parts == 0:
            os.close(self.reader)


def test_a_failure_of_storage_or_memory_costs_the_evaluation_of_one_run(sweep: Path) -> None:
    measured, errors = [], [OSError(28, "No space left on device"), MemoryError("cannot allocate")]

    def evaluate_run(run: Path) -> None:
        measured.append(run.name)
        if errors:
            raise errors.pop()

    with pytest.raises(RunFailed, match="2 runs could not be measured") as failure:
        evaluate_sweep(sweep, evaluate_run)
    runs = sorted(path.parent.name for path in sweep.glob("*/checkpoints"))
    assert sorted(measured) == runs
    assert "No space left on device" in str(failure.value)
    assert failure.value.exit_code == MemoryExhaustedError.exit_code


def test_points_that_are_not_finite_are_not_written(
    sweep: Path, gantrain: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainedGenerator, "sample", lambda _, count, seed: torch.full((count, 2), torch.nan))
    (run,) = sweep.glob("2-*")
    answer = gantrain("sample", run, "count=4", "out=points")
    assert (answer.code, "8 of 8 values in the samples" in answer.err) == (DivergedError.exit_code, True), answer.err
    assert not Path("points").exists()


@pytest.mark.parametrize("parts", [1, 2])
def test_a_reader_who_leaves_costs_no_evaluation(
    parts: int, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as leaving, Leaving(parts) as pipe:
        leaving.setattr(sys, "stdout", pipe)
        assert main(["evaluate", str(trained), f"out={tmp_path}", "metrics=prdc", "reference=false"]) == 0
    assert (tmp_path / "evaluation.json").exists()


def test_a_run_is_measured_where_its_logger_is_missing(
    with_config: Callable[[dict[str, Any]], Path], gantrain: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = with_config({"logger": ["tensorboard", "wandb"]})
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    answer = gantrain("evaluate", run, "count=100")
    assert answer.code == 0, answer.err


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": {"name": "rings"}},
        {"dataset": {"weights": [1]}},
        {"dataset": {"label": "${eval:1+1}"}},
        {"dataset": {"code": "os.system"}},
        {"seed": "many"},
    ],
)
def test_a_run_whose_data_are_none_is_refused(
    changes: dict[str, Any], with_config: Callable[[dict[str, Any]], Path], gantrain: Callable[..., Answer]
) -> None:
    run = with_config(changes)
    answer = gantrain("evaluate", run, "count=100")
    assert answer.code in (2, 4), answer
    assert "internal error" not in answer.err
    assert not (run / "evaluation.json").exists()
