// Log-probability against training step, every kind, with bands.

const MEASURES = [
  ["per_token", "per token"], ["mean_sum", "sum"], ["matched", "length-matched"],
];
const UNITS = {
  per_token: "nats/token", mean_sum: "nats/response",
  matched: "nats/token, over as many first tokens as the prompt's shortest kind has",
};

function curvesView(run) {
  const { report } = run;
  const splits = splitsOf(report);
  const kinds = kindOrder(new Set(report.curves.map((point) => point.kind)));
  const holder = h("div", { class: "panels" });
  const redraw = drawn(holder, (width) => drawCurves(holder, run, kinds, width),
    ["split", "measure", "shows", "axis", "hidden", "bands"]);
  const splitOptions = splits.map((split) => [split, SPLIT_WORDS[split]]);
  if (splits.length > 1) splitOptions.push(["both", "side by side"]);
  const usable = MEASURES.filter(([key]) =>
    report.curves.some((point) => point[key] && isNumber(point[key].value)));
  if (!usable.some(([key]) => key === state.measure)) state.measure = usable[0]?.[0];
  return section("curves", "Paths through training",
    "How the log-probability of each kind of response moved. Bands are 95% intervals, over "
    + "prompts, of the change since the first checkpoint.",
    controls(
      choice("prompts", "split", splitOptions),
      choice("measure", "measure", usable),
      choice("show", "shows", [["change", "change"], ["level", "level"]]),
      choice("axis", "axis", [["linear", "by step"], ["even", "by checkpoint"]]),
      choice("bands", "bands", [["on", "on"], ["off", "off"]]),
      saves(pictures("curves"), downloads("curves", () => named(report.curves)))),
    h("div", { class: "curves" }, holder, legend(kinds, redraw)),
    fold("The same as a table", () => curveTables(run, kinds)));
}

function legend(kinds) {
  const regions = [...new Set(kinds.map((kind) => lookOf(kind).region || "other"))];
  const buttons = new Map();
  const toggle = (kind) => h("button", {
    type: "button", class: "kind", "data-kind": kind, title: plainText(lookOf(kind).summary || kind),
    onclick: () => {
      if (!state.hidden.delete(kind)) state.hidden.add(kind);
      change("hidden", state.hidden);
    },
    onpointerenter: () => spotlight(kind),
    onpointerleave: () => spotlight(null),
    onfocus: () => spotlight(kind),
    onblur: () => spotlight(null),
  }, swatch(kind), h("span", null, kind));
  const groups = regions.map((region) => h("div", { class: "kinds", role: "group",
    "aria-label": `${region} kinds` }, h("span", { class: "region" }, region),
  kinds.filter((kind) => (lookOf(kind).region || "other") === region).map((kind) => {
    buttons.set(kind, toggle(kind));
    return buttons.get(kind);
  })));
  listen(() => buttons.forEach((button, kind) =>
    button.setAttribute("aria-pressed", String(!state.hidden.has(kind)))));
  const quick = (label, keep) => h("button", { type: "button", class: "quiet",
    onclick: () => change("hidden", new Set(kinds.filter((kind) => !keep(kind)))) }, label);
  return h("div", { class: "legend" }, groups, h("div", { class: "quick" },
    quick("all", () => true), quick("chosen and rejected", (k) => k === "chosen" || k === "rejected"),
    quick("none", () => false)));
}

function spotlight(kind) {
  for (const group of document.querySelectorAll("#curves g[data-kind]")) {
    group.classList.toggle("faded", kind !== null && group.dataset.kind !== kind);
    group.classList.toggle("lit", group.dataset.kind === kind);
  }
}

/** [{step, value, low, high}] of one kind as it is shown now. */
function pathOf(report, split, kind) {
  const points = report.curves.filter((p) => p.split === split && p.kind === kind);
  points.sort((a, b) => a.step - b.step);
  const start = points.length && points[0][state.measure] ? points[0][state.measure].value : null;
  const minus = state.shows === "change" ? start : 0;
  return points.flatMap((point) => {
    const e = point[state.measure];
    if (!e || !isNumber(e.value) || !isNumber(minus)) return [];
    const ends = isNumber(e.low) && isNumber(e.high);
    return [{
      step: point.step, value: e.value - minus, estimate: e,
      low: ends ? e.low - minus : e.value - minus,
      high: ends ? e.high - minus : e.value - minus,
    }];
  });
}

function curveSplits(report) {
  const have = splitsOf(report);
  return state.split === "both" ? have : [have.includes(state.split) ? state.split : have[0]];
}

