"""Distances between sets of features, metrics of nearest neighbours, the support size, and the nearest images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 1024  # rows of the matrix of all pairs that are in memory at once
PR_NEIGHBOURS = 3  # the k of precision and recall, as in their paper
DC_NEIGHBOURS = 5  # the k of density and coverage, as in theirs
DUPLICATE_SHARE = 0.01  # of real images, which are as near to their neighbour as duplicates are
TIE = 1e-12  # of the largest squared norm: squared distances that differ by less are equal but for rounding


def frechet_distance(real: Tensor, samples: Tensor) -> float:
    """Return the squared Fréchet distance between the Gaussians fitted to two sets of features, `[N, F]` and `[M, F]`:

        ‖μ₁ − μ₂‖² + Tr Σ₁ + Tr Σ₂ − 2 Tr (Σ₁ Σ₂)^½.

    With Inception features it is the FID (Heusel et al. 2017, arXiv 1706.08500, equation 6). Its bias falls as 1/N: it
    is above 0 for two sets from one distribution, so only values of the same N and M can be compared.
    """
    (mean, factor), (other_mean, other_factor) = _moments(real), _moments(samples)
    # Tr (Σ₁Σ₂)^½ is the sum of the singular values of R₁R₂ᵀ, which a singular Σ does not disturb.
    cross = torch.linalg.svdvals(factor @ other_factor.T).sum()
    squared = (mean - other_mean).square().sum() + factor.square().sum() + other_factor.square().sum() - 2 * cross
    return max(float(squared), 0.0)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean `[F]`, and an R with RᵀR = Σ, the unbiased covariance: `[min(N, F), F]`."""
    mean = features.double().mean(0)
    centred = (features.double() - mean) / (len(features) - 1) ** 0.5
    return mean, torch.linalg.qr(centred, mode="r").R


def kernel_distance(real: Tensor, samples: Tensor) -> tuple[float, float]:
    """Return the kernel distance of two sets of features, `[N, F]` and `[M, F]`, and its standard error:

        MMD² = E[k(x, x′)] + E[k(y, y′)] − 2 E[k(x, y)],    k(x, y) = (x·y / F + 1)³,

    over all pairs of different points, without bias: it is 0 on average for two sets from one distribution, and may be
    negative. With Inception features it is the KID (Bińkowski et al. 2018, arXiv 1801.01401). The error is the
    jackknife's, leaving out one point of either set, which on average is not too small (Efron and Stein 1981).
    """
    n, m, x, y = len(real), len(samples), real.double(), samples.double()

    def kernel(products: Tensor) -> Tensor:
        return (products / x.shape[1] + 1).pow(3)

    def row_sums(a: Tensor, b: Tensor) -> Tensor:
        """Σⱼ k(aᵢ, bⱼ): `[N]`."""
        return torch.cat([kernel(part @ b.T).sum(1) for part in a.split(BLOCK)])

    def distance(xx: Tensor, yy: Tensor, xy: Tensor, n: int, m: int) -> Tensor:
        """MMD² from the sums over all pairs of n and m points."""
        return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)

    rows_xx, rows_yy = (row_sums(points, points) - kernel(points.square().sum(1)) for points in (x, y))
    rows_xy, rows_yx = row_sums(x, y), row_sums(y, x)
    xx, yy, xy = rows_xx.sum(), rows_yy.sum(), rows_xy.sum()
    without_real = distance(xx - 2 * rows_xx, yy, xy - rows_xy, n - 1, m)  # [N], without each of them
    without_sample = distance(xx, yy - 2 * rows_yy, xy - rows_yx, n, m - 1)
    variance = without_real.var(correction=0) * (n - 1) + without_sample.var(correction=0) * (m - 1)
    return float(distance(xx, yy, xy, n, m)), float(variance.sqrt())


