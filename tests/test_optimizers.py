"""Signatures read from the source against those of the classes themselves."""

import inspect

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from gantrain.errors import ConfigError, MemoryExhaustedError
from gantrain.training import optimizers

CPU = torch.device("cpu")


def test_every_optimizer_that_needs_no_closure_is_known() -> None:
    classes = {name: item for name, item in vars(torch.optim).items() if inspect.isclass(item)}
    theirs = {name for name, item in classes.items() if issubclass(item, Optimizer)} - {"Optimizer", "LBFGS"}
    assert set(optimizers.list_optimizers()) == theirs


@pytest.mark.parametrize("name", optimizers.list_optimizers())
def test_the_signatures_are_those_of_the_classes(name: str) -> None:
    theirs = dict(list(inspect.signature(getattr(torch.optim, name)).parameters.items())[1:])
    ours = optimizers.read_signature(name)
    assert list(ours) == list(theirs)
    for key, default in ours.items():
        assert default is None or default == theirs[key].default


@pytest.mark.parametrize(
    ("said", "kind", "answer"),
    [
        ("CUDA error: device busy\nand more", ConfigError, r"^device=cpu cannot be used: CUDA error: device busy$"),
        ("CUDA out of memory", MemoryExhaustedError, "wait for the processes that fill the device"),
    ],
)
def test_a_device_that_cannot_be_used_is_named(
    said: str, kind: type[Exception], answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(torch, "zeros", fail)
    with pytest.raises(kind, match=answer):
        optimizers.create_factories(optimizers.parse_optimizers({"name": "Adam", "lr": 0.1}), CPU)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "Adam", "lr": True}, "must be a number"),
        ({"name": "Adam", "betas": [0.5, "b"]}, "2 numbers"),
        ({"name": "Adam", "betas": [0.5, 1.0]}, "below 1"),
        ({"name": "Adam", "amsgrad": 1}, "true or false"),
        ({"name": "SGD", "momentum": -0.1}, "at least 0"),
        ({"name": "SGD", "lr": None}, "needs a value"),
        ({"name": "SGD", "weight_decay": float("inf")}, "finite"),
        ({"name": "Adam", "discriminator": {"lr": -1}}, "optimizer.discriminator.lr=-1 must be at least 0"),
        ({"name": "Adam", "lr": -1, "generator": {"eps": 1}}, "optimizer.lr=-1 must be at least 0"),
        ({"name": "Adam", "generator": {"name": "Adm"}}, r"optimizer.generator.name=Adm is .* did you mean Adam\?"),
    ],
)
def test_values_of_the_wrong_kind_are_refused_without_trying(settings: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        optimizers.parse_optimizers(settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "SGD", "lr": 0.1, "nesterov": True},  # needs momentum
        {"name": "Muon", "lr": 0.1},  # takes matrices only
        {"name": "SparseAdam", "lr": 0.1},
        {"name": "Adam", "foreach": True, "fused": True},
    ],
    ids=lambda settings: settings["name"],
)
def test_what_only_the_class_knows_is_found_by_trying(settings: dict) -> None:
    optimizers.parse_optimizers(settings)
    with pytest.raises(ConfigError, match=f"optimizer={settings['name']} refuses"):
        optimizers.create_factories(optimizers.parse_optimizers(settings), CPU)


def test_each_player_takes_the_shared_keys_and_its_own_over_them() -> None:
    settings = {
        "name": "SGD",
        "lr": 0.1,
        "dampening": 0.0,
        "generator": {"lr": 0.2, "momentum": 0.5},
        "discriminator": {"name": "Adam"},
    }
    built = {
        player: make(nn.Linear(2, 1))
        for player, make in optimizers.create_factories(optimizers.parse_optimizers(settings), CPU).items()
    }
    assert isinstance(built["discriminator"], torch.optim.Adam)
    assert isinstance(built["generator"], torch.optim.SGD)
    assert (built["discriminator"].defaults["lr"], built["generator"].defaults["lr"]) == (0.1, 0.2)
    assert built["generator"].defaults["momentum"] == 0.5
