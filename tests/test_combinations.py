"""Combinations that are refused, with the reason and a way out, and those that a run warns of."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.runs import SMALL

from gantrain.cli import main
from gantrain.config.checks import RunConfig, list_warnings, validate
from gantrain.config.combinations import check_game, check_typed_weights, warn_of_combinations
from gantrain.config.compose import compose
from gantrain.config.overrides import parse_train
from gantrain.errors import ConfigError
from gantrain.launch.build import prepare
from gantrain.networks.tables import Tables
from gantrain.objectives.critic_objective import CriticObjective
from gantrain.regularizers.regularizers import REGULARIZERS

LINEAR = "{op: linear, features: 8, activation: leaky_relu, norm: %s}"
LAST = "{op: linear, features: 1}"


def discriminator(*rows: str) -> str:
    return f"architecture.discriminator=[{','.join([*rows, LAST])}]"


SPECTRAL = discriminator(LINEAR % "spectral")
STDDEV = discriminator(LINEAR % "none", "{op: minibatch_stddev}")
MINIBATCH = discriminator(LINEAR % "none", "{op: minibatch_discrimination}")
BOTH = discriminator(LINEAR % "none", "{op: minibatch_discrimination}", "{op: minibatch_stddev}")
BATCH_NORM = discriminator(LINEAR % "batch")
NO_RATIO = ["disc_div=total_variation", "gen_div=total_variation"]


def read(*typed: str) -> RunConfig:
    return validate(compose([argument.text for argument in parse_train(typed)]), typed)


def refusal(*typed: str) -> str:
    with pytest.raises(ConfigError) as caught:
        prepare(read(*typed))
    return str(caught.value)


def warnings(*typed: str) -> list[str]:
    return list_warnings(read(*typed).settings)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["regularizer=balanced", *NO_RATIO], "regularizer=balanced needs the log-ratio"),
        (["regularizer=feature_matching", "update=simultaneous"], "choose update=alternating"),
        (["regularizer=weight_clipping", SPECTRAL], "norm: spectral has cancelled"),
        ([discriminator(LINEAR % "spectral", LINEAR % "batch")], "norm: spectral and norm: batch"),
        (["regularizer=consistency", "dataset=ring"], "dataset=ring has points"),
        *(
            ([f"regularizer={name}", rows], f"regularizer={name} takes the gradient at single samples")
            for name in ("r1", "r2", "gradient_penalty", "dragan")
            for rows in (STDDEV, MINIBATCH)
        ),
        ([STDDEV, "train.batch_size=30"], "train.batch_size=30 is not a multiple of group=4"),
        ([BOTH, "train.batch_size=30"], "train.batch_size=30 is not a multiple of group=4"),
        ([STDDEV, "gen_div=kl"], "choose gen_div=gan or gen_div=softened_reverse_kl"),
        ([STDDEV, "disc_div=pearson"], "choose gen_div=pearson, or"),
        ([STDDEV, "critic=relativistic", "gen_div=softened_reverse_kl"], "choose gen_div=own, or"),
        ([MINIBATCH, "update=simultaneous"], "minibatch layer"),
        (["regularizer=[label_smoothing,balanced]"], "regularizer=balanced is for D's estimate of log p/q"),
        (
            ["architecture.generator=[{op: linear, features: data},{op: minibatch_stddev}]"],
            "op: minibatch_stddev is for the discriminator",
        ),
        (
            ["regularizer=feature_matching", "architecture.object=package:function"],
            "needs D's last hidden layer",
        ),
    ],
)
def test_what_cannot_be_combined_is_refused_with_the_reason(typed: list[str], says: str) -> None:
    assert says in refusal(*typed)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["gen_weights.spread=1", "regularizer=feature_matching"], "or add regularizer.feature_matching.adversarial=1"),
        (["gen_weights.spread=1", "gen_div=reverse_kl"], "gen_weights.spread=1 changes nothing"),
        (["gen_weights.normalise=true", "gen_div=dual_kl"], "gen_weights.normalise=true changes nothing"),
    ],
)
def test_typed_weights_that_change_nothing_are_refused(
    typed: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", f"run_dir={tmp_path / 'run'}", *typed]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "typed",
    [
        ["gen_div=reverse_kl"],
        ["gen_div=reverse_kl", "gen_weights.normalise=false"],
        ["gen_div=kl", "gen_weights.spread=1"],
        ["regularizer=feature_matching"],
        ["gen_weights.spread=1", "regularizer=feature_matching", "regularizer.adversarial=1"],
    ],
)
def test_weights_that_act_or_are_the_default_are_accepted(typed: list[str]) -> None:
    settings = read(*typed).settings
    check_typed_weights(settings.objective, settings.regularizers, typed)


def test_a_sweep_may_have_weights_with_a_divergence_that_they_do_not_change(tmp_path: Path) -> None:
    sweep = ["-m", "gen_div=reverse_kl,kl", "gen_weights.spread=1", f"run_dir={tmp_path / 'sweep'}", *SMALL]
    assert main(["train", *sweep, "train.images=100"]) == 0


@pytest.mark.parametrize("name", REGULARIZERS)
def test_every_regularizer_goes_with_the_default_game_and_with_spectral_norm_unless_it_sets_weights(name: str) -> None:
    typed = [f"regularizer={name}"]
    assert prepare(read(*typed)).config.settings.regularizers
    if not REGULARIZERS[name].changes_scale:
        prepare(read(*typed, SPECTRAL))


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ([STDDEV], "its output is no log-ratio of single samples"),
        ([MINIBATCH], "its output is no log-ratio of single samples"),
        ([SPECTRAL], "norm: spectral bounds D's slope"),
        (["regularizer=r1", BATCH_NORM], "which batch norm in D mixes"),
        (["regularizer=lecam"], "biased towards 0"),
        (["regularizer=gradient_penalty"], "regularizer=gradient_penalty prescribes D's slope"),
        (["regularizer=weight_clipping"], "optimizer=rmsprop"),
        (
            ["regularizer=weight_clipping", "optimizer=rmsprop", "optimizer.discriminator.name=Adam"],
            "optimizer=rmsprop",
        ),
        (["regularizer=feature_matching"], "takes the place of G's loss"),
        (["regularizer=label_smoothing", "gen_div=kl"], "s = 0.1, which G's loss is of"),
        (["critic=relativistic", "regularizer=gradient_penalty"], "prescribes D's slope"),
        (["critic=donsker_varadhan", "regularizer=dragan"], "prescribes D's slope"),
        (["critic=wasserstein", "regularizer=r1"], "estimate/wasserstein is no distance"),
        (["critic=wasserstein", "regularizer=[gradient_penalty,r2]"], "regularizer=r2 pulls D's slope towards 0"),
        (["critic=wasserstein", "regularizer=instance_noise"], "D's loss has no minimum"),
        (["critic=wasserstein", "regularizer=feature_matching"], "D's loss has no minimum"),
        (["regularizer=dragan", "regularizer.target=2", SPECTRAL], "asks for a slope of 2"),
    ],
)
def test_what_changes_the_meaning_of_numbers_is_said(typed: list[str], says: str) -> None:
    assert any(says in warning for warning in warnings(*typed))


@pytest.mark.parametrize(
    "typed",
    [
        [],
        ["regularizer=r1"],
        ["regularizer=[r1,r2,instance_noise]"],
        ["regularizer=gradient_penalty", "regularizer.target=0"],
        ["regularizer=gradient_penalty", *NO_RATIO],
        [SPECTRAL, *NO_RATIO],
        ["critic=wasserstein", "regularizer=gradient_penalty"],
        ["critic=wasserstein", "regularizer=lecam"],
        ["critic=wasserstein", SPECTRAL],
        ["critic=hinge", SPECTRAL],
        ["critic=relativistic", "regularizer=[r1,r2]"],
        ["critic=relativistic", "regularizer=gradient_penalty", "regularizer.target=0"],
    ],
)
def test_nothing_is_said_of_what_goes_together(typed: list[str]) -> None:
    assert warnings(*typed) == []


@pytest.mark.parametrize("critic", ["relativistic", "relativistic_average", "donsker_varadhan"])
def test_a_game_with_a_free_level_has_nothing_to_pull_to(critic: str) -> None:
    game = CriticObjective(critic)
    for name in ("lecam", "balanced"):
        with pytest.raises(ConfigError, match=rf"regularizer={name} needs the l"):
            check_game(game, REGULARIZERS[name](), "alternating")
    for other in ("r1", "r2", "gradient_penalty", "instance_noise", "consistency"):
        check_game(game, REGULARIZERS[other](), "alternating")


def test_lecam_is_for_wasserstein_too() -> None:
    """The critic of its paper's analysis, where the penalty itself fixes the level (Tseng et al. 2021)."""
    check_game(CriticObjective("wasserstein"), REGULARIZERS["lecam"](), "alternating")


def test_a_game_without_a_ratio_is_told_nothing_about_one() -> None:
    game = CriticObjective("wasserstein")
    regularizers = [REGULARIZERS[name]() for name in ("gradient_penalty", "weight_clipping", "lecam")]
    assert list(warn_of_combinations(game, regularizers, Tables(), {"lr": 5e-5})) == []
