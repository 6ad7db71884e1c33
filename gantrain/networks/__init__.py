"""Generators and discriminators, built from tables.

An architecture is a pair of tables written as in the papers, one row a layer (`conf/architecture/*.yaml`):

    generator:
      - {op: conv_transpose, kernel: 4, stride: 2, features: 128, norm: batch, dropout: 0, activation: leaky_relu}

A row is read from left to right: dropout on the layer's *input*, the operation, its normalisation, its activation.
Shapes follow from the rows: a vector that meets a convolution is an image of 1×1 pixels, an image that meets a linear
layer is flattened. The generator takes latents `[B, L]` and has to end in the data's shape `[B, *data_shape]`, or in a
vector of as many numbers; the discriminator has to end in one number a sample, returned raw as `[B]`: what it means (a
log-ratio by default) is for the objective to say. `features: data` stands for the data's channels (convolutions) or for
all of its numbers (linear layers), so one table serves grey and colour.

`tables` holds the vocabulary, `layers` what its words mean, `networks` puts rows together, `summary` prints them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import rich.table
    from torch import nn

    from gantrain.networks.summary import LayerSummary

__all__ = ["build", "check", "describe", "rendered"]


def build(
    architecture: Mapping[str, Any] | str, shape: tuple[int, ...], latent_size: int
) -> tuple[nn.Module, nn.Module]:
    """Return the generator (latents `[B, L]` → samples `[B, *shape]`) and the discriminator (samples → `[B]`, float32).

        generator, discriminator = gantrain.networks.build("mlp", shape=(2,), latent_size=2)

    `architecture` is a pair of tables, or the name of one in conf/architecture. Weights are drawn from torch's default
    generator. Where `architecture["object"]` names a function of the user's own, "package:function", it is called with
    `data_shape` and `latent_size` and returns the pair.

    Raises ConfigError for unknown names and words, for a row that does not fit its input, for a generator that does not
    end in `shape` and for a discriminator that does not end in one number.
    """
    from gantrain.networks.tables import read

    tables = read(architecture, shape)  # before torch is imported, which takes longer than finding a typing error

    from gantrain.networks import builder

    if tables.object is not None:
        return builder.import_networks(tables.object, shape, latent_size)
    return builder.build_from_tables(tables, shape, latent_size)


def check(architecture: Mapping[str, Any]) -> None:
    """Raise ConfigError for unknown words and impossible values, before the data's shape is known."""
    from gantrain.networks.tables import read

    read(architecture, data_shape=(1, 1, 1))


def describe(
    architecture: Mapping[str, Any] | str, data_shape: tuple[int, ...], latent_size: int
) -> tuple[list[LayerSummary], list[LayerSummary]]:
    """The generator's and the discriminator's layers with output shape, parameters and multiply-adds per sample.

    No weights are allocated for tables. Raises ConfigError as `build` does.
    """
    from gantrain.networks.tables import read

    tables = read(architecture, data_shape)

    from gantrain.networks import summary

    return summary.summarize(tables, data_shape, latent_size)


def rendered(
    architecture: Mapping[str, Any], data_shape: tuple[int, ...], latent_size: int, width: int
) -> list[rich.table.Table]:
    """What `describe` returns, as rich tables no wider than `width`: one for each network where it has the room."""
    from gantrain.networks import summary
    from gantrain.networks.tables import times

    generator, discriminator = describe(architecture, data_shape, latent_size)
    return [
        *summary.rich_tables(f"generator, z {latent_size}", generator, width),
        *summary.rich_tables(f"discriminator, x {times(data_shape)}", discriminator, width),
    ]
