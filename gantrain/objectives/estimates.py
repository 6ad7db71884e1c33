r"""What a discriminator's log-ratio says about p and q: bounds and estimates with their errors.

Every function takes r on N data and on M samples that D was not trained on, in float64. For any r,

    E_p[real(r)] − E_q[fake(r)] − f(1)  ≤  D_f(p‖q) − f(1)                                `bound`

With F(u) = f(u) − f(1) − f'(1)(u − 1) ≥ 0 and the recalibrated ratio û = e^{a r + b},

    E_q[F(û); û ≤ 1] + E_p[F(û)/û; û > 1]                                                 `estimate`

is a plug-in, no bound. Its first term is what q invents, its second what q misses of p. By Fenchel's inequality at any
point, the part of the divergence in a region A is at least

    E_p[F'(û); A] − E_q[û F'(û) − F(û); A]                                `missed_bound`, `invented_bound`

Recalibration (Platt 1999): a and b are fitted by logistic regression on one half of the data and samples and applied to
the other, in turn, and the two results are averaged. No draw serves both purposes, so bounds remain bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

from gantrain.inference import Value, average, average_halves, bernstein_deviation, fit_platt, pareto_k
from gantrain.objectives.divergence import Divergence, Formula

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 100.0  # |r| is limited to it before and after recalibration, so that squares of e^{2r} are finite
LEVEL = 0.05  # largest probability that any lower limit of a run lies above its divergence
HALVES = ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2)))  # fitted on, applied to


class Pair(NamedTuple):
    """Log-ratios on data [N] and on samples [M]."""

    real: Tensor
    fake: Tensor

    def take(self, part: slice) -> Pair:
        """Return a part of both."""
        return Pair(self.real[part], self.fake[part])

    def limit(self, largest: float) -> Pair:
        """Return them limited to ±`largest`."""
        return Pair(self.real.clamp(-largest, largest), self.fake.clamp(-largest, largest))


class Tails(NamedTuple):
    """Pareto k of the weights e^−r on data and e^r on samples."""

    p: float = math.nan
    q: float = math.nan


# ---------------------------------------------------------------------------------------------------------------------
# All numbers of a report


def measure(
    r: Pair, known: Mapping[str, Divergence], parts: Collection[str] = (), smoothing: float = 0.0
) -> dict[str, float]:
    """Return the numbers of a report by name: averages, each with its standard error as `…_error`, and facts about r.

    `known` are the divergences, of which `parts` are split into what is missed and what is invented; `smoothing` is the
    share of the data that counted as samples when D was trained. `recalibrated_bound/…` is NaN if a half is separated.
    """
    facts = {}
    if smoothing:
        beyond = [float((side >= math.log(1 / smoothing - 1)).double().mean()) for side in r]
        facts["ratio/beyond_smoothing_share"] = sum(beyond) / 2
        # N draws do not tell ratios above N from infinite ones.
        r = Pair(*(remove_smoothing(side, smoothing).clamp(max=math.log(len(r.fake))) for side in r))
    base = r.limit(LARGEST)
    fit = recalibrate(base)
    tails, base_tails, fitted_tails = (Tails(pareto_k(-p), pareto_k(q)) for p, q in (r, base, fit.crossed))
    values = {"ratio/slope": fit.slope, **shifted_bounds(base, base_tails), **masses(fit.crossed, fitted_tails)}
    for name, d in known.items():
        values[f"bound/{name}"] = bound(d, r, tails)
        values[f"recalibrated_bound/{name}"] = recalibrated_bound(d, base, fit, (base_tails, fitted_tails))
        plug_in = prepare_estimate(d, fit, fitted_tails)
        values[f"estimate/{name}"] = plug_in(1, 1)
        if name in parts:
            values |= {f"missed/{name}": plug_in(1, 0), f"invented/{name}": plug_in(0, 1)}
            bounds = bound_parts(d, fit.crossed, fitted_tails)
            values |= {f"missed_bound/{name}": bounds[0], f"invented_bound/{name}": bounds[1]}
    facts |= calibration(r) | {"ratio/pareto_k_p": tails.p, "ratio/pareto_k_q": tails.q}
    facts["ratio/separated_share"] = fit.separated_share
    for name, value in values.items():
        facts |= {name: value.mean, f"{name}_error": value.error}
    return facts


def calibration(r: Pair) -> dict[str, float]:
    """Is r a log-ratio? E_q[e^r] and E_p[e^−r] are 1 for an exact one on a common support.

    `ratio/effective_sample_size` is (Σw)²/(N Σw²) for w = e^r on samples: the share of them that carries the weight.
    `ratio/largest` is the largest |r|.
    """
    effective = 2 * r.fake.logsumexp(0) - (2 * r.fake).logsumexp(0) - math.log(len(r.fake))
    return {
        "ratio/calibration_q": float(r.fake.exp().mean()),
        "ratio/calibration_p": float((-r.real).exp().mean()),
        "ratio/effective_sample_size": float(effective.exp()),
        "ratio/largest": float(max(r.real.abs().max(), r.fake.abs().max())),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Bounds and estimates


def bound(divergence: Divergence, r: Pair, tails: Tails = Tails()) -> Value:  # noqa: B008
    """E_p[real(r)] − E_q[fake(r)] − f(1): at most D_f(p‖q) − f(1) in expectation, for any function r."""
    return subtract_terms(divergence, Pair(divergence.real(r.real), divergence.fake(r.fake)), tails)


def subtract_terms(divergence: Divergence, terms: Pair, tails: Tails) -> Value:
    """Return the bound whose terms real(r) and fake(r) are given."""
    alpha, beta = divergence.weight_exponents
    on_data = average(terms.real - divergence.f_at_one, tails.p, 2 - 2 * alpha)
    return on_data.minus(average(terms.fake, tails.q, 2 * beta))


def recalibrated_bound(divergence: Divergence, r: Pair, fit: Recalibration, tails: tuple[Tails, Tails]) -> Value:
    """Return the mean of the bounds of both halves, by r or by a·r + b, whichever has the larger one on the other half.

    `tails` are those of r and of a·r + b. NaN if a half is separated.
    """
    if fit.separated_share:
        return Value(math.nan, math.nan)
    raw, own, crossed = (Pair(divergence.real(p), divergence.fake(q)) for p, q in (r, fit.own, fit.crossed))
    halves = []
    for fitted, applied in HALVES:
        reached = [float(terms.real[fitted].mean() - terms.fake[fitted].mean()) for terms in (raw, own)]
        is_better = not reached[0] >= reached[1]
        halves.append(subtract_terms(divergence, (crossed if is_better else raw).take(applied), tails[is_better]))
    return average_halves(*halves)


def prepare_estimate(divergence: Divergence, fit: Recalibration, tails: Tails) -> Callable[[int, int], Value]:
    """Return m E_p[F(û)/û; û > 1] + i E_q[F(û); û ≤ 1] as a function of m and i: what q misses, and what it invents.

    Both are 1 in the plug-in estimate. The error includes those of a and b, which are fitted to the same draws.
    """
    import torch

    (alpha, beta), (slope, conjugate) = divergence.weight_exponents, centre(divergence)
    above, below = fit.crossed.real.clamp(min=0), fit.crossed.fake.clamp(max=0)  # at r = 0 all functions are 0
    slopes = (-above).exp() * conjugate(above), below.exp() * slope(below)  # d(F/û)/dr = (û F' − F)/û and dF/dr = û F'
    missed, invented = (slope(above) - slopes[0]).clamp(min=0), (slopes[1] - conjugate(below)).clamp(min=0)
    gradients = [torch.stack([(each * side).mean(), each.mean()]) for each, side in zip(slopes, fit.r, strict=True)]
    # Variances: E_p[F²/u²] = E_q[F²/u] and E_q[F²] = E_p[F²/u].
    powers = 2 * beta - 1 if beta > 1 else 0.0, 1 - 2 * alpha if alpha < 0 else 0.0

    def combine(m: int, i: int) -> Value:
        gradient = m * gradients[0] + i * gradients[1]
        on_data = average(m * missed + gradient @ fit.influence.real, tails.q, m * powers[0])
        on_samples = average(i * invented + gradient @ fit.influence.fake, tails.p, i * powers[1])
        return on_data.plus(on_samples)._replace(mean=float(m * missed.mean() + i * invented.mean()))

    return combine


def bound_parts(divergence: Divergence, r: Pair, tails: Tails) -> tuple[Value, Value]:
    """Return the lower bounds on the same two parts of the divergence; their sum is the bound by r."""
    alpha, beta = divergence.weight_exponents
    slope, conjugate = centre(divergence)
    above, below = (Pair(*(side.clamp(low, high) for side in r)) for low, high in ((0, None), (None, 0)))
    missed = average(slope(above.real)).minus(average(conjugate(above.fake), tails.q, 2 * beta))
    invented = average(slope(below.real), tails.p, 2 - 2 * alpha).minus(average(conjugate(below.fake)))
    return missed, invented


def centre(divergence: Divergence) -> tuple[Formula, Formula]:
    """Return F'(u) and u F'(u) − F(u) as functions of r, for F(u) = f(u) − f(1) − f'(1)(u − 1)."""
    import torch

    real, fake = (
        float(formula(torch.zeros((), dtype=torch.float64))) for formula in (divergence.real, divergence.fake)
    )
    return lambda r: divergence.real(r) - real, lambda r: divergence.fake(r) - fake


