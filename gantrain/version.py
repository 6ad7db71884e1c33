"""The version of gantrain, and the commit of a checkout."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

VERSION = "0.2.0.dev0"  # the build reads it from here; CITATION.cff names the last release
GIT_SECONDS = 10.0  # after which the commit stays unknown


def describe_version() -> dict[str, str]:
    """Return the version of gantrain and, if it is known, its commit, as `summary.json` records them."""
    commit = find_commit()
    return {"gantrain": VERSION} | ({"commit": commit} if commit else {})


def find_commit() -> str | None:
    """Return the commit that this code was made from, with `-dirty` for a changed checkout, or None if it is unknown.

    It is that of the checkout that the package lies in, or the one from which pip installed the package.
    """
    root = Path(__file__).parents[1]
    with suppress(OSError, subprocess.SubprocessError, PackageNotFoundError, ValueError, KeyError):
        if (root / ".git").exists() and (root / "pyproject.toml").exists():
            git = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}"]
            command = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
            environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
            done = subprocess.run(
                command, cwd=root, env=environment, capture_output=True, text=True, check=True, timeout=GIT_SECONDS
            )
            return done.stdout.strip()
        installed = distribution("gantrain").read_text("direct_url.json") or "{}"
        return str(json.loads(installed)["vcs_info"]["commit_id"])
    return None
