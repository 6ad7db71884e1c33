"""An iteration in all its orders and forms: they compute the same numbers, and nothing non-finite is ever made."""

import copy
import math
import shutil
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import yaml
from support.states import MLP, ROW, assert_goes_on, assert_same, experiment, game, new_state, numbers
from support.tolerance import assert_close_to_largest
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gantrain import data
from gantrain.augmentation.augmentations import ADA, DiffAugment
from gantrain.data import Batch
from gantrain.errors import ConfigError, DivergedError
from gantrain.networks.latents import Latents
from gantrain.objectives import divergences
from gantrain.objectives.critic_objective import CriticObjective
from gantrain.objectives.critics import CRITICS, Relativistic
from gantrain.objectives.divergences import CATALOGUE
from gantrain.objectives.weighting import DEFAULT, OFF, Weighting
from gantrain.precision import choose_precision
from gantrain.regularizers.gradient_penalties import R1, R2, Dragan, GradientPenalty
from gantrain.regularizers.regularizers import (
    REGULARIZERS,
    Balanced,
    Consistency,
    FeatureMatching,
    InstanceNoise,
    LabelSmoothing,
    LeCam,
    WeightClipping,
)
from gantrain.schedules import Ramp
from gantrain.training import acceleration
from gantrain.training.acceleration import Backend, FiniteGuard, can_guard_on_device, check_device, compile_losses
from gantrain.training.iteration import Iteration
from gantrain.training.losses import Losses
from gantrain.training.setup import UPDATES, Execution, TrainingSetup
from gantrain.training.state import RunningMeans, State, create_regularizer_states
from gantrain.training.step import Step, find_shared_scale

CONF = Path(__file__).parents[1] / "conf" / "architecture"
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def regularized(*regularizers) -> Losses:
    return game("gan", "softened_reverse_kl", *regularizers)


# ---------------------------------------------------------------------------------------------------------------------
# Orders


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("update", UPDATES)
def test_an_iteration_is_k_updates_of_d_and_one_of_g(update, steps):
    state = new_state()
    iteration = Iteration(state, experiment(steps=steps, update=update))
    norm = next(module for module in state.generator.modules() if isinstance(module, _BatchNorm))
    means = [norm.running_mean.clone()]
    norm.register_forward_hook(lambda *_: means.append(norm.running_mean.clone()))
    for _ in range(2):
        iteration.play()
    made = {
        name: int(next(iter(optimizer.state.values()))["step"])
        for name, optimizer in (("D", state.discriminator_optimizer), ("G", state.generator_optimizer))
    }
    assert made == {"D": 2 * steps, "G": 2}
    assert state.images == 2 * steps * 20
    assert sum(not torch.equal(before, after) for before, after in pairwise(means)) == 2
    means = state.statistics.means()
    assert means["grad_norm/discriminator"] > 0
    assert means["grad_norm/generator"] > 0
    assert means["discriminator/accuracy"] <= 1


@pytest.mark.parametrize("update", UPDATES)
def test_the_weights_of_d_are_clipped_after_its_updates_and_those_of_g_are_not(update):
    losses = regularized(WeightClipping(0.01))
    state = new_state()
    iteration = Iteration(state, experiment(losses, update=update, steps=2))
    for _ in range(3):
        iteration.play()
        largest = max(float(parameter.detach().abs().max()) for parameter in state.discriminator.parameters())
        assert largest == float(torch.tensor(0.01))
    assert max(float(parameter.detach().abs().max()) for parameter in state.generator.parameters()) > 0.01


def test_the_orders_differ_in_what_g_moves_on():
    """With no step of D in between and the same samples, both would make the same update of G."""
    moved = {}
    for update in UPDATES:
        state = new_state()
        Iteration(state, experiment(update=update)).play()
        moved[update] = nn.utils.parameters_to_vector(state.generator.parameters())
    assert not torch.equal(moved["alternating"], moved["simultaneous"])
    assert torch.allclose(moved["alternating"], moved["simultaneous"], atol=5e-2)


# ---------------------------------------------------------------------------------------------------------------------
# One backward pass for both players


class Wide(nn.Module):
    """D whose log-ratios span ±`span`, and that judges each sample alone."""

    is_samplewise = True

    def __init__(self, span: float) -> None:
        super().__init__()
        self.span, self.first, self.last = span, nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.span * torch.tanh(3 * self.last(torch.tanh(3 * self.first(x)))).flatten()


