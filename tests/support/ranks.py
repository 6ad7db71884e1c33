"""Games that several processes train together, compared with one process by `main`.

Every process trains each case with its part of the batches, and then alone with all of them. FILE gets for each case
how far both are apart, relative to the largest weight, whether the processes have the same bits, and the error that a
refused case raises.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from faults.processes import FORKS
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
from gantrain.training.state import State, create_average, create_regularizer_states
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
        state = State(generator, discriminator, *optimizers, create_average(generator), regularizers=states)
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


class OwnSamplewise(nn.Sequential):
    """One that takes data and samples in one pass."""

    is_samplewise = True


def own_samplewise_networks(shape: tuple[int, ...], latent_size: int) -> tuple[nn.Module, nn.Module]:
    """Networks as a user may write them, with dropout in D and without batch norm there."""
    generator, _ = own_networks(shape, latent_size)
    return generator, OwnSamplewise(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 1), nn.Flatten(0))


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
    yield "own networks, one pass", partial(Case, table=own_samplewise_networks)


def numbers(state: State) -> Tensor:
    """All that training has changed, as one vector."""
    tensors = [*state.list_regularizer_tensors(), *state.statistics.sums.values()]
    for network in state.networks.values():
        tensors += network.state_dict().values()
    return torch.cat([tensor.double().flatten() for tensor in tensors])


def compare(case: Case, part: Part, iterations: int) -> dict[str, Any]:
    """Return how the processes agree with each other and, in the first of them, with one process."""
    state = case.train(part, iterations)
    own = numbers(state)
    everywhere = part.gather(own[None].repeat(1, 1))
    found = {"same_bits": bool((everywhere == own).all()), "apart": 0.0, "statistics": 0.0}
    if not part.is_first:
        return found
    alone = case.train(WHOLE, iterations)
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


class Rank:
    """One of several processes of a run, a fork of the server of `faults.processes`; its prints lie in `place`."""

    def __init__(self, place: Path, call: Callable[[], Any], environment: Mapping[str, str], folder: Path) -> None:
        self.place = place
        place.mkdir()
        self.process = FORKS.Process(target=_call, args=(place, call, environment, folder), daemon=True)
        self.process.start()

    def wait(self) -> tuple[int, str, str]:
        """The exit code, the output and the errors, at the end."""
        self.process.join(PATIENCE_SECONDS)
        assert self.process.exitcode is not None, f"still running after {PATIENCE_SECONDS} s"
        return self.process.exitcode, *((self.place / name).read_text() for name in ("out", "err"))


def _call(place: Path, call: Callable[[], Any], environment: Mapping[str, str], folder: Path) -> None:
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT), stream.fileno())
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.exit(call())


@contextmanager
def processes(count: int, call: Callable[[], Any], *, folders: Sequence[Path] = ()) -> Iterator[list[Rank]]:
    """Let processes call a function as srun lets them, each with its number, and kill those that are left."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    numbers = ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count))
    places = folders or [Path.cwd()] * count
    with TemporaryDirectory() as logs:
        ranks = [
            Rank(Path(logs, str(rank)), call, shared | number, place)
            for rank, (number, place) in enumerate(zip(numbers, places, strict=True))
        ]
        try:
            yield ranks
        finally:
            for rank in ranks:
                rank.process.kill()
                rank.process.join()


def run_in_processes(
    count: int, call: Callable[[], Any], *, folders: Sequence[Path] = ()
) -> list[tuple[int, str, str]]:
    """The exit code, the output and the errors of each process."""
    with processes(count, call, folders=folders) as ranks:
        return [rank.wait() for rank in ranks]
