"""What the study shows: floors, success against width, Betti numbers, random starts."""

from collections.abc import Iterator

import numpy as np
import xarray

from thalweg.reporting import Figure, Section, Table, Text, line_figure
from thalweg.solvable import relu_topology as rt
from thalweg.solvable.two_layer_relu import wilson


def circle_section(pairs: xarray.Dataset, floor: float, floors: Table) -> Section:
    """Return the lowest losses of two neurons, with the floor that one sign has."""
    steps = pairs["step"].values.astype(float)
    losses = pairs["losses"].clip(min=1e-26)
    lines = {}
    for name in pairs["configuration"].values:
        lines[str(name)] = losses.sel(configuration=name).min("start").values
    lines["floor of one sign"] = np.full(len(steps), floor)
    rows = []
    for name in pairs["configuration"].values:
        loss = pairs["loss"].sel(configuration=name).values
        count = int((loss < 1e-20).sum())
        low, high = wilson(count, len(loss))
        rows.append(
            (
                str(name),
                len(loss),
                count,
                f"{100 * round(low, 9):.3g} to {100 * high:.3g}",
                float(pairs["lowest"].sel(configuration=name).min()),
                int((pairs["flips"].sel(configuration=name) > 0).any("neuron").sum()),
            )
        )
    table = Table(
        (
            "Two neurons", "Starts", "Below 1e-20", "95 % interval, %", "Lowest loss",
            "Starts with a flip",
        ),
        rows,
        "Flips are changes of the sign of an output weight from one step to the next.",
    )  # fmt: skip
    text = Text(
        "The target relu(x1) - relu(x2) at 64 points of the circle needs one neuron of "
        "each sign. A neuron with c = |w1|² - w2² < 0 is locked: its sign never "
        "changes. Two locked positive neurons only make convex functions that are not "
        "negative, and no such function has a loss below the floor."
    )
    caption = (
        "Lowest loss ½ mean (f - y)² of any start, by gradient descent at learning "
        "rate 0.1; cut at 1e-26."
    )
    figure = line_figure(
        steps, lines, x_label="step", y_label="training loss", scale="log"
    )
    return Section("The circle", (text, Figure(figure, caption), table, floors))


def floors_table(values: dict[str, rt.Floor]) -> Table:
    """Return the certified floors of networks of one sign, method by method."""
    rows = [
        (
            name,
            f.value,
            "yes" if f.certified else "no",
            "yes" if f.exact else "no",
            f.note,
        )
        for name, f in values.items()
    ]
    columns = ("Bound", "Loss", "Certified", "Attained in the limit", "What it is")
    return Table(columns, rows, "Lower bounds for any number of neurons of one sign.")


def widths_section(widths: xarray.Dataset) -> Section:
    """Return how many starts reach the target, by width and free neurons."""
    names = {0: "all locked +", 1: "one free", 2: "two free"}
    lines = {names[f]: widths["fraction"].sel(free=f).values for f in names}
    bands = {names[f]: widths["stderr"].sel(free=f).values for f in names}
    figure = line_figure(
        widths["width"].values.astype(float),
        lines,
        bands=bands,
        x_label="hidden neurons",
        y_label="fraction of starts that reach the target",
        markers=True,
    )
    rows = [
        (
            int(width),
            int(free),
            _verdict(int(width - free), int(free)),
            float(cell["fraction"]),
            float(cell["stderr"]),
            float(cell["lowest"]),
        )
        for width, free, cell in _cells(widths, "width", "free")
    ]
    columns = (
        "Neurons", "Free", "Verdict", "Fraction below 1e-8", "Standard error",
        "Lowest loss",
    )  # fmt: skip
    text = Text(
        "All neurons start with the sign +. Width alone does not help: without a free "
        "neuron the loss stays above the floor at every width."
    )
    table = Table(columns, rows)
    caption = "Bands are standard errors."
    return Section("Width", (text, Figure(figure, caption), table))


def _cells(
    data: xarray.Dataset, first: str, second: str
) -> Iterator[tuple[float, float, xarray.Dataset]]:
    """Yield both coordinates of each cell of a table, row by row, and what it holds."""
    for x in data[first].values:
        for y in data[second].values:
            yield x, y, data.sel({first: x, second: y})


def _verdict(locked: int, free: int) -> str:
    count = rt.count_neurons(np.eye(2), np.array([[1.0, -1.0]]))
    return str(rt.reachable((locked, 0, free), count).verdict)


