"""Tables of a comparison: the rows that terminal and page share, rich tables, and compare.csv."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from gantrain.comparison.comparison import Comparison, direction_arrow
from gantrain.comparison.configurations import FIRST_KEYS, Configuration, short_key
from gantrain.comparison.runs import EFFECTIVE_ORDER, describe_weights, provenance
from gantrain.comparison.untrusted import format_setting
from gantrain.console import column_width, ignore_closed_output, make_console, split_columns

if TYPE_CHECKING:
    from rich.table import Table


class Row(NamedTuple):
    """A configuration, or None for training examples in place of samples; `best` says which numbers are marked."""

    configuration: Configuration | None
    descriptions: list[str]
    numbers: list[str]
    best: list[bool]


class MetricTable(NamedTuple):
    """A group of metrics, with the columns about generator weights that every table shows."""

    group: str
    descriptions: list[str]
    metrics: list[str]
    rows: list[Row]

    @property
    def heads(self) -> list[str]:
        """Heads of the columns of numbers."""
        return [metric.removeprefix(f"{self.group}/") + direction_arrow(metric) for metric in self.metrics]


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
            empty = [""] * len(comparison.descriptions)
            rows.append(Row(None, empty, list(map(comparison.format_reference, metrics)), [False] * len(metrics)))
        yield MetricTable(group, comparison.descriptions, metrics, rows)


# ---------------------------------------------------------------------------------------------------------------------
# On the terminal


def print_tables(comparison: Comparison) -> None:
    """Print the tables; a group of metrics is several tables if the terminal is too narrow for one."""
    with ignore_closed_output():
        for table in rich_tables(comparison):
            make_console().print(table)


def rich_tables(comparison: Comparison) -> Iterator[Table]:
    """Yield the tables for a terminal, as narrow as it is."""
    keys = list(map(short_key, comparison.keys or FIRST_KEYS[:1]))
    for table in metric_tables(comparison):
        names, numbers = [["#", *keys, "seeds", *table.descriptions]], [table.heads]
        for configuration, descriptions, cells, best in table.rows:
            if configuration is None:
                names.append(["", comparison.reference_name, *[""] * len(keys), *descriptions])
            else:
                values = list(configuration.values.values()) or [configuration.label]
                names.append([str(configuration.number), *values, configuration.seeds, *descriptions])
            numbers.append([f"{cell} *" if is_best else cell for cell, is_best in zip(cells, best, strict=True)])
        columns = _transpose(names)
        for part in split_columns(_transpose(numbers), make_console().width - sum(map(column_width, columns))):
            yield _rich_table(table.group, columns, part)


def _transpose(rows: list[list[str]]) -> list[list[str]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _rich_table(title: str, names: Sequence[list[str]], numbers: Sequence[list[str]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text  # a plain str would be read as markup

    style = box.SIMPLE_HEAD if make_console().is_terminal else None
    table = Table(title=title, title_justify="left", box=style, pad_edge=False)
    for head, *_ in names:
        table.add_column(Text(head), overflow="fold")
    for head, *_ in numbers:
        table.add_column(Text(head), justify="right", no_wrap=True)
    for cells in zip(*(column[1:] for column in (*names, *numbers)), strict=True):
        table.add_row(*map(Text, cells))
    return table


# ---------------------------------------------------------------------------------------------------------------------
# compare.csv


def csv_text(comparison: Comparison) -> str:
    """Return compare.csv: one row a run, with the settings that differ, provenance and all metrics unrounded."""
    facts = list(dict.fromkeys(name for run in comparison.runs for name in provenance(run)))
    metrics = list(dict.fromkeys(name for run in comparison.runs for name in run.metrics))
    settings = [short_key(key) for key in comparison.keys]
    heads = ["run", "configuration", *settings, "seed", "status", "reason", "images", *comparison.descriptions, *facts]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_csv_cell, [*heads, *metrics]))
    for configuration in comparison.configurations:
        for run in configuration.runs:
            described, made = describe_weights(run, run.weights.get(EFFECTIVE_ORDER)), provenance(run)
            about = [
                str(run.path),
                configuration.label,
                *configuration.values.values(),
                run.seed,
                run.status,
                run.reason,
            ]
            about += [format_setting(run.fact("images")), *(described[head] for head in comparison.descriptions)]
            about += [made.get(name, "") for name in facts]
            numbers = [repr(run.metrics[name]) if name in run.metrics else "" for name in metrics]
            writer.writerow([*map(_csv_cell, about), *numbers])
    return text.getvalue()


def _csv_cell(text: str) -> str:
    """Quote a text that a spreadsheet would take for a formula."""
    return f"'{text}" if text[:1] in tuple("=+@-") and not re.fullmatch(r"[-+.0-9e]+", text) else text
