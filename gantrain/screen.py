"""Former names of `gantrain.console`, until their callers have changed."""

from gantrain.console import Screen, column_width, make_console, split_columns

__all__ = ["Screen", "console", "fitting", "room"]
console, fitting, room = make_console, split_columns, column_width
