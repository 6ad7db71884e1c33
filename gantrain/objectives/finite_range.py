"""Formulas of the log-ratio in float32: their parts, where they are finite, and their linear extension beyond."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gantrain.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Formula = Callable[["Tensor"], "Tensor"]

# Values and slopes up to 2^100 leave float32 (2^128) room to sum a batch and to extend along a tangent.
LARGEST = 2.0**100


def softplus(r: Tensor) -> Tensor:
    """log(1 + e^r); the identity above 40, where float64 cannot tell them apart (torch's own choice is 20)."""
    from torch.nn import functional

    return functional.softplus(r, threshold=40)


def log_sigmoid(r: Tensor) -> Tensor:
    """−log(1 + e^−r)."""
    from torch.nn import functional

    return functional.logsigmoid(r)


def expm1_over(a: float, r: Tensor) -> Tensor:
    """(e^{a r} − 1) / a, and its limit r at a = 0."""
    # In float32 a·r is less exact below 1e-38; where |a| is this small, the limit is exact to 1e-20 |r|.
    return (a * r).expm1() / a if abs(a) > 1e-20 else r


def with_slope(formula: Formula, log_slope: Formula) -> Formula:
    """`formula` with the derivative e^{log_slope(r)}, which is exact in float32 too."""

    def evaluate(r: Tensor) -> Tensor:
        from gantrain.objectives.slopes import WithSlope

        return WithSlope.apply(r, formula, log_slope)

    return evaluate


@dataclass(frozen=True)
class Range:
    """The interval on which a formula is finite in float32, and its slopes at both ends (0 at an infinite end)."""

    low: float
    high: float
    low_slope: float
    high_slope: float

    @property
    def everywhere(self) -> bool:
        """Whether the formula is finite at every r."""
        return math.isinf(self.low) and math.isinf(self.high)


def find_finite_range(formula: Formula, factors: Sequence[Formula], name: str) -> Range:
    """Return the interval around r = 0 on which `formula`, its slope and `factors` stay below 2^100 in float32.

    Raises ConfigError, which speaks of the divergence `name`, if there is none.
    """
    import torch

    # Independent of the modes and the device of the first caller, since the result is kept.
    with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
        low, low_slope = _find_end(formula, factors, name, sign=-1)
        high, high_slope = _find_end(formula, factors, name, sign=+1)
    return Range(low, high, low_slope, high_slope)


def _find_end(formula: Formula, factors: Sequence[Formula], name: str, sign: int) -> tuple[float, float]:
    """Return the last r of a fine geometric grid from 0 at which everything is finite, and the slope there."""
    import torch

    r = (sign * torch.logspace(-20, 20, 16001, base=2.0, dtype=torch.float32)).requires_grad_()
    values = formula(r)
    # A constant formula has no gradient graph; adding 0·r gives it one.
    (slopes,) = torch.autograd.grad((values + 0 * r).sum(), r)
    finite = (values.abs() <= LARGEST) & (slopes.abs() <= LARGEST)
    for factor in factors:
        finite &= factor(r).abs() <= LARGEST
    r = r.detach()
    count = int(finite.int().cumprod(0).sum())
    if count == len(r):
        return sign * math.inf, 0.0
    if count == 0:
        raise ConfigError(f"{name} leaves float32's range already beside r = 0; choose a smaller number in it")
    return float(r[count - 1]), float(slopes[count - 1])


def extend_linearly(formula: Formula, limits: Range, r: Tensor) -> Tensor:
    """Evaluate `formula` elementwise inside `limits`, and its tangents at the ends beyond them (C1)."""
    import torch

    with torch.autocast(r.device.type, enabled=False):
        if limits.everywhere:
            return formula(r)
        above, below = (r - limits.high).relu(), (limits.low - r).relu()
        # Not clamp, whose gradient is 0 at the ends themselves.
        inside = torch.where(above > 0, limits.high, torch.where(below > 0, limits.low, r))
        return formula(inside) + limits.high_slope * above - limits.low_slope * below


def share_outside(limits: Range, r: Tensor) -> Tensor:
    """Return the share of `r` outside `limits`: a scalar."""
    if limits.everywhere:
        return r.new_zeros(())
    return ((r < limits.low) | (r > limits.high)).mean(dtype=r.dtype)
