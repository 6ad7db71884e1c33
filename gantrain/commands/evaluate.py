"""`gantrain evaluate`: how good the samples of a generator are and how diverse, in numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain import comparison, config, data, overrides
from gantrain.commands import classifier as classifiers
from gantrain.commands.fit import console
from gantrain.commands.resume import changed_by, refuse_sweep
from gantrain.config import choice, number
from gantrain.errors import CheckpointError, ConfigError, DataError, DivergedError, StorageError, one_of
from gantrain.files import reason, write_whole
from gantrain.randomness import stream_generator
from gantrain.run import RunFolder
from gantrain.terminal import say

if TYPE_CHECKING:
    import torch
    from rich.table import Table
    from torch import Tensor

    from gantrain.classifier import Judge
    from gantrain.data import Density, Images
    from gantrain.metrics.catalogue import Metric, Seen

HELP = """Measure the quality and the diversity of samples against images that were kept from training.

  gantrain evaluate RUN|CHECKPOINT|FOLDER|NPZ [metrics=[…]] [count=N] [seed=0] [split=held_out] [reference=true]
                    [classifier=FILE] [dataset=…] [out=DIR] [object=package:function] [device=auto]

Examples
  gantrain evaluate RUN
  gantrain evaluate RUN count=5000 seed=1 metrics=[fid,prdc]
  gantrain evaluate DIR dataset=mnist                 a folder or .zip of images that anything made
  gantrain evaluate samples.npz dataset=cifar10       an array: 8-bit or in [0, 1]

Images are seen through a classifier of the dataset's labels (gantrain classifier), which is trained first where it is
missing; classifier=FILE takes another one. Points of a density are measured as they are. Samples come from the averaged
generator where the run kept one. Real images are the test split or those held out (split=training takes others); N is
their number, at most 10,000. The seed chooses samples, never real images. reference=true measures as many training
images too: what a perfect generator would get.

A table is printed, and evaluation.json and neighbours.png (samples, each with the training images nearest to it) are
written to RUN; for FOLDER and NPZ to out, by default `evaluation`.

