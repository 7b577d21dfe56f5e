"""Random bases: columns of length 1, adjoint maps, Hadamard matrices."""

from inspect import unwrap

import pytest
import torch
from scipy.linalg import hadamard as hadamard_matrix

from thalweg import instruments as ti
from thalweg.errors import InputError, StructureError
from thalweg.instruments.random_bases import hadamard
from thalweg.landscapes import LinearMap, Quadratic, column

KINDS = ["dense", "sparse", "fastfood"]
SHAPES = [(1, 1), (2, 2), (3, 2), (7, 7), (64, 16), (100, 3), (1000, 37), (1000, 600)]


def dense(basis):
    k = basis.shape[1]
    like = torch.empty(0, dtype=torch.float64)
    return torch.stack([column(basis, j, like) for j in range(k)], dim=1)


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_the_transform_is_the_matrix_of_hadamard(n):
    matrix = torch.from_numpy(hadamard_matrix(n)).double()
    x = draw(3, 2, n)
    torch.testing.assert_close(hadamard(x), x @ matrix, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dim", "k"), SHAPES)
def test_columns_have_length_one_and_the_maps_are_adjoint(kind, dim, k):
    basis = ti.random_basis(dim, k, kind, seed=3)
    assert isinstance(basis, LinearMap) and tuple(basis.shape) == (dim, k)
    assert tuple(basis.T.shape) == (k, dim)
    matrix = dense(basis)
    ones = torch.ones(k, dtype=torch.float64)
    torch.testing.assert_close(matrix.norm(dim=0), ones, rtol=1e-13, atol=0)
    c, v = draw(k), draw(dim)
    torch.testing.assert_close(basis @ c, matrix @ c, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(basis.T @ v, matrix.T @ v, rtol=1e-12, atol=1e-12)
    gap = torch.dot(basis @ c, v) - torch.dot(c, basis.T @ v)
    assert abs(gap) < 1e-12 * c.norm() * v.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_independent_and_nearly_orthogonal(kind):
    dim, k = 4000, 30
    gram = dense(ti.random_basis(dim, k, kind)).T
    gram = gram @ gram.T - torch.eye(k).double()
    # Inner products of random unit vectors have standard deviation 1 / sqrt(dim).
    assert gram.abs().max() < 6 / dim**0.5
    full = dense(ti.random_basis(130, 100, kind, seed=1))
    if kind != "sparse":  # a small sparse matrix may have equal columns
        assert torch.linalg.matrix_rank(full) == 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_basis_is_a_function_of_its_seed(kind):
    first, again, other = (ti.random_basis(50, 5, kind, seed=s) for s in (1, 1, 2))
    assert torch.equal(dense(first), dense(again))
    assert not torch.equal(dense(first), dense(other))


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_larger_basis_extends_a_smaller_one(kind):
    small, large = (ti.random_basis(70, k, kind, seed=1) for k in (4, 9))
    assert torch.equal(dense(small), dense(large)[:, :4])


def test_a_sparse_column_has_the_root_of_dim_entries():
    matrix = dense(ti.random_basis(1000, 5, "sparse"))
    assert ((matrix != 0).sum(0) == 32).all()
    expected = torch.tensor([-1.0, 0.0, 1.0]).double() / 32**0.5
    torch.testing.assert_close(matrix.unique(), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_landscapes_and_derivatives_go_through_a_basis(kind):
    A = draw(40, 40)
    full = Quadratic(A @ A.T, draw(40))
    basis = ti.random_basis(40, 6, kind)
    matrix = dense(basis)
    land = full.restrict(torch.zeros(40).double(), basis)
    c = draw(6)
    torch.testing.assert_close(land.loss(c), full.loss(matrix @ c))
    torch.testing.assert_close(land.gradient(c), matrix.T @ full.gradient(matrix @ c))
    projected = matrix.T @ full.matrix @ matrix
    torch.testing.assert_close(land.hessian(c).dense(), projected)
    single = torch.float32
    found = basis.to(single) @ c.float() if kind == "dense" else basis @ c.float()
    assert found.dtype == single
    torch.testing.assert_close(found, (matrix @ c).float(), rtol=1e-4, atol=1e-5)
    if kind != "dense":
        assert torch.autograd.gradcheck(lambda x: basis @ x, c.clone().requires_grad_())


def test_a_large_fastfood_basis_is_light():
    basis = ti.random_basis(10**6 + 3, 3000, "fastfood")
    v = draw(basis.shape[0])
    c = basis.T @ v
    assert torch.dot(basis @ c, v).item() == pytest.approx(float(c @ c), rel=1e-10)
    unit = torch.zeros(3000, dtype=torch.float64)
    unit[2999] = 1
    assert float((basis @ unit).norm()) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 2, "hash"), "kind must be one of .*'hash'"),
        ((10, 0), "k must lie in 1 ... dim = 10, got 0"),
        ((10, 11), "k must lie in 1 ... dim = 10, got 11"),
    ],
)
def test_bases_that_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        unwrap(ti.random_basis)(*arguments)


@pytest.mark.parametrize("kind", ["sparse", "fastfood"])
def test_vectors_of_another_size_are_refused(kind):
    basis = ti.random_basis(10, 3, kind)
    multiply = type(basis).__matmul__
    with pytest.raises(StructureError, match=r"\(10, 3\) multiplies a vector \(3,\)"):
        unwrap(multiply)(basis, torch.zeros(4))
    with pytest.raises(StructureError, match=r"\(3, 10\) multiplies a vector \(10,\)"):
        unwrap(type(basis.T).__matmul__)(basis.T, torch.zeros(3))
