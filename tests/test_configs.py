"""Every option of every group composes as the command line would compose it, and nothing else does."""

from __future__ import annotations

import dataclasses
import math
import re
import runpy
import shlex
import subprocess
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf
from torch import nn

from gantrain import networks
from gantrain.augmentation.augmentations import ADA, AUGMENTATIONS, MEASURES
from gantrain.commands import evaluate, sample, train, verify
from gantrain.config.checks import (
    RunConfig,
    Settings,
    collect_regularizers,
    list_warnings,
    normalise_tree,
    parse_document,
    validate,
)
from gantrain.config.combinations import warn_of_unusual_loss
from gantrain.config.compose import compose, composition_errors, create_composer, expand_choice
from gantrain.config.groups import CONF, DIVERGENCE_GROUPS, FASTER_ARCHITECTURES, GROUPS, options
from gantrain.config.messages import config_error
from gantrain.config.overrides import parse, parse_into, parse_train
from gantrain.config.schema import Config
from gantrain.data import DATASETS, DENSITIES, IMAGES, POINT_MASSES, DatasetSettings
from gantrain.errors import ConfigError
from gantrain.launch.build import build_schedule, count_multiply_adds, prepare
from gantrain.launch.run import describe_pace
from gantrain.objectives.critic_objective import OWN, CriticObjective
from gantrain.objectives.critics import CRITICS, F_DIVERGENCE
from gantrain.objectives.divergences import CATALOGUE, PATTERNS
from gantrain.objectives.heads import HEADS
from gantrain.objectives.objective import GENERATOR_OBJECTIVES, Objective
from gantrain.objectives.weighting import DEFAULT, OFF
from gantrain.ranges import Choice, Numbers
from gantrain.regularizers.regularizers import R1, REGULARIZERS, InstanceNoise
from gantrain.schedules import Ramp
from gantrain.training.optimizers import PLAYERS, create_factories
from gantrain.training.setup import Schedule

Answer = Any

PATTERNED = ["alpha_0.3", "alpha_-1", "dual_kl", "dual_alpha_0.3"]
NATURAL_ARCHITECTURE = {
    "celeba": "dcgan64",
    "cifar10": "appendix",
    "cifar100": "appendix",
    "digits": "mlp_digits",
    "dirac": "dirac",
    "fashion_mnist": "dcgan28",
    "folder": "appendix",
    "array": "appendix",
    "grid25": "mlp",
    "mixture1d": "affine",
    "mnist": "dcgan28",
    "ring": "mlp",
    "stacked_mnist": "dcgan28",
    "stl10": "dcgan48",
    "svhn": "appendix",
}
FITTING_DATASET = {name: dataset for dataset, name in NATURAL_ARCHITECTURE.items()} | {
    "conv8": "digits",
    "dcgan32": "cifar10",
    "resnet32": "cifar10",
}
SGD = {"name": "SGD", "lr": 0.01, "momentum": 0.0}
CPU = torch.device("cpu")
METHODS = ("ttur",)  # files that are called by a method, not by what they choose
YAML = sorted(CONF.rglob("*.yaml"))


def config(*overrides: str) -> RunConfig:
    """What `gantrain train` makes of these arguments."""
    typed = [argument.text for argument in parse_train(overrides)]
    return validate(compose(typed), typed)


@cache
def settings(*overrides: str) -> Settings:
    """The settings among it, of which no test changes any."""
    return config(*overrides).settings


@cache
def plain_tree() -> DictConfig:
    """The config without any override."""
    return compose([])


def settings_with(*overrides: str) -> Settings:
    """The same as `settings`, quickly: the values are put into a config that has been composed already."""
    tree = deepcopy(plain_tree())
    with composition_errors():
        for argument in parse(argument.text for argument in parse_train(overrides)):
            OmegaConf.update(tree, argument.key, argument.override.value())
    return validate(tree, overrides).settings


def settings_from(folder: Path, *overrides: str) -> Settings:
    """The same with --config-dir."""
    arguments = parse_train(overrides)
    with create_composer(arguments, folder) as composer:
        tree = composer.compose([argument.text for argument in arguments]).tree
    return validate(tree, overrides).settings


def name_of(section: Any) -> str:
    """The name that a section begins with."""
    if not isinstance(section, dict):
        return section.name
    return section["name"] if "name" in section else next(iter(section), "none")


def chosen(group: str, option: str) -> list[str]:
    """The arguments that choose an option, with what it cannot do without."""
    return [f"{group}={option}", *(["dataset.path=images"] if option in ("folder", "array") else [])]


def refusal(*overrides: str, read: Callable[..., Settings] = settings) -> str:
    """The message that refuses these arguments."""
    with pytest.raises(ConfigError) as caught:
        read(*overrides)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    assert "Traceback" not in message
    return message


def choices(message: str) -> list[str]:
    """The choices that a refusal lists."""
    return message.partition("choices: ")[2].partition("\n")[0].split(", ")


