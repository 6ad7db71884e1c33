"""Runs side by side: what differs between them, and mean ± standard deviation over seeds.

Runs that differ only in seed (and in where, or how often, they wrote) are one configuration. Its label is what tells
it from the other configurations and nothing else: a key that follows from another one of its section, as
`optimizer.betas` from `optimizer.name`, is left out. Only finished runs count towards a number; the standard deviation
is the sample's, with n − 1.

A lower bound on a divergence, a loss or a calibration is no score: none of them is better when it is lower or higher,
so nothing is marked as best. Metrics of sample quality and diversity have a direction, and are ranked only where all
were measured in the same way and on the same data.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from gantrain.comparison import runs as collection
from gantrain.comparison.provenance import provenance
from gantrain.comparison.runs import Run, clean, number, within
from gantrain.errors import DataError
from gantrain.evaluation.evaluation import CONDITIONS, name_reference
from gantrain.evaluation.metrics import better_direction
from gantrain.runs.checkpoints import BEST

# Keys and sections that may differ between the runs of one configuration: where and how often something is written.
NOT_COMPARED = (
    "seed",
    "run_dir",
    "resume",
    "device",
    "dataset.root",
    "train.report_every_images",
    "train.sample_every_images",
    "train.checkpoint_every_images",
    "train.checkpoint_min_seconds",
    "train.keep_checkpoints",
    "evaluate",
    "best",
    "logger",
)
FIRST = ("gen_div.name", "disc_div.name", "gen_objective")  # in a label
LONGEST_VALUE, MOST_KEYS = 60, 12  # of a label
MOST_BOUNDS = 4  # in the table
ROUNDED_FROM = 1e6  # a number that is written with an exponent
SIGNIFICANT = 4
ROUNDING = 1e-12  # a smaller deviation, relative to the mean, is arithmetic's
MOST_NAMED = 3  # runs in a note


class Estimate(NamedTuple):
    """Mean and sample standard deviation of `n` runs; no deviation for one."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The estimate from one or more values."""
        mean = math.fsum(values) / len(values)
        if len(values) == 1:
            return cls(mean, None, 1)
        return cls(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)), len(values))

    def __str__(self) -> str:
        """`0.812 ± 0.034`: the deviation to two digits and the mean to the same place; four digits without one."""
        if not self.sd or self.sd < abs(self.mean) * ROUNDING:
            text = rounded(self.mean) + ("" if self.sd is None else " ± 0")
        elif max(abs(self.mean), self.sd) >= ROUNDED_FROM or self.sd < 1 / ROUNDED_FROM:
            digits = magnitude(self.mean) - magnitude(self.sd) + 2 if self.mean else 1
            text = f"{self.mean:.{min(max(digits, 1), SIGNIFICANT)}g} ± {self.sd:.2g}"
        else:
            places = max(0, 1 - magnitude(self.sd))
            text = f"{self.mean:,.{places}f} ± {self.sd:,.{places}f}"
        return f"−{text[1:]}" if text.startswith("-") else text


def rounded(value: float) -> str:
    """Four digits, and whole numbers up to a million in full."""
    return f"{value:,.0f}" if 10**SIGNIFICANT <= abs(value) < ROUNDED_FROM else f"{value:.{SIGNIFICANT}g}"


def magnitude(value: float) -> int:
    """The power of ten of a number's first digit."""
    return math.floor(math.log10(abs(value)))


