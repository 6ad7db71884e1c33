r"""The parts of examples/ordering.py with a discriminator: two hidden layers of 64 units, for all runs at once.

Runs are the slices [N] of every tensor, N = G objectives · S seeds, the seeds of an objective side by side.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from ordering import BATCH, DRAWS, GAMES, Game, Mixtures, Problem, Runs, descend, draw_problem, measure
from torch import Tensor
from torch.nn.functional import leaky_relu

import gantrain

SEEDS, STEPS, SNAPSHOT_STEPS = 10, 2000, 1000
HIDDEN, SLOPE = 64, 0.2
RATE, DISCRIMINATOR_RATE, BETAS = 0.005, 0.002, (0.5, 0.999)
MOMENTS = (0, 10, 100, 1000)  # of part (c), in steps of G
LEARNT = [
    Game(name, variant) for name in ("softened_reverse_kl", "reverse_kl", "kl") for variant in ("plain", "tempered")
]


class Discriminators:
    """A perceptron for each of N runs, [N, B, d] → [N, B]; those of a seed begin with the same weights."""

    def __init__(self, games: int, seeds: int, dimensions: int) -> None:
        noise = torch.Generator().manual_seed(3 * 10**6)
        widths = [dimensions, HIDDEN, HIDDEN, 1]
        self.layers: list[tuple[Tensor, Tensor]] = []
        for before, after in pairwise(widths):
            bound = 1 / math.sqrt(before)  # as torch's linear layer
            weight, bias = (
                (torch.rand(seeds, *shape, generator=noise) * 2 - 1) * bound for shape in ((before, after), (1, after))
            )
            self.layers.append((weight.repeat(games, 1, 1).requires_grad_(), bias.repeat(games, 1, 1).requires_grad_()))

    @property
    def parameters(self) -> list[Tensor]:
        """All weights."""
        return [tensor for layer in self.layers for tensor in layer]

    def __call__(self, x: Tensor) -> Tensor:
        """Return outputs [N, B]."""
        for number, (weight, bias) in enumerate(self.layers):
            x = torch.baddbmm(bias, x, weight)
            if number < len(self.layers) - 1:
                x = leaky_relu(x, SLOPE)
        return x.squeeze(-1)

    def repeat(self, games: int) -> Discriminators:
        """Return the same discriminators for each of so many objectives, as constants."""
        copies = copy.copy(self)
        copies.layers = [(w.detach().repeat(games, 1, 1), b.detach().repeat(games, 1, 1)) for w, b in self.layers]
        return copies


def draw_samples(q: Mixtures, noise: torch.Generator) -> Tensor:
    """Return samples [N, B, d] of generators [G, S, 2, d], half of each component; all G have the same latents."""
    games, seeds, _, dimensions = q.means.shape
    z = torch.randn(seeds, 2, BATCH // 2, dimensions, generator=noise)
    x = q.means[..., None, :] + q.log_stds.exp()[..., None, :] * z
    return x.reshape(games * seeds, BATCH, dimensions)


def draw_data(p: Mixtures, games: int, noise: torch.Generator) -> Tensor:
    """Return data [N, B, d]; all G have the same."""
    component = torch.multinomial(p.log_weights.exp(), BATCH, replacement=True, generator=noise)
    index = component[..., None].expand(*component.shape, p.means.shape[-1])
    mean, log_std = p.means.gather(1, index), p.log_stds.gather(1, index)
    x = mean + log_std.exp() * torch.randn(mean.shape, generator=noise)
    return x.repeat(games, 1, 1)


def play(problem: Problem, games: Sequence[Game], steps: int, cosine: bool = True) -> tuple[Mixtures, Discriminators]:
    """Train discriminators and generators in turn."""
    gan, noise = gantrain.divergences.get("gan"), torch.Generator().manual_seed(4 * 10**6)
    q, seeds = problem.copies(len(games)), len(problem.start.means)
    discriminators = Discriminators(len(games), seeds, problem.start.means.shape[-1])
    of_d = torch.optim.Adam(discriminators.parameters, lr=DISCRIMINATOR_RATE, betas=BETAS)
    of_g = torch.optim.Adam([q.means, q.log_stds], lr=RATE, betas=BETAS)
    for step in range(steps):
        if cosine:
            of_g.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2
        real, fake = draw_data(problem.p, len(games), noise), draw_samples(q.detach(), noise)
        on_data = gan.evaluate("real", discriminators(real)).mean(-1)
        loss = (gan.evaluate("fake", discriminators(fake)).mean(-1) - on_data).sum()
        of_d.zero_grad()
        loss.backward()
        of_d.step()
        descend(of_g, discriminate(discriminators.repeat(1), q, noise), games, q)
    return q.detach(), discriminators


def discriminate(discriminators: Discriminators, q: Mixtures, noise: torch.Generator) -> Tensor:
    """Return D's outputs [S, B, G] on samples of G."""
    return discriminators(draw_samples(q, noise)).unflatten(0, (q.means.shape[0], -1)).movedim(0, -1)


def run_learnt(dimensions: int) -> Runs:
    """Train three objectives, plain and tempered, with discriminators, and measure them."""
    problem = draw_problem(dimensions, SEEDS)
    return measure(problem, play(problem, LEARNT, STEPS)[0])


def run_snapshot(dimensions: int) -> Runs:
    """Continue one game under every objective with D as it is, and measure the generators on the way."""
    problem = draw_problem(dimensions, SEEDS)
    start, discriminators = play(problem, [Game("softened_reverse_kl", "plain")], SNAPSHOT_STEPS, cosine=False)
    begun = Mixtures(start.means[0], start.log_stds[0], start.log_weights)
    q, noise = Problem(problem.p, begun).copies(len(GAMES)), torch.Generator().manual_seed(5 * 10**6)
    fixed, found = discriminators.repeat(len(GAMES)), {}
    optimizer = torch.optim.Adam([q.means, q.log_stds], lr=RATE, betas=BETAS)
    for step in range(max(MOMENTS) + 1):
        r = discriminate(fixed, q, noise)
        if step in MOMENTS:
            numbers = measure(problem, q.detach(), DRAWS // 4 if step < max(MOMENTS) else DRAWS)
            found |= {f"{name}@{step}": values for name, values in numbers.items()}
            found[f"output@{step}"] = r.detach().double().mean(1).T.tolist()
        descend(optimizer, r, GAMES, q)
    return found