def both_gradients(losses, span, dtype) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], float]:
    """The gradients of one simultaneous update, those of two separate backward passes, and the share of two passes."""
    torch.manual_seed(3)
    generator, discriminator = nn.Linear(3, 4).to(dtype), Wide(span).to(dtype)
    still = partial(torch.optim.SGD, lr=0.0)
    state = State(generator, discriminator, still(generator.parameters()), still(discriminator.parameters()))

    class Drawn:
        def draw(self, count):
            return torch.randn(count, 3, generator=torch.Generator().manual_seed(1)).to(dtype)

    real = torch.randn(64, 4, generator=torch.Generator().manual_seed(2)).to(dtype)
    fake = generator(Drawn().draw(64))
    torch.manual_seed(9)  # what a penalty draws
    loss, _ = losses.discriminator_loss(discriminator, Batch(real), fake.detach())
    gradients = {"discriminator": torch.autograd.grad(loss, list(discriminator.parameters()))}
    loss, _ = losses.generator_loss(discriminator, fake, Batch(real))
    gradients["generator"] = torch.autograd.grad(loss, list(generator.parameters()))
    separate = {name: torch.cat([g.flatten() for g in gradient]) for name, gradient in gradients.items()}
    torch.manual_seed(9)
    updates = Step(state, losses, Drawn())
    if not all(gradient.norm().isfinite() for gradient in separate.values()):
        with pytest.raises(DivergedError):
            updates.simultaneous_step(Batch(real))
        pytest.skip("float32 does not hold these gradients")
    updates.simultaneous_step(Batch(real))
    networks = {"generator": generator, "discriminator": discriminator}
    ours = {name: torch.cat([p.grad.flatten() for p in network.parameters()]) for name, network in networks.items()}
    return ours, separate, state.statistics.means()["update/two_pass_share"]


GAMES = {
    **{f"gan-{name}": game("gan", name) for name, d in CATALOGUE.items() if d.invertible},
    **{f"{name}-matched": game(name, name) for name, d in CATALOGUE.items() if d.invertible},
    "total_variation": game("total_variation", "total_variation"),
    "ratio objective": game("js", "kl", gen_objective="ratio"),
    "alternative": game("gan", "gan", gen_objective="alternative"),
    **{f"tempered {name}": game("gan", name, weighting=DEFAULT) for name in ("kl", "pearson", "neyman")},
    "r1": game("gan", "kl", R1()),
    "gradient penalty": game("gan", "kl", GradientPenalty()),
    "label smoothing": game("gan", "kl", LabelSmoothing()),
    "r2 and dragan": game("gan", "kl", R2(), Dragan()),
    "balanced": game("gan", "kl", Balanced(weight=3.0)),
    "lecam": game("gan", "kl", LeCam(decay=0.0)),  # the same averages in the next pass with the same batch
    **{f"critic {name}": Losses(CriticObjective(name)) for name in CRITICS if name != "f_divergence"},
    "all pairs": Losses(CriticObjective(Relativistic("all"))),
    "relativistic kl": Losses(CriticObjective("relativistic", "kl", weighting=DEFAULT)),
}


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize(("dtype", "span", "tolerance"), [(torch.float64, 5.0, 1e-12), (torch.float32, 60.0, 1e-5)])
def test_simultaneous_gradients_equal_two_separate_backward_passes(name, dtype, span, tolerance):
    ours, theirs, share = both_gradients(GAMES[name], span, dtype)
    for player, gradient in theirs.items():
        assert gradient.isfinite().all()
        assert (ours[player] - gradient).norm() <= tolerance * gradient.norm(), player
    if dtype == torch.float64 and "total" not in name:
        assert share == ("hinge" in name), "one pass, but for hinge, which is flat beyond its margin"


def test_beyond_the_largest_ratio_two_passes_are_made():
    ours, theirs, share = both_gradients(game("gan", "reverse_kl"), 80.0, torch.float32)
    assert share == 1
    for player, gradient in theirs.items():
        assert_close_to_largest(ours[player], gradient, name=player)


def test_what_one_backward_pass_can_serve():
    s = torch.tensor([0.0, 59.0])
    assert find_shared_scale(torch.tensor([1.0, 1e-10]), s) == (1, True)
    scale, shared = find_shared_scale(torch.tensor([1e-3, 1e-25]), s)
    assert shared
    assert math.log2(scale).is_integer()
    assert scale * 1e-25 > 1e-9
    assert not find_shared_scale(torch.tensor([1.0, 1e-30]), s)[1]
    assert not find_shared_scale(torch.tensor([1.0, 0.0]), s)[1]
    assert not find_shared_scale(torch.tensor([0.0, 0.0]), s)[1]
    assert not find_shared_scale(torch.tensor([1.0, torch.nan]), s)[1]
    assert not find_shared_scale(torch.tensor([1.0, 1.0]), 2 * s)[1]
    # Gradients below 2⁻⁶⁸, at log-ratios that one pass still serves: the scale stays finite.
    scale, shared = find_shared_scale(torch.tensor([1e-24, 1e-24]), s)
    assert shared
    assert 1e-24 * scale > 2.0**-60
    assert scale < 2.0**110


# ---------------------------------------------------------------------------------------------------------------------
# Who watches


@pytest.mark.parametrize(("momentum", "held"), [(0.0, True), (0.9, False)])
def test_the_first_step_of_sgd_with_momentum_needs_the_host(momentum, held):
    """PyTorch's fused SGD fills the buffer with what memory held, where that step is refused on the device."""
    state = new_state()
    sgd = partial(torch.optim.SGD, lr=1e-3, momentum=momentum, fused=True)
    state.generator_optimizer = sgd(state.generator.parameters())
    state.discriminator_optimizer = sgd(state.discriminator.parameters())
    assert can_guard_on_device(state) == held