def sample_shape(composed: Settings) -> tuple[int, ...]:
    """The shape of the dataset's samples; of a folder's, in colour."""
    return DatasetSettings(composed.dataset.name, size=composed.dataset.size).shapes[0]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def fields(schema: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Every key of the schema that holds a value, dotted, with its field."""
    for item in dataclasses.fields(schema):
        if dataclasses.is_dataclass(item.default_factory):
            yield from fields(item.default_factory, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, item


NUMBERS = {key: item for key, item in fields(Config) if isinstance(item.metadata.get("accepted"), Numbers)}
WHOLE = [key for key, item in NUMBERS.items() if "int" in item.type or item.metadata["accepted"].whole]
CHOICES = {
    key: item.metadata["accepted"].options
    for key, item in fields(Config)
    if isinstance(item.metadata.get("accepted"), Choice)
}


# ---------------------------------------------------------------------------------------------------------------------
# Every option


@pytest.mark.parametrize(
    ("group", "option"),
    [(group, name) for group in GROUPS if group not in (*DIVERGENCE_GROUPS, "experiment") for name in options(group)],
)
def test_every_option_composes(group: str, option: str) -> None:
    composed = settings(*chosen(group, option))
    assert option in METHODS or option.startswith(name_of(getattr(composed, group)).lower())


@pytest.mark.parametrize("name", [*CATALOGUE, *PATTERNED])
def test_every_divergence_trains_the_discriminator_and_the_generator(name: str) -> None:
    """The one with a bounded head trains G on itself alone, and a step as f' trains G through f alone."""
    step = name == "total_variation"
    as_disc = settings(f"disc_div={name}", *([f"gen_div={name}"] if step else [])).objective
    as_gen = settings(f"gen_div={name}", *(["gen_objective=ratio"] if step else [])).objective
    assert as_disc.disc_div.name == as_gen.gen_div.name == name


@pytest.mark.parametrize("name", ["kl", "dual_alpha_0.3"])
def test_the_names_of_divergences_are_values_too(name: str) -> None:
    """`gen_div.name=` and the group's option mean the same."""
    assert settings(f"gen_div.name={name}") == settings(f"gen_div={name}")


def test_the_files_are_what_the_code_knows() -> None:
    assert options("dataset") == sorted(DATASETS)
    assert options("regularizer") == sorted([*REGULARIZERS, "none"])
    assert options("augment") == sorted([*AUGMENTATIONS, "none"])
    assert options("disc_div") == options("gen_div") == [*CATALOGUE, *PATTERNS, OWN]
    assert options("critic") == sorted([*CRITICS, F_DIVERGENCE])
    assert set(NATURAL_ARCHITECTURE) == set(DATASETS)
    assert set(FITTING_DATASET) == set(options("architecture"))


@pytest.mark.parametrize("path", YAML, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_files_hold_data_alone(path: Path) -> None:
    """No file of ours names code, and each says in its first lines what it is."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"_target_|package:function|!!python|object:", text)
    assert re.match(r"(# @package _global_\n)?# \S", text)
    named = yaml.safe_load(text)
    named = named.get("dataset", named) if path.parent.name == "dataset" else named
    is_composed = path.parent.name in ("conf", "experiment") or path.stem in METHODS
    assert is_composed or path.stem.startswith(named.get("name", path.stem).lower())


@pytest.mark.parametrize("name", options("architecture"))
def test_every_architecture_builds_for_a_dataset_it_fits(name: str) -> None:
    composed = settings(f"dataset={FITTING_DATASET[name]}", f"architecture={name}")
    shape, latent = sample_shape(composed), composed.latent.size
    generator, discriminator = networks.build(composed.architecture, shape, latent)
    samples = generator(torch.randn(2, latent))
    assert samples.shape == (2, *shape)
    assert discriminator(samples).shape == (2,)


@pytest.mark.parametrize("larger", FASTER_ARCHITECTURES)
def test_a_slow_run_on_a_cpu_names_an_architecture_that_computes_less(larger: str) -> None:
    smaller = FASTER_ARCHITECTURES[larger]
    slow, fast = (settings(f"dataset={FITTING_DATASET[larger]}", f"architecture={name}") for name in (larger, smaller))
    costs = [count_multiply_adds(each, sample_shape(each)) for each in (slow, fast)]
    assert costs[0] > 2 * costs[1]
    said = [describe_pace(each, Schedule(images=10**6, batch_size=100), CPU, 100, 1.0) for each in (slow, fast)]
    assert [f"architecture={smaller}" in each for each in said] == [True, False]


@pytest.mark.parametrize(("precision", "slower_with"), [("float32", True), ("bf16", False), ("auto", None)])
def test_a_slow_run_on_a_cpu_names_the_precision_that_is_faster_there(
    precision: str, slower_with: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(f"precision={precision}")
    for has_instructions in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has_instructions: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        said = describe_pace(chosen, Schedule(images=10**6, batch_size=100), CPU, 100, 1.0)
        assert ("faster: precision=auto" in said) == (has_instructions == slower_with)


@pytest.mark.parametrize("name", options("regularizer"))
def test_every_regularizer_takes_its_files_values(name: str) -> None:
    written = yaml.safe_load((CONF / "regularizer" / f"{name}.yaml").read_text())
    built = settings("dataset=ring", f"regularizer={name}").regularizers
    for each in written.values():  # the weight of R1 and R2 is the dataset's
        each.update({key: 10.0 for key, value in each.items() if value == "${dataset.r1_weight}"})
    assert {one.name: dataclasses.asdict(one) for one in built} == written
    assert [type(one) for one in built] == [REGULARIZERS[name] for name in written]


@pytest.mark.parametrize("name", CRITICS)
def test_every_critic_takes_its_files_values_and_brings_its_own_losses(name: str) -> None:
    written = yaml.safe_load((CONF / "critic" / f"{name}.yaml").read_text())["critic"]
    game = settings(f"critic={name}").objective
    assert isinstance(game, CriticObjective)
    assert game.critic == CRITICS[name]()
    assert {"name": name, **dataclasses.asdict(game.critic)} == written
    assert game.gen_div is None
    for experiment in ("dirac", "paper"):
        message = refusal(f"critic={name}", f"experiment={experiment}")
        assert f"disc_div=gan trains D with critic=f_divergence alone, and critic={name}" in message
        assert settings(
            f"critic={name}", f"experiment={experiment}", "disc_div=own", "gen_div=own", *MATCHED[experiment]
        )


MATCHED = {"dirac": [], "paper": ["gen_objective=matched"]}


def test_the_default_critic_keeps_divergence_and_head() -> None:
    assert settings("critic=f_divergence") == settings()
    game = settings("critic=f_divergence", "gen_div=own", "disc_div=kl", "head=nowozin").objective
    assert isinstance(game, Objective)
    assert (game.disc_div.name, game.gen_div.name, game.head.name) == ("kl", "kl", "nowozin")


def test_a_critic_with_a_ratio_takes_any_divergence_and_its_weights() -> None:
    for typed in (["critic=relativistic"], ["critic=donsker_varadhan"], ["critic=least_squares", "critic.squash=true"]):
        for name in ("kl", "total_variation", "arimoto_2"):
            objective = "ratio" if name == "total_variation" else "matched"
            game = settings(*typed, f"gen_div={name}", f"gen_objective={objective}").objective
            assert game.gen_div is not None
            assert game.gen_div.name == name
            assert game.weighting == (DEFAULT if objective == "matched" else OFF)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["critic=hinge", "gen_div=kl"], "critic=hinge does not give; choose gen_div=own"),
        (["critic=least_squares", "gen_div=kl"], "critic.squash=true"),
        (["critic=wasserstein", "gen_weights.spread=0.5"], "gen_weights rescales"),
        (["critic=relativistic", "gen_weights.normalise=true"], "not here: gen_div=own"),
        (["critic=wasserstein", "gen_objective=ratio"], "gen_objective=ratio is a loss that a divergence gives"),
        (["critic=hinge", "disc_div=kl"], "choose disc_div=own, or leave critic out"),
        (["critic=hinge", "head=nowozin"], "head=nowozin reads the output of critic=f_divergence"),
        (["critic=relativistic", "regularizer=label_smoothing"], "label_smoothing counts a share"),
        (["critic=relativistic", "gen_div.affine=1"], "gen_div.affine=1 changes a divergence"),
        (["critic=relativistic", "gen_div=total_variation"], "choose gen_objective=ratio"),
        (["critic=relativistic", "critic.pairs=two"], "critic.pairs=two is not one of the choices"),
        (["critic=relativistic", "critic.pair=all"], "critic=relativistic has no key pair; did you mean pairs?"),
        (["critic=hinge", "critic.pairs=all"], "critic=hinge has no key pairs"),
        (["critic.pairs=all"], "critic=f_divergence has no key pairs"),
        (["critic=least_squares", "critic.a=1"], "critic.c=1 is the output that G wants"),
        (["critic=least_squares", "critic.c=low"], "critic.c=low must be a number"),
        (["critic=least_squares", "critic.squash=2"], "critic.squash=2 must be true or false"),
        (["critic.name=hinge"], "choose it whole: critic=…"),
        (["critic=hing"], "did you mean hinge?"),
        (["disc_div=own"], "choose a divergence, as in disc_div=gan"),
    ],
)
def test_what_a_critic_cannot_do_is_refused_with_a_way_out(typed: list[str], says: str) -> None:
    assert says in refusal(*typed)


def test_a_stored_config_without_a_critic_has_the_default_one() -> None:
    stored = validate(compose(["gen_div=kl"]), []).document
    del stored["critic"]
    assert parse_document(stored) == settings("gen_div=kl")
    assert normalise_tree(OmegaConf.create(stored)).critic == {"name": F_DIVERGENCE}


@pytest.mark.parametrize("name", options("augment"))
def test_every_augmentation_takes_its_files_values_which_are_its_defaults(name: str) -> None:
    written = yaml.safe_load((CONF / "augment" / f"{name}.yaml").read_text())
    built = settings(f"augment={name}").augmentation
    assert built == (AUGMENTATIONS[name]() if written else None)
    assert written == ({"name": name} | dataclasses.asdict(built) if built else {})


@pytest.mark.parametrize("measure", MEASURES)
def test_an_augmentation_has_its_keys_under_its_section(measure: str) -> None:
    built = settings("augment=ada", f"augment.measure={measure}", "augment.p=0.25", "augment.interval=8").augmentation
    assert built == ADA(p=0.25, measure=measure, interval=8)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["augment.p=0.5"], "choose one, as in augment=ada"),
        (["augment=ada", "augment.pp=0.5"], "no key pp; did you mean p"),
        (["augment=diffaugment", "augment.measure=signs"], "no key measure"),
        (["augment=ada", "augment.measure=sign"], "did you mean signs"),
        (["augment=ada", "augment.interval=1.5"], "augment.interval=1.5 must be a whole number"),
        (["augment=ada", "augment.interval=1e20"], "must be at least 1 and at most 1,000,000"),
        (["augment=ada", "augment.p=0.9"], "begins above augment.max_p=0.8"),
        (["augment=ada", "augment.p={from: 0, to: 0.5, images: 100}"], "needs augment.measure=none"),
        (["augment=diffaugment", "augment.p={from: 0, to: 2, images: 100}"], "augment.p.to=2 must be"),
        (
            ["augment=ada", "augment.max_p={from: 0, to: 1, images: 100}"],
            "augment.max_p cannot follow a schedule",
        ),
        (["augment.name=adda"], "did you mean ada"),
        (["augment.name=[ada]"], "did you mean ada"),
        *(
            (["augment=ada", f"augment.blit={value}"], f"augment.blit={value}")
            for value in ("-1", "1.5", "nan", "True")
        ),
    ],
)
def test_what_an_augmentation_cannot_take_is_refused(typed: list[str], says: str) -> None:
    assert says in refusal(*typed)


@pytest.mark.parametrize("dataset", ["ring", "dirac"])
def test_points_are_not_augmented(dataset: str) -> None:
    with pytest.raises(ConfigError, match="augment=diffaugment moves and recolours images, and these data are points"):
        prepare(config(f"dataset={dataset}", "augment=diffaugment"))


def test_held_out_data_need_to_be_there_and_a_discriminator_without_batch_norm() -> None:
    held_out = ["augment=ada", "augment.measure=held_out"]
    rows = "[{op: linear, features: 8, norm: batch, activation: relu}, {op: linear, features: 1}]"
    prepare(config(*held_out))
    with pytest.raises(ConfigError, match="none are held out"):
        prepare(config(*held_out, "dataset.held_out=0"))
    with pytest.raises(ConfigError, match="batch norm"):
        prepare(config(*held_out, f"architecture.discriminator={rows}"))


@pytest.mark.parametrize("name", options("optimizer"))
def test_every_optimizer_takes_its_files_values(name: str) -> None:
    written = yaml.safe_load((CONF / "optimizer" / f"{name}.yaml").read_text())
    for player, build in create_factories(settings(f"optimizer={name}").optimizers, CPU).items():
        optimizer, own = build(nn.Linear(2, 1)), written | written.get(player, {})
        assert type(optimizer).__name__ == own["name"]
        for key in own.keys() - {"name", *PLAYERS}:
            first = own[key]["from"] if isinstance(own[key], dict) else own[key]  # of a schedule
            assert np.array_equal(optimizer.defaults[key], first)


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_brings_its_network_unless_one_is_chosen(name: str) -> None:
    typed = chosen("dataset", name)
    assert settings(*typed).architecture["name"] == NATURAL_ARCHITECTURE[name]
    composed = settings("architecture=conv8", *typed)
    assert (composed.architecture["name"], composed.dataset.name) == ("conv8", name)


@pytest.mark.parametrize("name", DATASETS)
def test_a_chosen_optimizer_keeps_the_rate_of_its_file(name: str) -> None:
    """What a dataset finds natural never reaches into a part that was chosen on the command line."""
    assert settings(*chosen("dataset", name), "optimizer=sgd").optimizer == SGD


@pytest.mark.parametrize("name", IMAGES)
def test_the_files_repeat_what_is_natural_for_a_dataset(name: str) -> None:
    dataset = settings(*chosen("dataset", name)).dataset
    assert (dataset.size, dataset.flip) == (IMAGES[name].size, IMAGES[name].flip)


@pytest.mark.parametrize("name", [*DENSITIES, *POINT_MASSES])
def test_a_densitys_latents_have_its_dimension(name: str) -> None:
    composed = settings(f"dataset={name}")
    assert (composed.latent.size,) == sample_shape(composed)
    assert settings(f"dataset={name}", "latent.size=5").latent.size == 5


# ---------------------------------------------------------------------------------------------------------------------
# Order of strength: command line, experiment, dataset, defaults


def test_the_paper_experiment_and_what_beats_it() -> None:
    plain, paper = settings(), settings("experiment=paper")
    assert (plain.gen_objective, plain.dataset.name) == ("matched", "digits")
    assert (paper.gen_objective, paper.dataset.name) == ("ratio", "cifar10")
    assert (paper.disc_div.name, paper.gen_div.name) == ("gan", "non_saturating")
    assert (paper.architecture["name"], paper.optimizer["name"]) == ("appendix", "Adam")
    assert settings("experiment=paper", "dataset=digits").optimizer == paper.optimizer
    typed = settings(
        *("experiment=paper", "gen_objective=matched", "gen_div=kl", "dataset=digits", "dataset.flip=true"),
        *("architecture=conv8", "optimizer=sgd", "optimizer.lr=0.5", "train.batch_size=7"),
    )
    assert (typed.gen_objective, typed.gen_div.name, typed.dataset.name) == ("matched", "kl", "digits")
    assert (typed.dataset.flip, typed.architecture["name"]) == (True, "conv8")
    assert (typed.optimizer["name"], typed.optimizer["lr"], typed.train.batch_size) == ("SGD", 0.5, 7)


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_is_a_game_that_can_train(name: str) -> None:
    composed = settings(f"experiment={name}")
    networks.describe(composed.architecture, sample_shape(composed), composed.latent.size)


def test_an_experiment_of_the_users_own_beats_the_dataset_and_not_the_command_line(tmp_path: Path) -> None:
    write(
        tmp_path / "experiment/mine.yaml",
        "# @package _global_\n"
        "defaults:\n  - override /dataset: cifar10\n  - override /architecture: dcgan32\n"
        "dataset: {flip: false}\nlatent: {size: 17}\n",
    )
    mine = settings_from(tmp_path, "experiment=mine")
    assert (mine.dataset.name, mine.architecture["name"]) == ("cifar10", "dcgan32")
    assert (mine.dataset.flip, mine.dataset.size, mine.latent.size) == (False, 32, 17)
    typed = settings_from(tmp_path, "experiment=mine", "architecture=resnet32", "latent.size=3", "dataset=ring")
    assert (typed.dataset.name, typed.architecture["name"]) == ("ring", "resnet32")
    assert typed.latent.size == 3


def test_an_experiment_that_chooses_a_dataset_alone_gets_the_datasets_network(tmp_path: Path) -> None:
    write(tmp_path / "experiment/mine.yaml", "# @package _global_\ndefaults:\n  - override /dataset: ring\n")
    mine = settings_from(tmp_path, "experiment=mine")
    assert (mine.dataset.name, mine.architecture["name"], mine.latent.size) == ("ring", "mlp", 2)


def test_yaml_of_the_users_own_adds_options_to_any_group(tmp_path: Path) -> None:
    write(tmp_path / "dataset/cats.yaml", "# @package _global_\ndataset: {name: folder, path: cats, size: 8}\n")
    table = yaml.safe_load((CONF / "architecture" / "conv8.yaml").read_text())
    write(tmp_path / "architecture/wide.yaml", yaml.safe_dump(table | {"name": "wide"}))
    write(tmp_path / "optimizer/lion.yaml", "name: AdamW\nlr: 0.5\nweight_decay: 0.25\n")
    composed = settings_from(tmp_path, "dataset=cats", "architecture=wide", "optimizer=lion")
    assert (composed.dataset.path, composed.architecture["name"]) == ("cats", "wide")
    assert composed.optimizer == {"name": "AdamW", "lr": 0.5, "weight_decay": 0.25}
    with pytest.raises(ConfigError, match=r"dataset=cat is not one of the choices; did you mean cats\?"):
        settings_from(tmp_path, "dataset=cat")


def test_config_dir_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "o'brien\\s a,b=c [x]{y} ü"
    write(folder / "experiment/mine.yaml", "# @package _global_\nseed: 7\n")
    assert settings_from(folder, "experiment=mine").seed == 7


def test_typed_images_take_the_place_of_a_files_epochs(gantrain: Callable[..., Answer], tmp_path: Path) -> None:
    write(tmp_path / "experiment/mine.yaml", "# @package _global_\ntrain: {epochs: 2}\n")
    assert settings_from(tmp_path, "experiment=mine").train.epochs == 2
    typed = ["experiment=mine", "train.images=500"]
    assert settings_from(tmp_path, *typed).train.epochs is None
    shown = yaml.safe_load(gantrain("train", "--config-dir", tmp_path, *typed, "--cfg", "job").out)
    assert (shown["train"]["images"], shown["train"]["epochs"]) == (500, None)
    assert settings_from(tmp_path, *typed, "dataset=ring").train.images == 500  # which has no epochs


def test_an_unknown_key_in_a_file_is_refused_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "experiment/mine.yaml", "# @package _global_\ntrain: {imges: 5}\n")
    with pytest.raises(ConfigError, match=r"no key train\.imges; did you mean train\.images\?"):
        settings_from(tmp_path, "experiment=mine")
    write(tmp_path / "experiment/mine.yaml", "# @package _global_\nheda: ratio\n")
    with pytest.raises(ConfigError, match=r"no key heda; did you mean head\?"):
        settings_from(tmp_path, "experiment=mine")


def test_a_whole_number_with_an_exponent_in_a_file_is_refused_with_its_digits(tmp_path: Path) -> None:
    write(tmp_path / "experiment/mine.yaml", "# @package _global_\ntrain: {images: 2e6}\n")
    with pytest.raises(ConfigError, match=r"train\.images=2000000\.0 must be a whole number .*: 2000000$"):
        settings_from(tmp_path, "experiment=mine")


# ---------------------------------------------------------------------------------------------------------------------
# Keys


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("batch_sze", "train.batch_size"),
        ("sed", "seed"),
        ("gen_dv", "gen_div"),
        ("trian.images", "train.images"),
        ("train.imgaes", "train.images"),
        ("train.images.more", "train.images"),
        ("seed.more", "seed"),
        ("gen_div.afine", "gen_div.affine"),
        ("dataset.pth", "dataset.path"),
        ("latent.dim.size", "latent.size"),
        ("regularizers.weight", "regularizer"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest(key: str, nearest: str) -> None:
    for typed in (f"{key}=1", f"+{key}=1", f"++{key}=1", f"~{key}"):
        message = refusal(typed)
        assert message.startswith(f"there is no key {key}; did you mean ")
        assert nearest in message


@pytest.mark.parametrize("typed", ["train={images: 5, stpes: 3}", "latent={sise: 3}"])
def test_unknown_keys_inside_a_value_are_refused(typed: str) -> None:
    assert re.search(r"no key (train\.stpes|latent\.sise)", refusal(typed))


def test_plus_signs_change_nothing() -> None:
    typed = ["seed=3", "train.images=500", "gen_div=kl", "optimizer.lr=0.5", "optimizer.weight_decay=0.1"]
    for prefix in ("+", "++"):
        assert settings(*[prefix + text for text in typed]) == settings(*typed)


@pytest.mark.parametrize("typed", ["experiment=null", "~experiment", "experiment=[]"])
def test_no_experiment_is_a_choice(typed: str) -> None:
    assert settings(typed) == settings()


def test_whole_numbers_may_be_written_with_an_exponent() -> None:
    assert settings("train.images=1e6", "optimizer.betas=[0,0.9]").train.images == 1_000_000
    assert settings("dataset.size=2.8e1", "devices=2.0", "seed=9007199254740993").seed == 9007199254740993
    regularizer = settings("regularizer=r1", "regularizer.every=1.6e1").regularizers[0]
    assert isinstance(regularizer.every, int)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("1e6", "1000000"),
        ("1e2,2E2,300", "100,200,300"),
        ("choice(1e2,2.0e2)", "choice(100,200)"),
        ("range(1e2,step=1e1,stop=4e2)", "range(100,step=10,stop=400)"),
    ],
)
def test_one_number_or_several_may_be_written_with_an_exponent(typed: str, meant: str) -> None:
    assert parse_train([f"+train.images={typed}"])[0].text == f"train.images={meant}"


@pytest.mark.parametrize(
    ("command", "typed"),
    [(evaluate, "count=1e3"), (sample, "count=1e2"), (verify, "images=1e3"), (evaluate, "train_classifier.width=1e2")],
)
def test_every_command_takes_whole_numbers_with_an_exponent(command: ModuleType, typed: str) -> None:
    key, _, value = typed.partition("=")
    assert attrgetter(key)(parse_into(command.Options, [typed])) == float(value)
    with pytest.raises(ConfigError, match=f"{key}=1.5 must be a whole number"):
        parse_into(command.Options, [f"{key}=1.5"])


@pytest.mark.parametrize(
    "value", ["2026_12_01", "1e6", "1.50", "true", "Inf", "5", "runs/1_0", "my 1_0 runs", "~/1_0[2]"]
)
def test_text_stays_text_where_it_looks_like_a_number(value: str) -> None:
    assert settings_with(f"run_dir={value}").run_dir == value


def test_listed_text_stays_text_where_it_looks_like_a_number() -> None:
    (listed,) = parse_train(["dataset.label=a,1_0,1e6"])
    assert [settings_with(each).dataset.label for each in expand_choice(listed)] == ["a", "1_0", "1e6"]


@pytest.mark.parametrize("value", ['a"b', "it's", "$HOME'", "'$(date)`id`\\", "[!a]'\"$"])
def test_the_advice_for_a_value_with_quotes_survives_the_shell(value: str) -> None:
    with pytest.raises(ConfigError, match="quote it twice") as caught:
        parse_train([f"run_dir={value}"])
    typed = subprocess.run(
        ["bash", "-c", f"printf %s {str(caught.value).splitlines()[1]}"], capture_output=True, text=True
    )
    assert parse_train([typed.stdout])[0].override.value() == value


def test_the_advice_for_a_pattern_survives_the_shell() -> None:
    with pytest.raises(ConfigError, match="pattern with brackets") as caught:
        parse_train(["gen_div=glob([ab]$x'*)"])
    [typed] = shlex.split(str(caught.value).partition("as in ")[2])
    assert parse_train([typed])[0].override.value().include == ["[ab]$x'*"]


@pytest.mark.parametrize("group", ["dataset", "architecture", "disc_div", "gen_div", "optimizer", "regularizer"])
@pytest.mark.parametrize("typed", ["~{}", "{}=null", "{}=5", "{}="])
def test_a_group_holds_one_of_its_options(group: str, typed: str) -> None:
    with pytest.raises(ConfigError, match=group):
        create_factories(settings(typed.format(group)).optimizers, CPU)


def test_a_key_of_an_open_section_can_be_taken_out() -> None:
    assert "momentum" not in settings("optimizer=sgd", "~optimizer.momentum").optimizer


def test_open_sections_take_the_keys_that_fit_their_name() -> None:
    composed = settings(
        "dataset=svhn", "optimizer.weight_decay=0.1", "optimizer.discriminator.lr=0.5", "optimizer.generator.name=SGD"
    )
    assert composed.optimizer["weight_decay"] == 0.1
    network = nn.Linear(2, 1)
    built = {player: build(network) for player, build in create_factories(composed.optimizers, CPU).items()}
    assert built["discriminator"].defaults["lr"] == 0.5
    assert built["generator"].defaults["lr"] == 0.0001
    assert built["generator"].defaults["weight_decay"] == built["discriminator"].defaults["weight_decay"] == 0.1
    (regularizer,) = settings("regularizer=gradient_penalty", "regularizer.target=0").regularizers
    assert regularizer == REGULARIZERS["gradient_penalty"](weight=10.0, target=0.0)


def test_the_weight_of_r1_is_the_datasets_unless_it_is_typed() -> None:
    for name in options("dataset"):
        extra = {"folder": ["dataset.path=X"], "array": ["dataset.path=X"]}.get(name, [])
        written = yaml.safe_load((CONF / "dataset" / f"{name}.yaml").read_text())["dataset"].get("r1_weight", 10.0)
        r1, r2 = settings(f"dataset={name}", *extra, "regularizer=[r1,r2]").regularizers
        assert (r1.weight, r2.weight) == (written, written)  # type: ignore[attr-defined]
    (typed,) = settings("dataset=cifar10", "regularizer=r1", "regularizer.weight=3").regularizers
    assert typed == R1(weight=3.0)


def test_several_regularizers() -> None:
    built = settings("regularizer=[r1,instance_noise]", "regularizer.r1.weight=3").regularizers
    assert built == (R1(weight=3.0), InstanceNoise(std=0.1))
    assert settings("regularizer=[]").regularizers == ()


R1_KEYS = {"weight": 10.0, "every": 1, "sigma": 0.0, "share": 1.0}  # those but the first came later


@pytest.mark.parametrize(
    ("section", "found"),
    [
        ({"name": "none"}, {}),
        ({"name": "r1", "weight": 2}, {"r1": R1_KEYS | {"weight": 2}}),
        ({"r1": {"weight": 2}, "instance_noise": {}}, {"r1": R1_KEYS | {"weight": 2}, "instance_noise": {"std": 0.1}}),
        ({"r1": {"weight": 2}, "weight": 3}, {"r1": R1_KEYS | {"weight": 3}}),
    ],
)
def test_every_form_of_the_section_becomes_one(section: dict, found: dict) -> None:
    assert collect_regularizers(section) == found
    assert settings("architecture.leaky_slope=0.3").architecture["leaky_slope"] == 0.3


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("optimizer.lrr=1", "did you mean lr"),
        ("optimizer.wieght_decay=1", "did you mean weight_decay"),
        ("optimizer.discriminator.lrr=1", "did you mean lr"),
        ("optimizer.params=1", "no key params"),
        ("optimizer.discrimintor.lr=5", "discrimintor"),
        ("optimizer.name=adam", "did you mean Adam"),
        ("optimizer.name=LBFGS", "optimizer.name"),
        ("optimizer.lr=nan", "nan"),
        ("optimizer.betas=[0.5]", "0.5"),
    ],
)
def test_what_an_optimizer_cannot_take_is_refused(typed: str, says: str) -> None:
    assert says in refusal(typed)


def test_one_pass_for_both_players_needs_a_discriminator_without_batch_norm() -> None:
    rows = "[{op: linear, features: 8, norm: batch, activation: relu}, {op: linear, features: 1}]"
    alone = config("update=simultaneous")
    mixing = config("update=simultaneous", f"architecture.discriminator={rows}")
    prepare(alone)
    with pytest.raises(ConfigError, match="batch norm"):
        prepare(mixing)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["regularizer=r1", "regularizer.wieght=1"], "no key wieght; did you mean weight"),
        (["regularizer=r1", "regularizer.r1.wieght=1"], "no key wieght; did you mean weight"),
        (["regularizer=none", "regularizer.weight=1"], "choose one, as in regularizer=r1"),
        (
            ["regularizer=[r1,gradient_penalty]", "regularizer.weight=1"],
            "regularizer.r1.weight or ",
        ),
        (["regularizer=[r1,gp]"], "regularizer=gp is not one of the choices"),
        (["regularizer=[r1,null]"], "regularizer=null is not one of the choices"),
        (["regularizer.r3.weight=1"], "did you mean r"),
        (["regularizer.name=r3"], "did you mean r"),
        (["regularizer.name=[r1]"], "did you mean r1"),
        *(
            (["regularizer=r1", f"regularizer.weight={value}"], f"regularizer.r1.weight={value}")
            for value in ("-1", "nan", "inf", "True", "heavy")
        ),
        (["regularizer=r1", "regularizer.every=0"], "regularizer.r1.every=0 must be at least 1"),
        (["regularizer=r1", "regularizer.every=1e20"], "must be at least 1 and at most 1,000,000"),
        (["regularizer=r2", "regularizer.every=1.5"], "regularizer.r2.every=1.5 must be a whole number"),
        (["regularizer=r1", "regularizer.share=0"], "regularizer.r1.share=0 must be above 0 and at most 1"),
        (["regularizer=r1", "regularizer.sigma=1e-7"], "regularizer.r1.sigma=1e-07 is so small"),
        (["regularizer=r2", "regularizer.sigma={from: 0.01, to: 1e-9}"], "regularizer.r2.sigma=1e-09 is so small"),
        (["regularizer=dragan", "regularizer.one_sided=2"], "regularizer.dragan.one_sided=2 must be true or false"),
        (["regularizer=lecam", "regularizer.decay=1"], "regularizer.lecam.decay=1 must be at least 0 and below 1"),
        (["regularizer=weight_clipping", "regularizer.limit=0"], "regularizer.weight_clipping.limit=0 must be above 0"),
        (["regularizer=label_smoothing", "regularizer.smoothing=1.5"], "regularizer.smoothing=1.5"),
    ],
)
def test_what_a_regularizer_cannot_take_is_refused(typed: list[str], says: str) -> None:
    assert says in refusal(*typed)


# ---------------------------------------------------------------------------------------------------------------------
# Values


def borders(item: dataclasses.Field[Any], whole: bool) -> tuple[list[float], list[float]]:
    """The outermost values that a field allows, and the nearest ones beyond."""
    accepted = item.metadata["accepted"]
    low, above, high = accepted.at_least, accepted.above, accepted.at_most

    def beyond(value: float, sign: int) -> float:
        return value + sign if whole else math.nextafter(value, sign * math.inf)

    inside, outside = [], []
    if math.isfinite(low):
        inside, outside = [*inside, low], [*outside, beyond(low, -1)]
    if math.isfinite(above):
        inside, outside = [*inside, beyond(above, 1)], [*outside, above]
    if math.isfinite(high):
        inside, outside = [*inside, high], [*outside, beyond(high, 1)]
    return inside, outside


@pytest.mark.parametrize("key", NUMBERS)
def test_numbers_are_taken_up_to_their_borders(key: str) -> None:
    inside, outside = borders(NUMBERS[key], key in WHOLE)
    for value in inside:
        needed = ["evaluate.every_images=1"] if key == "evaluate.count" else []
        assert attrgetter(key)(settings_with(*needed, f"{key}={value!r}")) == value
    for value in outside:
        message = refusal(f"{key}={value!r}", read=settings_with)
        assert f"{key}={value}" in message
        assert re.search(r"must be (at least|above|at most) -?[\d.,e+]+", message)
    assert inside or key == "gen_div.affine"


@pytest.mark.parametrize("key", NUMBERS)
def test_other_values_are_no_numbers(key: str) -> None:
    """Nor a fraction a whole number, nor null a number unless the key has a natural value."""
    other = [*(["1.5"] if key in WHOLE else []), *([] if "None" in NUMBERS[key].type else ["null"])]
    for value in ("nan", "abc", *other):
        assert key in refusal(f"{key}={value}", read=settings_with)


@pytest.mark.parametrize("key", CHOICES)
def test_choices_are_checked_and_listed_nearest_first(key: str) -> None:
    for option in CHOICES[key]:
        try:
            settings_with(f"{key}={option}")
        except ConfigError as error:
            # A combination that cannot train is refused in other words.
            assert "is not one of the choices" not in str(error)  # noqa: PT017
    for option in CHOICES[key]:
        message = refusal(f"{key}={option}x", read=settings_with)
        assert message.startswith(f"{key}={option}x is not one of the choices; did you mean {option}?")
        assert sorted(choices(message)) == sorted(CHOICES[key])
        assert choices(message)[0] == option


@pytest.mark.parametrize(
    ("group", "typed", "nearest"),
    [
        ("gen_div", "kll", "kl"),
        ("disc_div", "alpha_x", "alpha_<number>"),
        ("disc_div", "dual_nothing", "dual_<name>"),
        ("regularizer", "gradient_penlty", "gradient_penalty"),
        ("experiment", "papr", "paper"),
    ],
)
def test_an_unknown_option_is_refused_with_all_options_nearest_first(group: str, typed: str, nearest: str) -> None:
    message = refusal(f"{group}={typed}")
    assert message.startswith(f"{group}={typed} is not one of the choices; did you mean ")
    assert sorted(choices(message)) == sorted(options(group))
    assert nearest in choices(message)[:2]


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("gen_div=rkl", "reverse_kl"),
        ("disc_div=tv", "total_variation"),
        ("gen_div=sqhel", "squared_hellinger"),
        ("regularizer=gp", "gradient_penalty"),
    ],
)
def test_abbreviations_are_understood(typed: str, nearest: str) -> None:
    assert f"is not one of the choices; did you mean {nearest}?" in refusal(typed)


@pytest.mark.parametrize("key", ["foo", "conditional", "dataset.foo", "train.depth", "amp", "xyzzy"])
def test_a_key_like_no_other_gets_no_guess(key: str) -> None:
    assert refusal(f"+{key}=1") == f"there is no key {key}; --help lists the keys"


@pytest.mark.parametrize(("name", "says"), [("submitit_slurm", "pip install 'gantrain[launchers]'"), ("x", "choices")])
def test_a_launcher_that_is_not_installed_names_its_extra(name: str, says: str) -> None:
    error = MissingConfigException("Could not find it", f"hydra/launcher/{name}", ["basic", "parallel"])
    assert says in str(config_error(error))


def test_a_path_as_the_dataset_is_a_folder_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures/cats").mkdir(parents=True)
    for path in ("/path", "./x", "~/x", "pictures", "pictures/cats"):
        assert refusal(f"dataset={path}") == (
            f"dataset={path} is a path, not one of the choices; write dataset=folder dataset.path={path}"
        )


@pytest.mark.parametrize("typed", ["regularizer=spectral", "dataset=qqqq", "gen_div=12345"])
def test_a_word_like_none_of_the_options_gets_the_list_without_a_guess(typed: str) -> None:
    message = refusal(typed)
    assert "did you mean" not in message
    assert sorted(choices(message)) == sorted(options(typed.partition("=")[0]))


@pytest.mark.parametrize("typed", ["optimizer.xyzzy=1", "device=qqqq"])
def test_nothing_is_suggested_that_has_nothing_in_common(typed: str) -> None:
    assert "did you mean" not in refusal(typed)


def test_heads_and_objectives_are_those_of_the_code() -> None:
    assert CHOICES["head"] == tuple(HEADS)
    assert CHOICES["gen_objective"] == tuple(GENERATOR_OBJECTIVES)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["disc_div=total_variation", "gen_div=kl"], "gen_div=kl needs a log-ratio"),
        (["gen_div=total_variation"], "choose gen_objective=ratio"),
        (["head=nowozin", "disc_div=le_cam"], "choose head=log_ratio"),
        (["head=ratio", "disc_div=total_variation"], "head=log_ratio"),
    ],
)
def test_a_game_that_cannot_train_is_refused_with_a_way_out(typed: list[str], says: str) -> None:
    assert says in refusal(*typed)


@pytest.mark.parametrize(
    "value",
    ["${nope}", "${oc.env:GANTRAIN_NOT_SET}", "${nope:1}", "${seed", "${.nope}", "${oc.decode:'['}", "${dataset.root}"],
)
def test_interpolations_that_do_not_resolve_are_refused(value: str) -> None:
    assert refusal(f"dataset.root={value}")


def test_interpolations_that_resolve_are_checked_as_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANTRAIN_TEST", "12")
    assert settings("seed=${oc.env:GANTRAIN_TEST}", "latent.size=${seed}").latent.size == 12
    monkeypatch.setenv("GANTRAIN_TEST", "-12")
    assert "seed=-12" in refusal("seed=${oc.env:GANTRAIN_TEST}")
    monkeypatch.setenv("GANTRAIN_TEST", "twelve")
    assert "seed" in refusal("seed=${oc.env:GANTRAIN_TEST}")


def test_epochs_are_a_synonym_for_images() -> None:
    class TenDigits:
        size, label, name = 10, "ten digits", "digits"

    composed = settings("train.epochs=2.55", "train.batch_size=5")
    assert build_schedule(composed, TenDigits()).images == 26  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("objective", "name", "is_another"),
    [
        *(("matched", "non_saturating", True), ("matched", "softened_reverse_kl", False), ("matched", "kl", False)),
        *(("ratio", "softened_reverse_kl", True), ("ratio", "non_saturating", False)),
    ],
)
def test_a_loss_named_like_the_usual_one_has_a_warning(objective: str, name: str, is_another: bool) -> None:
    warning = warn_of_unusual_loss(settings(f"gen_objective={objective}", f"gen_div={name}"))
    assert ("not the usual non-saturating loss" in str(warning)) == is_another


def test_a_loss_without_a_minimum_has_a_warning() -> None:
    (warning,) = list_warnings(settings("critic=wasserstein"))
    assert "regularizer=gradient_penalty" in warning
    assert not list_warnings(settings("critic=wasserstein", "regularizer=gradient_penalty"))
    assert not list_warnings(settings("critic=hinge"))


def test_a_glob_stands_for_every_name_of_the_catalogue() -> None:
    (argument,) = parse_train(["gen_div=glob(*)"])
    assert expand_choice(argument) == sorted(f"gen_div={name}" for name in CATALOGUE)


# ---------------------------------------------------------------------------------------------------------------------
# What is shown is what runs


@pytest.mark.parametrize(
    "typed",
    [
        [],
        ["experiment=paper", "gen_div=dual_alpha_0.3", "gen_div.affine=-0.5"],
        ["dataset=mixture1d", "dataset.weights=[0.5,0.5]", "dataset.means=[-1,1]", "dataset.stds=[1,1]", "ema=0"],
        ["optimizer.discriminator.lr=1e-3", "regularizer=r1", "dataset.label='a \"quoted\": name'"],
        ["critic=relativistic", "critic.pairs=all", "gen_div=kl"],
    ],
    ids=["defaults", "paper", "mixture1d", "quotes", "critic"],
)
def test_the_shown_config_composes_to_the_same_settings(
    gantrain: Callable[..., Answer], tmp_path: Path, typed: list[str]
) -> None:
    answer = gantrain("train", *typed, "--cfg", "job")
    assert (answer.code, answer.err) == (0, "")
    write(tmp_path / "experiment/again.yaml", f"# @package _global_\n{answer.out}")
    assert settings_from(tmp_path, "experiment=again") == settings(*typed)
    assert validate(OmegaConf.create(answer.out), typed).settings == settings(*typed)


def test_the_help_names_every_key_and_every_option() -> None:
    words = set(re.split(r"[\s,=]+", train.HELP))
    assert {key for key, _ in fields(Config)} - words <= {
        *("dataset.name", "disc_div.name", "gen_div.name", "architecture", "critic", "optimizer", "regularizer")
    }
    for group in GROUPS:
        assert {group, *options(group)} <= words


# ---------------------------------------------------------------------------------------------------------------------
# Published settings, in literals of their own


DCGAN = {"lr": 2e-4, "betas": [0.5, 0.999], "batch_size": 128, "discriminator_steps": 1, "disc_div": "gan"}
PUBLISHED: dict[str, dict[str, Any]] = {
    "dcgan": DCGAN | {"gen_div": "softened_reverse_kl"},
    "lsgan": DCGAN | {"disc_div": "own", "critic": {"a": 0.0, "b": 1.0, "c": 1.0}},
    # Penalties λ (‖∇D‖ − 1)² for pixels in [−1, 1] are λ/4 (‖∇D‖ − 2)² in [0, 1].
    "dragan": DCGAN | {"regularizer": {"dragan": {"weight": 10 / 4, "target": 2.0, "spread": 0.5, "every": 1}}},
    "wgan_gp": {
        **{"lr": 1e-4, "betas": [0.0, 0.9], "batch_size": 64, "discriminator_steps": 5, "gen_div": "own"},
        "regularizer": {"gradient_penalty": {"weight": 10 / 4, "target": 2.0, "one_sided": False, "every": 1}},
    },
    "hinge_sn": {
        **{"lr": {"from": 2e-4, "to": 0.0, "images": None}, "betas": [0.0, 0.9]},
        **{"batch_size": 64, "discriminator_steps": 5, "gen_div": "own", "regularizer": {}},
    },
    # A weight for pixels in [−1, 1] is a quarter of it in [0, 1].
    "relativistic_r1r2": {
        "lr": {"from": 2e-4, "to": 5e-5, "images": 20e6, "shape": "cosine"},
        "betas": [0.0, {"from": 0.9, "to": 0.99, "images": 20e6, "shape": "cosine"}],
        **{"batch_size": 128, "discriminator_steps": 1, "gen_div": "own"},
        "regularizer": {
            name: {"weight": {"from": 0.05 / 4, "to": 0.005 / 4, "images": 20e6, "shape": "cosine"}, "every": 1}
            for name in ("r1", "r2")
        },
    },
}
OWN_EXPERIMENTS = {"dirac", "figure1", "paper", "paper_figure2", "strong"}


def assert_holds(section: Any, wanted: Any, key: str) -> None:
    """Assert that a section has the wanted values at least."""
    if isinstance(wanted, dict):
        for name, value in wanted.items():
            assert_holds(section[name], value, f"{key}.{name}")
    else:
        assert section == wanted, key


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_numbers(name: str) -> None:
    tree = OmegaConf.to_container(compose([f"experiment={name}"]))
    assert isinstance(tree, dict)
    found = {
        **{key: tree["optimizer"][key] for key in ("lr", "betas")},
        **{key: tree["train"][key] for key in ("batch_size", "discriminator_steps")},
        **{key: tree[key]["name"] for key in ("disc_div", "gen_div")},
        **{key: tree[key] for key in ("regularizer", "critic")},
    }
    assert_holds(found, PUBLISHED[name], name)
    assert found["regularizer"].keys() == PUBLISHED[name].get("regularizer", {}).keys()


def test_every_preset_is_in_the_table_and_pinned() -> None:
    files = {path.stem for path in (CONF / "experiment").glob("*.yaml")} - OWN_EXPERIMENTS
    presets = runpy.run_path(str(CONF.parent / "scripts" / "tables"))["PRESETS"]
    assert files == set(presets) == PUBLISHED.keys()


def test_optimizers_have_the_published_rates() -> None:
    ttur = settings("optimizer=ttur").optimizers
    assert {player: each.arguments for player, each in ttur.items()} == {
        "discriminator": {"betas": [0.0, 0.9], "lr": 4e-4},
        "generator": {"betas": [0.0, 0.9], "lr": 1e-4},
    }
    for each in settings("optimizer=adam_decay").optimizers.values():
        assert each.arguments == {"lr": Ramp(2e-4, 0.0, None), "betas": [0.0, 0.9]}
