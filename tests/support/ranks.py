"""Games that several processes train together, compared with one process: `torchrun … tests/support/ranks.py FILE`.

Every process trains each case with its part of the batches, and then alone with all of them. FILE gets for each case
how far both are apart, relative to the largest weight, whether the processes have the same bits, and the error that a
refused case raises.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gantrain import data, networks
from gantrain.augmentation.augmentations import ADA, DiffAugment
from gantrain.distributed import WHOLE, Part, join
from gantrain.networks.latents import Latents
from gantrain.networks.shared_batch import share_batch
from gantrain.objectives.critic_objective import CriticObjective
from gantrain.objectives.critics import CRITICS
from gantrain.objectives.objective import Objective
from gantrain.objectives.weighting import Weighting
from gantrain.regularizers.gradient_penalties import R1
from gantrain.regularizers.regularizers import REGULARIZERS, Consistency, LabelSmoothing
from gantrain.training.iteration import Iteration
from gantrain.training.setup import UPDATES, Execution, Schedule, TrainingSetup
from gantrain.training.state import State, averaged, create_regularizer_states
from support.waiting import PATIENCE_SECONDS

TESTS = Path(__file__).parents[1]
BATCH = 12
ROW = {"op": "linear", "features": 16, "activation": "leaky_relu"}
LAST = ROW | {"features": 1, "activation": "linear"}
GENERATOR = [ROW, ROW | {"features": "data", "activation": "sigmoid"}]
PLAIN = {"name": "plain", "generator": GENERATOR, "discriminator": [ROW, LAST]}
TABLES = {
    "batch norm": PLAIN
    | {"generator": [ROW | {"norm": "batch"}, GENERATOR[1]], "discriminator": [ROW | {"norm": "batch"}, LAST]},
    "dropout": PLAIN | {"discriminator": [ROW | {"dropout": 0.25}, LAST | {"dropout": 0.3}]},
    "spectral norm": PLAIN | {"discriminator": [ROW | {"norm": "spectral"}, LAST]},
    "minibatch stddev": PLAIN | {"discriminator": [ROW, {"op": "minibatch_stddev", "group": 4}, LAST]},
    "minibatch discrimination": PLAIN
    | {"discriminator": [ROW, {"op": "minibatch_discrimination", "kernels": 3, "dimensions": 2}, LAST]},
}
GAN = Objective("gan", "kl", weighting=Weighting(normalise=True, spread=0.5))


class Case:
    """A game with all that may couple the samples of a batch."""

    def __init__(
        self, game: Any = GAN, *regularizers: Any, table: Any = PLAIN, augmentation: Any = None, **execution: Any
    ):
        self.game, self.regularizers, self.table, self.augmentation = game, regularizers, table, augmentation
        self.execution = Execution(**execution)

    def train(self, part: Part, iterations: int) -> State:
        """Return the state after some iterations of this process's part."""
        torch.manual_seed(0)
        dataset = data.load("digits")
        build = self.table if callable(self.table) else partial(networks.build, self.table)
        generator, discriminator = build(dataset.shape, 8)
        if part.ranks > 1:
            share_batch(generator, part, BATCH)
            share_batch(discriminator, part, BATCH)
        sgd = partial(torch.optim.SGD, lr=0.1 / iterations, momentum=0.5)  # some games diverge if they go further
        extras = [self.augmentation] if self.augmentation else []
        states = create_regularizer_states([*self.regularizers, *extras])
        optimizers = sgd(generator.parameters()), sgd(discriminator.parameters())
        state = State(generator, discriminator, *optimizers, averaged(generator), regularizers=states)
        schedule = Schedule(images=10**6, batch_size=BATCH, discriminator_steps=2, ema=0.9)
        setup = TrainingSetup(
            self.game,
            dataset,
            Latents(8),
            schedule,
            0,
            self.execution,
            self.regularizers,
            part,
            augmentation=self.augmentation,
        )
        iteration = Iteration(state, setup)
        for _ in range(iterations):
            iteration.play()
        return state


class Own(nn.Sequential):
    """A discriminator of the user's own, with torch's layers."""

    is_samplewise = False


