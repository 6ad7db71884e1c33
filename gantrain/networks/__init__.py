"""Generators and discriminators, built from tables.

An architecture is a pair of tables written as in the papers, one row a layer (`conf/architecture/*.yaml`):

    generator:
      - {op: conv_transpose, kernel: 4, stride: 2, features: 128, norm: batch, dropout: 0, activation: leaky_relu}

A row is applied from left to right: dropout on the layer's *input*, the operation, its normalisation, its activation.
Shapes follow from the rows: a vector in front of a convolution is an image of 1×1 pixels, an image in front of a linear
layer is flattened. The generator maps latents `[B, L]` to the data's shape `[B, *data_shape]`, or to a vector of as
many numbers. The discriminator returns one number a sample, raw, as `[B]`; the objective defines its meaning (a
log-ratio by default). `features: data` is the number of the data's channels (convolutions) or of all its numbers
(linear layers), so that one table serves grey and colour images.

`tables` holds the vocabulary; open it first. `layers` builds single rows, `builder` networks, `summary` prints them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gantrain.networks.tables import Tables, parse_tables

if TYPE_CHECKING:
    import rich.table
    from torch import nn

    from gantrain.networks.summary import LayerSummary

__all__ = ["Tables", "build", "describe", "parse_tables", "render_tables"]

Architecture = Tables | Mapping[str, Any] | str
"""Parsed tables, tables as they stand in a file, or the name of a file in conf/architecture."""

# Every function parses its tables before it imports torch, which takes longer than to find a spelling mistake.


def fit_tables(architecture: Architecture, data_shape: tuple[int, ...]) -> Tables:
    """Return the tables of an architecture for data of a shape. Raises ConfigError as `parse_tables`."""
    tables = architecture if isinstance(architecture, Tables) else parse_tables(architecture)
    return tables.fit(data_shape)


def build(architecture: Architecture, shape: tuple[int, ...], latent_size: int) -> tuple[nn.Module, nn.Module]:
    """Return the generator (latents `[B, L]` → samples `[B, *shape]`) and the discriminator (samples → `[B]`).

        generator, discriminator = gantrain.networks.build("mlp", shape=(2,), latent_size=2)

    `architecture` is a pair of tables, or the name of one in conf/architecture. Weights are drawn from torch's default
    generator. If its `object` names a function of the user's own, "package:function", it is called with
    `data_shape` and `latent_size` and returns the pair; its discriminator may return `[B, 1]`.

    Raises:
        ConfigError: A name or word is unknown, a row does not fit its input, the generator does not end in `shape`, or
            the discriminator not in one number.
    """
    tables = fit_tables(architecture, shape)
    from gantrain.networks import builder

    return builder.build_networks(tables, shape, latent_size)


def describe(
    architecture: Architecture, data_shape: tuple[int, ...], latent_size: int
) -> tuple[list[LayerSummary], list[LayerSummary]]:
    """Return the generator's and the discriminator's layers with output shape, parameters and multiply-adds per sample.

    No weights are allocated for tables. Raises ConfigError as `build` does.
    """
    tables = fit_tables(architecture, data_shape)
    from gantrain.networks import summary

    return summary.summarize(tables, data_shape, latent_size)


def render_tables(
    architecture: Architecture, data_shape: tuple[int, ...], latent_size: int, width: int
) -> list[rich.table.Table]:
    """Return the result of `describe` as rich tables no wider than `width`, one a network if it fits."""
    layers = describe(architecture, data_shape, latent_size)
    from gantrain.networks import summary

    return summary.render_tables(layers, data_shape, latent_size, width)
