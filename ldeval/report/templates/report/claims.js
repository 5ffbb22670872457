// The paper's claims on this run, as a checklist.

function claimsView(run) {
  const { report } = run;
  const splits = splitsOf(report);
  const names = [...new Set(report.claims.map((claim) => claim.name))];
  if (!names.length) return section("claims", "The paper's claims", "None could be tested.");
  const items = names.map((name) => {
    const of = (split) => report.claims.find((c) => c.name === name && c.split === split);
    const one = splits.map(of).find(Boolean);
    return h("article", { class: "claim", role: "listitem", "data-claim": name },
      h("span", { class: "claim-name" }, name), h("p", { class: "says" }, one.statement),
      splits.map((split) => h("div", { class: "claim-split" },
        h("span", { class: "split-name" }, SPLIT_WORDS[split]),
        of(split) ? badge(of(split).state) : "not tested", mainEffect(of(split)))),
      fold("test and numbers", () => [h("p", null, one.test), splits.map((split) => {
        const claim = of(split);
        if (!claim) return null;
        const effects = Object.entries(claim.effect);
        return h("div", { class: "conditions" }, h("h4", null, `${SPLIT_WORDS[split]} prompts`),
          claim.reason ? h("p", { class: "why" }, claim.reason) : null,
          effects.length ? estimateTable(effects) : null);
      })], { class: "evidence" }));
  });
  return section("claims", "The paper's claims on this run",
    "Ren & Sutherland (ICLR 2025): S about supervised fine-tuning, D about preference "
    + "training, E about training on both responses first. 99% intervals.",
    h("div", { class: "claims", role: "list" },
      h("div", { class: "claim claim-head", "aria-hidden": "true" }, h("span"), h("span"),
        splits.map((split) => h("span", null, `${SPLIT_WORDS[split]} prompts`))), items),
    h("p", { class: "note" }, downloads("claims", claimRecords)));
}

function mainEffect(claim) {
  const found = claim && Object.entries(claim.effect).find(([, e]) => isNumber(e.value));
  if (!found) return null;
  const [name, estimate] = found;
  return h("span", { class: "why", title: plainText(quote(estimate)) },
    `${name.replaceAll("_", " ")} ${short(estimate)}`);
}

function claimRecords() {
  return named(runOf().report.claims.flatMap((claim) => {
    const effects = Object.entries(claim.effect);
    return (effects.length ? effects : [["", NO_ESTIMATE]]).map(([name, estimate]) => ({
      claim: claim.name, split: claim.split, state: claim.state, evidence: name, estimate,
    }));
  }));
}
