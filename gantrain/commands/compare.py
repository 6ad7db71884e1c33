"""`gantrain compare`: runs side by side, as a table, compare.csv, figures and one page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gantrain.comparison import comparison
from gantrain.comparison.comparison import Comparison, Configuration
from gantrain.config import overrides
from gantrain.console import say, seen_or_not
from gantrain.errors import ConfigError, StorageError
from gantrain.files import reason, write_whole
from gantrain.screen import console, fitting, room

if TYPE_CHECKING:
    from rich.table import Table

HELP = """Lay runs side by side: a table, compare.csv, figures, and report.html, one page that needs no network.

  gantrain compare DIR… [out=DIR]

Examples
  gantrain compare sweeps/2026-11-22_10-00-00        a sweep; its report goes beside its runs
  gantrain compare runs out=comparison               every run below a folder
  gantrain compare RUN RUN RUN

Runs that differ only in seed are one configuration: mean ± standard deviation over its finished runs. It is named after
what differs between configurations, and nothing else. * marks the best mean of a column that has a better direction
(↑ or ↓), of configurations of which every run has it; (error …) is that of one measurement. Metrics of quality and
diversity are shown for runs that were evaluated; training data is what training examples get in place of samples, as
many where there are. A sweep is compared when it ends; before, its runs that have not begun are named. out defaults to
DIR; to comparison for a single run, and for more than one DIR."""


@dataclass
class Options:
    """What `gantrain compare` can be told."""

    out: str | None = None


def help_text() -> str:
    """The command's help."""
    return HELP


def run(arguments: list[str]) -> None:
    """Compare the runs in and below the folders that the arguments name."""
    folders = [Path(argument) for argument in arguments if "=" not in argument or Path(argument).exists()]
    options = overrides.read(Options, [argument for argument in arguments if Path(argument) not in folders])
    if not folders:
        raise ConfigError("compare needs runs, sweeps, or a tree that holds them: gantrain compare DIR… [out=DIR]")
    from gantrain.launch import unbegun  # which knows sweeps, and these this module

    found = comparison.compare(folders)
    found.notes.extend(unbegun.notes(folders))
    show(found)
    for path, label, status, why in found.failures:
        say(f"{status}: {path}{f' ({label})' if label else ''}: {why.splitlines()[0]}")
    for note in found.notes:
        say(note)
    itself = len(folders) == 1 and found.runs[0].path != folders[0]
    say(f"the report is {write(found, Path(options.out or (folders[0] if itself else 'comparison')))}")


def show(found: Comparison) -> None:
    """Print the tables."""
    with seen_or_not():
        for table in tables(found):
            console().print(table)


def write(found: Comparison, out: Path) -> Path:
    """compare.csv, the figures and the page, whose path is returned. Raises ConfigError and StorageError."""
    from gantrain.comparison import panels, report
    from gantrain.comparison import plots as comparison_plots

    there = next(path for path in (out, *out.parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"out={out}: {there} is a file; give a folder, which is made where there is none")
    plots = comparison_plots.plots(found)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "compare.csv", comparison.table(found))
        for plot in plots:
            panels.save(plot, found, out)
        write_whole(out / "report.html", report.page(found, plots))
    except OSError as error:
        raise StorageError(f"out={out} cannot be written: {reason(error)}") from error
    return out / "report.html"


def tables(found: Comparison) -> Iterator[Table]:
    """One row a configuration; a group of metrics is a table, or several where the terminal is too narrow for one."""
    heads = ["#", *map(comparison.short, found.keys or comparison.FIRST[:1]), "seeds"]
    for group, metrics in (found.columns or {"no run finished": []}).items():
        top = [*heads, *(metric.removeprefix(f"{group}/") + comparison.arrow(metric) for metric in metrics)]
        best = {metric: found.best(metric) for metric in metrics}
        rows = [[*row_name(c), c.seeds, *(cell(c, m, best[m]) for m in metrics)] for c in found.configurations]
        if any(metric in found.reference for metric in metrics):
            settings = ["", found.reference_name, *[""] * (len(heads) - 2)]
            rows.append([*settings, *map(found.referred, metrics)])
        columns = [list(column) for column in zip(top, *rows, strict=True)]
        names, numbers = columns[: len(heads)], columns[len(heads) :]
        for part in fitting(numbers, console().width - sum(map(room, names))):
            yield table(group, names, part)


def row_name(configuration: Configuration) -> list[str]:
    """A row's first cells: its number, and the settings that tell it apart."""
    return [str(configuration.number), *(configuration.values.values() or [configuration.label])]


def cell(configuration: Configuration, metric: str, best: list[Configuration]) -> str:
    """A metric of a configuration, marked where it is one of the best."""
    return configuration.written(metric) + (" *" if configuration in best else "")


def table(title: str, names: list[list[str]], metrics: list[list[str]]) -> Table:
    """Columns as a table; no text in them is taken for markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    terminal = console().is_terminal
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD if terminal else None, pad_edge=False)
    for head, *_ in names:
        shown.add_column(Text(head), overflow="fold")
    for head, *_ in metrics:
        shown.add_column(Text(head), justify="right", no_wrap=True)
    for cells in zip(*(column[1:] for column in (*names, *metrics)), strict=True):
        shown.add_row(*map(Text, cells))
    return shown