def betti_section() -> Section:
    """Return Betti numbers of the invariant set by the signs of c, d = 3."""
    rows = []
    for plus, minus, outputs in (
        (2, 0, 1), (1, 1, 1), (0, 2, 1), (3, 3, 1), (0, 6, 1), (2, 2, 2), (2, 2, 3),
    ):  # fmt: skip
        c = np.repeat([1.0, -1.0], [plus, minus])
        found = rt.poincare_polynomial(c, 3, outputs)
        rows.append(
            (
                plus,
                minus,
                outputs,
                found.dimension,
                str(found),
                found.betti(0),
                rt.effective_components(c, 3, outputs).count,
                found.euler_characteristic,
            )
        )
    columns = (
        "c > 0", "c < 0", "Outputs", "Dimension", "Poincaré polynomial", "Components",
        "Up to exchange", "Euler characteristic",
    )  # fmt: skip
    text = Text(
        "Gradient flow stays on the set of weights with the c that it started with. "
        "The coefficients of its Poincaré polynomial are its Betti numbers: the first "
        "counts its components. Three weights lead into each neuron; with one output "
        "every neuron of c < 0 doubles the components."
    )
    return Section("Betti numbers", (text, Table(columns, rows)))


def decay_section(decay: xarray.Dataset) -> Section:
    """Return |c| under weight decay beside its law."""
    size = abs(decay["c"]).mean(("start", "neuron"))
    law = abs(decay["law"]).mean(("start", "neuron"))
    figure = line_figure(
        decay["time"].values,
        {"descent": size.values, "c(0) exp(-2 λ t)": law.values},
        x_label="time, steps x learning rate",
        y_label="mean |c|",
        scale="log",
    )
    text = Text(
        "Weight decay does not remove an obstruction. Under gradient flow it makes |c| "
        "exponentially small and keeps its sign, so that the barrier between the "
        "components becomes thin and never vanishes. Only the drift of discrete steps, "
        "of the order of the learning rate, or noise can then take a neuron across."
    )
    caption = "Two neurons locked +, λ = 0.1, learning rate 0.005."
    return Section("Weight decay", (text, Figure(figure, caption)))


def starts_section(table: xarray.Dataset) -> Section:
    """Return how often torch's initialization locks and obstructs, over the width."""
    lines = {
        f"{int(d)} inputs": np.maximum(table["obstructed"].sel(inputs=d).values, 1e-16)
        for d in table["inputs"].values
    }
    figure = line_figure(
        table["neurons"].values.astype(float),
        lines,
        x_label="hidden neurons",
        y_label="probability of an obstruction",
        scale="log",
        markers=True,
    )
    rows = [
        (
            int(d),
            int(m),
            *(float(cell[name]) for name in ("lock", "any", "all", "obstructed")),
        )
        for d, m, cell in _cells(table, "inputs", "neurons")
        if m in (1, 2, 4, 8)
    ]
    columns = (
        "Inputs", "Neurons", "One is locked", "Some are locked", "All are locked",
        "Obstructed",
    )  # fmt: skip
    text = Text(
        "torch's default start of Linear layers, with biases, and a target that needs "
        "one neuron of each sign. Obstructions are a matter of narrow networks."
    )
    caption = "In closed form, or by one integral; below 1e-16 at the lower edge."
    return Section(
        "Random starts", (text, Figure(figure, caption), Table(columns, rows))
    )


def tabular_section(tabular: xarray.Dataset) -> Section:
    """Return the test loss on real data by width and share of free neurons."""
    widths = tabular["width"].values.astype(float)
    test = tabular["test"]
    error = test.std("start") / np.sqrt(test.sizes["start"])
    names = {0.0: "all locked", 0.5: "half free", 1.0: "all free"}
    figure = line_figure(
        widths,
        {names[s]: test.mean("start").sel(share=s).values for s in names},
        bands={names[s]: error.sel(share=s).values for s in names},
        x_label="hidden neurons",
        y_label="test loss",
        markers=True,
    )
    rows = [
        (
            int(width),
            names[share],
            float(cell["obstructed"].mean()),
            float(cell["train"].mean()),
            float(cell["test"].mean()),
            float(error.sel(width=width, share=share)),
        )
        for width, share, cell in _cells(tabular, "width", "share")
    ]
    columns = (
        "Neurons", "Starts", "Obstructed", "Training loss", "Test loss",
        "Standard error",
    )  # fmt: skip
    text = Text(
        "Breast cancer table (569 rows, 30 inputs) from scikit-learn, logistic loss, "
        "random signs. Where all neurons are locked and have one sign, the output has "
        "that sign everywhere and every example of the other class costs log 2 at "
        "least; a single neuron has one sign at a time in any case."
    )
    table = Table(columns, rows)
    caption = "Bands are standard errors over starts and splits."
    return Section("Real data", (text, Figure(figure, caption), table))
