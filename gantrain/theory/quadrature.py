r"""Divergences between densities that are known, to the precision of float64: no discriminator, no samples.

p and q are mixtures of Gaussians on the line, u = p/q and r = log u. Taking f(1) + f'(1) (u − 1) away from f changes
no divergence but for its value at p = q, and leaves an integrand that is nowhere negative:

    D_f(p‖q) − f(1) = ∫ q F(u) dx,   F(u) = f(u) − f(1) − f'(1) (u − 1) = u (real(r) − real(0)) − (fake(r) − fake(0))

0 means p = q. The integrand is formed from logarithms of its factors, along the formulas' exponentials where float64
would overflow, and integrated over panels that follow p, q and the Gaussians p^c q^{1−c}.

**Infinite or finite.** Where F grows like e^{c r}, q F decays like p^c q^{1−c}. The widest components rule the tails,
with variances a of p and b of q, so that the integral is finite just where c/a + (1 − c)/b > 0, for the c of r → ∞ and
the c of r → −∞. Pearson has c = 2 and 0, Neyman 1 and −1, KL 1 and 0.

**One Gaussian for a mixture** (Poole et al. 2016, figure 1). `fit` minimises D_f over q = N(μ, σ²), from many starts.

**What a loss descends.** A generator x = μ + σz that follows the loss E_q[h(r)] does not see that r moves with it:

    dθ/dt = −E_z[∂h(r(x))/∂x · ∂x/∂θ] = −∫ ∂q/∂θ h(r) dx,   θ = (μ, σ),   r always the exact ratio of the moment

by parts. `follow` integrates this and says how it ends. With h = −fake it is the gradient of D_f itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from gantrain.objectives.divergences import Divergence, Part

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Floats = NDArray[np.float64]

# Formulas stay below 2^100 up to the ends of `finite_range`, and so below 2^800 in float64 eight times as far.
REACH = 8
# Where panels begin and end, in standard deviations of the Gaussians that they follow.
PANEL_EDGES = (-13.0, -9.0, -6.5, -4.5, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.5, 6.5, 9.0, 13.0)
COARSE_NODES, FINE_NODES = 10, 21
PANEL_TOLERANCE = 1e-10  # of the integral of the absolute value; the error of the finer rule is far below
SMALLEST_SIZE = 1e-4  # of an integral whose integrand is taken for more than rounding errors
HALVINGS, MOST_PANELS = 40, 4096

MOST_GROUPS = 8  # of neighbouring components, whose runs give the starts
MINIMISED_STARTS = 8
HIGHEST = 1e200  # the divergence at a start; its slopes still fit into float64
# A flow has collapsed when σ is below this share of the narrowest component's, …
COLLAPSED = 1e-3
# … and diverged when the mean or σ is farther than this from the data, in standard deviations of the data.
DIVERGED = 100.0
FLOW_TIME = 1e5  # at a speed of at most 1, in standard deviations of the data and in log σ
REST_SPEED = 1e-8
BLOWN_UP = 1e100


class Mixture(NamedTuple):
    """K Gaussians on the line: p(x) = Σₖ wₖ N(x; μₖ, σₖ²), weights summing to one."""

    weights: tuple[float, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]

    @property
    def mean(self) -> float:
        """E[x]."""
        return math.fsum(w * m for w, m in zip(self.weights, self.means, strict=True))

    @property
    def std(self) -> float:
        """√Var[x]."""
        spread = (w * (s**2 + (m - self.mean) ** 2) for w, m, s in zip(*self, strict=True))
        return math.sqrt(math.fsum(spread))

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x), `[N]` → `[N]`."""
        import torch

        weights, means, stds = (torch.tensor(part, dtype=x.dtype) for part in self)  # [K]
        z = (x[:, None] - means) / stds
        return torch.logsumexp(weights.log() - stds.log() - z.square() / 2, 1) - math.log(2 * math.pi) / 2

    def mass(self, low: float, high: float) -> float:
        """P(low < x < high)."""

        def below(x: float, mean: float, std: float) -> float:
            return math.erfc((mean - x) / (std * math.sqrt(2))) / 2

        return math.fsum(w * (below(high, m, s) - below(low, m, s)) for w, m, s in zip(*self, strict=True))

    def rescaled(self, shift: float, scale: float) -> Mixture:
        """The density of (x − shift) / scale."""
        means = tuple((mean - shift) / scale for mean in self.means)
        return Mixture(self.weights, means, tuple(std / scale for std in self.stds))


def gaussian(mean: float, std: float) -> Mixture:
    """N(mean, std²)."""
    return Mixture((1.0,), (float(mean),), (float(std),))


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms between two Gaussians


