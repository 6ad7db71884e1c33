r"""The catalogue of f-divergences, each written as three formulas of the log-ratio.

`p` is the data's density, `q` the generator's, `u = p/q` their ratio and `r = log u`. For convex f,

    D_f(p‖q) = E_q[f(u)] ≥ E_p[T] − E_q[f*(T)],   tight at T = f'(u)      (Nguyen, Wainwright and Jordan 2010)

A discriminator that outputs r gives T = f'(e^r), and f*(T) = e^r f'(e^r) − f(e^r), so no conjugate has to be inverted:

    real(r)       = f'(e^r)              averaged over data
    fake(r)       = f*(f'(e^r))          averaged over samples
    log_weight(r) = log(u² f''(u))       log of the weight of a sample in the gradient of D_f
    bound         = E_p[real(r)] − E_q[fake(r)]
    f(e^r)        = e^r real(r) − fake(r)

For every entry `fake' = e^log_weight`, `real' = e^(log_weight − r)` and `fake(0) = real(0) − f(1)`; the dual (p and q
exchanged) is `real(r) → −fake(−r)`, `fake(r) → −real(−r)`, `log_weight(r) → r + log_weight(−r)`. `f_of_u` is f(u) as
its source has it, and no training uses it: `gantrain.theory` and the tests hold the other formulas to it. Names are
known without importing torch; formulas import it when they are called.
"""

from __future__ import annotations

import math
import re
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from gantrain.errors import ConfigError, describe_choice
from gantrain.objectives.divergence import Divergence, expm1_over, log_sigmoid, softplus

if TYPE_CHECKING:
    from torch import Tensor

# ---------------------------------------------------------------------------------------------------------------------
# The catalogue: Csiszár 1964; Ali and Silvey 1966; Nowozin et al. 2016, tables 1 and 6; Poole et al. 2016.

kl = Divergence(
    "kl",
    formula=r"u \log u",
    f_of_u=lambda u: u * u.log(),
    real=lambda r: 1 + r,
    fake=lambda r: r.exp(),
    log_weight=lambda r: r,
    reference="Kullback and Leibler 1951; Nowozin et al. 2016, table 1",
)
reverse_kl = kl.dual("reverse_kl", formula=r"-\log u", reference="Nowozin et al. 2016, table 1")
js = Divergence(
    "js",
    formula=r"u \log u - (1 + u) \log \frac{1 + u}{2}",
    f_of_u=lambda u: u * u.log() - (1 + u) * ((1 + u) / 2).log(),
    real=lambda r: math.log(2) + log_sigmoid(r),
    fake=lambda r: softplus(r) - math.log(2),
    log_weight=log_sigmoid,
    reference="2 JSD (Lin 1991); Nowozin et al. 2016, table 1",
)
gan = Divergence(
    "gan",
    formula=r"u \log u - (1 + u) \log(1 + u)",
    f_of_u=lambda u: u * u.log() - (1 + u) * (1 + u).log(),
    real=log_sigmoid,
    fake=softplus,
    log_weight=log_sigmoid,
    reference="2 JSD − log 4; Goodfellow et al. 2014; Nowozin et al. 2016, table 1",
)
squared_hellinger = Divergence(
    "squared_hellinger",
    formula=r"(\sqrt{u} - 1)^2",
    f_of_u=lambda u: (u.sqrt() - 1) ** 2,
    real=lambda r: -(-r / 2).expm1(),
    fake=lambda r: (r / 2).expm1(),
    log_weight=lambda r: r / 2 - math.log(2),
    reference="Nowozin et al. 2016, table 1",
)
pearson = Divergence(
    "pearson",
    formula=r"(u - 1)^2",
    f_of_u=lambda u: (u - 1) ** 2,
    real=lambda r: 2 * r.expm1(),
    fake=lambda r: (2 * r).expm1(),
    log_weight=lambda r: 2 * r + math.log(2),
    reference="χ²(p‖q), Pearson 1900; Nowozin et al. 2016, table 1",
)
neyman = pearson.dual("neyman", formula=r"(1 - u)^2 / u", reference="χ²(q‖p); Nowozin et al. 2016, table 6")
jeffreys = Divergence(
    "jeffreys",
    formula=r"(u - 1) \log u",
    f_of_u=lambda u: (u - 1) * u.log(),
    real=lambda r: 1 + r - (-r).exp(),
    fake=lambda r: r.exp() + r - 1,
    log_weight=softplus,
    reference="KL + reverse KL, Jeffreys 1946; Nowozin et al. 2016, table 6",
)
non_saturating = Divergence(
    "non_saturating",
    formula=r"\log(1 + 1/u)",
    f_of_u=lambda u: (1 / u).log1p(),
    real=lambda r: -(-r).exp() * (-r).sigmoid(),
    fake=lambda r: log_sigmoid(r) - (-r).sigmoid(),
    log_weight=lambda r: softplus(r + math.log(2)) - 2 * softplus(r),
    reference="Poole et al. 2016, section 3",
)
softened_reverse_kl = Divergence(
    "softened_reverse_kl",
    formula=r"(1 + u) \log \frac{1 + u}{2u}",
    f_of_u=lambda u: (1 + u) * ((1 + u) / (2 * u)).log(),
    real=lambda r: softplus(-r) - math.log(2) - (-r).exp(),
    fake=lambda r: math.log(2) - 1 + log_sigmoid(r),
    log_weight=lambda r: log_sigmoid(-r),
    reference="KL(q‖p) − 2 JSD; Arjovsky and Bottou 2017; Shannon et al. 2020",
)
le_cam = Divergence(
    "le_cam",
    formula=r"(u - 1)^2 / (u + 1)",
    f_of_u=lambda u: (u - 1) ** 2 / (u + 1),
    real=lambda r: 1 - 4 * (-r).sigmoid().square(),
    fake=lambda r: 4 * r.sigmoid().square() - 1,
    log_weight=lambda r: 2 * r - 3 * softplus(r) + math.log(8),
    reference="Le Cam 1986, the triangular discrimination",
)
total_variation = Divergence(
    "total_variation",
    formula=r"\frac{1}{2} |u - 1|",
    f_of_u=lambda u: (u - 1).abs() / 2,
    real=lambda r: r.sign() / 2,
    fake=lambda r: r.sign() / 2,
    log_weight=None,
    reference="Nowozin et al. 2016, table 6",
    invertible=False,
)

