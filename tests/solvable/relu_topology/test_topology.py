"""Invariants, Betti numbers and components against products and enumeration."""

import time
from itertools import product

import numpy as np
import pytest
import torch

from thalweg.errors import InputError, StructureError
from thalweg.solvable import relu_topology as rt


def layers(neurons, d, e, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((neurons, d)), rng.standard_normal((e, neurons))


def test_invariants_are_differences_of_squared_norms():
    w1 = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 0.0]])
    w2 = torch.tensor([[2.0, 1.0, 2.0]])
    law = rt.invariants(w1, w2, torch.tensor([1.0, 0.0, 0.0]))
    np.testing.assert_array_equal(law.c, [22.0, 0.0, -3.0])
    np.testing.assert_array_equal(law.scale, [30.0, 2.0, 5.0])
    np.testing.assert_array_equal(law.kind, [1, 0, -1])
    np.testing.assert_array_equal(rt.invariants(w1, w2, kappa=2).c, [17.0, -1.0, -7.0])


@pytest.mark.parametrize(
    ("activation", "kappa"),
    [
        (torch.relu, 1),
        (torch.abs, 1),
        (lambda z: torch.nn.functional.leaky_relu(z, 0.3), 1),
        (lambda z: torch.relu(z) ** 2, 2),
    ],
)
def test_minibatch_gradients_are_tangent_to_the_invariant_set(activation, kappa):
    w1, w2 = (torch.from_numpy(w).requires_grad_() for w in layers(6, 4, 3))
    b = torch.linspace(-1, 1, 6, dtype=torch.float64).requires_grad_()
    rng = np.random.default_rng(1)
    x, y = torch.from_numpy(rng.standard_normal((9, 4))), rng.standard_normal((9, 3))
    out = activation(x @ w1.T + b) @ w2.T + 0.3
    torch.nn.functional.mse_loss(out, torch.from_numpy(y)).backward()
    # The invariants are quadratic: central differences are their derivative.
    forward, backward = (
        rt.invariants(w1 + h * w1.grad, w2 + h * w2.grad, b + h * b.grad, kappa).c
        for h in (0.1, -0.1)
    )
    np.testing.assert_allclose(forward, backward, rtol=0, atol=1e-12)
    assert np.abs(forward - rt.invariants(w1, w2, b, kappa).c).max() > 1e-6


def test_linear_networks_conserve_the_whole_matrix():
    w1, w2 = (torch.from_numpy(w).requires_grad_() for w in layers(5, 3, 2))
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((7, 3)))
    (x @ w1.T @ w2.T).pow(2).mean().backward()
    forward, backward = (
        rt.conserved_matrix(w1 + h * w1.grad, w2 + h * w2.grad) for h in (0.1, -0.1)
    )
    np.testing.assert_allclose(forward, backward, rtol=0, atol=1e-12)
    matrix = rt.conserved_matrix(w1, w2)
    assert np.abs(forward - matrix).max() > 1e-6
    np.testing.assert_allclose(np.diag(matrix), rt.invariants(w1, w2).c, atol=1e-13)


@pytest.mark.parametrize(("d", "e"), [(1, 1), (1, 2), (2, 1), (3, 1), (2, 2), (3, 4)])
def test_polynomial_is_the_product_of_the_factors(d, e):
    c = np.array([1.0, 2.0, -1.0, 0.0, -3.0, 0.5])
    expected = np.array([1])
    for value in c:
        factor = np.zeros(max(d, e) + 1, dtype=int)
        factor[0] = 1
        if value:
            factor[d - 1 if value > 0 else e - 1] += 1
        expected = np.convolve(expected, factor)
    found = rt.poincare_polynomial(c, d, e)
    want = np.trim_zeros(expected, "b")
    assert found.coefficients == tuple(want.tolist())
    assert found.betti(0) == 2**found.log2_components
    assert found.euler_characteristic == sum(
        (-1) ** k * b for k, b in enumerate(found.coefficients)
    )
    assert found.dimension == 6 * (d + e - 1)
    assert found.singular


def test_polynomial_of_a_thousand_neurons_is_exact():
    c = np.array([1.0] * 400 + [-1.0] * 600)
    found = rt.poincare_polynomial(c, 5, 1)
    assert found.log2_components == 600
    assert found.betti(0) == 2**600
    assert sum(found.terms.values()) == 2**1000
    assert found.betti(1) == 0


