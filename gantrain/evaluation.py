"""How good samples are and how diverse: real examples seen once, samples seen in the same way, and what comes out.

A `Yardstick` holds the real examples, as its `Eyes` see them, and what as many training examples get in place of
samples. It measures any number of sets of samples: those of `gantrain evaluate`, or, time and again, those of a
generator that is still training. Real examples never depend on a seed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gantrain import data
from gantrain.comparison import CONDITIONS, better, reference_name
from gantrain.errors import ConfigError, DataError, one_of
from gantrain.files import write_whole
from gantrain.randomness import stream_generator

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gantrain.classifier import Judge
    from gantrain.data import Dataset, Density
    from gantrain.inception import Inception
    from gantrain.metrics.catalogue import Metric, Seen

IMAGE_METRICS = ("fid", "kid", "inception_score", "prdc", "classes", "pairwise_distance", "support_size")
STACK_METRICS = ("fid", "kid", "inception_score", "prdc", "pairwise_distance", "support_size", "modes")
INCEPTION_METRICS = tuple(name for name in IMAGE_METRICS if name != "classes")  # its classes are not the data's
POINT_METRICS = ("modes", "prdc", "classes", "pairwise_distance")
AUTO = "auto"  # Inception where its weights are present and it fits, else the classifier
CLASSIFIER, INCEPTION = NETWORKS = ("classifier", "inception")  # through which images are seen
FEATURES = (AUTO, *NETWORKS)
# The numbers of each metric, known without importing torch.
SCALARS = {
    "fid": ("quality/fid_classifier",),
    "kid": ("quality/kid_classifier", "quality/kid_classifier_error"),
    "inception_score": ("quality/inception_score_classifier",),
    "modes": ("quality/high_quality_share", "diversity/modes"),
    "prdc": ("quality/precision", "quality/density", "diversity/recall", "diversity/coverage"),
    "classes": ("diversity/class_entropy", "diversity/class_tv", "diversity/class_kl", "diversity/missing_classes"),
    "pairwise_distance": ("diversity/pairwise_distance",),
    "support_size": ("diversity/support_size",),
}
STACKED_SCALARS = SCALARS | {"modes": ("diversity/modes", "diversity/modes_kl")}
FEWEST, MOST = 20, 10_000  # samples: fewer have no neighbours to speak of; more are taken only when they are asked for
GROUPS = ("quality/", "diversity/")
ROWS, COLUMNS = 8, 8  # of neighbours.png
CHECKSUM_DIGITS = 16
ALIKE = (*CONDITIONS, "seed")  # what is the same in two evaluations of one run that were measured alike


# A context in which steps are told: steps made, steps in all.
Watched = AbstractContextManager[Callable[[int, int], None]]


class Eyes(NamedTuple):
    """How examples are looked at: images through a network, points as they are."""

    see: Callable[[Tensor], Seen]
    classes: Sequence[str]
    features: dict[str, Any]  # what they are, as evaluation.json tells it


@dataclass(frozen=True)
class Result:
    """What was measured: of samples, and of as many training examples, or all of them where there are fewer."""

    label: str  # of the data
    metrics: dict[str, float]
    reference: dict[str, float]
    histogram: dict[str, dict[str, int]]
    missing: list[str]
    features: dict[str, Any]
    counts: tuple[int, int]  # samples, real
    reference_count: int  # training examples; 0 where none were measured
    split: str

    @property
    def reference_name(self) -> str:
        """What the training examples are called."""
        return reference_name(self.reference_count, self.counts[0])

    def told(self, name: str) -> str:
        """A number, beside that of training examples where it was measured."""
        floor = f" ({self.reference_name} {self.reference[name]:.4g})" if name in self.reference else ""
        return f"{name} {self.metrics[name]:.4g}{floor}".replace(" -", " −")


@dataclass(frozen=True)
class Yardstick:
    """What samples are measured against. `reference` are the numbers of training examples in place of samples."""

    label: str
    split: str
    eyes: Eyes
    metrics: Sequence[Metric]
    real: Seen
    reference: dict[str, float]
    reference_count: int

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        real: Tensor,
        split: str,
        eyes: Eyes,
        metrics: Sequence[Metric],
        reference: Tensor | None = None,
    ) -> Yardstick:
        """The yardstick of these `real` examples, and of as many training examples as `reference`."""
        from gantrain.metrics import catalogue

        seen = eyes.see(real)
        floor = {} if reference is None else catalogue.measure(seen, eyes.see(reference), metrics)
        return cls(dataset.label, split, eyes, metrics, seen, floor, 0 if reference is None else len(reference))

    def measure(self, samples: Tensor) -> Result:
        """The numbers of samples: 8-bit images `[N, C, H, W]`, or points `[N, d]`."""
        from gantrain.metrics import catalogue, classes

        ours = self.eyes.see(samples)
        counts = {"data": self.real.counts, "samples": ours.counts}
        return Result(
            self.label,
            catalogue.measure(self.real, ours, self.metrics),
            self.reference,
            histogram={whose: named(each, self.eyes.classes) for whose, each in counts.items()},
            missing=[self.eyes.classes[index] for index in classes.missing(ours.counts, self.real.counts)],
            features=self.eyes.features,
            counts=(len(samples), len(self.real.features)),
            reference_count=self.reference_count,
            split=self.split,
        )


@dataclass(frozen=True)
class Evaluation:
    """How many samples of a generator in training are measured, and against what.

    `best` is the number that best.pt follows. The latents are those of `gantrain evaluate` and the same each time.
    """

    yardstick: Yardstick
    count: int
    best: str | None = None
    seed: int = 0

    @property
    def network(self) -> str | None:
        """Through which network images are seen; points are seen through none."""
        name = self.yardstick.eyes.features["name"]
        return name if name in NETWORKS else None

    def shown(self, result: Result) -> str:
        """What is told at each evaluation: the number that best.pt follows, the first of either group, and how they
        were obtained."""
        firsts = [next((name for name in result.metrics if name.startswith(group)), None) for group in GROUPS]
        told = dict.fromkeys(filter(None, [self.best, *firsts]))
        samples, real = result.counts
        return (
            f"{', '.join(map(result.told, told))}; {samples:,} samples against {real:,} "
            f"{result.split.replace(' ', '-')} examples of {result.label}, seed {self.seed}"
        )

    def improves(self, found: Mapping[str, Any], record: Mapping[str, Any] | None) -> bool:
        """Whether an evaluation, as evaluation.json tells it, is better than the best one so far."""
        if self.best is None or (value := number(found, self.best)) is None:
            return False
        if record is None or any(found.get(key) != record.get(key) for key in ALIKE):
            return True  # two numbers that were not measured alike cannot be compared
        before = number(record, self.best)
        return before is None or better(self.best) * (value - before) > 0


def number(document: Mapping[str, Any], name: str) -> float | None:
    """A finite number of an evaluation, which may come from a file."""
    metrics = document.get("metrics")
    value = metrics.get(name) if isinstance(metrics, dict) else None
    return value if isinstance(value, float) and math.isfinite(value) else None


def named(counts: Tensor, classes: Sequence[str]) -> dict[str, int]:
    """Counts by class."""
    return dict(zip(classes, counts.tolist(), strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# What is measured, and against what


def metrics_of(dataset: str, features: str = CLASSIFIER) -> tuple[str, ...]:
    """The metrics that samples of a dataset can have, seen so. Raises ConfigError where there are none."""
    if dataset in data.IMAGES:
        by_class = STACK_METRICS if is_stacked(dataset) else IMAGE_METRICS
        return by_class if features == CLASSIFIER else INCEPTION_METRICS
    if dataset in data.DENSITIES:
        return POINT_METRICS
    raise ConfigError(f"dataset={dataset} has no density, and so nothing to compare samples with")


def named_networks(asked: Mapping[str, Any]) -> tuple[str, ...]:
    """The networks that `features`, and the file of one of them under its name, leave to choose from.

    Raises ConfigError where these contradict each other.
    """
    features = asked["features"]
    for network in NETWORKS:
        if (file := asked[network]) is None:
            continue
        if features not in (AUTO, network):
            raise ConfigError(f"{network}={file} is for features={network}, here it is {features}; give one of them")
        features = network
    return NETWORKS if features == AUTO else (features,)


def fitting_networks(asked: Mapping[str, Any], dataset: str, best: str | None = None) -> tuple[str, ...]:
    """Those of the named networks that have all metrics which were asked for, and the number `best`."""
    metrics, fitting = set(asked["metrics"] or ()), []
    for network in named_networks(asked):
        known = metrics_of(dataset, network)
        if metrics.issubset(known) and (best is None or best in numbers_of(known, dataset, network)):
            fitting.append(network)
    return tuple(fitting)


def network_for(dataset: Dataset, asked: Mapping[str, Any], best: str | None = None) -> str:
    """Through which network examples are seen: where both would do, Inception for coloured images, the photographs
    that it has been trained on, if it is present."""
    from gantrain import inception

    networks = fitting_networks(asked, dataset.name, best) or named_networks(asked)
    if networks != NETWORKS:
        return networks[0]
    coloured = isinstance(dataset, data.Images) and dataset.shape[0] == 3 and not is_stacked(dataset.name)
    return INCEPTION if coloured and inception.usable() else CLASSIFIER


def is_stacked(dataset: str) -> bool:
    """Whether the channels of its images are images of their own."""
    return data.judged_as(dataset) != dataset


def chosen(names: Iterable[str] | None, dataset: Dataset, features: str = CLASSIFIER) -> list[Metric]:
    """The metrics that were asked for, all by default. Raises ConfigError for one that such data do not have."""
    from gantrain.metrics import catalogue

    every = catalogue.STACKS if is_stacked(dataset.name) else {**catalogue.IMAGES, **catalogue.POINTS}
    known = {name: every[name] for name in metrics_of(dataset.name, features)}
    for name in names or ():
        if name not in known:
            raise ConfigError(one_of(f"{dataset.label} has other metrics: metrics", name, known))
    return [known[name] for name in names or known]


def numbers_of(metrics: Iterable[str], dataset: str, features: str = CLASSIFIER) -> list[str]:
    """The names of the numbers that metrics of a dataset consist of, seen through one kind of features."""
    scalars = STACKED_SCALARS if is_stacked(dataset) else SCALARS
    names = [name for metric in metrics for name in scalars[metric]]
    if features == CLASSIFIER:
        return names
    return [name.replace("score_classifier", "score").replace("_classifier", f"_{features}") for name in names]


def real_examples(dataset: Dataset, count: int | None = None, split: str = "held_out") -> tuple[Tensor, str]:
    """At most `count` real examples, 8-bit images or points, and the split that they are of."""
    if not isinstance(dataset, data.Images):
        return dataset.held_out(count or MOST).cpu(), "held out"
    split = dataset.split if split == "held_out" else "training"
    return some(dataset.train, count or MOST, "real") if split == "training" else dataset.held[: count or MOST], split


def training_examples(dataset: Dataset, count: int) -> Tensor:
    """At most `count` training examples, 8-bit images or points."""
    if isinstance(dataset, data.Images):
        return some(dataset.train, count, "reference")
    return dataset.batch(0, count).cpu()


def some(examples: Tensor, count: int, stream: str, seed: int = 0) -> Tensor:
    """`count` of the examples, chosen at random; all of them, as they are, where there are no more."""
    import torch

    if len(examples) <= count:
        return examples
    order = torch.randperm(len(examples), generator=stream_generator(seed, stream))
    return examples[order[:count].to(examples.device)]


def refuse_few(samples: int, real: int) -> None:
    """Raise DataError where there are too few examples of either kind to measure anything."""
    if min(samples, real) < FEWEST:
        raise DataError(
            f"{samples:,} samples and {real:,} real examples are too few; at least {FEWEST} of both are needed"
        )


# ---------------------------------------------------------------------------------------------------------------------
# How it is seen


def through_classifier(judge: Judge, device: torch.device) -> Eyes:
    """Images as a classifier sees them."""
    from gantrain import classifier
    from gantrain.metrics import catalogue, classes

    network = judge.classifier.to(device)

    def see(images: Tensor) -> Seen:
        features, probabilities = classifier.seen(network, images)
        return catalogue.Seen(features, classes.histogram(probabilities), probabilities, images.cpu().flatten(1))

    facts = {"name": "classifier", "dataset": judge.dataset, "accuracy": judge.accuracy}
    facts |= {"accuracy_on": judge.split, "checksum": judge.checksum[:CHECKSUM_DIGITS]}
    return Eyes(see, network.classes, facts)


def through_inception(inception: Inception, watched: Callable[[str], Watched]) -> Eyes:
    """Images as the Inception network sees them, whose classes are none of the data's; `watched` follows each set."""
    import torch

    from gantrain.inception import NAME, seen
    from gantrain.metrics import catalogue

    def see(images: Tensor) -> Seen:
        with watched(f"the Inception network looks at {len(images):,} images") as told:
            features, probabilities = seen(inception, images, told)
        none = torch.zeros(0, dtype=torch.int64)
        return catalogue.Seen(features, none, probabilities, images.cpu().flatten(1), INCEPTION)

    facts = {"name": INCEPTION, "network": NAME, "library": inception.library}
    return Eyes(see, (), facts | {"checksum": inception.checksum[:CHECKSUM_DIGITS]})


