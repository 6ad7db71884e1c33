"""Numbers that follow the clock."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from support.runs import assert_equal_states, train

import gantrain
from gantrain import data, networks
from gantrain.errors import ConfigError
from gantrain.networks.latents import Latents
from gantrain.objectives.objective import Objective
from gantrain.ranges import Numbers
from gantrain.regularizers.regularizers import R1
from gantrain.runs.metrics_file import read_metrics
from gantrain.schedules import HalfLife, Ramp, ScheduledNumbers, end_with_run, parse_decay, parse_number
from gantrain.training.iteration import Iteration
from gantrain.training.optimizers import parse_optimizers
from gantrain.training.setup import Schedule, TrainingSetup
from gantrain.training.state import State, create_average

FEW = ["train.images=200", "train.batch_size=50", "train.report_every_images=50", "device=cpu"]


def generator_of(run: gantrain.Run) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in run.generator().parameters()])


@pytest.mark.parametrize(
    ("shape", "half"), [("linear", 5.0), ("cosine", 5.0), ("exponential", 4.0)], ids=["linear", "cosine", "exponential"]
)
def test_a_ramp_goes_from_one_end_to_the_other_and_stays(shape, half):
    ramp = Ramp(8.0, 2.0, 1000, shape)
    assert [ramp.at(images) for images in (0, 500, 1000, 5000)] == pytest.approx([8.0, half, 2.0, 2.0], rel=1e-12)
    assert ramp.at(1000) == 2.0
    numbers = [ramp.at(images) for images in range(0, 1001, 50)]
    assert numbers == sorted(numbers, reverse=True)


def test_the_shapes_have_their_slopes():
    """A cosine begins and ends flat; an exponential changes by the same factor in every step."""
    cosine, exponential = (Ramp(1.0, 0.1, 1000, shape) for shape in ("cosine", "exponential"))
    assert cosine.at(0) - cosine.at(10) < 1e-3 < cosine.at(500) - cosine.at(510)
    assert cosine.at(250) == pytest.approx(0.55 + 0.45 * math.sqrt(0.5))
    factors = [exponential.at(images + 100) / exponential.at(images) for images in range(0, 1000, 100)]
    assert factors == pytest.approx([10**-0.1] * 10)


def test_a_half_life_is_the_time_in_which_an_old_weight_counts_half():
    for step in (1, 10, 64):
        kept = math.prod(HalfLife(6400).decay(images, step) for images in range(step, 6400 + step, step))
        assert kept == pytest.approx(0.5)
    assert HalfLife(6400, ramp=0.05).decay(640, 64) == pytest.approx(0.5 ** (64 / 32))
    assert HalfLife(6400, ramp=0.05).decay(10**6, 64) == HalfLife(6400).decay(10**6, 64)


def test_a_half_life_follows_the_clock_from_no_memory_on():
    rising = parse_decay({"half_life": {"from": 0, "to": 6400, "images": 1000}, "ramp": 5})
    assert isinstance(rising, HalfLife)
    assert rising.decay(0, 64) == 0
    assert rising.decay(500, 64) == pytest.approx(0.5 ** (64 / min(3200, 5 * 500)))
    assert rising.decay(10**6, 64) == HalfLife(6400).decay(10**6, 64)
    whole_run = end_with_run(Schedule(images=400, ema=HalfLife(Ramp(0, 100, None))), 400)
    assert whole_run.decay(200) == pytest.approx(0.5 ** (whole_run.batch_size / 50))


def test_constant_ramps_change_nothing(tmp_path: Path):
    plain = {"optimizer.lr": 4e-4, "optimizer.weight_decay": 0.01, "regularizer.r1.weight": 10.0, "ema": 0.99}
    ramps = {key: f"{{from: {value}, to: {value}, images: 150}}" for key, value in plain.items()}
    plain["optimizer.betas"], ramps["optimizer.betas"] = [0.5, 0.9], "[0.5, {from: 0.9, to: 0.9}]"
    for name, values in (("plain", plain), ("ramps", ramps)):
        typed = [f"{key}={value}" for key, value in values.items()]
        assert train(tmp_path / name, "optimizer=adam", "regularizer=[r1]", *typed, *FEW) == 0
    assert_equal_states(tmp_path / "plain", tmp_path / "ramps")


@pytest.mark.parametrize(("start", "end"), [(10, 1), (0, 1), (0, 0.5)])
def test_a_ramp_between_whole_numbers_takes_all_numbers_between_them(start: float, end: float):
    """`{from: 0, to: 1}` is not rounded to whole numbers, in a regularizer, an augmentation or a fused optimizer."""
    ramp, numbers = Ramp(start, end, 1000), ScheduledNumbers()
    bound = numbers.bind(R1(ramp), torch.device("cpu"))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
    numbers.bind_optimizer(optimizer, {"lr": ramp}, is_fused=True)
    for images in (0, 250, 500, 999, 1000):
        numbers.set(images)
        expected = start + (end - start) * images / 1000
        assert [float(bound.weight), float(optimizer.param_groups[0]["lr"])] == pytest.approx([expected] * 2)


def test_each_beta_of_adam_follows_the_clock(tmp_path: Path):
    """After so many equal gradients g, Adam's average of squares is g²(1 − Πβ₂), with the β₂ of each step's clock."""
    weight = torch.nn.Parameter(torch.zeros(3))
    adam = torch.optim.Adam([weight], betas=(0.5, 0.9))
    numbers = ScheduledNumbers()
    settings = parse_optimizers({"name": "Adam", "lr": 0.1, "betas": [0.5, {"from": 0.9, "to": 0.5, "images": 100}]})
    numbers.bind_optimizer(adam, settings["generator"].find_ramps(1000), is_fused=False)
    assert settings["generator"].first_arguments["betas"] == [0.5, 0.9]
    kept = 1.0
    for images in range(0, 150, 10):
        numbers.set(images)
        weight.grad = torch.full((3,), 2.0)
        adam.step()
        kept *= max(0.9 - 0.004 * images, 0.5)
    torch.testing.assert_close(adam.state[weight]["exp_avg_sq"], torch.full((3,), 4 * (1 - kept)))
    assert numbers.has_host_numbers


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (["regularizer=r1", "regularizer.weight=1"], "regularizer.sigma"),
        (["regularizer=feature_matching"], "regularizer.adversarial"),
        (["regularizer=consistency"], "regularizer.fake_weight"),
        (["augment=diffaugment"], "augment.color"),
        (["augment=ada", "augment.ramp_images=50"], "augment.target"),
        (["augment=ada", "augment.measure=none", "augment.p=0.5"], "augment.geometry"),
    ],
)
def test_a_constant_ramp_of_a_number_that_switches_a_term_changes_nothing(options, changed, tmp_path: Path):
    for name, value in (("plain", "0.5"), ("ramp", "{from: 0.5, to: 0.5}")):
        assert train(tmp_path / name, *options, f"{changed}={value}", *FEW) == 0
    assert_equal_states(tmp_path / "plain", tmp_path / "ramp")


def test_a_rate_that_falls_to_0_ends_the_training(tmp_path: Path):
    falling = {"from": 0.01, "to": 0, "images": 100}
    options = {
        "train.batch_size": 50,
        "optimizer.generator.lr": falling,
        "optimizer": "adam",
        "ema": 0,
        "device": "cpu",
    }
    early, late, later = (
        gantrain.train(run_dir=tmp_path / str(n), **options, **{"train.images": n}) for n in (50, 100, 200)
    )
    assert not torch.equal(generator_of(early), generator_of(late))
    assert torch.equal(generator_of(late), generator_of(later))
    rates = [row["schedule/optimizer.generator.lr"] for row in read_metrics(later.path / "metrics.jsonl")]
    assert rates[-1] == 0


@pytest.mark.parametrize("length", [{"train.images": 500}, {"train.epochs": 0.25}], ids=["images", "epochs"])
def test_a_ramp_without_a_length_ends_with_the_run(tmp_path: Path, length):
    falling = {"from": 1.0, "to": 0.5}
    keys = ("optimizer.lr", "regularizer.weight", "augment.p", "ema")
    names = {"optimizer": "adam_decay", "regularizer": "r1", "augment": "diffaugment"}
    run = gantrain.train(
        **{"run_dir": tmp_path / "run", **names, "train.batch_size": 50, "train.report_every_images": 50},
        **{**dict.fromkeys(keys[1:], falling), **length, "device": "cpu"},
    )
    settings = run.settings
    shown = 500 if settings.train.epochs is None else math.ceil(0.25 * data.load("digits").size)
    rows = read_metrics(run.path / "metrics.jsonl")
    for key, ends in (("optimizer.generator.lr", (2e-4, 0.0)), ("regularizer.r1.weight", (1.0, 0.5))):
        assert rows[0][f"schedule/{key}"] == pytest.approx(ends[0] + 50 / shown * (ends[1] - ends[0]))
        assert rows[-1][f"schedule/{key}"] == ends[1]
    assert rows[-1]["schedule/augment.p"] == 0.5


def test_a_schedule_over_the_whole_run_is_named_when_the_run_gets_another_length(tmp_path: Path, capsys):
    ramps = {"optimizer.lr": {"from": 1e-3, "to": 0}, "ema": {"from": 0, "to": 0.5, "images": 50}}
    run = gantrain.train(
        run_dir=tmp_path / "run", device="cpu", **ramps, **{"train.images": 50, "train.batch_size": 50}
    )
    capsys.readouterr()
    gantrain.resume(run, **{"train.images": 100})
    assert "\noptimizer.lr: a schedule over the whole run goes on as if" in capsys.readouterr().out


def test_a_penalty_whose_weight_falls_to_0_has_the_gradient_of_none(tmp_path: Path):
    falling = {"from": 0.1, "to": 0, "images": 1}  # the first step has the whole weight
    options = {"train.images": 50, "train.batch_size": 50, "device": "cpu"}
    with_penalty = gantrain.train(run_dir=tmp_path / "r1", regularizer="r1", **options)
    scheduled = gantrain.train(
        run_dir=tmp_path / "ramp", regularizer="r1", **{"regularizer.weight": falling}, **options
    )
    assert torch.equal(generator_of(with_penalty), generator_of(scheduled))
    penalties = [row["loss/penalty"] for row in read_metrics(scheduled.path / "metrics.jsonl")]
    assert penalties == [row["loss/penalty"] for row in read_metrics(with_penalty.path / "metrics.jsonl")]
    longer = gantrain.resume(scheduled, **{"train.images": 100, "train.report_every_images": 50})
    assert read_metrics(longer.path / "metrics.jsonl")[-1]["loss/penalty"] == 0


def test_updates_checked_on_the_device_follow_the_same_rate():
    """Where the device checks updates, a fused optimizer reads the rate from a tensor."""

    def play(*, on_device: bool) -> torch.Tensor:
        torch.manual_seed(0)
        pair = networks.build("mlp_digits", (1, 8, 8), 16)
        adam = partial(torch.optim.Adam, lr=1e-3, fused=True)
        state = State(*pair, *(adam(network.parameters()) for network in pair), create_average(pair[0]))
        setup = TrainingSetup(
            Objective("gan", "kl"),
            data.load("digits"),
            Latents(16),
            Schedule(images=1000, batch_size=20),
            regularizers=(R1(Ramp(10.0, 1.0, 100)),),
            optimizer_ramps={"generator": {"lr": Ramp(1e-2, 1e-4, 100, "exponential")}},
        )
        iteration = Iteration(state, setup, guard_on_device=on_device)
        for _ in range(6):
            iteration.play()
        return torch.cat([parameter.detach().flatten() for network in pair for parameter in network.parameters()])

    torch.testing.assert_close(play(on_device=True), play(on_device=False), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"form": 1, "to": 2}, "did you mean from"),
        ({"from": 1, "images": 2}, "without to"),
        ({"from": 1, "to": 0, "images": 10, "shape": "exponential"}, "x.to=0 must be above 0"),
        ({"from": 1, "to": -1, "images": 10}, "x.to=-1 must be at least 0"),
        ({"from": 1, "to": 2, "images": 0}, "x.images=0 must be above 0"),
        ({"from": 1, "to": 2, "images": 10, "shape": "cosin"}, "did you mean cosine"),
        ({"from": "a", "to": 2, "images": 10}, "x.from=a must be a number"),
    ],
)
def test_schedules_that_cannot_be_are_refused(value, reason):
    with pytest.raises(ConfigError, match=reason):
        parse_number("x", value, Numbers(at_least=0))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (2, "at most 1"),
        (None, "must be a number"),
        ({"halflife": 3}, "did you mean half_life"),
        ({"ramp": 0.1}, "no half_life"),
        ({"half_life": 0}, "above 0"),
        ({"half_life": {"from": -1, "to": 5, "images": 5}}, "ema.half_life.from=-1 must be at least 0"),
        ({"from": 0.9, "to": 1.1, "images": 5}, "ema.to=1.1"),
    ],
)
def test_averages_that_cannot_be_are_refused(value, reason):
    with pytest.raises(ConfigError, match=reason):
        parse_decay(value)


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        (["optimizer.betas={from: 1, to: 2, images: 3}"], "optimizer.betas"),
        (["optimizer.betas=[0, {from: 0.9, to: 1, images: 3}]"], "optimizer.betas[1].to=1 must be"),
        (["optimizer.betas=[0, {from: 0.9, images: 3}]"], "optimizer.betas[1] is a schedule without to"),
        (["optimizer.betas=[{from: 0, to: 0.9}]"], "must be 2 numbers"),
        (["regularizer=r1", "regularizer.sigma={from: 0.1, to: 0}"], "both ends must be above 0"),
        (["regularizer=r1", "regularizer.share={from: 0.1, to: 1}"], "share"),
        (["regularizer=label_smoothing", "regularizer.smoothing={from: 0.1, to: 0, images: 9}"], "is no schedule"),
        (["train.images={from: 1, to: 2, images: 3}"], "train.images"),
    ],
)
def test_what_cannot_follow_a_schedule_says_so(typed, reason, tmp_path, capsys):
    assert train(tmp_path / "run", *typed) == 2
    assert reason in capsys.readouterr().err
