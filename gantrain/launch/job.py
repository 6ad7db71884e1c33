"""One job: a single run in a folder of its own, or one run of a sweep, as Hydra calls it."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from gantrain.config.checks import Settings, find_secrets, validate
from gantrain.config.combinations import check_typed_weights
from gantrain.config.compose import CONFIG_NAME, Composed, Composer, composition_errors
from gantrain.config.overrides import Argument
from gantrain.config.schema import Config
from gantrain.console import say
from gantrain.data.arrays import split_name
from gantrain.distributed import join
from gantrain.errors import BusyError, ConfigError, DataError, GantrainError, StorageError, drop_traceback
from gantrain.files import (
    convert_system_errors,
    convert_write_errors,
    deny_writing_by_others,
    expand_home,
    make_folder,
    refuse_replaced,
    safe_name,
)
from gantrain.launch import worker
from gantrain.launch.build import PreparedRun, prepare
from gantrain.launch.initial_weights import load_initial_weights
from gantrain.launch.resume import continue_run, is_resumed
from gantrain.launch.sweep_folder import is_sweep
from gantrain.objectives.critic_objective import OWN
from gantrain.objectives.critics import F_DIVERGENCE
from gantrain.runs.folder import RunFolder, claim_folder
from gantrain.runs.signals import current_stop
from gantrain.runs.summary import keep_summary


class SweepFolderReplaced(BaseException):  # after an Exception, Hydra would begin the next run
    """Another folder has the place of the sweep, which ends."""


@dataclass(frozen=True)
class JobResult:
    """How the run in `folder` ended; `error` is None if it finished."""

    folder: Path
    error: GantrainError | None = None


# ---------------------------------------------------------------------------------------------------------------------
# A single run


@deny_writing_by_others()
def train_once(composer: Composer, arguments: Sequence[Argument], composed: Composed) -> Path:
    """Train the run that was composed, or go on with it under resume=auto; return its folder.

    Of several processes that torchrun has started, the first one does so, and the others follow it. Raises
    GantrainError.
    """
    with join() as part:
        if not part.is_first:
            worker.train_as_follower()
            return expand_home(str(composed.tree.run_dir))
        overrides = [argument.text for argument in arguments]
        prepared = prepare(validate(composed.tree, overrides))
        settings = prepared.config.settings
        check_typed_weights(settings.objective, settings.regularizers, overrides)
        run_dir = find_run_dir(settings)
        if prepared.part.ranks > 1 and run_dir is None:
            raise ConfigError("processes that torchrun has started share a folder; give it, as in run_dir=runs/NAME")
        check_data_path(settings.dataset.path, run_dir or default_folder(settings)[0])
        if not (run_dir and RunFolder(run_dir).has_progress):  # a run that goes on needs no other one
            prepared = replace(prepared, weights=load_initial_weights(settings))
        folder = RunFolder(run_dir or claim_folder(*default_folder(settings)))
        if is_sweep(folder.path):
            again = f"gantrain resume {shlex.quote(str(folder.path))}"
            raise BusyError(f"{folder.path} holds a sweep; go on with `{again}`, or give another run_dir")
        with convert_write_errors(f"run_dir={folder.path}"):
            folder.path.mkdir(parents=True, exist_ok=True)
        folder.refuse_links()
        with folder.lock():
            if is_resumed(folder, composed.tree):
                continue_run(folder, lambda _: composed.tree, overrides)
            else:
                train_in_hydra(composer, composed.whole, folder, prepared)
    return folder.path


def train_in_hydra(composer: Composer, whole: DictConfig, folder: RunFolder, prepared: PreparedRun) -> None:
    """Train as Hydra's own application does: with its folder `.hydra`, its log and the user's callbacks."""
    with read_write(whole), open_dict(whole):
        whole.hydra.run.dir, whole.hydra.mode = str(folder.path), RunMode.RUN
    with composition_errors(), preserved_logging():
        callbacks = Callbacks(whole)
        callbacks.on_run_start(config=whole, config_name=CONFIG_NAME)
        job = run_job(
            lambda _: catch_failure(folder, lambda: worker.train(prepared, folder)),
            whole,
            job_dir_key="hydra.run.dir",
            job_subdir_key=None,
            hydra_context=HydraContext(composer.app.config_loader, callbacks),
        )
        callbacks.on_run_end(config=whole, config_name=CONFIG_NAME, job_return=job)
    if error := job.return_value.error:
        raise error


def catch_failure(folder: RunFolder, train: Callable[[], None]) -> JobResult:
    """Call `train` and return the result of the run; Hydra would wrap an exception in lines of its own."""
    try:
        with convert_system_errors(folder.path, "choose a smaller architecture"):
            train()
    except GantrainError as error:
        return JobResult(folder.path, error)
    return JobResult(folder.path)


def find_run_dir(config: Config) -> Path | None:
    """Return the folder that is given for a run or a sweep; None if it gets one of its own.

    Raises ConfigError for resume=auto without a folder.
    """
    if config.run_dir is None and config.resume == "auto":
        raise ConfigError("resume=auto goes on with what is in run_dir, which is not given; add run_dir=DIR")
    return expand_home(config.run_dir) if config.run_dir else None


def check_data_path(data: str | None, folder: Path | str) -> None:
    """Raise DataError if `data`, of a run in `folder`, cannot be found; call it before `folder` is made.

    Raises ConfigError if `folder` lies in that of the data, where the run's pictures would become images.
    """
    if not data:
        return
    try:
        split_name(expand_home(data))[0].stat()
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise DataError(f"{data} {reason}; give dataset.path an existing folder, .zip or array file") from error
    if Path(folder).resolve().is_relative_to(expand_home(data).resolve()):
        raise ConfigError(
            f"run_dir={folder} lies inside dataset.path={data}, so that the pictures of the run would become training "
            "images; give a run_dir elsewhere"
        )


def default_folder(settings: Settings) -> tuple[Path, str]:
    """Return the default parent and name of a run's folder: runs/<dataset>/<disc_div>-<gen_div>[-…], <time>-s<seed>.

    A critic has its name in place of `own`.
    """
    augmentation = [settings.augment["name"]] if settings.augment else []
    options = (settings.gen_objective, settings.head, *settings.regularizer, *augmentation)
    game = [settings.critic["name"], settings.disc_div.name, settings.gen_div.name]
    game += [option for option in options if option not in ("matched", "log_ratio")]
    game = [part for part in game if part not in (F_DIVERGENCE, OWN)]
    dataset = settings.dataset.label or settings.dataset.name
    return Path("runs", safe_name(dataset), safe_name("-".join(game))), f"{time_stamp()}-s{settings.seed}"


def time_stamp() -> str:
    """Return the local date and time as a name."""
    return datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


@contextmanager
def preserved_logging() -> Iterator[None]:
    """Restore the handlers and the level of Python's root logger, which Hydra sets for a job."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


