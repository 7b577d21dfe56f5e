"""The steps of a survey: each turns a landscape and a plan into one Dataset."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from thalweg import instruments as ti
from thalweg.errors import ConvergenceWarning, NonFiniteLossError
from thalweg.execution import Store
from thalweg.landscapes import Landscape, LinearOperator, NetworkLandscape
from thalweg.provenance import Meter, attributes, fingerprint
from thalweg.surveying.aligned_lines import align_checkpoints, aligned_table
from thalweg.surveying.archive import Archive
from thalweg.surveying.plan import Plan
from thalweg.surveying.sign_locks import find_locks, locks_table

if TYPE_CHECKING:
    import xarray as xr

SLICES = ("surface", "hessian_surface")

# Rows of the sharpness table: label -> options of `ti.sharpness`.
SHARPNESS: dict[str, dict[str, Any]] = {
    "zeroth": {"kind": "zeroth"},
    "first": {"kind": "first"},
    "average": {"kind": "average"},
    "zeroth, adaptive": {"kind": "zeroth", "adaptive": "elementwise"},
    "average, adaptive": {"kind": "average", "adaptive": "elementwise"},
}


@dataclass
class Context:
    """What the steps share."""

    land: Landscape
    plan: Plan
    archive: Archive
    executor: Any = None
    recipe: Callable[[], Landscape] | None = None
    progress: Any = "none"
    checkpoints: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    @cached_property
    def hessian(self) -> LinearOperator:
        """The one Hessian operator, whose retained graph all steps use."""
        point = self.land.point()
        if isinstance(self.land, NetworkLandscape):
            return self.land.hessian(point, cache=self.plan.memory)
        return self.land.hessian(point)

    def release(self) -> None:
        """Free the Hessian's graph; its next product builds it again."""
        if "hessian" in self.__dict__:
            self.hessian.close()

    def attributes(self, meter: Meter, **entries: object) -> dict[str, str]:
        """Return the attributes of a step's Dataset."""
        return attributes(
            seed=self.plan.seed,
            cost=meter,
            landscape=self.land.describe(),
            point=fingerprint(self.land.point()),
            **entries,
        )


def point(context: Context) -> "xr.Dataset":
    """Loss, metrics, gradient norm and its sampling error, fitted weight decay."""
    import xarray as xr

    land, plan = context.land, context.plan
    theta = land.point()
    with Meter() as meter:
        if isinstance(land, NetworkLandscape):
            values = dict(land.evaluate(theta))
        else:
            values = {"loss": float(land.loss(theta))}
        gradient = land.gradient(theta)
        values |= _norms(gradient, theta)
        values["precision"] = torch.finfo(theta.dtype).eps
        meter.add(forward=1, gradients=1)
        if isinstance(land, NetworkLandscape) and _has_rows(land):
            values |= _sampling(land, plan, meter)
            if "accuracy" in values:  # a mean of zeros and ones
                p = values["accuracy"]
                values["accuracy_stderr"] = (p * (1 - p) / (land.rows - 1)) ** 0.5
    return xr.Dataset(
        {name: ((), value) for name, value in values.items()},
        attrs=context.attributes(meter),
    )


def _has_rows(land: NetworkLandscape) -> bool:
    """Say whether rows have losses of their own: in train mode they share a batch."""
    return land.rows > 1 and land.mode == "eval"


def _norms(gradient: Tensor, theta: Tensor) -> dict[str, float]:
    inner = ti.inner(gradient, theta)
    norm, weight = ti.norm(gradient), ti.norm(theta)
    return {
        "gradient_norm": norm,
        "weight_norm": weight,
        "decay": -inner / weight**2 if weight else 0.0,
        "decay_share": abs(inner) / (norm * weight) if norm and weight else 0.0,
    }


def _sampling(land: NetworkLandscape, plan: Plan, meter: Meter) -> dict[str, float]:
    """Return the standard errors of loss and gradient, and the noise scale."""
    count = min(plan.gradient_examples, land.rows)
    some = land if count == land.rows else land.subset(torch.arange(count))
    noise = some.noise_scale(some.point())
    meter.add(forward=1, example_gradients=count)
    return {
        "loss_stderr": land.loss_stderr(),
        "gradient_stderr": (noise.trace / land.rows) ** 0.5,
        "noise_scale": noise.value,
        "noise_scale_stderr": noise.stderr,
    }


