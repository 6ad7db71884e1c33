"""A run's numbers and pictures on Weights & Biases too: an optional mirror, which is asked for with `logger`.

What is mirrored is what metrics.jsonl and the folder of samples hold, under the same names and at the same clock. The
id of the mirror is kept in the run folder, so that a resumed run goes on in the same place; there the reports that were
made twice are left out, as steps never go back. Whether anything leaves the machine is Weights & Biases' own setting:
with WANDB_MODE=offline all of it stays in the run folder.
"""

from __future__ import annotations

import importlib.util
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gantrain.console import one_line
from gantrain.errors import ConfigError
from gantrain.files import write_whole

PROJECT = "gantrain"  # unless WANDB_PROJECT names another
ID_FILE = "wandb_id"
ID = re.compile(r"[a-z0-9]{4,64}")


def refuse_missing() -> None:
    """Raise ConfigError unless the package is installed; it is not imported."""
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:  # without an origin it is the folder of an earlier run
        raise ConfigError("logger=[wandb] needs another package; install it with: pip install 'gantrain[wandb]'")


class Mirror:
    """One run on Weights & Biases. Every method raises OSError for whatever goes wrong there.

    Args:
        folder: The run folder, in which its files lie and after which it is named.
        config: The composed configuration.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        with failures():
            import wandb

            self._image = wandb.Image
            self._run = wandb.init(
                project=None if os.environ.get("WANDB_PROJECT") else PROJECT,
                dir=folder,
                id=identity(folder),
                name=folder.name,
                config=dict(config),
                resume="allow",
                reinit="create_new",  # several runs may take turns in one process
                settings=wandb.Settings(console="off", silent=True, disable_git=True),
            )

    @property
    def place(self) -> str:
        """Where it can be looked at."""
        if self._run.offline:
            return f"{Path(self._run.dir).parent}, which `wandb sync` sends to Weights & Biases"
        return str(self._run.url)

    def scalars(self, images: int, scalars: Mapping[str, float]) -> None:
        """Numbers at the clock `images`."""
        with failures():
            self._run.log(dict(scalars), step=images)

    def picture(self, images: int, tag: str, path: Path) -> None:
        """An image file at the clock `images`."""
        with failures():
            self._run.log({tag: self._image(str(path))}, step=images)

    def finish(self, *, failed: bool) -> None:
        """Write what is left, and end it."""
        with failures():
            self._run.finish(exit_code=int(failed))


def identity(folder: Path) -> str:
    """The id in the run folder, a new one where there is none."""
    path = folder / ID_FILE
    found = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    if not ID.fullmatch(found):
        found = uuid.uuid4().hex[:8]
        write_whole(path, f"{found}\n")
    return found


@contextmanager
def failures() -> Iterator[None]:
    """Whatever the package raises as OSError, which costs no run."""
    try:
        yield
    except Exception as error:
        raise OSError(f"Weights & Biases: {one_line(str(error)) or type(error).__name__}") from error
