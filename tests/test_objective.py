"""Objectives against quadrature, closed forms, numpy and published losses."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import scipy.integrate
import torch
from support.formulas import NAMES, PARTS, SMOOTH, df, f, losses, slope
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from gantrain.data.mixtures import Mixture, gaussian, mixture1d
from gantrain.errors import ConfigError
from gantrain.objectives import heads
from gantrain.objectives.divergence import FormulaName
from gantrain.objectives.divergences import CATALOGUE, get
from gantrain.objectives.estimates import LARGEST
from gantrain.objectives.heads import HEADS
from gantrain.objectives.objective import GENERATOR_OBJECTIVES, Objective
from gantrain.precision import as_float32


def generator_loss(objective: Objective, r: Tensor) -> Tensor:
    return objective.generator_loss(r)[0]


def generator_slope(objective: Objective, r: Tensor) -> Tensor:
    """dh/dr of the generator's loss per sample, h, at each r; `slope` sums the mean over the batch."""
    return slope(
        lambda r: generator_loss(objective, r), r
    )  # of the mean, which `slope` broadcasts and sums over the batch


def normal(count: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(count, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------------------------
# Linear extension beyond float32


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", NAMES)
def test_evaluate_is_the_formula_inside_its_range(name: str, part: FormulaName) -> None:
    limits = get(name).finite_range(part)
    r = torch.linspace(max(limits.low, -60), min(limits.high, 60), 201)
    assert torch.equal(get(name).evaluate(part, r), getattr(get(name), part)(r))
    assert float(get(name).outside_share(part, r)) == 0


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", NAMES)
def test_evaluate_joins_its_tangents_without_a_jump_or_a_kink(name: str, part: FormulaName) -> None:
    divergence = get(name)
    limits = divergence.finite_range(part)
    for end, tangent in ((limits.low, limits.low_slope), (limits.high, limits.high_slope)):
        if math.isinf(end):
            continue
        r = end + 1e-4 * torch.tensor([-2.0, -1.0, 1.0, 2.0], dtype=torch.float64)
        values, slopes = divergence.evaluate(part, r), slope(lambda r: divergence.evaluate(part, r), r)
        np.testing.assert_allclose(slopes.numpy(), tangent, rtol=2e-3, atol=1e-12)
        assert float(values.diff().abs().max()) <= 2.1e-4 * abs(tangent) + 1e-12
        at_end = slope(lambda r: divergence.evaluate(part, r), torch.tensor([end]))
        assert float(at_end) == pytest.approx(tangent, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_finite_at_every_float32_output_up_to_ten_thousand(name: str) -> None:
    r = torch.tensor([-1e4, -800.0, -89.0, -44.4, -18.42, 0.0, 18.42, 44.4, 89.0, 800.0, 1e4])
    for part in PARTS:
        values = get(name).evaluate(part, r)
        assert values.isfinite().all()
        assert slope(lambda r, part=part: get(name).evaluate(part, r), r).isfinite().all()
        assert float(get(name).outside_share(part, r)) <= 8 / 11


@pytest.mark.parametrize("name", [name for name in SMOOTH if name not in ("le_cam", "arimoto_2")])
def test_the_discriminator_always_learns_from_a_grave_mistake(name: str) -> None:
    """real on data at r ≪ 0 or fake on samples at r ≫ 0 keeps a slope, but for bounded ones: Le Cam, Arimoto a > 1."""
    r = torch.tensor([18.42, 30.0, 60.0, 100.0, 1000.0, 1e4])
    wrong_data = slope(lambda r: get(name).evaluate("real", r), -r)
    wrong_samples = slope(lambda r: get(name).evaluate("fake", r), r)
    assert (wrong_data + wrong_samples > 0.1).all()


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


P, Q = gaussian(0.5, 1.0), gaussian(0.0, 1.1)
MIXTURE = mixture1d((0.6, 0.4), (-2.0, 2.0), (0.8, 1.1))
PAIRS = [(P, Q), (MIXTURE, gaussian(0.3, 1.0))]


def mean_of(p: Mixture, values: Tensor) -> float:
    """E_p[values(x)] by the trapezoidal rule, for values on X."""
    return float((p.log_density(X).exp() * values).sum() * STEP)


def exact(p: Mixture, q: Mixture) -> Tensor:
    return p.log_density(X) - q.log_density(X)


def bound_by_quadrature(name: str, p: Mixture, q: Mixture, r: Tensor) -> float:
    return mean_of(p, get(name).real(r)) - mean_of(q, get(name).fake(r))


def divergence_by_quadrature(name: str, p: Mixture, q: Mixture) -> float:
    """E_q[f(p/q)] with f typed anew, by adaptive quadrature."""

    def integrand(x: float) -> float:
        log_p, log_q = (float(d.log_density(torch.tensor([x], dtype=torch.float64))) for d in (p, q))
        return math.exp(log_q) * float(f(name, np.exp(log_p - log_q)))

    return scipy.integrate.quad(integrand, -14, 14, points=[-2, 0, 2], epsabs=1e-10, epsrel=1e-9, limit=200)[0]


@pytest.mark.parametrize("name", SMOOTH)
def test_the_bound_at_the_exact_ratio_is_the_divergence(name: str) -> None:
    p, q = PAIRS[1]
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
        bounded = mean_of(P, head.divergence.real(v)) - mean_of(Q, head.divergence.fake(v))
        assert bounded < expected


# ---------------------------------------------------------------------------------------------------------------------
# Estimates


def typed_bound(name: str, r_real: np.ndarray, r_fake: np.ndarray) -> tuple[float, float]:
    """The bound from f alone, less f(1), and its standard error."""
    u_real, u_fake, at_one = np.exp(r_real), np.exp(r_fake), float(f(name, 1))
    slope, conjugate = df(name, u_real), u_fake * df(name, u_fake) - f(name, u_fake)
    error = math.sqrt(slope.var(ddof=1) / len(slope) + conjugate.var(ddof=1) / len(conjugate))
    return float(slope.mean() - conjugate.mean() - at_one), error


@pytest.mark.parametrize("name", NAMES)
def test_estimates_are_the_means_that_numpy_gives(name: str) -> None:
    r_real, r_fake = normal(301, seed=1) + 0.4, normal(200, seed=2) * 1.3 - 0.5
    estimates = Objective(get("gan"), get(name), "ratio").estimates(r_real, r_fake)
    bound, error = typed_bound(name, r_real.numpy(), r_fake.numpy())
    assert estimates[f"bound/{name}"] == pytest.approx(bound, rel=1e-9, abs=1e-12)
    assert estimates[f"bound/{name}_error"] in (pytest.approx(error, rel=1e-9), math.inf)
    kinds = ("bound", "recalibrated_bound", "estimate")
    assert {
        f"{kind}/{known}{end}" for kind in kinds for known in CATALOGUE for end in ("", "_error")
    } <= estimates.keys()
    split = {known.removeprefix("missed/") for known in estimates if re.fullmatch("missed/.*(?<!_error)", known)}
    assert split == {"mass", "js", "gan", name}
    assert all(type(value) is float for value in estimates.values())


def test_calibration_is_what_numpy_gives() -> None:
    r_real, r_fake = normal(301, seed=1) + 0.4, normal(200, seed=2) - 0.5
    estimates = Objective(get("kl"), get("kl")).estimates(r_real, r_fake)
    w = np.exp(r_fake.numpy())
    assert estimates["ratio/calibration_q"] == pytest.approx(w.mean())
    assert estimates["ratio/calibration_p"] == pytest.approx(np.exp(-r_real.numpy()).mean())
    assert estimates["ratio/effective_sample_size"] == pytest.approx(w.sum() ** 2 / (len(w) * (w**2).sum()))
    assert estimates["ratio/largest"] == max(np.abs(r_real.numpy()).max(), np.abs(r_fake.numpy()).max())


def test_an_exact_ratio_is_calibrated_and_estimates_the_divergences() -> None:
    z = torch.special.ndtri((torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000)
    v_real, v_fake = (P.log_density(x) - Q.log_density(x) for x in (0.5 + z, 1.1 * z))
    estimates = Objective(get("gan"), get("gan")).estimates(v_real, v_fake)
    exactly = {name: divergence_by_quadrature(name, P, Q) - get(name).f_at_one for name in CATALOGUE}
    for name, value in exactly.items():
        assert estimates[f"bound/{name}"] == pytest.approx(value, rel=1e-2)
        assert estimates[f"estimate/{name}"] == pytest.approx(value, rel=1e-2)
    assert estimates["ratio/calibration_q"] == pytest.approx(1, abs=1e-4)
    assert estimates["ratio/calibration_p"] == pytest.approx(1, abs=1e-3)
    assert estimates["ratio/effective_sample_size"] == pytest.approx(1 / (exactly["pearson"] + 1), rel=1e-3)


def test_every_bound_and_estimate_is_zero_where_the_densities_are_equal() -> None:
    zero = torch.zeros(10)
    estimates = Objective(get("gan"), get("non_saturating")).estimates(zero, zero)
    groups = ("bound/", "recalibrated_bound/", "estimate/", "missed/", "invented/", "shifted_bound/")
    assert all(abs(v) < 1e-14 for k, v in estimates.items() if k.startswith(groups) and not k.endswith("_error"))


@pytest.mark.parametrize("size", [50.0, 400.0, 800.0])
def test_no_estimate_of_a_discriminator_that_has_won_is_nan_or_negative(size: float) -> None:
    """All data at r = +size, all samples at −size."""
    won = torch.full((4,), size)
    estimates = Objective(get("gan"), get("gan")).estimates(won, -won)
    unknown = {k for k, v in estimates.items() if math.isnan(v)}
    assert all(re.match(r"recalibrated_bound/|ratio/(slope|pareto_k)|bound/.*_error", name) for name in unknown)
    assert all(v >= 0 for k, v in estimates.items() if k.startswith("estimate/"))
    assert estimates["estimate/reverse_kl"] == pytest.approx(min(size, LARGEST))


def test_a_head_without_a_ratio_reports_its_own_bound_only() -> None:
    v_real, v_fake = normal(50) + 1, normal(40)
    total_variation = Objective(get("total_variation"), get("total_variation")).estimates(v_real, v_fake)
    expected = (np.tanh(v_real.numpy()).mean() - np.tanh(v_fake.numpy()).mean()) / 2
    error = math.sqrt((np.tanh(v_real.numpy()) / 2).var(ddof=1) / 50 + (np.tanh(v_fake.numpy()) / 2).var(ddof=1) / 40)
    assert total_variation == {
        "bound/total_variation": pytest.approx(expected),
        "bound/total_variation_error": pytest.approx(error),
    }
    pearson = Objective(get("pearson"), get("pearson"), head="nowozin").estimates(v_real, v_fake)
    t = v_fake.numpy()
    assert pearson["bound/pearson"] == pytest.approx(v_real.numpy().mean() - (t + t**2 / 4).mean())
    assert pearson.keys() == {"bound/pearson", "bound/pearson_error"}


# ---------------------------------------------------------------------------------------------------------------------
# The three generator objectives


def pull(name: str, gen_objective: str, p: Mixture, mean: float, sd: float) -> tuple[float, float]:
    """(d/dμ, d/dσ) of the generator's loss on x = μ + σ z with the exact ratio frozen, by quadrature over x."""
    q = gaussian(mean, sd)
    x = X.clone().requires_grad_()
    objective = Objective(get("gan"), get(name), gen_objective)
    loss = objective.generator_loss(p.log_density(x) - q.log_density(x))[0] * len(x)
    (force,) = torch.autograd.grad(loss, x)
    return mean_of(q, force), mean_of(q, force * (X - mean) / sd)


def descent(name: str, p: Mixture, mean: float, sd: float) -> tuple[float, float]:
    """(d/dμ, d/dσ) of D_f(p ‖ N(μ, σ)) with f typed anew, by central differences of a quadrature."""

    def at(mean: float, sd: float) -> float:
        q = gaussian(mean, sd)
        return mean_of(q, torch.from_numpy(f(name, np.exp(exact(p, q).numpy()))))

    h = 1e-4
    return (at(mean + h, sd) - at(mean - h, sd)) / (2 * h), (at(mean, sd + h) - at(mean, sd - h)) / (2 * h)


def test_published_gradients_of_kl_and_reverse_kl() -> None:
    """d/dμ at q = N(.3, 2²): `matched` has that of the divergence, `ratio` another one for KL."""
    expected = {"kl": (0.17500, 0.17500, -0.28698), "reverse_kl": (0.07709, 0.07709, 0.07709)}
    for name, gradients in expected.items():
        pulls = [pull(name, objective, MIXTURE, 0.3, 2.0) for objective in ("matched", "ratio")]
        found = [gradient[0] for gradient in (descent(name, MIXTURE, 0.3, 2.0), *pulls)]
        assert found == pytest.approx(gradients, abs=6e-6)


@pytest.mark.parametrize("name", SMOOTH)
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


@pytest.mark.parametrize(
    ("name", "objective", "published"),
    [
        ("reverse_kl", "ratio", lambda d: np.log((1 - d) / d)),
        ("kl", "ratio", lambda d: d / (1 - d) * np.log(d / (1 - d))),
        ("non_saturating", "ratio", lambda d: -np.log(d)),
        ("gan", "alternative", lambda d: -np.log(d)),
        ("gan", "matched", lambda d: np.log(1 - d)),
        ("kl", "matched", lambda d: -d / (1 - d)),
    ],
)
def test_published_losses_under_the_gan_discriminator(
    name: str, objective: str, published: Callable[[np.ndarray], np.ndarray]
) -> None:
    d = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = generator_loss(Objective(get("gan"), get(name), objective), d.logit())
    assert float(loss) == pytest.approx(published(d.numpy()).mean())


@pytest.mark.parametrize("name", SMOOTH)
def test_each_objective_is_its_formula(name: str) -> None:
    r = normal(64)
    for gen_objective, expected in losses(name).items():
        loss = generator_loss(Objective(get("kl"), get(name), gen_objective), r)
        assert float(loss) == pytest.approx(expected(np.exp(r.numpy())).mean(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", SMOOTH)
def test_an_affine_term_changes_ratio_only(name: str) -> None:
    r, c = normal(64), 0.7
    shifted = get(name).shifted(c)
    for gen_objective in ("matched", "alternative"):
        plain, other = (Objective(get("gan"), each, gen_objective) for each in (get(name), shifted))
        assert float(generator_loss(other, r) - generator_loss(plain, r)) == pytest.approx(-c)
        torch.testing.assert_close(generator_slope(other, r), generator_slope(plain, r))
    plain, other = (Objective(get("gan"), each, "ratio") for each in (get(name), shifted))
    difference = c * (np.exp(r.numpy()) - 1)
    assert float(generator_loss(other, r) - generator_loss(plain, r)) == pytest.approx(difference.mean())
    discriminator_losses = [
        float(Objective(each, get("gan")).discriminator_loss(r, -r)[0]) for each in (get(name), shifted)
    ]
    assert discriminator_losses[0] == pytest.approx(discriminator_losses[1])


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


@pytest.mark.parametrize("name", SMOOTH)
def test_the_discriminator_loss_is_minus_the_bound(name: str) -> None:
    r_real, r_fake = normal(30, seed=1), normal(20, seed=2)
    objective = Objective(get(name), get("kl"))
    loss, _ = objective.discriminator_loss(r_real, r_fake)
    at_one = float(f(name, 1))
    assert -float(loss) - at_one == pytest.approx(typed_bound(name, r_real.numpy(), r_fake.numpy())[0], abs=1e-9)
    assert objective.estimates(r_real, r_fake)[f"bound/{name}"] == pytest.approx(-float(loss) - at_one, abs=1e-12)


def test_the_statistics_are_what_numpy_gives() -> None:
    v_real, v_fake = normal(30, seed=1) + 0.3, normal(30, seed=2) - 0.3
    _, statistics = Objective(get("squared_hellinger"), get("kl"), head="nowozin").discriminator_loss(v_real, v_fake)
    right = (v_real.numpy() > 0).mean() + (v_fake.numpy() < 0).mean()
    assert float(statistics["discriminator/accuracy"]) == pytest.approx(right / 2)
    assert float(statistics["ratio/real_mean"]) == pytest.approx(2 * v_real.numpy().mean())
    assert float(statistics["ratio/fake_mean"]) == pytest.approx(2 * v_fake.numpy().mean())


def test_outputs_without_a_ratio_are_counted() -> None:
    objective = Objective(get("pearson"), get("pearson"), head="nowozin")
    _, statistics = objective.discriminator_loss(
        torch.tensor([-3.0, -2.0, 0.0, 1.0]), torch.tensor([-2.5, 0.0, 1.0, 2.0])
    )
    assert float(statistics["ratio/invalid_share"]) == (2 / 4 + 1 / 4) / 2
    assert "ratio/real_mean" not in statistics


def test_an_affine_term_that_no_ratio_carries_is_refused() -> None:
    """Pearson's bound in Nowozin's coordinate is not a function of the log-ratio, to which the term belongs."""
    pearson = get("pearson")
    with pytest.raises(ConfigError, match=r"gen_div\.affine .* head=log_ratio"):
        Objective(pearson, pearson.shifted(5.0), "ratio", "nowozin")
    Objective(pearson, pearson.shifted(5.0), "ratio")


def test_the_log_ratio_of_an_output() -> None:
    v = torch.tensor([-1.0, 0.5])
    assert Objective(get("kl"), get("kl"), head="nowozin").log_ratio(v).tolist() == [-2.0, -0.5]
    assert Objective(get("kl"), get("kl")).log_ratio(v) is v
    assert Objective(get("pearson"), get("pearson"), head="nowozin").log_ratio(v) is None


# ---------------------------------------------------------------------------------------------------------------------
# Every combination

COMBINED = [*CATALOGUE, "alpha_0.3", "alpha_-1", "dual_non_saturating"]
TV = "total_variation"


def build(disc_div: str, gen_div: str, gen_objective: str, head: str) -> Objective:
    return Objective(get(disc_div), get(gen_div), gen_objective, head)


def read_first_offer(message: str) -> dict[str, str]:
    """The first change that an error message tells to choose: `key=value`, or `another disc_div`."""
    offer = re.search(r"choose .*?(?:(\w+)=(\w+)|another (\w+))", message)
    assert offer is not None, message
    return {offer[1]: offer[2]} if offer[1] else {offer[3]: "gan"}


@pytest.mark.parametrize(("disc", "head"), [*product(COMBINED, HEADS)])
def test_every_combination_trains_or_is_rejected_with_a_way_to_one_that_does(disc: str, head: str) -> None:
    outputs = normal(16, torch.float32)
    for gen, gen_objective in product(COMBINED, GENERATOR_OBJECTIVES):
        choice = {"disc_div": disc, "gen_div": gen, "gen_objective": gen_objective, "head": head}
        for _ in range(4):
            try:
                objective = build(**choice)
                break
            except ConfigError as error:
                choice |= read_first_offer(str(error))
        loss, force = generator_loss(objective, outputs), generator_slope(objective, outputs)
        assert loss.isfinite()
        assert force.isfinite().all()
        assert (force != 0).all()


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (("le_cam", "kl", "matched", "nowozin"), "head=nowozin .* disc_div=le_cam has none; choose head=log_ratio"),
        ((TV, "kl", "matched", "ratio"), f"head=ratio needs .* disc_div={TV} does not have"),
        ((TV, "kl", "matched", "log_ratio"), f"gen_div=kl needs .* choose another disc_div, or gen_div={TV}$"),
        ((TV, "kl", "ratio", "log_ratio"), "gen_div=kl needs .* choose another disc_div$"),
        ((TV, TV, "ratio", "log_ratio"), f"disc_div={TV} cannot give; choose gen_objective=matched"),
        (("pearson", "kl", "matched", "nowozin"), "choose head=log_ratio, or gen_div=pearson"),
        (("gan", TV, "matched", "log_ratio"), f"zero gradient for gen_div={TV}.* choose gen_objective=ratio"),
        (("gan", "kl", "match", "log_ratio"), r"gen_objective=match is not .* did you mean matched\?"),
    ],
)
def test_combinations_that_cannot_train(choice: tuple[str, str, str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(*choice)


PUBLISHED = [*heads.NOWOZIN_LOG_RATIO, *heads.NOWOZIN_DIRECT]


@pytest.mark.parametrize(
    ("disc", "head"),
    [
        *product(COMBINED, ["log_ratio"]),
        *product([name for name in CATALOGUE if name != TV], ["ratio"]),
        *product(PUBLISHED, ["nowozin"]),
    ],
)
def test_every_discriminator_learns(disc: str, head: str) -> None:
    v_real, v_fake = (normal(16, torch.float32, seed).requires_grad_() for seed in (1, 2))
    loss, statistics = build(disc, disc, "matched", head).discriminator_loss(v_real, v_fake)
    loss.backward()
    assert all(value.isfinite() for value in statistics.values())
    assert (v_real.grad < 0).all()
    # Pearson's conjugate decreases where its published activation leaves the range of f'.
    outside_the_range = (v_fake <= -2) if (disc, head) == ("pearson", "nowozin") else torch.zeros(16, dtype=torch.bool)
    assert (v_fake.grad[~outside_the_range] > 0).all()


@pytest.mark.parametrize(("disc", "gen"), [(name, "kl") for name in SMOOTH] + [(TV, TV)])
def test_training_steps_are_finite_at_outputs_of_ten_thousand(disc: str, gen: str) -> None:
    v = torch.tensor([-1e4, -100.0, 100.0, 1e4], requires_grad=True)
    objective = Objective(get(disc), get(gen))
    for loss in (objective.discriminator_loss(v, v)[0], generator_loss(objective, v)):
        (gradient,) = torch.autograd.grad(loss, v)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_the_log_ratio_is_that_of_the_data_under_label_smoothing() -> None:
    """Where D is optimal: log p/q, and infinite beyond the largest output that smoothed data can give."""
    r, s = torch.linspace(-4, 4, 9), 0.1
    smoothed = (1 - s) * r.exp() / (1 + s * r.exp())
    game = Objective("gan", "kl", smoothing=s)
    torch.testing.assert_close(game.log_ratio(smoothed.log()), r)
    assert float(game.log_ratio(torch.tensor([math.log(1 / s - 1) + 0.01]))[0]) == math.inf
