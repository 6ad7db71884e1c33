"""The command `architecture`: every table, also one's own, whole on a terminal of any width and in a pipe."""

import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from gantrain.config.groups import options

# Over 8×8 images and latents of size 5; batch norm has a scale and a shift, and the layer before it no bias:
MINE = """
name: mine
generator:
  - {op: linear, features: 7, norm: batch, activation: relu}
  - {op: linear, features: data, activation: sigmoid}
discriminator:
  - {op: linear, features: 3, activation: leaky_relu}
  - {op: linear, features: 1}
"""
SUMS = {"generator": (5 * 7 + 2 * 7) + (7 * 64 + 64), "discriminator": (64 * 3 + 3) + (3 + 1)}
ITS_SHAPE = ("shape=[1,8,8]", "latent=5")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of YAML with the table `mine`, and others made of it."""
    folder = tmp_path / "own" / "architecture"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(MINE)
    (folder / "wider.yaml").write_text("defaults: [mine]\nleaky_slope: 0.1\n")
    (folder / "my table.yaml").write_text(MINE)
    (folder / "broken.yaml").write_text("name: [\n")
    (folder / "rowless.yaml").write_text("name: rowless\n")
    (folder / "number.yaml").write_text("5\n")
    (folder / "listed.yaml").write_text("- 1\n")
    (folder / "code.yaml").write_text("object: os:makedirs\n")
    (folder / "mlp.yaml").write_text(MINE)
    (folder / "active.yaml").write_text("# @package _global_\nhydra: {callbacks: {x: {_target_: os.makedirs}}}\n")
    return folder.parent


def sums(shown: str) -> dict[str, int]:
    """The parameters of each network, from the last row of its table."""
    found = re.findall(r"^ *(generator|discriminator),(?:.*\n)*? *sum +([\d,]+)", shown, re.MULTILINE)
    return {network: int(total.replace(",", "")) for network, total in found}


@pytest.mark.parametrize("name", options("architecture"))
def test_every_architecture_is_printed(gantrain, name):
    answer = gantrain("architecture", name)
    assert (answer.code, answer.err) == (0, "")
    assert set(sums(answer.out)) == {"generator", "discriminator"}


def test_the_shape_and_the_latents_can_be_chosen(gantrain):
    answer = gantrain("architecture", "dcgan64", "shape=[1,64,64]", "latent=100")
    assert "z 100" in answer.out
    assert "1×64×64" in answer.out


@pytest.mark.parametrize(
    "typed",
    [
        *(["dcgan_64"], ["dcgan64", "shape=[3,32,32]"], ["dcgan64", "shape=[0,64,64]"], ["dcgan64", "shape=64"]),
        *(["dcgan64", "latent=0"], ["dcgan64", "sahpe=[1,64,64]"], ["dcgan64", "dcgan48"], ["dcgan64", "shape=[]"]),
        *(["affine", "shape=[2]", "latent=3"], [], ["latent=3"], [""], ["null"], ["mlp,conv8"], ["dcgan64", "--x=2"]),
    ],
    ids=" ".join,
)
def test_bad_arguments_of_architecture_are_refused(gantrain, typed):
    answer = gantrain("architecture", *typed)
    assert (answer.code, answer.out) == (2, "")


# One's own


@pytest.mark.parametrize(
    "typed",
    [
        ["mine", *ITS_SHAPE, "--config-dir", "own"],
        ["-cd", "own", "mine", *ITS_SHAPE],
        ["wider", *ITS_SHAPE, "--config-dir", "own"],
        ["my table", *ITS_SHAPE, "--config-dir", "own"],
    ],
    ids=" ".join,
)
def test_a_table_of_ones_own_is_printed(gantrain, own, typed):
    answer = gantrain("architecture", *typed)
    assert (answer.code, answer.err) == (0, "")
    assert sums(answer.out) == SUMS


def test_the_tables_of_gantrain_are_there_beside_ones_own(gantrain, own):
    assert gantrain("architecture", "appendix", "--config-dir", "own") == gantrain("architecture", "appendix")


@pytest.mark.parametrize(
    ("name", "folder", "said"),
    [
        ("mine", "nowhere", "--config-dir nowhere is not a folder"),
        ("mine", "own/architecture/mine.yaml", "--config-dir own/architecture/mine.yaml is not a folder"),
        ("mien", "own", "architecture=mien is not one of the choices; did you mean mine?\n  choices: mine, "),
        ("broken", "own", "own/architecture/broken.yaml cannot be read as YAML"),
        ("number", "own", "own/architecture/number.yaml holds no keys and values"),
        ("listed", "own", "own/architecture/listed.yaml holds no keys and values"),
        ("rowless", "own", "architecture.generator has to be a list"),
        ("code", "own", "architecture.object=os:makedirs stands in a file"),
        ("mlp", "own", "own/architecture/mlp.yaml would never be read: gantrain has architecture=mlp of its own"),
        ("active", "own", "its YAML sets hydra.callbacks"),
        ("../../mine", "own", "mine is not one of the choices"),
    ],
)
def test_a_table_that_cannot_be_had_is_refused(gantrain, own, name, folder, said):
    answer = gantrain("architecture", name, "--config-dir", folder)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
    assert "Traceback" not in answer.err


def test_the_choices_are_those_of_both_folders(gantrain, own):
    choices = gantrain("architecture", "mien", "--config-dir", "own").err.partition("choices: ")[2]
    theirs = [path.stem for path in (own / "architecture").iterdir()]
    assert set(choices.strip().split(", ")) == {*theirs, *options("architecture")}


def test_a_flag_without_its_folder_is_refused(gantrain):
    answer = gantrain("architecture", "mlp", "--config-dir")
    assert (answer.code, answer.out) == (2, "")
    assert "--config-dir/-cd: expected one argument; see gantrain architecture --help" in answer.err


# The screen


def on_terminal(width: int, *arguments: str) -> str:
    """What `gantrain` shows on a terminal of that many columns, without its colours."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "gantrain.cli", *arguments]
    with subprocess.Popen(command, stdout=theirs, env={**os.environ, "COLUMNS": str(width), "TERM": "xterm"}):
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # it has ended
            while chunk := os.read(ours, 2**16):
                shown += chunk
    os.close(ours)
    return re.sub(r"\x1b\[[\d;]*m", "", shown.decode()).replace("\r\n", "\n")


def test_a_narrow_terminal_and_a_pipe_show_every_cell(gantrain):
    piped, shown = gantrain("architecture", "appendix").out, on_terminal(40, "architecture", "appendix")
    assert max(map(len, shown.splitlines())) <= 40
    words = {word for word in piped.split() if "─" not in word}
    assert {"multiply-adds", "conv_transpose", "48,513,024", "128×10×10"} <= words
    assert words <= {*shown.split()}
    assert (piped.count("generator,"), shown.count("generator,")) == (1, 6)
