"""Former names of `gantrain.files`, until their callers have changed."""

from gantrain.files import iterate_leaves as leaves

__all__ = ["leaves"]
