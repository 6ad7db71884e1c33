"""The game against quadrature, closed forms, numpy and the facts that theory states about it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import scipy.integrate
import torch
from test_divergences import NAMES, PARTS, SMOOTH, TYPED, slope, typed_slope
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from gantrain.errors import ConfigError
from gantrain.objectives.divergences import CATALOGUE, Part, get
from gantrain.objectives.heads import HEADS
from gantrain.objectives.objective import GENERATOR_OBJECTIVES, Objective
from gantrain.precision import as_float32


def generator_loss(objective: Objective, r: Tensor) -> Tensor:
    return objective.generator_loss(r)[0]


def generator_slope(objective: Objective, r: Tensor) -> Tensor:
    """dh/dr of the generator's loss per sample, h, at each r."""
    r = r.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(generator_loss(objective, r) * len(r), r)
    return gradient


def normal(count: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(count, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------------------------
# Continuation beyond float32


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", NAMES)
def test_continued_is_the_formula_inside_its_range(name: str, part: Part) -> None:
    limits = get(name).finite_range(part)
    r = torch.linspace(max(limits.low, -60), min(limits.high, 60), 201)
    assert torch.equal(get(name).evaluate(part, r), getattr(get(name), part)(r))
    assert float(get(name).outside_share(part, r)) == 0


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", NAMES)
def test_continued_joins_its_tangents_without_a_jump_or_a_kink(name: str, part: Part) -> None:
    divergence = get(name)
    limits = divergence.finite_range(part)
    for end, tangent in ((limits.low, limits.low_slope), (limits.high, limits.high_slope)):
        if math.isinf(end):
            continue
        r = end + 1e-4 * torch.tensor([-2.0, -1.0, 1.0, 2.0], dtype=torch.float64)
        values, slopes = divergence.evaluate(part, r), slope(lambda r: divergence.evaluate(part, r), r)
        np.testing.assert_allclose(slopes.numpy(), tangent, rtol=2e-3, atol=1e-12)
        assert float(values.diff().abs().max()) <= 2.1e-4 * abs(tangent) + 1e-12


@pytest.mark.parametrize("part", PARTS)
def test_the_slope_does_not_drop_out_at_the_very_end_of_the_range(part: Part) -> None:
    for divergence in map(get, NAMES):
        limits = divergence.finite_range(part)
        for end, tangent in ((limits.low, limits.low_slope), (limits.high, limits.high_slope)):
            if math.isfinite(end):
                at_end = slope(lambda r, f=divergence: f.evaluate(part, r), torch.tensor([end]))
                assert float(at_end) == pytest.approx(tangent, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_finite_at_every_float32_output_up_to_ten_thousand(name: str) -> None:
    r = torch.tensor([-1e4, -800.0, -89.0, -44.4, -18.42, 0.0, 18.42, 44.4, 89.0, 800.0, 1e4])
    for part in PARTS:
        values = get(name).evaluate(part, r)
        assert values.isfinite().all()
        assert slope(lambda r, part=part: get(name).evaluate(part, r), r).isfinite().all()
        assert float(get(name).outside_share(part, r)) <= 8 / 11


@pytest.mark.parametrize("name", [name for name in SMOOTH if name != "le_cam"])
def test_the_discriminator_always_learns_from_a_grave_mistake(name: str) -> None:
    """real on data at r ≪ 0 or fake on samples at r ≫ 0 keeps a slope: only Le Cam's are both bounded."""
    r = torch.tensor([18.42, 30.0, 60.0, 100.0, 1000.0, 1e4])
    wrong_data = slope(lambda r: get(name).evaluate("real", r), -r)
    wrong_samples = slope(lambda r: get(name).evaluate("fake", r), r)
    assert (wrong_data + wrong_samples > 0.1).all()


def test_nothing_saturates_at_the_logarithm_of_an_epsilon() -> None:
    r = torch.tensor([-18.42, -50.0, -1000.0, -1e4])
    non_saturating = Objective(get("gan"), get("gan"), "alternative")
    assert generator_slope(non_saturating, r).tolist() == pytest.approx([-1.0] * 4)
    assert float(generator_loss(non_saturating, r[3:])) == 1e4


@pytest.mark.parametrize("name", NAMES)
def test_a_nan_is_not_hidden(name: str) -> None:
    for part in PARTS:
        if part == "f" or get(name).invertible:
            assert get(name).evaluate(part, torch.tensor([0.5, math.nan])).isnan().tolist() == [False, True]


def test_the_limited_share_is_reported() -> None:
    r = torch.tensor([0.0, 1.0, 100.0, -100.0])
    loss, statistics = Objective(get("gan"), get("kl")).generator_loss(r)
    assert float(statistics["ratio/limited_share"]) == 0.25
    assert float(statistics["loss/generator"]) == float(loss)


def test_bfloat16_outputs_are_read_in_float32() -> None:
    r = torch.tensor([8.03, -7.9, 0.3, 30.0], dtype=torch.bfloat16)
    assert as_float32(r).dtype == torch.float32
    assert as_float32(r.double()).dtype == torch.float64
    loss = generator_loss(Objective(get("gan"), get("kl")), as_float32(r))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(-np.exp(r.double().numpy()).mean(), rel=1e-6)


def test_formulas_run_outside_autocast() -> None:
    discriminator = torch.nn.Linear(3, 1)
    x, objective = normal(24, torch.float32).reshape(8, 3), Objective(get("pearson"), get("kl"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = discriminator(x)
        loss, statistics = objective.discriminator_loss(outputs.float(), outputs.float())
    v = outputs.double().detach().numpy()
    assert outputs.dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in statistics.values())
    assert float(loss.detach()) == pytest.approx(np.expm1(2 * v).mean() - 2 * np.expm1(v).mean(), rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Densities in one dimension

X = torch.linspace(-16, 16, 8001, dtype=torch.float64)
STEP = float(X[1] - X[0])


@dataclass(frozen=True)
class Mixture:
    """Gaussians in one dimension: (weight, mean, standard deviation) each."""

    parts: tuple[tuple[float, float, float], ...]

    def log_density(self, x: Tensor) -> Tensor:
        terms = [
            math.log(weight / (sd * math.sqrt(2 * math.pi))) - (x - mean) ** 2 / (2 * sd**2)
            for weight, mean, sd in self.parts
        ]
        return torch.stack(terms).logsumexp(0)

    def mean_of(self, values: Tensor) -> float:
        """E[values(x)] by the trapezoidal rule, values being given on X."""
        return float((self.log_density(X).exp() * values).sum() * STEP)


def gaussian(mean: float, sd: float) -> Mixture:
    return Mixture(((1.0, mean, sd),))


P, Q = gaussian(0.5, 1.0), gaussian(0.0, 1.1)
MIXTURE = Mixture(((0.6, -2.0, 0.8), (0.4, 2.0, 1.1)))
PAIRS = [(P, Q), (MIXTURE, gaussian(0.3, 1.0))]


def exact(p: Mixture, q: Mixture) -> Tensor:
    return p.log_density(X) - q.log_density(X)


def bound_by_quadrature(name: str, p: Mixture, q: Mixture, r: Tensor) -> float:
    return p.mean_of(get(name).real(r)) - q.mean_of(get(name).fake(r))


def divergence_by_quadrature(name: str, p: Mixture, q: Mixture) -> float:
    """E_q[f(p/q)] with f typed anew, by adaptive quadrature."""

    def integrand(x: float) -> float:
        log_p, log_q = (float(d.log_density(torch.tensor(x, dtype=torch.float64))) for d in (p, q))
        return math.exp(log_q) * float(TYPED[name](np.exp(log_p - log_q), np))

    return scipy.integrate.quad(integrand, -14, 14, points=[-2, 0, 2], epsabs=1e-10, epsrel=1e-9, limit=200)[0]


def kl(m: float, s: float, n: float, t: float) -> float:
    return math.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5


def chi_squared(m: float, s: float, n: float, t: float) -> float:
    room = 2 * t**2 - s**2
    return t**2 / (s * math.sqrt(room)) * math.exp((m - n) ** 2 / room) - 1


def squared_hellinger(m: float, s: float, n: float, t: float) -> float:
    return 2 - 2 * math.sqrt(2 * s * t / (s**2 + t**2)) * math.exp(-((m - n) ** 2) / (4 * (s**2 + t**2)))


CLOSED_FORMS = {
    "kl": kl(0.5, 1.0, 0.0, 1.1),
    "reverse_kl": kl(0.0, 1.1, 0.5, 1.0),
    "jeffreys": kl(0.5, 1.0, 0.0, 1.1) + kl(0.0, 1.1, 0.5, 1.0),
    "squared_hellinger": squared_hellinger(0.5, 1.0, 0.0, 1.1),
    "pearson": chi_squared(0.5, 1.0, 0.0, 1.1),
    "neyman": chi_squared(0.0, 1.1, 0.5, 1.0),
    "alpha_2": chi_squared(0.5, 1.0, 0.0, 1.1) / 2,
    "alpha_-1": chi_squared(0.0, 1.1, 0.5, 1.0) / 2,
    "alpha_0.5": 2 * squared_hellinger(0.5, 1.0, 0.0, 1.1),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_the_bound_at_the_exact_ratio_is_the_closed_form_between_gaussians(name: str) -> None:
    assert bound_by_quadrature(name, P, Q, exact(P, Q)) == pytest.approx(CLOSED_FORMS[name], rel=1e-8)


@pytest.mark.parametrize("pair", range(len(PAIRS)))
@pytest.mark.parametrize("name", TYPED)
def test_the_bound_at_the_exact_ratio_is_the_divergence(name: str, pair: int) -> None:
    p, q = PAIRS[pair]
    expected = divergence_by_quadrature(name, p, q)
    assert bound_by_quadrature(name, p, q, exact(p, q)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("pair", range(len(PAIRS)))
@pytest.mark.parametrize("name", SMOOTH)
def test_every_other_ratio_gives_a_smaller_bound(name: str, pair: int) -> None:
    p, q = PAIRS[pair]
    r = exact(p, q)
    best = bound_by_quadrature(name, p, q, r)
    for other in (r + 0.1, r - 0.1, 0.9 * r, 1.02 * r, r + 0.2 * torch.sin(3 * X), r.clamp(-2, 2), torch.zeros_like(r)):
        assert bound_by_quadrature(name, p, q, other) < best - 1e-6


def test_total_variation_is_reached_by_a_step_and_never_exceeded() -> None:
    r = exact(P, Q)
    expected = float((P.log_density(X).exp() - Q.log_density(X).exp()).abs().sum()) * STEP / 2
    assert bound_by_quadrature("total_variation", P, Q, r) == pytest.approx(expected, abs=1e-4)
    head = Objective(get("total_variation"), get("total_variation")).head
    for v in (r, 3 * r, 30 * r):
        bounded = P.mean_of(head.divergence.real(v)) - Q.mean_of(head.divergence.fake(v))
        assert bounded < expected


# ---------------------------------------------------------------------------------------------------------------------
# Estimates


def typed_means(name: str, r_real: np.ndarray, r_fake: np.ndarray) -> tuple[float, float]:
    """The bound and the plug-in estimate from f alone, less f(1)."""
    f, at_one = TYPED[name], float(TYPED[name](np.float64(1.0), np))
    u_real, u_fake = np.exp(r_real), np.exp(r_fake)
    conjugate = u_fake * typed_slope(name, u_fake) - f(u_fake, np)
    bound = typed_slope(name, u_real).mean() - conjugate.mean() - at_one
    return float(bound), float(f(u_fake, np).mean() - at_one)


@pytest.mark.parametrize("name", TYPED)
def test_estimates_are_the_means_that_numpy_gives(name: str) -> None:
    r_real, r_fake = normal(301, seed=1) + 0.4, normal(200, seed=2) * 1.3 - 0.5
    estimates = Objective(get("gan"), get(name)).estimates(r_real, r_fake)
    bound, estimate = typed_means(name, r_real.numpy(), r_fake.numpy())
    assert estimates[f"bound/{name}"] == pytest.approx(bound, rel=1e-9, abs=1e-12)
    assert estimates[f"estimate/{name}"] == pytest.approx(estimate, rel=1e-9, abs=1e-12)
    assert all(f"{kind}/{known}" in estimates for kind in ("bound", "estimate") for known in CATALOGUE)


def test_calibration_is_what_numpy_gives() -> None:
    r_real, r_fake = normal(301, seed=1) + 0.4, normal(200, seed=2) - 0.5
    estimates = Objective(get("kl"), get("kl")).estimates(r_real, r_fake)
    w = np.exp(r_fake.numpy())
    assert estimates["ratio/calibration_q"] == pytest.approx(w.mean())
    assert estimates["ratio/calibration_p"] == pytest.approx(np.exp(-r_real.numpy()).mean())
    assert estimates["ratio/effective_sample_size"] == pytest.approx(w.sum() ** 2 / (len(w) * (w**2).sum()))
    assert estimates["ratio/largest"] == max(np.abs(r_real.numpy()).max(), np.abs(r_fake.numpy()).max())


def test_an_exact_ratio_is_calibrated_and_estimates_the_closed_forms() -> None:
    z = torch.special.ndtri((torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000)
    v_real, v_fake = (P.log_density(x) - Q.log_density(x) for x in (0.5 + z, 1.1 * z))
    estimates = Objective(get("gan"), get("gan")).estimates(v_real, v_fake)
    for name in CLOSED_FORMS.keys() & CATALOGUE.keys():
        assert estimates[f"bound/{name}"] == pytest.approx(CLOSED_FORMS[name], rel=1e-2)
        assert estimates[f"estimate/{name}"] == pytest.approx(CLOSED_FORMS[name], rel=1e-2)
    assert estimates["ratio/calibration_q"] == pytest.approx(1, abs=1e-4)
    assert estimates["ratio/calibration_p"] == pytest.approx(1, abs=1e-3)
    assert estimates["ratio/effective_sample_size"] == pytest.approx(1 / (CLOSED_FORMS["pearson"] + 1), rel=1e-3)


def test_every_bound_and_estimate_is_zero_where_the_densities_are_equal() -> None:
    zero = torch.zeros(10)
    estimates = Objective(get("gan"), get("non_saturating")).estimates(zero, zero)
    assert all(abs(v) < 1e-14 for k, v in estimates.items() if k.startswith(("bound/", "estimate/")))


def test_estimates_are_taken_in_float64_and_leave_no_graph() -> None:
    v = torch.tensor([0.1, 30.0], requires_grad=True)
    estimates = Objective(get("gan"), get("gan")).estimates(v, v)
    assert estimates["bound/pearson"] == pytest.approx(
        float(np.mean(2 * np.expm1(v.detach().double().numpy())) - np.mean(np.expm1(2 * v.detach().double().numpy()))),
        rel=1e-12,
    )
    assert all(type(value) is float for value in estimates.values())


@pytest.mark.parametrize("size", [50.0, 300.0, 400.0, 800.0])
def test_no_estimate_of_a_discriminator_that_has_won_is_nan_or_negative(size: float) -> None:
    """All data at r = +size, all samples at −size: f(e^−size) − f(1) ≥ 0 needs no overflow in ratios times slopes."""
    won = torch.full((4,), size)
    estimates = Objective(get("gan"), get("gan")).estimates(won, -won)
    bad = {k: v for k, v in estimates.items() if math.isnan(v) or (k.startswith("estimate/") and v < -1e-9)}
    assert not bad
    assert estimates["estimate/reverse_kl"] == pytest.approx(size)


def test_a_head_without_a_ratio_reports_its_own_bound_only() -> None:
    v_real, v_fake = normal(50) + 1, normal(40)
    total_variation = Objective(get("total_variation"), get("total_variation")).estimates(v_real, v_fake)
    expected = (np.tanh(v_real.numpy()).mean() - np.tanh(v_fake.numpy()).mean()) / 2
    assert total_variation == {"bound/total_variation": pytest.approx(expected)}
    pearson = Objective(get("pearson"), get("pearson"), head="nowozin").estimates(v_real, v_fake)
    t = v_fake.numpy()
    assert pearson == {"bound/pearson": pytest.approx(v_real.numpy().mean() - (t + t**2 / 4).mean())}


# ---------------------------------------------------------------------------------------------------------------------
# The three generator objectives


def pull(name: str, gen_objective: str, p: Mixture, mean: float, sd: float) -> tuple[float, float]:
    """(d/dμ, d/dσ) of the generator's loss on x = μ + σ z with the exact ratio frozen, by quadrature over x."""
    q = gaussian(mean, sd)
    x = X.clone().requires_grad_()
    objective = Objective(get("gan"), get(name), gen_objective)
    loss = objective.generator_loss(p.log_density(x) - q.log_density(x))[0] * len(x)
    (force,) = torch.autograd.grad(loss, x)
    return q.mean_of(force), q.mean_of(force * (X - mean) / sd)


def descent(name: str, p: Mixture, mean: float, sd: float) -> tuple[float, float]:
    """(d/dμ, d/dσ) of D_f(p ‖ N(μ, σ)) with f typed anew, by central differences of a quadrature."""

    def at(mean: float, sd: float) -> float:
        q = gaussian(mean, sd)
        return q.mean_of(torch.from_numpy(TYPED[name](np.exp(exact(p, q).numpy()), np)))

    h = 1e-4
    return (at(mean + h, sd) - at(mean - h, sd)) / (2 * h), (at(mean, sd + h) - at(mean, sd - h)) / (2 * h)


def test_the_gradient_of_kl_is_that_of_matched_and_not_of_ratio() -> None:
    assert descent("kl", MIXTURE, 0.3, 2.0)[0] == pytest.approx(0.17500, abs=6e-6)
    assert pull("kl", "matched", MIXTURE, 0.3, 2.0)[0] == pytest.approx(0.17500, abs=6e-6)
    assert pull("kl", "ratio", MIXTURE, 0.3, 2.0)[0] == pytest.approx(-0.28698, abs=6e-6)


def test_reverse_kl_has_the_same_gradient_in_matched_and_ratio() -> None:
    for gradient in (
        descent("reverse_kl", MIXTURE, 0.3, 2.0),
        pull("reverse_kl", "matched", MIXTURE, 0.3, 2.0),
        pull("reverse_kl", "ratio", MIXTURE, 0.3, 2.0),
    ):
        assert gradient[0] == pytest.approx(0.07709, abs=6e-6)


@pytest.mark.parametrize("name", TYPED)
def test_matched_descends_the_divergence(name: str) -> None:
    assert pull(name, "matched", MIXTURE, 0.3, 1.0) == pytest.approx(descent(name, MIXTURE, 0.3, 1.0), rel=1e-4)


def test_three_ways_to_the_non_saturating_loss() -> None:
    r = normal(64) * 4
    expected = -1 / (1 + np.exp(r.numpy()))
    for name, gen_objective in (
        ("gan", "alternative"),
        ("non_saturating", "ratio"),
        ("softened_reverse_kl", "matched"),
    ):
        objective = Objective(get("gan"), get(name), gen_objective)
        np.testing.assert_allclose(generator_slope(objective, r).numpy(), expected, rtol=1e-9)


def test_the_minimax_loss_of_gan_is_the_saturating_one() -> None:
    r = normal(64)
    expected = np.log1p(-1 / (1 + np.exp(-r.numpy()))).mean()
    assert float(generator_loss(Objective(get("gan"), get("gan")), r)) == pytest.approx(expected)


def test_the_maximum_likelihood_cost_is_matched_kl() -> None:
    d = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = -(d.numpy() / (1 - d.numpy())).mean()
    assert float(generator_loss(Objective(get("gan"), get("kl")), d.logit())) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("reverse_kl", lambda r: -r),
        ("kl", lambda r: r * np.exp(r)),
        ("alpha_0.3", lambda r: (np.exp(0.3 * r) - 1 - 0.3 * (np.exp(r) - 1)) / (0.3 * (0.3 - 1))),
        ("alpha_-1", lambda r: (np.exp(-r) - 1 + (np.exp(r) - 1)) / 2),
        ("non_saturating", lambda r: np.logaddexp(-r, 0)),
    ],
)
def test_the_published_losses_on_the_logit_of_a_gan_discriminator(
    name: str, published: Callable[[np.ndarray], np.ndarray]
) -> None:
    r = normal(64) * 2
    loss = generator_loss(Objective(get("gan"), get(name), "ratio"), r)
    assert float(loss) == pytest.approx(published(r.numpy()).mean())


@pytest.mark.parametrize("name", TYPED)
def test_each_objective_is_its_formula(name: str) -> None:
    r = normal(64)
    u = np.exp(r.numpy())
    f, f_slope = TYPED[name](u, np), typed_slope(name, u)
    expected = {"matched": f - u * f_slope, "ratio": f, "alternative": -f_slope}
    for gen_objective, losses in expected.items():
        loss = generator_loss(Objective(get("kl"), get(name), gen_objective), r)
        assert float(loss) == pytest.approx(losses.mean(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", SMOOTH)
def test_an_affine_term_changes_ratio_only(name: str) -> None:
    r, c = normal(64), 0.7
    shifted = get(name).shifted(c)
    for gen_objective in ("matched", "alternative"):
        plain, other = (Objective(get("gan"), f, gen_objective) for f in (get(name), shifted))
        assert float(generator_loss(other, r) - generator_loss(plain, r)) == pytest.approx(-c)
        torch.testing.assert_close(generator_slope(other, r), generator_slope(plain, r))
    plain, other = (Objective(get("gan"), f, "ratio") for f in (get(name), shifted))
    difference = c * (np.exp(r.numpy()) - 1)
    assert float(generator_loss(other, r) - generator_loss(plain, r)) == pytest.approx(difference.mean())
    discriminator_losses = [float(Objective(f, get("gan")).discriminator_loss(r, -r)[0]) for f in (get(name), shifted)]
    assert discriminator_losses[0] == pytest.approx(discriminator_losses[1])


@pytest.mark.parametrize(("name", "gen_objective"), [*product(SMOOTH, GENERATOR_OBJECTIVES)])
def test_which_losses_follow_a_divergence_at_every_ratio(name: str, gen_objective: str) -> None:
    """f_eff − u f_eff' = h gives f_eff'' = −h'/u: convex exactly where the loss h decreases in u."""
    falls = {"reverse_kl", "gan", "non_saturating", "softened_reverse_kl"}
    r = torch.linspace(-12, 12, 400, dtype=torch.float64)
    slopes = generator_slope(Objective(get("gan"), get(name), gen_objective), r)
    assert bool((slopes < 0).all()) == (gen_objective != "ratio" or name in falls)


def test_non_saturating_in_ratio_mode_follows_the_softened_reverse_kl() -> None:
    """f_eff(u) = −u ∫₁ᵘ h(t)/t² dt is it, but for a term a + b u that no divergence sees."""
    u = np.linspace(0.2, 5, 25)
    effective = [-x * scipy.integrate.quad(lambda t: math.log1p(1 / t) / t**2, 1, x)[0] for x in u]
    rest = TYPED["softened_reverse_kl"](u, np) - effective
    assert np.abs(np.diff(rest, 2)).max() < 1e-8


# ---------------------------------------------------------------------------------------------------------------------
# The discriminator's loss and what it reports


def test_the_discriminator_loss_of_gan_is_binary_cross_entropy() -> None:
    v_real, v_fake = normal(64, seed=1) * 5, normal(48, seed=2) * 5
    loss, statistics = Objective(get("gan"), get("kl")).discriminator_loss(v_real, v_fake)
    expected = binary_cross_entropy_with_logits(v_real, torch.ones_like(v_real)) + binary_cross_entropy_with_logits(
        v_fake, torch.zeros_like(v_fake)
    )
    torch.testing.assert_close(loss, expected)
    assert float(statistics["loss/discriminator"]) == float(loss)


@pytest.mark.parametrize("name", TYPED)
def test_the_discriminator_loss_is_minus_the_bound(name: str) -> None:
    r_real, r_fake = normal(30, seed=1), normal(20, seed=2)
    objective = Objective(get(name), get("kl"))
    loss, _ = objective.discriminator_loss(r_real, r_fake)
    at_one = float(TYPED[name](np.float64(1.0), np))
    assert -float(loss) - at_one == pytest.approx(typed_means(name, r_real.numpy(), r_fake.numpy())[0], abs=1e-9)
    assert objective.estimates(r_real, r_fake)[f"bound/{name}"] == pytest.approx(-float(loss) - at_one, abs=1e-12)


def test_the_statistics_are_what_numpy_gives() -> None:
    v_real, v_fake = normal(30, seed=1) + 0.3, normal(30, seed=2) - 0.3
    _, statistics = Objective(get("squared_hellinger"), get("kl"), head="nowozin").discriminator_loss(v_real, v_fake)
    right = (v_real.numpy() > 0).mean() + (v_fake.numpy() < 0).mean()
    assert float(statistics["discriminator/accuracy"]) == pytest.approx(right / 2)
    assert float(statistics["ratio/real_mean"]) == pytest.approx(2 * v_real.numpy().mean())
    assert float(statistics["ratio/fake_mean"]) == pytest.approx(2 * v_fake.numpy().mean())


def test_outputs_that_no_ratio_belongs_to_are_counted() -> None:
    objective = Objective(get("pearson"), get("pearson"), head="nowozin")
    _, statistics = objective.discriminator_loss(
        torch.tensor([-3.0, -2.0, 0.0, 1.0]), torch.tensor([-2.5, 0.0, 1.0, 2.0])
    )
    assert float(statistics["ratio/invalid_share"]) == (2 / 4 + 1 / 4) / 2
    assert "ratio/real_mean" not in statistics


def test_the_log_ratio_of_an_output() -> None:
    v = torch.tensor([-1.0, 0.5])
    assert Objective(get("kl"), get("kl"), head="nowozin").log_ratio(v).tolist() == [-2.0, -0.5]
    assert Objective(get("kl"), get("kl")).log_ratio(v) is v
    assert Objective(get("pearson"), get("pearson"), head="nowozin").log_ratio(v) is None


# ---------------------------------------------------------------------------------------------------------------------
# Every combination

COMBINED = [*CATALOGUE, "alpha_0.3", "alpha_-1", "dual_non_saturating"]
PUBLISHED = {
    "kl", "reverse_kl", "pearson", "squared_hellinger", "js", "gan", "total_variation", "neyman", "jeffreys",
}  # fmt: skip
GAN, TV = "gan", "total_variation"


def refusal(disc: str, gen: str, gen_objective: str, head: str) -> tuple[list[str], dict[str, str]] | None:
    """What the refusal of a combination must name and one change that cures it, or None for those that train."""
    steps_only = {"gen_objective": "ratio"} if gen == TV else {}
    if head == "nowozin" and disc not in PUBLISHED:
        return ["head=nowozin", f"disc_div={disc}", "head=log_ratio"], {"head": "log_ratio"} | steps_only
    if head == "ratio" and disc == TV:
        return ["head=ratio", f"disc_div={TV}", "another disc_div"], {"disc_div": GAN} | steps_only
    if disc == TV and gen != TV:
        return [f"gen_div={gen}", f"disc_div={TV}", "another disc_div"], {"disc_div": GAN}
    if disc == TV and gen_objective == "ratio":
        return ["gen_objective=ratio", f"disc_div={TV}", "gen_objective=matched"], {"gen_objective": "matched"}
    if (disc, head) == ("pearson", "nowozin"):
        named = [f"gen_div={gen}", "disc_div=pearson", "head=log_ratio", "gen_div=pearson"]
        return (named, {"gen_div": "pearson"}) if gen != "pearson" else None
    if disc != TV and gen == TV and gen_objective != "ratio":
        named = [f"gen_objective={gen_objective}", f"gen_div={TV}", "gen_objective=ratio"]
        return named, {"gen_objective": "ratio"}
    return None


def built(disc_div: str, gen_div: str, gen_objective: str, head: str) -> Objective:
    return Objective(get(disc_div), get(gen_div), gen_objective, head)


@pytest.mark.parametrize(("disc", "head"), [*product(COMBINED, HEADS)])
def test_every_combination_trains_or_is_refused_with_a_way_out(disc: str, head: str) -> None:
    outputs = normal(16, torch.float32)
    for gen, gen_objective in product(COMBINED, GENERATOR_OBJECTIVES):
        expected = refusal(disc, gen, gen_objective, head)
        if expected is None:
            objective = built(disc, gen, gen_objective, head)
            loss, force = generator_loss(objective, outputs), generator_slope(objective, outputs)
            assert loss.isfinite()
            assert force.isfinite().all()
            assert (force != 0).all()
        else:
            with pytest.raises(ConfigError) as error:
                built(disc, gen, gen_objective, head)
            assert all(words in str(error.value) for words in expected[0]), str(error.value)
            built(**{"disc_div": disc, "gen_div": gen, "gen_objective": gen_objective, "head": head} | expected[1])


@pytest.mark.parametrize(
    ("disc", "head"), [pair for pair in product(COMBINED, HEADS) if not refusal(pair[0], pair[0], "matched", pair[1])]
)
def test_every_discriminator_learns(disc: str, head: str) -> None:
    v_real, v_fake = (normal(16, torch.float32, seed).requires_grad_() for seed in (1, 2))
    loss, statistics = built(disc, disc, "matched", head).discriminator_loss(v_real, v_fake)
    loss.backward()
    assert all(value.isfinite() for value in statistics.values())
    assert (v_real.grad < 0).all()
    # Pearson's conjugate falls where its published activation leaves the range of f'.
    outside_the_range = (v_fake <= -2) if (disc, head) == ("pearson", "nowozin") else torch.zeros(16, dtype=torch.bool)
    assert (v_fake.grad[~outside_the_range] > 0).all()


def test_what_a_refusal_offers_is_not_refused_for_the_same_combination() -> None:
    """gen_div=total_variation is no way out for gen_objective=ratio, which it cannot serve."""
    with pytest.raises(ConfigError) as error:
        built(TV, "kl", "ratio", "log_ratio")
    assert "another disc_div" in str(error.value)
    assert f"or gen_div={TV}" not in str(error.value)


def test_a_step_that_is_its_own_dual_is_refused_as_a_discriminator() -> None:
    with pytest.raises(ConfigError, match=f"disc_div=dual_{TV} has no invertible"):
        built(f"dual_{TV}", "kl", "matched", "log_ratio")


def test_an_unknown_objective_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"gen_objective=match is not .* did you mean matched\?") as error:
        built("gan", "kl", "match", "log_ratio")
    assert error.value.exit_code == 2


@pytest.mark.parametrize(("disc", "gen"), [(name, "kl") for name in SMOOTH] + [(TV, TV)])
def test_training_steps_are_finite_at_outputs_of_ten_thousand(disc: str, gen: str) -> None:
    v = torch.tensor([-1e4, -100.0, 100.0, 1e4], requires_grad=True)
    objective = Objective(get(disc), get(gen))
    for loss in (objective.discriminator_loss(v, v)[0], generator_loss(objective, v)):
        (gradient,) = torch.autograd.grad(loss, v)
        assert loss.isfinite()
        assert gradient.isfinite().all()
