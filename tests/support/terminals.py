"""Consoles of a given width."""

from __future__ import annotations

from typing import Any

import pytest

from gantrain import console


def set_console_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Let every console that is made in a test have so many columns."""
    make_console = console.make_console

    def make_terminal(*arguments: Any, **options: Any) -> Any:
        made = make_console(*arguments, **options)
        made.width = width
        return made

    monkeypatch.setattr(console, "make_console", make_terminal)
