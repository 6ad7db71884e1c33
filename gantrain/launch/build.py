"""The parts of a run, each built once from the settings."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gantrain import data, networks
from gantrain.config.checks import RunConfig, Settings
from gantrain.console import show_progress
from gantrain.devices import choose_device, count_processes
from gantrain.distributed import WHOLE, Part, current_part, local_rank
from gantrain.errors import ConfigError, DataError, MemoryExhaustedError
from gantrain.evaluation.evaluation import Evaluation, build_reference_set
from gantrain.evaluation.features import EvaluationSettings
from gantrain.launch.initial_weights import InitialWeights
from gantrain.networks.latents import Latents
from gantrain.networks.tables import mixes_samples
from gantrain.schedules import end_with_run
from gantrain.seeding import preserve_randomness, stream_seed
from gantrain.training.optimizers import create_factories
from gantrain.training.setup import Schedule, TrainingSetup

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer

    from gantrain.data import Dataset
    from gantrain.networks.summary import LayerSummary
    from gantrain.training.state import State


@dataclass(frozen=True)
class PreparedRun:
    """A run whose settings fit this machine: its device, and for each player a function that makes its optimizer.

    `weights` are those that a new run begins with, if they are not drawn. `part` is the share of this process, and
    `processes` how many train the run: they are those that it has joined, or that it will start.
    """

    config: RunConfig
    device: torch.device
    optimizers: Mapping[str, Callable[[nn.Module], Optimizer]]
    weights: InitialWeights | None = None
    part: Part = WHOLE
    processes: int = 1


def prepare(config: RunConfig) -> PreparedRun:
    """Find the device and try the optimizers; imports torch, reads no data.

    Raises ConfigError for a device or an optimizer that is not available, and for networks that fit neither the data
    nor the way in which they are to be trained.
    """
    import torch

    from gantrain.networks.builder import import_function
    from gantrain.training.acceleration import check_device, check_networks

    settings = config.settings
    device, execution, part = choose_device(settings.device), settings.execution, current_part()
    processes = choose_processes(settings, part)
    if part.ranks > 1 and device.type == "cuda":
        device = torch.device("cuda", local_rank() if torch.cuda.device_count() > 1 else 0)  # srun may show one alone
        torch.cuda.set_device(device)
    check_images(settings)
    settings.objective.prepare()
    # A process that only starts others leaves the trial, and the devices, to them.
    is_training = part.ranks > 1 or processes == 1
    optimizers = create_factories(settings.optimizers, device if is_training else None)
    check_device(execution, device)
    if code := settings.tables.object:
        import_function(code)  # it is called when the shape of the data is known
    else:
        generator, discriminator = describe_networks(settings)
        check_memory(sum(row.parameters for row in [*generator, *discriminator]))
        check_batch_norm(settings.train.batch_size, [*generator, *discriminator])
        is_samplewise = not any(mixes_samples(row.op, str(row.norm)) for row in discriminator)
        check_networks(is_samplewise, execution)
        if settings.augmentation is not None:
            has_held_out = settings.dataset.held_out != 0
            shape = settings.data.shapes[0]
            settings.augmentation.refuse_unfit(shape, has_held_out=has_held_out, is_samplewise=is_samplewise)
    return PreparedRun(config, device, optimizers, part=part, processes=processes)


def build(run: PreparedRun) -> tuple[TrainingSetup, State]:
    """Load the data; return what is to be trained, and its state at the beginning.

    Raises DataError for data that are missing, damaged or too few, ConfigError for networks that do not fit them.
    """
    settings = run.config.settings
    dataset = data.load_dataset(settings.data, seed=settings.seed, device=run.device)
    schedule = build_schedule(settings, dataset)
    latents = Latents(settings.latent.size, settings.latent.prior, run.device)
    setup = TrainingSetup(
        settings.objective,
        dataset,
        latents,
        schedule,
        settings.seed,
        settings.execution,
        tuple(end_with_run(one, schedule.images) for one in settings.regularizers),
        run.part,
        augmentation=settings.augmentation and end_with_run(settings.augmentation, schedule.images),
        optimizer_ramps={
            player: ramps for player, each in settings.optimizers.items() if (ramps := each.find_ramps(schedule.images))
        },
    )
    return setup, build_state(run, dataset.shape)


def count_multiply_adds(settings: Settings, shape: tuple[int, ...]) -> float:
    """Return the multiply-adds of a batch in both networks; infinity for networks of the user's own."""
    if settings.tables.object:
        return math.inf
    players = networks.describe(settings.tables, shape, settings.latent.size)
    return sum(row.multiply_adds for rows in players for row in rows) * settings.train.batch_size


def build_schedule(settings: Settings, dataset: Dataset) -> Schedule:
    """Return the schedule, with `epochs` turned into images. Raises DataError if a batch is larger than the dataset."""
    train, size = dict(vars(settings.train)), dataset.size
    epochs = train.pop("epochs")
    if size is not None and size < settings.train.batch_size:
        raise DataError(
            f"{settings.dataset.path or dataset.label} has {size} training images, "
            f"fewer than train.batch_size={settings.train.batch_size}; "
            "lower train.batch_size or dataset.held_out, or add images"
        )
    if epochs is not None and size is not None:  # checks have refused epochs of a density
        train["images"] = count_images(epochs, size)
    schedule = Schedule(
        **train,
        ema=settings.averaging,
        ema_statistics=settings.ema_statistics,
        is_trained=settings.init is not None,
        evaluate_every_images=settings.evaluate.every_images,
    )
    return end_with_run(schedule, schedule.images)


