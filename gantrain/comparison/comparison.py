"""Comparison of runs: configurations, their metrics as mean ± standard deviation over seeds, and which are best.

Only finished runs count towards a number; the standard deviation is the sample's, with n − 1. A lower bound on a
divergence, a loss or a calibration is not a score: neither a lower nor a higher value is better, so nothing is marked.
Metrics of sample quality and diversity have a direction, and are compared with those of a baseline, seed by seed, only
if all runs were measured in the same way and on the same data.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gantrain.comparison.configurations import (
    FOLLOWED,
    Configuration,
    Estimate,
    choose_baseline,
    error_metric,
    format_estimate,
    group_runs,
)
from gantrain.comparison.labels import compared_settings, name_discriminator
from gantrain.comparison.runs import BOUNDS, EFFECTIVE_ORDER, WEIGHTS, Run, read_runs
from gantrain.comparison.statistics import BETTER, WORSE, Difference, F, Trend, find_differences, find_trends
from gantrain.comparison.untrusted import clean_text, finite_number
from gantrain.errors import DataError
from gantrain.evaluation.evaluation import CONDITIONS, name_reference
from gantrain.evaluation.metrics import better_direction
from gantrain.objectives.critic_objective import OWN
from gantrain.objectives.critics import CRITICS
from gantrain.runs.checkpoints import BEST

JOB = re.compile(r"\d+(-|$)")  # begins the name of a run of a sweep
MAX_BOUND_COLUMNS = 4  # of a table
COMMON = "js"  # the divergence whose missed and invented parts all runs report
WEIGHT_METRICS = tuple(WEIGHTS + name for name in ("beta", "effective_order", "asked_share", "effective_sample_size"))
MOST_NAMED = 3  # runs in a note
NOT_RANKABLE = (
    "the runs differ in their data, or in how they were evaluated (see where the numbers come from): their metrics "
    "cannot be ranked"
)


@dataclass(frozen=True)
class Comparison:
    """Configurations, what differs between them, and what was left out."""

    configurations: list[Configuration]  # in the order of their first run
    keys: list[str]  # settings that tell the configurations apart
    differing: list[str]  # `keys`, and the settings that differ because they follow from one of them
    unreadable: dict[Path, str]  # folders that cannot be read, with the reason
    notes: list[str]  # sentences about runs that were left out or cannot be ranked
    baseline: Configuration  # from which differences are measured

    @cached_property
    def runs(self) -> list[Run]:
        """All runs that were compared."""
        return [run for configuration in self.configurations for run in configuration.runs]

    @cached_property
    def folders(self) -> list[str]:
        """Folder of each configuration below that of all runs: of its only run, or the one that holds its runs.

        Empty for the runs of one sweep, whose settings say which they are.
        """
        if len({run.path.parent for run in self.runs}) == 1 and all(JOB.match(run.path.name) for run in self.runs):
            return []
        top = os.path.commonpath([run.path.absolute().parent for run in self.runs])
        names = []
        for configuration in self.configurations:
            first, *others = [run.path.absolute() for run in configuration.runs]
            name = os.path.relpath(os.path.commonpath([first, *others]), top)
            names.append(f"{os.path.relpath(first, top)} and {len(others)} more" if name == "." else name)
        return list(map(clean_text, names))

    @cached_property
    def failures(self) -> list[tuple[Path, str, str, str]]:
        """Folder, label of the configuration, status and reason of every run that does not count."""
        failures = [
            (run.path, configuration.label, run.status, run.reason)
            for configuration in self.configurations
            for run in configuration.runs
            if not run.is_finished
        ]
        return failures + [(path, "", "unreadable", reason) for path, reason in self.unreadable.items()]

    @cached_property
    def metrics(self) -> list[str]:
        """Names of all metrics of finished runs."""
        return list(dict.fromkeys(name for run in self.runs if run.is_finished for name in run.metrics))

    @cached_property
    def columns(self) -> dict[str, list[str]]:
        """Metrics of the tables by group: quality, diversity, training; empty groups are left out."""
        divergences = self.divergence_patterns("disc_div")[:MAX_BOUND_COLUMNS]
        bounds = [f"(training_)?{self.bound_group}/{divergence}" for divergence in divergences]
        groups = {
            "quality": ["quality/.*(?<!_error)"],
            "diversity": ["diversity/.*(?<!_error)"],
            "training": [
                *("loss/.*", "discriminator/(pair_)?accuracy", *bounds, ".*estimate/wasserstein"),
                "ratio/(calibration_q|effective_sample_size)",
            ],
            "parts": [f"(training_)?{part}(_bound)?/{COMMON}" for part in ("missed", "invented")],
        }
        columns = {
            group: [name for pattern in patterns for name in self.metrics if re.fullmatch(pattern, name)]
            for group, patterns in groups.items()
        }
        return {group: names for group, names in columns.items() if names}

    @property
    def bound_group(self) -> str:
        """Group of the bounds that are shown: those by the recalibrated ratio if the regularizers of the runs differ.

        A regularizer such as R1 makes log-ratios too small, and their bounds with them.
        """
        return BOUNDS[any(key.startswith("regularizer.") for key in self.differing)]

    @cached_property
    def weight_metrics(self) -> list[str]:
        """Metrics of generator weights that at least one finished run has; every table shows them."""
        return [metric for metric in WEIGHT_METRICS if metric in self.metrics]

    @cached_property
    def descriptions(self) -> list[str]:
        """Heads of the columns of `Configuration.descriptions` that at least one run has; every table shows them."""
        found = [head for each in self.configurations for head, text in each.descriptions.items() if text]
        return [head for head in dict.fromkeys(found) if head != FOLLOWED or EFFECTIVE_ORDER in self.metrics]

    def divergence_patterns(self, *players: str) -> list[str]:
        """Regular expressions that match the divergences of `disc_div` or `gen_div`, one for each.

        That of a critic with a loss of its own is the one whose bound is its headline.
        """
        names = [run.settings.get(f"{player}.name", "") for player in players for run in self.runs]
        critics = [CRITICS[name] for run in self.runs if (name := name_discriminator(run)) in CRITICS]
        names += [critic.headline.rpartition("/")[2] for critic in critics]
        return [re.escape(name) for name in dict.fromkeys(names) if name not in ("", OWN)]

    @cached_property
    def is_rankable(self) -> bool:
        """Whether all runs have the same data and all evaluations the same conditions.

        All evaluations are of the end of their run, too, or at one earlier clock, or of best.pt.
        """
        evaluated = [run for run in self.runs if run.is_finished and run.evaluation]
        conditions = {json.dumps([run.evaluation.get(key) for key in CONDITIONS]) for run in evaluated}
        early = {run.early_clock for run in evaluated}
        data = {json.dumps(run.fact("data", "fingerprint")) for run in self.runs if run.is_finished}
        best = all(run.evaluation.get("checkpoint") == BEST for run in evaluated)
        return len(conditions) <= 1 and len(data) <= 1 and (len(early) <= 1 or best)

    @cached_property
    def reference(self) -> dict[str, float]:
        """Metrics of training examples in place of samples; empty unless `is_rankable`."""
        found = [run.reference for run in reversed(self.runs) if run.is_finished and self.is_rankable]
        return {name: value for each in found for name, value in each.items()}

    @cached_property
    def reference_name(self) -> str:
        """Name of the row of training examples."""
        counts = next((run.evaluation for run in self.runs if run.is_finished and run.reference), {})
        return name_reference(finite_number(counts.get("reference_count")), finite_number(counts.get("count")))

    def format_reference(self, metric: str) -> str:
        """Format a metric of training examples."""
        value, error = self.reference.get(metric), self.reference.get(error_metric(metric))
        return format_estimate(None if value is None else Estimate(value, None, 1), error=error)

    def best(self, metric: str) -> list[Configuration]:
        """Configurations with the best mean of a metric, out of those of which every run has it.

        The others are left out since the survivors of failures would look better than they are. Empty if the metric
        has no better direction, or runs cannot be ranked.
        """
        means = [(c, mean) for c in self.configurations if (mean := c.complete_mean(metric)) is not None]
        if len(means) < 2 or not (sign := better_direction(metric)) or not self.is_rankable:
            return []
        top = max(sign * mean for _, mean in means)
        return [configuration for configuration, mean in means if sign * mean == top]

    @cached_property
    def differences(self) -> dict[str, list[Difference]]:
        """Differences from the baseline by group of metrics, of those that have a better direction."""
        return self._test(lambda metrics: find_differences(self.configurations, self.baseline, metrics))

    @cached_property
    def trends(self) -> dict[str, list[Trend]]:
        """Trends along ordered settings by group of metrics, of those that have a better direction."""
        return self._test(lambda metrics: find_trends(self.configurations, metrics))

    def _test(self, find: Callable[[list[str]], list[F]]) -> dict[str, list[F]]:
        ranked = {group: list(filter(better_direction, names)) for group, names in self.columns.items()}
        found = {group: find(metrics) for group, metrics in ranked.items() if metrics and self.is_rankable}
        return {group: findings for group, findings in found.items() if findings}

    def _differences_in(self, metric: str) -> list[Difference]:
        return [each for each in itertools.chain(*self.differences.values()) if each.metric == metric]

    def find_better(self, metric: str) -> list[Configuration]:
        """Return the configurations that are better than the baseline, or the baseline if all others are worse.

        Only those of which every run has the metric: the survivors of failures would look better than they are.
        """
        found = self._differences_in(metric)
        better = [each.configuration for each in found if each.verdict == BETTER]
        if found and all(each.verdict == WORSE for each in found):
            better = [self.baseline]
        return [configuration for configuration in better if configuration.complete_mean(metric) is not None]

    def describe_missing_evidence(self, configuration: Configuration, metric: str) -> str:
        """Return what would decide about the best mean; empty for another one, or if it is decided."""
        if configuration not in self.best(metric):
            return ""
        found = self._differences_in(metric)
        own = [each for each in found if each.configuration is configuration] or found
        undecided = [each for each in own if each.missing_evidence]
        return max(undecided, key=lambda each: each.more_seeds or math.inf).missing_evidence if undecided else ""


def direction_arrow(metric: str) -> str:
    """Return ` ↑`, ` ↓` or nothing, for the end of a metric's name."""
    return {1: " ↑", -1: " ↓", 0: ""}[better_direction(metric)]


