"""What training offers to objectives, regularizers, labels and ranks, shown with small ones of the test's own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from gantrain.data import Batch
from gantrain.data.mixtures import Density, ring
from gantrain.distributed import WHOLE, Part
from gantrain.errors import CheckpointError
from gantrain.networks.latents import Latents
from gantrain.objectives import divergences
from gantrain.objectives.objective import Objective
from gantrain.regularizers.gradient_penalties import R1
from gantrain.regularizers.regularizer import Penalty, Regularizer
from gantrain.training.acceleration import restore_afterwards
from gantrain.training.iteration import Iteration
from gantrain.training.setup import Execution, Schedule, TrainingSetup
from gantrain.training.state import State, create_regularizer_states

GAN_KL = Objective(divergences.get("gan"), divergences.get("kl"))


class Points(nn.Module):
    """A network for points that accepts class labels and may ignore them."""

    def __init__(self, outputs: int, *, uses_labels: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, outputs))
        self.uses_labels, self.outputs = uses_labels, outputs

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.uses_labels and labels is not None:
            x = x + labels[:, None]
        return self.layers(x) if self.outputs > 1 else self.layers(x).squeeze(1)


class Labelled(Density):
    """A ring whose points have the class 0 or 1."""

    def batch(self, clock: int, batch_size: int, part: Part = WHOLE) -> Batch:
        images = super().batch(clock, batch_size, part).images
        return Batch(images, (images[:, 0] > 0).long())


def new_state(*regularizers: Regularizer, uses_labels: bool = False) -> State:
    torch.manual_seed(0)
    generator, discriminator = Points(2, uses_labels=uses_labels), Points(1, uses_labels=uses_labels)
    adam = partial(torch.optim.Adam, lr=1e-2)
    states = create_regularizer_states(regularizers)
    return State(
        generator, discriminator, adam(generator.parameters()), adam(discriminator.parameters()), regularizers=states
    )


def play(state: State, game=GAN_KL, *regularizers: Regularizer, data=None, iterations: int = 5, **options) -> State:
    data = data or Density("ring", "ring", ring())
    execution = Execution(update=options.pop("update", "alternating"))
    schedule = Schedule(images=10**6, batch_size=20)
    setup = TrainingSetup(game, data, Latents(2), schedule, 0, execution, regularizers, **options)
    iteration = Iteration(state, setup)
    for _ in range(iterations):
        iteration.play()
    return state


def weights(state: State) -> Tensor:
    return nn.utils.parameters_to_vector([*state.generator.parameters(), *state.discriminator.parameters()])


# ---------------------------------------------------------------------------------------------------------------------
# Labels


def test_labels_that_the_networks_ignore_change_nothing() -> None:
    plain, labelled = play(new_state()), play(new_state(), data=Labelled("ring", "ring", ring()))
    assert torch.equal(weights(plain), weights(labelled))


def test_labels_reach_both_networks_and_a_penalty() -> None:
    shown: list[Tensor | None] = []
    state = new_state(uses_labels=True)
    for network in (state.generator, state.discriminator):
        network.register_forward_hook(lambda _, inputs, __: shown.append(inputs[1] if len(inputs) > 1 else None))
    play(state, GAN_KL, R1(), data=Labelled("ring", "ring", ring()), iterations=1)
    # D's update: samples, D on data, D on samples, R1 on data; G's update: samples, D on samples.
    assert len(shown) == 6
    assert all(labels is not None and torch.equal(labels, shown[0]) for labels in shown)
    assert not torch.equal(weights(state), weights(play(new_state(R1()), GAN_KL, R1(), iterations=1)))


# ---------------------------------------------------------------------------------------------------------------------
# Ranks


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_the_parts_of_a_batch_are_the_batch(ranks: int) -> None:
    batch = Labelled("ring", "ring", ring()).batch(40, 20)
    parts = [batch.map(Part(rank, ranks).take) for rank in range(ranks)]
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
    with pytest.raises(ValueError, match="20 cannot be divided among 3"):
        Part(0, 3).take(batch.images)


# ---------------------------------------------------------------------------------------------------------------------
# A regularizer with a state


class GrowingPenalty(Regularizer):
    """A penalty on D's mean square output at the data, whose weight is the number of its steps so far."""

    name = "growing"

    def create_state(self) -> dict[str, Tensor]:
        return {"steps": torch.zeros(())}

    def penalize_outputs(self, v_real: Tensor, v_fake: Tensor, state: Mapping[str, Tensor] = {}) -> Penalty:
        state["steps"].add_(1)
        return Penalty(state["steps"] * v_real.square().mean())


def test_the_state_of_a_regularizer_is_part_of_the_checkpoint() -> None:
    growing = GrowingPenalty()
    whole = play(new_state(growing), GAN_KL, growing, iterations=6)
    half = play(new_state(growing), GAN_KL, growing, iterations=3)
    resumed = new_state(growing)
    resumed.load_state_dict(half.state_dict(), half.images)
    play(resumed, GAN_KL, growing, iterations=3)
    assert float(resumed.regularizers["growing"]["steps"]) == 6
    assert torch.equal(weights(resumed), weights(whole))
    with pytest.raises(CheckpointError, match="differ in regularizers"):
        new_state().load_state_dict(half.state_dict(), half.images)
    broken = half.state_dict() | {"regularizers": {"growing": {"steps": torch.zeros(2)}}}
    with pytest.raises(CheckpointError, match=r"regularizers.growing.steps: the checkpoint has float32 \[2\]"):
        resumed.load_state_dict(broken, half.images)


def test_the_state_of_a_regularizer_is_restored_after_a_trial() -> None:
    growing = GrowingPenalty()
    state = play(new_state(growing), GAN_KL, growing, iterations=2)
    with restore_afterwards(state):
        play(state, GAN_KL, growing, iterations=2)
    assert float(state.regularizers["growing"]["steps"]) == 2


# ---------------------------------------------------------------------------------------------------------------------
# A game that is no `Objective`


class Relativistic:
    """Pairs of data and samples (Jolicoeur-Martineau 2018), whose generator looks at data too."""

    needs_real, is_flat = True, False

    def prepare(self) -> None: ...

    def discriminator_loss(self, v_real: Tensor, v_fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = softplus(v_fake - v_real).mean()
        return loss, {"loss/discriminator": loss}

    def generator_loss(self, v_fake: Tensor, v_real: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        assert v_real is not None
        assert not v_real.requires_grad
        loss = softplus(v_real - v_fake).mean()
        return loss, {"loss/generator": loss}

    def coordinate(self, v: Tensor) -> Tensor:
        return v

    def log_ratio(self, v: Tensor) -> None:
        return None

    def estimates(self, v_real: Tensor, v_fake: Tensor) -> dict[str, float]:
        return {}


@pytest.mark.parametrize("update", ["alternating", "simultaneous"])
def test_a_game_that_couples_data_and_samples_trains(update: str) -> None:
    state = new_state()
    state.discriminator.is_samplewise = True
    before = weights(state).clone()
    play(state, Relativistic(), update=update, iterations=20)
    assert not torch.equal(weights(state), before)
    means = state.statistics.means()
    assert 0 < means["loss/discriminator"] < 2
    assert 0 < means["loss/generator"] < 20
