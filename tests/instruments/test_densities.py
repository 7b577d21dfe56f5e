"""Spectral densities against closed forms, and what follows from them."""

import json

import numpy as np
import pytest
import torch

from thalweg import Quadratic
from thalweg import instruments as ti
from thalweg.errors import InputError
from thalweg.landscapes import FunctionOperator, IdentityOperator, MatrixOperator

VALUES = np.array([5.0, 3.0, 2.0, 1.5, 1.0, 0.5, 0.25, 0.125, 0.1, 0.01])


def rotated(eigenvalues, seed=0, dtype=torch.float64):
    values = torch.as_tensor(np.asarray(eigenvalues), dtype=torch.float64)
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(values), len(values), generator=g, dtype=torch.float64)
    Q, _ = torch.linalg.qr(noise)
    matrix = (Q * values) @ Q.T
    return ((matrix + matrix.T) / 2).to(dtype)


def test_a_diagonal_quadratic_is_exact():
    """A Rademacher probe gives z.f(A)z = tr f(A) for every diagonal A."""
    land = Quadratic(torch.diag(torch.from_numpy(VALUES)))
    spectrum = ti.spectral_density(land.hessian(land.origin), probes=3)
    nodes, weights = spectrum["nodes"].values, spectrum["weights"].values
    np.testing.assert_allclose(nodes, np.tile(np.sort(VALUES), (3, 1)), rtol=1e-10)
    np.testing.assert_allclose(weights, 0.1, rtol=1e-8)
    for order in range(5):
        moment = ti.spectral_moment(spectrum, order)
        assert moment.value == pytest.approx(np.mean(VALUES**order), rel=1e-10)
        assert moment.stderr <= 1e-10 * moment.value
    log_det = ti.log_determinant(spectrum, 0.5)
    assert log_det.value == pytest.approx(np.log(VALUES + 0.5).sum(), rel=1e-10)
    dimension = ti.effective_dimension(spectrum, 0.5)
    assert dimension.value == pytest.approx((VALUES / (VALUES + 0.5)).sum(), rel=1e-10)


def test_the_density_is_that_of_the_eigenvalues():
    A = MatrixOperator(torch.diag(torch.from_numpy(VALUES)))
    spectrum = ti.spectral_density(A, probes=2, sigma=0.3)
    t = spectrum["t"].values
    gauss = np.exp(-0.5 * ((t[:, None] - VALUES) / 0.3) ** 2) / (
        0.3 * np.sqrt(2 * np.pi)
    )
    np.testing.assert_allclose(spectrum["density"], gauss.mean(1), atol=1e-8)
    mass = float(spectrum["density"].integrate("t"))
    assert mass == pytest.approx(1.0, abs=2e-3)  # three widths of margin


def test_a_rotated_operator_is_met_within_its_error():
    values = np.concatenate([VALUES, np.linspace(-0.2, 0.2, 190)])
    A = MatrixOperator(rotated(values))
    spectrum = ti.spectral_density(A, probes=20, steps=40)
    for estimate, exact in [
        (ti.spectral_moment(spectrum, 1), values.mean()),
        (ti.spectral_moment(spectrum, 2), (values**2).mean()),
        (ti.log_determinant(spectrum, 0.5), np.log(values + 0.5).sum()),
        (ti.mass_below_zero(spectrum), (values < 0).mean()),
    ]:
        assert 0 < estimate.stderr
        assert abs(estimate.value - exact) < 4 * estimate.stderr
    assert json.loads(spectrum.attrs["cost"])["products"] == A.products == 800


def test_the_quadrature_is_exact_for_polynomials():
    matrix = rotated(np.linspace(-1, 2, 50))
    spectrum = ti.spectral_density(MatrixOperator(matrix), probes=1, steps=5, seed=2)
    from thalweg.instruments.sketches import sign_probe

    z = sign_probe(MatrixOperator(matrix), 2, "probe", 0)
    nodes, weights = spectrum["nodes"].values[0], spectrum["weights"].values[0]
    power = z.clone()
    for degree in range(10):
        expected = float(z @ power) / 50
        assert float(weights @ nodes**degree) == pytest.approx(expected, rel=1e-10)
        power = matrix @ power


def test_more_probes_extend_a_run():
    A = MatrixOperator(rotated(VALUES))
    few, many = (ti.spectral_density(A, probes=n, steps=4, seed=7) for n in (2, 4))
    np.testing.assert_array_equal(few["nodes"], many["nodes"][:2])


