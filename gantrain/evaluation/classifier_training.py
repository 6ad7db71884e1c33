"""Training of the classifier, which is done once for a set of images.

SGD with Nesterov momentum on shifted and, if the dataset is mirrored, mirrored images; the learning rate rises and then
falls linearly (Smith and Topin 2018, arXiv 1708.07120). Unlike in the papers, labels are not smoothed: p(y|x) would
never be near 1, nor the Inception score near the number of classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional

from gantrain.console import Progress, no_progress, say
from gantrain.data.images import Images, Labels, pixels
from gantrain.devices import limit_threads
from gantrain.errors import DataError, StorageError
from gantrain.evaluation.classifier import (
    Classifier,
    StoredClassifier,
    compute_features,
    load_classifier,
    save_classifier,
)
from gantrain.files import cache_folder, describe_os_error
from gantrain.networks.summary import count_multiply_adds
from gantrain.precision import autocast_products, has_fast_bf16
from gantrain.seeding import describe_machine, preserve_randomness, stream_generator, stream_seed

MOST_EPOCHS = 40  # by default


@dataclass(frozen=True)
class ClassifierTraining:
    """Settings of the training; `width` is that of the network."""

    width: int
    epochs: int
    batch_size: int = 128
    lr: float = 0.15
    momentum: float = 0.9
    weight_decay: float = 1e-3
    rising: float = 0.2  # share of the steps in which the learning rate rises
    seed: int = 0

    @classmethod
    def default(cls, images: int, channels: int) -> ClassifierTraining:
        """Return settings for so many images that take minutes of a core: quick ones if the images are in colour."""
        width, shown = (16, 120_000) if channels == 1 else (32, 100_000)
        return cls(width=width, epochs=min(MOST_EPOCHS, math.ceil(shown / images)))


def obtain_classifier(
    images: Images, path: Path, overrides: Mapping[str, int] | None = None, *, progress: Progress = no_progress
) -> StoredClassifier:
    """Load the classifier at `path`, or train and store it there if it is missing.

    `overrides` are settings of its training that differ from the default; a stored classifier that was trained with
    other ones is replaced. Other processes wait until it is whole. Raises DataError if the images have no labels,
    StorageError, and CheckpointError for a damaged file.
    """
    overrides = overrides or {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if path.exists():
                stored = load_classifier(path)
                if all(stored.training.get(key) == value for key, value in overrides.items()):
                    return stored
            training = replace(ClassifierTraining.default(len(images.train), images.shape[0]), **overrides)
            say(describe_training(images, training))
            return make_classifier(images, path, training, progress=progress)
    except OSError as error:
        is_cached = path.is_relative_to(cache_folder())
        place = "set XDG_CACHE_HOME to a folder that can be written, or " if is_cached else "or "
        place += "give another file: classifier=FILE (of `gantrain train`: evaluate.classifier)"
        raise StorageError(f"{error.filename or path}: {describe_os_error(error)}; {place}") from error


def describe_training(images: Images, training: ClassifierTraining) -> str:
    """Return what is about to be trained, and what may take its place."""
    return (
        f"training a classifier of the labels of {images.label} (width {training.width}, epochs {training.epochs}), "
        f"once for these images; a more accurate one: gantrain evaluate … train_classifier.width={2 * training.width} "
        f"train_classifier.epochs={min(MOST_EPOCHS, 8 * training.epochs)}; or classifier=FILE, features=inception "
        "(of `gantrain train`: evaluate.classifier, evaluate.features)"
    )


def make_classifier(
    images: Images, path: Path, training: ClassifierTraining, *, progress: Progress = no_progress
) -> StoredClassifier:
    """Train a classifier and store it with its accuracy. Raises DataError for missing labels, and OSError."""
    labels = images.labels()
    if labels is None:
        raise DataError(
            f"dataset={images.name} has no labels to train a classifier with; use a folder with a folder for each "
            "class (dataset.labels=folders takes numbered ones too), features=inception, or the classifier of another "
            "dataset of the same shape: classifier=FILE (of `gantrain train`: evaluate.features and "
            "evaluate.classifier)"
        )
    assert labels.test is not None
    is_known = labels.test >= 0
    if not is_known.any():
        raise DataError(
            f"none of the {images.split} images of {images.label} has a label, so that a classifier's accuracy cannot "
            "be measured; label some of them, or give features=inception or classifier=FILE"
        )
    network = build_classifier(images, labels, training)
    image = torch.zeros(1, *images.shape, device=network.mean.device)
    with limit_threads(network.mean.device, training.batch_size * count_multiply_adds(network.eval(), image)):
        train_classifier(network, images, labels, training=training, progress=progress)
        _, probabilities = compute_features(network, images.held)
        created = describe_machine(network.mean.device)
    is_right = probabilities.argmax(1) == labels.test
    contents = {
        "dataset": images.label,
        "fingerprint": images.fingerprint,
        "shape": list(images.shape),
        "classes": list(labels.classes),
        "mirrored": network.mirrored,
        "training": asdict(training),
        "accuracy": float(is_right[is_known].double().mean()),
        "split": images.split,
        "made_with": created,
        "state": {name: value.cpu() for name, value in network.state_dict().items()},
    }
    save_classifier(path, contents)
    return load_classifier(path)


def build_classifier(images: Images, labels: Labels, training: ClassifierTraining) -> Classifier:
    """Build an untrained classifier on the images' device."""
    with preserve_randomness(torch.device("cpu")):
        torch.manual_seed(stream_seed(training.seed, "classifier"))
        network = Classifier(images.shape, labels.classes, training.width, mirrored=images.flip)
    return network.to(images.device).to(memory_format=torch.channels_last)  # one and a half times as fast on a CPU


