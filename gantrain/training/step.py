"""One iteration, Algorithm 1 of Goodfellow et al. 2014: k updates of D, one of G, and the generator's average.

`Iteration.play` moves the state by one iteration. In which order the players move stands in `alternating`, `reuse` and
`simultaneous`; how one update is made, in `Updates`. The eager form runs kernel by kernel. On CUDA the same code is
compiled, captured once as a graph and replayed (`gantrain.training.acceleration`): the same numbers from the same
random streams, which begin anew with every iteration, at its clock.

An update that is not finite is never made. On a CPU the host looks before each one, and raises DivergedError. A GPU
would have to be waited for: there a flag on the device turns that update and all later ones into nothing, until the
host looks (`settled`, before anything is written), puts the clock back, and plays that iteration itself, eagerly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.optim import Optimizer

from gantrain.errors import ConfigError, DivergedError
from gantrain.networks.latents import Latents
from gantrain.objectives.objective import Objective
from gantrain.precision import chosen_precision, rounded, tf32
from gantrain.seeding import seed_default, stream_seed
from gantrain.training import acceleration
from gantrain.training.setup import Execution, Experiment
from gantrain.training.state import State, still_statistics, update_average

# |r| beyond which one backward pass does not serve both players, and the powers of two between a batch's largest and
# smallest gradient: float32 would lose what the smaller ones hold.
LARGEST_SHARED_RATIO = 60.0
LARGEST_SHARED_SPAN = 90.0


class Iteration:
    """What the training loop repeats. `say` is told which form it falls back to, and why.

    `held_on_device` says who watches over non-finite updates; the device can only where both optimizers are fused, and
    by default does on CUDA. Raises ConfigError for an execution that this machine or these networks cannot have.
    """

    def __init__(
        self,
        state: State,
        experiment: Experiment,
        say: Callable[[str], None] = print,
        *,
        held_on_device: bool | None = None,
    ) -> None:
        self.state, self.experiment, self.say = state, experiment, say
        self.precision = chosen_precision(experiment.execution.precision, state.device)
        refuse_impossible(experiment.execution, state.device)
        refuse_unfit(getattr(state.discriminator, "is_samplewise", None), experiment.execution, self.precision)
        self.algorithm = UPDATES[experiment.execution.update]
        if held_on_device is None:
            held_on_device = state.device.type == "cuda" and can_be_held(state)
        self.hold = Hold(state.device) if held_on_device else None
        self.by_host, self.settled_images, self.made_before = False, state.images, 0
        self.averaging = torch.zeros((), device=state.device)  # 1 − decay, where a graph can read it
        self.form: acceleration.Form | None = None

    def play(self) -> None:
        """k updates of D and one of G, with the clock's batches and random numbers; the clock moves on.

        Raises DivergedError where the host watches, with the update that is not finite not made.
        """
        state, schedule = self.state, self.experiment.schedule
        clocks = [state.images + step * schedule.batch_size for step in range(schedule.discriminator_steps)]
        batches = [self.experiment.data.batch(clock, schedule.batch_size) for clock in clocks]
        images = clocks[-1] + schedule.batch_size
        self.averaging.fill_(1 - schedule.decay(images))
        with tf32(self.precision == "tf32"):
            form = self.eager if self.by_host else self.fastest_form(batches)
            # One seed for everything this iteration draws: a resumed run draws the same.
            seed_default(stream_seed(self.experiment.seed, "train", state.images), state.device)
            form(batches)
        state.images = images

    def fastest_form(self, batches: Sequence[Tensor]) -> acceleration.Form:
        """Found once, at the first iteration."""
        if self.form is None:
            held = self.hold is not None
            tried = acceleration.candidates(self.experiment.execution, self.state.device, held)
            play = self.played_by_device if held else self.played_by_host
            self.form = acceleration.fastest(self.experiment.objective, self.state, tried, play, batches, self.say)
            if self.hold is not None:
                self.hold.read()  # trying has counted
        return self.form

    def eager(self, batches: Sequence[Tensor]) -> None:
        """What the device refused, played by the host."""
        self.played_by_host(batches, acceleration.Game.written(self.experiment.objective))

    def played_by_host(self, batches: Sequence[Tensor], game: acceleration.Game) -> None:
        """The host looks at every update."""
        made, self.made_before = self.made_before, 0
        self.algorithm(self.updates(game, made=made), batches)
        if self.state.average is not None:
            update_average(self.state.average, self.state.generator, self.averaging)

    def played_by_device(self, batches: Sequence[Tensor], game: acceleration.Game) -> None:
        """What a graph can hold: nothing waits for the device, and nothing moves once `hold` is closed."""
        assert self.hold is not None
        with self.hold.keeping(*self.state.generator.buffers(), *self.state.discriminator.buffers()):
            self.algorithm(self.updates(game, hold=self.hold), batches)
        if self.state.average is not None:
            share = torch.where(self.hold.held, 0, self.averaging)
            update_average(self.state.average, self.state.generator, share)

    def updates(self, game: acceleration.Game, hold: Hold | None = None, made: int = 0) -> Updates:
        """How updates are made in one form."""
        return Updates(self.state, self.experiment.objective, self.experiment.latents, game, self.precision, hold, made)

    def settled(self) -> bool:
        """Whether all that was played has been made. If not, the clock is put back to the first iteration that was not
        made whole, and the host plays from there until all is settled again.
        """
        if self.hold is None:
            return True
        schedule = self.experiment.schedule
        held, made = self.hold.read()
        if held:
            whole, self.made_before = divmod(made, schedule.discriminator_steps + 1)
            self.state.images = self.settled_images + whole * schedule.discriminator_steps * schedule.batch_size
        self.by_host, self.settled_images = held, self.state.images
        return not held


# ---------------------------------------------------------------------------------------------------------------------
# The order in which the players move


def alternating(updates: Updates, batches: Sequence[Tensor]) -> None:
    """k updates of D, then one of G on samples of its own: Goodfellow et al. 2014, Algorithm 1."""
    for real in batches:
        updates.of_discriminator(real, updates.samples_alone(len(real)))
    updates.of_generator(updates.samples(len(real)))


def reuse(updates: Updates, batches: Sequence[Tensor]) -> None:
    """The same, but G's update is on the samples that D's last update has seen."""
    *earlier, last = batches
    for real in earlier:
        updates.of_discriminator(real, updates.samples_alone(len(real)))
    fake = updates.samples(len(last))
    updates.of_discriminator(last, fake.detach())
    updates.of_generator(fake)


def simultaneous(updates: Updates, batches: Sequence[Tensor]) -> None:
    """G moves with D's last update, against D as it was before it (Dumoulin et al. 2016, Algorithm 1)."""
    *earlier, last = batches
    for real in earlier:
        updates.of_discriminator(real, updates.samples_alone(len(real)))
    updates.of_both(last)


