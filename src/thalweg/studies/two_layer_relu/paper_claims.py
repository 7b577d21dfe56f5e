"""What the papers claim, beside what the study measured."""

import numpy as np
import torch
import xarray

from thalweg.seeding import normal
from thalweg.solvable import ReLUTeacherStudent
from thalweg.solvable.two_layer_relu import Family, Growth
from thalweg.studies.claims import Claim, judge
from thalweg.studies.store import StudyStore
from thalweg.studies.two_layer_relu.measurements import Scale, make_teacher, spurious

_F64 = torch.zeros((), dtype=torch.float64)


def claims_on_widths(widths: xarray.Dataset) -> tuple[Claim, ...]:
    """Judge how often orthonormal teachers are learned, by width."""
    same, wider = (widths["fraction"].sel(more=more) for more in (0, 1))
    variance = same * (1 - same) / widths["starts"].sel(more=0)
    small = float(same.sel(width=slice(None, 5)).max())
    six = int(widths["spurious"].sel(width=6, more=0))
    growth = float(same.sel(width=10) - same.sel(width=7))
    growth_error = float(variance.sel(width=[7, 10]).sum() ** 0.5)
    saved = float(wider.max())
    low = float(widths["low"].sel(more=1).max())
    return (
        Claim(
            "Orthonormal teachers of width M = K <= 5: no start ends in a spurious "
            "minimum (largest fraction)",
            small,
            None,
            judge(small, at_most=0.0),
        ),
        Claim(
            "At M = K = 6 some starts do (number found)",
            six,
            None,
            "supported" if six else "not seen at this scale",
        ),
        Claim(
            "Their fraction grows with width (fraction at 10 minus fraction at 7)",
            growth,
            growth_error,
            judge(growth, growth_error, at_least=0.0),
        ),
        Claim(
            "One student more (K = M + 1 <= 11) removes them: at most 1 % of starts "
            "(largest fraction)",
            saved,
            None,
            "supported"
            if saved <= 0.01
            else ("contradicted" if low > 0.01 else "not seen at this scale"),
        ),
    )


def claim_on_correlated(
    scale: Scale, seeds: tuple[int, ...], store: StudyStore
) -> Claim:
    """Judge whether correlated teachers of width four have spurious minima."""
    count, n = spurious("correlated", 4, 4, scale.width_starts, seeds, store)
    return Claim(
        "Correlated unit teachers have spurious minima already at M = K = 4 "
        "(fraction of starts)",
        count / n,
        float(np.sqrt(count / n * (1 - count / n) / n)),
        "supported" if count else "not seen at this scale",
    )


def claims_on_symmetry() -> tuple[Claim, ...]:
    """Return what holds without any randomness, by closed forms alone."""
    lowest, attractive, added, births = {}, {}, {}, {}
    for k in (5, 6):
        land = ReLUTeacherStudent(make_teacher("orthonormal", k), k)
        W = land.symmetric_minimum((k - 1, 1)).W
        assert W is not None
        lowest[k] = land.spectrum(W).smallest
        attractive[k] = land.ode_jacobian(W).attractive
        added[k] = float(land.split_stability(W).max())
        births[k], _ = land.steepest_birth(W)
    split, birth = added[6], births[6]
    agree = attractive == {k: value > 0 for k, value in lowest.items()}
    return (
        Claim(
            "The critical point of isotropy (4, 1) is a saddle (smallest eigenvalue)",
            lowest[5],
            None,
            judge(lowest[5], at_most=0.0),
        ),
        Claim(
            "That of isotropy (5, 1) is a minimum (smallest eigenvalue)",
            lowest[6],
            None,
            judge(lowest[6], at_least=0.0),
        ),
        Claim(
            "Splitting any neuron of the (5, 1) minimum gives a saddle (largest "
            "curvature that a split adds)",
            split,
            None,
            judge(split, at_most=0.0),
        ),
        Claim(
            "A new neuron grows out of zero there (slope of the loss)",
            birth,
            None,
            judge(birth, at_most=0.0),
        ),
        Claim(
            "A fixed point of the SGD equations at small learning rate attracts iff "
            "the point is a minimum",
            ", ".join(
                f"({k - 1}, 1): {'attracts' if attractive[k] else 'repels'}"
                for k in attractive
            ),
            None,
            "supported" if agree else "contradicted",
        ),
    )


def claims_on_growth(
    grown: tuple[tuple[Family, Growth], ...],
) -> tuple[Claim, ...]:
    """Judge whether one student more leads down from every spurious minimum found."""
    spurious = [growth for family, growth in grown if family.what.level == "spurious"]
    kept = sum(growth.survives for growth in spurious)
    return (
        Claim(
            "One student more turns the spurious minima of an orthonormal teacher and "
            f"K = M into saddles (of the {len(spurious)} lowest found: how many it "
            "does not)",
            kept,
            None,
            judge(float(kept), at_most=0.0) if spurious else "not seen at this scale",
        ),
    )


def claim_on_reduction() -> Claim:
    """Judge the spectrum in high dimension against a dense Hessian."""
    V = normal((3, 4), 0, "reduction", like=_F64)
    W = normal((3, 4), 1, "reduction", like=_F64)
    wide = ReLUTeacherStudent(V, 3, d=11)
    dense = wide.hessian(wide.point(torch.nn.functional.pad(W, (0, 7)))).dense()
    exact = torch.linalg.eigvalsh(dense)
    error = float(
        (ReLUTeacherStudent(V, 3).spectrum(W, d=11).values - exact).abs().max()
    )
    return Claim(
        "In any dimension the spectrum is that of two small matrices (largest error "
        "against the dense Hessian, seven dimensions up)",
        error,
        None,
        judge(error, at_most=1e-10),
    )


def claims_on_sgd(sgd: xarray.Dataset, floors: dict[str, float]) -> tuple[Claim, ...]:
    """Judge the equations of SGD by runs, and the floors of the loss."""
    mean = sgd["deviation"].mean("run")
    error = sgd["deviation"].std("run") / np.sqrt(sgd.sizes["run"])
    relative = (error / mean).values
    x = np.log(sgd["d"].values)
    centered = x - x.mean()
    weights = centered / (centered**2).sum()
    slope = float(weights @ np.log(mean.values))
    slope_error = float(np.sqrt(((weights * relative) ** 2).sum()))
    grows = floors["low"] < floors["eta"] < floors["delta"]
    return (
        Claim(
            "Overlaps of single SGD runs leave the equations by O(d^-1/2): exponent "
            "within -0.5 ± 0.15",
            slope,
            slope_error,
            judge(slope, slope_error, at_least=-0.65, at_most=-0.35, errors=1.0),
        ),
        Claim(
            "Label noise leaves a floor of the loss that grows with the learning rate "
            "and with the noise",
            " < ".join(f"{floors[name]:.4g}" for name in ("low", "eta", "delta")),
            None,
            "supported" if grows else "contradicted",
        ),
    )
