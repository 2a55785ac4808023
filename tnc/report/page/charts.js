/* Charts: lines over two axes, bars before and after, the strip of modules. */
function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count) || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((k) => k * power).find((k) => k >= raw * 0.999);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) found.push(Math.abs(value) < step * 1e-6 ? 0 : +value.toPrecision(12));
  return found;
}

/* Series: {points: [{x, y, lines}], class, context, kind}; marks: {x, y, lines, class}. A series of
   kind `dots` has no line, one of kind `steps` keeps its value until the next point. */
function lineChart(width, { series, marks = [], limit, xName, yName, xText, label, log, logX, pick }) {
  const height = 300, left = 58, right = 16, top = 14, bottom = 44;
  const all = [...series.flatMap((one) => one.points), ...marks];
  const svg = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  const along = (x) => logX ? Math.log10(x) : x;
  const xs = all.map((point) => along(point.x)).concat(limit == null ? [] : [along(limit)]);
  let low = Math.min(...xs), high = Math.max(...xs);
  const room = (high - low || Math.abs(high) || 1) * 0.04;
  low = logX ? low - room : Math.max(0, low - room); high += room;
  const ys = all.map((point) => point.y), positive = ys.filter((y) => y > 0);
  let bottomY = log ? Math.log10(Math.min(...positive)) : Math.min(0, 1.06 * Math.min(...ys)), topY = Math.max(...ys, bottomY < 0 && !log ? 0 : 1e-12);
  if (log) { topY = Math.log10(topY); bottomY = Math.max(bottomY, topY - 6); const pad = (topY - bottomY || 1) * 0.06; bottomY -= pad; topY += pad; } else topY *= 1.06;
  const X = (x) => left + (along(x) - low) / (high - low) * (width - left - right);
  const Y = (y) => height - bottom - ((log ? Math.log10(Math.max(y, 10 ** bottomY)) : y) - bottomY) / (topY - bottomY) * (height - top - bottom);
  const yTicks = log ? logTicks(bottomY, topY) : ticks(bottomY, topY, 4);
  for (const value of yTicks) svg.append(shape("line", { x1: left, x2: width - right, y1: Y(value), y2: Y(value), class: "axis" }), text(left - 8, Y(value) + 4, small(value), "end"));
  for (const value of logX ? logTicks(low, high) : ticks(low, high, Math.max(2, Math.floor(width / 110)))) svg.append(text(X(value), height - bottom + 18, xText(value), "middle"));
  svg.append(shape("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, class: "zero" }));
  svg.append(text(width - right, height - 6, xName, "end"));
  svg.append(text(left + 6, top + 2, yName, "start"));
  if (limit != null) svg.append(shape("line", { x1: X(limit), x2: X(limit), y1: top + 8, y2: height - bottom, class: "limit" }), text(X(limit) + (X(limit) > width - 110 ? -5 : 5), top + 30, "budget", X(limit) > width - 110 ? "end" : "start"));
  const items = [];
  for (let one of series) {
    if (log) one = { ...one, points: one.points.filter((point) => point.y > 0) };
    const x = (point) => X(point.x).toFixed(1), y = (point) => Y(point.y).toFixed(1);
    const path = one.points.map((point, place) => !place ? `M${x(point)} ${y(point)}` : one.kind === "steps" ? `H${x(point)}V${y(point)}` : `L${x(point)} ${y(point)}`).join("");
    if (one.kind !== "dots") svg.append(shape("path", { d: path, class: one.context ? "context" : "line " + one.class }));
    if (one.context) continue;
    for (const point of one.points) {
      svg.append(shape("circle", { cx: X(point.x), cy: Y(point.y), r: one.kind === "dots" ? 2.5 : 3, class: one.fill }));
      items.push({ ...point, x: X(point.x), y: Y(point.y) });
    }
  }
  for (const mark of marks.filter((mark) => !log || mark.y > 0)) {
    svg.append(shape("circle", { cx: X(mark.x), cy: Y(mark.y), r: 7, class: "ring " + mark.class }));
    items.push({ ...mark, x: X(mark.x), y: Y(mark.y) });
  }
  items.sort((a, b) => a.x - b.x);
  explore(svg, items, { label, pick });
  return svg;
}

function logTicks(low, high) {
  if (high - low < 0.6) return ticks(10 ** low, 10 ** high, 4);
  const found = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power++)
    for (const k of high - low > 2.2 ? [1] : high - low > 1 ? [1, 3] : [1, 2, 5]) {
      const value = k * 10 ** power;
      if (Math.log10(value) >= low && Math.log10(value) <= high) found.push(value);
    }
  return found;
}

const text = (x, y, words, anchor, kind) => shape("text", { x, y, "text-anchor": anchor, class: kind }, words);

/* Rows: {label, before, after, family, lines, site}. The bar before lies behind the one after. */
function barChart(width, rows, { most, label, pick }) {
  const narrow = width < 560, names = narrow ? 0 : Math.min(330, width * 0.36), values = 118;
  const line = narrow ? 38 : 22, room = Math.max(60, width - names - values - (narrow ? 0 : 10));
  const height = rows.length * line + 6;
  const svg = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  const fits = Math.floor((narrow ? width : names) / 6.95);
  const items = rows.map((row, place) => {
    const y = place * line + 3, barY = y + (narrow ? 17 : 3), left = narrow ? 0 : names + 10;
    const scale = (value) => Math.max(value > 0 ? 1 : 0, value / most * room);
    const name = row.label.length > fits ? "…" + row.label.slice(1 - fits) : row.label;
    svg.append(narrow ? text(0, y + 12, name, "start", "mono") : text(names, y + 15, name, "end", "mono"));
    svg.append(shape("rect", { x: left, y: barY, width: scale(row.before), height: 15, rx: 2, class: "before" }));
    svg.append(shape("rect", { x: left, y: barY + 3, width: scale(row.after), height: 9, rx: 2, class: "f-" + colour(row.family) }));
    svg.append(text(left + scale(row.before) + 8, barY + 12, row.before === row.after ? short(row.before) : `${short(row.before)} → ${short(row.after)}`, "start"));
    return { x: 0, y, w: width, h: line - 2, lines: row.lines, row };
  });
  explore(svg, items, { label, pick });
  return svg;
}

/* Narrow boxes share one, in which the structures are stacked by their shares. */
function stripRow(run, width, side, total) {
  const boxes = [];
  let x = 0;
  for (const [name, kind, place, ...counts] of run.strip) {
    const layer = run.layers[place], family = layer ? layer.family : "alone";
    const value = counts[side], w = value / total * width;
    let box = boxes[boxes.length - 1];
    if (!box || box.w >= 6 || w >= 3) boxes.push(box = { x, w: 0, value: 0, before: 0, kind, place, names: [], mix: new Map() });
    box.w += w; box.value += value; box.before += counts[0];
    box.names.push(name);
    box.mix.set(family, (box.mix.get(family) || 0) + value);
    x += w;
  }
  return boxes;
}

function stripChart(width, run, pick) {
  const total = sum(run.strip.map((part) => part[3])), tall = 44, head = 34;
  const height = head + 2 * tall + 38;
  const svg = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  const items = [];
  [["Before", 0, head], ["After", 1, head + tall + 34]].forEach(([title, side, y]) => {
    const boxes = stripRow(run, width, side, total);
    const whole = sum(boxes.map((box) => box.value));
    if (side) svg.append(text(0, y - 7, `${title}: ${short(whole)} parameters, ${percent(whole / total)}`, "start", "strong"));
    for (const box of boxes) {
      const layer = run.layers[box.place], alone = box.names.length === 1, gap = box.w > 3 ? 1 : 0;
      let from = y;
      for (const [family, value] of [...box.mix].sort()) {
        const high = tall * (box.value ? value / box.value : 1);
        svg.append(shape("rect", { x: box.x, y: from, width: Math.max(0.6, box.w - gap), height: high, rx: box.w > 8 && box.mix.size === 1 ? 3 : 0, class: "f-" + colour(family), "fill-opacity": side ? 1 : 0.45 }));
        from += high;
      }
      const what = alone ? (layer ? `becomes ${becomes(layer)}` : "left alone") : [...box.mix.keys()].map((family) => family === "alone" ? "left alone" : family).join(", ");
      const told = alone ? [box.names[0], box.kind] : [`${box.names[0]} … ${box.names[box.names.length - 1]}`, `${box.names.length} modules`];
      items.push({ x: box.x, y, w: Math.max(1, box.w - gap), h: tall, site: layer && layer.site, lines: [...told, what, side ? `${exact(box.before)} → ${exact(box.value)} parameters` : `${exact(box.value)} parameters`].filter(Boolean) });
    }
  });
  brackets(svg, run, width, total, head - 6);
  explore(svg, items, { label: "Modules before and after", pick: (item) => item.site && pick(item.site) });
  return svg;
}

/* Name the blocks above the strip: the deepest level at which a model still has few of them. */
function brackets(svg, run, width, total, y) {
  const depth = (level) => {
    const found = [];
    let x = 0;
    for (const [name, , , before] of run.strip) {
      const words = name.split("."), key = words.slice(0, Math.min(level, Math.max(1, words.length - 1))).join("."), w = before / total * width;
      const last = found[found.length - 1];
      if (last && last.key === key) last.w += w; else found.push({ key, x, w });
      x += w;
    }
    return found;
  };
  const fitting = [3, 2, 1].map(depth).find((blocks) => blocks.length <= width / 46) || [];
  for (const block of fitting) {
    if (block.w < 20) continue;
    svg.append(shape("path", { d: `M${block.x + 1} ${y}v-5H${block.x + block.w - 2}v5`, fill: "none", class: "bracket" }));
    const room = Math.floor(block.w / 6.6), words = block.key.split(".");
    const name = [block.key, words.slice(-2).join("."), words[words.length - 1]].find((one) => one.length <= room);
    if (name) svg.append(text(block.x + block.w / 2, y - 9, name, "middle"));
  }
}

/* Cells {value, lines} by row and column: darker for larger, empty where the value is 1 or less. */
function heatMap(width, { rows, columns, cells, heads, label, pick }) {
  const left = 12 + 7 * Math.max(...rows.map((row) => row.length)), top = 24, bottom = 4;
  const wide = Math.min(46, (width - left - 4) / columns.length), high = 24, height = top + rows.length * high + bottom;
  const svg = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  const most = Math.max(2, ...cells.flat().map((cell) => cell.value)), items = [];
  const every = Math.ceil(26 / wide);
  columns.forEach((column, place) => { if (place % every === 0) svg.append(text(left + (place + 0.5) * wide, top - 8, column, "middle")); });
  rows.forEach((row, down) => {
    svg.append(text(left - 8, top + (down + 0.5) * high + 4, row, "end", "mono"));
    cells[down].forEach((cell, place) => {
      const x = left + place * wide, y = top + down * high, share = cell.value > 1 ? 0.2 + 0.8 * Math.log(cell.value) / Math.log(most) : 0;
      svg.append(shape("rect", { x: x + 1, y: y + 1, width: Math.max(1, wide - 2), height: high - 2, rx: 3, class: share ? "f-0" : "f-none", "fill-opacity": share ? share.toFixed(2) : 1 }));
      if (share && wide >= 16) svg.append(text(x + wide / 2, y + high / 2 + 4, String(cell.value), "middle", share > 0.55 ? "on" : "strong"));
      items.push({ ...cell, x, y, w: wide, h: high });
    });
  });
  explore(svg, items, { label, pick });
  return svg;
}