UPDATES: dict[str, Callable[[Updates, Sequence[Tensor]], None]] = {
    "alternating": alternating,
    "reuse": reuse,
    "simultaneous": simultaneous,
}


# ---------------------------------------------------------------------------------------------------------------------
# One update


@dataclass
class Updates:
    """Makes updates of `state`, computing with `game`, whose functions a form may have compiled.

    Without a `hold` the host looks at every update. The first `made` updates are drawn but not made: they have been.
    """

    state: State
    objective: Objective
    latents: Latents
    game: acceleration.Game
    precision: str = "float32"
    hold: Hold | None = None
    made: int = 0

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of networks, whose last layers, losses and gradients of weights stay float32."""
        return rounded(self.precision, self.state.device)

    def samples(self, count: int) -> Tensor:
        """New samples, with a graph to G."""
        with self.autocast():
            return self.game.samples(self.state.generator, self.latents.draw(count))

    def samples_alone(self, count: int) -> Tensor:
        """New samples without a graph; G's batch statistics move once an iteration, in its own update."""
        with torch.no_grad(), still_statistics(self.state.generator):
            return self.samples(count)

    def of_discriminator(self, real: Tensor, fake: Tensor) -> None:
        """One update of D on data [B, …] and on samples without a graph."""
        with self.autocast():
            loss, statistics = self.game.discriminator_loss(self.state.discriminator, real, fake)
        self.descend("discriminator", loss, statistics)

    def of_generator(self, fake: Tensor) -> None:
        """One update of G, through D as it is, on samples that carry a graph."""
        with self.autocast():
            loss, statistics = self.game.generator_loss(self.state.discriminator, fake)
        self.descend("generator", loss, statistics)

    def of_both(self, real: Tensor) -> None:
        """One update of D and one of G, from one pass through D.

        The gradient of G's loss at a sample is a multiple of that of D's loss there, ∂L_G/∂v : ∂L_D/∂v, since D judges
        each sample alone: one backward pass serves both. Where the divisor is too small for that, there are two.
        """
        fake = self.samples(len(real))
        x = fake.detach().requires_grad_()
        with self.autocast():
            v = torch.cat(self.objective.outputs(self.state.discriminator, real, x))
            penalty = self.objective.penalty(self.state.discriminator, real, x.detach())
        outputs = v.detach().requires_grad_()
        v_real, v_fake = outputs.split(len(real))
        loss, statistics = self.objective.bound_loss(v_real, v_fake)
        generator_loss, generator_statistics = self.objective.sample_loss(v_fake)
        (downhill,), (generator_downhill,) = (torch.autograd.grad(each, outputs) for each in (loss, generator_loss))
        if penalty is not None:
            statistics |= {"loss/penalty": penalty.value, "penalty/gradient_rms": penalty.gradient_rms}
            loss = loss + penalty.value

        self.forget_gradients()
        parameters = trained(self.state.discriminator)
        scale, shared = shared_scale(downhill[len(real) :], self.objective.head.coordinate(v_fake.detach()))
        if self.hold is not None or shared:
            torch.autograd.backward(v, downhill * scale, inputs=[*parameters, x])
            torch._foreach_div_([parameter.grad for parameter in parameters if parameter.grad is not None], scale)
            assert x.grad is not None
            factor = (generator_downhill / (downhill * scale))[len(real) :]
            at_samples = x.grad * factor.view(-1, *[1] * (x.dim() - 1))
        else:
            (at_samples,) = torch.autograd.grad(v, x, generator_downhill, retain_graph=True)
            torch.autograd.backward(v, downhill, inputs=parameters)
        if penalty is not None:
            penalty.value.backward(inputs=parameters)
        fake.backward(at_samples, inputs=trained(self.state.generator))
        statistics |= generator_statistics | {"update/two_pass_share": 1 - shared.to(loss.dtype)}
        self.step(["discriminator", "generator"], loss.detach() + generator_loss.detach(), statistics, shared)

    def descend(self, player: str, loss: Tensor, statistics: Mapping[str, Tensor]) -> None:
        """Descend `loss` in one network alone: the other player's gradients are not even computed."""
        if self.made:
            self.made -= 1
            return
        self.forget_gradients()
        loss.backward(one(loss.dtype, loss.device), inputs=trained(getattr(self.state, player)))
        self.step([player], loss.detach(), statistics)

    def forget_gradients(self) -> None:
        """No gradient is left of earlier updates."""
        for optimizer in (self.state.discriminator_optimizer, self.state.generator_optimizer):
            optimizer.zero_grad()

    def step(
        self, players: list[str], loss: Tensor, statistics: Mapping[str, Tensor], possible: Tensor | None = None
    ) -> None:
        """Move `players` down their gradients, unless `loss` or a gradient is not finite, which raises DivergedError
        or closes the hold; so does what is not `possible` on a device."""
        norms = {f"grad_norm/{player}": gradient_norm(getattr(self.state, player)) for player in players}
        statistics = {**statistics, **norms}
        optimizers = [getattr(self.state, f"{player}_optimizer") for player in players]
        if self.hold is None and not all(math.isfinite(float(value)) for value in (loss, *norms.values())):
            raise DivergedError(non_finite(self.state.images, " and ".join(players), statistics))
        if self.hold is not None:
            total = sum(norms.values(), loss)
            self.hold.judge(total.isfinite() if possible is None else total.isfinite() & possible, len(players))
        for optimizer in optimizers:
            # What a fused optimizer looks at before it steps.
            optimizer.grad_scale, optimizer.found_inf = None, None if self.hold is None else self.hold.held.float()
            optimizer.step()
        self.state.statistics.add(statistics, unless=None if self.hold is None else self.hold.held)