def masses(r: Pair, tails: Tails) -> dict[str, Value]:
    """Return 1 − E_q[e^r] and 1 − E_p[e^−r], the missed and the invented mass if r is the log-ratio."""
    missed, invented = average(1 - r.fake.exp(), tails.q, 2), average(1 - (-r.real).exp(), tails.p, 2)
    return {"missed/mass": missed, "invented/mass": invented}


def shifted_bounds(r: Pair, tails: Tails) -> dict[str, Value]:
    """Return the bounds with the best constant added to f', for KL, for Pearson's χ² and, by exchange, for their duals.

    For KL this is E_p[r] − log E_q[e^r] (Donsker and Varadhan 1983), with the constant fitted on the other half. For
    Pearson it is E_p[T] − E_q[T] − Var_q(T)/4, whose unbiased estimate needs no fit.
    """
    values, exchanged = {}, Pair(-r.fake, -r.real)
    for pair, k, kl, pearson in ((r, tails.q, "kl", "pearson"), (exchanged, tails.p, "reverse_kl", "neyman")):
        halves = []
        for fitted, applied in HALVES:
            constant = -pair.fake[fitted].exp().mean().log()
            part = Pair(*(side + constant for side in pair.take(applied)))
            halves.append(average(1 + part.real).minus(average(part.fake.exp(), k, 2)))
        values[f"shifted_bound/{kl}"] = average_halves(*halves)
        on_samples = 2 * pair.fake.expm1()
        square = (on_samples - on_samples.mean()).square() * len(on_samples) / max(len(on_samples) - 1, 1)
        on_data = average(2 * pair.real.expm1())
        values[f"shifted_bound/{pearson}"] = on_data.minus(average(on_samples + square / 4, k, 4))
    return values


