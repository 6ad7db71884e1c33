"""Tables of a comparison: the rows that terminal and page share, rich tables, and compare.csv."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from gantrain import console
from gantrain.comparison.comparison import Comparison, direction_arrow
from gantrain.comparison.configurations import Configuration, describe_weights
from gantrain.comparison.labels import FIRST_KEYS, short_key
from gantrain.comparison.runs import EFFECTIVE_ORDER, provenance
from gantrain.comparison.untrusted import format_setting

if TYPE_CHECKING:
    from rich.table import Table


ESTIMATES = tuple(f"{split}{part}/" for split in ("", "training_") for part in ("missed", "invented"))
NO_BOUND = " (estimate, no bound)"


class Row(NamedTuple):
    """A configuration, or None for training examples in place of samples; `best` says which numbers are marked."""

    configuration: Configuration | None
    descriptions: list[str]
    numbers: list[str]
    best: list[bool]


class MetricTable(NamedTuple):
    """A group of metrics, with the columns about generator weights that every table shows."""

    group: str
    metrics: list[str]
    rows: list[Row]

    @property
    def heads(self) -> list[str]:
        """Heads of the columns of numbers."""
        return [
            metric.removeprefix(f"{self.group}/") + direction_arrow(metric) + NO_BOUND * metric.startswith(ESTIMATES)
            for metric in self.metrics
        ]


def metric_tables(comparison: Comparison) -> Iterator[MetricTable]:
    """Yield a table for each group of metrics, one row a configuration; training examples in place of samples last."""
    for group, names in (comparison.columns or {"no run finished": []}).items():
        metrics = [*names, *comparison.weight_metrics]
        best = {metric: comparison.best(metric) for metric in names}
        rows = [
            Row(
                configuration,
                [configuration.descriptions[head] or "—" for head in comparison.descriptions],
                [configuration.format_metric(metric) for metric in metrics],
                [configuration in best.get(metric, ()) for metric in metrics],
            )
            for configuration in comparison.configurations
        ]
        if any(metric in comparison.reference for metric in names):
            numbers = [comparison.format_reference(metric) for metric in metrics]
            rows.append(Row(None, [""] * len(comparison.descriptions), numbers, [False] * len(metrics)))
        yield MetricTable(group, metrics, rows)


# ---------------------------------------------------------------------------------------------------------------------
# On the terminal


def print_tables(comparison: Comparison) -> None:
    """Print the tables, several for a group of metrics if the terminal is narrow, and the features of the numbers."""
    console.print_tables(*rich_tables(comparison))
    evaluated = (run for run in comparison.runs if run.is_finished and run.evaluation)
    for features in dict.fromkeys(provenance(run).get("features") for run in evaluated):
        if features:
            console.say(f"quality and diversity are measured in features: {features}")


def rich_tables(comparison: Comparison) -> Iterator[Table]:
    """Yield the tables for a terminal of its width."""
    width = console.make_console().width
    if comparison.folders:
        yield from _tables_by_folder(comparison, width)
        return
    keys = list(map(short_key, comparison.keys or FIRST_KEYS[:1]))
    for table in metric_tables(comparison):
        names, numbers = [["#", *keys, "seeds", *comparison.descriptions]], [table.heads]
        for configuration, descriptions, cells, best in table.rows:
            if configuration is None:
                names.append(["", comparison.reference_name, *[""] * len(keys), *descriptions])
            else:
                values = list(configuration.values.values()) or [configuration.label]
                names.append([str(configuration.number), *values, configuration.seeds, *descriptions])
            numbers.append(_mark_best(cells, best))
        yield from _split_table(table.group, names, numbers, width)


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
        rows = [_mark_best(row.numbers, row.best) for row in table.rows]
        numbers = [each[: len(table.metrics) - count] for each in [table.heads, *rows]]
        reference = [["", comparison.reference_name]] if table.rows[-1].configuration is None else []
        yield from _split_table(table.group, [*names, *reference], numbers, width, keeps_empty=False)
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


def _mark_best(cells: list[str], best: list[bool]) -> list[str]:
    return [f"{cell} *" if is_best else cell for cell, is_best in zip(cells, best, strict=True)]


def fold_path(path: str, width: int) -> str:
    """Return a path on one line, or with its name on a second one; of a line longer than `width`, its end."""
    lines = [path] if len(path) <= width else re.split(r"(?<=/)(?=[^/]*$)", path)
    return "\n".join(line if len(line) <= width else f"…{line[1 - width :]}" for line in lines)


def _transpose(rows: list[list[str]]) -> list[list[str]]:
    return [list(column) for column in zip(*rows, strict=True)]


# ---------------------------------------------------------------------------------------------------------------------
# compare.csv


def run_rows(comparison: Comparison) -> list[dict[str, str | int | float | None]]:
    """Return a row for each run: the settings that differ as text, provenance, and all metrics as unrounded numbers.

    All rows have the same keys; a value that a run lacks is None.
    """
    facts = list(dict.fromkeys(name for run in comparison.runs for name in provenance(run)))
    metrics = list(dict.fromkeys(name for run in comparison.runs for name in run.metrics))
    rows: list[dict[str, str | int | float | None]] = []
    for configuration in comparison.configurations:
        for run in configuration.runs:
            described, made = describe_weights(run, run.weights.get(EFFECTIVE_ORDER)), provenance(run)
            about: dict[str, str | int | float | None] = {
                "run": str(run.path),
                "configuration": configuration.label,
                **{short_key(key): value for key, value in configuration.values.items()},
                "seed": _whole_number(run.seed),
                "status": run.status,
                "reason": run.reason,
                "images": _whole_number(format_setting(run.fact("images"))),
                **{head: described[head] for head in comparison.descriptions},
            }
            rows.append(
                about | {name: made.get(name) for name in facts} | {name: run.metrics.get(name) for name in metrics}
            )
    return rows


def _whole_number(text: str) -> int | str:
    return int(text) if re.fullmatch(r"\d{1,18}", text) else text


def csv_text(comparison: Comparison) -> str:
    """Return compare.csv, which has the rows of `run_rows`."""
    rows, text = run_rows(comparison), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_csv_cell, rows[0]))
    for row in rows:
        writer.writerow(map(_csv_cell, row.values()))
    return text.getvalue()


def _csv_cell(value: str | float | None) -> str:
    """Return a value as text; a text that a spreadsheet would take for a formula is quoted."""
    if not isinstance(value, str):
        return "" if value is None else repr(value)
    return f"'{value}" if value[:1] in tuple("=+@-") and not re.fullmatch(r"[-+.0-9e]+", value) else value
