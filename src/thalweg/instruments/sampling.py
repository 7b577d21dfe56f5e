"""Evaluate a landscape at coordinates c of a plane: center + sum_j c_j d_j.

What surfaces and lines share: the plane that a worker holds, what is measured at a
point, the cutting into items, and putting the arrays together again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from thalweg.errors import ExecutionError, InputError
from thalweg.execution import (
    Item,
    OnError,
    Progress,
    ProgressName,
    Store,
    execute,
)
from thalweg.landscapes import Landscape, LinearMap, pull_back
from thalweg.provenance import versions

OK, NAN, POSITIVE_INFINITE, NEGATIVE_INFINITE, EXCEPTION, PENDING = range(6)
STATUS = {
    "ok": OK,
    "nan": NAN,
    "+inf": POSITIVE_INFINITE,
    "-inf": NEGATIVE_INFINITE,
    "exception": EXCEPTION,
    "pending": PENDING,
}

QUIET = ("variances_held",)  # said where it happened only

Arrays = dict[str, np.ndarray]
Quantity = Callable[["Plane", np.ndarray], Arrays]


@runtime_checkable
class Measurable(Protocol):
    """A landscape that is evaluated point by point: loss and metrics in one pass."""

    def evaluate_each(self, points: Iterable[Tensor]) -> Sequence[Mapping[str, float]]:
        """Return `loss` and the metrics at each point, holding one at a time."""
        ...


@dataclass(frozen=True)
class Plane:
    """What a worker holds: landscapes, the center, and the directions.

    Args:
        landscapes: By the name of their variable.
        center: Point of shape (dim,).
        basis: Tensor (dim, k) or linear map, in the center's dtype.
        direct: Whether it holds the user's one landscape itself.
    """

    landscapes: dict[str, Landscape]
    center: Float[Tensor, " dim"]
    basis: Tensor | LinearMap
    direct: bool = True

    @property
    def pointwise(self) -> bool:
        """Whether points go through a landscape one by one, as a network's do."""
        return any(isinstance(land, Measurable) for land in self.landscapes.values())

    def points(self, coordinates: np.ndarray) -> Float[Tensor, "points dim"]:
        """Return the points at coordinates (points, k), each built from the center."""
        if isinstance(self.basis, Tensor):
            c = torch.from_numpy(coordinates).to(self.center)
            return torch.addmm(self.center, c, self.basis.T)
        return torch.stack(list(self.walk(coordinates)))

    def walk(self, coordinates: np.ndarray) -> Iterator[Float[Tensor, " dim"]]:
        """Yield the points one by one."""
        for c in torch.from_numpy(coordinates).to(self.center):
            if isinstance(self.basis, Tensor):
                yield torch.addmv(self.center, self.basis, c)
            else:
                yield self.center + self.basis @ c


class PlaneRecipe:
    """Gives a worker its plane.

    In this process that is the plane itself. To others it travels whole, or, where
    `build` is given, as that recipe of the landscape with the center and the basis.

    Args:
        plane: The plane.
        build: Builds its one landscape in another process.
    """

    def __init__(
        self, plane: Plane, build: Callable[[], Landscape] | None = None
    ) -> None:
        self.plane, self.build = plane, build

    def __call__(self) -> Plane:
        """Return the plane.

        Raises:
            ExecutionError: The recipe gives another landscape in this process.
        """
        return self.plane

    def __reduce__(self) -> tuple[Any, ...]:
        if self.build is None:
            return PlaneRecipe, (self.plane,)
        ((name, land),) = self.plane.landscapes.items()
        constant = name, self.plane.center, self.plane.basis, _identity(land)
        return _BuiltPlane, (self.build, constant)


class _BuiltPlane:
    """A plane whose landscape is built where it is needed."""

    def __init__(
        self,
        build: Callable[[], Landscape],
        constant: tuple[str, Tensor, Tensor | LinearMap, dict[str, object]],
    ) -> None:
        self.build, self.constant = build, constant

    def __call__(self) -> Plane:
        name, center, basis, expected = self.constant
        land = self.build()
        found = _identity(land)
        differing = [key for key in expected if found.get(key) != expected[key]]
        if differing:
            raise ExecutionError(
                f"the recipe builds another landscape in a worker: {differing} differ. "
                "It must not depend on chance, on time or on what ran before; or use "
                "executor='local'"
            )
        return Plane({name: land}, center, basis)


