"""The subcommands, one module each: `HELP` and `run(arguments)`."""
