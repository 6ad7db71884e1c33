"""Tables of a comparison: the rows that terminal and page share, and rich tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from gantrain import console
from gantrain.comparison.comparison import Comparison, direction_arrow
from gantrain.comparison.configurations import Configuration
from gantrain.comparison.labels import FIRST_KEYS, short_key
from gantrain.comparison.runs import provenance
from gantrain.comparison.statistics import LEVEL, Finding

if TYPE_CHECKING:
    from rich.table import Table


ESTIMATES = tuple(f"{split}{part}/" for split in ("", "training_") for part in ("missed", "invented"))
NO_BOUND = " (estimate, no bound)"


class Row(NamedTuple):
    """A configuration, or None for training examples in place of samples; `marks` says which numbers are marked."""

    configuration: Configuration | None
    descriptions: list[str]
    numbers: list[str]
    marks: list[bool]

    @property
    def marked_numbers(self) -> list[str]:
        """The numbers with a star at the marked ones."""
        return [f"{cell} *" if is_marked else cell for cell, is_marked in zip(self.numbers, self.marks, strict=True)]


class MetricTable(NamedTuple):
    """A group of metrics, with the columns about generator weights that every table shows."""

    group: str
    metrics: list[str]
    heads: list[str]  # of the columns of numbers
    rows: list[Row]


def metric_tables(comparison: Comparison) -> Iterator[MetricTable]:
    """Yield a table for each group of metrics, one row a configuration; training examples in place of samples last."""
    for group, names in (comparison.columns or {"no run finished": []}).items():
        metrics = [*names, *comparison.weight_metrics]
        better = {metric: comparison.find_better(metric) for metric in names}
        rows = [
            Row(
                each,
                [each.descriptions[head] or "—" for head in comparison.descriptions],
                [
                    "\n".join(filter(None, [each.format_metric(m), comparison.describe_missing_evidence(each, m)]))
                    for m in metrics
                ],
                [each in better.get(metric, ()) for metric in metrics],
            )
            for each in comparison.configurations
        ]
        if any(metric in comparison.reference for metric in names):
            numbers = [comparison.format_reference(metric) for metric in metrics]
            rows.append(Row(None, [""] * len(comparison.descriptions), numbers, [False] * len(metrics)))
        heads = [name_column(group, metric) + NO_BOUND * metric.startswith(ESTIMATES) for metric in metrics]
        yield MetricTable(group, metrics, heads, rows)


def finding_tables(
    comparison: Comparison, group: str, *, is_narrow: bool = False
) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield title, heads and rows of the differences from the baseline and of the trends of a group of metrics.

    There are none of single seeds. Configurations have their numbers only if `is_narrow`.
    """

    def build_rows(findings: Iterable[Finding], describe: Callable[[Any], list[str]]) -> list[list[str]]:
        return [
            [name_column(group, each.metric), *describe(each), format_p(each.holm_p), each.verdict] for each in findings
        ]

    differences, trends = (found.get(group, []) for found in (comparison.differences, comparison.trends))
    if any(each.seeds > 1 for each in differences):
        heads = ["metric", "#" if is_narrow else "configuration", "difference", "Holm's p", "verdict"]
        name = attrgetter("configuration.number" if is_narrow else "configuration.name")
        rows = build_rows(differences, lambda each: [str(name(each)), each.text])
        title = f"{group}: differences from {comparison.baseline.name}, paired by seed, and {1 - LEVEL:.0%} intervals"
        yield title, heads, rows
    if any(each.seeds > 1 for each in trends):
        rows = build_rows(trends, lambda each: [each.text])
        yield f"{group}: trends", ["metric", "along", "Holm's p", "verdict"], rows


def name_column(group: str, metric: str) -> str:
    """Return the head of a metric's column: its name without the group, with the better direction."""
    return metric.removeprefix(f"{group}/") + direction_arrow(metric)


def format_p(p: float | None) -> str:
    """Return a p-value with three digits, a dash for None."""
    return "—" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


