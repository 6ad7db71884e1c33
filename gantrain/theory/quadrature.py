r"""Divergences between mixtures of Gaussians on the line, by quadrature to the precision of float64.

With u = p/q and r = log u, subtracting f(1) + f'(1) (u − 1) from f changes D_f by the constant f(1) alone and makes the
integrand nonnegative:

    D_f(p‖q) − f(1) = ∫ q F(u) dx,   F(u) = f(u) − f(1) − f'(1) (u − 1) = u (real(r) − real(0)) − (fake(r) − fake(0))

The integrand is computed from the logarithms of its factors, and extrapolated exponentially in r where float64 would
overflow. The panels of integration follow p, q and the Gaussians p^c q^{1−c}.

**Infinite or finite.** If F grows like e^{c r}, then q F decays like p^c q^{1−c}. The widest components determine the
tails. With their variances a of p and b of q, the integral is finite exactly if c/a + (1 − c)/b > 0 for the c of r → ∞
and for the c of r → −∞. These are 2 and 0 for Pearson, 1 and −1 for Neyman, 1 and 0 for KL.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import compress, product
from typing import TYPE_CHECKING, NamedTuple

from gantrain.data.mixtures import Mixture, gaussian
from gantrain.objectives.divergence import Divergence, FormulaName

if TYPE_CHECKING:
    from torch import Tensor

# Formulas stay below 2^100 up to the ends of `finite_range`, and so below 2^800 in float64 eight times as far.
REACH = 8
# Edges of panels, in standard deviations of the Gaussians that they follow.
PANEL_EDGES = (-13.0, -9.0, -6.5, -4.5, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.5, 6.5, 9.0, 13.0)
CROSSING_STEPS = 8  # in a panel, between which p = q is looked for
COARSE_NODES, FINE_NODES = 10, 21
PANEL_TOLERANCE = 1e-10  # of the integral of the absolute value; the error of the finer rule is far below
SMALLEST_SIZE = 1e-4  # integrals of absolute values below it are computed to an absolute error
HALVINGS, MOST_PANELS = 40, 4096


class Loss(NamedTuple):
    """A generator's loss per sample, h(r) = sign · part(r) of a divergence."""

    divergence: Divergence
    part: FormulaName
    sign: int


def integrate_divergence(divergence: Divergence, p: Mixture, q: Mixture) -> float:
    """Return D_f(p‖q) − f(1): 0 for p = q, and inf if it is infinite or beyond float64."""
    if not is_finite(divergence, "f", p, q):
        return math.inf

    def integrand(x: Tensor) -> Tensor:
        log_q = q.log_density(x)
        return (log_q + log_excess(divergence, p.log_density(x) - log_q)).exp()[None]

    value = float(integrate(integrand, panel_edges(divergence, "f", p, q)))
    return value if math.isfinite(value) else math.inf


def loss_slopes(loss: Loss, p: Mixture, mean: float, std: float) -> tuple[float, float]:
    """Return ∂/∂mean and ∂/∂std of E_q[h(r)] for q = N(mean, std²) and a fixed function r(x) = log p(x)/q(x).

    Both are NaN if the loss is infinite.
    """
    import torch

    divergence, part, sign = loss
    q = gaussian(mean, std)
    if not is_finite(divergence, part, p, q):
        return math.nan, math.nan

    def integrand(x: Tensor) -> Tensor:
        log_p, log_q, z = p.log_density(x), q.log_density(x), (x - mean) / std
        change = _weighted_change(divergence, part, log_p, log_q)
        return sign * change * torch.stack([z, z.square() - 1]) / std  # times the slopes of log q

    on_mean, on_std = integrate(integrand, panel_edges(divergence, part, p, q)).tolist()
    return on_mean, on_std