class Hold:
    """A flag on the device that, once closed, turns every update into nothing; and how many were made before."""

    def __init__(self, device: torch.device) -> None:
        self.held = torch.zeros((), dtype=torch.bool, device=device)
        self.made = torch.zeros((), dtype=torch.int64, device=device)

    def judge(self, fine: Tensor, updates: int) -> None:
        """Close unless the boolean `fine`; count `updates` while open."""
        self.held |= ~fine
        self.made += updates * ~self.held

    @contextmanager
    def keeping(self, *statistics: Tensor) -> Iterator[None]:
        """Batch norm's statistics, which every pass moves, are as they were if it closes."""
        dtypes = {tensor.dtype for tensor in statistics}
        groups = [[tensor for tensor in statistics if tensor.dtype == dtype] for dtype in dtypes]
        before = [torch.cat([tensor.flatten() for tensor in group]) for group in groups]
        yield
        for group, old in zip(groups, before, strict=True):
            now = torch.cat([tensor.flatten() for tensor in group])
            parts = torch.where(self.held, old, now).split([tensor.numel() for tensor in group])
            torch._foreach_copy_(group, [part.view_as(to) for part, to in zip(parts, group, strict=True)])

    def read(self) -> tuple[bool, int]:
        """Wait for the device: whether it is closed, and the updates made since the last reading. Open and 0 again."""
        found = bool(self.held), int(self.made)
        self.held.zero_()
        self.made.zero_()
        return found


