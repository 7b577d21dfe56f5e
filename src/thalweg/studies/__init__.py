"""Seed results: a paper's claim, run at laptop scale, beside what was measured.

A study is a module (or a package) in this folder with

```python
NAME = "two-layer-relu"                     # what `thalweg study` calls it
PAPER = "Title; authors; year"              # whose claims these are

def run(size: Size, seeds: tuple[int, ...], store: StudyStore, *,
        M: int = 8, K: int = 8, starts: int | None = None) -> Study: ...
```

`NAME` and `PAPER` are literals, so that studies are listed without importing them. The
first line of the module's docstring is its summary. What comes after `*` are the
study's own options: their annotation (`int`, `float`, `str`, `bool`, each perhaps
`| None`) says how a command line reads them (`--starts 1000`), and they are part of the
plan that a resumed study must share.

`size` is "quick" (under a minute on two cores), "default" (under ten) or "full";
`seeds` are the seeds to average over. Long work goes through `store.once(key, f)`,
which computes a piece once, keeps it, and gives it back to a resumed study. Everything
else in `run` must be a function of its arguments and of these pieces.
"""

from thalweg.studies.claims import Claim, Study, Verdict, judge
from thalweg.studies.registry import StudyInfo, list_studies
from thalweg.studies.running import SIZES, Size, run_study, study_options
from thalweg.studies.store import StudyStore

__all__ = [
    # what a study says
    "Claim",
    "Study",
    "Verdict",
    "judge",
    # which there are
    "StudyInfo",
    "list_studies",
    # running one
    "SIZES",
    "Size",
    "StudyStore",
    "run_study",
    "study_options",
]
