"""One iteration of training, Algorithm 1 of Goodfellow et al. 2014: k updates of D, one of G, and G's average.

`Iteration.play` moves the state by one iteration, with the fastest backend of `gantrain.training.acceleration` that
works. Every backend computes the same numbers from the same random streams, which are seeded anew for every iteration
from its clock.

An update that is not finite is never made. On a CPU the host checks every update and raises DivergedError. On CUDA that
would mean waiting for the device, so a flag there (`FiniteGuard`) disables that update and all later ones until the
host synchronizes, before anything is written; then the clock is set back and the host repeats that iteration eagerly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch

from gantrain.data import Batch
from gantrain.errors import ConfigError
from gantrain.precision import allow_tf32, has_fast_bf16
from gantrain.schedules import ScheduledNumbers
from gantrain.seeding import seed_default, stream_seed
from gantrain.training.acceleration import (
    Backend,
    FiniteGuard,
    StepFunction,
    can_guard_on_device,
    check_device,
    check_networks,
    first_working,
    list_backends,
)
from gantrain.training.losses import Losses
from gantrain.training.setup import Execution, TrainingSetup
from gantrain.training.state import State, update_average
from gantrain.training.step import UPDATES, Step


class Iteration:
    """The iteration that the training loop repeats.

    Args:
        state, setup: What is trained, and how.
        say: Receives a message when a backend does not work and another one is used.
        guard_on_device: Whether updates are checked on the device; needs fused optimizers. The default is True on CUDA.

    Raises ConfigError for an execution that this machine or these networks do not support.
    """

    def __init__(
        self,
        state: State,
        setup: TrainingSetup,
        say: Callable[[str], None] = print,
        *,
        guard_on_device: bool | None = None,
    ) -> None:
        self.state, self.setup, self.say = state, setup, say
        self.scheduled = ScheduledNumbers()
        self.losses = self.build_losses()
        self.precision = state.choose_precision(setup.execution.precision)
        check_device(setup.execution, state.device)
        check_networks(getattr(state.discriminator, "is_samplewise", None), setup.execution)
        if setup.execution.update == "simultaneous" and self.losses.by_hook["penalize_features"]:
            raise ConfigError(
                "update=simultaneous needs a loss of G of D's outputs alone, which one that compares features is not; "
                "choose update=alternating"
            )
        if self.precision == "bf16" and not has_fast_bf16(state.device):
            say(
                f"precision=bf16 is far slower than float32 on this {state.device.type}, which has no instructions for "
                "it; precision=auto chooses the faster"
            )
        self.algorithm = UPDATES[setup.execution.update]
        if guard_on_device is None:
            guard_on_device = state.device.type == "cuda" and can_guard_on_device(state)
        self.guard = FiniteGuard(state.device) if guard_on_device else None
        for player, ramps in setup.optimizer_ramps.items():
            optimizer = getattr(state, f"{player}_optimizer")
            self.scheduled.bind_optimizer(optimizer, ramps, is_fused=guard_on_device)  # only those can be guarded
        self.execution = self.choose_execution()
        self.is_repeating, self.synchronized_images, self.made_updates = False, state.images, 0
        self.averaging = torch.zeros((), device=state.device)  # 1 − decay, in a tensor that a CUDA graph reads
        # One for each choice of penalties that an iteration may leave out: a CUDA graph holds one of them.
        self.step_functions: dict[tuple[tuple[str, ...], ...], StepFunction] = {}
        self.backends: dict[tuple[tuple[str, ...], ...], list[Backend]] = {}  # those that have not failed

    def choose_execution(self) -> Execution:
        """Return the execution that is asked for, without a graph where none can be captured.

        Raises ConfigError for `graph=on` there.
        """
        execution = self.setup.execution
        if execution.graph == "on" and self.guard is None and self.state.device.type == "cuda":
            raise ConfigError(
                "graph=on needs optimizers with a fused form, and SGD without momentum; choose one, such as "
                "optimizer=adam, or graph=auto"
            )
        if self.setup.part.ranks > 1:  # CUDA graphs do not capture the communication of processes
            return replace(execution, graph="off")
        if self.scheduled.has_host_numbers:
            if execution.graph == "on":
                raise ConfigError(
                    "graph=on replays what it captured, and only optimizer.lr may follow a schedule there"
                )
            return replace(execution, graph="off")
        return execution

    def build_losses(self) -> Losses:
        """Return the losses, with tensors for numbers that follow the clock.

        Raises ConfigError for an augmentation that does not fit the data or D.
        """
        setup, device, held_out = self.setup, self.state.device, None
        regularizers = [self.scheduled.bind(regularizer, device) for regularizer in setup.regularizers]
        augmentation = None if setup.augmentation is None else self.scheduled.bind(setup.augmentation, device)
        if augmentation is not None:
            data, is_samplewise = setup.data, getattr(self.state.discriminator, "is_samplewise", None)
            augmentation.refuse_unfit(data.shape, has_held_out=data.has_held_out, is_samplewise=is_samplewise)
            held_out = data.held_out(setup.schedule.held_out_images) if augmentation.count_held_out(1) else None
        return Losses(setup.objective, regularizers, self.state.regularizers, augmentation, held_out, setup.part)

    def play(self) -> None:
        """Make k updates of D and one of G with the batches and random numbers of the clock, and advance the clock.

        Raises DivergedError, before the update, if the host checks and finds an update that is not finite.
        """
        state, schedule = self.state, self.setup.schedule
        clocks = [state.images + step * schedule.batch_size for step in range(schedule.discriminator_steps)]
        batches = [self.setup.data.batch(clock, schedule.batch_size, self.setup.part) for clock in clocks]
        images = clocks[-1] + schedule.batch_size
        self.averaging.fill_(1 - schedule.decay(images))
        self.scheduled.set(state.images)
        with allow_tf32(self.precision == "tf32"):
            if self.is_repeating:  # eagerly, and checked by the host
                step_function: StepFunction = partial(self.play_step, losses=self.losses)
            else:
                step_function = self.choose_step_function(batches)
            # One seed for everything this iteration draws: a resumed run draws the same.
            seed_default(stream_seed(self.setup.seed, "train", state.images), state.device)
            step_function(batches)
        state.images = images

    def choose_step_function(self, batches: Sequence[Batch]) -> StepFunction:
        """Return the fastest step function that works, which is found once, at the first iteration of its kind."""
        first, count = self.count_updates(), len(batches)
        kind = tuple(map(self.losses.list_skipped, range(first, first + count))) if self.losses.lazy else ()
        if kind not in self.step_functions:
            known = list_backends(self.execution, self.state.device, is_guarded=self.guard is not None)
            backends, play = self.backends.setdefault(kind, known), partial(self.play_step, guard=self.guard)
            with self.guard.keep_count() if self.guard is not None else nullcontext():
                say = partial(self.fall_back, backends)
                found = first_working(self.losses, self.state, tuple(backends), play, batches, say)
            self.step_functions[kind] = found
        return self.step_functions[kind]

    def fall_back(self, backends: list[Backend], message: str) -> None:
        """Say that the first of `backends` failed, and do not try it again.

        Graphs that were captured before no longer draw from the seeded generator, and are captured anew.
        """
        del backends[0]
        self.step_functions.clear()
        self.say(message)

    def count_updates(self) -> int:
        """Return how many updates of D there have been."""
        return self.state.images // self.setup.schedule.batch_size

    def play_step(self, batches: Sequence[Batch], losses: Losses, guard: FiniteGuard | None = None) -> None:
        """Play one iteration, of which the host checks every update; with a `guard`, the device does.

        The host does not wait for the device then, and nothing changes once the guard is tripped.
        """
        state, setup, number = self.state, self.setup, self.count_updates()
        made, self.made_updates = self.made_updates, 0
        step = Step(state, losses, setup.latents, setup.part, self.precision, guard, made, number)
        self.algorithm(step, batches)
        if state.average is not None:
            share = self.averaging if guard is None else torch.where(guard.is_tripped, 0, self.averaging)
            update_average(state.average, state.generator, share)

    def synchronize(self) -> bool:
        """Wait for the device and return whether all updates since the last call were made.

        If not, the clock is set back to the first iteration that was not completed, and the host repeats from there
        until all updates are made again.
        """
        if self.guard is None:
            return True
        schedule = self.setup.schedule
        is_tripped, made = self.guard.read()
        if is_tripped:
            whole, self.made_updates = divmod(made, schedule.discriminator_steps + 1)
            self.state.images = self.synchronized_images + whole * schedule.discriminator_steps * schedule.batch_size
        self.is_repeating, self.synchronized_images = is_tripped, self.state.images
        return not is_tripped
