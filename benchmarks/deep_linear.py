"""Ensembles of deep linear modes against torchsde, NumPy and plain loops.

    python -m benchmarks deep_linear

Prints JSON and keeps it under results/. One thread; CPU seconds of this process;
contenders take turns, after a warm-up. All integrate the same equation for the same
number of steps, by Euler's scheme where they do not name another; what the ends of the
paths are is compared.
"""

import math
import random
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.timing import race
from thalweg.seeding import normal
from thalweg.solvable import DeepLinear
from thalweg.solvable.deep_linear import simulate_modes

STEPS = {1_000: 1000, 10_000: 300, 100_000: 60}
BATCHES = (1, 2, 16, 1024, 65_536)
REPEATS = 5
S, L, ETA, B, SIGMA, S0 = 1.0, 2, 0.02, 4, 0.3, 0.5
F64 = torch.zeros((), dtype=torch.float64)


def summary(s: np.ndarray) -> dict[str, float]:
    """Return mean, its standard error and the deviation of strengths."""
    s = np.asarray(s, dtype=np.float64)
    return {
        "mean": float(s.mean()),
        "stderr": float(s.std() / math.sqrt(s.size)),
        "deviation": float(s.std()),
    }


def thalweg_paths(n: int, steps: int, **options: object) -> Callable[[], object]:
    """Integrate n paths with `simulate_modes`."""
    settings = {"sigma": SIGMA, "scheme": "euler", "record_every": steps} | options
    return lambda: summary(
        simulate_modes(
            S, L, ETA, B, s0=S0, n_steps=steps, n_paths=n, seed=0, **settings
        ).final
    )