class Poisoned:
    """A dataset or a prior whose `number`-th answer is not finite."""

    def __init__(self, inner, method: str, number: int) -> None:
        self.inner, self.left = inner, number

        def answer(*arguments):
            self.left -= 1
            drawn, factor = getattr(inner, method)(*arguments), 1.0 if self.left else torch.nan
            return drawn.map(lambda images: images * factor) if isinstance(drawn, Batch) else drawn * factor

        setattr(self, method, answer)


WATCHED = {
    **{"plain": game(), "tempered": game("gan", "kl", weighting=DEFAULT)},
    "five": regularized(LeCam(), Balanced(), R2(sigma=0.1, every=3), Consistency(every=2), WeightClipping(0.1)),
    **{name: regularized(kind()) for name, kind in REGULARIZERS.items()},
}


@pytest.mark.parametrize(
    ("name", "update", "steps"),
    [
        *(("five", update, steps) for update in UPDATES for steps in (1, 2)),
        *((name, "alternating", 1 + number % 2) for number, name in enumerate(WATCHED) if name != "five"),
        *((name, "simultaneous", 2 - number % 2) for number, name in enumerate(WATCHED) if name != "five"),
    ],
)
def test_the_device_watches_as_the_host_does_bit_for_bit(name, update, steps):
    losses = WATCHED[name]
    if update == "simultaneous" and losses.by_hook["penalize_features"]:
        pytest.skip("feature matching is refused with update=simultaneous")
    by_host, by_device = (new_state(regularizers=losses.regularizers) for _ in range(2))
    ours = Iteration(by_host, experiment(losses, steps=steps, update=update))
    theirs = Iteration(by_device, experiment(losses, steps=steps, update=update), guard_on_device=True)
    for _ in range(10):
        ours.play()
        theirs.play()
    assert theirs.synchronize()
    assert_same(by_host, by_device, rtol=1e-4 if update == "simultaneous" else None)
    assert by_host.images == by_device.images


@pytest.mark.parametrize(("what", "number"), [("batch", 8), ("draw", 15), ("draw", 16)])
def test_what_is_not_finite_is_never_made_and_found_at_the_next_look(what, number):
    """The 8th batch, and the 15th and the 16th latents, are those of the 8th iteration: D's, D's and G's update."""

    def poisoned() -> TrainingSetup:
        if what == "batch":
            return experiment(dataset=Poisoned(data.load("digits"), "batch", number))
        return experiment(latents=Poisoned(Latents(16), "draw", number))

    by_host = new_state()
    ours = Iteration(by_host, poisoned())
    for _ in range(7):
        ours.play()
    with pytest.raises(DivergedError, match="not finite at images = 140") as refusal:
        ours.play()
    assert by_host.images == 140

    by_device, told = new_state(), poisoned()
    theirs = Iteration(by_device, told, guard_on_device=True)
    for _ in range(20):
        theirs.play()
    assert not theirs.synchronize()
    assert by_device.images == 140
    running = {k: v for k, v in numbers(by_host).items() if "running" not in k and "num_batches" not in k}
    for key, value in running.items():
        assert torch.equal(numbers(by_device)[key], value), key
    assert all(value.isfinite().all() for value in numbers(by_device).values())

    source = told.data if what == "batch" else told.latents
    source.left = 1 if what == "batch" else number - 14  # the same answers again
    with pytest.raises(DivergedError) as repeated:
        theirs.play()
    assert str(repeated.value) == str(refusal.value)
    for key, value in running.items():
        assert torch.equal(numbers(by_device)[key], value), key


