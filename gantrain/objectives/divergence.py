"""An f-divergence as data: formulas of the log-ratio, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from gantrain.objectives.finite_range import (
    Formula,
    Range,
    extend_linearly,
    find_finite_range,
    share_outside,
    with_slope,
)

if TYPE_CHECKING:
    from torch import Tensor

Part = Literal["real", "fake", "f"]


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
    ranges: dict[Part, Range] = field(default_factory=dict, init=False, compare=False, repr=False)  # found so far

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

    def finite_range(self, part: Part) -> Range:
        """Return the interval of r on which `part` and its slope stay below 2^100 in float32.

        Raises ConfigError if there is none around r = 0.
        """
        if part not in self.ranges:
            # f's factors too: rounded to 0 or ∞, they would cancel.
            factors = [each for each in (self.ratio, self.real, self.fake) if each is not None] if part == "f" else []
            self.ranges[part] = find_finite_range(getattr(self, part), factors, self.name)
        return self.ranges[part]

    def evaluate(self, part: Part, r: Tensor) -> Tensor:
        """Evaluate a formula elementwise, extended along its tangents beyond `finite_range` (C1)."""
        return extend_linearly(getattr(self, part), self.finite_range(part), r)

    def outside_share(self, part: Part, r: Tensor) -> Tensor:
        """Return the share of `r` at which `evaluate` follows a tangent: a scalar."""
        return share_outside(self.finite_range(part), r)