def gaussian_power(c: float, p: Mixture, q: Mixture) -> float:
    """E_q[u^c] = ∫ p^c q^{1−c} dx for two Gaussians; inf where it diverges (Liese and Vajda 1987)."""
    (m1,), (s1,), (m2,), (s2,) = p.means, p.stds, q.means, q.stds
    precision = c / s1**2 + (1 - c) / s2**2
    if not is_finite(c, p, q):
        return math.inf
    log_scale = -c * math.log(s1) - (1 - c) * math.log(s2) - math.log(precision) / 2
    return _exp(log_scale - c * (1 - c) * (m1 - m2) ** 2 / (2 * s1**2 * s2**2 * precision))


def gaussian_kl(p: Mixture, q: Mixture) -> float:
    """KL(p‖q) for two Gaussians."""
    (m1,), (s1,), (m2,), (s2,) = p.means, p.stds, q.means, q.stds
    return math.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5


# D_f − f(1) between two Gaussians, for the divergences that have a closed form; inf where infinite.
GAUSSIAN_CLOSED_FORMS: dict[str, Callable[[Mixture, Mixture], float]] = {
    "kl": gaussian_kl,
    "reverse_kl": lambda p, q: gaussian_kl(q, p),
    "jeffreys": lambda p, q: gaussian_kl(p, q) + gaussian_kl(q, p),
    "squared_hellinger": lambda p, q: 2 - 2 * gaussian_power(0.5, p, q),
    "pearson": lambda p, q: gaussian_power(2.0, p, q) - 1,
    "neyman": lambda p, q: gaussian_power(-1.0, p, q) - 1,
}


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf


# ---------------------------------------------------------------------------------------------------------------------
# Formulas of r at any r


class End(NamedTuple):
    """Where float64 ends for a formula (±∞ where it does not), and the c of e^{c r} along which it goes on."""

    r: float
    exponent: float


@cache
def ends(divergence: Divergence, part: Part) -> tuple[End, End]:
    """The two ends of `real` or `fake`: towards r → −∞ and r → ∞."""
    limits = divergence.finite_range(part)
    return _end(divergence, part, REACH * limits.low), _end(divergence, part, REACH * limits.high)


def _end(divergence: Divergence, part: Part, r: float) -> End:
    import torch

    if math.isinf(r):
        return End(r, 0.0)
    half, whole = _change(divergence, part, torch.tensor([r / 2, r], dtype=torch.float64)).abs().log().tolist()
    return End(r, (whole - half) / (r / 2))


def exponents(divergence: Divergence, part: Part) -> tuple[float, float]:
    """The c of the growth e^{c r} of a formula, towards r → −∞ and r → ∞; for `f`, of F."""
    if part != "f":
        low, high = ends(divergence, part)
        return low.exponent, high.exponent
    real, fake = ends(divergence, "real"), ends(divergence, "fake")
    return min(1 + real[0].exponent, fake[0].exponent), max(1 + real[1].exponent, fake[1].exponent)


def _change(divergence: Divergence, part: Part, r: Tensor) -> Tensor:
    formula = getattr(divergence, part)
    return formula(r) - formula(r.new_zeros(()))


def log_change(divergence: Divergence, part: Part, r: Tensor) -> Tensor:
    """log |part(r) − part(0)| for `real` or `fake`, both of which increase; −∞ at r = 0."""
    low, high = ends(divergence, part)
    inside = r.clamp(low.r, high.r)
    beyond = r - inside
    slope = (beyond > 0) * high.exponent + (beyond < 0) * low.exponent
    return _change(divergence, part, inside).abs().log() + slope * beyond


def log_excess(divergence: Divergence, r: Tensor) -> Tensor:
    """log F(e^r); −∞ at r = 0."""
    on_data, on_samples = r + log_change(divergence, "real", r), log_change(divergence, "fake", r)
    larger = on_data.maximum(on_samples) + (-(-(on_data - on_samples).abs()).expm1()).log()
    # −∞ − (−∞) where both have rounded to 0
    return larger.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)


# ---------------------------------------------------------------------------------------------------------------------
# Quadrature


def is_finite(c: float, p: Mixture, q: Mixture) -> bool:
    """Whether ∫ p^c q^{1−c} dx converges; at the boundary itself it does not."""
    decays = c / max(p.stds) ** 2, (1 - c) / max(q.stds) ** 2
    return sum(decays) > -1e-9 * min(decays)


