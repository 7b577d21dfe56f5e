"""The command line: one file a command, no logic."""

from thalweg.cli.entry import app, main, run

__all__ = ["app", "main", "run"]
