"""The vocabulary of architecture tables: which operations, columns and values exist, checked without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from gantrain.errors import ConfigError, meant, one_of

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
    "identity": (),
}
IMAGE_OPS = ("conv", "conv_transpose", "residual", "mean_pool")
VECTOR_OPS = ("linear", "affine", "point")
NORMS = ("none", "batch", "layer")
ACTIVATIONS = ("linear", "relu", "leaky_relu", "softplus", "maxout", "tanh", "sigmoid", "square")
RESAMPLES = ("none", "up", "down")
MAXOUT_COUNTS = ("after", "before")


@dataclass(frozen=True)
class Row:
    """One layer. `kernel` and `features` have no default: an operation that has the column needs a value in it.

    `start` is the value that all weights begin with; without it they are drawn.
    """

    op: str
    kernel: int = 0
    stride: int = 1
    padding: int = 0
    features: int = 0
    bias: bool = True
    start: float | None = None
    resample: str = "none"
    norm: str = "none"
    dropout: float = 0.0
    activation: str = "linear"


@dataclass(frozen=True)
class Tables:
    """An architecture that has been read: the rows of both networks and what holds for all of them.

    `maxout_counts` says whether `features` is the number of maps after maxout or before it (the convolution's own);
    `init_std` is the standard deviation of the Gaussian weights, biases being 0, and None PyTorch's initialisation.
    """

    name: str = "unnamed"
    object: str | None = None
    leaky_slope: float = 0.1
    maxout_pieces: int = 2
    maxout_counts: str = "after"
    init_std: float | None = None
    generator: tuple[Row, ...] = ()
    discriminator: tuple[Row, ...] = ()


def read(architecture: Mapping[str, Any], data_shape: Shape) -> Tables:
    """The architecture with every word checked and `features: data` resolved; raises ConfigError."""
    refuse_unknown_keys("architecture", architecture, [field.name for field in fields(Tables)])
    settings = {key: value for key, value in architecture.items() if key not in ("generator", "discriminator")}
    for key, value in settings.items():
        check(f"architecture.{key}", value, SETTINGS[key])
    tables = Tables(
        **settings,
        generator=read_rows("generator", architecture, data_shape),
        discriminator=read_rows("discriminator", architecture, data_shape),
    )
    if tables.init_std is not None and any(row.start is not None for row in tables.generator + tables.discriminator):
        raise ConfigError("architecture.init_std draws all weights, also those of a row with a start; give one of them")
    return tables


def read_rows(network: str, architecture: Mapping[str, Any], data_shape: Shape) -> tuple[Row, ...]:
    """The rows of one network, numbered from 1 in messages."""
    rows = architecture.get(network) or ()
    if not isinstance(rows, (list, tuple)) or not (rows or architecture.get("object")):
        raise ConfigError(
            f"architecture.{network} has to be a list of at least one row; conf/architecture has examples"
        )
    return tuple(
        read_row(f"architecture.{network} row {number}", row, data_shape) for number, row in enumerate(rows, start=1)
    )


def read_row(where: str, row: Mapping[str, Any], data_shape: Shape) -> Row:
    """One row, its columns and values checked; `where` begins every message."""
    if not isinstance(row, Mapping) or "op" not in row:
        raise ConfigError(f"{where} is {row!r}; a row is {{op: …, …}}, with one of the operations {', '.join(OPS)}")
    check(f"{where}: op", row["op"], CELLS["op"])
    own_columns = OPS[row["op"]]
    refuse_unknown_keys(where, row, [*EVERY_ROW, *own_columns])
    for column in ("kernel", "features"):
        if column in own_columns and column not in row:
            raise ConfigError(f"{where}: {row['op']} needs {column}")
    for column, value in row.items():
        check(f"{where}: {column}", value, CELLS[column])
    if row.get("features") == "data":
        return Row(**{**row, "features": data_shape[0] if row["op"] in IMAGE_OPS else math.prod(data_shape)})
    return Row(**row)


def refuse_unknown_keys(where: str, mapping: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise ConfigError for the first key that is not known."""
    known = tuple(known)
    for key in mapping:
        if key not in known:
            raise ConfigError(f"{where} has no key {key}{meant(key, known)}\n  keys: {', '.join(known)}")


@dataclass(frozen=True)
class Numbers:
    """The numbers that a cell may hold."""

    words: str
    contain: Callable[[Any], bool]


def is_whole(value: object) -> bool:
    """Whether `value` is an int; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether `value` is a finite int or float."""
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


LARGEST = 65_536  # of a number in a table: the networks of the field stay far below
COUNT = Numbers(f"a whole number from 1 to {LARGEST:,}", lambda value: is_whole(value) and 1 <= value <= LARGEST)
CELLS: dict[str, Numbers | Iterable[str]] = {
    "op": OPS,
    "kernel": COUNT,
    "stride": COUNT,
    "padding": Numbers(f"a whole number from 0 to {LARGEST:,}", lambda value: value == 0 or COUNT.contain(value)),
    "features": Numbers(f"{COUNT.words}, or data", lambda value: value == "data" or COUNT.contain(value)),
    "bias": Numbers("true or false", lambda value: isinstance(value, bool)),
    "start": Numbers("a number, or null", lambda value: value is None or is_number(value)),
    "resample": RESAMPLES,
    "norm": NORMS,
    "dropout": Numbers("a probability from 0 to below 1", lambda value: is_number(value) and 0 <= value < 1),
    "activation": ACTIVATIONS,
}
SETTINGS: dict[str, Numbers | Iterable[str]] = {
    "name": Numbers("a word", lambda value: isinstance(value, str)),
    "object": Numbers("package:function, or null", lambda value: value is None or isinstance(value, str)),
    "leaky_slope": Numbers("a number from 0 to below 1", lambda value: is_number(value) and 0 <= value < 1),
    "maxout_pieces": Numbers("a whole number from 2 to 64", lambda value: is_whole(value) and 2 <= value <= 64),
    "maxout_counts": MAXOUT_COUNTS,
    "init_std": Numbers("a positive number, or null", lambda value: value is None or (is_number(value) and value > 0)),
}


def check(key: str, value: object, allowed: Numbers | Iterable[str]) -> None:
    """Raise ConfigError unless `value` is among `allowed`: numbers, or a list of words."""
    if isinstance(allowed, Numbers):
        if not allowed.contain(value):
            raise ConfigError(f"{key}={value} is not {allowed.words}")
    elif value not in tuple(allowed):
        raise ConfigError(one_of(key, value, allowed))


def times(shape: Shape) -> str:
    """A shape as it is printed: 3×32×32."""
    return "×".join(map(str, shape)) or "one number"