def iterate_squared_distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the squared distances between the rows of x `[N, F]` and of y `[M, F]`, a block of rows of x at a time.

    They are ‖x‖² + ‖y‖² − 2 x·y, many times faster than from differences and with a rounding error of some 1e-15 of the
    largest ‖x‖² or ‖y‖². So that this is small, and for a tolerance, x and y come from `centre_points`.
    """
    norms = squared_norms(y)
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        squared = torch.addmm(norms, x[rows], y.T, alpha=-2).add_(squared_norms(x[rows])[:, None]).clamp_(min=0)
        if x is y:
            squared[:, rows].fill_diagonal_(0)
        yield rows, squared


def centre_points(*sets: Tensor) -> tuple[list[Tensor], float]:
    """Return the sets minus the mean of the first, in float64, and the tolerance within which two squared distances
    count as equal.
    """
    centre = sets[0].mean(0, dtype=torch.float64)
    centred = [points.to(torch.float64, copy=True).sub_(centre) for points in sets]
    return centred, TIE * max(float(squared_norms(points).max()) for points in centred)


def squared_norms(points: Tensor) -> Tensor:
    """Return the squared norms of the rows of `[N, F]`, without the copy in memory that squares would be: `[N]`."""
    return torch.einsum("nf,nf->n", points, points)


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
    (real, samples), tolerance = centre_points(real, samples)
    real_radii, sample_radii = (squared_neighbour_distances(points) + tolerance for points in (real, samples))
    ball_counts = torch.zeros(len(samples))
    precise = torch.zeros(len(samples), dtype=torch.bool)
    recalled, covered = (torch.zeros(len(real), dtype=torch.bool) for _ in range(2))
    for rows, between in iterate_squared_distances(samples, real):
        precise[rows] = (between <= real_radii[:, PR_NEIGHBOURS - 1]).any(1)
        recalled |= (between <= sample_radii[rows, PR_NEIGHBOURS - 1, None]).any(0)
        inside = between <= real_radii[:, DC_NEIGHBOURS - 1]
        ball_counts[rows] = inside.sum(1).float()
        covered |= inside.any(0)
    return PRDC(
        precision=float(precise.double().mean()),
        density=float(ball_counts.double().mean()) / DC_NEIGHBOURS,
        recall=float(recalled.double().mean()),
        coverage=float(covered.double().mean()),
    )


def squared_neighbour_distances(points: Tensor) -> Tensor:
    """Return squared distances of each point to its 1st, 2nd, … 5th nearest other one: `[N, 5]`, of `[N, F]`, N > 5."""
    # The nearest of all is the point itself, or one at the same place.
    nearest = [
        rows.topk(DC_NEIGHBOURS + 1, largest=False).values[:, 1:]
        for _, rows in iterate_squared_distances(points, points)
    ]
    return torch.cat(nearest)


def mean_distance(points: Tensor) -> float:
    """Return the mean Euclidean distance of two different points, over all pairs of `[N, F]`."""
    (centred,), _ = centre_points(points)
    total = sum(float(rows.sqrt().sum()) for _, rows in iterate_squared_distances(centred, centred))
    return total / (len(points) * (len(points) - 1))


def support_size(samples: Tensor, real: Tensor) -> tuple[float, float]:
    """Estimate the number of distinct images that the generator can make, and its ratio to the same estimate for real
    images.

    n draws from S equally likely ones hold n(n − 1)/2S equal pairs on average, the birthday paradox (Arora and Zhang
    2017, arXiv 1706.08224, who judged by eye), so that S is all pairs by those that are duplicates. Here a pair is a
    duplicate if it is as close as the closest 1 % of real images are to their nearest other one; without duplicates the
    number of pairs is a lower bound. The same estimate of the real images, which should be as many as the samples, is
    what the ratio is to. Images, samples `[M, P]` and real `[N, P]`, are given by their 8-bit pixels.
    """
    (real, samples), tolerance = centre_points(real, samples)
    nearest = squared_neighbour_distances(real)[:, 0]
    threshold = nearest.quantile(DUPLICATE_SHARE) + tolerance

    def estimate_size(images: Tensor, count: int) -> float:
        pairs = sum(int((rows <= threshold).sum()) for _, rows in iterate_squared_distances(images, images))
        duplicates = (pairs - len(images)) / 2  # without each image and itself
        return count * (count - 1) / 2 / max(duplicates, 1)

    size = estimate_size(samples, len(samples))
    close = real[nearest <= threshold]  # all other images are in no duplicate pair
    return size, size / estimate_size(close, len(real))


def find_nearest(images: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` candidates nearest to each image, the nearest first: int64 `[M, count]`.

    Distances are Euclidean, of the 8-bit pixels `[M, P]` of images and `[N, P]` of candidates.
    """
    # Distances by matrix products are wrong by more than those of near copies.
    measure = partial(torch.cdist, images.float(), compute_mode="donot_use_mm_for_euclid_dist")
    distances = torch.cat([measure(part.float()) for part in candidates.split(BLOCK)], dim=1)
    return distances.topk(count, largest=False).indices
