"""The forms of an iteration on a device that runs ahead of the host: eager, compiled, captured as one graph.

All run the same Python code on the same random streams. torch.compile fuses the small kernels of networks and losses;
a CUDA graph replays the whole iteration with one launch, reading batches from fixed places. What does not work on a
machine gives way to the next form, and is told with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gantrain.errors import ConfigError, GantrainError
from gantrain.objectives.objective import Objective
from gantrain.objectives.regularizers import Regularizer
from gantrain.training.setup import Execution
from gantrain.training.state import State

Form = Callable[[Sequence[Tensor]], None]
MOST_GAMES = 4096  # of one process
WARM_UPS = 3  # cuDNN and the compiler choose kernels in the first iterations, which no graph may hold


@dataclass(frozen=True)
class Game:
    """What an update computes: G's samples from latents, D's loss and G's loss with their statistics."""

    samples: Callable[[nn.Module, Tensor], Tensor]
    discriminator_loss: Callable[..., tuple[Tensor, dict[str, Tensor]]]
    generator_loss: Callable[..., tuple[Tensor, dict[str, Tensor]]]

    @classmethod
    def written(cls, objective: Objective) -> Game:
        """Kernel by kernel, as it is written."""
        return cls(lambda generator, z: generator(z), objective.discriminator_loss, objective.generator_loss)

    @classmethod
    def compiled(cls, objective: Objective, backend: str = "inductor") -> Game:
        """The same, compiled, drawing the numbers that eager kernels draw.

        D's loss stays eager where it holds a penalty: what is compiled cannot be differentiated twice.
        """
        # To the compiler another game is the same code once more, of which it would give up the ninth.
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = MOST_GAMES
        objective.prepare()
        options: dict[str, Any] = {"fallback_random": True} if backend == "inductor" else {}
        game, penalized = cls.written(objective), type(objective.regularizer).penalty is not Regularizer.penalty

        def faster(function: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(function, dynamic=False, backend=backend, options=options)

        discriminator_loss = game.discriminator_loss if penalized else faster(game.discriminator_loss)
        return cls(faster(game.samples), discriminator_loss, faster(game.generator_loss))


class Candidate(NamedTuple):
    """A form by name."""

    name: str
    compiled: bool
    graph: bool


def candidates(execution: Execution, device: torch.device, held: bool) -> list[Candidate]:
    """The forms that may be tried, fastest first. A graph needs an iteration that is `held` on the device."""
    compiled = {"on": [True], "auto": [True, False] if device.type == "cuda" else [False], "off": [False]}
    graph = {"on": [True], "auto": [True, False] if device.type == "cuda" and held else [False], "off": [False]}
    names = {
        (True, True): "compiled in a CUDA graph",
        (False, True): "eager kernels in a CUDA graph",
        (True, False): "compiled without a graph",
        (False, False): "eager",
    }
    pairs = [(c, g) for g in graph[execution.graph] for c in compiled[execution.compile]]
    return [Candidate(names[pair], *pair) for pair in pairs]


def fastest(
    objective: Objective,
    state: State,
    tried: Sequence[Candidate],
    play: Callable[..., None],
    batches: Sequence[Tensor],
    say: Callable[[str], None],
) -> Form:
    """The first form of `play(batches, game=…)` that works here, tried on `batches` without changing `state`.

    Raises ConfigError where none does.
    """
    for candidate, following in zip(tried, [*tried[1:], None], strict=True):
        if not (candidate.compiled or candidate.graph):
            return partial(play, game=Game.written(objective))
        game = Game.compiled(objective) if candidate.compiled else Game.written(objective)
        form = partial(play, game=game)
        try:
            return captured(form, batches, state) if candidate.graph else tried_once(form, batches, state)
        except GantrainError:
            raise
        except Exception as error:  # compilers and drivers raise what they like
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            if following is None:
                raise ConfigError(
                    f"an iteration {candidate.name} does not work here: {reason}; choose compile=auto graph=auto"
                ) from error
            say(f"an iteration {candidate.name} does not work here, so it is {following.name}: {reason}")
    raise AssertionError("there is always a candidate")


def tried_once(form: Form, batches: Sequence[Tensor], state: State) -> Form:
    """`form`, after it has played once."""
    with unchanged(state):
        form(batches)
    return form


def captured(form: Form, batches: Sequence[Tensor], state: State) -> Form:
    """`form` as one CUDA graph, which reads the batches from places of its own."""
    places = [batch.clone() for batch in batches]
    with torch.cuda.device(state.device):  # where streams are made and graphs captured
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        for optimizer in (state.discriminator_optimizer, state.generator_optimizer):
            for group in optimizer.param_groups:
                group["capturable"] = True
        with unchanged(state, places_stay=True):
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    form(places)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                form(places)

    def replayed(batches: Sequence[Tensor]) -> None:
        for place, batch in zip(places, batches, strict=True):
            place.copy_(batch)
        graph.replay()

    return replayed


@contextmanager
def unchanged(state: State, *, places_stay: bool = False) -> Iterator[None]:
    """Everything that training changes is afterwards as it was, in the tensors that hold it.

    What an optimizer begins in the block is forgotten; with `places_stay` it is set to 0, for a graph that reads it.
    """
    before = [(tensor, tensor.clone()) for tensor in tensors(state)]
    try:
        yield
    finally:
        known = {id(tensor) for tensor, _ in before}
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
            for tensor in tensors(state):
                if id(tensor) not in known:
                    tensor.zero_()
        for optimizer in (state.discriminator_optimizer, state.generator_optimizer):
            if not places_stay and not any(id(value) in known for value in optimizer_tensors(optimizer)):
                optimizer.state.clear()


def tensors(state: State) -> list[Tensor]:
    """All that an iteration may change."""
    networks = [network for network in (state.generator, state.discriminator, state.average) if network is not None]
    return [
        *(tensor for network in networks for tensor in (*network.parameters(), *network.buffers())),
        *optimizer_tensors(state.discriminator_optimizer),
        *optimizer_tensors(state.generator_optimizer),
        *state.statistics.sums.values(),
    ]


def optimizer_tensors(optimizer: Optimizer) -> list[Tensor]:
    """An optimizer's moments and step counts."""
    return [value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]
