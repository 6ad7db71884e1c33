"""States of a run that have a name and a remedy, told from its reports; a healthy run is in none of them.

Each is a rule on one report, and is told when the rule has held at several reports in a row, and again only after it
has been left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gantrain.objectives.divergences import Divergence

Scalars = Mapping[str, float]


@dataclass(frozen=True)
class State:
    """`holds(report)`, at `reports` reports in a row, means `text`."""

    name: str
    holds: Callable[[Scalars], bool]
    reports: int
    text: str


@dataclass
class Health:
    """Which states the run is in. `told(report)` gives the sentences to print after each report."""

    states: list[State]
    in_a_row: dict[str, int] = field(default_factory=dict)

    def told(self, scalars: Scalars) -> list[str]:
        """The states that have just been entered, in plain words."""
        sentences = []
        for state in self.states:
            count = self.in_a_row.get(state.name, 0) + 1 if state.holds(scalars) else 0
            self.in_a_row[state.name] = count
            if count == state.reports:
                sentences.append(f"{state.name}: {state.text}")
        return sentences


def watched(disc_div: Divergence, supremum: float) -> Health:
    """The states of a run whose discriminator is trained on `disc_div`, whose bound cannot exceed `supremum`."""
    bounds = [f"{split}bound/{disc_div.name}" for split in ("", "training_")]

    def won(scalars: Scalars) -> bool:
        bound = max(scalars.get(name, 0.0) for name in bounds)
        near_supremum = math.isfinite(supremum) and bound > 0.95 * supremum
        return near_supremum or scalars.get("discriminator/accuracy", 0.0) > 0.99

    def vanished(scalars: Scalars) -> bool:
        return scalars.get("grad_norm/generator", 1.0) < 1e-4 * scalars.get("grad_norm/discriminator", 0.0)

    def uncalibrated(scalars: Scalars) -> bool:
        mean = scalars.get("ratio/calibration_q", 1.0)
        return not mean > 0 or abs(math.log(mean)) > math.log(10)

    def concentrated(scalars: Scalars) -> bool:
        return scalars.get("ratio/effective_sample_size", 1.0) < 0.02

    return Health(
        [
            State(
                "the discriminator has won",
                won,
                3,
                "it tells nearly every sample from data, and the ratio says little about how to change them. "
                "Try regularizer=r1 or regularizer=instance_noise, a lower optimizer.discriminator.lr, or a generator "
                "divergence whose gradient stays large there (gen_div=softened_reverse_kl, gen_div=reverse_kl)",
            ),
            State(
                "the generator's gradient has vanished",
                vanished,
                3,
                "it is less than a ten-thousandth of the discriminator's. Under matched, gen_div=softened_reverse_kl "
                "keeps a gradient where samples are far from data",
            ),
            State(
                "the ratio is uncalibrated",
                uncalibrated,
                5,
                "E_q[e^r] is 1 for a true ratio and is off by more than a factor of 10, so bounds other than the "
                "trained one are loose. Train the discriminator more (train.discriminator_steps=2) or regularize it",
            ),
            State(
                "few samples carry the ratio's weight",
                concentrated,
                5,
                "the effective sample size is below 2 %: estimates rest on a handful of samples, and mode-covering "
                "generator objectives follow those alone",
            ),
        ]
    )
