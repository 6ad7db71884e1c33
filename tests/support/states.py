"""A small training state, its setup, and comparisons of two states."""

from __future__ import annotations

import copy
from functools import partial

import torch

from gantrain import data
from gantrain import networks as architectures
from gantrain.networks.latents import Latents
from gantrain.objectives import divergences
from gantrain.objectives.objective import Objective
from gantrain.training.iteration import Iteration
from gantrain.training.losses import Losses
from gantrain.training.setup import Execution, Schedule, TrainingSetup
from gantrain.training.state import State, create_average, create_regularizer_states
from support.tolerance import assert_close_to_largest

ROW = {"op": "linear", "activation": "leaky_relu"}
MLP = {
    "name": "test",
    "generator": [ROW | {"features": 24, "norm": "batch"}, ROW | {"features": "data", "activation": "sigmoid"}],
    "discriminator": [
        ROW | {"features": 16, "dropout": 0.2, "activation": "maxout"},
        ROW | {"features": 1, "dropout": 0.5, "activation": "linear"},
    ],
}


def new_state(table=MLP, shape=(1, 8, 8), *, fused=True, device="cpu", regularizers=()) -> State:
    torch.manual_seed(0)
    generator, discriminator = (network.to(device) for network in architectures.build(table, shape, 16))
    adam = partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.999), fused=fused)
    return State(
        generator,
        discriminator,
        adam(generator.parameters()),
        adam(discriminator.parameters()),
        create_average(generator),
        regularizers=create_regularizer_states(regularizers, device),
    )


def game(disc_div="gan", gen_div="softened_reverse_kl", *regularizers, **options) -> Losses:
    smoothing = sum(regularizer.smoothing for regularizer in regularizers)
    objective = Objective(divergences.get(disc_div), divergences.get(gen_div), smoothing=smoothing, **options)
    return Losses(objective, regularizers, create_regularizer_states(regularizers))


def experiment(losses=None, dataset=None, latents=None, *, steps=1, **execution) -> TrainingSetup:
    schedule = Schedule(images=10**6, batch_size=20, discriminator_steps=steps, ema=0.9)
    losses, dataset, latents = losses or game(), dataset or data.load("digits"), latents or Latents(16)
    parts = {"regularizers": losses.regularizers, "augmentation": losses.augmentation}
    return TrainingSetup(losses.game, dataset, latents, schedule, 0, Execution(**execution), **parts)


def numbers(state: State) -> dict[str, torch.Tensor]:
    """Everything that training changes."""
    parts = state.state_dict()
    networks = {f"{n}.{k}": v for n in ("generator", "discriminator", "average") for k, v in parts[n].items()}
    moments = {
        f"{n}.{i}.{k}": v
        for n in ("generator_optimizer", "discriminator_optimizer")
        for i, values in parts[n]["state"].items()
        for k, v in values.items()
    }
    states = {f"{n}.{k}": v for n, values in parts.get("regularizers", {}).items() for k, v in values.items()}
    return {k: v.clone() for k, v in (networks | moments | states | parts["statistics"]).items()}


def assert_goes_on(create, told: TrainingSetup) -> None:
    """Assert that a state which is restored after four iterations makes the same three as the one that went on."""
    whole, resumed = create(), create()
    iteration = Iteration(whole, told)
    for _ in range(4):
        iteration.play()
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()), whole.images)
    again = Iteration(resumed, told)
    for _ in range(3):
        iteration.play()
        again.play()
    assert_same(whole, resumed)


def assert_same(ours: State, theirs: State, rtol: float | None = None) -> None:
    """Assert that all tensors are equal, or close relative to the largest element of each."""
    one, other = numbers(ours), numbers(theirs)
    assert one.keys() == other.keys()
    for key, value in one.items():
        if rtol is None:
            assert torch.equal(value, other[key]), key
        else:
            assert_close_to_largest(value, other[key], rtol, key)
