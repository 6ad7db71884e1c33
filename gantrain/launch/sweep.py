"""A sweep's folder: the command that it came from, and what became of its runs.

Hydra keeps the command in `multirun.yaml`, before the first run. Whoever sent the folder may have written that file, so
of Hydra's own keys only names of folders, parameters of the sweep, and a launcher by name are taken from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gantrain.comparison.comparison import compare
from gantrain.comparison.tables import print_tables
from gantrain.config import overrides
from gantrain.config.trust import LAUNCHER_SETTING, ForeignSource, refuse_exhausting
from gantrain.console import one_line, say
from gantrain.errors import CheckpointError, ConfigError, GantrainError, StorageError
from gantrain.files import reason, write_whole
from gantrain.runs.folder import RunFolder, refuse_link

COMMAND = "multirun.yaml"
KEPT = ".multirun.yaml"  # a copy, as Hydra writes its own anew, and not at once, whenever the sweep goes on
SEARCH_PATH = "hydra.searchpath"
# What every sweep sets by itself, and sets again.
OWN = ("hydra.sweep.dir", "hydra.job.config.override_dirname.exclude_keys", "hydra.output_subdir", "hydra.mode")
HARMLESS = re.compile(
    rf"hydra/launcher=\w+|hydra\.{LAUNCHER_SETTING.pattern}|hydra\.sweeper\.params(?!.*hydra).*|"
    r"hydra\.sweep\.subdir=(?!.*\.\.)(\$\{hydra[.:]job\.\w+\}|[\w=,.'\"-])+"  # one name, inside the sweep's folder
)

# What ended a run of this process early, by its folder: on a failing disk its summary would not say so.
FAILURES: dict[Path, GantrainError] = {}


class RunFailed(GantrainError):
    """A run that ended early, as its summary tells it."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Command:
    """What was typed: the overrides of our own keys and of Hydra's, and the folder of the user's own YAML."""

    task: list[str]
    hydra: list[str]
    config_dir: str | None


def is_sweep(folder: Path) -> bool:
    """Whether a sweep was begun in `folder`."""
    return (folder / COMMAND).is_file()


def refuse_links(root: Path) -> None:
    """Raise CheckpointError where something in a sweep's folder is a link or special file, and leads elsewhere."""
    for path in root.iterdir():
        refuse_link(path)
        RunFolder(path).refuse_links()


def keep_command(root: Path) -> None:
    """Keep a copy of the sweep's command, which is whole at any moment. Raises StorageError."""
    try:
        if not (root / KEPT).exists():
            write_whole(root / KEPT, (root / COMMAND).read_bytes())
    except OSError as error:
        raise StorageError(f"{root / KEPT} could not be written: {reason(error)}") from error


def typed_in(root: Path) -> Command:
    """The command of the sweep in `root`, whatever it is. Raises CheckpointError where there is none."""
    path = root / KEPT if (root / KEPT).exists() else root / COMMAND
    try:
        refuse_exhausting(path, root)
        typed = yaml.safe_load(path.read_text(encoding="utf-8"))["hydra"]["overrides"]
        task, hydra = ([str(text) for text in typed[kind]] for kind in ("task", "hydra"))
        config_dir = own_yaml(o.value() for o in overrides.parsed(hydra) if o.key_or_group == SEARCH_PATH)
    except (ConfigError, KeyError, TypeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} does not hold the command of a sweep: {one_line(str(error))}") from error
    return Command(task, [text for text in hydra if key(text) not in (*OWN, SEARCH_PATH)], config_dir)


def command_of(root: Path) -> Command:
    """The command of the sweep in `root`. Raises CheckpointError where there is none that may be given again."""
    command = typed_in(root)
    for text in (*command.hydra, *(text for text in command.task if text.lstrip("+~").startswith("hydra"))):
        if not HARMLESS.fullmatch(text):
            raise CheckpointError(
                f"{root / COMMAND} has {text}, which is not taken from a file; give the sweep's command again, with "
                f"{text} and resume=auto"
            )
    return command


