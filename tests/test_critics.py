"""Critics against their known optima, independent solvers, linearised flows and the ends of float32."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from scipy.special import expit, log_expit
from support.formulas import slope
from support.states import assert_goes_on, assert_same, experiment, new_state
from torch import Tensor

from gantrain.data import Batch
from gantrain.errors import ConfigError
from gantrain.objectives.critic_objective import CriticObjective, find_constant
from gantrain.objectives.critics import CRITICS, Critic, LeastSquares, Relativistic
from gantrain.objectives.divergences import CATALOGUE
from gantrain.objectives.objective import GENERATOR_OBJECTIVES, Objective
from gantrain.objectives.weighting import DEFAULT
from gantrain.precision import as_float32
from gantrain.regularizers.regularizers import WeightClipping
from gantrain.training.acceleration import compile_losses
from gantrain.training.iteration import Iteration
from gantrain.training.losses import Losses
from gantrain.training.setup import UPDATES

# Densities on four points: each point as often in a batch of twenty as its weight says, so that means are exact.
P, Q = np.array([8, 6, 4, 2]) / 20, np.array([2, 5, 6, 7]) / 20
X, Y = (torch.tensor(np.repeat(np.arange(4), np.rint(20 * each).astype(int))) for each in (P, Q))
R = np.log(P / Q)

SETTINGS: list[Critic] = [
    *(critic() for critic in CRITICS.values()),
    Relativistic(pairs="all"),
    LeastSquares(a=-1, b=1, c=0),
    LeastSquares(a=1, b=0, c=0.2),
    LeastSquares(squash=True),
]
READABLE = [critic for critic in SETTINGS if critic.has_ratio_at_every_output]


def name_settings(critic: object) -> str:
    return repr(critic) if isinstance(critic, Critic) else str(critic)


def minimise(critic: Critic, *, start: float = 0.1) -> tuple[np.ndarray, float]:
    """The outputs on the four points that minimise D's loss, and that loss, by LBFGS."""
    v = (start * torch.arange(4, dtype=torch.float64)).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [v], max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        # Every pair once, where the loss takes one pair each: the product of the two densities.
        of_data, of_samples = v[X], v[Y]
        if isinstance(critic, Relativistic) and critic.pairs == "one":
            of_data, of_samples = of_data.repeat_interleave(20), of_samples.repeat(20)
        return critic.discriminator_loss(of_data, of_samples)

    def closure() -> float:
        optimizer.zero_grad()
        loss().backward()
        return float(loss().detach())

    optimizer.step(closure)
    return v.detach().numpy(), float(loss().detach())


# ---------------------------------------------------------------------------------------------------------------------
# The optimal discriminator


@pytest.mark.parametrize("pairs", ["one", "all"])
def test_relativistic_pairs_find_the_log_ratio_up_to_a_constant(pairs: str) -> None:
    v, loss = minimise(Relativistic(pairs=pairs))
    np.testing.assert_allclose(v - v.mean(), R - R.mean(), atol=1e-6)
    joint, swapped = np.outer(P, Q), np.outer(Q, P)
    middle = (joint + swapped) / 2
    jsd = sum((each * np.log(each / middle)).sum() for each in (joint, swapped)) / 2
    assert loss == pytest.approx(math.log(2) - jsd, abs=1e-9)


def test_donsker_and_varadhan_find_the_log_ratio_up_to_a_constant_and_kl() -> None:
    v, loss = minimise(CRITICS["donsker_varadhan"]())
    np.testing.assert_allclose(v - v.mean(), R - R.mean(), atol=1e-6)
    assert -loss == pytest.approx((P * R).sum(), abs=1e-9)


