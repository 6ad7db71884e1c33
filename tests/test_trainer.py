"""The loop from Python, without config or command line, and what theory says of where it ends."""

import copy
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from support.tolerance import assert_close_to_largest
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gantrain import data, networks
from gantrain.augmentation.augmentations import ADA
from gantrain.errors import CheckpointError, DivergedError
from gantrain.networks.latents import Latents
from gantrain.objectives import divergences, estimates
from gantrain.objectives.objective import Objective
from gantrain.precision import allow_tf32
from gantrain.reporting.reporter import Reporter
from gantrain.runs.folder import RunFolder
from gantrain.runs.metrics_file import read_metrics
from gantrain.training.loop import train
from gantrain.training.losses import Losses
from gantrain.training.setup import Schedule, TrainingSetup, passed
from gantrain.training.state import RunningMeans, State, create_average, create_regularizer_states, update_average
from gantrain.training.step import Step

ROW = {"op": "linear", "activation": "leaky_relu"}
MLP = {
    "name": "test",
    "generator": [ROW | {"features": 32, "norm": "batch"}, ROW | {"features": "data", "activation": "sigmoid"}],
    "discriminator": [ROW | {"features": 32, "dropout": 0.2}, ROW | {"features": 1, "activation": "linear"}],
}
AFFINE = {
    "name": "affine",
    "generator": [{"op": "affine", "features": "data"}],
    "discriminator": [ROW | {"features": 64}, ROW | {"features": 64}, ROW | {"features": 1, "activation": "linear"}],
}


def new_state(table, shape, latent_size, lr=1e-3) -> State:
    torch.manual_seed(0)
    generator, discriminator = networks.build(table, shape, latent_size)
    adam = partial(torch.optim.Adam, lr=lr, betas=(0.5, 0.999))
    return State(
        generator,
        discriminator,
        adam(generator.parameters()),
        adam(discriminator.parameters()),
        create_average(generator),
    )


def game(disc_div="gan", gen_div="kl", gen_objective="matched") -> Objective:
    return Objective(divergences.get(disc_div), divergences.get(gen_div), gen_objective)


def updates(state, objective, latents) -> Step:
    return Step(state, Losses(objective), latents)


def play(state, objective, dataset, latents, schedule, path, seed=0) -> None:
    with Reporter(path, schedule.images, state.images) as reporter:
        train(state, TrainingSetup(objective, dataset, latents, schedule, seed), RunFolder(path), reporter)


