"""Descents to certified minima, against a loop of scipy on the same starts.

    python -m benchmarks two_layer_relu

Prints JSON and keeps it under results/. One thread; CPU seconds of this process;
contenders take turns. scipy's L-BFGS-B runs on a vectorized NumPy objective and ends at
gradient norms of 1e-8 to 1e-7; it is counted alone, and with the Newton polish to 1e-10
and the Cholesky certificate that thalweg's descents have.
"""

import math
import statistics
from collections.abc import Callable

import numpy as np
import scipy.optimize
import torch

from benchmarks.timing import cpu
from thalweg.seeding import normal
from thalweg.solvable import ReLUTeacherStudent
from thalweg.solvable.two_layer_relu import OverlapFlow, wilson
from thalweg.solvable.two_layer_relu.objective import Objective
from thalweg.solvable.two_layer_relu.polish import certify, newton_polish

OURS = {6: 2000, 10: 1000, 20: 400}
PEERS = {6: 60, 10: 40, 20: 20}
TRUST = {6: 6, 10: 3, 20: 1}
REPEATS = 3
F64 = torch.zeros((), dtype=torch.float64)


def numpy_objective(V: np.ndarray) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """Return x -> (loss, gradient) in NumPy."""
    d = V.shape[1]
    norm_v = np.linalg.norm(V, axis=1)
    cos = np.clip(V @ V.T / np.outer(norm_v, norm_v), -1, 1)
    sin = np.sqrt(1 - cos * cos)
    kernel = np.outer(norm_v, norm_v) * (sin + (np.pi - np.arccos(cos)) * cos)
    teachers = kernel.sum() / (4 * np.pi)

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        W = x.reshape(-1, d)
        K = len(W)
        norm = np.sqrt((W * W).sum(1))
        norms = np.concatenate([norm, norm_v])
        G = W @ np.concatenate([W, V]).T
        cos = np.clip(G / (norm[:, None] * norms), -1, 1)
        sin = np.sqrt((1 - cos) * (1 + cos))
        A = (np.pi - np.arccos(cos)) / (2 * np.pi)
        norms[K:] *= -1
        sin *= norms / (2 * np.pi)
        c = sin.sum(1) / norm
        gradient = A[:, :K] @ W - A[:, K:] @ V + c[:, None] * W
        mixed = (A[:, K:] * G[:, K:]).sum() - (norm * sin[:, K:].sum(1)).sum()
        value = ((W * gradient).sum() - mixed) / 2 + teachers
        return value, gradient.ravel()

    return value_and_gradient


