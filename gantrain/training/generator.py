"""The trained networks of a checkpoint: the generator that samples are drawn from, and the discriminator."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gantrain import networks
from gantrain.errors import CheckpointError, ConfigError, DataError, UntypedCodeError
from gantrain.networks.latents import Latents
from gantrain.networks.shared_batch import stop_sharing
from gantrain.precision import allow_tf32, as_float32
from gantrain.seeding import preserve_randomness, stream_generator
from gantrain.training.state import State, evaluation_mode, list_batch_norms, refuse_mismatch

# From which standing statistics are estimated: the same latents for every generator, in batches as large as samples are
# drawn in.
STATISTICS_LATENTS, BATCH = 2048, 256
STANDING = ", standing statistics"


@torch.no_grad()
def generate(generator: nn.Module, latents: Tensor) -> Tensor:
    """Return samples [N, …] on the CPU for latents [N, L], with batch norm in evaluation mode."""
    with evaluation_mode(generator), allow_tf32(False):
        return torch.cat([generator(z).float().cpu() for z in latents.split(BATCH)])


@torch.no_grad()
def estimate_statistics(generator: nn.Module, latents: Latents) -> None:
    """Replace the running statistics of batch norm by their means over batches of samples from fixed latents.

    Averaging weights changes what layers put out, and so the statistics that fit (Izmailov et al. 2018, Averaging
    weights leads to wider optima and better generalization; Brock et al. 2019, BigGAN, whose standing statistics these
    are). Each batch is normalised by its own, as in training; all else is in evaluation mode.
    """
    norms = list_batch_norms(generator)
    z = latents.draw(STATISTICS_LATENTS, stream_generator(0, "statistics")).to(next(generator.parameters()).device)
    momenta = [norm.momentum for norm in norms]
    with evaluation_mode(generator), allow_tf32(False):
        for number, part in enumerate(z.split(BATCH), 1):
            for norm in norms:
                norm.train()
                norm.momentum = 1 / number  # a running mean of the batches so far
            generator(part)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def name_generator(network: nn.Module, is_average: bool, statistics: str) -> str:
    """Return what samples come from, in words: two names are given to samples that cannot be compared."""
    standing = STANDING if statistics == "standing" and list_batch_norms(network) else ""
    return f"averaged generator{standing}" if is_average else "generator"


class Sampler:
    """Draws samples while training from the averaged generator, or from G itself where there is none.

    `statistics` are those of the average's batch norm, one of STATISTICS. Standing ones are estimated in a copy, once
    for each clock, so that the state is left as it is.
    """

    def __init__(self, state: State, latents: Latents, statistics: str) -> None:
        self.state, self.latents = state, latents
        self.source = name_generator(state.best_generator, state.average is not None, statistics)
        self.is_standing = self.source.endswith(STANDING)
        self._copy: nn.Module | None = None
        self._images = -1  # the clock of the copy

    def generate(self, latents: Tensor) -> Tensor:
        """Return samples [N, …] on the CPU for latents [N, L], of the weights at the state's clock."""
        if not self.is_standing:
            return generate(self.state.best_generator, latents)
        if self._copy is None or self._images != self.state.images:
            self._copy, self._images = copy.deepcopy(self.state.best_generator), self.state.images
            stop_sharing(self._copy)  # the first of several processes alone draws samples
            estimate_statistics(self._copy, self.latents)
        return generate(self._copy, latents)


