// Where probability went along one kind: four bins that the first checkpoint fixes, what
// they lost on the left, what they gained on the right.

const BINS = [
  ["label", "the response's own token"],
  ["argmax", "the first checkpoint's top choice"],
  ["top", "the rest of its top tokens"],
  ["tail", "all other tokens"],
];
const STRATA = { all: "all", off: "top choice is another", on: "top choice is the token" };
state.along = "rejected";
state.stratum = "all";

function flowView(run) {
  const { report } = run;
  const flows = report.overall.flows;
  if (!flows.length) {
    return section("flow", "Where the probability went",
      "This comparison holds no flows: the top tokens of each position were not stored.");
  }
  const kinds = kindOrder(new Set(flows.map((flow) => flow.kind)));
  if (!kinds.includes(state.along)) state.along = kinds[0];
  const strata = Object.keys(STRATA).filter((key) => flows.some((f) => f.stratum === key));
  if (!strata.includes(state.stratum)) state.stratum = strata[0];
  const figure = h("div", { class: "flow" });
  const table = h("div");
  let pair = report.overall;
  const redraw = drawn(figure, (width) => drawFlow(figure, pair, width), []);
  listenPair(["along", "split", "stratum"], (found) => {
    pair = found;
    redraw();
    table.replaceChildren(flowTable(pair, kinds));
  });
  return section("flow", "Where the probability went",
    "Mean change of probability at the positions of a response, in four bins that the first "
    + "checkpoint fixes. The four changes add up to zero.",
    controls(picker("along", "along", kinds.map((kind) => [kind, kind])),
      choice("prompts", "split", splitsOf(report).map((split) => [split, SPLIT_WORDS[split]])),
      choice("positions", "stratum", strata.map((key) => [key, STRATA[key]])),
      picker("between steps", "pair", pairOptions(report)),
      saves(pictures("flow"), downloads("flows", () => byPair("flows")))),
    figure, fold("Every kind, as a table", () => table));
}

function flowNow(pair, kind) {
  const fits = (f, stratum) => f.kind === kind && f.split === oneSplit() && f.stratum === stratum;
  return pair.flows.find((f) => fits(f, state.stratum)) || pair.flows.find((f) => fits(f, "all"));
}

/** The split of views that show one at a time. */
function oneSplit() {
  const have = splitsOf(runOf().report);
  return have.includes(state.split) ? state.split : have[0];
}

