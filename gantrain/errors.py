"""Exceptions of gantrain, each with the exit code of the command line.

A message states the rule, the value found and the way out, on one screen. The command line prints it and exits with
`exit_code`; from Python the same exceptions are raised.
"""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires


class GantrainError(Exception):
    """The base of every error that gantrain raises on purpose; raised itself for internal ones."""

    exit_code = 1


class ConfigError(GantrainError):
    """A bad command line or configuration, found before any data is read."""

    exit_code = 2


class UntypedCodeError(ConfigError):
    """Code of the user's own that a file names, but not the command; `argument` is what the command lacks."""

    def __init__(self, place: object, name: object) -> None:
        super().__init__(place, name)  # with which another process makes it anew
        self.place, self.argument = place, f"architecture.object={name}"

    def __str__(self) -> str:
        return f"{self.place} names code, {self.argument}; code is imported only if the command names it too"


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


class ReplacedError(StorageError):
    """Another folder has the place of the one that a run writes into."""


class MemoryExhaustedError(GantrainError):
    """Out of memory, on the host or on the device."""

    exit_code = 8


class CheckFailedError(GantrainError):
    """A number that contradicts what is known to be true."""

    exit_code = 9


class LostProcessError(GantrainError):
    """Another process of the run ended without reporting an error; the code is that of a killed process."""

    exit_code = 137


def build_error(exit_code: int, message: str) -> GantrainError:
    """Return the error with this exit code that another process has met."""
    kinds = {kind.exit_code: kind for kind in GantrainError.__subclasses__() if kind.__init__ is Exception.__init__}
    return kinds.get(exit_code, GantrainError)(message)


# How CUDA, its libraries, MPS and the CPU report exhausted memory; torch has no exception class for most of them.
OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "DefaultCPUAllocator")
# How the loader of libraries does, as under `ulimit -v`.
NOT_LOADED = ("failed to map segment", "cannot allocate memory", "Cannot allocate memory")


def drop_traceback(error: GantrainError) -> GantrainError:
    """Return the error without what led to it: the frames would keep the tensors of its run in memory."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error reports exhausted memory, of the host or of a device."""
    reported = isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    loading = isinstance(error, ImportError | OSError) and any(words in str(error) for words in NOT_LOADED)
    return reported or loading or isinstance(error, MemoryError)


# Packages whose modules have another name.
PACKAGES = {"PIL": "pillow", "yaml": "pyyaml", "hydra": "hydra-core"}


def describe_broken_package(error: ImportError) -> str | None:
    """Return that a package which gantrain requires cannot be imported, and what repairs it; None for another one.

    An error without a name, as numpy raises it, is that of the module that raised it.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = error.name or (frames[-1].f_globals.get("__name__", "") if frames else "")
    name = module.partition(".")[0]
    package = PACKAGES.get(name, name)
    with suppress(PackageNotFoundError):
        required = [text for text in requires("gantrain") or () if "extra ==" not in text]
        if package in {re.split(r"[^\w-]", text)[0].lower() for text in required}:
            reason = str(error).strip().partition("\n")[0]
            repair = f"python -m pip install --force-reinstall {package}"
            return f"{package} cannot be imported: {reason}; repair it: {repair}"
    return None


SIMILARITY = 0.5  # of two names that may be one: one wrong letter in two is above it


def find_nearest(name: str, choices: Iterable[str]) -> list[str]:
    """Return the choices that `name` may stand for, nearest first.

    Those that begin with it come first, then those that it abbreviates, such as `rkl` for `reverse_kl`, then similar
    ones.
    """
    originals = {choice.lower(): choice for choice in reversed(list(choices))}
    similar = difflib.get_close_matches(name.lower(), originals, n=max(len(originals), 1), cutoff=SIMILARITY)
    longer = sorted((key for key in originals if len(name) > 1 and key.startswith(name.lower())), key=len)
    shortened = sorted((key for key in originals if is_abbreviation(name.lower(), key)), key=len)
    return [originals[key] for key in dict.fromkeys([*longer, *shortened, *similar])]


def is_abbreviation(short: str, name: str) -> bool:
    """Return whether `short` is made of the beginnings of the words of `name`, in order: `rkl` of `reverse_kl`."""
    first, blank, rest = name.partition("_")
    if not blank:
        return bool(short) and first.startswith(short)
    lengths = range(1, min(len(first), len(short)) + 1)
    return any(first[:length] == short[:length] and is_abbreviation(short[length:], rest) for length in lengths)


def suggest(name: str, choices: Iterable[str]) -> str:
    """Return the question that ends an error message, `; did you mean adam?`, or nothing if no choice is similar."""
    nearest = find_nearest(name, choices)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def describe_choice(key: str, name: object, choices: Iterable[str | None]) -> str:
    """Return the error message that refuses `key=name` and lists the choices, nearest first."""
    known = list(map(str, choices))
    ranked = dict.fromkeys([*find_nearest(str(name), known), *known])
    return f"{key}={name} is not one of the choices{suggest(str(name), known)}\n  choices: {', '.join(ranked)}"
