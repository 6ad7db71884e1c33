"""`gantrain classifier`: train and store the classifier with which `gantrain evaluate` looks at images."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain import config, data, overrides
from gantrain.commands.fit import console
from gantrain.config import number
from gantrain.errors import ConfigError, StorageError
from gantrain.files import reason
from gantrain.terminal import say

if TYPE_CHECKING:
    import torch

    from gantrain.classifier import Judge, Training
    from gantrain.data import Images

HELP = """Train a classifier of a dataset's labels, and store it with its accuracy.

  gantrain classifier dataset=NAME [dataset.root=data] [epochs=N] [width=N] [seed=0] [out=FILE] [device=auto]

Examples
  gantrain classifier dataset=mnist                              two minutes on one core
  gantrain classifier dataset=folder dataset.path=DIR            DIR holds a folder for each class
  gantrain classifier dataset=cifar10 width=64 epochs=40 device=cuda

`gantrain evaluate` looks at images with it, and trains it by itself where it is missing. It is kept in
$XDG_CACHE_HOME/gantrain/classifiers (~/.cache/gantrain/classifiers) under the fingerprint of the images, so one serves
every run on them; out=FILE keeps it elsewhere. Where it is there already it is only described, unless epochs, width or
seed is given. Its accuracy is that on the test split, or on the images that are held out."""

# Steps after which the time that is left is told; the first are slower than the rest.
FIRST, MEASURED = 5, 25


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
    """The images of a dataset, all of its training split in training: one classifier serves every `held_out`.

    Raises ConfigError for a dataset of points.
    """
    images = data.load(**{**settings, "held_out": None, "flip": None}, device=device)
    if not isinstance(images, data.Images):
        raise ConfigError(f"dataset={settings['name']} has no images to classify")
    return images


def obtained(images: Images, path: Path, training: Training, *, anew: bool = False) -> Judge:
    """The classifier at `path`; where it is missing, or wanted `anew`, it is trained after saying so."""
    from gantrain import classifier

    try:
        with classifier.alone(path):
            if path.exists() and not anew:
                return classifier.load(path)
            with fitting_threads(images, training), progress(f"a classifier of the labels of {images.label}") as told:
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
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Say that `what` is trained and, by the first steps, how long it will take; a bar on a terminal."""
    from rich.progress import Progress

    screen, clock = console(), [time.monotonic()]
    say(f"training {what}")
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("training")

        def told(step: int, steps: int) -> None:
            bar.update(task, completed=step, total=steps)
            if step == FIRST:
                clock[0] = time.monotonic()
            if step == MEASURED < steps:
                left = (time.monotonic() - clock[0]) / (MEASURED - FIRST) * (steps - MEASURED)
                say(f"about {lasting(left)} to go, by the first {MEASURED} of {steps:,} steps")

        yield told


def lasting(seconds: float) -> str:
    """A length of time in words."""
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def described(path: Path, judge: Judge) -> str:
    """What a stored classifier is and what it is worth."""
    classes = len(judge.classifier.classes)
    kind = judge.split.replace(" ", "-")
    return f"{path}: {judge.accuracy:.1%} accuracy on {kind} images of {judge.dataset}, {classes} classes"
