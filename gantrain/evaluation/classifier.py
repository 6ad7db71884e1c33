"""A small classifier of a dataset's labels: the eyes with which generated images are judged where no Inception network
is to be had, or would see nothing in such images.

It is a plain convolutional network in the proportions of Jordan's "94% on CIFAR-10 in 3.29 Seconds on a Single GPU"
(2024, arXiv 2404.00498, after Page's ResNet-9): a stem and three groups of two 3×3 convolutions, of w, 4w and 4w
channels, each of which halves the image; the largest values of the last maps, 4w numbers, are the features φ(x), and
where the dataset may be mirrored, the mean of the image's and its mirror image's, as in Jordan's measurements: half a
percent of accuracy on CIFAR-10. It is trained by SGD with Nesterov momentum on shifted and, there, mirrored images, its
learning rate rising and then falling linearly (Smith and Topin 2018, arXiv 1708.07120). Labels are not smoothed, as
theirs are: p(y|x) would never be near 1, nor the Inception score near the number of classes. One classifier serves
every run on the same images: its file is named after their fingerprint, holds tensors and plain data only, and has its
checksum beside it.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gantrain.console import one_line
from gantrain.data.images import Images, Labels, pixels
from gantrain.errors import CheckpointError, DataError
from gantrain.files import cache, reason, safe_name, write_whole
from gantrain.precision import multiplies_bf16, rounded, tf32
from gantrain.runs import checkpoints
from gantrain.seeding import made_with, preserved_randomness, stream_generator, stream_seed

FORMAT = 3
BATCH = 256  # images a step in which features are computed
# What a file holds beside its format.
CONTENTS = {
    "dataset": str,
    "fingerprint": str,
    "shape": list,
    "classes": list,
    "mirrored": bool,
    "training": dict,
    "accuracy": float,
    "split": str,
    "made_with": dict,
    "state": dict,
}


@dataclass(frozen=True)
class Training:
    """How a classifier is trained; `width` is w above."""

    width: int
    epochs: int
    batch_size: int = 128
    lr: float = 0.15
    momentum: float = 0.9
    weight_decay: float = 1e-3
    rising: float = 0.2  # share of the steps in which the learning rate rises
    seed: int = 0

    @classmethod
    def natural(cls, images: int, channels: int) -> Training:
        """What `images` images need on a core with bfloat16: a minute for grey ones, half an hour for coloured ones."""
        width, shown, most_epochs = (16, 120_000, 40) if channels == 1 else (64, 800_000, 40)
        return cls(width=width, epochs=min(most_epochs, math.ceil(shown / images)))


def channels(width: int) -> tuple[int, ...]:
    """Those of the stem's maps and of each group's."""
    return (width + 1) // 2, width, 4 * width, 4 * width


def multiply_adds(shape: tuple[int, ...], width: int) -> int:
    """Those of one image's way through the convolutions."""
    colours, height, side = shape
    total = 9 * height * side * colours * channels(width)[0]
    for before, after in itertools.pairwise(channels(width)):
        total += 9 * height * side * before * after
        height, side = math.ceil(height / 2), math.ceil(side / 2)
        total += 9 * height * side * after**2
    return total


