"""Each regularizer against its closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.formulas import SMOOTH
from torch import Tensor, nn

from gantrain import networks
from gantrain.data import Batch
from gantrain.distributed import Part
from gantrain.objectives.divergences import get
from gantrain.objectives.objective import Objective
from gantrain.regularizers.gradient_penalties import (
    R1,
    R2,
    SMALLEST_SIGMA,
    Dragan,
    GradientPenalty,
    input_gradient,
)
from gantrain.regularizers.regularizer import Regularizer, overrides
from gantrain.regularizers.regularizers import (
    REGULARIZERS,
    Balanced,
    Consistency,
    FeatureMatching,
    InstanceNoise,
    LabelSmoothing,
    LeCam,
    WeightClipping,
    mirror_and_shift,
)
from gantrain.schedules import Ramp
from gantrain.training.losses import Losses
from gantrain.training.state import RunningMeans, create_regularizer_states

SLOPES = [R1(), R2(), GradientPenalty(), Dragan()]
# Every form of every penalty on D.
PENALTIES = [
    *SLOPES,
    *(R1(sigma=0.1, share=0.5), R2(sigma=0.1), R1(share=0.3, every=4)),
    *(GradientPenalty(target=0.0), GradientPenalty(target=2.0), GradientPenalty(target=0.1, one_sided=True)),
    *(LeCam(), Balanced(), Consistency(), Consistency(weight=0.0, fake_weight=3.0), Consistency(fake_weight=10.0)),
]
ADDS = (R1, R2, GradientPenalty, Dragan, LeCam, Balanced, Consistency)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def points(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def losses(name: str, *regularizers: Regularizer) -> Losses:
    """The losses of a game in which both players have the divergence `name`."""
    smoothing = sum(regularizer.smoothing for regularizer in regularizers)
    game = Objective(get(name), get(name), smoothing=smoothing)
    return Losses(game, regularizers, create_regularizer_states(regularizers))


def half_square(x: Tensor) -> Tensor:
    """D(x) = ½‖x‖², whose gradient is x."""
    return x.flatten(1).square().sum(1) / 2


# ---------------------------------------------------------------------------------------------------------------------
# Penalties


@pytest.mark.parametrize("regularizer", [R1(), R2(), GradientPenalty(), Dragan(spread=0.0)])
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


class Small(torch.nn.Sequential):
    """A discriminator of images of 8×8 pixels, with a hidden layer and dropout."""

    def __init__(self, dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> None:
        hidden = [torch.nn.Linear(64, 5), torch.nn.Tanh(), torch.nn.Dropout(dropout)]
        super().__init__(torch.nn.Flatten(), *hidden, torch.nn.Linear(5, 1), torch.nn.Flatten(0))
        self.to(dtype)


@pytest.mark.parametrize("regularizer", PENALTIES, ids=str)
def test_the_loss_differentiates_through_a_network_as_finite_differences_do(regularizer: Regularizer) -> None:
    network, real, fake = Small(), points(8, 1, 8, 8), points(8, 1, 8, 8)
    weight = network[1].weight

    def loss() -> Tensor:
        torch.manual_seed(1)
        ours = losses("gan", regularizer)
        if isinstance(regularizer, LeCam):  # averages of another network, which are constants of the penalty
            ours.states["lecam"]["real"].fill_(-0.3)
            ours.states["lecam"]["fake"].fill_(0.2)
            ours.states["lecam"]["seen"].fill_(1e12)
        value, statistics = ours.discriminator_loss(network, Batch(real), fake)
        assert float(statistics["loss/penalty"]) > 0
        return value

    (gradient,) = torch.autograd.grad(loss(), weight)
    h, direction = 1e-5, points(5, 64)
    values = []
    for sign in (+1, -1):
        with torch.no_grad():
            weight += sign * h * direction
        values.append(float(loss().detach()))
        with torch.no_grad():
            weight -= sign * h * direction
    assert float((gradient * direction).sum()) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)


@pytest.mark.parametrize("regularizer", [R1(weight=6.0), R2(weight=6.0)])
def test_the_squared_norm_of_a_linear_discriminator(regularizer: Regularizer) -> None:
    w = points(4)
    assert float(regularizer.penalty(lambda x: x @ w, points(7, 4), points(7, 4)).value) == pytest.approx(
        3 * float(w.square().sum())
    )


@pytest.mark.parametrize("kind", [R1, R2])
def test_the_form_without_second_derivatives_has_the_same_mean(kind: type[R1]) -> None:
    """For v = w·x it is (w·e)²; for v = ½‖x‖² its mean is ‖x‖² + σ²(d² + 2d)/4."""
    w, x = points(4), points(200_000, 4)
    square = float(w.square().sum())
    for found in (kind(sigma=0.01, weight=2.0).penalty(lambda x: x @ w, x, x),):
        assert float(found.value) == pytest.approx(square, rel=5 * math.sqrt(2 / 200_000))
        assert float(found.gradient_rms) == pytest.approx(math.sqrt(square), rel=0.01)
    excess = kind(sigma=0.5, weight=2.0).penalty(half_square, x, x).value - x.square().sum(1).mean()
    assert float(excess) == pytest.approx(0.25 * (16 + 8) / 4, abs=0.1)
    w.requires_grad_()
    (gradient,) = torch.autograd.grad(kind(sigma=0.01, weight=2.0).penalty(lambda x: x @ w, x, x).value, w)
    np.testing.assert_allclose(gradient.numpy(), 2 * w.detach().numpy(), atol=0.05)


def test_the_smallest_sigma_is_resolved_by_float32() -> None:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(64, 256), nn.LeakyReLU(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 1)]
    network, x = nn.Sequential(*layers, nn.Flatten(0)), torch.rand(2000, 64)
    exact, found = (R1(sigma=sigma).penalty(network, x, x).value.item() for sigma in (0.0, SMALLEST_SIGMA))
    assert found == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize(("share", "seen"), [(1.0, 10), (0.25, 3), (0.01, 1)])
@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_a_share_of_the_batch_is_its_first_rows(share: float, seen: int, sigma: float) -> None:
    shown: list[Tensor] = []

    def discriminator(x: Tensor) -> Tensor:
        shown.append(x.detach())
        return half_square(x)

    x = points(10, 3)
    found = R1(sigma=sigma, share=share).penalty(discriminator, x, x).value
    assert torch.equal(shown[-1], x[:seen])
    if not sigma:
        assert float(found.detach()) == pytest.approx(5 * float(x[:seen].square().sum(1).mean()))


def test_the_squared_norm_is_taken_where_its_name_says_and_no_gradient_reaches_the_other_network() -> None:
    real, fake = points(7, 3), points(7, 3).requires_grad_()
    for regularizer, x in ((R1(weight=2.0), real), (R2(weight=2.0), fake)):
        penalty = regularizer.penalty(half_square, real, fake).value
        assert float(penalty.detach()) == pytest.approx(float(x.detach().square().sum(1).mean()))
    ours = losses("gan", R2(), R2(sigma=0.1), Dragan(), Consistency(fake_weight=1.0))
    network, images = Small(), points(7, 1, 8, 8).requires_grad_()
    value, _ = ours.penalty(network, Batch(points(7, 1, 8, 8)), images)
    assert torch.autograd.grad(value, images, allow_unused=True) == (None,)


def test_a_one_sided_penalty_asks_nothing_of_small_slopes() -> None:
    """Two samples with slopes 0 and 3, and a target of 1: (0 + 4)/2 and (1 + 4)/2, not the square of a mean."""
    slopes = torch.tensor([[0.0], [3.0]], dtype=torch.float64)
    for one_sided, expected in ((True, 2), (False, 2.5)):
        regularizer = GradientPenalty(weight=1.0, one_sided=one_sided)
        penalty = regularizer.penalty(lambda x: (slopes * x).sum(1), points(2, 1), points(2, 1)).value
        assert float(penalty) == pytest.approx(expected)


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("kind", [GradientPenalty, Dragan])
def test_a_penalty_at_slope_zero_and_its_gradient_are_finite(kind: type[GradientPenalty], one_sided: bool) -> None:
    for target in (0.0, 1.0):
        w = torch.zeros(3, requires_grad=True)
        regularizer = kind(weight=1.0, target=target, one_sided=one_sided)
        penalty = regularizer.penalty(lambda x, w=w: x @ w, torch.randn(5, 3), torch.randn(5, 3)).value
        (gradient,) = torch.autograd.grad(penalty, w)
        assert float(penalty.detach()) == (0 if one_sided else target)
        assert not gradient.any()


def test_dragan_looks_near_data_alone() -> None:
    shown: list[Tensor] = []

    def discriminator(x: Tensor) -> Tensor:
        shown.append(x.detach())
        return half_square(x)

    real = points(4000, 1, 2, 2)
    for fake in (points(4000, 1, 2, 2), points(4000, 1, 2, 2).fill_(math.nan)):
        torch.manual_seed(1)
        Dragan(spread=0.5).penalty(discriminator, real, fake)
    assert torch.equal(shown[0], shown[1])
    away = ((shown[0] - real) / (0.5 * real.std(correction=0))).flatten(1)
    assert float(away.min()) >= 0
    assert 0.99 < float(away.max()) < 1
    # a U, with a of a sample and U of a number: mean 1/4, variance 1/9 − 1/16, covariance inside a sample 1/12 − 1/16
    covariance = np.cov(away.T.numpy())
    expected = (1 / 12 - 1 / 16) + (1 / 9 - 1 / 12) * np.eye(4)
    np.testing.assert_allclose(covariance, expected, atol=0.005)
    assert float(away.mean()) == pytest.approx(0.25, abs=0.01)


# ---------------------------------------------------------------------------------------------------------------------
# Lazy penalties


def test_a_lazy_penalty_is_due_once_in_so_many_updates_and_as_often_as_heavy() -> None:
    w, real, fake = points(2).requires_grad_(), points(9, 2), points(9, 2)
    ours = losses("kl", R1(weight=3.0, every=4), R2(weight=1.0, every=2))
    square, values, means = float(w.detach().square().sum()), [], RunningMeans()
    for number in range(8):
        skipped = ours.list_skipped(number)
        loss, statistics = ours.discriminator_loss(lambda x: x @ w, Batch(real), fake, skipped)
        values.append(float(statistics["loss/penalty"]))
        assert float(loss.detach()) == pytest.approx(float(statistics["loss/discriminator"].detach()) + values[-1])
        assert ("penalty/r1_gradient_rms" in statistics) == (number % 4 == 0)
        means.add(statistics)
    np.testing.assert_allclose(values, np.array([7, 0, 1, 0] * 2) * square)
    # Their means over all updates are the penalties of every update, and the parts of their sum.
    reported = means.means()
    assert reported["loss/penalty"] == pytest.approx((1.5 + 0.5) * square)
    assert [reported[f"penalty/{name}"] for name in ("r1", "r2")] == pytest.approx([1.5 * square, 0.5 * square])
    assert losses("kl", R1(every=1)).list_skipped(3) == ()


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
    discriminator, x = Small(torch.float32), torch.rand(16, 1, 8, 8)
    ours = losses("gan", kind())
    loss, statistics = ours.discriminator_loss(discriminator, Batch(x), x + 1)
    loss.backward()
    total = statistics["loss/discriminator"] + statistics.get("loss/penalty", 0)
    assert ("loss/penalty" in statistics) == (kind in ADDS)
    assert float(loss.detach()) == float(total.detach())
    gradients = [parameter.grad for parameter in discriminator[1].parameters()]
    assert all(gradient is not None and gradient.isfinite().all() and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("regularizer", [R1(sigma=1e-3), R2(sigma=1e-3), Consistency(fake_weight=1.0)], ids=str)
def test_two_passes_are_compared_without_dropout(regularizer: Regularizer) -> None:
    """Else the difference of two outputs would be that of two masks; other penalties see D as it trains."""
    network, x = Small(dropout=0.5), points(64, 1, 8, 8)
    without = Small()
    without.load_state_dict(network.state_dict())
    found = []
    for each in (network, without):
        torch.manual_seed(1)
        found.append(float(losses("gan", regularizer).penalty(each, Batch(x), x)[0].detach()))
    assert found[0] == found[1] > 0
    assert network.training
    assert float(losses("gan", R1()).penalty(network, Batch(x), x)[0].detach()) != float(
        losses("gan", R1()).penalty(network, Batch(x), x)[0].detach()
    )


# ---------------------------------------------------------------------------------------------------------------------
# Penalties on outputs


def test_lecam_pulls_outputs_to_the_averages_of_the_other_kind() -> None:
    v_real, v_fake = points(9).requires_grad_(), points(9).requires_grad_()
    state = LeCam().create_state() | {"real": torch.tensor(0.4), "fake": torch.tensor(-0.2), "seen": torch.tensor(1e9)}
    penalty = LeCam(weight=2.0).penalize_outputs(v_real, v_fake, state).value
    real, fake = v_real.detach().numpy(), v_fake.detach().numpy()
    expected = 2 * ((np.maximum(real + 0.2, 0) ** 2).mean() + (np.maximum(0.4 - fake, 0) ** 2).mean())
    assert float(penalty.detach()) == pytest.approx(expected, rel=1e-6)
    gradients = torch.autograd.grad(penalty, [v_real, v_fake])
    assert torch.equal(gradients[0] == 0, v_real <= -0.2)
    assert torch.equal(gradients[1] == 0, v_fake >= 0.4)


def test_lecams_averages_are_those_of_what_was_seen_from_the_first_batch_on() -> None:
    regularizer, v = LeCam(decay=0.9), points(6, 5).float()
    state = regularizer.create_state()
    for steps in range(1, 7):
        regularizer.penalize_outputs(v[steps - 1], v[steps - 1] - 3, state)
        weights = 0.9 ** np.arange(steps)[::-1]
        expected = np.average(v[:steps].mean(1).numpy(), weights=weights)
        assert float(state["real"]) == pytest.approx(expected, abs=1e-6)
        assert float(state["fake"]) == pytest.approx(expected - 3, abs=1e-6)
    constant = regularizer.create_state()
    for _ in range(100):
        regularizer.penalize_outputs(torch.full((4,), 0.3), torch.full((4,), -7.0), constant)
        assert (float(constant["real"]), float(constant["fake"])) == (float(torch.tensor(0.3)), -7)


@pytest.mark.parametrize("head", ["log_ratio", "nowozin", "ratio"])
def test_the_balance_is_that_of_the_log_ratio_which_fulfils_it(head: str) -> None:
    p, q = torch.tensor([8, 6, 4, 2]), torch.tensor([2, 3, 5, 10])
    atoms = torch.arange(4)
    real, fake = atoms.repeat_interleave(p), atoms.repeat_interleave(q)
    game = Objective("kl", "kl", head=head)

    def read(r: Tensor) -> Tensor:
        """D's output for a log-ratio, by bisection."""
        low, high = torch.full_like(r, -40), torch.full_like(r, 40)
        for _ in range(200):
            middle = (low + high) / 2
            below = game.log_ratio(middle) < r
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return low

    exact = (p / q).double().log()
    for r, expected in ((exact, 0.0), (exact + 1, None)):
        table = read(r).requires_grad_()
        ours = Losses(game, (Balanced(weight=7.0),))
        _, statistics = ours.discriminator_loss(lambda x, table=table: table[x], Batch(real), fake)
        direct = 7 * float((r.sigmoid() * (p + q)).sum() / 20 - 1) ** 2
        assert float(statistics["loss/penalty"].detach()) == pytest.approx(direct, abs=1e-9)
        assert expected is None or direct == pytest.approx(expected, abs=1e-12)
    assert direct > 0.1


