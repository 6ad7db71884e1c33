"""Build a generator and a discriminator from tables, and check that their shapes fit the data.

Every row is run on torch's meta device, which computes only shapes, so that a table that does not fit is rejected
before weights are drawn or data are read.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gantrain.errors import ConfigError
from gantrain.networks.fast_layers import Dropouts, apply_mask
from gantrain.networks.layers import Float32, build_layer
from gantrain.networks.tables import Row, Shape, Tables, mixes_samples, times

FEW_PARAMETERS = 8


@dataclass(frozen=True)
class PlannedRow:
    """A row with the shapes of its samples, and its layer on the meta device."""

    row: Row
    inputs: Shape
    outputs: Shape
    meta: nn.Module


class Network(nn.Sequential):
    """The layers of a table's rows in sequence, with dropout on their inputs: samples `[B, …]` → `[B, …]`.

    The last row stays in float32 under autocast. `is_samplewise` is True if the output of a sample does not depend on
    the other samples of the batch.
    """

    def __init__(self, steps: Sequence[PlannedRow], tables: Tables, *ending: nn.Module) -> None:
        *body, last = [build_layer(step.row, step.inputs, tables) for step in steps]
        super().__init__(*body, Float32(last), *ending)
        dropped = [(i, step.row.dropout, step.inputs) for i, step in enumerate(steps) if step.row.dropout > 0]
        self.dropouts = Dropouts(dropped)
        self.rows = len(steps)
        self.is_samplewise = not any(mixes_samples(step.row.op, step.row.norm) for step in steps)

    def forward(self, x: Tensor) -> Tensor:
        return self._apply_layers(x)[0]

    def forward_with_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output of the network, and what its last row takes, `[B, F]`, without dropout."""
        x, features = self._apply_layers(x)
        return x, features.flatten(1)

    def _apply_layers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        masks = self.dropouts.masks(x) if self.training and self.dropouts.groups else {}
        features = x
        for number, part in enumerate(self):
            if number == self.rows - 1:
                features = x
            x = part(apply_mask(x, masks[number]) if number in masks else x)
        return x, features


def build_networks(tables: Tables, data_shape: Shape, latent_size: int) -> tuple[nn.Module, nn.Module]:
    """Return both networks with initial weights, in channels_last. Raises ConfigError if they do not fit the data."""
    if tables.object is not None:
        return import_networks(tables.object, data_shape, latent_size)
    generator_steps = plan_generator(tables, data_shape, latent_size)
    discriminator_steps = plan_discriminator(tables, data_shape)
    reshape = [] if generator_steps[-1].outputs == data_shape else [nn.Unflatten(1, data_shape)]
    networks = Network(generator_steps, tables, *reshape), Network(discriminator_steps, tables, nn.Flatten(0))
    for network in networks:
        if tables.init_std is not None:
            _draw_weights(network, tables.init_std)
        network.to(memory_format=torch.channels_last)
    return networks


