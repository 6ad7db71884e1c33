"""A sweep: one run for every combination of the listed values."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.types import RunMode

from gantrain.config.checks import parse_config
from gantrain.config.compose import CONFIG_NAME, Composed, Composer, check_jobs, composition_errors, create_composer
from gantrain.config.overrides import Argument, parse, parse_train, quote, split_sweep
from gantrain.console import say
from gantrain.distributed import is_several
from gantrain.errors import BusyError, CheckpointError, ConfigError, GantrainError, StorageError, UntypedCodeError
from gantrain.files import convert_write_errors, deny_writing_by_others
from gantrain.launch import sweep_folder
from gantrain.launch.initial_weights import find_checkpoint
from gantrain.launch.job import (
    JobResult,
    SweepFolderReplaced,
    check_data_path,
    find_run_dir,
    preserved_logging,
    run_sweep_job,
    time_stamp,
)
from gantrain.launch.resume import CHANGEABLE_KEYS
from gantrain.launch.sweep_folder import job_number
from gantrain.runs.folder import RunFolder, claim_folder
from gantrain.runs.signals import Interrupted, current_stop

LAUNCHER = re.compile(r"hydra[/.]launcher")  # how runs are trained, not what


class RunFailed(GantrainError):
    """A run that did not finish, as its summary says, or a sweep with such runs."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


def raise_failures(failures: Mapping[str, GantrainError], what: str) -> None:
    """Raise RunFailed, with the first one's exit code, if runs of a sweep have failed; each reason is named once.

    `what` says in which way, as in "could not be measured".
    """
    runs: dict[str, list[str]] = {}
    for name, error in failures.items():
        runs.setdefault(str(error), []).append(name)
    if failures:
        count = "1 run" if len(failures) == 1 else f"{len(failures)} runs"
        reasons = "\n".join(f"  {', '.join(names)}: {why}" for why, names in runs.items())
        raise RunFailed(f"{count} {what}:\n{reasons}", next(iter(failures.values())).exit_code)


@deny_writing_by_others()
def train_sweep(composer: Composer, arguments: Sequence[Argument], composed: Composed) -> None:
    """Train once for every combination, and compare the runs; `composed` is the config that all jobs share.

    Raises ConfigError if no run could train, BusyError or CheckpointError for a folder that holds something else,
    RunFailed if a run did not finish, and Interrupted when a signal ends the sweep.
    """
    single, listed = split_sweep(arguments)
    check_sweep(listed)
    overrides = [argument.text for argument in arguments]
    is_complete = composed.mode != RunMode.MULTIRUN  # else a file lists more values
    check_jobs(composer, [one.text for one in single], listed, complete=is_complete)
    shared = parse_config(composed.tree)
    run_dir = find_run_dir(shared)
    check_data_path(shared.dataset.path, run_dir or "sweeps")
    if shared.init and shared.resume != "auto":  # in place of the same refusal in every run
        find_checkpoint(shared.init)
    root = run_dir or claim_folder(Path("sweeps"), time_stamp())
    with convert_write_errors(f"run_dir={root}"):
        root.mkdir(parents=True, exist_ok=True)
    own = own_overrides(root, single)
    again = f"gantrain resume {shlex.quote(str(root))}"
    folder = RunFolder(root)
    folder.refuse_progress()
    with folder.lock(), current_stop():
        if sweep_folder.is_sweep(root) or any(root.glob("*/summary.json")):
            if shared.resume != "auto":
                raise BusyError(f"{root} already holds a sweep; go on with `{again}`, or give another run_dir")
            sweep_folder.refuse_links(root)
            sweep_folder.refuse_another(root, overrides, CHANGEABLE_KEYS)
            sweep_folder.keep_command(root, [*overrides, *composer.search_path])
            own.append("hydra.output_subdir=null")  # Hydra would overwrite the files in .hydra
        try:
            with composition_errors(), preserved_logging():
                batches = composer.app.multirun(CONFIG_NAME, run_sweep_job, [*overrides, *composer.search_path, *own])
                returned = [job.return_value for batch in batches for job in batch]
        except Interrupted as stop:
            finished = sum(find_failure(path.parent) is None for path in root.glob("*/.hydra"))
            message = f"{stop}\n{finished} runs of the sweep in {root} finished; go on with: {again}"
            raise Interrupted(message, stop.number) from None
        except SweepFolderReplaced as error:
            raise StorageError(str(error)) from None
    report_results(root, [result for result in returned if isinstance(result, JobResult)])


