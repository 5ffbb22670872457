// Preference pairs by what training them risks, the worst first.

const RISK_PAGE = 25;
const RISKS = [
  ["rank", "as ranked"], ["chosen_change", "fall of chosen"], ["rejected_change", "fall of rejected"],
  ["ches_normalised", "CHES, normalised"], ["valley", "valley"], ["edit_similarity", "edit similarity"],
];
const RANK_WORDS = {
  change: "predicted fall of chosen", entanglement: "gradient entanglement", ches: "CHES",
  ches_normalised: "CHES, normalised", valley: "valley", edit: "edit similarity",
};

function riskView(run) {
  Object.assign(state, { riskQuery: "", riskOnly: "any", riskBy: "rank", riskLimit: RISK_PAGE });
  return resultsView(run, "risk", "risk", "Risk before training",
    "Each preference pair trained alone, to first order: where chosen falls with rejected, training "
    + "on the pair displaces what it should teach.", riskBody);
}

function riskBody(found, data, worded) {
  const gradients = found.pairs.some((pair) => pair.both_fall !== null);
  const orders = RISKS.filter(([key]) => found.pairs.some((pair) => isNumber(pair[key])));
  const holder = h("div");
  listenHere(holder, ["riskQuery", "riskOnly", "riskBy", "riskLimit"], () =>
    holder.replaceChildren(...riskTable(found, data)));
  const search = h("input", { type: "search", "data-control": "riskQuery", autocomplete: "off",
    placeholder: "in pairs", oninput: () => { state.riskLimit = RISK_PAGE; change("riskQuery", search.value); } });
  search.value = state.riskQuery;
  const less = found.count - found.pairs.length;
  return [checkedWords(worded, "risk"),
    controls(h("label", { class: "picker" }, h("span", null, "search"), search),
      gradients ? choice("pairs", "riskOnly", [["any", "all"], ["fall", "both fall"]]) : null,
      picker("order", "riskBy", orders.map(([key, text]) => [key, key === "rank"
        ? `as ranked: ${RANK_WORDS[found.ranked_by] || found.ranked_by}` : text])),
      saves(downloads("risk", () => named(found.pairs.map((pair) => ({ results: worded.name, ...pair })))))),
    holder,
    h("p", { class: "note" }, `${grouped(found.count)} pairs, most at risk first`
      + (less > 0 ? `; the ${grouped(found.pairs.length)} most at risk are in this page, all in the file of 'ldeval risk --json'` : "")
      + (found.skipped ? `; ${grouped(found.skipped)} ${found.skipped === 1 ? "row" : "rows"} gave no pair` : "")
      + ". Moves in nats per unit of learning rate. valley: rejected's tokens after the first difference with ‖π‖² > p."),
    fold("Settings", () => worded.parts.risk.map((record) => tableOf(record)))];
}

/** Undefined scores come last, whichever way is up. */
function riskOrder(pairs) {
  const sign = ["rank", "chosen_change", "rejected_change"].includes(state.riskBy) ? 1 : -1;
  const value = (pair) => (isNumber(pair[state.riskBy]) ? sign * pair[state.riskBy] : Infinity);
  return [...pairs].sort((a, b) => (value(a) === value(b) ? a.rank - b.rank : value(a) - value(b)));
}

function riskTable(found, data) {
  const wanted = state.riskQuery.trim().toLowerCase();
  const text = (pair) => promptOf(data, pair.example_id);
  const pairs = riskOrder(found.pairs.filter((pair) => (state.riskOnly === "any" || pair.both_fall)
    && (!wanted || `${pair.example_id}\n${text(pair)}`.toLowerCase().includes(wanted))));
  const shownNow = pairs.slice(0, state.riskLimit);
  const more = pairs.length - shownNow.length;
  const fall = { true: "both fall", false: "", null: NONE };
  return [h("p", { class: "note", role: "status" }, `${grouped(pairs.length)} of ${grouped(found.pairs.length)} pairs`),
    h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Pairs by risk" },
    h("table", { class: "risks" },
      h("thead", null, h("tr", null, ["", "pair", "chosen moves", "rejected moves", "", "⟨w,l⟩/‖w‖²",
        "CHES, normalised", "valley", "edit similarity"].map((word, i) => h("th", { scope: "col",
        class: [1, 4].includes(i) ? "left" : null,
        "aria-label": word ? null : i ? "both fall" : "rank" }, word)))),
      h("tbody", null, shownNow.map((pair) => h("tr", null, h("td", null, grouped(pair.rank)),
        h("th", { scope: "row", class: "long" }, h("bdi", null, ending(pair.example_id, 60)),
          text(pair) === pair.example_id ? null
            : h("bdi", { class: "faint" }, ` ${clipped(text(pair), 60)}`)),
        h("td", null, sized(pair.chosen_change)), h("td", null, sized(pair.rejected_change)),
        h("td", { class: "left warned" }, fall[pair.both_fall]),
        h("td", null, sized(pair.chosen_squared ? pair.inner / pair.chosen_squared : null)),
        h("td", null, sized(pair.ches_normalised)), h("td", null, percent(pair.valley)),
        h("td", null, number(pair.edit_similarity, 2, false))))))),
  more > 0 ? h("button", { type: "button", class: "quiet more",
    onclick: () => change("riskLimit", state.riskLimit + RISK_PAGE) },
  `show ${Math.min(more, RISK_PAGE)} more`) : ""];
}
