"""The version is written once, and the commit is that of the code that runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gantrain import version

GIT = ("git", "-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
ASK = "from gantrain.version import describe_version; import json; print(json.dumps(describe_version()))"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder in which `gantrain.version` lies as in a checkout."""
    (tmp_path / "gantrain").mkdir()
    (tmp_path / "gantrain/__init__.py").touch()
    shutil.copy(version.__file__, tmp_path / "gantrain/version.py")
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def ask(folder: Path, **environment: str) -> dict[str, str]:
    command = [sys.executable, "-c", ASK]
    environment = {**os.environ, "PYTHONPATH": str(folder), **environment}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run([*GIT, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_of_a_checkout_and_whether_it_was_changed(copy: Path) -> None:
    git(copy, "init", "-q")
    git(copy, "add", "-A")
    git(copy, "commit", "-qm", "first")
    git(copy, "tag", "v9")
    commit = git(copy, "rev-parse", "HEAD")
    assert ask(copy, GIT_DIR="elsewhere") == {"gantrain": version.VERSION, "commit": commit}
    (copy / "pyproject.toml").write_text("# changed", encoding="utf-8")
    assert ask(copy)["commit"] == f"{commit}-dirty"


def test_the_commit_that_pip_installed_from_a_repository(copy: Path) -> None:
    (copy / "pyproject.toml").unlink()
    git(copy, "init", "-q")  # a repository around the package, as around a virtual environment, is not its own
    information = copy / f"gantrain-{version.VERSION}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Name: gantrain\nVersion: {version.VERSION}\n", encoding="utf-8")
    assert ask(copy) == {"gantrain": version.VERSION}
    origin = {"url": "https://example.org/gantrain", "vcs_info": {"vcs": "git", "commit_id": "0" * 40}}
    (information / "direct_url.json").write_text(json.dumps(origin), encoding="utf-8")
    assert ask(copy) == {"gantrain": version.VERSION, "commit": "0" * 40}
