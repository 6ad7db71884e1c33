"""Weights of samples under `matched`: their laws, against quadrature, closed forms and the flows that they change."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
import torch
from support import formulas
from support.formulas import SMOOTH
from torch import Tensor

from gantrain.config.checks import validate
from gantrain.config.compose import compose
from gantrain.data.mixtures import Mixture, gaussian
from gantrain.errors import ConfigError
from gantrain.objectives.divergences import alpha, get
from gantrain.objectives.objective import Objective
from gantrain.objectives.weighting import DEFAULT, OFF, Weighting
from gantrain.theory.gaussian_fit import build_mixture, follow_loss
from gantrain.theory.quadrature import Loss

NORMALISED = Weighting(normalise=True)


def slope(weighting: Weighting, name: str, r: Tensor) -> Tensor:
    """∂L/∂r of the generator's loss on log-ratios r `[B]`, times B: `[B]`."""
    objective = Objective(get("gan"), get(name), weighting=weighting)
    return formulas.slope(lambda r: objective.generator_loss(r)[0], r)


def normal(count: int = 500, mean: float = -1.0, sd: float = 2.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return mean + sd * torch.randn(count, dtype=dtype, generator=torch.Generator().manual_seed(0))


def tempered(beta: float, r: Tensor) -> Weighting:
    """The weighting whose β is `beta` for these r."""
    return Weighting(normalise=True, spread=beta * float(r.std(correction=0)))


# ---------------------------------------------------------------------------------------------------------------------
# The weights


@pytest.mark.parametrize("name", SMOOTH)
def test_without_tempering_the_gradient_is_that_of_matched_up_to_a_positive_scale(name: str) -> None:
    r = normal()
    plain = slope(OFF, name, r)
    for weighting in (NORMALISED, Weighting(normalise=True, spread=1e6)):
        rescaled = slope(weighting, name, r)
        scale = rescaled.sum() / plain.sum()
        assert scale > 0
        np.testing.assert_allclose(rescaled, scale * plain, rtol=1e-12)
        assert float(rescaled.mean()) == pytest.approx(-1)


@pytest.mark.parametrize("name", SMOOTH)
def test_an_infinitely_strong_tempering_is_reverse_kl(name: str) -> None:
    r = normal()
    np.testing.assert_allclose(slope(Weighting(spread=1e-9), name, r), slope(OFF, "reverse_kl", r), rtol=1e-6)


@pytest.mark.parametrize("name", SMOOTH)
def test_weights_are_the_slope_of_fake_of_the_tempered_divergence(name: str) -> None:
    """f_β'' = w(β log u)/u² integrated twice, and fake_β = u f_β' − f_β differentiated by finite differences."""
    log_weight, beta = get(name).log_weight, 0.4
    assert log_weight is not None

    def second(u: float) -> float:
        return math.exp(float(log_weight(torch.tensor(beta * math.log(u), dtype=torch.float64)))) / u**2

    def fake(r: float) -> float:
        u = math.exp(r)
        first = scipy.integrate.quad(second, 1, u, epsrel=1e-11)[0]
        value = scipy.integrate.quad(lambda t: (u - t) * second(t), 1, u, epsrel=1e-11)[0]
        return u * first - value

    points, h = (-1.3, -0.4, 0.6, 1.5), 1e-3
    slopes = np.array([(fake(r + h) - fake(r - h)) / (2 * h) for r in points])
    r = torch.tensor(points, dtype=torch.float64)
    weights, _ = tempered(beta, r).weigh(get(name), r)
    np.testing.assert_allclose(weights, slopes / slopes.mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("head", "disc_div", "output"),
    [
        ("nowozin", "kl", lambda r: 1 + r),
        ("nowozin", "neyman", lambda r: 2 * r),
        ("ratio", "gan", lambda r: r.exp().expm1().log()),
    ],
)
@pytest.mark.parametrize("name", ["kl", "js", "pearson"])
def test_under_every_head_the_weights_are_those_of_the_log_ratio(
    name: str, head: str, disc_div: str, output: Callable[[Tensor], Tensor]
) -> None:
    """∂L/∂v · dv/dr is −w(βr) / mean w(βr), w = u² f''(u) of the typed f, where v is D's output for the log-ratio r."""
    r = normal(100).requires_grad_()
    objective = Objective(get(disc_div), get(name), head=head, weighting=Weighting(normalise=True, spread=0.5))
    (found,) = torch.autograd.grad(objective.generator_loss(output(r))[0] * len(r), r)
    u = (0.5 / r.detach().std(correction=0) * r.detach()).exp().tolist()
    weights = np.array([x**2 * formulas.derivative(name, x, 2) for x in u])
    np.testing.assert_allclose(found, -weights / weights.mean(), rtol=1e-9)


@pytest.mark.parametrize("order", [-1.0, 0.3, 1.0, 2.0])
def test_a_tempered_alpha_divergence_is_one_of_order_alpha_beta(order: float) -> None:
    r = normal()
    weights, statistics = tempered(0.4, r).weigh(alpha(order), r)
    expected, _ = NORMALISED.weigh(alpha(0.4 * order), r)
    np.testing.assert_allclose(weights, expected, rtol=1e-9)
    assert float(statistics["weights/effective_order"]) == pytest.approx(0.4 * order)


@pytest.mark.parametrize("weighting", [NORMALISED, Weighting(spread=0.5)])
@pytest.mark.parametrize("name", ["kl", "reverse_kl", "pearson", "neyman", "alpha_0.3", "squared_hellinger"])
def test_a_constant_added_to_the_log_ratio_changes_nothing(name: str, weighting: Weighting) -> None:
    r = normal()
    np.testing.assert_allclose(slope(weighting, name, r + 7), slope(weighting, name, r), rtol=1e-9)


def test_the_orders_of_the_catalogue() -> None:
    """The slope of log w at r = 0, by hand."""
    orders = {"kl": 1, "reverse_kl": 0, "js": 0.5, "gan": 0.5, "squared_hellinger": 0.5, "pearson": 2, "neyman": -1}
    orders |= {"jeffreys": 0.5, "softened_reverse_kl": -0.5, "le_cam": 0.5, "non_saturating": -1 / 3, "alpha_0.3": 0.3}
    assert {name: get(name).order for name in orders} == pytest.approx(orders)


def test_the_effective_sample_size_of_normal_log_ratios_is_that_of_their_spread() -> None:
    r = torch.from_numpy(scipy.stats.norm.ppf((np.arange(20000) + 0.5) / 20000) * 6 - 5)
    for name, order in (("kl", 1), ("pearson", 2), ("alpha_0.3", 0.3)):
        _, statistics = Weighting(spread=0.5).weigh(get(name), r)
        assert float(statistics["weights/effective_sample_size"]) == pytest.approx(
            math.exp(-((order * 0.5) ** 2)), rel=1e-2
        )
        assert float(statistics["weights/beta"]) == pytest.approx(0.5 / 6, rel=2e-3)
        assert float(statistics["weights/asked_share"]) == 0


# ---------------------------------------------------------------------------------------------------------------------
# Batches


@pytest.mark.parametrize("weighting", [OFF, NORMALISED, DEFAULT])
@pytest.mark.parametrize("name", SMOOTH)
def test_batches_at_the_ends_of_float32_have_finite_weights(name: str, weighting: Weighting) -> None:
    for r in (
        torch.tensor([-1e4, 1e4]),
        torch.tensor([1e4, 1e4]),
        torch.zeros(2),
        torch.full((4096,), -1e4),
        normal(4096, -50, 300, torch.float32),
    ):
        weights, statistics = weighting.weigh(get(name), r)
        assert weights.isfinite().all()
        assert (weights >= 0).all()
        assert float(weights.mean()) == pytest.approx(1, rel=1e-5)
        assert all(value.isfinite() for value in statistics.values())
        assert 1 / len(r) * 0.999 <= float(statistics["weights/effective_sample_size"]) <= 1.001
        loss, reported = Objective(get("gan"), get(name), weighting=weighting).generator_loss(r)
        assert loss.isfinite()
        assert all(value.isfinite() for value in reported.values())


@pytest.mark.parametrize("spread", [0.0, -1.0, math.nan, math.inf])
def test_a_spread_is_above_zero(spread: float) -> None:
    with pytest.raises(ConfigError, match=r"gen_weights\.spread"):
        Weighting(spread=spread)


def test_equal_log_ratios_are_not_tempered() -> None:
    weights, statistics = DEFAULT.weigh(get("kl"), torch.full((8,), -3.0))
    assert weights.tolist() == [1.0] * 8
    assert float(statistics["weights/beta"]) == float(statistics["weights/asked_share"]) == 1


def test_a_nan_is_not_hidden() -> None:
    loss, _ = Objective(get("gan"), get("kl"), weighting=DEFAULT).generator_loss(torch.tensor([0.0, math.nan]))
    assert loss.isnan()


def test_the_loss_of_the_divergence_is_reported() -> None:
    r = normal()
    plain, _ = Objective(get("gan"), get("kl")).generator_loss(r)
    _, statistics = Objective(get("gan"), get("kl"), weighting=DEFAULT).generator_loss(r)
    assert float(statistics["loss/generator"]) == float(plain)
    assert not statistics["loss/generator"].requires_grad


# ---------------------------------------------------------------------------------------------------------------------
# The end of the exact flow of x = μ + σz, with z at quantiles of equal probability

Z = scipy.stats.norm.ppf((np.arange(1000) + 0.5) / 1000)
FIGURE_1 = build_mixture([0.6, 0.4], [-1.5, 2.0], [0.6, 0.8])


def log_ratio(p: Mixture, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """r and dr/dx at the samples of q = N(μ, σ²), θ = (μ, log σ)."""
    x = (theta[0] + math.exp(theta[1]) * torch.from_numpy(Z)).requires_grad_()
    r = p.log_density(x) + torch.from_numpy(Z).square() / 2 + theta[1] + math.log(2 * math.pi) / 2
    # r depends on x through p and through q, whose parameters stay: d log q/dx = −z/σ.
    (slope_of_p,) = torch.autograd.grad(p.log_density(x).sum(), x)
    return r.detach().numpy(), slope_of_p.numpy() + Z / math.exp(theta[1])


def velocity(p: Mixture, name: str, weighting: Weighting, theta: np.ndarray) -> np.ndarray:
    """−∂L/∂θ of the generator's loss over the samples, D being exact."""
    r, slope_in_x = log_ratio(p, theta)
    force = -slope(weighting, name, torch.from_numpy(r)).numpy() * slope_in_x
    return np.array([force.mean(), (force * Z).mean() * math.exp(theta[1])])


def end_of_flow(move: Callable[[np.ndarray], np.ndarray], start: tuple[float, float]) -> tuple[float, float]:
    """(μ, σ) at rest under the velocities `move(θ)`, from `start` = (μ, σ)."""
    begin = [start[0], math.log(start[1])]
    path = scipy.integrate.solve_ivp(lambda _, theta: move(theta), (0, 60), begin, method="LSODA", rtol=1e-5)
    rest = scipy.optimize.root(move, path.y[:, -1], tol=1e-10)
    assert np.abs(rest.x - path.y[:, -1]).max() < 0.05
    return float(rest.x[0]), math.exp(rest.x[1])


@pytest.mark.parametrize("weighting", [OFF, DEFAULT], ids=["off", "default"])
@pytest.mark.parametrize("name", ["kl", "softened_reverse_kl", "neyman"])
def test_a_model_that_can_match_the_data_does_so(name: str, weighting: Weighting) -> None:
    start = (0.4, 0.9) if name == "neyman" else (1.0, 1.4)  # Neyman's is infinite for a wide q
    end = end_of_flow(partial(velocity, gaussian(0.5, 0.8), name, weighting), start)
    assert end == pytest.approx((0.5, 0.8), abs=1e-3)


WITH_A_REST = ["kl", "js", "squared_hellinger", "jeffreys", "le_cam", "non_saturating", "softened_reverse_kl"]


@pytest.mark.parametrize(("name", "spread"), [("pearson", 0.5), *itertools.product(WITH_A_REST, (0.5, 4.0))])
def test_on_a_mixture_the_flow_ends_at_the_rest_of_the_divergence_that_it_follows_there(
    name: str, spread: float
) -> None:
    """This is the divergence itself if sd(r) is below the spread, and else f_β with the β there."""
    end = end_of_flow(partial(velocity, FIGURE_1, name, Weighting(normalise=True, spread=spread)), (0.0, 1.0))
    sd = float(log_ratio(FIGURE_1, np.array([end[0], math.log(end[1])]))[0].std())
    assert (sd < spread) == (spread == 4.0)  # both cases occur
    if sd < spread:
        plain = follow_loss(Loss(get(name), "fake", -1), FIGURE_1, (0.0, 1.0))
        assert end == pytest.approx((plain.mean, plain.std), abs=1e-2)
        return
    beta = spread / sd

    def move(theta: np.ndarray) -> np.ndarray:
        """The velocity with this β held fixed: the weights are u² f''(u) of the typed f at u = e^{βr}."""
        r, slope_in_x = log_ratio(FIGURE_1, theta)
        u, h = np.exp(beta * r), 1e-4
        weights = u * (formulas.df(name, u * math.exp(h)) - formulas.df(name, u * math.exp(-h))) / (2 * h)
        force = weights / weights.mean() * slope_in_x
        return np.array([force.mean(), (force * Z).mean() * math.exp(theta[1])])

    assert end == pytest.approx(end_of_flow(move, (0.0, 1.0)), abs=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# The keys


def weighting_for(*overrides: str) -> Weighting:
    """Return the weighting of the objective that a command line describes."""
    return validate(compose(["gen_div=kl", *overrides]), overrides).settings.objective.weighting


def test_the_default_acts_under_matched_with_a_ratio_and_nowhere_else() -> None:
    assert weighting_for() == DEFAULT
    assert weighting_for("gen_objective=ratio") == OFF
    assert weighting_for("gen_objective=alternative") == OFF
    assert weighting_for("disc_div=total_variation", "gen_div=total_variation") == OFF


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["gen_weights.normalise=false"], OFF),
        (["gen_weights.normalise=true"], NORMALISED),
        (["gen_weights.spread=1"], Weighting(True, 1)),
        (["gen_weights.spread=2", "gen_weights.normalise=true"], Weighting(True, 2)),
    ],
)
def test_keys_on_the_command_line_are_used(overrides: list[str], expected: Weighting) -> None:
    assert weighting_for(*overrides) == expected


def test_weights_that_cannot_act_are_rejected_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="gen_objective=ratio; leave gen_weights"):
        weighting_for("gen_weights.spread=1", "gen_objective=ratio")
    with pytest.raises(ConfigError, match="disc_div=pearson gives no ratio"):
        weighting_for("gen_weights.normalise=true", "disc_div=pearson", "gen_div=pearson", "head=nowozin")
    with pytest.raises(ConfigError, match=r"gen_weights.spread=1.0 tempers .* leave out one"):
        weighting_for("gen_weights.spread=1", "gen_weights.normalise=false")
    with pytest.raises(ConfigError, match=r"or add gen_weights.normalise=true"):
        weighting_for("experiment=dcgan", "gen_weights.spread=0.5")
    assert weighting_for("experiment=dcgan", "gen_weights.spread=0.25", "gen_weights.normalise=true") == DEFAULT
    with pytest.raises(ConfigError, match=r"gen_weights.spread=0.0 must be above 0"):
        weighting_for("gen_weights.spread=0")
