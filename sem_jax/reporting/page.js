"use strict";
// Values under the pointer, read back from the curves themselves. The page can be read without any of this.
const format = (v) => {
  const size = Math.abs(v);
  if (v === 0 || (size >= 1e-3 && size < 1e6)) return Number(v.toPrecision(4)).toLocaleString("en");
  return v.toExponential(2);
};
const axis = (text) => {
  const [low, high, kind] = text.split(" ");
  const [a, b] = [Number(low), Number(high)];
  return kind ? (share) => a * (b / a) ** share : (share) => a + (b - a) * share;
};
const points = (path) => [...path.getAttribute("d").matchAll(/[ML](\S+?) ([^MLh]+)/g)].map((m) => [Number(m[1]), Number(m[2])]);
const nearest = (list, x, place) => list.reduce((best, p) => (Math.abs(place(p) - x) < Math.abs(place(best) - x) ? p : best));

for (const svg of document.querySelectorAll("svg")) {
  const [xOf, yOf] = [axis(svg.dataset.x), axis(svg.dataset.y)];
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  let curves, box, cursor;
  const leave = () => { box?.remove(); cursor?.remove(); box = cursor = undefined; };
  const move = (event) => {
    curves ??= [...svg.querySelectorAll(".curve")].map((p) => [p.dataset.name, points(p)]).filter((c) => c[1].length);
    if (!curves.length) return;
    const frame = svg.getBoundingClientRect();
    const at = ((event.clientX - frame.left) / frame.width) * width;
    const x = nearest(curves.map((c) => nearest(c[1], at, (p) => p[0])), at, (p) => p[0])[0];
    const lines = curves.map(([name, list]) => `${name}  ${format(yOf(1 - nearest(list, x, (p) => p[0])[1] / height))}`);
    const marks = [...svg.querySelectorAll(".mark")].filter((m) => Math.abs(Number(m.getAttribute("x1")) - at) < width / 80);
    leave();
    cursor = document.createElementNS(svg.namespaceURI, "line");
    for (const [key, value] of Object.entries({ x1: x, x2: x, y1: 0, y2: height, class: "cursor" })) cursor.setAttribute(key, value);
    svg.append(cursor);
    box = document.createElement("div");
    box.className = "reading";
    const told = lines.length > 9 ? [...lines.slice(0, 4), "…", ...lines.slice(-4)] : lines;
    box.textContent = [`${svg.dataset.position} ${format(xOf(x / width))}`, ...told, ...marks.map((m) => m.textContent)].join("\n");
    svg.parentNode.append(box);
    const [here, wide] = [(x / width) * frame.width, box.offsetWidth];
    box.style.left = `${here < frame.width / 2 ? Math.min(here + 10, frame.width - wide) : Math.max(here - wide - 10, -45)}px`;
  };
  svg.addEventListener("pointermove", move);
  svg.addEventListener("pointerdown", move);
  svg.addEventListener("pointerleave", leave);
}

// While the run trains the page loads itself anew, where it was scrolled to and with the same axis.
const stored = (action) => { try { return action(sessionStorage); } catch { return null; } };
for (const radio of document.querySelectorAll(".switch")) {
  if (stored((s) => s.getItem("position")) === radio.id) radio.checked = true;
  radio.addEventListener("change", () => stored((s) => s.setItem("position", radio.id)));
}
if (document.body.dataset.live) {
  setInterval(() => { if (!document.hidden && !document.querySelector(".reading")) location.reload(); }, 15000);
}
