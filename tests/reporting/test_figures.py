"""Interactive figures: what they show, and what they must not hide."""

import json

import numpy as np
import pytest
import xarray as xr

from thalweg.errors import InputError
from thalweg.reporting import (
    basins_figure,
    eigenvalue_figure,
    layers_figure,
    line_figure,
    merge_tree_figure,
    persistence_figure,
    spectra_figure,
    spectrum_figure,
    surface_caption,
    surface_figure,
)


def surface(values, gram=None, **directions):
    values = np.asarray(values, dtype=float)
    dims = tuple(f"x{j}" for j in range(values.ndim))
    attrs = {"directions": json.dumps(directions)}
    if gram is not None:
        attrs["gram"] = json.dumps(gram)
    return xr.Dataset(
        {"loss": (dims, values), "status": (dims, np.zeros(values.shape, int))},
        {d: np.linspace(-1, 1, n) for d, n in zip(dims, values.shape, strict=True)},
        attrs,
    )


def bowl(n=5, m=7):
    x, y = np.linspace(-1, 1, n), np.linspace(-1, 1, m)
    return 1 + x[:, None] ** 2 + 2 * y[None] ** 2


def traces(figure, kind):
    return [trace for trace in figure.data if trace.type == kind]


def test_the_surface_is_drawn_the_right_way_round():
    values = np.arange(6.0).reshape(2, 3) - 3  # loss[i, j] is at (x0[i], x1[j])
    figure = surface_figure(surface(values))
    for kind in ("surface", "contour", "heatmap"):
        (trace,) = traces(figure, kind)
        assert len(trace.x) == 2 and len(trace.y) == 3
        np.testing.assert_array_equal(np.asarray(trace.z), values.T)


def test_every_button_shows_one_view():
    figure = surface_figure(surface(bowl()))
    buttons = figure.layout.updatemenus[0].buttons
    assert [button.label for button in buttons] == ["3-D", "Contours", "Cells"]
    kinds = np.array([trace.type for trace in figure.data])
    for button, kind in zip(buttons, ("surface", "contour", "heatmap"), strict=True):
        shown = kinds[np.array(button.args[0]["visible"])]
        assert kind in shown
        assert not {"surface", "contour", "heatmap"} - {kind} & set(shown)
    assert [t.type for t in figure.data if t.visible] == ["surface", "scatter3d"]


def test_cells_without_a_finite_value_are_empty_and_marked():
    values = bowl()
    values[0, 0], values[1, 2], values[4, 6] = np.nan, np.inf, -np.inf
    figure = surface_figure(surface(values))
    for kind in ("surface", "contour", "heatmap"):
        (trace,) = traces(figure, kind)
        z = np.asarray(trace.z, dtype=float)
        np.testing.assert_array_equal(np.isnan(z), ~np.isfinite(values).T)
        assert not trace.connectgaps
    marks = {t.name: t for t in traces(figure, "scatter")}
    assert (marks["NaN (1)"].x[0], marks["NaN (1)"].y[0]) == (-1.0, -1.0)
    assert marks["+∞ (1)"].x[0] == -0.5 and "−∞ (1)" in marks
    caption = surface_caption(surface(values))
    assert "NaN at 1 of them" in caption and "+∞ at 1 of them" in caption


def test_clipped_values_are_marked_and_stated():
    figure = surface_figure(surface(bowl()), clip=3.0)
    (trace,) = traces(figure, "heatmap")
    assert np.max(trace.z) == 3.0
    count = int((bowl() > 3.0).sum())
    assert f"above 3, clipped ({count})" in [t.name for t in figure.data]
    caption = surface_caption(surface(bowl()), clip=3.0)
    assert f"{count} values above 3 are drawn at it" in caption


def test_a_wide_range_of_positive_values_is_drawn_by_its_logarithm():
    values = 10.0 ** np.linspace(-3, 3, 12).reshape(3, 4)
    (trace,) = traces(surface_figure(surface(values)), "surface")
    np.testing.assert_allclose(np.asarray(trace.z), np.log10(values).T, atol=1e-12)
    np.testing.assert_array_equal(trace.customdata, values.T)  # hovering tells the loss
    (trace,) = traces(surface_figure(surface(values), scale="linear"), "surface")
    np.testing.assert_array_equal(np.asarray(trace.z), values.T)
    with pytest.raises(InputError, match="'log' needs positive values"):
        surface_figure(surface(values - 1), scale="log")