def scipy_loop(V: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return where L-BFGS-B ends from each start."""
    f = numpy_objective(V)
    options = {"maxiter": 20_000, "maxfun": 20_000, "gtol": 1e-10, "ftol": 1e-15}
    return np.stack(
        [
            scipy.optimize.minimize(
                f, start.ravel(), jac=True, method="L-BFGS-B", options=options
            ).x.reshape(start.shape)
            for start in starts
        ]
    )


def polish_loop(ends: np.ndarray, V: torch.Tensor) -> np.ndarray:
    """Polish and certify one by one, as a user of the loop would; return the ends."""
    polished = []
    for end in torch.from_numpy(ends):
        W, _ = newton_polish(end[None], V, 1e-10, -math.inf)
        certify(W, V, fresh=False)
        polished.append(W)
    return torch.cat(polished).numpy()


def trust_exact(V: torch.Tensor, starts: np.ndarray) -> None:
    """Run trust-exact with the closed-form Hessian, to 1e-6: it breaks down below."""
    f = numpy_objective(V.numpy())
    land = ReLUTeacherStudent(V, starts.shape[1])
    for start in starts:
        scipy.optimize.minimize(
            lambda x: f(x)[0],
            start.ravel(),
            jac=lambda x: f(x)[1],
            hess=lambda x: land.hessian(torch.from_numpy(x)).dense().numpy(),
            method="trust-exact",
            options={"gtol": 1e-6, "maxiter": 1000},
        )


def levels(losses: np.ndarray) -> dict[str, int]:
    """Return how many descents ended at each loss."""
    names, counts = np.unique(np.round(np.abs(losses), 6), return_counts=True)
    return {f"{name:.6f}": int(n) for name, n in zip(names, counts, strict=True)}


def agreement(
    all_ours: np.ndarray, ours: np.ndarray, theirs: np.ndarray
) -> dict[str, object]:
    """Compare where the two end: same starts, and scipy's against all of ours.

    From one start two optimizers may reach two minima; the set of minima is the same,
    and so are the fractions up to what the optimizer does to them.
    """
    counts, other = levels(ours), levels(theirs)
    shared = sum(min(n, other.get(name, 0)) for name, n in counts.items())
    nearest = np.abs(theirs[:, None] - all_ours).min(1)
    return {
        "losses_thalweg": counts,
        "losses_scipy": other,
        "shared_by_the_multisets": shared / len(ours),
        "same_loss_from_same_start": float((np.abs(ours - theirs) < 1e-8).mean()),
        "scipy_losses_that_thalweg_finds": float((nearest < 1e-8).mean()),
        "at_zero_loss": {
            name: {"fraction": float((x < 1e-10).mean()), "interval": interval(x)}
            for name, x in (("thalweg", all_ours), ("scipy", theirs))
        },
    }


def interval(losses: np.ndarray) -> tuple[float, float]:
    """Return Wilson's 95 % interval of the fraction at zero loss."""
    return wilson(int((losses < 1e-10).sum()), len(losses))


def descents(K: int) -> dict[str, object]:
    """Compare at one width, K = M = d, orthonormal teacher."""
    V = torch.eye(K, dtype=torch.float64)
    land = ReLUTeacherStudent(V, K)
    starts = normal((OURS[K], K, K), 0, "benchmark", like=F64) / math.sqrt(K)
    some = starts[: PEERS[K]].numpy()
    taken: dict[str, list[float]] = {}
    land.find_minima(32)  # warm
    for _ in range(REPEATS):
        ours, found = cpu(lambda: land.find_minima(OURS[K], init=starts))
        alone, ends = cpu(lambda: scipy_loop(V.numpy(), some))
        extra, polished = cpu(lambda: polish_loop(ends, V))  # noqa: B023  # called at once
        batch, _ = cpu(
            lambda: certify(
                newton_polish(torch.from_numpy(ends), V, 1e-10, -math.inf)[0],  # noqa: B023
                V,
                fresh=False,
            )
        )
        trust, _ = cpu(lambda: trust_exact(V, some[: TRUST[K]]))
        for name, seconds, n in (
            ("thalweg", ours, OURS[K]),
            ("scipy", alone, PEERS[K]),
            ("polish, one by one", extra, PEERS[K]),
            ("polish, batched", batch, PEERS[K]),
            ("trust-exact", trust, TRUST[K]),
        ):
            taken.setdefault(name, []).append(seconds / n)
    each = {name: statistics.median(values) for name, values in taken.items()}
    same = land.find_minima(PEERS[K], init=starts[: PEERS[K]]).loss.numpy()
    theirs = land.loss(torch.from_numpy(polished).flatten(-2)).numpy()
    evaluations = found.n_iter.double().mean().item()
    return {
        "K": K,
        "descents_per_second": 1 / each["thalweg"],
        "certified": float((found.kind == 0).double().mean()),
        "largest_gradient_norm": float(found.grad_norm.max()),
        "evaluations_each": evaluations,
        "evaluations_per_second": evaluations / each["thalweg"],
        "scipy_per_second": 1 / each["scipy"],
        "scipy_and_polish_per_second": 1 / (each["scipy"] + each["polish, one by one"]),
        "ratio_to_scipy": each["scipy"] / each["thalweg"],
        "ratio_to_scipy_and_polish": (each["scipy"] + each["polish, one by one"])
        / each["thalweg"],
        "ratio_to_scipy_and_batched_polish": (each["scipy"] + each["polish, batched"])
        / each["thalweg"],
        "ratio_to_trust_exact": each["trust-exact"] / each["thalweg"],
        "agreement": agreement(found.loss.numpy(), same, theirs),
    }


def kernels(K: int = 20) -> dict[str, object]:
    """Time the gradient, its angles, batches, the Hessian and the SGD equations."""
    V = torch.eye(K, dtype=torch.float64)
    f = Objective(V, K)
    W = normal((256, K, K), 0, "kernels", like=F64) / math.sqrt(K)
    both = torch.cat([W, V.expand(256, K, K)], 1)
    units = both / both.norm(dim=-1, keepdim=True)
    cos = torch.bmm(units[:, :K], units.mT)[:100].contiguous()

    def angles() -> torch.Tensor:
        sin = (1 - cos * cos).clamp_min_(0.0).sqrt_()
        return torch.atan2(sin, cos)

    def per_call(work: Callable[[], object], n: int) -> float:
        work()
        seconds = [cpu(lambda: [work() for _ in range(n)])[0] / n for _ in range(5)]
        return min(seconds)

    gradient = {n: per_call(lambda: f(W[:n]), 20) / n for n in (25, 50, 100, 200)}  # noqa: B023
    land = ReLUTeacherStudent(V, K)
    point = W[0].reshape(-1)

    def smooth_loss(x: torch.Tensor) -> torch.Tensor:
        X = torch.cat([x.view(K, K), V])
        sign = torch.cat([torch.ones(K), -torch.ones(K)]).double()
        norm = X.norm(dim=1)
        cos = (X @ X.T) / torch.outer(norm, norm)
        off = 1 - torch.eye(2 * K, dtype=torch.float64)
        theta = torch.acos(cos * off)
        h = (theta.sin() + (math.pi - theta) * cos * off) * off / (2 * math.pi)
        weights = norm * sign
        return weights @ h @ weights / 2 + norm.square().sum() / 4

    closed = per_call(lambda: land.hessian(point).dense(), 5)
    autograd = per_call(lambda: torch.func.hessian(smooth_loss)(point), 1)
    exact = torch.func.hessian(smooth_loss)(point)
    error = (land.hessian(point).dense() - exact).abs().max()
    equations = {}
    for n in (2, 4):
        X = normal((2 * n, 2 * n + 2), 0, "overlaps", like=F64)
        S = X @ X.T
        flow = OverlapFlow(S[n:, n:], 0.5, 0.1)
        with torch.inference_mode():  # as the integrator runs it
            seconds = per_call(lambda: flow(S[:n, :n], S[:n, n:]), 50)  # noqa: B023
        equations[f"K=M={n}"] = 1e3 * seconds
    return {
        "gradient_us_by_batch": {n: 1e6 * t for n, t in gradient.items()},
        "share_of_time_in_angles": per_call(angles, 20) / (100 * gradient[100]),
        "hessian_ms": 1e3 * closed,
        "hessian_autograd_ms": 1e3 * autograd,
        "hessian_ratio": autograd / closed,
        "hessian_error": float(error),
        "sgd_equations_ms": equations,
    }


def measure() -> dict[str, object]:
    """Measure descents at all widths, and the kernels."""
    return {"descents": [descents(K) for K in OURS], "kernels": kernels()}