class Classifier(nn.Module):
    """p(y|x) and φ(x) of images `[B, *shape]` with pixels in [0, 1], for `classes`.

    `mean` and `std` `[C, 1, 1]` are the training images'; where these were `mirrored`, both sides of an image are
    looked at, except in training.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, shape: tuple[int, ...], classes: tuple[str, ...], width: int, *, mirrored: bool = False) -> None:
        super().__init__()
        self.shape, self.classes, self.mirrored = shape, classes, mirrored
        for name, value in (("mean", 0.0), ("std", 1.0)):
            self.register_buffer(name, torch.full((shape[0], 1, 1), value))
        stem, *_ = widths = channels(width)
        self.stem = nn.Sequential(nn.Conv2d(shape[0], stem, 3, padding=1), nn.GELU())
        self.groups = nn.Sequential(*(group(before, after) for before, after in itertools.pairwise(widths)))
        self.linear = nn.Linear(widths[-1], len(classes), bias=False)

    def features(self, images: Tensor) -> Tensor:
        """φ(x): `[B, 4w]`."""
        if self.mirrored and not self.training:
            return (self._one_side(images) + self._one_side(images.flip(-1))) / 2
        return self._one_side(images)

    def _one_side(self, images: Tensor) -> Tensor:
        return self.groups(self.stem((images - self.mean) / self.std)).amax((2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """log p(y|x) up to a constant: `[B, K]`."""
        return self.linear(features) / 9  # small, so that the first steps are no leaps

    def forward(self, images: Tensor) -> Tensor:
        """The logits of images: `[B, K]`."""
        return self.logits(self.features(images))


class Stacked(nn.Module):
    """A classifier of grey images, for images whose `channels` are grey images of their own.

    φ(x) are the channels' features side by side. A class of x is a class of each of its channels, K^C in all; they are
    judged one by one, so p(y|x) is the product of theirs.
    """

    def __init__(self, single: Classifier, channels: int) -> None:
        super().__init__()
        self.single, self.shape = single, (channels, *single.shape[1:])
        self.classes = tuple(map("".join, itertools.product(single.classes, repeat=channels)))

    @property
    def mean(self) -> Tensor:
        """The training images', `[1, 1, 1]`."""
        return self.single.mean

    def features(self, images: Tensor) -> Tensor:
        """The channels' φ: `[B, 4wC]`."""
        return self.single.features(images.flatten(0, 1)[:, None]).view(len(images), -1)

    def logits(self, features: Tensor) -> Tensor:
        """log p(y|x) up to a constant, the sums of the channels' logits: `[B, K^C]`, the last channel's class first to
        change."""
        total, *others = self.single.logits(features.view(len(features), self.shape[0], -1)).unbind(1)
        for each in others:
            total = (total[:, :, None] + each[:, None, :]).flatten(1)
        return total