@pytest.mark.parametrize(
    "values",
    [
        np.ones((1, 1)),
        np.full((1, 1), np.nan),
        np.zeros((3, 3)),
        np.full((3, 4), 7.0),
        np.full((3, 4), np.nan),
        np.full((2, 2), np.inf),
        np.ones((1, 5)),
        np.full((3, 3), 1e300),
        np.ones(4),
        np.full(4, np.nan),
        np.ones((2, 3, 4)),
    ],
)
def test_degenerate_surfaces_have_a_figure_with_finite_limits(values):
    figure = surface_figure(surface(values))
    assert figure.data
    for trace in traces(figure, "heatmap"):
        assert np.isfinite([trace.zmin, trace.zmax]).all() and trace.zmin < trace.zmax
    json.loads(figure.to_json())


def test_axes_are_equal_in_parameter_distance_where_lengths_are_known():
    figure = surface_figure(surface(bowl(), gram=[[4.0, 0.0], [0.0, 9.0]]))
    assert figure.layout.yaxis.scaleanchor == "x"
    assert figure.layout.yaxis.scaleratio == pytest.approx(1.5)
    for gram in (None, [[1.0, 0.0], [0.0, 1e4]]):
        figure = surface_figure(surface(bowl(), gram=gram))
        assert figure.layout.yaxis.scaleanchor is None


def test_surfaces_beside_each_other_share_axes_colors_and_heights():
    first, second = surface(bowl()), surface(100 * bowl(3, 4))
    second = second.assign_coords(x0=[-3.0, 0.0, 1.0])
    second["loss"][0, 0] = np.nan
    both = [first, second]
    figures = [surface_figure(one, beside=both) for one in both]
    for figure in figures:
        assert list(figure.layout.xaxis.range) == [-4.5, 1.5]  # cells of the second
        assert list(figure.layout.scene.xaxis.range) == [-4.5, 1.5]
        assert list(figure.layout.yaxis.range) == pytest.approx([-4 / 3, 4 / 3])
        # From 1 to 400: logarithms for both, though the first alone would be linear.
        (shape,) = traces(figure, "surface")
        assert (shape.cmin, shape.cmax) == pytest.approx((0, np.log10(400)))
        assert figure.layout.scene.zaxis.range == pytest.approx((0, np.log10(400)))
    assert surface_figure(first).layout.scene.xaxis.range is None
    # The caption says what the common scale is.
    assert "logarithmic" in surface_caption(first, beside=both)
    assert "logarithmic" not in surface_caption(first)
    assert "logarithmic" in surface_caption(first, scale="log")
    with pytest.raises(InputError, match="over 2 axes must have 2 axes too"):
        surface_figure(first, beside=[surface(np.ones(3))])


def test_named_points_lie_on_the_surface():
    values = bowl()
    values[0, 0] = np.nan
    dataset = surface(values, anchors={"a": [0.5, -1.0], "gone": [-1.0, -1.0]})
    points = traces(surface_figure(dataset), "scatter3d")[-1]
    assert list(points.z) == [values[2, 3], values[3, 0], np.nanmin(values)]


def test_labels_and_anchors_come_from_the_directions():
    dataset = surface(bowl(), labels=["λ = 3", "λ = 1"], anchors={"a": [0.5, -0.5]})
    figure = surface_figure(dataset)
    assert figure.layout.xaxis.title.text == "λ = 3"
    assert figure.layout.scene.yaxis.title.text == "λ = 1"
    points = traces(figure, "scatter")[0]
    assert tuple(points.text) == ("center", "a") and points.x[1] == 0.5


def test_points_of_a_path_far_from_the_plane_are_faded():
    path = np.array([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]])
    residuals = np.array([0.0, 0.4, 0.9])
    figure = surface_figure(surface(bowl()), trajectory=path, residuals=residuals)
    drawn = next(t for t in traces(figure, "scatter") if t.name == "path")
    assert list(drawn.marker.opacity) == [1.0, 1.0, 0.25]
    # A path that leaves the surface stays in sight.
    far = surface_figure(surface(bowl()), trajectory=3 * path - 1).layout
    assert list(far.xaxis.range) == [-1.25, 2.0]
    assert "90%" in surface_caption(surface(bowl()), residuals=residuals)


