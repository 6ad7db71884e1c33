"""The pages tell the truth: tables are up to date, commands compose, examples run, links lead somewhere."""

from __future__ import annotations

import dataclasses
import os
import re
import runpy
import shlex
import tomllib
from dataclasses import replace
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from faults.processes import run
from packaging.version import Version
from support.pictures import draw_checksums

import gantrain
from gantrain import cli, networks
from gantrain.commands import train
from gantrain.config import schema
from gantrain.config.checks import validate
from gantrain.config.compose import create_composer, expand_choice
from gantrain.config.groups import options
from gantrain.config.overrides import parse_train
from gantrain.launch.build import prepare
from gantrain.objectives import divergences
from gantrain.objectives.objective import Objective

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EXAMPLE = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`((?:gantrain(?!\.)|scripts/\w+) ?[^`]*)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(text(page)) if found == language]


def commands(page: Path) -> list[str]:
    """Every command line of a page, in shell blocks and in running text."""
    lines = [line.partition("  #")[0].strip() for block in blocks(page, "sh") for line in block.splitlines()]
    spans = SPAN.findall(FENCE.sub("", text(page)))
    return [*lines, *(span for span in spans if " " in span or span.startswith("scripts/"))]


COMMANDS = {command: page.name for page in PAGES for command in commands(page)}  # each once
EXAMPLES = [(page.name, *found) for page in PAGES for found in EXAMPLE.findall(text(page))]


