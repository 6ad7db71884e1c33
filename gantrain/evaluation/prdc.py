"""What single points tell: whether samples lie among real points and real ones among samples, how far samples are from
each other, whether they repeat themselves, and which training images they are most like."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gantrain.evaluation.distances import BLOCK, distances

MANIFOLD = 3  # the k of precision and recall, as in their paper
BALLS = 5  # the k of density and coverage, as in theirs
DUPLICATE = 0.01  # the share of real images that have as near a neighbour as a duplicate has


class Manifolds(NamedTuple):
    """How two clouds lie in each other."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifolds(real: Tensor, samples: Tensor) -> Manifolds:
    """Precision, recall, density and coverage of samples `[M, F]` against real points `[N, F]`.

    Let B_k(x) be the closed ball around a point that reaches to its k-th nearest other point of the same cloud.

    - precision: the share of samples in some B₃(real); recall: the share of real points in some B₃(sample)
      (Kynkäänniemi et al. 2019, arXiv 1904.06991).
    - density: the mean over samples of the number of B₅(real) around it, divided by 5, so 1 on average for two clouds
      of one distribution, and more where samples crowd; coverage: the share of B₅(real) that hold a sample
      (Naeem et al. 2020, arXiv 2002.09797).
    """
    real_radii, sample_radii = radii(real), radii(samples)
    balls_around = torch.zeros(len(samples))
    precise = torch.zeros(len(samples), dtype=torch.bool)
    recalled, covered = (torch.zeros(len(real), dtype=torch.bool) for _ in range(2))
    for rows, between in distances(samples, real):
        precise[rows] = (between <= real_radii[:, MANIFOLD - 1]).any(1)
        recalled |= (between <= sample_radii[rows, MANIFOLD - 1, None]).any(0)
        inside = between <= real_radii[:, BALLS - 1]
        balls_around[rows] = inside.sum(1).float()
        covered |= inside.any(0)
    return Manifolds(
        precision=_share(precise),
        recall=_share(recalled),
        density=float(balls_around.double().mean()) / BALLS,
        coverage=_share(covered),
    )


def radii(points: Tensor) -> Tensor:
    """Distances from each point to its 1st, 2nd, … 5th nearest other one: `[N, 5]`, of points `[N, F]`, N > 5."""
    # The nearest of all is the point itself, or one at the same place.
    return torch.cat([rows.topk(BALLS + 1, largest=False).values[:, 1:] for _, rows in distances(points, points)])


def _share(true: Tensor) -> float:
    return float(true.double().mean())


def mean_distance(points: Tensor) -> float:
    """The mean Euclidean distance of two different points of a cloud `[N, F]`, over all pairs."""
    total = sum(float(rows.sum()) for _, rows in distances(points, points))
    return total / (len(points) * (len(points) - 1))


def support_size(samples: Tensor, real: Tensor) -> float:
    """How many different samples there are, if all were equally likely: the number of pairs by the number of those that
    are duplicates, or at least the number of pairs where none is.

    n draws from S equally likely ones hold n(n − 1)/2S equal pairs on average, the birthday paradox (Arora and Zhang
    2017, arXiv 1706.08224, who judged by eye). Here a pair is a duplicate if it is as close as the closest 1 % of real
    images are to their nearest other one: equal, where that many of the data are. Images, samples `[M, P]` and real
    `[N, P]`, are given by their 8-bit pixels.
    """
    nearest = torch.cat([rows.amin(1) for rows in _squared_distances(real)])
    threshold = nearest.quantile(DUPLICATE)
    duplicates = sum(int((rows <= threshold).sum()) for rows in _squared_distances(samples)) / 2
    return len(samples) * (len(samples) - 1) / 2 / max(duplicates, 1)


def _squared_distances(pixels: Tensor) -> Iterator[Tensor]:
    """Squared distances of each of `[N, P]` 8-bit pixels to all others, ∞ to itself: whole numbers, so exact."""
    pixels = pixels.double()
    norms = pixels.square().sum(1)
    for start in range(0, len(pixels), BLOCK):
        rows = pixels[start : start + BLOCK]
        squared = norms[start : start + BLOCK, None] + norms - 2 * rows @ pixels.T
        squared.diagonal(start).fill_(torch.inf)
        yield squared


def nearest(images: Tensor, among: Tensor, count: int) -> Tensor:
    """The indices of the `count` images of `among`, 8-bit pixels `[N, P]`, nearest to each of `images` `[M, P]` in
    Euclidean distance of pixels, the nearest first: int64 `[M, count]`."""
    squared = torch.cat([torch.cdist(images.float(), part.float()) for part in among.split(BLOCK)], dim=1)
    return squared.topk(count, largest=False).indices