def test_a_million_neurons_and_a_thousand_betti_numbers_take_less_than_a_second():
    w1, w2 = layers(1_000_000, 8, 1)
    started = time.process_time()
    assert len(rt.invariants(w1, w2).c) == 1_000_000
    assert time.process_time() - started < 1
    started = time.process_time()
    assert rt.poincare_polynomial(np.repeat([1.0, -1.0], 500), 4, 3).terms[0] == 1
    assert time.process_time() - started < 1


def test_polynomials_are_printed_in_t():
    c = np.array([1.0, 1.0, -1.0])
    for d, e, text in (
        (2, 2, "1 + 3 t + 3 t^2 + t^3"),
        (2, 1, "2 + 4 t + 2 t^2"),
        (4, 1, "2 + 4 t^3 + 2 t^6"),
        (1, 1, "8"),
    ):
        assert str(rt.poincare_polynomial(c, d, e)) == text


def test_no_neurons_are_one_point():
    found = rt.poincare_polynomial(np.zeros(0), 3, 1)
    assert found.coefficients == (1,) and str(found) == "1"
    assert rt.components(np.zeros((0, 3)), np.zeros((1, 0))).count == 1


def test_betti_numbers_agree_with_persistent_homology_of_a_sample():
    gudhi = pytest.importorskip("gudhi")
    # Q in R² x R with c = 1 is a hyperboloid of one sheet (a circle), c = -1 of two.
    for c, betti in ((1.0, (1, 1)), (-1.0, (2, 0))):
        angle, height = np.meshgrid(np.linspace(0, 2 * np.pi, 24), np.linspace(0, 1, 6))
        if c > 0:
            v = np.concatenate([height.ravel(), -height.ravel()])
            r = np.sqrt(1 + v**2)
        else:
            r = np.tile(height.ravel(), 2)
            v = np.sqrt(1 + r**2) * np.repeat([1, -1], height.size)
        a = np.tile(angle.ravel(), 2)
        points = np.stack([r * np.cos(a), r * np.sin(a), v], 1)
        points = np.unique(points.round(9), axis=0)
        points += 1e-6 * np.random.default_rng(0).standard_normal(points.shape)
        tree = gudhi.AlphaComplex(points=points).create_simplex_tree()
        tree.persistence()
        for k in (0, 1):
            bars = np.sqrt(tree.persistence_intervals_in_dimension(k).reshape(-1, 2))
            assert int(np.sum(bars[:, 1] - bars[:, 0] > 0.35)) == betti[k]
        assert rt.poincare_polynomial(np.array([c]), 2, 1).betti(0) == betti[0]


def test_labels_are_the_signs_no_path_changes():
    w1 = np.array([[1.0, 0.0], [3.0, 0.0], [0.1, 0.2], [1.0, 1.0]])
    w2 = np.array([[-2.0, 1.0, 5.0, np.sqrt(2)]])
    found = rt.components(w1, w2)
    np.testing.assert_array_equal(found.label, [-1, 0, 1, 0])
    np.testing.assert_array_equal(found.locked, [0, 2])
    np.testing.assert_array_equal(found.free, [1])
    np.testing.assert_array_equal(found.marginal, [3])
    assert found.count == 4
    assert found.counts() == (2, 1, 1)
    assert found.counts(flow=False) == (1, 1, 2)


def test_scalar_inputs_split_free_neurons_too():
    found = rt.components(np.array([[-2.0], [1.0]]), np.array([[1.0, 3.0]]))
    np.testing.assert_array_equal(found.label, [-1, 1])
    assert found.count == 4


def test_effective_components_count_orbits_of_labels():
    c = np.array([-1.0, -1.0, -2.0, 1.0])
    labels = list(product((0, 1), repeat=3))
    permuted = {(sum(lab[:2]), lab[2]) for lab in labels}
    rescaled = {sum(lab) for lab in labels}
    assert rt.effective_components(c, 2, 1).count == len(rescaled)
    found = rt.effective_components(c, 2, 1, mode="permutations")
    assert found.count == len(permuted)
    assert rt.effective_components(c, 2, 1, mode="functions").count == 1
    assert rt.effective_components(c[:3], 2, 1, mode="functions").count == 4
    assert rt.effective_components(c, 2, 3).count == 1