def test_every_key_of_training_is_explained() -> None:
    """Those of the groups with pages of their own are explained there."""
    sections = {
        item.name for item in dataclasses.fields(schema.Config) if dataclasses.is_dataclass(item.default_factory)
    }
    leaves = {key for key in schema.keys(schema.Config) if key not in (*sections, *schema.OPEN_SECTIONS)}
    told = {key: (value, about) for key, value, about in schema.describe_keys()}
    assert told.keys() == {key for key in leaves if not key.endswith(".name")}
    assert all(about for _, about in told.values())
    assert told["train.batch_size"] == ("100", "images per step")
    assert told["resume"] == ("never", "auto: continue the run in run_dir, if there is one (never, auto)")
    shown = train.HELP
    assert all(f"{key}={value}" in shown and about in shown for key, (value, about) in told.items())


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, in which the classifier of the digits is trained for one epoch."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "docs"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the embedded digits."""
    folder = tmp_path_factory.mktemp("docs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        draw_checksums(patch.setattr)
        assert cli.main(["train", f"run_dir={folder}", "train.images=300", "train.held_out_images=20"]) == 0
    return folder


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short sweep of two runs."""
    folder, short = tmp_path_factory.mktemp("docs") / "sweep", ["train.images=300", "train.held_out_images=20"]
    with pytest.MonkeyPatch.context() as patch:
        draw_checksums(patch.setattr)
        assert cli.main(["train", "-m", "gen_div=kl,js", f"run_dir={folder}", *short]) == 0
    return folder


@pytest.fixture(scope="module")
def own_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the architecture that docs/architectures.md shows."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "architecture").mkdir()
    (table,) = blocks(ROOT / "docs" / "architectures.md", "yaml")
    for name in ("mine", "NAME"):
        (folder / "architecture" / f"{name}.yaml").write_text(table, encoding="utf-8")
    return folder


def tables() -> dict[str, Any]:
    """What scripts/tables defines."""
    return runpy.run_path(str(ROOT / "scripts" / "tables"))


def test_tables_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert (tables()["main"](["--check"]), capsys.readouterr().out) == (0, "")


def test_every_table_stands_somewhere_and_a_stale_one_is_renewed() -> None:
    script = tables()
    places = [name for page in PAGES for name in re.findall(r"<!-- table: (.+?) -->", text(page))]
    assert sorted(places) == sorted(script["TABLES"])
    page = text(ROOT / "README.md")
    stale = page.replace("| `kl` |", "| `lk` |")
    assert stale != page == script["renewed"](stale)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{COMMANDS[command]}: {command}")
def test_commands_work(
    command: str, finished: Path, swept: Path, own_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training is composed and checked; the other subcommands run, on a real run."""
    monkeypatch.chdir(tmp_path)
    draw_checksums(monkeypatch.setattr)
    np.savez("X.npz", images=np.zeros((2, 32, 32, 3), np.uint8))
    places = {"RUN": finished, "SWEEP": swept, "DIR": own_yaml}
    words = shlex.split(re.sub(r"\b(RUN|SWEEP|DIR)\b", lambda place: str(places[place[0]]), command))
    tutorial = {"first": str(finished), "sweep": str(swept)}  # the names that it gives to its run and its sweep
    words = [tutorial.get(word, word) for word in words]
    words = ["train.epochs=1" if word.startswith("train.epochs=") else word for word in words]  # twenty take seconds
    if words[:2] == ["gantrain", "fit"] and "gen_div" not in command:
        words.append("gen_div=kl,js")  # all of them are in a table of docs/theory.md
    if words[:2] == ["gantrain", "verify"]:
        typed = {word.partition("=")[0] for word in words}
        short = ("case=gaussians", "images=10000", "batch_size=200", "held_out=5000", "seeds=2")
        words += [word for word in short if word.partition("=")[0] not in typed]  # tests/test_verify.py has the others
    if words[:2] == ["gantrain", "divergences"] and words[2:] == ["out=" + str(own_yaml)]:
        words.append("kl")
    if words[:2] == ["gantrain", "evaluate"]:  # a classifier that is trained quickly, and kept
        assert cli.main(["evaluate", "dataset=digits", "train_classifier.epochs=6"]) == 0
    if words[:2] == ["gantrain", "train"]:
        compose(words[2:])
    elif words[0] == "gantrain" and len(words) == 2:
        assert words[1] in cli.COMMANDS
    elif words[0] == "gantrain":
        assert cli.main(words[1:]) == 0
    elif words == ["pip", "install", "."]:  # tests/test_wheel.py installs it
        assert (ROOT / "pyproject.toml").is_file()
    elif words[0] == "tensorboard":
        assert entry_points(group="console_scripts", name="tensorboard")
    else:
        check_script(words)


COMPOSED: set[str] = set()  # overrides that a job had which composed


def compose(arguments: list[str]) -> None:
    """Compose and check jobs that the arguments of `gantrain train` describe.

    Every listed value occurs in one, of this command or of one before: many pages list the same divergences.
    """
    flags = train.parse_flags(arguments)
    typed = parse_train(flags.overrides)
    assert flags.multirun == any(argument.is_sweep for argument in typed)
    values = [expand_choice(argument) if argument.is_sweep else [argument.text] for argument in typed]
    with create_composer(typed, flags.config_dir) as composer:
        for number in range(max(map(len, values), default=1)):
            job = [choices[number % len(choices)] for choices in values]
            if number == 0 or not COMPOSED.issuperset(job):
                prepare(validate(composer.compose(job).tree, job))
                COMPOSED.update(job)


def check_script(words: list[str]) -> None:
    """A script is there, and so is what its arguments name."""
    if words[0] == ".venv/bin/python":
        words = words[1:]
    else:
        assert os.access(ROOT / words[0], os.X_OK)
    assert all((ROOT / word).exists() for word in words if "/" in word)
    if words[0] == "scripts/train":
        compose(words[1:])


@pytest.mark.parametrize(("page", "example", "output"), EXAMPLES)
def test_python_examples_print_what_they_show(
    page: str,
    example: str,
    output: str,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(example.replace("RUN", str(finished)), page, "exec"), {})
    assert not output or capsys.readouterr().out == output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(text(page)):
        path, _, anchor = link.partition("#")
        if not link.startswith("https://"):
            target = page.parent / path if path else page
            assert target.is_file(), link
            assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_picture_is_shown_and_every_page_is_linked() -> None:
    linked = {page: {(page.parent / link).resolve() for link in LINK.findall(text(page))} for page in PAGES}
    assert set((ROOT / "docs").glob("*.md")) <= linked[ROOT / "README.md"]
    assert set((ROOT / "docs" / "images").iterdir()) <= set().union(*linked.values())


def test_the_run_folder_is_the_one_that_is_drawn(finished: Path) -> None:
    tree = next(block for block in blocks(ROOT / "docs" / "training.md", "text") if "├──" in block)
    drawn = re.findall(r"── (\S+)", tree)
    if not (finished / "evaluation.json").exists():
        drawn = [name for name in drawn if name not in ("evaluation.json", "neighbours.png")]
    found = {path for name in drawn for path in finished.glob(name)}
    assert len(found) >= len(drawn)
    assert {path for path in finished.iterdir() if path.name != ".lock"} == found
    assert (finished / "samples" / "real.png").is_file()
    names = {path.name for path in (finished / "checkpoints").iterdir()}
    numbered = {name for name in names if name.startswith("images_") and name.endswith(".pt")}
    assert numbered
    assert names == {"last.pt"} | numbered | {f"{name}.sha256" for name in numbered}
    assert {path.name for path in (finished / ".hydra").iterdir()} == {"config.yaml", "overrides.yaml", "hydra.yaml"}


def test_a_divergence_is_added_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the catalogue is known to the command line, composes, is estimated and gets a row."""
    js = divergences.get("js")
    added = replace(js, name="doubled", real=lambda r: 2 * js.real(r), fake=lambda r: 2 * js.fake(r))
    monkeypatch.setitem(divergences.CATALOGUE, "doubled", added)
    try:
        assert "doubled" in options("gen_div")
        compose(["gen_div=doubled", "disc_div=dual_doubled"])
        estimates = Objective(added, js).estimates(torch.ones(3), -torch.ones(3))
        assert estimates["bound/doubled"] == pytest.approx(2 * estimates["bound/js"])
        assert "| `doubled` |" in tables()["divergence_table"]()
    finally:
        divergences.get.cache_clear()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_the_architecture_that_is_shown_can_be_built(own_yaml: Path, shape: tuple[int, ...]) -> None:
    table = yaml.safe_load(text(own_yaml / "architecture" / "mine.yaml"))
    generator, discriminator = networks.build(table, shape, latent_size=16)
    assert discriminator(generator(torch.randn(5, 16))).shape == (5,)


def test_the_networks_in_code_train_as_they_stand(tmp_path: Path) -> None:
    """The file and the commands of docs/architectures.md, typed in an empty folder; only the lengths are shorter."""
    page = ROOT / "docs" / "architectures.md"
    (code,), (typed,) = blocks(page, "python"), blocks(page, "text")
    (tmp_path / "own.py").write_text(code, encoding="utf-8")
    shown = [line.removeprefix("$ ") for line in typed.splitlines()]
    assert [line.split()[1] for line in shown] == ["train", "resume", "sample"]
    short = {"train": "run_dir=RUN train.images=200 train.held_out_images=20", "resume": "train.images=300"}
    for line in shown:
        _, command, *words = [word for word in line.split() if not word.startswith("train.images=")]
        words += short.get(command, "").split()
        code, output = run(tmp_path / command, command, *words, fault=partial(os.chdir, tmp_path))
        assert code == 0, output
    assert gantrain.load(tmp_path / "RUN").images == 300
    assert len(list((tmp_path / "RUN/samples/seed0").glob("0*.png"))) == 16


def test_an_optimizer_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "added.yaml").write_text("name: Adagrad\nlr: 0.01\nlr_decay: 0.1\n", encoding="utf-8")
    compose(["--config-dir", str(tmp_path), "optimizer=added"])


def test_citation_and_changelog_name_the_version() -> None:
    project = tomllib.loads(text(ROOT / "pyproject.toml"))["project"]
    citation = yaml.safe_load(text(ROOT / "CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    released, version = str(citation["version"]), Version(gantrain.__version__)
    assert project["dynamic"] == ["version"]
    assert version == Version(released) or (version.is_devrelease and version > Version(released))
    assert citation["license"] == project["license"]
    assert all({"type", "title", "authors"} <= reference.keys() for reference in citation["references"])
    assert f"\n## [{released}]" in text(ROOT / "CHANGELOG.md")
