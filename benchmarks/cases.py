"""The comparisons; peers are imported inside so that a missing one is skipped."""

from collections.abc import Callable

import torch

from benchmarks.operators import (
    curvlinops_ggn,
    curvlinops_hessian,
    eigenthings_hessian,
    pyhessian_hessian,
)
from benchmarks.subject import Subject
from benchmarks.surfaces import surface
from benchmarks.timing import race
from benchmarks.traces import trace
from thalweg import instruments as ti

Report = dict[str, dict[str, object]]


def product(s: Subject) -> Report:
    """Twenty products of each operator, made and warmed up before; the norm of one."""
    v = torch.ones_like(s.land.point())

    def times(make: Callable[[], Callable[[], torch.Tensor]]) -> Callable[[], float]:
        prepared: list[Callable[[], torch.Tensor]] = []

        def work() -> float:
            if not prepared:
                prepared.append(make())
                prepared[0]()
            return float([prepared[0]() for _ in range(20)][0].norm())

        return work

    def thalweg() -> Callable[[], torch.Tensor]:
        hessian = s.land.hessian(s.land.point())
        return lambda: hessian @ v

    def rebuilt() -> Callable[[], torch.Tensor]:
        hessian = s.land.hessian(s.land.point(), method="rebuilt")
        return lambda: hessian @ v

    def curvlinops() -> Callable[[], torch.Tensor]:
        hessian = curvlinops_hessian(s)
        return lambda: hessian @ v

    def eigenthings() -> Callable[[], torch.Tensor]:
        hessian = eigenthings_hessian(s)
        return lambda: hessian.matvec(v)

    def pyhessian() -> Callable[[], torch.Tensor]:
        from pyhessian.utils import hessian_vector_product

        found = pyhessian_hessian(s)
        parts = v.split([p.numel() for p in found.params])
        shaped = [a.view(p.shape) for a, p in zip(parts, found.params, strict=True)]

        def multiply() -> torch.Tensor:
            rows = hessian_vector_product(found.gradsH, found.params, shaped)
            return torch.cat([row.reshape(-1) for row in rows])

        return multiply

    def ggn() -> Callable[[], torch.Tensor]:
        operator = s.land.ggn(s.land.point())
        return lambda: operator @ v

    def their_ggn() -> Callable[[], torch.Tensor]:
        operator = curvlinops_ggn(s)
        return lambda: operator @ v

    makers = {
        "thalweg": thalweg,
        "thalweg, graph rebuilt": rebuilt,
        "curvlinops": curvlinops,
        "hessian-eigenthings": eigenthings,
        "PyHessian": pyhessian,
        "thalweg, GGN": ggn,
        "curvlinops, GGN": their_ggn,
    }
    return race({name: times(make) for name, make in makers.items()}, 5, warm=True)


def eigenvalues(s: Subject) -> Report:
    """Top five eigenvalues to 1e-3."""

    def ours() -> object:
        with s.land.hessian(s.land.point()) as hessian:
            pairs = ti.top_eigenpairs(hessian, 5, tol=1e-3)
        return {"values": pairs.values.tolist(), "products": pairs.products}

    def arpack() -> object:
        import numpy as np
        from scipy.sparse.linalg import eigsh

        operator = curvlinops_hessian(s).to_scipy()
        start = np.random.default_rng(0).standard_normal(operator.shape[0])
        found = eigsh(
            operator, 5, which="LA", tol=1e-3, v0=start, return_eigenvectors=False
        )
        return {"values": sorted(found.tolist(), reverse=True)}

    return race({"thalweg": ours, "curvlinops + ARPACK": arpack}, 3)


def density(s: Subject) -> Report:
    """Stochastic Lanczos quadrature, 10 probes of 80 steps; the largest node."""

    def ours() -> object:
        with s.land.hessian(s.land.point()) as hessian:
            return float(ti.spectral_density(hessian, 10, 80)["nodes"].max())

    def curvlinops() -> object:
        from curvlinops.papyan2020traces.spectrum import fast_lanczos

        hessian = curvlinops_hessian(s)
        return max(float(fast_lanczos(hessian, 80)[0].max()) for _ in range(10))

    def eigenthings() -> object:
        from hessian_eigenthings import spectral_density

        found = spectral_density(
            eigenthings_hessian(s), num_runs=10, lanczos_steps=80, seed=0
        )
        return max(float(torch.as_tensor(v).max()) for v in found.raw_eigenvalues)

    return race(
        {
            "thalweg": ours,
            "curvlinops": curvlinops,
            "hessian-eigenthings": eigenthings,
        },
        1,
    )


CASES: dict[str, Callable[[Subject], Report]] = {
    "product": product,
    "eigenvalues": eigenvalues,
    "density": density,
    "trace": trace,
    "surface": surface,
}
