"""Metrics of nearest neighbours and pairs: precision, recall, density and coverage, the mean distance of samples, the
support size, and the training images nearest to a sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gantrain.evaluation.distances import BLOCK, iterate_distances

PR_NEIGHBOURS = 3  # the k of precision and recall, as in their paper
DC_NEIGHBOURS = 5  # the k of density and coverage, as in theirs
DUPLICATE_SHARE = 0.01  # of real images, which are as near to their neighbour as duplicates are


class PRDC(NamedTuple):
    """Precision, density, recall and coverage."""

    precision: float
    density: float
    recall: float
    coverage: float


def compute_prdc(real: Tensor, samples: Tensor) -> PRDC:
    """Return precision, density, recall and coverage of samples `[M, F]` against real points `[N, F]`.

    Let B_k(x) be the closed ball around a point that reaches to its k-th nearest other point of the same set.

    - precision: the share of samples in some B₃(real); recall: the share of real points in some B₃(sample)
      (Kynkäänniemi et al. 2019, arXiv 1904.06991).
    - density: the mean over samples of the number of B₅(real) around it, divided by 5, 1 on average for two sets
      from one distribution, and more if samples crowd; coverage: the share of B₅(real) that hold a sample
      (Naeem et al. 2020, arXiv 2002.09797).
    """
    real_radii, sample_radii = neighbour_distances(real), neighbour_distances(samples)
    ball_counts = torch.zeros(len(samples))
    precise = torch.zeros(len(samples), dtype=torch.bool)
    recalled, covered = (torch.zeros(len(real), dtype=torch.bool) for _ in range(2))
    for rows, between in iterate_distances(samples, real):
        precise[rows] = (between <= real_radii[:, PR_NEIGHBOURS - 1]).any(1)
        recalled |= (between <= sample_radii[rows, PR_NEIGHBOURS - 1, None]).any(0)
        inside = between <= real_radii[:, DC_NEIGHBOURS - 1]
        ball_counts[rows] = inside.sum(1).float()
        covered |= inside.any(0)
    return PRDC(
        precision=_share(precise),
        density=float(ball_counts.double().mean()) / DC_NEIGHBOURS,
        recall=_share(recalled),
        coverage=_share(covered),
    )


def neighbour_distances(points: Tensor) -> Tensor:
    """Return the distances from each point to its 1st, 2nd, … 5th nearest other one: `[N, 5]`, of `[N, F]`, N > 5."""
    # The nearest of all is the point itself, or one at the same place.
    return torch.cat(
        [rows.topk(DC_NEIGHBOURS + 1, largest=False).values[:, 1:] for _, rows in iterate_distances(points, points)]
    )


def _share(true: Tensor) -> float:
    return float(true.double().mean())


def mean_distance(points: Tensor) -> float:
    """Return the mean Euclidean distance of two different points, over all pairs of `[N, F]`."""
    total = sum(float(rows.sum()) for _, rows in iterate_distances(points, points))
    return total / (len(points) * (len(points) - 1))


def support_size(samples: Tensor, real: Tensor) -> float:
    """Return how many different samples there are if all are equally likely: pairs by pairs that are duplicates.

    n draws from S equally likely ones hold n(n − 1)/2S equal pairs on average, the birthday paradox (Arora and Zhang
    2017, arXiv 1706.08224, who judged by eye). Here a pair is a duplicate if it is as close as the closest 1 % of real
    images are to their nearest other one; without duplicates the number of pairs is a lower bound. Images, samples
    `[M, P]` and real `[N, P]`, are given by their 8-bit pixels.
    """
    nearest = torch.cat([rows.amin(1) for rows in _squared_distances(real)])
    threshold = nearest.quantile(DUPLICATE_SHARE)
    duplicates = sum(int((rows <= threshold).sum()) for rows in _squared_distances(samples)) / 2
    return len(samples) * (len(samples) - 1) / 2 / max(duplicates, 1)


def _squared_distances(pixels: Tensor) -> Iterator[Tensor]:
    """Yield blocks of squared distances between `[N, P]` 8-bit pixels, ∞ to itself: whole numbers, and so exact."""
    pixels = pixels.double()
    norms = pixels.square().sum(1)
    for start in range(0, len(pixels), BLOCK):
        rows = pixels[start : start + BLOCK]
        squared = norms[start : start + BLOCK, None] + norms - 2 * rows @ pixels.T
        squared.diagonal(start).fill_(torch.inf)
        yield squared


def find_nearest(images: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` candidates nearest to each image, the nearest first: int64 `[M, count]`.

    Distances are Euclidean, of the 8-bit pixels `[M, P]` of images and `[N, P]` of candidates.
    """
    distances = torch.cat([torch.cdist(images.float(), part.float()) for part in candidates.split(BLOCK)], dim=1)
    return distances.topk(count, largest=False).indices
