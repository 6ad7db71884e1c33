r"""The best Gaussian for a mixture under a divergence, and the Gaussian to which a generator's loss leads.

**Best Gaussian** (Poole et al. 2016, figure 1). `fit_gaussian` minimises D_f over q = N(μ, σ²), from several starts.

**Gradient flow of a loss.** A generator x = μ + σz that minimises E_q[h(r)] treats r as a fixed function of x:

    dθ/dt = −E_z[∂h(r(x))/∂x · ∂x/∂θ] = −∫ ∂q/∂θ h(r) dx,   θ = (μ, σ),   r the exact log-ratio at every t,

by integration by parts. `follow_loss` integrates this flow and classifies its end. For h = −fake it is the gradient
flow of D_f itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gantrain.data.mixtures import Mixture, gaussian, mixture1d
from gantrain.errors import ConfigError
from gantrain.objectives.divergence import Divergence
from gantrain.theory.quadrature import Loss, integrate_divergence, is_finite, loss_slopes

Floats = NDArray[np.float64]

SMALLEST_STD = 1e-6  # in standard deviations of the mixture; below, float64 does not resolve the component
LARGEST = 1e100
MOST_GROUPS = 8  # of neighbouring components, whose runs give the starts
MINIMISED_STARTS = 8
AT_THE_DATA = 1e-6  # a divergence below it is that of p from p, to the precision of a fit
FLAT = 1e-5  # the largest slope at a minimum that is right to the digits that are printed
HIGHEST = 1e200  # the divergence at a start; its slopes still fit into float64
COLLAPSED = 1e-3  # in standard deviations of the narrowest component
DIVERGED = 100.0  # in standard deviations of the data
FLOW_TIME = 1e5  # at a speed of at most 1, in standard deviations of the data and in log σ
REST_SPEED = 1e-8
LARGEST_SPEED = 1e100


def build_mixture(weights: Sequence[float], means: Sequence[float], stds: Sequence[float]) -> Mixture:
    """Return a mixture on the line whose numbers float64 can tell apart. Raises ConfigError."""
    if not len(weights) == len(means) == len(stds) > 0:
        raise ConfigError(
            "weights, means and stds need one entry a component each; "
            f"found {len(weights)}, {len(means)} and {len(stds)}"
        )
    if not all(abs(mean) <= LARGEST for mean in means):
        raise ConfigError(f"means={format_list(means)} must be between −{LARGEST:g} and {LARGEST:g}")
    for key, values in {"weights": weights, "stds": stds}.items():
        if not all(1 / LARGEST <= value <= LARGEST for value in values):
            raise ConfigError(f"{key}={format_list(values)} must be above 0 and at most {LARGEST:g}")
    p = mixture1d(weights, means, stds)
    if abs(math.fsum(weights) - 1) > 1e-6:
        raise ConfigError(
            f"weights={format_list(weights)} sum to {math.fsum(weights):g} and must sum to one, "
            f"as in weights={format_list(p.weights)}"
        )
    if min(stds) < SMALLEST_STD * p.std:
        raise ConfigError(
            f"stds={format_list(stds)} must be at least {SMALLEST_STD:g} of the whole mixture's, {p.std:g}"
        )
    return p


def format_list(values: Sequence[float]) -> str:
    """Return numbers as they are typed on a command line."""
    return f"[{','.join(f'{value:.6g}' for value in values)}]"


class Fit(NamedTuple):
    """A Gaussian and its D_f(p‖q) − f(1)."""

    mean: float
    std: float
    value: float


def fit_gaussian(divergence: Divergence, p: Mixture) -> Fit:
    """Return the Gaussian q that minimises D_f(p‖q), the best of the local minima found from several starts.

    The starts have the mean of every run of neighbouring components, and its width or that of the widest component.
    From the best of them a trust-region Newton method descends, and a simplex of Nelder and Mead where f has a kink.
    Mean and standard deviation are NaN if float64 cannot hold the divergence at any start.
    """
    shift, scale = p.mean, p.std
    unit = p.rescaled(shift, scale)
    starts = sorted((integrate_divergence(divergence, unit, gaussian(*start)), start) for start in set(_starts(unit)))
    fits = [_minimise(divergence, unit, start) for height, start in starts[:MINIMISED_STARTS] if height < HIGHEST]
    if not fits:
        return Fit(math.nan, math.nan, math.inf)
    best = min(fits, key=lambda fit: fit.value)
    return Fit(shift + scale * best.mean, scale * best.std, best.value)


def _starts(p: Mixture) -> Iterator[tuple[float, float]]:
    components = sorted(zip(p.means, p.stds, p.weights, strict=True))
    count, groups = len(components), min(len(components), MOST_GROUPS)
    cuts = [count * group // groups for group in range(groups + 1)]
    for first, last in combinations(cuts, 2):
        means, stds, weights = zip(*components[first:last], strict=True)
        run = mixture1d(weights, [mean for (mean,) in means], stds)
        yield run.mean, run.std
        yield run.mean, max(p.stds)


def _minimise(divergence: Divergence, p: Mixture, start: tuple[float, float]) -> Fit:
    """Return the local minimum of log(1 + D_f − f(1)) below `start`, found in the coordinates mean and log std."""
    from scipy.optimize import minimize

    loss = Loss(divergence, "fake", -1)  # its slope is that of D_f

    # The logarithm keeps the minima, and Newton's steps descend from very large values.
    def height(theta: Floats) -> float:
        return math.log1p(integrate_divergence(divergence, p, gaussian(theta[0], math.exp(theta[1]))))

    def slopes(theta: Floats) -> Floats:
        return _log_slopes(loss, p, theta) / math.exp(height(theta))

    theta = np.array([start[0], math.log(start[1])])
    if divergence.invertible:
        options = {"gtol": 1e-9, "initial_trust_radius": 0.2, "max_trust_radius": 1.0, "maxiter": 60}
        curvature = partial(_curvature, slopes)
        found = minimize(height, theta, jac=slopes, hess=curvature, method="trust-exact", options=options)
    else:  # the curvature is infinite where two crossings of p and q merge
        simplex = theta + 0.2 * np.array([[0, 0], [1, 0], [0, 1]])
        accuracy = {"xatol": 1e-9, "fatol": 1e-15, "maxiter": 400}
        found = minimize(height, theta, method="Nelder-Mead", options={"initial_simplex": simplex, **accuracy})
    return Fit(float(found.x[0]), math.exp(found.x[1]), math.expm1(found.fun))


def largest_slope(divergence: Divergence, p: Mixture, fit: Fit) -> float:
    """Return the larger slope of log(1 + D_f − f(1)) at a fit, along μ/σ and log σ: about 0 at a minimum.

    It is 0 where q is p up to rounding, at which total variation has a kink, and NaN without a finite fit.
    """
    if fit.value < AT_THE_DATA:
        return 0.0
    on_mean, on_std = loss_slopes(Loss(divergence, "fake", -1), p, fit.mean, fit.std)
    return max(abs(on_mean), abs(on_std)) * fit.std / (1 + fit.value)


def _log_slopes(loss: Loss, p: Mixture, theta: Floats) -> Floats:
    """Return `loss_slopes` in the coordinates θ = (mean, log std): `[2]`."""
    mean, std = float(theta[0]), math.exp(theta[1])
    on_mean, on_std = loss_slopes(loss, p, mean, std)
    return np.array([on_mean, on_std * std])


def _curvature(slopes: Callable[[Floats], Floats], theta: Floats, step: float = 1e-4) -> Floats:
    """Return second derivatives, by central differences of the first: `[2, 2]`; the identity if one is not finite."""
    rows = np.array([(slopes(theta + d) - slopes(theta - d)) / (2 * step) for d in step * np.eye(2)])
    return (rows + rows.T) / 2 if np.isfinite(rows).all() else np.eye(2)


# ---------------------------------------------------------------------------------------------------------------------
# The flow of a loss

OUTCOMES = {
    "rests": "at a minimum of what its loss descends",
    "unstable": "at a saddle or a maximum, where the slope is zero and any disturbance grows",
    "stalls": "where it hardly moves, but not at a stationary point",
    "collapses": f"σ → 0: below {COLLAPSED:g} of the narrowest component's, or so narrow that the loss is infinite",
    "diverges": f"beyond {DIVERGED:g} standard deviations of the data, or so wide that the loss is infinite",
    "infinite": "does not begin: the loss is infinite at the start",
}


class Ending(NamedTuple):
    """The end of a flow, one of OUTCOMES, and the last Gaussian."""

    outcome: str
    mean: float
    std: float


def follow_loss(loss: Loss, p: Mixture, start: tuple[float, float]) -> Ending:
    """Follow the generator x = μ + σz from `start` = (μ, σ) along a loss, with the exact log-ratio at every point."""
    if not is_finite(loss.divergence, loss.part, p, gaussian(*start)):
        return Ending("infinite", *start)
    if outcome := early_outcome(p, *start):
        return Ending(outcome, *start)
    shift, scale = p.mean, p.std
    theta = np.array([(start[0] - shift) / scale, math.log(start[1] / scale)])
    outcome, theta = _integrate_flow(loss, p.rescaled(shift, scale), theta)
    return Ending(outcome, shift + scale * float(theta[0]), scale * math.exp(theta[1]))


def early_outcome(p: Mixture, mean: float, std: float) -> str:
    """Return `collapses` or `diverges` if N(mean, std²) has done so, which ends a flow, else an empty string."""
    if std < COLLAPSED * min(p.stds):
        return "collapses"
    return "diverges" if max(abs(mean - p.mean), std) > DIVERGED * p.std else ""


def check_start(p: Mixture, start: Sequence[float]) -> None:
    """Raise ConfigError for a start that is no Gaussian, or at which a flow would already have ended."""
    if len(start) != 2 or not all(map(math.isfinite, start)) or start[1] <= 0:
        raise ConfigError(
            f"start={format_list(start)} must be two numbers, a finite mean and a standard deviation above 0"
        )
    if outcome := early_outcome(p, *start):
        raise ConfigError(
            f"start={format_list(start)} is where a path has already ended: it {outcome}, {OUTCOMES[outcome]}"
        )


def _integrate_flow(loss: Loss, p: Mixture, theta: Floats) -> tuple[str, Floats]:
    """Return the outcome of the flow from θ = (mean, log std), and its end, for data of mean 0 and variance 1."""
    from scipy.integrate import solve_ivp

    @cache
    def velocity(mean: float, log_std: float) -> tuple[float, float]:
        """dθ/dt, from d(mean, std)/dt = −slope."""
        on_mean, on_std = loss_slopes(loss, p, mean, math.exp(log_std))
        return -on_mean, -on_std / math.exp(log_std)

    def speed(theta: Floats) -> float:
        norm = math.hypot(*velocity(*theta))
        return norm if norm < LARGEST_SPEED else LARGEST_SPEED  # also for NaN

    # Time is rescaled so that the speed is at most 1, which does not change the path.
    def direction(t: float, theta: Floats) -> Floats:
        return np.array(velocity(*theta)) / (1 + s) if (s := speed(theta)) < LARGEST_SPEED else np.zeros(2)

    def moving(t: float, theta: Floats) -> float:
        return speed(theta) - REST_SPEED

    def in_bounds(t: float, theta: Floats) -> float:
        has_left = speed(theta) == LARGEST_SPEED or early_outcome(p, theta[0], math.exp(theta[1]))
        return -1.0 if has_left else 1.0

    if moving(0, theta) < 0:
        return _classify_rest(loss, p, theta)
    moving.terminal = in_bounds.terminal = True  # type: ignore[attr-defined]
    path = solve_ivp(direction, (0, FLOW_TIME), theta, method="LSODA", events=[moving, in_bounds], rtol=1e-7, atol=1e-9)
    last = path.y[:, -1]
    if path.t_events[1].size:
        return ("collapses" if math.exp(last[1]) < max(p.stds) else "diverges"), last
    return _classify_rest(loss, p, last)


def _classify_rest(loss: Loss, p: Mixture, theta: Floats) -> tuple[str, Floats]:
    """Return the kind of the stationary point near θ, where a flow has become slow, and the point."""
    from scipy.optimize import root

    slopes = partial(_log_slopes, loss, p)
    found = root(slopes, theta, tol=1e-12)
    is_near = bool(np.abs(found.x - theta).max() < 1e-3)
    curvatures = np.linalg.eigvalsh(_curvature(slopes, found.x if is_near else theta))
    if not is_near or min(abs(curvatures)) < 1e-7:
        return "stalls", theta
    return ("rests" if min(curvatures) > 0 else "unstable"), found.x
