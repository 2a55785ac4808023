"use strict";
/* Elements, numbers, tooltips, and one way to explore a chart by pointer and by keys. */
const data = JSON.parse(document.getElementById("data").textContent);

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, call] of Object.entries(value)) node.addEventListener(event, call);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child != null));
  return node;
}

function shape(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) if (value != null) node.setAttribute(name, value);
  node.append(...children.flat());
  return node;
}

const exact = (value) => value == null ? "–" : Math.round(value).toLocaleString("en-US");
const percent = (share) => share == null || !isFinite(share) ? "–" : (100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0) + "\u00a0%";
const small = (value) => value == null ? "–" : value === 0 ? "0" : Math.abs(value) < 1e-4 || Math.abs(value) >= 1e5 ? value.toExponential(1) : String(+value.toPrecision(3));
function short(value) {
  for (const [size, unit] of [[1e12, " T"], [1e9, " G"], [1e6, " M"], [1e3, " k"]])
    if (Math.abs(value) >= 0.9995 * size) return +(value / size).toPrecision(3) + unit;
  return String(Math.round(value));
}
const sum = (values) => values.reduce((total, value) => total + value, 0);
const plain = (site) => site.replace(/\.weight$/, "");
const words = { log: "Log", linear: "Linear", params: "Parameters", flops: "FLOPs", bytes: "Bytes", latency: "Latency" };
const named = (name) => words[name] || name;

const tip = document.getElementById("tip");
function showTip(lines, x, y) {
  tip.replaceChildren(...lines.map((line, place) => place ? make("div", {}, line) : make("b", {}, line)));
  tip.hidden = false;
  tip.style.left = "0";
  const left = Math.min(x + 14, document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = Math.max(8, left) + window.scrollX + "px";
  const above = y - tip.offsetHeight - 12;
  tip.style.top = (above < 4 ? y + 18 : above) + window.scrollY + "px";
}
const hideTip = () => { tip.hidden = true; };
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

/* Items are {x, y, lines} for points, with {w, h} for boxes, in pixels of the drawing. */
function explore(svg, items, { pick, label } = {}) {
  const mark = shape("g", { "pointer-events": "none" });
  svg.append(mark);
  svg.setAttribute("tabindex", "0");
  svg.setAttribute("role", "group");
  svg.setAttribute("aria-label", (label || "Chart") + ". Arrow keys move through it" + (pick ? ", Enter selects." : "."));
  let now = -1;
  const distance = (item, x, y) => {
    const dx = item.w == null ? item.x - x : Math.max(item.x - x, 0, x - item.x - item.w);
    const dy = item.h == null ? item.y - y : Math.max(item.y - y, 0, y - item.y - item.h);
    return dx * dx + dy * dy;
  };
  function show(place) {
    now = place;
    const item = items[place], box = svg.getBoundingClientRect();
    mark.replaceChildren(item.w == null ? shape("circle", { cx: item.x, cy: item.y, r: 6, class: "cursor" })
      : shape("rect", { x: item.x, y: item.y, width: Math.max(1, item.w), height: item.h, rx: 2, class: "cursor" }));
    showTip(item.lines, box.left + item.x + Math.min(item.w || 0, box.width) / 2, box.top + item.y);
  }
  function leave() { now = -1; mark.replaceChildren(); hideTip(); }
  function find(event) {
    const box = svg.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let best = -1, near = 60 * 60;
    items.forEach((item, place) => { const d = distance(item, x, y); if (d < near) { near = d; best = place; } });
    return best;
  }
  svg.addEventListener("pointermove", (event) => { const place = find(event); if (place < 0) leave(); else if (place !== now) show(place); });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("click", (event) => { const place = find(event); if (place >= 0) { show(place); if (pick) pick(items[place]); } });
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!items.length) return;
    if (step) show((now + step + items.length) % items.length);
    else if (event.key === "Home") show(0);
    else if (event.key === "End") show(items.length - 1);
    else if (event.key === "Enter" && now >= 0 && pick) pick(items[now]);
    else return;
    event.preventDefault();
  });
}

/* Draw into a box now, and again whenever its width changes. */
function draws(box, paint) {
  let last = 0;
  const again = () => {
    const width = Math.floor(box.clientWidth);
    if (!width) return;
    last = width;
    box.replaceChildren(...[paint(width)].flat());
  };
  new ResizeObserver(() => { if (Math.floor(box.clientWidth) !== last) again(); }).observe(box);
  return again;
}

function switcher(names, chosen, call, label) {
  const buttons = names.map((name) => make("button", { type: "button", "aria-pressed": String(name === chosen), on: { click: () => {
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.name === name)));
    call(name);
  } }, "data-name": name }, named(name)));
  return make("div", { class: "switch", role: "group", "aria-label": label }, buttons);
}

/* Show long lists in pages: `paint(rows)` gets one page. */
function paged(size, paint) {
  let rows = [], page = 0;
  const told = make("span", { class: "mono" });
  const back = make("button", { type: "button", on: { click: () => turn(page - 1) } }, "Previous");
  const next = make("button", { type: "button", on: { click: () => turn(page + 1) } }, "Next");
  const node = make("div", { class: "tools pager" }, back, told, next);
  function turn(to) {
    page = to;
    const from = page * size, till = Math.min(rows.length, from + size);
    told.textContent = `${from + 1}–${till} of ${rows.length}`;
    back.disabled = page === 0;
    next.disabled = till >= rows.length;
    node.hidden = rows.length <= size;
    paint(rows.slice(from, till));
  }
  return { node, show(all) { rows = all; turn(0); } };
}
