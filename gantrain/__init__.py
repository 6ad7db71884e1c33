"""Train GANs whose discriminator and generator each target an f-divergence of your choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gantrain.state import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Import `load` when it is asked for: importing the package stays free of torch."""
    if name == "load":
        from gantrain.state import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
