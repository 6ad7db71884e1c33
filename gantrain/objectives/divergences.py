r"""The catalogue of f-divergences, each written as two formulas of the log-ratio.

`p` is the data's density, `q` the generator's, `u = p/q` their ratio and `r = log u`. For convex f,

    D_f(p‖q) = E_q[f(u)] ≥ E_p[T] − E_q[f*(T)],   tight at T = f'(u)      (Nguyen, Wainwright and Jordan 2010)

A discriminator that outputs r gives T = f'(e^r), and f*(T) = e^r f'(e^r) − f(e^r), so no conjugate has to be inverted:

    real(r) = f'(e^r)              averaged over data
    fake(r) = f*(f'(e^r))          averaged over samples
    bound   = E_p[real(r)] − E_q[fake(r)]
    f(e^r)  = e^r real(r) − fake(r)

For every entry `fake'(r) = e^r real'(r)`, `fake(0) = real(0) − f(1)`, and the dual (p and q exchanged) is
`real(r) → −fake(−r)`, `fake(r) → −real(−r)`. A *head* says how a discriminator's raw output v becomes r.

Names are known without importing torch; formulas import it when they are called.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Literal

from gantrain.errors import ConfigError, one_of

if TYPE_CHECKING:
    from torch import Tensor

Formula = Callable[["Tensor"], "Tensor"]
Part = Literal["real", "fake", "f"]

# Values and slopes up to 2^100 leave float32 (2^128) room to sum a batch and to continue along a tangent.
LARGEST = 2.0**100
# The `ratio` head clips u to [1/RATIO_CLIP, RATIO_CLIP].
RATIO_CLIP = math.exp(10.0)


def softplus(r: Tensor) -> Tensor:
    """log(1 + e^r); the identity above 40, where float64 cannot tell them apart (torch's own choice is 20)."""
    from torch.nn import functional

    return functional.softplus(r, threshold=40)


def log_sigmoid(r: Tensor) -> Tensor:
    """−log(1 + e^−r)."""
    from torch.nn import functional

    return functional.logsigmoid(r)


def expm1(x: Tensor) -> Tensor:
    """e^x − 1 whose slope is e^x everywhere; torch's own slope, (e^x − 1) + 1, rounds to 0 in float32 below −17."""
    import torch

    return torch.where(x >= -1, x.expm1(), x.clamp(max=-1.0).exp() - 1)


def expm1_over(a: float, r: Tensor) -> Tensor:
    """(e^{a r} − 1) / a, and its limit r at a = 0."""
    return expm1(a * r) / a if abs(a) > 1e-30 else r


@dataclass(frozen=True)
class Range:
    """Where a formula is finite in float32, and its slopes at the two ends (0 where there is no end)."""

    low: float
    high: float
    low_slope: float
    high_slope: float

    @property
    def everywhere(self) -> bool:
        """Whether the formula is finite at every r."""
        return math.isinf(self.low) and math.isinf(self.high)


@dataclass(frozen=True)
class Divergence:
    """An f-divergence: elementwise formulas of the log-ratio r (any shape, any floating dtype).

    `formula` is f(u) and `reference` its source, both for people. `ratio` is u as a function of the coordinate in which
    `real` and `fake` are written: e^r, except under a head whose output cannot be turned into r (`None`: no u at all).
    `invertible` says whether f' is, that is, whether a discriminator trained on it reveals a ratio.
    """

    name: str
    formula: str
    real: Formula
    fake: Formula
    reference: str
    ratio: Formula | None = lambda r: r.exp()
    invertible: bool = True
    ranges: dict[Part, Range] = field(default_factory=dict, init=False, compare=False, repr=False)  # found so far

    def f(self, r: Tensor) -> Tensor:
        """f(u) = u real − fake. Shapes as `r`."""
        assert self.ratio is not None, f"{self.name} has no ratio here"
        return self.ratio(r) * self.real(r) - self.fake(r)

    @cached_property
    def f_at_one(self) -> float:
        """f(1) = real(0) − fake(0): the value of the divergence and of its bound at p = q."""
        import torch

        zero = torch.zeros((), dtype=torch.float64)
        return float(self.real(zero) - self.fake(zero))

    def dual(self, name: str, formula: str, reference: str) -> Divergence:
        """The divergence with p and q exchanged: f(u) becomes u f(1/u)."""
        return replace(
            self,
            name=name,
            formula=formula,
            reference=reference,
            real=lambda r: -self.fake(-r),
            fake=lambda r: -self.real(-r),
        )

    def shifted(self, slope: float) -> Divergence:
        """The representative f(u) + slope·(u − 1): the same divergence, another `ratio` objective."""
        if not slope:
            return self
        return replace(
            self,
            formula=f"{self.formula} {slope:+g} (u - 1)",
            real=lambda r: self.real(r) + slope,
            fake=lambda r: self.fake(r) + slope,
        )

    def finite_range(self, part: Part) -> Range:
        """The interval of r on which `part` and its slope stay below 2^100 in float32."""
        if part not in self.ranges:
            self.ranges[part] = _finite_range(self, part)
        return self.ranges[part]


def _finite_range(divergence: Divergence, part: Part) -> Range:
    import torch

    # The first caller's modes are not to be kept.
    with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
        low, low_slope = _finite_end(divergence, part, sign=-1)
        high, high_slope = _finite_end(divergence, part, sign=+1)
    return Range(low, high, low_slope, high_slope)


def _finite_end(divergence: Divergence, part: Part, sign: int) -> tuple[float, float]:
    """The last r of a fine geometric grid, walked from 0, at which everything is finite; its slope there."""
    import torch

    r = (sign * torch.logspace(-20, 20, 16001, base=2.0, dtype=torch.float32)).requires_grad_()
    values = getattr(divergence, part)(r)
    # A constant formula has no gradient graph; adding 0·r gives it one.
    (slopes,) = torch.autograd.grad((values + 0 * r).sum(), r)
    finite = (values.abs() <= LARGEST) & (slopes.abs() <= LARGEST)
    if part == "f":  # its factors too: rounded to 0 or ∞, they would cancel
        for factor in (divergence.ratio, divergence.real, divergence.fake):
            finite &= factor(r).abs() <= LARGEST if factor is not None else True
    r = r.detach()
    count = int(finite.int().cumprod(0).sum())
    if count == len(r):
        return sign * math.inf, 0.0
    if count == 0:
        raise ConfigError(
            f"{divergence.name} leaves float32's range already beside r = 0; choose a smaller number in it"
        )
    return float(r[count - 1]), float(slopes[count - 1])


# ---------------------------------------------------------------------------------------------------------------------
# The catalogue. THEORY: Csiszár 1964; Ali and Silvey 1966; Nowozin et al. 2016, table 1; Poole et al. 2016, appendix A.

kl = Divergence(
    "kl",
    formula=r"u \log u",
    real=lambda r: 1 + r,
    fake=lambda r: r.exp(),
    reference="Kullback and Leibler 1951; Nowozin et al. 2016, table 1",
)
reverse_kl = kl.dual("reverse_kl", formula=r"-\log u", reference="Nowozin et al. 2016, table 1")
js = Divergence(
    "js",
    formula=r"u \log u - (1 + u) \log \frac{1 + u}{2}",
    real=lambda r: math.log(2) + log_sigmoid(r),
    fake=lambda r: softplus(r) - math.log(2),
    reference="2 JSD (Lin 1991); Nowozin et al. 2016, table 1",
)
gan = Divergence(
    "gan",
    formula=r"u \log u - (1 + u) \log(1 + u)",
    real=log_sigmoid,
    fake=softplus,
    reference="2 JSD − log 4; Goodfellow et al. 2014; Nowozin et al. 2016, table 1",
)
squared_hellinger = Divergence(
    "squared_hellinger",
    formula=r"(\sqrt{u} - 1)^2",
    real=lambda r: -expm1(-r / 2),
    fake=lambda r: expm1(r / 2),
    reference="Nowozin et al. 2016, table 1",
)
pearson = Divergence(
    "pearson",
    formula=r"(u - 1)^2",
    real=lambda r: 2 * expm1(r),
    fake=lambda r: expm1(2 * r),
    reference="χ²(p‖q), Pearson 1900; Nowozin et al. 2016, table 1",
)
neyman = pearson.dual("neyman", formula=r"(1 - u)^2 / u", reference="χ²(q‖p); Nowozin et al. 2016, table 6")
jeffreys = Divergence(
    "jeffreys",
    formula=r"(u - 1) \log u",
    real=lambda r: 1 + r - (-r).exp(),
    fake=lambda r: r.exp() + r - 1,
    reference="KL + reverse KL, Jeffreys 1946; Nowozin et al. 2016, table 6",
)
non_saturating = Divergence(
    "non_saturating",
    formula=r"\log(1 + 1/u)",
    real=lambda r: -(-r).exp() * (-r).sigmoid(),
    fake=lambda r: log_sigmoid(r) - (-r).sigmoid(),
    reference="Poole et al. 2016, section 3",
)
softened_reverse_kl = Divergence(
    "softened_reverse_kl",
    formula=r"(1 + u) \log \frac{1 + u}{2u}",
    real=lambda r: softplus(-r) - math.log(2) - (-r).exp(),
    fake=lambda r: math.log(2) - 1 + log_sigmoid(r),
    reference="KL(q‖p) − 2 JSD; Arjovsky and Bottou 2017; Shannon et al. 2020",
)
le_cam = Divergence(
    "le_cam",
    formula=r"(u - 1)^2 / (u + 1)",
    real=lambda r: 1 - 4 * (-2 * softplus(r)).exp(),  # σ(−r)², with a slope that does not round to 0
    fake=lambda r: 4 * (2 * log_sigmoid(r)).exp() - 1,
    reference="Le Cam 1986, the triangular discrimination",
)
total_variation = Divergence(
    "total_variation",
    formula=r"\frac{1}{2} |u - 1|",
    real=lambda r: r.sign() / 2,
    fake=lambda r: r.sign() / 2,
    reference="Nowozin et al. 2016, table 6",
    invertible=False,
)

CATALOGUE: dict[str, Divergence] = {
    divergence.name: divergence
    for divergence in (
        kl,
        reverse_kl,
        js,
        gan,
        squared_hellinger,
        pearson,
        neyman,
        jeffreys,
        non_saturating,
        softened_reverse_kl,
        le_cam,
        total_variation,
    )
}


def alpha(order: float, name: str | None = None) -> Divergence:
    """The α-divergence (u^α − 1 − α(u − 1)) / (α(α − 1)) of `order` α; α = 0 and α = 1 are the limits.

    α = 2 is Pearson/2, α = ½ twice the squared Hellinger, α = −1 Neyman/2 (Poole et al. 2016, appendix A).
    """
    return Divergence(
        name or f"alpha_{order:g}",
        formula={
            0.0: r"-\log u + u - 1",
            1.0: r"u \log u - u + 1",
        }.get(order, rf"\frac{{u^\alpha - 1 - \alpha (u - 1)}}{{\alpha (\alpha - 1)}},\ \alpha = {order:g}"),
        real=lambda r: expm1_over(order - 1, r),
        fake=lambda r: expm1_over(order, r),
        reference="Amari 1985; Poole et al. 2016, appendix A",
    )


PATTERNS = ("alpha_<number>", "dual_<name>")


@cache
def get(name: str, key: str = "divergence") -> Divergence:
    """The divergence called `name`: a name of the catalogue, `alpha_<α>`, or `dual_` before any of these.

    Raises ConfigError, which speaks of `key`, for any other name.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    if name.startswith("dual_") and (primal := _known(name.removeprefix("dual_"))):
        return primal.dual(name, rf"u f(1/u),\ f(u) = {primal.formula}", f"the dual of {primal.name}")
    if re.fullmatch(r"alpha_-?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", name) and math.isfinite(
        order := float(name.removeprefix("alpha_"))
    ):
        return alpha(order, name)
    raise ConfigError(one_of(key, name, [*CATALOGUE, *PATTERNS]))


def _known(name: str) -> Divergence | None:
    try:
        return get(name)
    except ConfigError:
        return None


# ---------------------------------------------------------------------------------------------------------------------
# Heads: from a discriminator's raw output v to the coordinate in which its divergence is written.


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


def _ratio_log(v: Tensor) -> Tensor:
    return softplus(v).clamp(1 / RATIO_CLIP, RATIO_CLIP).log()


def _ratio_clipped(v: Tensor) -> Tensor:
    return (softplus(v) < 1 / RATIO_CLIP) | (softplus(v) > RATIO_CLIP)


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
        replace(pearson, real=_identity, fake=lambda v: v + v.square() / 4, ratio=lambda v: 1 + v / 2),
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
    return Head("ratio", disc_div, coordinate=_ratio_log, invalid=_ratio_clipped)


HEADS: dict[str, Callable[[Divergence], Head]] = {
    "log_ratio": _log_ratio_head,
    "nowozin": _nowozin_head,
    "ratio": _ratio_head,
}


def head(name: str, disc_div: Divergence) -> Head:
    """The head called `name` for a discriminator trained on `disc_div`.

    `log_ratio`: v is r. `nowozin`: T = g_f(v) with the published activations. `ratio`: softplus(v), clipped to
    [e^−10, e^10], is u itself (b-GAN, Uehara et al. 2016). Raises ConfigError where the pair does not exist.
    """
    if name not in HEADS:
        raise ConfigError(one_of("head", name, HEADS))
    return HEADS[name](disc_div)
