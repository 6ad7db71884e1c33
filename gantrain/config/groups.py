"""Hydra's config groups and their options, among them the names in the catalogue of divergences."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from gantrain.errors import ConfigError
from gantrain.files import CONF
from gantrain.objectives import divergences
from gantrain.objectives.critic_objective import OWN

DIVERGENCE_GROUPS = ("disc_div", "gen_div")
GROUPS = ("dataset", "architecture", "critic", *DIVERGENCE_GROUPS, "optimizer", "regularizer", "augment", "experiment")
LISTED_GROUPS = ("regularizer",)  # of which several options may be chosen, as in regularizer=[r1,instance_noise]
CHOSEN_BY_YAML = (*GROUPS, "hydra/launcher")
# A smaller architecture for the same images, which a run that is slow on a CPU names.
FASTER_ARCHITECTURES = {"appendix": "dcgan32"}


def options(group: str) -> list[str]:
    """Return the names of the choices of a config group, of which OWN is no divergence."""
    if group in DIVERGENCE_GROUPS:
        return [*divergences.CATALOGUE, *divergences.PATTERNS, OWN]
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


class CatalogueSource(ConfigSource):
    """Hydra's options of `disc_div` and `gen_div`, which are the catalogue's names and patterns."""

    @staticmethod
    def scheme() -> str:
        return "catalogue"

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path.strip("/") in ("", *DIVERGENCE_GROUPS)

    def is_config(self, config_path: str) -> bool:
        group, _, name = config_path.strip("/").removesuffix(".yaml").partition("/")
        try:
            return group in DIVERGENCE_GROUPS and (name == OWN or bool(divergences.get(name)))
        except ConfigError:
            return False

    def load_config(self, config_path: str) -> ConfigResult:
        node = OmegaConf.create({"name": config_path.rpartition("/")[2].removesuffix(".yaml")})
        return ConfigResult(provider=self.provider, path="catalogue://", config=node, header={"package": None})

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        group = config_path.strip("/")
        if group == "" and results_filter != ObjectType.CONFIG:
            return list(DIVERGENCE_GROUPS)
        if group in DIVERGENCE_GROUPS and results_filter != ObjectType.GROUP:
            return list(divergences.CATALOGUE)
        return []


class CataloguePath(SearchPathPlugin):
    """Adds the catalogue to Hydra's search path at its start, so that glob(*) finds it too."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("gantrain", "catalogue://")
