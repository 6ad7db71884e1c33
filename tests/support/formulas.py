"""The f-divergences, typed anew from the literature, and derivatives that use nothing of the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import mpmath
import numpy as np
import torch
from torch import Tensor

from gantrain.objectives.divergence import FormulaName
from gantrain.objectives.divergences import CATALOGUE

PARTS: tuple[FormulaName, ...] = get_args(FormulaName)


def typed_alpha(a: float) -> Callable[[Any, Any], Any]:
    return lambda u, m: (u**a - 1 - a * (u - 1)) / (a * (a - 1))


def typed_arimoto(a: float) -> Callable[[Any, Any], Any]:
    return lambda u, m: ((1 + u**a) ** (1 / a) - 1 - u) * a / (a - 1)


# f(u), in the arithmetic of `m`: numpy (real or complex) or mpmath.
TYPED: dict[str, Callable[[Any, Any], Any]] = {
    "kl": lambda u, m: u * m.log(u),
    "reverse_kl": lambda u, m: -m.log(u),
    "js": lambda u, m: u * m.log(u) - (1 + u) * m.log((1 + u) / 2),
    "gan": lambda u, m: u * m.log(u) - (1 + u) * m.log(1 + u),
    "squared_hellinger": lambda u, m: (m.sqrt(u) - 1) ** 2,
    "pearson": lambda u, m: (u - 1) ** 2,
    "neyman": lambda u, m: (1 - u) ** 2 / u,
    "jeffreys": lambda u, m: (u - 1) * m.log(u),
    "non_saturating": lambda u, m: m.log(1 + 1 / u),
    "softened_reverse_kl": lambda u, m: (1 + u) * m.log((1 + u) / (2 * u)),
    "le_cam": lambda u, m: (u - 1) ** 2 / (u + 1),
    "total_variation": lambda u, m: abs(u - 1) / 2,
    "alpha_0.3": typed_alpha(0.3),
    "alpha_-1": typed_alpha(-1.0),
    "alpha_0": lambda u, m: -m.log(u) + u - 1,
    "alpha_1": lambda u, m: u * m.log(u) - u + 1,
    "alpha_0.5": typed_alpha(0.5),
    "alpha_2": typed_alpha(2.0),
    "alpha_1.7": typed_alpha(1.7),
    "arimoto_0.5": typed_arimoto(0.5),
    "arimoto_2": typed_arimoto(2.0),
    "arimoto_1": lambda u, m: u * m.log(u) - (1 + u) * m.log(1 + u),
    "dual_non_saturating": lambda u, m: u * m.log(1 + u),
    "dual_softened_reverse_kl": lambda u, m: (1 + u) * m.log((1 + u) / 2),
    "dual_alpha_0.3": lambda u, m: (u**0.7 - u - 0.3 * (1 - u)) / (0.3 * (0.3 - 1)),
}
NAMES = list(TYPED)
SMOOTH = [name for name in NAMES if name != "total_variation"]
assert set(CATALOGUE) <= set(TYPED), "every divergence of the catalogue is typed anew"


def f(name: str, u: Any) -> Any:
    """f(u), in float64."""
    return TYPED[name](np.asarray(u, dtype=float), np)


def df(name: str, u: Any) -> Any:
    """f'(u) of a smooth divergence by a complex step, which loses no digits; that of total variation by hand."""
    if name == "total_variation":
        return np.sign(np.asarray(u) - 1) / 2
    return TYPED[name](np.asarray(u, dtype=float) + 1e-30j, np).imag / 1e-30


def derivative(name: str, u: float, order: int) -> float:
    """A higher derivative of f at u, with 40 digits; also for an `alpha_<α>` that is not in the table."""
    known = TYPED.get(name) or typed_alpha(float(name.removeprefix("alpha_")))
    with mpmath.workdps(40):
        return float(mpmath.diff(lambda t: known(t, mpmath), mpmath.mpf(u), order))


def losses(name: str) -> dict[str, Callable[[Any], Any]]:
    """The loss per sample of each generator objective, as a function of u."""
    return {
        "matched": lambda u: f(name, u) - u * df(name, u),
        "ratio": lambda u: f(name, u),
        "alternative": lambda u: -df(name, u),
    }


def slope(formula: Callable[[Tensor], Tensor], r: Tensor) -> Tensor:
    """d formula / dr, elementwise, by autograd."""
    r = r.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad((formula(r) + 0 * r).sum(), r)
    return gradient
