"""Rows put together: tables become a generator and a discriminator whose shapes are known to fit the data.

Shapes are found by running every row on torch's meta device, which computes shapes and no numbers, so a table that does
not fit is refused before weights are drawn or data is read.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gantrain.errors import ConfigError
from gantrain.networks.layers import Dropouts, Float32, layer, masked
from gantrain.networks.tables import Row, Shape, Tables, times


@dataclass(frozen=True)
class Step:
    """A row with the shapes of its samples, and its layer on the meta device."""

    row: Row
    inputs: Shape
    outputs: Shape
    meta: nn.Module


class Network(nn.Sequential):
    """The layers of a table's rows one after the other, with dropout on the inputs of those that have it.

    `judges_alone`: what becomes of a sample has nothing to do with the others in the batch.
    """

    def __init__(self, steps: Sequence[Step], tables: Tables, *ending: nn.Module) -> None:
        super().__init__(*layers(steps, tables), *ending)
        dropped = [(i, step.row.dropout, step.inputs) for i, step in enumerate(steps) if step.row.dropout > 0]
        self.dropouts = Dropouts(dropped)
        self.judges_alone = all(step.row.norm != "batch" for step in steps)

    def forward(self, x: Tensor) -> Tensor:
        """Samples [B, …] through every layer."""
        masks = self.dropouts.masks(x) if self.training and self.dropouts.groups else {}
        for number, part in enumerate(self):
            x = part(masked(x, masks[number]) if number in masks else x)
        return x


def built(tables: Tables, data_shape: Shape, latent_size: int) -> tuple[nn.Module, nn.Module]:
    """Both networks with their first weights, in channels_last; raises ConfigError where a table does not fit."""
    generator_steps = generator_plan(tables, data_shape, latent_size)
    discriminator_steps = discriminator_plan(tables, data_shape)
    whole = generator_steps[-1].outputs == data_shape
    generator = Network(generator_steps, tables, *([] if whole else [nn.Unflatten(1, data_shape)]))
    discriminator = Network(discriminator_steps, tables, nn.Flatten(0))
    if tables.init_std is not None:
        draw_weights(generator, tables.init_std)
        draw_weights(discriminator, tables.init_std)
    return generator.to(memory_format=torch.channels_last), discriminator.to(memory_format=torch.channels_last)


def generator_plan(tables: Tables, data_shape: Shape, latent_size: int) -> list[Step]:
    """The generator's steps from `(latent_size,)`; they end in the data's shape, or in a vector of as many numbers."""
    steps = plan("generator", tables.generator, (latent_size,), tables)
    if steps[-1].outputs not in (data_shape, (math.prod(data_shape),)):
        raise ConfigError(
            wrong_generator(f"the generator of architecture={tables.name}", steps[-1].outputs, data_shape)
        )
    return steps


def discriminator_plan(tables: Tables, data_shape: Shape) -> list[Step]:
    """The discriminator's steps from the data's shape; they end in one number a sample."""
    steps = plan("discriminator", tables.discriminator, data_shape, tables)
    if math.prod(steps[-1].outputs) != 1:
        raise ConfigError(
            f"the discriminator of architecture={tables.name} has to end in one number a sample, but from samples of "
            f"shape {times(data_shape)} it ends in {times(steps[-1].outputs)}; choose an architecture for this shape"
        )
    return steps


def wrong_generator(generator: str, found: Shape, data_shape: Shape) -> str:
    """The sentence that refuses a generator by its output shape."""
    return (
        f"{generator} ends in shape {times(found)}, but the dataset's samples have {times(data_shape)}; "
        "choose an architecture for this shape, or another dataset or dataset.size"
    )


def plan(network: str, rows: Sequence[Row], shape: Shape, tables: Tables) -> list[Step]:
    """Every row with its shapes, starting from samples of `shape`."""
    steps: list[Step] = []
    for number, row in enumerate(rows, start=1):
        steps.append(planned(f"architecture.{network} row {number}", row, shape, tables))
        shape = steps[-1].outputs
    return steps


def planned(where: str, row: Row, shape: Shape, tables: Tables) -> Step:
    """One row run on the meta device; raises ConfigError, beginning with `where`, if it does not fit `shape`."""
    try:
        with torch.device("meta"), torch.no_grad():
            meta = layer(row, shape, tables).eval()
            outputs = tuple(meta(torch.empty(1, *shape)).shape[1:])
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"{where}: {row.op} does not fit its input of shape {times(shape)}: {error}") from error
    return Step(row, shape, outputs, meta)


def layers(steps: Sequence[Step], tables: Tables) -> list[nn.Module]:
    """The steps' layers with weights, the last one kept in float32 under autocast."""
    *body, last = [layer(step.row, step.inputs, tables) for step in steps]
    return [*body, Float32(last)]


def draw_weights(network: nn.Module, std: float) -> None:
    """Gaussian weights of standard deviation `std` and zero biases, in every convolution and linear layer."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def imported(path: str, data_shape: Shape, latent_size: int) -> tuple[nn.Module, nn.Module]:
    """The networks that the user's function "package:function" returns; raises ConfigError if it fails."""
    key = f"architecture.object={path}"
    package, _, function = path.partition(":")
    if not package or not function:
        raise ConfigError(f"{key} is not of the form package:function")
    try:
        generator, discriminator = getattr(importlib.import_module(package), function)(
            data_shape=data_shape, latent_size=latent_size
        )
        samples = output_shape(generator, (latent_size,))
        values = output_shape(discriminator, data_shape)
    except Exception as error:  # whatever the user's own code raises
        raise ConfigError(
            f"{key} has to return (generator, discriminator) when called with data_shape={data_shape}, "
            f"latent_size={latent_size}; it raised {type(error).__name__}: {error}"
        ) from error
    if samples != data_shape:
        raise ConfigError(wrong_generator(f"the generator of {key}", samples, data_shape))
    if values != ():
        raise ConfigError(f"the discriminator of {key} has to return [B], one number a sample, not {times(values)}")
    return generator, discriminator


def output_shape(network: nn.Module, shape: Shape) -> Shape:
    """The shape of a sample that leaves the network when one of `shape` enters it."""
    training = network.training
    with torch.no_grad():
        output = network.eval()(torch.zeros(2, *shape))
    network.train(training)
    return tuple(output.shape[1:])