@dataclass(frozen=True)
class Configuration:
    """Runs that differ only in seed, in its order; `values` are the settings that tell it from the others."""

    number: int
    label: str
    values: dict[str, str]
    runs: list[Run]

    @cached_property
    def finished(self) -> list[Run]:
        """The runs that count."""
        return [run for run in self.runs if run.finished]

    @property
    def shown(self) -> list[Run]:
        """The runs whose curves are drawn: those that finished, else all that there are."""
        return self.finished or self.runs

    @property
    def seeds(self) -> str:
        """How many seeds count, of how many."""
        return f"{len(self.finished)}" + (f" of {len(self.runs)}" if len(self.finished) < len(self.runs) else "")

    def estimate(self, metric: str) -> Estimate | None:
        """A metric over seeds; None where no finished run has it."""
        values = [run.metrics[metric] for run in self.finished if metric in run.metrics]
        return Estimate.of(values) if values else None

    def written(self, metric: str) -> str:
        """The estimate as text, with its number of seeds where some lack it, and the mean error of one measurement."""
        found, error = self.estimate(metric), self.estimate(error_of(metric))
        some = f"{found.n} of {len(self.finished)}" if found and found.n < len(self.finished) else ""
        return noted(found, some, error and error.mean)

    def curve(self, name: str) -> list[tuple[float, Estimate]]:
        """A metric against the clock, at the clocks that all its runs reported; of all runs where none finished."""
        values: dict[float, list[float]] = {}
        for report in itertools.chain.from_iterable(run.reports for run in self.shown):
            if name in report:
                values.setdefault(report["images"], []).append(report[name])
        most = max(map(len, values.values()), default=0)
        return [(images, Estimate.of(values[images])) for images in sorted(values) if len(values[images]) == most]

    def class_shares(self, whose: Literal["data", "samples"]) -> dict[str, Estimate]:
        """The share of each class in the evaluation's histogram, over seeds."""
        shares = [shares for run in self.finished if (shares := _shares(run, whose))]
        names = sorted({name for each in shares for name in each}, key=collection.in_order)
        return {name: Estimate.of([each.get(name, 0.0) for each in shares]) for name in names}


def _shares(run: Run, whose: str) -> dict[str, float]:
    counts = within(run.evaluation, "class_histogram", whose)
    found = {clean(name): number(count) or 0.0 for name, count in counts.items()} if isinstance(counts, dict) else {}
    total = math.fsum(found.values())
    return {name: count / total for name, count in found.items()} if total > 0 and min(found.values()) >= 0 else {}


@dataclass(frozen=True)
class Comparison:
    """Everything that was found.

    `keys` tell the configurations apart, `differing` adds what follows from them; `notes` say what was left out and
    why.
    """

    configurations: list[Configuration]
    keys: list[str]
    differing: list[str]
    unreadable: dict[Path, str]
    notes: list[str]

    @cached_property
    def runs(self) -> list[Run]:
        """All runs that were compared."""
        return [run for configuration in self.configurations for run in configuration.runs]

    @cached_property
    def failures(self) -> list[tuple[Path, str, str, str]]:
        """Folder, configuration, status and reason of every run that does not count."""
        ended = [
            (run.path, configuration.label, run.status, run.reason)
            for configuration in self.configurations
            for run in configuration.runs
            if not run.finished
        ]
        return [*ended, *((path, "", "unreadable", reason) for path, reason in self.unreadable.items())]

    @cached_property
    def metrics(self) -> list[str]:
        """The names of all metrics of finished runs."""
        return list(dict.fromkeys(name for run in self.runs if run.finished for name in run.metrics))

    @cached_property
    def columns(self) -> dict[str, list[str]]:
        """The metrics that are shown, by group; empty groups are left out."""
        groups = {group: self._named(rf"{group}/.*(?<!_error)") for group in ("quality", "diversity")}
        bounds = [name for divergence in self.trained("disc_div") for name in self._named(rf".*bound/{divergence}")]
        training = [*self._named("loss/.*"), *self._named("discriminator/accuracy"), *bounds[:MOST_BOUNDS]]
        groups["training"] = [*training, *self._named("ratio/calibration_q|ratio/effective_sample_size")]
        return {group: names for group, names in groups.items() if names}

    def _named(self, pattern: str) -> list[str]:
        return [name for name in self.metrics if re.fullmatch(pattern, name)]

    def trained(self, *players: str) -> list[str]:
        """The names of the divergences that players train on, as regular expressions that match only themselves."""
        names = (run.settings.get(f"{player}.name", "") for player in players for run in self.runs)
        return [re.escape(name) for name in dict.fromkeys(names) if name]

    @cached_property
    def measured_alike(self) -> bool:
        """Whether all evaluations agree in number, split, features and network, and all runs in their data.

        All are of their run's end, too, or of one earlier clock, or of best.pt.
        """
        evaluated = [run for run in self.runs if run.finished and run.evaluation]
        made = {json.dumps([run.evaluation.get(key) for key in CONDITIONS]) for run in evaluated}
        early = {run.early_clock for run in evaluated}
        data = {json.dumps(run.fact("data", "fingerprint")) for run in self.runs if run.finished}
        best = all(run.evaluation.get("checkpoint") == BEST for run in evaluated)
        return len(made) <= 1 and len(data) <= 1 and (len(early) <= 1 or best)

    @cached_property
    def reference(self) -> dict[str, float]:
        """What as many training examples get in place of samples; empty where runs were not measured alike."""
        found = [run.reference for run in reversed(self.runs) if run.finished and self.measured_alike]
        return {name: value for each in found for name, value in each.items()}

    @cached_property
    def reference_name(self) -> str:
        """What the row of training examples is called."""
        counts = next((run.evaluation for run in self.runs if run.finished and run.reference), {})
        return name_reference(number(counts.get("reference_count")), number(counts.get("count")))

    def referred(self, metric: str) -> str:
        """What training examples get, as text."""
        value = self.reference.get(metric)
        return noted(None if value is None else Estimate.of([value]), error=self.reference.get(error_of(metric)))

    def best(self, metric: str) -> list[Configuration]:
        """The configurations with the best mean, of those of which every run has the metric: the survivors of failures
        would look better than they are. None where no direction is better, or nothing can be compared."""
        estimates = [(c, c.estimate(metric)) for c in self.configurations]
        found = [(c, e.mean) for c, e in estimates if e is not None and e.n == len(c.runs)]
        if len(found) < 2 or not (sign := better_direction(metric)) or not self.measured_alike:
            return []
        top = max(sign * mean for _, mean in found)
        return [configuration for configuration, mean in found if sign * mean == top]