def test_effective_components_match_transport():
    # Every label is tried: the classes under transport are the effective components.
    w1 = np.array([[1.0, 0.2], [0.3, 0.4], [0.5, -1.0]])
    w2 = np.array([[3.0, -2.0, 4.0]])
    classes = 0
    seen: set[tuple[int, ...]] = set()
    for label in product((-1, 1), repeat=3):
        if label in seen:
            continue
        classes += 1
        start = np.abs(w2) * np.array(label)
        for other in product((-1, 1), repeat=3):
            if rt.transport(w1, start, np.array(other)) is not None:
                seen.add(other)
    law = rt.invariants(w1, w2)
    assert classes == rt.effective_components(law, 2, 1).count == 4


def test_transport_preserves_function_and_invariants():
    w1, w2 = layers(8, 3, 1, seed=3)
    w2 *= 2
    b = np.random.default_rng(4).standard_normal(8)
    here = rt.components(w1, w2, b)
    label = here.label.copy()
    swap = [np.flatnonzero(label == s)[0] for s in (1, -1)]
    label[swap] *= -1
    moved = rt.transport(w1, w2, label, b)
    assert moved is not None
    u, v, a = moved
    x = np.random.default_rng(5).standard_normal((20, 3))
    before = np.maximum(x @ w1.T + b, 0) @ w2.T
    np.testing.assert_allclose(np.maximum(x @ u.T + a, 0) @ v.T, before, atol=1e-10)
    there = rt.components(u, v, a)
    np.testing.assert_allclose(there.invariants.c, here.invariants.c, atol=1e-10)
    np.testing.assert_array_equal(there.label, label)


def test_transport_exchanges_a_free_neuron_of_the_other_sign():
    w1, w2 = np.array([[1.0, 0.0], [0.0, 3.0]]), np.array([[2.0, -1.0]])
    moved = rt.transport(w1, w2, np.array([-1, 0]))
    assert moved is not None
    assert moved[1][0, 0] < 0 < moved[1][0, 1]
    assert rt.transport(w1[:1], w2[:, :1], np.array([-1])) is None
    silent = rt.transport(0 * w1[:1], w2[:, :1], np.array([-1]))
    assert silent is not None
    np.testing.assert_array_equal(silent[1], [[-2.0]])


@pytest.mark.parametrize("c", [-7.0, 0.0, 1e-9, 5.0])
def test_rescaling_reaches_any_invariant(c):
    w1, w2 = layers(4, 3, 2, seed=6)
    u, v = rt.rescale(w1, w2, c)
    np.testing.assert_allclose(rt.invariants(u, v).c, c, atol=1e-12)
    np.testing.assert_allclose(
        np.einsum("kd,ek->kde", u, v), np.einsum("kd,ek->kde", w1, w2), atol=1e-12
    )


def test_errors_name_the_argument():
    w1, w2 = layers(3, 2, 1)
    with pytest.raises(StructureError, match=r"\(3, 2\) and \(1, 2\)"):
        rt.invariants(w1, w2[:, :2])
    with pytest.raises(InputError, match="w1 must be finite, got an entry nan"):
        rt.invariants(w1 * np.nan, w2)
    with pytest.raises(TypeError, match="w1 must be real, got torch.complex128"):
        rt.invariants(w1 + 0j, w2)
    with pytest.raises(StructureError, match="bias must have shape"):
        rt.invariants(w1, w2, np.zeros(2))
    with pytest.raises(InputError, match="kappa must be positive"):
        rt.invariants(w1, w2, kappa=0)
    with pytest.raises(InputError, match="rtol must be at least 0"):
        rt.invariants(w1, w2, rtol=-1.0)
    with pytest.raises(InputError, match="d and e must be at least 1"):
        rt.poincare_polynomial(np.ones(2), 0, 1)
    with pytest.raises(InputError, match="atol must be at least 0"):
        rt.poincare_polynomial(np.ones(2), 1, 1, atol=-1.0)
    with pytest.raises(StructureError, match=r"c must have shape \(neurons,\)"):
        rt.poincare_polynomial(np.ones((2, 2)), 1, 1)
    with pytest.raises(InputError, match="neuron 0 cannot reach c = 1.0"):
        rt.rescale(0 * w1, w2, 1.0)
    with pytest.raises(StructureError, match=r"to must have shape \(3,\)"):
        rt.transport(w1, w2, np.ones(2))
    with pytest.raises(InputError, match="to must be \\+1 or -1 on neurons"):
        rt.transport(w1, 9 * w2, np.zeros(3))
