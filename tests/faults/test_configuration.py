"""Command lines and YAML that are wrong: refused with exit 2 (a resume as another run with 4) before data are read."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gantrain.config.groups import GROUPS, options
from gantrain.config.overrides import KNOWN
from gantrain.config.schema import Config, keys

Gantrain = Callable[..., Any]

KEYS = {key: str(item.type) for key, item in keys(Config).items()}
VALUES = {
    key: kind
    for key, kind in KEYS.items()
    if kind.split(" ")[0].split("[")[0] in ("int", "float", "bool", "str", "list")
}
# Data that are nowhere: whoever looks for them before the config is right says so instead.
NOWHERE = ("dataset=folder", "dataset.path=nowhere", "dataset.root=nowhere", "dataset.size=8", "architecture=conv8")
TINY = (
    *("device=cpu", "train.batch_size=20", "train.held_out_images=40", "train.checkpoint_min_seconds=0"),
    *("train.report_every_images=40", "train.checkpoint_every_images=40", "train.sample_every_images=80"),
    "dataset=ring",
)
pytestmark = pytest.mark.usefixtures("plain_figures")


def assert_refused(answer: Any, code: int = 2) -> None:
    """One screen that names what is wrong, without a traceback."""
    assert (answer.code, answer.out) == (code, ""), answer
    assert answer.err.startswith("gantrain: ")
    assert len(answer.err.splitlines()) <= 20
    assert not re.search(r"Traceback|Error\b|Exception|LexerNo|mismatched input|nowhere does not exist", answer.err)


# ---------------------------------------------------------------------------------------------------------------------
# Typing errors


def slips(word: str, chance: random.Random) -> Iterator[str]:
    """The word with one letter dropped, doubled, swapped with the next, or replaced."""
    letters = [index for index, letter in enumerate(word) if letter.isalnum()]
    at = chance.choice(letters)
    yield word[:at] + word[at + 1 :]
    yield word[: at + 1] + word[at:]
    pairs = [(a, b) for a, b in itertools.pairwise(letters) if b == a + 1 and word[a] != word[b]]
    for a, b in [chance.choice(pairs)] if pairs else []:
        yield word[:a] + word[b] + word[a] + word[b + 1 :]
    yield word[:at] + chance.choice(string.ascii_lowercase.replace(word[at], "")) + word[at + 1 :]


def wrong_keys(rounds: int) -> list[tuple[str, str]]:
    """(mistyped, right) for every key, systematically; a slip that makes another word right is none."""
    chance = random.Random(0)
    pairs = {(slip, key): None for _ in range(rounds) for key in KEYS for slip in slips(key, chance)}
    return [(slip, key) for slip, key in pairs if slip not in KNOWN and slip]


def wrong_choices(rounds: int) -> list[tuple[str, str, str]]:
    """(group, mistyped, right) for every choice of every group."""
    chance = random.Random(1)
    right = [(group, name) for group in GROUPS for name in options(group) if name[-1].isalnum()]
    triples = {
        (group, slip, name): None for _ in range(rounds) for group, name in right for slip in slips(name, chance)
    }
    return [(group, slip, name) for group, slip, name in triples if slip and slip not in options(group)]


FORMS = ("{}=1", "+{}=1", "++{}=1", "~{}", "~{}=1")
FIRST_SHARE = 0.95  # of slips in a choice name the right one first: one in a two-letter name may be nearer to another


def test_a_mistyped_key_is_refused_and_the_right_one_named(gantrain: Gantrain, tmp_path: Path, tried, times) -> None:
    cases = wrong_keys(times(1, soak=8))
    cases = cases if times.soak else cases[::5]
    assert len(cases) >= 36
    for number, (slip, right) in enumerate(cases):
        with tried("a mistyped key"):
            answer = gantrain("train", *NOWHERE, FORMS[number % len(FORMS)].format(slip))
            assert_refused(answer)
            assert f"there is no key {slip}; did you mean {right}?" in answer.err
    assert not list(tmp_path.iterdir())


def test_a_mistyped_choice_is_refused_and_the_right_one_named(gantrain: Gantrain, tmp_path: Path, tried, times) -> None:
    named = []
    cases = wrong_choices(times(1, soak=8))
    cases = cases if times.soak else cases[::5]
    assert len(cases) >= 36
    for number, (group, slip, right) in enumerate(cases):
        with tried("a mistyped choice"):
            answer = gantrain("train", *NOWHERE, f"{('', '+', '++')[number % 3]}{group}={slip}")
            assert_refused(answer)
            listed = re.search(r"choices: (.*)", answer.err)
            assert listed, answer.err
            assert right in listed.group(1).split(", ")
            named.append(f"did you mean {right}?" in answer.err)
    assert sum(named) >= FIRST_SHARE * len(named), f"{sum(named)} of {len(named)}"
    assert not list(tmp_path.iterdir())


SLIPS = {
    ("gen_div=kl,", "js"): "no spaces between them: gen_div=a,b",
    ("gen_div=[kl,js]",): "without brackets: -m gen_div=kl,js",
    ("gen_div", "=kl"): "'gen_div' is not of the form key=value",
    ("gen_div:kl",): "key=value",
    ("seed", "0"): "key=value",
    ("64",): "key=value",
    ("",): "key=value",
    ("=0",): "there is no key =0",
    ("--seed=0",): "there is no flag --seed; keys are written without dashes, as in seed=0",
    ("--seed", "0"): "as in seed=0",
    ("gen_div=\u201ckl\u201d",): "quote it twice",
    ("optimizer.betas=[0.5,0.9",): "brackets",
    ("optimizer.betas=0.5,0.9",): "-m",
    ("train.images=1,000,000",): "-m",
    ("train.images=1M",): "whole number",
    ("gen_div=kl;js",): "quote",
    ("~gen_div=kl",): "cannot be taken away",
    ("~train.images",): "cannot be taken away",
    ("train.images=5", "train.epochs=5"): "two names of one length",
    ("update=reuse",): "update=reuse is gone; choose update=alternating",
    ("hydra/launcher=packed",): "hydra/launcher=packed is now hydra/launcher=parallel",
}


@pytest.mark.parametrize("typed", SLIPS, ids=" ".join)
def test_a_slip_of_the_hand_is_told_in_a_sentence(gantrain: Gantrain, tmp_path: Path, tried, typed: tuple) -> None:
    with tried("a slip on the command line"):
        answer = gantrain("train", *NOWHERE, *typed)
        assert_refused(answer)
        assert SLIPS[typed] in answer.err
        assert len(answer.err.splitlines()) <= 3
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "typed", "says"),
    [
        ("sample", ["RUN", "64"], "'64' is not of the form key=value"),
        ("sample", ["RUN", "--count=64"], "as in count=64"),
        ("sample", ["RUN", "cuont=64"], "did you mean count?"),
        ("resume", ["RUN", "trian.images=64"], "did you mean train.images?"),
        ("architecture", ["dcgan64", "64"], "key=value"),
    ],
)
def test_other_commands_tell_it_too(gantrain: Gantrain, tried, command: str, typed: list[str], says: str) -> None:
    with tried("a slip on the command line"):
        answer = gantrain(command, *typed)
        assert_refused(answer)
        assert says in answer.err


@pytest.mark.parametrize("name", ["a b", "a[b]", "a(b)", "a=b", "~b", "a{b}c", "a:b", "ü", "a#b", "a;b", "a$b", "a'b"])
def test_a_path_is_taken_as_it_is_or_how_to_quote_it_is_said(gantrain: Gantrain, name: str) -> None:
    answer = gantrain("train", "--cfg", "job", "dataset=folder", f"dataset.path={name}")
    if answer.code == 0:
        assert yaml.safe_load(answer.out)["dataset"]["path"] == name
    else:
        assert_refused(answer)
        assert "quote" in answer.err


# ---------------------------------------------------------------------------------------------------------------------
# Values

ANYTHING = ("[1]", "{a: 1}", "nan", "${nope}", "${oc.env:UNSET_IN_TESTS}")
NONSENSE = {
    "int": ("0.5", "abc", "''", "true", "inf", "1e999", "-1", "1e30", "0x10", *ANYTHING),
    "float": ("abc", "''", "true", "inf", "-inf", "1e999", *ANYTHING),
    "bool": ("maybe", "2", "''", *ANYTHING),
    "str": ("''", "' '", "[a]", "{a: 1}", "${nope}", "${oc.env:UNSET_IN_TESTS}", "${oc.decode:1}${"),
    "list[str]": ("1", "abc", "[]", "[1e999,nope]", "{a: 1}", "[[a]]", "${nope}", "[null]"),
    "list[float]": ("1", "abc", "[a]", "[]", "[nan]", "[1e999]", "{a: 1}", "[[1]]", "${nope}", "[null]"),
}
NEVER_NULL = [key for key, kind in VALUES.items() if "None" not in kind]
FREE_BELOW_ZERO = ("gen_div.affine",)


def nonsense() -> list[tuple[str, str]]:
    """(key, value) for every key of the schema and every value of its type that means nothing."""
    cases = [(key, value) for key, kind in VALUES.items() for value in NONSENSE[kind.removesuffix(" | None")]]
    cases += [(key, "null") for key in NEVER_NULL]
    cases += [(key, "-1") for key, kind in VALUES.items() if kind.startswith("float") and key not in FREE_BELOW_ZERO]
    cases += [(key, f"${{{key}}}") for key in VALUES]  # an interpolation that leads to itself
    zero = ("train.images", "train.batch_size", "train.discriminator_steps", "train.epochs")
    return cases + [(key, "0") for key in (*zero, "latent.size", "dataset.size")]


@pytest.mark.parametrize("key", VALUES)
def test_nonsense_is_refused_before_data_are_read(gantrain: Gantrain, tmp_path: Path, tried, times, key: str) -> None:
    """In the fast form one value a key, another one for each key."""
    cases = [value for name, value in nonsense() if name == key and not accepted(key, value)]
    turn = list(VALUES).index(key)
    for value in cases if times.soak else [cases[turn % len(cases)]]:
        with tried("a value that means nothing"):
            answer = gantrain("train", *NOWHERE, f"{key}={value}")
            assert_refused(answer)
            assert key.partition(".")[0] in answer.err
            assert not list(tmp_path.iterdir())


def accepted(key: str, value: str) -> bool:
    """Whether a value has a meaning after all: reports that never come, a count that is only too large for the data, no
    logger."""
    accepted = {key: item.metadata.get("accepted") for key, item in keys(Config).items()}
    without_limit = [key for key, each in accepted.items() if getattr(each, "at_most", None) == float("inf")]
    return (value == "1e30" and key in without_limit) or (key, value) == ("logger", "[]")


OPEN_NONSENSE = {
    "optimizer.lr": ["-1", "nan", "inf", "abc", "null", "[1]", "{a: 1}", "true", "1e999", "${nope}"],
    "optimizer.betas": ["1", "[1]", "[0.5,1]", "[nan,0.9]", "[a,b]", "[]", "[-1,0.9]", "[0.1,0.2,0.3]"],
    "optimizer.name": ["adam", "Optimizer", "LBFGS", "os.system", "null", "''", "[Adam]", "1"],
    "optimizer.discriminator.lr": ["-1"],
    "optimizer.generator.betas": ["nan"],
    "optimizer.amsgrad": ["5"],
    "architecture.leaky_slope": ["-1", "1", "nan", "abc", "[1]", "null", "true"],
    "architecture.generator": ["5", "[]", "[5]", "abc", "[{op: nope}]", "[{op: linear}]", "null"],
    "architecture.discriminator": [f"[{{op: linear,features: {value}}}]" for value in ("0", "1e30", "abc", "65537")],
    "architecture.maxout_pieces": ["1", "1000000"],
    "architecture.init_std": ["0"],
    "regularizer.weight": ["1"],
    "regularizer.name": ["nope", "null"],
    "regularizer": ["{name: r1,weight: nan}"],
    "augment.p": ["1"],
    "augment.name": ["nope", "null"],
    "augment": ["{name: ada,p: nan}", "nope"],
    "device": ["cuda:x", "cuda:-1", "gpu"],
    "hydra.nope": ["1"],
    "hydra/launcher": ["nope"],
    "hydra.mode": ["nope"],
    "experiment": ["nope", "[]x"],
}


@pytest.mark.parametrize("key", OPEN_NONSENSE)
def test_nonsense_in_an_open_section_is_refused_too(gantrain: Gantrain, tmp_path: Path, tried, times, key: str) -> None:
    """In the fast form at most three values a key."""
    for value in OPEN_NONSENSE[key] if times.soak else OPEN_NONSENSE[key][:3]:
        with tried("a value that means nothing"):
            answer = gantrain("train", *NOWHERE, f"{key}={value}")
            assert_refused(answer)
            assert key.partition(".")[0].partition("/")[0] in answer.err
            assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "typed",
    [
        *("dataset.means=[1,nan]", "dataset.stds=[0,1]", "dataset.stds=[-1,1]", "dataset.weights=[0,0]"),
        *("dataset.weights=[-1,2]", "dataset.means=[]", "dataset.means=[1]", "train.epochs=1"),
    ],
)
def test_a_mixture_that_is_none_is_refused(gantrain: Gantrain, tmp_path: Path, tried, typed: str) -> None:
    with tried("a value that means nothing"):
        assert_refused(gantrain("train", "dataset=mixture1d", typed))
        assert not list(tmp_path.iterdir())


def test_limits_are_printed_as_people_write_them(gantrain: Gantrain) -> None:
    assert "at most 1,000,000" in gantrain("train", "train.batch_size=2000000").err
    assert "e+" not in gantrain("train", "seed=1e30").err


# ---------------------------------------------------------------------------------------------------------------------
# YAML of others: tests/test_foreign.py has the files that could run something

GLOBAL = "# @package _global_\n"
BROKEN = {
    "name": "seed: !!python/name:os.system\n",
    "target": "latent: {_target_: os.mkdir, path: caught}\n",
    "target in a list": "architecture: {generator: [{_target_: os.mkdir, path: caught}]}\n",
    "search path": "hydra: {searchpath: ['file:///etc']}\n",
    "cycle": "latent: {size: '${train.batch_size}'}\ntrain: {batch_size: '${latent.size}'}\n",
    "evaluation": "seed: ${eval:1+1}\n",
    "unset": "seed: ${oc.env:UNSET_IN_TESTS}\n",
    "unknown below": "train: {imges: 5}\n",
    "binary": "seed: \x01\x02\n",
    "text": "seed\n",
    "range": "train: {images: -1}\n",
    "endless": "train: {images: .inf}\n",
    "no number": "ema: .nan\n",
    "object of one's own": "architecture: {object: 'os:mkdir'}\n",
    "zero byte in a path": 'run_dir: "a\\0b"\n',
}

FOUND_BY_EACH_JOB = ("target in a list", "object of one's own")


@pytest.mark.parametrize("case", BROKEN)
def test_yaml_that_is_broken_or_hostile_is_refused(gantrain: Gantrain, tmp_path: Path, tried, times, case: str) -> None:
    (tmp_path / "own/experiment").mkdir(parents=True)
    (tmp_path / "own/experiment/x.yaml").write_text(GLOBAL + BROKEN[case])
    (tmp_path / "own/experiment/fine.yaml").write_text(GLOBAL + "seed: 7\n")
    forms = ([], ["--cfg", "job"], ["-m", "seed=0,1"])
    for flags in forms if times.soak else [forms[len(case) % 3]]:
        with tried("a YAML file that is broken or hostile"):
            is_each_jobs = case in FOUND_BY_EACH_JOB and "-m" in flags  # a sweep may also list what puts it right
            data = () if is_each_jobs else NOWHERE  # which a sweep misses before its jobs begin
            answer = gantrain("train", *data, "--config-dir", "own", "experiment=x", *flags)
            if is_each_jobs:
                assert answer.code == 2
                assert not [path for path in tmp_path.rglob("*") if path.name == "caught"]
                continue
            assert_refused(answer)
            assert [path.name for path in tmp_path.iterdir()] == ["own"]


# ---------------------------------------------------------------------------------------------------------------------
# Resuming


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 80 images; tests leave it as it is."""
    from gantrain.cli import main

    run = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["gantrain"])
        assert main(["train", *TINY, "train.images=80", f"run_dir={run}"]) == 0
    return run