def noted(estimate: Estimate | None, some: str = "", error: float | None = None) -> str:
    """An estimate as text, and after it in brackets how many runs it is of, and the error of one measurement."""
    notes = [some, "" if error is None else f"error {error:.2g}"]
    about = ", ".join(filter(None, notes))
    return "—" if estimate is None else f"{estimate}" + (f" ({about})" if about else "")


def error_of(metric: str) -> str:
    """The metric that holds another one's error of measurement."""
    return f"{metric}_error"


def arrow(metric: str) -> str:
    """Which direction of a metric is better, after its name."""
    return {1: " ↑", -1: " ↓", 0: ""}[better_direction(metric)]


# ---------------------------------------------------------------------------------------------------------------------
# Grouping


def compare(folders: Iterable[Path]) -> Comparison:
    """The runs in and below `folders`, grouped. Raises DataError where there is none."""
    folders = list(folders)
    runs, unreadable = collection.collect(folders)
    if not runs:
        reasons = "".join(f"\n  {path}: {reason}" for path, reason in unreadable.items())
        raise DataError(
            f"no run that can be read in {', '.join(map(str, folders))}; a run folder holds .hydra/config.yaml and "
            f"summary.json{reasons}"
        )
    kept, notes = newest_of_each(runs)
    groups: dict[frozenset[tuple[str, str]], list[Run]] = {}
    for run in kept:
        groups.setdefault(frozenset(compared(run).items()), []).append(run)
    settings = [compared(members[0]) for members in groups.values()]
    keys = telling(every := differing(settings), settings)
    configurations = [
        Configuration(
            index, label(keys, each), {key: each.get(key, "—") for key in keys}, sorted(members, key=_by_seed)
        )
        for index, (each, members) in enumerate(zip(settings, groups.values(), strict=True), start=1)
    ]
    scalars = [key for key in every if key in keys or not re.search(r"\.[0-9]", key)]
    comparison = Comparison(configurations, keys, scalars, unreadable, [*notes, *evaluated_early(kept)])
    if not comparison.measured_alike:
        comparison.notes.append(
            "the runs differ in their data, or in how they were evaluated (see where the numbers come from): "
            "their metrics cannot be ranked"
        )
    return comparison


def compared(run: Run) -> dict[str, str]:
    """The settings that make a configuration."""
    sections = tuple(f"{name}." for name in NOT_COMPARED)
    return {key: v for key, v in run.settings.items() if key not in NOT_COMPARED and not key.startswith(sections)}


