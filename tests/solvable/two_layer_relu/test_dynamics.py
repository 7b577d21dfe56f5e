"""Moments, equations of one-pass SGD, simulation and Jacobian, each against others."""

import itertools
import math

import pytest
import torch

from draws import draw
from thalweg.errors import InputError
from thalweg.seeding import generator
from thalweg.solvable import ReLUTeacherStudent
from thalweg.solvable.two_layer_relu import OverlapFlow, orthant_moments


def eye(k):
    return torch.eye(k, dtype=torch.float64)


def sampled(X, quad, samples=400_000):
    """Monte Carlo mean and standard error of 1_i 1_j ReLU(u_a) ReLU(u_b), u = X z."""
    z = torch.randn(
        samples, X.shape[1], generator=generator(7, *quad), dtype=torch.float64
    )
    u = z @ X.T
    i, j, a, b = quad
    values = (u[:, i] > 0) * (u[:, j] > 0) * u[:, a].relu() * u[:, b].relu()
    return float(values.mean()), float(values.std()) / samples**0.5


# One quadruple for each way in which indices can coincide.
CASES = [
    (0, 0, 0, 0), (0, 0, 1, 1), (0, 1, 0, 0), (0, 1, 1, 1), (0, 1, 0, 1), (0, 0, 0, 1),
    (0, 0, 1, 2), (0, 1, 0, 2), (0, 1, 1, 2), (0, 1, 2, 2), (0, 1, 2, 3),
]  # fmt: skip


@pytest.mark.parametrize("rank", [4, 3, 2])
@pytest.mark.parametrize("quad", CASES)
def test_moments_against_samples_in_all_index_cases(quad, rank):
    X = draw(4, rank, seed=rank)
    J = orthant_moments(X @ X.T)
    mean, error = sampled(X, quad)
    i, j, a, b = quad
    assert abs(mean - float(J[quad])) < 4 * error + 1e-12
    for other in ((j, i, a, b), (i, j, b, a), (j, i, b, a)):
        assert float(J[other]) == float(J[quad])


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(("x", "y"), [(0, 1), (0, 2), (2, 3)])
def test_moments_of_collinear_variables(x, y, sign):
    X = draw(4, 3, seed=5)
    X[y] = sign * 2 * X[x]
    J = orthant_moments(X @ X.T)
    for quad in CASES[4:]:
        mean, error = sampled(X, quad)
        assert abs(mean - float(J[quad])) < 4 * error + 1e-12
    near = X + 1e-7 * draw(4, 3, seed=6)
    torch.testing.assert_close(
        orthant_moments(near @ near.T), J, rtol=0, atol=1e-6 * float(J.abs().max())
    )


def test_moments_are_smooth_through_rank_deficiency():
    X = draw(4, 2, seed=8)
    pad = torch.nn.functional.pad
    flat = orthant_moments(X @ X.T)
    for size in (1e-3, 1e-5, 1e-7):
        near = pad(X, (0, 2)) + size * pad(draw(4, 2, seed=9), (2, 0))
        gap = (orthant_moments(near @ near.T) - flat).abs().max()
        assert float(gap) < 5 * size + 1e-7


def test_the_four_variate_orthant_of_equal_correlations():
    """P(all > 0) = 1/5 at correlation ½; the moments' derivative relation holds."""
    sigma = torch.full((4, 4), 0.5, dtype=torch.float64).fill_diagonal_(1.0)
    # dJ/dΣ_ab is the orthant probability (Price's theorem), for all distinct.
    step = 1e-4
    plus, minus = sigma.clone(), sigma.clone()
    for matrix, sign in ((plus, 1), (minus, -1)):
        matrix[2, 3] += sign * step
        matrix[3, 2] += sign * step
    slope = orthant_moments(plus)[0, 1, 2, 3] - orthant_moments(minus)[0, 1, 2, 3]
    assert float(slope / (2 * step)) == pytest.approx(0.2, abs=1e-7)


