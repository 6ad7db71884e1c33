"""Labels of configurations: the settings that tell them apart.

A key that follows from the name of its section, as `optimizer.betas` from `optimizer.name`, is left out, and so is a
default that comes with the dataset.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gantrain.comparison.runs import Run
from gantrain.comparison.untrusted import format_setting
from gantrain.objectives.critic_objective import OWN
from gantrain.regularizers.regularizers import default_values

# Keys and sections that may differ between the runs of one configuration: where and how often something is written.
NOT_COMPARED = (
    "seed",
    "run_dir",
    "resume",
    "device",
    "dataset.root",
    "dataset.resident",
    "train.report_every_images",
    "train.sample_every_images",
    "train.checkpoint_every_images",
    "train.checkpoint_min_seconds",
    "train.checkpoint_max_minutes",
    "train.keep_checkpoints",
    "evaluate",
    "best",
    "logger",
)
FIRST_KEYS = ("gen_div.name", "disc_div.name", "critic.name", "gen_objective")  # of a label
NAMED_KEYS = (*FIRST_KEYS, "dataset.name")  # also where they are defaults
LONGEST_VALUE, LONGEST_LABEL = 60, 300  # letters


def compared_settings(run: Run) -> dict[str, str]:
    """Settings of a run that make its configuration; keys of regularizers that it does not have yet have defaults."""
    sections = tuple(f"{name}." for name in NOT_COMPARED)
    names = run.settings.get("regularizer.name", "none").split("+")
    keys = ((f"regularizer.{name}.{key}", value) for name in names for key, value in default_values(name).items())
    settings = {key: format_setting(value) for key, value in keys} | run.settings
    return {key: v for key, v in settings.items() if key not in NOT_COMPARED and not key.startswith(sections)}


def list_typed_keys(runs: Iterable[Run]) -> set[str]:
    """Return the keys and groups that the commands of runs set; those that `gantrain resume` may have set too."""
    typed = {text.lstrip("+~").partition("=")[0].replace("/", ".") for run in runs for text in run.overrides}
    is_resumed = any(run.fact("resumed_at_images") for run in runs)
    return typed | ({"train.images", "train.epochs"} if is_resumed else set())


def find_named_keys(
    keys: Iterable[str], settings: Sequence[dict[str, str]], typed: Sequence[set[str]]
) -> dict[str, list[bool]]:
    """Return for each key which configurations name it: those that do not have the default of their dataset.

    What was not typed is a default, unless it differs between configurations of one dataset, or an experiment was
    chosen. Every key is named if two configurations would be named alike.
    """
    named = {}
    for key in keys:
        sections = {key, key.partition(".")[0], "experiment"}
        given = [bool(each & sections) for each in typed]
        defaults = {
            (each.get("dataset.name"), each[key])
            for each, is_given in zip(settings, given, strict=True)
            if not is_given and key in each
        }
        is_known = len(defaults) == len({dataset for dataset, _ in defaults})
        named[key] = given if is_known and key not in NAMED_KEYS else [True] * len(settings)
    labels = {
        tuple((key, each.get(key)) for key, places in named.items() if places[number])
        for number, each in enumerate(settings)
    }
    return named if len(labels) == len(settings) else {key: [True] * len(settings) for key in named}


def independent_keys(keys: Sequence[str], settings: Sequence[dict[str, str]]) -> list[str]:
    """Return the keys without those whose value follows from others.

    A key may follow from the `name` of its section, a divergence from the critic, and the weights of samples from
    critic, divergences and objective.
    """

    def follows(key: str) -> bool:
        section = key.partition(".")[0]
        known = {"gen_weights": {*FIRST_KEYS}, "disc_div": {"critic.name"}, "gen_div": {"critic.name", "gen_div.name"}}
        causes = (set(keys) & known.get(section, {f"{section}.name"})) - {key}
        pairs = {(*map(each.get, causes), each.get(key)) for each in settings}
        return bool(causes) and len(pairs) == len({pair[:-1] for pair in pairs})

    return [key for key in keys if not follows(key)]


def build_label(keys: Sequence[str], settings: dict[str, str], named: Iterable[str]) -> str:
    """Return `kl` if one key differs, else those of the keys that are `named`: `kl ratio optimizer=SGD`.

    The generator's divergence and objective are written without their key, unless D's divergence differs too; a
    critic's own loss is left out beside the critic.
    """
    if not keys and settings.get("gen_div.name") == OWN:
        keys = ["critic.name"]
    if len(keys) < 2:
        return truncate(settings.get((keys or FIRST_KEYS)[0], "—"))
    bare = {"gen_objective"} if "disc_div.name" in keys else {"gen_objective", "gen_div.name"}
    shown = [key for key in named if "critic.name" not in keys or settings.get(key) != OWN]
    words = [("" if key in bare else f"{short_key(key)}=") + truncate(settings.get(key, "—")) for key in shown]
    return truncate(" ".join(words) or "defaults", LONGEST_LABEL)


def name_discriminator(run: Run) -> str:
    """Return the divergence of D, or the critic that has a loss of its own."""
    divergence = run.setting("disc_div.name")
    return run.setting("critic.name") if divergence == OWN else divergence


def short_key(key: str) -> str:
    """Return a key as it is typed: `gen_div` for `gen_div.name`."""
    return truncate(key.removesuffix(".name"))


def truncate(text: str, letters: int = LONGEST_VALUE) -> str:
    """Cut a text that is too long for a label."""
    return text if len(text) <= letters else f"{text[: letters - 1]}…"
