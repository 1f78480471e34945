"use strict";
(() => {
  const data = JSON.parse(document.getElementById("segx-data").textContent);
  const darkMode = matchMedia("(prefers-color-scheme: dark)");
  const hidden = new Set();
  const drawn = new Set();
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  let printing = false;

  // Charts ------------------------------------------------------------------------------------------------------

  const template = () => {
    const color = data.theme[darkMode.matches && !printing ? "dark" : "light"];
    const axis = {
      gridcolor: color.grid, linecolor: color.line, zerolinecolor: color.line, tickcolor: color.line,
      tickfont: { color: color.muted }, title: { font: { color: color.text, size: 13 }, standoff: 12 },
    };
    return { layout: {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: color.text },
      xaxis: axis, yaxis: axis, shapedefaults: { line: { color: color.text } },
      hoverlabel: { bgcolor: color.raised, bordercolor: color.line, font: { color: color.text, size: 12 }, align: "left" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: color.muted, activecolor: color.accent },
    } };
  };

  const tracesOf = (plot, chart) => {
    const traces = chart.data.length ? chart.data : chart.frames[plot.dataset.frame ?? Object.keys(chart.frames)[0]];
    return traces.map((trace) => ({ ...trace, visible: !hidden.has(trace.legendgroup) }));
  };

  const picture = (plot, chart) => Plotly.downloadImage({
    data: tracesOf(plot, chart),
    layout: {
      ...chart.layout, template: template(), title: { text: chart.title }, showlegend: true,
      paper_bgcolor: data.theme[darkMode.matches ? "dark" : "light"].ground, margin: { ...chart.layout.margin, t: 64 },
    },
  }, { format: "png", width: 1200, height: 700, scale: 2, filename: `segx-${plot.dataset.chart}` });

  const draw = (plot) => {
    const chart = data.charts[plot.dataset.chart];
    const layout = { ...structuredClone(chart.layout), template: template(), autosize: true };
    if (printing) Object.assign(layout, { width: Math.min(plot.clientWidth, 660), height: Math.min(plot.clientHeight, 290) });
    drawn.add(plot);
    return Plotly.react(plot, tracesOf(plot, chart), layout, {
      responsive: true, displaylogo: false, scrollZoom: false,
      modeBarButtons: [
        [{ name: "Save as PNG", icon: Plotly.Icons.camera, click: () => picture(plot, chart) }],
        ["zoom2d", "pan2d", "resetScale2d"],
      ],
    });
  };

  const redraw = () => Promise.all([...drawn].map(draw));

  // Plotly is packed to a third of its size; the text of the page is shown before it is unpacked.
  const unpack = async () => {
    const packed = document.getElementById("plotly");
    const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
    packed.remove();
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  };

  const observer = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) { observer.unobserve(target); draw(target); }
    }
  }, { rootMargin: "300px" });
  unpack().then(
    () => { for (const plot of all(".plot")) observer.observe(plot); },
    () => { document.getElementById("too-old").hidden = false; },
  );

  darkMode.addEventListener("change", redraw);
  addEventListener("beforeprint", () => {
    printing = true;
    if (!window.Plotly) return;
    for (const plot of all(".plot")) if (plot.offsetParent) { observer.unobserve(plot); draw(plot); }
  });
  addEventListener("afterprint", () => { printing = false; redraw(); });

  for (const select of all("[data-frame-of]")) {
    select.addEventListener("change", () => {
      for (const other of all("[data-frame-of]")) {
        if (![...other.options].some((option) => option.value === select.value)) continue;
        other.value = select.value;
        const plot = document.querySelector(`.plot[data-chart="${other.dataset.frameOf}"]`);
        plot.dataset.frame = select.value;
        if (drawn.has(plot)) draw(plot);
      }
    });
  }

  const legend = all(".legend [data-variant]");
  const names = new Set(legend.map((button) => button.dataset.variant));
  const showLegend = () => {
    for (const button of legend) button.setAttribute("aria-pressed", String(!hidden.has(button.dataset.variant)));
    redraw();
  };
  for (const button of legend) {
    const name = button.dataset.variant;
    button.addEventListener("click", (event) => {
      if (event.detail > 1) return;
      if (!hidden.delete(name)) hidden.add(name);
      showLegend();
    });
    button.addEventListener("dblclick", () => {
      const only = [...names].every((other) => other === name || hidden.has(other));
      hidden.clear();
      if (!only) for (const other of names) if (other !== name) hidden.add(other);
      showLegend();
    });
  }

  // Tables ------------------------------------------------------------------------------------------------------

  const compare = (a, b, numeric) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    return numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
  };

  for (const button of all("[data-sort]")) {
    button.addEventListener("click", () => {
      const heading = button.parentElement;
      const body = heading.closest("table").tBodies[0];
      const column = Number(button.dataset.sort);
      const numeric = heading.classList.contains("number");
      const descending = heading.getAttribute("aria-sort") === "ascending";
      for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const value = (row) => {
        const cell = row.cells[column];
        return cell.dataset.v ?? (cell.textContent === "–" ? "" : cell.textContent);
      };
      const rows = [...body.rows].sort((a, b) => {
        const order = compare(value(a), value(b), numeric);
        return descending && value(a) !== "" && value(b) !== "" ? -order : order;
      });
      body.append(...rows);
    });
  }

  const copy = async (words, button) => {
    try {
      await navigator.clipboard.writeText(words);
    } catch {
      const area = document.createElement("textarea");
      area.value = words;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    const before = button.textContent;
    button.textContent = "Copied";
    document.getElementById("status").textContent = "Copied";
    setTimeout(() => { button.textContent = before; }, 1500);
  };
  for (const button of all("[data-copy-table]")) {
    button.addEventListener("click", () => {
      const lines = [...button.closest("table").rows].map((row) => [...row.cells].map((cell) => cell.textContent.trim().replace(/\s+/g, " ")).join("\t"));
      copy(lines.join("\n"), button);
    });
  }
  for (const button of all("[data-copy]")) {
    button.addEventListener("click", () => copy(document.getElementById(button.dataset.copy).textContent, button));
  }
})();
