"use strict";

// Light and dark.
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.style.colorScheme
    ? root.style.colorScheme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.style.colorScheme = dark ? "light" : "dark";
});

// Classes are hidden and shown by their buttons, and come forward when these are pointed at.
for (const chip of document.querySelectorAll(".chip")) {
  const legend = chip.closest(".legend");
  const scope = legend.closest("section");
  const marks = () => scope.querySelectorAll("[data-k]:not(.chip)");
  const focus = (on) => {
    for (const mark of marks()) {
      mark.classList.toggle("faint", on && mark.dataset.k !== chip.dataset.k);
      mark.classList.toggle("front", on && mark.dataset.k === chip.dataset.k);
    }
  };
  chip.addEventListener("click", () => {
    const shown = chip.getAttribute("aria-pressed") !== "true";
    chip.setAttribute("aria-pressed", String(shown));
    for (const mark of marks()) {
      if (mark.dataset.k === chip.dataset.k) mark.classList.toggle("off", !shown);
    }
  });
  for (const [event, on] of [["pointerenter", true], ["focus", true], ["pointerleave", false], ["blur", false]]) {
    chip.addEventListener(event, () => focus(on));
  }
}

for (const box of document.querySelectorAll(".show-maps")) {
  const show = () => box.closest("section").classList.toggle("without-maps", !box.checked);
  box.addEventListener("change", show);
  show();
}

for (const box of document.querySelectorAll(".only-misses")) {
  box.addEventListener("change", () => box.closest("section").classList.toggle("misses", box.checked));
}

// On paper nothing can be opened.
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});

// The map: the nearest image is shown with its thumbnail.
const map = document.querySelector(".map");
if (map) {
  const data = JSON.parse(document.getElementById("map-data").textContent);
  const drawing = map.querySelector("svg");
  const sheets = document.querySelectorAll(".sheet");
  const tip = map.querySelector(".tip");
  const canvas = tip.querySelector("canvas");
  const words = tip.querySelector("div");
  const circles = [...drawing.querySelectorAll("circle")];
  const places = circles.map((circle) => [circle.cx.baseVal.value, circle.cy.baseVal.value]);
  let current = -1;

  const visible = (i) => getComputedStyle(circles[i]).display !== "none";

  const line = (text, kind) => {
    const part = document.createElement("div");
    const inner = document.createElement("bdi");
    inner.textContent = text;
    if (kind) part.className = kind;
    part.append(inner);
    return part;
  };

  const picture = (cell) => {
    canvas.hidden = cell < 0;
    if (cell < 0) return;
    const perSheet = data.sheet * data.sheet;
    const inside = cell % perSheet;
    const [left, top] = [inside % data.sheet, Math.floor(inside / data.sheet)];
    canvas.getContext("2d").drawImage(
      sheets[Math.floor(cell / perSheet)],
      left * data.edge, top * data.edge, data.edge, data.edge, 0, 0, canvas.width, canvas.height,
    );
  };

  const show = (i) => {
    if (i === current) return;
    if (current >= 0) circles[current].classList.remove("current");
    current = i;
    tip.hidden = i < 0;
    if (i < 0) return;
    circles[i].classList.add("current");
    const [truth, guess, cell] = data.points[i];
    picture(cell);
    const verdict = truth === guess ? "predicted rightly" : `taken for ${data.classes[guess]}`;
    words.replaceChildren(line(data.classes[truth], "strong"), line(verdict), line(data.names[i], "quiet"));
    const scale = drawing.clientWidth / drawing.viewBox.baseVal.width;
    const [x, y] = places[i].map((value) => value * scale);
    const beside = x + 18 + tip.offsetWidth < map.clientWidth ? x + 18 : x - 18 - tip.offsetWidth;
    tip.style.left = `${Math.max(4, beside)}px`;
    tip.style.top = `${Math.max(4, Math.min(y - tip.offsetHeight / 2, map.clientHeight - tip.offsetHeight - 4))}px`;
  };

  const nearest = (cost) => {
    let [best, least] = [-1, Infinity];
    places.forEach((place, i) => {
      const value = cost(place, i);
      if (value < least && visible(i)) [best, least] = [i, value];
    });
    return best;
  };

  const point = (event) => {
    const box = drawing.getBoundingClientRect();
    const scale = drawing.viewBox.baseVal.width / box.width;
    const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    const reach = 14 * scale;
    show(nearest(([a, b]) => {
      const far = Math.hypot(a - x, b - y);
      return far < reach ? far : Infinity;
    }));
  };
  map.addEventListener("pointermove", point);
  map.addEventListener("pointerdown", point);
  map.addEventListener("pointerleave", () => show(-1));
  map.addEventListener("blur", () => show(-1));

  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  map.addEventListener("keydown", (event) => {
    if (event.key === "Escape") show(-1);
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    const middle = [drawing.viewBox.baseVal.width / 2, drawing.viewBox.baseVal.height / 2];
    const from = current < 0 ? middle : places[current];
    const next = nearest(([a, b], i) => {
      if (i === current) return Infinity;
      const [dx, dy] = [a - from[0], b - from[1]];
      if (current < 0) return Math.hypot(dx, dy);
      const along = dx * step[0] + dy * step[1];
      const aside = Math.abs(dx * step[1] + dy * step[0]);
      return along > 0 ? along + 2 * aside : Infinity;
    });
    if (next >= 0) show(next);
  });
}