def test_another_width_costs_no_product():
    A = MatrixOperator(rotated(VALUES))
    spectrum = ti.spectral_density(A, probes=2)
    spent = A.products
    wide = ti.smooth_density(spectrum, 1.0)
    assert A.products == spent
    assert wide.attrs["sigma"] == "1.0"
    assert float(wide["density"].max()) < float(spectrum["density"].max())
    fine = ti.smooth_density(spectrum, 0.1, grid=np.linspace(-1, 6, 50))
    assert fine.sizes["t"] == 50


def test_mass_at_zero_and_below_are_numbers():
    values = np.concatenate([np.zeros(50), -np.ones(20), 3 * np.ones(30)])
    spectrum = ti.spectral_density(MatrixOperator(torch.diag(torch.from_numpy(values))))
    assert float(spectrum.attrs["mass_at_zero"]) == pytest.approx(0.5, abs=1e-10)
    assert float(spectrum.attrs["mass_below_zero"]) == pytest.approx(0.2, abs=1e-10)


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_a_krylov_space_of_one_dimension_is_filled_up(scale):
    A = IdentityOperator(30, dtype=torch.float64, device=torch.device("cpu")) * scale
    spectrum = ti.spectral_density(A, probes=3, steps=6)
    np.testing.assert_allclose(spectrum["nodes"], scale, atol=1e-14)
    np.testing.assert_allclose(spectrum["weights"].sum("step"), 1.0)
    assert ti.spectral_moment(spectrum, 1).value == pytest.approx(scale)
    assert np.isfinite(spectrum["density"]).all()


def test_float32_agrees_with_float64():
    values = np.concatenate([VALUES, np.linspace(-0.2, 0.2, 90)])
    single, double = (
        ti.spectral_density(MatrixOperator(rotated(values, dtype=dtype)), probes=4)
        for dtype in (torch.float32, torch.float64)
    )
    for order in (1, 2):
        a, b = (ti.spectral_moment(s, order).value for s in (single, double))
        assert a == pytest.approx(b, rel=1e-4)


def test_a_small_memory_takes_fewer_steps_and_says_so():
    A = MatrixOperator(rotated(np.linspace(0, 1, 100)))
    spectrum = ti.spectral_density(A, probes=1, steps=50, memory=100 * 8 * 12)
    assert spectrum.attrs["note"].startswith("12 steps instead of 50")


def test_an_interrupted_run_goes_on_from_its_store(tmp_path):
    import xarray as xr

    from thalweg.execution import Store

    matrix = rotated(VALUES)
    whole = ti.spectral_density(MatrixOperator(matrix), probes=4, steps=5)

    def interrupted(v):
        if broken.products > 12:
            raise KeyboardInterrupt
        return matrix @ v

    broken = FunctionOperator(interrupted, 10)
    store = Store.create(tmp_path / "slq", {"operator": "a test's"})
    with pytest.raises(KeyboardInterrupt):
        ti.spectral_density(broken, probes=4, steps=5, store=store)
    A = MatrixOperator(matrix)
    resumed = ti.spectral_density(A, probes=4, steps=5, store=store)
    assert A.products == 10
    xr.testing.assert_equal(resumed, whole)
    assert {**resumed.attrs, "cost": ""} == {**whole.attrs, "cost": ""}


def test_it_survives_a_file(tmp_path):
    import xarray as xr

    spectrum = ti.spectral_density(MatrixOperator(rotated(VALUES)), probes=2)
    spectrum.to_netcdf(tmp_path / "s.nc", engine="h5netcdf")
    again = xr.load_dataset(tmp_path / "s.nc", engine="h5netcdf")
    xr.testing.assert_identical(again, spectrum)


@pytest.mark.parametrize("c", [0.0, 0.2])
def test_an_indefinite_shift_is_refused(c):
    A = MatrixOperator(torch.diag(torch.from_numpy(np.append(VALUES, -0.3))))
    spectrum = ti.spectral_density(A, probes=2)
    for function in (ti.log_determinant, ti.effective_dimension):
        with pytest.raises(InputError, match="c must be above 0.3"):
            function(spectrum, c)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": 0}, "probes must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"sigma": -1.0}, "sigma must be positive"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        ti.spectral_density(MatrixOperator(torch.eye(5).double()), **options)


def test_bad_grid_and_order():
    spectrum = ti.spectral_density(MatrixOperator(torch.eye(5).double()))
    with pytest.raises(InputError, match="ascending finite"):
        ti.smooth_density(spectrum, grid=np.array([1.0, 0.0]))
    with pytest.raises(InputError, match="order must be at least 0"):
        ti.spectral_moment(spectrum, -1)


def test_a_product_that_is_not_finite_raises():
    A = FunctionOperator(lambda v: v * float("inf"), 10)
    with pytest.raises(InputError, match="not finite"):
        ti.spectral_density(A)
