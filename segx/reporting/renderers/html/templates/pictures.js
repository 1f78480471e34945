"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const select = document.getElementById("gallery-variant");
  if (!select) return;

  const show = () => {
    for (const group of all("[data-gallery]")) group.hidden = group.dataset.gallery !== select.value;
  };
  select.addEventListener("change", show);

  const gallery = document.querySelector(".gallery");
  for (const box of all("[data-layer]")) {
    box.addEventListener("change", () => gallery.classList.toggle(`without-${box.dataset.layer}`, !box.checked));
  }

  const least = 8; // pixels across at the closest zoom
  for (const picture of all(".picture")) {
    const panels = all(".panel svg", picture);
    const { width, height } = panels[0].viewBox.baseVal;
    let region = 0;
    let view = { x: 0, y: 0, width, height };

    const move = (x, y, across) => {
      const wide = Math.min(width, Math.max(Math.min(least, width), across));
      const high = wide * height / width;
      const inside = (value, most) => Math.min(Math.max(0, value), most);
      view = { x: inside(x, width - wide), y: inside(y, height - high), width: wide, height: high };
      for (const panel of panels) {
        panel.setAttribute("viewBox", `${view.x} ${view.y} ${view.width} ${view.height}`);
        panel.classList.toggle("near", view.width < width);
      }
    };
    const zoom = (factor, x = view.x + view.width / 2, y = view.y + view.height / 2) => {
      const wide = Math.min(width, Math.max(Math.min(least, width), view.width / factor));
      const share = wide / view.width;
      move(x - (x - view.x) * share, y - (y - view.y) * share, wide);
    };
    const actions = {
      in: () => zoom(2), out: () => zoom(0.5), all: () => move(0, 0, width),
      change: (button) => {
        const regions = button.dataset.regions.split(";");
        const [x, y, across, down] = regions[region++ % regions.length].split(" ").map(Number);
        const wide = Math.max(across, down * width / height);
        move(x + (across - wide) / 2, y + (down - wide * height / width) / 2, wide);
      },
    };
    for (const button of all("[data-zoom]", picture)) {
      button.addEventListener("click", () => actions[button.dataset.zoom](button));
    }

    const at = (panel, event) => {
      const frame = panel.getBoundingClientRect();
      return [
        view.x + (event.clientX - frame.left) / frame.width * view.width,
        view.y + (event.clientY - frame.top) / frame.height * view.height,
      ];
    };
    const step = () => view.width / 8;
    const keys = {
      "+": () => zoom(2), "=": () => zoom(2), "-": () => zoom(0.5), 0: () => move(0, 0, width),
      ArrowLeft: () => move(view.x - step(), view.y, view.width), ArrowRight: () => move(view.x + step(), view.y, view.width),
      ArrowUp: () => move(view.x, view.y - step(), view.width), ArrowDown: () => move(view.x, view.y + step(), view.width),
    };
    for (const panel of panels) {
      panel.addEventListener("keydown", (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
        if (event.key.startsWith("Arrow") && view.width === width) return; // the page scrolls
        event.preventDefault();
        keys[event.key]();
      });
      panel.addEventListener("dblclick", (event) => zoom(event.shiftKey ? 0.5 : 2, ...at(panel, event)));
      panel.addEventListener("wheel", (event) => {
        if (!event.ctrlKey && !event.metaKey) return;
        event.preventDefault();
        zoom(Math.exp(-event.deltaY / 300), ...at(panel, event));
      }, { passive: false });
      panel.addEventListener("pointerdown", (event) => {
        if (view.width === width || event.button) return;
        panel.setPointerCapture(event.pointerId);
        const from = at(panel, event);
        const drag = (now) => {
          const to = at(panel, now);
          move(view.x + from[0] - to[0], view.y + from[1] - to[1], view.width);
        };
        panel.addEventListener("pointermove", drag);
        for (const end of ["pointerup", "pointercancel"]) {
          panel.addEventListener(end, () => panel.removeEventListener("pointermove", drag), { once: true });
        }
      });
    }
  }
})();