def test_weights_are_not_clipped_once_an_update_was_refused():
    """A limit that falls with the clock would clip them further in each iteration that the host has to take back."""

    def poisoned() -> TrainingSetup:
        clipped = regularized(WeightClipping(Ramp(0.1, 0.001, 400)))
        return experiment(clipped, dataset=Poisoned(data.load("digits"), "batch", 8))

    by_host, by_device = new_state(), new_state()
    ours, theirs = Iteration(by_host, poisoned()), Iteration(by_device, poisoned(), guard_on_device=True)
    for _ in range(7):
        ours.play()
    for _ in range(20):
        theirs.play()
    assert not theirs.synchronize()
    assert by_device.images == by_host.images == 140
    for left, right in zip(by_host.discriminator.parameters(), by_device.discriminator.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_ratio_that_one_pass_cannot_serve_is_played_by_the_host(steps):
    """Samples that D gives |r| > 60: the device waits, the host makes two passes, then the device goes on.

    The updates of D that were made before in that iteration leave its regularizers' averages as they found them.
    """
    losses = regularized(LeCam())
    by_host, by_device = (new_state(regularizers=losses.regularizers) for _ in range(2))
    ours = Iteration(by_host, experiment(losses, steps=steps, update="simultaneous"))
    theirs = Iteration(by_device, experiment(losses, steps=steps, update="simultaneous"), guard_on_device=True)
    for state in (by_host, by_device):
        state.discriminator[-2].layer.linear.bias.data.fill_(100.0)
    for _ in range(3):
        ours.play()
        theirs.play()
    assert not theirs.synchronize()
    assert by_device.images == 0
    for _ in range(3):
        theirs.play()
    assert_same(by_host, by_device)
    assert theirs.synchronize()
    for state in (by_host, by_device):
        state.discriminator[-2].layer.linear.bias.data.zero_()
    for _ in range(3):
        ours.play()
        theirs.play()
    assert theirs.synchronize()
    assert_same(by_host, by_device, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Forms


def count_compiled(iteration: Iteration) -> dict[str, Mock]:
    """Let an iteration be played with compiled losses; return those of them that are compiled, which count calls.

    They are traced and differentiated ahead of time, but run by eager kernels: a CPU's compiler takes minutes.
    """
    compiled = compile_losses(iteration.losses, backend="aot_eager")
    names = [name for name in ("samples", "discriminator_loss", "generator_loss") if name in vars(compiled)]
    counted = {name: Mock(wraps=getattr(compiled, name)) for name in names}
    vars(compiled).update(counted)
    step_function = partial(iteration.play_step, losses=compiled)
    iteration.choose_step_function = lambda batches: step_function
    return counted


def assert_called(counted: dict[str, Mock], update: str, *, has_penalty: bool) -> None:
    """Assert that an iteration was played by all the compiled functions that there are for it."""
    wanted = {"samples", "generator_loss"} | (set() if has_penalty else {"discriminator_loss"})
    called = {name for name, function in counted.items() if function.called}
    assert called == ({"samples"} if update == "simultaneous" else wanted)


@pytest.mark.parametrize(
    ("update", "regularizers"),
    [
        *(("alternating", (kind(),)) for kind in REGULARIZERS.values()),
        ("alternating", (LeCam(), Balanced())),
        ("alternating", (FeatureMatching(adversarial=0.5),)),
        ("simultaneous", (InstanceNoise(),)),
        ("simultaneous", (LeCam(), Balanced())),
        ("simultaneous", (R1(sigma=0.1, every=2), Consistency())),
    ],
    ids=[*REGULARIZERS, "outputs", "features", "simultaneous noise", "simultaneous outputs", "simultaneous two passes"],
)
def test_what_is_compiled_computes_what_is_written(update, regularizers):
    losses = regularized(*regularizers)
    written, compiled = (new_state(regularizers=regularizers) for _ in range(2))
    ours = Iteration(written, experiment(losses, update=update))
    theirs = Iteration(compiled, experiment(losses, update=update))
    counted = count_compiled(theirs)
    for _ in range(3):
        ours.play()
        theirs.play()
    assert_called(counted, update, has_penalty=bool(losses.by_hook["penalty"]))
    assert_same(written, compiled, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "key", "start", "end"),
    [(LeCam, "decay", 0.9, 0.2), (WeightClipping, "limit", 0.01, 0.1), (GradientPenalty, "target", 0.5, 3.0)],
)
def test_a_ramp_of_one_iteration_is_its_start_in_the_first_and_its_end_in_the_next(kind, key, start, end):
    ramp, states = Ramp(start, end, 20), []
    for values in ((ramp, ramp), (start, end)):
        states.append(new_state(regularizers=[kind()]))
        for value in values:
            Iteration(states[-1], experiment(regularized(kind(**{key: value})))).play()
    assert_same(*states, rtol=1e-5)


def test_a_step_function_is_found_for_each_choice_of_penalties(monkeypatch):
    """A CUDA graph holds one of them: with every=4 and three updates of D, none, the first, second or third has it."""
    kinds, found = [], []
    losses = regularized(R1(every=4))
    iteration = Iteration(new_state(), experiment(losses, steps=3))
    monkeypatch.setattr("gantrain.training.iteration.first_working", lambda *_: found.append(1) or kinds.append)
    for _ in range(8):
        iteration.play()
    assert len(kinds) == 8
    skipped = [tuple(() if n % 4 == 0 else ("r1",) for n in range(3 * i, 3 * i + 3)) for i in range(8)]
    assert list(iteration.step_functions) == list(dict.fromkeys(skipped))
    assert len(found) == 4
    plain = Iteration(new_state(), experiment())
    for _ in range(3):
        plain.play()
    assert list(plain.step_functions) == [()]


def test_a_scalar_that_comes_in_several_sets_has_one_mean():
    statistics = RunningMeans()
    for scalars in ({"a": 1.0, "b": 2.0}, {"a": 3.0}, {"a": 8.0}):
        statistics.add({name: torch.tensor(value) for name, value in scalars.items()})
    assert statistics.means() == {"a": 4, "b": 2}
    assert statistics.means() == {}


def test_updates_that_are_tried_are_not_counted():
    guard = FiniteGuard(torch.device("cpu"))
    guard.check(torch.tensor(True), 3)
    with guard.keep_count():
        guard.check(torch.tensor(False), 2)
    assert guard.read() == (False, 3)


AUGMENTATIONS = {
    "diffaugment": DiffAugment(),
    "signs": ADA(p=0.3, cutout=1.0, ramp_images=1000, interval=2),
    "held_out": ADA(p=0.3, measure="held_out", ramp_images=1000, interval=2),
    "fixed": ADA(p=0.3, measure="none", geometry=0.0, color=0.0),
}


@pytest.mark.parametrize("kind", AUGMENTATIONS)
@pytest.mark.parametrize(
    ("update", "regularizers"),
    [("alternating", ()), ("alternating", (R1(),)), ("simultaneous", ())],
    ids=["alternating", "alternating r1", "simultaneous"],
)
def test_augmentations_are_the_same_eager_compiled_and_watched_by_the_device(update, regularizers, kind):
    augmentation = AUGMENTATIONS[kind]
    losses = replace(regularized(*regularizers), augmentation=augmentation)
    # ADA takes seconds to compile: with D's loss, one of its kinds is.
    is_slow = update == "alternating" and not regularizers and kind in ("signs", "fixed")
    states = []
    for form in ("eager", "watched") if is_slow else ("eager", "compiled", "watched"):
        state = new_state()
        state.regularizers = create_regularizer_states([augmentation])
        iteration = Iteration(state, experiment(losses, update=update), guard_on_device=form == "watched")
        counted = count_compiled(iteration) if form == "compiled" else None
        for _ in range(6):
            iteration.play()
        assert iteration.synchronize()
        if counted is not None:
            assert_called(counted, update, has_penalty=bool(regularizers))
        states.append(state)
    for other in states[1:]:
        assert_same(states[0], other, rtol=1e-4)
    if kind in ("signs", "held_out"):
        assert float(states[0].regularizers["ada"]["p"]) != pytest.approx(0.3)


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_an_iteration_that_is_refused_leaves_the_augmentation_as_it_was(kind):
    """The device refuses the 8th iteration at G's update, after D's; the host repeats it to the same state."""
    augmentation, states = AUGMENTATIONS[kind], []
    for number in (16, None):
        latents = Latents(16) if number is None else Poisoned(Latents(16), "draw", number)
        state = new_state()
        state.regularizers = create_regularizer_states([augmentation])
        setup = experiment(replace(game(), augmentation=augmentation), latents=latents)
        iteration = Iteration(state, setup, guard_on_device=number is not None)
        for _ in range(10):
            iteration.play()
        if number is not None:
            assert not iteration.synchronize()
            assert state.images == 140
            for _ in range(3):
                iteration.play()
            assert iteration.synchronize()
        states.append({k: v for k, v in numbers(state).items() if "running" not in k and "num_batches" not in k})
    for key, value in states[1].items():
        assert torch.equal(states[0][key], value), key


def sum_pixels(x):
    """A discriminator that takes no time to trace."""
    return x.flatten(1).sum(1)


def assert_one_graph(function, *arguments):
    """Where tracing breaks off, the host would come back between kernels."""
    torch._dynamo.reset()
    explained = torch._dynamo.explain(function)(*arguments)
    assert (explained.graph_count, explained.break_reasons) == (1, [])


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_losses_with_an_augmentation_compile_into_one_graph(kind):
    augmentation, x = AUGMENTATIONS[kind], torch.rand(4, 1, 8, 8)
    held_out = x if augmentation.count_held_out(1) else None
    losses = replace(
        game(), augmentation=augmentation, states=create_regularizer_states([augmentation]), held_out=held_out
    )
    losses.game.prepare()
    assert_one_graph(losses.discriminator_loss, sum_pixels, Batch(x), x)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler needs a C++ compiler on a CPU")
def test_twenty_compiled_iterations_come_to_what_is_written():
    """With the compiler itself, dropout on: the same random numbers, fused kernels."""
    written, compiled = new_state(), new_state()
    ours, theirs = (Iteration(state, experiment()) for state in (written, compiled))
    theirs.step_functions[()] = partial(theirs.play_step, losses=compile_losses(ours.losses))
    for _ in range(20):
        ours.play()
        theirs.play()
    assert_same(written, compiled, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "weighting"),
    [*((name, OFF) for name in [*CATALOGUE, "alpha_0.3"]), ("kl", DEFAULT), ("js", Weighting(normalise=True))],
)
def test_losses_compile_into_one_graph(name, weighting):
    options = ("matched", name) if divergences.get(name).invertible else ("ratio", "gan")
    losses = game(options[1], name, InstanceNoise(), gen_objective=options[0], weighting=weighting)
    losses.game.prepare()
    x = torch.rand(4, 1, 8, 8)
    assert_one_graph(losses.discriminator_loss, sum_pixels, Batch(x), x)
    assert_one_graph(losses.generator_loss, sum_pixels, x)


