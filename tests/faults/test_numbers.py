"""Numbers that are not finite end a run before they reach anything that is kept."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import gantrain
from faults.processes import run, when_called
from faults.runs import training
from gantrain import plotting
from gantrain.errors import CheckpointError, DivergedError
from gantrain.files import iterate_leaves
from gantrain.networks.latents import Latents
from gantrain.objectives.divergences import get
from gantrain.objectives.objective import Objective
from gantrain.reporting import pictures
from gantrain.runs import checkpoints
from gantrain.training.iteration import Iteration
from gantrain.training.losses import Losses
from gantrain.training.state import State, create_average
from gantrain.training.step import Step

BAD = [float("nan"), float("inf"), float("-inf")]
PLAYERS = ["discriminator", "generator"]


def poison(player: str, value: float, call: int) -> None:
    """One weight of a player becomes non-finite in the middle of the run, as by an overflow."""

    def spoil(iteration: Iteration) -> None:
        parameter = list(getattr(iteration.state, player).parameters())[-1]
        parameter.data.view(-1)[0] = value

    when_called("gantrain.training.iteration:Iteration.play", spoil, call=call)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("player", PLAYERS)
def test_a_run_that_diverges_stops_before_the_update(tried, times, player, tmp_path):
    for value in BAD[: times(1, soak=3)]:
        folder, log = tmp_path / f"run{value}", tmp_path / f"log{value}"
        with tried("a weight that becomes non-finite"):
            code, output = run(log, *training(folder), fault=partial(poison, player, value, 7))
            assert code == 5, output
            message = output[output.index("gantrain: ") :]
            # A generator's infinite weight may hide behind its sigmoid, until a checkpoint is to be saved.
            assert re.search(r"(not finite|holds non-finite numbers) at images = 3[05]0[;,]", message)
            assert "the largest |r| on held-out data is " in message
            assert "a lower optimizer.lr" in message
            assert "Traceback" not in output
            good = Path(message.rpartition("the last good checkpoint is ")[2].strip())
            assert good == checkpoints.list_files(folder / "checkpoints")[0]
            assert good.name == checkpoints.file_name(300)
            state = checkpoints.load(good)["state"]
            assert all(bool(v.isfinite().all()) for _, v in iterate_leaves(state) if isinstance(v, torch.Tensor))
            assert gantrain.load(folder).sample(4).isfinite().all()


def test_a_learning_rate_that_is_too_high_ends_the_run_by_itself(tried, tmp_path):
    with tried("a divergence by too large steps"):
        overrides = ["optimizer=sgd", "optimizer.lr=1e38", "disc_div=pearson", "gen_div=pearson"]
        code, output = run(tmp_path / "log", *training(tmp_path / "run", *overrides))
        assert code == 5, output
        assert "there is no good checkpoint yet" in output
        assert not list((tmp_path / "run").glob("checkpoints/*"))


class Player:
    """A discriminator with everything that an update could touch."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = nn.Linear(3, 1)
        other = nn.Linear(2, 3)
        adam = partial(torch.optim.Adam, lr=0.1)
        optimizers = adam(other.parameters()), adam(self.network.parameters())
        self.state = State(other, self.network, *optimizers, average=create_average(other))
        objective = Objective(get("gan"), get("gan"))
        self.updates = Step(self.state, Losses(objective), Latents(2))
        self.descend(lambda output: output.square().mean())  # so that the optimizer has a state

    def descend(self, loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
        value = loss(self.network(torch.ones(4, 3)))
        self.updates.descend("discriminator", value, {"loss/discriminator": value})


LOSSES = {
    "a loss of nan": lambda output: output.mean() * float("nan"),
    "a loss of inf": lambda output: output.mean() + float("inf"),
    "a loss of −inf": lambda output: output.mean() - float("inf"),
    "an infinite gradient of a finite loss": lambda output: (output - output.detach()).abs().pow(0.5).mean(),
    "a gradient of nan of a finite loss": lambda output: torch.where(output > -1e9, 0.0, output / 0 * 0).mean(),
    "a gradient whose norm overflows": lambda output: output.mean() * 3e38 * 1e3 * 1e-3 * 10,
}


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_is_updated_with_what_is_not_finite(tried, name):
    player = Player()
    before = copy.deepcopy(player.state.state_dict())
    with tried(name):
        with pytest.raises(DivergedError, match="not finite at images = 0"):
            player.descend(LOSSES[name])
        after = dict(iterate_leaves(player.state.state_dict()))
        for key, value in iterate_leaves(before):
            same = torch.equal(value, after[key]) if isinstance(value, torch.Tensor) else value == after[key]
            assert same, key


@pytest.mark.parametrize("value", BAD)
def test_no_tensor_of_a_checkpoint_may_be_non_finite(tried, times, value, uninterrupted, tmp_path):
    """Refused before it is saved, and where a file holds one all the same, before it is loaded."""
    bundle = checkpoints.load_newest(uninterrupted / "checkpoints")[1]
    tensors = [key for key, v in iterate_leaves(bundle) if isinstance(v, torch.Tensor) and v.is_floating_point()]
    for key in tensors[:: times(9, soak=1)]:
        with tried("a non-finite number in a checkpoint"):
            spoiled = copy.deepcopy(bundle)
            dict(iterate_leaves(spoiled))[key].view(-1)[-1] = value
            with pytest.raises(DivergedError, match=key.replace(".", r"\.")):
                checkpoints.save(tmp_path, spoiled, keep=2)
            assert not list(tmp_path.iterdir())
            path = tmp_path / checkpoints.file_name(bundle["images"])
            torch.save(spoiled, path)
            checksum = hashlib.sha256(path.read_bytes()).hexdigest()
            path.with_name(f"{path.name}.sha256").write_text(f"{checksum}  {path.name}\n")
            with pytest.raises(CheckpointError, match="non-finite"):
                checkpoints.load(path)
        for left in tmp_path.iterdir():
            left.unlink()


@pytest.mark.parametrize("value", BAD)
def test_a_grid_with_pixels_that_are_no_numbers_is_not_drawn(tried, value, tmp_path):
    images = torch.rand(4, 1, 8, 8)
    images[2, 0, 3, 3] = value
    with tried("a picture with non-finite pixels"):
        for draw in (plotting.save_grid, plotting.save_images):
            with pytest.raises(DivergedError, match="finite"):
                draw(images, tmp_path / "pictures")
            assert not (tmp_path / "pictures").is_file()
        with pytest.raises(DivergedError, match="finite"):
            pictures.save_scatter(images.view(-1, 2), tmp_path / "scatter.png")
        assert not list(tmp_path.glob("**/*.png"))