def _identity(land: Landscape) -> dict[str, object]:
    """Return what a landscape built anew must share: all but where it stands."""
    described = land.describe()
    described.pop("parameters", None)
    return described


def sample(
    plane: Plane,
    coordinates: Float[np.ndarray, "points k"],
    quantity: Quantity,
    plan: Mapping[str, object],
    *,
    store: str | Path | None,
    threads: int,
    **settings: Any,
) -> tuple[Arrays, int]:
    """Return the quantity's arrays over all points, and how many were computed now.

    The settings are those of `sample_part`.
    """
    chunk = _chunk(plane, len(coordinates))
    plan = {**plan, "chunk": chunk, "threads": threads, "versions": versions()}
    kept = open_store(plane, store, plan)
    return sample_part(
        plane,
        coordinates,
        quantity,
        "chunk",
        chunk,
        store=kept,
        threads=threads,
        **settings,
    )


def sample_part(
    plane: Plane,
    coordinates: Float[np.ndarray, "points k"],
    quantity: Quantity,
    name: str,
    chunk: int,
    *,
    store: Store | None,
    executor: Any,
    progress: ProgressName | Progress | None,
    on_error: OnError,
    threads: int,
    recipe: Callable[[], Landscape] | None,
) -> tuple[Arrays, int]:
    """Return the quantity's arrays over all points, and how many were computed now.

    A chunk that no worker survived (`on_error="record"`) has `failed` set, and NaN.

    Args:
        plane: What the points lie on.
        coordinates: Coordinates of the points.
        quantity: What is measured.
        name: Begins the keys of the items.
        chunk: Points an item.
        store: Where finished items are kept.
        executor: See `execute`, also for the next three.
        progress: Display.
        on_error: What an error leads to.
        threads: torch threads a worker.
        recipe: Builds the landscape in worker processes, where the plane holds it.
    """
    items = [
        Item(f"{name}-{i:05d}", (quantity, block, on_error), len(block))
        for i, block in enumerate(_blocks(coordinates, chunk))
    ]
    done = store.done() if store else set()
    results = execute(
        items,
        run_chunk,
        PlaneRecipe(plane, recipe if plane.direct else None),
        store=store,
        executor=executor,
        progress=progress,
        on_error=on_error,
        threads=threads,
    )
    pending = sum(item.size for item in items if item.key not in done)
    parts = [(item.size, results[item.key]) for item in items]
    return joined(parts), pending


def open_store(
    plane: Plane, store: str | Path | None, plan: Mapping[str, object]
) -> Store | None:
    """Return the store of a plan, resumed where there is one.

    Raises:
        InputError: The rows are spread over a process group: a rank would pass over
            the points that another has just stored, and the other would wait for it.
    """
    if store is None:
        return None
    if any(getattr(land, "shards", None) for land in plane.landscapes.values()):
        raise InputError(
            "store= does not go with a landscape over a process group, whose ranks "
            "must all evaluate the same points: keep the dataset on rank 0"
        )
    return Store.resume(store, plan)


