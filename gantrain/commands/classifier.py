"""`gantrain classifier`: train and store the classifier with which `gantrain evaluate` looks at images."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain import data
from gantrain.config import checks, overrides
from gantrain.config.schema import number
from gantrain.console import say
from gantrain.errors import ConfigError, StorageError
from gantrain.evaluation import evaluation, features
from gantrain.evaluation.metric_names import CLASSIFIER, INCEPTION, OF_CLASSES, is_stacked, metrics_of, numbers_of
from gantrain.files import reason
from gantrain.screen import console

if TYPE_CHECKING:
    import torch

    from gantrain.data import Dataset, Images
    from gantrain.evaluation.classifier import Judge, Training
    from gantrain.evaluation.features import Eyes
    from gantrain.evaluation.metrics import Metric

HELP = """Train a classifier of a dataset's labels, and store it with its accuracy.

  gantrain classifier dataset=NAME [dataset.root=data] [epochs=N] [width=N] [seed=0] [out=FILE] [device=auto]

Examples
  gantrain classifier dataset=mnist                              about a minute of one core
  gantrain classifier dataset=folder dataset.path=DIR            DIR holds a folder for each class
  gantrain classifier dataset=cifar10 width=128 epochs=40 device=cuda

`gantrain evaluate` looks at images with it, and trains it by itself where it is missing. It is kept in
$XDG_CACHE_HOME/gantrain/classifiers (~/.cache/gantrain/classifiers) under the fingerprint of the images, so one serves
every run on them; out=FILE keeps it elsewhere. Where it is there already it is only described, unless epochs, width or
seed is given. Its accuracy is that on the test split, or on the images that are held out."""

# Steps of a training after which the time that is left is told; the first are slower than the rest.
FIRST, MEASURED = 5, 25
SECONDS_BETWEEN_LINES = 60
LONG_SECONDS = 10  # of a network's look at images, of which nothing is said where it takes less


@dataclass
class Options:
    """What `gantrain classifier` can be told beside the dataset."""

    epochs: int | None = number(None, at_least=1, at_most=10_000)
    width: int | None = number(None, at_least=1, at_most=1024)
    seed: int | None = number(None, at_least=0, at_most=2**63 - 1)
    out: str | None = None
    device: str = "auto"


def help_text() -> str:
    """The command's help."""
    return HELP


def run(arguments: list[str]) -> None:
    """Train, store and describe the classifier of the dataset that the arguments name."""
    theirs, ours = divided(arguments)
    if not any(text.startswith("dataset=") for text in theirs):
        raise ConfigError(
            "classifier needs a dataset: gantrain classifier dataset=NAME; see gantrain classifier --help"
        )
    options, settings = overrides.read(Options, ours), composed(theirs)

    from gantrain.evaluation import classifier
    from gantrain.launch.build import choose_device

    images = whole(settings, choose_device(options.device))
    path = Path(options.out) if options.out else classifier.place(images)
    typed = {key: value for key in ("epochs", "width", "seed") if (value := getattr(options, key)) is not None}
    natural = classifier.Training.natural(len(images.train), images.shape[0])
    training = classifier.Training(**(vars(natural) | typed))
    say(described(path, obtained(images, path, training, anew=bool(typed))))