def count_images(epochs: float, size: int) -> int:
    """Return how many images are shown in so many passes over `size` training images."""
    return math.ceil(epochs * size)


def build_state(run: PreparedRun, shape: tuple[int, ...]) -> State:
    """Return networks drawn from the stream `init`, their optimizers and the averaged generator."""
    import torch

    from gantrain.training.state import State, create_average, create_regularizer_states

    settings = run.config.settings
    augmentations = [] if settings.augmentation is None else [settings.augmentation]
    with preserve_randomness(torch.device("cpu")):
        torch.manual_seed(stream_seed(settings.seed, "init"))
        generator, discriminator = networks.build(settings.tables, shape, settings.latent.size)
    generator, discriminator = generator.to(run.device), discriminator.to(run.device)
    if run.part.ranks > 1:
        from gantrain.networks.shared_batch import share_batch

        for network in (generator, discriminator):
            share_batch(network, run.part, settings.train.batch_size)
    return State(
        generator,
        discriminator,
        run.optimizers["generator"](generator),
        run.optimizers["discriminator"](discriminator),
        average=create_average(generator) if settings.ema else None,
        regularizers=create_regularizer_states([*settings.regularizers, *augmentations], run.device),
    )


def build_evaluation(settings: Settings, dataset: Dataset) -> Evaluation | None:
    """Return how samples are measured while training, or None; a classifier that is missing is trained first.

    Raises ConfigError for a best.metric that such data do not have, DataError for too few examples.
    """
    asked, best, device = dict(vars(settings.evaluate)), settings.best.metric, choose_device(settings.device)
    if asked.pop("every_images") is None:
        return None
    if not isinstance(dataset, data.Images):
        dataset = data.load_dataset(settings.data, device=device)  # the same real points for every seed
    wanted = EvaluationSettings(**asked)
    references = build_reference_set(dataset, settings.data, wanted, device=device, best=best, progress=show_progress)
    return Evaluation(references, best)


# ---------------------------------------------------------------------------------------------------------------------
# Checks


def describe_networks(settings: Settings) -> tuple[list[LayerSummary], list[LayerSummary]]:
    """Return the layers of both networks for a shape that the data may have. Raises ConfigError if they fit none."""
    refusals = []
    for shape in settings.data.shapes:
        try:
            return networks.describe(settings.tables, shape, settings.latent.size)
        except ConfigError as error:
            refusals.append(error)
    raise refusals[0]


def check_images(settings: Settings) -> None:
    """Raise ConfigError for points where a regularizer moves pixels."""
    for one in settings.regularizers:
        if one.needs_images and all(len(shape) == 1 for shape in settings.data.shapes):
            raise ConfigError(
                f"regularizer={one.name} mirrors and shifts images, and dataset={settings.dataset.name} has points; "
                "leave it out, or choose images"
            )


def choose_processes(settings: Settings, part: Part) -> int:
    """Return the number of processes of a run: those that this one has joined, or that it will start.

    Raises ConfigError if they cannot train it.
    """
    processes = count_processes(settings.devices, settings.device) if part.ranks == 1 else part.ranks
    if part.ranks > 1 and settings.devices not in (1, "auto", part.ranks):
        raise ConfigError(f"devices={settings.devices}, but {part.ranks} processes were started; leave devices out")
    if rest := settings.train.batch_size % processes:
        whole = max(settings.train.batch_size - rest, processes)
        raise ConfigError(
            f"train.batch_size={settings.train.batch_size} cannot be divided among {processes} devices; choose "
            f"train.batch_size={whole} or {whole + processes}, or another number of devices"
        )
    count = 0 if settings.augmentation is None else settings.augmentation.count_held_out(settings.train.batch_size)
    if count % processes:
        raise ConfigError(
            f"augment.measure=held_out compares a batch with {count} held-out images, which {processes} devices cannot "
            "share; choose train.batch_size or augment.interval so that train.batch_size / augment.interval is a "
            f"multiple of {processes}, or augment.measure=signs"
        )
    if processes > 1 and settings.graph == "on":
        raise ConfigError("graph=on is for one device: a CUDA graph does not capture the communication of processes")
    return processes


def check_batch_norm(batch_size: int, layers: Iterable[LayerSummary]) -> None:
    """Raise ConfigError if batch norm would have a single number a channel to average."""
    if batch_size == 1 and any(row.norm == "batch" and math.prod(row.output[1:]) == 1 for row in layers):
        raise ConfigError(
            "train.batch_size=1 leaves batch norm a single number to average; choose train.batch_size=2 or more, or an "
            "architecture without `norm: batch`"
        )


def check_memory(parameters: int) -> None:
    """Raise MemoryExhaustedError for networks whose float32 weights alone exceed the machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * parameters > memory:
        raise MemoryExhaustedError(
            f"the networks have {parameters:,} parameters, {4 * parameters / 2**30:,.0f} GiB, and this machine "
            f"{memory / 2**30:,.0f} GiB of memory; choose a smaller architecture"
        )
