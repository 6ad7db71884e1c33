"""A sweep's folder: the command that began it, and the runs of it that have not begun.

Hydra keeps the command in `multirun.yaml`, before the first run. That file may come from another person, so of Hydra's
own keys only names of folders, parameters of the sweep, and a launcher by name are taken from it.
"""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gantrain.comparison.comparison import MOST_NAMED, compare
from gantrain.comparison.runs import find_run_folders
from gantrain.comparison.tables import print_tables
from gantrain.comparison.untrusted import clean_text, read_yaml
from gantrain.config.compose import MOST_JOBS, SEARCH_PATH, expand_choice
from gantrain.config.overrides import parse, split_sweep
from gantrain.config.trust import LAUNCHER_SETTING, ForeignSource, check_yaml_file
from gantrain.console import one_line, say
from gantrain.errors import CheckpointError, ConfigError, GantrainError, StorageError
from gantrain.files import describe_os_error, write_file
from gantrain.runs.folder import RunFolder, refuse_link

COMMAND = "multirun.yaml"
KEPT = ".multirun.yaml"  # a copy, as Hydra writes its own anew, and not at once, whenever the sweep goes on
# What every sweep sets by itself, and sets again.
OWN = ("hydra.sweep.dir", "hydra.job.config.override_dirname.exclude_keys", "hydra.output_subdir", "hydra.mode")
HARMLESS = re.compile(
    rf"hydra/launcher=\w+|hydra\.{LAUNCHER_SETTING.pattern}|hydra\.sweeper\.params(?!.*hydra).*|"
    r"hydra\.sweep\.subdir=(?!.*\.\.)(\$\{hydra[.:]job\.\w+\}|[\w=,.'\"-])+"  # one name, inside the sweep's folder
)
TYPED, OF_FILES = "hydra.overrides.task.", "hydra.sweeper.params."  # in the file of a sweep's command
INTERPOLATION = re.compile(r"\$\{[^{}]*\}")


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
            write_file(root / KEPT, (root / COMMAND).read_bytes())
    except OSError as error:
        raise StorageError(f"{root / KEPT} could not be written: {describe_os_error(error)}") from error


def read_command(root: Path) -> Command:
    """The command of the sweep in `root`, whatever it is. Raises CheckpointError where there is none."""
    path = root / KEPT if (root / KEPT).exists() else root / COMMAND
    try:
        check_yaml_file(path, root)
        typed = yaml.safe_load(path.read_text(encoding="utf-8"))["hydra"]["overrides"]
        task, hydra = ([str(text) for text in typed[kind]] for kind in ("task", "hydra"))
        config_dir = find_config_dir(one.override.value() for one in parse(hydra) if one.key == SEARCH_PATH)
    except (ConfigError, KeyError, TypeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} does not hold the command of a sweep: {one_line(str(error))}") from error
    return Command(task, [text for text in hydra if key_of(text) not in (*OWN, SEARCH_PATH)], config_dir)


def read_safe_command(root: Path) -> Command:
    """The command of the sweep in `root`. Raises CheckpointError where there is none that may be given again."""
    command = read_command(root)
    for text in (*command.hydra, *(text for text in command.task if text.lstrip("+~").startswith("hydra"))):
        if not HARMLESS.fullmatch(text):
            raise CheckpointError(
                f"{root / COMMAND} has {text}, which is not taken from a file; give the sweep's command again, with "
                f"{text} and resume=auto"
            )
    return command


def find_config_dir(paths: Iterable[Any]) -> str | None:
    """The folder of the user's own YAML, of the lists of Hydra's search paths."""
    scheme = f"{ForeignSource.scheme()}://"
    return next((str(path).removeprefix(scheme) for listed in paths for path in listed if scheme in str(path)), None)


def key_of(text: str) -> str:
    """What an override sets."""
    return text.lstrip("+~").partition("=")[0]


def refuse_another(root: Path, typed: Sequence[str], free: Sequence[str]) -> None:
    """Raise CheckpointError unless `typed` are the overrides of the sweep in `root`, but for keys that are `free`."""
    begun = read_command(root).task
    then, now = (
        {text.lstrip("+") for text in each if key_of(text) not in free and not key_of(text).startswith("hydra")}
        for each in (begun, typed)
    )
    go_on = f"give another run_dir, or go on with that one: gantrain resume {root}"
    if then != now:
        raise CheckpointError(f"{root} holds another sweep: {' '.join(sorted(then ^ now))} differ; {go_on}")
    if list_sweeps(begun) != list_sweeps(typed):
        raise CheckpointError(
            f"{root} holds another sweep: its runs are numbered in the order of {' '.join(list_sweeps(begun))}, not of "
            f"{' '.join(list_sweeps(typed))}; {go_on}"
        )


