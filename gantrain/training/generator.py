"""Trained generators: sampling, and loading them from a run folder or a checkpoint."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from gantrain import networks as architectures
from gantrain.errors import CheckpointError, ConfigError
from gantrain.networks.latents import Latents
from gantrain.precision import allow_tf32
from gantrain.runs import checkpoints
from gantrain.seeding import stream_generator
from gantrain.training.state import evaluating, refuse_mismatch


@torch.no_grad()
def generate(generator: nn.Module, latents: Tensor, batch_size: int = 256) -> Tensor:
    """Samples [N, …] on the CPU from latents [N, L], with batch norm in evaluation mode."""
    with evaluating(generator), allow_tf32(False):
        return torch.cat([generator(z).float().cpu() for z in latents.split(batch_size)])


class TrainedGenerator(nn.Module):
    """A generator with what is needed to sample from it: its prior, the shape of a sample, and its clock.

    `passed_over` says why newer checkpoints than the one it is from were not used.
    """

    def __init__(self, network: nn.Module, latents: Latents, shape: tuple[int, ...], images: int) -> None:
        super().__init__()
        self.network, self.latents, self.shape, self.images = network, latents, shape, images
        self.passed_over: list[str] = []

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
    path, bundle, problems = checkpoints.load_run(path)
    config, shape = bundle["generator"], bundle["data"].get("shape")
    described = config.keys() == {"architecture", "latent"} and isinstance(shape, list)
    if not described or not all(isinstance(part, dict) for part in config.values()):
        raise CheckpointError(f"{path} does not say what its generator is built from")
    if (own := config["architecture"].get("object")) and not object:
        raise ConfigError(
            f"{path} was trained with architecture.object={own}, code of the user's own, which is never imported "
            f"because a file names it; give object={own} to allow it"
        )
    saved = bundle["state"].get("average", bundle["state"].get("generator"))
    try:
        latents = Latents(config["latent"]["size"], config["latent"]["prior"])
        # Without memory of its own, which a table from elsewhere could ask for without end.
        with nullcontext() if object else torch.device("meta"):
            network, _ = architectures.build(config["architecture"] | {"object": object}, tuple(shape), latents.size)
    except (ConfigError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} does not say what its generator is built from: {error}") from error
    refuse_mismatch("generator", network, saved)
    network.load_state_dict(saved, assign=True)
    trained = TrainedGenerator(network.requires_grad_(False), latents, tuple(shape), bundle["images"])
    trained.passed_over = problems
    return trained.eval()
