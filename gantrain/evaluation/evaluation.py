"""Evaluation of samples: real examples whose features are extracted once, and the metrics of samples against them.

`gantrain evaluate` and training both build a `ReferenceSet`, which measures any number of sets of samples. The real
examples never depend on a seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gantrain import data
from gantrain.console import Progress, no_progress
from gantrain.errors import ConfigError, DataError, describe_choice
from gantrain.evaluation.features import EvaluationSettings, FeatureExtractor, Features, build_extractor, choose_network
from gantrain.evaluation.metrics import INCEPTION, Metric, better_direction, metrics_of
from gantrain.files import make_folder, replace_non_finite, write_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gantrain.data import Dataset, DatasetSettings

MIN_COUNT = 20  # samples; fewer have too few neighbours
GROUPS = ("quality/", "diversity/")  # of the metrics that an evaluation measures
ROWS, COLUMNS = 8, 8  # of neighbours.png
REFERENCE = "training data"  # in place of samples
CONDITIONS = ("count", "real_count", "split", "features", "samples_from")  # that have to agree to compare two numbers


@dataclass(frozen=True)
class Result:
    """Numbers of samples, and those of training examples in `reference_set`."""

    reference_set: ReferenceSet
    count: int  # samples
    metrics: dict[str, float]
    histogram: dict[str, dict[str, int]]  # by class, of "data" and of "samples"
    missing: list[str]  # classes

    def format_number(self, name: str) -> str:
        """Return a number with its name, and that of training examples if it was measured."""
        reference, text = self.reference_set.reference, f"{name} {self.metrics[name]:.4g}"
        if name in reference:
            text += f" ({self.reference_name} {reference[name]:.4g})"
        return text.replace(" -", " −")

    @property
    def reference_name(self) -> str:
        """Name of the training examples."""
        return name_reference(self.reference_set.reference_count, self.count)

    def describe(self, seed: int, origin: str = "") -> str:
        """Return how many samples, of which origin and seed, were compared with what."""
        of, split = f" of {origin}" if origin else "", self.reference_set.split.replace(" ", "-")
        real = len(self.reference_set.real.vectors)
        return (
            f"{self.count:,} samples{of} against {real:,} {split} examples of {self.reference_set.label}, seed {seed}"
        )


@dataclass(frozen=True)
class ReferenceSet:
    """Features of real examples, with which samples are compared.

    `count` is the number of samples it is for. `reference` are the numbers of training examples in place of samples,
    `reference_count` their count, 0 if none were measured.
    """

    label: str  # of the data
    split: str
    count: int
    extractor: FeatureExtractor
    metrics: Mapping[str, Metric]
    real: Features
    reference: dict[str, float]
    reference_count: int

    def measure(self, samples: Tensor, progress: Progress = no_progress) -> Result:
        """Measure samples: 8-bit images `[N, C, H, W]`, or points `[N, d]`."""
        from gantrain.evaluation import classes
        from gantrain.evaluation.formulas import measure

        features, names = self.extractor.extract(samples, progress), self.extractor.classes
        counts = {"data": self.real.counts, "samples": features.counts}
        return Result(
            self,
            len(samples),
            measure(self.real, features, self.metrics),
            histogram={whose: dict(zip(names, each.tolist(), strict=True)) for whose, each in counts.items()},
            missing=[names[index] for index in classes.find_missing(features.counts, self.real.counts)],
        )


def build_reference_set(
    dataset: Dataset,
    dataset_settings: DatasetSettings,
    settings: EvaluationSettings,
    *,
    device: torch.device,
    count: int | None = None,
    best: str | None = None,
    progress: Progress = no_progress,
) -> ReferenceSet:
    """Select real examples and metrics, build the feature extractor and extract the real examples' features.

    `dataset` was loaded with `dataset_settings`. `count` is the number of samples if they are fewer than `settings` ask
    for, and `best` a number that has to be among those measured; `progress` shows how far a slow step is.

    Raises ConfigError for metrics that the data do not have, DataError for too few examples; a classifier that is
    missing is trained only after these checks.
    """
    from gantrain.evaluation.formulas import measure
    from gantrain.evaluation.samples import select_real_examples, select_training_examples

    metrics = choose_metrics(settings, dataset.name, best)
    real, split = select_real_examples(dataset, settings.count, settings.split)
    count = settings.count or len(real) if count is None else count
    real = real[:count]  # with fewer samples than real examples, coverage would say nothing
    if min(count, len(real)) < MIN_COUNT:
        raise DataError(
            f"{count:,} samples and {len(real):,} real examples are too few; at least {MIN_COUNT} of both are needed: "
            "count=N, and as many images that are held out, or split=training"
        )
    needs_classes = any(metric.needs_classes for metric in metrics.values())
    extractor = build_extractor(
        dataset, dataset_settings, settings, needs_classes=needs_classes, device=device, progress=progress
    )
    features, reference, reference_count = extractor.extract(real, progress), {}, 0
    if settings.reference and split != "training":
        training = select_training_examples(dataset, count)
        reference = measure(features, extractor.extract(training, progress), metrics)
        reference_count = len(training)
    return ReferenceSet(dataset.label, split, count, extractor, metrics, features, reference, reference_count)


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a generator in training.

    `best` is the number that best.pt follows.
    """

    reference_set: ReferenceSet
    best: str | None = None
    seed: ClassVar[int] = 0  # of the latents, those of `gantrain evaluate` each time

    def summarize(self, result: Result) -> str:
        """Return the number that best.pt follows, the first of each group, and how they were obtained."""
        firsts = [next((name for name in result.metrics if name.startswith(group)), None) for group in GROUPS]
        names = dict.fromkeys(filter(None, [self.best, *firsts]))
        return f"{', '.join(map(result.format_number, names))}; {result.describe(self.seed)}"

    def improves(self, document: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
        """Return whether an evaluation, as evaluation.json has it, is better than the best one so far."""
        if self.best is None or (value := _finite_number(document, self.best)) is None:
            return False
        if best is None or any(document.get(key) != best.get(key) for key in (*CONDITIONS, "seed")):
            return True  # numbers that were measured differently cannot be compared
        before = _finite_number(best, self.best)
        return before is None or better_direction(self.best) * (value - before) > 0


def _finite_number(document: Mapping[str, Any], name: str) -> float | None:
    """A number of an evaluation, which may come from a file."""
    metrics = document.get("metrics")
    value = metrics.get(name) if isinstance(metrics, dict) else None
    return value if isinstance(value, float) and math.isfinite(value) else None


def choose_metrics(settings: EvaluationSettings, dataset: str, best: str | None = None) -> dict[str, Metric]:
    """Return the metrics that were asked for; by default all that need no other network than that of the features.

    With Inception's features, metrics of classes are measured by default only if a file of a classifier is given, or
    the number `best` is one of theirs. Raises ConfigError for a metric that the dataset does not have.
    """
    known = metrics_of(dataset)
    for name in settings.metrics or ():
        if name not in known:
            raise ConfigError(describe_choice(f"dataset={dataset} has other metrics: metrics", name, known))
    if settings.metrics:
        return {name: known[name] for name in settings.metrics}
    is_inception = choose_network(settings.features, settings.inception) == INCEPTION and dataset in data.IMAGES
    has_classes = not is_inception or settings.classifier is not None
    return {
        name: metric
        for name, metric in known.items()
        if has_classes or not metric.needs_classes or best in metric.names(INCEPTION)
    }


def name_reference(training: float | None, samples: float | None) -> str:
    """Return the name of training examples in place of samples: with their number if there are fewer of them."""
    return REFERENCE if training is None or training == samples else f"{training:,.0f} training examples"


def build_document(result: Result, facts: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return the content of evaluation.json; `facts` are "images", "checkpoint" and "samples_from"."""
    reference_set = result.reference_set
    return {
        **facts,
        "count": result.count,
        "real_count": len(reference_set.real.vectors),
        "reference_count": reference_set.reference_count,
        "split": reference_set.split,
        "seed": seed,
        "features": reference_set.extractor.description,
        "metrics": replace_non_finite(result.metrics),
        "reference": replace_non_finite(reference_set.reference),
        "class_histogram": result.histogram,
    }


def write_evaluation(folder: Path, document: Mapping[str, Any], samples: Tensor, dataset: Dataset) -> None:
    """Write evaluation.json and, for 8-bit images, `neighbours.png`. Raises OSError.

    Each row of the picture shows a sample and the training images nearest to it in pixels. There is none for fewer
    training images than a row has.
    """
    make_folder(folder, parents=True)
    if isinstance(dataset, data.Images) and len(dataset.train) >= COLUMNS - 1:
        import torch

        from gantrain import plotting
        from gantrain.data.images import pixels
        from gantrain.evaluation import distances

        samples, training = samples[:ROWS].cpu(), dataset.train.cpu()
        nearest = distances.find_nearest(samples.flatten(1), training.flatten(1), COLUMNS - 1)
        rows = torch.cat([samples[:, None], training[nearest]], dim=1)
        plotting.save_grid(pixels(rows.flatten(0, 1)), folder / "neighbours.png")
    write_json(folder / "evaluation.json", document)