@pytest.mark.parametrize("labels", [(0, 1), (-1, 1), (1, 0), (2, 5)])
def test_least_squares_find_the_posterior_between_the_labels(labels: tuple[int, int]) -> None:
    a, b = labels
    v, loss = minimise(LeastSquares(a=a, b=b, c=b))
    np.testing.assert_allclose(v, (b * P + a * Q) / (P + Q), atol=1e-7)
    le_cam = ((P - Q) ** 2 / (P + Q)).sum()
    assert loss == pytest.approx((b - a) ** 2 / 8 * (2 - le_cam), abs=1e-9)
    np.testing.assert_allclose(LeastSquares(a=a, b=b, c=b).log_ratio(torch.tensor(v)), R, atol=1e-6)


def test_squashed_least_squares_find_the_log_ratio() -> None:
    v, _ = minimise(LeastSquares(a=-1, b=1, squash=True))
    np.testing.assert_allclose(v, R, atol=1e-6)


def test_hinge_finds_the_sign_and_total_variation() -> None:
    """Descent with a falling rate: LBFGS stops at a kink."""
    critic, v = CRITICS["hinge"](), torch.zeros(4, dtype=torch.float64, requires_grad=True)
    for step in range(2000):
        (gradient,) = torch.autograd.grad(critic.discriminator_loss(v[X], v[Y]), v)
        v = (v - gradient / math.sqrt(1 + step)).detach().requires_grad_()
    np.testing.assert_allclose(v.detach(), np.sign(P - Q), atol=0.02)
    total_variation, best = np.abs(P - Q).sum() / 2, torch.tensor(np.sign(P - Q))
    reached = critic.discriminator_loss(v[X], v[Y]).detach()
    assert float(reached) == pytest.approx(2 - 2 * total_variation, abs=0.01)
    assert float(critic.discriminator_loss(best[X], best[Y])) == pytest.approx(2 - 2 * total_variation, abs=1e-12)
    found = CriticObjective("hinge").estimates(best[X], best[Y])
    assert found["bound/total_variation"] == pytest.approx(total_variation)


def test_hinge_has_no_gradient_beyond_its_margin() -> None:
    v_real, v_fake = (torch.tensor(values, requires_grad=True) for values in ([0.5, 1.5, 40.0], [-0.5, -1.5, -40.0]))
    CRITICS["hinge"]().discriminator_loss(v_real, v_fake).backward()
    assert v_real.grad is not None
    assert v_fake.grad is not None
    assert (v_real.grad.tolist(), v_fake.grad.tolist()) == (pytest.approx([-1 / 3, 0, 0]), pytest.approx([1 / 3, 0, 0]))


def test_hinge_outputs_of_any_size_bound_total_variation_from_below() -> None:
    objective, random = CriticObjective("hinge"), np.random.default_rng(0)
    for scale in (0.1, 1.0, 10.0, 1e4):
        v = torch.tensor(scale * random.standard_normal(4))
        assert objective.estimates(v[X], v[Y])["bound/total_variation"] <= np.abs(P - Q).sum() / 2 + 1e-12


def test_wasserstein_is_the_dual_of_transport() -> None:
    """The best 1-Lipschitz outputs at places on a line, by linear programming over the gradient of D's loss."""
    places, critic = np.array([0.0, 0.7, 1.0, 3.0]), CRITICS["wasserstein"]()
    v = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    (downhill,) = torch.autograd.grad(critic.discriminator_loss(v[X], v[Y]), v)
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    differences = np.array([np.eye(4)[i] - np.eye(4)[j] for i, j in pairs])
    limits = [abs(places[i] - places[j]) for i, j in pairs]
    found = scipy.optimize.linprog(downhill.numpy(), differences, limits, bounds=[(0, 0), *[(None, None)] * 3])
    best = torch.tensor(found.x)
    expected = scipy.stats.wasserstein_distance(places, places, P, Q)
    assert -found.fun == pytest.approx(expected)
    found_by_critic = CriticObjective("wasserstein").estimates(best[X], best[Y])
    assert found_by_critic["estimate/wasserstein"] == pytest.approx(expected)
    assert float(-critic.discriminator_loss(best[X], best[Y])) == pytest.approx(expected)


