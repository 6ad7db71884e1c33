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


class MetricTable(NamedTuple):
    """A group of metrics, with the columns about generator weights that every table shows."""

    group: str
    metrics: list[str]
    rows: list[Row]

    @property
    def heads(self) -> list[str]:
        """Heads of the columns of numbers."""
        return [name_column(self.group, metric) + NO_BOUND * metric.startswith(ESTIMATES) for metric in self.metrics]


def metric_tables(comparison: Comparison) -> Iterator[MetricTable]:
    """Yield a table for each group of metrics, one row a configuration; training examples in place of samples last."""
    for group, names in (comparison.columns or {"no run finished": []}).items():
        metrics = [*names, *comparison.weight_metrics]
        better = {metric: comparison.find_better(metric) for metric in names}
        rows = [
            Row(
                each,
                [each.descriptions[head] or "—" for head in comparison.descriptions],
                ["\n".join(filter(None, [each.format_metric(m), comparison.describe_doubt(each, m)])) for m in metrics],
                [each in better.get(metric, ()) for metric in metrics],
            )
            for each in comparison.configurations
        ]
        if any(metric in comparison.reference for metric in names):
            numbers = [comparison.format_reference(metric) for metric in metrics]
            rows.append(Row(None, [""] * len(comparison.descriptions), numbers, [False] * len(metrics)))
        yield MetricTable(group, metrics, rows)


class FindingTable(NamedTuple):
    """The tests of one group of metrics; the last column but one has Holm's p, the last what it decides."""

    title: str
    heads: list[str]
    rows: list[list[str]]


def finding_tables(comparison: Comparison, group: str, *, is_narrow: bool = False) -> Iterator[FindingTable]:
    """Yield the differences from the baseline and the trends of a group of metrics; none of single seeds.

    Configurations have their numbers only if `is_narrow`.
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
        yield FindingTable(
            f"{group}: differences from {comparison.baseline.name}, paired by seed, and {1 - LEVEL:.0%} intervals",
            heads,
            rows,
        )
    if any(each.seeds > 1 for each in trends):
        rows = build_rows(trends, lambda each: [each.text])
        yield FindingTable(f"{group}: trends", ["metric", "along", "Holm's p", "verdict"], rows)


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
    """Yield the tables for a terminal of its width."""
    width = console.make_console().width
    if comparison.folders:
        yield from _tables_by_folder(comparison, width)
        return
    keys = list(map(short_key, comparison.keys or FIRST_KEYS[:1]))
    for table in metric_tables(comparison):
        names, numbers = [["#", *keys, "seeds", *comparison.descriptions]], [table.heads]
        for configuration, descriptions, cells, marks in table.rows:
            if configuration is None:
                names.append(["", comparison.reference_name, *[""] * len(keys), *descriptions])
            else:
                values = list(configuration.values.values()) or [configuration.label]
                names.append([str(configuration.number), *values, configuration.seeds, *descriptions])
            numbers.append(_mark_cells(cells, marks))
        yield from _split_table(table.group, names, numbers, width)
        yield from _list_tests(comparison, table.group)


def _tables_by_folder(comparison: Comparison, width: int) -> Iterator[Table]:
    """Yield a table of settings, and for each group of metrics tables whose rows begin with the run's folder.

    The columns about generator weights, which elsewhere every table repeats, are a table of their own.
    """
    settings = [[str(each.number), each.label, each.seeds] for each in comparison.configurations]
    yield console.build_table(["#", "settings", "seeds"], settings, title="settings")
    folders = [fold_path(folder, width * 2 // 5) for folder in comparison.folders]
    names = [["#", "run"], *([each[0], folder] for each, folder in zip(settings, folders, strict=True))]
    tables, count = list(metric_tables(comparison)), len(comparison.weight_metrics)
    for table in tables:
        rows = [_mark_cells(row.numbers, row.marks) for row in table.rows]
        numbers = [each[: len(table.metrics) - count] for each in [table.heads, *rows]]
        reference = [["", comparison.reference_name]] if table.rows[-1].configuration is None else []
        yield from _split_table(table.group, [*names, *reference], numbers, width, keeps_empty=False)
        yield from _list_tests(comparison, table.group)
    if comparison.descriptions:
        first = len(tables[0].metrics) - count
        rows = [[*row.descriptions, *row.numbers[first:]] for row in tables[0].rows if row.configuration]
        heads = [*comparison.descriptions, *tables[0].heads[first:]]
        yield from _split_table("weights", names, [heads, *rows], width, keeps_empty=False)


def _split_table(
    title: str, names: list[list[str]], numbers: list[list[str]], width: int, *, keeps_empty: bool = True
) -> Iterator[Table]:
    """Yield tables no wider than `width`, each with the columns of names and some of those of numbers; heads first.

    Unless `keeps_empty`, a row without any number is left out.
    """
    columns = _transpose(names)
    for part in console.split_columns(_transpose(numbers), width - sum(map(console.column_width, columns))):
        heads, *rows = _transpose([*columns, *part])
        rows = [row for row in rows if keeps_empty or set(row[len(columns) :]) != {"—"}]
        yield console.build_table(heads, rows, right=[head for head, *_ in part], title=title)


def _list_tests(comparison: Comparison, group: str) -> Iterator[Table]:
    for title, heads, rows in finding_tables(comparison, group, is_narrow=True):
        yield console.build_table(heads, rows, right=["difference", "Holm's p"], title=title)


def _mark_cells(cells: list[str], marks: list[bool]) -> list[str]:
    return [f"{cell} *" if is_marked else cell for cell, is_marked in zip(cells, marks, strict=True)]


def fold_path(path: str, width: int) -> str:
    """Return a path on one line, or with its name on a second one; of a line longer than `width`, its end."""
    lines = [path] if len(path) <= width else re.split(r"(?<=/)(?=[^/]*$)", path)
    return "\n".join(line if len(line) <= width else f"…{line[1 - width :]}" for line in lines)


def _transpose(rows: list[list[str]]) -> list[list[str]]:
    return [list(column) for column in zip(*rows, strict=True)]