def test_the_loop_runs_without_config(tmp_path):
    dataset = data.load("digits")
    state = new_state(MLP, dataset.shape, 16)
    before = torch.get_rng_state()
    play(state, game(), dataset, Latents(16), Schedule(images=1000, report_every_images=300), tmp_path)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers are not touched"
    assert state.images == 1000
    assert [row["images"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [300, 600, 900, 1000]
    assert state.generator.training


def test_a_run_depends_on_its_seed_and_on_nothing_else(tmp_path):
    def weights(seed, path):
        dataset = data.load("digits", seed=seed)
        state = new_state(MLP, dataset.shape, 16)
        torch.manual_seed(torch.seed())  # what the caller drew before does not matter
        play(state, game(), dataset, Latents(16), Schedule(images=500), path, seed=seed)
        return nn.utils.parameters_to_vector(state.generator.parameters())

    for name in "abc":
        (tmp_path / name).mkdir()
    first, again, other = weights(0, tmp_path / "a"), weights(0, tmp_path / "b"), weights(1, tmp_path / "c")
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_products_are_rounded_in_no_forward_pass(tmp_path):
    """Not in reports or grids either: cuDNN's own default is TF32."""
    dataset, state, allowed = data.load("digits"), new_state(MLP, (1, 8, 8), 16), []
    convolutions = torch.backends.cudnn
    for network in (state.generator, state.discriminator, state.average):
        network.register_forward_hook(lambda *_: allowed.append(convolutions.allow_tf32))
    before, convolutions.allow_tf32 = convolutions.allow_tf32, True
    try:
        play(state, game(), dataset, Latents(16), Schedule(images=100, report_every_images=100), tmp_path)
        assert convolutions.allow_tf32
    finally:
        convolutions.allow_tf32 = before
    assert not any(allowed)


@pytest.mark.parametrize("precision", ["high", "medium", "newer name"])
def test_the_programs_own_precision_is_restored_under_both_of_its_names(precision):
    backends = torch.backends
    newer = [backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    try:
        if precision == "newer name":  # after which PyTorch refuses to read the older one
            backends.cuda.matmul.fp32_precision = "tf32"
        else:
            torch.set_float32_matmul_precision(precision)
        before = [each.fp32_precision for each in newer]
        for allowed in (False, True):
            with allow_tf32(allowed):
                inside = [torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32]
                assert inside == ["high" if allowed else "highest", allowed]
            assert [each.fp32_precision for each in newer] == before
            if precision != "newer name":
                assert torch.get_float32_matmul_precision() == precision
    finally:
        backends.cuda.matmul.fp32_precision = "ieee"
        torch.set_float32_matmul_precision("highest")


def test_late_checkpoints_and_grids_change_no_weight_and_no_row(tmp_path):
    dataset, states = data.load("digits"), []
    for minutes in (10.0, 1e-9):
        folder = RunFolder(tmp_path / str(minutes))
        folder.checkpoints.mkdir(parents=True)
        schedule = Schedule(images=500, report_every_images=200, checkpoint_max_minutes=minutes)
        states.append(new_state(MLP, dataset.shape, 16))
        play(states[-1], game(), dataset, Latents(16), schedule, folder.path)
    assert len(list(folder.samples.glob("images_*.png"))) == 5
    assert torch.equal(*(nn.utils.parameters_to_vector(state.generator.parameters()) for state in states))
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("10.0", "1e-09")]
    kept = [
        [{k: v for k, v in row.items() if not k.startswith(("speed/", "system/"))} for row in each] for each in rows
    ]
    assert kept[0] == kept[1]


def test_a_late_checkpoint_is_written_with_its_grid_also_soon_after_the_last_one(tmp_path):
    dataset, folder = data.load("digits"), RunFolder(tmp_path)
    folder.checkpoints.mkdir(parents=True)
    schedule = Schedule(images=500, checkpoint_min_seconds=3600.0, checkpoint_max_minutes=1e-9, keep_checkpoints=10)
    play(new_state(MLP, dataset.shape, 16), game(), dataset, Latents(16), schedule, folder.path)
    grids = [path.stem for path in folder.samples.glob("images_*.png")]
    assert sorted(grids) == sorted(path.stem for path in folder.checkpoints.glob("images_*.pt"))


def test_a_generator_whose_samples_are_equal_has_collapsed(tmp_path, capsys):
    dataset = data.load("digits")
    state = new_state(MLP, dataset.shape, 16, lr=0.0)
    schedule = Schedule(images=200, report_every_images=100)
    for name in ("healthy", "collapsed"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
    play(state, game(), dataset, Latents(16), schedule, tmp_path / "healthy")
    assert "collapsed" not in capsys.readouterr().out
    for network in (state.generator, state.average):
        nn.init.zeros_(network[-2].layer.linear.weight)
    state.images = 0
    play(state, game(), dataset, Latents(16), schedule, tmp_path / "collapsed")
    assert capsys.readouterr().out.count("the generator has collapsed") == 1
    last = read_metrics(tmp_path / "collapsed/metrics.jsonl")[-1]
    assert last["diversity/pixel_distance"] == pytest.approx(0, abs=1e-6)


def test_the_limits_of_each_report_are_wider_than_those_before(tmp_path, monkeypatch):
    numbers, compute = [], estimates.confidence_limits

    def record(r, known, report):
        numbers.append(report)
        return compute(r, known, report)

    monkeypatch.setattr(estimates, "confidence_limits", record)
    dataset, state = data.load("digits"), new_state(MLP, (1, 8, 8), 16)
    for images in (300, 500):  # a second process counts on
        schedule = Schedule(images=images, report_every_images=100)
        play(state, game(), dataset, Latents(16), schedule, tmp_path)
    assert numbers == [1, 2, 3, 4, 5]
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    limits = {name: value for name, value in last.items() if name.startswith("lower_limit/")}
    assert limits.keys() == {
        f"lower_limit/{name}" for name in ("js", "gan", "squared_hellinger", "le_cam", "total_variation")
    }
    assert all(value < last[f"bound/{name.partition('/')[2]}"] for name, value in limits.items())


@pytest.mark.parametrize(
    ("row", "augmentation"),
    [({"op": "minibatch_stddev", "group": 4}, None), (None, ADA(measure="held_out"))],
    ids=["D compares samples", "p follows held-out data"],
)
def test_nothing_is_inferred_from_outputs_that_are_not_independent(row, augmentation, tmp_path):
    table = {**MLP, "discriminator": [*MLP["discriminator"][:-1], *([row] if row else []), MLP["discriminator"][-1]]}
    dataset, state = data.load("digits"), new_state(table, (1, 8, 8), 16)
    if augmentation is not None:
        state.regularizers = create_regularizer_states([augmentation])
    setup = TrainingSetup(
        game(), dataset, Latents(16), Schedule(images=200, report_every_images=100), augmentation=augmentation
    )
    with Reporter(tmp_path, 200, 0) as reporter:
        train(state, setup, RunFolder(tmp_path), reporter)
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert "bound/gan" in last
    assert not any(name.startswith(("lower_limit/", "two_sample/")) for name in last)


def test_each_step_moves_one_player():
    dataset = data.load("digits")
    state = new_state(MLP, dataset.shape, 16)

    def vectors():
        players = (state.generator, state.discriminator)
        return [nn.utils.parameters_to_vector(player.parameters()).clone() for player in players]

    g, d = vectors()
    steps = updates(state, game(), Latents(16))
    real = dataset.batch(0, 50)
    steps.discriminator_step(real, steps.detached_samples(real))
    g1, d1 = vectors()
    assert torch.equal(g, g1)
    assert not torch.equal(d, d1)
    steps.generator_step(steps.samples(real), real)
    g2, d2 = vectors()
    assert not torch.equal(g1, g2)
    assert torch.equal(d1, d2)


def test_a_generator_step_is_gradient_descent_on_the_objective():
    """With plain SGD the step is −lr·∇, here against a derivative taken by hand for x = μ + σz and r(x) = a x."""
    a, mu, sigma, lr = 0.7, 0.3, 1.0, 0.1
    discriminator = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Flatten(0))
    discriminator[0].weight.data.fill_(a)
    generator, _ = networks.build(AFFINE, (1,), 1)
    generator.state_dict()["0.layer.affine.mean"].fill_(mu)
    state = State(
        generator,
        discriminator,
        torch.optim.SGD(generator.parameters(), lr=lr),
        torch.optim.SGD(discriminator.parameters(), lr=lr),
    )
    z = torch.linspace(-2, 2, 9)[:, None]
    updates(state, game(gen_div="kl"), None).generator_step(generator(z))  # matched kl: −E[e^r]
    derivative = -(a * torch.exp(a * (mu + sigma * z))).mean()
    assert generator.state_dict()["0.layer.affine.mean"].item() == pytest.approx(mu - lr * derivative.item(), rel=1e-5)


def test_a_non_finite_loss_stops_before_the_update(tmp_path):
    dataset = data.load("digits")
    state = new_state(MLP, dataset.shape, 16)
    bias = state.discriminator[-2].layer.linear.bias
    bias.data.fill_(torch.nan)
    before = {key: value.clone() for key, value in state.generator.state_dict().items() if "running" not in key}
    with pytest.raises(
        DivergedError, match=r"(?s)loss/discriminator.* not finite at images = 0.*loss/discriminator = nan.*optimizer"
    ):
        play(state, game(), dataset, Latents(16), Schedule(images=500), tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    assert not state.discriminator_optimizer.state
    for key, value in before.items():
        if "num_batches" not in key:
            assert torch.equal(state.generator.state_dict()[key], value), key


def test_k_discriminator_steps_count_k_batches(tmp_path):
    dataset = data.load("digits")
    state = new_state(MLP, dataset.shape, 16)
    play(state, game(), dataset, Latents(16), Schedule(images=1200, batch_size=100, discriminator_steps=3), tmp_path)
    steps = {
        name: int(next(iter(optimizer.state.values()))["step"])
        for name, optimizer in (("D", state.discriminator_optimizer), ("G", state.generator_optimizer))
    }
    assert (state.images, steps) == (1200, {"D": 12, "G": 4})


def test_batch_statistics_move_once_an_iteration(tmp_path):
    dataset = data.load("digits")
    state = new_state(MLP, dataset.shape, 16)
    (norm,) = (module for module in state.generator.modules() if isinstance(module, _BatchNorm))
    means = [norm.running_mean.clone()]
    norm.register_forward_hook(lambda *_: means.append(norm.running_mean.clone()))
    play(state, game(), dataset, Latents(16), Schedule(images=600, discriminator_steps=2), tmp_path)
    assert sum(not torch.equal(before, after) for before, after in pairwise(means)) == 3


def test_an_optimizer_state_of_other_shapes_is_refused_before_anything_changes(tmp_path):
    dataset = data.load("digits")
    state = new_state(MLP, dataset.shape, 16)
    play(state, game(), dataset, Latents(16), Schedule(images=200), tmp_path)
    saved = copy.deepcopy(state.state_dict())
    saved["generator_optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
    saved["generator"] = {key: torch.zeros_like(value) for key, value in saved["generator"].items()}
    before = nn.utils.parameters_to_vector(state.generator.parameters()).clone()
    with pytest.raises(CheckpointError, match=r"generator_optimizer\.state\.0\.exp_avg"):
        state.load_state_dict(saved, 200)
    assert torch.equal(nn.utils.parameters_to_vector(state.generator.parameters()), before)


def test_the_average_follows_the_generator():
    generator = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = create_average(generator)
    old = generator[0].weight.detach().clone()
    generator[0].weight.data += 1
    generator[1].running_mean += 5
    update_average(average, generator, torch.tensor(0.1))
    assert_close_to_largest(average[0].weight, 0.9 * old + 0.1 * (old + 1))
    assert torch.equal(average[1].running_mean, generator[1].running_mean)
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_the_average_warms_up():
    schedule = Schedule(images=1, batch_size=10, ema=0.99)
    assert schedule.decay(10) == pytest.approx(2 / 11)
    assert schedule.decay(10**6) == 0.99


@pytest.mark.parametrize(
    ("begin", "end", "due"), [(0, 99, 0), (0, 100, 1), (100, 199, 0), (150, 420, 1), (100, 200, 1)]
)
def test_intervals_on_the_clock(begin, end, due):
    assert passed(100, begin, end) == bool(due)


def test_statistics_are_means_since_the_last_report():
    statistics = RunningMeans()
    for value in (1.0, 2.0, 6.0):
        statistics.add({"a": torch.tensor(value)})
    statistics.add({"b": torch.tensor(5.0)})
    assert statistics.means() == {"a": 3.0, "b": 5.0}
    assert statistics.means() == {}


def test_grids_use_the_same_latents_in_every_run():
    assert torch.equal(Latents(8).draw_fixed(64, seed=3), Latents(8).draw_fixed(64, seed=3))
    assert not torch.equal(Latents(8).draw_fixed(64, seed=3), Latents(8).draw_fixed(64, seed=4))


@pytest.mark.parametrize(("prior", "mean", "sd"), [("normal", 0.0, 1.0), ("uniform", 0.0, 1 / math.sqrt(3))])
def test_latents_follow_their_prior(prior, mean, sd):
    z = Latents(50, prior).draw(4000, torch.Generator().manual_seed(0))
    assert z.shape == (4000, 50)
    assert z.mean().item() == pytest.approx(mean, abs=0.01)
    assert z.std().item() == pytest.approx(sd, abs=0.01)
    assert (prior == "normal") == bool((z.abs() > 1).any())


def test_adversarial_training_ends_at_the_exact_fit(tmp_path):
    """KL's optimum on the mixture is moment matching: μ = Σwμ, σ² = Σw(σ² + μ²) − μ², whatever trained D."""
    weights, means, stds = [0.6, 0.4], [-1.5, 2.0], [0.6, 0.8]
    mu = sum(w * m for w, m in zip(weights, means, strict=True))
    sigma = math.sqrt(sum(w * (s * s + m * m) for w, m, s in zip(weights, means, stds, strict=True)) - mu * mu)
    assert (mu, sigma) == (pytest.approx(-0.1), pytest.approx(1.8472, abs=5e-5))
    dataset = data.load("mixture1d", weights=weights, means=means, stds=stds)
    state = new_state(AFFINE, dataset.shape, 1, lr=2e-3)
    schedule = Schedule(images=750_000, batch_size=500, report_every_images=250_000, sample_every_images=10**9)
    play(state, game("gan", "kl"), dataset, Latents(1), schedule, tmp_path)
    fitted = {key.rpartition(".")[2]: value.item() for key, value in state.best_generator.state_dict().items()}
    assert fitted["mean"] == pytest.approx(mu, abs=0.1)
    assert abs(fitted["scale"]) == pytest.approx(sigma, abs=0.1)