def test_the_relativistic_average_finds_something_else_than_the_log_ratio() -> None:
    critic = CRITICS["relativistic_average"]()
    v, loss = minimise(critic)

    def typed(w: np.ndarray) -> float:
        return float(-(P * log_expit(w - Q @ w)).sum() - (Q * log_expit(P @ w - w)).sum())

    assert loss == pytest.approx(typed(v))
    assert loss == pytest.approx(scipy.optimize.minimize(typed, np.zeros(4), tol=1e-12).fun, abs=1e-8)
    assert (np.diff(v) < 0).all()  # as r does
    assert np.abs(v - v.mean() - (R - R.mean())).max() > 0.1
    assert critic.gives_ratio == "no"


@pytest.mark.parametrize(
    "critic", [one for one in SETTINGS if one.gives_ratio == "up to a constant"], ids=name_settings
)
def test_a_ratio_up_to_a_constant_comes_of_a_loss_that_ignores_the_constant(critic: Critic) -> None:
    torch.manual_seed(0)
    v_real, v_fake = torch.randn(2, 64, dtype=torch.float64)
    loss = critic.discriminator_loss(v_real, v_fake)
    assert float(critic.discriminator_loss(v_real + 123, v_fake + 123)) == pytest.approx(float(loss), abs=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Least squares as a head of Le Cam's divergence


@pytest.mark.parametrize(("a", "b"), [(0, 1), (-1, 1), (3, 1)])
def test_least_squares_is_the_published_loss_and_the_bound_of_le_cam(a: float, b: float) -> None:
    torch.manual_seed(0)
    v_real, v_fake = a + (b - a) * torch.rand(2, 50, dtype=torch.float64)
    critic = LeastSquares(a=a, b=b, c=b)
    loss = critic.discriminator_loss(v_real, v_fake)
    published = ((v_real - b) ** 2).mean() / 2 + ((v_fake - a) ** 2).mean() / 2
    assert float(loss) == pytest.approx(float(published), abs=1e-12)
    r_real, r_fake = (((v - a) / (b - v)).log() for v in (v_real, v_fake))
    bound = CATALOGUE["le_cam"].real(r_real).mean() - CATALOGUE["le_cam"].fake(r_fake).mean()
    assert float(loss) == pytest.approx((b - a) ** 2 / 8 * (2 - float(bound)), abs=1e-12)
    squashed = LeastSquares(a=a, b=b, c=b, squash=True).discriminator_loss(r_real, r_fake)
    assert float(squashed) == pytest.approx(float(published), abs=1e-9)


def test_outputs_beyond_the_labels_are_counted_and_limited() -> None:
    objective = CriticObjective(LeastSquares(a=-1, b=1))
    v_real, v_fake = torch.tensor([0.0, 2.0, 0.5, 1.0]), torch.tensor([-3.0, 0.0, 0.5, -0.5])
    _, statistics = objective.discriminator_loss(v_real, v_fake)
    assert float(statistics["ratio/invalid_share"]) == 3 / 8
    assert float(statistics["discriminator/accuracy"]) == 5 / 8
    r = objective.log_ratio(v_real)
    assert r is not None
    np.testing.assert_allclose(r, [0, 10, math.log(3), 10], rtol=1e-4)
    assert "ratio/invalid_share" not in CriticObjective(LeastSquares(squash=True)).discriminator_loss(v_real, v_fake)[1]


# ---------------------------------------------------------------------------------------------------------------------
# G's own losses


def own_slope(critic: Critic, v_fake: Tensor, v_real: Tensor | None = None) -> np.ndarray:
    """B times the gradient of G's own loss, as numbers per sample."""
    return slope(lambda v: CriticObjective(critic).generator_loss(v, v_real)[0], v_fake).numpy()  # summed over B


@pytest.mark.parametrize("name", ["hinge", "wasserstein"])
def test_the_linear_losses_move_every_sample_alike(name: str) -> None:
    np.testing.assert_allclose(own_slope(CRITICS[name](), torch.linspace(-50, 50, 7)), -1)


def test_donsker_and_varadhan_give_g_the_normalised_weights_of_kl() -> None:
    r = torch.linspace(-3, 3, 11, dtype=torch.float64)
    weights = r.exp() / r.exp().mean()
    np.testing.assert_allclose(own_slope(CRITICS["donsker_varadhan"](), r + 7), -weights.numpy())


@pytest.mark.parametrize(("a", "b"), [(0, 1), (-1, 1)])
def test_least_squares_give_g_the_divergence_that_is_told(a: float, b: float) -> None:
    """f″(u) = (b − a)² / (u (1 + u)³): −dL/dr = u² f″(u) along the optimal outputs."""
    r = torch.linspace(-4, 4, 9, dtype=torch.float64)
    critic, u = LeastSquares(a=a, b=b, c=b), r.exp().numpy()
    at_optimum = slope(lambda r: critic.generator_loss(a + (b - a) * r.sigmoid(), None), r)  # summed over r
    np.testing.assert_allclose(-at_optimum.numpy(), u**2 * (b - a) ** 2 / (u * (1 + u) ** 3), rtol=1e-9)
    assert "(b − a)² / (u (1 + u)³)" in critic.minimised


def test_the_pairs_of_a_relativistic_generator_are_those_of_its_discriminator_exchanged() -> None:
    torch.manual_seed(0)
    v_real, v_fake = torch.randn(2, 9, dtype=torch.float64)
    for critic in (Relativistic(), Relativistic(pairs="all"), CRITICS["relativistic_average"]()):
        exchanged = critic.discriminator_loss(v_fake, v_real)
        assert float(critic.generator_loss(v_fake, v_real)) == pytest.approx(float(exchanged), abs=1e-12)
    difference = (v_real[:, None] - v_fake).numpy()
    all_pairs = own_slope(Relativistic(pairs="all"), v_fake, v_real)
    np.testing.assert_allclose(all_pairs, -expit(difference).mean(0))
    np.testing.assert_allclose(own_slope(Relativistic(), v_fake, v_real), -expit(difference.diagonal()))


# ---------------------------------------------------------------------------------------------------------------------
# The constant


def solve(v_real: Tensor, v_fake: Tensor) -> float:
    real, fake = v_real.double().numpy(), v_fake.double().numpy()

    def excess(c: float) -> float:
        return float(expit(c - real).mean() - expit(fake - c).mean())

    low, high = min(real.min(), fake.min()) - 1, max(real.max(), fake.max()) + 1
    return float(scipy.optimize.brentq(excess, low, high, xtol=1e-13))


@pytest.mark.parametrize("gap", [-5.0, 0.0, 1.0, 20.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("sizes", [(100, 100), (500, 37), (8, 8)])
def test_the_constant_is_bennetts_root(gap: float, scale: float, sizes: tuple[int, int]) -> None:
    torch.manual_seed(0)
    v_real, v_fake = scale * torch.randn(sizes[0]).double() + gap, 2 * scale * torch.randn(sizes[1]).double() - gap / 2
    assert float(find_constant(v_real, v_fake)) == pytest.approx(solve(v_real, v_fake), abs=1e-5)
    single = find_constant(v_real.float() + 100, v_fake.float() + 100)
    assert float(single) == pytest.approx(100 + solve(v_real, v_fake), abs=2e-3)


@pytest.mark.parametrize("scale", [50.0, 1e3, 1e4])
def test_the_constant_solves_its_equation_for_outputs_far_apart(scale: float) -> None:
    random = torch.Generator().manual_seed(0)
    for _ in range(50):
        v_real, v_fake = scale * torch.randn(2, 8, generator=random)
        c = float(find_constant(v_real, v_fake))
        assert min(v_real.min(), v_fake.min()) <= c <= max(v_real.max(), v_fake.max())
        excess = expit(c - v_real.double().numpy()).mean() - expit(v_fake.double().numpy() - c).mean()
        assert abs(excess) < 1e-3


def test_the_constant_of_an_exact_ratio_is_exact() -> None:
    v = torch.tensor(R) + 4.2
    assert float(find_constant(v[X], v[Y])) == pytest.approx(4.2, abs=1e-9)
    ratios = CriticObjective("relativistic").log_ratios(v[X], v[Y])
    assert ratios is not None
    np.testing.assert_allclose(ratios[1], R[Y], atol=1e-9)


def test_the_constant_varies_less_than_the_logarithm_of_the_mean_weight() -> None:
    """p = N(0, 1), q = N(1, .7²), 500 draws each; log E_q[e^r] is 0 and has a heavy tail."""
    random = np.random.default_rng(0)
    found: list[tuple[float, float]] = []
    for _ in range(300):
        x, y = random.standard_normal(500), 1 + 0.7 * random.standard_normal(500)
        r_real, r_fake = (torch.tensor(-(z**2) / 2 + ((z - 1) / 0.7) ** 2 / 2 + math.log(0.7)) for z in (x, y))
        found.append((float(find_constant(r_real, r_fake)), float(r_fake.logsumexp(0)) - math.log(500)))
    bennett, naive = np.std(found, axis=0)
    assert bennett == pytest.approx(0.041, abs=0.01)
    assert naive > 3 * bennett


# ---------------------------------------------------------------------------------------------------------------------
# Any divergence through the ratio


@pytest.mark.parametrize("gen_objective", GENERATOR_OBJECTIVES)
@pytest.mark.parametrize("critic", READABLE, ids=name_settings)
def test_g_minimises_any_divergence_through_the_ratio(critic: Critic, gen_objective: str) -> None:
    torch.manual_seed(0)
    v_real, v_fake = torch.randn(32, dtype=torch.float64) + 6, torch.randn(32, dtype=torch.float64) + 5
    constant = solve(v_real, v_fake) if critic.gives_ratio == "up to a constant" else 0.0
    for name, divergence in CATALOGUE.items():
        if not divergence.invertible and gen_objective != "ratio":
            continue
        game = CriticObjective(critic, name, gen_objective)
        assert game.needs_real == (critic.gives_ratio == "up to a constant")
        known = Objective("gan", name, gen_objective)
        ours = slope(lambda v, game=game: game.generator_loss(v, v_real)[0], v_fake)
        theirs = slope(lambda r, known=known: known.generator_loss(r)[0], v_fake - constant)
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-7, atol=1e-12)


def test_weights_and_estimates_are_those_of_the_ratio() -> None:
    torch.manual_seed(0)
    v_real, v_fake = torch.randn(2, 64, dtype=torch.float64)
    game, known = CriticObjective("relativistic", "kl", weighting=DEFAULT), Objective("gan", "kl", weighting=DEFAULT)
    constant = solve(v_real, v_fake)
    ours, statistics = game.generator_loss(v_fake + 50, v_real + 50)
    theirs, expected = known.generator_loss(v_fake - constant)
    assert float(ours) == pytest.approx(float(theirs), abs=1e-6)
    for key, value in expected.items():
        assert float(statistics[key]) == pytest.approx(float(value), abs=1e-6), key
    estimates = game.estimates(v_real + 50, v_fake + 50)
    expected_estimates = known.estimates(v_real - constant, v_fake - constant)
    assert {"bound/kl", "estimate/kl", "ratio/calibration_q"} <= expected_estimates.keys() & estimates.keys()
    for key in expected_estimates.keys() & estimates.keys():
        assert estimates[key] == pytest.approx(expected_estimates[key], rel=1e-6, abs=1e-6), key
    r = v_real - constant
    assert estimates["ratio/real_mean"] == pytest.approx(float(r.mean()), abs=1e-6)


@pytest.mark.parametrize("critic", READABLE, ids=name_settings)
def test_no_gradient_passes_through_the_constant(critic: Critic) -> None:
    v_fake = torch.randn(16, requires_grad=True)
    game = CriticObjective(critic, "reverse_kl")
    game.generator_loss(v_fake, torch.randn(16))[0].backward()
    np.testing.assert_allclose(v_fake.grad, -1 / 16, rtol=1e-6)  # reverse KL: −mean r, the constant being fixed


@pytest.mark.parametrize("critic", [one for one in SETTINGS if not one.has_ratio_at_every_output], ids=name_settings)
def test_a_divergence_without_a_ratio_is_refused_with_the_way_out(critic: Critic) -> None:
    with pytest.raises(ConfigError, match=rf"gen_div=kl needs the log-ratio .* critic={critic.name} .* gen_div=own"):
        CriticObjective(critic, "kl")
    with pytest.raises(ConfigError, match="gen_weights rescales"):
        CriticObjective(critic, weighting=DEFAULT)
    with pytest.raises(ConfigError, match="gen_objective=ratio is a loss that a divergence gives"):
        CriticObjective(critic, gen_objective="ratio")


@pytest.mark.parametrize("critic", SETTINGS, ids=name_settings)
def test_reports_hold_what_is_known(critic: Critic) -> None:
    game = CriticObjective(critic)
    torch.manual_seed(0)
    names = set(game.estimates(torch.randn(50) + 1, torch.randn(50)))
    bounds = {f"bound/{name}" for name in CATALOGUE}
    if critic.gives_ratio == "no":
        assert names == ({critic.headline, f"{critic.headline}_error"} if critic.headline else set())
    else:
        assert names >= bounds | {"ratio/calibration_q", "ratio/real_mean"}
    if critic.headline:
        assert critic.headline in names
    watched = game.main_divergence
    assert (None if watched is None else f"bound/{watched.name}") == (
        critic.headline if critic.headline.startswith("bound/") else None
    )
    assert (game.log_ratio(torch.zeros(3)) is None) == (critic.gives_ratio != "yes")


# ---------------------------------------------------------------------------------------------------------------------
# The flow near equilibrium: D(x) = ψ x on data at 0, samples at θ (Mescheder et al. 2018)


def eigenvalues(critic: Critic, gen_div: str = "own", r1: float = 0.0) -> list[complex]:
    """Of the Jacobian at 0 of (θ, ψ)' = −(∂L_G/∂θ, ∂L_D/∂ψ), by differentiating the losses twice."""
    game = CriticObjective(critic, gen_div)

    def flow(point: Tensor) -> Tensor:
        theta, psi = point
        v_real, v_fake = psi * torch.zeros(2, dtype=torch.float64), (psi * theta).expand(2)
        loss = game.discriminator_loss(v_real, v_fake)[0] + r1 / 2 * psi**2
        generator_loss = game.generator_loss(v_fake, v_real.detach())[0]
        (of_d,) = torch.autograd.grad(loss, psi, create_graph=True)
        (of_g,) = torch.autograd.grad(generator_loss, theta, create_graph=True)
        return torch.stack([-of_g, -of_d])

    jacobian = torch.autograd.functional.jacobian(flow, torch.zeros(2, dtype=torch.float64, requires_grad=True))
    return sorted(np.linalg.eigvals(jacobian.numpy()).tolist(), key=lambda each: (each.real, each.imag))


@pytest.mark.parametrize(
    ("critic", "turns"),
    [
        (Relativistic(), 0.5),
        (Relativistic(pairs="all"), 0.5),
        (CRITICS["relativistic_average"](), 1.0),
        (CRITICS["hinge"](), 1.0),
        (CRITICS["wasserstein"](), 1.0),
        (CRITICS["donsker_varadhan"](), 1.0),
        (LeastSquares(a=-1, b=1), 1.0),
        (LeastSquares(a=-1, b=1, c=0), 0.0),
        (LeastSquares(squash=True), 1 / 8),
    ],
    ids=name_settings,
)
def test_the_flow_circles_as_theory_says(critic: Critic, turns: float) -> None:
    """Least squares with c in the middle of a and b has no force at equilibrium."""
    assert eigenvalues(critic) == pytest.approx([-1j * turns, 1j * turns], abs=1e-9)


def test_a_ratio_generator_circles_with_its_own_weight() -> None:
    """θ' = −w(0) ψ and ψ' = −θ/2 of the pairs: KL's weight is 1 at p = q."""
    half = math.sqrt(0.5)
    assert eigenvalues(Relativistic(), "kl") == pytest.approx([-1j * half, 1j * half], abs=1e-9)


@pytest.mark.parametrize("gamma", [0.2, 0.5, 2.0])
def test_r1_damps_the_relativistic_flow(gamma: float) -> None:
    """λ = −γ/2 ± √(γ²/4 − ¼)."""
    root = np.sqrt(complex(gamma**2 / 4 - 0.25))
    assert eigenvalues(Relativistic(), r1=gamma) == pytest.approx(
        sorted([-gamma / 2 - root, -gamma / 2 + root], key=lambda each: (each.real, each.imag)), abs=1e-9
    )


# ---------------------------------------------------------------------------------------------------------------------
# Float32 and bfloat16


FAR = torch.tensor([-1e4, -800.0, -89.0, -44.4, -18.42, 0.0, 18.42, 44.4, 89.0, 800.0, 1e4])


@pytest.mark.parametrize("critic", SETTINGS, ids=name_settings)
def test_losses_and_gradients_are_finite_at_every_float32_output_up_to_ten_thousand(critic: Critic) -> None:
    gen_divs = ["own", *(CATALOGUE if critic.has_ratio_at_every_output else [])]
    for shift in range(len(FAR)):
        v_real, v_fake = FAR.clone().requires_grad_(), FAR.roll(shift).clone().requires_grad_()
        loss, statistics = CriticObjective(critic).discriminator_loss(v_real, v_fake)
        gradients = torch.autograd.grad(loss, [v_real, v_fake])
        assert loss.isfinite()
        assert all(each.isfinite().all() for each in (*gradients, *statistics.values()))
        for name in gen_divs:
            divergence = CATALOGUE.get(name)
            game = CriticObjective(critic, name, "matched" if divergence is None or divergence.invertible else "ratio")
            loss, statistics = game.generator_loss(v_fake, v_real.detach())
            (gradient,) = torch.autograd.grad(loss, v_fake)
            assert loss.isfinite()
            assert all(each.isfinite().all() for each in (gradient, *statistics.values())), name


@pytest.mark.parametrize("critic", [one for one in SETTINGS if not getattr(one, "squash", False)], ids=name_settings)
def test_the_discriminator_always_learns_from_a_grave_mistake(critic: Critic) -> None:
    """Data far below samples keep a slope in every loss; the squashed one saturates, as Le Cam's does."""
    for size in (18.42, 100.0, 1e4):
        v = torch.tensor([-size, size], requires_grad=True)
        side = -1 if getattr(critic, "b", 1) < getattr(critic, "a", 0) else 1
        (gradient,) = torch.autograd.grad(critic.discriminator_loss(side * v[:1], side * v[1:]), v)
        assert gradient[0] < -0.1
        assert gradient[1] > 0.1


@pytest.mark.parametrize("critic", SETTINGS, ids=name_settings)
def test_losses_of_bfloat16_outputs_and_their_gradients_are_finite(critic: Critic) -> None:
    game = CriticObjective(critic)
    for shift in range(len(FAR)):
        v_real, v_fake = (v.bfloat16().requires_grad_() for v in (FAR, FAR.roll(shift)))
        both = as_float32(v_real), as_float32(v_fake)
        of_d, of_g = game.discriminator_loss(*both)[0], game.generator_loss(both[1], both[0].detach())[0]
        gradients = [*torch.autograd.grad(of_d, [v_real, v_fake]), *torch.autograd.grad(of_g, v_fake)]
        assert of_d.dtype == of_g.dtype == torch.float32
        assert all(each.isfinite().all() for each in (of_d, of_g, *gradients))


@pytest.mark.parametrize("m", [-2.0, 0.5, 3.0])
def test_a_clipped_linear_critic_estimates_its_limit_times_the_distance(m: float) -> None:
    torch.manual_seed(0)
    losses = Losses(CriticObjective("wasserstein"), [WeightClipping(0.01)])
    discriminator = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Flatten(0))
    optimizer = torch.optim.SGD(discriminator.parameters(), lr=0.1)
    real, fake = Batch(torch.zeros(4, 1)), torch.full((4, 1), m)
    for _ in range(3):
        optimizer.zero_grad()
        losses.discriminator_loss(discriminator, real, fake)[0].backward()
        optimizer.step()
        losses.constrain(discriminator)
    with torch.no_grad():
        estimates = CriticObjective("wasserstein").critic.estimates(discriminator(real.images), discriminator(fake))
    assert estimates["estimate/wasserstein"] == pytest.approx(0.01 * abs(m))


@pytest.mark.parametrize("critic", SETTINGS, ids=name_settings)
def test_float32_agrees_with_float64(critic: Critic) -> None:
    torch.manual_seed(0)
    v_real, v_fake = 3 * torch.randn(2, 64)
    game = CriticObjective(critic)
    for loss in (game.discriminator_loss, lambda a, b: game.generator_loss(b, a)):
        assert float(loss(v_real, v_fake)[0]) == pytest.approx(
            float(loss(v_real.double(), v_fake.double())[0]), rel=1e-5
        )
    rounded = as_float32(v_real.bfloat16()), as_float32(v_fake.bfloat16())
    assert rounded[0].dtype == torch.float32
    assert float(game.discriminator_loss(*rounded)[0]) == pytest.approx(
        float(game.discriminator_loss(v_real, v_fake)[0]), rel=0.02
    )


# ---------------------------------------------------------------------------------------------------------------------
# Training


GAMES = [*(CriticObjective(critic) for critic in SETTINGS), CriticObjective("relativistic", "kl", weighting=DEFAULT)]
IDS = [f"{name_settings(game.critic)}-{game.gen_div.name if game.gen_div else 'own'}" for game in GAMES]


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("game", GAMES, ids=IDS)
def test_a_restored_run_goes_on_bit_for_bit(game: CriticObjective, update: str) -> None:
    assert_goes_on(new_state, experiment(Losses(game), steps=2, update=update))


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("game", GAMES, ids=IDS)
def test_the_device_watches_as_the_host_does(game: CriticObjective, update: str) -> None:
    by_host, by_device = new_state(), new_state()
    ours = Iteration(by_host, experiment(Losses(game), update=update))
    theirs = Iteration(by_device, experiment(Losses(game), update=update), guard_on_device=True)
    for _ in range(5):
        ours.play()
        theirs.play()
    assert theirs.synchronize()
    assert_same(by_host, by_device, rtol=1e-4 if update == "simultaneous" else None)


@pytest.mark.parametrize("game", GAMES, ids=IDS)
def test_one_pass_serves_both_players_or_two_are_made(game: CriticObjective) -> None:
    """G's update of one pass is that of its own loss; hinge, flat beyond its margin, is always played in two."""
    told = experiment(Losses(game), update="simultaneous")
    state = new_state()
    Iteration(state, told).play()
    assert state.statistics.means()["update/two_pass_share"] == (1 if game.critic.name == "hinge" else 0)


@pytest.mark.parametrize("game", GAMES, ids=IDS)
def test_compiled_losses_are_those_of_eager_code(game: CriticObjective) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 16, 3)
    discriminator = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0))
    plain = Losses(game)
    compiled = compile_losses(plain, backend="aot_eager")
    for name, arguments in (("discriminator_loss", (Batch(x), y)), ("generator_loss", (y, Batch(x)))):
        ours, theirs = (
            getattr(plain, name)(discriminator, *arguments),
            getattr(compiled, name)(discriminator, *arguments),
        )
        torch.testing.assert_close(theirs[0], ours[0], rtol=1e-6, atol=1e-6)
        assert theirs[1].keys() == ours[1].keys()
