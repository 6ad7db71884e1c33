"""The losses of both players on a batch: networks, regularizers and the game put together.

Networks are called in `generate` and `discriminate` alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gantrain.augmentation.augmentations import Augmentation, Outputs
from gantrain.data.batch import Batch
from gantrain.distributed import WHOLE, Part
from gantrain.objectives.objective import Game, Statistics
from gantrain.objectives.regularizers import NO_STATE, Penalty, Regularizer
from gantrain.precision import as_float32


def generate(generator: nn.Module, latents: Tensor, labels: Tensor | None) -> Tensor:
    """Return samples [B, …] from latents [B, L], of the classes `labels` [B] if there are any."""
    return generator(latents) if labels is None else generator(latents, labels)


def discriminate(discriminator: nn.Module, x: Tensor, labels: Tensor | None) -> Tensor:
    """Return D's raw outputs [B] on `x` [B, …], at least float32, for the classes `labels` [B] if there are any."""
    return as_float32(discriminator(x) if labels is None else discriminator(x, labels))


@dataclass
class Losses:
    """The forward pass of G, and the losses of D and G with their statistics. Samples have the labels of the data.

    Args:
        game: What the players minimise.
        regularizers: Of the discriminator.
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

    @property
    def has_penalty(self) -> bool:
        """Whether a regularizer adds a penalty, which is differentiated twice."""
        return any(type(one).penalty is not Regularizer.penalty for one in self.regularizers)

    def samples(self, generator: nn.Module, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return samples [B, …] from latents [B, L]."""
        return generate(generator, latents, labels)

    def discriminator_loss(self, discriminator: nn.Module, real: Batch, fake: Tensor) -> tuple[Tensor, Statistics]:
        """Return D's loss on data and on samples [B, …] without a graph: the game's plus the penalties."""
        v_real, v_fake = self.outputs(discriminator, real, fake)
        loss, statistics = self.game.discriminator_loss(v_real, v_fake)
        statistics = statistics | self.adjust_augmentation(discriminator, v_real, v_fake)
        if (penalty := self.penalty(discriminator, real, fake)) is not None:
            loss, statistics = loss + penalty[0], statistics | penalty[1]
        return loss, statistics

    def generator_loss(
        self, discriminator: nn.Module, fake: Tensor, real: Batch | None = None
    ) -> tuple[Tensor, Statistics]:
        """Return G's loss on samples [B, …] with a graph to G; `real` has their labels, and the data of some games."""
        v_fake = discriminate(discriminator, self.disturb(fake), None if real is None else real.labels)
        if not self.game.needs_real:
            return self.game.generator_loss(v_fake)
        assert real is not None
        with torch.no_grad():
            v_real = discriminate(discriminator, self.disturb(real.images), real.labels)
        return self.game.generator_loss(v_fake, v_real)

    def outputs(self, discriminator: nn.Module, real: Batch, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return D's raw outputs [B] on data and on samples, in one pass where it judges each sample alone."""
        images, fake, labels = self.disturb(real.images), self.disturb(fake), real.labels
        if not getattr(discriminator, "is_samplewise", False):
            return discriminate(discriminator, images, labels), discriminate(discriminator, fake, labels)
        both = None if labels is None else torch.cat([labels, labels])
        v_real, v_fake = discriminate(discriminator, torch.cat([images, fake]), both).split([len(images), len(fake)])
        return v_real, v_fake

    def disturb(self, x: Tensor) -> Tensor:
        """Return `x` [B, …] as it is shown to D: augmented, then as the regularizers disturb it."""
        x = self.augment(x)
        for regularizer in self.regularizers:
            x = regularizer.disturb(x, self.states.get(regularizer.name, NO_STATE))
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
            v_held_out, images = None, len(v_real) * self.part.ranks
            if self.held_out is not None:
                count = math.ceil(len(v_real) * self.augmentation.held_out_share) * self.part.ranks
                chosen = self.part.take(torch.randint(len(self.held_out), (count,), device=v_real.device))
                v_held_out = discriminate(discriminator, self.disturb(self.held_out[chosen]), None)
            outputs = Outputs(self.game.margin(v_real, v_fake), v_real, v_fake, v_held_out)
            return self.augmentation.adjust(outputs, images, self.states.get(self.augmentation.name))

    def penalty(self, discriminator: nn.Module, real: Batch, fake: Tensor) -> tuple[Tensor, Statistics] | None:
        """Return the sum of the penalties with scalars to report, or None without penalties.

        They are computed in float32: bfloat16 would be differentiated twice. Their points are augmented, and their
        gradients are those with respect to the points before.
        """

        def judge(x: Tensor) -> Tensor:
            return discriminate(discriminator, self.augment(x), real.labels)

        penalties: dict[str, Penalty] = {}
        with torch.autocast(fake.device.type, enabled=False):
            for one in self.regularizers:
                state = self.states.get(one.name, NO_STATE)
                found = one.penalty(judge, real.images, fake, state)
                if found is not None:
                    penalties[one.name] = found
        if not penalties:
            return None
        total, *others = [each.value for each in penalties.values()]
        for value in others:
            total = total + value
        statistics = {"loss/penalty": total}
        for name, each in penalties.items():
            statistics[f"penalty/{name}_gradient_rms" if others else "penalty/gradient_rms"] = each.gradient_rms
        return total, statistics
