"""The set-up commands, on a stand-in project that installs in a second and needs no network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ensurepip", reason="Debian's python3-venv is not installed")

SCRIPTS = Path(__file__).parents[1] / "scripts"

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""

# What `gantrain` is there: a program that says how it was called.
BACKEND = """
import zipfile

def build_editable(folder, *_):
    files = {
        "gantrain.py": "import os, sys\\ndef main(): print(os.getcwd(), *sys.argv[1:])",
        "gantrain-1.dist-info/METADATA": "Metadata-Version: 2.1\\nName: gantrain\\nVersion: 1\\n",
        "gantrain-1.dist-info/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        "gantrain-1.dist-info/entry_points.txt": "[console_scripts]\\ngantrain = gantrain:main\\n",
        "gantrain-1.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(f"{folder}/gantrain-1-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return "gantrain-1-py3-none-any.whl"
"""


def bare_checkout(folder):
    shutil.copytree(SCRIPTS, folder / "scripts")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "backend.py").write_text(BACKEND)
    return folder


def call(script, *arguments, python=sys.executable, folder=None):
    environment = {**os.environ, "PYTHON": str(python), "PIP_NO_INDEX": "1", "PYTHONPATH": ""}
    command = ["bash", str(script), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout that has been set up once."""
    folder = bare_checkout(tmp_path_factory.mktemp("a folder with blanks"))
    done = call(folder / "scripts" / "setup")
    assert done.returncode == 0, done.stderr
    assert "installing" in done.stderr
    return folder


@pytest.fixture(scope="module")
def copier(checkout, tmp_path_factory):
    """An interpreter whose environments are copies of the one of `checkout`: to make one anew takes seconds."""
    folder = tmp_path_factory.mktemp("copier")
    shutil.copytree(checkout / ".venv", folder / "venv", symlinks=True)
    (folder / "python3").write_text(f"""#!/bin/sh
case "$*" in
"-m venv --clear "*) rm -rf "$4" && cp -a '{folder / "venv"}' "$4" ;;
*) exec '{sys.executable}' "$@" ;;
esac
""")
    (folder / "python3").chmod(0o755)
    return folder / "python3"


def test_train_runs_in_the_current_folder_with_its_arguments(checkout, tmp_path):
    done = call(checkout / "scripts" / "train", "gen_div=js", "a=b c", folder=tmp_path)
    assert done.stdout == f"{tmp_path} train gen_div=js a=b c\n"
    assert done.stderr == ""  # nothing to install


def test_a_changed_pyproject_or_another_extra_installs_once(checkout):
    setup = checkout / "scripts" / "setup"
    assert "gantrain[test]" in call(setup, "test").stderr
    assert call(setup, "test").stderr == call(setup).stderr == ""
    (checkout / "pyproject.toml").write_text(PYPROJECT + "# changed\n")
    assert "installing" in call(setup).stderr
    assert call(setup).stderr == ""


def break_interpreter(venv):
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to("/no/such/python")


def kill_installation(venv):
    (venv / "unfinished").touch()


@pytest.mark.parametrize("damage", [break_interpreter, kill_installation])
def test_a_damaged_environment_is_made_anew(checkout, copier, damage):
    venv = checkout / ".venv"
    (venv / "relic").touch()
    damage(venv)
    assert "installing" in call(checkout / "scripts" / "setup", python=copier).stderr
    assert not (venv / "relic").exists()
    assert call(checkout / "scripts" / "train").stdout.endswith(" train\n")


def test_an_installation_that_fails_says_so_and_keeps_the_environment(copier, tmp_path):
    checkout = bare_checkout(tmp_path)
    (checkout / "pyproject.toml").write_text(PYPROJECT.replace("[]", '["no-such-package"]'))
    done = call(checkout / "scripts" / "setup", python=copier)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("scripts/setup: pip could not install")
    (checkout / ".venv" / "relic").touch()
    (checkout / "pyproject.toml").write_text(PYPROJECT)
    assert call(checkout / "scripts" / "setup").returncode == 0
    assert (checkout / ".venv" / "relic").exists()


OLD = "case $1 in --version) echo Python 3.9.2 ;; *) exit 1 ;; esac"
BARE = f"""case $2 in *pip*) exit 1 ;; *) exec '{sys.executable}' "$@" ;; esac"""


@pytest.mark.parametrize(
    ("program", "remedy"),
    [(OLD, "is Python 3.9.2"), (BARE, "apt install python3-venv"), (None, "is not there")],
    ids=["old", "bare", "none"],
)
def test_a_machine_without_what_is_needed_is_told_in_one_line(program, remedy, tmp_path):
    checkout = bare_checkout(tmp_path / "checkout")
    python = tmp_path / "python3"
    if program:
        python.write_text(f"#!/bin/sh\n{program}\n")
        python.chmod(0o755)
    done = call(checkout / "scripts" / "train", python=python)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert remedy in line
    assert not (checkout / ".venv").exists()