def own_yaml(paths: Iterable[Any]) -> str | None:
    """The folder of the user's own YAML, of the lists of Hydra's search paths."""
    scheme = f"{ForeignSource.scheme()}://"
    return next((str(path).removeprefix(scheme) for listed in paths for path in listed if scheme in str(path)), None)


def key(text: str) -> str:
    """What an override sets."""
    return text.lstrip("+~").partition("=")[0]


def refuse_another(root: Path, typed: Sequence[str], free: Sequence[str]) -> None:
    """Raise CheckpointError unless `typed` are the overrides of the sweep in `root`, but for keys that are `free`."""
    begun = typed_in(root).task
    then, now = (
        {text.lstrip("+") for text in each if key(text) not in free and not key(text).startswith("hydra")}
        for each in (begun, typed)
    )
    go_on = f"give another run_dir, or go on with that one: gantrain resume {root}"
    if then != now:
        raise CheckpointError(f"{root} holds another sweep: {' '.join(sorted(then ^ now))} differ; {go_on}")
    if listed(begun) != listed(typed):
        raise CheckpointError(
            f"{root} holds another sweep: its runs are numbered in the order of {' '.join(listed(begun))}, not of "
            f"{' '.join(listed(typed))}; {go_on}"
        )


def listed(typed: Iterable[str]) -> list[str]:
    """The overrides that list several values, in their order, which is that of the runs."""
    return overrides.divided([text.lstrip("+") for text in typed])[1]


def summary(folder: Path) -> dict[str, Any]:
    """What a run's summary says; nothing where it is damaged, which its own resume has refused."""
    try:
        return RunFolder(folder).read_summary()
    except CheckpointError:
        return {}


def finished(root: Path) -> int:
    """How many runs of the sweep in `root` finished."""
    return sum(summary(path.parent).get("status") == "finished" for path in root.glob("*/.hydra"))


def report(root: Path) -> None:
    """Say how the runs under `root` ended. Raises RunFailed where one did not finish."""
    folders = sorted((path.parent.parent for path in root.glob("*/.hydra/config.yaml")), key=job_number)
    if not folders:
        raise ConfigError(f"the listed values made no run in {root}")
    failed = {folder.name: ending for folder in folders if (ending := failure(RunFolder(folder)))}
    say(f"\n{len(folders) - len(failed)} of {len(folders)} runs finished in {root}")
    compare_runs(root)
    if failed:
        count = "1 run" if len(failed) == 1 else f"{len(failed)} runs"
        reasons = listed_reasons({name: reason for name, (reason, _) in failed.items()})
        raise RunFailed(f"{count} failed:\n{reasons}", next(iter(failed.values()))[1])


def listed_reasons(failed: Mapping[str, str]) -> str:
    """Runs and why they failed, each reason once."""
    runs: dict[str, list[str]] = {}
    for name, why in failed.items():
        runs.setdefault(why, []).append(name)
    return "\n".join(f"  {', '.join(names)}: {why}" for why, names in runs.items())


def compare_runs(root: Path) -> None:
    """Compare the runs of a sweep. If this fails, a message says so and the sweep ends as its runs did."""
    from gantrain.comparison.report import write_report
    from gantrain.launch import unbegun  # which imports this module

    try:
        comparison = compare([root])
        comparison.notes.extend(unbegun.notes([root]))
        print_tables(comparison)
        say(f"the report is {write_report(comparison, root)}")
    except Exception as error:
        say(f"the runs could not be compared: {error}", error=True)


def failure(folder: RunFolder) -> tuple[str, int] | None:
    """Why a run did not finish, and its exit code; None where it did."""
    if error := FAILURES.pop(folder.path.resolve(), None):
        return str(error), error.exit_code
    told = summary(folder.path)  # of a run that a launcher trained in another process
    if told.get("status") == "finished":
        return None
    return told.get("reason") or "it ended without a word in its summary", told.get("exit_code", 1)


def job_number(folder: Path) -> int:
    """The number that a sweep's folder begins with."""
    number = folder.name.partition("-")[0]
    return int(number) if number.isdecimal() else -1