function drawCurves(holder, run, kinds, width) {
  const { report } = run;
  const splits = curveSplits(report);
  const visible = kinds.filter((kind) => !state.hidden.has(kind));
  const paths = new Map(splits.map((split) => [split,
    new Map(visible.map((kind) => [kind, pathOf(report, split, kind)]))]));
  let [low, high] = [Infinity, -Infinity];
  for (const byKind of paths.values()) {
    for (const path of byKind.values()) {
      for (const point of path) {
        low = Math.min(low, state.bands === "on" ? point.low : point.value);
        high = Math.max(high, state.bands === "on" ? point.high : point.value);
      }
    }
  }
  if (!(high > low)) [low, high] = Number.isFinite(low) ? [low - 1, low + 1] : [-1, 1];
  const margin = (high - low) * 0.04;
  const stacked = splits.length > 1 && width < 760;
  const panel = splits.length > 1 && !stacked ? Math.floor((width - 24) / 2) : width;
  holder.replaceChildren(...splits.map((split) => curvePanel(run, split, paths.get(split),
    [low - margin, high + margin], panel, splits.length > 1)));
}

function curvePanel(run, split, byKind, [low, high], width, several) {
  const { report } = run;
  const steps = report.steps;
  const roomy = width > 620;
  const height = roomy ? 440 : 340;
  const pad = { top: 26, right: roomy ? 156 : 14, bottom: 44, left: 52 };
  const even = state.axis === "even";
  const spot = even ? (step) => steps.indexOf(step) : (step) => step;
  const x = linear(spot(steps[0]), spot(steps[steps.length - 1]), pad.left, width - pad.right);
  const y = linear(low, high, height - pad.bottom, pad.top);
  const at = (step) => x(spot(step));
  const layer = [axes(steps, at, y, low, high, width, height, pad, even, split, several)];
  for (const [kind, path] of byKind) {
    if (path.length) layer.push(curveOf(kind, path, at, y));
  }
  if (roomy) layer.push(endLabels(byKind, y, width - pad.right + 24, pad.top, height - pad.bottom));
  const cross = s("g", { class: "cross" });
  const shows = state.shows === "change" ? "change since the first checkpoint" : "level";
  const label = `${SPLIT_WORDS[split]} prompts: ${shows}, ${UNITS[state.measure]}, by step. `
    + "Arrow keys read the checkpoints.";
  const svg = s("svg", {
    class: byKind.size > 6 ? "figure crowded" : "figure", width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
    tabindex: 0, "aria-label": label, "data-split": split,
  }, layer, cross);
  probeSteps(svg, cross, { steps, at, y, byKind, pad, height, split });
  return h("figure", null, svg);
}

function axes(steps, at, y, low, high, width, height, pad, even, split, several) {
  const marks = ticks(low, high, height / 60);
  const word = tickText(marks);
  const lines = marks.map((value) => [
    s("line", { class: value === 0 && state.shows === "change" ? "zero" : "grid",
      x1: pad.left, x2: width - pad.right, y1: y(value), y2: y(value) }),
    s("text", { class: "tick", x: pad.left - 8, y: y(value) + 4, "text-anchor": "end" },
      word(value)),
  ]);
  const room = Math.floor((width - pad.left - pad.right) / 56);
  const places = even || steps.length <= room
    ? steps.filter((_, i) => i % Math.ceil(steps.length / room) === 0)
    : ticks(steps[0], steps[steps.length - 1], room).filter((v) => v >= steps[0]);
  const below = places.map((step) => s("text", { class: "tick", "text-anchor": "middle",
    x: even ? at(step) : linearStep(step, steps, at), y: height - pad.bottom + 18 },
  grouped(step)));
  const base = height - pad.bottom;
  const ends = steps.map((step) => s("line", { class: "notch", x1: at(step), x2: at(step),
    y1: base, y2: base + 4 }));
  const unit = state.measure === "mean_sum" ? "nats/response" : "nats/token";
  const title = `${state.shows === "change" ? "Δ " : ""}${unit}`
    + (several ? `, ${SPLIT_WORDS[split]}` : "");
  return s("g", { class: "axes" }, lines, below, ends,
    s("text", { class: "axis-title", x: 0, y: 13 }, title),
    s("text", { class: "axis-title", x: width - pad.right, y: height - 6, "text-anchor": "end" },
      even ? "checkpoint (step)" : "step"));
}

function linearStep(value, steps, at) {
  const [a, b] = [steps[0], steps[steps.length - 1]];
  return at(a) + ((value - a) / (b - a || 1)) * (at(b) - at(a));
}

