"""One run: train in its folder, and record in `summary.json` how it ended."""

from __future__ import annotations

import math
import platform
import shlex
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from gantrain.config.checks import RunConfig, Settings, find_secrets, list_warnings
from gantrain.config.groups import FASTER_ARCHITECTURES
from gantrain.console import copy_text, say
from gantrain.devices import limit_threads
from gantrain.distributed import Part
from gantrain.errors import CheckpointError, DataError, GantrainError
from gantrain.evaluation import metrics
from gantrain.files import convert_system_errors, make_folder, replace_non_finite, write_file
from gantrain.launch.build import PreparedRun, build, build_evaluation, count_multiply_adds
from gantrain.objectives.divergences import CATALOGUE
from gantrain.reporting.tensorboard import TensorBoard, select_hyperparameters
from gantrain.reporting.wandb import Mirror
from gantrain.runs import checkpoints
from gantrain.runs.folder import RunFolder
from gantrain.runs.metrics_file import means_over_last_tenth, read_metrics
from gantrain.runs.signals import current_stop
from gantrain.runs.summary import conceal_secrets, keep_summary
from gantrain.seeding import describe_machine
from gantrain.theory import properties
from gantrain.theory.description import describe_objective, describe_regularizers
from gantrain.training.setup import Schedule, TrainingSetup
from gantrain.version import describe_version

if TYPE_CHECKING:
    import torch

    from gantrain.data import Dataset
    from gantrain.reporting.reporter import Reporter
    from gantrain.training.state import State


SLOW_MINUTES = 60  # of a run, above which what would be faster is named


def train(run: PreparedRun, folder: RunFolder, bundle: Mapping[str, Any] | None = None) -> None:
    """Train in `folder`, which this process holds, from the start or from the `bundle` of a checkpoint.

    Raises GantrainError or Interrupted, after writing the reason into the summary.
    """
    from gantrain.training import loop
    from gantrain.training.state import estimate_bytes

    config, settings, secrets = run.config, run.config.settings, find_secrets(run.config.tree)
    with current_stop() as stop, keep_summary(folder, secrets) as summary, known_errors(folder):
        with run.part.agree_on_errors():
            setup, state = build(run)
        with limit_threads(run.device, count_multiply_adds(settings, setup.data.shape)):
            begin(run, state, setup, summary, bundle)
            summary |= describe_run(settings, setup.data, state)
            checkpoints.check_space(folder.path, estimate_bytes(state))
            folder.write_summary(conceal_secrets(summary, secrets))  # what a run that is killed is known by
            size = "" if setup.data.size is None else f", {setup.data.size:,} training images"
            several = f"{run.processes} × " if run.processes > 1 else ""
            say(f"{folder.path}: {setup.data.label}{size}, on {several}{summary['device']}")
            players = [*describe_objective(setup.objective), describe_regularizers(setup.regularizers)]
            say("\n".join(filter(None, [*players, *list_warnings(settings)])))
            setup = replace(setup, evaluation=build_evaluation(settings, setup.data))
            stop.defer()
            config = record_sample_weights(config, setup)
            make_folder(folder.config.parent)
            write_file(folder.config, config.to_yaml())  # a resumed run's may have changed since Hydra wrote it
            generator = {"architecture": settings.architecture, "latent": dict(vars(settings.latent))}
            origin = conceal_secrets(summary.get("init"), secrets)
            provenance = {"config": config.document, "generator": generator, "init": origin}
            reporter = build_reporter(config, setup, folder, state)
            share_state(state, setup.part)
            with recorded_progress(summary, state, reporter, folder), reporter:
                loop.train(state, setup, folder, reporter, provenance=provenance, stop=stop)
            say(describe_results(folder, has_metrics=metrics.has_metrics(setup.data)))