def confidence_limits(r: Pair, known: Mapping[str, Divergence], report: int) -> dict[str, float]:
    """Return `lower_limit/…` of each bounded divergence, for the `report`-th report of a run, from 1.

    Empirical Bernstein limits of the bound by r within ±log N, with an error probability of 6·LEVEL/(π² report²): with
    probability 1 − LEVEL a divergence's limits of all reports hold, if nothing was chosen by the same draws.
    """
    import torch

    count = min(len(r.real), len(r.fake))
    if count < 2:
        return {}
    ends, limited = torch.tensor([-math.log(count), math.log(count)], dtype=r.real.dtype), r.limit(math.log(count))
    level, limits = LEVEL * 6 / (math.pi * report) ** 2, {}
    for name, divergence in known.items():
        alpha, beta = divergence.weight_exponents
        if alpha > 0 and beta < 1:
            found = bound(divergence, limited).mean
            for formula, side in ((divergence.real, limited.real), (divergence.fake, limited.fake)):
                found -= bernstein_deviation(formula(side), float(formula(ends).diff()), level / 2)
            limits[f"lower_limit/{name}"] = found
    return limits


# ---------------------------------------------------------------------------------------------------------------------
# Recalibration


class Recalibration(NamedTuple):
    """r; a·r + b by the fit on the other half and on their own; the draws' influence on a and b, [2, N] and [2, M]."""

    r: Pair
    crossed: Pair
    own: Pair
    influence: Pair
    slope: Value
    separated_share: float


def remove_smoothing(r: Tensor, smoothing: float) -> Tensor:
    """Return log p/q for r = log((1 − s)p / (q + s p)), which D learns where a share s of the data counts as samples.

    It is infinite for r above log((1 − s)/s), the supremum.
    """
    import torch

    if not smoothing:
        return r
    share = 1 - smoothing - smoothing * r.exp()
    return torch.where(share > 0, r - share.log(), math.inf)


def recalibrate(r: Pair) -> Recalibration:
    """Fit a·r + b on each half, and apply it to both.

    If a half is separated nothing is changed: its data and samples do not overlap in r, or it is a single value.
    """
    crossed, own = Pair(r.real.clone(), r.fake.clone()), Pair(r.real.clone(), r.fake.clone())
    influence = Pair(*(side.new_zeros(2, len(side)) for side in r))
    parts, slopes = [r.take(fitted) for fitted, _ in HALVES], []
    separated = [min(map(len, part)) < 2 or bool(part.real.min() > part.fake.max()) for part in parts]
    if any(separated):
        return Recalibration(r, crossed, own, influence, Value(math.nan, math.nan), sum(separated) / 2)
    for part, (fitted, applied) in zip(parts, HALVES, strict=True):
        line = fit_platt(*part)
        slopes.append(line.slope)
        for index, side in enumerate(r):
            influence[index][:, fitted] = line.influence[index] * len(part[index])
            for target, place in ((own, fitted), (crossed, applied)):
                target[index][place] = (line.a * side[place] + line.b).clamp(-LARGEST, LARGEST)
    return Recalibration(r, crossed, own, influence, average_halves(*slopes), 0.0)
