"""Backends of an iteration: eager, compiled by torch.compile, captured as one CUDA graph.

All run the same Python code on the same random streams. torch.compile fuses the small kernels of networks and losses; a
CUDA graph replays the whole iteration with one launch, reading batches from fixed tensors. A backend that fails on a
machine is replaced by the next one, with a message. `FiniteGuard` checks updates without waiting for the device.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from gantrain.data import Batch
from gantrain.errors import ConfigError, GantrainError
from gantrain.training.losses import Losses
from gantrain.training.setup import Execution
from gantrain.training.state import State

StepFunction = Callable[[Sequence[Batch]], None]
MOST_OBJECTIVES = 4096  # compiled in one process
WARM_UPS = 3  # cuDNN and the compiler choose kernels in the first iterations, which a graph must not capture


def compile_losses(losses: Losses, backend: str = "inductor") -> Losses:
    """Return the losses with compiled functions, which draw the same random numbers as the eager ones.

    D's loss stays eager if it has a penalty that passes through D: compiled code cannot be differentiated twice.
    """
    # Each game recompiles the same code, of which the compiler would refuse the ninth version.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = MOST_OBJECTIVES
    losses.game.prepare()
    options: dict[str, Any] = {"fallback_random": True} if backend == "inductor" else {}
    compiled = copy.copy(losses)
    names = ["samples", "generator_loss"] + ([] if losses.by_hook["penalty"] else ["discriminator_loss"])
    for name in names:
        setattr(compiled, name, torch.compile(getattr(losses, name), dynamic=False, backend=backend, options=options))
    return compiled


class Backend(NamedTuple):
    """How an iteration is computed: compiled or not, in a CUDA graph or not."""

    name: str
    is_compiled: bool
    is_graph: bool


def list_backends(execution: Execution, device: torch.device, is_guarded: bool) -> list[Backend]:
    """Return the backends to try, fastest first. A graph needs updates that are guarded on the device."""
    compiled = {"on": [True], "auto": [True, False] if device.type == "cuda" else [False], "off": [False]}
    graph = {"on": [True], "auto": [True, False] if device.type == "cuda" and is_guarded else [False], "off": [False]}
    names = {
        (True, True): "compiled in a CUDA graph",
        (False, True): "eager kernels in a CUDA graph",
        (True, False): "compiled without a graph",
        (False, False): "eager",
    }
    pairs = [(c, g) for g in graph[execution.graph] for c in compiled[execution.compile]]
    return [Backend(names[pair], *pair) for pair in pairs]


def first_working(
    losses: Losses,
    state: State,
    backends: Sequence[Backend],
    play: Callable[..., None],
    batches: Sequence[Batch],
    say: Callable[[str], None],
) -> StepFunction:
    """Return `play(batches, losses=…)` with the first backend that works, tried on `batches`; `state` is unchanged.

    Raises ConfigError if none works.
    """
    for backend, following in zip(backends, [*backends[1:], None], strict=True):
        if not (backend.is_compiled or backend.is_graph):
            return partial(play, losses=losses)
        step_function = partial(play, losses=compile_losses(losses) if backend.is_compiled else losses)
        try:
            if backend.is_graph:
                return capture(step_function, batches, state)
            with restore_afterwards(state):
                step_function(batches)
            return step_function
        except GantrainError:
            raise
        except Exception as error:  # compilers and drivers raise what they like
            cause = (backend.is_graph and error.__context__) or error  # the end of a capture hides what broke it
            reason = f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
            if following is None:
                raise ConfigError(
                    f"an iteration {backend.name} failed: {reason}; choose compile=auto graph=auto"
                ) from error
            say(f"an iteration {backend.name} failed; falling back to {following.name}: {reason}")
    raise AssertionError("there is always a backend")


def capture(step_function: StepFunction, batches: Sequence[Batch], state: State) -> StepFunction:
    """Capture `step_function` as one CUDA graph, which reads the batches from tensors of its own."""
    places = [batch.map(torch.clone) for batch in batches]
    with torch.cuda.device(state.device):  # the device on which streams are created and graphs captured
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        for optimizer in state.optimizers.values():
            for group in optimizer.param_groups:
                group["capturable"] = True
        with restore_afterwards(state, keep_tensors=True), return_to_stream(current, stream):
            stream.wait_stream(current)  # on which `restore_afterwards` has just copied the state
            with torch.cuda.stream(stream), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*capturable=True")  # of steps that are not captured
                for _ in range(WARM_UPS):
                    step_function(places)
            current.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Of this thread alone: one that reads data ahead may pin memory meanwhile.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                step_function(places)

    def replay(batches: Sequence[Batch]) -> None:
        for place, batch in zip(places, batches, strict=True):
            place.images.copy_(batch.images)
            if place.labels is not None and batch.labels is not None:
                place.labels.copy_(batch.labels)
        graph.replay()

    return replay


@contextmanager
def return_to_stream(current: torch.cuda.Stream, side: torch.cuda.Stream) -> Iterator[None]:
    """Go on with the stream `current` and what `side` has begun, also if the block fails in a capture.

    torch then leaves the stream that was captured current, and random numbers are still drawn for its graph.
    """
    try:
        yield
    except BaseException:
        torch.cuda.set_stream(current)
        current.wait_stream(side)
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(
            torch.Generator(generator.device).graphsafe_get_state()
        )  # seeded by each iteration
        raise


@contextmanager
def restore_afterwards(state: State, *, keep_tensors: bool = False) -> Iterator[None]:
    """Restore everything that an iteration changes when the block ends, in place.

    Optimizer state that the block creates is deleted; with `keep_tensors` it is set to 0, for a graph that reads it.
    """
    # Detached: the graph of a copy would keep the nodes that accumulate gradients, and with them the stream on which
    # they were made, which must not be another one when a CUDA graph is captured.
    before = [(tensor, tensor.detach().clone()) for tensor in list_tensors(state)]
    try:
        yield
    finally:
        known = {id(tensor) for tensor, _ in before}
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
            for tensor in list_tensors(state):
                if id(tensor) not in known:
                    tensor.zero_()
        for optimizer in state.optimizers.values():
            if not keep_tensors and not any(id(value) in known for value in list_optimizer_tensors(optimizer)):
                optimizer.state.clear()


def list_tensors(state: State) -> list[Tensor]:
    """Return all tensors that an iteration may change."""
    networks, optimizers = state.networks.values(), state.optimizers.values()
    return [
        *(tensor for network in networks for tensor in (*network.parameters(), *network.buffers())),
        *(tensor for optimizer in optimizers for tensor in list_optimizer_tensors(optimizer)),
        *state.statistics.sums.values(),
        *state.list_regularizer_tensors(),
    ]


def list_optimizer_tensors(optimizer: Optimizer) -> list[Tensor]:
    """Return an optimizer's moments and step counts."""
    return [value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]


