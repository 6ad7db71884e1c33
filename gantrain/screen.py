"""Where tables and bars are drawn: standard output, whose reader may leave."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console


class Screen(Console):
    """A console whose reader may leave, which is an error like any other: `terminal.seen_or_not` deals with it."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(pipe_width: int = 10_000) -> Screen:
    """A terminal as wide as it is, a pipe wide enough for every column; no text is taken for markup."""
    screen = Screen(markup=False, highlight=False)
    return screen if screen.is_terminal else Screen(markup=False, highlight=False, width=pipe_width)


def fitting(columns: list[list[str]], width: int) -> Iterator[list[list[str]]]:
    """The columns in parts that are no wider than `width`, unless a single one is."""
    part: list[list[str]] = []
    for column in columns:
        if part and sum(map(room, [*part, column])) > width:
            yield part
            part = []
        part.append(column)
    yield part


def room(column: list[str]) -> int:
    """The width of a column with the gap beside it."""
    return max(map(len, column)) + 3
