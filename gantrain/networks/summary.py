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
    """A row of a table and its cost for one sample; a column that the operation does not have is None."""

    op: str
    output: Shape
    parameters: int
    multiply_adds: int
    kernel: int | None = None
    stride: int | None = None
    features: int | None = None
    norm: str | None = None
    dropout: float | None = None
    activation: str | None = None


def summarize(tables: Tables, data_shape: Shape, latent_size: int) -> tuple[list[LayerSummary], list[LayerSummary]]:
    """Return the layers of the generator and of the discriminator; for networks of the user's own, one line each."""
    if tables.object is not None:
        generator, discriminator = builder.import_networks(tables.object, data_shape, latent_size)
        return [_summarize_network(generator, (latent_size,))], [_summarize_network(discriminator, data_shape)]
    generator_steps = builder.plan_generator(tables, data_shape, latent_size)
    discriminator_steps = builder.plan_discriminator(tables, data_shape)
    return list(map(_summarize_row, generator_steps)), list(map(_summarize_row, discriminator_steps))


def _summarize_row(step: builder.PlannedRow) -> LayerSummary:
    columns = [name for name in ("kernel", "stride", "features") if name in OPS[step.row.op]]
    cost = count_multiply_adds(step.meta, torch.empty(1, *step.inputs, device="meta"))
    cells = {name: getattr(step.row, name) for name in (*columns, "norm", "dropout", "activation")}
    return LayerSummary(step.row.op, step.outputs, count_parameters(step.meta), cost, **cells)


def _summarize_network(network: nn.Module, shape: Shape) -> LayerSummary:
    cost = count_multiply_adds(network.eval(), torch.zeros(1, *shape))
    output = builder.find_output_shape(network, shape)
    return LayerSummary(type(network).__name__, output, count_parameters(network), cost)


def count_parameters(module: nn.Module) -> int:
    """Return the number of trained parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_multiply_adds(module: nn.Module, x: torch.Tensor) -> int:
    """Return the multiply-adds of the convolutions and matrix products in one forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return counter.get_total_flops() // 2


def render_tables(
    networks: tuple[Sequence[LayerSummary], Sequence[LayerSummary]], data_shape: Shape, latent_size: int, width: int
) -> list[Table]:
    """Return the layers of both networks and their sums as tables, each split into several if wider than `width`."""
    titles = f"generator, z {latent_size}", f"discriminator, x {times(data_shape)}"
    tables = []
    for title, layers in zip(titles, networks, strict=True):
        names, *rest = _columns(layers)
        for part in split_columns(rest, width - column_width(names)):
            heads, *rows, sums = zip(names, *part, strict=True)
            tables.append(build_table(heads, rows, right=heads[1:], title=title, sums=sums if any(sums[1:]) else ()))
    return tables


def _columns(layers: Sequence[LayerSummary]) -> Iterator[list[str]]:
    """Yield each column from its head to its sum, which is empty for columns without one."""
    for name in ("op", "kernel", "stride", "features", "norm", "dropout", "activation"):
        given = [getattr(layer, name) for layer in layers]
        yield [name, *("" if value is None else f"{value}" for value in given), "sum" if name == "op" else ""]
    yield ["output", *(times(layer.output) for layer in layers), ""]
    for name in ("parameters", "multiply_adds"):
        counts = [getattr(layer, name) for layer in layers]
        yield [name.replace("_", "-"), *(f"{count:,}" for count in (*counts, sum(counts)))]
