"""A path that grows over the contours of a surface, as an animated GIF."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from thalweg.errors import InputError
from thalweg.execution import atomic_file
from thalweg.reporting._numbers import format_number
from thalweg.reporting._samples import FADED_FROM, read_samples
from thalweg.reporting._scales import ScaleName, scale_of
from thalweg.reporting.figures.theme import COLORS
from thalweg.reporting.static import draw_flat, new_figure, reach

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL.Image import Image

__all__ = ["animate"]

_HOLD = 1.5  # seconds that the last frame stays
_SHORTEST = 0.02  # seconds; viewers slow down what is shorter


def animate(
    surface: "xr.Dataset",
    trajectory: Float[np.ndarray, "points 2"] | Float[Tensor, "points 2"],
    path: str | os.PathLike[str],
    *,
    residuals: Float[np.ndarray, " _"] | Float[Tensor, " _"] | None = None,
    steps: Sequence[int] | Shaped[np.ndarray, " _"] | None = None,
    values: Sequence[float] | Shaped[np.ndarray, " _"] | None = None,
    variable: str | None = None,
    scale: ScaleName = "auto",
    clip: float | None = None,
    seconds: float = 6.0,
    frames: int = 60,
    dpi: int = 100,
) -> Path:
    """Draw a path growing over the contours of a surface as a .gif; return its path.

    The path goes from recorded point to recorded point, nothing is interpolated. Where
    it has more points than there are frames, a frame adds several. The title tells the
    step, the value given for it, and how much of the point's distance from the center
    the plane does not show; above 50 % the points are faded.

    Args:
        surface: A surface over two directions.
        trajectory: Coordinates of the path in them, from `directions.project`.
        path: File to write, ending in .gif; its folder is made.
        residuals: Relative distance of each point from the plane.
        steps: Number of each point's step; its index by default.
        values: The loss at each point itself, not at its shadow in the plane.
        variable: What is drawn of the surface; `loss`, or else the first.
        scale: "log" levels for positive values, "linear", or "auto".
        clip: Values above are drawn at this level, and counted.
        seconds: Duration, but for the last frame, which stays a little longer.
        frames: Number of frames at most.
        dpi: Dots an inch; the picture is 6.4 inches wide.

    Raises:
        InputError: The suffix is another, the surface has not two axes, the path is
            empty, or something has another length than it.
    """
    target = Path(path)
    if target.suffix.lower() != ".gif":
        raise InputError(f"path must end in .gif, got {target.name!r}")
    points = np.asarray(trajectory, dtype=float)
    if not len(points):
        raise InputError("trajectory has no points")
    if seconds <= 0 or frames < 1:
        raise InputError(
            f"seconds must be positive and frames at least 1, got {seconds} and "
            f"{frames}"
        )
    given = {"residuals": residuals, "steps": steps, "values": values}
    texts = _titles(len(points), surface, variable, given)
    samples = read_samples(surface, variable)
    if len(samples.axes) != 2:
        raise InputError(
            f"the surface must have 2 axes, the dataset has {len(samples.axes)}"
        )
    figure = new_figure()
    axes = draw_flat(figure, samples, scale_of(samples.values, scale, clip))
    reach(axes, points)
    opacity = np.ones(len(points))
    if residuals is not None:
        opacity[np.asarray(residuals) > FADED_FROM] = 0.3
    shown = np.unique(np.linspace(0, len(points) - 1, frames).round().astype(int))
    pictures = _frames(axes, points, opacity, texts, shown, dpi)
    target.parent.mkdir(parents=True, exist_ok=True)
    each = max(seconds / len(shown), _SHORTEST)
    times = [each] * (len(shown) - 1) + [max(each, _HOLD)]
    with atomic_file(target) as file:
        pictures[0].save(
            file,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=[10 * round(100 * time) for time in times],
            loop=0,
        )
    return target


def _titles(
    count: int, surface: "xr.Dataset", variable: str | None, given: Mapping[str, object]
) -> list[str]:
    """Return the title of each point."""
    columns = {name: np.asarray(c) for name, c in given.items() if c is not None}
    for name, column in columns.items():
        if column.shape != (count,):
            raise InputError(
                f"{name} has shape {column.shape}, the trajectory has {count} points"
            )
    numbers = columns.get("steps", np.arange(count))
    titles = [f"step {number}" for number in numbers]
    if "values" in columns:
        name = variable or "loss"
        titles = [
            f"{title}   {name} {format_number(float(value), 3)}"
            for title, value in zip(titles, columns["values"], strict=True)
        ]
    if "residuals" in columns:
        titles = [
            f"{title}   {100 * float(residual):.0f} % off the plane"
            for title, residual in zip(titles, columns["residuals"], strict=True)
        ]
    return titles


def _frames(
    axes: "Axes",
    points: np.ndarray,
    opacity: np.ndarray,
    titles: list[str],
    shown: np.ndarray,
    dpi: int,
) -> "list[Image]":
    """Draw the surface once, then each frame's path over it."""
    from matplotlib.figure import Figure

    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.set_dpi(dpi)
    canvas: FigureCanvasAgg = figure.canvas  # type: ignore[assignment]  # made so
    title = axes.set_title(titles[-1], fontsize=11, loc="left")
    canvas.draw()  # lays it out
    figure.set_layout_engine("none")
    title.set_text("")
    canvas.draw()
    background = canvas.copy_from_bbox(figure.bbox)
    (line,) = axes.plot([], [], "-", color=COLORS[1], linewidth=1.4)
    dots = axes.scatter([], [], s=14, color=COLORS[1], zorder=3)
    (head,) = axes.plot(
        [], [], "o", color=COLORS[1], markeredgecolor="white", markersize=9, zorder=4
    )
    pictures = []
    for index in shown:
        canvas.restore_region(background)
        past = points[: index + 1]
        line.set_data(past[:, 0], past[:, 1])
        dots.set_offsets(past)
        dots.set_alpha(list(opacity[: index + 1]))
        head.set_data(past[-1:, 0], past[-1:, 1])
        title.set_text(titles[index])
        for artist in (line, dots, head, title):
            axes.draw_artist(artist)
        pictures.append(np.array(canvas.buffer_rgba())[..., :3])
    return _indexed(pictures)


def _indexed(pictures: list[np.ndarray]) -> "list[Image]":
    """Return the pictures with one palette, in which they share all that is still."""
    from PIL import Image

    last = pictures[-1]
    base = Image.fromarray(last).quantize(256, dither=Image.Dither.NONE)
    flat = base.getpalette() or []
    palette = np.array(flat, dtype=np.int64).reshape(-1, 3)
    images = []
    for picture in pictures:
        changed = (picture != last).any(axis=-1)
        indices = np.array(base)
        colors, place = np.unique(picture[changed], axis=0, return_inverse=True)
        distance = ((colors[:, None].astype(np.int64) - palette) ** 2).sum(axis=-1)
        indices[changed] = distance.argmin(axis=1)[place.ravel()]
        image = Image.fromarray(indices)
        image.putpalette(flat)
        images.append(image)
    return images