def divided(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments that describe the dataset, as `gantrain train` takes them, and the others."""
    theirs = [text for text in arguments if text.partition("=")[0].partition(".")[0] == "dataset"]
    return overrides.checked(theirs), [text for text in arguments if text not in theirs]


def composed(typed: list[str]) -> dict[str, Any]:
    """The settings of the dataset that `typed` describes. Raises ConfigError."""
    from gantrain.config.compose import compose

    settings: dict[str, Any] = checks.checked(compose(typed))["dataset"]
    return settings


def whole(settings: Mapping[str, Any], device: torch.device) -> Images:
    """The images of a dataset, all of its training split in training: one classifier serves every `held_out`. Of stacks
    they are the images that are stacked.

    Raises ConfigError for a dataset of points.
    """
    name = data.classifier_dataset(settings["name"])
    label = settings["label"] if name == settings["name"] else None
    changes = {"name": name, "label": label, "held_out": None, "flip": None}
    images = data.load(**{**settings, **changes}, device=device)
    if not isinstance(images, data.Images):
        raise ConfigError(f"dataset={settings['name']} has no images to classify")
    return images


def chosen(
    asked: Mapping[str, Any], dataset: Dataset, settings: Mapping[str, Any], network: str, best: str | None = None
) -> dict[str, Metric]:
    """The metrics that were asked for; by default all, but through Inception those of classes only where a classifier
    is at hand, or the number `best` is one of theirs. Raises ConfigError for a metric that such data do not have."""
    known = True
    if network == INCEPTION and isinstance(dataset, data.Images) and not asked["metrics"]:
        from gantrain.evaluation import classifier

        of_classes = OF_CLASSES.intersection(metrics_of(dataset.name))
        known = asked["classifier"] is not None or best in numbers_of(of_classes, dataset.name)
        known = known or classifier.place(judged_images(dataset, settings)).exists()
    return evaluation.chosen(asked["metrics"], dataset, classes_known=known)


def eyes_for(
    asked: Mapping[str, Any],
    dataset: Dataset,
    settings: Mapping[str, Any],
    network: str,
    metrics: Iterable[str],
    device: torch.device,
) -> Eyes:
    """How examples of a dataset, which has these `settings`, are looked at: points of a density as they are, images
    through the `network`; through Inception, and for `metrics` of classes, through a classifier too.

    The classifier is that of the file which was `asked` for, or of these images, trained first where it is missing.
    Raises ConfigError for a classifier of images of another shape, DataError where there are no weights of Inception.
    """
    if not isinstance(dataset, data.Images):
        assert isinstance(dataset, data.Density)
        return features.as_points(dataset)
    if network == CLASSIFIER:
        return features.through_classifier(judge_of(dataset, settings, asked["classifier"], device), device)

    from gantrain.evaluation import inception

    path = inception.obtained(Path(asked["inception"]) if asked["inception"] else None)
    judge = None if OF_CLASSES.isdisjoint(metrics) else judge_of(dataset, settings, asked["classifier"], device)
    classes = features.through_classifier(judge, device) if judge else None
    return features.through_inception(inception.load(path, device), classes)


def judge_of(dataset: Images, settings: Mapping[str, Any], file: str | None, device: torch.device) -> Judge:
    """The classifier in `file`, or of these images; one of what is stacked in them is made one of stacks."""
    from gantrain.evaluation import classifier

    if file is None:
        images = judged_images(dataset, settings)
        training = classifier.Training.natural(len(images.train), images.shape[0])
        judge = obtained(images, classifier.place(images), training)
    else:
        judge = classifier.load(Path(file))
    if is_stacked(dataset.name):
        judge = classifier.stacked(judge, dataset.shape)
    if judge.classifier.shape != dataset.shape:
        raise ConfigError(
            f"the classifier {file} is for images of shape {list(judge.classifier.shape)}, "
            f"{dataset.label} has {list(dataset.shape)}"
        )
    return judge


def judged_images(dataset: Images, settings: Mapping[str, Any]) -> Images:
    """The images whose classifier judges those of a dataset: as they come, unless this run has them otherwise."""
    natural = settings["held_out"] is None and settings["flip"] in (None, data.IMAGES[dataset.name].flip)
    return dataset if natural and not is_stacked(dataset.name) else whole(settings, dataset.train.device)


def obtained(images: Images, path: Path, training: Training, *, anew: bool = False) -> Judge:
    """The classifier at `path`; where it is missing, or wanted `anew`, it is trained after saying so."""
    from gantrain.evaluation import classifier

    try:
        with classifier.alone(path):
            if path.exists() and not anew:
                return classifier.load(path)
            say(f"training a classifier of the labels of {images.label}")
            with fitting_threads(images, training), progress(first=FIRST, measured=MEASURED, shortest=0.0) as told:
                return classifier.make(images, path, training, told)
    except OSError as error:
        raise StorageError(f"{error.filename or path}: {reason(error)}; or give another out=FILE") from error


@contextmanager
def fitting_threads(images: Images, training: Training) -> Iterator[None]:
    """One thread for a network that is too small to be shared, unless the user has set their number."""
    import torch

    from gantrain.evaluation.classifier import multiply_adds
    from gantrain.launch.build import FEW_MULTIPLY_ADDS
    from gantrain.launch.run import threads_given_back

    batch = multiply_adds(images.shape, training.width) * training.batch_size
    with threads_given_back():
        if images.train.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ and batch < FEW_MULTIPLY_ADDS:
            torch.set_num_threads(1)
        yield


@contextmanager
def progress(
    what: str = "", *, first: int = 1, measured: int = 3, shortest: float = LONG_SECONDS
) -> Iterator[Callable[[int, int], None]]:
    """Say, by the steps from `first` to `measured`, how long `what` will take, unless it is `shortest`; a bar shows it
    on a terminal, and elsewhere a line a minute."""
    from rich.progress import Progress

    screen, begun = console(), time.monotonic()
    said, head = begun, f"{what}: " if what else ""
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(what)

        def told(step: int, steps: int) -> None:
            nonlocal begun, said
            bar.update(task, completed=step, total=steps)
            now = time.monotonic()
            if step == first:
                begun = now
            if not measured <= step < steps:
                return
            left = (now - begun) / (step - first) * (steps - step)
            again = not screen.is_terminal and now - said >= SECONDS_BETWEEN_LINES
            if again or (step == measured and left >= shortest):
                said = now
                say(f"{head}about {lasting(left)} to go, by the first {step:,} of {steps:,} steps")

        yield told


def lasting(seconds: float) -> str:
    """A length of time in words."""
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def described(path: Path, judge: Judge) -> str:
    """What a stored classifier is and what it is worth."""
    classes = len(judge.classifier.classes)
    kind = judge.split.replace(" ", "-")
    return f"{path}: {judge.accuracy:.1%} accuracy on {kind} images of {judge.dataset}, {classes} classes"
