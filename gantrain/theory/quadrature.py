r"""Divergences between mixtures of Gaussians on the line, by quadrature to the precision of float64.

With u = p/q and r = log u, taking f(1) + f'(1) (u − 1) away from f changes no divergence but for its value at p = q and
leaves an integrand that is nowhere negative:

    D_f(p‖q) − f(1) = ∫ q F(u) dx,   F(u) = f(u) − f(1) − f'(1) (u − 1) = u (real(r) − real(0)) − (fake(r) − fake(0))

It is 0 for p = q. The integrand is computed from the logarithms of its factors, which continue along the formulas'
exponentials where float64 would overflow, over panels that follow p, q and the Gaussians p^c q^{1−c}.

**Infinite or finite.** Where F grows like e^{c r}, q F decays like p^c q^{1−c}. The widest components rule the tails,
with variances a of p and b of q, so that the integral is finite exactly if c/a + (1 − c)/b > 0, for the c of r → ∞ and
the c of r → −∞. Pearson has c = 2 and 0, Neyman 1 and −1, KL 1 and 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from gantrain.data.mixtures import Mixture, gaussian
from gantrain.objectives.divergences import Divergence, Part

if TYPE_CHECKING:
    from torch import Tensor

# Formulas stay below 2^100 up to the ends of `finite_range`, and so below 2^800 in float64 eight times as far.
REACH = 8
# Edges of panels, in standard deviations of the Gaussians that they follow.
PANEL_EDGES = (-13.0, -9.0, -6.5, -4.5, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.5, 6.5, 9.0, 13.0)
COARSE_NODES, FINE_NODES = 10, 21
PANEL_TOLERANCE = 1e-10  # of the integral of the absolute value; the error of the finer rule is far below
SMALLEST_SIZE = 1e-4  # of an integral whose integrand is taken for more than rounding errors
HALVINGS, MOST_PANELS = 40, 4096


class Loss(NamedTuple):
    """A generator's loss per sample, h(r) = sign · part(r) of a divergence."""

    divergence: Divergence
    part: Part
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