def test_moments_scale_and_take_batches():
    X = draw(3, 4, 4, seed=10)
    sigma = X @ X.mT
    J = orthant_moments(sigma, indicators=2)
    assert J.shape == (3, 2, 2, 4, 4)
    one = orthant_moments(sigma[1])
    torch.testing.assert_close(J[1], one[:2, :2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(orthant_moments(9 * sigma[1]), 9 * one)
    assert orthant_moments(sigma[:0]).shape == (0, 4, 4, 4, 4)


def test_noise_term_is_the_second_moment_of_the_error():
    V, W, delta = draw(2, 3, seed=11), draw(2, 3, seed=12), 0.3
    flow = OverlapFlow(V @ V.T, delta=delta)
    land = ReLUTeacherStudent(V, 2)
    S, _ = land.S_B(W)
    A = S - torch.diag(S.diagonal() - 0.5)
    joint = torch.cat([W, V])
    N = flow.noise_term(joint @ joint.T, A)
    x = torch.randn(10**6, 3, generator=generator(13), dtype=torch.float64)
    xi = torch.randn(10**6, generator=generator(14), dtype=torch.float64)
    error = (x @ W.T).relu().sum(1) - (x @ V.T).relu().sum(1) - delta**0.5 * xi
    for i, j in ((0, 0), (0, 1), (1, 1)):
        values = error.square() * (x @ W[i] > 0) * (x @ W[j] > 0)
        assert abs(values.mean() - N[i, j]) < 4 * values.std() / 1e3


def test_the_flow_without_noise_is_gradient_flow_in_weight_space():
    from scipy.integrate import solve_ivp

    land = ReLUTeacherStudent(eye(3), 3, d=5)
    W0 = draw(3, 5, seed=15) / 2

    def slope(t, w):
        return -land.gradient(torch.from_numpy(w)).numpy()

    exact = solve_ivp(
        slope, (0, 4), land.point(W0).numpy(), rtol=1e-10, atol=1e-12,
        t_eval=[0, 1, 4],
    )  # fmt: skip
    W = torch.from_numpy(exact.y.T.copy()).view(3, 3, 5)
    for method, step in (("rk45", None), ("rk4", 0.02)):
        path = land.ode(
            W0, t_max=4, noise=False, record=[0, 1, 4], method=method, step=step
        )
        torch.testing.assert_close(path.Q, W @ W.mT, rtol=0, atol=1e-7)
        torch.testing.assert_close(path.R, W @ land.V.T, rtol=0, atol=1e-7)
        torch.testing.assert_close(
            path.loss, land.loss(W.flatten(-2)), rtol=0, atol=1e-7
        )


def test_both_integrators_agree_with_noise():
    land = ReLUTeacherStudent(eye(2), 2, d=4)
    W0 = draw(2, 4, seed=16) / 2
    options = {"eta": 0.4, "delta": 0.1, "t_max": 3.0, "record": 4}
    fine = land.ode(W0, **options, method="rk45")
    coarse = land.ode(W0, **options)
    torch.testing.assert_close(coarse.Q, fine.Q, rtol=0, atol=1e-5)
    overlaps = land.ode(land.overlaps(W0)[:2], **options)
    torch.testing.assert_close(overlaps.R, coarse.R)


def test_simulated_sgd_approaches_the_equations_as_the_root_of_dimension():
    V = eye(2)
    Q0 = torch.tensor([[0.3, 0.05], [0.05, 0.4]], dtype=torch.float64)
    R0 = torch.tensor([[0.2, 0.1], [-0.1, 0.3]], dtype=torch.float64)
    land = ReLUTeacherStudent(V, 2)
    options = {"eta": 0.5, "delta": 0.05, "t_max": 2.0, "record": 5}
    exact = land.ode((Q0, R0), **options)
    deviations = []
    for d in (50, 200, 800):
        runs = land.simulate_sgd((Q0, R0), **options, d=d, seeds=range(24))
        torch.testing.assert_close(runs.Q[:, 0], Q0.expand(24, 2, 2))
        torch.testing.assert_close(runs.R[:, 0], R0.expand(24, 2, 2))
        gap = torch.cat([runs.Q - exact.Q, runs.R - exact.R], -1)[:, 1:]
        deviations.append(float(gap.abs().mean()))
    for coarse, fine in itertools.pairwise(deviations):
        assert 1.5 < coarse / fine < 2.7
    error = gap.std(0) / math.sqrt(24)
    assert float((gap.mean(0).abs() / error).max()) < 4.5  # 24 figures at once


def test_an_integration_leaves_ordinary_tensors():
    """Its inference mode reaches neither the tables that are kept nor the results."""
    from thalweg.solvable.two_layer_relu import moments

    tables = (moments._indices, moments._rule)
    for table in tables:
        table.cache_clear()
    path = ReLUTeacherStudent(eye(2), 2, d=4).ode(draw(2, 4), 0.2, t_max=0.1, record=2)
    kept = (*moments._indices(2, 4), *moments._rule(16))
    for tensor in (path.Q, path.R, path.loss, *kept):
        assert not tensor.is_inference()


def test_zero_loss_is_a_fixed_point_until_labels_are_noisy():
    land = ReLUTeacherStudent(eye(2), 2)
    Q, R, P = land.overlaps(eye(2))
    dQ, dR = OverlapFlow(P, eta=1.5)(Q, R)
    assert float(dQ.abs().max()) < 1e-7  # half the digits at collinear pairs
    assert float(dR.abs().max()) < 1e-7
    floors = []
    for eta, delta in ((0.2, 0.1), (0.4, 0.1), (0.4, 0.2)):
        path = land.ode(0.9 * eye(2), eta, delta, t_max=20 / eta, record=2, step=0.5)
        floors.append(float(path.loss[-1]))
    assert 1e-4 < floors[0] < floors[1] < floors[2]


def numeric_jacobian(land, W):
    """Central differences of the flow's right-hand side in (R, Q symmetric)."""
    Q, R, P = land.overlaps(W)
    flow = OverlapFlow(P, noise=False)
    K, M = R.shape
    i, j = torch.triu_indices(K, K)

    def pack(q, r):
        return torch.cat([r.reshape(-1), q[i, j]])

    columns = []
    n = K * M + len(i)
    for index in range(n):
        moved = []
        for step in (1e-6, -1e-6):
            q, r = Q.clone(), R.clone()
            if index < K * M:
                r.view(-1)[index] += step
            else:
                a, b = int(i[index - K * M]), int(j[index - K * M])
                q[a, b] += step
                if a != b:
                    q[b, a] += step
            moved.append(pack(*flow(q, r)))
        columns.append((moved[0] - moved[1]) / 2e-6)
    return torch.stack(columns, 1)


def test_jacobian_of_the_flow_against_differences_at_a_spurious_minimum():
    land = ReLUTeacherStudent(eye(6), 6)
    W = land.symmetric_minimum((5, 1)).W
    jacobian = land.ode_jacobian(W)
    numeric = torch.linalg.eigvals(numeric_jacobian(land, W)).real.sort().values
    torch.testing.assert_close(jacobian.eigenvalues, numeric, rtol=0, atol=1e-5)
    assert jacobian.attractive
    saddle = ReLUTeacherStudent(eye(5), 5)
    W = saddle.symmetric_minimum((4, 1)).W
    assert not saddle.ode_jacobian(W).attractive


def test_jacobian_of_dependent_teachers_is_in_coordinates_of_their_span():
    """Three teachers in a plane fix R by two columns: the flow is that of (C, Q)."""
    V = draw(3, 2, seed=18)
    land = ReLUTeacherStudent(V, 2)
    W = land.families(land.find_minima(20))[0].W
    Q, C, P = W @ W.T, W.clone(), V @ V.T
    flow = OverlapFlow(P, noise=False)
    i, j = torch.triu_indices(2, 2)

    def slope(x):
        q = torch.zeros(2, 2, dtype=torch.float64)
        q[i, j] = q[j, i] = x[4:]
        dQ, dR = flow(q, x[:4].view(2, 2) @ V.T)
        return torch.cat([(dR @ torch.linalg.pinv(V.T)).reshape(-1), dQ[i, j]])

    x = torch.cat([C.reshape(-1), Q[i, j]])
    steps = 1e-7 * torch.eye(7, dtype=torch.float64)
    numeric = torch.stack([(slope(x + h) - slope(x - h)) / 2e-7 for h in steps], 1)
    expected = torch.linalg.eigvals(numeric).real.sort().values
    found = land.ode_jacobian(W)
    torch.testing.assert_close(found.eigenvalues, expected, rtol=0, atol=1e-6)
    assert found.attractive


def test_the_jacobian_needs_a_critical_point_in_the_span():
    land = ReLUTeacherStudent(eye(2), 2, d=3)
    with pytest.raises(InputError, match="leaves it by"):
        land.ode_jacobian(draw(2, 3))
    with pytest.raises(InputError, match="its gradient is"):
        land.ode_jacobian(torch.eye(2, 3, dtype=torch.float64) + 0.1 * eye(3)[:2])


LAND = ReLUTeacherStudent(eye(2), 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: LAND.ode(eye(2), 0.0, t_max=1),
            "eta must be positive and finite, got 0",
        ),
        (lambda: LAND.ode(eye(2), 1.0, -1.0, t_max=1), "delta must be finite.*got -1"),
        (lambda: LAND.ode(eye(2), 1.0, t_max=0), "t_max must be positive.*got 0"),
        (lambda: LAND.ode(eye(2), math.inf, t_max=1), "eta must be.*got inf"),
        (lambda: LAND.ode(eye(2), 1.0, math.nan, t_max=1), "delta must be.*got nan"),
        (lambda: LAND.ode(eye(2), t_max=math.inf), "t_max must be.*got inf"),
        (lambda: LAND.ode(eye(2), t_max=1, record=1), "at least 2 times, got 1"),
        (lambda: LAND.ode(eye(2), t_max=1, record=[2.0]), r"times in \[0, 1\]"),
        (lambda: LAND.ode(eye(2), t_max=1, step=-1.0), "step must be positive"),
        (lambda: LAND.ode(draw(2, 2), 40.0, t_max=9, step=3.0), "step is too long"),
        (lambda: LAND.ode((eye(3), eye(3)[:, :2]), t_max=1), r"\(2, 2\) and \(2, 2\)"),
        (lambda: LAND.ode((eye(2), 2 * eye(2)), t_max=1), "semi-definite"),
        (lambda: LAND.ode(draw(3, 2, 2), t_max=1), r"W0 must be one .*\(3, 2, 2\)"),
        (lambda: LAND.simulate_sgd(draw(3, 2, 2), 1.0, t_max=1), "W0 must be one stu"),
        (lambda: LAND.simulate_sgd(eye(2), 0.0, t_max=1), "eta must be positive"),
        (lambda: LAND.simulate_sgd(eye(2), 1.0, t_max=1, seeds=()), "at least one"),
        (
            lambda: LAND.simulate_sgd((2 * eye(2), eye(2)), 1.0, t_max=1, d=3),
            r"rank V \+ rank G = 2 \+ 2",
        ),
        (lambda: orthant_moments(draw(2, 2)), "Sigma must be symmetric"),
        (lambda: orthant_moments(-eye(2)), "positive semi-definite"),
        (lambda: orthant_moments(eye(2), 3), "indicators <= n"),
    ],
)
def test_bad_rates_times_and_overlaps(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_duplicate_record_times_are_merged():
    path = LAND.ode(0.5 * eye(2), t_max=1.0, record=[0.0, 1.0, 1.0, 0.5])
    assert path.times.tolist() == [0.0, 0.5, 1.0]
