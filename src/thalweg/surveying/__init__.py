"""The main job: which instruments, in which order, on one landscape."""

from thalweg.surveying.conduct import Survey, rebuild_report, survey
from thalweg.surveying.exports import export_step
from thalweg.surveying.plan import STEPS, Plan
from thalweg.surveying.targets import survey_target

__all__ = [
    "STEPS",
    "Plan",
    "Survey",
    "export_step",
    "rebuild_report",
    "survey",
    "survey_target",
]
