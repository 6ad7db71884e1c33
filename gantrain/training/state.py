"""The state bundle: everything that training changes, and nothing else.

Networks, their optimizers, the averaged generator, the statistics gathered since the last report, and the clock. All
other numbers of a run follow from its config, so a run that is restored from its bundle continues bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from gantrain.augmentation.augmentations import Augmentation
from gantrain.errors import CheckpointError
from gantrain.files import iterate_leaves
from gantrain.networks.builder import Network
from gantrain.precision import choose_precision
from gantrain.regularizers.regularizer import Regularizer


class RunningMeans:
    """Means of named scalars since the last report, summed on their device: one transfer per report.

    `sums` holds a float32 vector for each set of scalars that come together, under their names joined by commas: their
    sums, and last their count.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self._one: Tensor | None = None

    @torch.no_grad()
    def add(self, scalars: Mapping[str, Tensor], unless: Tensor | None = None) -> None:
        """Count one more value of each scalar; not where the boolean `unless` is true."""
        values = [value.detach().float() for value in scalars.values()]
        if self._one is None:
            self._one = torch.ones_like(values[0])
        row = torch.stack([*values, self._one])
        if unless is not None:
            row = torch.where(unless, 0, row)
        if (key := ",".join(scalars)) not in self.sums:
            self.sums[key] = torch.zeros_like(row)
        self.sums[key] += row

    def means(self) -> dict[str, float]:
        """The means so far; a fresh start afterwards."""
        totals: dict[str, tuple[float, float]] = {}  # a scalar may come in several sets
        for key, row in self.sums.items():
            *sums, count = row.tolist()
            for name, total in zip(key.split(","), sums, strict=True):
                before = totals.get(name, (0.0, 0.0))
                totals[name] = before[0] + total, before[1] + count
            row.zero_()
        return {name: total / count for name, (total, count) in totals.items() if count}