def test_networks_compile_into_one_graph():
    losses, state, x = game(), new_state(), torch.rand(4, 1, 8, 8)
    assert_one_graph(losses.discriminator_loss, state.discriminator, Batch(x), x)
    assert_one_graph(losses.samples, state.generator, torch.randn(4, 16))


def test_the_compiler_gives_up_no_game_of_a_sweep():
    """By itself it compiles the same code for eight objects, and leaves the ninth uncompiled."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    for number in range(1, 10):
        before, losses = len(compiled), game(gen_div=f"alpha_{number / 20}")
        iteration = Iteration(new_state(), experiment(losses))
        iteration.step_functions[()] = partial(iteration.play_step, losses=compile_losses(losses, backend=backend))
        iteration.play()
        assert len(compiled) > before  # G's loss at least, which is another one in each


@pytest.mark.parametrize("played", [0, 2])
@pytest.mark.parametrize("keep_tensors", [False, True])
def test_trying_a_form_changes_nothing(keep_tensors, played):
    tried, untouched = new_state(), new_state()
    for state in (tried, untouched):
        for _ in range(played):
            Iteration(state, experiment()).play()
    with acceleration.restore_afterwards(tried, keep_tensors=keep_tensors):
        Iteration(tried, experiment()).play()
    tried.images = untouched.images
    for state in (tried, untouched):
        Iteration(state, experiment()).play()
    assert_same(tried, untouched)


def test_trying_a_form_keeps_no_node_of_autograd():
    """A node that accumulates gradients belongs to the stream on which it was made; a capture needs new ones."""
    state = new_state()
    parameter = next(state.generator.parameters())

    def node():
        return (1 * parameter).grad_fn.next_functions[0][0]

    with acceleration.restore_afterwards(state):
        node().metadata["seen"] = True
        assert "seen" not in node().metadata


def test_the_discriminators_parameters_are_fixed_in_the_generators_loss_alone():
    """Eager code leaves their gradients out by itself, compiled code only where no parameter requires one."""
    state, seen = new_state(), []
    *frozen, last = state.discriminator.parameters()
    last.requires_grad_(False)  # by the user
    state.discriminator.register_forward_pre_hook(
        lambda network, _: seen.append([parameter.requires_grad for parameter in network.parameters()])
    )
    Iteration(state, experiment()).play()
    trained = [True] * len(frozen) + [False]
    assert seen[-1] == [False] * len(trained), "G's step is the last"
    assert all(each == trained for each in seen[:-1])
    assert [parameter.requires_grad for parameter in state.discriminator.parameters()] == trained


class FakeCuda:
    """torch.cuda as far as a capture uses it: the current stream, and graphs whose capture fails like torch's."""

    def __init__(self, monkeypatch, fault):
        self.waited, self.mode, self.fault, self.calls = [], None, fault, 0
        self.current = self.stream = current = SimpleNamespace(wait_stream=self.waited.append)
        self.side = side = SimpleNamespace(wait_stream=lambda _: None)

        @contextmanager
        def use(stream):
            self.stream, before = stream, self.stream
            try:
                yield
            finally:
                self.stream = before

        @contextmanager
        def graph(_, *, stream, capture_error_mode):
            self.stream, self.mode = stream, capture_error_mode
            try:
                yield
            except Exception:
                raise RuntimeError("the capture was invalidated")  # noqa: B904 — as torch does
            self.stream = current

        fakes = {"device": lambda _: nullcontext(), "Stream": lambda: side, "current_stream": lambda: self.stream}
        fakes |= {"stream": use, "graph": graph, "CUDAGraph": object, "current_device": lambda: 0}
        fakes |= {"set_stream": lambda stream: setattr(self, "stream", stream)}
        generator = SimpleNamespace(device="cuda:0", graphsafe_set_state=lambda state: setattr(self, "random", state))
        fakes |= {"default_generators": [generator]}
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        fresh = SimpleNamespace(graphsafe_get_state=lambda: "fresh")
        monkeypatch.setattr(torch, "Generator", lambda device: fresh)

    def step(self, batches, losses):
        """Fail when the call with the number `fault` is made: the fourth is the capture."""
        self.calls += 1
        if self.calls == self.fault:
            raise ValueError("operation not permitted")


