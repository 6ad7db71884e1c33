"""Densities that are known exactly: mixtures of isotropic Gaussians,

    p(x) = Σₖ wₖ N(x; μₖ, σₖ² I).

Every divergence between p and a known generator can be computed, so that results can be verified. `Mixture` is the
density itself, `Density` a dataset of draws from it. `PointMass`, the limit for σ → 0, has no density.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

from gantrain.data.images import Batch
from gantrain.distributed import WHOLE, Part
from gantrain.errors import ConfigError
from gantrain.seeding import stream_generator

if TYPE_CHECKING:
    import torch


class Mixture(NamedTuple):
    """A mixture of K isotropic Gaussians in d dimensions.

    `mean`, `std`, `mass` and `rescaled` are for mixtures on the line (d = 1).
    """

    weights: tuple[float, ...]  # [K], summing to 1
    means: tuple[tuple[float, ...], ...]  # [K, d]
    stds: tuple[float, ...]  # [K]

    @property
    def dimensions(self) -> int:
        """d, the number of coordinates."""
        return len(self.means[0])

    @property
    def line_means(self) -> tuple[float, ...]:
        """The means of a mixture on the line, `[K]`. Raises ValueError in more dimensions."""
        return tuple(mean for (mean,) in self.means)

    @property
    def mean(self) -> float:
        """E[x]."""
        return math.fsum(w * m for w, m in zip(self.weights, self.line_means, strict=True))

    @property
    def std(self) -> float:
        """√Var[x]."""
        mean, components = self.mean, zip(self.weights, self.line_means, self.stds, strict=True)
        return math.sqrt(math.fsum(w * (s**2 + (m - mean) ** 2) for w, m, s in components))

    def mass(self, low: float, high: float) -> float:
        """Return P(low < x < high)."""
        components = zip(self.weights, map(NormalDist, self.line_means, self.stds), strict=True)
        return math.fsum(weight * (normal.cdf(high) - normal.cdf(low)) for weight, normal in components)

    def rescaled(self, shift: float, scale: float) -> Mixture:
        """Return the density of (x − shift) / scale."""
        means = tuple(((mean - shift) / scale,) for mean in self.line_means)
        return Mixture(self.weights, means, tuple(std / scale for std in self.stds))

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        """Return log p(x): `[N, d]` → `[N]`, on the line `[N]` → `[N]` too; in the precision and on the device of x."""
        return self.log_components(x[:, None] if x.dim() == 1 else x).logsumexp(1)

    def log_components(self, x: torch.Tensor) -> torch.Tensor:
        """Return log wₖ N(x; μₖ, σₖ² I), the log responsibilities but for log p(x): `[N, d]` → `[N, K]`."""
        import torch

        weights, means, stds = (torch.tensor(part, dtype=x.dtype, device=x.device) for part in self)
        distances = (x[:, None, :] - means).square().sum(-1) / stds.square()  # [N, K]
        log_norms = self.dimensions * (stds.log() + 0.5 * math.log(2 * math.pi))  # [K]
        return weights.log() - log_norms - distances / 2

    def sample(self, count: int, generator: torch.Generator, device: torch.device | str | None = None) -> torch.Tensor:
        """Return independent draws: float32 `[count, d]`, on `device`, which is the generator's by default."""
        import torch

        device = torch.device(device or generator.device)
        edges, means, stds = _sampling_tensors(self, device)
        uniform = torch.rand(count, generator=generator, device=device)
        component = torch.bucketize(uniform, edges, right=True)
        normal = torch.randn(count, self.dimensions, generator=generator, device=device)
        return means[component] + stds[component, None] * normal


@lru_cache(maxsize=64)  # a copy to a GPU at every draw would make the host wait
def _sampling_tensors(mixture: Mixture, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the upper edges of the components' shares of [0, 1) `[K − 1]`, means `[K, d]` and stds `[K]`, float32."""
    import torch

    edges = torch.tensor(mixture.weights, dtype=torch.float64).cumsum(0)[:-1].to(device, torch.float32)
    means, stds = (torch.tensor(part, dtype=torch.float32, device=device) for part in (mixture.means, mixture.stds))
    return edges, means, stds


def gaussian(mean: float | Sequence[float], std: float) -> Mixture:
    """Return N(mean, std² I), on the line if `mean` is a number."""
    means = mean if isinstance(mean, Sequence) else (mean,)
    return Mixture((1.0,), (tuple(map(float, means)),), (float(std),))


def mixture1d(
    weights: Sequence[float] = (0.6, 0.4), means: Sequence[float] = (-1.5, 2.0), stds: Sequence[float] = (0.6, 0.8)
) -> Mixture:
    """Return Gaussians on the line, by default .6 N(−1.5, .6) + .4 N(2, .8); weights are divided by their sum.

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


def ring(std: float = 0.02) -> Mixture:
    """Return eight Gaussians, evenly on a circle of radius 2 (Metz et al. 2017, arXiv 1611.02163, appendix A)."""
    angles = [2 * math.pi * k / 8 for k in range(8)]
    return _even_mixture([(2 * math.cos(angle), 2 * math.sin(angle)) for angle in angles], std)


def grid25(std: float = 0.05) -> Mixture:
    """Return 25 Gaussians on the grid {−4, −2, 0, 2, 4}² (ALI: Dumoulin et al. 2016, arXiv 1606.00704)."""
    steps = (-4.0, -2.0, 0.0, 2.0, 4.0)
    return _even_mixture([(x, y) for x in steps for y in steps], std)


def _even_mixture(means: Sequence[tuple[float, ...]], std: float) -> Mixture:
    count = len(means)
    return Mixture((1 / count,) * count, tuple(means), (std,) * count)


class Density:
    """A stream of draws from a mixture; the contract is `gantrain.data.Dataset`, and `log_density` besides."""

    size: int | None = None
    has_held_out = True
    skipped = 0

    def __init__(
        self, name: str, label: str, mixture: Mixture, *, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        self.name = name
        self.label = label
        self.mixture = mixture
        self.shape: tuple[int, ...] = (mixture.dimensions,)
        self.fingerprint = hashlib.blake2b(repr(mixture).encode(), digest_size=8).hexdigest()
        self._seed = seed
        self._device = device

    def batch(self, clock: int, batch_size: int, part: Part = WHOLE) -> Batch:
        """Draws clock … clock + B − 1, or a part of them: float32 `[B, d]`."""
        generator = stream_generator(self._seed, "batch", clock, device=self._device)
        return Batch(part.take(self.mixture.sample(batch_size, generator, self._device)))

    def held_out(self, count: int) -> torch.Tensor:
        """Return draws that training never sees, the same for the same count: float32 `[count, d]`."""
        generator = stream_generator(self._seed, "held_out", device=self._device)
        return self.mixture.sample(count, generator, self._device)

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        """Return the exact log p(x): `[N, d]` → `[N]`, in the precision of x."""
        return self.mixture.log_density(x)


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

    def batch(self, clock: int, batch_size: int, part: Part = WHOLE) -> Batch:
        """Zeros, at every clock: float32 `[B, d]`, or a part of them."""
        return Batch(part.take(self.held_out(batch_size)))

    def held_out(self, count: int) -> torch.Tensor:
        """Return zeros: float32 `[count, d]`."""
        import torch

        return torch.zeros(count, *self.shape, device=self._device)
