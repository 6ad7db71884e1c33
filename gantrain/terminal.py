"""Text on its way to a terminal: names from files must not steer it, and a reader may leave."""

from __future__ import annotations

import os
import sys


def printable(text: str) -> str:
    """The text with every control character but the newline replaced."""
    return "".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in text)


def say(text: str, *, error: bool = False) -> None:
    """Print text that may hold names from outside."""
    try:
        print(printable(text), file=sys.stderr if error else sys.stdout, flush=True)
    except BrokenPipeError:
        go_on_unseen()


def go_on_unseen() -> None:
    """Send standard output nowhere: its reader has gone, as with `| head`, which is no reason to end a run."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
