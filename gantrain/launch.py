"""From a composed config to a finished run: build the parts once, train, and say in `summary.json` how it ended."""

from __future__ import annotations

import inspect
import math
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from gantrain import config, portraits
from gantrain.divergences import CATALOGUE
from gantrain.errors import (
    ConfigError,
    DataError,
    GantrainError,
    MemoryExhaustedError,
    StorageError,
    nearest_first,
    one_of,
)
from gantrain.explanation import explained
from gantrain.nested import leaves
from gantrain.randomness import preserved_randomness, stream_seed
from gantrain.run import Interrupted, RunFolder, StopRequest
from gantrain.terminal import say

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer

    from gantrain.data import Dataset
    from gantrain.state import State
    from gantrain.trainer import Schedule


SHORTEST_SECRET = 6
# Multiply-adds a batch below which a CPU's threads cost more than they share, 20 times more where the cores are busy
# (the digits' perceptrons, 2e7, on two cores: the same speed alone; the paper's network: 1e10).
FEW_MULTIPLY_ADDS = 10**8


def launch(
    composed: DictConfig, folder: RunFolder, typed: Iterable[str], bundle: Mapping[str, Any] | None = None
) -> None:
    """Train what `composed` describes in `folder`, from the start or from a checkpoint's `bundle`.

    `typed` are the overrides of the user's own command line, which alone may name code to import. Raises GantrainError
    or Interrupted, after writing the reason into the summary.
    """
    secrets = from_environment(composed)
    with (
        threads_given_back(),
        folder.locked(),
        StopRequest() as stop,
        summarised(folder, secrets) as summary,
        explained_errors(folder, secrets),
    ):
        config.refuse_untyped_object(composed, typed)
        settings = config.checked(composed)
        _train(settings, composed, folder, bundle, stop, summary)


def _train(
    settings: dict[str, Any],
    composed: DictConfig,
    folder: RunFolder,
    bundle: Mapping[str, Any] | None,
    stop: StopRequest,
    summary: dict[str, Any],
) -> None:
    game = config.objective(settings)

    import torch

    from gantrain import data
    from gantrain.endpoint import endpoint
    from gantrain.latents import Latents
    from gantrain.report import Reporter
    from gantrain.trainer import made_with, train

    device = choose_device(settings["device"])
    optimizers = optimizer_factories(settings["optimizer"], device)
    dataset = data.load(**settings["dataset"], seed=settings["seed"], device=device)
    schedule = build_schedule(settings, dataset)
    if device.type == "cpu" and is_small(settings, dataset.shape):
        torch.set_num_threads(1)
    state = build_state(settings, dataset.shape, device, optimizers)
    if bundle is not None:
        refuse_other_data(dataset, bundle)
        state.load_state_dict(bundle["state"], bundle["images"])
        summary["resumed_at_images"] = [*summary.get("resumed_at_images", []), bundle["images"]]
        for line in moved(bundle["made_with"], made_with(device)):
            say(line)
    summary |= described(settings, dataset, device)
    count = "" if dataset.size is None else f", {dataset.size:,} training images"
    say(f"{folder.path}: {dataset.label}{count}, on {summary['device']}")
    say("\n".join(explained(game)))
    stop.raise_if_asked("before the first step")

    plain = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(plain, dict)
    OmegaConf.save(composed, folder.config)  # a resumed run's may have changed since Hydra wrote it
    reporter = Reporter(
        folder.path,
        total_images=schedule.images,
        start_images=state.images,
        config_text=OmegaConf.to_yaml(composed),
        hparams=hyperparameters(plain),
        bound=f"{'' if dataset.has_held_out else 'training_'}bound/{game.disc_div.name}",
        suprema={name: top for name, d in CATALOGUE.items() if math.isfinite(top := portraits.supremum(d))},
    )
    latents = Latents(settings["latent"]["size"], settings["latent"]["prior"], device)
    started, begin = time.monotonic(), state.images
    try:
        with reporter:
            train(
                state,
                game,
                dataset,
                latents,
                schedule,
                folder,
                reporter,
                seed=settings["seed"],
                config={str(key): value for key, value in plain.items()},
                build={"architecture": settings["architecture"], "latent": settings["latent"]},
                stop=stop,
            )
        if (end := endpoint(state.best_generator, dataset, game)) is not None:
            summary["endpoint"] = end.summary()
            say(end.text())
    finally:
        seconds = time.monotonic() - started
        summary["images"] = state.images
        summary["seconds"] = round(summary.get("seconds", 0.0) + seconds, 3)
        summary["images_per_second"] = round((state.images - begin) / seconds, 3)
        summary["metrics"] = {name: value if math.isfinite(value) else None for name, value in reporter.latest.items()}