def eigenvalues(context: Context) -> "xr.Dataset":
    """Top eigenpairs, and the smallest eigenvalue with its curvature vᵀHv."""
    import xarray as xr

    plan, hessian = context.plan, context.hessian
    limits: dict[str, Any] = {
        "max_products": plan.eigen_products,
        "memory": plan.memory,
        "seed": plan.seed,
    }
    with Meter() as meter:
        top = ti.top_eigenpairs(hessian, plan.eigenpairs, which="LA", **limits)
        context.archive.save_directions("hessian", top.vectors)
        found = {
            "value": ("pair", top.values.numpy()),
            "residual": ("pair", top.residuals.numpy()),
            "converged": ("pair", top.converged.numpy().astype("int8")),
        }
        products, note = top.products, top.note
        del top  # the file has its vectors; of a large network they are the memory
        low = ti.top_eigenpairs(hessian, 1, which="SA", **limits)
        v = low.vectors[:, 0]
        curvature = ti.inner(v, hessian @ v)
        products += low.products + 1
        meter.add(products=products)
    context.archive.save_directions("descent", low.vectors)
    return xr.Dataset(
        {
            **found,
            "smallest": ((), float(low.values[0])),
            "smallest_residual": ((), float(low.residuals[0])),
            "smallest_converged": ((), int(low.converged[0])),
            "curvature": ((), curvature),
            "products": ((), products),
        },
        attrs=context.attributes(meter, note=f"{note} {low.note}".strip()),
    )


def trace(context: Context) -> "xr.Dataset":
    """Trace of the Hessian with its standard error."""
    import xarray as xr

    plan = context.plan
    with Meter() as meter:
        estimate = ti.trace(
            context.hessian,
            rtol=0.01,
            max_products=plan.trace_products,
            memory=plan.memory,
            seed=plan.seed,
        )
        meter.add(products=estimate.products)
    return xr.Dataset(
        {
            "value": ((), estimate.value),
            "stderr": ((), estimate.stderr),
            "converged": ((), int(estimate.converged)),
            "products": ((), estimate.products),
        },
        attrs=context.attributes(meter, method=estimate.method, note=estimate.note),
    )


def spectrum(context: Context) -> "xr.Dataset":
    """Spectral density by stochastic Lanczos quadrature."""
    plan, folder = context.plan, context.archive.chunks("spectrum")
    identity = {"point": fingerprint(context.land.point()), "plan": plan.to_json()}
    return ti.spectral_density(
        context.hessian,
        probes=plan.probes,
        steps=plan.lanczos_steps,
        seed=plan.seed,
        memory=plan.memory,
        store=None if folder is None else Store.resume(folder, identity),
    )


def sharpness(context: Context) -> "xr.Dataset":
    """The table of sharpness measures, each with its radius."""
    import xarray as xr

    plan = context.plan
    # Adaptive balls scale with the weights; where all are zero there is none.
    still = not bool(context.land.point().any())
    kinds = {
        label: options
        for label, options in SHARPNESS.items()
        if not (still and "adaptive" in options)
    }
    with Meter() as meter:
        rows = [
            ti.sharpness(
                context.land,
                rho=plan.rho,
                method=plan.sharpness_method,  # type: ignore[arg-type]  # a plan's text
                steps=plan.sharpness_steps,
                samples=plan.sharpness_samples,
                seed=plan.seed,
                **options,
            )
            for options in kinds.values()
        ]
        meter.add(evaluations=sum(row.evaluations for row in rows))
    return xr.Dataset(
        {
            "value": ("kind", [row.value for row in rows]),
            "stderr": ("kind", [row.stderr for row in rows]),
            "radius": ("kind", [_or_nan(row.radius) for row in rows]),
            "evaluations": ("kind", [row.evaluations for row in rows]),
            "note": ("kind", np.array([row.note for row in rows], dtype=object)),
        },
        coords={"kind": list(kinds)},
        attrs=context.attributes(meter, rho=plan.rho, method=plan.sharpness_method),
    )


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def surface(context: Context) -> "xr.Dataset":
    """A surface along two random directions, filter-normalized where that applies."""
    plan, land = context.plan, context.land
    still = not bool(land.point().any())  # then there are no filter norms
    directions = ti.random_directions(
        land,
        min(2, land.dim),
        normalize="unit" if still else "auto",
        seed=plan.seed,
    )
    axis = np.linspace(-plan.extent, plan.extent, plan.surface_points)
    return _surface(context, "surface", directions, [axis] * directions.k)


