"""The parts of a run, each made once from the checked settings of its config."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gantrain import data, networks
from gantrain.config import checks
from gantrain.console import show_progress
from gantrain.devices import FEW_MULTIPLY_ADDS
from gantrain.errors import ConfigError, DataError, MemoryExhaustedError
from gantrain.seeding import preserved_randomness, stream_seed
from gantrain.training import optimizers

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer

    from gantrain.data import Dataset
    from gantrain.evaluation.evaluation import Evaluation
    from gantrain.networks.summary import LayerSummary
    from gantrain.training.setup import Execution, Experiment, Schedule
    from gantrain.training.state import State


def build(settings: Mapping[str, Any], load: Callable[..., Dataset] = data.load) -> tuple[Experiment, State]:
    """What is to be trained, on data that `load` gives, and its state at the beginning.

    Raises ConfigError for parts that do not fit, DataError for data that are missing, damaged or too few.
    """
    import torch

    from gantrain.networks.latents import Latents
    from gantrain.training.setup import Experiment

    device = choose_device(settings["device"])
    factories = optimizers.factories(settings["optimizer"], device)
    dataset = load(**settings["dataset"], seed=settings["seed"], device=device)
    schedule = build_schedule(settings, dataset)
    if device.type == "cpu" and is_small(settings, dataset.shape):
        torch.set_num_threads(1)
    latents = Latents(settings["latent"]["size"], settings["latent"]["prior"], device)
    game, seed = checks.objective(settings), settings["seed"]
    experiment = Experiment(game, dataset, latents, schedule, seed, execution(settings))
    return experiment, build_state(settings, dataset.shape, device, factories)


def check(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for a device or an optimizer that cannot be had and for networks that do not fit the data.

    Imports torch, reads no data.
    """
    from gantrain.precision import chosen_precision
    from gantrain.training.acceleration import check_device, check_networks

    device, asked = choose_device(settings["device"]), execution(settings)
    checks.objective(settings).prepare()
    optimizers.factories(settings["optimizer"], device)
    check_device(asked, device)
    if not settings["architecture"].get("object"):
        generator, discriminator = fitting(settings)
        refuse_exhausting(sum(row.parameters for row in [*generator, *discriminator]))
        refuse_alone(settings["train"]["batch_size"], [*generator, *discriminator])
        check_networks(
            all(row.norm != "batch" for row in discriminator), asked, chosen_precision(asked.precision, device)
        )


def build_evaluation(settings: Mapping[str, Any], dataset: Dataset) -> Evaluation | None:
    """Build the evaluation of samples while training, or None; a classifier that is missing is trained first.

    Raises ConfigError for a best.metric that such data do not have, DataError for too few examples.
    """
    asked, best = settings["evaluate"], settings["best"]["metric"]
    if asked["every_images"] is None:
        return None
    from gantrain.evaluation.evaluation import Evaluation, EvaluationSettings, build_reference_set

    device = choose_device(settings["device"])
    if not isinstance(dataset, data.Images):
        dataset = data.load(**settings["dataset"], device=device)  # the same real points for every seed
    wanted = EvaluationSettings(**{key: value for key, value in asked.items() if key != "every_images"})
    reference_set = build_reference_set(
        dataset, settings["dataset"], wanted, device=device, best=best, progress=show_progress
    )
    return Evaluation(reference_set, best)


def execution(settings: Mapping[str, Any]) -> Execution:
    """How iterations are to be computed."""
    from gantrain.training.setup import Execution

    return Execution(**{key: settings[key] for key in ("update", "precision", "compile", "graph")})


def fitting(settings: Mapping[str, Any]) -> tuple[list[LayerSummary], list[LayerSummary]]:
    """The layers of both networks, for a shape that the data may have. Raises ConfigError where they fit none."""
    refusals = []
    for shape in data.shapes(**settings["dataset"]):
        try:
            return networks.describe(settings["architecture"], shape, settings["latent"]["size"])
        except ConfigError as error:
            refusals.append(error)
    raise refusals[0]


def refuse_alone(batch_size: int, layers: Iterable[LayerSummary]) -> None:
    """Raise ConfigError where batch norm would have one number a channel to average."""
    if batch_size == 1 and any(row.norm == "batch" and math.prod(row.output[1:]) == 1 for row in layers):
        raise ConfigError(
            "train.batch_size=1 leaves batch norm a single number to average; choose train.batch_size=2 or more, or an "
            "architecture without `norm: batch`"
        )


def refuse_exhausting(parameters: int) -> None:
    """Raise MemoryExhaustedError for networks whose float32 weights alone exceed the machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * parameters > memory:
        raise MemoryExhaustedError(
            f"the networks have {parameters:,} parameters, {4 * parameters / 2**30:,.0f} GiB, and this machine "
            f"{memory / 2**30:,.0f} GiB of memory; choose a smaller architecture"
        )


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


def is_small(settings: Mapping[str, Any], shape: tuple[int, ...]) -> bool:
    """Whether the networks are too small to be shared between threads, unless the user has set their number."""
    if settings["architecture"].get("object") or "OMP_NUM_THREADS" in os.environ:
        return False
    tables = networks.describe(settings["architecture"], shape, settings["latent"]["size"])
    return (
        sum(row.multiply_adds for rows in tables for row in rows) * settings["train"]["batch_size"] < FEW_MULTIPLY_ADDS
    )


def build_schedule(settings: Mapping[str, Any], dataset: Dataset) -> Schedule:
    """The schedule, `epochs` turned into images. Raises DataError where a batch is larger than the dataset."""
    from gantrain.training.setup import Schedule

    train = dict(settings["train"])
    epochs, size = train.pop("epochs"), dataset.size
    if size is not None and size < train["batch_size"]:
        raise DataError(
            f"{settings['dataset']['path'] or dataset.label} has {size} training images, "
            f"fewer than train.batch_size={train['batch_size']}; "
            "lower train.batch_size or dataset.held_out, or add images"
        )
    if epochs is not None and size is not None:  # a density has no epochs, which config.checked has refused
        train["images"] = math.ceil(epochs * size)
    return Schedule(**train, ema=settings["ema"], evaluate_every_images=settings["evaluate"]["every_images"])


def build_state(
    settings: Mapping[str, Any],
    shape: tuple[int, ...],
    device: torch.device,
    factories: Mapping[str, Callable[[nn.Module], Optimizer]],
) -> State:
    """Networks drawn from the stream `init`, their optimizers and the average."""
    import torch

    from gantrain.training.state import State, averaged

    with preserved_randomness(torch.device("cpu")):
        torch.manual_seed(stream_seed(settings["seed"], "init"))
        generator, discriminator = networks.build(settings["architecture"], shape, settings["latent"]["size"])
    generator, discriminator = generator.to(device), discriminator.to(device)
    return State(
        generator,
        discriminator,
        factories["generator"](generator),
        factories["discriminator"](discriminator),
        average=averaged(generator) if settings["ema"] else None,
    )
