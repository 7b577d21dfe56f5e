"""Deep linear networks under SGD: modes learned, where they stay, saddles they pass.

Brute force (minibatch SGD on the matrices) beside what is known exactly: gradient flow
of each mode, the noise of SGD and its peak, stationary laws, plateaus.
"""

from thalweg.errors import InputError
from thalweg.studies.claims import Study
from thalweg.studies.deep_linear import laws, learning, noise, saddles
from thalweg.studies.deep_linear.scale import SCALES
from thalweg.studies.running import Size
from thalweg.studies.store import StudyStore

NAME = "deep-linear"
PAPER = (
    "Stochastic gradient descent in the saddle-to-saddle regime of deep linear "
    "networks; G. Corlouer, A. Semler, A. Strang, A. Gietelink Oldenziel; 2026"
)


def run(
    size: Size,
    seeds: tuple[int, ...],
    store: StudyStore,
    *,
    L: int = 2,
    B: int = 4,
) -> Study:
    """Hold SGD on the matrices against the theory of its modes.

    Args:
        size: Number of replicas and paths.
        seeds: Each adds its own replicas and paths.
        store: Keeps the simulations.
        L: Depth of the network whose learning is shown.
        B: Its batch size.

    Raises:
        InputError: L < 2 or B < 1.
    """
    if L < 2:
        raise InputError(
            f"L must be at least 2, got {L}: a single layer learns all modes at once"
        )
    scale = SCALES[size]
    learned = learning.measure(L, B, scale, seeds, store)
    kicks = noise.measure(scale, seeds, store)
    stationary = laws.measure(scale, seeds, store)
    hot = laws.measure_temperatures(scale, seeds, store)
    collapsed = laws.measure_collapse(scale, seeds, store)
    passed, plateaus = saddles.measure(scale, seeds, store)
    escapes = saddles.measure_escapes()
    claims = (
        *learning.claims(learned),
        *noise.claims(kicks),
        *laws.claims(stationary, hot, collapsed),
        *saddles.claims(passed, plateaus, escapes),
    )
    datasets = {
        "learning": learned,
        "noise": kicks,
        "laws": stationary,
        "temperatures": hot,
        "collapse": collapsed,
        "saddles": passed,
        "escapes": escapes,
    }
    sections = (
        learning.section(learned),
        noise.section(kicks),
        laws.section(stationary, hot),
        laws.collapse_section(collapsed),
        saddles.section(passed, plateaus),
        saddles.escape_section(escapes),
    )
    return Study(claims, datasets, sections)