def torchsde_paths(n: int, steps: int) -> Callable[[], object]:
    """Integrate n paths with torchsde's Euler in float32."""

    class Mode(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
            return -a * (a * a - S)

        def g(self, t: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
            v = 2 * (a * a - S) ** 2 + SIGMA**2
            return math.sqrt(ETA / B) * a * v.sqrt()

    def work() -> object:
        import torchsde

        with torch.no_grad():
            a0 = torch.full((n, 1), math.sqrt(S0))
            ends = torchsde.sdeint(
                Mode(), a0, torch.tensor([0.0, steps * ETA]), dt=ETA, method="euler"
            )[-1]
        return summary(ends.square().numpy())

    return work


def numpy_paths(n: int, steps: int) -> Callable[[], object]:
    """Integrate n paths in plain vectorized NumPy, float64."""

    def work() -> object:
        rng = np.random.default_rng(0)
        a = np.full(n, math.sqrt(S0))
        for _ in range(steps):
            e = a * a - S
            v = 2 * e**2 + SIGMA**2
            dW = math.sqrt(ETA) * rng.standard_normal(n)
            a = a - a * e * ETA + math.sqrt(ETA / B) * a * np.sqrt(v) * dW
        return summary(a * a)

    return work


def scalar_paths(n: int, steps: int) -> Callable[[], object]:
    """Integrate paths one number at a time."""

    def work() -> object:
        rng = random.Random(0)
        ends = []
        for _ in range(n):
            a = math.sqrt(S0)
            for _ in range(steps):
                e = a * a - S
                dW = rng.gauss(0, 1) * math.sqrt(ETA)
                noise = a * math.sqrt(2 * e * e + SIGMA**2)
                a += -a * e * ETA + math.sqrt(ETA / B) * noise * dW
            ends.append(a * a)
        return summary(np.array(ends))

    return work


def paths(n: int) -> dict[str, object]:
    """Compare at one number of paths."""
    steps = STEPS[n]
    few = 1000  # of the scalar loop, scaled to n
    found = race(
        {
            "thalweg": thalweg_paths(n, steps),
            "thalweg, tamed": thalweg_paths(n, steps, scheme="tamed"),
            "thalweg, milstein": thalweg_paths(n, steps, scheme="milstein"),
            "thalweg, float64": thalweg_paths(n, steps, dtype=torch.float64),
            "torchsde": torchsde_paths(n, steps),
            "numpy": numpy_paths(n, steps),
            "scalar loop": scalar_paths(few, steps),
        },
        REPEATS,
        warm=True,
    )
    for name in ("cpu_seconds", "ratio_to_ours"):
        found["scalar loop"][name] *= n / few  # type: ignore[operator]  # a float
    for row in found.values():
        if "cpu_seconds" in row:
            seconds = row["cpu_seconds"]
            row["ns_per_step"] = 1e9 * seconds / (n * steps)  # type: ignore[operator]
    return {"paths": n, "steps": steps, "contenders": found}


def batch_sizes(sigma: float, n: int = 10_000, steps: int = 300) -> dict[str, object]:
    """Time one step of scalar SGD at each batch size."""
    runs = {
        str(size): lambda size=size: summary(
            simulate_modes(
                S, L, ETA, size, s0=S0, n_steps=steps, n_paths=n, seed=0, sigma=sigma,
                scheme="sgd", record_every=steps,
            ).final
        )
        for size in BATCHES
    }  # fmt: skip
    found = race({"thalweg": runs[str(BATCHES[-1])]} | runs, REPEATS, warm=True)
    seconds = {size: found[size]["cpu_seconds"] for size in runs}
    return {
        "sigma": sigma,
        "ns_per_step": {k: 1e9 * t / (n * steps) for k, t in seconds.items()},  # type: ignore[operator]
        "1024 over 1": seconds["1024"] / seconds["1"],  # type: ignore[operator]
        "results": {size: found[size]["result"] for size in runs},
    }


def matrices(n: int = 400, steps: int = 100) -> dict[str, object]:
    """Compare replicas of a 3-3-3 network with a loop over them."""
    M = torch.diag(torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64))
    land, sigma, eta = DeepLinear(M, (3, 3, 3), sigma=0.2), 0.2, 0.02
    start = land.gaussian_start(seed=0, n=n, std=0.3)

    def ours() -> object:
        run = land.simulate_sgd(
            start, eta, 3, n_steps=steps, seed=0, record_every=steps
        )
        return summary(land.loss(run.final).numpy())

    def loop() -> object:
        rng = torch.Generator().manual_seed(0)
        losses = []
        for point in start:
            W1, W2 = land.weights(point)
            for _ in range(steps):
                x = torch.randn(3, 3, dtype=torch.float64, generator=rng)
                xi = sigma * torch.randn(3, 3, dtype=torch.float64, generator=rng)
                G = ((W2 @ W1 - M) @ x - xi) @ x.T / 3
                W1, W2 = W1 - eta * W2.T @ G, W2 - eta * G @ W1.T
            losses.append(float((W2 @ W1 - M).square().sum() / 2))
        return summary(np.array(losses))

    return race({"thalweg": ours, "loop over replicas": loop}, 3, warm=True)


def wide(width: int = 512, depth: int = 4) -> dict[str, object]:
    """Time the noise variance along one direction of a wide network."""
    widths = (width,) * (depth + 1)
    land = DeepLinear(torch.eye(width, dtype=torch.float64), widths, sigma=0.1)
    point = land.gaussian_start(seed=0, std=width**-0.5)
    direction = normal((land.dim,), 0, "direction", like=F64)
    found = race(
        {"thalweg": lambda: land.noise_variance(point, direction, 1)}, 3, warm=True
    )
    return {"width": width, "depth": depth, "parameters": land.dim} | found["thalweg"]


def measure() -> dict[str, object]:
    """Measure paths, batch sizes, replicas and a wide network."""
    return {
        "paths": [paths(n) for n in STEPS],
        "scalar SGD": [batch_sizes(sigma) for sigma in (0.0, SIGMA)],
        "matrix SGD": matrices(),
        "directional variance": wide(),
    }
