"""Directions at one point: random ones, the gradient, Hessian eigenvectors."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.errors import InputError
from thalweg.instruments.directions import Directions
from thalweg.instruments.eigenpairs import Which, top_eigenpairs
from thalweg.instruments.normalization import Scheme, resolve_scheme
from thalweg.instruments.normalization import normalize as scale
from thalweg.landscapes import Landscape
from thalweg.provenance import fingerprint
from thalweg.seeding import normal


def random_directions(
    land: Landscape,
    k: int,
    normalize: Scheme | Literal["auto"] = "auto",
    seed: int = 0,
    *,
    at: Float[Tensor, " dim"] | None = None,
) -> Directions:
    """Draw k directions of independent N(0, 1) entries and normalize them.

    Entry by entry a function of (seed, number of the direction, name of the block):
    drawn tensor by tensor in float32 on the CPU, so that the values depend neither on
    the device nor on k, and `Directions.origin` stays None: one seeded pair serves
    many checkpoints. Buffers are never perturbed.

    Args:
        land: The landscape.
        k: Number of directions, at least 1.
        normalize: Scheme of `ti.normalize`; "auto" is "filter" where parameters have
            filters and "unit" elsewhere.
        seed: Seed of the draw.
        at: The point whose weights scale them; the landscape's origin by default.

    Raises:
        InputError: k is less than 1 or the scheme is unknown.
    """
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    scheme = resolve_scheme(normalize, land.layout)
    like = torch.empty(0, dtype=torch.float32)
    basis = torch.empty(land.dim, k, dtype=land.dtype, device=land.device)
    for j in range(k):
        for block in land.layout.blocks:
            drawn = normal((block.size,), seed, "direction", j, block.name, like=like)
            basis[block.slice, j] = drawn.to(basis)
    drawn_directions = Directions(
        basis,
        layout=land.layout,
        kind="random",
        seed=seed,
        labels=tuple(f"random {j + 1}" for j in range(k)),
    )
    return scale(drawn_directions, land, scheme, at=at)


def gradient_direction(
    land: Landscape, *, at: Float[Tensor, " dim"] | None = None
) -> Directions:
    """Return the gradient at a point as one direction of length 1.

    Raises:
        InputError: The gradient is zero or not finite there.
    """
    point = land.point(at)
    gradient = land.gradient(point)
    norm = float(gradient.double().norm())
    if not 0 < norm < float("inf"):
        raise InputError(f"the gradient has norm {norm} here and gives no direction")
    return Directions(
        (gradient / norm)[:, None],
        layout=land.layout,
        kind="gradient",
        normalize="unit",
        labels=(f"gradient, norm {norm:.3g}",),
        values=torch.tensor([norm], dtype=torch.float64),
        reference=fingerprint(point),
    )


def hessian_directions(
    land: Landscape,
    k: int,
    which: Which = "LA",
    *,
    at: Float[Tensor, " dim"] | None = None,
    tol: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
) -> Directions:
    """Return k eigenvectors of the Hessian at a point, of length 1.

    The sign of each is fixed: its entry of largest magnitude is positive. `.values`
    holds the eigenvalues. Cost: the products of `ti.top_eigenpairs`; `dim` of them
    where all k = dim are wanted.

    Args:
        land: The landscape.
        k: Number of directions, at most dim.
        which: "LA" largest, "SA" smallest, "LM" largest in modulus, "BE" both ends.
        at: The point; the landscape's origin by default.
        tol: Relative residual, see `ti.top_eigenpairs`.
        max_products: See `ti.top_eigenpairs`.
        seed: Seed of the start vectors.

    Raises:
        InputError: k is less than 1 or more than dim.
    """
    if not 1 <= k <= land.dim:
        raise InputError(f"k must lie between 1 and the dimension {land.dim}, got {k}")
    point = land.point(at)
    with land.hessian(point) as H:
        if k == land.dim:
            values, vectors = torch.linalg.eigh(H.dense().double())
            order = values.argsort(descending=which != "SA")
            if which == "LM":
                order = values.abs().argsort(descending=True)
            values, vectors = values[order], vectors[:, order]
        else:
            found = top_eigenpairs(
                H, k, which=which, tol=tol, max_products=max_products, seed=seed
            )
            values, vectors = found.values, found.vectors
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return Directions(
        (vectors * largest.sign()).to(dtype=land.dtype, device=land.device),
        layout=land.layout,
        kind="hessian",
        normalize="unit",
        labels=tuple(f"λ = {float(value):.4g}" for value in values),
        values=values.cpu(),
        reference=fingerprint(point),
    )
