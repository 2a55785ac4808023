/* The sections of one run: each function fills one part of its article. */
/* Colours: one for each structure of the whole page, the largest share first. */
const families = (() => {
  const held = new Map();
  for (const run of data.runs) {
    for (const layer of run.layers) if (layer.family !== "dense") held.set(layer.family, (held.get(layer.family) || 0) + layer.params[0]);
    for (const curve of run.curves) if (!held.has(curve.family)) held.set(curve.family, 0);
  }
  return [...held.keys()].sort((a, b) => held.get(b) - held.get(a) || (a < b ? -1 : 1));
})();
const colour = (family) => family === "dense" || family === "alone" ? family : String(Math.max(0, families.indexOf(family)) % 8);
const chip = (family) => shape("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, shape("rect", { width: 10, height: 10, rx: 2, class: "f-" + colour(family) }));
function legend(names) {
  const told = { dense: "stays dense", alone: "left alone, norms, biases" };
  return names.map((name) => make("span", {}, chip(name), told[name] || name));
}

const becomes = (layer) => layer.family === "dense" ? "dense" : `${layer.family} ${layer.ranks}`.trim();
const ratio = (pair) => pair[0] ? pair[1] / pair[0] : null;

function cards(run) {
  const found = [], total = run.total;
  const card = (name, value, told, share, kind) => found.push(make("div", { class: "card" }, make("div", { class: "name" }, name), make("div", { class: "value" + (kind ? " " + kind : "") }, ...[value].flat()), share == null ? null : meter(share), make("div", { class: "told" }, told)));
  const before = run.size.before ? run.size.before.params : total.dense_params, after = run.size.after ? run.size.after.params : total.params;
  card("Parameters", [percent(after / before), make("small", {}, " of dense")], `${short(before)} → ${short(after)}`, after / before);
  card("FLOPs", [percent(total.flops / total.dense_flops), make("small", {}, " of dense")], `${short(total.dense_flops)} → ${short(total.flops)}`, total.flops / total.dense_flops);
  for (const timing of run.timings.slice(0, 3)) card(`Latency, batch ${timing.batch}`, [(timing.before / timing.after).toFixed(2) + "×", make("small", {}, timing.after <= timing.before ? " as fast" : " as fast: slower")], `${small(timing.before)} → ${small(timing.after)} ms, median of ${timing.rounds} runs${timing.unreliable ? ", unreliable" : ""}`, timing.after / timing.before, timing.after > timing.before ? "bad" : "");
  if (run.figures.length) {
    const rest = run.figures.slice(1).map(([name, value]) => `${name} ${small(value)}`).join(", ");
    card(run.figures[0][0], small(run.figures[0][1]), `${run.gate == null ? "" : `gate ${small(run.gate)} ${run.figures[0][1] <= run.gate ? "met" : "not met"}; `}${run.held_out ? `on ${run.held_out} held-out samples` : "as reported"}${rest ? "; " + rest : ""}`);
  }
  for (const row of run.budgets) {
    const met = row.used == null ? null : row.used <= row.limit;
    const value = met == null ? (row.name === "latency" ? small(row.limit * 1e3) + " ms" : short(row.limit)) : met ? "met" : "not met";
    card(`Budget: ${named(row.name)}`, value, met == null ? "the limit; not recounted here" : `${short(row.used)} used of ${short(row.limit)} allowed`, met == null ? null : row.used / row.limit, met === false ? "bad" : met ? "good" : "");
  }
  return found;
}

function meter(share) {
  const bar = make("i");
  bar.style.width = Math.min(100, 100 * share) + "%";
  return make("span", { class: "meter", "aria-hidden": "true" }, bar);
}

function architecture(article, run, select) {
  const section = article.querySelector(".architecture");
  if (!run.strip.length) { section.hidden = true; return; }
  const used = new Set(run.strip.map((part) => run.layers[part[2]] ? run.layers[part[2]].family : "alone"));
  section.querySelector(".legend").replaceChildren(...legend([...families, "dense", "alone"].filter((name) => used.has(name))));
  draws(section.querySelector(".chart"), (width) => stripChart(width, run, select))();
}

/* Several runs share one frontier chart: each run's own line, every run's chosen point. */
function frontier(article, run) {
  const section = article.querySelector(".frontier"), lead = section.querySelector(".lead");
  if (run.frontier.length < 2) { lead.textContent = "The plan holds no frontier: nothing was left to decide, or it was made by hand."; return; }
  const name = named(run.resource), whole = { params: run.scope.dense_params, flops: run.scope.dense_flops }[run.resource];
  const share = (value) => whole ? ` (${percent(value / whole)})` : "";
  lead.textContent = `The least predicted error at each budget; the ring is what was chosen. ${run.objective === "max" ? "Largest error of a layer." : "Errors of layers added up."}`;
  const points = run.frontier.map(([x, y]) => ({ x, y, lines: [`${name}: ${short(x)}${share(x)}`, `predicted error ${small(y)}`] }));
  const marks = data.runs.filter((other) => other.chosen && other.resource === run.resource && other.chosen[1] != null).map((other) => ({
    x: other.chosen[0], y: other.chosen[1], class: other === run ? "k-fg" : "k-dense",
    lines: [other === run ? "chosen" : other.name, `${name}: ${short(other.chosen[0])}${share(other.chosen[0])}`, `predicted error ${small(other.chosen[1])}`],
  }));
  const row = run.budgets.find((one) => one.name === run.resource);
  const positive = points.concat(marks).map((point) => point.y).filter((y) => y > 0);
  let scale = positive.length > 1 && Math.max(...positive) > 20 * Math.min(...positive) ? "log" : "linear";
  const again = draws(section.querySelector(".chart"), (width) => lineChart(width, { series: [{ points, class: "k-0", fill: "f-0" }], marks, log: scale === "log", limit: row && row.limit, xName: `${name} in the budget's scope`, yName: "predicted error", xText: short, label: "Budget against predicted error" }));
  if (positive.length > 1) section.querySelector(".tools").append(switcher(["log", "linear"], scale, (name) => { scale = name; again(); }, "Scale"));
  again();
}

function curves(article, run) {
  const section = article.querySelector(".curves"), tools = section.querySelector(".tools"), lead = section.querySelector(".lead");
  const siteOf = (curve) => run.layers[curve.layer].site;
  const sites = [...new Set(run.curves.map(siteOf))];
  if (!sites.length) { lead.textContent = "The plan holds no error curves."; return () => {}; }
  lead.textContent = "Relative error of the layer against the parameters that a structure keeps; grey: the other layers. The ring is what was chosen.";
  const byLayer = new Map(run.layers.map((layer) => [layer.site, layer]));
  const curvesOf = new Map();
  for (const curve of run.curves) curvesOf.set(siteOf(curve), [...(curvesOf.get(siteOf(curve)) || []), curve]);
  const largest = [...sites].sort((a, b) => byLayer.get(b).error - byLayer.get(a).error)[0];
  const list = make("select", { "aria-label": "Layer", on: { change: () => again() } }, sites.map((site) => make("option", { value: site }, plain(site))));
  list.value = largest;
  const keys = make("div", { class: "legend" });
  tools.append(make("label", {}, list), keys);
  const step = Math.ceil(sites.length / 40);
  const line = (curve, layer) => curve.points.map(([params, flops, error, relative, ...ranks]) => ({
    x: params / layer.params[0], y: relative, lines: [`${curve.family} ${curve.ranks.map((rank, place) => `${rank}=${ranks[place]}`).join(" ")}`, `relative error ${small(relative)}, predicted ${small(error)}`, `${exact(params)} parameters (${percent(params / layer.params[0])}), ${short(flops)} FLOPs`],
  }));
  const again = draws(section.querySelector(".chart"), (width) => {
    const layer = byLayer.get(list.value), own = curvesOf.get(list.value);
    keys.replaceChildren(...legend(own.map((curve) => curve.family)));
    const others = sites.filter((site, place) => place % step === 0 && site !== list.value).flatMap((site) => curvesOf.get(site).slice(0, 1).map((curve) => ({ context: true, points: line(curve, byLayer.get(site)) })));
    const marks = layer.family === "dense" ? [] : [{ x: ratio(layer.params), y: layer.relative, class: "k-" + colour(layer.family), lines: [`chosen: ${becomes(layer)}`, `relative error ${small(layer.relative)}, predicted ${small(layer.error)}`] }];
    const series = [...others, ...own.map((curve) => ({ points: line(curve, layer), class: "k-" + colour(curve.family), fill: "f-" + colour(curve.family) }))];
    return lineChart(width, { series, marks: marks.filter((mark) => mark.y != null), xName: "share of the layer's parameters", yName: "relative error", xText: percent, label: `Error by size of ${plain(list.value)}` });
  });
  again();
  return (site) => { if (curvesOf.has(site)) { list.value = site; again(); } };
}

/* Layers of repeated blocks: one group for each pattern, in the order of the plan. */
function groups(layers) {
  const found = new Map();
  for (const layer of layers) found.set(layer.pattern, [...(found.get(layer.pattern) || []), layer]);
  return [...found.entries()];
}
const mostly = (layers) => {
  const held = {};
  for (const layer of layers) held[layer.family] = (held[layer.family] || 0) + layer.params[0];
  return Object.keys(held).sort((a, b) => held[b] - held[a])[0];
};

function bars(article, run, select) {
  const section = article.querySelector(".bars"), tools = section.querySelector(".tools"), box = section.querySelector(".chart");
  const grouped = groups(run.layers), worth = grouped.length < run.layers.length;
  let what = "params", joined = worth && run.layers.length > 60, page = [], most = 1;
  const again = draws(box, (width) => barChart(width, page, { most, label: `${named(what)} before and after`, pick: (item) => item.row.site && select(item.row.site) }));
  const pager = paged(60, (rows) => { page = rows; again(); });
  function fill() {
    const rows = joined ? grouped.map(([pattern, layers]) => row(plain(pattern) + (layers.length > 1 ? ` ×${layers.length}` : ""), layers)) : run.layers.map((layer) => row(plain(layer.site), [layer]));
    most = Math.max(1, ...rows.map((one) => one.before), ...rows.map((one) => one.after));
    pager.show(rows);
  }
  function row(label, layers) {
    const before = sum(layers.map((layer) => layer[what][0])), after = sum(layers.map((layer) => layer[what][1]));
    const told = layers.length > 1 ? `${layers.length} layers, mostly ${mostly(layers)}` : becomes(layers[0]);
    return { label, before, after, family: mostly(layers), site: layers[0].site, lines: [label, told, `${exact(before)} → ${exact(after)} ${what === "params" ? "parameters" : "FLOPs"} (${percent(before ? after / before : null)})`] };
  }
  tools.append(switcher(["params", "flops"], what, (name) => { what = name; fill(); }, "Measure"));
  if (worth) {
    const check = make("input", { type: "checkbox", on: { change: () => { joined = check.checked; fill(); } } });
    check.checked = joined;
    tools.append(make("label", {}, check, "join repeated blocks"));
  }
  tools.append(make("span", { class: "grow" }), make("div", { class: "legend" }, legend([...families, "dense"].filter((name) => run.layers.some((layer) => layer.family === name)))));
  section.append(pager.node);
  fill();
}

/* What the numbers of a layer are called where the table has no columns. */
const NARROW = ["parameters", "of dense", "FLOPs", "of dense", "relative error", "predicted"];

function layers(article, run, select) {
  const section = article.querySelector(".layers"), tools = section.querySelector(".tools"), table = section.querySelector("table");
  const columns = [
    ["Layer", (layer) => layer.site],
    ["Becomes", (layer) => becomes(layer)],
    ["Parameters", (layer) => layer.params[1], true],
    ["of dense", (layer) => ratio(layer.params), true],
    ["FLOPs", (layer) => layer.flops[1], true],
    ["of dense", (layer) => ratio(layer.flops), true],
    ["Relative error", (layer) => layer.family === "dense" ? 0 : layer.relative, true],
    ["Predicted error", (layer) => layer.error, true],
  ];
  let by = -1, down = false;
  const heads = columns.map(([name, , numeric], place) => make("th", { class: numeric ? "n" : null, scope: "col" }, make("button", { type: "button", on: { click: () => { down = by === place ? !down : Boolean(numeric); by = place; fill(); } } }, name)));
  const body = make("tbody");
  table.append(make("thead", {}, make("tr", {}, heads)), body);
  const search = make("input", { type: "search", placeholder: "Filter layers", "aria-label": "Filter layers", on: { input: () => fill() } });
  const told = make("span", { class: "mono" });
  tools.append(search, told);
  const pager = paged(60, (rows) => body.replaceChildren(...rows.map((layer) => make("tr", {},
    make("td", {}, make("button", { type: "button", title: "Show its error curve", on: { click: () => select(layer.site, true) } }, plain(layer.site))),
    make("td", { class: "becomes" }, make("span", { class: "chip" }, chip(layer.family)), becomes(layer)),
    ...[exact(layer.params[1]), percent(ratio(layer.params)), short(layer.flops[1]), percent(ratio(layer.flops)), layer.family === "dense" ? "–" : small(layer.relative), small(layer.error)].map((value, place) => make("td", { class: "n", "data-name": NARROW[place] }, value))))));
  section.append(pager.node);
  function fill() {
    const wanted = search.value.trim().toLowerCase();
    const rows = run.layers.filter((layer) => !wanted || `${layer.site} ${becomes(layer)}`.toLowerCase().includes(wanted));
    heads.forEach((head, place) => { if (place === by) head.setAttribute("aria-sort", down ? "descending" : "ascending"); else head.removeAttribute("aria-sort"); });
    if (by >= 0) {
      const value = columns[by][1];
      rows.sort((a, b) => { const [x, y] = [value(a), value(b)]; return (down ? -1 : 1) * (x == null ? -1 : y == null ? 1 : x < y ? -1 : x > y ? 1 : 0); });
    }
    told.textContent = rows.length === run.layers.length ? `${rows.length} layers` : `${rows.length} of ${run.layers.length} layers`;
    pager.show(rows);
  }
  fill();
}

/* The block numbers of layers, `0–2, 5`: the first number in which the names of `all` differ. */
function numbers(layers, all = layers) {
  const read = (layer) => (layer.site.match(/\d+/g) || []).map(Number), every = all.map(read);
  const place = every[0].findIndex((number, at) => every.some((one) => one[at] !== number));
  if (place < 0) return "";
  const found = [...new Set(layers.map((layer) => read(layer)[place]))].sort((a, b) => a - b), spans = [];
  for (const number of found) {
    const last = spans[spans.length - 1];
    if (last && last[1] === number - 1) last[1] = number; else spans.push([number, number]);
  }
  const told = spans.slice(0, 6).map(([from, to]) => from === to ? String(from) : `${from}–${to}`).join(", ");
  return told + (spans.length > 6 ? ", …" : "");
}

function diff(article, run) {
  const list = article.querySelector(".diff .list"), section = article.querySelector(".diff");
  const pager = paged(40, (page) => list.replaceChildren(...page.map(([pattern, layers]) => diffEntry(pattern, layers))));
  section.append(pager.node);
  pager.show(groups(run.layers));
}

/* One line for each structure that the equal layers of the blocks become. */
function diffEntry(pattern, layers) {
  const same = new Map();
  for (const layer of layers) same.set(becomes(layer), [...(same.get(becomes(layer)) || []), layer]);
  const kinds = [...same.values()], several = layers.length > 1;
  const where = (found) => kinds.length > 1 ? `   in ${numbers(found, layers)}` : "";
  const made = kinds.find((found) => found[0].family !== "dense");
  const lines = made ? [make("span", { class: "minus" }, `- ${made[0].was}   ${exact(made[0].params[0])} parameters`)] : [];
  for (const found of kinds.slice(0, 8)) {
    const layer = found[0];
    lines.push(layer.family === "dense" ? make("span", { class: "same" }, `  stays dense   ${exact(layer.params[0])} parameters${where(found)}`)
      : make("span", { class: "plus" }, `+ ${becomes(layer)}   ${exact(layer.params[1])} parameters (${percent(ratio(layer.params))})${where(found)}`));
  }
  if (kinds.length > 8) lines.push(make("span", { class: "same" }, `  and ${kinds.length - 8} other sizes`));
  const fill = () => kinds.length === 1 ? [detail(kinds[0][0])] : kinds.map((found) => lazily(make("summary", {}, `${becomes(found[0])} · in ${numbers(found, layers)}`), () => [detail(found[0])]));
  const title = several ? ` · ${numbers(layers)}, ×${layers.length}` : "";
  return lazily(make("summary", {}, plain(several ? pattern : layers[0].site), make("span", { class: "times" }, title), ...lines), fill);
}

function lazily(summary, fill) {
  const node = make("details", { on: { toggle: () => { if (node.open && node.children.length === 1) node.append(...fill()); } } }, summary);
  return node;
}

function detail(layer) {
  const facts = [layer.reason && `Because ${layer.reason}.`, layer.rule && `By ${layer.rule}.`, layer.fit && `Fitted by ${layer.fit}, metric ${layer.metric}; relative error ${small(layer.relative)}, predicted error ${small(layer.error)}.`, layer.members > 1 && `${layer.members} weights share input factors.`];
  const drawn = make("div", { class: "drawing" });
  for (const source of data.drawings[layer.drawing] || []) {
    const parsed = new DOMParser().parseFromString(source, "image/svg+xml").documentElement;
    if (parsed.nodeName === "svg") drawn.append(document.importNode(parsed, true));
  }
  return make("div", { class: "detail" }, make("div", {}, layer.equations.map((equation) => make("pre", { class: "equation" }, make("code", {}, equation))), facts.filter(Boolean).map((fact) => make("p", {}, fact))), drawn);
}

function seconds(article, run) {
  const box = article.querySelector(".seconds");
  if (!box) return;
  const kept = run.seconds.filter(([, value]) => value >= 0.05), most = Math.max(0.1, ...kept.map(([, value]) => value));
  box.append(make("div", { class: "chart" }));
  const rows = kept.map(([label, value]) => ({ label: `${label} ${value.toFixed(1)} s`, value }));
  draws(box.firstChild, (width) => {
    const svg = shape("svg", { width, height: rows.length * 22, viewBox: `0 0 ${width} ${rows.length * 22}` });
    const left = Math.min(200, width * 0.5);
    rows.forEach((row, place) => svg.append(text(0, place * 22 + 15, row.label, "start"), shape("rect", { x: left, y: place * 22 + 5, width: Math.max(1, row.value / most * (width - left)), height: 12, rx: 2, class: "before" })));
    return svg;
  })();
}

function compare() {
  const table = document.querySelector("table.compare");
  if (!table) return;
  const rows = [["", data.runs.map((run) => run.name)]];
  const add = (name, cell) => { const cells = data.runs.map(cell); if (cells.some((value) => value != null)) rows.push([name, cells.map((value) => value == null ? "–" : value)]); };
  add("Parameters", (run) => `${short(run.total.params)} (${percent(run.total.params / run.total.dense_params)})`);
  add("in the budget's scope", (run) => `${short(run.scope.params)} (${percent(run.scope.params / run.scope.dense_params)})`);
  add("FLOPs", (run) => `${short(run.total.flops)} (${percent(run.total.flops / run.total.dense_flops)})`);
  for (const batch of new Set(data.runs.flatMap((run) => run.timings.map((timing) => timing.batch)))) add(`Latency, batch ${batch}`, (run) => { const timing = run.timings.find((one) => one.batch === batch); return timing ? `${small(timing.after)} ms (${(timing.before / timing.after).toFixed(2)}× as fast)` : null; });
  for (const figure of new Set(data.runs.flatMap((run) => run.figures.map((one) => one[0])))) add(figure, (run) => { const found = run.figures.find((one) => one[0] === figure); return found ? small(found[1]) : null; });
  add("Predicted error", (run) => run.chosen ? small(run.chosen[1]) : null);
  add("Layers that stay dense", (run) => `${run.layers.filter((layer) => layer.family === "dense").length} of ${run.layers.length}`);
  table.append(make("thead", {}, make("tr", {}, make("th", {}, ""), rows[0][1].map((name) => make("th", { class: "n" }, name)))), make("tbody", {}, rows.slice(1).map(([name, cells]) => make("tr", {}, make("td", {}, name), cells.map((cell) => make("td", { class: "n" }, cell))))));
}

/* Layer by layer, where the runs decided differently. */
function compareLayers() {
  const section = document.getElementById("compared");
  if (!section) return;
  const made = data.runs.map((run) => new Map(run.layers.map((layer) => [layer.site, layer])));
  const sites = [...new Set(data.runs.flatMap((run) => run.layers.map((layer) => layer.site)))];
  const told = (layers, site) => layers.has(site) ? becomes(layers.get(site)) : "absent";
  const rows = sites.filter((site) => new Set(made.map((layers) => told(layers, site))).size > 1);
  section.append(make("h3", {}, rows.length ? `${rows.length} of ${sites.length} layers differ` : "Every layer becomes the same"));
  if (!rows.length) return;
  const body = make("tbody");
  const pager = paged(20, (page) => body.replaceChildren(...page.map((site) => make("tr", {}, make("td", {}, make("code", {}, plain(site))), made.map((layers) => make("td", { class: "n" }, told(layers, site), layers.has(site) ? ` (${percent(ratio(layers.get(site).params))})` : ""))))));
  section.append(make("div", { class: "scroll" }, make("table", { class: "compare differing" }, make("thead", {}, make("tr", {}, make("th", {}, "Layer"), data.runs.map((run) => make("th", { class: "n" }, run.name)))), body)), pager.node);
  pager.show(rows);
}

const ready = new Set();
function fillRun(place) {
  if (ready.has(place)) return;
  ready.add(place);
  const run = data.runs[place], article = document.getElementById(`run-${place}`);
  article.querySelector(".cards").append(...cards(run));
  const show = curves(article, run);
  const select = (site, move) => { show(site); if (move) article.querySelector(".curves").scrollIntoView({ block: "center" }); };
  architecture(article, run, select);
  frontier(article, run);
  bars(article, run, select);
  layers(article, run, select);
  diff(article, run);
  seconds(article, run);
}

function open(place) {
  data.runs.forEach((run, other) => { document.getElementById(`run-${other}`).hidden = other !== place; const tab = document.getElementById(`tab-${other}`); if (tab) { tab.setAttribute("aria-selected", String(other === place)); tab.tabIndex = other === place ? 0 : -1; } });
  fillRun(place);
}
document.querySelectorAll("[role=tab]").forEach((tab, place, tabs) => {
  tab.addEventListener("click", () => open(place));
  tab.addEventListener("keydown", (event) => { const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key]; if (step) { const next = (place + step + tabs.length) % tabs.length; open(next); tabs[next].focus(); } });
});
window.addEventListener("beforeprint", () => document.querySelectorAll(".again details").forEach((node) => { node.open = true; }));
compare();
compareLayers();
open(0);
