"use strict";
(() => {
  const element = (id) => document.getElementById(id);
  const parsed = (id) => JSON.parse(element(id).textContent);
  const templates = parsed("report-templates");
  const darkMode = window.matchMedia("(prefers-color-scheme: dark)");
  const plots = Array.from(document.querySelectorAll(".plot"));
  const config = {
    responsive: true,
    displaylogo: false,
    modeBarButtonsToRemove: ["lasso2d", "select2d", "sendDataToCloud"],
  };

  const hasWebGL = (() => {
    try {
      return Boolean(document.createElement("canvas").getContext("webgl"));
    } catch {
      return false;
    }
  })();

  // Three-dimensional views need WebGL, of which a page has few contexts: a figure
  // that has a flat view too is shown in that one where there is none left.
  let scenesLeft = hasWebGL ? 8 : 0;
  const isSpatial = (trace) => ["surface", "scatter3d", "isosurface"].includes(trace.type);
  const usesScene = (spec) =>
    spec.data.some((trace) => isSpatial(trace) && trace.visible !== false);

  const assign = (target, path, value) => {
    const keys = path.split(".");
    const last = keys.pop();
    keys.reduce((node, key) => (node[key] ??= {}), target)[last] = value;
  };

  const flatten = (spec) => {
    const menu = (spec.layout.updatemenus || [])[0];
    if (!menu) return;
    for (const [index, button] of menu.buttons.entries()) {
      const [traces, layout] = button.args;
      const flat = spec.data.every(
        (trace, i) => !isSpatial(trace) || traces.visible[i] === false,
      );
      if (!flat) continue;
      spec.data.forEach((trace, i) => (trace.visible = traces.visible[i]));
      Object.entries(layout || {}).forEach(([path, value]) =>
        assign(spec.layout, path, value),
      );
      menu.active = index;
      return;
    }
  };

  const style = (layout, dark) => {
    layout.template = templates[dark ? "dark" : "light"];
    (layout.updatemenus || []).forEach((menu) => {
      menu.bgcolor = dark ? "#1f282e" : "#ffffff";
      menu.bordercolor = dark ? "#3a4650" : "#cfd6d8";
      menu.font = { ...menu.font, color: dark ? "#d7dee2" : "#27313a", size: 12 };
    });
    return layout;
  };

  // On a narrow page: the color bar below, the camera farther, a finger scrolls.
  const narrow = (spec, width) => {
    const { layout } = spec;
    layout.dragmode ??= false;
    const eye = layout.scene?.camera?.eye;
    const distance = Math.min(1.5, 560 / width);
    if (eye) Object.keys(eye).forEach((key) => (eye[key] *= distance));
    ["xaxis", "yaxis", "zaxis"].forEach((name) => {
      const axis = layout.scene?.[name];
      if (axis) Object.assign(axis, { tickfont: { size: 9 }, nticks: 4 });
      if (axis?.title) axis.title.font = { size: 10 };
    });
    if (layout.scene?.zaxis) layout.scene.zaxis.title = { text: "" }; // the bar says it
    if (layout.scene) layout.height = Math.min(layout.height || 440, width + 130);
    spec.data.forEach((trace) => {
      if (!trace.colorbar) return;
      const below = isSpatial(trace) ? -0.02 : -0.2;
      Object.assign(trace.colorbar, {
        orientation: "h", x: 0.5, xanchor: "center", y: below, yanchor: "top", len: 0.95,
      });
    });
  };

  const draw = (plot) => {
    const spec = parsed(plot.dataset.spec);
    if (usesScene(spec) && scenesLeft-- <= 0) flatten(spec);
    spec.layout.autosize = true;
    delete spec.layout.width;
    if (plot.clientWidth < 520) narrow(spec, plot.clientWidth);
    plot.style.height = `${spec.layout.height || 440}px`;
    return Plotly.newPlot(plot, spec.data, style(spec.layout, darkMode.matches), config);
  };

  const restyle = (dark) =>
    plots.forEach((plot) =>
      Plotly.relayout(plot, style({ updatemenus: plot.layout.updatemenus }, dark)),
    );

  plots.forEach(draw);
  darkMode.addEventListener("change", (event) => restyle(event.matches));
  window.addEventListener("beforeprint", () => restyle(false));
  window.addEventListener("afterprint", () => restyle(darkMode.matches));

  element("save-data").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(
      new Blob([element("report-data").textContent], { type: "application/json" }),
    );
    link.download = "report-data.json";
    link.click();
    URL.revokeObjectURL(link.href);
  });

  // The navigation marks the section that is being read.
  const entries = new Map(
    Array.from(document.querySelectorAll("nav a")).map((a) => [a.hash.slice(1), a]),
  );
  const mark = () => {
    let current = null;
    for (const section of document.querySelectorAll("main > section")) {
      if (section.getBoundingClientRect().top <= 120) current = section.id;
    }
    entries.forEach((a, id) =>
      id === current ? a.setAttribute("aria-current", "true") : a.removeAttribute("aria-current"),
    );
  };
  window.addEventListener("scroll", mark, { passive: true });
  mark();
})();