def is_finite_for(divergence: Divergence, part: Part, p: Mixture, q: Mixture) -> bool:
    """Whether E_q of a formula of the exact log-ratio is finite; for `f`, whether the divergence is."""
    return all(is_finite(c, p, q) for c in exponents(divergence, part))


def panels(divergence: Divergence, part: Part, p: Mixture, q: Mixture) -> Tensor:
    """Increasing edges of panels that follow p, q and the integrable p^c q^{1−c} of their components."""
    import torch

    edges = []
    for c in {0.0, 1.0, *exponents(divergence, part)}:
        for m1, s1 in zip(p.means, p.stds, strict=True):
            for m2, s2 in zip(q.means, q.stds, strict=True):
                precision = c / s1**2 + (1 - c) / s2**2
                if precision > 0:
                    centre = (c * m1 / s1**2 + (1 - c) * m2 / s2**2) / precision
                    edges += [centre + step / math.sqrt(precision) for step in PANEL_EDGES]
    followed = torch.tensor(edges, dtype=torch.float64).unique()
    if divergence.invertible:
        return followed
    return torch.cat([followed, crossings(p, q, followed)]).unique()


def crossings(p: Mixture, q: Mixture, edges: Tensor) -> Tensor:
    """Where p = q between edges, which is where an f whose derivative jumps at u = 1 has its kinks."""
    import torch
    from scipy.optimize import brentq

    def log_ratio(x: float) -> float:
        at = torch.tensor([x], dtype=torch.float64)
        return float(p.log_density(at) - q.log_density(at))

    above = p.log_density(edges) > q.log_density(edges)
    brackets = edges.unfold(0, 2, 1)[above[1:] != above[:-1]].tolist()
    return edges.new_tensor([brentq(log_ratio, *bracket, xtol=1e-14) for bracket in brackets])


@cache
def _rules() -> tuple[Tensor, Tensor, Tensor]:
    """Nodes on [−1, 1] of both Gauss–Legendre rules, and the weights of each, all `[nodes]`."""
    import numpy as np
    import torch

    (x1, w1), (x2, w2) = np.polynomial.legendre.leggauss(COARSE_NODES), np.polynomial.legendre.leggauss(FINE_NODES)
    nodes, coarse, fine = np.r_[x1, x2], np.r_[w1, 0 * x2], np.r_[0 * x1, w2]
    return torch.from_numpy(nodes), torch.from_numpy(coarse), torch.from_numpy(fine)


def integrated(integrand: Callable[[Tensor], Tensor], edges: Tensor) -> Tensor:
    """∫ of m functions, `[N]` → `[m, N]`, over panels, each halved until two Gauss–Legendre rules agree: `[m]`."""
    import torch

    nodes, coarse_weights, fine_weights = _rules()
    low, high = edges[:-1], edges[1:]
    total = size = torch.zeros((), dtype=torch.float64)
    for halving in range(HALVINGS + 1):
        middle, half = (low + high) / 2, (high - low) / 2
        values = integrand((middle[:, None] + half[:, None] * nodes).flatten()).unflatten(1, (len(low), -1))
        coarse, fine = (values @ coarse_weights) * half, (values @ fine_weights) * half  # [m, panels]
        scale = size + fine.abs().sum(1)
        open_ = ((fine - coarse).abs() > PANEL_TOLERANCE * scale.clamp(min=SMALLEST_SIZE)[:, None]).any(0)
        if halving == HALVINGS or open_.sum() > MOST_PANELS:
            return total + fine.sum(1)
        total, size = total + fine[:, ~open_].sum(1), size + fine[:, ~open_].abs().sum(1)
        if not open_.any():
            return total
        low, high = torch.cat([low[open_], middle[open_]]), torch.cat([middle[open_], high[open_]])
    raise AssertionError("the last halving returns")


def value(divergence: Divergence, p: Mixture, q: Mixture) -> float:
    """D_f(p‖q) − f(1) by quadrature: 0 where p = q, inf where it is infinite or beyond float64."""
    if not is_finite_for(divergence, "f", p, q):
        return math.inf

    def integrand(x: Tensor) -> Tensor:
        log_q = q.log_density(x)
        return (log_q + log_excess(divergence, p.log_density(x) - log_q)).exp()[None]

    found = float(integrated(integrand, panels(divergence, "f", p, q)))
    return found if math.isfinite(found) else math.inf


class Loss(NamedTuple):
    """h = sign · part of a divergence: what a generator's loss averages over its samples."""

    divergence: Divergence
    part: Part
    sign: int


