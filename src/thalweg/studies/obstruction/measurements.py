"""What the study measures: ensembles on the circle, under decay, and on real data."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import xarray
from torch import Tensor

from thalweg.provenance import attributes
from thalweg.seeding import generator, normal, rademacher, uniform
from thalweg.solvable import relu_topology as rt
from thalweg.studies.store import StudyStore

_F64 = torch.zeros((), dtype=torch.float64)
POINTS, C = 64, 0.3
SUCCESS = 1e-8
# Two neurons: their signs at the start, and whether they are locked.
PAIRS = {
    "locked + +": ((1, 1), (True, True)),
    "locked + -": ((1, -1), (True, True)),
    "locked +, one free": ((1, 1), (True, False)),
}


@dataclass(frozen=True)
class Scale:
    """How much a size of the study does."""

    starts: int  # of each configuration and seed
    steps: int
    widths: tuple[int, ...]
    init_starts: int  # of torch's law, of each seed
    decay_steps: int
    tabular_starts: int
    tabular_steps: int


SCALES = {
    "quick": Scale(60, 5000, (2, 3, 4, 6), 1000, 4000, 10, 500),
    "default": Scale(120, 8000, (2, 3, 4, 6, 8), 3000, 8000, 30, 2000),
    "full": Scale(1000, 20_000, (2, 3, 4, 6, 8, 12, 16, 24), 10_000, 8000, 100, 4000),
}


def circle(n: int = POINTS) -> tuple[Tensor, Tensor]:
    """Return n points of the unit circle, and relu(x1) - relu(x2) there."""
    angle = 2 * torch.pi * torch.arange(n, dtype=torch.float64) / n
    x = torch.stack([angle.cos(), angle.sin()], 1)
    return x, x[:, 0].relu() - x[:, 1].relu()


def draw_starts(
    n: int, signs: tuple[int, ...], locked: tuple[bool, ...], seed: int, d: int = 2
) -> tuple[Tensor, Tensor]:
    """Return n starts (w1, w2): |c| = 0.3, below zero where a neuron is locked.

    Directions of w1 are uniform; the smaller of |w1| and |w2| is |N(0, 1)| / 2 + 1/20.
    """
    shape = (n, len(signs))
    small = normal(shape, seed, "size", like=_F64).abs() / 2 + 0.05
    large = (small.square() + C).sqrt()
    direction = normal((*shape, d), seed, "direction", like=_F64)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    held = torch.tensor(locked)
    inner = torch.where(held, small, large)[..., None] * direction
    outer = torch.where(held, large, small) * torch.tensor(signs).double()
    return inner, outer


def pairs(scale: Scale, seeds: tuple[int, ...], store: StudyStore) -> xarray.Dataset:
    """Return losses of two neurons on the circle, by configuration and start."""
    parts = [
        [
            store.once(
                f"pair-{i}-n{scale.starts}-k{scale.steps}-seed{seed}",
                partial(_pair, scale, *PAIRS[name], seed),
            )
            for seed in seeds
        ]
        for i, name in enumerate(PAIRS)
    ]
    axes = ("configuration", "start")

    def joined(key: str, axis: int = -1) -> np.ndarray:
        return np.stack([np.concatenate([p[key] for p in row], axis) for row in parts])

    return xarray.Dataset(
        {
            "loss": (axes, joined("loss")),
            "lowest": (axes, joined("lowest")),
            "flips": ((*axes, "neuron"), joined("flips", 0)),
            "losses": (("configuration", "step", "start"), joined("losses")),
        },
        coords={"configuration": list(PAIRS), "step": parts[0][0]["steps"]},
        attrs=attributes(points=POINTS, c=C, lr=0.1, seeds=list(seeds)),
    )


def _pair(
    scale: Scale, signs: tuple[int, ...], locked: tuple[bool, ...], seed: int
) -> Mapping[str, object]:
    w1, w2 = draw_starts(scale.starts, signs, locked, seed)
    run = rt.train_ensemble(w1, w2, *circle(), lr=0.1, steps=scale.steps, record=101)
    return {
        "loss": run.loss.numpy(),
        "lowest": run.lowest.numpy(),
        "flips": run.flips.numpy(),
        "losses": run.losses.numpy(),
        "steps": run.steps,
    }


def widths(scale: Scale, seeds: tuple[int, ...], store: StudyStore) -> xarray.Dataset:
    """Return how often a width with so many free neurons reaches the target.

    The others are locked with one sign, and free ones start with that sign too.
    """
    free = (0, 1, 2)

    def run(width: int, f: int, seed: int) -> Mapping[str, object]:
        locked = (True,) * (width - f) + (False,) * f
        w1, w2 = draw_starts(scale.starts, (1,) * width, locked, seed)
        options = {"lr": 0.1, "steps": scale.steps, "tol": SUCCESS}
        found = rt.train_ensemble(w1, w2, *circle(), **options)  # type: ignore[arg-type]  # values of a dict
        return {"lowest": found.lowest.numpy()}

    lowest = np.array(
        [
            [
                np.concatenate(
                    [
                        store.once(
                            f"width-{m}-free-{f}-n{scale.starts}-k{scale.steps}-seed{s}",
                            partial(run, m, f, s),
                        )["lowest"]
                        for s in seeds
                    ]
                )
                for f in free
            ]
            for m in scale.widths
        ]
    )
    count, n = (lowest <= SUCCESS).sum(-1), lowest.shape[-1]
    fraction = count / n
    return xarray.Dataset(
        {
            "successes": (("width", "free"), count),
            "fraction": (("width", "free"), fraction),
            "stderr": (("width", "free"), np.sqrt(fraction * (1 - fraction) / n)),
            "lowest": (("width", "free"), lowest.min(-1)),
        },
        coords={"width": list(scale.widths), "free": list(free)},
        attrs=attributes(starts=n, success=SUCCESS, c=C, seeds=list(seeds)),
    )


def torch_starts(
    scale: Scale, seeds: tuple[int, ...], store: StudyStore
) -> dict[str, float]:
    """Return how many starts of torch's law are obstructed, and what they reach."""
    n, width = scale.init_starts, 2

    def run(seed: int) -> Mapping[str, object]:
        w1 = (2 * uniform((n, width, 2), seed, "w1", like=_F64) - 1) / 2**0.5
        w2 = (2 * uniform((n, width), seed, "w2", like=_F64) - 1) / width**0.5
        c = w1.square().sum(-1) - w2.square()
        obstructed = (c < 0).all(1) & (w2[:, 0] * w2[:, 1] > 0)
        x, y = circle()
        some = w1[obstructed], w2[obstructed]
        ends = rt.train_ensemble(*some, x, y, lr=0.02, steps=scale.steps)
        return {"obstructed": int(obstructed.sum()), "lowest": ends.lowest.min()}

    parts = [
        store.once(f"torch-n{n}-k{scale.steps}-seed{s}", partial(run, s)) for s in seeds
    ]
    lock = rt.lock_probability(2, rt.variance_ratio(2, width), "uniform")
    total = n * len(seeds)
    expected = rt.obstruction_probability(width, lock, (1, 1))
    return {
        "fraction": sum(int(p["obstructed"]) for p in parts) / total,
        "expected": expected,
        "stderr": (expected * (1 - expected) / total) ** 0.5,
        "lowest": min(float(p["lowest"]) for p in parts),
    }


