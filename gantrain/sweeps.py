"""A sweep's folder: the command that it came from, and what became of its runs.

Hydra keeps the command in `multirun.yaml`, before the first run. Whoever sent the folder may have written that file, so
of Hydra's own keys only names of folders, parameters of the sweep, and a launcher by name are taken from it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gantrain import comparison, overrides
from gantrain.commands import compare
from gantrain.commands.fit import console
from gantrain.errors import CheckpointError, ConfigError, GantrainError
from gantrain.foreign import ForeignSource, refuse_exhausting
from gantrain.run import RunFolder
from gantrain.terminal import one_line, say, seen_or_not

COMMAND = "multirun.yaml"
SEARCH_PATH = "hydra.searchpath"
# What every sweep sets by itself, and sets again.
OWN = ("hydra.sweep.dir", "hydra.job.config.override_dirname.exclude_keys", "hydra.output_subdir", "hydra.mode")
HARMLESS = re.compile(
    r"hydra/launcher=\w+|hydra\.launcher\.(?!_)\w+=.*|hydra\.sweep\.subdir=.*|hydra\.sweeper\.params.*"
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


def command_of(root: Path) -> Command:
    """The command of the sweep in `root`. Raises CheckpointError where there is none that may be given again."""
    path = root / COMMAND
    try:
        refuse_exhausting(path, root)
        typed = yaml.safe_load(path.read_text(encoding="utf-8"))["hydra"]["overrides"]
        task, hydra = ([str(text) for text in typed[kind]] for kind in ("task", "hydra"))
        paths = [o.value() for o in overrides.parsed(hydra) if o.key_or_group == SEARCH_PATH]
    except (ConfigError, KeyError, TypeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} does not hold the command of a sweep: {one_line(str(error))}") from error
    theirs = [text for text in hydra if key(text) not in (*OWN, SEARCH_PATH)]
    for text in (*theirs, *(text for text in task if text.lstrip("+~").startswith("hydra"))):
        if not HARMLESS.fullmatch(text):
            raise CheckpointError(f"{path} has {text}, which is not taken from a file; give the sweep's command again")
    return Command(task, theirs, config_dir=own_yaml(paths))


def own_yaml(paths: Iterable[Any]) -> str | None:
    """The folder of the user's own YAML, of the lists of Hydra's search paths."""
    scheme = f"{ForeignSource.scheme()}://"
    return next((str(path).removeprefix(scheme) for listed in paths for path in listed if scheme in str(path)), None)


def key(text: str) -> str:
    """What an override sets."""
    return text.lstrip("+~").partition("=")[0]


def refuse_another(root: Path, typed: Sequence[str], free: Sequence[str]) -> None:
    """Raise CheckpointError unless `typed` are the overrides of the sweep in `root`, but for keys that are `free`."""
    then, now = (
        {text.lstrip("+") for text in each if key(text) not in free and not key(text).startswith("hydra")}
        for each in (command_of(root).task, typed)
    )
    if then != now:
        raise CheckpointError(
            f"{root} holds another sweep: {' '.join(sorted(then ^ now))} differ; give another run_dir, or go on with "
            f"that one: gantrain resume {root}"
        )


def finished(root: Path) -> int:
    """How many runs of the sweep in `root` finished."""
    return sum(RunFolder(path.parent).read_summary().get("status") == "finished" for path in root.glob("*/.hydra"))


def report(root: Path) -> None:
    """Say how the runs under `root` ended. Raises RunFailed where one did not finish."""
    folders = sorted((path.parent.parent for path in root.glob("*/.hydra/config.yaml")), key=job_number)
    if not folders:
        raise ConfigError(f"the listed values made no run in {root}")
    failed = {folder.name: ending for folder in folders if (ending := failure(RunFolder(folder)))}
    say(f"\n{len(folders) - len(failed)} of {len(folders)} runs finished in {root}")
    compare_runs(root)
    report_endpoints(folders)
    if failed:
        reasons = "\n".join(f"  {name}: {reason}" for name, (reason, _) in failed.items())
        raise RunFailed(f"{len(failed)} runs failed:\n{reasons}", next(iter(failed.values()))[1])


def compare_runs(root: Path) -> None:
    """Lay the runs side by side. Whatever goes wrong here, the sweep ends as its runs did."""
    try:
        found = comparison.compare([root])
        compare.show(found)
        say(f"the report is {compare.write(found, root)}")
    except Exception as error:
        say(f"the runs could not be compared: {error}", error=True)


def report_endpoints(folders: Iterable[Path]) -> None:
    """A table of where Gaussian generators ended and where theory says they must, if there are such runs."""
    summaries = {job_number(folder): RunFolder(folder).read_summary() for folder in folders}
    ends = {number: summary for number, summary in summaries.items() if "endpoint" in summary}
    if not ends:
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for heading in ("run", "gen_div", "gen_objective", "seed", "ended at", "flow", "best", "distance", "as promised"):
        table.add_column(heading, no_wrap=True)
    for number, summary in ends.items():
        gen_div, gen_objective, *cells = endpoint_cells(summary["endpoint"])
        table.add_row(str(number), gen_div, gen_objective, str(summary["seed"]), *cells)
    say("\nWhere the Gaussians (μ, σ) ended, and how far from where the exact flow rests, in its standard deviations:")
    with seen_or_not():
        console().print(table)
    for doubt in dict.fromkeys(end["doubt"] for summary in ends.values() if (end := summary["endpoint"])["doubt"]):
        say(f"nothing is promised where {doubt}")


def endpoint_cells(end: Mapping[str, Any]) -> list[str]:
    """One run's endpoint, as its summary has it: what G followed, three Gaussians, the distance, the verdict."""
    flow, optimum = end["theory"], end["optimum"]
    rest = gaussian_text(flow["mean"], flow["std"]) if flow["outcome"] == "rests" else flow["outcome"]
    near = "" if end["distance"] is None else f"{end['distance']:.3f}"
    near += f" of {end['tolerance']:g}" if near and end["within"] is not None else ""
    verdict = {True: "yes", False: "NO", None: "nothing promised"}[end["within"]]
    reached, best = gaussian_text(*end["reached"]), gaussian_text(optimum["mean"], optimum["std"])
    return [end["gen_div"], end["gen_objective"], reached, rest, best, near, verdict]


def gaussian_text(mean: float | None, std: float | None) -> str:
    """(μ, σ), as text; empty where there is none."""
    return "" if mean is None or std is None else f"({mean:z.4f}, {std:.4f})"


def failure(folder: RunFolder) -> tuple[str, int] | None:
    """Why a run did not finish, and its exit code; None where it did."""
    if error := FAILURES.pop(folder.path.resolve(), None):
        return str(error), error.exit_code
    summary = folder.read_summary()  # of a run that a launcher trained in another process
    if summary.get("status") == "finished":
        return None
    return summary.get("reason") or "it ended without a word in its summary", summary.get("exit_code", 1)


def job_number(folder: Path) -> int:
    """The number that a sweep's folder begins with."""
    number = folder.name.partition("-")[0]
    return int(number) if number.isdecimal() else -1
