r"""Comparison of a divergence's formulas with f(u) itself, and the values of D_f that follow from f(u) alone.

`Divergence.f_of_u` is written from a source of f. Everything else that a divergence states follows from it, with
u = e^r: real(r) = f'(u), fake(r) = f*(f'(u)) with f*(t) = sup_v (v t − f(v)), and e^log_weight(r) = u² f''(u), which
gives the slopes that train, real'(r) = u f''(u) and fake'(r) = u² f''(u). Derivatives of f are autograd's, the
supremum is a search.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gantrain.objectives.divergence import Divergence
from gantrain.theory import properties

if TYPE_CHECKING:
    from torch import Tensor

FARTHEST = 8.0  # |r| up to which formulas are compared; beyond, f(u) itself loses too many digits
NODES = 161
TOLERANCE = 1e-7  # relative to the scales below
LARGEST_LOG_RATIO = 300.0  # u² stays within float64


def find_formula_errors(divergence: Divergence) -> list[str]:
    """Return a sentence for each formula of the divergence that contradicts f(u), with the largest difference."""
    import torch

    limits = divergence.finite_range("f")
    nodes = torch.linspace(0, 1, NODES, dtype=torch.float64)  # 0 is among them, where total variation has its kink
    r = torch.cat([max(-FARTHEST, limits.low) * nodes, min(FARTHEST, limits.high) * nodes[1:]])
    u = r.exp()
    first, second = derivatives(divergence, u)
    conjugate = (u * first[:, None] - divergence.f_of_u(u)).amax(1)  # the maximiser at t = f'(u) is u, a node
    real_slope, fake_slope = (properties.sample_weight(divergence, name, r) for name in ("alternative", "matched"))
    laws = [  # the scale is the size of the terms that f's derivatives cancel
        ("real(r)", "f'(u)", divergence.real(r), first, first.abs() + 1),
        ("fake(r)", "f*(f'(u))", divergence.fake(r), conjugate, conjugate.abs() + 1),
        ("real'(r)", "u f''(u)", real_slope, u * second, u * second + 1e-4),
        ("fake'(r)", "u² f''(u)", fake_slope, u**2 * second, u**2 * second + 1e-4),
    ]
    errors = []
    for formula, law, found, expected, scale in laws:
        excess = ((found - expected).abs() - TOLERANCE * scale).nan_to_num(nan=math.inf)
        worst = int(excess.argmax())
        if float(excess[worst]) > 0:
            where = f"{found[worst]:.6g} where {law} is {expected[worst]:.6g}, at r = {r[worst]:.3g}"
            errors.append(f"{divergence.name} has {formula} = {where}")
    return errors


def derivatives(divergence: Divergence, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return f'(u) and f''(u), by autograd of `f_of_u`. Shapes as `u`, float64."""
    import torch

    with torch.enable_grad():
        u = u.detach().requires_grad_()
        (first,) = torch.autograd.grad(divergence.f_of_u(u).sum(), u, create_graph=True)
        (second,) = torch.autograd.grad((first + 0 * u).sum(), u)
    return first.detach(), second


def weighted_excess(divergence: Divergence, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return q · (f(u) − f(1) − f'(1) (u − 1)) from f(u) alone; its integral is D_f(p‖q) − f(1). Shapes as `log_p`.

    Where |log u| is larger than `LARGEST_LOG_RATIO`, u is taken to be that, which changes no integral of densities
    that overlap.
    """
    u = (log_p - log_q).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    one = u.new_ones(1)
    slope, _ = derivatives(divergence, one)
    return log_q.exp() * (divergence.f_of_u(u) - divergence.f_of_u(one) - slope * (u - 1))
