// What changed between two checkpoints, a line for each kind: the split side by side.

const PARTS = [
  ["delta_tok", "per token"], ["delta_sum", "sum"], ["matched", "length-matched"],
  ["first", "first token"], ["body", "body"], ["end", "end token"],
];
state.part = "delta_tok";

function changesView(run) {
  const { report, view } = run;
  const holder = h("div", { class: "changes" });
  listenPair(["part"], (pair) => holder.replaceChildren(changeTable(report, pair)));
  const parts = PARTS.filter(([key]) =>
    report.overall.changes.some((c) => isNumber(c[key].value)));
  if (!parts.some(([key]) => key === state.part)) state.part = parts[0]?.[0];
  const words = Object.entries(view.sentences).map(([split, sentences]) => h("div", null,
    h("h3", null, `${SPLIT_WORDS[split]} prompts`),
    h("ul", null, sentences.map((text) => h("li", null, text)))));
  return section("changes", "What changed",
    "Filled marks are trained prompts, open marks held-out ones; lines are 95% intervals. "
    + "Inside the grey band nothing is called a change.",
    controls(picker("between steps", "pair", pairOptions(report)),
      parts.length > 1 ? choice("change of", "part", parts) : null,
      saves(downloads("changes", () => byPair("changes")))),
    holder,
    fold("The same in sentences, first to last", () => h("div", { class: "columns" }, words)),
    view.standing.map((text) => h("p", { class: "note" }, text)));
}

function changeTable(report, pair) {
  const splits = splitsOf(report);
  const part = state.part;
  const byKind = new Map();
  for (const item of pair.changes) {
    if (!byKind.has(item.kind)) byKind.set(item.kind, {});
    byKind.get(item.kind)[item.split] = item;
  }
  const estimates = pair.changes.map((c) => c[part]).filter((e) => isNumber(e.value));
  let [low, high] = [0, 0];
  for (const e of estimates) {
    low = Math.min(low, isNumber(e.low) ? e.low : e.value);
    high = Math.max(high, isNumber(e.high) ? e.high : e.value);
  }
  const space = (high - low || 1) * 0.05;
  [low, high] = [low - space, high + space];
  const digits = Math.min(3, Math.max(2, ...estimates.slice(0, 4).map(placesOf)));
  const floor = part === "delta_sum" ? 0 : report.noise_floor || 0;
  const width = innerWidth < 600 ? 200 : 340;
  const unit = part === "delta_sum" ? "nats/response" : "nats/token";
  const rows = kindOrder(byKind.keys()).map((kind) => {
    const found = byKind.get(kind);
    const cellsOf = splits.map((split) => {
      const item = found[split];
      const e = item && item[part];
      return h("td", { title: e ? plainText(quote(e)) : null }, e ? short(e, digits) : NONE,
        h("span", { class: "ends" }, e && isNumber(e.low) ? interval(e, digits) : ""));
    });
    const one = found[splits[0]];
    return h("tr", null,
      h("th", { scope: "row" }, swatch(kind), kind),
      h("td", { class: "plot" }, forestRow(kind, found, splits, part, low, high, floor, width)),
      cellsOf,
      h("td", null, percent(one?.share_fell)), h("td", null, chance(one?.p_adjusted)));
  });
  const first = SPLIT_WORDS[splits[0]];
  return h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Change by kind" },
    h("table", { class: "forest" },
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "kind"),
        h("th", { scope: "col", class: "plot" }, forestAxis(low, high, width, unit)),
        splits.map((split) => h("th", { scope: "col" }, `${SPLIT_WORDS[split]}, ${unit}`)),
        h("th", { scope: "col" }, `fell for (${first})`),
        h("th", { scope: "col" }, `adjusted p (${first})`))),
      h("tbody", null, rows)));
}

function forestAxis(low, high, width, unit) {
  const x = linear(low, high, 6, width - 6);
  const marks = ticks(low, high, width / 70);
  const word = tickText(marks);
  return s("svg", { width, height: 20, viewBox: `0 0 ${width} 20`, role: "img", "aria-label": `axis in ${unit}` },
    marks.map((value) => s("text", { class: "tick", x: x(value), y: 13, "text-anchor": "middle" },
      word(value))));
}

function forestRow(kind, found, splits, part, low, high, floor, width) {
  const x = linear(low, high, 6, width - 6);
  const look = lookOf(kind);
  const height = 40;
  const clip = (value) => Math.min(Math.max(value, low), high);
  const marks = splits.map((split, i) => {
    const e = found[split] && found[split][part];
    if (!e || !isNumber(e.value)) return null;
    const y = splits.length > 1 ? 14 + 12 * i : 20;
    return [
      isNumber(e.low) ? s("line", { x1: x(clip(e.low)), x2: x(clip(e.high)), y1: y, y2: y,
        stroke: look.line, "stroke-width": split === "trained" ? 2.4 : 1.4 }) : null,
      s("circle", { cx: x(e.value), cy: y, r: 4, stroke: look.line, "stroke-width": 1.6,
        class: split === "trained" ? "dot" : "dot open",
        fill: split === "trained" ? look.line : null }),
    ];
  });
  return s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    floor ? s("rect", { class: "floor", x: x(clip(-floor)), y: 0, height,
      width: Math.max(x(clip(floor)) - x(clip(-floor)), 1) }) : null,
    s("line", { class: "zero", x1: x(0), x2: x(0), y1: 0, y2: height }), marks);
}
