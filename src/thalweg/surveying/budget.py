"""From a budget of seconds and bytes to a plan: measure a few passes, then choose."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from thalweg.errors import InputError
from thalweg.execution import thread_count
from thalweg.landscapes import Landscape, NetworkLandscape
from thalweg.surveying.plan import Plan

# Shares of the budget by step, renormalized over the steps that run. What they leave of
# it is for what no forecast sees: the figures, the report, a slower machine.
SHARES = {
    "point": 0.04,
    "eigenvalues": 0.16,
    "trace": 0.10,
    "spectrum": 0.18,
    "sharpness": 0.14,
    "surface": 0.11,
    "hessian_surface": 0.11,
    "topology": 0.0,
    "layers": 0.10,
    "sign_locks": 0.0,
    "paths": 0.10,
    "plane": 0.11,
    "aligned": 0.10,
}
RESERVE = 0.3
MINIMAL = "minimal"
MINIMAL_VECTORS = 6
# Vectors that Lanczos needs beside the k that it returns, and those that the ascents of
# the worst case and their Krylov basis hold at once.
LANCZOS_VECTORS = 4
ASCENT_VECTORS = 64
# Points an axis of the coarse grid of an adaptive surface, and fewest points of one.
COARSE_SIDE = 11
FEWEST_REFINED = 150
# Gradient passes that one ascent step of all worst-case rows takes together.
ASCENTS = 25
# Training of a curve: rows of a step, the least that a step takes, and how many steps
# are worth beginning with.
PATH_ROWS = 128
STEP_SECONDS = 2e-3
FEWEST_PATH_STEPS = 100


@dataclass(frozen=True)
class Costs:
    """Seconds of one pass over all examples, and bytes of one vector."""

    loss: float
    gradient: float
    product: float
    vector: int

    def scaled(self, fraction: float) -> "Costs":
        """Return the costs with that fraction of the examples."""
        return dataclasses.replace(
            self,
            loss=self.loss * fraction,
            gradient=self.gradient * fraction,
            product=self.product * fraction,
        )


def measure(land: Landscape) -> tuple[Costs, int]:
    """Time a loss, a gradient and a product at the origin; return threads that paid.

    One torch thread is taken unless all that the process may use are faster by a fifth:
    small problems are slower with more.
    """
    all_threads = torch.get_num_threads()
    with thread_count(1):
        single = _measure(land)
    if all_threads == 1:
        return single, 1
    several = _measure(land)
    if several.loss + several.product < 0.8 * (single.loss + single.product):
        return several, all_threads
    return single, 1


def _measure(land: Landscape) -> Costs:
    point = land.point()
    loss = _seconds(lambda: land.loss(point))
    gradient = _seconds(lambda: land.gradient(point))
    with land.hessian(point) as hessian:
        v = torch.ones_like(point)
        product = _seconds(lambda: hessian @ v)
    return Costs(loss, gradient, product, point.numel() * point.element_size())


def _seconds(work: Callable[[], object]) -> float:
    """Return the shortest of up to five runs after a first, within half a second."""
    work()
    best, left = float("inf"), 0.5
    for _ in range(5):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
        left -= best
        if left < 0:
            break
    return max(best, 1e-6)


def choose(
    land: Landscape,
    costs: Costs,
    *,
    steps: tuple[str, ...],
    budget: float,
    memory: int,
    threads: int,
    layers: str,
    seed: int,
    paths: int = 0,
    refine: int | None = None,
) -> Plan:
    """Return the plan that fits the budget of seconds and bytes.

    The examples are thinned first, and only as far as the smallest useful settings of
    all steps need; what remains of the budget buys resolution, products and probes.
    `paths` is the number of lines between checkpoints.
    """
    notes: list[str] = []
    seconds = _shares(steps, budget)
    total = land.rows if isinstance(land, NetworkLandscape) else 0
    examples = _examples(costs, seconds, total, notes)
    if total:
        costs = costs.scaled(examples / total)

    def passes(step: str, cost: float) -> float:
        return seconds.get(step, 0.0) / cost

    lanczos_steps = min(80, land.dim)
    products = passes("spectrum", costs.product)
    if products < 10 * lanczos_steps:
        lanczos_steps = int(max(min(20, land.dim), min(lanczos_steps, products / 4)))
    drawn = [s for s in ("surface", "hessian_surface", "plane") if s in steps]
    fitting = min((passes(s, costs.loss) for s in drawn), default=0.0)
    surface_points = COARSE_SIDE if refine else _side(fitting)
    points = min(refine, max(FEWEST_REFINED, int(fitting))) if refine else 0
    if refine and drawn and points < refine:
        notes.append(
            f"Surfaces have up to {points:,} points each, not {refine:,}: more do not "
            f"fit the budget of {budget:.0f} s."
        )
    elif drawn and not refine and surface_points < 25:
        notes.append(
            f"Surfaces have {surface_points} points an axis: more do not fit the "
            f"budget of {budget:.0f} s."
        )
    ascents = passes("sharpness", costs.gradient) / ASCENTS
    vectors = memory // costs.vector
    roomy = vectors >= ASCENT_VECTORS
    if "sharpness" in steps and (ascents < 4 or not roomy):
        notes.append(
            "Worst-case sharpness is the one-step estimate, a weaker lower bound: "
            f"ascents do not fit the {'budget' if roomy else 'memory'}."
        )
    eigenpairs = max(1, min(5, land.dim - 1, max(2, vectors - LANCZOS_VECTORS)))
    if "eigenvalues" in steps and eigenpairs < min(5, land.dim - 1):
        notes.append(
            f"The top {eigenpairs} eigenpairs only: more do not fit the memory."
        )
    step = max(
        costs.gradient * min(1.0, PATH_ROWS / examples if total else 1.0), STEP_SECONDS
    )
    path_steps = int(passes("paths", step * max(paths, 1)) / 2)  # the rest: the lines
    if "paths" in steps and path_steps < FEWEST_PATH_STEPS:
        path_steps = 0
        notes.append(
            "No curves are trained between the checkpoints, straight lines only: they "
            f"do not fit the budget of {budget:.0f} s."
        )
    blocks = len(land.layout.select(layers))
    layer_products = passes("layers", costs.product)
    return Plan(
        steps=steps,
        seed=seed,
        budget=budget,
        memory=memory,
        threads=threads,
        examples=examples,
        total=total,
        eigenpairs=eigenpairs,
        eigen_products=int(max(30, min(300, passes("eigenvalues", costs.product) / 2))),
        trace_products=int(max(12, min(1000, passes("trace", costs.product)))),
        probes=int(max(2, min(10, products / lanczos_steps))),
        lanczos_steps=lanczos_steps,
        surface_points=surface_points,
        extent=1.0,
        rho=0.05,
        sharpness_method="pgd" if ascents >= 4 and roomy else "one_step",
        sharpness_steps=int(max(1, min(20, ascents))),
        sharpness_samples=int(max(8, min(32, ascents * 2))),
        layer_products=int(max(10, min(40, layer_products / 2 / blocks))),
        layer_probes=int(max(8, min(50, layer_products / 4))),
        gradient_examples=min(examples, 2000),
        path_points=25,
        path_steps=min(600, path_steps),
        layers=layers,
        refine=points,
        measured={
            "loss_seconds": costs.loss,
            "gradient_seconds": costs.gradient,
            "product_seconds": costs.product,
        },
        notes=tuple(notes),
    )


def check_refine(refine: int | None) -> None:
    """Refuse too few points for an adaptive surface.

    Raises:
        InputError: There are fewer than `FEWEST_REFINED`.
    """
    if refine is not None and refine < FEWEST_REFINED:
        raise InputError(
            f"refine must be at least {FEWEST_REFINED} points, got {refine}: "
            f"{COARSE_SIDE**2} make up the coarse grid"
        )


def _shares(steps: tuple[str, ...], budget: float) -> dict[str, float]:
    whole = sum(SHARES[step] for step in steps)
    usable = budget * (1 - RESERVE)
    return {step: usable * SHARES[step] / whole for step in steps if whole}


def _examples(
    costs: Costs, seconds: dict[str, float], total: int, notes: list[str]
) -> int:
    """Return how many examples let the smallest useful settings fit."""
    smallest = {
        "eigenvalues": 60 * costs.product,
        "trace": 12 * costs.product,
        "spectrum": 40 * costs.product,
        "sharpness": 60 * costs.gradient,
        "surface": 121 * costs.loss,
        "hessian_surface": 121 * costs.loss,
        "layers": 40 * costs.product,
        "paths": 75 * costs.loss,
        "plane": 121 * costs.loss,
        "aligned": 75 * costs.loss,
    }
    needed = sum(smallest.get(step, 0.0) for step in seconds)
    available = sum(seconds.values())
    if not total or needed <= available:
        return total
    examples = max(min(total, 64), int(total * available / needed))
    if examples < total:
        notes.append(
            f"Every pass takes {examples:,} of {total:,} examples, the same ones at "
            "each point: all of them do not fit the budget. Figures are those of this "
            "sample."
        )
    return examples


def _side(points: float) -> int:
    side = int(max(11, min(41, points**0.5)))
    return side if side % 2 else side - 1
