"""The comparisons; peers are imported inside so that a missing one is skipped."""

from collections.abc import Callable

import torch
from torch.nn import functional

from benchmarks.subject import Subject
from benchmarks.timing import race
from thalweg import instruments as ti

Report = dict[str, dict[str, object]]


def curvlinops_hessian(s: Subject):
    from curvlinops import HessianLinearOperator

    return HessianLinearOperator(
        s.model,
        torch.nn.CrossEntropyLoss(),
        list(s.model.parameters()),
        [(s.x, s.y)],
        check_deterministic=False,
    )


def eigenthings_hessian(s: Subject):
    from hessian_eigenthings import HessianOperator, supervised_loss

    loss = supervised_loss(functional.cross_entropy)
    return HessianOperator(s.model, [(s.x, s.y)], loss)


def product(s: Subject) -> Report:
    """Twenty Hessian products; the result is the norm of one."""
    v = torch.ones_like(s.land.point())

    def ours() -> float:
        with s.land.hessian(s.land.point()) as hessian:
            return float([hessian @ v for _ in range(20)][0].norm())

    def curvlinops() -> float:
        hessian = curvlinops_hessian(s)
        return float([hessian @ v for _ in range(20)][0].norm())

    def eigenthings() -> float:
        hessian = eigenthings_hessian(s)
        return float([hessian.matvec(v) for _ in range(20)][0].norm())

    return race(
        {
            "thalweg": ours,
            "curvlinops": curvlinops,
            "hessian-eigenthings": eigenthings,
        },
        3,
    )


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
    """Stochastic Lanczos quadrature, 10 probes of 80 steps; one run each."""

    def ours() -> object:
        with s.land.hessian(s.land.point()) as hessian:
            return float(ti.spectral_density(hessian, 10, 80)["nodes"].max())

    def curvlinops() -> object:
        from curvlinops.papyan2020traces.spectrum import fast_lanczos

        hessian = curvlinops_hessian(s)
        return max(float(fast_lanczos(hessian, 80)[0].max()) for _ in range(10))

    def eigenthings() -> object:
        from hessian_eigenthings import spectral_density

        spectral_density(eigenthings_hessian(s), num_runs=10, lanczos_steps=80, seed=0)
        return None

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
}
