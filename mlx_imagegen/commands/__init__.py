"""The CLI's commands, one a module: `flags(parser)` declares what it takes, `run(args)` does it.

A new command is a module here and a line in cli.py's COMMANDS. Heavy imports stand inside `run`, so that `--help` is
quick.
"""
