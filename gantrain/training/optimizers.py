"""Optimizers: every class of torch.optim by its name, with the arguments of its signature as keys.

The signatures are read from torch's source, so that a typing error is answered before torch, which takes seconds, is
imported. What only the class itself can know (which values go together, whether it runs on the device) is found by
trying it for one step.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain.errors import ConfigError, meant, one_of

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer

PLAYERS = ("discriminator", "generator")
NEEDS_CLOSURE = ("LBFGS",)
# Arguments that mean the same in every class, and what they have to be.
NOT_NEGATIVE = ("lr", "eps", "weight_decay", "momentum", "lr_decay")
FRACTIONS = ("betas",)


def factories(settings: Mapping[str, Any], device: torch.device) -> dict[str, Callable[[nn.Module], Optimizer]]:
    """For each player a function from a network to its optimizer. Raises ConfigError for settings that it refuses."""
    return {player: factory(own, device) for player, own in players(settings)}


def check(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for an unknown name or key, and for values of the wrong kind; without torch."""
    for player, given in players(settings):
        arguments(given, player, settings.get(player) or {})


def players(settings: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each player with its settings: the shared ones, and its own over them.

    A player with a class of its own takes only those of the shared keys that this class has.
    """
    shared = {key: value for key, value in settings.items() if key not in PLAYERS}
    for player in PLAYERS:
        own = settings.get(player)
        if own is not None and not isinstance(own, Mapping):
            raise ConfigError(f"optimizer.{player}={own} must be keys and values, as in optimizer.{player}.lr=0.001")
        own = dict(own or {})
        known = signature(own["name"]) if str(own.get("name")) in modules() else shared
        yield player, {key: value for key, value in shared.items() if key in known} | own


def factory(settings: Mapping[str, Any], device: torch.device) -> Callable[[nn.Module], Optimizer]:
    """The class called `name` in torch.optim, with the other keys as its arguments, tried for one step on `device`.

    Raises ConfigError as `check` does, and for values that the class refuses.
    """
    given = arguments(settings)
    if "fused" in signature(settings["name"]) and given.get("fused") is None and not given.get("foreach"):
        with suppress(ConfigError):  # one kernel for all parameters, where the class and the device have it
            return tried(settings["name"], given | {"fused": True}, device)
    return tried(settings["name"], given, device)


def tried(name: str, given: Mapping[str, Any], device: torch.device) -> Callable[[nn.Module], Optimizer]:
    """A function from a network to its optimizer, after one step on `device`. Raises ConfigError where that fails."""
    import torch

    def build(network: nn.Module) -> Optimizer:
        return getattr(torch.optim, name)(network.parameters(), **given)

    try:
        trial = build(network := torch.nn.Linear(2, 2).to(device))
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        trial.step()
    except Exception as error:  # each class checks its arguments in its own way
        shown = ", ".join(f"{key}={value}" for key, value in given.items())
        raise ConfigError(f"optimizer={name} refuses {shown}: {error}") from error
    return build


def arguments(settings: Mapping[str, Any], player: str = "", own: Container[str] = ()) -> dict[str, Any]:
    """The keys beside `name`, as the class takes them. Raises ConfigError, which names the player's `own` keys so."""
    name = settings.get("name")
    if not isinstance(name, str) or name not in modules():
        raise ConfigError(one_of(f"optimizer.{player}.name" if "name" in own else "optimizer.name", name, modules()))
    known = signature(name)
    given = {}
    for key, value in settings.items():
        if key == "name":
            continue
        if key not in known:
            raise ConfigError(f"optimizer={name} has no key {key}{meant(key, known)}\n  keys: {', '.join(known)}")
        check_value(f"optimizer.{player}.{key}" if key in own else f"optimizer.{key}", value, known[key])
        # betas=[0,0.9] as papers write it; the classes want floats.
        given[key] = [float(item) for item in value] if isinstance(value, list) else value
    return given


def check_value(key: str, value: object, default: object) -> None:
    """Raise ConfigError for a value of another kind than the argument's default, not finite, or out of range."""
    if value is None:
        if default is not None:
            raise ConfigError(f"{key}={value} needs a value, such as {default}")
        return
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ConfigError(f"{key}={value} must be true or false")
    elif isinstance(default, tuple):
        if not isinstance(value, list) or len(value) != len(default) or not all(map(is_number, value)):
            raise ConfigError(f"{key}={value} must be {len(default)} numbers, as in {list(default)}")
    elif isinstance(default, int | float) and not is_number(value):
        raise ConfigError(f"{key}={value} must be a number, such as {default}")
    name = key.rpartition(".")[2]
    for number in filter(is_number, value if isinstance(value, list) else [value]):
        assert isinstance(number, int | float)
        if not math.isfinite(number):
            raise ConfigError(f"{key}={value} must be finite")
        if name in NOT_NEGATIVE and number < 0:
            raise ConfigError(f"{key}={value} must be at least 0")
        if name in FRACTIONS and not 0 <= number < 1:
            raise ConfigError(f"{key}={value} must lie from 0 to below 1")


def is_number(value: object) -> bool:
    """Whether `value` is an int or a float; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


@cache
def modules() -> dict[str, str]:
    """The name of every optimizer that torch.optim offers, with the module that defines it."""
    imported = [node for node in parsed("__init__").body if isinstance(node, ast.ImportFrom)]
    names = {alias.name: str(node.module).rpartition(".")[2] for node in imported for alias in node.names}
    return {
        name: module
        for name, module in names.items()
        if name[0].isupper() and name != "Optimizer" and name not in NEEDS_CLOSURE
    }


@cache
def signature(name: str) -> dict[str, Any]:
    """The arguments of an optimizer's class with their defaults, without the parameters to train."""
    classes = (node for node in parsed(modules()[name]).body if isinstance(node, ast.ClassDef) and node.name == name)
    init = next(node for node in next(classes).body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    positional = init.args.args[2:]  # after self and params
    defaults = [None] * (len(positional) - len(init.args.defaults)) + list(init.args.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)]
    return {argument.arg: literal(default) for argument, default in pairs}


def literal(node: ast.expr | None) -> Any:
    """The value of a literal; None for any other expression."""
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


def parsed(module: str) -> ast.Module:
    """The syntax of a module of torch.optim."""
    torch = find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    return ast.parse((Path(torch.origin).parent / "optim" / f"{module}.py").read_text(encoding="utf-8"))
