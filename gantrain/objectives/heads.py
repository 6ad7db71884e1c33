"""Heads: from a discriminator's raw output v to the coordinate in which its divergence is written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gantrain.errors import ConfigError
from gantrain.objectives.divergence import Divergence, Formula, softplus
from gantrain.objectives.divergences import le_cam, pearson, total_variation
from gantrain.ranges import Choice

if TYPE_CHECKING:
    from torch import Tensor

# The `ratio` head clips u to [1/RATIO_CLIP, RATIO_CLIP].
RATIO_CLIP = math.exp(10.0)


@dataclass(frozen=True)
class Head:
    """How a discriminator's raw output v is read.

    `coordinate` maps v to the variable of `divergence`'s formulas: the log-ratio r where `has_log_ratio`, else v
    itself. Both are positive where the discriminator holds a point for data. `invalid` marks the v that no positive
    finite ratio belongs to.
    """

    name: str
    divergence: Divergence
    coordinate: Formula
    has_log_ratio: bool = True
    invalid: Formula | None = None


def _jeffreys_log_ratio(v: Tensor) -> Tensor:
    """Solve 1 + r − e^−r = v for r; dr/dv = σ(r).

    The left side is concave and increases, so Newton's method never oversteps the root from its left, and after one
    step from its right it is there.
    """
    import torch

    with torch.no_grad():
        r = torch.where(v > 0, v - 1 + 1 / (1 + v.clamp(min=0)), -(1 - v).log1p())
        for _ in range(12):
            r = r - (1 + r - (-r).exp() - v) * r.sigmoid()
    return r - (1 + r - (-r).exp() - v) * r.sigmoid()


def _identity(v: Tensor) -> Tensor:
    return v


# Nowozin et al. 2016, tables 2 and 6: the output activation g_f, written as r(v) = log (f')⁻¹(g_f(v)).
NOWOZIN_LOG_RATIO: dict[str, Formula] = {
    "kl": lambda v: v - 1,
    "reverse_kl": _identity,
    "squared_hellinger": lambda v: 2 * v,
    "js": _identity,
    "gan": _identity,
    "neyman": lambda v: v / 2,
    "jeffreys": _jeffreys_log_ratio,
}
# The rows whose activation leaves the range of f': their formulas in v, with T = g_f(v) and fake = f*(T).
NOWOZIN_DIRECT: dict[str, Head] = {
    "pearson": Head(
        "nowozin",
        replace(pearson, real=_identity, fake=lambda v: v + v.square() / 4, log_weight=None, ratio=lambda v: 1 + v / 2),
        coordinate=_identity,
        has_log_ratio=False,
        invalid=lambda v: v <= -2,
    ),
    "total_variation": Head(
        "nowozin",
        replace(total_variation, real=lambda v: v.tanh() / 2, fake=lambda v: v.tanh() / 2, ratio=None),
        coordinate=_identity,
        has_log_ratio=False,
    ),
}


def least_squares_head(a: float, b: float, *, squash: bool = False) -> Head:
    """Return the head with which the bound of `le_cam` is the loss of least squares with the labels a and b.

    In w = (v − a)/(b − a) that bound is 2 − 4 E_p[(1 − w)²] − 4 E_q[w²], and its maximum is at w = p/(p + q) = σ(r).
    With `squash`, w is σ(v), so that v is r. Else no ratio belongs to the v whose w is not in (0, 1).
    """
    if squash:
        return Head("least_squares", le_cam, coordinate=_identity)

    def w(v: Tensor) -> Tensor:
        return (v - a) / (b - a)

    return Head(
        "least_squares",
        replace(
            le_cam,
            real=lambda w: 1 - 4 * (1 - w).square(),
            fake=lambda w: 4 * w.square() - 1,
            log_weight=None,
            ratio=lambda w: w / (1 - w),
        ),
        coordinate=w,
        has_log_ratio=False,
        invalid=lambda v: (w(v) <= 0) | (w(v) >= 1),
    )


def _log_ratio_head(disc_div: Divergence) -> Head:
    if disc_div.invertible:
        return Head("log_ratio", disc_div, coordinate=_identity)
    if disc_div.name in NOWOZIN_DIRECT:
        return NOWOZIN_DIRECT[disc_div.name]
    raise ConfigError(
        f"disc_div={disc_div.name} has no invertible f', so a discriminator trained on it gives no ratio and it has no "
        "head here; choose disc_div=total_variation, which has the bounded head ½ tanh(v), or another divergence"
    )


def _nowozin_head(disc_div: Divergence) -> Head:
    if disc_div.name in NOWOZIN_DIRECT:
        return NOWOZIN_DIRECT[disc_div.name]
    if disc_div.name in NOWOZIN_LOG_RATIO:
        return Head("nowozin", disc_div, coordinate=NOWOZIN_LOG_RATIO[disc_div.name])
    rows = ", ".join([*NOWOZIN_LOG_RATIO, *NOWOZIN_DIRECT])
    raise ConfigError(
        f"head=nowozin needs an output activation published by Nowozin et al. 2016, and disc_div={disc_div.name} has "
        f"none; choose head=log_ratio, or a disc_div among {rows}"
    )


def _ratio_head(disc_div: Divergence) -> Head:
    if not disc_div.invertible:
        raise ConfigError(
            f"head=ratio needs an invertible f', which disc_div={disc_div.name} does not have; choose head=log_ratio "
            "with disc_div=total_variation, or another disc_div"
        )
    return Head(
        "ratio",
        disc_div,
        coordinate=lambda v: softplus(v).clamp(1 / RATIO_CLIP, RATIO_CLIP).log(),
        invalid=lambda v: (softplus(v) < 1 / RATIO_CLIP) | (softplus(v) > RATIO_CLIP),
    )


HEADS: dict[str, Callable[[Divergence], Head]] = {
    "log_ratio": _log_ratio_head,
    "nowozin": _nowozin_head,
    "ratio": _ratio_head,
}


def get_head(name: str, disc_div: Divergence) -> Head:
    """The head called `name` for a discriminator trained on `disc_div`.

    `log_ratio`: v is r. `nowozin`: T = g_f(v) with the published activations. `ratio`: softplus(v), clipped to
    [e^−10, e^10], is u itself (b-GAN, Uehara et al. 2016). Raises ConfigError where the pair does not exist.
    """
    Choice(tuple(HEADS)).check("head", name)
    return HEADS[name](disc_div)
