"""The subcommands, one module each: `help_text()` and `run(arguments)`."""
