// How kinds moved together over prompts: a table whose cells are coloured.

const CELL_MEASURES = [
  ["slope", "slope"], ["partial", "slope at equal length and start"], ["rank", "rank correlation"],
];
state.cell = "slope";
state.order = "kinds";

function influenceView(run) {
  const { report } = run;
  if (!report.overall.influence.length) {
    return section("influence", "How kinds moved together",
      "This comparison holds no influences: single prompts are not known, or too few.");
  }
  const holder = h("div");
  listenPair(["split", "cell", "order"], (pair) =>
    holder.replaceChildren(heatMap(report, pair)));
  return section("influence", "How kinds moved together",
    "Over prompts: by how much the change of the kind in a row goes with the change of the "
    + "kind in a column, per token. Pale, hatched cells have an interval that contains zero.",
    controls(choice("show", "cell", CELL_MEASURES),
      choice("prompts", "split", splitsOf(report).map((split) => [split, SPLIT_WORDS[split]])),
      choice("order", "order", [["kinds", "as listed"], ["alike", "alike together"]]),
      picker("between steps", "pair", pairOptions(report)),
      saves(downloads("influence", () => byPair("influence")))),
    holder);
}

function heatMap(report, pair) {
  const split = oneSplit();
  const found = pair.influence.filter((cell) => cell.split === split);
  if (!found.length) return h("p", { class: "plain" }, "Nothing is known of these prompts.");
  const byPairOf = new Map(found.map((cell) => [`${cell.source}\n${cell.target}`, cell]));
  const names = new Set(found.flatMap((cell) => [cell.source, cell.target]));
  const clustered = report.cross.find((cross) => cross.split === split);
  const kinds = state.order === "alike" && clustered
    ? clustered.order.filter((kind) => names.has(kind)) : kindOrder(names);
  const sizes = found.map((c) => Math.abs(c[state.cell].value || 0)).sort((a, b) => a - b);
  const most = Math.max(sizes[Math.floor(sizes.length * 0.97)] || 0, 0.05);
  const rows = [];
  const body = kinds.map((target) => {
    const row = [];
    const cellsOf = kinds.map((source) => {
      const cell = byPairOf.get(`${source}\n${target}`);
      if (!cell) return h("td", { class: "own" });
      row.push(heatCell(cell, most));
      return row[row.length - 1];
    });
    rows.push(row);
    return h("tr", null, h("th", { scope: "row" }, target), cellsOf);
  });
  const table = h("table", { class: "heat" },
    h("thead", null, h("tr", null, h("td", { class: "corner" }, "moves \u2193  with \u2192"),
      kinds.map((kind) => h("th", { scope: "col" }, h("span", null, kind))))),
    h("tbody", null, body));
  roving(table, rows.filter((row) => row.length));
  return h("div", { class: "heat-holder" },
    h("div", { class: "scroll", role: "region", "aria-label": "Influence of kinds on kinds" }, table),
    heatScale(most));
}

function heatCell(cell, most) {
  const estimate = cell[state.cell];
  const known = isNumber(estimate.value);
  const open = known && !(estimate.low > 0 || estimate.high < 0);
  const words = `${cell.target} with ${cell.source}: ${quote(estimate)}`;
  const td = h("td", {
    class: ["cell", known ? (estimate.value < 0 ? "less" : "more") : "unknown", open ? "open" : ""]
      .join(" ").trim(),
    tabindex: -1, "aria-label": words,
  }, h("span", null, known ? number(estimate.value, 2, false) : NONE));
  const share = known ? Math.min(Math.abs(estimate.value) / most, 1) : 0;
  td.style.setProperty("--a", `${Math.round(share * (open ? 35 : 82))}%`);
  if (share > 0.62 && !open) td.classList.add("deep");
  return withTip(td, () => [h("b", null, `${cell.target} with ${cell.source}`),
    CELL_MEASURES.map(([key, label]) => h("p", null, `${label}: ${quote(cell[key])}`)),
    h("p", { class: "faint" }, `${grouped(estimate.n)} prompts`)]);
}

function heatScale(most) {
  const steps = [-1, -0.5, 0, 0.5, 1].map((share) => {
    const cell = h("span", { class: share < 0 ? "less" : "more" }, number(share * most, 2));
    cell.style.setProperty("--a", `${Math.round(Math.abs(share) * 82)}%`);
    if (Math.abs(share) > 0.62) cell.classList.add("deep");
    return cell;
  });
  return h("p", { class: "scale", "aria-hidden": "true" }, steps);
}