def newest_of_each(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """One run for each configuration and seed, the newest that finished, and a note on every other one."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], list[Run]] = {}
    for run in runs:
        found.setdefault((run.seed, frozenset(compared(run).items())), []).append(run)
    kept = [max(same, key=lambda run: (run.finished, clean(run.fact("started")))) for same in found.values()]
    notes = [
        f"{run.path} is left out: {chosen.path} has the same settings and seed"
        for chosen, same in zip(kept, found.values(), strict=True)
        for run in same
        if run is not chosen
    ]
    return kept, notes


def evaluated_early(runs: Iterable[Run]) -> Iterator[str]:
    """A note on the finished runs whose evaluation is not of their end: of best.pt, or from before they went on."""
    early = [
        f"{run.path} (at {run.early_clock:,.0f} of {run.fact('images'):,.0f} images)"
        for run in runs
        if run.finished and run.early_clock is not None
    ]
    if early:
        more = f" and {len(early) - MOST_NAMED} more" if len(early) > MOST_NAMED else ""
        yield f"not evaluated at the end of the run: {', '.join(early[:MOST_NAMED])}{more}"


def differing(settings: Sequence[dict[str, str]]) -> list[str]:
    """The keys that do not have one value everywhere, the divergences' first."""
    keys = dict.fromkeys([*FIRST, *(key for each in settings for key in each)])
    return [key for key in keys if len({each.get(key) for each in settings}) > 1]


def telling(keys: Iterable[str], settings: Sequence[dict[str, str]]) -> list[str]:
    """The keys, without those that follow from the `name` of their section."""
    keys = list(keys)

    def follows(key: str) -> bool:
        name = f"{key.partition('.')[0]}.name"
        pairs = {(each.get(name), each.get(key)) for each in settings}
        return key != name and name in keys and len(pairs) == len({named for named, _ in pairs})

    return [key for key in keys if not follows(key)]


def label(keys: Sequence[str], settings: dict[str, str]) -> str:
    """`kl` where one key differs, else `kl ratio optimizer=SGD`: divergence and objective of G speak for themselves,
    unless D's divergence differs too."""
    if len(keys) < 2:
        return shortened(settings.get((keys or FIRST)[0], "—"))
    bare = {"gen_objective"} | ({"gen_div.name"} if "disc_div.name" not in keys else set())
    heads = ["" if key in bare else f"{short(key)}=" for key in keys[:MOST_KEYS]]
    words = [f"{head}{shortened(settings.get(key, '—'))}" for head, key in zip(heads, keys, strict=False)]
    return " ".join([*words, *(["…"] if len(keys) > MOST_KEYS else [])])


def short(key: str) -> str:
    """A key as it is typed: `gen_div` for `gen_div.name`."""
    return shortened(key.removesuffix(".name"))


def shortened(text: str) -> str:
    """A text that is not too long for a label."""
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def _by_seed(run: Run) -> list[tuple[float, str]]:
    return collection.in_order(run.seed)


# ---------------------------------------------------------------------------------------------------------------------
# compare.csv


def table(comparison: Comparison) -> str:
    """compare.csv: one row a run, with its settings that differ, its provenance and all metrics in full precision."""
    facts = list(dict.fromkeys(name for run in comparison.runs for name in provenance(run)))
    metrics = list(dict.fromkeys(name for run in comparison.runs for name in run.metrics))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    settings = [short(key) for key in comparison.keys]
    heads = ["run", "configuration", *settings, "seed", "status", "reason", "images", *facts, *metrics]
    writer.writerow(map(_cell, heads))
    for configuration in comparison.configurations:
        for run in configuration.runs:
            made, values = provenance(run), run.metrics
            about = [str(run.path), configuration.label, *configuration.values.values(), run.seed]
            about += [run.status, run.reason, collection.worded(run.fact("images"))]
            about += [made.get(name, "") for name in facts]
            writer.writerow([*map(_cell, about), *(repr(values[name]) if name in values else "" for name in metrics)])
    return text.getvalue()


def _cell(text: str) -> str:
    """A text that a spreadsheet takes for text, and not for a formula."""
    return f"'{text}" if text[:1] in tuple("=+@-") and not re.fullmatch(r"[-+.0-9e]+", text) else text