Metrics of images: {images}
Metrics of points: {points}
(prdc is precision, recall, density and coverage; classes is how the classes, or modes, differ from the data's)"""

IMAGE_METRICS = ("fid", "kid", "inception_score", "prdc", "classes", "pairwise_distance", "support_size")
POINT_METRICS = ("modes", "prdc", "classes", "pairwise_distance")
FEWEST, MOST = 20, 10_000  # samples: fewer have no neighbours to speak of; more are taken only when they are asked for
ROWS, COLUMNS = 8, 8  # of neighbours.png
CHECKSUM_DIGITS = 16
BETTER = {1: "higher", -1: "lower", 0: ""}


@dataclass
class Options:
    """What `gantrain evaluate` can be told beside the dataset."""

    metrics: list[str] | None = None
    count: int | None = number(None, at_least=FEWEST, at_most=100_000)
    seed: int = number(0, at_least=0, at_most=2**63 - 1)
    split: str = choice("held_out", ("held_out", "training"))
    reference: bool = True
    classifier: str | None = None
    out: str | None = None
    object: str | None = None
    device: str = "auto"


@dataclass(frozen=True)
class Source:
    """Where samples come from. `draw(count, shape)` gives at most `count` of them: uint8 images, or points."""

    settings: dict[str, Any]  # of the dataset
    fingerprint: str | None  # of the images it was trained on; None where it is not known, or others were named
    draw: Callable[[int, tuple[int, ...]], Tensor]
    facts: dict[str, Any]
    out: Path


@dataclass(frozen=True)
class Result:
    """What was measured: of samples, and of as many training examples."""

    label: str  # of the data
    metrics: dict[str, float]
    reference: dict[str, float]
    histogram: dict[str, dict[str, int]]
    missing: list[str]
    features: dict[str, Any]
    counts: tuple[int, int]  # samples, real
    split: str


def help_text() -> str:
    """The command's help."""
    return HELP.format(images=", ".join(IMAGE_METRICS), points=", ".join(POINT_METRICS))


def run(arguments: list[str]) -> None:
    """Evaluate what the first argument names."""
    if not arguments or "=" in arguments[0]:
        raise ConfigError("evaluate needs a run, a checkpoint, a folder of images or an array: gantrain evaluate RUN")
    path = Path(arguments[0])
    theirs, ours = classifiers.divided(arguments[1:])
    options = overrides.read(Options, [listed(text) for text in ours])
    refuse_unknown(options.metrics)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a run folder, a checkpoint, a folder of images or an array")
    refuse_sweep(path, "evaluate")
    is_run = path.suffix == ".pt" or (path / "checkpoints").is_dir()
    source = trained(path, theirs, options) if is_run else stored(path, theirs, options)
    result = measured(source, options)
    show(source, result, options)
    say(f"evaluation.json is in {write(source, result, options)}")


def listed(argument: str) -> str:
    """`metrics=fid,kid` as `metrics=[fid,kid]`; other arguments as they are."""
    key, _, names = argument.partition("=")
    return f"metrics=[{names.removeprefix('[').removesuffix(']')}]" if key == "metrics" else argument


def refuse_unknown(metrics: list[str] | None) -> None:
    """Raise ConfigError for a name that is no metric's."""
    for name in metrics or ():
        if name not in (known := dict.fromkeys(IMAGE_METRICS + POINT_METRICS)):
            raise ConfigError(one_of("metrics", name, known))


# ---------------------------------------------------------------------------------------------------------------------
# Samples


def trained(path: Path, typed: list[str], options: Options) -> Source:
    """The generator of a run or a checkpoint, and the data of its run unless others are `typed`."""
    from gantrain import checkpoints, state
    from gantrain.metrics.stored import quantised
    from gantrain.parts import choose_device

    folder = path if path.is_dir() else path.parent.parent if path.parent.name == "checkpoints" else path.parent
    if options.out is None:
        RunFolder(folder).refuse_links()
    problems: list[str] = []
    if path.is_dir():
        path, bundle, problems = checkpoints.newest(path / "checkpoints")
    else:
        bundle = checkpoints.load(path)
    for problem in problems:
        say(f"passed over: {problem}")
    values = overrides.values(typed)
    settings = (
        classifiers.composed(typed)
        if "dataset" in values
        else config.checked(changed_by(values, bundle["config"]))["dataset"]
    )
    generator = state.load(path, object=options.object).to(choose_device(options.device))

    def draw(count: int, shape: tuple[int, ...]) -> Tensor:
        samples = generator.sample(count, options.seed)
        if not bool(samples.isfinite().all()):
            raise DivergedError(f"{path}: samples are not finite; the generator has diverged")
        if samples.shape[1:] != shape:
            raise ConfigError(f"{path} makes samples of shape {list(samples.shape[1:])}, the data have {list(shape)}")
        return quantised(samples) if len(shape) == 3 else samples

    return Source(
        settings,
        fingerprint=None if values.keys() - {"dataset.root", "dataset.path"} else bundle["data"].get("fingerprint"),
        draw=draw,
        facts={
            "images": generator.images,
            "checkpoint": path.name,
            "samples_from": "averaged generator" if "average" in bundle["state"] else "generator",
        },
        out=Path(options.out or folder),
    )


def stored(path: Path, typed: list[str], options: Options) -> Source:
    """Samples that lie on the disk, and the data that are `typed`."""
    if not any(text.startswith("dataset=") for text in typed):
        raise ConfigError(f"{path} is no run, so the data to compare with have to be named: dataset=…")
    settings = classifiers.composed(typed)

    def draw(count: int, shape: tuple[int, ...]) -> Tensor:
        from gantrain.metrics import stored

        return some(stored.read(path, shape), count, "samples", options.seed)

    facts = {"images": None, "checkpoint": None, "samples_from": path.name}
    return Source(settings, None, draw, facts, Path(options.out or "evaluation"))


def some(examples: Tensor, count: int, stream: str, seed: int = 0) -> Tensor:
    """`count` of the examples, chosen at random; all of them, as they are, where there are no more."""
    import torch

    if len(examples) <= count:
        return examples
    order = torch.randperm(len(examples), generator=stream_generator(seed, stream))
    return examples[order[:count].to(examples.device)]


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def measured(source: Source, options: Options) -> Result:
    """All numbers that were asked for. Raises DataError where too few examples are there to measure any."""
    from gantrain.parts import choose_device

    device = choose_device(options.device)
    dataset = data.load(**source.settings, device=device)
    if source.fingerprint not in (None, dataset.fingerprint):
        raise CheckpointError(
            f"{dataset.label} has changed since the run was trained: its fingerprint is {dataset.fingerprint}, was "
            f"{source.fingerprint}; restore the images, or name the data to compare with: dataset=…"
        )
    if isinstance(dataset, data.Images):
        return of_images(dataset, source, options, device)
    if isinstance(dataset, data.Density):
        return of_points(dataset, source, options)
    raise ConfigError(f"dataset={dataset.name} has no density, and so nothing to compare samples with")


def of_images(dataset: Images, source: Source, options: Options, device: torch.device) -> Result:
    """Images, as a classifier sees them; `neighbours.png` is drawn besides."""
    from gantrain import classifier
    from gantrain.metrics import catalogue, classes

    metrics = chosen(options, catalogue.IMAGES, dataset.label)
    split = dataset.split if options.split == "held_out" else "training"
    count = options.count or MOST
    real = some(dataset.train, count, "real") if split == "training" else dataset.held[:count]
    samples = source.draw(options.count or len(real), dataset.shape)
    real = real[: len(samples)]  # of fewer samples than real images, coverage would say nothing
    refuse_few(len(samples), len(real))
    judge = judged_by(dataset, source.settings, options, device)
    network = judge.classifier.to(device)

    def seen(images: Tensor) -> Seen:
        features, probabilities = classifier.seen(network, images)
        return catalogue.Seen(features, classes.histogram(probabilities), probabilities, images.cpu().flatten(1))

    theirs, ours = seen(real), seen(samples)
    features = {"name": "classifier", "dataset": judge.dataset, "accuracy": judge.accuracy}
    with writing(source.out):
        draw_neighbours(samples[:ROWS].cpu(), dataset.train.cpu(), source.out)
    return Result(
        dataset.label,
        catalogue.measure(theirs, ours, metrics),
        catalogue.measure(theirs, seen(some(dataset.train, len(samples), "reference")), metrics)
        if options.reference and split != "training"
        else {},
        histogram={"data": named(theirs.counts, network.classes), "samples": named(ours.counts, network.classes)},
        missing=[network.classes[index] for index in classes.missing(ours.counts, theirs.counts)],
        features=features | {"accuracy_on": judge.split, "checksum": judge.checksum[:CHECKSUM_DIGITS]},
        counts=(len(samples), len(real)),
        split=split,
    )


def of_points(density: Density, source: Source, options: Options) -> Result:
    """Points of a density, as they are; their classes are its modes."""
    from gantrain.metrics import catalogue, classes

    metrics = chosen(options, catalogue.POINTS, density.label)
    real = density.held_out(options.count or MOST).cpu()
    samples = source.draw(len(real), density.shape)
    real = real[: len(samples)]
    refuse_few(len(samples), len(real))

    def seen(points: Tensor) -> Seen:
        return catalogue.Seen(points.double(), classes.modes(points, density.mixture))

    theirs, ours = seen(real), seen(samples)
    modes = [str(number) for number in range(len(theirs.counts))]
    return Result(
        density.label,
        catalogue.measure(theirs, ours, metrics),
        catalogue.measure(theirs, seen(density.batch(0, len(samples)).cpu()), metrics) if options.reference else {},
        histogram={"data": named(theirs.counts, modes), "samples": named(ours.counts, modes)},
        missing=[modes[index] for index in classes.missing(ours.counts, theirs.counts)],
        features={"name": "points", "dataset": density.label, "checksum": density.fingerprint},
        counts=(len(samples), len(real)),
        split="held out",
    )


def chosen(options: Options, known: Mapping[str, Metric], label: str) -> list[Metric]:
    """The metrics that were asked for. Raises ConfigError for one that such data do not have."""
    for name in options.metrics or ():
        if name not in known:
            raise ConfigError(one_of(f"{label} has other metrics: metrics", name, known))
    return [known[name] for name in options.metrics or known]


def refuse_few(samples: int, real: int) -> None:
    """Raise DataError where there are too few examples of either kind to measure anything."""
    if min(samples, real) < FEWEST:
        raise DataError(
            f"{samples:,} samples and {real:,} real examples are too few; at least {FEWEST} of both are needed"
        )


def judged_by(dataset: Images, settings: Mapping[str, Any], options: Options, device: torch.device) -> Judge:
    """The classifier that was named, or the one of these images, trained first where it is missing.

    Raises ConfigError for one of images of another shape.
    """
    from gantrain import classifier

    if options.classifier is None:
        natural = settings["held_out"] is None and settings["flip"] in (None, data.IMAGES[dataset.name].flip)
        images = dataset if natural else classifiers.whole(settings, device)
        training = classifier.Training.natural(len(images.train), images.shape[0])
        return classifiers.obtained(images, classifier.place(images), training)
    judge = classifier.load(Path(options.classifier))
    if judge.classifier.shape != dataset.shape:
        raise ConfigError(
            f"classifier={options.classifier} is for images of shape {list(judge.classifier.shape)}, "
            f"{dataset.label} has {list(dataset.shape)}"
        )
    return judge


def named(counts: Tensor, classes: Sequence[str]) -> dict[str, int]:
    """Counts by class."""
    return dict(zip(classes, counts.tolist(), strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# On the screen and on the disk


def show(source: Source, result: Result, options: Options) -> None:
    """Print how the numbers were obtained, and the table."""
    samples, real = result.counts
    facts, split = source.facts, result.split.replace(" ", "-")
    origin = facts["samples_from"]
    if facts["images"] is not None:
        origin = f"the {origin} at {facts['images']:,} images"
    say(
        f"{samples:,} samples of {origin} against {real:,} {split} examples of {result.label}, "
        f"seed {options.seed}; features: {seen_through(result.features)}"
    )
    console().print(table(result))
    if result.missing and "diversity/missing_classes" in result.metrics:
        say(f"missing: {', '.join(result.missing)}")


def seen_through(features: Mapping[str, Any]) -> str:
    """What the features are, in words."""
    if "accuracy" not in features:
        return "the points themselves"
    kind = features["accuracy_on"].replace(" ", "-")
    return f"a classifier of {features['dataset']} with {features['accuracy']:.1%} accuracy on {kind} images"


def table(result: Result) -> Table:
    """One row a number, beside what as many training examples give."""
    from rich.table import Table

    rows = Table(box=None, pad_edge=False)
    for head in ("metric", "samples", *(["training data"] if result.reference else []), "better"):
        rows.add_column(head, justify="left" if head in ("metric", "better") else "right", no_wrap=True)
    for name in result.metrics:
        if not name.endswith("_error"):
            values = [result.metrics, *([result.reference] if result.reference else [])]
            rows.add_row(name, *(with_error(name, each) for each in values), BETTER[comparison.better(name)])
    return rows


def with_error(name: str, values: Mapping[str, float]) -> str:
    """A number to four digits, ± its error where it has one."""
    error = values.get(f"{name}_error")
    text = f"{values[name]:,.0f}" if abs(values[name]) >= 10_000 else f"{values[name]:.4g}"
    return (text + (f" ± {error:.2g}" if error is not None else "")).replace("-", "−")


def write(source: Source, result: Result, options: Options) -> Path:
    """Write evaluation.json; returns its folder."""
    samples, real = result.counts
    document = {
        **source.facts,
        "count": samples,
        "real_count": real,
        "split": result.split,
        "seed": options.seed,
        "features": result.features,
        "metrics": finite(result.metrics),
        "reference": finite(result.reference),
        "class_histogram": result.histogram,
    }
    with writing(source.out):
        source.out.mkdir(parents=True, exist_ok=True)
        write_whole(source.out / "evaluation.json", json.dumps(document, indent=2, allow_nan=False) + "\n")
    return source.out


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has neither infinity nor NaN."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def draw_neighbours(samples: Tensor, training: Tensor, folder: Path) -> None:
    """`neighbours.png`: in each row a sample, then the training images nearest to it in pixels."""
    import torch

    from gantrain import figures
    from gantrain.data.images import pixels
    from gantrain.metrics import neighbours

    nearest = neighbours.nearest(samples.flatten(1), training.flatten(1), COLUMNS - 1)
    rows = torch.cat([samples[:, None], training[nearest]], dim=1)
    folder.mkdir(parents=True, exist_ok=True)
    figures.save_grid(pixels(rows.flatten(0, 1)), folder / "neighbours.png")


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn an OSError into one sentence about `out`."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{error.filename or out} cannot be written: {reason(error)}; or give another out=DIR"
        ) from error
