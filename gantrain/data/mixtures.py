"""Densities that are known exactly: mixtures of isotropic Gaussians,

    p(x) = Σₖ wₖ N(x; μₖ, σₖ² I).

They make what a GAN learned checkable, since p and with it every divergence can be computed. `PointMass`, their limit
for σ → 0, has no density any more.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from gantrain.errors import ConfigError
from gantrain.seeding import stream_generator

if TYPE_CHECKING:
    import torch


class Mixture(NamedTuple):
    """The parameters of K Gaussians in d dimensions."""

    weights: tuple[float, ...]  # [K], summing to 1
    means: tuple[tuple[float, ...], ...]  # [K, d]
    stds: tuple[float, ...]  # [K]


class Density:
    """A stream of draws from a mixture; the contract is `gantrain.data.Dataset`, and `log_density` besides."""

    size: int | None = None
    has_held_out = True
    skipped = 0

    def __init__(
        self, name: str, label: str, mixture: Mixture, *, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        import torch

        self.name = name
        self.label = label
        self.mixture = mixture
        self.shape: tuple[int, ...] = (len(mixture.means[0]),)
        self.fingerprint = hashlib.blake2b(repr(mixture).encode(), digest_size=8).hexdigest()
        self._seed = seed
        self._device = torch.device(device)
        self._means = torch.tensor(mixture.means, device=device)  # [K, d]
        self._stds = torch.tensor(mixture.stds, device=device)  # [K]
        # Upper edges of the components' shares of [0, 1); the last one is 1 and never looked up.
        self._edges = torch.tensor(mixture.weights, dtype=torch.float64).cumsum(0)[:-1].to(device, torch.float32)

    def batch(self, clock: int, batch_size: int) -> torch.Tensor:
        """Draws clock … clock + B − 1: float32 `[B, d]`."""
        return self._draw(batch_size, stream_generator(self._seed, "batch", clock, device=self._device))

    def held_out(self, count: int) -> torch.Tensor:
        """Draws that training never sees, the same for the same count: float32 `[count, d]`."""
        return self._draw(count, stream_generator(self._seed, "held_out", device=self._device))

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x), exact: `[N, d]` → `[N]`, in the precision of x."""
        import torch

        weights, means, stds = (torch.tensor(part, dtype=x.dtype, device=x.device) for part in self.mixture)
        distances = (x[:, None, :] - means).square().sum(-1) / stds.square()  # [N, K]
        log_norms = x.shape[1] * (stds.log() + 0.5 * math.log(2 * math.pi))  # [K]
        return torch.logsumexp(weights.log() - log_norms - distances / 2, dim=1)

    def _draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        import torch

        uniform = torch.rand(count, generator=generator, device=self._device)
        component = torch.bucketize(uniform, self._edges, right=True)
        normal = torch.randn(count, *self.shape, generator=generator, device=self._device)
        return self._means[component] + self._stds[component, None] * normal


class PointMass:
    """All data at the origin of d dimensions; the contract is `gantrain.data.Dataset`."""

    size: int | None = None
    has_held_out = True
    skipped = 0

    def __init__(self, name: str, label: str, dimensions: int, *, device: torch.device | str = "cpu") -> None:
        self.name = name
        self.label = label
        self.shape: tuple[int, ...] = (dimensions,)
        self.fingerprint = hashlib.blake2b(f"origin {dimensions}".encode(), digest_size=8).hexdigest()
        self._device = device

    def batch(self, clock: int, batch_size: int) -> torch.Tensor:
        """Zeros, at every clock: float32 `[B, d]`."""
        return self.held_out(batch_size)

    def held_out(self, count: int) -> torch.Tensor:
        """Zeros: float32 `[count, d]`."""
        import torch

        return torch.zeros(count, *self.shape, device=self._device)


def mixture1d(
    weights: Sequence[float] = (0.6, 0.4), means: Sequence[float] = (-1.5, 2.0), stds: Sequence[float] = (0.6, 0.8)
) -> Mixture:
    """Gaussians on the line, by default .6 N(−1.5, .6) + .4 N(2, .8); weights are divided by their sum.

    Raises ConfigError unless the three lists have one length, are finite, and weights and stds are positive.
    """
    if not len(weights) == len(means) == len(stds) > 0:
        raise ConfigError(
            "dataset.weights, dataset.means and dataset.stds need one entry a component each; "
            f"found {len(weights)}, {len(means)} and {len(stds)}"
        )
    if not all(math.isfinite(value) for value in (*weights, *means, *stds)) or min(*weights, *stds) <= 0:
        raise ConfigError(
            "dataset.weights and dataset.stds must be positive and dataset.means finite; "
            f"found {list(weights)}, {list(stds)} and {list(means)}"
        )
    total = math.fsum(weights)
    shares = tuple(float(weight) / total for weight in weights)
    return Mixture(shares, tuple((float(mean),) for mean in means), tuple(float(std) for std in stds))


def ring() -> Mixture:
    """Eight Gaussians of σ = 0.02, evenly on a circle of radius 2 (Metz et al. 2017, arXiv 1611.02163, appendix A)."""
    angles = [2 * math.pi * k / 8 for k in range(8)]
    return _even([(2 * math.cos(angle), 2 * math.sin(angle)) for angle in angles], std=0.02)


def grid25() -> Mixture:
    """25 Gaussians of σ = 0.05 on the grid {−4, −2, 0, 2, 4}² (ALI: Dumoulin et al. 2016, arXiv 1606.00704)."""
    steps = (-4.0, -2.0, 0.0, 2.0, 4.0)
    return _even([(x, y) for x in steps for y in steps], std=0.05)


def _even(means: Sequence[tuple[float, ...]], std: float) -> Mixture:
    """Components of equal weight and width."""
    count = len(means)
    return Mixture((1 / count,) * count, tuple(means), (std,) * count)