class TrainedGenerator(nn.Module):
    """A generator with what is needed to sample from it: its prior, the shape of a sample, and its clock.

    `source` says in words which generator of the run it is, and `passed_over` why newer checkpoints than the one it is
    from were not used.
    """

    def __init__(
        self, network: nn.Module, latents: Latents, shape: tuple[int, ...], images: int, source: str = "generator"
    ) -> None:
        super().__init__()
        self.network, self.latents, self.shape, self.images = network, latents, shape, images
        self.source = source
        self.passed_over: list[str] = []

    def forward(self, latents: Tensor) -> Tensor:
        """Return samples [B, *shape] for latents [B, L]; pixels in [0, 1]."""
        return self.network(latents)

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Return `count` samples [count, *shape] on the CPU, the same for the same seed. Raises ConfigError."""
        if count < 1:
            raise ConfigError(f"count={count} must be at least 1")
        z = self.latents.draw(count, stream_generator(seed, "sample"))
        return generate(self, z.to(next(self.parameters()).device))


def restore_generator(
    path: Path, bundle: Mapping[str, Any], problems: list[str], *, object: str | None, ema_statistics: str | None
) -> TrainedGenerator:
    """Return the trained generator of a checkpoint, which `checkpoints.load_run` returns, on the CPU.

    It is the averaged generator if the run kept one, with the run's own statistics of batch norm, or those of
    `ema_statistics`, and in evaluation mode. `object` ("package:function") must be given again for a run whose networks
    are the user's own. Raises CheckpointError as `rebuild_networks`, and for weights that do not fit.
    """
    latents, network, _ = rebuild_networks(path, bundle, object)
    load_weights("generator", network, bundle["state"].get("average", bundle["state"].get("generator")))
    statistics = ema_statistics or bundle["config"].get("ema_statistics", "copied")
    source = name_generator(network, "average" in bundle["state"], statistics)
    if source.endswith(STANDING):
        estimate_statistics(network, latents)
    trained = TrainedGenerator(network, latents, tuple(bundle["data"]["shape"]), bundle["images"], source)
    trained.passed_over = problems
    return trained.eval()


def restore_discriminator(path: Path, bundle: Mapping[str, Any], *, object: str | None) -> nn.Module:
    """Return the discriminator of the checkpoint at `path`; `object` and errors are those of `restore_generator`."""
    _, _, network = rebuild_networks(path, bundle, object)
    load_weights("discriminator", network, bundle["state"].get("discriminator"))
    return network.eval()


@torch.no_grad()
def measure_outputs(discriminator: nn.Module, samples: Tensor, shape: Sequence[int]) -> Tensor:
    """Return D's raw outputs, float32 [N], for samples [N, *shape] on the CPU. Raises DataError for other samples."""
    if not isinstance(samples, Tensor):  # as from NumPy
        raise DataError(f"samples must be a floating-point tensor; these are of the type {type(samples).__name__}")
    if not samples.is_floating_point() or samples.shape[1:] != tuple(shape):
        kind, found = str(samples.dtype).removeprefix("torch."), list(samples.shape)
        raise DataError(f"samples must be floating-point, of shape {['N', *shape]}; these are {kind}, {found}")
    return torch.cat([as_float32(discriminator(part)) for part in samples.float().cpu().split(BATCH)])


def rebuild_networks(path: Path, bundle: Mapping[str, Any], object: str | None) -> tuple[Latents, nn.Module, nn.Module]:
    """Return the latents, the generator and the discriminator that a checkpoint describes, without its weights.

    Raises CheckpointError if it does not describe them, UntypedCodeError for code of the user's own that is not named
    by `object`.
    """
    config, shape = bundle["generator"], bundle["data"].get("shape")
    described = config.keys() == {"architecture", "latent"} and isinstance(shape, list)
    if not described or not all(isinstance(part, dict) for part in config.values()):
        raise CheckpointError(f"{path} does not say what its generator is built from")
    if (own := config["architecture"].get("object")) and not object:
        raise UntypedCodeError(path, own)
    try:
        latents = Latents(config["latent"]["size"], config["latent"]["prior"])
        # Without memory of its own, which a table from elsewhere could ask for without end.
        with preserve_randomness(torch.device("cpu")), nullcontext() if object else torch.device("meta"):
            pair = networks.build(config["architecture"] | {"object": object}, tuple(shape), latents.size)
    except (ConfigError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} does not say what its generator is built from: {error}") from error
    return latents, *pair


def load_weights(name: str, network: nn.Module, saved: Any) -> None:
    """Put copies of the tensors in `saved` into a network. Raises CheckpointError unless all of them fit."""
    refuse_mismatch(name, network, saved)
    network.load_state_dict({key: tensor.clone() for key, tensor in saved.items()}, assign=True)
    network.requires_grad_(False)
