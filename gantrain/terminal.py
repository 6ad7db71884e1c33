"""Text on its way to a terminal: names and messages from files must not steer it."""

from __future__ import annotations

import sys


def printable(text: str) -> str:
    """The text with every control character but the newline replaced."""
    return "".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in text)


def say(text: str, *, error: bool = False) -> None:
    """Print text that may hold names from outside."""
    print(printable(text), file=sys.stderr if error else sys.stdout, flush=True)
