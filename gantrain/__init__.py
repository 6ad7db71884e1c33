"""Train GANs whose discriminator and generator each target an f-divergence of your choice."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gantrain import data, networks
    from gantrain.api import Run, compare, resume, train
    from gantrain.objectives import divergences
    from gantrain.objectives.objective import Objective
    from gantrain.training.generator import load

__all__ = ["Objective", "Run", "compare", "data", "divergences", "load", "networks", "resume", "train"]

# Public name → the module that holds it. Imported on first use: importing the package stays free of torch.
_HOMES = {
    **dict.fromkeys(("Run", "compare", "resume", "train"), "gantrain.api"),
    "Objective": "gantrain.objectives.objective",
    "data": "gantrain",
    "divergences": "gantrain.objectives",
    "load": "gantrain.training.generator",
    "networks": "gantrain",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(_HOMES[name])
    return vars(home)[name] if name in vars(home) else import_module(f"{_HOMES[name]}.{name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
