"""Text, tables and progress bars on a terminal or in a pipe.

Text that comes from files must not steer the terminal, nothing is interpreted as markup, and output that nobody reads
any more (`| head`, a closed terminal) is no error.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from io import TextIOWrapper
from typing import TYPE_CHECKING, Literal, NoReturn, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPE_WIDTH = 10_000  # columns, so that no row of a table is folded in a pipe
SECONDS_BEFORE_FIRST_LINE, SECONDS_BETWEEN_LINES = 10.0, 60.0  # of progress that is written to a pipe
LARGEST_IN_FULL = 1e6

# Opens the progress display of a task; it yields `update(steps done, steps in all)`.
Progress = Callable[[str], AbstractContextManager[Callable[[int, int | None], None]]]

COPIES: list[Callable[[str], None]] = []  # functions that get every line that is printed, such as a run's log


def printable(text: str) -> str:
    """Return `text` with every control character but the newline replaced."""
    return "".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in text)


def one_line(text: str) -> str:
    """Return `text` as it may stand inside a message: control characters and line breaks are replaced."""
    return printable(text).replace("\n", "\ufffd")


def open_closed_streams() -> None:
    """Open the null device in place of standard streams that are closed (`>&-`): no file of a run gets their number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (as long as the process)


def replace_unencodable() -> None:
    """Let standard output and error replace what their encoding lacks, as in an ASCII locale, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            with suppress(OSError):  # a stream that was opened as a file and has become a terminal
                stream.reconfigure(errors="replace")


def say(text: str, *, error: bool = False) -> None:
    """Print text that may hold names from outside, to standard error if `error` is set."""
    stream = sys.stderr if error else sys.stdout
    copy_text(text)
    if stream is None:  # as in a program that was started without one
        return
    with ignore_closed_output(stream):
        encoding = getattr(stream, "encoding", None) or "utf-8"  # an object that only writes has none
        print(printable(text).encode(encoding, "replace").decode(encoding), file=stream, flush=True)


def copy_text(text: str) -> None:
    """Give a text that is printed, or its lines, to every function that gets a copy."""
    for write in COPIES:
        write(printable(text))


@contextmanager
def copy_lines(write: Callable[[str], None]) -> Iterator[None]:
    """Call `write` with every text that is printed in the block; of a bar it gets some lines."""
    COPIES.append(write)
    try:
        yield
    finally:
        COPIES.remove(write)


@contextmanager
def ignore_closed_output(stream: TextIO | None = None) -> Iterator[None]:
    """Go on if writing to `stream` (standard output by default) fails; later output is then discarded."""
    try:
        yield
    except OSError:
        discard_output(stream)


def discard_output(stream: TextIO | None = None) -> None:
    """Redirect `stream` (standard output by default) to the null device, if it is a file of the system."""
    with suppress(AttributeError, OSError):
        number = (stream or sys.stdout).fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


def format_number(value: float | None, spec: str = "") -> str:
    """Format a number with a real minus sign and ∞; an empty string for None.

    `spec` is a format specification such as `.4f`. By default a number has four significant digits, and one between
    10,000 and a million is written in full.
    """
    if value is None:
        return ""
    if not spec:
        spec = ",.0f" if 10_000 <= abs(value) < LARGEST_IN_FULL else ".4g"
    return format(float(value), f"z{spec}").replace("inf", "∞").replace("-", "−")


def make_console(pipe_width: int = PIPE_WIDTH, *, error: bool = False) -> Console:
    """Return a console on standard output or standard error: as wide as the terminal, and `pipe_width` in a pipe.

    It raises BrokenPipeError, which `ignore_closed_output` handles, if its reader has left.
    """
    from rich.console import Console

    console = Console(markup=False, highlight=False, stderr=error)
    if not console.is_terminal:
        console.width = pipe_width
    console.on_broken_pipe = _raise_broken_pipe  # type: ignore[method-assign]
    return console


def _raise_broken_pipe() -> NoReturn:
    raise BrokenPipeError


def build_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Collection[str] = (),
    title: str = "",
    sums: Sequence[str] = (),
) -> Table:
    """Return a table without a frame.

    Args:
        heads: Column names.
        rows: Cells, as many as there are heads.
        right: Names of the columns that are aligned right.
        title: A line above the table.
        sums: Cells of a last row that is set apart.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    style = box.SIMPLE_HEAD if make_console().is_terminal else None
    table = Table(title=title or None, title_justify="left", box=style, show_footer=any(sums), pad_edge=False)
    for index, head in enumerate(heads):
        footer = Text(printable(sums[index])) if sums else ""
        is_whole = index == 0 or head in right  # names and numbers stay on one line, other text is folded
        justify: Literal["right", "left"] = "right" if head in right else "left"
        table.add_column(Text(printable(head)), footer, justify=justify, no_wrap=is_whole, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def print_tables(*tables: Table) -> None:
    """Print tables to standard output."""
    console = make_console()
    with ignore_closed_output():
        for table in tables:
            console.print(table)


def split_columns(columns: Iterable[list[str]], width: int) -> Iterator[list[list[str]]]:
    """Split columns, each a list of its cells, into groups that are no wider than `width`, or have a single column."""
    group: list[list[str]] = []
    for column in columns:
        if group and sum(map(column_width, [*group, column])) > width:
            yield group
            group = []
        group.append(column)
    yield group


def column_width(column: list[str]) -> int:
    """Return the width of a column, with the gap beside it."""
    return max(len(line) for cell in column for line in cell.split("\n")) + 3


@contextmanager
def no_progress(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show nothing: the default of functions that take a `Progress`."""
    yield lambda done, total: None


@contextmanager
def show_progress(what: str, *, error: bool = False) -> Iterator[Callable[[int, int | None], None]]:
    """Show how far the task `what` is, and how long it will take; yields `update(steps done, steps in all)`.

    A terminal shows a bar that vanishes at the end. A pipe gets a line after ten seconds and then one a minute. The
    output is standard error if `error` is set.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = make_console(error=error)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    first: tuple[float, int] | None = None  # time and steps of the first update: what comes before it is no measure
    due = time.monotonic() + SECONDS_BEFORE_FIRST_LINE
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(printable(what), total=None)

        def update(done: int, total: int | None) -> None:
            nonlocal due, first
            bar.update(task, completed=done, total=total)
            now = time.monotonic()
            began, begin = first = first or (now, done)
            if not console.is_terminal and now >= due and total and begin < done < total:
                due = now + SECONDS_BETWEEN_LINES
                minutes = (now - began) / (done - begin) * (total - done) / 60
                say(f"{what}: {done / total:.0%}, about {max(minutes, 1):.0f} min left", error=error)

        yield update
