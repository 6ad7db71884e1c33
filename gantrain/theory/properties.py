r"""Properties of a divergence and of a generator's loss, computed from the divergence's two formulas.

With u = p/q and r = log u, as in `gantrain.objectives.divergences`, and after subtracting f(1) + f'(1) (u − 1), a
convex f charges

    f(0) − f(1) + f'(1) = fake(0) − fake(−∞)     for a unit of q's mass where p has none  (invented)
    f'(∞) − f'(1)       = real(+∞) − real(0)     for a unit of p's mass that q misses     (missed)

Their sum is the supremum of D_f, reached if p and q do not overlap (Vajda 1972).

A generator's loss h(r) with a fixed ratio has the gradient of another f, the effective one with f_eff − u f_eff' = h,
that is f_eff(u) = −u ∫ h(u)/u² du. Then −dh/dr = u² f_eff''(u): a sample is moved toward larger u exactly where f_eff
is convex. −fake and −real decrease for every convex f, so that `matched` and `alternative` follow a divergence at every
u; f itself, the loss of `ratio`, decreases only up to its minimum.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from gantrain.errors import ConfigError
from gantrain.objectives import divergences
from gantrain.objectives.divergence import Divergence, Formula
from gantrain.objectives.divergences import CATALOGUE
from gantrain.objectives.objective import GENERATOR_OBJECTIVES, Objective

if TYPE_CHECKING:
    from torch import Tensor

FARTHEST = 1e6  # |r| up to which the minimum of f is searched for
QUADRATURE_NODES = 64
SAME = 1e-13  # relative difference of functions that float64 cannot tell apart


def costs(divergence: Divergence) -> tuple[float, float]:
    """Return the costs of a unit of invented mass and of a unit of missed mass; either may be ∞."""
    real, fake = divergence.real, divergence.fake
    return _at(fake, 0) - _at(fake, -math.inf), _at(real, math.inf) - _at(real, 0)


def supremum(divergence: Divergence) -> float:
    """Return the largest value of D_f(p‖q) − f(1), that of p and q without overlap."""
    return sum(costs(divergence))


def mode_behaviour(divergence: Divergence) -> Literal["mode-covering", "mode-seeking", "balanced"]:
    """Return `mode-covering` if missed mass costs more, `mode-seeking` if invented mass does, else `balanced`."""
    invented, missed = costs(divergence)
    if math.isclose(invented, missed, rel_tol=SAME):
        return "balanced"
    return "mode-covering" if missed > invented else "mode-seeking"


def value_range(formula: Formula) -> tuple[float, float]:
    """Return the limits of `real` or `fake`, which are nondecreasing, for r → −∞ and r → ∞."""
    return _at(formula, -math.inf), _at(formula, math.inf)


def _at(formula: Formula, r: float) -> float:
    """Return a formula's value at r in float64, or its limit at r = ±∞ by IEEE arithmetic.

    Where that is ∞ − ∞, as in 1/u − log(1 + 1/u), it is the value at the largest |r| that gives a number.
    """
    import torch

    path = [math.copysign(2.0**k, r) for k in range(64)] if math.isinf(r) else []
    values = formula(torch.tensor([*path, r], dtype=torch.float64))
    return float(values[~values.isnan()][-1])


# ---------------------------------------------------------------------------------------------------------------------
# Names of equal divergences: fake(r) − fake(0) determines f up to a term c (u − 1) and f(1).


def equivalent_names(divergence: Divergence) -> dict[str, float]:
    """Return other names of this divergence, up to a term c (u − 1): {name: k} if it is k times that divergence."""
    names = _known_names(_rise(divergence.fake), divergence)
    return {name: factor for name, factor in names.items() if name != divergence.name}


def is_symmetric(divergence: Divergence) -> bool:
    """Return whether D_f(p‖q) = D_f(q‖p): f(u) and u f(1/u) differ by a term c (u − 1)."""
    return _factor(_dual_rise(divergence), _rise(divergence.fake)) == 1


def dual_name(divergence: Divergence) -> str:
    """Return a name under which the catalogue knows this divergence with p and q exchanged."""
    if is_symmetric(divergence):
        return divergence.name
    names = (name for name, factor in _known_names(_dual_rise(divergence), divergence).items() if factor == 1)
    return next(names, f"dual_{divergence.name}")


def effective_names(divergence: Divergence, gen_objective: str) -> dict[str, float]:
    """Return known names of a loss's effective divergence: {name: k} if it is k times that one."""
    return _known_names(_rise(lambda r: -generator_loss(divergence, gen_objective, r)), divergence)