@contextmanager
def threads_given_back() -> Iterator[None]:
    """The number of threads, which a run may change, is afterwards as it was."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def summarised(folder: RunFolder, secrets: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """A dictionary that becomes `summary.json`: `running` at first, then how the block ended."""
    earlier = folder.read_summary()
    summary: dict[str, Any] = {
        key: earlier[key] for key in ("started", "seconds", "images", "metrics", "resumed_at_images") if key in earlier
    }
    summary = {"status": "running", "reason": "", "started": now()} | summary
    folder.write_summary(summary)  # before the work: a folder that cannot be written is found now

    def ended(status: str, reason: str, exit_code: int) -> None:
        summary.update(status=status, reason=reason, exit_code=exit_code, ended=now())

    try:
        yield summary
        ended("finished", "", 0)
    except Interrupted as stop:
        ended("stopped", str(stop), stop.exit_code)
        raise
    except KeyboardInterrupt:
        ended("stopped", "stopped at once by a second interrupt", 130)
        raise
    except GantrainError as error:
        ended("failed", str(error), error.exit_code)
        raise
    finally:
        try:
            folder.write_summary(revealing_nothing(summary, secrets))
        except OSError as error:  # what ended the run is worth more than the record of it
            say(f"{folder.summary} could not be written: {error.strerror}", error=True)


@contextmanager
def explained_errors(folder: RunFolder, secrets: Mapping[str, str]) -> Iterator[None]:
    """Failures of memory and storage in our words; the traceback of anything unforeseen goes into `train.log`."""
    try:
        yield
    except GantrainError:
        raise
    except Exception as error:
        if _is_out_of_memory(error):
            raise MemoryExhaustedError(
                f"out of memory: {str(error).splitlines()[0]}\n"
                "lower train.batch_size or train.held_out_images, or choose a smaller architecture"
            ) from error
        if isinstance(error, OSError):
            raise StorageError(f"{folder.path}: {error.strerror or error} ({error.filename})") from error
        with folder.log.open("a", encoding="utf-8") as log:
            log.write(concealed(traceback.format_exc(), secrets))
        raise GantrainError(
            f"internal error: {type(error).__name__}: {error}\nthe traceback is in {folder.log}"
        ) from error


def from_environment(composed: DictConfig) -> dict[str, str]:
    """What the config takes from environment variables, each value with the text that took it."""
    plain = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(plain, dict)
    taken = {key: text for key, text in leaves(plain) if isinstance(text, str) and "${oc.env:" in text}
    values = {str(OmegaConf.select(composed, key)): text for key, text in taken.items()}
    # A number or a short word is no secret, and would be found inside other words.
    return {value: text for value, text in values.items() if len(value) >= SHORTEST_SECRET and not value.isdecimal()}


def concealed(text: str, secrets: Mapping[str, str]) -> str:
    """`text` with every value from the environment replaced by what took it: it may be a secret."""
    for value, source in secrets.items():
        text = text.replace(value, source)
    return text


def revealing_nothing(value: Any, secrets: Mapping[str, str]) -> Any:
    """Nested plain data with every string `concealed`."""
    if isinstance(value, Mapping):
        return {key: revealing_nothing(item, secrets) for key, item in value.items()}
    return concealed(value, secrets) if isinstance(value, str) else value


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    on_device = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return on_device or isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)


def now() -> str:
    """The date and time, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def described(settings: Mapping[str, Any], dataset: Dataset, device: torch.device) -> dict[str, Any]:
    """What a number of this run depends on beside its config."""
    from gantrain.trainer import made_with

    made = made_with(device)
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


