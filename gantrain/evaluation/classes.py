"""Metrics of classes: how certain a classifier is of each sample, and how often each class or mode occurs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gantrain.data.mixtures import Mixture

MISSING_SHARE = 0.1  # a class with less than this part of its share of the data is missing
HIGH_QUALITY = 3.0  # standard deviations from the nearest mode


def inception_score(probabilities: Tensor) -> float:
    """Return exp E KL(p(y|x) ‖ p(y)), between 1 and K, from p(y|x) `[N, K]`; p(y) is its mean over x.

    With the Inception network it is the Inception score (Salimans et al. 2016, arXiv 1606.03498), here over all samples
    at once. It is high if each sample looks like one class and all classes occur; it never looks at real images.
    """
    probabilities = probabilities.double()
    return math.exp(float(entropy(probabilities.mean(0)) - entropy(probabilities).mean()))


def count_classes(probabilities: Tensor) -> Tensor:
    """Count the images whose most probable class is each of the K: int64 `[K]`, from p(y|x) `[N, K]`."""
    return probabilities.argmax(1).bincount(minlength=probabilities.shape[1])


def entropy(counts: Tensor) -> Tensor:
    """Return −Σ q log q of the shares q of K classes, in nats: log K if all are equally frequent. `[…, K]` → `[…]`."""
    return torch.special.entr(_shares(counts)).sum(-1)


def total_variation(counts: Tensor, data: Tensor) -> float:
    """Return ½ Σ |q − p| of the shares q of the classes of samples and p of the data."""
    return float((_shares(counts) - _shares(data)).abs().sum()) / 2


def kl_divergence(counts: Tensor, data: Tensor) -> float:
    """Return Σ q log(q/p), in nats, of the shares q of the classes of samples and p of the data.

    It is ∞ if samples have a class that the data do not. For equal p it is what is reported for Stacked MNIST (Metz et
    al. 2017, arXiv 1611.02163).
    """
    samples, shares = _shares(counts), _shares(data)
    return float((torch.xlogy(samples, samples) - torch.xlogy(samples, shares)).sum())


def find_missing(counts: Tensor, data: Tensor) -> list[int]:
    """Return the classes that have less than a tenth of their share of the data among samples.

    Not only those without any: even a good classifier mistakes a few samples for a class that the generator misses.
    """
    samples, shares = _shares(counts), _shares(data)
    return torch.nonzero((shares > 0) & ~(samples >= MISSING_SHARE * shares)).flatten().tolist()


def _shares(counts: Tensor) -> Tensor:
    """Shares of the sum over the last dimension, NaN if it is 0."""
    return counts.double() / counts.sum(-1, keepdim=True)


def count_modes(points: Tensor, mixture: Mixture) -> Tensor:
    """Count the points `[N, d]` within 3σ of each mode, where it is their nearest one: int64 `[K]`.

    The protocol of VEEGAN (Srivastava et al. 2017, arXiv 1705.07761): a mode is found if at least one point is this
    near, and such points are of high quality. 1 − e^(−9/2) = 98.9 % of the draws of a Gaussian in the plane are.
    """
    means = torch.tensor(mixture.means, dtype=torch.float64)
    stds = torch.tensor(mixture.stds, dtype=torch.float64)
    deviations, mode = (torch.cdist(points.double(), means) / stds).min(1)
    return mode[deviations <= HIGH_QUALITY].bincount(minlength=len(means))


def assign_modes(points: Tensor, mixture: Mixture) -> Tensor:
    """Count the points `[N, d]` of which each mode has the largest responsibility, however far they are: int64 `[K]`.

    The protocol of ALI (Dumoulin et al. 2016, arXiv 1606.00704, section 4.5), in which a mode is dropped if no sample
    is assigned to it.
    """
    return mixture.log_components(points.double()).argmax(1).bincount(minlength=len(mixture.means))