@pytest.mark.parametrize("kind", [LeCam, Balanced])
@pytest.mark.parametrize("value", [0.0, 1e3, -1e3, 1e18])
def test_penalties_on_outputs_are_finite_or_grow_as_squares(kind: type[Regularizer], value: float) -> None:
    v = torch.tensor([value, -value, value / 3]).requires_grad_()
    regularizer = kind()
    penalty = regularizer.penalize_outputs(v, v.flip(0), regularizer.create_state()).value
    (gradient,) = torch.autograd.grad(penalty, v)
    assert penalty.isfinite()
    assert gradient.isfinite().all()


# ---------------------------------------------------------------------------------------------------------------------
# Consistency


def test_images_are_mirrored_and_shifted_by_up_to_an_eighth() -> None:
    image = torch.arange(16 * 24).float().reshape(1, 1, 16, 24)
    moved = mirror_and_shift(image.expand(4000, 3, 16, 24), Part())
    padded = np.pad(image[0, 0].numpy(), ((2, 2), (3, 3)), mode="reflect")
    found: dict[bytes, int] = {}
    for one in moved[:, 2]:
        found[one.numpy().tobytes()] = found.get(one.numpy().tobytes(), 0) + 1
    expected = {
        padded[y : y + 16, x : x + 24][:, ::turn].tobytes() for y in range(5) for x in range(7) for turn in (1, -1)
    }
    assert set(found) == expected
    assert abs(np.array(list(found.values())) - 4000 / 70).max() < 5 * math.sqrt(4000 / 70)