function drawFlow(holder, pair, width) {
  const flow = flowNow(pair, state.along);
  if (!flow || !BINS.every(([bin]) => isNumber(flow[bin].value))) {
    holder.replaceChildren(h("p", { class: "plain" }, "No flow is known here: "
      + ((flow && BINS.map(([bin]) => flow[bin].reason).find(Boolean)) || "nothing was scored.")));
    return;
  }
  const lost = BINS.filter(([bin]) => flow[bin].value < 0);
  const won = BINS.filter(([bin]) => flow[bin].value > 0);
  const total = won.reduce((sum, [bin]) => sum + flow[bin].value, 0);
  const narrow = width < 620;
  const text = narrow ? Math.floor(width * 0.36) : 260;
  const height = narrow ? 380 : 320;
  const gap = narrow ? 60 : 46;
  const usable = height - 60 - gap * (Math.max(lost.length, won.length) - 1);
  const scale = total > 0 ? usable / total : 0;
  const stack = (side) => {
    const size = side.reduce((sum, [bin]) => sum + Math.abs(flow[bin].value) * scale, 0);
    let y = 40 + (height - 60 - size - gap * (side.length - 1)) / 2;
    return side.map(([bin, words]) => {
      const tall = Math.abs(flow[bin].value) * scale;
      const box = { bin, words, y, tall, used: 0 };
      y += tall + gap;
      return box;
    });
  };
  const [left, right] = [stack(lost), stack(won)];
  const [x1, x2, wide] = [text, width - text - 12, 12];
  const ribbons = left.flatMap((from) => right.map((to) => {
    const size = total > 0 ? (from.tall * to.tall) / (total * scale) : 0;
    const [a, b] = [from.y + from.used, to.y + to.used];
    from.used += size;
    to.used += size;
    const middle = (x1 + wide + x2) / 2;
    const d = `M${x1 + wide},${a}C${middle},${a} ${middle},${b} ${x2},${b}L${x2},${b + size}`
      + `C${middle},${b + size} ${middle},${a + size} ${x1 + wide},${a + size}Z`;
    return s("path", { class: `ribbon ${to.bin}`, d });
  }));
  const boxes = [[left, x1, "end", x1 - 10], [right, x2, "start", x2 + wide + 10]].flatMap(
    ([side, x, anchor, place]) => side.map((box) => s("g", null,
      s("rect", { class: `bin ${box.bin}`, x, y: box.y, width: wide, height: Math.max(box.tall, 1.5) }),
      flowLabel(flow, box, anchor, place, text - 14))));
  const notes = [
    left.length > 1 ? "Which loser fed which gainer is not measured: the ribbons share in proportion." : "",
    flow.label.low > 0 || flow.label.high < 0 ? "" : "The response's own tokens did not clearly "
      + "lose or gain, so there are no shares of it.",
    `${grouped(flow.positions)} positions, ${percent(flow.exact_share)} of them exact`
      + (flow.exact_share < 1 ? ", the rest bounded (the bounds are in the intervals)" : "")
      + `; at ${percent(flow.risen_share)} the later top choice lies outside the bins.`,
  ];
  holder.replaceChildren(h("figure", null,
    s("svg", { class: "figure", width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": flowWords(flow) },
    s("text", { class: "axis-title", x: x1 + wide, y: 13, "text-anchor": "end" }, "lost"),
    s("text", { class: "axis-title", x: x2, y: 13 }, "gained"), ribbons, boxes),
    h("figcaption", null, notes.filter(Boolean).join(" "))));
}

function flowLabel(flow, box, anchor, x, room) {
  const estimate = flow[box.bin];
  const share = flow[`${box.bin}_share`];
  const words = wrapWords(box.words, Math.floor(room / 6.6));
  const digits = Math.max(3, placesOf(estimate));
  const figures = [short(estimate, digits)];
  if (share && isNumber(share.value)) figures.push(`${percent(share.value)} net`);
  const together = figures.join(" · ");
  const lines = [
    ...words.map((line) => ["", line]),
    ...(together.length * 7.2 > room ? figures : [together]).map((line) => ["strong", line]),
    ["axis-title", isNumber(estimate.low) ? interval(estimate, digits) : ""],
  ];
  const top = box.y + box.tall / 2 - (15 * lines.length) / 2 + 11;
  return s("g", { class: "flow-label", "text-anchor": anchor },
    lines.map(([name, line], i) => s("text", { class: name, x, y: top + 15 * i }, line)),
    s("title", null, `${box.words}: ${quote(estimate)}`));
}

function wrapWords(text, room) {
  const lines = [""];
  for (const word of text.split(" ")) {
    const last = lines[lines.length - 1];
    if (last && last.length + word.length + 1 > room) lines.push(word);
    else lines[lines.length - 1] = last ? `${last} ${word}` : word;
  }
  return lines;
}

function flowWords(flow) {
  const words = BINS.map(([bin, name]) => `${name} ${quote(flow[bin])}`).join("; ");
  return `Along ${flow.kind}, ${SPLIT_WORDS[flow.split]} prompts: ${words}.`;
}

function flowTable(pair, kinds) {
  const rows = kinds.map((kind) => [kind, flowNow(pair, kind)]).filter(([, flow]) => flow);
  const most = Math.max(...rows.flatMap(([, flow]) => BINS.map(([bin]) =>
    Math.abs(flow[bin].value || 0))), 1e-9);
  return h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Flow by kind" },
    h("table", { class: "forest" },
      h("caption", null, `Mean Δp in probability/token, ${SPLIT_WORDS[oneSplit()]} prompts, `
        + `positions: ${STRATA[state.stratum]} (all, where a kind has no such figure)`),
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "kind"),
        BINS.map(([, words]) => h("th", { scope: "col" }, words)),
        h("th", { scope: "col" }, "positions"))),
      h("tbody", null, rows.map(([kind, flow]) => h("tr", null,
        h("th", { scope: "row" }, swatch(kind), kind),
        BINS.map(([bin]) => h("td", { title: plainText(quote(flow[bin])) },
          whisker(flow[bin], -most, most, 110), short(flow[bin], 4))),
        h("td", null, grouped(flow.positions)))))));
}