def _draw_weights(network: nn.Module, std: float) -> None:
    """Draw Gaussian weights, and set biases to 0, in convolutions and linear layers."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# ---------------------------------------------------------------------------------------------------------------------
# Shapes


def plan_generator(tables: Tables, data_shape: Shape, latent_size: int) -> list[PlannedRow]:
    """Return the generator's steps from `(latent_size,)` to the data's shape, or to a vector of as many numbers."""
    steps = _plan_rows("generator", tables.generator, (latent_size,), tables)
    if steps[-1].outputs not in (data_shape, (math.prod(data_shape),)):
        name = f"the generator of architecture={tables.name}"
        raise ConfigError(_generator_shape_error(name, steps[-1].outputs, data_shape))
    return steps


def plan_discriminator(tables: Tables, data_shape: Shape) -> list[PlannedRow]:
    """Return the discriminator's steps from the data's shape to one number a sample."""
    steps = _plan_rows("discriminator", tables.discriminator, data_shape, tables)
    if math.prod(steps[-1].outputs) != 1:
        raise ConfigError(
            f"the discriminator of architecture={tables.name} has to end in one number a sample, but from samples of "
            f"shape {times(data_shape)} it ends in {times(steps[-1].outputs)}; choose an architecture for this shape"
        )
    return steps


def _generator_shape_error(generator: str, found: Shape, data_shape: Shape) -> str:
    return (
        f"{generator} ends in shape {times(found)}, but the dataset's samples have {times(data_shape)}; "
        "choose an architecture for this shape, or another dataset or dataset.size"
    )


def _plan_rows(network: str, rows: Sequence[Row], shape: Shape, tables: Tables) -> list[PlannedRow]:
    """Run every row on the meta device, from samples of `shape`. Raises ConfigError if one does not fit its input."""
    steps: list[PlannedRow] = []
    for number, row in enumerate(rows, start=1):
        where = f"architecture.{network} row {number}"
        try:
            with torch.device("meta"), torch.no_grad():
                meta = build_layer(row, shape, tables).eval()
                outputs = tuple(meta(torch.empty(1, *shape)).shape[1:])
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"{where}: {row.op} does not fit its input of shape {times(shape)}: {error}") from error
        steps.append(PlannedRow(row, shape, outputs, meta))
        shape = outputs
    return steps


# ---------------------------------------------------------------------------------------------------------------------
# Networks of the user's own


def import_function(path: str) -> Callable[..., tuple[nn.Module, nn.Module]]:
    """Return the user's function "package:function"; the current folder is searched first. Raises ConfigError."""
    key = f"architecture.object={path}"
    package, _, function = path.partition(":")
    if not package or not function:
        raise ConfigError(f"{key} is not of the form package:function")
    try:
        with searched_current_folder():
            found: Callable[..., tuple[nn.Module, nn.Module]] = getattr(importlib.import_module(package), function)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{key}: there is no module {error.name}, neither in the current folder nor among the installed packages"
        ) from error
    except Exception as error:  # whatever the user's own code raises
        raise ConfigError(f"{key} cannot be imported: {type(error).__name__}: {error}") from error
    return found


def import_networks(path: str, data_shape: Shape, latent_size: int) -> tuple[nn.Module, nn.Module]:
    """Call the user's function "package:function", which returns both networks.

    A discriminator whose outputs are [B, 1] returns them as [B]. Raises ConfigError if the function cannot be imported
    or fails, or if shapes do not fit.
    """
    key, build = f"architecture.object={path}", import_function(path)
    try:
        with searched_current_folder():
            generator, discriminator = build(data_shape=data_shape, latent_size=latent_size)
        samples = find_output_shape(generator, (latent_size,))
        values = find_output_shape(discriminator, data_shape)
    except Exception as error:  # whatever the user's own code raises
        raise ConfigError(
            f"{key} has to return (generator, discriminator) when called with data_shape={data_shape}, "
            f"latent_size={latent_size}; it raised {type(error).__name__}: {error}"
        ) from error
    if samples != data_shape:
        raise ConfigError(_generator_shape_error(f"the generator of {key}", samples, data_shape))
    if values == (1,):
        discriminator.register_forward_hook(flatten_output)
    elif values != ():
        raise ConfigError(f"the discriminator of {key} has to return [B], one number a sample, not {times(values)}")
    return generator, discriminator


@contextmanager
def searched_current_folder() -> Iterator[None]:
    """Let the block import modules of the current folder, as `python FILE` does and an installed command does not."""
    sys.path.insert(0, folder := os.getcwd())
    try:
        yield
    finally:
        with suppress(ValueError):  # the code may have removed it
            sys.path.remove(folder)


def flatten_output(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Return outputs `[B, 1]` as `[B]`; a forward hook, which leaves the names of parameters as they are."""
    return output.flatten()


def find_output_shape(network: nn.Module, shape: Shape) -> Shape:
    """Return the shape of a network's output sample for an input sample of `shape`."""
    training = network.training
    with torch.no_grad():
        output = network.eval()(torch.zeros(2, *shape))
    network.train(training)
    return tuple(output.shape[1:])


def parameter_values(**networks: nn.Module) -> dict[str, float]:
    """Return all parameters of networks that have at most FEW_PARAMETERS, as `parameters/<player>/<name>`.

    The name is the last part of the parameter's own if that is unique. Numbers after the first have an index: `mean.1`.
    """
    values = {}
    for player, network in networks.items():
        parameters = dict(network.named_parameters())
        if sum(parameter.numel() for parameter in parameters.values()) <= FEW_PARAMETERS:
            short = {name.rpartition(".")[2]: parameter for name, parameter in parameters.items()}
            for name, parameter in (short if len(short) == len(parameters) else parameters).items():
                for index, value in enumerate(parameter.flatten().tolist()):
                    values[f"parameters/{player}/{name}" + (f".{index}" if index else "")] = value
    return values