def check_sweep(listed: Sequence[Argument]) -> None:
    """Raise ConfigError for processes that torchrun has started, and for listed values of a key that all runs share."""
    if is_several():
        raise ConfigError("a sweep starts the processes of its runs itself: give devices=N in place of torchrun")
    for argument in listed:
        if argument.key in ("run_dir", "resume"):
            raise ConfigError(f"{argument.text}: a sweep has one {argument.key} for all its runs; give one value")


def own_overrides(root: Path, single: Sequence[Argument]) -> list[str]:
    """Return overrides of Hydra's keys for a sweep in `root`, whose runs are named by all but the `single` values."""
    return [
        "hydra.mode=MULTIRUN",
        f"hydra.sweep.dir={quote(root)}",
        f"hydra.job.config.override_dirname.exclude_keys=[{','.join(quote(one.key) for one in single)}]",
    ]


def report_results(root: Path, returned: Sequence[JobResult]) -> None:
    """Print how the runs of the sweep in `root` ended, and compare them. Raises RunFailed if one did not finish.

    A run ended as it `returned`, else as its summary says.
    """
    errors = {result.folder.resolve(): result.error for result in returned}
    folders = [path.parent.parent for path in root.glob("*/.hydra/config.yaml")]
    folders += [result.folder for result in returned]  # that of a run whose process was killed may not exist
    if not folders:
        raise ConfigError(f"the listed values made no run in {root}")
    runs = sorted({path.resolve(): path for path in folders}.values(), key=job_number)
    failures = {run.name: error for run in runs if (error := errors.get(run.resolve()) or find_failure(run))}
    say(f"\n{len(runs) - len(failures)} of {len(runs)} runs finished in {root}")
    sweep_folder.compare_sweep(root)
    raise_failures(failures, "failed")


def find_failure(folder: Path) -> GantrainError | None:
    """Return why a run did not finish, as its summary says, or None if it did."""
    summary = RunFolder(folder).read_summary()
    if summary.get("status") == "finished":
        return None
    return RunFailed(summary.get("reason") or "its process ended without writing a reason", summary.get("exit_code", 1))


def resume_sweep(root: Path, arguments: Sequence[Argument]) -> None:
    """Go on with a sweep: finished runs stay, interrupted ones go on, missing ones are trained.

    The arguments may change what a run may be resumed with, and the launcher. Raises CheckpointError for anything else.
    """
    command = sweep_folder.read_safe_command(root)
    typed = [argument.text for argument in arguments]
    for argument in arguments:
        is_free = argument.key in set(CHANGEABLE_KEYS) - {"run_dir", "resume"} or LAUNCHER.match(argument.key)
        if not is_free and argument.text not in command.task:
            raise CheckpointError(f"{argument.text}: a sweep cannot be resumed as another one; start a new one")
    replaced = {*(argument.key for argument in arguments), "run_dir", "resume"}
    if "device" in replaced:
        replaced.add("hydra.launcher.devices")
    if "hydra/launcher" in replaced:  # another one has other settings
        replaced |= {key for key in map(sweep_folder.key_of, command.hydra) if LAUNCHER.match(key)}
    task, hydra = (
        [text for text in texts if sweep_folder.key_of(text) not in replaced] for texts in (command.task, command.hydra)
    )
    if objects := [text for text in task if "architecture.object" in text]:
        raise UntypedCodeError(root, objects[0].partition("=")[2])
    again = parse_train([*task, *typed, f"run_dir={quote(root)}", "resume=auto"]) + parse(hydra)
    with create_composer(again, command.config_dir) as composer:
        composed = composer.compose([argument.text for argument in split_sweep(again)[0]])
        train_sweep(composer, again, composed)