# ---------------------------------------------------------------------------------------------------------------------
# Checking updates on the device


class FiniteGuard:
    """A flag on the device that disables all updates once one is not finite, and a count of those made before."""

    def __init__(self, device: torch.device) -> None:
        self.is_tripped = torch.zeros((), dtype=torch.bool, device=device)
        self.made = torch.zeros((), dtype=torch.int64, device=device)

    def check(self, is_finite: Tensor, updates: int) -> None:
        """Trip the guard if the boolean `is_finite` is False; otherwise add `updates` to the number made."""
        self.is_tripped |= ~is_finite
        self.made += updates * ~self.is_tripped

    @contextmanager
    def keep_count(self) -> Iterator[None]:
        """Do not count the updates that are tried in the block."""
        before = self.is_tripped.clone(), self.made.clone()
        yield
        self.is_tripped.copy_(before[0])
        self.made.copy_(before[1])

    @contextmanager
    def preserve(self, *tensors: Tensor) -> Iterator[None]:
        """Restore `tensors` at the end of the block if the guard is tripped by then.

        They are running statistics, states of regularizers, and weights that are clipped.
        """
        dtypes = {tensor.dtype for tensor in tensors}
        groups = [[tensor for tensor in tensors if tensor.dtype == dtype] for dtype in dtypes]
        before = [torch.cat([tensor.flatten() for tensor in group]) for group in groups]
        yield
        for group, old in zip(groups, before, strict=True):
            now = torch.cat([tensor.flatten() for tensor in group])
            parts = torch.where(self.is_tripped, old, now).split([tensor.numel() for tensor in group])
            torch._foreach_copy_(group, [part.view_as(to) for part, to in zip(parts, group, strict=True)])

    def read(self) -> tuple[bool, int]:
        """Wait for the device; return whether the guard is tripped and how many updates were made, and reset both."""
        found = bool(self.is_tripped), int(self.made)
        self.is_tripped.zero_()
        self.made.zero_()
        return found


def can_guard_on_device(state: State) -> bool:
    """Return whether both optimizers can be kept from stepping by a flag on the device.

    Fused optimizers can, except SGD with momentum, whose first step writes its buffer regardless of the flag.
    """
    return all(
        getattr(optimizer, "_step_supports_amp_scaling", False) and not optimizer.defaults.get("momentum")
        for optimizer in state.optimizers.values()
    )


# ---------------------------------------------------------------------------------------------------------------------
# What a device and the networks support


def check_device(execution: Execution, device: torch.device) -> None:
    """Raise ConfigError for an execution that `device` does not support."""
    if execution.precision == "tf32" and device.type != "cuda":
        raise ConfigError(f"precision=tf32 is for CUDA devices, not for device={device.type}; choose precision=auto")
    if execution.precision == "bf16" and device.type == "mps":
        raise ConfigError("precision=bf16 is not for device=mps; choose precision=float32")
    if execution.graph == "on" and device.type != "cuda":
        raise ConfigError(f"graph=on needs a CUDA device, not device={device.type}; choose graph=auto")


def check_networks(is_samplewise: bool | None, execution: Execution) -> None:
    """Raise ConfigError for an execution that a D with or without `is_samplewise` does not support; None is unknown."""
    if execution.update == "simultaneous" and not is_samplewise:
        reason = (
            "mixes the samples of a batch (batch norm, or a minibatch layer)"
            if is_samplewise is False
            else "may mix the samples of a batch: it does not declare is_samplewise=True"
        )
        raise ConfigError(
            "update=simultaneous needs a discriminator whose output for a sample depends on it alone, so that one "
            f"backward pass serves both players; this one {reason}. Choose update=alternating"
        )
