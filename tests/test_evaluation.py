"""Samples measured while a generator trains: nothing of training moves, and best.pt is the best of them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Answer
from support.runs import SMALL, assert_equal_states, comparable, train_until
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gantrain import data
from gantrain.cli import main
from gantrain.console import Progress
from gantrain.evaluation import evaluation
from gantrain.evaluation import metrics as catalogue
from gantrain.evaluation.classifier_training import ClassifierTraining
from gantrain.evaluation.evaluation import Evaluation, ReferenceSet
from gantrain.evaluation.features import EvaluationSettings, FeatureExtractor, Features
from gantrain.runs import checkpoints
from gantrain.runs.metrics_file import read_metrics
from gantrain.training.state import State

RING = [*SMALL, "dataset=ring", "train.images=1000", "train.report_every_images=400", "train.keep_checkpoints=3"]
MEASURED = ["evaluate.every_images=200", "evaluate.count=60", "best.metric=quality/density"]  # the best at 400
DIGITS = ["train.images=2000", "train.held_out_images=20"]

TOLD = re.compile(r"`([a-z_]+/[a-z_…]+)`")

Gantrain = Callable[..., Answer]
pytestmark = pytest.mark.usefixtures("plain_figures")


def rows(run: Path, name: str = "quality/density") -> dict[int, float | None]:
    """A number of a run's metrics file, by clock."""
    return {row["images"]: row[name] for row in read_metrics(run / "metrics.jsonl") if name in row}