def as_points(density: Density) -> Eyes:
    """Points of a density, as they are; their classes are its modes."""
    from gantrain.metrics import catalogue, classes

    def see(points: Tensor) -> Seen:
        return catalogue.Seen(points.double(), classes.modes(points, density.mixture))

    modes = [str(number) for number in range(len(density.mixture.means))]
    return Eyes(see, modes, {"name": "points", "dataset": density.label, "checksum": density.fingerprint})


def seen_through(features: Mapping[str, Any]) -> str:
    """What the features are, in words."""
    if "network" in features:
        return f"the Inception network, {features['network']}"
    if "accuracy" not in features:
        return "the points themselves"
    kind = features["accuracy_on"].replace(" ", "-")
    return f"a classifier of {features['dataset']} with {features['accuracy']:.1%} accuracy on {kind} images"


# ---------------------------------------------------------------------------------------------------------------------
# On the disk


def document(result: Result, facts: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What evaluation.json holds; `facts` are "images", "checkpoint" and "samples_from"."""
    samples, real = result.counts
    return {
        **facts,
        "count": samples,
        "real_count": real,
        "reference_count": result.reference_count,
        "split": result.split,
        "seed": seed,
        "features": result.features,
        "metrics": finite(result.metrics),
        "reference": finite(result.reference),
        "class_histogram": result.histogram,
    }


def write(folder: Path, document: Mapping[str, Any]) -> None:
    """Write evaluation.json. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "evaluation.json", json.dumps(document, indent=2, allow_nan=False) + "\n")


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has neither infinity nor NaN."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def draw_neighbours(samples: Tensor, training: Tensor, folder: Path) -> None:
    """`neighbours.png`: in each row a sample, then the training images nearest to it in pixels. Raises OSError."""
    import torch

    from gantrain import figures
    from gantrain.data.images import pixels
    from gantrain.metrics import neighbours

    samples, training = samples[:ROWS].cpu(), training.cpu()
    nearest = neighbours.nearest(samples.flatten(1), training.flatten(1), COLUMNS - 1)
    rows = torch.cat([samples[:, None], training[nearest]], dim=1)
    folder.mkdir(parents=True, exist_ok=True)
    figures.save_grid(pixels(rows.flatten(0, 1)), folder / "neighbours.png")
