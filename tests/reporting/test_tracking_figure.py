"""The figure of a tracker: the threshold beside λ_max, bands, what is not finite."""

import numpy as np
import pytest
import xarray as xr

from thalweg.errors import InputError
from thalweg.reporting import tracking_figure


def dataset(**variables):
    steps = np.arange(5) * 10
    return xr.Dataset(
        {name: ("step", np.asarray(v, float)) for name, v in variables.items()},
        coords={"step": steps},
    )


def by_name(figure):
    return {trace.name: trace for trace in figure.data if trace.name}


def test_two_over_eta_stands_beside_the_largest_eigenvalue():
    figure = tracking_figure(
        dataset(
            lambda_max=[4, 8, 9, 10, 11],
            lambda_max_residual=[0.1] * 5,
            learning_rate=[0.2] * 5,
            threshold=[10] * 5,
            loss=[1, 0.5, 0.2, 0.1, 0.05],
        )
    )
    lines = by_name(figure)
    assert lines["2/η"].y.tolist() == [10] * 5
    assert lines["2/η"].yaxis == lines["λ_max"].yaxis != lines["loss"].yaxis
    assert lines["λ_max"].x.tolist() == [0, 10, 20, 30, 40]
    (band,) = [trace for trace in figure.data if trace.fill == "toself"]
    assert band.y[:2] == pytest.approx([4.1, 8.1])
    assert figure.layout.yaxis2.type == "log" and figure.layout.yaxis.type == "linear"
    assert figure.layout.xaxis2.title.text == "step"


def test_a_threshold_with_momentum_is_not_called_two_over_eta():
    figure = tracking_figure(
        dataset(lambda_max=[1] * 5, learning_rate=[0.1] * 5, threshold=[38] * 5)
    )
    assert "2/η" not in by_name(figure)
    assert any("momentum" in name for name in by_name(figure))


def test_no_line_without_a_threshold_and_gaps_where_not_finite():
    nan = float("nan")
    figure = tracking_figure(
        dataset(
            lambda_max=[1, 2, nan, nan, nan],
            loss=[1, 2, 3, np.inf, nan],
            learning_rate=[0.1] * 5,
            threshold=[nan] * 5,
        )
    )
    lines = by_name(figure)
    assert set(lines) == {"λ_max", "loss"}
    assert np.isnan(lines["λ_max"].y[2:]).all()
    assert np.isnan(lines["loss"].y[3:]).all()


def test_a_dataset_of_something_else_is_refused():
    with pytest.raises(InputError, match="dataset must have some of"):
        tracking_figure(dataset(density=[0] * 5))