def list_sweeps(typed: Iterable[str]) -> list[str]:
    """The overrides that list several values, in their order, which is that of the runs."""
    return [one.text for one in split_sweep(parse(text.lstrip("+") for text in typed))[1]]


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the summary of a run; empty if it is damaged, which its own resume has refused."""
    try:
        return RunFolder(folder).read_summary()
    except CheckpointError:
        return {}


def count_finished(root: Path) -> int:
    """How many runs of the sweep in `root` finished."""
    return sum(read_summary(path.parent).get("status") == "finished" for path in root.glob("*/.hydra"))


def job_number(folder: Path) -> int:
    """The number that a sweep's folder begins with."""
    number = folder.name.partition("-")[0]
    return int(number) if number.isdecimal() else -1


# ---------------------------------------------------------------------------------------------------------------------
# Pending runs


def pending_notes(folders: Iterable[Path]) -> Iterator[str]:
    """A note on every sweep, in or below `folders`, with runs that have not begun."""
    runs = ((folder, run) for folder in folders for run in find_run_folders(folder))
    for root in dict.fromkeys(run.parent for folder, run in runs if run != folder):
        try:
            yield from describe_pending(root)
        except (GantrainError, ValueError) as error:  # of a range, too, that is none
            yield f"which runs of {root} have not begun cannot be told: {error}"


def describe_pending(root: Path) -> Iterator[str]:
    """How many runs of the sweep in `root` have no summary, which they are, and what to do; nothing where all have one,
    or where `root` holds no sweep that gantrain numbered. Raises GantrainError where its command cannot be read."""
    choices = expand_command(root) if is_sweep(root) else []
    begun = {job_number(path.parent) for path in root.glob("*/summary.json")}
    missing = math.prod(map(len, choices)) - len(begun)
    if not choices or missing < 1 or -1 in begun:
        return
    jobs = (job for number, job in enumerate(itertools.product(*choices)) if number not in begun)
    named = [clean_text(" ".join(filter(None, job))) for job in itertools.islice(jobs, MOST_NAMED)]
    more = f" and {missing - MOST_NAMED:,} more" if missing > MOST_NAMED else ""
    yield (
        f"{missing:,} of {missing + len(begun):,} runs of {root} have not begun: {', '.join(named)}{more}. "
        f"Unless it is still running, go on with: gantrain resume {shlex.quote(str(root))}"
    )


def expand_command(root: Path) -> list[list[str]]:
    """What the runs of the sweep in `root` choose from, in the order in which Hydra's sweeper numbers them: a list for
    each key, of one empty text where there is no choice. Raises GantrainError where there is no telling."""
    name = KEPT if (root / KEPT).exists() else COMMAND
    values = {key: without_interpolations(str(value)) for key, value in read_yaml(root, name)}
    texts = [f"{key.removeprefix(OF_FILES)}={value}" for key, value in values.items() if key.startswith(OF_FILES)]
    texts += [value for key, value in values.items() if key.startswith(TYPED)]
    choices = {}  # what is typed replaces what a file says, in its place
    for argument in parse(texts):
        listed = expand_choice(argument) if argument.is_sweep else [""]
        choices[argument.key] = [choice.lstrip("+") for choice in listed]
        if math.prod(map(len, choices.values())) > MOST_JOBS:
            raise ConfigError(f"it lists more than {MOST_JOBS:,} runs")
    return list(choices.values())


def without_interpolations(text: str) -> str:
    """A text with a question mark for each interpolation: nothing from a folder is resolved, nor could Hydra's parser
    read one inside another."""
    while (shorter := INTERPOLATION.sub("?", text)) != text:
        text = shorter
    return text


def compare_sweep(root: Path) -> None:
    """Compare the runs of a sweep, and print the tables. If this fails, a message says so, and nothing else changes."""
    from gantrain.comparison.report import write_report

    try:
        comparison = compare([root])
        comparison.notes.extend(pending_notes([root]))
        print_tables(comparison)
        say(f"the report is {write_report(comparison, root)}")
    except Exception as error:
        say(f"the runs could not be compared: {error}", error=True)
