"""The interface of regularizers, and what several of them use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from gantrain.distributed import WHOLE, Part
from gantrain.ranges import Numbers

if TYPE_CHECKING:
    from torch import Tensor, nn

    Discriminator = Callable[[Tensor], Tensor]


class Penalty(NamedTuple):
    """A penalty: the scalar that is added to a loss, and √E‖∇ₓv‖² of the points where it was taken, if it has any."""

    value: Tensor
    gradient_rms: Tensor | None = None


State = Mapping[str, "Tensor"]
NO_STATE: State = MappingProxyType({})


SCHEDULED = Numbers(at_least=0, follows_clock=True)  # of fields that do not say what they accept
SHARE = Numbers(above=0, at_most=1)
COUNT = Numbers(whole=True, at_least=1, at_most=1_000_000)


@dataclass(frozen=True)
class Regularizer:
    """The interface of regularizers, whose fields are numbers ≥ 0 or ramps of them, unless they say otherwise.

    `name` is its name in configs and reports, `smoothing` the share of the data that counts as samples, and `every` the
    number of D's updates of which one has the penalty, that many times as large. `adversarial` is the weight of the
    game's own loss in G's. Hooks draw random numbers from torch's default generator, for the whole batch, of which they
    take their `part`. A hook is called only if a subclass has it.

    What it needs, and what it does to D, decides what it can be combined with:
        needs_images: Its hooks take images, not points.
        needs_ratio: It needs D's estimate of the log-ratio.
        needs_level: It needs the level of D's output, which some games leave free.
        needs_samplewise: It differentiates D at single samples, each of which has to have an output of its own.
        needs_fixed_network: It compares two passes through D, which is then in evaluation mode, without dropout.
        bounds_slope: It bounds D's slope, or pulls it to a number above 0, so that D cannot follow a steep log-ratio.
        asked_slope: The slope of D that it asks for; 0 if none.
        limits_loss: It limits D's slope or outputs, so that a loss without a minimum gets one.
        changes_scale: It sets the size of D's weights.
    """

    name: ClassVar[str]
    smoothing: ClassVar[float] = 0.0
    needs_images: ClassVar[bool] = False
    needs_ratio: ClassVar[bool] = False
    needs_level: ClassVar[bool] = False
    needs_samplewise: ClassVar[bool] = False
    limits_loss: ClassVar[bool] = False
    changes_scale: ClassVar[bool] = False
    every = 1  # without annotations, so that fields of the same names stand where a subclass has them
    adversarial = 1.0

    @property
    def needs_fixed_network(self) -> bool:
        return False

    @property
    def bounds_slope(self) -> bool:
        return False

    @property
    def asked_slope(self) -> float:
        return 0.0

    def create_state(self) -> dict[str, Tensor]:
        """Return the tensors that `penalize_outputs` reads and changes in place; they travel in the checkpoint."""
        return {}

    def disturb(self, x: Tensor, part: Part = WHOLE) -> Tensor:
        """Return what D is shown in place of `x` [B, …], in both players' steps."""
        return x

    def penalty(self, discriminator: Discriminator, real: Tensor, fake: Tensor, part: Part = WHOLE) -> Penalty:
        """Return the penalty at `real` and `fake` [B, …]; D takes the first rows of a batch, or all."""
        raise NotImplementedError

    def penalize_outputs(self, v_real: Tensor, v_fake: Tensor, state: State = NO_STATE) -> Penalty:
        """Return the penalty on D's outputs [B] in its own update; log-ratios if it `needs_ratio`."""
        raise NotImplementedError

    def penalize_features(self, real: Tensor, fake: Tensor) -> Penalty:
        """Return the penalty of G on D's last hidden layer [B, F]; `real` has no graph."""
        raise NotImplementedError

    def constrain(self, parameters: Sequence[nn.Parameter]) -> None:
        """Change D's parameters in place after each of its updates; called without a graph."""


def overrides(regularizer: Regularizer, hook: str) -> bool:
    """Return whether a regularizer has a hook of its own."""
    return getattr(type(regularizer), hook) is not getattr(Regularizer, hook)


def draw_like(x: Tensor, part: Part, *, normal: bool = False) -> Tensor:
    """Return this process's rows of numbers that are drawn for the whole batch of `x`, in [0, 1) or `normal`."""
    import torch

    whole = x if part.ranks == 1 else torch.cat([x] * part.ranks)
    return part.take(torch.randn_like(whole) if normal else torch.rand_like(whole))
