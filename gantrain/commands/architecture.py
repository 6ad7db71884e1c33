"""`gantrain architecture`: print a network's table with output shapes and parameter counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from gantrain import architectures, config, overrides
from gantrain.config import choice, number
from gantrain.errors import ConfigError, one_of
from gantrain.screen import console

if TYPE_CHECKING:
    from rich.table import Table

HELP = """Print the generator's and the discriminator's layers, with output shapes, parameters and multiply-adds.

  gantrain architecture NAME [shape=[3,32,32]] [latent=64] [maxout_counts=before]

Examples
  gantrain architecture appendix
  gantrain architecture dcgan64 shape=[1,64,64] latent=100

Without a shape, the first usual one that the tables fit. Names: {names}"""

PIPE_WIDTH = 140
USUAL_SHAPES: tuple[tuple[int, ...], ...] = ((3, 32, 32), (1, 28, 28), (1, 8, 8), (3, 48, 48), (3, 64, 64), (2,), (1,))


@dataclass
class Options:
    """What `gantrain architecture` can be told."""

    shape: list[int] | None = None
    latent: int | None = number(None, at_least=1, at_most=65536)
    maxout_counts: str | None = choice(None, (None, "after", "before"))


def help_text() -> str:
    """The command's help."""
    return HELP.format(names=", ".join(config.options("architecture")))


def run(arguments: list[str]) -> None:
    """Print the tables of the architecture that the first argument names."""
    if not arguments or "=" in arguments[0]:
        raise ConfigError("architecture needs a name: gantrain architecture NAME; see gantrain architecture --help")
    name, options = arguments[0], overrides.read(Options, arguments[1:])
    if name not in (names := config.options("architecture")):
        raise ConfigError(one_of("architecture", name, names))
    if options.shape is not None and len(options.shape) not in (1, 3):
        raise ConfigError(
            f"shape={options.shape} must be [channels,height,width] for images or [dimensions] for points"
        )

    table = yaml.safe_load((config.CONF / "architecture" / f"{name}.yaml").read_text(encoding="utf-8"))
    if options.maxout_counts is not None:
        table["maxout_counts"] = options.maxout_counts
    screen = console(PIPE_WIDTH)
    for rendered in fitting(table, options):
        screen.print(rendered)


def fitting(table: dict[str, Any], options: Options) -> tuple[Table, Table]:
    """The rendered tables for the shape asked for, or for the first usual one that they fit. Raises ConfigError."""
    for shape in [tuple(options.shape)] if options.shape is not None else USUAL_SHAPES:
        try:
            return architectures.rendered(table, shape, options.latent or (shape[0] if len(shape) == 1 else 64))
        except ConfigError as error:
            refusal = error
    raise refusal