def begin(
    run: PreparedRun, state: State, setup: TrainingSetup, summary: dict[str, Any], bundle: Mapping[str, Any] | None
) -> None:
    """Bring `state` to the `bundle` of the run's checkpoint, or without one to the weights that a new run begins with.

    What happened goes into the summary, and what differs on this machine is printed, because last digits may then
    differ. Raises CheckpointError if the bundle or the weights do not fit the networks or the data.
    """
    if bundle is None:
        refuse_other_data(setup.data, summary.get("data", {}).get("fingerprint"))
        if run.weights:
            run.weights.load_into(state)
        origin = run.weights and run.weights.origin
    else:
        refuse_other_data(setup.data, bundle["data"].get("fingerprint", ""))
        try:
            state.load_state_dict(bundle["state"], bundle["images"])
        except CheckpointError as error:
            raise CheckpointError(f"{error}; restore what the run was trained with, or start a new run") from error
        for key, value in describe_machine(state.device).items():
            if (before := bundle["made_with"].get(key, value)) != value:
                say(f"{key} was {before} and is {value}: the last digits of what follows may differ")
        summary["resumed_at_images"] = [*summary.get("resumed_at_images", []), state.images]
        origin = bundle.get("init")
    if origin:
        summary["init"] = origin


def share_state(state: State, part: Part) -> None:
    """Give all processes the state of the first one."""
    if part.ranks == 1:
        return
    shared = part.broadcast({"images": state.images, "state": state.state_dict()} if part.is_first else None)
    if part.is_first:
        return
    if shared["images"]:
        state.load_state_dict(shared["state"], shared["images"])
        return
    for name, network in state.networks.items():  # there is nothing else before the first step
        network.load_state_dict(shared["state"][name])


def record_sample_weights(config: RunConfig, setup: TrainingSetup) -> RunConfig:
    """Return the config with the weighting that its default stands for, so that a resumed run has the same one."""
    if "gen_weights" not in config.tree:
        return config
    tree, weighting = OmegaConf.create(config.tree), setup.objective.weighting
    OmegaConf.update(tree, "gen_weights", {"normalise": weighting.normalise, "spread": weighting.spread})
    return replace(config, tree=tree)


def refuse_other_data(dataset: Dataset, saved: str | None) -> None:
    """Raise CheckpointError unless the data have the fingerprint `saved`; None is that of a run without data so far."""
    if saved not in (None, dataset.fingerprint):
        raise CheckpointError(
            f"{dataset.label} has changed since the run began: its fingerprint is {dataset.fingerprint}, was {saved}; "
            "restore the images, or start a new run"
        )


def build_reporter(config: RunConfig, setup: TrainingSetup, folder: RunFolder, state: State) -> Reporter:
    """Return the run's reporter; opening it removes what an interrupted process reported after the state's clock."""
    from gantrain.reporting.reporter import Reporter

    split, document = "" if setup.data.has_held_out else "training_", config.document
    tensorboard = partial(
        TensorBoard,
        folder.path,
        state.images,
        config_text=config.to_yaml(),
        hparams=select_hyperparameters(document),
        suprema={name: top for name, d in CATALOGUE.items() if math.isfinite(top := properties.supremum(d))},
    )
    wandb = partial(Mirror, folder.path, document)
    known: dict[str, Callable[[], TensorBoard | Mirror]] = {"tensorboard": tensorboard, "wandb": wandb}
    return Reporter(
        folder.path,
        total_images=setup.schedule.images,
        start_images=state.images,
        bound=f"{split}{setup.objective.headline}",
        forecast=partial(describe_pace, config.settings, setup.schedule, state.device),
        loggers=[known[name] for name in dict.fromkeys(config.settings.logger)],
    )


