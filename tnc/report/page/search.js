/* The page of a search: cards, best so far, front, drawings, ranks. */
const trials = data.trials.map(([number, score, rse, ratio, params, effort, seconds, topology]) => ({ number, score, rse, ratio, params, effort, seconds, topology }));
const counted = new Map(data.counts.map(([name, count]) => [name, count]));
const best = data.networks[0];
const exactly = (error) => error == null ? "no error figure" : error < 1e-12 ? `error ${small(error)}, exact up to rounding` : `error ${small(error)}`;
const share = (ratio) => ratio >= 0.9995 ? `${+ratio.toPrecision(3)} of dense` : `${percent(ratio)} of dense`;
const kind = (trial) => trial.effort === 1 ? "" : trial.effort === 0 ? ", a joint fit" : `, a quick look (${percent(trial.effort)} of the effort)`;
const told = (trial) => [`evaluation ${trial.number}${kind(trial)}`, `score ${small(trial.score)}`, `${exact(trial.params)} parameters, ${share(trial.ratio)}`, exactly(trial.rse), trial.topology];

function cards() {
  const card = (name, value, more) => make("div", { class: "card" }, make("div", { class: "name" }, name), make("div", { class: "value" }, ...[value].flat()), make("div", { class: "told" }, more));
  const evaluations = counted.get("evaluations"), rate = data.spent ? counted.get("fitted") / data.spent : 0;
  return [
    card("Best score", small(best.score), `evaluation ${best.number} of ${evaluations}`),
    card("Parameters", [exact(best.params), make("small", {}, ` ${share(best.ratio)}`)], best.topology),
    card("Error", small(best.rse), best.rse < 1e-12 ? "exact up to rounding" : `relative error ${percent(Math.sqrt(best.rse))}`),
    card("Evaluations", exact(evaluations), `${exact(counted.get("starts"))} starts, ${counted.get("hits")} hits, ${counted.get("failed")} failed`),
    card("Seconds", small(data.spent), rate ? `${small(rate)} evaluations a second` : ""),
  ];
}

function sofar() {
  const section = document.querySelector(".sofar"), fitted = trials.filter((trial) => trial.score != null);
  const positive = fitted.every((trial) => trial.score > 0), scores = fitted.map((trial) => trial.score);
  let log = positive && Math.max(...scores) > 30 * Math.min(...scores);
  const again = draws(section.querySelector(".chart"), (width) => lineChart(width, {
    series: [
      { kind: "dots", fill: "f-dense", points: fitted.map((trial) => ({ x: trial.number, y: trial.score, lines: told(trial), number: trial.number })) },
      { kind: "steps", class: "k-0", fill: "f-0", points: data.curve.map(([x, y]) => ({ x, y, lines: [`after ${x} evaluations`, `best score ${small(y)}`] })) },
    ],
    xName: "evaluations", yName: "score", xText: exact, label: "Best score over evaluations", log, pick,
  }));
  if (positive) section.querySelector(".tools").append(switcher(["log", "linear"], log ? "log" : "linear", (name) => { log = name === "log"; again(); }, "Scale of scores"));
  again();
}

function front() {
  const full = trials.filter((trial) => trial.rse != null && trial.effort === 1), chosen = new Set(data.front);
  const point = (trial) => ({ x: trial.ratio, y: Math.max(trial.rse, 1e-15), lines: told(trial), number: trial.number });
  const section = document.querySelector(".front");
  if (!full.length) { section.hidden = true; return; }
  const line = full.filter((trial) => chosen.has(trial.number)).sort((a, b) => a.ratio - b.ratio).map(point);
  const mark = full.find((trial) => trial.number === best.number);
  draws(section.querySelector(".chart"), (width) => lineChart(width, {
    series: [{ kind: "dots", fill: "f-dense", points: full.map(point) }, { class: "k-0", fill: "f-0", points: line }],
    marks: mark ? [{ ...point(mark), class: "k-1", lines: ["the best score", ...told(mark)] }] : [],
    xName: "parameters, of the tensor's entries", yName: "squared relative error", xText: small, label: "Size and error of evaluations", log: true, logX: true, pick,
  }))();
}

function drawings() {
  document.querySelector(".drawings").append(...data.networks.map((network, place) => {
    const parsed = new DOMParser().parseFromString(network.drawing, "image/svg+xml").documentElement;
    return make("figure", { "data-number": network.number, class: "drawing" },
      make("figcaption", {}, make("b", {}, `${place + 1}. score ${small(network.score)}`), make("div", {}, `${exact(network.params)} parameters, ${share(network.ratio)}, ${exactly(network.rse)}, evaluation ${network.number}`)),
      parsed.nodeName === "svg" ? document.importNode(parsed, true) : null,
      make("details", {}, make("summary", {}, "Equation"), make("pre", { class: "equation" }, make("code", {}, network.network))));
  }));
}

/* Show the drawing of an evaluation where there is one. */
function pick(item) {
  const figures = [...document.querySelectorAll(".drawings figure")];
  const found = figures.find((figure) => figure.dataset.number === String(item.number));
  if (!found) return;
  figures.forEach((figure) => figure.classList.toggle("on", figure === found));
  found.scrollIntoView({ block: "nearest" });
}

function heat() {
  const { bonds, numbers, scores, sizes } = data.heat, section = document.querySelector(".heat");
  if (!bonds.length) { section.hidden = true; return; }
  const cells = bonds.map((bond, down) => numbers.map((number, place) => ({ value: sizes[place][down], number, lines: [`${bond}: ${sizes[place][down] > 1 ? `rank ${sizes[place][down]}` : "no bond"}`, `network ${place + 1}, score ${small(scores[place])}`] })));
  draws(section.querySelector(".chart"), (width) => heatMap(width, { rows: bonds, columns: numbers.map((number, place) => String(place + 1)), cells, label: "Ranks of the best networks", pick }))();
}

document.querySelector(".cards").append(...cards());
sofar();
front();
drawings();
heat();
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((node) => { node.open = true; }));
