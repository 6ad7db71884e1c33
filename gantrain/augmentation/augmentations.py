"""Augmentation of what both players see: random, differentiable changes of data and samples before D.

D then distinguishes augmented data from augmented samples, and G's gradient comes back through the augmentation.
Held-out bounds, evaluations and sample grids are made without it.

Published settings are for pixels in [−1, 1]. Pixels are in [0, 1] here: shifts of brightness are half as large, what is
filled with 0 is filled with grey, 0.5, and contrast and luma are mirrored or scaled about grey.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from gantrain.distributed import WHOLE, Part
from gantrain.errors import ConfigError, describe_choice
from gantrain.ranges import Choice, Numbers, accepted_by_field, check_keys, setting
from gantrain.schedules import Ramp, is_zero, parse_value

if TYPE_CHECKING:
    from torch import Tensor

State = Mapping[str, "Tensor"]
SHARE = Numbers(at_least=0, at_most=1)
PROBABILITY = replace(SHARE, follows_clock=True)


class Outputs(NamedTuple):
    """D's outputs on a batch: `margin` [B], whose sign is positive where D takes data for data; its raw outputs on
    data and samples [B], and on held-out data [H] or None."""

    margin: Tensor
    real: Tensor
    fake: Tensor
    held_out: Tensor | None = None


@dataclass(frozen=True)
class Augmentation:
    """The interface of augmentations. Every change of an image is made with probability `p` times its group's share."""

    name: ClassVar[str]
    p: float = setting(1.0, PROBABILITY)

    def count_held_out(self, batch_size: int) -> int:
        """Return the number of held-out images that `adjust` needs beside a batch; 0 for none."""
        return 0

    def create_state(self) -> dict[str, Tensor]:
        """Return the tensors that training changes; they travel in the checkpoint."""
        return {}

    def augment(self, x: Tensor, state: State | None = None, part: Part = WHOLE) -> Tensor:
        """Return augmented images `[B, C, H, W]`, at least float32; draws from torch's default generator.

        `x` is the `part` of the batch of all processes, for which the numbers are drawn.
        """
        import torch

        from gantrain.precision import as_float32

        with torch.autocast(x.device.type, enabled=False):
            return self.transform(as_float32(x), part, self.p if state is None else state["p"])

    def transform(self, x: Tensor, part: Part, p: Tensor | float) -> Tensor:
        """Return the images that `augment` does, outside autocast."""
        raise NotImplementedError

    def adjust(self, outputs: Outputs, images: int, state: State | None = None) -> dict[str, Tensor]:
        """Adjust `state` to D's outputs on a batch of `images`, and return scalars to report."""
        margin = outputs.margin
        p = margin.new_zeros(()) + (self.p if state is None else state["p"])
        return {"augment/p": p, "augment/sign": margin.sign().mean()}

    def refuse_unfit(self, shape: tuple[int, ...], *, has_held_out: bool, is_samplewise: bool | None = True) -> None:
        """Raise ConfigError for examples of `shape`, data without held-out ones, or a D that this does not fit."""
        if len(shape) != 3:
            raise ConfigError(
                f"augment={self.name} moves and recolours images, and these data are points of {shape[0]} numbers; "
                "choose augment=none, or regularizer=instance_noise"
            )
        if self.count_held_out(1) and not has_held_out:
            raise ConfigError(
                "augment.measure=held_out compares training images with held-out ones, and none are held out; "
                "choose augment.measure=signs, or give dataset.held_out"
            )
        if self.count_held_out(1) and not is_samplewise:
            raise ConfigError(
                "augment.measure=held_out needs a discriminator whose output for a sample is known to depend on it "
                "alone, so that held-out images change no statistics (batch norm); choose augment.measure=signs"
            )