# ---------------------------------------------------------------------------------------------------------------------
# A job of a sweep


def run_sweep_job(tree: DictConfig) -> JobResult:
    """Train one run of a sweep in the folder that Hydra made for it; Hydra's task function.

    Raises Interrupted when a signal ends the sweep, SweepFolderReplaced when its folder was moved.
    """
    context = HydraConfig.get()
    folder = RunFolder(context.runtime.output_dir)
    say(f"\n{folder.path}")
    with current_stop() as stop:
        result = catch_failure(folder, lambda: train_sweep_job(folder, tree, list(context.overrides.task)))
        if result.error:
            say(f"failed: {result.error}", error=True)
            drop_traceback(result.error)  # Hydra keeps the results of all jobs
        stop.raise_if_asked(f"{folder.path} had just ended")
    try:
        refuse_replaced(Path(context.sweep.dir))
    except (OSError, StorageError) as error:
        raise SweepFolderReplaced(str(error)) from error
    return result


def train_sweep_job(folder: RunFolder, tree: DictConfig, overrides: Sequence[str]) -> None:
    """Begin the run of the config `tree` in `folder`, or go on with it under resume=auto."""
    with folder.lock():
        if is_resumed(folder, tree):
            continue_run(folder, lambda _: tree, overrides)
            return
        if HydraConfig.get().output_subdir is None:
            save_hydra_files(tree, folder)
        try:
            with convert_system_errors(folder.path, "choose a smaller architecture"):
                prepared = prepare(validate(tree, overrides))
                check_data_path(prepared.config.settings.dataset.path, folder.path)
                prepared = replace(prepared, weights=load_initial_weights(prepared.config.settings))
        except GantrainError:
            with keep_summary(folder, find_secrets(tree)):  # which records the error
                raise
        worker.train(prepared, folder)


def save_hydra_files(tree: DictConfig, folder: RunFolder) -> None:
    """Write the files of `.hydra` of a run that a resumed sweep begins; there Hydra's own writing of them is off."""
    contents = {"config": tree, "hydra": HydraConfig.instance().cfg, "overrides": HydraConfig.get().overrides.task}
    make_folder(folder.config.parent)
    for name, content in contents.items():
        OmegaConf.save(content, folder.config.with_name(f"{name}.yaml"))
