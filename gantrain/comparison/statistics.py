"""Paired tests of configurations against a baseline, and tests of trends along an ordered setting, over seeds.

Runs of equal seeds are paired. Where all runs of both configurations finished, the difference has the interval and the
p-value of the paired t test. A run that failed, or whose number is infinite, ranks below all others: where there is
one, the test is the signed-rank test (Wilcoxon 1945), and there is no interval. A trend is tested by Page's test
(1963). The p-values of a table are adjusted after Holm (1979), so that it names a wrong difference with a probability
of at most `LEVEL`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from gantrain.comparison.configurations import ROUNDING, Configuration, Estimate
from gantrain.comparison.labels import short_key
from gantrain.comparison.untrusted import get_nested
from gantrain.console import format_number
from gantrain.evaluation.metrics import better_direction

LEVEL = 0.05
FEWEST_RANKED = 6  # seeds of a signed-rank test: the smallest p-value of five is 2/2⁵ > LEVEL
MOST_MORE_SEEDS = 100
PAIRED_T, SIGNED_RANK, PAGE = "paired t", "signed-rank", "Page"
BETTER, WORSE, NOT_DECIDABLE = "better", "worse", "not decidable"
ORDERED_VALUE = re.compile(r"(?:([A-Za-z_]\w*)_)?([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one test; `p` is None, and `test` empty, where the seeds decide nothing.

    `more_seeds` is about how many more seeds would make `holm_p` at most `LEVEL`, inf if more than `MOST_MORE_SEEDS`;
    None if it is.
    """

    words: ClassVar[tuple[str, str]] = (BETTER, WORSE)
    metric: str
    seeds: int  # that were compared
    test: str = ""  # PAIRED_T, SIGNED_RANK or PAGE
    p: float | None = None  # two-sided
    improves: bool = False  # whether the metric becomes better, if anything
    holm_p: float | None = None  # p adjusted for all tests of the table
    more_seeds: float | None = None

    @property
    def missing_evidence(self) -> str:
        """What would decide; empty if the adjusted p-value is at most `LEVEL`."""
        if self.holm_p is not None and self.holm_p <= LEVEL:
            return ""
        if self.more_seeds is None:
            return NOT_DECIDABLE
        number = f"over {MOST_MORE_SEEDS}" if math.isinf(self.more_seeds) else f"about {self.more_seeds:.0f}"
        return f"{number} more seed{'' if self.more_seeds == 1 else 's'} would decide"

    @property
    def verdict(self) -> str:
        """The first of `words` if the metric becomes better, the second if worse, or what would decide."""
        return self.missing_evidence or self.words[not self.improves]

    def seeds_needed(self, level: float) -> float:
        """Return about how many more seeds would give a p-value of `level`: its deviate grows with their root."""
        from scipy.stats import norm

        assert self.p is not None
        if self.p >= 1:
            return math.inf
        needed = math.ceil(self.seeds * (norm.isf(level / 2) / norm.isf(self.p / 2)) ** 2)
        if self.test == SIGNED_RANK:
            needed = max(needed, math.ceil(math.log2(2 / level)))
        more = max(needed - self.seeds, 1)
        return math.inf if more > MOST_MORE_SEEDS else more