def hessian_surface(context: Context) -> "xr.Dataset":
    """A surface along the top two eigenvectors, as wide as the curvature asks.

    The half-width r solves ½ λ₂ r² = max(1, L): there the quadratic model has risen by
    as much as the loss itself, or by one.
    """
    found = context.archive.datasets["eigenvalues"]
    vectors = context.archive.directions("hessian", 2)
    values = found["value"].values[:2]
    land = context.land
    directions = ti.Directions(
        vectors.to(land.point()),
        layout=land.layout,
        kind="hessian",
        normalize="unit",
        labels=tuple(f"λ = {value:.4g}" for value in values),
        reference=fingerprint(land.point()),
    )
    loss, second = float(context.archive.datasets["point"]["loss"]), abs(values[-1])
    rise = max(1.0, abs(loss)) if np.isfinite(loss) else 1.0
    radius = float((2 * rise / second) ** 0.5) if second > 0 else 1.0
    axis = np.linspace(-radius, radius, context.plan.surface_points)
    return _surface(context, "hessian_surface", directions, [axis] * directions.k)


def _surface(
    context: Context,
    name: str,
    directions: ti.Directions,
    axes: list[np.ndarray],
) -> "xr.Dataset":
    plan = context.plan
    return ti.surface(
        context.land,
        directions,
        axes,
        refine=ti.Refine(plan.refine) if plan.refine else None,
        store=context.archive.chunks(name),
        executor=context.executor,
        recipe=context.recipe,
        progress=context.progress,
        threads=plan.threads,
    )


def topology(context: Context) -> "xr.Dataset":
    """Minima, saddles and what joins what, of the surfaces one after the other.

    Of a refined surface the indices are those of its points; `parent` is the number of
    the pair in the same surface that takes one in, -1 for one that lasts.
    """
    import xarray as xr

    names = [name for name in SLICES if name in context.archive.datasets]
    with Meter() as meter:
        trees = [ti.merge_tree(context.archive.datasets[name]) for name in names]
    tables = [tree.pairs for tree in trees]
    columns = ("birth", "death", "birth_index", "saddle_index")
    return xr.Dataset(
        {
            column: ("pair", np.concatenate([getattr(t, column) for t in tables]))
            for column in columns
        }
        | {"parent": ("pair", np.concatenate([tree.parents for tree in trees]))},
        coords={"surface": ("pair", np.repeat(names, [len(t) for t in tables]))},
        attrs=context.attributes(meter),
    )


def layers(context: Context) -> "xr.Dataset":
    """Trace, top eigenvalue, gradient and weight norm, relative flatness by layer."""
    import xarray as xr

    land, plan, hessian = context.land, context.plan, context.hessian
    theta = land.point()
    blocks = land.layout.select(plan.layers)
    names = [block.name for block in blocks]
    with Meter() as meter:
        before = hessian.products
        gradient = land.layout.split(land.gradient(theta))
        weights = land.layout.split(theta)
        traces = ti.block_traces(
            hessian, land.layout, probes=plan.layer_probes, seed=plan.seed
        )
        top = [_largest(hessian.submatrix(name), plan) for name in names]
        context.release()
        flatness = _relative_flatness(context)
        meter.add(products=hessian.products - before, gradients=1)
    return xr.Dataset(
        {
            "trace": ("layer", [traces[name].value for name in names]),
            "trace_stderr": ("layer", [traces[name].stderr for name in names]),
            "top_eigenvalue": ("layer", [value for value, _ in top]),
            "converged": ("layer", [int(converged) for _, converged in top]),
            "gradient_norm": (
                "layer",
                [ti.norm(gradient[n].reshape(-1)) for n in names],
            ),
            "weight_norm": ("layer", [ti.norm(weights[n].reshape(-1)) for n in names]),
            "size": ("layer", [b.size for b in blocks]),
            "relative_flatness": (
                "layer",
                [flatness.get(name, float("nan")) for name in names],
            ),
        },
        coords={"layer": names},
        attrs=context.attributes(meter),
    )


def _largest(part: LinearOperator, plan: Plan) -> tuple[float, bool]:
    """Return the largest eigenvalue, exact where that takes no more products."""
    if part.dim <= plan.layer_products:
        return float(torch.linalg.eigvalsh(part.dense().double())[-1]), True
    found = ti.top_eigenpairs(
        part,
        1,
        tol=1e-2,
        max_products=plan.layer_products,
        memory=plan.memory,
        seed=plan.seed,
    )
    return float(found.values[0]), bool(found.converged[0])


def _relative_flatness(context: Context) -> dict[str, float]:
    """Return relative flatness of the weight matrices by name; none may be selected."""
    land, plan = context.land, context.plan
    if all(len(block.shape) < 2 for block in land.layout.select(plan.layers)):
        return {}
    found = ti.sharpness(
        land,
        "relative",
        layers=plan.layers,
        samples=plan.layer_probes,
        exact=plan.layer_probes,
        seed=plan.seed,
    )
    return found.per_layer or {}