def _weighted_change(divergence: Divergence, part: FormulaName, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return q · (part(r) − part(0)); a constant in the loss has no slope."""
    r = log_p - log_q
    if part != "f":
        return r.sign() * (log_q + log_change(divergence, part, r)).exp()
    slope_at_one = divergence.real(r.new_zeros(()))
    return (log_q + log_excess(divergence, r)).exp() + slope_at_one * (log_p.exp() - log_q.exp())


# ---------------------------------------------------------------------------------------------------------------------
# Formulas at any r


@cache
def growth_exponents(divergence: Divergence, part: FormulaName) -> tuple[float, float]:
    """Return the c of the growth e^{c r} of a formula, towards r → −∞ and r → ∞; for `f`, of F."""
    low, high = divergence.weight_exponents
    if part == "real":
        low, high = low - 1, high - 1
    return min(low, 0.0), max(high, 1.0 if part == "f" else 0.0)


def log_change(divergence: Divergence, part: FormulaName, r: Tensor) -> Tensor:
    """Return log |part(r) − part(0)| for `real` or `fake`, both of which increase; −∞ at r = 0."""
    import torch

    formula, limits = getattr(divergence, part), divergence.finite_range(part)
    low, high = growth_exponents(divergence, part)
    inside = r.clamp(REACH * limits.low, REACH * limits.high)
    beyond = r - inside
    change = formula(inside) - formula(r.new_zeros(()))
    # Of two numbers alone, torch.where would round the exponents to float32.
    return change.abs().log() + torch.where(beyond > 0, high * beyond, low * beyond)


def log_excess(divergence: Divergence, r: Tensor) -> Tensor:
    """Return log F(e^r); −∞ at r = 0."""
    on_data, on_samples = r + log_change(divergence, "real", r), log_change(divergence, "fake", r)
    larger = on_data.maximum(on_samples) + (-(-(on_data - on_samples).abs()).expm1()).log()
    # −∞ − (−∞) where both have rounded to 0
    return larger.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)


# ---------------------------------------------------------------------------------------------------------------------
# Quadrature


def is_integrable(c: float, p: Mixture, q: Mixture) -> bool:
    """Return whether ∫ p^c q^{1−c} dx converges; at the boundary itself it does not. In any dimension."""
    decays = c / max(p.stds) ** 2, (1 - c) / max(q.stds) ** 2
    return sum(decays) > -1e-9 * min(decays)


def is_finite(divergence: Divergence, part: FormulaName, p: Mixture, q: Mixture) -> bool:
    """Return whether E_q of a formula of the exact log-ratio is finite; for `f`, whether the divergence is."""
    return all(is_integrable(c, p, q) for c in growth_exponents(divergence, part))


def panel_edges(divergence: Divergence, part: FormulaName, p: Mixture, q: Mixture) -> Tensor:
    """Return increasing edges of panels that follow p, q and the integrable p^c q^{1−c} of their components."""
    import torch

    edges = []
    components = product(zip(p.line_means, p.stds, strict=True), zip(q.line_means, q.stds, strict=True))
    for ((m1, s1), (m2, s2)), c in product(components, {0.0, 1.0, *growth_exponents(divergence, part)}):
        precision = c / s1**2 + (1 - c) / s2**2
        if precision > 0:
            centre = (c * m1 / s1**2 + (1 - c) * m2 / s2**2) / precision
            edges += [centre + step / math.sqrt(precision) for step in PANEL_EDGES]
    smooth = torch.tensor(edges, dtype=torch.float64).unique()
    return smooth if divergence.invertible else torch.cat([smooth, find_crossings(p, q, smooth)]).unique()


def find_crossings(p: Mixture, q: Mixture, edges: Tensor) -> Tensor:
    """Return the points with p = q between the outer edges, where an f that has a kink at u = 1 has one in x."""
    import torch
    from scipy.optimize import brentq, minimize_scalar

    def log_density(x: float, mixture: Mixture) -> float:  # one number is much faster without tensors
        components = zip(mixture.weights, mixture.line_means, mixture.stds, strict=True)
        terms = [math.log(w / s) - ((x - m) / s) ** 2 / 2 for w, m, s in components]
        return max(terms) + math.log(math.fsum(math.exp(term - max(terms)) for term in terms))

    def log_ratio(x: float, sign: float = 1.0) -> float:
        return sign * (log_density(x, p) - log_density(x, q))

    steps = torch.arange(CROSSING_STEPS, dtype=edges.dtype) / CROSSING_STEPS
    x = torch.cat([(edges[:-1, None] + edges.diff()[:, None] * steps).flatten(), edges[-1:]])
    r = p.log_density(x) - q.log_density(x)
    brackets = x.unfold(0, 2, 1)[(r[1:] > 0) != (r[:-1] > 0)].tolist()
    # Where |r| has a minimum and r the same sign on both sides, two crossings may still lie between the points.
    sign = r[1:-1].sign()
    left, middle, right = sign * r[:-2], sign * r[1:-1], sign * r[2:]
    touching = (middle > 0) & (middle <= left) & (middle <= right)
    for (low, _, high), side in zip(x.unfold(0, 3, 1)[touching].tolist(), sign[touching].tolist(), strict=True):
        nearest = minimize_scalar(log_ratio, bounds=(low, high), args=(side,), method="bounded").x
        brackets += [(low, nearest), (nearest, high)]
    # At p = q itself, r is rounding noise and changes its sign with the arithmetic.
    is_bracket = (log_ratio(low) * log_ratio(high) <= 0 for low, high in brackets)
    return edges.new_tensor([brentq(log_ratio, *pair, xtol=1e-14) for pair in compress(brackets, is_bracket)])


@cache
def _quadrature_rules() -> tuple[Tensor, Tensor, Tensor]:
    """Return the nodes on [−1, 1] of both Gauss–Legendre rules, and the weights of each, all `[nodes]`."""
    import numpy as np
    import torch

    (x1, w1), (x2, w2) = np.polynomial.legendre.leggauss(COARSE_NODES), np.polynomial.legendre.leggauss(FINE_NODES)
    nodes, coarse, fine = np.r_[x1, x2], np.r_[w1, 0 * x2], np.r_[0 * x1, w2]
    return torch.from_numpy(nodes), torch.from_numpy(coarse), torch.from_numpy(fine)


def integrate(integrand: Callable[[Tensor], Tensor], edges: Tensor) -> Tensor:
    """Integrate m functions, `[N]` → `[m, N]`, over panels, each halved until two Gauss–Legendre rules agree: `[m]`."""
    import torch

    nodes, coarse_weights, fine_weights = _quadrature_rules()
    low, high = edges[:-1], edges[1:]
    total = size = torch.zeros((), dtype=torch.float64)  # of the panels that are done
    for halving in range(HALVINGS + 1):
        middle, half = (low + high) / 2, (high - low) / 2
        values = integrand((middle[:, None] + half[:, None] * nodes).flatten()).unflatten(1, (len(low), -1))
        coarse, fine = (values @ coarse_weights) * half, (values @ fine_weights) * half  # [m, panels]
        scale = (size + fine.abs().sum(1)).clamp(min=SMALLEST_SIZE)
        is_open = ((fine - coarse).abs() > PANEL_TOLERANCE * scale[:, None]).any(0)
        if halving == HALVINGS or is_open.sum() > MOST_PANELS:
            is_open[:] = False
        total, size = total + fine[:, ~is_open].sum(1), size + fine[:, ~is_open].abs().sum(1)
        if not is_open.any():
            break
        low, high = torch.cat([low[is_open], middle[is_open]]), torch.cat([middle[is_open], high[is_open]])
    return total
