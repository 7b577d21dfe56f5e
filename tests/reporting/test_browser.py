"""The report in a real browser: silent console, visible plots, no overflow, offline."""

import shutil

import numpy as np
import pytest
import xarray as xr

from thalweg.reporting import (
    Callout,
    Figure,
    Quantities,
    Quantity,
    Section,
    Table,
    line_figure,
    merge_tree_figure,
    persistence_figure,
    spectrum_figure,
    surface_figure,
    write_report,
)

FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update"
)
OVERFLOWING = """
const wide = document.documentElement.scrollWidth;
return wide > window.innerWidth ? wide : 0;
"""
PLOTS = """
return Array.from(document.querySelectorAll('.plot')).map((plot) => {
  const box = plot.querySelector('.main-svg').getBoundingClientRect();
  const outer = plot.getBoundingClientRect();
  return [box.width, box.height, outer.width, outer.height];
});
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    session = webdriver.Chrome(options=options, service=service)
    try:
        session.execute_cdp_cmd("Network.enable", {})
        yield session
    finally:
        session.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    x = np.linspace(-1, 1, 9)
    values = 0.01 + x[:, None] ** 2 + x**2
    values[0, 0], values[8, 8] = np.nan, np.inf
    surface = xr.Dataset({"loss": (("x0", "x1"), values)}, {"x0": x, "x1": x})
    t = np.linspace(-1, 9, 200)
    spectrum = xr.Dataset(
        {"density": ("t", np.exp(-(t**2)))}, {"t": t}, {"sigma": "0.1"}
    )
    births, deaths = np.array([0.0, 0.2]), np.array([np.inf, 0.5])
    figures = [
        surface_figure(surface),
        surface_figure(
            xr.Dataset({"loss": (("x0", "x1"), np.ones((1, 1)))}).assign_coords(
                x0=[0.0], x1=[0.0]
            )
        ),
        spectrum_figure(spectrum, np.array([5.0])),
        persistence_figure({"birth": births, "death": deaths}),
        merge_tree_figure(births, deaths, np.array([-1, 0])),
        line_figure(x, {"a": values[0], "b": x**2}, bands={"b": np.full(9, 0.1)}),
    ]
    columns = [f"a column with a long name {i}" for i in range(9)]
    sections = [
        Section(
            "A first section with a title that is long enough to be broken",
            [
                Callout("verdict", "word " * 40),
                Quantities([Quantity(f"number {i}", 10.0**i, 0.1) for i in range(7)]),
                Table(columns, [[f"cell_{i}" * 4 for i in range(9)]], "caption"),
            ],
        ),
        Section("Figures", [Figure(figure, "caption") for figure in figures]),
    ]
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(path, "An_unbroken_title_" * 6, sections, {"surface": surface})


def resize(browser, width):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )


def open_report(browser, report):
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get_log("browser")  # what earlier pages said
    browser.get(report.as_uri())
    WebDriverWait(browser, 30).until(
        lambda b: b.execute_script(
            "return Array.from(document.querySelectorAll('.plot'))"
            ".every((plot) => plot.querySelector('.main-svg'))"
        )
    )


def errors(browser):
    return [m for m in browser.get_log("browser") if m["level"] == "SEVERE"]


@pytest.mark.parametrize("width", [1280, 400])
def test_the_report_is_readable(browser, report, width):
    resize(browser, width)
    open_report(browser, report)
    assert browser.execute_script(OVERFLOWING) == 0
    for inner_width, inner_height, outer_width, outer_height in browser.execute_script(
        PLOTS
    ):
        assert min(inner_width, inner_height) > 200
        assert inner_width <= outer_width + 1 and inner_height <= outer_height + 1
    assert errors(browser) == []


def test_the_report_asks_the_network_for_nothing(browser, report):
    resize(browser, 1280)
    browser.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    try:
        open_report(browser, report)
        fetched = browser.execute_script(
            "return performance.getEntriesByType('resource').map((e) => e.name)"
            ".filter((name) => !/^(data|blob):/.test(name))"
        )
    finally:
        browser.execute_cdp_cmd(
            "Network.emulateNetworkConditions",
            {
                "offline": False,
                "latency": 0,
                "downloadThroughput": -1,
                "uploadThroughput": -1,
            },
        )
    assert fetched == [] and errors(browser) == []


@pytest.mark.parametrize("width", [1280, 400])
def test_every_view_of_a_surface_opens(browser, report, width):
    resize(browser, width)
    open_report(browser, report)
    shown = browser.execute_async_script(
        """
        const done = arguments[arguments.length - 1];
        const plot = document.querySelector('.plot');
        const seen = [];
        const next = (buttons) => {
          if (!buttons.length) return done(seen);
          Plotly.update(plot, ...buttons[0].args).then(() => {
            const shown = plot.data.filter((t) => t.visible).map((t) => t.type);
            const axis = plot._fullLayout.xaxis?.visible ?? false;
            seen.push([buttons[0].label, shown[0], axis]);
            next(buttons.slice(1));
          });
        };
        next(plot.layout.updatemenus[0].buttons);
        """
    )
    assert shown == [
        ["3-D", "surface", False],
        ["Contours", "contour", True],
        ["Cells", "heatmap", True],
    ]
    assert browser.execute_script(OVERFLOWING) == 0
    assert errors(browser) == []


def test_plots_follow_the_color_scheme(browser, report):
    resize(browser, 1280)
    open_report(browser, report)
    colors = []
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        colors.append(
            browser.execute_async_script(
                "const done = arguments[0];"
                "const plot = document.querySelectorAll('.plot')[2];"
                "setTimeout(() => done([plot._fullLayout.font.color,"
                " plot._fullData[0].line.color]), 1500)"
            )
        )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert colors[0][0] != colors[1][0]  # text
    assert colors[0][1] != colors[1][1]  # lines
    assert errors(browser) == []
