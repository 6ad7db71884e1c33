"""The folder of a sweep: its command line, and its runs that have not begun.

Hydra writes the command line to `multirun.yaml` before the first run. The file may come from another person, so of
Hydra's own keys only names of folders, parameters of the sweep, and a launcher by name are taken from it.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gantrain.comparison.comparison import MOST_NAMED, Comparison, compare
from gantrain.comparison.runs import Run, find_run_folders
from gantrain.comparison.tables import print_failures, print_tables
from gantrain.comparison.untrusted import clean_text
from gantrain.config.compose import MOST_JOBS, SEARCH_PATH, expand_choice
from gantrain.config.overrides import parse, quote, split_sweep
from gantrain.config.trust import LAUNCHER_SETTING, ForeignSource, read_yaml_file
from gantrain.console import one_line, say
from gantrain.data import POINT_MASSES
from gantrain.errors import CheckpointError, ConfigError, GantrainError
from gantrain.files import convert_write_errors, write_file
from gantrain.runs.folder import RunFolder, refuse_link

COMMAND = "multirun.yaml"
KEPT = ".multirun.yaml"  # a copy, because Hydra writes its own file anew, and not at once, whenever the sweep goes on
# Hydra's keys that every sweep sets by itself, and sets again.
OWN = ("hydra.sweep.dir", "hydra.job.config.override_dirname.exclude_keys", "hydra.output_subdir", "hydra.mode")
HARMLESS = re.compile(
    rf"hydra/launcher=\w+|hydra\.{LAUNCHER_SETTING.pattern}|hydra\.sweeper\.params(?!.*hydra).*|"
    r"hydra\.sweep\.subdir=(?!.*\.\.)(\$\{hydra[.:]job\.\w+\}|[\w=,.'\"-])+"  # one name, inside the sweep's folder
)
PLAIN_PATH = re.compile(r"[\w./=+-]+")
INTERPOLATION = re.compile(r"\$\{[^{}]*\}")


@dataclass(frozen=True)
class Command:
    """Command line of a sweep.

    `task`: overrides of our keys. `hydra`: overrides of Hydra's keys. `params`: what YAML files list, as overrides.
    `config_dir`: the folder of the user's own YAML.
    """

    task: list[str]
    hydra: list[str]
    params: list[str]
    config_dir: str | None


def is_sweep(folder: Path) -> bool:
    """Return whether a sweep was begun in `folder`."""
    return (folder / COMMAND).is_file()


def refuse_links(root: Path) -> None:
    """Raise CheckpointError if something in a sweep's folder is a link or a special file."""
    for path in root.iterdir():
        refuse_link(path)
        RunFolder(path).refuse_links()


def keep_command(root: Path, overrides: Iterable[str]) -> None:
    """Keep a copy of the sweep's command, with the `overrides` that it goes on with; it is whole at any moment.

    Raises StorageError.
    """
    document = yaml.safe_load(read_yaml_file(find_command(root), root))
    kinds: dict[str, list[str]] = {"task": [], "hydra": []}
    for text in overrides:
        kinds["hydra" if key_of(text).startswith("hydra") else "task"].append(text)
    document["hydra"]["overrides"] = kinds
    with convert_write_errors(root / KEPT):
        write_file(root / KEPT, yaml.safe_dump(document, allow_unicode=True, sort_keys=False))


def find_command(root: Path) -> Path:
    """Return the file that holds the command of the sweep in `root`."""
    return root / KEPT if os.path.lexists(root / KEPT) else root / COMMAND


def read_command(root: Path) -> Command:
    """Return the command of the sweep in `root`, whatever it sets. Raises CheckpointError if none can be read."""
    return read_command_file(find_command(root), root)


def read_command_file(path: Path, root: Path) -> Command:
    """Return the command in a file in `root` with Hydra's own node. Raises CheckpointError if it holds none."""
    try:
        document = yaml.safe_load(read_yaml_file(path, root))["hydra"]
        task, hydra = ([str(text) for text in document["overrides"][kind]] for kind in ("task", "hydra"))
        listed = (document.get("sweeper") or {}).get("params") or {}
        params = [f"{key}={value}" for key, value in listed.items()]
        scheme = f"{ForeignSource.scheme()}://"
        values: dict[str, Any] = {one.key: one.override.value() for one in parse(hydra)}
        paths = map(str, values.get(SEARCH_PATH, ()))
        config_dir = next((path.removeprefix(scheme) for path in paths if scheme in path), None)
    except (AttributeError, ConfigError, LookupError, OverflowError, TypeError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} does not hold a command of train: {one_line(str(error))}") from error
    hydra = [text for text in hydra if key_of(text) not in (*OWN, SEARCH_PATH)]
    return Command(task, hydra, params, config_dir)


def read_safe_command(root: Path) -> Command:
    """Return the command of the sweep in `root`. Raises CheckpointError if it sets what no file may set."""
    command = read_command(root)
    for text in (*command.hydra, *(text for text in command.task if text.lstrip("+~").startswith("hydra"))):
        if not HARMLESS.fullmatch(text):
            raise CheckpointError(
                f"{root / COMMAND} has {text}, which is not taken from a file; give the sweep's command again, with "
                f"{text} and resume=auto"
            )
    return command


def start_command(run: Path) -> str:
    """Return the command that starts the run in a folder again, or the sweep that it belongs to."""
    if is_sweep(run.parent):
        return f"gantrain resume {shlex.quote(str(run.parent))}"
    own = [f"run_dir={run if PLAIN_PATH.fullmatch(str(run)) else quote(run)}", "resume=auto"]
    try:
        command = read_command_file(run / ".hydra" / "hydra.yaml", run)
    except CheckpointError:
        return f"{shlex.join(['gantrain', 'train', *own])} and what it was started with"
    typed = [text.lstrip("+") for text in command.task if key_of(text) not in ("run_dir", "resume")]
    flags = ["--config-dir", command.config_dir] if command.config_dir else []
    return one_line(shlex.join(["gantrain", "train", *typed, *own, *flags]))