def test_three_axes_give_one_slice_a_step_of_the_slider():
    values = np.random.default_rng(0).random((3, 4, 5)) - 0.5
    figure = surface_figure(surface(values))
    assert len(figure.layout.sliders[0].steps) == 5
    slices = traces(figure, "heatmap")
    np.testing.assert_array_equal(np.asarray(slices[3].z), values[:, :, 3].T)
    assert [t.visible for t in slices] == [False, False, True, False, False]


def test_a_dataset_that_lacks_variables_is_refused_by_name():
    with pytest.raises(InputError, match="no variable over axes x0.* are: a"):
        surface_figure(xr.Dataset({"a": 1.0}))
    with pytest.raises(InputError, match="variable must be one of loss, got 'acc'"):
        surface_figure(surface(bowl()), "acc")
    with pytest.raises(InputError, match="1 to 3 axes, the dataset has 4"):
        surface_figure(surface(np.ones((2, 2, 2, 2))))
    with pytest.raises(InputError, match="clip must be above the smallest value"):
        surface_figure(surface(bowl()), clip=0.5)
    with pytest.raises(InputError, match="lacks the variable 'density'"):
        spectrum_figure(xr.Dataset(coords={"t": [0.0]}))
    with pytest.raises(InputError, match="lacks 'birth'; it has: death"):
        persistence_figure({"death": np.ones(1)})
    with pytest.raises(InputError, match="lacks the variable 'value'"):
        eigenvalue_figure(xr.Dataset())


def test_lines_break_and_are_marked_where_a_value_is_not_finite():
    x = np.linspace(0, 1, 4)
    figure = line_figure(
        x,
        {"a": np.array([1.0, np.nan, np.inf, 2.0]), "b": x},
        bands={"b": np.full(4, 0.1)},
    )
    named = {trace.name: trace for trace in figure.data}
    assert np.isnan(named["a"].y).tolist() == [False, True, True, False]
    assert list(named["a: not finite (2)"].x) == [x[1], x[2]]
    assert [t for t in figure.data if t.fill == "toself"]


def test_lines_of_datasets():
    t = np.linspace(0, 1, 3)
    values = np.arange(6.0).reshape(2, 3)
    dataset = xr.Dataset(
        {"loss": (("pair", "t"), values)}, {"t": t, "pair": ["p", "q"]}
    )
    figure = line_figure(dataset)
    assert [trace.name for trace in figure.data] == ["p", "q"]
    np.testing.assert_array_equal(figure.data[1].y, values[1])
    single = xr.Dataset({"loss": ("t", values[0])}, {"t": t})
    np.testing.assert_array_equal(surface_figure(single).data[0].y, values[0])


def test_lines_that_do_not_fit_are_refused():
    x = np.zeros(3)
    with pytest.raises(InputError, match="at least one line"):
        line_figure(x, {})
    with pytest.raises(InputError, match="'a' has 2 values for 3 x"):
        line_figure(x, {"a": np.zeros(2)})
    with pytest.raises(InputError, match="no line for 'b'"):
        line_figure(x, {"a": x}, bands={"b": x})
    with pytest.raises(InputError, match="2 values for 1 layers"):
        layers_figure(["w"], {"trace": np.zeros(2)})


def spectrum():
    t = np.linspace(-1, 10, 300)
    density = np.exp(-0.5 * t**2) + 0.1 * np.exp(-0.5 * (t - 8) ** 2 / 0.01)
    return xr.Dataset(
        {"density": ("t", density), "nodes": (("probe", "step"), np.ones((2, 3)))},
        {"t": t},
        {"sigma": "0.1"},
    )


def test_the_spectrum_parts_negative_from_positive_curvature():
    figure = spectrum_figure(spectrum(), np.array([8.0, 9.0]))
    named = {trace.name: trace for trace in figure.data}
    assert max(named["negative curvature"].customdata) == 0.0
    assert min(named["positive curvature"].customdata) == 0.0
    stick = named["eigenvalues found"]
    assert stick.x[0] == pytest.approx(np.log10(1 + 8.0 / 0.1))
    assert stick.customdata[0] == 8.0
    assert "0" in figure.layout.xaxis.ticktext


