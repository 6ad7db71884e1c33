"""Text on its way to a terminal: names from files must not steer it, and a reader may leave."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


def printable(text: str) -> str:
    """The text with every control character but the newline replaced."""
    return "".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in text)


def one_line(text: str) -> str:
    """A name from outside as it may stand in a message: line breaks are replaced too."""
    return printable(text).replace("\n", "\ufffd")


def say(text: str, *, error: bool = False) -> None:
    """Print text that may hold names from outside."""
    stream = sys.stderr if error else sys.stdout
    with seen_or_not(stream):
        print(printable(text), file=stream, flush=True)


@contextmanager
def seen_or_not(stream: TextIO | None = None) -> Iterator[None]:
    """Write to standard output (or `stream`) and go on if that fails: a terminal that was closed, `| head`, a log on a
    full disk."""
    try:
        yield
    except OSError:
        go_on_unseen(stream)


def go_on_unseen(stream: TextIO | None = None) -> None:
    """Send standard output (or `stream`) nowhere from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, (stream or sys.stdout).fileno())
    os.close(nowhere)