def test_consistency_of_an_invariant_and_of_a_linear_discriminator() -> None:
    real, fake = points(40, 1, 8, 8), points(40, 1, 8, 8)
    small = points(40, 1, 4, 4)  # which is mirrored alone: an eighth is no pixel
    found = Consistency(fake_weight=3.0).penalty(half_square, small, small).value
    assert float(found) == pytest.approx(0, abs=1e-12)
    w = points(64)
    for regularizer, x in ((Consistency(weight=2.0), real), (Consistency(weight=0.0, fake_weight=2.0), fake)):
        torch.manual_seed(1)
        penalty = regularizer.penalty(lambda x: x.flatten(1) @ w, real, fake).value
        torch.manual_seed(1)
        if x is fake:
            mirror_and_shift(real, Part())  # whose numbers are drawn first
        difference = (x - mirror_and_shift(x, Part())).flatten(1) @ w
        assert float(penalty) == pytest.approx(2 * float(difference.square().mean())) != 0


# ---------------------------------------------------------------------------------------------------------------------
# Weights, and G's loss


def test_weights_are_clipped_exactly() -> None:
    network = Small()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    losses("gan", WeightClipping(limit=0.03)).constrain(network)
    for old, parameter in zip(before, network.parameters(), strict=True):
        assert torch.equal(parameter, old.clamp(-0.03, 0.03))
    assert max(float(parameter.abs().max()) for parameter in network.parameters()) == 0.03
    losses("gan", R1()).constrain(network)