def train_classifier(
    network: Classifier,
    images: Images,
    labels: Labels,
    *,
    training: ClassifierTraining,
    progress: Progress = no_progress,
) -> None:
    """Train the network on the training images that have a label. Raises DataError for fewer than two classes."""
    labelled = torch.nonzero(labels.train >= 0).flatten()
    if len(set(labels.train[labelled].tolist())) < 2:
        raise DataError(f"{images.label} has labels of fewer than two classes; a classifier needs more")
    first = images.train[labelled[:10_000].to(images.train.device)]
    channels = pixels(first).transpose(0, 1).flatten(1)
    network.mean.copy_(channels.mean(1).view(-1, 1, 1))
    network.std.copy_(channels.std(1).clamp(min=1e-3).view(-1, 1, 1))
    steps = training.epochs * math.ceil(len(labelled) / training.batch_size)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=training.lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step / steps, training.rising))
    precision = "bf16" if has_fast_bf16(images.device) else "float32"  # twice as fast
    network.train()
    with progress(f"training the classifier of {images.label}") as update:
        batches = iterate_batches(images.train, labels.train, labelled, training, mirrored=images.flip)
        for step, (found, wanted) in enumerate(batches, start=1):
            with autocast_products(precision, images.device):
                logits = network(found.to(images.device))
            optimizer.zero_grad()
            functional.cross_entropy(logits.float(), wanted.to(images.device)).backward()
            optimizer.step()
            schedule.step()
            update(step, steps)
    network.requires_grad_(False).eval()


def learning_rate(done: float, rising: float) -> float:
    """Return the learning rate as a share of its largest after a share `done` of the steps: up, then down to 0."""
    return done / rising if done < rising else max(1 - done, 0.0) / (1 - rising)


def iterate_batches(
    images: Tensor, targets: Tensor, chosen: Tensor, training: ClassifierTraining, *, mirrored: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of augmented images, float `[≤ B, C, H, W]`, and their classes; each chosen image once an epoch."""
    count = math.ceil(len(chosen) / training.batch_size)
    for epoch in range(training.epochs):
        generator = stream_generator(training.seed, "classifier", epoch)
        # Of equal sizes, as batch norm needs more than a last batch of one image.
        for part in torch.randperm(len(chosen), generator=generator).tensor_split(count):
            indices = chosen[part]
            yield augment(pixels(images[indices.to(images.device)]), generator, mirrored=mirrored), targets[indices]


def augment(images: Tensor, generator: torch.Generator, *, mirrored: bool) -> Tensor:
    """Shift each image of `[B, C, H, W]` by up to H / 16 pixels, rounded up, and mirror half of them if `mirrored`."""
    count, _, height, width = images.shape
    margin = math.ceil(height / 16)
    padded = functional.pad(images, [margin] * 4, mode="replicate")
    shifts = torch.randint(0, 2 * margin + 1, (2, count, 1), generator=generator).to(images.device)
    rows = shifts[0] + torch.arange(height, device=images.device)  # [B, H]
    columns = shifts[1] + torch.arange(width, device=images.device)
    if mirrored:
        coins = torch.rand(count, 1, generator=generator).to(images.device)
        columns = torch.where(coins < 0.5, columns.flip(1), columns)
    index = torch.arange(count, device=images.device)[:, None, None]
    # Indexed dimensions that are not beside each other come first.
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
