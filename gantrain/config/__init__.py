"""From a command line to checked settings.

`schema` holds every key with its type, range and default; open it first. `compose` lets Hydra compose a config,
`checks` validates it, `overrides` parses `key=value` arguments, and `trust` loads config files received from others.
"""
