// What checkpoints say by themselves: does what happens to given responses reach it?

const DECODE_LINES = [
  ["own_tok", "own decode", "chosen"], ["reference_tok", "first's decode", "initial"],
];
const MOVES_PAGE = 8;
state.movesLimit = MOVES_PAGE;

function greedyView(run) {
  const path = run.report.greedy;
  if (!path) return null;
  const figures = h("div");
  const moves = h("div");
  drawn(figures, (width) => drawDecodes(figures, path, width), []);
  listenHere(moves, ["movesLimit"], () => drawMoves(moves, path));
  return section("greedy", "What it says by itself",
    "Greedy decodes: every checkpoint continues each prompt with its most probable tokens. "
    + "Where mass is squeezed onto what is most probable already, a checkpoint's own decodes "
    + "become more probable to it; where the first checkpoint's decodes fall, it no longer "
    + "says what it said.",
    controls(saves(pictures("greedy"), downloads("greedy", () => named(runOf().report.greedy.steps)))),
    run.view.greedy.said.map((text) => h("p", { class: "plain" }, text)),
    figures,
    run.view.greedy.tables.map((table) => tableOf(table)),
    h("h3", null, "Whose decode fell most"), moves,
    h("p", { class: "note" }, "Every prompt: ",
      downloads("greedy_prompts", () => named(runOf().report.greedy.moves))));
}

function drawDecodes(holder, path, width) {
  const splits = Object.keys(SPLIT_WORDS).filter((split) => path.steps.some((one) => one.split === split));
  const all = path.steps.flatMap((one) => DECODE_LINES.flatMap(([key]) =>
    [one[key].low, one[key].high, one[key].value])).filter(isNumber);
  const low = Math.min(0, ...all), high = Math.max(0, ...all);
  const room = (high - low || 1) * 0.06;
  const side = splits.length > 1 && width > 760 ? Math.floor((width - 24) / 2) : width;
  holder.replaceChildren(h("div", { class: "columns" }, splits.map((split) =>
    decodePanel(path, split, low - room, high + room, side))));
}

function decodePanel(path, split, low, high, width) {
  const height = 240;
  const pad = { left: 56, right: 112, top: 24, bottom: 36 };
  const rows = path.steps.filter((one) => one.split === split);
  const last = rows[rows.length - 1].step;
  const x = linear(path.reference_step, last, pad.left, width - pad.right);
  const y = linear(low, high, height - pad.bottom, pad.top);
  const marks = ticks(low, high, 5);
  const word = tickText(marks);
  const lines = DECODE_LINES.map(([key, label, kind]) => {
    const points = [{ step: path.reference_step, value: 0, low: 0, high: 0 },
      ...rows.map((one) => ({ step: one.step, ...one[key] })).filter((e) => isNumber(e.value))];
    const end = points[points.length - 1];
    const banded = points.filter((e) => isNumber(e.low) && isNumber(e.high));
    const edge = [...banded.map((e) => [e.step, e.high]), ...banded.slice().reverse().map((e) => [e.step, e.low])];
    const colour = lookOf(kind).line;
    return [
      s("polygon", { class: "band", fill: colour, "fill-opacity": 0.15,
        points: edge.map(([step, value]) => `${x(step)},${y(value)}`).join(" ") }),
      s("polyline", { class: "line", fill: "none", stroke: colour, "stroke-width": 2,
        points: points.map((e) => `${x(e.step)},${y(e.value)}`).join(" ") }),
      points.slice(1).map((e) => withTip(s("circle", { class: "dot", cx: x(e.step), cy: y(e.value), r: 4,
        fill: colour, stroke: colour }), () => `${label}, step ${e.step}: ${quote(e)}`)),
      s("text", { class: "tick", x: x(end.step) + 8, y: y(end.value) + 4 }, label),
    ];
  });
  return h("figure", null, s("svg", { class: "figure", "data-split": split, width, height, viewBox: `0 0 ${width} ${height}`,
    role: "img", "aria-label": `Greedy decodes on ${SPLIT_WORDS[split]} prompts, nats/token by step; the table below holds the numbers` },
  s("text", { class: "axis-title", x: pad.left, y: 14 }, `${SPLIT_WORDS[split]}: change, nats/token`),
  marks.map((value) => [s("line", { class: value ? "grid" : "zero", x1: pad.left, x2: width - pad.right, y1: y(value), y2: y(value) }),
    s("text", { class: "tick", x: pad.left - 6, y: y(value) + 4, "text-anchor": "end" }, word(value))]),
  [path.reference_step, ...rows.map((one) => one.step)].filter((_, i, steps) => i === 0 || i === steps.length - 1 || steps.length < 12)
    .map((step) => s("text", { class: "tick", x: x(step), y: height - pad.bottom + 18, "text-anchor": "middle" }, String(step))),
  lines));
}

function drawMoves(holder, path) {
  const shownNow = path.moves.slice(0, state.movesLimit);
  const more = path.moves.length - shownNow.length;
  holder.replaceChildren(
    h("p", { class: "note", role: "status" }, `${shownNow.length} of ${path.moves.length} prompts, those that fell most first`),
    h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Greedy decodes before and after" },
      h("table", { class: "moves" }, h("thead", null, h("tr", null,
        ["prompt", "Δ, nats", "the first checkpoint says", "the last one says"].map((word, i) =>
          h("th", { scope: "col", class: i === 1 ? null : "left" }, word)))),
      h("tbody", null, shownNow.map((move) => h("tr", null,
        h("th", { scope: "row" }, h("bdi", null, move.probe_id), ` (${SPLIT_WORDS[move.split]})`),
        h("td", null, sized(move.delta_sum)),
        h("td", { class: "left said" }, h("bdi", null, shown(move.before, true))),
        h("td", { class: "left said" }, move.before === move.after ? "the same"
          : h("bdi", null, shown(move.after, true)))))))),
    more > 0 ? h("button", { type: "button", class: "quiet more",
      onclick: () => change("movesLimit", state.movesLimit + 4 * MOVES_PAGE) }, `${more} more`) : "");
}