# ---------------------------------------------------------------------------------------------------------------------
# On the terminal


def print_tables(comparison: Comparison) -> None:
    """Print the tables, several for a group of metrics if the terminal is narrow, and the features of the numbers."""
    console.print_tables(*rich_tables(comparison))
    evaluated = (run for run in comparison.runs if run.is_finished and run.evaluation)
    for features in dict.fromkeys(provenance(run).get("features") for run in evaluated):
        if features:
            console.say(f"quality and diversity are measured in features: {features}")


def print_failures(comparison: Comparison) -> None:
    """Print a line for each run that does not count, with its status and reason."""
    for path, label, status, reason in comparison.failures:
        console.say(f"{status}: {path}{f' ({label})' if label else ''}: {reason.splitlines()[0]}")


def rich_tables(comparison: Comparison) -> Iterator[Table]:
    """Yield the tables for a terminal of its width.

    If runs are known by their folders, every row begins with its folder. The settings are a table of their own then,
    and so are the columns about generator weights, which otherwise every table repeats.
    """
    width, configurations = console.make_console().width, comparison.configurations
    tables, weights = list(metric_tables(comparison)), len(comparison.weight_metrics) if comparison.folders else 0
    if comparison.folders:
        settings = [[str(each.number), each.label, each.seeds] for each in configurations]
        yield console.build_table(["#", "settings", "seeds"], settings, title="settings")
        folders = [fold_path(folder, width * 2 // 5) for folder in comparison.folders]
        names = [["#", "run"], *([each[0], folder] for each, folder in zip(settings, folders, strict=True))]
    else:
        keys = list(map(short_key, comparison.keys or FIRST_KEYS[:1]))
        names = [["#", *keys, "seeds", *comparison.descriptions]]
        for each, row in zip(configurations, tables[0].rows, strict=False):
            values = list(each.values.values()) or [each.label]
            names.append([str(each.number), *values, each.seeds, *row.descriptions])
    reference = ["", comparison.reference_name, *[""] * (len(names[0]) - 2)]
    for table in tables:
        numbers = [table.heads, *(row.marked_numbers for row in table.rows)]
        shown = [each[: len(each) - weights] for each in numbers]
        yield from _split_table(comparison, table.group, [*names, reference][: len(shown)], shown, width)
        for title, heads, rows in finding_tables(comparison, table.group, is_narrow=True):
            yield console.build_table(heads, rows, right=["difference", "Holm's p"], title=title)
    if comparison.folders and comparison.descriptions:
        first = len(tables[0].metrics) - weights
        shown = [[*comparison.descriptions, *tables[0].heads[first:]]]
        shown += [[*row.descriptions, *row.numbers[first:]] for row in tables[0].rows if row.configuration]
        yield from _split_table(comparison, "weights", names, shown, width)


def _split_table(
    comparison: Comparison, title: str, names: list[list[str]], numbers: list[list[str]], width: int
) -> Iterator[Table]:
    """Yield tables no wider than `width`, each with the columns of names and some of those of numbers; heads first.

    Of runs that are known by their folders, a row without any number is left out.
    """
    columns = _transpose(names)
    for part in console.split_columns(_transpose(numbers), width - sum(map(console.column_width, columns))):
        heads, *rows = _transpose([*columns, *part])
        if comparison.folders:
            rows = [row for row in rows if set(row[len(columns) :]) != {"—"}]
        yield console.build_table(heads, rows, right=[head for head, *_ in part], title=title)


def fold_path(path: str, width: int) -> str:
    """Return a path on one line, or with its name on a second one; of a line longer than `width`, its end."""
    lines = [path] if len(path) <= width else re.split(r"(?<=/)(?=[^/]*$)", path)
    return "\n".join(line if len(line) <= width else f"…{line[1 - width :]}" for line in lines)


def _transpose(rows: list[list[str]]) -> list[list[str]]:
    return [list(column) for column in zip(*rows, strict=True)]