CATALOGUE: dict[str, Divergence] = {
    divergence.name: divergence
    for divergence in [
        *(kl, reverse_kl, js, gan, squared_hellinger, pearson, neyman, jeffreys),
        *(non_saturating, softened_reverse_kl, le_cam, total_variation),
    ]
}


def alpha(order: float, name: str | None = None) -> Divergence:
    """The α-divergence (u^α − 1 − α(u − 1)) / (α(α − 1)) of `order` α; α = 0 and α = 1 are the limits.

    α = 2 is Pearson/2, α = ½ twice the squared Hellinger, α = −1 Neyman/2.
    """

    def f_of_u(u: Tensor) -> Tensor:
        r = u.log()  # the source's terms, in an order that does not cancel near either limit
        if order < 0.5:
            return (((order * r).expm1() / order if order else r) - (u - 1)) / (order - 1)
        return (u * (((order - 1) * r).expm1() / (order - 1) if order != 1 else r) - (u - 1)) / order

    digits = format_order(order)
    return Divergence(
        name or f"alpha_{digits}",
        formula={0.0: r"-\log u + u - 1", 1.0: r"u \log u - u + 1"}.get(
            order, rf"\frac{{u^\alpha - 1 - \alpha (u - 1)}}{{\alpha (\alpha - 1)}},\ \alpha = {digits}"
        ),
        f_of_u=f_of_u,
        real=lambda r: expm1_over(order - 1, r),
        fake=lambda r: expm1_over(order, r),
        log_weight=lambda r: order * r,
        reference="Amari 1985; Poole et al. 2016, appendix A",
    )


def arimoto(order: float, name: str | None = None) -> Divergence:
    """The divergence of the α-loss of `order` a > 0, with D = σ(a r) (Kurri et al. 2021, arXiv 2106.05232).

    a = ½ is the squared Hellinger, a = 1 `gan` and a → ∞ the total variation, up to affine terms.
    """
    k, digits = 1 - 1 / order, format_order(order)
    return Divergence(
        name or f"arimoto_{digits}",
        formula=rf"\frac{{a}}{{a - 1}} ((1 + u^a)^{{1/a}} - 1 - u),\ a = {digits}" if k else gan.formula,
        f_of_u=lambda u: ((1 + u**order) ** (1 / order) - 1 - u) / k if k else gan.f_of_u(u),
        real=lambda r: expm1_over(k, log_sigmoid(order * r)),
        fake=lambda r: -expm1_over(k, log_sigmoid(-order * r)),
        log_weight=lambda r: math.log(order) + log_sigmoid(order * r) + k * log_sigmoid(-order * r),
        reference="Österreicher 1996; the α-loss of Kurri et al. 2021",
    )


def format_order(order: float) -> str:
    """Return all digits of a number: 1.000001 is not 1."""
    return repr(float(order)).removesuffix(".0")


FAMILIES = {"alpha": alpha, "arimoto": arimoto}
PATTERNS = (*(f"{family}_<number>" for family in FAMILIES), "dual_<name>")


@cache
def get(name: Divergence | str, key: str = "divergence") -> Divergence:
    """The divergence called `name`, of CATALOGUE or PATTERNS; a divergence is returned as it is.

    Raises ConfigError, which speaks of `key`, for other names.
    """
    if isinstance(name, Divergence):
        return name
    if name in CATALOGUE:
        return CATALOGUE[name]
    if name.startswith("dual_"):
        with suppress(ConfigError):
            primal = get(name.removeprefix("dual_"))
            return primal.dual(name, rf"u f(1/u),\ f(u) = {primal.formula}", f"the dual of {primal.name}")
    number = re.fullmatch(rf"({'|'.join(FAMILIES)})_(-?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)", name)
    if number is None or not math.isfinite(order := float(number[2])):
        raise ConfigError(describe_choice(key, name, [*CATALOGUE, *PATTERNS]))
    if number[1] == "arimoto" and order <= 0:
        raise ConfigError(f"{key}={name}: the order of the α-loss is above 0, as in {key}=arimoto_2")
    return FAMILIES[number[1]](order, name)