def trained(network: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that are not frozen."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


@cache
def one(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Where a backward pass begins; autograd would make it anew every time."""
    return torch.ones((), dtype=dtype, device=device)


def gradient_norm(network: torch.nn.Module) -> Tensor:
    """The Euclidean norm of all gradients."""
    return torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])


def shared_scale(downhill: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """What to multiply ∂L_D/∂v [B] at samples by, a power of two that keeps small gradients from underflowing on the
    way back through D; and whether one backward pass can serve both players."""
    size = downhill.abs()
    small, large = size.min(), size.max()
    centred = torch.exp2((60 - large.log2().ceil()).clamp(max=100))  # beyond, gradients at data would overflow
    scale = torch.where(small < 2.0**-60, centred, torch.ones_like(small))
    shared = (small > large * 2.0**-LARGEST_SHARED_SPAN) & (s.abs().max() <= LARGEST_SHARED_RATIO)
    return scale, shared


def non_finite(images: int, players: str, statistics: Mapping[str, Tensor]) -> str:
    """What stopped the run, with every value of the step that failed."""
    values = {name: float(value.detach()) for name, value in statistics.items()}
    culprits = [name for name, value in values.items() if not math.isfinite(value)] or ["loss + grad_norm"]
    return (
        f"{', '.join(culprits)} not finite at images = {images:,}; the {players}'s update was not made "
        f"({', '.join(f'{name} = {value:.6g}' for name, value in values.items())}).\n"
        "Begin a new run with a lower optimizer.lr, a regularizer (regularizer=r1), or a divergence that grows more "
        "slowly in the log-ratio (gan, js, squared_hellinger)"
    )


# ---------------------------------------------------------------------------------------------------------------------
# What a machine can do


def refuse_impossible(execution: Execution, device: torch.device) -> None:
    """Raise ConfigError for an execution that `device` cannot have."""
    if execution.precision == "tf32" and device.type != "cuda":
        raise ConfigError(f"precision=tf32 is for CUDA devices, not for device={device.type}; choose precision=bf16")
    if execution.precision == "bf16" and device.type == "mps":
        raise ConfigError("precision=bf16 is not for device=mps; choose precision=float32")
    if execution.graph == "on" and device.type != "cuda":
        raise ConfigError(f"graph=on needs a CUDA device, not device={device.type}; choose graph=auto")


def refuse_unfit(is_samplewise: bool | None, execution: Execution, precision: str) -> None:
    """Raise ConfigError for an execution that needs to know more of D than is known."""
    if execution.update == "simultaneous" and not is_samplewise:
        reason = "mixes the samples of a batch (batch norm)" if is_samplewise is False else "is not known to do so"
        raise ConfigError(
            "update=simultaneous needs a discriminator that judges each sample alone, so that one backward pass "
            f"serves both players; this one {reason}. Choose update=alternating"
        )
    if precision == "bf16" and is_samplewise is None:
        raise ConfigError(
            "precision=bf16 keeps D's last layer in float32, which is known only of networks from tables, and not of "
            "architecture.object; choose precision=float32"
        )


def can_be_held(state: State) -> bool:
    """Whether both optimizers can be told on their device not to step: fused ones can, but for SGD with momentum, whose
    first step writes its buffer whatever it is told."""
    optimizers: list[Optimizer] = [state.discriminator_optimizer, state.generator_optimizer]
    return all(
        getattr(optimizer, "_step_supports_amp_scaling", False) and not optimizer.defaults.get("momentum")
        for optimizer in optimizers
    )
