"""The vocabulary of architecture tables: which operations, columns and values exist, checked without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, replace
from typing import Any

from gantrain.errors import ConfigError, describe_choice
from gantrain.files import CONF
from gantrain.ranges import Choice, Kind, Numbers, accepted_by_field, check_keys, setting

Shape = tuple[int, ...]
"""The shape of one sample, without the batch: `(C, H, W)` or `(d,)`."""

EVERY_ROW = ("op", "norm", "dropout", "activation")
OPS: dict[str, tuple[str, ...]] = {  # each operation with the columns of its own
    "conv": ("kernel", "stride", "padding", "features"),
    "conv_transpose": ("kernel", "stride", "padding", "features"),
    "linear": ("features", "bias", "start"),
    "residual": ("features", "resample"),
    "affine": ("features",),
    "point": ("features", "start"),
    "mean_pool": (),
    "minibatch_stddev": ("group",),
    "minibatch_discrimination": ("kernels", "dimensions"),
    "identity": (),
}
IMAGE_OPS = ("conv", "conv_transpose", "residual", "mean_pool")
VECTOR_OPS = ("linear", "affine", "point", "minibatch_discrimination")
BATCH_OPS = ("minibatch_stddev", "minibatch_discrimination")  # which compare the samples of a batch
NORMS = ("none", "batch", "layer", "spectral")
ACTIVATIONS = ("linear", "relu", "leaky_relu", "softplus", "maxout", "tanh", "sigmoid", "square")
LARGEST = 65_536  # far above the numbers of published networks
COUNT = Numbers(whole=True, at_least=1, at_most=LARGEST)


@dataclass(frozen=True)
class Row:
    """One layer. An operation with a column `kernel` or `features` needs a value for it.

    `follows_data` stands for `features: data`, which `Tables.fit` resolves. `start` is the initial value of all
    weights; without it they are drawn.
    """

    op: str = setting(MISSING, Choice(tuple(OPS)))
    kernel: int = setting(0, COUNT)
    stride: int = setting(1, COUNT)
    padding: int = setting(0, replace(COUNT, at_least=0))
    features: int = setting(0, replace(COUNT, also=("data",)))
    follows_data: bool = False
    bias: bool = setting(True, Kind(bool))
    start: float | None = setting(None, Numbers(also=(None,)))
    resample: str = setting("none", Choice(("none", "up", "down")))
    group: int = setting(4, replace(COUNT, at_least=2))
    kernels: int = setting(100, COUNT)
    dimensions: int = setting(5, COUNT)
    norm: str = setting("none", Choice(NORMS))
    dropout: float = setting(0.0, Numbers(at_least=0, below=1))
    activation: str = setting("linear", Choice(ACTIVATIONS))


@dataclass(frozen=True)
class Tables:
    """A parsed architecture: the rows of both networks and their common settings.

    `maxout_counts` tells whether `features` is the number of maps after maxout or before it (the convolution's own).
    `init_std` is the standard deviation of Gaussian weights with zero biases; None is PyTorch's initialisation.
    """

    name: str = setting("unnamed", Kind(str))
    object: str | None = setting(None, Kind(str, optional=True))
    leaky_slope: float = setting(0.1, Numbers(at_least=0, below=1))
    maxout_pieces: int = setting(2, Numbers(whole=True, at_least=2, at_most=64))
    maxout_counts: str = setting("after", Choice(("after", "before")))
    init_std: float | None = setting(None, Numbers(above=0, also=(None,)))
    generator: tuple[Row, ...] = ()
    discriminator: tuple[Row, ...] = ()

    def fit(self, data_shape: Shape) -> Tables:
        """Return the tables for data of a shape: `features: data` is their channels, or the number of their numbers."""
        channels, numbers = data_shape[0], math.prod(data_shape)

        def fit_rows(rows: Sequence[Row]) -> tuple[Row, ...]:
            return tuple(
                replace(row, features=channels if row.op in IMAGE_OPS else numbers) if row.follows_data else row
                for row in rows
            )

        return replace(self, generator=fit_rows(self.generator), discriminator=fit_rows(self.discriminator))


def load_architecture(name: str) -> dict[str, Any]:
    """Return the tables called `name` in `conf/architecture`. Raises ConfigError if there are none."""
    import yaml

    files = {path.stem: path for path in sorted((CONF / "architecture").glob("*.yaml"))}
    if name not in files:
        raise ConfigError(describe_choice("architecture", name, files))
    tables: dict[str, Any] = yaml.safe_load(files[name].read_text(encoding="utf-8"))
    return tables


def parse_tables(architecture: Mapping[str, Any] | str) -> Tables:
    """Return an architecture, or the one of that name, with every word checked.

    Raises ConfigError for unknown words and impossible values.
    """
    if isinstance(architecture, str):
        architecture = load_architecture(architecture)
    accepted = accepted_by_field(Tables)
    check_keys("architecture", architecture, accepted)
    settings = {key: value for key, value in architecture.items() if key not in ("generator", "discriminator")}
    for key, value in settings.items():
        accepted[key].check(f"architecture.{key}", value)
    tables = Tables(
        **settings,
        generator=_parse_rows("generator", architecture),
        discriminator=_parse_rows("discriminator", architecture),
    )
    if tables.init_std is not None and any(row.start is not None for row in tables.generator + tables.discriminator):
        raise ConfigError("architecture.init_std draws all weights, also those of a row with a start; give one of them")
    return tables


def _parse_rows(network: str, architecture: Mapping[str, Any]) -> tuple[Row, ...]:
    rows = architecture.get(network) or ()
    if not isinstance(rows, (list, tuple)) or not (rows or architecture.get("object")):
        raise ConfigError(
            f"architecture.{network} has to be a list of at least one row; conf/architecture has examples"
        )
    return tuple(_parse_row(f"architecture.{network} row {number}", row) for number, row in enumerate(rows, start=1))


def _parse_row(where: str, row: Mapping[str, Any]) -> Row:
    """Return a row with its columns and values checked; every message begins with `where`."""
    if not isinstance(row, Mapping) or "op" not in row:
        raise ConfigError(f"{where} is {row!r}; a row is {{op: …, …}}, with one of the operations {', '.join(OPS)}")
    accepted = accepted_by_field(Row)
    accepted["op"].check(f"{where}: op", row["op"])
    own_columns = OPS[row["op"]]
    check_keys(where, row, [*EVERY_ROW, *own_columns])
    for column in ("kernel", "features"):
        if column in own_columns and column not in row:
            raise ConfigError(f"{where}: {row['op']} needs {column}")
    for column, value in row.items():
        accepted[column].check(f"{where}: {column}", value)
    return Row(**{**row, "features": 0, "follows_data": True} if row.get("features") == "data" else row)


def mixes_samples(op: str, norm: str) -> bool:
    """Return whether the output of a row for a sample depends on the other samples of the batch."""
    return norm == "batch" or op in BATCH_OPS


def times(shape: Shape) -> str:
    """Return a shape as text: 3×32×32."""
    return "×".join(map(str, shape)) or "one number"
