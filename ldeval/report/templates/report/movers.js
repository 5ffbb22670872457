// Which training example of a step moved which response, and what was left to the
// optimizer's memory and to weight decay.

const MOVERS_PAGE = 40;
const PULLED_SHOWN = 8;
const PUSHES_SHOWN = 6;

function keyOf(row) {
  return `${row.probe_id}\n${row.kind}`;
}

/** Whether nothing in the prompt asked for the response, and it rises. */
function isPulled(row) {
  return core.pulled_kinds.includes(row.kind) && row.total > 0;
}

function moversView(run) {
  Object.assign(state, { moved: null, sought: "", soughtKind: "any", moversLimit: MOVERS_PAGE,
    pushes: PUSHES_SHOWN });
  return resultsView(run, "influence", "movers", "Which example moved what",
    "The first-order change of a response, taken apart: what each training example of the step "
    + "contributes, what the optimizer's memory of earlier steps does, what weight decay does.",
    moversBody);
}

function moversBody(found, data, worded) {
  const kinds = kindOrder(new Set(found.responses.map((row) => row.kind)));
  const rows = new Map(found.responses.map((row) => [keyOf(row), row]));
  if (!rows.has(state.moved)) state.moved = keyOf(found.responses[0]);
  if (!["any", "pulled", ...kinds].includes(state.soughtKind)) state.soughtKind = "any";
  const search = h("input", { type: "search", "data-control": "sought", autocomplete: "off",
    placeholder: data?.pieces || data?.texts.some(Boolean) ? "in prompts, responses and ids" : "in ids",
    oninput: () => { state.moversLimit = MOVERS_PAGE; change("sought", search.value); } });
  search.value = state.sought;
  const list = h("div", { class: "prompt-list" });
  const detail = h("div", { class: "prompt-detail", id: "moved-detail", tabindex: "-1" });
  listenHere(list, ["sought", "soughtKind", "moversLimit"], () => drawMoved(list, found, data));
  listenHere(detail, ["moved", "pushes"], () => {
    detail.replaceChildren(...movedDetail(rows.get(state.moved) || found.responses[0], found, data));
    markMoved(list);
  });
  const less = found.count - found.responses.length;
  const gap = found.exact ? `exact: parts and whole differ by at most ${sized(found.gap, 2)} of the parts' sizes`
    : `estimated from projected gradients: relative error ${sized(found.projection.relative, 2)} on `
      + `${found.projection.checked} examples that were computed exactly too`;
  return [checkedWords(worded, "influence"),
    pulledTable(found, data),
    h("h3", null, "Any response"),
    controls(h("label", { class: "picker" }, h("span", null, "search"), search),
      picker("kind", "soughtKind", [["any", "all kinds"], ["pulled", "not asked for, and rising"],
        ...kinds.map((kind) => [kind, kind])]),
      saves(downloads("example_influence", () => pushRecords(found, worded)))),
    h("div", { class: "prompts" }, list, detail),
    h("p", { class: "note" }, `${grouped(found.examples)} examples; of each response up to ${core.examples_shown} that `
      + `pushed it up and as many that pushed it down are in this page`
      + (less > 0 ? `, and ${grouped(found.responses.length)} of ${grouped(found.count)} responses, those that move most` : "")
      + `; the whole table is in influence.parquet. ${gap}. `,
    "Every response's parts: ", downloads("moved", () => movedRecords(found, worded))),
    fold("By kind, settings", () => worded.parts.influence.map((record) => tableOf(record)))];
}

/** Ready-made: what pushed up text that no prompt asked for. */
function pulledTable(found, data) {
  const rows = found.responses.filter(isPulled).slice(0, PULLED_SHOWN);
  if (!rows.length) {
    return h("p", { class: "plain" }, "No response that its prompt did not ask for rises in this step.");
  }
  const tail = found.responses.filter(isPulled).length - rows.length;
  return h("div", null, h("h3", null, "Which examples pushed this hallucination up"),
    h("p", { class: "note" }, "Responses that no prompt asked for (of other prompts, unconnected or shuffled), "
      + "those that rise most first"
      + (tail > 0 ? `; ${grouped(tail)} more rise: choose “not asked for, and rising” below.` : ".")),
    h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Hallucinations and what pushed them up" },
      h("table", { class: "pulled" }, h("thead", null, h("tr", null,
        ["response", "to the prompt", "rises by, nats", "pushed up most by", ""].map((word, i) =>
          h("th", { scope: "col", class: i === 2 ? null : "left", "aria-label": word ? null : "open" }, word)))),
      h("tbody", null, rows.map((row) => h("tr", null,
        h("th", { scope: "row" }, swatch(row.kind), row.kind),
        h("td", { class: "left" }, h("bdi", { class: "clip" }, clipped(promptOf(data, row.probe_id), 90))),
        h("td", null, sized(row.total)),
        h("td", { class: "left" }, row.up.length ? row.up.slice(0, 3).map((item, i) => [i ? ", " : "",
          h("bdi", null, ending(item.example_id, 40)), ` ${sized(item.influence)} (${percent(item.share)})`])
          : "no example: history or decay"),
        h("td", null, h("button", { type: "button", class: "quiet",
          "aria-label": plainText(`Take apart ${row.kind} of ${row.probe_id}`),
          onclick: () => toMoved(row) }, "take apart"))))))));
}