def _chunk(plane: Plane, points: int) -> int:
    """Return how many points make an item: by their number and dimension alone.

    Small enough that an interrupt loses little and workers share the load, large
    enough that a file and a message cost nothing; a batch stays within 8 MB of float64.
    """
    if plane.pointwise:
        return min(64, -(-points // 64))
    fits = max(1, 2**20 // max(plane.center.numel(), 1))
    return max(1, min(1024, fits, -(-points // 16)))


def _blocks(coordinates: np.ndarray, chunk: int) -> list[np.ndarray]:
    return [coordinates[i : i + chunk] for i in range(0, len(coordinates), chunk)]


def joined(parts: list[tuple[int, Arrays]]) -> Arrays:
    """Return the arrays of parts of so many points each; NaN where one has none."""
    shapes = {
        name: array.shape[1:]
        for _, arrays in parts
        for name, array in arrays.items()
        if name != "error"
    }
    whole = {}
    for name, shape in shapes.items():
        blank = {
            size: np.full((size, *shape), np.nan)
            for size, arrays in parts
            if name not in arrays
        }
        whole[name] = np.concatenate(
            [arrays.get(name, blank.get(size)) for size, arrays in parts]
        )
    failed = [arrays.get("failed", np.ones(size, bool)) for size, arrays in parts]
    whole["failed"] = np.concatenate(failed).astype(bool)
    return whole


def run_chunk(
    plane: Plane, quantity: Quantity, coordinates: np.ndarray, on_error: OnError
) -> Arrays:
    """Return the quantity at some points, and which of them failed."""
    try:
        arrays = quantity(plane, coordinates)
    except Exception:
        if on_error == "raise":
            raise
        if len(coordinates) == 1:
            return {"failed": np.ones(1, bool)}
        # Find which of them failed.
        singles = [run_chunk(plane, quantity, c[None], on_error) for c in coordinates]
        return joined([(1, arrays) for arrays in singles])
    return {"failed": np.zeros(len(coordinates), bool), **arrays}


def losses(plane: Plane, coordinates: np.ndarray) -> Arrays:
    """Measure the loss and, in the same pass, the metrics of each landscape."""
    single = len(plane.landscapes) == 1
    result: Arrays = {"failed": np.zeros(len(coordinates), bool)}
    for name, land in plane.landscapes.items():
        if isinstance(land, Measurable):
            before = _failures(land)
            rows = land.evaluate_each(plane.walk(coordinates))
            if _failures(land) > before:  # it records them itself, as NaN
                result["failed"] |= np.isnan([row["loss"] for row in rows])
            for key in dict.fromkeys(key for row in rows for key in row):
                metric = key if single else f"{name}_{key}"
                column = name if key == "loss" else metric
                result[column] = np.array(
                    [float(row.get(key, np.nan)) for row in rows]  # of a failed point
                )
        else:
            with torch.no_grad():
                values = land.loss(plane.points(coordinates))
            result[name] = values.double().cpu().numpy()
    return result


def _failures(land: Measurable) -> int:
    return len(getattr(land, "failures", ()))


def gradients(plane: Plane, coordinates: np.ndarray) -> Arrays:
    """Measure the loss and the gradient along the directions, one backward a point."""
    points = plane.points(coordinates)
    ((name, land),) = plane.landscapes.items()
    values, slopes = land.value_and_gradient(points)
    along = pull_back(plane.basis, slopes)
    return {
        name: values.detach().double().cpu().numpy(),
        "gradient": along.detach().double().cpu().numpy(),
    }


def curvatures(plane: Plane, coordinates: np.ndarray) -> Arrays:
    """Measure the loss and Dᵀ H D, k products a point."""
    points = plane.points(coordinates)
    ((name, land),) = plane.landscapes.items()
    with torch.no_grad():
        values = land.loss(points)
    projected = []
    for point in points:
        with land.hessian(point) as hessian:
            block = hessian.project(plane.basis)
            assert isinstance(block, Tensor)  # a pair with `rhs` only
            projected.append(block.detach().double().cpu().numpy())
    return {name: values.double().cpu().numpy(), "curvature": np.stack(projected)}


def worst_status(
    all_values: Iterable[Float[np.ndarray, "*shape"]], failed: np.ndarray
) -> Int[np.ndarray, "*shape"]:
    """Return the largest status code at each point over several landscapes."""
    statuses = [_classify(values, failed) for values in all_values]
    return np.max(statuses, axis=0).astype(np.int8)


def _classify(values: np.ndarray, failed: np.ndarray) -> np.ndarray:
    status = np.full(values.shape, OK, dtype=np.int8)
    status[np.isnan(values)] = NAN
    status[values == np.inf] = POSITIVE_INFINITE
    status[values == -np.inf] = NEGATIVE_INFINITE
    status[failed] = EXCEPTION
    return status
