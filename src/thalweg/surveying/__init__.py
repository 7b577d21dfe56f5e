"""The main job: which instruments, in which order, on one landscape."""

from thalweg.surveying.comparison import Comparison, compare_surveys
from thalweg.surveying.conduct import Survey, rebuild_report, survey
from thalweg.surveying.exports import export_steps
from thalweg.surveying.plan import STEPS, Plan
from thalweg.surveying.targets import survey_target

__all__ = [
    "STEPS",
    "Comparison",
    "Plan",
    "Survey",
    "compare_surveys",
    "export_steps",
    "rebuild_report",
    "survey",
    "survey_target",
]