def test_several_spectra_are_over_one_axis():
    wide = spectrum().assign_attrs(sigma="0.5")
    figure = spectra_figure({"a": spectrum(), "b": wide})
    assert [trace.name for trace in figure.data] == ["a", "b"]
    # linear within the coarser resolution
    np.testing.assert_array_equal(figure.data[0].x, figure.data[1].x)
    assert max(figure.data[0].x) == pytest.approx(np.log10(1 + 10 / 0.5))
    with pytest.raises(InputError, match="spectra has no dataset"):
        spectra_figure({})


def test_a_spectrum_of_the_zero_operator_is_drawn():
    dataset = xr.Dataset({"density": ("t", np.zeros(3))}, {"t": np.zeros(3)})
    json.loads(spectrum_figure(dataset).to_json())


def test_eigenvalues_not_converged_are_hollow():
    dataset = xr.Dataset(
        {
            "value": ("pair", [3.0, 1.0]),
            "residual": ("pair", [1e-9, 0.2]),
            "converged": ("pair", np.array([1, 0], dtype="int8")),
        }
    )
    named = {t.name: t for t in eigenvalue_figure(dataset).data}
    assert list(named["converged"].y) == [3.0]
    assert list(named["not converged"].y) == [1.0]
    assert list(named["not converged"].error_y.array) == [0.2]


def test_layers_of_a_dataset_show_their_errors():
    dataset = xr.Dataset(
        {"trace": ("layer", [1.0, np.nan]), "trace_stderr": ("layer", [0.1, 0.2])},
        {"layer": ["w", "b"]},
    )
    bars = layers_figure(dataset).data[0]
    assert list(bars.y) == ["w", "b"] and list(bars.error_x.array) == [0.1, 0.2]
    assert list(bars.text) == ["", "nan"]


def test_persistence_shows_the_component_that_never_dies():
    figure = persistence_figure({"birth": [0.0, 1.0], "death": [np.inf, 3.0]})
    assert sum(t.marker.symbol == "triangle-up" and len(t.x) for t in figure.data) == 1
    json.loads(persistence_figure({"birth": [], "death": []}).to_json())


def test_branches_of_a_merge_tree_do_not_cross():
    rng = np.random.default_rng(0)
    n = 30
    births = np.sort(rng.random(n))
    parents = np.array([-1, *[rng.integers(i) for i in range(1, n)]])
    deaths = np.full(n, np.inf)
    for i in range(1, n):  # a child dies before its parent does
        ceiling = min(deaths[parents[i]], 2.0)
        deaths[i] = births[i] + (ceiling - births[i]) * rng.random()
    figure = merge_tree_figure(births, deaths, parents)
    places = np.asarray(figure.data[1].x)
    assert sorted(places) == list(range(n))
    for i in range(1, n):
        low, high = sorted((places[i], places[parents[i]]))
        between = (places > low) & (places < high)
        crossed = between & (births < deaths[i]) & (deaths > deaths[i])
        assert not crossed.any()


def test_a_merge_tree_without_a_deepest_minimum_is_refused():
    with pytest.raises(InputError, match="do not lead to a deepest one"):
        merge_tree_figure(np.zeros(2), np.ones(2), np.array([1, 0]))


def refined(broken=False):
    """An adaptive surface of 9 x 9 places; the points are every second and one more."""
    loss = bowl(9, 9)
    evaluated = np.zeros(loss.shape, bool)
    evaluated[::2, ::2] = evaluated[1, 1] = True
    status = np.zeros(loss.shape, int)
    interpolated = ~evaluated
    if broken:
        loss[4, 4] = loss[3, 4] = np.nan
        status[4, 4], status[3, 4], interpolated[3, 4] = 1, 5, False
    data = surface(loss)
    i, j = np.nonzero(evaluated)
    return data.assign(
        status=(("x0", "x1"), status),
        interpolated=(("x0", "x1"), interpolated),
        point_loss=("point", loss[i, j]),
        point_round=("point", ((i == 1) & (j == 1)).astype(int)),
    ).assign_coords(
        point_x0=("point", data["x0"].values[i]),
        point_x1=("point", data["x1"].values[j]),
    )