def own_networks(shape: tuple[int, ...], latent_size: int) -> tuple[nn.Module, nn.Module]:
    """Networks as a user may write them."""
    generator = nn.Sequential(
        nn.Linear(latent_size, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 64),
        nn.Sigmoid(),
        nn.Unflatten(1, shape),
    )
    return generator, Own(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.ReLU(), nn.Dropout2d(0.3)),
        *(nn.Flatten(), nn.Linear(144, 1), nn.Flatten(0)),
    )


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    """Every update, objective, regularizer, augmentation, kind of layer and precision, by a name."""
    for update, (name, critic) in itertools.product(UPDATES, CRITICS.items()):
        yield f"{update} {name}", partial(Case, CriticObjective(critic()), update=update)
    for update, name in itertools.product(UPDATES, ("gan", "squared_hellinger", "reverse_kl")):
        yield f"{update} {name}", partial(Case, Objective(name, "js"), update=update)
    for name, kind in REGULARIZERS.items():
        yield name, partial(Case, Objective("gan", "kl", smoothing=kind.smoothing), kind())
    yield "r1 by differences", partial(Case, GAN, R1(sigma=0.1))
    yield "r1 lazy, simultaneous", partial(Case, GAN, R1(every=3), update="simultaneous")
    yield "consistency of both", partial(Case, GAN, Consistency(fake_weight=2.0))
    yield (
        "several",
        partial(Case, Objective("gan", "kl", smoothing=0.1), R1(), LabelSmoothing(0.1), REGULARIZERS["lecam"]()),
    )
    yield "relativistic for a divergence", partial(Case, CriticObjective("relativistic", "kl"))
    yield "diffaugment", partial(Case, augmentation=DiffAugment())
    yield "ada", partial(Case, augmentation=ADA(ramp_images=100, interval=2, target=0.1))
    yield "ada held out", partial(Case, augmentation=ADA(measure="held_out", ramp_images=100, interval=3))
    for name, table in TABLES.items():
        yield name, partial(Case, table=table)
    yield "batch norm, bf16", partial(Case, table=TABLES["batch norm"], precision="bf16")
    yield "own networks", partial(Case, table=own_networks)


def numbers(state: State) -> Tensor:
    """All that training has changed, as one vector."""
    tensors = [*state.list_regularizer_tensors(), *state.statistics.sums.values()]
    for network in state.networks.values():
        tensors += network.state_dict().values()
    return torch.cat([tensor.double().flatten() for tensor in tensors])


def compare(case: Case, part: Part, iterations: int) -> dict[str, Any]:
    """Return how the processes agree with each other, and with one process."""
    state, alone = case.train(part, iterations), case.train(WHOLE, iterations)
    own = numbers(state)
    everywhere = part.gather(own[None].repeat(1, 1))
    found = {"same_bits": bool((everywhere == own).all()), "apart": 0.0, "statistics": 0.0}
    for name, network in alone.networks.items():
        theirs = state.networks[name].state_dict()
        for key, value in network.state_dict().items():
            scale = value.abs().max().clamp(min=1e-3)
            found["apart"] = max(found["apart"], float((value - theirs[key]).abs().max() / scale))
    for a, b in zip(alone.statistics.sums.values(), state.statistics.sums.values(), strict=True):
        found["statistics"] = max(found["statistics"], float(((a - b).abs() / a.abs().clamp(min=1)).max()))
    for a, b in zip(alone.list_regularizer_tensors(), state.list_regularizer_tensors(), strict=True):
        found["apart"] = max(found["apart"], float((a - b).abs().max()))
    return found


def main(path: Path, iterations: int) -> None:
    """Compare all cases; the first process writes."""
    with join() as part:
        found = {name: compare(case(), part, iterations) for name, case in cases()}
        if part.is_first:
            path.write_text(json.dumps(found))


# ---------------------------------------------------------------------------------------------------------------------
# Processes


@contextmanager
def processes(
    count: int, *command: object, folders: Sequence[Path | None] = ()
) -> Iterator[list[subprocess.Popen[str]]]:
    """Start processes as srun does, each with its number in its environment, and kill those that are left."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": search_path()},
            cwd=folders[rank] if folders else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def search_path() -> str:
    """The folders from which processes import the package and the tests."""
    return os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])


def run_in_processes(count: int, *command: object, folders: Sequence[Path | None] = ()) -> list[tuple[int, str, str]]:
    """The exit code, the output and the errors of each process."""
    with processes(count, *command, folders=folders) as started:
        ends = [process.communicate(timeout=PATIENCE_SECONDS) for process in started]
        return [(process.returncode, *end) for process, end in zip(started, ends, strict=True)]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