@pytest.mark.parametrize("fault", [2, 4], ids=["in a warm-up", "in the capture"])
def test_after_a_capture_that_failed_the_run_goes_on_in_its_own_stream(monkeypatch, fault):
    said, ours, state = [], game(), new_state()
    cuda = FakeCuda(monkeypatch, fault)
    tried = [Backend("in a graph", False, True), Backend("eager", False, False)]
    acceleration.first_working(ours, state, tried, cuda.step, [], said.append)
    assert said == ["an iteration in a graph failed; falling back to eager: ValueError: operation not permitted"]
    assert (cuda.stream, cuda.random) == (cuda.current, "fresh")
    assert cuda.side in cuda.waited, "what the warm-ups began comes before the old values are put back"
    assert cuda.mode == (None if fault == 2 else "thread_local")


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("execution", "device", "held", "names"),
    [
        ({}, CPU, False, ["eager"]),
        ({"compile": "on"}, CPU, False, ["compiled without a graph"]),
        ({}, CUDA, False, ["compiled without a graph", "eager"]),
        ({"graph": "off", "compile": "off"}, CUDA, True, ["eager"]),
        ({"graph": "on", "compile": "off"}, CUDA, True, ["eager kernels in a CUDA graph"]),
        (
            {},
            CUDA,
            True,
            ["compiled in a CUDA graph", "eager kernels in a CUDA graph", "compiled without a graph", "eager"],
        ),
    ],
)
def test_the_forms_that_are_tried(execution, device, held, names):
    assert [candidate.name for candidate in acceleration.list_backends(Execution(**execution), device, held)] == names


