// The page as a whole: its bar, its sections, themes, printing.

const SECTIONS = [
  ["verdicts", "Verdicts"], ["curves", "Paths"], ["changes", "Changes"], ["flow", "Flow"],
  ["influence", "Influence"], ["claims", "Claims"], ["greedy", "Generation"], ["foretold", "Foretold"],
  ["movers", "Examples"], ["risk", "Risk"], ["prompts", "Prompts"],
  ["measures", "Measures"], ["sources", "Sources"], ["read", "How to read"],
];
const THEMES = [["auto", "as the system"], ["light", "light"], ["dark", "dark"]];
state.theme = "auto";

function themeSwitch() {
  const follow = () => {
    if (state.theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = state.theme;
  };
  const select = h("select", { "data-control": "theme", "aria-label": "colours",
    onchange: () => { state.theme = select.value; follow(); } },
  THEMES.map(([value, text]) => h("option", { value }, text)));
  return select;
}

function bar() {
  const runs = core.runs.length < 2 ? null : h("label", { class: "picker" }, h("span", null, "run"),
    h("select", { "data-control": "run", onchange: (event) => openRun(Number(event.target.value)) },
      core.runs.map((run, i) => h("option", { value: String(i) }, plainText(run.report.run)))));
  const report = h("button", { type: "button", class: "quiet", "data-download": "report.json",
    onclick: async () => save("report.json", JSON.stringify(await wholeReport(), null, 1) + "\n",
      "application/json") }, "\u2193 everything");
  document.getElementById("bar").replaceChildren(
    h("nav", { "aria-label": "sections" }),
    h("div", { class: "bar-tools" }, runs || "", report, themeSwitch()));
}

/** Links to the sections that this run has. */
function navigate() {
  const have = SECTIONS.filter(([id]) => document.getElementById(id));
  document.querySelector("#bar nav").replaceChildren(...have.map(([id, text]) =>
    h("a", { href: `#${id}` }, text)));
}

/** The frozen argmax is biased down: it is there for those who ask for it. */
function hiddenAtFirst(run) {
  const kinds = run.report.curves.map((point) => point.kind);
  return new Set(kinds.filter((kind) => kind.startsWith("frozen:")));
}

function openRun(number_) {
  const run = core.runs[number_];
  listeners = [];
  Object.assign(state, { run: number_, pair: "overall", hidden: hiddenAtFirst(run) });
  const splits = splitsOf(run.report);
  if (state.split !== "both" && !splits.includes(state.split)) state.split = splits[0];
  hideTip();
  document.getElementById("main").replaceChildren(
    h("div", { class: "title" }, h("h1", null, core.title),
      h("p", { class: "run-line" }, h("b", null, run.report.run), ` · ${run.view.introduction}`)),
    verdictsView(run), curvesView(run), changesView(run), flowView(run), influenceView(run),
    claimsView(run), ...[greedyView, foretoldView, moversView, riskView].map((view) => view(run) || ""),
    promptsView(run), measuresView(run), sourcesView(run), readView());
  navigate();
}

function measuresView(run) {
  return section("measures", "Further measures", "First to last checkpoint, worded and rounded; "
    + "the same numbers unrounded are in the downloads.",
  h("p", { class: "note" },
    [["trajectories", () => named(runOf().report.trajectories)],
      ["margins", () => byPair("margins")],
      ["laws", () => named(runOf().report.laws)],
      ["richer", () => named(runOf().report.richer.flatMap((curve) => curve.bins.map(
        (bin) => ({ kind: curve.kind, split: curve.split, ...bin }))))],
      ...["pulls", "locations", "spill", "similarity"].map((name) => [name, () => named(
        runOf().report.cross.flatMap((cross) => cross[name].map(
          (item) => ({ split: cross.split, ...item }))))]),
    ].map(([name, records]) => h("span", { class: "named-download" }, `${name} `,
      downloads(name, records)))),
  run.view.measures.map((group) => fold(group.summary, () => group.tables.map(
    (table) => tableOf(table)))));
}

function sourcesView(run) {
  const tables = run.view.sources;
  const excluded = run.report.excluded;
  return section("sources", "Where the numbers come from", null,
    tables.length ? tables.map((table) => tableOf(table)) : h("p", null, "Means that were imported."),
    run.report.notes.length && !tables.length
      ? h("ul", null, run.report.notes.map((note) => h("li", null, note))) : null,
    excluded.length ? h("p", { class: "note" }, "Every response left out: ",
      downloads("excluded", () => named(excluded))) : null);
}

function readView() {
  return section("read", "How to read this", null, h("dl", null, core.how_to_read.map(
    ([name, text]) => [h("dt", null, name), h("dd", null, text)])),
  h("h3", null, "Kinds of response"),
  tableOf({
    title: "",
    columns: [column("kind", "left"), column("in the paper", "left"), column("region", "left"),
      column("what it is", "left")],
    rows: core.kinds.map((kind) => [kind.name, kind.symbol, kind.region, kind.summary]),
  }));
}

/** Folded parts do not print, but for the evidence of what holds: it opens meanwhile. */
function printing() {
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("#verdicts .held details:not([open])")];
    for (const details of opened) {
      details.make();
      details.open = true;
    }
  });
  addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
    opened = [];
  });
}

document.body.append(tip);
addEventListener("scroll", hideTip, { passive: true });
printing();
bar();
openRun(0);
document.documentElement.dataset.ready = "true";
