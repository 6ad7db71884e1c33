"""From a composed config to a finished run: build the parts once, train, and say in `summary.json` how it ended."""

from __future__ import annotations

import math
import platform
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from gantrain import data
from gantrain.config import checks
from gantrain.console import say
from gantrain.devices import keep_thread_count
from gantrain.errors import CheckpointError, GantrainError, MemoryExhaustedError, StorageError, is_out_of_memory
from gantrain.files import iterate_leaves, reason, replace_non_finite, write_whole
from gantrain.launch import build as parts
from gantrain.objectives.divergences import CATALOGUE
from gantrain.reporting.tensorboard import TensorBoard, select_hyperparameters
from gantrain.reporting.wandb import Mirror
from gantrain.runs.folder import RunFolder
from gantrain.runs.metrics_file import last_tenth_means
from gantrain.runs.signals import StopRequest
from gantrain.runs.summary import conceal_secrets, keep_summary
from gantrain.seeding import describe_machine
from gantrain.theory import properties
from gantrain.theory.description import describe_objective

if TYPE_CHECKING:
    import torch

    from gantrain.data import Dataset
    from gantrain.reporting.reporter import Logger, Reporter
    from gantrain.training.setup import Experiment
    from gantrain.training.state import State

SHORTEST_SECRET = 6  # letters of a value from the environment that is concealed


def launch(
    composed: DictConfig, folder: RunFolder, typed: Iterable[str], bundle: Mapping[str, Any] | None = None
) -> None:
    """Train what `composed` describes in `folder`, from the start or from a checkpoint's `bundle`.

    `typed` are the overrides of the user's own command line, which alone may name code to import. Raises GantrainError
    or Interrupted, after writing the reason into the summary.
    """
    for _ in launched(composed, folder, typed, bundle):
        pass


def launched(
    composed: DictConfig,
    folder: RunFolder,
    typed: Iterable[str],
    bundle: Mapping[str, Any] | None = None,
    load: Callable[..., Dataset] = data.load,
) -> Generator[None, None, None]:
    """`launch`, which yields before every iteration; `load` may know data that are loaded already."""
    secrets = find_secrets(composed)
    with keep_thread_count(), folder.lock(), StopRequest() as stop:
        if bundle is None:
            folder.refuse_progress()
        with keep_summary(folder, secrets) as summary, explained_errors(folder, secrets):
            checks.refuse_untyped_object(composed, typed)
            settings = checks.checked(composed)
            yield from _trained(settings, composed, folder, bundle, stop, summary, load)


def _trained(
    settings: dict[str, Any],
    composed: DictConfig,
    folder: RunFolder,
    bundle: Mapping[str, Any] | None,
    stop: StopRequest,
    summary: dict[str, Any],
    load: Callable[..., Dataset],
) -> Generator[None, None, None]:
    experiment, state = parts.build(settings, load)
    if bundle is not None:
        restore(state, experiment, bundle)
        summary["resumed_at_images"] = [*summary.get("resumed_at_images", []), state.images]
    summary |= describe_run(settings, experiment.data, state.device)
    say(f"{folder.path}: {experiment.data.label}{how_many(experiment)}, on {summary['device']}")
    say("\n".join(filter(None, [*describe_objective(experiment.objective), checks.unusual(settings)])))
    experiment = replace(experiment, evaluation=parts.build_evaluation(settings, experiment.data))
    weighting = experiment.objective.weighting
    if OmegaConf.select(composed, "gen_weights") is not None:  # so that a resumed run keeps what was the default
        OmegaConf.update(composed, "gen_weights", {"normalise": weighting.normalise, "spread": weighting.spread})
    stop.defer()

    from gantrain.training.loop import training

    folder.config.parent.mkdir(exist_ok=True)
    write_whole(folder.config, OmegaConf.to_yaml(composed))  # a resumed run's may have changed since Hydra wrote it
    generator = {"architecture": settings["architecture"], "latent": settings["latent"]}
    provenance = {"config": OmegaConf.to_container(composed, resolve=False), "generator": generator}
    reporter = reporter_for(composed, settings["logger"], experiment, folder, state.images)
    with recorded(summary, state, reporter), reporter:
        yield from training(state, experiment, folder, reporter, provenance=provenance, stop=stop)


