"""Each regularizer against its closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_divergences import SMOOTH
from torch import Tensor

from gantrain.data.batch import Batch
from gantrain.objectives.divergences import get
from gantrain.objectives.objective import Objective
from gantrain.objectives.regularizers import (
    R1,
    REGULARIZERS,
    GradientPenalty,
    InstanceNoise,
    LabelSmoothing,
    Regularizer,
    input_gradient,
)
from gantrain.training.losses import Losses


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def points(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def losses(name: str, *regularizers: Regularizer) -> Losses:
    """The losses of a game in which both players have the divergence `name`."""
    smoothing = sum(regularizer.smoothing for regularizer in regularizers)
    return Losses(Objective(get(name), get(name), smoothing=smoothing), regularizers)


def half_square(x: Tensor) -> Tensor:
    """D(x) = ½‖x‖², whose gradient is x."""
    return x.flatten(1).square().sum(1) / 2


# ---------------------------------------------------------------------------------------------------------------------
# Penalties


@pytest.mark.parametrize("regularizer", [R1(), GradientPenalty()])
def test_the_root_mean_square_of_the_gradient_is_reported(regularizer: Regularizer) -> None:
    x = points(6, 2, 3, 3)  # real = fake, so that the interpolated points are known
    _, statistics = losses("gan", regularizer).discriminator_loss(half_square, Batch(x), x)
    expected = np.sqrt((x.numpy() ** 2).reshape(6, -1).sum(1).mean())
    assert float(statistics["penalty/gradient_rms"]) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 4, 4)])
def test_the_input_gradient_is_per_sample_and_flat(shape: tuple[int, ...]) -> None:
    x = points(*shape)
    torch.testing.assert_close(input_gradient(half_square, x), x.flatten(1))
    assert not x.requires_grad


def test_r1_of_a_linear_discriminator_and_its_gradient() -> None:
    w, x = points(4).requires_grad_(), points(7, 4)
    penalty = R1(weight=6.0).penalty(lambda x: x @ w, x, x).value
    (gradient,) = torch.autograd.grad(penalty, w)
    assert float(penalty.detach()) == pytest.approx(3 * float(w.detach().square().sum()))
    torch.testing.assert_close(gradient, 6.0 * w.detach())


def test_r1_of_a_quadratic_discriminator_and_its_gradient() -> None:
    """D(x) = ½ a‖x‖²: the penalty is (weight/2) a² E‖x‖² over data alone."""
    a, real, fake = torch.tensor(1.5, dtype=torch.float64, requires_grad=True), points(7, 3, 2, 2), points(7, 3, 2, 2)
    penalty = R1(weight=10.0).penalty(lambda x: a * half_square(x), real, fake).value
    (gradient,) = torch.autograd.grad(penalty, a)
    mean_square = (real.numpy() ** 2).reshape(7, -1).sum(1).mean()
    assert float(penalty.detach()) == pytest.approx(5 * 1.5**2 * mean_square)
    assert float(gradient) == pytest.approx(10 * 1.5 * mean_square)


def test_the_gradient_penalty_of_a_linear_discriminator_and_its_gradient() -> None:
    w = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    penalty = GradientPenalty(weight=2.0, target=1.0).penalty(lambda x: x @ w, points(6, 2), points(6, 2)).value
    (gradient,) = torch.autograd.grad(penalty, w)
    assert float(penalty.detach()) == pytest.approx(2 * (5 - 1) ** 2)
    np.testing.assert_allclose(gradient.numpy(), 2 * 2 * (5 - 1) * np.array([0.6, 0.8]))


@pytest.mark.parametrize("target", [0.0, 1.0, 2.5])
def test_the_gradient_penalty_takes_the_norm_of_each_sample(target: float) -> None:
    x = points(6, 2, 3, 3)  # real = fake, so that the interpolated points are known
    norms = np.linalg.norm(x.numpy().reshape(6, -1), axis=1)
    penalty = GradientPenalty(weight=10.0, target=target).penalty(half_square, x, x).value.detach()
    assert float(penalty) == pytest.approx(10 * ((norms - target) ** 2).mean())
    assert float(penalty) != pytest.approx(10 * (np.linalg.norm(norms) - target) ** 2)


def test_the_gradient_penalty_looks_at_uniform_points_between_real_and_fake() -> None:
    shown: list[Tensor] = []

    def discriminator(x: Tensor) -> Tensor:
        shown.append(x.detach())
        return half_square(x)

    real, fake = points(4000, 1, 2, 2), points(4000, 1, 2, 2)
    GradientPenalty().penalty(discriminator, real, fake)
    share = ((shown[0] - fake) / (real - fake)).flatten(1)
    np.testing.assert_allclose(share.numpy(), share[:, :1].expand_as(share).numpy(), rtol=1e-6, atol=1e-6)
    histogram = np.histogram(share[:, 0].numpy(), bins=10, range=(0, 1))[0]
    assert histogram.sum() == 4000
    assert abs(histogram - 400).max() < 5 * math.sqrt(400)


def test_a_discriminator_without_slope_has_a_finite_penalty_and_gradient() -> None:
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    penalty = GradientPenalty(weight=10.0, target=1.0).penalty(lambda x: x @ w, points(5, 3), points(5, 3)).value
    (gradient,) = torch.autograd.grad(penalty, w)
    assert float(penalty.detach()) == 10
    assert gradient.isfinite().all()


@pytest.mark.parametrize("regularizer", [R1(), GradientPenalty()])
def test_penalties_differentiate_through_a_network_as_finite_differences_do(regularizer: Regularizer) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).double()
    real, fake, weight = points(8, 3), points(8, 3), network[0].weight

    def penalty() -> Tensor:
        torch.manual_seed(1)
        value = regularizer.penalty(lambda x: network(x).squeeze(1), real, fake)
        assert value is not None
        return value.value

    (gradient,) = torch.autograd.grad(penalty(), weight)
    h, direction = 1e-5, points(5, 3)
    values = []
    for sign in (+1, -1):
        with torch.no_grad():
            weight += sign * h * direction
        values.append(float(penalty().detach()))
        with torch.no_grad():
            weight -= sign * h * direction
    assert float((gradient * direction).sum()) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("regularizer", [R1(), GradientPenalty()])
def test_a_penalty_is_reported_and_added_to_the_loss(regularizer: Regularizer) -> None:
    w, real, fake = points(2).requires_grad_(), points(9, 2), points(9, 2)
    plain, _ = losses("kl").discriminator_loss(lambda x: x @ w, Batch(real), fake)
    loss, statistics = losses("kl", regularizer).discriminator_loss(lambda x: x @ w, Batch(real), fake)
    norm = float(w.detach().norm())
    expected = 5 * norm**2 if isinstance(regularizer, R1) else 10 * (norm - 1) ** 2
    assert float(statistics["loss/penalty"].detach()) == pytest.approx(expected)
    assert float(loss.detach() - plain.detach()) == pytest.approx(expected)
    assert float(statistics["loss/discriminator"].detach()) == pytest.approx(float(plain.detach()))


def test_penalties_are_added_and_each_says_its_gradient() -> None:
    w, real, fake = points(2).requires_grad_(), points(9, 2), points(9, 2)
    loss, statistics = losses("kl", R1(weight=3.0), GradientPenalty(target=0.0)).discriminator_loss(
        lambda x: x @ w, Batch(real), fake
    )
    square = float(w.detach().square().sum())
    assert float(statistics["loss/penalty"].detach()) == pytest.approx(1.5 * square + 10 * square)
    assert float(loss.detach()) == pytest.approx(float((statistics["loss/discriminator"] + 11.5 * square).detach()))
    for name in ("r1", "gradient_penalty"):
        assert float(statistics[f"penalty/{name}_gradient_rms"]) == pytest.approx(math.sqrt(square))


@pytest.mark.parametrize("kind", REGULARIZERS.values())
def test_every_regularizer_joins_the_loss(kind: type[Regularizer]) -> None:
    first, last = torch.nn.Linear(3, 8), torch.nn.Linear(8, 1)
    discriminator = torch.nn.Sequential(first, torch.nn.Tanh(), last, torch.nn.Flatten(0))
    x = torch.randn(16, 3)
    ours = losses("gan", kind())
    loss, statistics = ours.discriminator_loss(discriminator, Batch(x), x + 1)
    loss.backward()
    total = statistics["loss/discriminator"] + statistics.get("loss/penalty", 0)
    assert ("loss/penalty" in statistics) == ours.has_penalty == (kind in (R1, GradientPenalty))
    assert float(loss.detach()) == float(total.detach())
    gradients = [parameter.grad for parameter in first.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() and gradient.any() for gradient in gradients)


# ---------------------------------------------------------------------------------------------------------------------
# Instance noise


def test_instance_noise_adds_its_variance_and_leaves_the_gradient() -> None:
    x = points(200, 10, 10).requires_grad_()
    noise = InstanceNoise(std=0.3).disturb(x) - x
    assert float(noise.detach().mean()) == pytest.approx(0, abs=5 * 0.3 / math.sqrt(20_000))
    assert float(noise.detach().var()) == pytest.approx(0.09, rel=5 * math.sqrt(2 / 20_000))
    (gradient,) = torch.autograd.grad(InstanceNoise(std=0.3).disturb(x).sum(), x)
    assert (gradient == 1).all()
    assert torch.equal(InstanceNoise(std=0.0).disturb(x), x)


def test_both_players_see_the_noise_and_it_is_independent() -> None:
    shown: list[Tensor] = []

    def discriminator(x: Tensor) -> Tensor:
        shown.append(x)
        return x.sum(1)

    x = torch.zeros(2000, 2, dtype=torch.float64)
    ours = losses("gan", InstanceNoise(std=0.5))
    ours.discriminator_loss(discriminator, Batch(x), x)
    ours.generator_loss(discriminator, x)
    noise = torch.stack(shown).flatten(1)
    assert noise.shape == (3, 4000)
    np.testing.assert_allclose(np.cov(noise.numpy()), 0.25 * np.eye(3), atol=0.03)


def test_the_other_regularizers_show_what_there_is() -> None:
    x = points(3, 2)
    for regularizer in (Regularizer(), R1(), GradientPenalty(), LabelSmoothing()):
        assert regularizer.disturb(x) is x


# ---------------------------------------------------------------------------------------------------------------------
# Label smoothing

P_COUNTS, Q_COUNTS = torch.tensor([8, 6, 4, 2]), torch.tensor([2, 3, 5, 10])


def discrete_loss(name: str, smoothing: float, table: Tensor) -> Tensor:
    """The discriminator's loss on four atoms, its output at each of which is an entry of `table`."""
    atoms = torch.arange(4)
    real, fake = atoms.repeat_interleave(P_COUNTS), atoms.repeat_interleave(Q_COUNTS)
    return losses(name, LabelSmoothing(smoothing)).discriminator_loss(lambda x: table[x], Batch(real), fake)[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("name", SMOOTH)
def test_the_best_output_under_label_smoothing(name: str, smoothing: float) -> None:
    """r = log((1 − s)p / (q + s p)) for every invertible divergence: stationary, and better than its surroundings."""
    p, q = P_COUNTS.double() / 20, Q_COUNTS.double() / 20
    best = ((1 - smoothing) * p / (q + smoothing * p)).log().requires_grad_()
    loss = discrete_loss(name, smoothing, best)
    (gradient,) = torch.autograd.grad(loss, best)
    np.testing.assert_allclose(gradient.numpy(), 0, atol=1e-12)
    for step in torch.cat([torch.eye(4), -torch.eye(4)]).double():
        for size in (0.01, 0.5):
            assert float(discrete_loss(name, smoothing, best.detach() + size * step)) > float(loss.detach())


# ---------------------------------------------------------------------------------------------------------------------


def test_the_neutral_regularizer_does_nothing() -> None:
    x = points(3, 2)
    assert Regularizer().smoothing == 0
    assert Regularizer().penalty(half_square, x, x) is None


def test_every_regularizer_has_defaults_and_numbers_for_fields() -> None:
    for kind in REGULARIZERS.values():
        assert all(isinstance(value, float) and value >= 0 for value in vars(kind()).values())
    assert LabelSmoothing().smoothing == 0.1
    assert LabelSmoothing(0.25).smoothing == 0.25