@dataclass(frozen=True)
class DiffAugment(Augmentation):
    """Colour, translation and cutout, drawn anew for every image (Zhao et al. 2020, arXiv 2006.10738).

    The paper has all three, always on; `color=0` is its policy translation,cutout. The published sizes: brightness
    ± 1/4, saturation 0 to 2, contrast 1/2 to 3/2, moves of up to an eighth of the side, a square of half the side.
    """

    name: ClassVar[str] = "diffaugment"
    color: float = setting(1.0, PROBABILITY)
    translation: float = setting(1.0, PROBABILITY)
    cutout: float = setting(1.0, PROBABILITY)

    def transform(self, x: Tensor, part: Part, p: Tensor | float) -> Tensor:
        from gantrain.augmentation import transforms

        draws = transforms.Draws(x, part, columns=12)
        if not is_zero(self.color):
            share = p * self.color
            x = transforms.brighten(x, draws.choose(share, draws.uniform(-0.25, 0.25), 0))
            saturation, contrast = (draws.choose(share, draws.uniform(*ends), 1) for ends in ((0, 2), (0.5, 1.5)))
            x = transforms.scale_about(x, x.mean(1, keepdim=True), saturation)
            x = transforms.scale_about(x, x.mean((1, 2, 3), keepdim=True), contrast)
        height, width = x.shape[-2:]
        if not is_zero(self.translation):
            most = (transforms.round_half_up(height / 8), transforms.round_half_up(width / 8))
            down, across = (draws.integer(2 * size + 1) - size for size in most)
            is_moved = draws.choose(p * self.translation, down.new_ones(()), 0)
            x = transforms.shift(x, down * is_moved, across * is_moved)
        if not is_zero(self.cutout):
            sizes = (transforms.round_half_up(height / 2), transforms.round_half_up(width / 2))
            # The centre of an even square lies between pixels, and may lie on either edge of the image.
            sides = zip((height, width), sizes, strict=True)
            top, left = (draws.integer(side + 1 - size % 2) - size // 2 for side, size in sides)
            x = transforms.cut_out(x, draws.choose(p * self.cutout, top, height), left, *sizes)
        return x


@dataclass(frozen=True)
class Measure:
    """A measure of D's overfitting, which lets ADA raise p while it is above `target`, the default of `augment.target`.

    `values` returns `size` scalars for D's outputs on a batch; `read` turns their means over `ADA.interval` batches
    into the measure.
    """

    target: float
    size: int
    values: Callable[[Outputs], list[Tensor]]
    read: Callable[[Tensor], Tensor]
    needs_held_out: bool = False


def list_means(outputs: Outputs) -> list[Tensor]:
    """Return D's mean output on data, samples and held-out data."""
    assert outputs.held_out is not None
    return [outputs.real.mean(), outputs.fake.mean(), outputs.held_out.mean()]


def read_held_out(means: Tensor) -> Tensor:
    """(E v_train − E v_held_out) / (E v_train − E v_fake), or 0 where D does not tell data from samples."""
    real, fake, held_out = means.unbind()
    is_separated = real > fake
    return ((real - held_out) / (real - fake).where(is_separated, 1)).where(is_separated, 0)


# r_t and r_v of Karras et al. 2020, section 3. The target of r_v is unverified against the paper.
MEASURES: dict[str, Measure | None] = {
    "signs": Measure(0.6, 1, lambda outputs: [outputs.margin.sign().mean()], lambda means: means[0]),
    "held_out": Measure(0.5, 3, list_means, read_held_out, needs_held_out=True),
    "none": None,
}


@dataclass(frozen=True)
class ADA(Augmentation):
    """Adaptive discriminator augmentation (Karras et al. 2020, arXiv 2006.06676), its pipe `bgc`, and its cutout.

    Every `interval` batches p moves by ± interval·B/`ramp_images`, up while `measure` is above `target` (by default
    that of the measure), between 0 and `max_p`; with measure=none, `p` stays as it is. `blit` (flips, quarter turns,
    whole translations), `geometry` (scales, rotations, translations), `color` and `cutout` are the groups' shares of p.

    Differs from NVIDIA's: images are resampled by cubic convolution at their own size, in place of bilinear sampling at
    twice the size between two wavelet filters; and they may have any number of channels, of which three have a hue.
    """

    name: ClassVar[str] = "ada"
    p: float = setting(0.0, PROBABILITY)
    measure: str = setting("signs", Choice(tuple(MEASURES)))
    target: float | None = setting(None, Numbers(at_least=-1, at_most=1, also=(None,), follows_clock=True))
    ramp_images: float = setting(500_000, Numbers(above=0, follows_clock=True))
    interval: int = setting(4, Numbers(whole=True, at_least=1, at_most=1_000_000))  # float32 counts them
    max_p: float = setting(0.8, SHARE)
    blit: float = setting(1.0, PROBABILITY)
    geometry: float = setting(1.0, PROBABILITY)
    color: float = setting(1.0, PROBABILITY)
    cutout: float = setting(0.0, PROBABILITY)

    def __post_init__(self) -> None:
        """Refuse two controllers of p, or a beginning above the greatest p that the one may choose."""
        if self.controller is not None and isinstance(self.p, Ramp):
            raise ConfigError("augment.p follows a schedule, which needs augment.measure=none")
        if self.controller is not None and self.p > self.max_p:
            raise ConfigError(
                f"augment.p={self.p} begins above augment.max_p={self.max_p}; lower it, or fix it with "
                "augment.measure=none"
            )

    @property
    def controller(self) -> Measure | None:
        """The measure that p follows, or None if p is fixed."""
        return MEASURES[self.measure]

    def count_held_out(self, batch_size: int) -> int:
        """Return ⌈batch_size / interval⌉, a batch between two adjustments, if p follows held-out images; else 0."""
        needs_held_out = self.controller is not None and self.controller.needs_held_out
        return math.ceil(batch_size / self.interval) if needs_held_out else 0

    def create_state(self) -> dict[str, Tensor]:
        """Return p, and the sums of the measure's values over the batches since its last adjustment."""
        import torch

        if self.controller is None:
            return {}
        sums = torch.zeros(self.controller.size)
        return {"p": torch.tensor(float(self.p)), "sums": sums, "batches": torch.zeros(())}

    def adjust(self, outputs: Outputs, images: int, state: State | None = None) -> dict[str, Tensor]:
        """Count the batch, and move p after every `interval` of them; on the device, without a host wait."""
        import torch

        statistics = super().adjust(outputs, images, state)
        measure = self.controller
        if measure is None or state is None:
            return statistics
        p, sums, batches = state["p"], state["sums"], state["batches"]
        sums.add_(torch.stack(measure.values(outputs)))
        batches.add_(1)
        reading = measure.read(sums / batches)
        target = measure.target if self.target is None else self.target
        step = (reading - target).sign() * (self.interval * images / self.ramp_images)
        is_due = batches >= self.interval
        p.copy_(torch.where(is_due, (p + step).clamp(0, self.max_p), p))
        sums.mul_(~is_due)
        batches.mul_(~is_due)
        return statistics | ({"augment/held_out_gap": reading} if measure.needs_held_out else {})

    def transform(self, x: Tensor, part: Part, p: Tensor | float) -> Tensor:
        from gantrain.augmentation import transforms

        draws = transforms.Draws(x, part, columns=24)
        if not (is_zero(self.blit) and is_zero(self.geometry)):
            inverse = transforms.Affine.identity(x)
            if not is_zero(self.blit):
                inverse = transforms.blit(inverse, draws, p * self.blit, x.shape[-2:])
            if not is_zero(self.geometry):
                inverse = transforms.deform(inverse, draws, p * self.geometry, x.shape[-2:])
            x = transforms.warp(x, inverse)
        if not is_zero(self.color):
            share = p * self.color
            x = transforms.brighten(x, draws.choose(share, draws.normal(0.1), 0))
            x = transforms.scale_about(x, transforms.GREY, draws.choose(share, draws.normal(0.5).exp2(), 1))
            x = transforms.flip_luma(x, draws.choose(share, draws.integer(2), 0))
            x = transforms.rotate_hue(x, draws.choose(share, draws.uniform(-math.pi, math.pi), 0))
            x = transforms.scale_about(x, x.mean(1, keepdim=True), draws.choose(share, draws.normal(1.0).exp2(), 1))
        if not is_zero(self.cutout):
            height, width = x.shape[-2:]
            top, left = draws.uniform(-0.25, 0.75) * height, draws.uniform(-0.25, 0.75) * width
            x = transforms.cut_out(x, draws.choose(p * self.cutout, top, height), left, height / 2, width / 2)
        return x


AUGMENTATIONS: dict[str, type[Augmentation]] = {kind.name: kind for kind in (DiffAugment, ADA)}


def parse_augmentation(section: Mapping[str, Any]) -> Augmentation | None:
    """Return the augmentation that a config's section `augment` describes, None if it is empty. Raises ConfigError."""
    if not section:
        return None
    values = dict(section)
    name = values.pop("name", None)
    if name is None and values:
        raise ConfigError(f"augment.{next(iter(values))} changes an augmentation; choose one, as in augment=ada")
    if str(name) not in AUGMENTATIONS:
        raise ConfigError(describe_choice("augment", name, [*AUGMENTATIONS, "none"]))
    kind = AUGMENTATIONS[str(name)]
    known = accepted_by_field(kind)
    check_keys(f"augment={name}", values, known)
    return kind(**{key: parse_value(f"augment.{key}", value, known[key]) for key, value in values.items()})
