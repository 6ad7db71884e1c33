"""One step: an update of the discriminator, of the generator, or of both.

`alternating` and `simultaneous` order the players' updates within an iteration, and `Step` makes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from gantrain.collectives import add_gradients
from gantrain.data import Batch
from gantrain.distributed import WHOLE, Part
from gantrain.errors import DivergedError
from gantrain.networks.latents import Latents
from gantrain.precision import autocast_products
from gantrain.training.acceleration import FiniteGuard
from gantrain.training.losses import Losses, add_penalty
from gantrain.training.state import State, freeze_running_statistics

# |r| beyond which one backward pass does not serve both players, and the powers of two between a batch's largest and
# smallest gradient: float32 would lose what the smaller ones hold.
LARGEST_SHARED_RATIO = 60.0
LARGEST_SHARED_SPAN = 90.0


def alternating(step: Step, batches: Sequence[Batch]) -> None:
    """k updates of D, then one of G on samples of its own: Goodfellow et al. 2014, Algorithm 1."""
    for real in batches:
        with step.keep_unless_made():
            step.discriminator_step(real, step.detached_samples(real))
    with step.keep_unless_made():
        step.generator_step(step.samples(real), real)


def simultaneous(step: Step, batches: Sequence[Batch]) -> None:
    """k updates of D, the last one together with G's, from the same D (Dumoulin et al. 2016, Algorithm 1)."""
    *earlier, last = batches
    for real in earlier:
        with step.keep_unless_made():
            step.discriminator_step(real, step.detached_samples(real))
    with step.keep_unless_made():
        step.simultaneous_step(last)


UPDATES: dict[str, Callable[[Step, Sequence[Batch]], None]] = {
    "alternating": alternating,
    "simultaneous": simultaneous,
}


# ---------------------------------------------------------------------------------------------------------------------
# One update


