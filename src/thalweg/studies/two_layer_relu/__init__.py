"""Minima of two-layer ReLU students of a ReLU teacher, and SGD against its equations.

Everything is the exact population loss under Gaussian inputs. Minima are certified by
Cholesky factors of the Hessian, and grouped up to the symmetry of the teacher; the
fractions of starts depend on the optimizer and on the scale of the start.
"""

from thalweg.errors import InputError
from thalweg.solvable import ReLUTeacherStudent
from thalweg.studies.claims import Study
from thalweg.studies.running import Size
from thalweg.studies.store import StudyStore
from thalweg.studies.two_layer_relu.measurements import (
    SCALES,
    descents,
    fractions,
    grown,
    joined,
    make_teacher,
    one_pass_sgd,
)
from thalweg.studies.two_layer_relu.paper_claims import (
    claim_on_correlated,
    claim_on_reduction,
    claims_on_growth,
    claims_on_sgd,
    claims_on_symmetry,
    claims_on_widths,
)
from thalweg.studies.two_layer_relu.sections import (
    families_dataset,
    families_section,
    growth_section,
    sgd_section,
    spectra_section,
    widths_section,
)

NAME = "two-layer-relu"
PAPER = (
    "Spurious Local Minima are Common in Two-Layer ReLU Neural Networks; I. Safran, "
    "O. Shamir; 2018"
)


def run(
    size: Size,
    seeds: tuple[int, ...],
    store: StudyStore,
    *,
    teacher: str = "orthonormal",
    M: int = 8,
    K: int = 8,
    starts: int | None = None,
) -> Study:
    """Find the families of minima of one teacher, and hold the papers' claims.

    Args:
        size: Number of starts, widths and dimensions.
        seeds: Each adds its own starts and runs.
        store: Keeps descents and simulations.
        teacher: "orthonormal", "correlated" (unit vectors of equal inner products
            -0.8 / (M - 1)) or "gaussian" (random unit vectors).
        M: Number of teachers.
        K: Number of students.
        starts: Starts for each seed; by size where it is None.
    """
    scale = SCALES[size]
    starts = scale.starts if starts is None else starts
    for name, value in (("M", M), ("K", K), ("starts", starts)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    land = ReLUTeacherStudent(make_teacher(teacher, M), K)
    ends = [descents(land, s, starts, store, f"{teacher}-{M}-{K}") for s in seeds]
    found = land.families(joined(ends))
    more = grown(land, found)
    widths = fractions(scale, seeds, store)
    sgd, exact = one_pass_sgd(scale, seeds, store)
    claims = (
        *claims_on_widths(widths),
        claim_on_correlated(scale, seeds, store),
        *claims_on_symmetry(),
        *(claims_on_growth(more) if teacher == "orthonormal" and M == K else ()),
        claim_on_reduction(),
        *claims_on_sgd(sgd, exact),
    )
    datasets = {
        "families": families_dataset(land, found),
        "widths": widths,
        "sgd": sgd,
    }
    sections = (
        families_section(teacher, land, found),
        spectra_section(land, found),
        growth_section(more),
        widths_section(widths),
        sgd_section(sgd),
    )
    return Study(claims, datasets, sections)