@dataclass(frozen=True, kw_only=True)
class Difference(Finding):
    """The difference of a configuration from the baseline, with the interval of the paired t test.

    `failed` and `baseline_failed` are the numbers of failed runs and of all that count.
    """

    configuration: Configuration
    failed: tuple[int, int]
    baseline_failed: tuple[int, int]
    estimate: Estimate | None = None  # of the paired differences
    low: float | None = None
    high: float | None = None

    @property
    def text(self) -> str:
        """The difference with its interval; in place of the interval the share of failures, if there are any."""
        shares = (("", self.failed), ("baseline ", self.baseline_failed))
        if failures := [f"{whose}{failed} of {total} failed" for whose, (failed, total) in shares if failed]:
            return ",\n".join(failures)
        if self.estimate is None:
            return "—"
        if self.low is None or self.high is None:
            return format_number(self.estimate.mean)
        half = (self.high - self.low) / 2
        mean, low, high = (str(Estimate(x, half, 2)).split(" ± ")[0] for x in (self.estimate.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]"

    def seeds_needed(self, level: float) -> float:
        """Return about how many more seeds would give a p-value of `level` if mean and deviation stay as they are."""
        if self.test != PAIRED_T:
            return super().seeds_needed(level)
        import numpy as np
        from scipy.stats import t

        assert self.estimate is not None
        assert self.estimate.sd is not None
        totals = self.seeds + np.arange(1, MOST_MORE_SEEDS + 1)
        reached = abs(self.estimate.mean) * np.sqrt(totals) >= self.estimate.sd * t.isf(level / 2, totals - 1)
        return float(np.argmax(reached)) + 1 if reached.any() else math.inf


@dataclass(frozen=True, kw_only=True)
class Trend(Finding):
    """The trend of a metric along the values of an ordered key, of configurations that share all other settings."""

    words: ClassVar = ("improves", "worsens")
    key: str
    configurations: Sequence[Configuration]

    @property
    def text(self) -> str:
        """The key with its first and last value, and the numbers of the configurations in their order."""
        numbers = ", ".join(str(each.number) for each in self.configurations)
        return f"{short_key(self.key)} {self.values[0]} … {self.values[-1]} ({numbers})"

    @property
    def values(self) -> list[str]:
        """The values of the key."""
        return [each.values[self.key] for each in self.configurations]


F = TypeVar("F", bound=Finding)


def adjust_by_holm(findings: Sequence[F]) -> list[F]:
    """Return the findings of one table with `holm_p` and `more_seeds`; a test that decides nothing counts too."""
    tested = sorted((found.p, index) for index, found in enumerate(findings) if found.p is not None)
    adjusted, largest = list(findings), 0.0
    for rank, (p, index) in enumerate(tested):
        factor = len(findings) - rank
        largest = max(largest, min(1.0, factor * p))
        more_seeds = findings[index].seeds_needed(LEVEL / factor) if largest > LEVEL else None
        adjusted[index] = replace(findings[index], holm_p=largest, more_seeds=more_seeds)
    return adjusted


# ---------------------------------------------------------------------------------------------------------------------
# What is compared


def read_outcomes(configuration: Configuration, metric: str) -> dict[str, float]:
    """Return a metric of a configuration's runs by seed, with the sign that makes larger ones better.

    It is −inf for a run that failed, or if the evaluation has null: the number was infinite. A run whose metric was not
    measured is left out.
    """
    outcomes = {}
    for run in configuration.runs:
        evaluated = get_nested(run.evaluation, "metrics")
        if run.is_finished and metric in run.metrics:
            outcomes[run.seed] = better_direction(metric) * run.metrics[metric]
        elif run.status == "failed" or (run.is_finished and isinstance(evaluated, dict) and metric in evaluated):
            outcomes[run.seed] = -math.inf
    return outcomes


# ---------------------------------------------------------------------------------------------------------------------
# Differences from a baseline


def find_differences(
    configurations: Iterable[Configuration], baseline: Configuration, metrics: Iterable[str]
) -> list[Difference]:
    """Return the difference of every other configuration from the baseline in every metric, adjusted together."""
    others = [each for each in configurations if each is not baseline]
    return adjust_by_holm([measure_difference(each, baseline, metric) for metric in metrics for each in others])


def measure_difference(configuration: Configuration, baseline: Configuration, metric: str) -> Difference:
    """Return the difference in one metric with the p-value of its own test."""
    ours, theirs = read_outcomes(configuration, metric), read_outcomes(baseline, metric)
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    failed, baseline_failed = ((sum(map(math.isinf, each.values())), len(each)) for each in (ours, theirs))
    found = Difference(
        metric=metric, seeds=len(pairs), configuration=configuration, failed=failed, baseline_failed=baseline_failed
    )
    if failed[0] or baseline_failed[0]:
        return rank_differences(found, subtract_with_failures(pairs))
    changes = [a - b for a, b in pairs]
    if not changes:
        return found
    estimate = Estimate.from_values(changes)
    shown = estimate._replace(mean=better_direction(metric) * estimate.mean)
    found = replace(found, estimate=shown)
    if estimate.sd is None or estimate.sd <= ROUNDING * max(abs(value) for pair in pairs for value in pair):
        return rank_differences(found, changes)  # equal differences, of counts for instance, are not normal
    from scipy.stats import ttest_1samp

    result = ttest_1samp(changes, 0.0)
    half = float(result.confidence_interval(1 - LEVEL).high) - estimate.mean
    return replace(
        found,
        test=PAIRED_T,
        p=float(result.pvalue),
        improves=estimate.mean > 0,
        low=shown.mean - half,
        high=shown.mean + half,
    )


def subtract_with_failures(pairs: Sequence[tuple[float, float]]) -> list[float]:
    """Return the differences of outcomes; one with a failure on one side is larger than all others, on two it is 0."""
    finite = [abs(a - b) for a, b in pairs if math.isfinite(a - b)]
    beyond = 2 * max(finite, default=0.0) + 1
    return [0.0 if a == b else a - b if math.isfinite(a - b) else math.copysign(beyond, a - b) for a, b in pairs]


def rank_differences(found: Difference, changes: Sequence[float]) -> Difference:
    """Return a finding with the exact p-value of the signed-rank test, also with ties."""
    import numpy as np
    from scipy.stats import rankdata

    if len(changes) < FEWEST_RANKED:
        return found
    nonzero = np.array([change for change in changes if change])
    steps = (2 * rankdata(abs(nonzero))).astype(int)  # twice the ranks: whole numbers, also with ties
    shares = np.ones(1)  # of the sign patterns, by the sum of the steps that are positive
    for step in steps:
        shares = (np.pad(shares, (0, step)) + np.pad(shares, (step, 0))) / 2
    up = steps[nonzero > 0].sum()
    p = min(1.0, 2 * float(min(shares[: up + 1].sum(), shares[up:].sum())))
    return replace(found, test=SIGNED_RANK, p=p, improves=bool(2 * up > steps.sum()))


# ---------------------------------------------------------------------------------------------------------------------
# Trends


def find_trends(configurations: Sequence[Configuration], metrics: Sequence[str]) -> list[Trend]:
    """Return the trend of every metric along every ordered key, adjusted together."""
    groups = [group for key in configurations[0].values for group in group_by_order(configurations, key)]
    return adjust_by_holm([measure_trend(metric, *group) for metric in metrics for group in groups])


def group_by_order(configurations: Iterable[Configuration], key: str) -> list[tuple[str, list[Configuration]]]:
    """Return a key with configurations that differ in nothing else, by its values, which are at least three.

    Ordered are numbers, and names that differ in a number at their end, as `alpha_0.25`.
    """
    groups: dict[tuple[Any, ...], dict[float, Configuration]] = {}
    for each in configurations:
        if match := ORDERED_VALUE.fullmatch(each.values[key]):
            others = tuple(value for name, value in each.values.items() if name != key)
            groups.setdefault((match[1], *others), {})[float(match[2])] = each
    return [(key, [group[value] for value in sorted(group)]) for group in groups.values() if len(group) > 2]


def measure_trend(metric: str, key: str, group: Sequence[Configuration]) -> Trend:
    """Return the trend of one metric along the configurations of a group, by the seeds that all of them have."""
    from scipy.stats import page_trend_test

    outcomes = [read_outcomes(each, metric) for each in group]
    seeds = [seed for seed in outcomes[0] if all(seed in each for each in outcomes)]
    found = Trend(metric=metric, seeds=len(seeds), key=key, configurations=group)
    if len(seeds) < 2:
        return found
    rows = [[each[seed] for each in outcomes] for seed in seeds]
    up, down = (float(page_trend_test(table).pvalue) for table in (rows, [row[::-1] for row in rows]))
    return replace(found, test=PAGE, p=min(1.0, 2 * min(up, down)), improves=up < down)
