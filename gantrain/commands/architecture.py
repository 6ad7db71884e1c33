"""`gantrain architecture`: print a network's table with output shapes and parameter counts."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gantrain import networks
from gantrain.config import overrides
from gantrain.config.checks import parse_config
from gantrain.config.compose import create_composer
from gantrain.config.groups import options as group_options
from gantrain.config.schema import choice, number
from gantrain.console import make_console
from gantrain.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

HELP = f"""Print the layers of the generator and the discriminator, with output shapes, parameters and multiply-adds.

  gantrain architecture NAME [shape=[3,32,32]] [latent=64] [maxout_counts=before] [--config-dir DIR]

Examples
  gantrain architecture appendix
  gantrain architecture dcgan64 shape=[1,64,64] latent=100
  gantrain architecture mine --config-dir DIR        a table of your own, DIR/architecture/mine.yaml

Without shape, the first usual shape that the tables fit is used. Names: {", ".join(group_options("architecture"))}"""

USUAL_SHAPES: tuple[tuple[int, ...], ...] = ((3, 32, 32), (1, 28, 28), (1, 8, 8), (3, 48, 48), (3, 64, 64), (2,), (1,))


@dataclass
class Options:
    """Options of `gantrain architecture`."""

    shape: list[int] | None = None
    latent: int | None = number(None, at_least=1, at_most=65536)
    maxout_counts: str | None = choice(None, (None, "after", "before"))


def run(arguments: list[str]) -> None:
    """Print the tables of the architecture that the first argument names. Raises ConfigError."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config-dir", "-cd")
    try:
        flags, typed = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}; see gantrain architecture --help") from error
    overrides.refuse_flags(typed, Options)
    if not typed or "=" in typed[0]:
        raise ConfigError("architecture needs a name: gantrain architecture NAME; see gantrain architecture --help")
    options = overrides.parse_into(Options, typed[1:])
    if options.shape is not None and len(options.shape) not in (1, 3):
        raise ConfigError(
            f"shape={options.shape} must be [channels,height,width] for images or [dimensions] for points"
        )
    table = compose_table(typed[0], flags.config_dir)
    if options.maxout_counts is not None:
        table["maxout_counts"] = options.maxout_counts
    screen = make_console()
    for rendered in render_tables(table, options, screen.width):
        screen.print(rendered)


def compose_table(name: str, config_dir: str | None) -> dict[str, Any]:
    """Return the table as `gantrain train architecture=NAME` composes it. Raises ConfigError."""
    typed = overrides.parse([f"architecture={overrides.quote(name)}"])
    with create_composer(typed, config_dir) as composer:
        tree = composer.compose([typed[0].text]).tree
    table = parse_config(tree).architecture
    if table.get("object"):
        raise ConfigError(f"architecture.object={table['object']} stands in a file; it is code, not a table")
    return table


def render_tables(table: dict[str, Any], options: Options, width: int) -> list[Table]:
    """Return the tables for the shape asked for, or for the first usual one that they fit. Raises ConfigError."""
    for shape in [tuple(options.shape)] if options.shape is not None else USUAL_SHAPES:
        try:
            latent = options.latent or (shape[0] if len(shape) == 1 else 64)
            return networks.render_tables(table, shape, latent, width)
        except ConfigError as error:
            refusal = error
    raise refusal