def test_evaluated_and_interpolated_cells_are_told_apart():
    data = refined()
    figure = surface_figure(data)
    paler, opaque = traces(figure, "heatmap")
    assert paler.opacity < 0.7 and opaque.opacity is None
    between = data["interpolated"].values.T
    np.testing.assert_array_equal(np.isfinite(np.asarray(paler.z)), between)
    np.testing.assert_array_equal(np.isfinite(np.asarray(opaque.z)), ~between)
    labels = [button.label for button in figure.layout.updatemenus[0].buttons]
    assert labels == ["3-D", "Contours", "Cells", "Points"]
    dots = next(t for t in traces(figure, "scatter") if t.name == "evaluated (26)")
    np.testing.assert_array_equal(dots.x, data["point_x0"])
    rounds = next(t for t in traces(figure, "scatter") if t.name == "evaluated")
    assert sum(rounds.marker.color) == 1 and len(rounds.x) == 26
    caption = surface_caption(data)
    assert (
        "evaluated at 26 points (dots): 25 of a coarse grid and 1 in 1 rou" in caption
    )
    assert "Of the 9 × 9 places drawn, 55 are interpolated" in caption


def test_what_was_not_looked_at_is_not_called_nan():
    data = refined(broken=True)
    figure = surface_figure(data)
    mark, *_ = [t for t in traces(figure, "scatter") if "NaN" in t.name]
    assert mark.name == "NaN (1)" and (mark.x[0], mark.y[0]) == (0.0, 0.0)
    caption = surface_caption(data)
    assert "1 are left empty" in caption and "NaN at 1 of them" in caption


def test_adaptive_lines_and_volumes_show_their_points():
    data = refined()
    line = data.isel(x1=0, drop=True).drop_vars(["point_x1"])
    figure = surface_figure(line)
    assert (
        figure.data[-1].name == "evaluated (26)" and figure.data[-1].mode == "markers"
    )
    volume = xr.concat([data.drop_dims("point")] * 3, "x2").transpose("x0", "x1", "x2")
    volume = volume.assign_coords(x2=[-1.0, 0.0, 1.0]).merge(
        data[["point_loss", "point_round"]]
    )
    volume = volume.assign_coords(point_x2=("point", np.repeat([-1.0, 0.0], 13)))
    figure = surface_figure(volume)
    dots = [t for t in traces(figure, "scatter") if "evaluated" in t.name]
    assert [len(t.x) for t in dots] == [13, 13, 0]
    assert len(traces(figure, "heatmap")) == 6


def test_basins_have_colors_and_marked_minima_and_saddles():
    values = np.array([[0.0, 1, 0.5], [1, 2, np.nan], [2, 3, 4]])
    basins = np.array([[0, 0, 2], [0, 0, 2], [0, 0, 2]])
    figure = basins_figure(surface(values), basins, np.array([0, 2]), np.array([1]))
    (areas,) = traces(figure, "heatmap")
    shown = np.asarray(areas.z, dtype=float)
    np.testing.assert_array_equal(shown[:, 0], [0, 0, 1])
    assert np.isnan(shown[2, 1])
    marks = {t.name: t for t in traces(figure, "scatter")}
    assert list(zip(marks["minimum"].x, marks["minimum"].y, strict=True)) == [
        (-1.0, -1.0),
        (-1.0, 1.0),
    ]
    assert (marks["saddle"].x[0], marks["saddle"].y[0]) == (-1.0, 0.0)
    data = refined()
    labels = np.where(data["point_x0"].values > 0, 3, 7)
    figure = basins_figure(data, labels, np.array([7, 3]), np.array([12]))
    dots = traces(figure, "scatter")[0]
    assert len(dots.x) == 26 and len(set(dots.marker.color)) == 2
    with pytest.raises(InputError, match=r"basins must have the shape .*got \(4,\)"):
        basins_figure(data, np.zeros(4, int), np.array([0]), np.array([], int))
    with pytest.raises(InputError, match="2 axes, the dataset has 1"):
        line = surface(np.ones(3))
        basins_figure(line, np.zeros(3, int), np.array([0]), np.array([], int))
