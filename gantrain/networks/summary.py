"""Summaries of architecture tables: output shapes, parameters and multiply-adds of every layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gantrain.console import build_table, column_width, split_columns
from gantrain.networks import builder
from gantrain.networks.tables import OPS, Shape, Tables, times

if TYPE_CHECKING:
    from rich.table import Table


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


def summarize(tables: Tables, data_shape: Shape, latent_size: int) -> tuple[list[LayerSummary], list[LayerSummary]]:
    """The layers of the generator and of the discriminator; one line a network for networks of the user's own."""
    if tables.object is not None:
        generator, discriminator = builder.import_networks(tables.object, data_shape, latent_size)
        return [summarize_network(generator, (latent_size,))], [summarize_network(discriminator, data_shape)]
    generator_steps = builder.plan_generator(tables, data_shape, latent_size)
    discriminator_steps = builder.plan_discriminator(tables, data_shape)
    return list(map(summarize_row, generator_steps)), list(map(summarize_row, discriminator_steps))


def summarize_row(step: builder.Step) -> LayerSummary:
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
        parameters=count_parameters(step.meta),
        multiply_adds=count_multiply_adds(step.meta, torch.empty(1, *step.inputs, device="meta")),
    )


def summarize_network(network: nn.Module, shape: Shape) -> LayerSummary:
    """The summary of a network whose layers are not known."""
    name, output = type(network).__name__, builder.find_output_shape(network, shape)
    cost = count_multiply_adds(network.eval(), torch.zeros(1, *shape))
    return LayerSummary(name, None, None, None, None, None, None, output, count_parameters(network), cost)


def count_parameters(module: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_multiply_adds(module: nn.Module, x: torch.Tensor) -> int:
    """Multiply-adds of the convolutions and matrix products in one forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return counter.get_total_flops() // 2


def rich_tables(title: str, layers: Sequence[LayerSummary], width: int) -> Iterator[Table]:
    """The layers and their sums, as one table that reads like a paper's, or several where `width` is too little."""
    names, *rest = columns(layers)
    for part in split_columns(rest, width - column_width(names)):
        heads, *rows, sums = zip(names, *part, strict=True)
        yield build_table(heads, rows, right=heads[1:], title=title, sums=sums if any(sums[1:]) else ())


def columns(layers: Sequence[LayerSummary]) -> Iterator[list[str]]:
    """Each column from its head to its sum, which is empty where there is none."""
    for name in ("op", "kernel", "stride", "features", "norm", "dropout", "activation"):
        given = [getattr(layer, name) for layer in layers]
        yield [name, *("" if value is None else f"{value}" for value in given), "sum" if name == "op" else ""]
    yield ["output", *(times(layer.output) for layer in layers), ""]
    for name in ("parameters", "multiply_adds"):
        counts = [getattr(layer, name) for layer in layers]
        yield [name.replace("_", "-"), *(f"{count:,}" for count in (*counts, sum(counts)))]