def test_a_form_that_does_not_work_gives_way_and_says_why():
    said, tried_already, ours, state = [], [], game(), new_state()
    tried = [Backend("in a dream", True, False), Backend("eager", False, False)]

    def play(batches, losses):
        if not tried_already:
            tried_already.append(losses)
            raise RuntimeError("no compiler here\nand more")

    form = acceleration.first_working(ours, state, tried, play, [], said.append)
    form([])
    assert len(tried_already) == 1
    tried_already.clear()
    assert said == ["an iteration in a dream failed; falling back to eager: RuntimeError: no compiler here"]
    with pytest.raises(ConfigError, match="in a dream failed: RuntimeError: no compiler here; choose"):
        acceleration.first_working(ours, state, tried[:1], play, [], said.append)


def test_a_form_that_failed_is_not_tried_again_for_the_same_kind_of_iteration(monkeypatch):
    """A penalty in every other update makes two kinds, each with a graph of its own."""
    said, tried = [], []

    def fail(losses):
        tried.append(losses)
        broken = copy.copy(losses)
        broken.samples = Mock(side_effect=RuntimeError("no compiler here"))
        return broken

    monkeypatch.setattr(acceleration, "compile_losses", fail)
    forms = [Backend("compiled", True, False), Backend("eager", False, False)]
    monkeypatch.setattr("gantrain.training.iteration.list_backends", lambda *_, **__: list(forms))
    losses = regularized(R1(1.0, every=2))
    iteration = Iteration(new_state(regularizers=losses.regularizers), experiment(losses), said.append)
    for _ in range(8):
        iteration.play()
    assert len(tried) == len(said) == 2


def tempered_game() -> Losses:
    """Return a game whose weights are tempered from the first iteration: an untrained D spreads r a little."""
    return game("gan", "kl", weighting=Weighting(normalise=True, spread=0.05))


@NEEDS_CUDA
@pytest.mark.parametrize("create_game", [game, tempered_game])
@pytest.mark.parametrize("compiled", ["off", "on"])
@pytest.mark.parametrize("update", UPDATES)
def test_captured_equals_eager(update, compiled, create_game):
    """20 iterations with dropout: bit for bit where the kernels are the same, closely where they are fused."""
    execution = {"update": update, "compile": compiled}
    dataset = data.load("digits", device="cuda")
    states = []
    for graph in ("off", "on"):
        state = new_state(device="cuda")
        told = replace(experiment(create_game(), update=update), data=dataset, latents=Latents(16, device="cuda"))
        iteration = Iteration(state, replace(told, execution=Execution(graph=graph, **execution)))
        for _ in range(20):
            iteration.play()
        assert iteration.synchronize()
        states.append(state)
    assert_same(*states, rtol=1e-3 if compiled == "on" else None)


# ---------------------------------------------------------------------------------------------------------------------
# Precision


def appendix() -> dict:
    return yaml.safe_load((CONF / "appendix.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("create_game", [game, tempered_game])
def test_bf16_rounds_convolutions_and_nothing_else(create_game):
    state = new_state(architecture("conv8"))
    seen = {}
    for name, module in [*state.discriminator.named_modules(), *state.generator.named_modules()]:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            module.register_forward_hook(lambda m, i, o, name=name: seen.setdefault(name, set()).add(o.dtype))
    iteration = Iteration(state, experiment(create_game(), precision="bf16"))
    for _ in range(2):
        iteration.play()
    last = {name for name in seen if ".layer." in name}
    assert last
    for name, dtypes in seen.items():
        assert dtypes == ({torch.float32} if name in last else {torch.bfloat16}), name
    for key, value in numbers(state).items():
        assert value.dtype == (torch.int64 if "num_batches" in key else torch.float32), key


def architecture(name: str) -> dict:
    return yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))


def first_losses(precision: str, losses: Losses) -> dict[str, float]:
    state = new_state(architecture("conv8"), regularizers=losses.regularizers)
    Iteration(state, experiment(losses, precision=precision)).play()
    return state.statistics.means()


EXACT = (R1, Consistency)  # which look at data alone, that D sees alike, outside autocast