# ---------------------------------------------------------------------------------------------------------------------
# Which runs are compared


def compare(folders: Iterable[Path], baseline: str | None = None) -> Comparison:
    """Compare the runs in and below `folders` with a baseline, see `choose_baseline`.

    Raises DataError if no run can be read, ConfigError for a baseline that is none of the configurations.
    """
    folders = list(folders)
    found, unreadable = read_runs(folders)
    if not found:
        reasons = "".join(f"\n  {path}: {reason}" for path, reason in unreadable.items())
        raise DataError(
            f"no run that can be read in {', '.join(map(str, folders))}; a run folder holds .hydra/config.yaml and "
            f"summary.json{reasons}"
        )
    runs, notes = keep_newest(found)
    configurations, keys, differing = group_runs(runs)
    chosen = choose_baseline(configurations, baseline)
    if early := [
        f"{run.path} (at {run.early_clock:,.0f} of {run.fact('images'):,.0f} images)"
        for run in runs
        if run.is_finished and run.early_clock is not None
    ]:
        more = f" and {len(early) - MOST_NAMED} more" if len(early) > MOST_NAMED else ""
        notes.append(f"not evaluated at the end of the run: {', '.join(early[:MOST_NAMED])}{more}")
    comparison = Comparison(configurations, keys, differing, unreadable, notes, chosen)
    if not comparison.is_rankable:
        comparison.notes.append(NOT_RANKABLE)
    return comparison


def keep_newest(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """Return one run for each configuration and seed, the newest that finished, and a note on every other one."""
    groups: dict[tuple[str, frozenset[tuple[str, str]]], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.seed, frozenset(compared_settings(run).items())), []).append(run)
    kept, notes = [], []
    for same in groups.values():
        newest = max(same, key=lambda run: (run.is_finished, clean_text(run.fact("started"))))
        others = [run.path for run in same if run is not newest]
        notes += [f"{path} is left out: {newest.path} has the same settings and seed" for path in others]
        kept.append(newest)
    return kept, notes