function soughtOf(found, data) {
  const wanted = state.sought.trim().toLowerCase();
  return found.responses.filter((row) => {
    if (state.soughtKind === "pulled" ? !isPulled(row)
      : state.soughtKind !== "any" && row.kind !== state.soughtKind) return false;
    return !wanted || [row.probe_id, promptOf(data, row.probe_id), responseOf(data, row) || ""]
      .join("\n").toLowerCase().includes(wanted);
  });
}

function drawMoved(holder, found, data) {
  const rows = soughtOf(found, data);
  const shownNow = rows.slice(0, state.moversLimit);
  const most = Math.max(...shownNow.map((row) => Math.abs(row.total)), 1e-12);
  const items = shownNow.map((row) => {
    const bar_ = h("span", { class: row.total < 0 ? "bar-mark less" : "bar-mark more", "aria-hidden": "true" });
    bar_.style.setProperty("--a", `${Math.round((100 * Math.abs(row.total)) / most)}%`);
    return h("li", null, h("button", { type: "button", class: "prompt", "data-moved": keyOf(row),
      onclick: () => {
        change("moved", keyOf(row));
        document.getElementById("moved-detail").scrollIntoView({ block: "nearest" });
      } },
    h("span", { class: "prompt-text" }, swatch(row.kind), " ", h("b", null, row.kind), " ",
      h("bdi", null, clipped(promptOf(data, row.probe_id), 120))),
    h("span", { class: "prompt-facts" }, bar_, h("b", null, sized(row.total)), " nats, the whole step")));
  });
  const more = rows.length - shownNow.length;
  holder.replaceChildren(
    h("p", { class: "note", role: "status" }, `${grouped(rows.length)} of ${grouped(found.responses.length)} responses`),
    h("ol", null, items),
    more > 0 ? h("button", { type: "button", class: "quiet more",
      onclick: () => change("moversLimit", state.moversLimit + MOVERS_PAGE) },
    `show ${Math.min(more, MOVERS_PAGE)} more`) : "");
  markMoved(holder);
}

function markMoved(list) {
  const wanted = plainText(state.moved);
  for (const button of list.querySelectorAll("button.prompt")) {
    button.setAttribute("aria-current", String(button.dataset.moved === wanted));
  }
}

function movedDetail(row, found, data) {
  const said = responseOf(data, row);
  const most = Math.max(...[...row.up, ...row.down].map((item) => Math.abs(item.influence)),
    Math.abs(row.rest), Math.abs(row.history), Math.abs(row.decay), 1e-12);
  const line = (head, value, name) => {
    const mark = h("span", { class: value < 0 ? "bar-mark less" : "bar-mark more", "aria-hidden": "true" });
    mark.style.setProperty("--a", `${Math.round((100 * Math.abs(value)) / most)}%`);
    return h("tr", { "data-part": name }, h("th", { scope: "row" }, head), h("td", null, sized(value)),
      h("td", null, row.size ? percent(value / row.size) : NONE), h("td", { class: "bars" }, mark));
  };
  const items = (some) => some.slice(0, state.pushes).map((item) => line(exampleHead(item.example_id, found), item.influence, "example"));
  const none = (words) => h("tr", null, h("td", { class: "left faint", colspan: 4 }, words));
  const group = (words) => h("tr", null, h("th", { scope: "rowgroup", colspan: 4, class: "group" }, words));
  const where = data ? data.probes.indexOf(row.probe_id) : -1;
  const listed = row.up.length + row.down.length;
  const folded = Math.max(row.up.length, row.down.length) > state.pushes;
  return [h("h3", null, swatch(row.kind), " ", row.kind, " of ", h("bdi", null, row.probe_id),
    h("span", { class: "faint" }, ` ${SPLIT_WORDS[row.split]} prompt, ${grouped(row.n_tokens)} tokens`)),
  h("div", { class: "prompt-box" }, h("span", { class: "role" }, "prompt"),
    h("div", { class: "said", dir: "auto" }, shown(promptOf(data, row.probe_id), true)),
    said === null ? null : [h("span", { class: "role" }, "response"),
      h("div", { class: "said", dir: "auto" }, shown(said, true))]),
  h("p", null, "The whole step moves its ln π by ", h("b", null, `${sized(row.total)} nats`),
    " to first order, from ", sized(row.logprob, 4), "."),
  h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "What moved this response" },
    h("table", { class: "pushes" }, h("thead", null, h("tr", null, ["what", "Δ ln π, nats", "share", ""].map((word, i) =>
      h("th", { scope: "col", class: i ? null : "left", "aria-label": word ? null : "size" }, word)))),
    h("tbody", null, group("pushed it up"), row.up.length ? items(row.up) : none("no example")),
    h("tbody", null, group("pushed it down"), row.down.length ? items(row.down) : none("no example")),
    h("tbody", null, group("beside them"),
      row.rest_count ? line(`the other ${grouped(row.rest_count)} examples together`, row.rest, "rest") : null,
      line("history: what the optimizer remembers", row.history, "history"),
      line("weight decay", row.decay, "decay")))),
  folded ? h("button", { type: "button", class: "quiet more", "data-more": "pushes",
    onclick: () => {
      change("pushes", core.examples_shown);
      document.getElementById("moved-detail").focus({ preventScroll: true });
    } },
  `show all ${listed} listed examples`) : "",
  h("p", { class: "note" }, "Shares are of the sizes of all parts together, signs kept."),
  where < 0 ? "" : h("button", { type: "button", class: "quiet", "data-to": "prompt",
    onclick: () => toPrompt(data, row.probe_id) }, "this prompt, token by token")];
}