def describe_pace(settings: Settings, schedule: Schedule, device: torch.device, images: int, rate: float) -> str:
    """Return a sentence on what comes when after `images` at `rate` images per second, and what would be faster."""
    from gantrain.precision import has_fast_bf16

    end = (schedule.images - images) / rate / 60
    limits = {
        "report": (schedule.report_every_images, end),
        "grid": (schedule.sample_every_images, min(end, schedule.checkpoint_max_minutes)),
        "checkpoint": (schedule.checkpoint_every_images, min(end, schedule.checkpoint_max_minutes)),
    }
    minutes = {
        name: min((interval - images % interval) / rate / 60, limit) for name, (interval, limit) in limits.items()
    }
    times = ", ".join(f"{name} in {format_minutes(each)}" for name, each in (minutes | {"end": end}).items())
    smaller = FASTER_ARCHITECTURES.get(settings.tables.name)
    faster = [f"architecture={smaller}"] if smaller else []
    if settings.precision == ("float32" if has_fast_bf16(device) else "bf16") and not settings.tables.object:
        faster.append("precision=auto")
    hint = f"; faster: {' '.join(faster)}" if device.type == "cpu" and end > SLOW_MINUTES and faster else ""
    return f"{rate:,.0f} images/s; {times}{hint}"


def describe_results(folder: RunFolder, *, has_metrics: bool) -> str:
    """Return where the pictures of a finished run are, and the commands that go on from there."""
    path = shlex.quote(str(folder.path))
    commands = [f"gantrain sample {path}", f"tensorboard --logdir {path}"]
    if has_metrics:
        commands.insert(0, f"gantrain evaluate {path}")
    return f"finished; pictures: {folder.samples}, {folder.path / 'losses.png'}\nnext: {', '.join(commands)}"


def format_minutes(minutes: float) -> str:
    """Return `40 s`, `12 min`, `3.5 h` or `2.1 days`."""
    if minutes < 2:
        return f"{60 * minutes:.0f} s"
    if minutes < 100:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h" if minutes < 48 * 60 else f"{minutes / 60 / 24:.1f} days"


@contextmanager
def recorded_progress(summary: dict[str, Any], state: State, reporter: Reporter, folder: RunFolder) -> Iterator[None]:
    """Record the clock, the newest checkpoint, the speed and the last metrics, however the block ends."""
    started, begin = time.monotonic(), state.images
    try:
        yield
    finally:
        seconds = time.monotonic() - started
        summary["images"] = state.images
        with suppress(OSError):  # which must not hide what ended the run
            if saved := checkpoints.list_files(folder.checkpoints):
                summary["checkpoint"] = saved[0].name
        summary["seconds"] = round(summary.get("seconds", 0.0) + seconds, 3)
        summary["images_per_second"] = round((state.images - begin) / max(seconds, 1e-9), 3)
        with suppress(DataError):  # no report was written
            if weights := means_over_last_tenth(read_metrics(reporter.metrics), "weights/"):
                summary["weights"] = weights
        summary["metrics"] = replace_non_finite(reporter.latest)


def describe_run(settings: Settings, dataset: Dataset, state: State) -> dict[str, Any]:
    """Return the data, weights, device and versions that the numbers of a run depend on, for `summary.json`.

    `gen_weights` is None where samples have no weights, as under gen_objective=ratio.
    """
    from gantrain.training.generator import name_generator

    made, game = describe_machine(state.device), settings.objective
    return {
        "data": {
            "label": dataset.label,
            "training_images": dataset.size,
            "held_out": dataset.has_held_out,
            "skipped_files": dataset.skipped,
            "fingerprint": dataset.fingerprint,
        },
        "gen_weights": vars(game.weighting).copy() if game.has_weights else None,
        "regularizer": settings.regularizer,
        "samples_from": name_generator(state.best_generator, state.average is not None, settings.ema_statistics),
        "seed": settings.seed,
        "device": made["device"],
        "devices": made["devices"],
        "threads": made["threads"],
        "versions": {**describe_version(), "python": platform.python_version(), "torch": made["torch"]},
    }


@contextmanager
def known_errors(folder: RunFolder) -> Iterator[None]:
    """Raise failures of memory, storage and packages as GantrainError.

    The traceback of any other error goes into `train.log`.
    """
    remedy = "lower train.batch_size or train.held_out_images, or choose a smaller architecture"
    try:
        with convert_system_errors(folder.path, remedy):
            yield
    except GantrainError:
        raise
    except Exception as error:
        copy_text(traceback.format_exc())
        raise GantrainError(
            f"internal error: {type(error).__name__}: {error}\nthe traceback is in {folder.log}"
        ) from error
