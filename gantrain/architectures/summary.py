"""Architecture tables as a reader wants them: with output shapes, parameters and multiply-adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich import box
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gantrain.architectures import networks
from gantrain.architectures.tables import OPS, Shape, Tables, times


@dataclass(frozen=True)
class LayerSummary:
    """A row as it was given (None where the operation has no such column) and what it costs for one sample."""

    op: str
    kernel: int | None
    stride: int | None
    features: int | None
    norm: str | None
    dropout: float | None
    activation: str | None
    output: Shape
    parameters: int
    multiply_adds: int


def summaries(tables: Tables, data_shape: Shape, latent_size: int) -> tuple[list[LayerSummary], list[LayerSummary]]:
    """The layers of the generator and of the discriminator; one line a network for networks of the user's own."""
    if tables.object is not None:
        generator, discriminator = networks.imported(tables.object, data_shape, latent_size)
        return [whole(generator, (latent_size,))], [whole(discriminator, data_shape)]
    generator_steps = networks.generator_plan(tables, data_shape, latent_size)
    return list(map(line, generator_steps)), list(map(line, networks.discriminator_plan(tables, data_shape)))


def line(step: networks.Step) -> LayerSummary:
    """The summary of a table's row."""
    row, columns = step.row, OPS[step.row.op]
    return LayerSummary(
        op=row.op,
        kernel=row.kernel if "kernel" in columns else None,
        stride=row.stride if "stride" in columns else None,
        features=row.features if "features" in columns else None,
        norm=row.norm,
        dropout=row.dropout,
        activation=row.activation,
        output=step.outputs,
        parameters=parameters(step.meta),
        multiply_adds=multiply_adds(step.meta, torch.empty(1, *step.inputs, device="meta")),
    )


def whole(network: nn.Module, shape: Shape) -> LayerSummary:
    """The summary of a network whose layers are not known."""
    name, output = type(network).__name__, networks.output_shape(network, shape)
    cost = multiply_adds(network.eval(), torch.zeros(1, *shape))
    return LayerSummary(name, None, None, None, None, None, None, output, parameters(network), cost)


def parameters(module: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(module: nn.Module, x: torch.Tensor) -> int:
    """Multiply-adds of the convolutions and matrix products in one forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return counter.get_total_flops() // 2


def rich_table(title: str, layers: Sequence[LayerSummary]) -> Table:
    """The layers and their sums, as a table that reads like a paper's."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_footer=True)
    table.add_column("op", footer="sum", no_wrap=True)
    for column in ("kernel", "stride", "features", "norm", "dropout", "activation", "output"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("parameters", "multiply_adds"):
        total = sum(getattr(layer, column) for layer in layers)
        table.add_column(column.replace("_", "-"), footer=f"{total:,}", justify="right", no_wrap=True)
    for layer in layers:
        given = (layer.op, layer.kernel, layer.stride, layer.features, layer.norm, layer.dropout, layer.activation)
        cells = ["" if value is None else f"{value}" for value in given]
        table.add_row(*cells, times(layer.output), f"{layer.parameters:,}", f"{layer.multiply_adds:,}")
    return table