def moved(before: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What is not as it was when the checkpoint was made, a line each: the run goes on, but not bit for bit."""
    return [
        f"{key} was {before[key]} and is {value}: the last digits of what follows may differ"
        for key, value in here.items()
        if before.get(key) != value
    ]


def hyperparameters(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys, without the networks' tables."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= hyperparameters(value, f"{prefix}{key}.")
        elif not isinstance(value, list) or all(isinstance(item, int | float) for item in value):
            flat[f"{prefix}{key}"] = value
    return flat


# ---------------------------------------------------------------------------------------------------------------------
# The parts


def choose_device(name: str) -> torch.device:
    """The device called `name`; `auto` is the first of CUDA, MPS and CPU that is there. Raises ConfigError."""
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    kind, colon, number = name.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if not available.get(kind) or (colon and not (number.isdecimal() and int(number) < count)):
        there = ", ".join(["auto", *(kind for kind, there in available.items() if there)])
        raise ConfigError(f"device={name} is not on this machine; choose {there}")
    return torch.device(name)


def check_parts(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for a device or an optimizer that cannot be had; imports torch, reads no data."""
    optimizer_factories(settings["optimizer"], choose_device(settings["device"]))


def is_small(settings: Mapping[str, Any], shape: tuple[int, ...]) -> bool:
    """Whether the networks are too small to be shared between threads, unless the user has set their number."""
    from gantrain import architectures

    if settings["architecture"].get("object") or "OMP_NUM_THREADS" in os.environ:
        return False
    tables = architectures.describe(settings["architecture"], shape, settings["latent"]["size"])
    return (
        sum(row.multiply_adds for rows in tables for row in rows) * settings["train"]["batch_size"] < FEW_MULTIPLY_ADDS
    )


def optimizer_factories(
    settings: Mapping[str, Any], device: torch.device
) -> dict[str, Callable[[nn.Module], Optimizer]]:
    """For each player a function from a network to its optimizer. Raises ConfigError for settings that it refuses."""
    shared = {key: value for key, value in settings.items() if key not in ("discriminator", "generator")}
    players = ("discriminator", "generator")
    return {player: optimizer_factory(shared | _own(settings, player), device) for player in players}


def _own(settings: Mapping[str, Any], player: str) -> dict[str, Any]:
    own = settings.get(player)
    if own is not None and not isinstance(own, Mapping):
        raise ConfigError(f"optimizer.{player}={own} must be keys and values, as in optimizer.{player}.lr=0.001")
    return {str(key): value for key, value in (own or {}).items()}


def optimizer_factory(settings: Mapping[str, Any], device: torch.device) -> Callable[[nn.Module], Optimizer]:
    """The class called `name` in torch.optim, with the other keys as its arguments, tried for one step on `device`.

    Raises ConfigError for an unknown name or key and for values that the class refuses.
    """
    import torch

    classes = {
        name: item
        for name, item in vars(torch.optim).items()
        if inspect.isclass(item) and issubclass(item, torch.optim.Optimizer) and name not in ("Optimizer", "LBFGS")
    }
    name, arguments = settings.get("name"), {key: value for key, value in settings.items() if key != "name"}
    if not isinstance(name, str) or name not in classes:
        raise ConfigError(one_of("optimizer.name", name, classes))
    known = [key for key in inspect.signature(classes[name]).parameters if key != "params"]
    for key, value in list(arguments.items()):
        if key not in known:
            raise ConfigError(f"optimizer={name} has no key {key}; did you mean {nearest_first(key, known)[0]}?")
        if isinstance(value, list):  # betas=[0,0.9] as papers write it; the classes want floats
            value = arguments[key] = [float(item) if isinstance(item, int) else item for item in value]
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ConfigError(f"optimizer.{key}={value} must be finite")

    def build(network: nn.Module) -> Optimizer:
        return classes[name](network.parameters(), **arguments)

    try:
        trial = build(network := torch.nn.Linear(2, 2).to(device))
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        trial.step()
    except Exception as error:  # each class checks its arguments in its own way
        given = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise ConfigError(f"optimizer={name} refuses {given}: {error}") from error
    return build


def build_schedule(settings: Mapping[str, Any], dataset: Dataset) -> Schedule:
    """The schedule, `epochs` turned into images. Raises DataError where a batch is larger than the dataset."""
    from gantrain.trainer import Schedule

    train = dict(settings["train"])
    epochs, size = train.pop("epochs"), dataset.size
    if size is not None and size < train["batch_size"]:
        raise DataError(
            f"{dataset.label} has {size} training images, fewer than train.batch_size={train['batch_size']}; "
            "lower train.batch_size or dataset.held_out, or add images"
        )
    if epochs is not None:
        if size is None:
            raise ConfigError(f"train.epochs={epochs} needs a finite dataset; give train.images for {dataset.name}")
        train["images"] = math.ceil(epochs * size)
    return Schedule(**train, ema=settings["ema"])


def build_state(
    settings: Mapping[str, Any],
    shape: tuple[int, ...],
    device: torch.device,
    optimizers: Mapping[str, Callable[[nn.Module], Optimizer]],
) -> State:
    """Networks drawn from the stream `init`, their optimizers and the average."""
    import torch

    from gantrain import architectures
    from gantrain.state import State, averaged

    with preserved_randomness(torch.device("cpu")):
        torch.manual_seed(stream_seed(settings["seed"], "init"))
        generator, discriminator = architectures.build(settings["architecture"], shape, settings["latent"]["size"])
    generator, discriminator = generator.to(device), discriminator.to(device)
    return State(
        generator,
        discriminator,
        optimizers["generator"](generator),
        optimizers["discriminator"](discriminator),
        average=averaged(generator) if settings["ema"] else None,
    )


def refuse_other_data(dataset: Dataset, bundle: Mapping[str, Any]) -> None:
    """Raise CheckpointError when the data are not those that the checkpoint was trained on."""
    from gantrain.errors import CheckpointError

    saved = bundle["data"]["fingerprint"]
    if dataset.fingerprint != saved:
        raise CheckpointError(
            f"{dataset.label} has changed since the checkpoint: its fingerprint is {dataset.fingerprint}, was {saved}; "
            "restore the images, or start a new run"
        )
