"""The state bundle: everything that training changes, and nothing else.

Networks, their optimizers, the averaged generator, the statistics gathered since the last report, and the clock. All
other numbers of a run follow from its config, so a run that is restored from its bundle continues bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from gantrain import architectures, checkpoints
from gantrain.errors import CheckpointError, ConfigError
from gantrain.latents import Latents
from gantrain.randomness import stream_generator


class Statistics:
    """Means of named scalars since the last report, summed on their device: one transfer per report."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Count one more value of each scalar."""
        for name, value in scalars.items():
            value = value.detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """The means so far; a fresh start afterwards."""
        if not self.sums:
            return {}
        totals = torch.stack([total.double() if total.device.type != "mps" else total for total in self.sums.values()])
        means = {n: total / self.counts[n] for n, total in zip(self.sums, totals.tolist(), strict=True)}
        self.sums, self.counts = {}, {}
        return means


@dataclass
class State:
    """What training changes. `images` is the clock: data images shown to D so far.

    `average` is an exponential moving average of the generator, or None.
    """

    generator: nn.Module
    discriminator: nn.Module
    generator_optimizer: Optimizer
    discriminator_optimizer: Optimizer
    average: nn.Module | None = None
    statistics: Statistics = field(default_factory=Statistics)
    images: int = 0

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.generator.parameters()).device

    @property
    def best_generator(self) -> nn.Module:
        """The generator to sample from: the averaged one when there is one."""
        return self.average if self.average is not None else self.generator

    def _parts(self) -> dict[str, nn.Module | Optimizer]:
        parts: dict[str, nn.Module | Optimizer] = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "generator_optimizer": self.generator_optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
        }
        return parts | ({"average": self.average} if self.average is not None else {})

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data only."""
        statistics = {"sums": self.statistics.sums, "counts": self.statistics.counts}
        return {name: part.state_dict() for name, part in self._parts().items()} | {"statistics": statistics}

    def load_state_dict(self, saved: Mapping[str, Any], images: int) -> None:
        """Restore `state_dict()` taken at `images`. Raises CheckpointError, before anything is changed, unless every
        part fits."""
        parts = self._parts()
        if missing := parts.keys() ^ (saved.keys() - {"statistics"}):
            raise CheckpointError(f"the checkpoint and this run differ in {', '.join(sorted(missing))}")
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                refuse_mismatch(name, part, saved[name])
            else:
                refuse_mismatched_optimizer(name, part, saved[name])
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        self.statistics.sums = {name: total.to(self.device) for name, total in saved["statistics"]["sums"].items()}
        self.statistics.counts = dict(saved["statistics"]["counts"])
        self.images = images


def refuse_mismatch(name: str, module: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless `saved` has exactly the keys, shapes and dtypes of `module`."""
    ours = {key: (tuple(value.shape), value.dtype) for key, value in module.state_dict().items()}
    theirs = {key: (tuple(value.shape), value.dtype) for key, value in saved.items()}
    for key in ours.keys() | theirs.keys():
        if ours.get(key) != theirs.get(key):
            raise CheckpointError(f"{name}.{key}: the checkpoint has {theirs.get(key)}, this run {ours.get(key)}")


def refuse_mismatched_optimizer(name: str, optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless `saved` has the groups of `optimizer`, and scalars or tensors of its shapes."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    ours, theirs = (
        [len(group["params"]) for group in groups] for groups in (optimizer.param_groups, saved["param_groups"])
    )
    if ours != theirs:
        raise CheckpointError(f"{name}: the checkpoint has parameter groups of {theirs}, this run of {ours}")
    for number, values in saved["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameters[number].shape:
                shapes = f"{tuple(value.shape)}, the parameter {tuple(parameters[number].shape)}"
                raise CheckpointError(f"{name}.{number}.{key}: the checkpoint has {shapes}")


def averaged(generator: nn.Module) -> nn.Module:
    """A copy of `generator` to average into; it never trains."""
    return copy.deepcopy(generator).requires_grad_(False).eval()


@torch.no_grad()
def update_average(average: nn.Module, generator: nn.Module, decay: float) -> None:
    """average ← decay·average + (1 − decay)·generator; buffers (batch-norm statistics) are copied."""
    # One kernel for all tensors instead of one for each.
    torch._foreach_lerp_(list(average.parameters()), list(generator.parameters()), 1 - decay)
    if buffers := list(average.buffers()):
        torch._foreach_copy_(buffers, list(generator.buffers()))


@contextmanager
def still_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norm uses the batch's statistics inside the block, and leaves the running ones as they are."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Networks in evaluation mode inside the block, as they were after it."""
    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for network, training in zip(networks, modes, strict=True):
            network.train(training)


@torch.no_grad()
def generate(generator: nn.Module, latents: Tensor, batch_size: int = 256) -> Tensor:
    """Samples [N, …] on the CPU from latents [N, L], with batch norm in evaluation mode."""
    with evaluating(generator):
        return torch.cat([generator(z).float().cpu() for z in latents.split(batch_size)])


class TrainedGenerator(nn.Module):
    """A generator with what is needed to sample from it: its prior, the shape of a sample, and its clock."""

    def __init__(self, network: nn.Module, latents: Latents, shape: tuple[int, ...], images: int) -> None:
        super().__init__()
        self.network, self.latents, self.shape, self.images = network, latents, shape, images

    def forward(self, latents: Tensor) -> Tensor:
        """Samples [B, *shape] from latents [B, L]; pixels in [0, 1]."""
        return self.network(latents)

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """`count` samples on the CPU: the same for the same seed."""
        z = self.latents.draw(count, stream_generator(seed, "sample"))
        return generate(self, z.to(next(self.parameters()).device))


def load(run: Path | str, *, object: str | None = None) -> TrainedGenerator:
    """The trained generator of a run folder or a checkpoint file, on the CPU, ready to sample:

        generator = gantrain.load("runs/digits/gan-kl/2026-11-22_10-00-00-s0")
        images = generator.sample(64, seed=1)      # [64, C, H, W] in [0, 1]

    It is the averaged generator when the run kept one, in evaluation mode. `object` ("package:function") must be given
    again for a run whose networks are the user's own. Raises CheckpointError when nothing usable is found.
    """
    path = Path(run)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a run folder or a checkpoint")
    bundle = checkpoints.load(path) if path.is_file() else checkpoints.newest(path / "checkpoints")[1]
    config, shape = bundle["generator"], tuple(bundle["data"]["shape"])
    if (own := config["architecture"].get("object")) and not object:
        raise ConfigError(
            f"{path} was trained with architecture.object={own}, code of the user's own, which is never imported "
            f"because a file names it; give object={own} to allow it"
        )
    latents = Latents(config["latent"]["size"], config["latent"]["prior"])
    network, _ = architectures.build(config["architecture"] | {"object": object}, shape, latents.size)
    saved = bundle["state"].get("average", bundle["state"]["generator"])
    refuse_mismatch("generator", network, saved)
    network.load_state_dict(saved)
    return TrainedGenerator(network.requires_grad_(False), latents, shape, bundle["images"]).eval()