def _weighted_change(divergence: Divergence, part: Part, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return q · (part(r) − part(0)); a constant in the loss has no slope."""
    r = log_p - log_q
    if part != "f":
        return r.sign() * (log_q + log_change(divergence, part, r)).exp()
    slope_at_one = divergence.real(r.new_zeros(()))
    return (log_q + log_excess(divergence, r)).exp() + slope_at_one * (log_p.exp() - log_q.exp())


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms between two Gaussians


def gaussian_power(c: float, p: Mixture, q: Mixture) -> float:
    """Return E_q[u^c] = ∫ p^c q^{1−c} dx for two Gaussians, inf if it diverges (Liese and Vajda 1987)."""
    (m1,), (s1,), (m2,), (s2,) = p.line_means, p.stds, q.line_means, q.stds
    precision = c / s1**2 + (1 - c) / s2**2
    if not is_integrable(c, p, q):
        return math.inf
    log_scale = -c * math.log(s1) - (1 - c) * math.log(s2) - math.log(precision) / 2
    log_power = log_scale - c * (1 - c) * (m1 - m2) ** 2 / (2 * s1**2 * s2**2 * precision)
    return math.exp(log_power) if log_power < 709 else math.inf


def gaussian_kl(p: Mixture, q: Mixture) -> float:
    """Return KL(p‖q) for two Gaussians."""
    (m1,), (s1,), (m2,), (s2,) = p.line_means, p.stds, q.line_means, q.stds
    return math.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5


# D_f − f(1) between two Gaussians, for the divergences that have a closed form; inf if infinite.
GAUSSIAN_CLOSED_FORMS: dict[str, Callable[[Mixture, Mixture], float]] = {
    "kl": gaussian_kl,
    "reverse_kl": lambda p, q: gaussian_kl(q, p),
    "jeffreys": lambda p, q: gaussian_kl(p, q) + gaussian_kl(q, p),
    "squared_hellinger": lambda p, q: 2 - 2 * gaussian_power(0.5, p, q),
    "pearson": lambda p, q: gaussian_power(2.0, p, q) - 1,
    "neyman": lambda p, q: gaussian_power(-1.0, p, q) - 1,
}

# ---------------------------------------------------------------------------------------------------------------------
# Formulas at any r


class End(NamedTuple):
    """The r up to which float64 holds a formula (±∞ if everywhere), and the c of e^{c r} by which it continues."""

    r: float
    exponent: float


@cache
def formula_ends(divergence: Divergence, part: Part) -> tuple[End, End]:
    """Return the two ends of `real` or `fake`: towards r → −∞ and r → ∞."""
    limits = divergence.finite_range(part)
    return _formula_end(divergence, part, REACH * limits.low), _formula_end(divergence, part, REACH * limits.high)


def _formula_end(divergence: Divergence, part: Part, r: float) -> End:
    import torch

    if math.isinf(r):
        return End(r, 0.0)
    half, whole = _change(divergence, part, torch.tensor([r / 2, r], dtype=torch.float64)).abs().log().tolist()
    return End(r, (whole - half) / (r / 2))


def growth_exponents(divergence: Divergence, part: Part) -> tuple[float, float]:
    """Return the c of the growth e^{c r} of a formula, towards r → −∞ and r → ∞; for `f`, of F."""
    if part != "f":
        low, high = formula_ends(divergence, part)
        return low.exponent, high.exponent
    real, fake = formula_ends(divergence, "real"), formula_ends(divergence, "fake")
    return min(1 + real[0].exponent, fake[0].exponent), max(1 + real[1].exponent, fake[1].exponent)


def _change(divergence: Divergence, part: Part, r: Tensor) -> Tensor:
    formula = getattr(divergence, part)
    return formula(r) - formula(r.new_zeros(()))


def log_change(divergence: Divergence, part: Part, r: Tensor) -> Tensor:
    """Return log |part(r) − part(0)| for `real` or `fake`, both of which increase; −∞ at r = 0."""
    low, high = formula_ends(divergence, part)
    inside = r.clamp(low.r, high.r)
    beyond = r - inside
    slope = (beyond > 0) * high.exponent + (beyond < 0) * low.exponent
    return _change(divergence, part, inside).abs().log() + slope * beyond


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


def is_finite(divergence: Divergence, part: Part, p: Mixture, q: Mixture) -> bool:
    """Return whether E_q of a formula of the exact log-ratio is finite; for `f`, whether the divergence is."""
    return all(is_integrable(c, p, q) for c in growth_exponents(divergence, part))


def panel_edges(divergence: Divergence, part: Part, p: Mixture, q: Mixture) -> Tensor:
    """Return increasing edges of panels that follow p, q and the integrable p^c q^{1−c} of their components."""
    import torch

    edges = []
    for c in {0.0, 1.0, *growth_exponents(divergence, part)}:
        for m1, s1 in zip(p.line_means, p.stds, strict=True):
            for m2, s2 in zip(q.line_means, q.stds, strict=True):
                precision = c / s1**2 + (1 - c) / s2**2
                if precision > 0:
                    centre = (c * m1 / s1**2 + (1 - c) * m2 / s2**2) / precision
                    edges += [centre + step / math.sqrt(precision) for step in PANEL_EDGES]
    smooth = torch.tensor(edges, dtype=torch.float64).unique()
    if divergence.invertible:
        return smooth
    return torch.cat([smooth, find_crossings(p, q, smooth)]).unique()


def find_crossings(p: Mixture, q: Mixture, edges: Tensor) -> Tensor:
    """Return where p = q between edges: there an f whose derivative jumps at u = 1 has its kinks."""
    import torch
    from scipy.optimize import brentq

    def log_ratio(x: float) -> float:
        at = torch.tensor([x], dtype=torch.float64)
        return float(p.log_density(at) - q.log_density(at))

    above = p.log_density(edges) > q.log_density(edges)
    brackets = edges.unfold(0, 2, 1)[above[1:] != above[:-1]].tolist()
    return edges.new_tensor([brentq(log_ratio, *bracket, xtol=1e-14) for bracket in brackets])


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
    total = size = torch.zeros((), dtype=torch.float64)
    for halving in range(HALVINGS + 1):
        middle, half = (low + high) / 2, (high - low) / 2
        values = integrand((middle[:, None] + half[:, None] * nodes).flatten()).unflatten(1, (len(low), -1))
        coarse, fine = (values @ coarse_weights) * half, (values @ fine_weights) * half  # [m, panels]
        scale = size + fine.abs().sum(1)
        is_open = ((fine - coarse).abs() > PANEL_TOLERANCE * scale.clamp(min=SMALLEST_SIZE)[:, None]).any(0)
        if halving == HALVINGS or is_open.sum() > MOST_PANELS:
            return total + fine.sum(1)
        total, size = total + fine[:, ~is_open].sum(1), size + fine[:, ~is_open].abs().sum(1)
        if not is_open.any():
            return total
        low, high = torch.cat([low[is_open], middle[is_open]]), torch.cat([middle[is_open], high[is_open]])
    raise AssertionError("the last halving returns")
