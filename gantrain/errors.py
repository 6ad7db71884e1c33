"""What gantrain refuses, and the exit code each refusal carries.

A message names the rule, the value that broke it and the way out, on one screen. The command line prints it and exits
with `exit_code`; from Python the same exceptions are raised.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GantrainError(Exception):
    """The base of every error that gantrain raises on purpose; raised itself for internal ones."""

    exit_code = 1


class ConfigError(GantrainError):
    """A bad command line or configuration, found before any data is read."""

    exit_code = 2


class DataError(GantrainError):
    """Bad or missing data."""

    exit_code = 3


class CheckpointError(GantrainError):
    """A checkpoint or a resume that is refused."""

    exit_code = 4


class DivergedError(GantrainError):
    """A non-finite loss or gradient, found before the update."""

    exit_code = 5


class BusyError(GantrainError):
    """A run folder that another process holds, or that is already finished."""

    exit_code = 6


class StorageError(GantrainError):
    """Storage that is full, read-only or failing."""

    exit_code = 7


class MemoryExhaustedError(GantrainError):
    """Out of memory, on the host or on the device."""

    exit_code = 8


class CheckFailedError(GantrainError):
    """A number that contradicts what is known to be true."""

    exit_code = 9


def nearest_first(name: str, choices: Iterable[str]) -> list[str]:
    """The choices, the ones most like `name` first."""

    def likeness(choice: str) -> float:
        return difflib.SequenceMatcher(None, name.lower(), choice.lower()).ratio()

    return sorted(choices, key=likeness, reverse=True)


def one_of(key: str, name: object, choices: Iterable[str]) -> str:
    """The sentence that refuses `key=name` and lists the choices, nearest first."""
    ranked = nearest_first(str(name), choices)
    return f"{key}={name} is not one of the choices; did you mean {ranked[0]}?\n  choices: {', '.join(ranked)}"