def group(before: int, after: int) -> nn.Sequential:
    """`[B, before, H, W]` → `[B, after, H / 2, W / 2]`, rounded up; a side of one pixel stays."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.BatchNorm2d(after),
        nn.GELU(),
        nn.Conv2d(after, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.GELU(),
    )


@torch.no_grad()
def seen(
    classifier: Classifier | Stacked, images: Tensor, told: Callable[[int, int], None] = lambda step, steps: None
) -> tuple[Tensor, Tensor]:
    """φ(x) `[N, F]` and p(y|x) `[N, K]` of 8-bit images `[N, *shape]`, float64 on the CPU.

    `told(steps made, steps in all)` is called after each step.
    """
    device, parts, found = classifier.mean.device, images.split(BATCH), []
    with tf32(False):
        for step, part in enumerate(parts, start=1):
            found.append(classifier.features(pixels(part.to(device))))
            told(step, len(parts))
        features = torch.cat(found)
        logits = classifier.logits(features)
    # float64 only on the CPU: not every device has it.
    return features.cpu().double(), logits.cpu().double().softmax(1)


# ---------------------------------------------------------------------------------------------------------------------
# Training


def trained(data: Images, labels: Labels, training: Training, told: Callable[[int, int], None]) -> Classifier:
    """A classifier of the training images, on their device; `told(steps made, steps in all)` is called after each step.

    Raises DataError where there are not two classes.
    """
    labelled = torch.nonzero(labels.train >= 0).flatten()
    if len(set(labels.train[labelled].tolist())) < 2:
        raise DataError(f"{data.label} has labels of fewer than two classes; a classifier needs more")
    images = data.train[labelled.to(data.train.device)]
    targets = labels.train[labelled].to(images.device)
    with preserved_randomness(torch.device("cpu")):
        torch.manual_seed(stream_seed(training.seed, "classifier"))
        network = Classifier(data.shape, labels.classes, training.width, mirrored=data.flip)
    network.mean.copy_(moment(images, torch.Tensor.mean))
    network.std.copy_(moment(images, torch.Tensor.std).clamp(min=1e-3))
    network = network.to(images.device).to(memory_format=torch.channels_last)  # one and a half times as fast on a CPU
    steps = training.epochs * math.ceil(len(images) / training.batch_size)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=training.lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step / steps, training.rising))
    precision = "bf16" if multiplies_bf16(images.device) else "float32"  # twice as fast
    for step, (batch, wanted) in enumerate(epochs(images, targets, training, mirrored=data.flip), start=1):
        with rounded(precision, images.device):
            logits = network(batch)
        optimizer.zero_grad()
        functional.cross_entropy(logits.float(), wanted).backward()
        optimizer.step()
        schedule.step()
        told(step, steps)
    return network.requires_grad_(False).eval()


def moment(images: Tensor, of: Callable[..., Tensor]) -> Tensor:
    """A statistic of each channel over at most 10,000 of the images: `[C, 1, 1]`."""
    return of(pixels(images[:10_000]).transpose(0, 1).flatten(1), 1).view(-1, 1, 1).cpu()


def learning_rate(done: float, rising: float) -> float:
    """The learning rate as a share of its largest, when a share `done` of the steps is made: up, then down to 0."""
    return done / rising if done < rising else max(1 - done, 0.0) / (1 - rising)


def epochs(images: Tensor, targets: Tensor, training: Training, *, mirrored: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of shifted images, float `[≤ B, C, H, W]`, and their classes `[≤ B]`; every image once an epoch."""
    count = math.ceil(len(images) / training.batch_size)
    for epoch in range(training.epochs):
        generator = stream_generator(training.seed, "classifier", epoch)
        # Of equal sizes: batch norm has no use for a last batch of one image.
        for part in torch.randperm(len(images), generator=generator).tensor_split(count):
            chosen = part.to(images.device)
            yield augmented(pixels(images[chosen]), generator, mirrored=mirrored), targets[chosen]


def augmented(images: Tensor, generator: torch.Generator, *, mirrored: bool) -> Tensor:
    """Images `[B, C, H, W]`, each shifted by up to a sixteenth of its height, rounded up, half of them mirrored
    where they may be."""
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


def accuracy(classifier: Classifier, images: Tensor, targets: Tensor) -> float:
    """The share of 8-bit images `[N, *shape]` that get their class, of those that have one."""
    known = targets >= 0
    _, probabilities = seen(classifier, images)
    return float((probabilities.argmax(1) == targets)[known].double().mean())


# ---------------------------------------------------------------------------------------------------------------------
# On the disk


@dataclass(frozen=True)
class Judge:
    """A classifier as it is stored: on what data it was trained, and what it is worth."""

    classifier: Classifier | Stacked
    dataset: str
    fingerprint: str
    accuracy: float
    split: str  # of the accuracy: "test", "held out" or "training"
    checksum: str  # of its file, SHA-256


def stacked(judge: Judge, shape: tuple[int, ...]) -> Judge:
    """The judge of images of `shape` whose channels are what `judge` knows; itself where it knows something else."""
    single = judge.classifier
    if not isinstance(single, Classifier) or single.shape != (1, *shape[1:]):
        return judge
    return replace(judge, classifier=Stacked(single, shape[0]))


def place(data: Images) -> Path:
    """Where the classifier of these images is looked for: in the cache, under a name of their format."""
    return cache() / "classifiers" / f"{safe_name(data.label)}_{data.fingerprint}_{FORMAT}.pt"


