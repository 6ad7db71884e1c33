"""Train GANs whose discriminator and generator each target an f-divergence of your choice."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gantrain import data, errors, networks
    from gantrain.api import Run, compare, evaluate, load, resume, train
    from gantrain.objectives import critics, divergences
    from gantrain.objectives.critic_objective import CriticObjective
    from gantrain.objectives.objective import Objective
    from gantrain.objectives.weighting import Weighting

    __version__: str

__all__ = [
    "CriticObjective",
    "Objective",
    "Run",
    "Weighting",
    "__version__",
    "compare",
    "critics",
    "data",
    "divergences",
    "errors",
    "evaluate",
    "load",
    "networks",
    "resume",
    "train",
]

# Public name → the module that holds it. Imported on first use: importing the package stays free of torch.
_HOMES = {
    **dict.fromkeys(("Run", "compare", "evaluate", "load", "resume", "train"), "gantrain.api"),
    **dict.fromkeys(("data", "errors", "networks"), "gantrain"),
    "Objective": "gantrain.objectives.objective",
    "CriticObjective": "gantrain.objectives.critic_objective",
    "Weighting": "gantrain.objectives.weighting",
    **dict.fromkeys(("critics", "divergences"), "gantrain.objectives"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("gantrain.version").VERSION
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(_HOMES[name])
    return vars(home)[name] if name in vars(home) else import_module(f"{_HOMES[name]}.{name}")


def __dir__() -> list[str]:
    return sorted(__all__)
