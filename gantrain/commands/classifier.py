"""`gantrain classifier`: train and store the classifier with which `gantrain evaluate` looks at images."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain import config, data, evaluation, overrides
from gantrain.errors import ConfigError, StorageError
from gantrain.evaluation import CLASSIFIER
from gantrain.files import reason
from gantrain.schema import number
from gantrain.screen import console
from gantrain.terminal import say

if TYPE_CHECKING:
    import torch

    from gantrain.classifier import Judge, Training
    from gantrain.data import Dataset, Images
    from gantrain.evaluation import Eyes

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

# Steps after which the time that is left is told; the first are slower than the rest.
FIRST, MEASURED = 5, 25
SECONDS_BETWEEN_LINES = 60


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

    from gantrain import classifier
    from gantrain.parts import choose_device

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
    from gantrain.commands.train import compose

    settings: dict[str, Any] = config.checked(compose(typed))["dataset"]
    return settings


def whole(settings: Mapping[str, Any], device: torch.device) -> Images:
    """The images of a dataset, all of its training split in training: one classifier serves every `held_out`. Of stacks
    they are the images that are stacked.

    Raises ConfigError for a dataset of points.
    """
    name = data.judged_as(settings["name"])
    label = settings["label"] if name == settings["name"] else None
    changes = {"name": name, "label": label, "held_out": None, "flip": None}
    images = data.load(**{**settings, **changes}, device=device)
    if not isinstance(images, data.Images):
        raise ConfigError(f"dataset={settings['name']} has no images to classify")
    return images


def eyes_for(
    dataset: Dataset,
    settings: Mapping[str, Any],
    file: str | None,
    device: torch.device,
    *,
    features: str = CLASSIFIER,
    weights: str | None = None,
) -> Eyes:
    """How examples of a dataset, which has these `settings`, are looked at: through the classifier in `file`, or the
    one of these images, trained first where it is missing; or through the Inception network with the `weights` in that
    file, or in their place. Points of a density are taken as they are.

    Raises ConfigError for a classifier of images of another shape, DataError where there are no weights.
    """
    if not isinstance(dataset, data.Images):
        assert isinstance(dataset, data.Density)
        return evaluation.as_points(dataset)
    if features == CLASSIFIER:
        return evaluation.through_classifier(judge_of(dataset, settings, file, device), device)

    from gantrain import inception

    path = inception.obtained(Path(weights) if weights else None)
    return evaluation.through_inception(inception.load(path, device), partial(progress, first=1, measured=3))


def judge_of(dataset: Images, settings: Mapping[str, Any], file: str | None, device: torch.device) -> Judge:
    """The classifier in `file`, or of these images; one of what is stacked in them is made one of stacks."""
    from gantrain import classifier

    stacked = evaluation.is_stacked(dataset.name)
    if file is None:
        natural = settings["held_out"] is None and settings["flip"] in (None, data.IMAGES[dataset.name].flip)
        images = dataset if natural and not stacked else whole(settings, device)
        training = classifier.Training.natural(len(images.train), images.shape[0])
        judge = obtained(images, classifier.place(images), training)
    else:
        judge = classifier.load(Path(file))
    if stacked:
        judge = classifier.stacked(judge, dataset.shape)
    if judge.classifier.shape != dataset.shape:
        raise ConfigError(
            f"the classifier {file} is for images of shape {list(judge.classifier.shape)}, "
            f"{dataset.label} has {list(dataset.shape)}"
        )
    return judge


def obtained(images: Images, path: Path, training: Training, *, anew: bool = False) -> Judge:
    """The classifier at `path`; where it is missing, or wanted `anew`, it is trained after saying so."""
    from gantrain import classifier

    try:
        with classifier.alone(path):
            if path.exists() and not anew:
                return classifier.load(path)
            doing = f"training a classifier of the labels of {images.label}"
            with fitting_threads(images, training), progress(doing) as told:
                return classifier.make(images, path, training, told)
    except OSError as error:
        raise StorageError(f"{error.filename or path}: {reason(error)}; or give another out=FILE") from error


@contextmanager
def fitting_threads(images: Images, training: Training) -> Iterator[None]:
    """One thread for a network that is too small to be shared, unless the user has set their number."""
    import torch

    from gantrain.classifier import multiply_adds
    from gantrain.launch import threads_given_back
    from gantrain.parts import FEW_MULTIPLY_ADDS

    batch = multiply_adds(images.shape, training.width) * training.batch_size
    with threads_given_back():
        if images.train.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ and batch < FEW_MULTIPLY_ADDS:
            torch.set_num_threads(1)
        yield


@contextmanager
def progress(what: str, first: int = FIRST, measured: int = MEASURED) -> Iterator[Callable[[int, int], None]]:
    """Say `what` is done and, by the steps from `first` to `measured`, how long it will take; then a bar shows it on a
    terminal, and elsewhere a line a minute."""
    from rich.progress import Progress

    screen, begun, said = console(), time.monotonic(), 0.0
    say(what)
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("")

        def told(step: int, steps: int) -> None:
            nonlocal begun, said
            bar.update(task, completed=step, total=steps)
            now = time.monotonic()
            if step == first:
                begun = now
            due = step == measured or (not screen.is_terminal and now - said >= SECONDS_BETWEEN_LINES)
            if due and measured <= step < steps:
                said = now
                left = (now - begun) / (step - first) * (steps - step)
                say(f"about {lasting(left)} to go, by the first {step:,} of {steps:,} steps")

        yield told


def lasting(seconds: float) -> str:
    """A length of time in words."""
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def described(path: Path, judge: Judge) -> str:
    """What a stored classifier is and what it is worth."""
    classes = len(judge.classifier.classes)
    kind = judge.split.replace(" ", "-")
    return f"{path}: {judge.accuracy:.1%} accuracy on {kind} images of {judge.dataset}, {classes} classes"
