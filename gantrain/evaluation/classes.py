"""What a classifier, or the modes of a known density, say of samples: how sure it is of each, and which classes are
over- and under-represented among them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gantrain.data.mixtures import Mixture

MISSING = 0.1  # of its share of the data: with less, a class counts as missing
HIGH_QUALITY = 3.0  # standard deviations from the nearest mode


def inception_score(probabilities: Tensor) -> float:
    """exp E KL(p(y|x) ‖ p(y)), between 1 and the number of classes, from p(y|x) `[N, K]`; p(y) is its mean over x.

    With the Inception network it is the Inception score (Salimans et al. 2016, arXiv 1606.03498), here over all samples
    at once. It is high where samples look like one class each and all classes occur; it never looks at real images.
    """
    probabilities = probabilities.double()
    return math.exp(float(_entropy(probabilities.mean(0)) - _entropy(probabilities).mean()))


def _entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(-1)


def histogram(probabilities: Tensor) -> Tensor:
    """How many images look most like each class: int64 `[K]`, from p(y|x) `[N, K]`."""
    return probabilities.argmax(1).bincount(minlength=probabilities.shape[1])


def entropy(counts: Tensor) -> float:
    """−Σ q log q of the shares q of the classes, in nats: log K where K classes are equally frequent."""
    return float(_entropy(_shares(counts)))


def total_variation(counts: Tensor, data: Tensor) -> float:
    """½ Σ |q − p| of the shares q of samples' classes and p of the data's: the least share of samples that would have
    to be of another class."""
    return float((_shares(counts) - _shares(data)).abs().sum()) / 2


def kl(counts: Tensor, data: Tensor) -> float:
    """Σ q log(q/p), samples' classes q from the data's p, in nats; ∞ where samples have a class that data do not.

    From equal shares it is what is reported for Stacked MNIST (Metz et al. 2017, arXiv 1611.02163).
    """
    samples, shares = _shares(counts), _shares(data)
    return float((torch.xlogy(samples, samples) - torch.xlogy(samples, shares)).sum())


def missing(counts: Tensor, data: Tensor) -> list[int]:
    """The classes of the data with less than a tenth of their share among samples; fewer than that are what a good
    classifier mistakes for them."""
    samples, shares = _shares(counts), _shares(data)
    return torch.nonzero((shares > 0) & ~(samples >= MISSING * shares)).flatten().tolist()


def _shares(counts: Tensor) -> Tensor:
    """Shares of the sum, NaN where it is 0."""
    return counts.double() / counts.sum()


def modes(points: Tensor, mixture: Mixture) -> Tensor:
    """How many points `[N, d]` lie within 3σ of each mode, for which it is the nearest: int64 `[K]`.

    The protocol of ALI and VEEGAN (Dumoulin et al. 2016, arXiv 1606.00704; Srivastava et al. 2017, arXiv 1705.07761): a
    mode is found if one point is so near, and the share of all such points is that of high quality. Of a Gaussian in
    the plane 1 − e^(−9/2) = 98.9 % lie there.
    """
    means = torch.tensor(mixture.means, dtype=torch.float64)
    stds = torch.tensor(mixture.stds, dtype=torch.float64)
    near, mode = (torch.cdist(points.double(), means) / stds).min(1)
    return mode[near <= HIGH_QUALITY].bincount(minlength=len(means))
