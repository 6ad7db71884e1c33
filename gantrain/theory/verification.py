r"""Comparison of a trained discriminator with the exact values, between two known densities.

Every divergence between p and q and the log-ratio r* = log p/q are known. A discriminator D learns r from draws alone.
For every divergence of the catalogue and any function r,

    E_p[real(r)] − E_q[fake(r)]  ≤  D_f(p‖q),   with equality at r = r*

The right side is computed from f(u) alone, as its source has it. On held-out draws, the left side is an unbiased
estimate of a number that is at most the right side, and on the same draws with the exact r* it is one of the right side
itself. An estimate that exceeds it, or at r* lies on either side of it, by significantly more than its standard error
shows that a formula, an estimate or the truth is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gantrain import networks
from gantrain.data.mixtures import Density
from gantrain.errors import ConfigError, DivergedError
from gantrain.objectives.divergence import Divergence
from gantrain.objectives.divergences import CATALOGUE
from gantrain.objectives.objective import Objective
from gantrain.seeding import preserve_randomness, stream_seed
from gantrain.theory.cases import Case, compute_truth, true_ratio_values
from gantrain.theory.findings import Finding, Reading, average_over_seeds, compare_with_truth

if TYPE_CHECKING:
    from torch import Tensor, nn


PARTS = 50


@dataclass(frozen=True)
class Training:
    """How long D trains, in draws of p shown to it, by Adam whose `lr` falls to 0 along a cosine."""

    images: int = 1_000_000
    batch_size: int = 500
    lr: float = 0.005


def draw_from(case: Case, seed: int) -> tuple[Density, Density]:
    """Return the streams of draws from p and from q that belong to `seed`; they share no random numbers."""
    return (
        Density("p", "p", case.p, seed=stream_seed(seed, "verify/p")),
        Density("q", "q", case.q, seed=stream_seed(seed, "verify/q")),
    )


def train_discriminator(
    case: Case,
    objective: Objective,
    architecture: Mapping[str, Any],
    *,
    training: Training,
    seed: int,
    progress: Callable[[int], None] = lambda images: None,
) -> nn.Module:
    """Return the architecture's discriminator, trained by `objective` to tell p from q.

    `progress` is called after every batch, with its size. Raises DivergedError before an update with a loss that is not
    finite.
    """
    import torch

    p, q = draw_from(case, seed)
    with preserve_randomness(torch.device("cpu")):
        torch.manual_seed(stream_seed(seed, "verify/weights"))
        _, discriminator = networks.build(architecture, p.shape, latent_size=p.shape[0])
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=training.lr)
    steps = math.ceil(training.images / training.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for clock in range(0, steps * training.batch_size, training.batch_size):
        v_real, v_fake = (discriminator(side.batch(clock, training.batch_size).images) for side in (p, q))
        loss, _ = objective.discriminator_loss(v_real, v_fake)
        if not loss.isfinite():
            raise DivergedError(
                f"the discriminator's loss is {loss.item()} at images = {clock:,}; lower lr={training.lr:g}, "
                "or choose a disc_div that grows more slowly in the log-ratio (gan, js, squared_hellinger)"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(training.batch_size)
    return discriminator


def measure_discriminator(
    discriminator: Callable[[Tensor], Tensor],
    objective: Objective,
    case: Case,
    known: Iterable[Divergence],
    *,
    seed: int,
    draws: int,
) -> dict[str, list[float]]:
    """Return the estimates that D gives on `draws` held-out draws of p and of q, a list over PARTS parts of them each.

    These are `Objective.estimates`, and `ratio/rms_error_p` and `ratio/rms_error_q`: √E[(r − r*)²] in nats. Beside them
    is `exact/NAME`, the bound of every divergence in `known` at r = r*, on the same draws.
    """
    import torch

    p, q = draw_from(case, seed)
    one = torch.ones((), dtype=torch.float64)
    rows = []
    with torch.no_grad():
        parts = (each.held_out(draws).tensor_split(PARTS) for each in (p, q))
        for x, y in zip(*parts, strict=True):
            v_real, v_fake = discriminator(x), discriminator(y)
            true_p, true_q = case.log_ratio(x), case.log_ratio(y)
            row = objective.estimates(v_real, v_fake)
            for side, v, true in (("p", v_real, true_p), ("q", v_fake, true_q)):
                error = learned_log_ratio(objective, v) - true
                row[f"ratio/rms_error_{side}"] = float(error.square().mean().sqrt())
            for each in known:
                bound = each.real(true_p).mean() - each.fake(true_q).mean() - each.f_of_u(one)
                row[f"exact/{each.name}"] = float(bound)
            rows.append(row)
    return {name: [row[name] for row in rows] for name in rows[0]}


def learned_log_ratio(objective: Objective, v: Tensor) -> Tensor:
    """Return the log-ratio of D's raw output `v`, float64."""
    r = objective.log_ratio(v.double())
    assert r is not None, "check_log_ratio rejects objectives without a ratio"
    return r


@dataclass(frozen=True)
class Result:
    """The results of one case: findings, metrics of the ratio, and the discriminators of the seeds."""

    case: Case
    objective: Objective
    findings: list[Finding]
    ratio: dict[str, Reading]
    discriminators: list[Callable[[Tensor], Tensor]]

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain data."""
        exact = true_ratio_values(self.case)
        return {
            "densities": self.case.title,
            "divergences": {each.name: each.to_dict() for each in self.findings},
            "ratio": {name: {"exact": exact[name]} | asdict(reading) for name, reading in self.ratio.items()},
        }


def verify_case(
    case: Case,
    objective: Objective,
    architecture: Mapping[str, Any],
    *,
    training: Training,
    seeds: Sequence[int],
    draws: int,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Result:
    """Train a discriminator for each seed, and compare their estimates from `draws` held-out draws each with the truth.

    Without images to train on, the exact log-ratio takes the discriminator's place.
    `objective` has passed `check_log_ratio`. `progress` is called with the images shown so far, and those of all seeds.
    """
    known = {objective.disc_div.name: objective.disc_div} | CATALOGUE
    discriminators: list[Callable[[Tensor], Tensor]] = []
    runs, images = [], 0

    def advance(batch: int) -> None:
        nonlocal images
        images += batch
        progress(images, len(seeds) * training.images)

    for seed in seeds:
        d: Callable[[Tensor], Tensor] = case.log_ratio
        if training.images:
            d = train_discriminator(case, objective, architecture, training=training, seed=seed, progress=advance)
        discriminators.append(d)
        runs.append(measure_discriminator(d, objective, case, known.values(), seed=seed, draws=draws))
    readings = {name: average_over_seeds([run[name] for run in runs]) for name in runs[0]}
    truths = {name: compute_truth(divergence, case.p, case.q) for name, divergence in known.items()}
    ratio = {name: readings[name] for name in true_ratio_values(case)}
    findings = compare_with_truth(truths, readings, draws * len(seeds))
    return Result(case, objective, findings, ratio, discriminators)


def check_log_ratio(objective: Objective) -> None:
    """Raise ConfigError for a discriminator that gives no log-ratio to compare with the true one."""
    if not objective.head.has_log_ratio:
        raise ConfigError(
            f"disc_div={objective.disc_div.name} has no invertible f', so a discriminator trained on it gives no "
            "log-ratio to verify; choose another disc_div, such as gan"
        )