def written(run: Path) -> dict[str, Any]:
    return json.loads((run / "evaluation.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run whose samples are measured five times; not to be written into."""
    folder = tmp_path_factory.mktemp("evaluation") / "ring"
    assert main(["train", f"run_dir={folder}", *RING, *MEASURED]) == 0
    return folder


# What is measured, and when


def test_samples_are_measured_at_every_multiple_and_at_the_end(ring: Path) -> None:
    assert list(rows(ring)) == [200, 400, 600, 800, 1000]
    reports = read_metrics(ring / "metrics.jsonl")
    assert [row["images"] for row in reports] == [200, 400, 600, 800, 1000], "one row a clock"
    assert [row["images"] for row in reports if "loss/discriminator" in row] == [400, 800, 1000]
    events = EventAccumulator(str(ring)).Reload()
    shown = {event.step: event.value for event in events.Scalars("quality/density")}
    assert shown == pytest.approx(rows(ring))


def test_data_that_choose_the_best_checkpoint_give_no_confidence_limits(ring: Path, tmp_path: Path) -> None:
    last = read_metrics(ring / "metrics.jsonl")[-1]
    assert "two_sample/p_value" in last
    assert not any(name.startswith("lower_limit/") for name in last)


def test_nothing_of_training_is_moved(ring: Path, tmp_path: Path) -> None:
    without = tmp_path / "without"
    assert main(["train", f"run_dir={without}", *RING]) == 0
    assert_equal_states(ring, without)
    kept = [
        {
            name: value
            for name, value in row.items()
            if name == "diversity/pixel_distance" or not name.startswith(evaluation.GROUPS)
        }
        for row in read_metrics(ring / "metrics.jsonl")
        if "loss/discriminator" in row
    ]
    others = [
        {name: value for name, value in row.items() if not name.startswith("lower_limit/")}
        for row in read_metrics(without / "metrics.jsonl")
    ]
    assert comparable(kept) == comparable(others)
    assert (ring / "losses.png").read_bytes() == (without / "losses.png").read_bytes()
    assert not (without / "evaluation.json").exists()
    assert not (without / "checkpoints" / "best.pt").exists()


@pytest.mark.parametrize("clock", [400, 500])
def test_a_resumed_run_equals_the_uninterrupted_one(
    clock: int, ring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped just after an evaluation and between two of them."""
    run = tmp_path / "run"
    assert train_until(monkeypatch, clock, run, *RING, *MEASURED) == 143
    assert main(["resume", str(run)]) == 0
    assert_equal_states(ring, run)
    assert comparable(read_metrics(run / "metrics.jsonl")) == comparable(read_metrics(ring / "metrics.jsonl"))
    assert written(run) == written(ring)
    mine, theirs = (checkpoints.load(each / "checkpoints" / "best.pt") for each in (run, ring))
    assert mine["evaluation"] == theirs["evaluation"]
    assert mine["images"] == theirs["images"]


def test_the_end_is_what_the_command_measures_and_one_line_says_how(tmp_path: Path, gantrain: Gantrain) -> None:
    settings = ["seed=3", "evaluate.every_images=1000", "best.metric=quality/precision"]
    answer = gantrain("train", "run_dir=run", *DIGITS, *settings)
    (line,) = [line for line in answer.out.splitlines() if "standing statistics at 1,000 images" in line]
    floor = written(tmp_path / "run")["reference"]
    for words in (
        "quality/precision ",
        "quality/fid_classifier ",
        "diversity/recall ",
        f"(training data {floor['diversity/recall']:.4g})",
        "179 samples against 179 held-out examples of digits, seed 0",
        "the best quality/precision so far",
    ):
        assert words in line
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]
    assert found["quality/density"] == rows(tmp_path / "run")[2000]
    assert gantrain("evaluate", "run", "out=again").code == 0
    assert written(tmp_path / "run") == written(tmp_path / "again")
    during, after = (tmp_path / name / "neighbours.png" for name in ("run", "again"))
    assert during.read_bytes() == after.read_bytes()


def test_points_are_measured_at_the_end_as_by_the_command(ring: Path, tmp_path: Path, gantrain: Gantrain) -> None:
    assert gantrain("evaluate", ring, "out=again", "count=60").code == 0
    assert written(ring) == written(tmp_path / "again")
    assert not (ring / "neighbours.png").exists()


def test_a_missing_classifier_is_trained_before_the_run(
    tmp_path: Path, gantrain: Gantrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(ClassifierTraining, "default", lambda *_: ClassifierTraining(width=4, epochs=6))
    answer = gantrain("train", "run_dir=run", *DIGITS, "evaluate.every_images=2000", "evaluate.metrics=[prdc]")
    assert answer.code == 0, answer.err
    said = [line for line in answer.out.splitlines() if "classifier of the labels" in line or "images 2,000/" in line]
    assert len(said) == 2
    assert "training a classifier" in said[0]
    assert set(written(tmp_path / "run")["metrics"]) == set(catalogue.PRDC.directions)


def test_the_line_names_the_number_of_training_examples_where_it_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = data.load("digits")
    assert isinstance(digits, data.Images)

    def extract(images: torch.Tensor, progress: Progress) -> Features:
        vectors = images.flatten(1).double()
        return Features(vectors, torch.zeros(0, dtype=torch.int64), pixels=images.flatten(1))

    monkeypatch.setattr(evaluation, "build_extractor", lambda *_, **__: FeatureExtractor(extract, (), {}))
    settings = EvaluationSettings(metrics=["pairwise_distance"], count=1700)
    evaluated = Evaluation(build_reference_set("digits", settings))
    for count, words in {1618: "training data", 1700: "1,618 training examples"}.items():
        result = evaluated.reference_set.measure(torch.cat([digits.train, digits.held])[:count])
        floor = result.reference_set.reference["diversity/pairwise_distance"]
        assert f" ({words} {floor:.4g}); {count:,} samples" in evaluated.summarize(result)
        assert evaluation.build_document(result, {}, 0)["reference_count"] == 1618


# best.pt


def test_best_is_the_checkpoint_of_the_best_evaluation_and_outlives_the_others(ring: Path) -> None:
    assert max(rows(ring), key=rows(ring).__getitem__) == 400
    best = checkpoints.load(ring / "checkpoints" / "best.pt")
    assert best["images"] == 400
    assert best["evaluation"]["metrics"]["quality/density"] == rows(ring)[400]
    assert best["evaluation"]["checkpoint"] == checkpoints.file_name(400)
    clocks = [checkpoints.read_clock(path) for path in checkpoints.list_files(ring / "checkpoints")]
    assert clocks == [1000, 900, 600, 400], "the newest three, and the best"
    assert checkpoints.load_newest(ring / "checkpoints")[1]["images"] == 1000


def test_samples_and_numbers_can_be_had_of_it(ring: Path, tmp_path: Path, gantrain: Gantrain) -> None:
    best = ring / "checkpoints" / "best.pt"
    assert gantrain("sample", best, "count=4", "out=samples").code == 0
    answer = gantrain("evaluate", best, "count=60", "out=best")
    assert answer.code == 0, answer.err
    assert written(tmp_path / "best")["metrics"]["quality/density"] == rows(ring)[400]


def test_the_first_of_equals_stays(tmp_path: Path, gantrain: Gantrain) -> None:
    """A generator that does not learn is measured alike each time."""
    answer = gantrain("train", "run_dir=run", *RING, *MEASURED, "optimizer.lr=1e-30")
    assert answer.code == 0, answer.err
    assert list(rows(tmp_path / "run").values()) == [rows(tmp_path / "run")[200]] * 5
    assert checkpoints.load(tmp_path / "run" / "checkpoints" / "best.pt")["images"] == 200


def test_a_best_that_a_kill_left_behind_is_caught_up_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the newest checkpoint had its name and before best.pt was moved onto it."""
    run, folder = tmp_path / "run", tmp_path / "run" / "checkpoints"
    assert train_until(monkeypatch, 400, run, *RING, *MEASURED) == 143
    shutil.copy(folder / checkpoints.file_name(200), folder / "best.pt")
    assert main(["resume", str(run)]) == 0
    assert checkpoints.load(folder / "best.pt")["images"] == 400


def test_a_best_of_another_number_of_samples_is_no_record(ring: Path, tmp_path: Path, gantrain: Gantrain) -> None:
    shutil.copytree(ring, tmp_path / "run", symlinks=True)
    again = ["train.images=1200", "evaluate.count=50", "best.metric=quality/precision"]
    answer = gantrain("resume", "run", *again)
    assert answer.code == 0, answer.err
    best = checkpoints.load(tmp_path / "run" / "checkpoints" / "best.pt")
    assert (best["images"], best["evaluation"]["count"]) == (1200, 50)


def test_improvement_has_a_direction_and_conditions() -> None:
    def document(fid: float | None, count: int = 20) -> dict[str, Any]:
        return {"count": count, "metrics": {"quality/fid_classifier": fid}}

    reference_set = build_reference_set("ring", EvaluationSettings(metrics=["modes"], count=50))
    evaluated = Evaluation(reference_set, "quality/fid_classifier")
    assert evaluated.improves(document(2.0), None)
    assert evaluated.improves(document(1.0), document(2.0))
    assert not evaluated.improves(document(2.0), document(2.0))
    assert not evaluated.improves(document(3.0), document(2.0))
    assert not evaluated.improves(document(None), document(2.0))
    assert evaluated.improves(document(3.0, 30), document(2.0))
    assert not Evaluation(reference_set).improves(document(1.0), None)


def build_reference_set(name: str, settings: EvaluationSettings) -> ReferenceSet:
    wanted = data.DatasetSettings(name)
    return evaluation.build_reference_set(data.load(name), wanted, settings, device=torch.device("cpu"))


# What goes wrong costs no run


def test_neither_samples_that_are_not_finite_nor_a_file_that_cannot_be_written_cost_the_run(
    tmp_path: Path, gantrain: Gantrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = State.best_generator.fget

    class Broken(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return self.network(z) / 0

    def once(state: State) -> torch.nn.Module:
        return Broken(real(state)) if state.images == 400 else real(state)

    monkeypatch.setattr(State, "best_generator", property(once))
    (tmp_path / "run" / "evaluation.json").mkdir(parents=True)
    answer = gantrain("train", "run_dir=run", *RING, *MEASURED, "train.sample_every_images=1000")
    assert answer.code == 0, answer.err
    assert "the run goes on without them" in answer.out
    assert "at 400 images cannot be measured: they are not finite" in answer.out
    values = rows(tmp_path / "run")
    assert values[400] is None
    assert all(value is not None for clock, value in values.items() if clock != 400)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["best.metric=quality/fid_classifier"], "needs evaluate.every_images=N"),
        (["evaluate.count=100"], "needs evaluate.every_images=N"),
        (["evaluate.every_images=9", "evaluate.metrics=[fit]"], "did you mean fid"),
        (["evaluate.every_images=9", "evaluate.metrics=[]"], "measures nothing"),
        (["evaluate.every_images=9", "evaluate.metrics=[modes]"], "evaluate.metrics=modes"),
        (["evaluate.every_images=9", "best.metric=quality/fid_clasifier"], "did you mean quality/fid_classifier"),
        (["evaluate.every_images=9", "best.metric=quality/fid"], "did you mean quality/fid_classifier"),
        (["evaluate.every_images=9", "best.metric=quality/fid_inception"], "add evaluate.features=inception"),
        (["evaluate.every_images=9", "best.metric=loss/generator"], "best.metric=loss/generator"),
        (["evaluate.every_images=9", "best.metric=diversity/class_entropy"], "best.metric=diversity/class_entropy"),
        (["evaluate.every_images=9", "evaluate.metrics=[fid]", "best.metric=quality/precision"], "needs prdc among"),
        (["evaluate.every_images=9", "evaluate.features=classifier", "evaluate.inception=x"], "give one"),
        (["evaluate.every_images=9", "dataset=dirac"], "dirac"),
        (["evaluate.every_images=9", "dataset=ring", "evaluate.metrics=[fid]"], "evaluate.metrics=fid"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_data_are_read(
    arguments: list[str], words: str, tmp_path: Path, gantrain: Gantrain
) -> None:
    answer = gantrain("train", "run_dir=run", "dataset.root=nowhere", *arguments)
    assert answer.code == 2, answer.out
    assert words in answer.err
    assert not list(tmp_path.iterdir())


def test_too_few_images_to_measure_anything_are_refused(tmp_path: Path, gantrain: Gantrain) -> None:
    answer = gantrain("train", "run_dir=run", *DIGITS, "evaluate.every_images=9", "dataset.held_out=10")
    assert answer.code == 3, answer.out
    assert "too few" in answer.err


# The lists of names


def test_the_page_of_metrics_has_every_number_of_a_run(ring: Path, tmp_path: Path, gantrain: Gantrain) -> None:
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    told = [re.escape(name).replace("…", ".+") for row in page.splitlines() for name in TOLD.findall(row)]
    other = ["regularizer=r1", "update=simultaneous", "dataset.held_out=0"]
    assert gantrain("train", "run_dir=digits", *SMALL, *other).code == 0
    augmented = ["augment=ada", "augment.measure=held_out"]
    assert gantrain("train", "run_dir=augmented", *SMALL, *augmented).code == 0
    assert gantrain("train", "run_dir=dirac", "dataset=dirac", "train.images=200").code == 0
    runs = [ring, tmp_path / "digits", tmp_path / "augmented", tmp_path / "dirac"]
    found = {name for run in runs for row in read_metrics(run / "metrics.jsonl") for name in row} - {"images"}
    assert not {name for name in found if not any(re.fullmatch(pattern, name) for pattern in told)}