def slope(loss: Loss, p: Mixture, mean: float, std: float) -> tuple[float, float]:
    """∂/∂mean and ∂/∂std of E_q[h(r)] for q = N(mean, std²), with r kept as it is; NaN where the loss is infinite."""
    import torch

    divergence, part, sign = loss
    q = gaussian(mean, std)
    if not is_finite_for(divergence, part, p, q):
        return math.nan, math.nan

    def integrand(x: Tensor) -> Tensor:
        log_p, log_q, z = p.log_density(x), q.log_density(x), (x - mean) / std
        change = _weighted_change(divergence, part, log_p, log_q)
        return sign * change * torch.stack([z, z.square() - 1]) / std  # times the slopes of log q

    found = integrated(integrand, panels(divergence, part, p, q))
    return float(found[0]), float(found[1])


def _weighted_change(divergence: Divergence, part: Part, log_p: Tensor, log_q: Tensor) -> Tensor:
    """q · (part(r) − part(0)): constants have no slope."""
    r = log_p - log_q
    if part != "f":
        return r.sign() * (log_q + log_change(divergence, part, r)).exp()
    slope_at_one = divergence.real(r.new_zeros(()))
    return (log_q + log_excess(divergence, r)).exp() + slope_at_one * (log_p.exp() - log_q.exp())


# ---------------------------------------------------------------------------------------------------------------------
# The best Gaussian


class Fit(NamedTuple):
    """A Gaussian and its D_f(p‖q) − f(1)."""

    mean: float
    std: float
    value: float


def fit(divergence: Divergence, p: Mixture) -> Fit:
    """The Gaussian q that minimises D_f(p‖q), the best of the minima reached from several starts.

    The starts match the moments of every run of neighbouring components, once with their own and once with the widest
    component's width; the best of them are followed by a trust-region Newton method. NaN for mean and standard
    deviation where float64 holds the divergence at no start.
    """
    shift, scale = p.mean, p.std
    unit = p.rescaled(shift, scale)
    tried = sorted((value(divergence, unit, gaussian(*start)), start) for start in set(_starts(unit)))
    found = [_minimised(divergence, unit, start) for height, start in tried[:MINIMISED_STARTS] if height < HIGHEST]
    if not found:
        return Fit(math.nan, math.nan, math.inf)
    best = min(found, key=lambda one: one.value)
    return Fit(shift + scale * best.mean, scale * best.std, best.value)


