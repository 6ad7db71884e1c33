"""Batch-norm statistics of the averaged generator: copied from G, or standing, of the average's own samples."""

import copy
import json
from functools import partial

import pytest
import torch
from torch import nn

import gantrain as package
from gantrain import networks
from gantrain.errors import ConfigError
from gantrain.networks.latents import Latents
from gantrain.seeding import stream_generator
from gantrain.training.generator import STATISTICS_LATENTS, Sampler, estimate_statistics, generate, name_generator
from gantrain.training.state import State, create_average

SHORT = ["device=cpu", "logger=[]", "train.images=600", "train.report_every_images=200", "ema=0.9"]
pytestmark = pytest.mark.usefixtures("plain_figures")


def draw_statistics_latents(size: int) -> torch.Tensor:
    return Latents(size).draw(STATISTICS_LATENTS, stream_generator(0, "statistics"))


def test_they_are_the_means_of_those_of_batches():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 2)).train()
    estimate_statistics(network, Latents(3))
    with torch.no_grad():
        batches = network[0](draw_statistics_latents(3)).unflatten(0, (8, 256))
    norm = network[1]
    torch.testing.assert_close(norm.running_mean, batches.mean((0, 1)))
    torch.testing.assert_close(norm.running_var, batches.var(1).mean(0))
    assert (norm.momentum, norm.training, network[3].training) == (0.1, True, True)


def test_a_deeper_layer_sees_what_the_first_one_normalised_by_its_batch():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    network[1].running_mean.fill_(50)  # of other weights
    estimate_statistics(network, Latents(3))
    with torch.no_grad():
        hidden = [network[0](part) for part in draw_statistics_latents(3).split(256)]
        normalised = [(h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt() for h in hidden]
        seen = torch.stack([network[3](n.relu()) for n in normalised])
    torch.testing.assert_close(network[4].running_mean, seen.mean((0, 1)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(network[4].running_var, seen.var(1).mean(0), atol=1e-5, rtol=1e-4)


def test_a_network_without_batch_norm_has_none():
    network = nn.Sequential(nn.Linear(3, 2))
    before = copy.deepcopy(network.state_dict())
    estimate_statistics(network, Latents(3))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert name_generator(network, True, "standing") == "averaged generator"


def test_sampling_leaves_the_state_as_it_is_and_follows_its_clock():
    torch.manual_seed(0)
    generator, discriminator = networks.build("mlp_digits", (1, 8, 8), 16)
    adam = partial(torch.optim.Adam, lr=1e-3)
    state = State(
        generator,
        discriminator,
        adam(generator.parameters()),
        adam(discriminator.parameters()),
        create_average(generator),
    )
    before, z = copy.deepcopy(state.average.state_dict()), torch.randn(20, 16)
    copied = Sampler(state, Latents(16), "copied")
    standing = Sampler(state, Latents(16), "standing")
    assert (copied.source, standing.source) == ("averaged generator", "averaged generator, standing statistics")
    assert torch.equal(copied.generate(z), generate(state.average, z))
    first = standing.generate(z)
    assert not torch.equal(first, copied.generate(z))
    assert all(torch.equal(value, before[key]) for key, value in state.average.state_dict().items())
    with torch.no_grad():
        next(state.average.parameters()).mul_(-1)
    state.images += 100
    assert not torch.equal(standing.generate(z), first)


def test_a_run_trains_the_same_and_its_checkpoint_gives_either(gantrain):
    for statistics in ("copied", "standing"):
        assert gantrain("train", *SHORT, f"ema_statistics={statistics}", f"run_dir={statistics}").code == 0
    copied, standing = (package.load(name) for name in ("copied", "standing"))
    weights = [torch.load(f"{run.path}/checkpoints/last.pt", weights_only=True)["state"] for run in (copied, standing)]
    for part in ("generator", "discriminator", "average"):
        assert all(torch.equal(value, weights[1][part][key]) for key, value in weights[0][part].items())
    assert standing.summary["samples_from"] == "averaged generator, standing statistics"
    assert not torch.equal(copied.sample(50), standing.sample(50))
    for run, other in ((copied, "standing"), (standing, "copied")):
        assert torch.equal(package.load(run.path, ema_statistics=other).sample(50), package.load(other).sample(50))
    grids = [(run.path / "samples/images_000000000600.png").read_bytes() for run in (copied, standing)]
    assert grids[0] != grids[1]


def test_a_resumed_run_draws_the_grids_of_one_that_was_not_interrupted(gantrain):
    options = [*SHORT, "ema_statistics=standing", "train.sample_every_images=200"]
    assert gantrain("train", *options, "run_dir=whole").code == 0
    assert gantrain("train", *options, "train.images=400", "run_dir=halves").code == 0
    assert gantrain("resume", "halves", "train.images=600").code == 0
    whole, halves = (package.load(name) for name in ("whole", "halves"))
    for images in (200, 400, 600):
        name = f"samples/images_{images:012d}.png"
        assert (whole.path / name).read_bytes() == (halves.path / name).read_bytes()
    assert torch.equal(whole.sample(20), halves.sample(20))


def test_evaluate_and_sample_take_either_and_record_it(gantrain, tmp_path):
    assert gantrain("train", "dataset=ring", "architecture=mlp_digits", *SHORT, "run_dir=run").code == 0
    found = {}
    for statistics in ("copied", "standing"):
        name = f"ema_statistics={statistics}"
        assert gantrain("evaluate", "run", name, "metrics=[modes]", "count=500", f"out={statistics}").code == 0
        assert gantrain("sample", "run", name, f"out={statistics}/samples").code == 0
        found[statistics] = json.loads((tmp_path / statistics / "evaluation.json").read_text(encoding="utf-8"))
    assert found["standing"]["samples_from"] == "averaged generator, standing statistics"
    assert found["copied"]["samples_from"] == "averaged generator"
    samples = [(tmp_path / name / "samples/samples.npy").read_bytes() for name in ("copied", "standing")]
    assert samples[0] != samples[1]


@pytest.mark.parametrize("command", ["train", "sample", "evaluate"])
def test_another_word_is_refused(gantrain, command):
    answer = gantrain(command, *([] if command == "train" else ["run"]), "ema_statistics=moving")
    assert answer.code == 2
    assert "ema_statistics=moving" in answer.err
    with pytest.raises(ConfigError, match="ema_statistics"):
        package.load("run", ema_statistics="moving")
