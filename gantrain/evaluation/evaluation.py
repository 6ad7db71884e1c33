"""How good samples are and how diverse: real examples seen once, samples seen in the same way, and what comes out.

A `Yardstick` holds the real examples, as its `Eyes` see them, and what as many training examples get in place of
samples. It measures any number of sets of samples: those of `gantrain evaluate`, or, time and again, those of a
generator that is still training. Real examples never depend on a seed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain import data
from gantrain.comparison.comparison import CONDITIONS, better, reference_name
from gantrain.errors import ConfigError, DataError, one_of
from gantrain.evaluation.features import Eyes, Watching, unwatched
from gantrain.evaluation.metric_names import NETWORKS, OF_CLASSES, is_stacked, metrics_of
from gantrain.files import write_whole
from gantrain.seeding import stream_generator

if TYPE_CHECKING:
    from torch import Tensor

    from gantrain.data import Dataset
    from gantrain.evaluation.metrics import Metric, Seen

FEWEST, MOST = 20, 10_000  # samples: fewer have no neighbours to speak of; more are taken only when they are asked for
GROUPS = ("quality/", "diversity/")
ROWS, COLUMNS = 8, 8  # of neighbours.png
ALIKE = (*CONDITIONS, "seed")  # what is the same in two evaluations of one run that were measured alike


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
    metrics: Mapping[str, Metric]
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
        metrics: Mapping[str, Metric],
        reference: Tensor | None = None,
        watching: Watching = unwatched,
    ) -> Yardstick:
        """The yardstick of these `real` examples, and of as many training examples as `reference`."""
        from gantrain.evaluation import metrics as catalogue

        seen, floor = eyes.see(real, watching), {}
        if reference is not None:
            floor = catalogue.measure(seen, eyes.see(reference, watching), metrics.values())
        return cls(dataset.label, split, eyes, metrics, seen, floor, 0 if reference is None else len(reference))

    def measure(self, samples: Tensor, watching: Watching = unwatched) -> Result:
        """The numbers of samples: 8-bit images `[N, C, H, W]`, or points `[N, d]`."""
        from gantrain.evaluation import classes
        from gantrain.evaluation import metrics as catalogue

        ours = self.eyes.see(samples, watching)
        counts = {"data": self.real.counts, "samples": ours.counts}
        return Result(
            self.label,
            catalogue.measure(self.real, ours, self.metrics.values()),
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


def chosen(names: Iterable[str] | None, dataset: Dataset, *, classes_known: bool = True) -> dict[str, Metric]:
    """The metrics that were asked for by name; by default all, but those of classes only where these are known.

    Raises ConfigError for one that such data do not have.
    """
    from gantrain.evaluation import metrics as catalogue

    every = catalogue.STACKS if is_stacked(dataset.name) else {**catalogue.IMAGES, **catalogue.POINTS}
    known = {name: every[name] for name in metrics_of(dataset.name)}
    for name in names or ():
        if name not in known:
            raise ConfigError(one_of(f"{dataset.label} has other metrics: metrics", name, known))
    return {name: known[name] for name in names or known if names or classes_known or name not in OF_CLASSES}


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

    from gantrain import plotting
    from gantrain.data.images import pixels
    from gantrain.evaluation import prdc

    samples, training = samples[:ROWS].cpu(), training.cpu()
    nearest = prdc.nearest(samples.flatten(1), training.flatten(1), COLUMNS - 1)
    rows = torch.cat([samples[:, None], training[nearest]], dim=1)
    folder.mkdir(parents=True, exist_ok=True)
    plotting.save_grid(pixels(rows.flatten(0, 1)), folder / "neighbours.png")
