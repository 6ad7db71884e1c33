"""Configurations: runs that differ only in seed, and means over their seeds."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from gantrain.comparison.labels import (
    FIRST_KEYS,
    build_label,
    compared_settings,
    find_named_keys,
    independent_keys,
    list_typed_keys,
    name_discriminator,
)
from gantrain.comparison.runs import EFFECTIVE_ORDER, Run, natural_key
from gantrain.console import LARGEST_IN_FULL, format_number
from gantrain.errors import ConfigError, describe_choice
from gantrain.objectives.critic_objective import OWN

ROUNDING = 1e-12  # a smaller deviation, relative to the mean, is rounding error
FOLLOWED = "G follows"  # head of a column


class Estimate(NamedTuple):
    """Mean and sample standard deviation of `n` runs; the deviation of one run is None."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def from_values(cls, values: Sequence[float]) -> Estimate:
        """Estimate mean and deviation from one or more values."""
        n = len(values)
        mean = math.fsum(values) / n
        sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)) if n > 1 else None
        return cls(mean, sd, n)

    def __str__(self) -> str:
        """`0.812 ± 0.034`: the deviation with two digits and the mean to the same place; four digits without one."""
        if not self.sd or self.sd < abs(self.mean) * ROUNDING:
            return format_number(self.mean) + ("" if self.sd is None else " ± 0")
        last = _magnitude(self.sd) - 1  # power of ten of the last digit
        if max(abs(self.mean), self.sd) < LARGEST_IN_FULL and self.sd >= 1 / LARGEST_IN_FULL:
            return " ± ".join(format_number(value, f",.{max(0, -last)}f") for value in (self.mean, self.sd))
        digits = _magnitude(self.mean) - last + 1 if self.mean else 1
        return f"{format_number(self.mean, f'.{min(max(digits, 1), 4)}g')} ± {format_number(self.sd, '.2g')}"


def _magnitude(value: float) -> int:
    return math.floor(math.log10(abs(value)))


def format_estimate(estimate: Estimate | None, count: str = "", error: float | None = None) -> str:
    """Format an estimate, with the number of runs and the error of one measurement in brackets; `—` for None.

    An infinite error is a heavy tail.
    """
    note = "" if error is None else "heavy tail" if math.isinf(error) else f"error {error:.2g}"
    notes = ", ".join(filter(None, [count, note]))
    return "—" if estimate is None else f"{estimate}" + (f" ({notes})" if notes else "")


def error_metric(metric: str) -> str:
    """Name of the metric that holds the error of measurement of another one."""
    return f"{metric}_error"


@dataclass(frozen=True)
class Configuration:
    """Runs that differ only in seed, sorted by it; `values` are the settings that tell it from other configurations."""

    number: int
    label: str
    values: dict[str, str]
    runs: list[Run]

    @property
    def name(self) -> str:
        """Number and label, in figures and on the page."""
        return f"{self.number}: {self.label}"

    @cached_property
    def finished(self) -> list[Run]:
        """Runs that count."""
        return [run for run in self.runs if run.is_finished]

    @property
    def drawn_runs(self) -> list[Run]:
        """Runs whose curves are drawn: those that finished, or all if none did."""
        return self.finished or self.runs

    @property
    def seeds(self) -> str:
        """Number of runs that count, and of all runs if they are more."""
        return f"{len(self.finished)}" + (f" of {len(self.runs)}" if len(self.finished) < len(self.runs) else "")

    def estimate(self, metric: str) -> Estimate | None:
        """Estimate a metric over seeds; None if no finished run has it."""
        values = [run.metrics[metric] for run in self.finished if metric in run.metrics]
        return Estimate.from_values(values) if values else None

    def complete_mean(self, metric: str) -> float | None:
        """Mean of a metric over seeds; None unless every run finished and has it."""
        found = self.estimate(metric)
        return found.mean if found and found.n == len(self.runs) else None

    def deviation(self, metric: str) -> float:
        """Standard deviation of a metric over seeds, of a single run the error of its measurement; 0 without either."""
        found, error = self.estimate(metric), self.estimate(error_metric(metric))
        return found.sd if found and found.sd is not None else max(error.mean, 0.0) if error else 0.0

    def format_metric(self, metric: str) -> str:
        """Format the estimate of a metric, with the number of runs if some lack it, and its error of measurement."""
        found, error = self.estimate(metric), self.estimate(error_metric(metric))
        count = f"{found.n} of {len(self.finished)}" if found and found.n < len(self.finished) else ""
        reported = (run.fact("metrics") for run in self.finished)  # in which an infinite error is null
        is_heavy = any(isinstance(each, dict) and each.get(error_metric(metric), 0.0) is None for each in reported)
        return format_estimate(found, count, math.inf if is_heavy else error and error.mean)

    @property
    def descriptions(self) -> dict[str, str]:
        """What the generator follows, its weights and the weight of R1, by the head of their column."""
        order = self.estimate(EFFECTIVE_ORDER)
        return describe_weights(self.runs[0], order and order.mean)

    def curve(self, name: str) -> list[tuple[float, Estimate]]:
        """Estimates of a number of metrics.jsonl by clock, at the clocks that all drawn runs with it reported."""
        values: dict[float, list[float]] = {}
        for report in itertools.chain.from_iterable(run.reports for run in self.drawn_runs):
            if name in report:
                values.setdefault(report["images"], []).append(report[name])
        most = max(map(len, values.values()), default=0)
        return [(clock, Estimate.from_values(values[clock])) for clock in sorted(values) if len(values[clock]) == most]

    def class_shares(self, source: Literal["data", "samples"]) -> dict[str, Estimate]:
        """Share of each class in the evaluation's histogram of the data or of samples, over seeds."""
        shares = [found for run in self.finished if (found := run.class_shares(source))]
        names = sorted({name for each in shares for name in each}, key=natural_key)
        return {name: Estimate.from_values([each.get(name, 0.0) for each in shares]) for name in names}


