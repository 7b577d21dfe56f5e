"""The command line: one file a command, no logic."""

from thalweg.cli import doctor, report, study, survey
from thalweg.cli.entry import app, main, run

__all__ = ["app", "doctor", "main", "report", "run", "study", "survey"]