def key_of(text: str) -> str:
    """Return the key that an override sets."""
    return text.lstrip("+~").partition("=")[0]


def refuse_another(root: Path, overrides: Sequence[str], free: Sequence[str]) -> None:
    """Raise CheckpointError unless `overrides` are those of the sweep in `root`, except for keys that are `free`."""
    command = read_command(root)
    begun = command.task
    then, now = (
        {text.lstrip("+") for text in each if key_of(text) not in free and not key_of(text).startswith("hydra")}
        for each in (begun, overrides)
    )
    go_on = f"give another run_dir, or go on with that one: gantrain resume {root}"
    if then != now:
        raise CheckpointError(f"{root} holds another sweep: {' '.join(sorted(then ^ now))} differ; {go_on}")
    listed = {key_of(text) for text in command.params} - {key_of(text) for text in begun}
    for text in overrides:
        if (key := key_of(text)) in listed:
            raise CheckpointError(f"{root} holds another sweep: {text} replaces the values of {key} in a file; {go_on}")
    order, other = (
        " ".join(one.text for one in split_sweep(parse(text.lstrip("+") for text in each))[1])
        for each in (begun, overrides)
    )
    if order != other:
        raise CheckpointError(
            f"{root} holds another sweep: its runs are numbered in the order of {order}, not of {other}; {go_on}"
        )


def job_number(folder: Path) -> int:
    """Return the number that the name of a run's folder begins with, or -1."""
    number = folder.name.partition("-")[0]
    return int(number) if number.isdecimal() else -1


# ---------------------------------------------------------------------------------------------------------------------
# What is still to be done


def add_notes(comparison: Comparison, folders: Iterable[Path]) -> None:
    """Add to a comparison of `folders` notes on runs that have not begun, or whose samples were not measured."""
    comparison.notes.extend([*pending_notes(folders), *unmeasured_notes(comparison.runs)])


def unmeasured_notes(runs: Iterable[Run]) -> Iterator[str]:
    """Yield a note with the commands that measure the samples of finished runs, if there are any without numbers."""
    unmeasured = [
        run.path
        for run in runs
        if run.is_finished and not run.evaluation and run.settings.get("dataset.name") not in POINT_MASSES
        if not any(name.startswith("quality/") for name in run.metrics)  # which may be measured while training
    ]
    sources = dict.fromkeys(path.parent if is_sweep(path.parent) else path for path in unmeasured)
    if sources:
        named = [f"gantrain evaluate {shlex.quote(str(source))}" for source in itertools.islice(sources, MOST_NAMED)]
        more = f" and {len(sources) - MOST_NAMED:,} more" if len(sources) > MOST_NAMED else ""
        count = "1 run has" if len(unmeasured) == 1 else f"{len(unmeasured):,} runs have"
        yield f"{count} no numbers of sample quality and diversity, which are added by: {', '.join(named)}{more}"


def pending_notes(folders: Iterable[Path]) -> Iterator[str]:
    """Yield a note for each sweep, in or below `folders`, with runs that have not begun."""
    runs = ((folder, run) for folder in folders for run in find_run_folders(folder))
    for root in dict.fromkeys(run.parent for folder, run in runs if run != folder):
        try:
            yield from describe_pending(root)
        except GantrainError as error:
            yield f"which runs of {root} have not begun cannot be determined: {error}"


def describe_pending(root: Path) -> Iterator[str]:
    """Yield a note if runs of the sweep in `root` have no summary.

    Nothing if `root` holds no sweep whose folders gantrain named. Raises GantrainError if its command cannot be read.
    """
    choices = expand_command(read_command(root)) if is_sweep(root) else []
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


def expand_command(command: Command) -> list[list[str]]:
    """Return the choices of a sweep in the order in which Hydra's sweeper numbers its jobs.

    One list of overrides for each key, with one empty text if there is no choice. Raises ConfigError.
    """
    choices: dict[str, list[str]] = {}  # what is typed replaces what a file lists, in its place
    for argument in parse(map(hide_interpolations, [*command.params, *command.task])):
        listed = expand_choice(argument) if argument.is_sweep else [""]
        choices[argument.key] = [choice.lstrip("+") for choice in listed]
        if math.prod(map(len, choices.values())) > MOST_JOBS:
            raise ConfigError(f"it lists more than {MOST_JOBS:,} runs")
    return list(choices.values())


def hide_interpolations(text: str) -> str:
    """Return a text with a question mark for each interpolation: nothing from a folder is resolved."""
    while (shorter := INTERPOLATION.sub("?", text)) != text:
        text = shorter
    return text


def compare_sweep(root: Path, *, names_failures: bool = False) -> None:
    """Compare the runs of a sweep and print the tables, and with `names_failures` the runs that do not count.

    An error is only printed: it must not fail the sweep.
    """
    try:
        report_comparison(compare([root]), [root], root, names_failures=names_failures)
    except Exception as error:
        say(f"the runs could not be compared: {error}", error=True)


def report_comparison(
    comparison: Comparison, folders: Iterable[Path], out: Path, *, names_failures: bool = True
) -> None:
    """Print the tables of a comparison of `folders` and what is still to be done, and write its report to `out`."""
    from gantrain.comparison.report import write_report

    add_notes(comparison, folders)
    print_tables(comparison)
    if names_failures:
        print_failures(comparison)
    for note in comparison.notes:
        say(note)
    say(f"the report is {write_report(comparison, out)}")
