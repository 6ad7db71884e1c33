"""The runs of a sweep that have not begun: all that its command stands for, without those that have a summary."""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from gantrain.comparison.comparison import MOST_NAMED
from gantrain.comparison.runs import find_run_folders
from gantrain.comparison.untrusted import clean_text, read_yaml
from gantrain.config import compose, overrides
from gantrain.errors import ConfigError, GantrainError
from gantrain.launch import sweep

TYPED, OF_FILES = "hydra.overrides.task.", "hydra.sweeper.params."  # in the file of a sweep's command
INTERPOLATION = re.compile(r"\$\{[^{}]*\}")


def notes(folders: Iterable[Path]) -> Iterator[str]:
    """A note on every sweep, in or below `folders`, with runs that have not begun."""
    runs = ((folder, run) for folder in folders for run in find_run_folders(folder))
    for root in dict.fromkeys(run.parent for folder, run in runs if run != folder):
        try:
            yield from not_begun(root)
        except (GantrainError, ValueError) as error:  # of a range, too, that is none
            yield f"which runs of {root} have not begun cannot be told: {error}"


def not_begun(root: Path) -> Iterator[str]:
    """How many runs of the sweep in `root` have no summary, which they are, and what to do; nothing where all have one,
    or where `root` holds no sweep that gantrain numbered. Raises GantrainError where its command cannot be read."""
    choices = choices_of(root) if sweep.is_sweep(root) else []
    begun = {sweep.job_number(path.parent) for path in root.glob("*/summary.json")}
    missing = math.prod(map(len, choices)) - len(begun)
    if not choices or missing < 1 or -1 in begun:
        return
    jobs = (job for number, job in enumerate(itertools.product(*choices)) if number not in begun)
    named = [clean_text(" ".join(filter(None, job))) for job in itertools.islice(jobs, MOST_NAMED)]
    more = f" and {missing - MOST_NAMED:,} more" if missing > MOST_NAMED else ""
    yield (
        f"{missing:,} of {missing + len(begun):,} runs of {root} have not begun: {', '.join(named)}{more}. "
        f"Unless it is still running, go on with: gantrain resume {shlex.quote(str(root))}"
    )


def choices_of(root: Path) -> list[list[str]]:
    """What the runs of the sweep in `root` choose from, in the order in which Hydra's sweeper numbers them: a list for
    each key, of one empty text where there is no choice. Raises GantrainError where there is no telling."""
    name = sweep.KEPT if (root / sweep.KEPT).exists() else sweep.COMMAND
    values = {key: uninterpolated(str(value)) for key, value in read_yaml(root, name)}
    texts = [f"{key.removeprefix(OF_FILES)}={value}" for key, value in values.items() if key.startswith(OF_FILES)]
    texts += [value for key, value in values.items() if key.startswith(TYPED)]
    choices = {}  # what is typed replaces what a file says, in its place
    for text, override in zip(texts, overrides.parsed(texts), strict=True):
        listed = compose.each(text, override) if override.is_sweep_override() else [""]
        choices[override.key_or_group] = [choice.lstrip("+") for choice in listed]
        if math.prod(map(len, choices.values())) > compose.MOST_JOBS:
            raise ConfigError(f"it lists more than {compose.MOST_JOBS:,} runs")
    return list(choices.values())


def uninterpolated(text: str) -> str:
    """A text with a question mark for each interpolation: nothing from a folder is resolved, nor could Hydra's parser
    read one inside another."""
    while (shorter := INTERPOLATION.sub("?", text)) != text:
        text = shorter
    return text
