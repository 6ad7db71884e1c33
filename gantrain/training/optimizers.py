"""Optimizers: every class of torch.optim by its name, with the arguments of its signature as keys.

The signatures are read from torch's source, so that a typing error is answered before torch, which takes seconds, is
imported. What only the class itself can know (which values go together, whether it runs on the device) is found by
trying it for one step.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain.errors import ConfigError, describe_choice
from gantrain.files import convert_system_error
from gantrain.ranges import Accepted, Kind, NumberList, Numbers, check_keys
from gantrain.schedules import Ramp, parse_value
from gantrain.seeding import preserve_randomness

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer

Factory = Callable[["nn.Module"], "Optimizer"]

PLAYERS = ("discriminator", "generator")
NEEDS_CLOSURE = ("LBFGS",)
# Arguments that mean the same in every class, and what they have to be.
NOT_NEGATIVE = ("lr", "eps", "weight_decay", "momentum", "lr_decay")
FRACTIONS = ("betas",)


@dataclass(frozen=True)
class OptimizerSettings:
    """A class of torch.optim by its name, and the arguments that it is given, of which numbers may be ramps."""

    name: str
    arguments: Mapping[str, Any]

    def find_ramps(self, images: int) -> dict[str, Ramp]:
        """Return the arguments that follow the clock in a run of so many `images`; `betas.1` is the second beta."""
        numbers: dict[str, Any] = {}
        for key, value in self.arguments.items():
            numbers |= {f"{key}.{i}": item for i, item in enumerate(value)} if isinstance(value, list) else {key: value}
        ramps = {key: value for key, value in numbers.items() if isinstance(value, Ramp)}
        return {key: replace(ramp, images=ramp.images or images) for key, ramp in ramps.items()}

    @property
    def first_arguments(self) -> dict[str, Any]:
        """The arguments at the beginning of a run."""

        def first(value: Any) -> Any:
            if isinstance(value, list):
                return [first(item) for item in value]
            return value.at(0) if isinstance(value, Ramp) else value

        return {key: first(value) for key, value in self.arguments.items()}


def parse_optimizers(section: Mapping[str, Any]) -> dict[str, OptimizerSettings]:
    """Return the settings of each player: the shared keys of the section, and its own over them.

    A player with a class of its own takes only those of the shared keys that this class has. Needs no torch. Raises
    ConfigError for an unknown name or key, and for values of the wrong kind.
    """
    shared = {key: value for key, value in section.items() if key not in PLAYERS}
    parsed = {}
    for player in PLAYERS:
        own = section.get(player)
        if own is not None and not isinstance(own, Mapping):
            raise ConfigError(f"optimizer.{player}={own} must be keys and values, as in optimizer.{player}.lr=0.001")
        own = dict(own or {})
        known = read_signature(own["name"]) if str(own.get("name")) in list_optimizers() else shared
        given = {key: value for key, value in shared.items() if key in known} | own
        where = {key: f"optimizer.{player}.{key}" if key in own else f"optimizer.{key}" for key in {"name", *given}}
        parsed[player] = OptimizerSettings(str(given.get("name")), check_arguments(given, where))
    return parsed


def check_arguments(given: Mapping[str, Any], where: Mapping[str, str]) -> dict[str, Any]:
    """Return the keys beside `name` as the class takes them; `where` are the keys that messages name."""
    name = given.get("name")
    if not isinstance(name, str) or name not in list_optimizers():
        raise ConfigError(describe_choice(where["name"], name, list_optimizers()))
    known, arguments = read_signature(name), {key: value for key, value in given.items() if key != "name"}
    check_keys(f"optimizer={name}", arguments, known)
    for key, value in arguments.items():
        if value is None and known[key] is not None:
            raise ConfigError(f"{where[key]}={value} needs a value, such as {known[key]}")
        value = parse_value(where[key], value, accepted_values(key, known[key]))
        # betas=[0,0.9] as papers write it; the classes want floats.
        if isinstance(value, list):
            value = [item if isinstance(item, Ramp) else float(item) for item in value]
        arguments[key] = value
    return arguments


def accepted_values(name: str, default: object) -> Accepted | None:
    """The values that an argument of an optimizer accepts, from its name and default; None if only its class knows."""
    least, end = 0 if name in NOT_NEGATIVE + FRACTIONS else -math.inf, 1 if name in FRACTIONS else math.inf
    numbers = Numbers(at_least=least, below=end, follows_clock=True)
    if isinstance(default, bool):
        return Kind(bool)
    if isinstance(default, tuple):
        return NumberList(numbers, len(default), default)
    return numbers if isinstance(default, int | float) else None


def create_factories(settings: Mapping[str, OptimizerSettings], device: torch.device | None) -> dict[str, Factory]:
    """Return for each player a function from a network to its optimizer, tried for one step on `device` if given.

    The fused form, one kernel for all parameters, is taken where the class and the device have it. Raises ConfigError
    for arguments that the class refuses, and for a device that cannot be used.
    """
    import torch

    try:
        torch.zeros(1, device=device or "cpu")
    except RuntimeError as error:  # of a driver, or of a device that another process has filled
        remedy = "wait for the processes that fill the device, or choose another one, such as device=cpu"
        reason = str(error).partition("\n")[0]
        known = convert_system_error(error, device, remedy)
        raise known or ConfigError(f"device={device} cannot be used: {reason}") from error
    return {player: create_factory(each.name, each.first_arguments, device) for player, each in settings.items()}


def create_factory(name: str, given: Mapping[str, Any], device: torch.device | None) -> Factory:
    """Return a function from a network to the optimizer `name`, fused if possible. Raises ConfigError."""
    if "fused" in read_signature(name) and given.get("fused") is None and not given.get("foreach"):
        with suppress(ConfigError):
            return try_factory(name, {**given, "fused": True}, device)
    return try_factory(name, given, device)


def try_factory(name: str, given: Mapping[str, Any], device: torch.device | None) -> Factory:
    """Return a function from a network to its optimizer, after one step on `device` if given. Raises ConfigError."""
    import torch

    def build(network: nn.Module) -> Optimizer:
        return getattr(torch.optim, name)(network.parameters(), **given)

    if device is None:
        return build
    with preserve_randomness(torch.device("cpu")):
        network = torch.nn.Linear(2, 2)
    try:
        trial = build(network.to(device))
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        trial.step()
    except Exception as error:  # each class checks its arguments in its own way
        shown = ", ".join(f"{key}={value}" for key, value in given.items())
        raise ConfigError(f"optimizer={name} refuses {shown}: {error}") from error
    return build


@cache
def list_optimizers() -> dict[str, str]:
    """The name of every optimizer that torch.optim offers, with the module that defines it."""
    imported = [node for node in parse_source("__init__").body if isinstance(node, ast.ImportFrom)]
    names = {alias.name: str(node.module).rpartition(".")[2] for node in imported for alias in node.names}
    return {
        name: module
        for name, module in names.items()
        if name[0].isupper() and name != "Optimizer" and name not in NEEDS_CLOSURE
    }


@cache
def read_signature(name: str) -> dict[str, Any]:
    """The arguments of an optimizer's class with their defaults, without the parameters to train."""
    classes = (
        node
        for node in parse_source(list_optimizers()[name]).body
        if isinstance(node, ast.ClassDef) and node.name == name
    )
    init = next(node for node in next(classes).body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    positional = init.args.args[2:]  # after self and params
    defaults = [None] * (len(positional) - len(init.args.defaults)) + list(init.args.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)]
    return {argument.arg: parse_literal(default) for argument, default in pairs}


def parse_literal(node: ast.expr | None) -> Any:
    """The value of a literal; None for any other expression."""
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


def parse_source(module: str) -> ast.Module:
    """The syntax of a module of torch.optim."""
    torch = find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    return ast.parse((Path(torch.origin).parent / "optim" / f"{module}.py").read_text(encoding="utf-8"))