function exampleHead(id, found) {
  const texts = found.texts[id];
  if (!texts) return h("bdi", null, id);
  return fold(h("span", null, h("bdi", null, ending(id, 60)), " ",
    h("bdi", { class: "faint" }, clipped(texts.prompt || "", 60))),
  () => Object.entries(texts).map(([name, text]) => h("div", null, h("span", { class: "role" }, name),
    h("div", { class: "said", dir: "auto" }, shown(text, true)))), { class: "example" });
}

// ---------------------------------------------------------------------- to and from prompts

/** Opens the section at a response. */
function toMoved(row, place = state.movers) {
  Object.assign(state, { moved: keyOf(row), soughtKind: "any", sought: "" });
  if (place === state.movers) change("moved", state.moved);
  else change("movers", place);
  document.getElementById("movers").scrollIntoView();
  const detail = document.getElementById("moved-detail");
  if (detail) {
    detail.scrollIntoView({ block: "nearest" });
    detail.focus({ preventScroll: true });
  }
}

function toPrompt(data, probe) {
  const where = data ? data.probes.indexOf(probe) : -1;
  if (where < 0) return;
  hideTip();
  change("prompt", where);
  document.getElementById("prompts").scrollIntoView();
}

/** Where the responses of a run were taken apart: place of the results by response. */
async function movedOf(number_) {
  const run = core.runs[number_];
  const places = new Map();
  for (const place of resultsWith(run, "influence")) {
    const found = (await dynamicsOf(number_, place)).influence;
    for (const row of found.responses) if (!places.has(keyOf(row))) places.set(keyOf(row), place);
  }
  return places;
}

function promptOf(data, probe) {
  const where = data ? data.probes.indexOf(probe) : -1;
  return (where >= 0 && asked(data, where)) || probe;
}

function responseOf(data, row) {
  const where = data ? data.probes.indexOf(row.probe_id) : -1;
  if (where < 0) return null;
  const place = data.rowsOf[where].find((i) => data.kinds[data.rows.kind[i]] === row.kind);
  return place === undefined ? null : data.texts[place];
}

function clipped(text, length) {
  const flat = text.replace(/\s+/g, " ");
  return flat.length > length ? [...flat].slice(0, length).join("") + "…" : flat;
}

/** The end of an id, where the line stands; its beginning is a path. */
function ending(id, length) {
  const letters = [...id];
  return letters.length > length ? "…" + letters.slice(-length).join("") : id;
}

const MOVED_KEYS = ["probe_id", "kind", "split", "n_tokens", "logprob", "total", "history", "decay",
  "size", "rest", "rest_count"];

function movedRecords(found, worded) {
  return named(found.responses.map((row) => ({ results: worded.name,
    ...Object.fromEntries(MOVED_KEYS.map((key) => [key, row[key]])) })));
}

function pushRecords(found, worded) {
  return named(found.responses.flatMap((row) => [...row.up, ...row.down].map((item) => ({
    results: worded.name, probe_id: row.probe_id, kind: row.kind, ...item }))));
}