ANOTHER_RUN = {
    "architecture=affine": "architecture.name: mlp → affine",
    "architecture.leaky_slope=0.3": "architecture.leaky_slope: ",
    "dataset=grid25": "dataset.name: ring → grid25",
    "gen_div=kl": "gen_div.name: softened_reverse_kl → kl",
    "gen_div.affine=1": "gen_div.affine: 0.0 → 1",
    "latent.size=7": "latent.size: 2 → 7",
    "train.batch_size=10": "train.batch_size: 20 → 10",
    "optimizer=sgd": "optimizer.name: Adam → SGD",
    "optimizer.lr=0.5": "optimizer.lr: ",
    "ema=0.5": "ema: ",
    "optimizer.generator.lr=0.5": "optimizer.generator.lr: not set → 0.5",
    "regularizer=r1": "regularizer.r1.weight: not set → 10.0",
    "gen_objective=ratio": "gen_objective: matched → ratio",
    "seed=1": "seed: 0 → 1",
    "experiment=paper": "experiment=paper",
}


@pytest.mark.parametrize("typed", ANOTHER_RUN)
def test_a_run_is_not_resumed_as_another_one(
    gantrain: Gantrain, stopped: Path, tmp_path: Path, tried, typed: str
) -> None:
    """A changed learning rate is among what is refused, with the others: it would make another run of this one."""
    run = shutil.copytree(stopped, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with tried("a resume as another run"):
        answer = gantrain("resume", run, "train.images=120", typed)
        assert_refused(answer, code=4)
        assert ANOTHER_RUN[typed] in answer.err
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_same_choice_again_is_no_change(gantrain: Gantrain, stopped: Path, tmp_path: Path) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    answer = gantrain("resume", run, "train.images=120", "gen_div=softened_reverse_kl", "dataset=ring", "seed=0")
    assert (answer.code, answer.err) == (0, "")


MAY_CHANGE = {
    "train.images": 160,
    "train.report_every_images": 60,
    "train.sample_every_images": 20,
    "train.checkpoint_every_images": 60,
    "train.checkpoint_min_seconds": 1.5,
    "train.keep_checkpoints": 7,
    "device": "auto",
}


def test_what_may_change_may_and_is_recorded(gantrain: Gantrain, stopped: Path, tmp_path: Path) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    answer = gantrain("resume", run, *(f"{key}={value}" for key, value in MAY_CHANGE.items()))
    assert (answer.code, answer.err) == (0, "")
    written = yaml.safe_load((run / ".hydra/config.yaml").read_text())
    saved = torch.load(run / "checkpoints/images_000000000160.pt", weights_only=True)["config"]
    for recorded in (written, saved):
        found = {key: recorded["train"][key[6:]] if key.startswith("train.") else recorded[key] for key in MAY_CHANGE}
        assert found == MAY_CHANGE
    assert json.loads((run / "summary.json").read_text())["images"] == 160


def test_the_command_that_became_a_key_is_refused_with_the_new_form(gantrain: Gantrain, tmp_path: Path) -> None:
    answer = gantrain("classifier", "dataset=digits", "epochs=3")
    assert_refused(answer)
    for form in ("gantrain evaluate dataset=NAME", "train_classifier.epochs=", ".width", ".seed", "classifier=FILE"):
        assert form in answer.err
    assert not list(tmp_path.iterdir())