@dataclass
class State:
    """What training changes. `images` is the clock: data images shown to D so far.

    `average` is the averaged generator, or None. `regularizers` holds the tensors of the regularizers that have a state
    and of the augmentation, by name.
    """

    generator: nn.Module
    discriminator: nn.Module
    generator_optimizer: Optimizer
    discriminator_optimizer: Optimizer
    average: nn.Module | None = None
    statistics: RunningMeans = field(default_factory=RunningMeans)
    regularizers: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)
    images: int = 0

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.trainable["generator"][0].device

    def choose_precision(self, precision: str) -> str:
        """Return the precision to train with; only networks from tables keep their outputs in float32 under autocast.

        Raises ConfigError for bf16 with others.
        """
        is_from_tables = isinstance(self.generator, Network) and isinstance(self.discriminator, Network)
        return choose_precision(precision, self.device, has_float32_outputs=is_from_tables)

    @cached_property
    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """The parameters of each player, searched for once: beside a step of a small network the search takes long."""
        players = {"generator": self.generator, "discriminator": self.discriminator}
        return {name: [p for p in player.parameters() if p.requires_grad] for name, player in players.items()}

    @property
    def best_generator(self) -> nn.Module:
        """The generator to sample from: the averaged one when there is one."""
        return self.average if self.average is not None else self.generator

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks, by the names that they have in `state_dict()`."""
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        return networks | ({"average": self.average} if self.average is not None else {})

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """The optimizers, by the names that they have in `state_dict()`."""
        return {name: getattr(self, name) for name in ("generator_optimizer", "discriminator_optimizer")}

    def list_regularizer_tensors(self) -> list[Tensor]:
        """Return the tensors of the regularizers that have a state."""
        return [tensor for state in self.regularizers.values() for tensor in state.values()]

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain data only; `regularizers` is left out where none has a state."""
        parts = {name: network.state_dict() for name, network in self.networks.items()}
        parts |= {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        parts["statistics"] = {key: row.clone() for key, row in self.statistics.sums.items()}
        if self.regularizers:
            parts["regularizers"] = {
                name: {key: tensor.clone() for key, tensor in state.items()}
                for name, state in self.regularizers.items()
            }
        return parts

    def load_state_dict(self, saved: Mapping[str, Any], images: int) -> None:
        """Restore `state_dict()` taken at `images`. Raises CheckpointError, before anything is changed, unless every
        part fits."""
        parts = {*self.networks, *self.optimizers, "statistics", *(["regularizers"] if self.regularizers else [])}
        if differing := parts ^ saved.keys():
            raise CheckpointError(f"the checkpoint and this run differ in {', '.join(sorted(map(str, differing)))}")
        for name, network in self.networks.items():
            refuse_mismatch(name, network, saved[name])
        for name, optimizer in self.optimizers.items():
            refuse_mismatched_optimizer(name, optimizer, saved[name])
        refuse_broken_statistics(saved["statistics"])
        if self.regularizers:
            _refuse_differences("regularizers", saved["regularizers"], _kinds("regularizers", self.regularizers))
        for name, state in self.regularizers.items():
            _refuse_differences(f"regularizers.{name}", saved["regularizers"][name], _kinds(name, state))

        for name, network in self.networks.items():
            network.load_state_dict(saved[name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(optimizer.state_dict() | {"state": saved[name]["state"]})
            match_parameter_strides(optimizer)
        self.statistics.sums = {key: row.to(self.device) for key, row in saved["statistics"].items()}
        for name, state in self.regularizers.items():
            for key, tensor in state.items():
                tensor.copy_(saved["regularizers"][name][key])
        self.images = images


def match_parameter_strides(optimizer: Optimizer) -> None:
    """Give an optimizer's tensors the strides of their parameters, which fused kernels take for granted."""
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def refuse_mismatch(name: str, module: nn.Module, saved: Any) -> None:
    """Raise CheckpointError unless `saved` has exactly the keys, shapes and dtypes of `module`."""
    _refuse_differences(name, saved, _kinds(name, module.state_dict()))


def list_mismatches(networks: Mapping[str, nn.Module], saved: Mapping[str, Any]) -> list[str]:
    """Return a line for each key, shape or dtype in which the networks differ from those of `State.state_dict()`."""
    return [
        difference
        for name, network in networks.items()
        for difference in _list_differences(name, saved.get(name), _kinds(name, network.state_dict()))
    ]


def refuse_mismatched_optimizer(name: str, optimizer: Optimizer, saved: Any) -> None:
    """Raise CheckpointError unless `saved` has for the parameters of `optimizer` what a step leaves.

    The settings of its groups do not matter: they follow from the config.
    """
    _refuse_differences(name, saved, {"state": "dict", "param_groups": "list"})
    theirs, ours = saved["state"], _after_a_step(optimizer)["state"]
    if bool(theirs) != bool(ours):
        raise CheckpointError(f"{name}.state: the checkpoint has {len(theirs)} parameters, this run {len(ours)}")
    for number, values in theirs.items():  # none for a parameter that no gradient reaches
        _refuse_differences(f"{name}.state.{number}", values, _kinds(name, ours.get(number, {})))


def _after_a_step(optimizer: Optimizer) -> dict[str, Any]:
    """The state that an optimizer like this one has after a step."""
    twin = copy.deepcopy(optimizer)
    for group in twin.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    twin.step()
    return twin.state_dict()


def refuse_broken_statistics(saved: Any) -> None:
    """Raise CheckpointError unless `saved` has a sum for each of its names, and a count."""
    for key, kind in _kinds("statistics", saved).items():
        if kind != (wanted := f"float32 [{len(str(key).split(',')) + 1}]"):
            raise CheckpointError(f"statistics.{key}: the checkpoint has {kind}, this run {wanted}")


def _kinds(name: str, saved: Any) -> dict[Any, str]:
    """What is under each key of a dictionary. Raises CheckpointError for anything else."""
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"{name} is a {type(saved).__name__} in the checkpoint, not a dictionary")
    kinds = {key: type(value).__name__ for key, value in saved.items() if value is not None}
    tensors = {key: value for key, value in saved.items() if isinstance(value, Tensor)}
    return kinds | {key: f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for key, x in tensors.items()}


def _refuse_differences(name: str, saved: Any, ours: Mapping[Any, str]) -> None:
    for difference in _list_differences(name, saved, ours):
        raise CheckpointError(difference)


def _list_differences(name: str, saved: Any, ours: Mapping[Any, str]) -> Iterator[str]:
    theirs = _kinds(name, saved)
    for key in sorted(theirs.keys() | ours.keys(), key=str):
        if (found := theirs.get(key, "nothing")) != (wanted := ours.get(key, "nothing")):
            yield f"{name}.{key}: the checkpoint has {found}, this run {wanted}"


def create_regularizer_states(
    regularizers: Iterable[Regularizer | Augmentation], device: torch.device | str = "cpu"
) -> dict[str, dict[str, Tensor]]:
    """Return the tensors on `device` of those regularizers and augmentations that have a state, by their names."""
    states = {item.name: item.create_state() for item in regularizers}
    return {name: {key: tensor.to(device) for key, tensor in state.items()} for name, state in states.items() if state}


def create_average(generator: nn.Module) -> nn.Module:
    """A copy of `generator` to average into; it never trains."""
    return copy.deepcopy(generator).requires_grad_(False).eval()


@torch.no_grad()
def update_average(average: nn.Module, generator: nn.Module, share: Tensor) -> None:
    """average ← average + share·(generator − average), `share` being 1 − decay, a scalar; buffers are copied."""
    # One kernel for all tensors instead of one for each.
    ours, theirs = ([parameter.data for parameter in network.parameters()] for network in (average, generator))
    drift = torch._foreach_sub(theirs, ours)
    torch._foreach_mul_(drift, share)
    torch._foreach_add_(ours, list(drift))
    if buffers := list(average.buffers()):
        torch._foreach_copy_(buffers, list(generator.buffers()))


def list_batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """Return the layers of a network that keep running statistics."""
    return [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]


@contextmanager
def freeze_running_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norm uses the batch's statistics inside the block, and leaves the running ones as they are."""
    norms = list_batch_norms(network)
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextmanager
def evaluation_mode(*networks: nn.Module) -> Iterator[None]:
    """Networks in evaluation mode inside the block, as they were after it."""
    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for network, training in zip(networks, modes, strict=True):
            network.train(training)


def estimate_bytes(state: State) -> int:
    """Return how many bytes a checkpoint of `state` takes at least, before and after its first step."""
    values = [value for _, value in iterate_leaves(state.state_dict()) if isinstance(value, Tensor)]
    for optimizer in state.optimizers.values():
        if not optimizer.state and "betas" in optimizer.defaults:  # which keeps two averages of every gradient
            values += [parameter for group in optimizer.param_groups for parameter in group["params"]] * 2
    return sum(value.numel() * value.element_size() for value in values)
