"""`norm: spectral` against singular values, the Lipschitz bound and finite differences."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from gantrain import data, networks
from gantrain.networks.latents import Latents
from gantrain.networks.layers import build_layer
from gantrain.networks.spectral_norm import SpectralNorm
from gantrain.networks.tables import Row, Tables
from gantrain.objectives.objective import Objective
from gantrain.training.acceleration import compile_losses
from gantrain.training.iteration import Iteration
from gantrain.training.losses import Losses
from gantrain.training.setup import Schedule, TrainingSetup
from gantrain.training.state import State, create_average

ROWS = {
    "conv": Row("conv", kernel=3, features=7, norm="spectral"),
    "conv_transpose": Row("conv_transpose", kernel=4, stride=2, features=7, norm="spectral"),
    "linear": Row("linear", features=7, norm="spectral"),
}
HIDDEN = {"op": "linear", "features": 16, "norm": "spectral", "activation": "leaky_relu"}
TABLES = {
    "name": "test",
    "generator": [HIDDEN, {"op": "linear", "features": "data", "activation": "sigmoid", "norm": "spectral"}],
    "discriminator": [HIDDEN, HIDDEN, {"op": "linear", "features": 1, "norm": "spectral"}],
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def build(name: str) -> SpectralNorm:
    (layer,) = (part for part in build_layer(ROWS[name], (5, 6, 6), Tables()) if isinstance(part, SpectralNorm))
    return layer


def matrix(layer: SpectralNorm, weight: Tensor) -> Tensor:
    """The weight with a row for each output."""
    return weight.transpose(0, 1).flatten(1) if isinstance(layer.layer, nn.ConvTranspose2d) else weight.flatten(1)


@pytest.mark.parametrize("name", ROWS)
def test_the_largest_singular_value_becomes_one(name: str) -> None:
    layer = build(name)
    largest = [float(torch.linalg.matrix_norm(matrix(layer, layer.normalise_weight().detach()), 2))]
    for _ in range(200):
        layer.normalise_weight()
    largest.append(float(torch.linalg.matrix_norm(matrix(layer, layer.normalise_weight().detach()), 2)))
    assert largest[0] >= 1  # power iteration underestimates
    assert largest[1] == pytest.approx(1, abs=1e-5)
    u, v, x = layer.u.clone(), layer.eval(), torch.rand(2, 5, 6, 6) if name != "linear" else torch.rand(2, 180)
    v(x)
    assert torch.equal(layer.u, u), "evaluation keeps nothing"


@pytest.mark.parametrize("name", ROWS)
def test_a_layer_is_that_of_the_divided_weight(name: str) -> None:
    layer = build(name).eval()
    x = torch.rand(2, 180) if name == "linear" else torch.rand(2, 5, 6, 6)
    plain = copy.deepcopy(layer.layer)
    sigma = torch.linalg.matrix_norm(matrix(layer, plain.weight), 2)
    plain.weight.data /= sigma
    torch.testing.assert_close(layer(x), plain(x), rtol=0.02, atol=0.02)  # after twenty iterations
    for _ in range(200):
        layer.train().normalise_weight()
    torch.testing.assert_close(layer.eval()(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ROWS)
def test_the_gradient_of_sigma_is_that_of_finite_differences(name: str) -> None:
    layer = build(name).double()
    for _ in range(500):
        layer.normalise_weight()
    layer.eval()
    weight, direction = layer.layer.weight, torch.randn_like(layer.layer.weight)
    coefficients = torch.randn_like(weight)

    def value() -> Tensor:
        return (coefficients * layer.normalise_weight()).sum()

    (gradient,) = torch.autograd.grad(value(), weight)
    values, h = [], 1e-6
    for sign in (+1, -1):
        with torch.no_grad():
            weight += sign * h * direction
            for _ in range(20):  # to the new singular vectors
                layer.u.copy_(layer.iterate_power(matrix(layer, weight))[0])
            values.append(float(value()))
            weight -= sign * h * direction
    assert float((gradient * direction).sum()) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)


def test_a_perceptron_is_lipschitz_with_constant_one() -> None:
    _, discriminator = networks.build(TABLES, (8,), 4)
    for weight in discriminator.parameters():
        weight.data *= 30
    discriminator.eval()
    for _ in range(20):
        x, y = torch.randn(200, 8), torch.randn(200, 8)
        assert ((discriminator(x) - discriminator(y)).abs() <= 1.001 * (x - y).norm(dim=1)).all()


def test_a_residual_block_normalises_its_shortcut_too() -> None:
    block = build_layer(Row("residual", features=7, norm="spectral", activation="relu"), (5, 6, 6), Tables())
    found = [part.layer.kernel_size for part in block.modules() if isinstance(part, SpectralNorm)]
    assert sorted(found) == [(1, 1), (3, 3), (3, 3)]


def test_weights_of_zero_stay_zero_and_finite() -> None:
    layer = build("linear")
    layer.layer.weight.data.zero_()
    output = layer(torch.rand(2, 180))
    output.sum().backward()
    assert output.isfinite().all()
    assert layer.layer.weight.grad is not None
    assert layer.layer.weight.grad.isfinite().all()


def test_sigma_is_float32_under_autocast() -> None:
    layer = build("conv")
    weight = layer.layer.weight
    u = layer.u.clone()
    exact = layer.normalise_weight()
    layer.u.copy_(u)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.normalise_weight(), exact)
        assert layer(torch.rand(2, 5, 6, 6)).dtype == torch.bfloat16
    assert layer.u.dtype == weight.dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------------------
# Training


def new_state() -> State:
    torch.manual_seed(0)
    generator, discriminator = networks.build(TABLES, (1, 8, 8), 8)
    adam = partial(torch.optim.Adam, lr=1e-2, fused=True)
    return State(
        generator,
        discriminator,
        adam(generator.parameters()),
        adam(discriminator.parameters()),
        create_average(generator),
    )


def play(state: State, count: int, **options) -> Iteration:
    schedule = Schedule(images=10**6, batch_size=20, ema=0.9)
    game = Objective("gan", "softened_reverse_kl")
    iteration = Iteration(state, TrainingSetup(game, data.load("digits"), Latents(8), schedule), **options)
    for _ in range(count):
        iteration.play()
    return iteration


def vectors(network: nn.Module) -> list[Tensor]:
    return [part.u for part in network.modules() if isinstance(part, SpectralNorm)]


def test_the_vectors_are_trained_and_travel_in_the_checkpoint() -> None:
    fresh, whole, half = new_state(), new_state(), new_state()
    play(whole, 6)
    play(half, 3)
    resumed = new_state()
    resumed.load_state_dict(half.state_dict(), half.images)
    play(resumed, 3)
    for player in ("generator", "discriminator"):
        for before, ours, theirs in zip(
            *(vectors(getattr(state, player)) for state in (fresh, whole, resumed)), strict=True
        ):
            assert torch.equal(ours, theirs)
            if len(ours) > 1:
                assert not torch.equal(before, ours)
            assert float(ours.norm()) == pytest.approx(1, abs=1e-5)


def test_the_average_is_normalised_by_its_own_singular_values() -> None:
    """Its vectors are those of other weights, from which twenty steps lead nearer than one."""
    state = new_state()
    play(state, 40)
    assert not torch.equal(*(network[0].linear.layer.weight for network in (state.average, state.generator)))
    assert state.average is not None
    for part in state.average.modules():
        if isinstance(part, SpectralNorm):
            twenty = float(torch.linalg.matrix_norm(part.normalise_weight().detach(), 2))
            one = float(torch.linalg.matrix_norm(copy.deepcopy(part).train().normalise_weight().detach(), 2))
            assert 1 - 1e-6 <= twenty <= min(one, 1.05) + 1e-6


def test_two_passes_before_one_backward_pass_and_second_derivatives_work() -> None:
    _, discriminator = networks.build(TABLES, (8,), 4)
    x = torch.randn(5, 8, requires_grad=True)
    loss = discriminator(x).sum() - discriminator(2 * x).square().sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    gradient.square().sum().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for n, p in discriminator.named_parameters() if "weight" in n
    )


def test_the_device_watches_and_compiled_code_computes_the_same() -> None:
    written, watched, compiled = new_state(), new_state(), new_state()
    play(written, 3)
    assert play(watched, 3, guard_on_device=True).synchronize()
    iteration = play(compiled, 0)
    losses = compile_losses(Losses(Objective("gan", "softened_reverse_kl")), backend="aot_eager")
    iteration.step_functions[()] = partial(iteration.play_step, losses=losses)
    for _ in range(3):
        iteration.play()
    for ours, theirs, others in zip(
        *(state.discriminator.state_dict().values() for state in (written, watched, compiled)), strict=True
    ):
        assert torch.equal(ours, theirs)
        torch.testing.assert_close(ours, others, rtol=1e-4, atol=1e-5)
