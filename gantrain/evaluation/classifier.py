"""A small classifier of a dataset's labels, whose features and probabilities the metrics of images use.

It is a plain convolutional network in the proportions of Jordan's "94% on CIFAR-10 in 3.29 Seconds on a Single GPU"
(2024, arXiv 2404.00498, after Page's ResNet-9): a stem and three groups of two 3×3 convolutions, of w, 4w and 4w
channels, each of which halves the image; the maxima of the last maps, 4w numbers, are the features φ(x). If the dataset
is mirrored, φ is the mean over the image and its mirror image, as in Jordan's measurements: half a percent of accuracy
on CIFAR-10. `classifier_training` trains it.

One classifier serves every run on the same images: its file is named after their fingerprint, holds tensors and plain
data only, and has its checksum beside it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gantrain.console import Progress, no_progress
from gantrain.data.images import Images, pixels
from gantrain.errors import CheckpointError
from gantrain.files import cache_folder, safe_name
from gantrain.precision import allow_tf32
from gantrain.runs import bundles

FORMAT = 3
BATCH = 256  # images a step of computing features
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


class Classifier(nn.Module):
    """p(y|x) and φ(x) of images `[B, *shape]` with pixels in [0, 1].

    Args:
        shape: Channels, height and width of an image.
        classes: Names of the K classes.
        width: w above.
        mirrored: Average features over both mirror images, except in training.

    The buffers `mean` and `std` `[C, 1, 1]` are those of the training images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, shape: tuple[int, ...], classes: tuple[str, ...], width: int, *, mirrored: bool = False) -> None:
        super().__init__()
        self.shape, self.classes, self.mirrored = shape, classes, mirrored
        for name, value in (("mean", 0.0), ("std", 1.0)):
            self.register_buffer(name, torch.full((shape[0], 1, 1), value))
        stem, *_ = widths = (width + 1) // 2, width, 4 * width, 4 * width
        self.stem = nn.Sequential(nn.Conv2d(shape[0], stem, 3, padding=1), nn.GELU())
        self.groups = nn.Sequential(*(_build_group(before, after) for before, after in itertools.pairwise(widths)))
        self.linear = nn.Linear(widths[-1], len(classes), bias=False)

    def features(self, images: Tensor) -> Tensor:
        """Return φ(x) `[B, 4w]`."""
        if self.mirrored and not self.training:
            return (self._one_side(images) + self._one_side(images.flip(-1))) / 2
        return self._one_side(images)

    def _one_side(self, images: Tensor) -> Tensor:
        return self.groups(self.stem((images - self.mean) / self.std)).amax((2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """Return log p(y|x) up to a constant, `[B, K]`, from φ(x)."""
        return self.linear(features) / 9  # small, so that the first steps of training are

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[B, K]` of images."""
        return self.logits(self.features(images))


class ChannelwiseClassifier(nn.Module):
    """A classifier of grey images, applied to each of the `channels` of images whose channels are images of their own.

    φ(x) are the channels' features side by side. A class of x is one of each of its channels, K^C in all; p(y|x) is the
    product of theirs.
    """

    def __init__(self, single: Classifier, channels: int) -> None:
        super().__init__()
        self.single, self.shape = single, (channels, *single.shape[1:])
        self.classes = tuple(map("".join, itertools.product(single.classes, repeat=channels)))

    def features(self, images: Tensor) -> Tensor:
        """Return the channels' φ, `[B, 4wC]`."""
        return self.single.features(images.flatten(0, 1)[:, None]).view(len(images), -1)

    def logits(self, features: Tensor) -> Tensor:
        """Return log p(y|x) up to a constant, `[B, K^C]`; the class of the last channel varies fastest."""
        total, *others = self.single.logits(features.view(len(features), self.shape[0], -1)).unbind(1)
        for each in others:
            total = (total[:, :, None] + each[:, None, :]).flatten(1)
        return total


def _build_group(before: int, after: int) -> nn.Sequential:
    """`[B, before, H, W]` → `[B, after, H / 2, W / 2]`, rounded up."""
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
def compute_features(
    classifier: Classifier | ChannelwiseClassifier, images: Tensor, progress: Progress = no_progress
) -> tuple[Tensor, Tensor]:
    """Return φ(x) `[N, F]` and p(y|x) `[N, K]` of 8-bit images `[N, *shape]`, float64 on the CPU."""
    device, parts, results = next(classifier.parameters()).device, images.split(BATCH), []
    with allow_tf32(False), progress(f"classifier features of {len(images):,} images") as update:
        for step, part in enumerate(parts, start=1):
            results.append(classifier.features(pixels(part.to(device))))
            update(step, len(parts))
        features = torch.cat(results)
        logits = classifier.logits(features)
    # float64 only on the CPU: not every device has it.
    return features.cpu().double(), logits.cpu().double().softmax(1)


# ---------------------------------------------------------------------------------------------------------------------
# On disk


@dataclass(frozen=True)
class StoredClassifier:
    """A classifier with what its file says of its training."""

    classifier: Classifier | ChannelwiseClassifier
    dataset: str
    training: Mapping[str, Any]  # fields of ClassifierTraining
    accuracy: float
    split: str  # of the accuracy: "test", "held out" or "training"
    checksum: str  # of the file, SHA-256


def apply_channelwise(stored: StoredClassifier, shape: tuple[int, ...]) -> StoredClassifier:
    """Return a classifier of each channel of images of `shape`, or `stored` itself if it is not for such channels."""
    single = stored.classifier
    if not isinstance(single, Classifier) or single.shape != (1, *shape[1:]):
        return stored
    return replace(stored, classifier=ChannelwiseClassifier(single, shape[0]))


def cache_path(images: Images) -> Path:
    """Return where the classifier of these images is kept: in the cache, by fingerprints of images and labels."""
    labels = images.labels()
    classes = "unlabelled" if labels is None else labels.fingerprint
    name = f"{safe_name(images.label)}_{images.fingerprint}_{classes}_{FORMAT}.pt"
    return cache_folder() / "classifiers" / name


def save_classifier(path: Path, contents: Mapping[str, Any]) -> None:
    """Write the contents, and their checksum beside them. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bundles.write_with_checksum(path, bundles.serialize({"format": FORMAT, **contents}))


def load_classifier(path: Path) -> StoredClassifier:
    """Load a stored classifier, on the CPU. Raises CheckpointError for a file that is missing, damaged or another."""
    if not path.exists():
        raise CheckpointError(f"{path} is not there; train one: gantrain evaluate dataset=NAME classifier={path}")
    bundle, checksum = bundles.load_verified(path, "classifier", remedy="delete it")
    remedy = "train another: gantrain evaluate dataset=NAME classifier=NEW_FILE"
    bundles.check_contents(path, bundle, FORMAT, CONTENTS, remedy=remedy)
    shape, classes = tuple(bundle["shape"]), tuple(map(str, bundle["classes"]))
    try:
        with torch.device("meta"):  # takes no memory, however large the numbers in the file
            network = Classifier(shape, classes, bundle["training"]["width"], mirrored=bundle["mirrored"])
        network.load_state_dict(bundle["state"], assign=True)
    except Exception as error:  # of numbers and weights from a file
        raise CheckpointError(f"{path} has weights that do not fit its own description") from error
    network = network.float().to(memory_format=torch.channels_last).requires_grad_(False).eval()
    facts = {key: bundle[key] for key in ("dataset", "training", "accuracy", "split")}
    return StoredClassifier(network, **facts, checksum=checksum)
