"""An f-divergence as data: formulas of the log-ratio, where they are finite in float32, and what follows from them.

Beyond the interval on which a formula and its slope are finite it is extended by its tangents.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from gantrain.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

FormulaName = Literal["real", "fake", "f"]
Formula = Callable[["Tensor"], "Tensor"]

# Values and slopes up to 2^100 leave float32 (2^128) room to sum a batch and to extend along a tangent.
LARGEST = 2.0**100

FRACTION = r"\\frac\{([^{}]*)\}\{([^{}]*)\}"
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
SIGNS = {"½": r"\frac{1}{2}", "α": r"\alpha", "log": r"\log", " ": "\\ ", "−": "-"}


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


def _find_end(divergence: Divergence, part: FormulaName, factors: Sequence[Formula], sign: int) -> tuple[float, float]:
    """Return the last r of a fine geometric grid from 0 at which everything is finite, and the slope there."""
    import torch

    r = (sign * torch.logspace(-20, 20, 16001, base=2.0, dtype=torch.float32)).requires_grad_()
    values = getattr(divergence, part)(r)
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
        raise ConfigError(
            f"{divergence.name} leaves float32's range already beside r = 0: "
            f"f(u) = {format_formula(divergence.formula)}; choose a number closer to 1 in it"
        )
    return float(r[count - 1]), float(slopes[count - 1])


@dataclass(frozen=True)
class Divergence:
    """An f-divergence: elementwise formulas of the log-ratio r (any shape, any floating dtype).

    `formula` is f(u) and `reference` its source, for people; `f_of_u` is the same as code, of a float64 tensor u.
    `log_weight` is log fake'(r), from which `real` and `fake` take their derivatives; None leaves these to autograd.
    `ratio` is u as a function of the coordinate in which the formulas are written: e^r, except under a head whose
    output cannot be turned into r (`None`: no u at all).
    `invertible` says whether f' is, that is, whether a discriminator trained on it reveals a ratio.
    """

    name: str
    formula: str
    f_of_u: Formula
    real: Formula
    fake: Formula
    log_weight: Formula | None
    reference: str
    ratio: Formula | None = lambda r: r.exp()
    invertible: bool = True
    # Cache of `finite_range`.
    ranges: dict[FormulaName, Range] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if (log_weight := self.log_weight) is not None:
            object.__setattr__(self, "real", with_slope(self.real, lambda r: log_weight(r) - r))
            object.__setattr__(self, "fake", with_slope(self.fake, log_weight))

    def f(self, r: Tensor) -> Tensor:
        """f(u) = u real − fake, in float64, since the terms cancel, and rounded to the type of `r`. Shapes as `r`."""
        assert self.ratio is not None, f"{self.name} has no ratio here"
        from gantrain.objectives.slopes import widen

        wide = widen(r)
        return (self.ratio(wide) * self.real(wide) - self.fake(wide)).to(r.dtype)

    @cached_property
    def f_at_one(self) -> float:
        """f(1) = real(0) − fake(0): the value of the divergence and of its bound at p = q."""
        import torch

        zero = torch.zeros((), dtype=torch.float64)
        return float(self.real(zero) - self.fake(zero))

    @cached_property
    def order(self) -> float:
        """d log_weight / dr at r = 0: α for an α-divergence, 1 for KL, 0 for reverse KL, ½ for Jensen-Shannon."""
        import torch

        if self.log_weight is None:
            raise ValueError(f"{self.name} has no weights")
        with torch.inference_mode(False), torch.enable_grad():
            r = torch.zeros((), dtype=torch.float64, requires_grad=True)
            (slope,) = torch.autograd.grad(self.log_weight(r) + 0 * r, r)
        return float(slope)

    @cached_property
    def has_equal_weights(self) -> bool:
        """Whether all samples have the same weight: `log_weight` is constant, as that of reverse KL."""
        import torch

        if self.log_weight is None:
            return False
        with torch.inference_mode(False), torch.device("cpu"):
            log_weights = self.log_weight(torch.linspace(-8, 8, 17, dtype=torch.float64))
        return bool((log_weights == log_weights[0]).all())

    @cached_property
    def weight_exponents(self) -> tuple[float, float]:
        """(α, β) of weights u² f''(u), those of samples under `matched`, that grow like u^α as u → 0 and u^β as u → ∞.

        f(0) is finite for α > 0 and f'(∞) for β < 1. (∞, −∞) for a divergence without weights, as total variation.
        """
        import torch

        if self.log_weight is None:
            return math.inf, -math.inf
        # log w is linear there: for `arimoto` of order a beyond about 40/a.
        r = torch.tensor([-2e8, -1e8, 1e8, 2e8], dtype=torch.float64)
        low, _, high = (self.log_weight(r).expand(4).diff() / r.diff()).tolist()
        return round(low, 9), round(high, 9)

    def dual(self, name: str, formula: str, reference: str) -> Divergence:
        """The divergence with p and q exchanged: f(u) becomes u f(1/u)."""
        log_weight = self.log_weight
        return replace(
            self,
            name=name,
            formula=formula,
            reference=reference,
            f_of_u=lambda u: u * self.f_of_u(1 / u),
            real=lambda r: -self.fake(-r),
            fake=lambda r: -self.real(-r),
            log_weight=None if log_weight is None else lambda r: r + log_weight(-r),
        )

    def shifted(self, slope: float) -> Divergence:
        """The representative f(u) + slope·(u − 1): the same divergence, another `ratio` objective."""
        if not slope:
            return self
        return replace(
            self,
            formula=f"{self.formula} {f'{slope:+}'.removesuffix('.0')} (u - 1)",
            f_of_u=lambda u: self.f_of_u(u) + slope * (u - 1),
            real=lambda r: self.real(r) + slope,
            fake=lambda r: self.fake(r) + slope,
        )

    def finite_range(self, part: FormulaName) -> Range:
        """Return the interval of r on which `part` and its slope stay below 2^100 in float32.

        Raises ConfigError if there is none around r = 0.
        """
        import torch

        if part not in self.ranges:
            # f's factors too: rounded to 0 or ∞, they would cancel.
            factors = [each for each in (self.ratio, self.real, self.fake) if each is not None] if part == "f" else []
            # Independent of the modes and the device of the first caller, since the result is kept.
            with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
                low, low_slope = _find_end(self, part, factors, sign=-1)
                high, high_slope = _find_end(self, part, factors, sign=+1)
            self.ranges[part] = Range(low, high, low_slope, high_slope)
        return self.ranges[part]

    def evaluate(self, part: FormulaName, r: Tensor) -> Tensor:
        """Evaluate a formula elementwise, extended along its tangents beyond `finite_range` (C1)."""
        import torch

        formula, limits = getattr(self, part), self.finite_range(part)
        with torch.autocast(r.device.type, enabled=False):
            if limits.everywhere:
                return formula(r)
            above, below = (r - limits.high).relu(), (limits.low - r).relu()
            # Not clamp, whose gradient is 0 at the ends themselves.
            inside = torch.where(above > 0, limits.high, torch.where(below > 0, limits.low, r))
            return formula(inside) + limits.high_slope * above - limits.low_slope * below

    def outside_share(self, part: FormulaName, r: Tensor) -> Tensor:
        """Return the share of `r` at which `evaluate` follows a tangent: a scalar."""
        limits = self.finite_range(part)
        if limits.everywhere:
            return r.new_zeros(())
        return ((r < limits.low) | (r > limits.high)).mean(dtype=r.dtype)


def format_formula(formula: str) -> str:
    """Return a formula of the catalogue, written in LaTeX, as a line of text; unknown LaTeX is left as it is."""

    def bracket(term: str) -> str:
        return term if len(term) == 1 else f"({term})"

    for sign, latex in SIGNS.items():
        formula = formula.replace(latex, sign)
    formula = re.sub(rf"log ({FRACTION})", r"log(\1)", formula)
    formula = re.sub(FRACTION, lambda part: f"{bracket(part[1])} / {bracket(part[2])}", formula)
    formula = re.sub(r"\\sqrt\{(\w)\}", r"√\1", formula)
    return re.sub(r"\^(\d+)", lambda power: power[1].translate(SUPERSCRIPTS), formula)