def _rise(fake: Formula) -> Tensor:
    """Return fake(r) − fake(0) on a grid of r, symmetric about 0."""
    import torch

    r = torch.linspace(-2, 2, 41, dtype=torch.float64)
    return fake(r) - fake(0 * r)


def _dual_rise(divergence: Divergence) -> Tensor:
    return _rise(lambda r: -divergence.real(-r))


def _known_names(rise: Tensor, own: Divergence) -> dict[str, float]:
    """Return the names of those divergences among `own`, the catalogue and the α-divergences that have this rise.

    {name: k} if it is k times that divergence's.
    """
    candidates = [own, *CATALOGUE.values()]
    # For (e^{αr} − 1)/α the ratio of the rise at r to the fall at −r is e^{αr}.
    if (ratio := float(-rise[-1] / rise[0])) > 0 and math.isfinite(ratio):
        candidates.append(divergences.alpha(round(math.log(ratio) / 2, 13) + 0.0))
    factors = {candidate.name: _factor(rise, _rise(candidate.fake)) for candidate in candidates}
    return {name: factor for name, factor in factors.items() if factor is not None}


def _factor(a: Tensor, b: Tensor) -> float | None:
    """Return the k > 0 with a = k b, or None."""
    factor = float(a[-1] / b[-1])
    is_same = bool(((a - factor * b).abs() <= SAME * a.abs().max()).all())
    return round(factor, 12) if factor > 0 and is_same else None


# ---------------------------------------------------------------------------------------------------------------------
# The generator's loss


def training_error(divergence: Divergence, gen_objective: str) -> str:
    """Return why `gen_objective` cannot train a generator on this divergence at all, or an empty string."""
    try:
        Objective(divergences.gan, divergence, gen_objective)
    except ConfigError as error:
        return str(error)
    return ""


def generator_loss(divergence: Divergence, gen_objective: str, r: Tensor) -> Tensor:
    """Return the generator's loss h(r) per sample. Shapes as `r`."""
    part, sign = GENERATOR_OBJECTIVES[gen_objective]
    value: Tensor = getattr(divergence, part)(r)
    return sign * value


def sample_weight(divergence: Divergence, gen_objective: str, r: Tensor) -> Tensor:
    """Return −dh/dr, the weight with which a sample is moved toward larger u, or smaller if negative. Shapes as `r`."""
    import torch

    r = r.detach().requires_grad_()
    # A constant formula has no gradient graph; adding 0·r gives it one.
    (slope,) = torch.autograd.grad((generator_loss(divergence, gen_objective, r) + 0 * r).sum(), r)
    return -slope


def fixed_point(divergence: Divergence, gen_objective: str) -> float:
    """Return the r of the loss's minimum, to which samples are moved from both sides; ±∞ if the loss is monotonic.

    The effective divergence is convex exactly below it.
    """
    part, _ = GENERATOR_OBJECTIVES[gen_objective]
    return _root(divergence.real) if part == "f" else math.inf


def _root(rising: Formula) -> float:
    """Return the zero of a nondecreasing formula; ±∞ if it has none."""
    first, last = value_range(rising)
    if first >= 0 or last <= 0:
        return -math.inf if last > 0 else math.inf
    low, high = -FARTHEST, FARTHEST
    while high - low > 1e-12 * max(1, abs(low)):
        middle = (low + high) / 2
        low, high = (middle, high) if _at(rising, middle) < 0 else (low, middle)
    return round(high, 9) + 0.0  # no −0


def effective_f(divergence: Divergence, gen_objective: str, r: Tensor) -> Tensor:
    """Return f_eff(e^r) = −e^r ∫₀^r (h(s) − h(0)) e^−s ds, with f_eff(1) = f_eff'(1) = 0, by Gauss–Legendre quadrature.

    Shapes as `r`, in float64.
    """
    import numpy as np
    import torch

    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(QUADRATURE_NODES))
    r = r.double()
    s = r[..., None] * (1 + nodes) / 2  # [..., nodes], from 0 to r
    h = generator_loss(divergence, gen_objective, s) - generator_loss(divergence, gen_objective, 0 * s)
    return -r.exp() * r / 2 * (h * (-s).exp() @ weights) + 0.0  # no −0
