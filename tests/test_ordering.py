"""The experiment on the ordering of divergences: its densities, gradients, numbers and tests."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from gantrain.objectives.objective import Objective
from gantrain.objectives.weighting import Weighting


@pytest.fixture
def modules(monkeypatch):
    """The modules of the example, imported as a script would."""
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1] / "examples"), *sys.path])
    return [
        importlib.import_module(name) for name in ("ordering", "ordering_learnt", "ordering_tests", "ordering_mnist")
    ]


def mixture(of, *index):
    means, log_stds, weights = of.means[index], of.log_stds[index], of.log_weights[index[-1]]
    return MixtureSameFamily(Categorical(logits=weights), Independent(Normal(means, log_stds.exp()), 1))


def trained_by_chance(problem, games):
    torch.manual_seed(0)
    q = problem.copies(games)
    with torch.no_grad():
        q.means.add_(torch.randn_like(q.means))
        q.log_stds.add_(0.3 * torch.randn_like(q.log_stds))
    return q


def test_the_ratio_is_that_of_the_densities_at_each_generators_samples(modules):
    ordering, *_ = modules
    problem = ordering.draw_problem(8, 3)
    q, z = trained_by_chance(problem, 4), [torch.randn(3, 5, 8) for _ in range(2)]
    r = ordering.log_ratio([ordering.expand(each) for each in z], q, problem.p).detach()
    q = q.detach()
    for game in range(4):
        for seed in range(3):
            x = torch.cat([q.means[game, seed, k] + q.log_stds[game, seed, k].exp() * z[k][seed] for k in range(2)])
            wanted = mixture(problem.p, seed).log_prob(x) - mixture(q, game, seed).log_prob(x)
            torch.testing.assert_close(r[seed, :, game], wanted, atol=1e-4, rtol=1e-4)


def test_a_force_is_the_gradient_of_the_objectives_loss(modules):
    ordering, *_ = modules
    torch.manual_seed(0)
    r = 3 * torch.randn(2, 50) - 2
    for game in ordering.GAMES:
        weighting = {
            "normalised": Weighting(normalise=True),
            "tempered": Weighting(normalise=True, spread=ordering.SPREAD),
        }.get(game.variant, Weighting())
        kind = "ratio" if game.variant == "ratio" else "matched"
        objective, forces = Objective("gan", game.divergence, kind, weighting=weighting), game.force(r)
        for row, force in zip(r, forces, strict=True):
            row = row.clone().requires_grad_()
            (wanted,) = torch.autograd.grad(objective.generator_loss(row)[0], row)
            torch.testing.assert_close(force, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=1e-4, msg=str(game))


def test_the_numbers_agree_with_quadrature_and_with_the_data_themselves(modules):
    ordering, *_ = modules
    problem = ordering.draw_problem(2, 2)
    q = trained_by_chance(problem, 3).detach()
    drawn, exact = ordering.measure(problem, q, 50_000), ordering.integrate(problem, q, step=0.1)
    for name in ("kl", "reverse_kl"):
        difference = torch.tensor(drawn[name]) - torch.tensor(exact[f"{name}_quadrature"])
        assert (difference.abs() < 4.5 * torch.tensor(drawn[f"{name}_error"]) + 1e-3).all()
    first = mixture(q, 1, 0).sample((50_000,))
    posterior = torch.stack(
        [
            weight + Independent(Normal(mean, std.exp()), 1).log_prob(first)
            for mean, std, weight in zip(
                problem.p.means[0], problem.p.log_stds[0], problem.p.log_weights[0], strict=True
            )
        ]
    ).softmax(0)
    wanted = torch.minimum(posterior.mean(1), problem.p.log_weights[0].exp()).sum()
    assert drawn["coverage"][1][0] == pytest.approx(float(wanted), abs=0.01)


def test_training_lowers_kl_and_the_same_gradient_gives_the_same_generator(modules):
    ordering, *_ = modules
    problem = ordering.draw_problem(2, 2)
    games = [ordering.Game("kl", "plain"), *(ordering.Game("reverse_kl", v) for v in ordering.VARIANTS)]
    q = ordering.train_exact(problem, games, steps=150)
    before = torch.tensor(ordering.integrate(problem, problem.copies(1).detach(), step=0.1)["kl_quadrature"])
    after = torch.tensor(ordering.integrate(problem, q, step=0.1)["kl_quadrature"])
    assert (after[0] < 0.7 * before[0]).all()
    for other in range(2, 5):
        torch.testing.assert_close(q.means[1], q.means[other], atol=0.02, rtol=0.02)


def test_d_learns_the_ratio_of_a_generator_that_stands_still(modules, monkeypatch):
    ordering, learnt, *_ = modules
    monkeypatch.setattr(learnt, "RATE", 0.0)
    problem = ordering.draw_problem(2, 2)
    q, discriminators = learnt.play(problem, [ordering.Game("kl", "plain")], 300)
    x = learnt.draw_samples(q, torch.Generator().manual_seed(0))
    r = discriminators(x).detach()
    for seed in range(2):
        wanted = mixture(problem.p, seed).log_prob(x[seed]) - mixture(q, 0, seed).log_prob(x[seed])
        assert torch.corrcoef(torch.stack([r[seed], wanted.clamp(-6, 6)]))[0, 1] > 0.8


def test_holms_p_values(modules):
    _, _, tests, _ = modules
    assert tests.adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_an_affine_term_is_so_much_of_a_matched_loss(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1] / "examples"), *sys.path])
    affine = importlib.import_module("affine")
    r = torch.linspace(-6, 4, 21, dtype=torch.float64)
    for game in affine.GAMES:
        both = [r.clone().requires_grad_() for _ in range(2)]
        (ours,) = torch.autograd.grad(game.divergence().f(both[0]).sum(), both[0])
        base = Objective("gan", game.base, "ratio").gen_div
        (wanted,) = torch.autograd.grad(
            (base.f(both[1]) - game.amount * {"kl": both[1].exp(), "reverse_kl": both[1]}[game.added]).sum(), both[1]
        )
        torch.testing.assert_close(ours, wanted)


def found_on_mnist(mnist, numbers):
    """What `measure_all` returns, if every run through every classifier has `numbers(game, seed)`."""
    rates = {game: 0.001 for game in mnist.GAMES if mnist.is_trained(game)}
    runs = [mnist.Run(game, rate, seed) for game, rate in rates.items() for seed in mnist.SEEDS]
    return rates, {(run, 0): numbers(run.game, run.seed) for run in runs}


def test_on_mnist_tempered_objectives_are_ordered_by_what_they_descended(modules):
    *_, mnist = modules
    orders = {name: 1.0 - place for place, name in enumerate(mnist.ORDER)}  # the registered order turned round

    def numbers(game, seed):
        recall = 0.5 + 0.01 * orders[game.gen_div] + 0.001 * seed
        share = 0.2 if game.variant == "default" else 1.0
        return {"asked_share": share, "effective_order": orders[game.gen_div], "recall": recall}

    rates, found = found_on_mnist(mnist, numbers)
    assert len(rates) == 9, "the two variants of reverse KL are one game"
    values = {name: mnist.collect(found, rates, 0, name) for name in ("recall", "asked_share", "effective_order")}
    (plain, falling), (tempered, rising) = mnist.trends(values)
    assert plain == "plain: softened_reverse_kl, reverse_kl, js, alpha_0.75, kl"
    assert falling > 0.999
    assert tempered.startswith("default: kl, alpha_0.75, js, reverse_kl,")
    assert rising < 1e-6


def test_on_mnist_a_run_that_diverged_has_no_recall(modules, tmp_path):
    *_, mnist = modules
    lost = mnist.Game("kl", "plain")

    def numbers(game, seed):
        common = {"asked_share": 1.0, "effective_order": 0.0}
        return common if game == lost and seed == 3 else common | {"recall": 0.5, "precision": 0.25}

    rates, found = found_on_mnist(mnist, numbers)
    recall = mnist.collect(found, rates, 0, "recall")
    assert recall[lost].tolist() == [0.5] * 3 + [0] + [0.5] * 6
    assert all((recall[game] == 0.5).all() for game in mnist.GAMES if game != lost)
    mnist.write_csv(tmp_path / "numbers.csv", found)
    rows = (tmp_path / "numbers.csv").read_text(encoding="utf-8").splitlines()
    assert rows[1] == "softened_reverse_kl,plain,0.001,0,0,0.5,0.25,,1,0"
    assert "kl,plain,0.001,3,0,,,,1,0" in rows
    assert len(rows) == 1 + 9 * 10