def restore(state: State, experiment: Experiment, bundle: Mapping[str, Any]) -> None:
    """Put a checkpoint's bundle into `state`, and say what is not as it was: then the run goes on, but not bit for bit.

    Raises CheckpointError when it does not fit, or when the data are not those that it was trained on.
    """
    data, saved = experiment.data, bundle["data"].get("fingerprint")
    if data.fingerprint != saved:
        raise CheckpointError(
            f"{data.label} has changed since the checkpoint: its fingerprint is {data.fingerprint}, was {saved}; "
            "restore the images, or start a new run"
        )
    try:
        state.load_state_dict(bundle["state"], bundle["images"])
    except CheckpointError as error:
        raise CheckpointError(f"{error}; restore what the run was trained with, or start a new run") from error
    for key, value in describe_machine(state.device).items():
        if (before := bundle["made_with"].get(key)) != value:
            say(f"{key} was {before} and is {value}: the last digits of what follows may differ")


def how_many(experiment: Experiment) -> str:
    """The number of training images, where there is one."""
    return "" if experiment.data.size is None else f", {experiment.data.size:,} training images"


def reporter_for(
    composed: DictConfig, loggers: Sequence[str], experiment: Experiment, folder: RunFolder, start_images: int
) -> Reporter:
    """The run's reporter; opening it takes back what an interrupted process reported after `start_images`."""
    from gantrain.reporting.reporter import Reporter

    plain: Any = OmegaConf.to_container(composed, resolve=False)
    split = "" if experiment.data.has_held_out else "training_"
    tensorboard = partial(
        TensorBoard,
        folder.path,
        start_images,
        config_text=OmegaConf.to_yaml(composed),
        hparams=select_hyperparameters(plain),
        suprema={name: top for name, d in CATALOGUE.items() if math.isfinite(top := properties.supremum(d))},
    )
    known: dict[str, Callable[[], Logger]] = {"tensorboard": tensorboard, "wandb": partial(Mirror, folder.path, plain)}
    return Reporter(
        folder.path,
        total_images=experiment.schedule.images,
        start_images=start_images,
        bound=f"{split}bound/{experiment.objective.disc_div.name}",
        loggers=[known[name] for name in dict.fromkeys(loggers)],
    )


@contextmanager
def recorded(summary: dict[str, Any], state: State, reporter: Reporter) -> Iterator[None]:
    """However the block ends: how far it came, how fast, and the last metrics."""
    started, begin = time.monotonic(), state.images
    try:
        yield
    finally:
        seconds = time.monotonic() - started
        summary["images"] = state.images
        summary["seconds"] = round(summary.get("seconds", 0.0) + seconds, 3)
        summary["images_per_second"] = round((state.images - begin) / max(seconds, 1e-9), 3)
        if weights := last_tenth_means(reporter.metrics, "weights/"):
            summary["weights"] = weights
        summary["metrics"] = replace_non_finite(reporter.latest)


def describe_run(settings: Mapping[str, Any], dataset: Dataset, device: torch.device) -> dict[str, Any]:
    """Return what the numbers of a run depend on beside its config, for `summary.json`."""
    made = describe_machine(device)
    return {
        "data": {
            "label": dataset.label,
            "training_images": dataset.size,
            "held_out": dataset.has_held_out,
            "skipped_files": dataset.skipped,
            "fingerprint": dataset.fingerprint,
        },
        "samples_from": "averaged generator" if settings["ema"] else "generator",
        "seed": settings["seed"],
        "device": made["device"],
        "threads": made["threads"],
        "versions": {"python": platform.python_version(), "torch": made["torch"]},
    }


def find_secrets(composed: DictConfig) -> dict[str, str]:
    """Return the values that the config takes from environment variables, each with the text that stands for it."""
    plain = OmegaConf.to_container(composed, resolve=False)
    taken = {key: text for key, text in iterate_leaves(plain) if isinstance(text, str) and "${oc.env:" in text}
    values = {str(OmegaConf.select(composed, key)): text for key, text in taken.items()}
    # A number or a short word is no secret, and would be found inside other words.
    return {value: text for value, text in values.items() if len(value) >= SHORTEST_SECRET and not value.isdecimal()}


@contextmanager
def explained_errors(folder: RunFolder, secrets: Mapping[str, str]) -> Iterator[None]:
    """Failures of memory and storage in our words; the traceback of anything unforeseen goes into `train.log`."""
    try:
        yield
    except GantrainError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            said = str(error).partition("\n")[0]
            raise MemoryExhaustedError(
                f"out of memory: {said}\n"
                "lower train.batch_size or train.held_out_images, or choose a smaller architecture"
            ) from error
        if isinstance(error, OSError):
            raise StorageError(f"{error.filename or folder.path}: {reason(error)}") from error
        from gantrain.files import append_whole

        append_whole(folder.log, conceal_secrets(traceback.format_exc(), secrets).encode())
        raise GantrainError(
            f"internal error: {type(error).__name__}: {error}\nthe traceback is in {folder.log}"
        ) from error