# ---------------------------------------------------------------------------------------------------------------------
# Grouping


def group_runs(runs: Iterable[Run]) -> tuple[list[Configuration], list[str], list[str]]:
    """Group runs by their settings.

    Returns:
        The configurations; the keys that tell them apart; all keys that differ, the divergences' first. A key that has
        its default in every run is among neither.
    """
    groups: dict[frozenset[tuple[str, str]], list[Run]] = {}
    for run in runs:
        groups.setdefault(frozenset(compared_settings(run).items()), []).append(run)
    settings = [compared_settings(members[0]) for members in groups.values()]
    known = dict.fromkeys([*FIRST_KEYS, *itertools.chain(*settings)])
    differing = [key for key in known if len({each.get(key) for each in settings}) > 1]
    named = find_named_keys(differing, settings, [list_typed_keys(members) for members in groups.values()])
    differing = [key for key in differing if any(named[key])]
    keys = independent_keys(differing, settings)
    configurations = [
        Configuration(
            number,
            build_label(keys, each, [key for key in keys if named[key][number - 1]]),
            {key: each.get(key, "—") for key in keys},
            sorted(members, key=lambda run: natural_key(run.seed)),
        )
        for number, (each, members) in enumerate(zip(settings, groups.values(), strict=True), start=1)
    ]
    # A key such as optimizer.betas.0 is part of a list, which is shown only if it tells configurations apart.
    return configurations, keys, [key for key in differing if key in keys or not re.search(r"\.[0-9]", key)]


def choose_baseline(configurations: Sequence[Configuration], chosen: str | None = None) -> Configuration:
    """Return the configuration with a label or a number, or the only one whose label has all words of `chosen`.

    By default it is the first one of which every run finished, or else the first. Raises ConfigError.
    """
    if chosen is None:
        return next((each for each in configurations if len(each.finished) == len(each.runs)), configurations[0])
    words = set(chosen.split())
    for found in (
        [each for each in configurations if each.label == chosen],
        [each for each in configurations if str(each.number) == chosen],
        [each for each in configurations if words and words <= {*each.label.split()}],
    ):
        if len(found) == 1:
            return found[0]
    raise ConfigError(describe_choice("baseline", chosen, (each.name for each in configurations)))


def describe_weights(run: Run, order: float | None) -> dict[str, str]:
    """Describe what the generator of a run follows, by the head of a column; empty texts for what the run lacks.

    `G follows` is the divergence with the effective order of its weights (`kl, order 0.31`), `gen_weights` the settings
    of these weights that are on, and `R1 weight` that of the regularizer r1.
    """
    divergence = run.setting("gen_div.name")
    divergence = f"{name_discriminator(run)}'s own loss" if divergence == OWN else divergence
    settings = {key[12:]: value for key, value in run.settings.items() if key.startswith("gen_weights.")}
    rescaled = [f"{key} {value}" for key, value in settings.items() if value not in ("null", "false")]
    has_r1 = "r1" in run.settings.get("regularizer.name", "").split("+")
    return {
        FOLLOWED: divergence if order is None else f"{divergence}, order {format_number(order, '.2g')}",
        "gen_weights": "" if order is None else ", ".join(rescaled).replace(" true", "") or "plain",
        "R1 weight": run.settings.get("regularizer.r1.weight", "default") if has_r1 else "",
    }
