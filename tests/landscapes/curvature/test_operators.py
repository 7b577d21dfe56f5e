"""Every operator through one table: its products, projections, conversions, counts.

A new operator gets all checks by a line in CASES.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from landscapes.curvature import problems
from thalweg.errors import StructureError
from thalweg.landscapes import LinearOperator


@dataclass
class Case:
    operator: LinearOperator
    dense: Tensor
    tolerance: float = 1e-10


def hessian(problem, dense=None, sizes=None, tolerance=1e-10, **options):
    land = problem.landscape(sizes=sizes)
    dense = problem.dense_hessian() if dense is None else dense
    return Case(land.hessian(land.origin, **options), dense, tolerance)


def ggn(problem, sizes=None, **options):
    land = problem.landscape(sizes=sizes)
    return Case(land.ggn(land.origin, **options), problem.dense_ggn())


def true_fisher(problem):
    land = problem.landscape(sizes=[9, 14])
    return Case(land.fisher(land.origin), problem.dense_ggn())


def empirical_fisher(problem, sizes=None):
    land = problem.landscape(sizes=sizes)
    g = problem.example_gradients()
    return Case(land.fisher(land.origin, kind="empirical"), g.T @ g / len(g))


def covariance(problem, sizes=None):
    land = problem.landscape(sizes=sizes)
    return Case(
        land.gradient_covariance(land.origin), torch.cov(problem.example_gradients().T)
    )


def weight_decay(problem):
    land = problem.landscape(sizes=[9, 14], weight_decay=0.3, decay="*weight")
    mask = torch.cat(
        [
            torch.full((p.numel(),), float(name.endswith("weight")), dtype=p.dtype)
            for name, p in problem.parameters().items()
        ]
    )
    dense = problem.dense_hessian() + 0.3 * torch.diag(mask)
    return Case(land.hessian(land.origin), dense)


def part(whole, names="2.*"):
    """The diagonal block of some parameters, differentiated in these alone."""
    keep = whole.operator.layout.indices(names)
    dense = whole.dense[keep][:, keep]
    return Case(whole.operator.submatrix(names), dense, whole.tolerance)


def damped(problem):
    land = problem.landscape()
    dense = 2 * problem.dense_hessian() - problem.dense_ggn()
    dense = dense + 0.1 * torch.eye(land.dim, dtype=land.dtype)
    operator = 2 * land.hessian(land.origin) - land.ggn(land.origin)
    return Case(operator.shift(0.1), dense)


CASES = {
    "hessian": lambda: hessian(problems.softmax_problem()),
    "hessian, uneven batches": lambda: hessian(
        problems.softmax_problem(), sizes=[9, 14]
    ),
    "hessian, rebuilt": lambda: hessian(
        problems.softmax_problem(), sizes=[9, 14], method="rebuilt"
    ),
    "hessian, partly kept": lambda: hessian(
        problems.softmax_problem(), sizes=[9, 9, 5], cache=6000
    ),
    "hessian, differences": lambda: hessian(
        problems.softmax_problem(), sizes=[9, 14], tolerance=1e-6, method="fd"
    ),
    "hessian, squared": lambda: hessian(problems.squared_problem()),
    "hessian, tied, frozen, unused": lambda: hessian(problems.tied_problem()),
    "hessian, attention": lambda: hessian(problems.attention_problem()),
    "hessian, weight decay": lambda: weight_decay(problems.softmax_problem()),
    "hessian, part": lambda: part(hessian(problems.softmax_problem(), sizes=[9, 14])),
    "hessian, part of a part": lambda: part(
        part(hessian(problems.softmax_problem(), sizes=[9, 14])), "2.weight"
    ),
    "hessian, tied part": lambda: part(
        hessian(problems.tied_problem()), ("first*", "unused")
    ),
    "hessian, rebuilt part": lambda: part(
        hessian(problems.softmax_problem(), sizes=[9, 14], method="rebuilt")
    ),
    "hessian, part by differences": lambda: part(
        hessian(problems.softmax_problem(), method="fd", tolerance=1e-6)
    ),
    "hessian, weight decay, part": lambda: part(
        weight_decay(problems.softmax_problem())
    ),
    "ggn, part": lambda: part(ggn(problems.softmax_problem(), sizes=[9, 14])),
    "empirical Fisher, part": lambda: part(
        empirical_fisher(problems.softmax_problem(), [9, 14])
    ),
    "covariance, part": lambda: part(covariance(problems.softmax_problem(), [9, 14])),
    "ggn, softmax": lambda: ggn(problems.softmax_problem(), sizes=[9, 14]),
    "ggn, rebuilt": lambda: ggn(problems.softmax_problem(), sizes=[9, 14], cache=False),
    "ggn, squared": lambda: ggn(problems.squared_problem(), sizes=[22, 1]),
    "ggn, binary": lambda: ggn(problems.binary_problem()),
    "ggn, any loss": lambda: ggn(problems.huber_problem(), sizes=[9, 14]),
    "ggn, tied, frozen, unused": lambda: ggn(problems.tied_problem()),
    "ggn, attention": lambda: ggn(problems.attention_problem()),
    "true Fisher": lambda: true_fisher(problems.softmax_problem()),
    "empirical Fisher": lambda: empirical_fisher(problems.softmax_problem(), [9, 14]),
    "empirical Fisher, squared": lambda: empirical_fisher(problems.squared_problem()),
    "covariance": lambda: covariance(problems.softmax_problem(), [9, 14]),
    "covariance, one batch": lambda: covariance(problems.squared_problem()),
    "sum, shift, multiple": lambda: damped(problems.softmax_problem()),
}


@cache
def built(name):
    return CASES[name]()


@pytest.fixture(params=CASES)
def case(request):
    return built(request.param)


def vectors(case, k):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(case.operator.dim, k, dtype=torch.float64, generator=generator)


def close(a, b, case, scale=1.0):
    atol = case.tolerance * scale * float(case.dense.abs().max())
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def test_dense(case):
    close(case.operator.dense(), case.dense, case)


def test_product_with_a_vector(case):
    v = vectors(case, 1)[:, 0]
    close(case.operator @ v, case.dense @ v, case, scale=10)


def test_block_equals_stacked_vectors_to_the_bit(case):
    V = vectors(case, 3)
    stacked = torch.stack([case.operator @ v for v in V.unbind(1)], dim=1)
    assert torch.equal(case.operator @ V, stacked)


def test_symmetry_and_linearity(case):
    u, v = vectors(case, 2).unbind(1)
    Au, Av = case.operator @ u, case.operator @ v
    close(v @ Au, u @ Av, case, scale=100)
    close(case.operator @ (2 * u - v), 2 * Au - Av, case, scale=100)


def test_project(case):
    U = vectors(case, 4)
    rhs = vectors(case, 5)[:, 4]
    projected = U.T @ case.dense @ U
    close(case.operator.project(U), projected, case, scale=100)
    matrix, right = case.operator.project(U, rhs)
    close(matrix, projected, case, scale=100)
    close(right, U.T @ (case.dense @ rhs), case, scale=100)


def test_project_by_any_linear_map(case):
    class Rows:
        """Columns e_0 + e_1 and e_2, as a map without a matrix."""

        def __init__(self, dim):
            self.shape = (dim, 2)

        def __matmul__(self, c):
            out = torch.zeros(self.shape[0], dtype=c.dtype)
            out[0] = out[1] = c[0]
            out[2] = c[1]
            return out

        @property
        def T(self):
            return _Transposed(self.shape)

    class _Transposed:
        def __init__(self, shape):
            self.shape = shape[::-1]

        def __matmul__(self, v):
            return torch.stack([v[0] + v[1], v[2]])

    U = Rows(case.operator.dim)
    dense = torch.zeros(case.operator.dim, 2, dtype=torch.float64)
    dense[0, 0] = dense[1, 0] = dense[2, 1] = 1
    close(case.operator.project(U), dense.T @ case.dense @ dense, case, scale=100)


def test_project_on_nothing(case):
    assert case.operator.project(vectors(case, 0)).shape == (0, 0)


def test_counts(case):
    before = case.operator.products
    _ = case.operator @ vectors(case, 1)[:, 0]
    assert case.operator.products == before + 1
    _ = case.operator @ vectors(case, 4)
    assert case.operator.products == before + 5
    case.operator.project(vectors(case, 3), vectors(case, 1)[:, 0])
    assert case.operator.products == before + 9


def test_scipy(case):
    scipy_operator = case.operator.to_scipy()
    v = vectors(case, 2).numpy()
    dense = case.dense.numpy()
    np.testing.assert_allclose(
        scipy_operator @ v, dense @ v, atol=100 * case.tolerance * abs(dense).max()
    )
    assert scipy_operator.matvec(v[:, 0]).shape == (len(v),)
    assert scipy_operator.dtype == np.float64


def test_usable_after_close(case):
    v = vectors(case, 1)[:, 0]
    before = case.operator @ v
    with case.operator as operator:
        _ = operator @ v
    assert torch.equal(case.operator @ v, before)


def test_wrong_shapes(case):
    with pytest.raises(StructureError, match="cannot multiply"):
        _ = case.operator @ torch.zeros(case.operator.dim + 1, dtype=torch.float64)
    with pytest.raises(StructureError, match="basis"):
        case.operator.project(torch.zeros(case.operator.dim + 1, 2))


def test_products_of_a_part_count_in_the_whole():
    land = problems.softmax_problem().landscape()
    for whole in (land.hessian(land.origin), land.ggn(land.origin)):
        one = whole.submatrix("2.*").submatrix("2.weight")
        one.project(torch.eye(one.dim, 2, dtype=torch.float64))
        _ = one @ torch.ones(one.dim, dtype=torch.float64)
        assert one.products == whole.products == 3


def test_a_part_that_nothing_depends_on_is_zero():
    land = problems.tied_problem().landscape()
    for whole in (
        land.hessian(land.origin),
        land.ggn(land.origin),
        land.fisher(land.origin, kind="empirical"),
        land.gradient_covariance(land.origin),
    ):
        unused = whole.submatrix("unused")
        assert not unused.dense().any()
        assert not unused.project(torch.eye(2, dtype=torch.float64)).any()


def test_a_dropped_operator_frees_its_graphs_at_once():
    import gc
    import weakref

    land = problems.softmax_problem().landscape()
    gc.disable()
    try:
        for make in (land.hessian, land.ggn, land.gradient_covariance):
            operator = make(land.origin)
            _ = operator @ land.origin
            graph = weakref.ref(operator.graphs)
            del operator
            assert graph() is None
    finally:
        gc.enable()


def test_trace_of_a_part_of_the_covariance():
    problem = problems.softmax_problem()
    land = problem.landscape(sizes=[9, 14])
    part_of_it = land.gradient_covariance(land.origin).submatrix("2.*")
    keep = land.layout.indices("2.*")
    exact = torch.cov(problem.example_gradients()[:, keep].T).trace()
    assert part_of_it.trace() == pytest.approx(float(exact), rel=1e-10)