def _starts(p: Mixture) -> Iterator[tuple[float, float]]:
    """Mean and standard deviation of every run of neighbouring components, and that mean with the widest's width."""
    components = sorted(zip(p.means, p.stds, p.weights, strict=True))
    count, groups = len(components), min(len(components), MOST_GROUPS)
    cuts = [count * group // groups for group in range(groups + 1)]
    for first, last in combinations(cuts, 2):
        means, stds, weights = zip(*components[first:last], strict=True)
        run = Mixture(tuple(w / math.fsum(weights) for w in weights), means, stds)
        yield run.mean, run.std
        yield run.mean, max(p.stds)


def _minimised(divergence: Divergence, p: Mixture, start: tuple[float, float]) -> Fit:
    """The local minimum below `start`, in the coordinates mean and log std."""
    from scipy.optimize import minimize

    loss = Loss(divergence, "fake", -1)  # its slope is that of D_f

    # log1p, which keeps the minima, lets Newton's steps descend from astronomical values.
    def height(theta: Floats) -> float:
        return math.log1p(value(divergence, p, gaussian(theta[0], math.exp(theta[1]))))

    def slopes(theta: Floats) -> Floats:
        return log_slope(loss, p, theta) / math.exp(height(theta))

    found = minimize(
        height,
        (start[0], math.log(start[1])),
        jac=slopes,
        hess=lambda theta: curvature(slopes, theta),
        method="trust-exact",
        options={"gtol": 1e-9, "initial_trust_radius": 0.2, "max_trust_radius": 1.0, "maxiter": 60},
    )
    return Fit(float(found.x[0]), math.exp(found.x[1]), math.expm1(found.fun))


def log_slope(loss: Loss, p: Mixture, theta: Floats) -> Floats:
    """`slope` in the coordinates θ = (mean, log std): `[2]`."""
    import numpy as np

    mean, std = float(theta[0]), math.exp(theta[1])
    on_mean, on_std = slope(loss, p, mean, std)
    return np.array([on_mean, on_std * std])


def curvature(slopes: Callable[[Floats], Floats], theta: Floats, step: float = 1e-4) -> Floats:
    """Second derivatives, by central differences of the first: `[2, 2]`; 1 beside an infinite divergence."""
    import numpy as np

    rows = np.array([(slopes(theta + d) - slopes(theta - d)) / (2 * step) for d in step * np.eye(2)])
    return (rows + rows.T) / 2 if np.isfinite(rows).all() else np.eye(2)


# ---------------------------------------------------------------------------------------------------------------------
# Where a loss leads

# How a flow can end.
OUTCOMES = {
    "rests": "at a minimum of what its loss descends",
    "unstable": "where the slope is zero, on a saddle or a maximum, which any disturbance leaves",
    "stalls": "where it no longer moves, or hardly, though nothing holds it",
    "collapses": f"σ → 0: below {COLLAPSED:g} of the narrowest component's, or so narrow that the loss is infinite",
    "diverges": f"beyond {DIVERGED:g} standard deviations of the data, or so wide that the loss is infinite",
    "infinite": "does not begin: the loss is infinite at the start",
}


class Ending(NamedTuple):
    """How a flow ended, one of OUTCOMES, and the last Gaussian."""

    outcome: str
    mean: float
    std: float


def follow(loss: Loss, p: Mixture, start: tuple[float, float]) -> Ending:
    """Follow the generator x = μ + σz from `start` = (μ, σ) along a loss, frozen at each moment's exact ratio."""
    import numpy as np

    if not is_finite_for(loss.divergence, loss.part, p, gaussian(*start)):
        return Ending("infinite", *start)
    if outcome := out_of_bounds(p, *start):
        return Ending(outcome, *start)
    shift, scale = p.mean, p.std
    theta = np.array([(start[0] - shift) / scale, math.log(start[1] / scale)])
    outcome, theta = _flow(loss, p.rescaled(shift, scale), theta)
    return Ending(outcome, shift + scale * float(theta[0]), scale * math.exp(theta[1]))


def out_of_bounds(p: Mixture, mean: float, std: float) -> str:
    """`collapses` or `diverges` where a flow at N(mean, std²) has done so, else an empty string."""
    if std < COLLAPSED * min(p.stds):
        return "collapses"
    return "diverges" if max(abs(mean - p.mean), std) > DIVERGED * p.std else ""


def _flow(loss: Loss, p: Mixture, theta: Floats) -> tuple[str, Floats]:
    """How the flow from θ = (mean, log std) ends, and where, for data of mean 0 and standard deviation 1."""
    import numpy as np
    from scipy.integrate import solve_ivp

    @cache
    def velocity(mean: float, log_std: float) -> tuple[float, float]:
        """dθ/dt, from d(mean, std)/dt = −slope."""
        on_mean, on_std = slope(loss, p, mean, math.exp(log_std))
        return -on_mean, -on_std / math.exp(log_std)

    def speed(_: float, theta: Floats) -> float:
        found = math.hypot(*velocity(*theta))
        return found if found < BLOWN_UP else BLOWN_UP  # NaN, too

    # A time that slows down where the flow is fast: the path is the same.
    def direction(t: float, theta: Floats) -> Floats:
        return np.array(velocity(*theta)) / (1 + s) if (s := speed(t, theta)) < BLOWN_UP else np.zeros(2)

    def moving(t: float, theta: Floats) -> float:
        return speed(t, theta) - REST_SPEED

    def in_bounds(t: float, theta: Floats) -> float:
        lost = speed(t, theta) == BLOWN_UP or out_of_bounds(p, theta[0], math.exp(theta[1]))
        return -1.0 if lost else 1.0

    if moving(0, theta) < 0:
        return _settled(loss, p, theta)
    moving.terminal = in_bounds.terminal = True  # type: ignore[attr-defined]
    path = solve_ivp(direction, (0, FLOW_TIME), theta, method="LSODA", events=[moving, in_bounds], rtol=1e-7, atol=1e-9)
    last = path.y[:, -1]
    if path.t_events[1].size:
        return ("collapses" if math.exp(last[1]) < max(p.stds) else "diverges"), last
    return _settled(loss, p, last)


def _settled(loss: Loss, p: Mixture, theta: Floats) -> tuple[str, Floats]:
    """Whether and where a flow that has become slow comes to rest."""
    import numpy as np
    from scipy.optimize import root

    def slopes(theta: Floats) -> Floats:
        return log_slope(loss, p, theta)

    found = root(slopes, theta, jac=lambda theta: curvature(slopes, theta), tol=1e-12)
    near = bool(np.abs(found.x - theta).max() < 1e-3)
    bends = np.linalg.eigvalsh(curvature(slopes, found.x if near else theta))
    if not near or min(abs(bends)) < 1e-7:
        return "stalls", theta
    return ("rests" if min(bends) > 0 else "unstable"), found.x
