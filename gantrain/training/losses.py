"""The losses of both players on a batch: networks, regularizers and the game put together.

A training step calls the networks in `samples`, `discriminate` and `discriminate_with_features` alone. Several
processes gather D's outputs, so that each computes the losses of the global batch, however these couple its samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gantrain.augmentation.augmentations import Augmentation, Outputs
from gantrain.data import Batch
from gantrain.distributed import WHOLE, Part
from gantrain.networks.builder import Network
from gantrain.objectives.objective import Game, Loss, Statistics
from gantrain.precision import as_float32
from gantrain.regularizers.regularizer import NO_STATE, Penalty, Regularizer, overrides
from gantrain.schedules import is_zero
from gantrain.training.state import evaluation_mode


def discriminate(discriminator: nn.Module, x: Tensor, labels: Tensor | None) -> Tensor:
    """Return D's raw outputs [B] on `x` [B, …], at least float32, for the classes `labels` [B] if there are any."""
    return as_float32(discriminator(x) if labels is None else discriminator(x, labels))


def discriminate_with_features(discriminator: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `discriminate` does, and the outputs [B, F] of D's last hidden layer, for networks from tables."""
    assert isinstance(discriminator, Network), "other networks name no features, and those from tables take no labels"
    v, features = discriminator.forward_with_features(x)
    return as_float32(v), as_float32(features)


def add_penalty(loss: Loss, penalty: Loss | None) -> Loss:
    """Return a loss and its scalars with a penalty and its own, if there is one."""
    if penalty is None:
        return loss
    (value, statistics), (added, others) = loss, penalty
    total = statistics.get("loss/penalty", 0) + others["loss/penalty"]
    return value + added, statistics | others | {"loss/penalty": total}


@dataclass
class Losses:
    """The forward pass of G, and the losses of D and G with their statistics. Samples have the labels of the data.

    Args:
        game: What the players minimise.
        regularizers: Of the game.
        states: The tensors of those regularizers that have a state, by name, and of the augmentation.
        augmentation: Of all that D is shown, before the regularizers disturb it.
        held_out: Data [N, …] that are held out from training, if the augmentation is adjusted by them.
        part: The share of a batch that this process trains on.
    """

    game: Game
    regularizers: Sequence[Regularizer] = ()
    states: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    augmentation: Augmentation | None = None
    held_out: Tensor | None = None
    part: Part = WHOLE

    def __post_init__(self) -> None:
        """Sort the regularizers by what they do, so that a step asks none that does nothing there."""
        hooks = ("disturb", "penalty", "penalize_outputs", "penalize_features", "constrain")
        self.by_hook = {
            hook: [regularizer for regularizer in self.regularizers if overrides(regularizer, hook)] for hook in hooks
        }
        self.lazy = [regularizer for regularizer in self.regularizers if regularizer.every > 1]

    def list_skipped(self, number: int) -> tuple[str, ...]:
        """Return the names of the regularizers without a penalty in D's update `number`, counted from 0."""
        return tuple(regularizer.name for regularizer in self.lazy if number % regularizer.every)

    def samples(self, generator: nn.Module, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return samples [B, …] from latents [B, L], of the classes `labels` [B] if there are any."""
        return generator(latents) if labels is None else generator(latents, labels)

    def discriminator_loss(
        self, discriminator: nn.Module, real: Batch, fake: Tensor, skipped: tuple[str, ...] = ()
    ) -> Loss:
        """Return D's loss on data and on samples [B, …] without a graph: the game's plus the penalties."""
        v_real, v_fake = self.outputs(discriminator, real, fake)
        loss, statistics = self.loss_of_outputs(v_real, v_fake)
        statistics = statistics | self.adjust_augmentation(discriminator, v_real, v_fake)
        return add_penalty((loss, statistics), self.penalty(discriminator, real, fake, skipped))

    def loss_of_outputs(self, v_real: Tensor, v_fake: Tensor) -> Loss:
        """Return D's loss for its raw outputs [B] on data and on samples: the game's plus the penalties on outputs."""
        penalties = []
        for regularizer in self.by_hook["penalize_outputs"]:
            ratios = self.game.log_ratios(v_real, v_fake) if regularizer.needs_ratio else None
            found = regularizer.penalize_outputs(
                *(ratios or (v_real, v_fake)), self.states.get(regularizer.name, NO_STATE)
            )
            penalties.append((regularizer, found))
        return add_penalty(self.game.discriminator_loss(v_real, v_fake), self.sum_penalties(penalties))

    def generator_loss(self, discriminator: nn.Module, fake: Tensor, real: Batch | None = None) -> Loss:
        """Return G's loss on samples [B, …] with a graph to G; `real` has their labels, and the data of some games."""
        if self.by_hook["penalize_features"]:
            assert real is not None
            return self.match_features(discriminator, fake, real.images)
        labels, v_real = None if real is None else real.labels, None
        v_fake = self.part.gather(discriminate(discriminator, self.disturb(fake), labels))
        if self.game.needs_real:
            assert real is not None
            with torch.no_grad():
                v_real = self.part.gather(discriminate(discriminator, self.disturb(real.images), labels))
        return self.game.generator_loss(v_fake, v_real)

    def match_features(self, discriminator: nn.Module, fake: Tensor, real: Tensor) -> Loss:
        """Return G's loss with the penalties on D's features, on samples and data [B, …]."""
        v_fake, features = map(self.part.gather, discriminate_with_features(discriminator, self.disturb(fake)))
        with torch.no_grad():
            v_real, wanted = map(self.part.gather, discriminate_with_features(discriminator, self.disturb(real)))
        loss, statistics = self.game.generator_loss(v_fake, v_real if self.game.needs_real else None)
        for regularizer in self.by_hook["penalize_features"]:
            penalty = regularizer.penalize_features(wanted, features).value
            loss = penalty if is_zero(regularizer.adversarial) else penalty + regularizer.adversarial * loss
            statistics = statistics | {f"penalty/{regularizer.name}": penalty}
        return loss, statistics

    def outputs(self, discriminator: nn.Module, real: Batch, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return D's raw outputs on data and on samples, of all processes, [B] each.

        They are from one pass where D's output for a sample depends on it alone.
        """
        images, fake, labels = self.disturb(real.images), self.disturb(fake), real.labels
        if not getattr(discriminator, "is_samplewise", False):
            v_real = discriminate(discriminator, images, labels)
            return self.part.gather_both(v_real, discriminate(discriminator, fake, labels))
        both = None if labels is None else torch.cat([labels, labels])
        v_real, v_fake = discriminate(discriminator, torch.cat([images, fake]), both).split([len(images), len(fake)])
        return self.part.gather_both(v_real, v_fake)

    def disturb(self, x: Tensor) -> Tensor:
        """Return `x` [B, …] as it is shown to D: augmented, then as the regularizers disturb it."""
        x = self.augment(x)
        for regularizer in self.by_hook["disturb"]:
            x = regularizer.disturb(x, self.part)
        return x

    def augment(self, x: Tensor) -> Tensor:
        """Return `x` [B, …] augmented, if there is an augmentation."""
        if self.augmentation is None:
            return x
        return self.augmentation.augment(x, self.states.get(self.augmentation.name), self.part)

    def adjust_augmentation(self, discriminator: nn.Module, v_real: Tensor, v_fake: Tensor) -> Statistics:
        """Adjust the augmentation to D's raw outputs [B] on data and samples; return scalars to report."""
        if self.augmentation is None:
            return {}
        with torch.no_grad():
            v_held_out, images = None, len(v_real)
            if self.held_out is not None:
                count = self.augmentation.count_held_out(images)
                chosen = self.part.take(torch.randint(len(self.held_out), (count,), device=v_real.device))
                v_held_out = self.part.gather(discriminate(discriminator, self.disturb(self.held_out[chosen]), None))
            outputs = Outputs(self.game.margin(v_real, v_fake), v_real, v_fake, v_held_out)
            return self.augmentation.adjust(outputs, images, self.states.get(self.augmentation.name))

    def penalty(
        self, discriminator: nn.Module, real: Batch, fake: Tensor, skipped: tuple[str, ...] = ()
    ) -> Loss | None:
        """Return the sum of the penalties with scalars to report, or None without penalties.

        They are computed in float32: bfloat16 would be differentiated twice, or hide the difference of two outputs.
        Their points are augmented, and their gradients are those with respect to the points before; two passes that are
        compared would be augmented differently, and are not.
        """

        def outputs_of(x: Tensor) -> Tensor:
            return discriminate(discriminator, x, None if real.labels is None else real.labels[: len(x)])

        def outputs_of_augmented(x: Tensor) -> Tensor:
            return outputs_of(self.augment(x))

        penalties = []
        with torch.autocast(fake.device.type, enabled=False):
            for regularizer in self.by_hook["penalty"]:
                if regularizer.name in skipped:
                    penalties.append((regularizer, Penalty(torch.zeros((), device=fake.device))))
                    continue
                with evaluation_mode(discriminator) if regularizer.needs_fixed_network else nullcontext():
                    outputs = outputs_of if regularizer.needs_fixed_network else outputs_of_augmented
                    penalties.append((regularizer, regularizer.penalty(outputs, real.images, fake, self.part)))
        return self.sum_penalties(penalties)

    def sum_penalties(self, penalties: Sequence[tuple[Regularizer, Penalty]]) -> Loss | None:
        """Return the sum of penalties with scalars to report, or None without one; a lazy one counts `every` times."""
        total: Tensor | None = None
        statistics: Statistics = {}
        are_several = len(self.by_hook["penalty"]) + len(self.by_hook["penalize_outputs"]) > 1
        for regularizer, penalty in penalties:
            value = penalty.value if regularizer.every == 1 else regularizer.every * penalty.value
            total = value if total is None else total + value
            if are_several:
                statistics[f"penalty/{regularizer.name}"] = value
            if penalty.gradient_rms is not None:
                prefix = "" if len(self.by_hook["penalty"]) == 1 else f"{regularizer.name}_"
                statistics[f"penalty/{prefix}gradient_rms"] = penalty.gradient_rms
        return None if total is None else (total, {"loss/penalty": total} | statistics)

    @torch.no_grad()
    def constrain(self, discriminator: nn.Module) -> None:
        """Change D's parameters after its update, as the regularizers ask."""
        for regularizer in self.by_hook["constrain"]:
            regularizer.constrain(list(discriminator.parameters()))
