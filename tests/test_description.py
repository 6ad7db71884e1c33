"""What a run says of its game agrees with what is known of it (THEORY, section 3)."""

import pytest

from gantrain.objectives import divergences
from gantrain.objectives.critic_objective import CriticObjective
from gantrain.objectives.critics import CRITICS, Relativistic
from gantrain.objectives.objective import Objective
from gantrain.objectives.weighting import DEFAULT, OFF, Weighting
from gantrain.regularizers.regularizers import REGULARIZERS, GradientPenalty, InstanceNoise
from gantrain.theory.description import describe_objective, describe_regularizers


def text(disc_div, gen_div, objective, **more):
    return "\n".join(
        describe_objective(Objective(divergences.get(disc_div), divergences.get(gen_div), objective, **more))
    )


@pytest.mark.parametrize("name", [name for name, d in divergences.CATALOGUE.items() if d.invertible])
def test_matched_follows_its_own_divergence(name):
    said = text("gan", name, "matched")
    assert f"Each step of G follows the gradient of {name}" in said
    assert ("Warning" in said) == (name == "neyman")


@pytest.mark.parametrize("name", ["neyman", "dual_pearson", "alpha_-1", "alpha_-0.2"])
def test_a_divergence_whose_weights_lean_on_the_worst_samples_has_a_warning(name):
    for weighting in (OFF, Weighting(normalise=True), Weighting(normalise=True, spread=0.5)):
        said = text("gan", name, "matched", weighting=weighting)
        assert "Warning: under " in said
        assert "choose gen_weights.spread=0.25, the default, or gen_div=reverse_kl" in said
    assert "farthest" not in text("gan", name, "matched", weighting=DEFAULT)
    assert "farthest" not in text("gan", name, "ratio")


@pytest.mark.parametrize("name", ["reverse_kl", "dual_kl", "alpha_0"])
@pytest.mark.parametrize("weighting", [DEFAULT, Weighting(normalise=True)])
def test_equal_weights_are_said_to_be_equal(name, weighting):
    said = text("gan", name, "matched", weighting=weighting)
    assert f"follows the gradient of {name}, under which all samples have the same weight" in said
    assert "β" not in said


@pytest.mark.parametrize("name", ["kl", "js", "pearson", "dual_reverse_kl", "alpha_0.01"])
def test_what_tempered_weights_follow_is_said(name):
    said = text("gan", name, "matched", weighting=DEFAULT)
    assert f"an f-divergence between reverse_kl (β → 0) and {name} (β = 1)" in said
    assert "0.25/sd(r)" in said
    assert "Warning" not in said
    assert "same direction" in text("gan", name, "matched", weighting=Weighting(normalise=True))


@pytest.mark.parametrize("name", [name for name, d in divergences.CATALOGUE.items() if d.invertible])
def test_the_weights_of_js_are_said_to_train_without_tempering(name):
    said = text("gan", name, "matched", weighting=DEFAULT)
    assert (f"{name} learned as well or faster with gen_weights.normalise=false" in said) == (name in ("js", "gan"))
    assert "learned" not in text("gan", name, "matched", weighting=OFF)


@pytest.mark.parametrize(
    ("gen_div", "objective"), [("softened_reverse_kl", "matched"), ("non_saturating", "ratio"), ("gan", "alternative")]
)
def test_three_ways_to_the_non_saturating_loss_follow_one_divergence(gen_div, objective):
    assert text("gan", gen_div, objective).endswith("the gradient of softened_reverse_kl")


@pytest.mark.parametrize("name", ["reverse_kl", "gan", "non_saturating", "softened_reverse_kl"])
def test_ratio_is_a_divergence_for_four_names(name):
    assert "Warning" not in text("gan", name, "ratio")


@pytest.mark.parametrize(
    "name", ["kl", "js", "squared_hellinger", "pearson", "neyman", "jeffreys", "le_cam", "total_variation"]
)
def test_ratio_warns_for_the_others(name):
    said = text("gan", name, "ratio")
    assert "Warning: with this objective p = q is " in said
    trains = divergences.get(name).invertible  # under `matched`, which is advised only then
    assert (f"gen_objective=matched follows {name} itself" in said) == trains
    assert ("take another gen_div" in said) != trains


def test_ratio_kl_is_repelled_from_equality_and_pulled_to_one_over_e():
    said = text("gan", "kl", "ratio")
    assert "u = p/q = 0.368" in said
    assert "p = q is unstable" in said


@pytest.mark.parametrize("name", CRITICS)
def test_a_critic_says_what_both_players_minimise(name):
    critic = CRITICS[name]()
    first, second, *rest = describe_objective(CriticObjective(critic))
    assert first.startswith(f"D minimises {critic.disc_formula} (critic={name}")
    assert first.endswith(f"optimal output v: {critic.optimum}")
    assert second == f"G minimises {critic.gen_formula} and follows, at that v, {critic.minimised}"
    assert ("r is not recovered" in "".join(rest)) == (critic.gives_ratio == "no")
    assert ("Bennett" in "".join(rest)) == (critic.gives_ratio == "up to a constant")


def test_the_divergence_of_g_is_described_under_a_critic_too():
    said = "\n".join(describe_objective(CriticObjective(Relativistic(pairs="all"), "kl", weighting=DEFAULT)))
    assert "critic=relativistic, pairs all" in said
    assert "G minimises E_q[−fake(r)] of kl" in said
    assert "an f-divergence between reverse_kl (β → 0) and kl (β = 1)" in said
    assert "Each step of G follows the gradient of kl" in "\n".join(
        describe_objective(CriticObjective("relativistic", "kl"))
    )


def test_a_head_without_a_ratio_says_so():
    assert "r is not recovered" in text("total_variation", "total_variation", "matched")


def test_regularizers_are_named_with_their_values():
    several = describe_regularizers([GradientPenalty(weight=2.5, target=0.0), InstanceNoise(std=0.05)])
    assert several == "Regularizers of D: gradient_penalty (weight 2.5, target 0), instance_noise (std 0.05)"
    for name, regularizer in REGULARIZERS.items():
        assert describe_regularizers([regularizer()]).startswith(f"Regularizer of D: {name} (")
    assert describe_regularizers([]) == ""
