"""The values that a setting accepts: one vocabulary for the schema, network tables, optimizers and regularizers."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from gantrain.errors import ConfigError, describe_choice, suggest


@dataclass(frozen=True)
class Numbers:
    """Finite numbers in an interval, only whole ones if `whole`; and the values `also`, such as None.

    `at_least` and `at_most` belong to the interval, `above` and `below` do not. If `follows_clock`, a schedule of such
    numbers may stand in place of one.
    """

    whole: bool = False
    at_least: float = -math.inf
    above: float = -math.inf
    below: float = math.inf
    at_most: float = math.inf
    also: tuple[object, ...] = ()
    follows_clock: bool = False

    def check(self, key: str, value: object) -> None:
        """Raise ConfigError for another value."""
        if any(value is other or (isinstance(other, str) and value == other) for other in self.also):
            return
        kind = "a whole number" if self.whole else "a number"
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            others = "".join(f", or {'null' if other is None else other}" for other in self.also)
            raise ConfigError(f"{key}={value} must be {kind}{others}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key}={value} must be finite")
        if not (self.above < value < self.below and self.at_least <= value <= self.at_most):
            raise ConfigError(f"{key}={value} must be {self.describe_limits()}")

    def describe_limits(self) -> str:
        """Return the interval in words, such as `at least 0 and below 1`."""
        limits = {"at least": self.at_least, "above": self.above, "below": self.below, "at most": self.at_most}
        return " and ".join(f"{words} {limit:,}" for words, limit in limits.items() if math.isfinite(limit))


@dataclass(frozen=True)
class Choice:
    """One of the listed values."""

    options: tuple[str | None, ...]

    def check(self, key: str, value: object) -> None:
        """Raise ConfigError for another value, with the options, nearest first."""
        if value not in self.options:
            raise ConfigError(describe_choice(key, value, self.options))


@dataclass(frozen=True)
class Kind:
    """Any value of one type: `bool` or `str`; and None if `optional`."""

    type: type
    optional: bool = False

    def check(self, key: str, value: object) -> None:
        """Raise ConfigError for another value."""
        if not isinstance(value, self.type) and not (self.optional and value is None):
            words = {bool: "true or false", str: "text"}[self.type]
            raise ConfigError(f"{key}={value} must be {words}{', or null' if self.optional else ''}")


@dataclass(frozen=True)
class NumberList:
    """A list of `length` numbers, each of them accepted by `numbers`; `example` is shown in the message."""

    numbers: Numbers
    length: int
    example: Iterable[float]

    def check(self, key: str, value: object) -> None:
        """Raise ConfigError for another value."""
        if not isinstance(value, list) or len(value) != self.length or not {*map(type, value)} <= {int, float}:
            raise ConfigError(f"{key}={value} must be {self.length} numbers, as in {list(self.example)}")
        for number in value:
            try:
                self.numbers.check(key, number)
            except ConfigError as error:
                raise ConfigError(f"{key}={value} must be {self.numbers.describe_limits()}") from error


def to_whole(value: Any) -> Any:
    """Return a float without a fraction as an int, and other values as they are."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Accepted = Numbers | Choice | Kind | NumberList


def setting(default: Any, accepted: Accepted) -> Any:
    """Return a field of a dataclass with the values that it accepts."""
    return field(default=default, metadata={"accepted": accepted})


def accepted_by_field(kind: type, default: Accepted | None = None) -> dict[str, Any]:
    """Return what each field of a dataclass accepts; `default` for those that do not say."""
    return {item.name: item.metadata.get("accepted", default) for item in fields(kind)}


def check_keys(where: str, given: Iterable[object], known: Collection[str]) -> None:
    """Raise ConfigError for the first key that is not known."""
    for key in given:
        if key not in known:
            listed = f"\n  keys: {', '.join(known)}" if known else ""
            raise ConfigError(f"{where} has no key {key}{suggest(str(key), known)}{listed}")
