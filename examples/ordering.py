r"""Diversity under six divergences, with everything else equal: the experiment that docs/results/ordering.md registers.

    .venv/bin/python examples/ordering.py OUT exact [2 8 64]       part (a), the ratio known
    .venv/bin/python examples/ordering.py OUT learnt [2 8]         part (a), with a discriminator
    .venv/bin/python examples/ordering.py OUT snapshot             part (c), one discriminator for all
    .venv/bin/python examples/ordering.py OUT                      the tables and tests of what is in OUT

Data and generators are mixtures of Gaussians, so that densities are known. All objectives and seeds are trained at once
as slices of the same tensors: G objectives, S seeds, B draws of a batch, d dimensions. Each part is written to
OUT/PART-DIMENSIONS.json, a number for every run, and is not repeated if that file exists.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import gantrain

WEIGHTS = (0.35, 0.25, 0.2, 0.12, 0.08)
RADIUS, STD = 4.0, 0.7
LEAST, MOST = math.log(0.01), math.log(100.0)  # of the logarithm of a generator's σ
BATCH, STEPS, RATE, SEEDS = 128, 2000, 0.02, 20
DRAWS, CHUNK = 100_000, 25_000
MANY_DRAWS = 1_000_000  # of an exact game above the plane, where there is no quadrature
SPREAD = 0.5
FAR = 300.0  # of log-ratios, beyond which they stand still
DIVERGENCES = ("softened_reverse_kl", "reverse_kl", "js", "kl", "pearson", "jeffreys")
VARIANTS = ("plain", "normalised", "tempered", "ratio")
Runs = dict[str, list[list[float]]]  # name of a number → its values [G][S]


class Game(NamedTuple):
    """A divergence, and how G descends it: one of VARIANTS."""

    divergence: str
    variant: str

    def force(self, r: Tensor) -> Tensor:
        """Return the gradient of G's mean loss at log-ratios [S, B] of its samples: what `Objective` gives, for all
        seeds at once."""
        divergence, wide = gantrain.divergences.get(self.divergence), r.double()
        assert divergence.log_weight is not None
        if self.variant == "ratio":
            wide = wide.clamp(-FAR, FAR)
            return (wide.exp() * divergence.real(wide)).to(r.dtype) / r.shape[-1]
        if self.variant == "plain":
            return -divergence.log_weight(wide).clamp(max=FAR / 4).exp().to(r.dtype) / r.shape[-1]
        if self.variant == "tempered":
            wide = wide * (SPREAD / wide.std(-1, correction=0, keepdim=True)).clamp(max=1)
        return -divergence.log_weight(wide).softmax(-1).to(r.dtype)


GAMES = [Game(name, variant) for name in DIVERGENCES for variant in VARIANTS]


@dataclass
class Mixtures:
    """Gaussian mixtures of k components: means and log σ [..., k, d], log weights [..., k]."""

    means: Tensor
    log_stds: Tensor
    log_weights: Tensor

    def detach(self) -> Mixtures:
        """Return the same mixtures, as constants."""
        return Mixtures(self.means.detach(), self.log_stds.detach(), self.log_weights)


class Problem(NamedTuple):
    """The data p [S, 5, d], and where generators begin [S, 2, d]."""

    p: Mixtures
    start: Mixtures

    def copies(self, games: int) -> Mixtures:
        """Return the start for each of so many objectives, [G, S, 2, d], to be trained."""
        means, log_stds = (
            part.expand(games, *part.shape).clone().requires_grad_() for part in (self.start.means, self.start.log_stds)
        )
        return Mixtures(means, log_stds, self.start.log_weights)


def draw_problem(dimensions: int, seeds: int) -> Problem:
    """Draw the data and the start of every seed, each from a generator of its own."""
    angles = 2 * math.pi * torch.arange(5) / 5
    circle = RADIUS * torch.stack([angles.cos(), angles.sin()], 1)
    means, weights, starts = [], [], []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        plane, _ = torch.linalg.qr(torch.randn(dimensions, 2, generator=generator))
        means.append(circle @ plane.T)
        weights.append(torch.tensor(WEIGHTS)[torch.randperm(5, generator=generator)])
        directions = torch.randn(2, dimensions, generator=generator)
        starts.append(RADIUS / 2 * directions / directions.norm(dim=1, keepdim=True))
    p, start = torch.stack(means), torch.stack(starts)
    return Problem(
        Mixtures(p, torch.full_like(p, math.log(STD)), torch.stack(weights).log()),
        Mixtures(start, torch.zeros_like(start), torch.full((seeds, 2), -math.log(2))),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Densities


def log_components(features: Tensor, mean: Tensor, log_std: Tensor, of: Mixtures) -> Tensor:
    """Return log (weight · density) of the components of `of` at x = mean + e^{log_std} z, up to (2π)^{−d/2}.

    `features` [S, B, 2d] are z² and z, `mean` and `log_std` [..., S, d], the components [..., S, k, d]; the result is
    [S, B, ..., k]. As a function of z, (x − c)² τ is exact for a component's own samples, however narrow it is.
    """
    precision, std, shift = (-2 * of.log_stds).exp(), log_std.exp()[..., None, :], mean[..., None, :] - of.means
    slopes = torch.cat([std**2 * precision, 2 * std * shift * precision], -1)
    constant = of.log_weights - of.log_stds.sum(-1) - (shift**2 * precision).sum(-1) / 2
    *games, seeds, count, width = slopes.shape
    order = (len(games), *range(len(games)), len(games) + 1)  # seeds first
    flat = slopes.permute(*order, len(games) + 2).reshape(seeds, -1, width)
    values = torch.baddbmm(constant.permute(order).reshape(seeds, 1, -1), features, flat.mT, alpha=-0.5)
    return values.unflatten(-1, (*games, count))


def expand(z: Tensor) -> Tensor:
    """Return z² and z side by side: [S, B, d] → [S, B, 2d]."""
    return torch.cat([z**2, z], -1)


def log_ratio(features: Sequence[Tensor], q: Mixtures, p: Mixtures) -> Tensor:
    """Return log p/q [S, B, G] at samples of q, half of each component, as a function of the samples alone."""
    still, halves = q.detach(), []
    for part, features_k in enumerate(features):
        mean, log_std = q.means[..., part, :], q.log_stds[..., part, :]
        log_p = log_components(features_k, mean, log_std, p_like(p, q)).logsumexp(-1)
        halves.append(log_p - log_components(features_k, mean, log_std, still).logsumexp(-1))
    return torch.cat(halves, 1)


def p_like(p: Mixtures, q: Mixtures) -> Mixtures:
    """Return the data once for each objective."""
    shape = q.means.shape[:-3]
    expanded = [part.expand(*shape, *part.shape) for part in (p.means, p.log_stds, p.log_weights)]
    return Mixtures(*expanded)


def train_exact(problem: Problem, games: Sequence[Game], steps: int = STEPS) -> Mixtures:
    """Train a generator for each objective and seed, r being computed; return them, [G, S, 2, d]."""
    q, noise = problem.copies(len(games)), torch.Generator().manual_seed(10**6)
    optimizer = torch.optim.Adam([q.means, q.log_stds], lr=RATE, betas=(0.5, 0.999))
    seeds, _, dimensions = problem.start.means.shape
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2
        features = [expand(torch.randn(seeds, BATCH // 2, dimensions, generator=noise)) for _ in range(2)]
        descend(optimizer, log_ratio(features, q, problem.p), games, q)
    return q.detach()


def descend(optimizer: torch.optim.Optimizer, r: Tensor, games: Iterable[Game], q: Mixtures) -> None:
    """Make a step of G from the log-ratios [S, B, G] of its samples, and keep σ within its limits."""
    with torch.no_grad():
        forces = torch.stack([game.force(r[..., number]) for number, game in enumerate(games)], -1)
    optimizer.zero_grad()
    r.backward(forces)
    optimizer.step()
    with torch.no_grad():
        q.log_stds.clamp_(LEAST, MOST)


@torch.no_grad()
def measure(problem: Problem, q: Mixtures, draws: int = DRAWS) -> Runs:
    """Return coverage, modes and both KL divergences with standard errors of generators [G, S, 2, d]."""
    games, seeds, _, dimensions = q.means.shape
    noise, p = torch.Generator().manual_seed(2 * 10**6), p_like(problem.p, q)
    masses = torch.zeros(seeds, games, 5, dtype=torch.float64)
    reverse, forward = Moments(), Moments()
    for _ in range(draws // CHUNK):
        for part in range(2):
            features = expand(torch.randn(seeds, CHUNK // 2, dimensions, generator=noise))
            at = q.means[..., part, :], q.log_stds[..., part, :]
            of_p = log_components(features, *at, p)
            masses += of_p.softmax(-1).sum(1)
            reverse.add(log_components(features, *at, q).logsumexp(-1) - of_p.logsumexp(-1))
    masses /= 2 * (CHUNK // 2) * (draws // CHUNK)
    for _ in range(draws // CHUNK):
        for part, count in enumerate(split_draws(problem.p, noise)):
            features = expand(torch.randn(seeds, int(count.max()), dimensions, generator=noise))
            at = problem.p.means[:, part], problem.p.log_stds[:, part]
            log_p = log_components(features, *at, problem.p).logsumexp(-1)
            shape = at[0].shape
            log_q = log_components(features, *(each.expand(games, *shape) for each in at), q).logsumexp(-1)
            forward.add(log_p[..., None] - log_q, torch.arange(features.shape[1]) < count[:, None])
    shares = problem.p.log_weights.exp().double()[:, None]
    numbers = {
        "coverage": torch.minimum(masses, shares).sum(-1),
        "modes": (masses >= shares / 4).sum(-1).double(),
        "kl": forward.mean,
        "kl_error": forward.error,
        "reverse_kl": reverse.mean,
        "reverse_kl_error": reverse.error,
        "narrowest": q.log_stds.amin((-1, -2)).exp().T.double(),
    }
    numbers["coverage"] = numbers["coverage"].nan_to_num(0)
    return {name: value.T.tolist() for name, value in numbers.items()}


def split_draws(p: Mixtures, noise: torch.Generator) -> Tensor:
    """Return how many of CHUNK draws each component of the data has, [5, S]."""
    drawn = torch.multinomial(p.log_weights.exp(), CHUNK, replacement=True, generator=noise)
    return torch.stack([(drawn == part).sum(1) for part in range(p.log_weights.shape[1])])


class Moments:
    """Sums of values and of their squares over draws, in float64."""

    def __init__(self) -> None:
        self.count: Tensor | int = 0
        self.sum: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, values: Tensor, counted: Tensor | None = None) -> None:
        """Add values [S, B, G], those of the draws [S, B] that are `counted`."""
        values = values.double()
        if counted is not None:
            values = torch.where(counted[..., None], values, 0)
        self.count = self.count + (values.shape[1] if counted is None else counted.sum(1)[:, None])
        self.sum, self.squares = self.sum + values.sum(1), self.squares + values.square().sum(1)

    @property
    def mean(self) -> Tensor:
        """The mean [S, G]."""
        return torch.as_tensor(self.sum / self.count)

    @property
    def error(self) -> Tensor:
        """Its standard error [S, G]."""
        return ((self.squares / self.count - self.mean**2).clamp(min=0) / self.count).sqrt()


@torch.no_grad()
def integrate(problem: Problem, q: Mixtures, step: float = 0.05, reach: float = 12.0) -> Runs:
    """Return both KL divergences of generators in the plane, by the rule of equal weights on a square."""
    axis = torch.arange(-reach, reach + step / 2, step)
    points = torch.cartesian_prod(axis, axis)
    games, seeds = q.means.shape[:2]
    forward, reverse = (torch.zeros(seeds, games, dtype=torch.float64) for _ in range(2))
    for part in points.split(CHUNK):
        features = expand(part.expand(seeds, *part.shape))
        origin = torch.zeros(games, seeds, 2)
        log_q = log_components(features, origin, origin, q).logsumexp(-1).double() - math.log(2 * math.pi)
        of_p = log_components(features, origin[0], origin[0], problem.p)
        log_p = of_p.logsumexp(-1, keepdim=True).double() - math.log(2 * math.pi)
        forward += (log_p.exp() * (log_p - log_q)).sum(1) * step**2
        reverse += (log_q.exp() * (log_q - log_p)).sum(1) * step**2
    return {"kl_quadrature": forward.T.tolist(), "reverse_kl_quadrature": reverse.T.tolist()}


def run_exact(dimensions: int) -> Runs:
    """Train all objectives with the exact ratio in so many dimensions, and measure them."""
    problem = draw_problem(dimensions, SEEDS)
    q = train_exact(problem, GAMES)
    return measure(problem, q) | integrate(problem, q) if dimensions == 2 else measure(problem, q, MANY_DRAWS)


def main(arguments: list[str]) -> int:
    """Run a part, or print the tables."""
    import ordering_learnt as learnt
    import ordering_tests as tests

    if not arguments:
        print(__doc__)
        return 2
    out, part, dimensions = Path(arguments[0]), arguments[1] if len(arguments) > 1 else "", arguments[2:]
    out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, tuple[Callable[[int], Runs], list[str]]] = {
        "exact": (run_exact, dimensions or ["2", "8", "64"]),
        "learnt": (learnt.run_learnt, dimensions or ["2", "8"]),
        "snapshot": (learnt.run_snapshot, ["2"]),
    }
    if part:
        function, wanted = parts[part]
        for number in wanted:
            if not (path := out / f"{part}-{number}.json").exists():
                path.write_text(json.dumps(function(int(number))), encoding="utf-8")
    tests.print_results(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
