"""Distances between two sets of features: Fréchet, of the Gaussians fitted to them, and kernel, of mean embeddings."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 1024  # rows of the matrix of all pairs that are in memory at once


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
    """Return the mean `[F]`, and R with RᵀR = Σ, the unbiased covariance: centred points or Σ's root, the smaller."""
    count, size = features.shape
    mean = features.double().mean(0)
    centred = (features.double() - mean) / (count - 1) ** 0.5
    return mean, centred if count < size else _root(centred.T @ centred)


def _root(covariance: Tensor) -> Tensor:
    """Return the symmetric square root; eigenvalues that rounding made negative count as 0."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def kernel_distance(real: Tensor, samples: Tensor) -> tuple[float, float]:
    """Return the kernel distance of two sets of features, `[N, F]` and `[M, F]`, and its standard error:

        MMD² = E[k(x, x′)] + E[k(y, y′)] − 2 E[k(x, y)],    k(x, y) = (x·y / F + 1)³,

    over all pairs of different points, without bias: it is 0 on average for two sets from one distribution, and may be
    negative. With Inception features it is the KID (Bińkowski et al. 2018, arXiv 1801.01401). The error is the
    jackknife's, leaving out one point of either set, which on average is not too small (Efron and Stein 1981).
    """
    real, samples = real.double(), samples.double()
    within, between = _row_sums(real, real) - _self_kernel(real), _row_sums(real, samples)
    other_within, other_between = _row_sums(samples, samples) - _self_kernel(samples), _row_sums(samples, real)
    n, m = len(real), len(samples)

    def mean_square(sums: Tensor, size: int) -> Tensor:
        """Return the mean over pairs, `[1 + size]`: of all points, then without each."""
        total = sums.sum()
        without = (total - 2 * sums) / ((size - 1) * (size - 2))
        return torch.cat([total.view(1) / (size * (size - 1)), without])

    def mean_product(sums: Tensor, size: int, other: int) -> Tensor:
        total = sums.sum()
        return torch.cat([total.view(1) / (size * other), (total - sums) / ((size - 1) * other)])

    within_real, within_samples = mean_square(within, n), mean_square(other_within, m)
    without_real = within_real[1:] + within_samples[0] - 2 * mean_product(between, n, m)[1:]
    without_sample = within_real[0] + within_samples[1:] - 2 * mean_product(other_between, m, n)[1:]
    value = within_real[0] + within_samples[0] - 2 * mean_product(between, n, m)[0]
    variance = without_real.var(correction=0) * (n - 1) + without_sample.var(correction=0) * (m - 1)
    return float(value), float(variance.sqrt())


def _row_sums(x: Tensor, y: Tensor) -> Tensor:
    """Σⱼ k(xᵢ, yⱼ): `[N]`."""
    return torch.cat([(part @ y.T / x.shape[1] + 1).pow(3).sum(1) for part in x.split(BLOCK)])


def _self_kernel(x: Tensor) -> Tensor:
    return (x.square().sum(1) / x.shape[1] + 1).pow(3)


def iterate_distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the Euclidean distances between the rows of x `[N, F]` and of y `[M, F]`, a block of rows of x at a time.

    They are computed from differences, not products: each value is the same to the last bit in every block and order.
    """
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        yield rows, torch.cdist(x[rows].double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