LAYERS = {
    "name": "test",
    "generator": [{"op": "linear", "features": "data"}],
    "discriminator": [
        {"op": "conv", "kernel": 3, "features": 4, "activation": "leaky_relu"},
        {"op": "linear", "features": 1, "dropout": 0.5},
    ],
}


@pytest.mark.parametrize("adversarial", [0.0, 2.0])
def test_feature_matching_is_the_distance_of_mean_features(adversarial: float) -> None:
    _, network = networks.build(LAYERS, (1, 4, 4), 1)
    real, fake = torch.rand(9, 1, 4, 4), torch.rand(9, 1, 4, 4).requires_grad_()
    regularizer = FeatureMatching(weight=3.0, adversarial=adversarial)
    network.eval()  # the same without dropout
    loss, statistics = losses("gan", regularizer).generator_loss(network, fake, Batch(real))
    plain, _ = losses("gan").generator_loss(network, fake)
    # the rows before the last: a convolution and its activation
    features = [network[0](x).flatten(1).mean(0) for x in (real, fake)]
    distance = 3 * (features[0] - features[1]).square().sum()
    assert float(statistics["penalty/feature_matching"].detach()) == pytest.approx(float(distance.detach()))
    assert float(statistics["loss/generator"].detach()) == pytest.approx(float(plain.detach()))
    expected = distance + adversarial * plain
    assert float(loss.detach()) == pytest.approx(float(expected.detach()))
    (found,), (wanted,) = (torch.autograd.grad(each, fake, retain_graph=True) for each in (loss, expected))
    torch.testing.assert_close(found, wanted)
    same, _ = losses("gan", FeatureMatching()).generator_loss(network, fake, Batch(fake.detach().flip(0)))
    assert float(same.detach()) == pytest.approx(0, abs=1e-12)


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
    for regularizer in (Regularizer(), *(kind() for kind in REGULARIZERS.values() if kind is not InstanceNoise)):
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
    assert Losses(Objective("gan", "kl"), [Regularizer()]).penalty(half_square, Batch(x), x) is None


