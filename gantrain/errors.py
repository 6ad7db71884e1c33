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


EXHAUSTED = ("out of memory", "ALLOC_FAILED", "DefaultCPUAllocator")  # as CUDA, its libraries, MPS and a CPU say it


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is exhausted, on the host or on a device; torch has no class for most."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in EXHAUSTED)
    return said or isinstance(error, MemoryError)


class CheckFailedError(GantrainError):
    """A number that contradicts what is known to be true."""

    exit_code = 9


# Names less alike than this have nothing to do with each other; one wrong letter in two stays above it.
RESEMBLANCE = 0.5
CUT_SHORT = 0.95  # the likeness of a name to one that begins with it


def likeness(name: str, choice: str) -> float:
    """How much two names are alike: the share of their letters that they have in common, in order; nearly 1 where the
    choice begins with the name."""
    name, choice = name.lower(), choice.lower()
    ratio = difflib.SequenceMatcher(None, name, choice, autojunk=False).ratio()
    return max(ratio, CUT_SHORT) if len(name) > 1 and choice.startswith(name) else ratio


def nearest_first(name: str, choices: Iterable[str]) -> list[str]:
    """The choices, the ones most like `name` first."""
    return sorted(choices, key=lambda choice: likeness(name, choice), reverse=True)


def meant(name: str, choices: Iterable[str]) -> str:
    """The question that ends a refusal, `; did you mean adam?`, or nothing where no choice is like `name`."""
    nearest = nearest_first(name, choices)[:1]
    return "".join(f"; did you mean {choice}?" for choice in nearest if likeness(name, choice) >= RESEMBLANCE)


def one_of(key: str, name: object, choices: Iterable[str | None]) -> str:
    """The sentence that refuses `key=name` and lists the choices, nearest first."""
    ranked = nearest_first(str(name), map(str, choices))
    return f"{key}={name} is not one of the choices{meant(str(name), ranked)}\n  choices: {', '.join(ranked)}"
