"""The console on which tables and progress are drawn; apart from `gantrain.console`, since it needs rich."""

from __future__ import annotations

from rich.console import Console


class Screen(Console):
    """A console that raises BrokenPipeError if its reader has left, for `console.ignore_closed_output` to handle."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError
