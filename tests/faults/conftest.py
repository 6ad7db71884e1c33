"""The frame of the fault suite: every injected fault is counted, and one table at the end says what survived.

    def test_flipped_bits(tried, times, tmp_path):
        for number in range(times(20, soak=300)):
            with tried("a flipped bit in a checkpoint"):
                …  # inject it, then assert what is promised

`tried(fault)` counts one attempt, and counts it as survived when the block ends without an exception; the exception
fails the test as ever. `times(fast, soak=many)` is how often to try: `fast` in scripts/test, `many` in scripts/soak,
which is `pytest tests/faults --soak`; `times.of(items, fast)` takes so many of them there and all of them here.
`measured(what, value)` adds a line below the table. `faults.processes` runs the command line in processes that can be
killed; `uninterrupted` is a run that went through, which `faults.runs` compares others with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TypeVar

import pytest

from faults.processes import run
from faults.runs import training

Item = TypeVar("Item")


@dataclass
class Tally:
    """How often each fault was injected and survived, in the order of their first attempts."""

    tried: dict[str, int] = field(default_factory=dict)
    survived: dict[str, int] = field(default_factory=dict)
    measured: dict[str, str] = field(default_factory=dict)

    def table(self) -> Iterator[str]:
        """A Markdown table, and what was measured."""
        yield "| fault | tried | survived |"
        yield "| --- | ---: | ---: |"
        for fault, count in self.tried.items():
            yield f"| {fault} | {count:,} | {self.survived.get(fault, 0):,} |"
        for what, value in self.measured.items():
            yield f"\n{what}: {value}"


TALLY = pytest.StashKey[Tally]()


@dataclass(frozen=True)
class Times:
    """How often a fault is tried."""

    soak: bool

    def __call__(self, fast: int, *, soak: int) -> int:
        return soak if self.soak else fast

    def of(self, items: Iterable[Item], fast: int) -> list[Item]:
        """All items at length, otherwise so many, evenly spread."""
        items = list(items)
        count = len(items) if self.soak else min(fast, len(items))
        return [items[number * len(items) // count] for number in range(count)]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="the long form of the fault suite: tens of minutes")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TALLY] = Tally()


@pytest.fixture(scope="session")
def times(pytestconfig: pytest.Config) -> Times:
    return Times(pytestconfig.getoption("--soak", False))


@pytest.fixture(scope="session")
def tried(pytestconfig: pytest.Config) -> Callable[[str], object]:
    tally = pytestconfig.stash[TALLY]

    @contextmanager
    def attempt(fault: str) -> Iterator[None]:
        tally.tried[fault] = tally.tried.get(fault, 0) + 1
        yield
        tally.survived[fault] = tally.survived.get(fault, 0) + 1

    return attempt


@pytest.fixture(scope="session")
def measured(pytestconfig: pytest.Config) -> Callable[[str, str], None]:
    return pytestconfig.stash[TALLY].measured.__setitem__


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run, which nothing happened to; not to be written into."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    code, output = run(folder.with_name("log"), *training(folder))
    assert code == 0, output
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tally = config.stash[TALLY]
    if tally.tried:
        terminalreporter.section(f"faults, {date.today()}")
        for line in tally.table():
            terminalreporter.write_line(line)
