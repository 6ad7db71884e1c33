"""Diagnoses: states in which training goes wrong, each with a name and a remedy, found in the reports of a run.

Each is a rule on a report. It is given when the rule has held at several reports in a row, and again only after it
has stopped holding. A healthy run gets none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gantrain.objectives.divergence import Divergence

Scalars = Mapping[str, float]


@dataclass(frozen=True)
class Diagnosis:
    """A rule and the advice to give when it `holds` at `reports` reports in a row."""

    name: str
    holds: Callable[[Scalars], bool]
    reports: int
    advice: str


# Those that need nothing but the report.
OTHERS = (
    Diagnosis(
        "the generator's gradient has vanished",
        lambda scalars: scalars.get("grad_norm/generator", 1.0) < 1e-4 * scalars.get("grad_norm/discriminator", 0.0),
        3,
        "it is less than a ten-thousandth of the discriminator's. Where D gives a ratio, "
        "gen_div=softened_reverse_kl under matched keeps a gradient where samples are far from data",
    ),
    Diagnosis(
        "the ratio is uncalibrated",
        lambda scalars: not 0.1 <= scalars.get("ratio/calibration_q", 1.0) <= 10,
        5,
        "E_q[e^r] is 1 for a true ratio and is off by more than a factor of 10, so bounds other than the "
        "trained one are loose. Train the discriminator more (train.discriminator_steps=2) or regularize it",
    ),
    Diagnosis(
        "few samples carry the ratio's weight",
        lambda scalars: scalars.get("ratio/effective_sample_size", 1.0) < 0.02,
        5,
        "the effective sample size is below 2 %: estimates rest on a handful of samples, and mode-covering "
        "generator objectives follow those alone",
    ),
)


class Health:
    """Checks the reports of a run whose discriminator is judged by its bound on `divergence`, at most `supremum`.

    A critic whose output bounds no divergence has None, and is not judged by it.
    """

    def __init__(self, divergence: Divergence | None, supremum: float) -> None:
        bounds = [] if divergence is None else [f"{split}bound/{divergence.name}" for split in ("", "training_")]
        self.diagnoses = list_diagnoses(bounds, supremum)
        self.in_a_row: Counter[str] = Counter()

    def check(self, scalars: Scalars) -> list[str]:
        """Return the diagnoses that the latest report completes, in plain words."""
        sentences = []
        for diagnosis in self.diagnoses:
            count = self.in_a_row[diagnosis.name] + 1 if diagnosis.holds(scalars) else 0
            self.in_a_row[diagnosis.name] = count
            if count == diagnosis.reports:
                sentences.append(f"{diagnosis.name}: {diagnosis.advice}")
        return sentences


def list_diagnoses(bounds: Sequence[str], supremum: float) -> list[Diagnosis]:
    """Return the diagnoses of a run whose discriminator is judged by scalars of these names, at most `supremum`."""
    return [
        Diagnosis(
            "the discriminator has won",
            lambda scalars: (
                max((scalars.get(name, 0.0) for name in bounds), default=0.0) > 0.95 * supremum
                or scalars.get("discriminator/accuracy", 0.0) > 0.99
            ),
            3,
            "it tells nearly every sample from data, and the ratio says little about how to change them. "
            "Try regularizer=r1 or regularizer=instance_noise, a lower optimizer.discriminator.lr, or, where D gives a "
            "ratio, a gen_div whose gradient stays large there (gen_div=softened_reverse_kl, gen_div=reverse_kl)",
        ),
        Diagnosis(
            "the generator has collapsed",
            watch_collapse(),
            1,
            "its samples are nearly equal: their mean distance is below 3 % of that between real examples. "
            "Begin a new run with regularizer=r1, a lower optimizer.generator.lr, or update=alternating with "
            "train.discriminator_steps=2",
        ),
        *OTHERS,
    ]


def watch_collapse() -> Callable[[Scalars], bool]:
    """Return a rule that detects mode collapse. It is stateful: it compares each report with the previous one.

    Samples of different latents are then nearly equal. Those of an untrained generator are so too, but move apart from
    report to report as it learns.
    """
    latest = math.nan

    def has_collapsed(scalars: Scalars) -> bool:
        nonlocal latest
        before, latest = latest, scalars.get("diversity/pixel_distance", 1.0)
        return latest < 0.001 or (latest < 0.03 and (before >= 0.03 or latest <= before))

    return has_collapsed
