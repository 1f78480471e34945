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

  const tracesOf = (key) => {
    const { data: always, frames } = data.charts[key];
    const traces = always.length ? always : frames[document.querySelector(`[data-frame-of="${key}"]`).value];
    return traces.map((trace) => ({ ...trace, visible: !hidden.has(trace.legendgroup) }));
  };

  const save = (key) => Plotly.downloadImage({
    data: tracesOf(key),
    layout: {
      ...data.charts[key].layout, template: template(), title: { text: data.charts[key].title }, showlegend: true,
      paper_bgcolor: data.theme[darkMode.matches ? "dark" : "light"].ground,
      margin: { ...data.charts[key].layout.margin, t: 64 },
    },
  }, { format: "png", width: 1200, height: 700, scale: 2, filename: `segx-${key}` });

  const draw = async (plot) => {
    const key = plot.dataset.chart;
    const { layout: fixed } = data.charts[key];
    const layout = { ...structuredClone(fixed), template: template(), autosize: true };
    if (printing) Object.assign(layout, { width: Math.min(plot.clientWidth, 660), height: Math.min(plot.clientHeight, 340) });
    const first = !drawn.has(plot);
    drawn.add(plot);
    await Plotly.react(plot, tracesOf(key), layout, { responsive: true, displayModeBar: false, scrollZoom: false });
    if (!fixed.meta.named) return;
    writeNames(plot, fixed.annotations ?? []);
    if (!first) return;
    plot.on("plotly_relayout", (changed) => {
      if (Object.keys(changed).some((name) => /axis|autosize/.test(name))) writeNames(plot, fixed.annotations ?? []);
    });
  };

  // Names at the points, each where it covers neither a point nor another name; one without room there stands where it
  // covers no other name. Batch sizes without room are left out.

  const ruler = document.createElement("canvas").getContext("2d");
  const overlap = (a, b) => a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;
  const directions = [[1, 0], [1, -1], [0, -1], [-1, -1], [-1, 0], [-1, 1], [0, 1], [1, 1]];

  const writeNames = (plot, others) => {
    const frame = plot.querySelector(".nsewdrag")?.getBoundingClientRect();
    if (!frame) return;
    const { xaxis, yaxis } = plot.layout;
    const linear = (axis, value) => axis.type === "log" ? Math.log10(value) : axis.type === "date" ? Date.parse(value) : value;
    const share = (axis, value) => {
      const [low, high] = axis.range.map((end) => axis.type === "date" ? Date.parse(end) : end);
      return (linear(axis, value) - low) / (high - low);
    };
    const lines = plot.data.filter((trace) => trace.visible && trace.legendgroup).map((trace) => ({
      trace,
      points: trace.x.map((x, i) => ({
        i, x: share(xaxis, x) * frame.width, y: (1 - share(yaxis, trace.y[i])) * frame.height,
      })).filter(({ x, y }) => x >= 0 && x <= frame.width && y >= 0 && y <= frame.height),
    }));
    const around = ({ x, y }, reach) => ({ x: x - reach, y: y - reach, width: 2 * reach, height: 2 * reach });
    const taken = lines.filter(({ trace }) => trace.mode.includes("markers")).flatMap(({ points }) => points)
      .map((point) => around(point, 6));
    const joined = lines.filter(({ trace }) => trace.mode.includes("lines")).flatMap(({ points }) =>
      points.slice(1).flatMap((to, i) => [1, 2, 3, 4, 5, 6, 7, 8, 9].map((tenth) => around({
        x: points[i].x + (to.x - points[i].x) * tenth / 10, y: points[i].y + (to.y - points[i].y) * tenth / 10,
      }, 1))));
    const bar = (axis, at, error, i) => [at - error.arrayminus[i], at + error.array[i]].map((end) => share(axis, end));
    const bars = lines.flatMap(({ trace, points }) => points.flatMap(({ i, x, y }) => {
      const [left, right] = trace.error_x ? bar(xaxis, trace.x[i], trace.error_x, i) : [0, 0];
      const [low, high] = trace.error_y ? bar(yaxis, trace.y[i], trace.error_y, i) : [0, 0];
      return [
        { x: left * frame.width, y: y - 1, width: (right - left) * frame.width, height: 2 },
        { x: x - 1, y: (1 - high) * frame.height, width: 2, height: (high - low) * frame.height },
      ];
    }));
    ruler.font = getComputedStyle(document.body).fontFamily.replace(/^/, "12px ");
    const names = [];
    const written = [];
    const color = data.theme[darkMode.matches && !printing ? "dark" : "light"];

    const put = (line, text, { i, x, y }, box, style) => {
      taken.push(box);
      const [at, level] = [line.trace.x[i], line.trace.y[i]];
      written.push({
        x: xaxis.type === "log" ? Math.log10(at) : at, y: yaxis.type === "log" ? Math.log10(level) : level,
        ax: box.x + box.width / 2 - x, ay: box.y + box.height / 2 - y, text, showarrow: true, arrowhead: 0, arrowwidth: 1,
        standoff: 5, borderpad: 0, ...style,
      });
    };

    const write = (line, text, candidates, distances, style, avoided) => {
      const { width } = ruler.measureText(text);
      const size = { width: width + 6, height: 15 };
      for (const distance of distances) {
        for (const { i, x, y } of candidates) {
          for (const [right, down] of directions) {
            const reach = { x: right * (distance + size.width / 2), y: down * (distance + size.height / 2) };
            const box = { x: x + reach.x - size.width / 2, y: y + reach.y - size.height / 2, ...size };
            const inside = box.x >= 0 && box.y >= 0 && box.x + box.width <= frame.width && box.y + box.height <= frame.height;
            if (!inside || taken.some((other) => overlap(box, other)) || avoided.some((other) => overlap(box, other))) continue;
            put(line, text, { i, x, y }, box, { arrowcolor: distance > 12 ? line.trace.line.color : "rgba(0,0,0,0)", ...style });
            names.push(box);
            return true;
          }
        }
      }
      return false;
    };
    const writeAnywhere = (line, text, point) => {
      const size = { width: ruler.measureText(text).width + 6, height: 15 };
      const free = [];
      for (let y = 0; y + size.height <= frame.height; y += 5) {
        for (let x = 0; x + size.width <= frame.width; x += 5) {
          if (!names.some((other) => overlap({ x, y, ...size }, other))) free.push({ x, y, ...size });
        }
      }
      const far = (box) => Math.hypot(box.x + box.width / 2 - point.x, box.y + box.height / 2 - point.y);
      const box = free.sort((a, b) => far(a) - far(b))[0];
      if (!box) return;
      put(line, text, point, box, { arrowcolor: line.trace.line.color, bgcolor: color.ground });
      names.push(box);
    };
    const named = new Set();
    for (const line of lines) {
      const { name, legendgroup } = line.trace;
      if (named.has(legendgroup) || !line.points.length) continue;
      named.add(legendgroup);
      const candidates = [...line.points].reverse();
      write(line, name, candidates, [6, 16, 30, 48], {}, [...joined, ...bars])
        || write(line, name, candidates, [6, 16, 30, 48, 70, 95, 130, 170], {}, [])
        || writeAnywhere(line, name, candidates[0]);
    }
    for (const line of lines) {
      for (const point of line.trace.text ? line.points : []) {
        write(line, line.trace.text[point.i], [point], [7], { font: { size: 10 } }, [...joined, ...bars]);
      }
    }
    Plotly.relayout(plot, { annotations: [...others, ...written] });
  };

  const redraw = () => Promise.all([...drawn].map(draw));

  // Plotly is packed to less than half; the text of the page is shown before it is unpacked.
  const unpack = async () => {
    const packed = document.getElementById("plotly");
    const letters = atob(packed.textContent);
    const bytes = new Uint8Array(letters.length);
    for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i); // a tenth of the time of Uint8Array.from
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
    () => {
      const [first, ...later] = all(".plot");
      if (first?.offsetParent) draw(first);
      else if (first) later.push(first);
      for (const plot of later) observer.observe(plot);
    },
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
      const table = heading.closest("table");
      const bodies = [...table.tBodies]; // each is a row and what it opens, or the only one has all rows
      const column = Number(button.dataset.sort);
      const numeric = heading.classList.contains("number");
      const descending = heading.getAttribute("aria-sort") === "ascending";
      for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const value = (part) => {
        const cell = (part.rows?.[0] ?? part).cells[column];
        return cell.dataset.v ?? (cell.textContent === "–" ? "" : cell.textContent);
      };
      const parts = (bodies.length > 1 ? bodies : [...bodies[0].rows]).sort((a, b) => {
        const order = compare(value(a), value(b), numeric);
        return descending && value(a) !== "" && value(b) !== "" ? -order : order;
      });
      (bodies.length > 1 ? table : bodies[0]).append(...parts);
    });
  }

  for (const button of all(".open")) {
    button.addEventListener("click", () => {
      const row = document.getElementById(button.getAttribute("aria-controls"));
      row.hidden = !row.hidden;
      button.setAttribute("aria-expanded", String(!row.hidden));
    });
  }

  // A table that does not fit is scrolled by keyboard too.
  const fit = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.scrollWidth > target.clientWidth || target.scrollHeight > target.clientHeight) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });
  for (const region of all(".scroll")) fit.observe(region);

  // The rest --------------------------------------------------------------------------------------------------------

  // One stop of the Tab key per toolbar; the arrow keys move within it.
  for (const bar of all("[role=toolbar]")) {
    bar.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const buttons = all("button", bar);
      const next = buttons[(buttons.indexOf(event.target) + step + buttons.length) % buttons.length];
      if (!next) return;
      event.preventDefault();
      for (const button of buttons) button.tabIndex = button === next ? 0 : -1;
      next.focus();
    });
  }

  // A link to something folded opens it.
  const unfold = (hash) => {
    const target = document.getElementById(decodeURIComponent(hash.slice(1)));
    const fold = target?.closest("details");
    if (fold) fold.open = true;
  };
  for (const link of all('a[href^="#"]')) link.addEventListener("click", () => unfold(link.hash));
  unfold(location.hash);

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
      const lines = [...button.closest("table").rows].filter((row) => !row.matches(".opened")).map((row) => [...row.cells].map((cell) => cell.textContent.trim().replace(/\s+/g, " ")).join("\t"));
      copy(lines.join("\n"), button);
    });
  }
  for (const button of all("[data-save]")) button.addEventListener("click", () => save(button.dataset.save));
  for (const button of all("[data-copy]")) {
    button.addEventListener("click", () => copy(document.getElementById(button.dataset.copy).textContent, button));
  }
})();
