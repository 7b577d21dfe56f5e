"""The trace of the Hessian: to one percent, by sketches and by plain probing."""

import statistics

import torch

from benchmarks.operators import curvlinops_hessian
from benchmarks.subject import Subject
from benchmarks.timing import race
from thalweg import instruments as ti

SEEDS = 20


def trace(s: Subject) -> dict[str, dict[str, object]]:
    """To 1 % reported standard error, and to the automatic stop, twice that error.

    The exact trace, from one product a dimension, stands beside the true relative
    errors of `SEEDS` runs. Hutchinson's probes are as many as his own reported error
    needs; the peer takes as many.
    """
    with s.land.hessian(s.land.point()) as hessian:
        unit = torch.zeros_like(s.land.point())
        exact = 0.0
        for i in range(s.land.dim):
            unit[i] = 1
            exact += float((hessian @ unit)[i])
            unit[i] = 0
        plain = ti.trace(hessian, "hutchinson", rtol=0.02, max_products=20_000)

        def sketch(rtol: float, seed: int = 0) -> ti.Estimate:
            return ti.trace(hessian, rtol=rtol, max_products=20_000, seed=seed)

        def report(found: ti.Estimate) -> dict[str, object]:
            return {
                "value": found.value,
                "reported_stderr": found.stderr / abs(found.value),
                "true_error": abs(found.value / exact - 1),
                "products": found.products,
            }

        def hutchinson() -> object:
            return report(
                ti.trace(hessian, "hutchinson", rtol=0.02, max_products=20_000)
            )

        def curvlinops() -> object:
            from curvlinops import hutchinson_trace

            value = float(hutchinson_trace(curvlinops_hessian(s), plain.products))
            return {"value": value, "true_error": abs(value / exact - 1)}

        result = race(
            {
                "thalweg": lambda: report(sketch(0.02)),
                "thalweg, automatic stop at 1 %": lambda: report(sketch(0.01)),
                "thalweg, Hutchinson": hutchinson,
                "curvlinops, Hutchinson": curvlinops,
            },
            3,
        )
        errors = {
            rtol: [abs(sketch(rtol, seed).value / exact - 1) for seed in range(SEEDS)]
            for rtol in (0.02, 0.01)
        }
    result["exact"] = {"result": exact}
    result["true errors over seeds"] = {
        f"rtol {rtol}": {
            "median": statistics.median(found),
            "largest": max(found),
            "within rtol": sum(error <= rtol for error in found),
            "runs": SEEDS,
        }
        for rtol, found in errors.items()
    }
    return result
