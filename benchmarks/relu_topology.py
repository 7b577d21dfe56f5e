"""Invariants, Betti numbers and ensembles of small ReLU networks, timed.

    python -m benchmarks relu_topology

Prints JSON and keeps it under results/. One thread; CPU seconds of this process; the
contenders take turns. The peer of the ensemble is a loop that trains each network as a
torch module with torch's SGD, from the same start: the losses at the end are compared.
"""

import statistics
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.timing import cpu, race
from thalweg.models import mlp
from thalweg.seeding import normal
from thalweg.solvable import relu_topology as rt
from thalweg.studies.obstruction.measurements import circle

F64 = torch.zeros((), dtype=torch.float64)
REPLICAS, STEPS, REPEATS = 200, 50, 3


def median(work: Callable[[], object], repeats: int = 5) -> float:
    """Return the median CPU seconds of a few calls after a first."""
    work()
    return statistics.median(cpu(work)[0] for _ in range(repeats))


def invariants() -> dict[str, object]:
    """Time the invariants of a million neurons, 8 inputs and 1 output, by dtype."""
    rng = np.random.default_rng(0)
    w1, w2 = rng.standard_normal((1_000_000, 8)), rng.standard_normal((1, 1_000_000))
    single = w1.astype(np.float32), w2.astype(np.float32)
    expected = (w1**2).sum(1) - w2[0] ** 2
    return {
        "neurons": len(w1),
        "seconds_float64": median(lambda: rt.invariants(w1, w2)),
        "seconds_float32": median(lambda: rt.invariants(*single)),
        "largest_error": float(np.abs(rt.invariants(w1, w2).c - expected).max()),
    }


def polynomial() -> dict[str, object]:
    """Time all Betti numbers of a thousand neurons, exact integers."""
    c = np.repeat([1.0, -1.0], 500)
    seconds = {
        f"d={d}, e={e}": median(lambda: rt.poincare_polynomial(c, d, e).terms)  # noqa: B023  # called at once
        for d, e in ((8, 1), (8, 3), (2, 2))
    }
    terms = rt.poincare_polynomial(c, 8, 3).terms
    return {
        "neurons": len(c),
        "seconds": seconds,
        "sum_is_2_to_the_1000": sum(terms.values()) == 2**1000,
    }


def together(w1: Tensor, w2: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Train all networks at once; return the losses at the end."""
    return rt.train_ensemble(w1, w2, x, y, lr=0.1, steps=STEPS).loss


def modules(w1: Tensor, w2: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Train each network as a module; return the losses at the end."""
    ends = []
    for inner, outer in zip(w1, w2, strict=True):
        net = nn.Sequential(
            nn.Linear(inner.shape[1], len(inner), bias=False),
            nn.ReLU(),
            nn.Linear(len(inner), 1, bias=False),
        ).double()
        with torch.no_grad():
            net[0].weight.copy_(inner)
            net[2].weight.copy_(outer[None])
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = (net(x)[:, 0] - y).square().mean() / 2
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            ends.append((net(x)[:, 0] - y).square().mean() / 2)
    return torch.stack(ends)


def ensembles() -> dict[str, object]:
    """Compare 200 networks trained together and one by one, on 64 points."""
    x, y = circle(64)
    results = {}
    for width in (2, 16):
        w1 = normal((REPLICAS, width, 2), 0, "w1", like=F64)
        w2 = normal((REPLICAS, width), 0, "w2", like=F64)
        found = race(
            {
                "thalweg": partial(together, w1, w2, x, y),
                "modules": partial(modules, w1, w2, x, y),
            },
            REPEATS,
            warm=True,
        )
        ends = {name: row.pop("result") for name, row in found.items()}
        results[f"{width} neurons"] = {
            "replicas": REPLICAS,
            "steps": STEPS,
            "contenders": found,
            "largest_difference_of_losses": float(
                (ends["thalweg"] - ends["modules"]).abs().max()  # type: ignore[operator]
            ),
        }
    return results


def monitor() -> dict[str, object]:
    """Time training steps of 784-512-1 at batch 128, watched and not, in turns."""
    x, y = normal((128, 784), 0, "x", like=F64), normal((128, 1), 0, "y", like=F64)
    x, y = x.float(), y.float()

    def trainer(every: int | None) -> Callable[[], object]:
        model = mlp((784, 512, 1), activation="relu")
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        if every:
            rt.Monitor(model, optimizer, every=every)

        def run() -> None:
            for _ in range(20):
                optimizer.zero_grad()
                (model(x) - y).square().mean().backward()
                optimizer.step()

        return run

    contenders = {"bare": None, "every step": 1, "every 20 steps": 20}
    runs = {name: trainer(every) for name, every in contenders.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(60):
        for name, work in runs.items():
            seconds, _ = cpu(work)
            if turn >= 2:
                taken[name].append(seconds / 20)
    each = {name: statistics.median(values) for name, values in taken.items()}
    return {
        "seconds_a_step": each,
        "overhead": {n: t / each["bare"] - 1 for n, t in each.items() if n != "bare"},
    }


def measure() -> dict[str, object]:
    """Measure invariants, Betti numbers, ensembles and the monitor."""
    return {
        "invariants": invariants(),
        "polynomial": polynomial(),
        "ensembles": ensembles(),
        "monitor": monitor(),
    }