@pytest.mark.parametrize(
    "regularizer",
    [None, R1(sigma=0.01), *(kind() for kind in REGULARIZERS.values())],
    ids=lambda one: one.name if one else "none",
)
def test_bf16_trains_on_nearly_the_same_losses_and_exactly_the_same_penalties(regularizer):
    losses = regularized(*([regularizer] if regularizer else []))
    rounded, exact = first_losses("bf16", losses), first_losses("float32", losses)
    for name in ("loss/discriminator", "loss/generator"):
        assert rounded[name] == pytest.approx(exact[name], rel=0.02), name
    if "loss/penalty" in exact:
        assert rounded["loss/penalty"] == pytest.approx(exact["loss/penalty"], rel=0.05, abs=1e-3)
    if type(regularizer) in EXACT:
        assert rounded["loss/penalty"] == pytest.approx(exact["loss/penalty"], rel=1e-6)


def test_bf16_gives_nearly_the_same_weights_of_samples():
    rounded, exact = first_losses("bf16", tempered_game()), first_losses("float32", tempered_game())
    assert exact["weights/beta"] < 0.9, "otherwise nothing is tempered"
    for name in ("loss/generator", "weights/beta", "weights/effective_order", "weights/effective_sample_size"):
        assert rounded[name] == pytest.approx(exact[name], rel=0.02), name


@pytest.mark.parametrize(("before", "after"), [("float32", "bf16"), ("bf16", "float32")])
def test_a_checkpoint_moves_between_precisions_and_forms(before, after):
    state, moved = new_state(architecture("conv8")), new_state(architecture("conv8"))
    iteration = Iteration(state, experiment(precision=before))
    for _ in range(3):
        iteration.play()
    moved.load_state_dict(state.state_dict(), state.images)
    assert_same(state, moved)
    continued = Iteration(moved, experiment(precision=after), guard_on_device=True)
    continued.play()
    assert continued.synchronize()
    iteration.play()
    assert_same(state, moved, rtol=0.5)


def test_an_optimizer_state_of_another_memory_format_is_laid_out_anew():
    """Fused kernels walk through memory: moments in another order would reach the wrong weights."""
    state, moved = new_state(architecture("conv8")), new_state(architecture("conv8"))
    Iteration(state, experiment()).play()
    saved = copy.deepcopy(state.state_dict())
    for optimizer in ("generator_optimizer", "discriminator_optimizer"):
        for values in saved[optimizer]["state"].values():
            values |= {key: value.contiguous() for key, value in values.items()}
    moved.load_state_dict(saved, state.images)
    for each in (state, moved):
        Iteration(each, experiment()).play()
    assert_same(state, moved)


@pytest.mark.parametrize(
    ("execution", "words"),
    [
        ({"precision": "tf32"}, "precision=tf32 .* CUDA"),
        ({"graph": "on"}, "graph=on needs a CUDA device"),
    ],
)
def test_what_a_device_cannot_do_is_refused(execution, words):
    with pytest.raises(ConfigError, match=words):
        check_device(Execution(**execution), CPU)
    with pytest.raises(ConfigError, match=words):
        Iteration(new_state(), experiment(**execution))


@pytest.mark.parametrize("instructions", [[], ["_is_avx512_bf16_supported"], ["_is_amx_tile_supported"]])
def test_auto_is_bf16_where_the_processor_has_instructions_for_it(instructions, monkeypatch):
    """A processor with AVX-512 alone takes bfloat16 as well, and is slower with it."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda has=name in instructions: has)
    assert choose_precision("auto", CPU) == ("bf16" if instructions else "float32")
    assert choose_precision("bf16", CPU) == "bf16"


def test_a_discriminator_that_mixes_samples_or_is_not_known_is_refused():
    mixing = {**MLP, "discriminator": [ROW | {"features": 16, "norm": "batch"}, {"op": "linear", "features": 1}]}
    with pytest.raises(ConfigError, match=r"update=simultaneous .* mixes the samples"):
        Iteration(new_state(mixing), experiment(update="simultaneous"))
    state = new_state()
    state.discriminator = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0))
    with pytest.raises(ConfigError, match="update=simultaneous"):
        Iteration(state, experiment(update="simultaneous"))
    Iteration(new_state(mixing), experiment()).play()
    with pytest.raises(ConfigError, match=r"update=simultaneous .* features"):
        Iteration(new_state(), experiment(regularized(REGULARIZERS["feature_matching"]()), update="simultaneous"))


@pytest.mark.parametrize("is_samplewise", [None, True, False])
def test_networks_that_are_no_tables_are_trained_in_float32(monkeypatch, is_samplewise):
    """Their outputs would be bfloat16."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    state = new_state()
    assert Iteration(state, experiment(precision="auto")).precision == "bf16"
    state.discriminator = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0))
    if is_samplewise is not None:
        state.discriminator.is_samplewise = is_samplewise
    assert Iteration(state, experiment(precision="auto")).precision == "float32"
    with pytest.raises(ConfigError, match=r"precision=bf16 .* architecture\.object"):
        Iteration(state, experiment(precision="bf16"))


@pytest.mark.parametrize(("update", "precision"), [*((u, "float32") for u in UPDATES), ("simultaneous", "bf16")])
def test_a_restored_state_goes_on_bit_for_bit(update, precision):
    told = experiment(update=update, precision=precision, steps=2)
    assert_goes_on(lambda: new_state(architecture("conv8")), told)