def make(data: Images, path: Path, training: Training | None, told: Callable[[int, int], None]) -> Judge:
    """Train a classifier of these images' labels and store it. Raises DataError where they have none, and OSError."""
    labels = data.labels()
    if labels is None:
        raise DataError(
            f"dataset={data.name} has no labels to train a classifier with; use a folder with a folder for each class, "
            "or judge with the classifier of another dataset of the same shape: classifier=FILE (of `gantrain train`: "
            "evaluate.classifier=FILE)"
        )
    training = training or Training.natural(len(data.train), data.shape[0])
    classifier = trained(data, labels, training, told)
    assert labels.test is not None
    reached = accuracy(classifier, data.held, labels.test)
    save(
        path,
        {
            "format": FORMAT,
            "dataset": data.label,
            "fingerprint": data.fingerprint,
            "shape": list(data.shape),
            "classes": list(labels.classes),
            "mirrored": classifier.mirrored,
            "training": vars(training),
            "accuracy": reached,
            "split": data.split,
            "made_with": made_with(classifier.mean.device),
            "state": {name: value.cpu() for name, value in classifier.state_dict().items()},
        },
    )
    return load(path)


def save(path: Path, bundle: dict[str, Any]) -> None:
    """Write `bundle`, and its checksum beside it."""
    torch.save(bundle, buffer := io.BytesIO())
    checksum = hashlib.sha256(buffer.getbuffer()).hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(checksum_file(path), f"{checksum}  {path.name}\n", durable=True)
    write_whole(path, buffer.getvalue(), durable=True)


def checksum_file(path: Path) -> Path:
    """Where a classifier's checksum stands."""
    return path.with_name(f"{path.name}.sha256")


def load(path: Path) -> Judge:
    """A stored classifier, on the CPU. Raises CheckpointError for a file that is missing, damaged or none of ours."""
    try:
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
            if checksum not in checksum_file(path).read_text(encoding="utf-8").split()[:1]:
                raise CheckpointError(f"{path} does not have the checksum recorded beside it; it is damaged: delete it")
            size = checkpoints.refuse_packed(path, file)
            bundle = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{error.filename or path} cannot be read: {reason(error)}") from error
    except Exception as error:  # torch.load raises many kinds for a file that is no classifier
        first_line = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is no classifier that can be loaded safely: {first_line}") from error
    refuse_invalid(path, bundle, size)
    return Judge(
        restored(path, bundle), bundle["dataset"], bundle["fingerprint"], bundle["accuracy"], bundle["split"], checksum
    )


def refuse_invalid(path: Path, bundle: Any, size: int) -> None:
    """Raise CheckpointError unless the `bundle` in `path`, a file of `size` bytes, holds what `make` writes."""
    for fault in checkpoints.faults(bundle, size):
        raise CheckpointError(f"{path}: {one_line(fault)}")
    found = bundle.get("format") if isinstance(bundle, dict) else type(bundle).__name__
    if found != FORMAT:
        raise CheckpointError(
            f"{path} has format {found}; this version of gantrain reads classifiers of format {FORMAT}; "
            "train another: gantrain classifier dataset=NAME out=NEW_FILE"
        )
    for key, kind in CONTENTS.items():
        if not isinstance(bundle.get(key), kind):
            raise CheckpointError(f"{path} has no {key}, or not of type {kind.__name__}")


def restored(path: Path, bundle: Mapping[str, Any]) -> Classifier:
    """The network in a bundle, ready to judge. Raises CheckpointError where the bundle does not fit itself."""
    shape, classes = tuple(bundle["shape"]), tuple(map(str, bundle["classes"]))
    try:
        with torch.device("meta"):  # takes no memory, however large the numbers in the file
            network = Classifier(shape, classes, bundle["training"]["width"], mirrored=bundle["mirrored"])
        network.load_state_dict(bundle["state"], assign=True)
    except Exception as error:  # of numbers and weights from a file
        raise CheckpointError(f"{path} has weights that do not fit its own description") from error
    return network.float().to(memory_format=torch.channels_last).requires_grad_(False).eval()


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time makes a classifier; the others wait, and then find it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
