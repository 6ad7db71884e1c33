"""Numbers that are functions of the clock: ramps of settings, and the decay of the averaged generator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from gantrain.errors import ConfigError
from gantrain.files import iterate_leaves
from gantrain.ranges import Accepted, Choice, NumberList, Numbers, check_keys, to_whole

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim import Optimizer

Settings = TypeVar("Settings")

KEYS = ("from", "to", "images", "shape")
SHAPES = ("linear", "cosine", "exponential")


@dataclass(frozen=True)
class Ramp:
    """A number that goes from `start` to `end` over the first `images` of the clock, and stays there.

    Without `images` it takes the length of the run, which `end_with_run` puts there. With t in [0, 1] as the share of
    `images` that has passed, the number is

        linear        start + t·(end − start)
        cosine        end + (start − end)·(1 + cos πt)/2    (Loshchilov and Hutter 2017, eq. 5, without restarts)
        exponential   start·(end/start)^t
    """

    start: float
    end: float
    images: float | None
    shape: str = "linear"

    def at(self, images: int) -> float:
        """Return the number at the clock `images`."""
        if not images:
            return self.start
        assert self.images is not None, "the length of the run is not known yet"
        if images >= self.images:
            return self.end
        t = images / self.images
        if self.shape == "exponential":
            return self.start * (self.end / self.start) ** t
        if self.shape == "cosine":
            t = (1 - math.cos(math.pi * t)) / 2
        return self.start + t * (self.end - self.start)


def is_zero(value: float | Ramp | Tensor) -> bool:
    """Return whether a number is 0 all the time. A tensor is not looked into: it holds the value of a ramp."""
    return isinstance(value, int | float) and value == 0


def largest(value: float | Ramp) -> float:
    """Return the largest value of a number or a ramp."""
    return max(value.start, value.end) if isinstance(value, Ramp) else value


@dataclass(frozen=True)
class HalfLife:
    """The averaged generator's memory in images shown to D: after `half_life` of them, an old weight counts half.
    With a half-life of 0 there is no memory.

    Early in training the half-life is `ramp` times the images shown so far, where that is less; `ramp=None` leaves it
    constant (Karras et al. 2020, `ema_rampup`).
    """

    half_life: float | Ramp
    ramp: float | None = None

    def decay(self, images: int, step: int) -> float:
        """Return the decay of one update at the clock `images`, `step` images after the one before it."""
        half_life = self.half_life.at(images) if isinstance(self.half_life, Ramp) else self.half_life
        if self.ramp is not None:
            half_life = min(half_life, self.ramp * images)
        return 0.5 ** (step / half_life) if half_life else 0.0


def is_ramp(value: object) -> bool:
    """Return whether a value of a config stands for a ramp."""
    return isinstance(value, Mapping) and not value.keys().isdisjoint(("from", "to"))


def parse_number(key: str, value: Any, accepted: Numbers) -> float | Ramp:
    """Return a number, or the ramp that `{from, to, images, shape}` describes. Raises ConfigError.

    `images` may be left out or None, for the length of the run. Both ends have to be `accepted`; those of an
    exponential ramp have to be above 0.
    """
    if not isinstance(value, Mapping):
        accepted.check(key, value)
        return value
    form = f"{key}={{from: …, to: …, images: …, shape: {'|'.join(SHAPES)}}}"
    check_keys(key, value, KEYS)
    for name in KEYS[:2]:
        if name not in value:
            raise ConfigError(f"{key} is a schedule without {name}; it is {form}")
    shape = value.get("shape", "linear")
    Choice(SHAPES).check(f"{key}.shape", shape)
    Numbers(above=0, also=(None,)).check(f"{key}.images", value.get("images"))
    for name in ("from", "to"):
        accepted.check(f"{key}.{name}", value[name])
        if shape == "exponential":
            Numbers(above=0).check(f"{key}.{name}", value[name])
    return Ramp(value["from"], value["to"], value.get("images"), shape)


def parse_value(key: str, value: Any, accepted: Accepted | None) -> Any:
    """Return the value of a key, a `Ramp` for a schedule; not checked if `accepted` is None. Raises ConfigError."""
    if isinstance(accepted, Numbers) and accepted.follows_clock:
        return parse_number(key, value, accepted)
    if isinstance(accepted, NumberList) and isinstance(value, list) and any(map(is_ramp, value)):
        accepted.check(key, [item["from"] if is_ramp(item) and "from" in item else item for item in value])
        return [parse_number(f"{key}[{index}]", item, accepted.numbers) for index, item in enumerate(value)]
    if is_ramp(value):
        raise ConfigError(f"{key} cannot follow a schedule; give it a single value")
    if isinstance(accepted, Numbers) and accepted.whole:
        value = to_whole(value)
    if accepted is not None:
        accepted.check(key, value)
    return value


def parse_decay(value: Any) -> float | Ramp | HalfLife:
    """Return the setting `ema`: a decay per update of G, a ramp of it, or a half-life. Raises ConfigError."""
    if not isinstance(value, Mapping) or is_ramp(value):
        return parse_number("ema", value, Numbers(at_least=0, at_most=1))
    check_keys("ema", value, [item.name for item in fields(HalfLife)])
    if "half_life" not in value:
        raise ConfigError("ema has no half_life; write ema={half_life: 10000, ramp: 0.05}")
    accepted = Numbers(at_least=0) if is_ramp(value["half_life"]) else Numbers(above=0)
    half_life = parse_number("ema.half_life", value["half_life"], accepted)
    Numbers(above=0, also=(None,)).check("ema.ramp", value.get("ramp"))
    return HalfLife(half_life, value.get("ramp"))


def list_ramps_without_length(tree: Mapping[str, Any]) -> list[str]:
    """Return the keys of a config whose ramps last as long as the run."""
    leaves = dict(iterate_leaves(tree))
    keys = [key.removesuffix(".to") for key in leaves if key.endswith(".to")]
    return [key for key in keys if leaves.get(f"{key}.images") is None]


def find_ramps(settings: Any) -> dict[str, Ramp]:
    """Return the fields of a dataclass that are ramps, by name."""
    values = {item.name: getattr(settings, item.name) for item in fields(settings)}
    return {name: value for name, value in values.items() if isinstance(value, Ramp)}


def end_with_run(settings: Settings, images: int) -> Settings:
    """Return a frozen dataclass whose ramps without a length end at `images`, the length of the run."""
    ended: dict[str, Any] = {}
    for item in fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, item.name)
        if isinstance(value, Ramp) and value.images is None:
            ended[item.name] = replace(value, images=images)
        elif isinstance(value, HalfLife):
            ended[item.name] = end_with_run(value, images)
    return replace(settings, **ended) if ended else settings  # type: ignore[type-var]


class ScheduledNumbers:
    """The places in which numbers of a run stand that follow ramps; `set` puts their values there.

    Numbers that kernels read stand in tensors on the device, which are filled without waiting for it.
    """

    def __init__(self) -> None:
        self._tensors: list[tuple[Ramp, Tensor]] = []
        self._groups: list[tuple[Ramp, dict[str, Any], str]] = []

    def bind(self, settings: Settings, device: torch.device) -> Settings:
        """Return a frozen dataclass with a float32 scalar on `device` in place of each ramp."""
        import torch

        ramps = find_ramps(settings)
        tensors = {name: torch.tensor(ramp.at(0), dtype=torch.float32, device=device) for name, ramp in ramps.items()}
        self._tensors += [(ramp, tensors[name]) for name, ramp in ramps.items()]
        return replace(settings, **tensors) if tensors else settings  # type: ignore[type-var]

    def bind_optimizer(self, optimizer: Optimizer, ramps: Mapping[str, Ramp], *, is_fused: bool) -> None:
        """Let `ramps` set the arguments of their names; `betas.1` is the second of `betas`.

        Fused optimizers read the rate from the device.
        """
        import torch

        for group in optimizer.param_groups:
            for key, ramp in ramps.items():
                if is_fused and key == "lr":
                    group[key] = torch.tensor(ramp.at(0), dtype=torch.float32, device=group["params"][0].device)
                    self._tensors.append((ramp, group[key]))
                else:
                    self._groups.append((ramp, group, key))

    @property
    def has_host_numbers(self) -> bool:
        """Whether a number stands on the host, where the kernels of a CUDA graph would not see it change."""
        return bool(self._groups)

    def set(self, images: int) -> None:
        """Set all numbers to their values at the clock `images`."""
        for ramp, tensor in self._tensors:
            tensor.fill_(ramp.at(images))
        for ramp, group, key in self._groups:
            name, _, index = key.partition(".")
            if index:
                values = list(group[name])
                values[int(index)] = ramp.at(images)
                group[name] = tuple(values)
            else:
                group[name] = ramp.at(images)
