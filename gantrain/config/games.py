"""The game that a config describes: its critic, divergences and weights of samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from gantrain.config.schema import Config, GeneratorWeights
from gantrain.errors import ConfigError
from gantrain.objectives import divergences, weighting
from gantrain.objectives.critic_objective import OWN, CriticObjective
from gantrain.objectives.critics import CRITICS, F_DIVERGENCE, Critic
from gantrain.objectives.divergence import Divergence
from gantrain.objectives.objective import Game, Objective
from gantrain.objectives.weighting import Weighting
from gantrain.ranges import Choice, check_keys


def build_objective(config: Config, smoothing: float) -> Game:
    """Return the game that the config describes; `smoothing` is the share of the data that counts as samples.

    Raises ConfigError for one that cannot train.
    """
    asked, critic = config.gen_weights, parse_critic(config.critic)
    weights, gen_div = parse_weighting(asked), parse_gen_div(config)
    game: Game
    if critic is None:
        if config.disc_div.name == OWN:
            raise ConfigError(
                f"disc_div={OWN} is the loss of a critic that has one, which critic={F_DIVERGENCE} does not; choose a "
                "divergence, as in disc_div=gan"
            )
        disc_div = divergences.get(config.disc_div.name, "disc_div")
        gen_div = disc_div if isinstance(gen_div, str) else gen_div
        game = Objective(disc_div, gen_div, config.gen_objective, config.head, smoothing, weights)
    else:
        refuse_keys_of_divergences(critic, config, smoothing)
        game = CriticObjective(critic, gen_div, config.gen_objective, weights)
    if asked == GeneratorWeights() and game.has_weights:
        game.weighting = weighting.DEFAULT
    return game


def parse_critic(section: Mapping[str, Any]) -> Critic | None:
    """Return the critic of a config's section, with `name` and its settings; None for `f_divergence`.

    Raises ConfigError for an unknown name or key, or a value that the critic does not take.
    """
    name, values = section.get("name"), {key: value for key, value in section.items() if key != "name"}
    Choice((F_DIVERGENCE, *CRITICS)).check("critic", name)
    known = [item.name for item in fields(CRITICS[name])] if name in CRITICS else []
    check_keys(f"critic={name}", values, known)
    return CRITICS[name](**values) if name in CRITICS else None


def parse_gen_div(config: Config) -> Divergence | str:
    """Return the divergence of G, or OWN. Raises ConfigError."""
    name, affine = config.gen_div.name, config.gen_div.affine
    if name != OWN:
        return divergences.get(name, "gen_div").shifted(affine)
    if affine:
        raise ConfigError(f"gen_div.affine={affine:g} changes a divergence, and gen_div={OWN} is none; leave it out")
    return OWN


def refuse_keys_of_divergences(critic: Critic, config: Config, smoothing: float) -> None:
    """Raise ConfigError for what only `critic=f_divergence` uses."""
    if config.disc_div.name != OWN:
        raise ConfigError(
            f"disc_div={config.disc_div.name} trains D with critic={F_DIVERGENCE} alone, and critic={critic.name} has "
            f"a loss of its own; choose disc_div={OWN}, or leave critic out"
        )
    if config.head != "log_ratio":
        raise ConfigError(
            f"head={config.head} reads the output of critic={F_DIVERGENCE}, not that of critic={critic.name}; "
            "leave head or critic out"
        )
    if smoothing:
        raise ConfigError(
            f"label_smoothing counts a share of the data as samples in the bound of critic={F_DIVERGENCE}, not in the "
            f"loss of critic={critic.name}; leave it out (critic=least_squares has labels: critic.b is that of data)"
        )


def parse_weighting(asked: GeneratorWeights) -> Weighting:
    """Return the weighting of samples. Raises ConfigError for keys that contradict each other."""
    if asked.normalise is False and asked.spread is not None:
        raise ConfigError(
            f"gen_weights.spread={asked.spread} tempers weights that are normalised too, and "
            "gen_weights.normalise=false; leave out one of them, or add gen_weights.normalise=true"
        )
    return Weighting(normalise=bool(asked.normalise) or asked.spread is not None, spread=asked.spread)
