"""Weights & Biases: an optional mirror of a run's numbers and pictures, which `logger` asks for.

It holds the numbers of metrics.jsonl and the pictures of the folder of samples, under the same names and at the same
clock. Its id is kept in the run folder, so that a resumed run continues the same mirror; reports that were made twice
are left out there, as steps never go back. Whether anything leaves the machine is Weights & Biases' own setting: with
WANDB_MODE=offline everything stays in the run folder.
"""

from __future__ import annotations

import importlib.util
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain.console import one_line
from gantrain.errors import ConfigError
from gantrain.files import write_file

if TYPE_CHECKING:
    from torch import Tensor

PROJECT = "gantrain"  # unless WANDB_PROJECT names another
ID_FILE = "wandb_id"
ID = re.compile(r"[a-z0-9]{4,64}")


def check_installed() -> None:
    """Raise ConfigError unless the package is installed; it is not imported."""
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:  # without an origin it is the folder of an earlier run
        raise ConfigError("logger=[wandb] needs another package; install it with: pip install 'gantrain[wandb]'")


class Mirror:
    """One run on Weights & Biases. Every method raises OSError for any failure of the package.

    Args:
        folder: The run folder, which holds its files and after which it is named.
        config: The composed configuration.
    """

    name = "Weights & Biases"

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        with convert_errors():
            import wandb

            self._image = wandb.Image
            self._run = wandb.init(
                project=None if os.environ.get("WANDB_PROJECT") else PROJECT,
                dir=folder,
                id=read_identity(folder),
                name=folder.name,
                config=dict(config),
                resume="allow",
                reinit="create_new",  # one process may train several runs
                settings=wandb.Settings(console="off", silent=True, disable_git=True),
            )

    @property
    def place(self) -> str:
        """Address of the page, or the folder of an offline run."""
        if self._run.offline:
            return f"{Path(self._run.dir).parent}, which `wandb sync` sends to Weights & Biases"
        return str(self._run.url)

    def add_scalars(
        self, images: int, scalars: Mapping[str, float], histograms: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write numbers at the clock `images`; histograms are left out."""
        with convert_errors():
            self._run.log(dict(scalars), step=images)

    def add_picture(self, images: int, tag: str, path: Path) -> None:
        """Write an image file at the clock `images`."""
        with convert_errors():
            self._run.log({tag: self._image(str(path))}, step=images)

    def close(self, *, failed: bool = False) -> None:
        """Write what is left, and end the run there."""
        with convert_errors():
            self._run.finish(exit_code=int(failed))


def read_identity(folder: Path) -> str:
    """Return the id in the run folder; a new one is written if there is none."""
    path = folder / ID_FILE
    found = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    if not ID.fullmatch(found):
        found = uuid.uuid4().hex[:8]
        write_file(path, f"{found}\n")
    return found


@contextmanager
def convert_errors() -> Iterator[None]:
    """Raise any exception of the package as OSError, which costs no run."""
    try:
        yield
    except Exception as error:
        raise OSError(f"Weights & Biases: {one_line(str(error)) or type(error).__name__}") from error
