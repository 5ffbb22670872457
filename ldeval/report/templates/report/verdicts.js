// Verdicts first: each in words, both splits side by side, its evidence underneath.

function verdictsView(run) {
  const { report, view } = run;
  const splits = splitsOf(report);
  const headline = h("div", { class: "headlines" }, view.headlines.map((line) => h("p",
    { class: line.holds.length ? "headline held" : "headline" }, line.text)));
  const cards = view.verdicts.map((verdict) => verdictCard(run, verdict, splits));
  const head = h("div", { class: "verdict-head", "aria-hidden": "true" },
    h("span", null, "pattern"),
    splits.map((split) => h("span", null, `${SPLIT_WORDS[split]} prompts`)));
  const note = "A verdict holds if all its conditions are true at the 99% level, does not "
    + "hold if one is false, and is undecided otherwise. It speaks of this run.";
  return section("verdicts", "Verdicts", null, headline,
    h("div", { class: "verdicts", role: "list" }, head, cards),
    h("p", { class: "note" }, note, " ", downloads("verdicts", verdictRecords)));
}

function verdictCard(run, verdict, splits) {
  const cellsOf = splits.map((split) => {
    const found = verdict.splits[split];
    if (!found) return h("div", { class: "verdict-split" }, "not assessed");
    return h("div", { class: "verdict-split" },
      h("span", { class: "split-name" }, SPLIT_WORDS[split]), badge(found.state),
      found.reason ? h("p", { class: "why" }, found.reason) : null,
      found.shared ? null : conditionList(run, verdict, split, found),
      Object.entries(found.details).map(([name, text]) =>
        h("p", { class: "why" }, `${name.replaceAll("_", " ")}: ${text}`)));
  });
  const any = Object.values(verdict.splits).some((found) => found.state === "holds");
  return h("article", { class: any ? "verdict held" : "verdict", role: "listitem",
    "data-verdict": verdict.name },
  h("div", { class: "verdict-name" }, h("h3", null, verdict.title),
    h("p", null, verdict.meaning)),
  cellsOf,
  fold("conditions and numbers", () => splits.map((split) => evidence(run, verdict, split)),
    { class: "evidence" }));
}

/** Every condition on a line of its own, with the estimate that it rests on first. */
function conditionList(run, verdict, split, found) {
  const record = run.report.verdicts.find(
    (item) => item.name === verdict.name && item.split === split);
  return h("ul", { class: "condition-list" }, record.conjuncts.map((conjunct, i) => {
    const estimate = record.evidence[conjunct.evidence[0]];
    const known = estimate && isNumber(estimate.value);
    const words = STATE_WORDS[conjunct.truth].replace("holds", "true").replace("does not hold", "false");
    return h("li", { class: `${conjunct.truth}${found.decides === conjunct.name ? " decides" : ""}`,
      title: plainText(conjunct.statement + (conjunct.reason ? ` (${conjunct.reason})` : "")) },
    h("span", { class: `sign-only ${conjunct.truth}`, "aria-hidden": "true" },
      { holds: "\u2713", does_not_hold: "\u2715", undecided: "?" }[conjunct.truth]),
    h("span", { class: "unseen" }, `${words}: `),
    h("span", null, found.conditions[i]),
    known ? h("span", { class: "value", title: plainText(quote(estimate)) }, short(estimate),
      h("span", { class: "ends-inline" }, isNumber(estimate.low) ? ` ${interval(estimate)}` : "")) : null);
  }));
}

function evidence(run, verdict, split) {
  const found = run.report.verdicts.find(
    (item) => item.name === verdict.name && item.split === split);
  if (!found) return null;
  if (!found.conjuncts.length) {
    return h("p", null, `${SPLIT_WORDS[split]}: ${found.reason || "no conditions"}`);
  }
  return h("div", { class: "conditions" }, h("h4", null, `${SPLIT_WORDS[split]} prompts`),
    found.conjuncts.map((conjunct) => h("div", { class: "condition" },
      h("p", null, badge(conjunct.truth), " ", h("b", null, conjunct.name), " ",
        conjunct.statement === conjunct.name ? "" : conjunct.statement,
        conjunct.reason ? h("span", { class: "why" }, ` (${conjunct.reason})`) : null),
      conjunct.evidence.length ? estimateTable(conjunct.evidence.map((name) => [
        name.slice(conjunct.name.length + 1), found.evidence[name]])) : null)));
}

const NO_ESTIMATE = {
  value: null, low: null, high: null, se: null, level: 0.99, n: 0, clusters: 0,
  reason: "no estimate is behind it",
};

function verdictRecords() {
  return named(runOf().report.verdicts.flatMap((verdict) => verdict.conjuncts.flatMap(
    (conjunct) => (conjunct.evidence.length ? conjunct.evidence : [""]).map((name) => ({
      verdict: verdict.name, split: verdict.split, state: verdict.state,
      condition: conjunct.name, truth: conjunct.truth,
      evidence: name.slice(conjunct.name.length + 1),
      estimate: verdict.evidence[name] || NO_ESTIMATE,
    })))));
}
