"""Statistical inference from independent draws: averages, heavy tails, logistic regression, limits and a test.

Draws are float64 tensors [N]; everything is deterministic.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

NEWTON_STEPS = 50
PLATT_SLOPES = (1 / 20, 20.0)  # range of a


class Value(NamedTuple):
    """An average over draws and its standard error, which is inf where the variance is infinite."""

    mean: float
    error: float

    def plus(self, other: Value) -> Value:
        """Return the sum of independent averages."""
        return Value(self.mean + other.mean, math.hypot(self.error, other.error))

    def minus(self, other: Value) -> Value:
        """Return the difference of independent averages."""
        return self.plus(other._replace(mean=-other.mean))


def average(values: Tensor, k: float = math.nan, power: float = 0.0) -> Value:
    """Return the mean and its standard error.

    The error is inf if `power * k >= 1`: values² grow like w^power, where the weights w have a generalized Pareto tail
    of shape k.
    """
    mean = float(values.mean())
    if len(values) < 2:
        return Value(mean, math.nan)
    is_infinite = power > 0 and power * k >= 1
    return Value(mean, math.inf if is_infinite else math.sqrt(float(values.var()) / len(values)))


def average_halves(a: Value, b: Value) -> Value:
    """Return the mean of the averages over both halves."""
    return Value((a.mean + b.mean) / 2, math.hypot(a.error, b.error) / 2)


def pareto_k(log_weights: Tensor) -> float:
    """Return the shape k of a generalized Pareto distribution fitted to the largest weights; NaN if they are too few.

    Moments of order 1/k and above are infinite. The estimator is that of Zhang and Stephens 2009, with the prior and
    the tail of Vehtari et al. 2024 (Pareto smoothed importance sampling): the largest min(N/5, 3√N) weights.
    """
    import torch

    count = math.ceil(min(len(log_weights) / 5, 3 * math.sqrt(len(log_weights))))
    if count < 5:
        return math.nan
    largest = log_weights.topk(count + 1).values.flip(0)
    weights = (largest - largest[-1]).exp()
    x = weights[1:] - weights[0]  # ascending
    if not 0 < x[-1] < math.inf:  # equal weights, or not numbers
        return math.nan
    size = 30 + math.isqrt(count)
    grid = 1 - (size / (torch.arange(size, dtype=x.dtype) + 0.5)).sqrt()
    b = grid / (3 * x[int(count / 4 + 0.5) - 1].clamp(min=1e-300)) + 1 / x[-1]
    k = (-b[:, None] * x).log1p().mean(1)
    log_likelihood = count * ((-b / k).log() - k - 1)
    mean_b = (log_likelihood.softmax(0) * b).sum()
    return float((count * (-mean_b * x).log1p().mean() + 5) / (count + 10))


def fit_logistic(x: Tensor, targets: Tensor, weights: Tensor, offset: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the coefficients w [K] of σ(w x + offset), fitted to targets [N] in (0, 1), and the draws' influence on w.

    `x` is [K, N], of size around 1. The weighted cross-entropy is minimised by Newton's method with halved steps. The
    influence is −H⁻¹ s [K, N] with the draws' scores s and the Hessian H, so that its square is the robust covariance.
    """
    import torch
    from torch.nn.functional import softplus

    def cross_entropy(z: Tensor) -> float:
        return float(weights @ softplus(z) - weights @ (targets * z))

    w, ridge = x.new_zeros(len(x)), 1e-12 * torch.eye(len(x), dtype=x.dtype)
    z = w @ x + offset
    loss = cross_entropy(z)
    for _ in range(NEWTON_STEPS):
        share = z.sigmoid()
        scores = weights * (share - targets) * x
        hessian = (weights * share * (1 - share) * x) @ x.T + ridge
        step = torch.linalg.solve(hessian, scores.sum(1))
        while (new := cross_entropy(z := (w - step) @ x + offset)) > loss and step.abs().max() > 1e-10:
            step = step / 2
        if step.abs().max() <= 1e-10:
            break
        w, loss = w - step, new
    return w, -torch.linalg.solve(hessian, scores)


class Line(NamedTuple):
    """a·r + b, the influence [2, N] and [2, M] of every draw on a and b, and a with its error before it was limited."""

    a: float
    b: float
    influence: tuple[Tensor, Tensor]
    slope: Value


def fit_platt(real: Tensor, fake: Tensor) -> Line:
    """Fit σ(a·r + b), the probability of data at r. `real` [N] and `fake` [M] weigh the same: a·r + b is a log-ratio.

    The targets are those of Platt 1999, (N + 1)/(N + 2) for data and 1/(M + 2) for samples; a stays in PLATT_SLOPES.
    """
    import torch

    (n, m), x = (len(real), len(fake)), torch.cat([real, fake])
    scale = float(x.std()) or 1.0
    targets = torch.cat([torch.full_like(real, (n + 1) / (n + 2)), torch.full_like(fake, 1 / (m + 2))])
    weights = torch.cat([torch.full_like(real, 1 / n), torch.full_like(fake, 1 / m)])
    ones = torch.ones_like(x)
    (a, b), influence = fit_logistic(torch.stack([x / scale, ones]), targets, weights)
    influence[0] /= scale
    slope = Value(float(a) / scale, float(influence[0].norm()))
    limited = min(max(slope.mean, PLATT_SLOPES[0]), PLATT_SLOPES[1])
    if limited != slope.mean:
        (b,), influence[1:] = fit_logistic(ones[None], targets, weights, offset=limited * x)
        influence[0] = 0
    return Line(limited, float(b), (influence[:, :n], influence[:, n:]), slope)


def bernstein_deviation(draws: Tensor, width: float, level: float) -> float:
    """Return what the mean of two or more draws may exceed its expectation by, but for a probability `level`.

    The draws lie in an interval of `width`: √(2 V log(2/level)/N) + 7 width log(2/level)/(3(N − 1)), with the sample
    variance V (Maurer and Pontil 2009, theorem 4).
    """
    term, count = math.log(2 / level), len(draws)
    return math.sqrt(2 * float(draws.var()) * term / count) + 7 * width * term / (3 * (count - 1))


def compare_ranks(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """Return P(real > fake) + ½ P(real = fake) and the one-sided p-value that it is ½, of draws [N] and [M].

    The test of Mann and Whitney 1947 in its normal approximation with the correction for ties. Of equal distributions
    all orders of the N + M draws are equally probable.
    """
    import torch

    n, m = len(real), len(fake)
    ordered = fake.sort().values
    below, up_to = (torch.searchsorted(ordered, real, side=side).double().sum() for side in ("left", "right"))
    area = float(below + up_to) / (2 * n * m)
    ties = torch.cat([real, fake]).unique(return_counts=True)[1].double()
    total = n + m
    spread = total + 1 - float((ties**3 - ties).sum()) / (total * (total - 1))
    if spread <= 0:  # all draws are equal
        return area, 1.0
    return area, math.erfc((area - 0.5) * math.sqrt(6 * n * m / spread)) / 2