def test_every_regularizer_has_defaults() -> None:
    for kind in REGULARIZERS.values():
        assert all(isinstance(value, float | int) and value >= 0 for value in vars(kind()).values())
    assert LabelSmoothing().smoothing == 0.1
    assert LabelSmoothing(0.25).smoothing == 0.25


def test_a_target_that_follows_the_clock_asks_for_its_largest_slope() -> None:
    rising, zero = GradientPenalty(target=Ramp(0.0, 2.0, 10)), GradientPenalty(target=0.0)
    assert (rising.bounds_slope, rising.asked_slope) == (True, 2.0)
    assert (zero.bounds_slope, zero.asked_slope) == (False, 0.0)


@pytest.mark.parametrize("slope", [0.0, 1e-30, 1e-20, 1.0, 1e6])
@pytest.mark.parametrize("name", [name for name, kind in REGULARIZERS.items() if overrides(kind(), "penalty")])
def test_penalties_and_their_gradients_are_finite_at_extreme_slopes(name: str, slope: float) -> None:
    torch.manual_seed(0)
    weight = torch.full((64,), slope, requires_grad=True)
    real, fake = torch.rand(2, 4, 1, 8, 8)
    for settings in ({}, {"sigma": 0.01}) if name in ("r1", "r2") else ({},):
        penalty = REGULARIZERS[name](**settings).penalty(lambda x: x.flatten(1) @ weight, real, fake)
        (gradient,) = torch.autograd.grad(penalty.value, weight)
        assert penalty.value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", [name for name, kind in REGULARIZERS.items() if overrides(kind(), "penalize_outputs")])
def test_penalties_of_extreme_outputs_are_finite(name: str) -> None:
    far = torch.tensor([-1e4, -89.0, 0.0, 1e-30, 89.0, 1e4])
    for dtype in (torch.float32, torch.bfloat16):
        v_real, v_fake = far.to(dtype).requires_grad_(), far.flip(0).to(dtype).requires_grad_()
        one = REGULARIZERS[name]()
        penalty = one.penalize_outputs(v_real.float(), v_fake.float(), one.create_state()).value
        assert penalty.isfinite()
        assert all(each.isfinite().all() for each in torch.autograd.grad(penalty, [v_real, v_fake]))
