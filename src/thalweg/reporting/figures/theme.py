"""The look that all figures share: colors that a color-blind reader tells apart."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["COLORS", "SEQUENTIAL", "finish", "template", "translucent"]

#: Okabe and Ito's palette ("Color Universal Design", 2008) in the order of use.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b6b6b")
#: Perceptually uniform, readable in gray and without red-green vision.
SEQUENTIAL = "Viridis"

_INK = {False: "#27313a", True: "#d7dee2"}
_GRID = {False: "#e3e7e8", True: "#2d373e"}
_AXIS = {False: "#9aa5ab", True: "#62707a"}
_DARK_COLORS = (
    "#56b4e9",
    "#f0894a",
    "#2fc49a",
    "#e59ac6",
    "#f0b93a",
    "#8fcbf0",
    "#a8a8a8",
)


def template(*, dark: bool = False) -> dict[str, object]:
    """Return the plotly template, for a light or a dark page, as a plain dictionary."""
    axis = {
        "gridcolor": _GRID[dark],
        "linecolor": _AXIS[dark],
        "zerolinecolor": _AXIS[dark],
        "zerolinewidth": 1,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": _AXIS[dark],
        "automargin": True,
        "title": {"standoff": 10},
    }
    scene = {
        "gridcolor": _GRID[dark],
        "linecolor": _AXIS[dark],
        "zerolinecolor": _AXIS[dark],
        "showbackground": False,
    }
    layout = {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {
            "family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
            "size": 13,
            "color": _INK[dark],
        },
        "colorway": list(_DARK_COLORS if dark else COLORS),
        "margin": {"l": 56, "r": 16, "t": 36, "b": 48},
        "hovermode": "closest",
        "modebar": {
            "bgcolor": "rgba(0,0,0,0)",
            "color": _AXIS[dark],
            "activecolor": _INK[dark],
        },
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "xaxis": axis,
        "yaxis": axis,
        "scene": {"xaxis": scene, "yaxis": scene, "zaxis": scene},
    }
    return {"layout": layout}


def finish(figure: "go.Figure") -> "go.Figure":
    """Give a figure the light template, for readers that see it outside a report."""
    figure.update_layout(template=template(), autosize=True)
    return figure


def translucent(color: str, opacity: float) -> str:
    """Return a color "#rrggbb" with an opacity."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"
