"""Initial weights from another run (`init=RUN`): those of its generator, its discriminator and its averaged generator.

They are read and compared before a run folder is made. Optimizers and the clock of the new run are its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain import networks
from gantrain.config.checks import Settings
from gantrain.console import one_line, say
from gantrain.errors import CheckpointError, ConfigError
from gantrain.files import expand_home
from gantrain.networks.tables import times
from gantrain.runs import checkpoints
from gantrain.runs.folder import RunFolder

if TYPE_CHECKING:
    from torch import nn

    from gantrain.training.state import State

MOST_NAMED = 6  # tensors that differ, in a message


@dataclass(frozen=True)
class InitialWeights:
    """Weights of another run.

    `weights`: of each network of a `State`, by its name there. `origin`: its folder, and the name, the clock and the
    checksum of its checkpoint, for summary.json. `networks`: the keys that choose its networks, for messages.
    """

    weights: Mapping[str, Any]
    origin: dict[str, Any]
    networks: str

    def check(self, networks: Mapping[str, nn.Module]) -> None:
        """Raise CheckpointError, with what differs, unless these networks have the same tensors."""
        from gantrain.training.state import list_mismatches

        if differing := list_mismatches(networks, self.weights):
            named = "".join(f"\n  {one_line(each)}" for each in differing[:MOST_NAMED])
            more = f"\n  and {len(differing) - MOST_NAMED} more" if len(differing) > MOST_NAMED else ""
            raise CheckpointError(
                f"init={self.origin['run']}: its networks are not those of this run:{named}{more}\n"
                f"take its networks ({self.networks}), or leave out init"
            )

    def load_into(self, state: State) -> None:
        """Copy the weights into the networks of a new run. Raises CheckpointError, before that, if they do not fit."""
        self.check(state.networks)
        for name, network in state.networks.items():
            network.load_state_dict(self.weights[name])
        say(f"weights of {self.origin['run']} at {self.origin['images']:,} images ({self.origin['checkpoint']})")


def load_initial_weights(settings: Settings) -> InitialWeights | None:
    """Return the weights that `init` names; None without it.

    Raises CheckpointError if they cannot be read, or fit the networks on no shape that the data may have.
    """
    if settings.init is None:
        return None
    path, bundle, problems = find_checkpoint(settings.init)
    for problem in problems:
        say(f"passed over: {problem}")
    origin = {
        "run": str(RunFolder.containing(path).path),
        "checkpoint": path.name,
        "images": bundle["images"],
        "sha256": bundle["sha256"],
    }
    state = bundle["state"]
    saved = {name: state.get(name) for name in ("generator", "discriminator")}
    saved["average"] = state.get("average", saved["generator"])
    loaded = InitialWeights(saved, origin, describe_networks(bundle))
    if not settings.architecture.get("object"):  # code is called once, when the shape of the data is known
        check_shapes(settings, loaded)
    return loaded


def find_checkpoint(init: str) -> tuple[Path, dict[str, Any], list[str]]:
    """Return the checkpoint that `init` names, as `checkpoints.load_run`. Raises CheckpointError if there is none."""
    path = expand_home(init)
    if path.is_dir() and not (path / "checkpoints").is_dir():
        runs = sorted(path.glob("*/checkpoints"))
        example = f", such as {one_line(str(runs[0].parent))}" if runs else ""
        raise CheckpointError(f"init={init} is no run folder; give one{example}, or a checkpoint")
    if not path.exists():
        raise CheckpointError(f"init={init} does not exist; give a run folder or a checkpoint")
    return checkpoints.load_run(path)


def check_shapes(settings: Settings, loaded: InitialWeights) -> None:
    """Raise CheckpointError if weights fit the networks on no shape that the data may have."""
    import torch

    refusals = []
    for shape in settings.data.shapes:
        try:
            with torch.device("meta"):
                generator, discriminator = networks.build(settings.tables, shape, settings.latent.size)
            return loaded.check({"generator": generator, "discriminator": discriminator})
        except ConfigError:  # the networks are not for this shape
            continue
        except CheckpointError as error:
            refusals.append(error)
    raise refusals[0]


def describe_networks(bundle: Mapping[str, Any]) -> str:
    """Return the keys that choose the networks of a checkpoint, and the shape of its samples, as far as it has them."""
    described, shape = bundle["generator"], bundle["data"].get("shape")
    architecture, latent = (described.get(key) or {} for key in ("architecture", "latent"))
    code = architecture.get("object")
    keys = {"architecture.object": code, "architecture": None if code else architecture.get("name")}
    keys["latent.size"] = latent.get("size")
    typed = " ".join(f"{key}={value}" for key, value in keys.items() if value is not None)
    return one_line(f"{typed}, for samples of shape {times(tuple(shape or ()))}")