function curveOf(kind, path, at, y) {
  const look = lookOf(kind);
  const line = path.map((p) => `${at(p.step).toFixed(1)},${y(p.value).toFixed(1)}`).join(" ");
  const band = [...path.map((p) => [p.step, p.high]), ...[...path].reverse().map((p) => [p.step, p.low])]
    .map(([step, value]) => `${at(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  return s("g", { "data-kind": kind },
    state.bands === "on" && path.length > 1 ? s("polygon", { class: "band", points: band, fill: look.line }) : null,
    path.length > 1 ? s("polyline", { class: "line", points: line, stroke: look.line,
      "stroke-width": look.width, "stroke-dasharray": look.dash }) : null,
    path.length < 14 ? path.map((p) => s("circle", { cx: at(p.step), cy: y(p.value),
      r: Number(look.width) > 2 ? 3 : 2.2, fill: look.line })) : null);
}

/** Names at the right ends, pushed apart so that none covers another. */
function endLabels(byKind, y, x, top, bottom) {
  const labels = [...byKind].filter(([, path]) => path.length)
    .map(([kind, path]) => ({ kind, want: y(path[path.length - 1].value) }))
    .sort((a, b) => a.want - b.want);
  const gap = Math.min(15, (bottom - top) / Math.max(labels.length, 1));
  let floor = top - gap;
  for (const label of labels) {
    label.y = Math.max(label.want, floor + gap);
    floor = label.y;
  }
  let ceiling = bottom + gap;
  for (const label of [...labels].reverse()) {
    label.y = Math.min(label.y, ceiling - gap);
    ceiling = label.y;
  }
  return s("g", { class: "end-labels" }, labels.map(({ kind, want, y: place }) => [
    s("path", { class: "leader", d: `M${x - 20},${want.toFixed(1)}L${x},${place.toFixed(1)}`,
      stroke: lookOf(kind).line }),
    s("text", { x: x + 3, y: place + 4, fill: lookOf(kind).text,
      "font-weight": ["chosen", "rejected"].includes(kind) ? 650 : 400 }, kind),
  ]));
}

/** The pointer, or the arrow keys, read one checkpoint after another. */
function probeSteps(svg, cross, { steps, at, y, byKind, pad, height, split }) {
  let current = -1;
  const show = (i, spoken) => {
    current = i;
    const step = steps[i];
    const found = [...byKind].map(([kind, path]) => ({ kind, point: path.find((p) => p.step === step) }))
      .filter((item) => item.point).sort((a, b) => b.point.value - a.point.value);
    cross.replaceChildren(
      s("line", { x1: at(step), x2: at(step), y1: pad.top, y2: height - pad.bottom }),
      ...found.map(({ kind, point }) => s("circle", { cx: at(step), cy: y(point.value), r: 4,
        fill: lookOf(kind).line })));
    const digits = Math.max(2, ...found.slice(0, 3).map(({ point }) => placesOf(point.estimate)));
    const lines = found.map(({ kind, point }) => h("tr", null, h("td", null, swatch(kind)),
      h("th", { scope: "row" }, kind),
      h("td", null, number(point.value, Math.min(digits, 3), state.shows === "change")),
      h("td", { class: "faint" }, point.low === point.high ? "" :
        `${number(point.low, Math.min(digits, 3), state.shows === "change")} to `
        + number(point.high, Math.min(digits, 3), state.shows === "change"))));
    const box = svg.getBoundingClientRect();
    const left = box.left + at(step);
    showTip({ left, right: left, width: 0, top: box.top + pad.top + 40, bottom: box.top + 60, beside: true },
      h("b", null, `step ${grouped(step)}`), h("table", null, lines));
    if (spoken) {
      announce(`step ${step}, ${SPLIT_WORDS[split]}: ` + found.map(({ kind, point }) =>
        `${kind} ${number(point.value, 2)}`).join(", "));
    }
  };
  const clear = () => { cross.replaceChildren(); hideTip(); };
  svg.addEventListener("pointermove", (event) => {
    const place = event.clientX - svg.getBoundingClientRect().left;
    let best = 0;
    steps.forEach((step, i) => {
      if (Math.abs(at(step) - place) < Math.abs(at(steps[best]) - place)) best = i;
    });
    show(best, false);
  });
  svg.addEventListener("pointerleave", clear);
  svg.addEventListener("blur", clear);
  svg.addEventListener("keydown", (event) => {
    const last = steps.length - 1;
    const next = {
      ArrowRight: Math.min(current + 1, last), ArrowLeft: Math.max(current - 1, 0),
      Home: 0, End: last,
    }[event.key];
    if (event.key === "Escape") clear();
    if (next === undefined) return;
    event.preventDefault();
    show(next, true);
  });
}

function curveTables(run, kinds) {
  const { report } = run;
  const holder = h("div");
  listen((key) => {
    if (key !== null && !["split", "measure", "shows"].includes(key)) return;
    holder.replaceChildren(...curveSplits(report).map((split) => tableOf({
      title: `${SPLIT_WORDS[split]} prompts, ${UNITS[state.measure]}`
        + (state.shows === "change" ? ", change since the first checkpoint" : ""),
      columns: [column("step"), ...kinds.map((kind) => column(kind))],
      rows: report.steps.map((step) => [grouped(step), ...kinds.map((kind) => {
        const point = pathOf(report, split, kind).find((p) => p.step === step);
        return point ? number(point.value, 3, state.shows === "change") : NONE;
      })]),
    })));
  });
  return holder;
}