@dataclass
class Step:
    """One update of a player, or of both.

    Args:
        state: What the update changes.
        losses: The forward passes and losses, compiled or not.
        latents: The generator's input.
        part: The share of a batch that this process trains on.
        precision: Of the networks under autocast.
        guard: Checks on the device that updates are finite; None lets the host check.
        made: How many updates of this iteration have been made already; their random numbers are drawn all the same.
        number: How many updates of D there were before the next one.
    """

    state: State
    losses: Losses
    latents: Latents
    part: Part = WHOLE
    precision: str = "float32"
    guard: FiniteGuard | None = None
    made: int = 0
    number: int = 0

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context of the networks; last layers, losses and weight gradients stay float32."""
        return autocast_products(self.precision, self.state.device)

    @contextmanager
    def keep_unless_made(self) -> Iterator[None]:
        """Let the forward passes of one update change buffers and states of regularizers only if it is made here.

        It is not if the guard is tripped, or if it was made before the iteration was repeated.
        """
        buffers = chain(self.state.generator.buffers(), self.state.discriminator.buffers())
        changing = [*buffers, *self.state.list_regularizer_tensors()]
        if self.made:
            before = [tensor.clone() for tensor in changing]
            yield
            for tensor, value in zip(changing, before, strict=True):
                tensor.copy_(value)
        else:
            with nullcontext() if self.guard is None else self.guard.preserve(*changing):
                yield

    def samples(self, real: Batch) -> Tensor:
        """Draw as many samples as `real` has images, of its classes, with a graph to G: [B, …]."""
        latents = self.part.take(self.latents.draw(len(real.images) * self.part.ranks))
        with self.autocast():
            return self.losses.samples(self.state.generator, latents, real.labels)

    def detached_samples(self, real: Batch) -> Tensor:
        """Draw samples without a graph; batch norm's statistics in G change in G's own update alone."""
        with torch.no_grad(), freeze_running_statistics(self.state.generator):
            return self.samples(real)

    def discriminator_step(self, real: Batch, fake: Tensor) -> None:
        """Update D on data and on samples [B, …] without a graph."""
        with self.autocast():
            skipped = self.skip_penalties()
            loss, statistics = self.losses.discriminator_loss(self.state.discriminator, real, fake, skipped)
        self.descend("discriminator", loss, statistics)

    def skip_penalties(self) -> tuple[str, ...]:
        """Return the names of the regularizers without a penalty in this update of D, and count it."""
        self.number += 1
        return self.losses.list_skipped(self.number - 1)

    def generator_step(self, fake: Tensor, real: Batch | None = None) -> None:
        """Update G on samples [B, …] with a graph, D being fixed."""
        with self.autocast(), fix_parameters(self.state.trainable["discriminator"]):
            loss, statistics = self.losses.generator_loss(self.state.discriminator, fake, real)
        self.descend("generator", loss, statistics)

    def simultaneous_step(self, real: Batch) -> None:
        """Update D and G from one forward pass through D.

        D treats samples independently, so at a sample the gradient of G's loss is that of D's loss times the factor
        (∂L_G/∂v) / (∂L_D/∂v), and one backward pass serves both. If the divisor is too small, there are two passes.
        """
        game, fake = self.losses.game, self.samples(real)
        x = fake.detach().requires_grad_()
        with self.autocast():
            both = self.losses.outputs(self.state.discriminator, real, x)  # of all processes, as are the losses
            v, size = torch.cat(both), len(both[0])
            adjusted = self.losses.adjust_augmentation(self.state.discriminator, *v.split(size))
            penalty = self.losses.penalty(self.state.discriminator, real, x.detach(), self.skip_penalties())
        outputs = v.detach().requires_grad_()
        v_real, v_fake = outputs.split(size)
        loss, statistics = self.losses.loss_of_outputs(v_real, v_fake)
        generator_loss, generator_statistics = game.generator_loss(v_fake, v_real.detach() if game.needs_real else None)
        (downhill,), (generator_downhill,) = (torch.autograd.grad(each, outputs) for each in (loss, generator_loss))
        loss, statistics = add_penalty((loss, statistics), penalty)

        self.clear_gradients()
        parameters = self.state.trainable["discriminator"]
        scale, shared = find_shared_scale(downhill[size:], game.coordinate(v_fake.detach()))
        shared &= not game.is_flat
        if not game.is_flat and (self.guard is not None or shared):
            torch.autograd.backward(v, downhill * scale, inputs=[*parameters, x])
            torch._foreach_div_([parameter.grad for parameter in parameters if parameter.grad is not None], scale)
            assert x.grad is not None
            factor = self.part.take((generator_downhill / (downhill * scale))[size:])
            at_samples = x.grad * factor.view(-1, *[1] * (x.dim() - 1))
        else:
            (at_samples,) = torch.autograd.grad(v, x, generator_downhill, retain_graph=True)
            torch.autograd.backward(v, downhill, inputs=parameters)
        if penalty is not None and penalty[0].requires_grad:
            penalty[0].backward(inputs=parameters)
        fake.backward(at_samples, inputs=self.state.trainable["generator"])
        statistics |= adjusted | generator_statistics | {"update/two_pass_share": 1 - shared.to(loss.dtype)}
        valid = None if game.is_flat else shared
        self.apply_gradients(["discriminator", "generator"], loss.detach() + generator_loss.detach(), statistics, valid)

    def descend(self, player: str, loss: Tensor, statistics: Mapping[str, Tensor]) -> None:
        """Minimise `loss` in one network; the other player's gradients are not computed."""
        if self.made:
            self.made -= 1
            return
        self.clear_gradients()
        loss.backward(unit_gradient(loss.dtype, loss.device), inputs=self.state.trainable[player])
        self.apply_gradients([player], loss.detach(), statistics)

    def clear_gradients(self) -> None:
        for parameter in chain(*self.state.trainable.values()):
            parameter.grad = None

    def apply_gradients(
        self, players: list[str], loss: Tensor, statistics: Mapping[str, Tensor], valid: Tensor | None = None
    ) -> None:
        """Step the optimizers of `players`, unless `loss` or a gradient is not finite.

        In that case raise DivergedError, or trip the guard; so does a boolean `valid` that is False on the device.
        """
        if self.part.ranks > 1:
            add_gradients(self.state.networks[player] for player in players)
        norms = {f"grad_norm/{player}": compute_gradient_norm(self.state.trainable[player]) for player in players}
        statistics = {**statistics, **norms}
        if self.guard is None and not all(math.isfinite(float(value)) for value in (loss, *norms.values())):
            raise DivergedError(describe_non_finite(self.state.images, " and ".join(players), statistics))
        if self.guard is not None:
            total = sum(norms.values(), loss)
            self.guard.check(total.isfinite() if valid is None else total.isfinite() & valid, len(players))
        tripped = None if self.guard is None else self.guard.is_tripped
        for player in players:
            optimizer: Any = self.state.optimizers[f"{player}_optimizer"]
            # A fused optimizer reads these before it steps.
            optimizer.grad_scale, optimizer.found_inf = None, None if tripped is None else tripped.float()
            optimizer.step()
        if "discriminator" in players and self.losses.by_hook["constrain"]:
            parameters = self.state.discriminator.parameters()
            with torch.no_grad(), nullcontext() if self.guard is None else self.guard.preserve(*parameters):
                self.losses.constrain(self.state.discriminator)
        self.state.statistics.add(statistics, unless=tripped)


@contextmanager
def fix_parameters(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let losses in the block have no gradient in these parameters, which compiled code would always compute."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@cache
def unit_gradient(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the gradient that starts a backward pass; autograd would allocate it anew every time."""
    return torch.ones((), dtype=dtype, device=device)


def compute_gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the Euclidean norm of all gradients: a scalar."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def find_shared_scale(downhill: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Return a scale for ∂L_D/∂v [B] at samples, and whether one backward pass can serve both players.

    The scale is a power of two that keeps small gradients from underflowing in the backward pass through D. `s` are the
    samples' coordinates [B].
    """
    size = downhill.abs()
    small, large = size.min(), size.max()
    centred = torch.exp2((60 - large.log2().ceil()).clamp(max=100))  # beyond, gradients at data would overflow
    scale = torch.where(small < 2.0**-60, centred, torch.ones_like(small))
    shared = (small > large * 2.0**-LARGEST_SHARED_SPAN) & (s.abs().max() <= LARGEST_SHARED_RATIO)
    return scale, shared


def describe_non_finite(images: int, players: str, statistics: Mapping[str, Tensor]) -> str:
    """Return the error message of an update that is not finite, with every value of that step."""
    values = {name: float(value.detach()) for name, value in statistics.items()}
    culprits = [name for name, value in values.items() if not math.isfinite(value)] or ["loss + grad_norm"]
    return (
        f"{', '.join(culprits)} not finite at images = {images:,}; the {players}'s update was not made "
        f"({', '.join(f'{name} = {value:.6g}' for name, value in values.items())}).\n"
        "Begin a new run with a lower optimizer.lr, a regularizer (regularizer=r1), or a divergence that grows more "
        "slowly in the log-ratio (gan, js, squared_hellinger)"
    )