def sign_locks(context: Context) -> "xr.Dataset | None":
    """Neurons whose output sign gradient flow cannot change; None without any."""
    if not isinstance(context.land, NetworkLandscape):
        return None
    with Meter() as meter:
        found = find_locks(context.land)
    if found is None:
        return None
    return locks_table(found).assign_attrs(context.attributes(meter))


def paths(context: Context) -> "xr.Dataset":
    """Lines from the first checkpoint to the others, and curves trained between them.

    One entry of `pair` a line, and one a curve, with the barrier of each.
    """
    import xarray as xr

    plan = context.plan
    (first, start), *others = context.checkpoints.items()
    found: dict[str, ti.Barrier] = {}
    lengths = []
    with Meter() as meter:
        for name, end in others:
            pair = f"{first} – {name}"
            line = ti.barrier(context.land, start, end, points=plan.path_points)
            found[pair] = line
            lengths.append(float(line.line["displacement"][-1]))
            if plan.path_steps and np.isfinite(line.value):
                path = _curve(context, start, end)
                if path is not None:
                    found[f"{pair}, curve"] = path.barrier
                    lengths.append(path.length)
                meter.add(gradients=plan.path_steps)
        meter.add(forward=sum(one.evaluations for one in found.values()))
    lines = [
        one.line.drop_attrs().drop_vars("length", errors="ignore")
        for one in found.values()
    ]
    return (
        xr.concat(lines, dim="pair")
        .assign(
            barrier=("pair", [one.value for one in found.values()]),
            max_end=("pair", [one.max_end for one in found.values()]),
            mean_end=("pair", [one.mean_end for one in found.values()]),
            peak=("pair", [one.peak for one in found.values()]),
            length=("pair", lengths),
        )
        .assign_coords(pair=list(found))
        .assign_attrs(context.attributes(meter))
    )


def _curve(
    context: Context, start: Mapping[str, Tensor], end: Mapping[str, Tensor]
) -> ti.Path | None:
    """Train a curve; None, with a warning, where the loss on its way is not finite."""
    plan = context.plan
    try:
        return ti.connect(
            context.land,
            start,
            end,
            steps=plan.path_steps,
            points=plan.path_points,
            seed=plan.seed,
        )
    except NonFiniteLossError as error:
        warnings.warn(
            f"no curve was trained: {error}", ConvergenceWarning, stacklevel=2
        )
        return None


def plane(context: Context) -> "xr.Dataset":
    """The plane through the first three checkpoints."""
    states = list(context.checkpoints.values())[:3]
    directions = ti.plane_through(context.land, *states)
    corners = np.stack([point.numpy() for point in directions.anchors.values()])
    low, high = corners.min(0), corners.max(0)
    margin = 0.25 * (high - low)
    count = context.plan.surface_points
    axes = [
        np.linspace(low[j] - margin[j], high[j] + margin[j], count) for j in range(2)
    ]
    return _surface(context, "plane", directions, axes)


def aligned(context: Context) -> "xr.Dataset":
    """Lines to the other checkpoints, their units permuted to match the first."""
    with Meter() as meter:
        pairs = align_checkpoints(
            context.land,
            context.checkpoints,
            points=context.plan.path_points,
            seed=context.plan.seed,
        )
        meter.add(forward=sum(pair.evaluations for pair in pairs))
    table = aligned_table(pairs, context.plan.path_points)
    return table.assign_attrs(context.attributes(meter))


# Steps that mean nothing where the loss or its gradient is not finite.
LOCAL = ("eigenvalues", "trace", "spectrum", "sharpness", "hessian_surface", "layers")


def skipped(step: str, datasets: "Mapping[str, xr.Dataset]") -> bool:
    """Say whether a step has no meaning after what was found at the point."""
    if step == "topology":
        return not any(name in datasets for name in SLICES)
    if step not in LOCAL or "point" not in datasets:
        return False
    found = datasets["point"]
    return not np.isfinite([found["loss"], found["gradient_norm"]]).all()


# A step that finds nothing to show returns None.
RUN: dict[str, Callable[[Context], "xr.Dataset | None"]] = {
    "point": point,
    "eigenvalues": eigenvalues,
    "trace": trace,
    "spectrum": spectrum,
    "sharpness": sharpness,
    "surface": surface,
    "hessian_surface": hessian_surface,
    "topology": topology,
    "layers": layers,
    "sign_locks": sign_locks,
    "paths": paths,
    "plane": plane,
    "aligned": aligned,
}
