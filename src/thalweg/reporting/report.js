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

  const isSpatial = (trace) => ["surface", "scatter3d", "isosurface"].includes(trace.type);
  const usesScene = (spec) =>
    spec.data.some((trace) => isSpatial(trace) && trace.visible !== false);

  const assign = (target, path, value) => {
    const keys = path.split(".");
    const last = keys.pop();
    keys.reduce((node, key) => (node[key] ??= {}), target)[last] = value;
  };

  // Show the view that a figure's button stands for.
  const choose = (spec, index) => {
    const menu = spec.layout.updatemenus?.[0];
    if (!menu || index < 0) return;
    const [traces, layout] = menu.buttons[index].args;
    spec.data.forEach((trace, i) => (trace.visible = traces.visible[i]));
    Object.entries(layout || {}).forEach(([path, value]) =>
      assign(spec.layout, path, value),
    );
    menu.active = index;
  };

  const flatView = (spec) =>
    (spec.layout.updatemenus?.[0]?.buttons || []).findIndex((button) =>
      spec.data.every((trace, i) => !isSpatial(trace) || !button.args[0].visible[i]),
    );

  // Three-dimensional views need WebGL, of which a page has few contexts: a figure
  // that has a flat view too is shown in that one where there is none left.
  const spatial = new Set(
    plots
      .filter((plot) => usesScene(parsed(plot.dataset.spec)))
      .slice(0, hasWebGL ? 8 : 0),
  );

  // Figures name the colors of the light palette: a dark page takes their brighter kin.
  const [light, bright] = [templates.light, templates.dark].map((t) => t.layout.colorway);
  const specOf = (plot, dark) => {
    let text = element(plot.dataset.spec).textContent;
    if (dark) light.forEach((color, i) => (text = text.replaceAll(color, bright[i])));
    return JSON.parse(text);
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
    (layout.updatemenus || []).forEach((menu) => {
      menu.pad = { ...menu.pad, b: 56 }; // room for two rows of the legend
      layout.margin = { ...layout.margin, t: 112 };
      layout.legend = { ...layout.legend, font: { size: 11 } };
    });
    spec.data.forEach((trace) => {
      if (!trace.colorbar) return;
      const below = isSpatial(trace) ? -0.02 : -0.2;
      Object.assign(trace.colorbar, {
        orientation: "h", x: 0.5, xanchor: "center", y: below, yanchor: "top", len: 0.95,
      });
    });
  };

  const draw = (plot, dark) => {
    const spec = specOf(plot, dark);
    if (plot.layout) choose(spec, plot.layout.updatemenus?.[0]?.active ?? 0);
    else if (usesScene(spec) && !spatial.has(plot)) choose(spec, flatView(spec));
    spec.layout.autosize = true;
    delete spec.layout.width;
    if (plot.clientWidth < 520) narrow(spec, plot.clientWidth);
    plot.style.height = `${spec.layout.height || 440}px`;
    return Plotly.react(plot, spec.data, style(spec.layout, dark), config);
  };
  const drawAll = (dark) => plots.forEach((plot) => draw(plot, dark));

  drawAll(darkMode.matches);
  darkMode.addEventListener("change", (event) => drawAll(event.matches));
  window.addEventListener("beforeprint", () => drawAll(false));
  window.addEventListener("afterprint", () => drawAll(darkMode.matches));

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