DECAY = 0.1


def decay(scale: Scale, seed: int, store: StudyStore) -> xarray.Dataset:
    """Return c of two neurons locked + under weight decay, beside its law."""
    steps, lr, records = scale.decay_steps, 5e-3, 41
    # The weight that is asked for rises with time: stop where |c| is down to a tenth.

    def run() -> Mapping[str, object]:
        w1, w2 = draw_starts(scale.starts, *PAIRS["locked + +"], seed)
        rows, lowest, flips = [], [], 0
        for k in range(records):
            c = w1.square().sum(-1) - w2.square()
            rows.append(c.numpy())
            if k == records - 1:
                break
            ends = rt.train_ensemble(
                w1,
                w2,
                *circle(),
                lr=lr,
                steps=steps // (records - 1),
                weight_decay=DECAY,
            )
            w1, w2 = ends.w1, ends.w2
            lowest.append(float(ends.lowest.min()))
            flips += int(ends.flips.sum())
        return {"c": np.stack(rows), "lowest": min(lowest), "flips": flips}

    piece = store.once(f"decay-n{scale.starts}-k{steps}-seed{seed}", run)
    time = np.linspace(0, steps // (records - 1) * (records - 1) * lr, records)
    law = np.stack([rt.decayed(piece["c"][0], DECAY, t) for t in time])
    return xarray.Dataset(
        {
            "c": (("time", "start", "neuron"), piece["c"]),
            "law": (("time", "start", "neuron"), law),
            "lowest": ((), piece["lowest"]),
            "flips": ((), piece["flips"]),
        },
        coords={"time": time},
        attrs=attributes(weight_decay=DECAY, lr=lr, seed=seed),
    )


def step_sizes(scale: Scale, seed: int) -> dict[float, float]:
    """Return the mean |change of c| over one time by learning rate."""
    w1, w2 = draw_starts(scale.starts, *PAIRS["locked + -"], seed)
    start = w1.square().sum(-1) - w2.square()
    drifts = {}
    for lr in (0.04, 0.02, 0.01):
        ends = rt.train_ensemble(w1, w2, *circle(), lr=lr, steps=round(4 / lr))
        c = ends.w1.square().sum(-1) - ends.w2.square()
        drifts[lr] = float((c - start).abs().mean())
    return drifts


TABULAR_WIDTHS = (1, 2, 4, 8)


def tabular(scale: Scale, seeds: tuple[int, ...], store: StudyStore) -> xarray.Dataset:
    """Return logistic losses on scikit-learn's breast-cancer table.

    By width and share of free neurons (0, ½, 1); signs of w2 are random, inputs are
    standardized and have a bias, and 400 of the 569 rows train.
    """
    shares = (0.0, 0.5, 1.0)

    def run(width: int, share: float, seed: int) -> Mapping[str, object]:
        x, y, x_test, y_test = _breast_cancer(seed)
        free = round(share * width)
        locked = (True,) * (width - free) + (False,) * free
        shape = (scale.tabular_starts, width)
        w1, w2 = draw_starts(shape[0], (1,) * width, locked, seed, d=31)
        w2 = w2 * rademacher(shape, seed, "signs", like=_F64)
        kept = torch.tensor(locked)
        one = (w2.sign() == w2.sign()[:, :1]).all(1) & kept.all()
        options = {"lr": 0.1, "bias": True, "loss": "logistic"}
        ends = rt.train_ensemble(w1, w2, x, y, steps=scale.tabular_steps, **options)  # type: ignore[arg-type]  # values of a dict
        test = rt.train_ensemble(ends.w1, ends.w2, x_test, y_test, steps=0, **options)  # type: ignore[arg-type]
        floors = {
            sign: rt.loss_floor(
                x, y, sign, bias=True, loss="logistic", method="sign"
            ).value
            for sign in (-1, 1)
        }
        floor = torch.where(w2[:, 0] > 0, floors[1], floors[-1]) * one
        return {
            "train": ends.loss.numpy(),
            "test": test.loss.numpy(),
            "excess": (ends.lowest - floor).numpy(),
            "obstructed": one.numpy(),
        }

    names = ("train", "test", "excess", "obstructed")
    values: dict[str, list[list[np.ndarray]]] = {name: [] for name in names}
    for m in TABULAR_WIDTHS:
        row: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for share in shares:
            size = f"n{scale.tabular_starts}-k{scale.tabular_steps}"
            parts = [
                store.once(
                    f"tabular-{m}-{share}-{size}-seed{s}", partial(run, m, share, s)
                )
                for s in seeds
            ]
            for name in names:
                row[name].append(np.concatenate([p[name] for p in parts]))
        for name in names:
            values[name].append(row[name])
    return xarray.Dataset(
        {n: (("width", "share", "start"), np.array(v)) for n, v in values.items()},
        coords={"width": list(TABULAR_WIDTHS), "share": list(shares)},
        attrs=attributes(data="breast cancer, scikit-learn", seeds=list(seeds)),
    )


def _breast_cancer(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_breast_cancer

    table = load_breast_cancer()
    x, y = torch.from_numpy(table.data), torch.from_numpy(2.0 * table.target - 1)
    order = torch.randperm(len(x), generator=generator(seed, "split"))
    train, test = order[:400], order[400:]
    mean, std = x[train].mean(0), x[train].std(0)
    x = (x - mean) / std
    return x[train], y[train], x[test], y[test]
