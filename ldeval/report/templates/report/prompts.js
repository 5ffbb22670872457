// Single prompts: the worst first, found by search and filter, opened token by token.

const SORTS = [
  ["chosen", "chosen, per token"], ["rejected", "rejected, per token"],
  ["margin", "margin, sum"], ["others", "other kinds, per token"],
];
const PAGE = 50;
const FILTERS = [["any", "all"], ["trained", "trained"], ["heldout", "held-out"]];

function promptsView(run) {
  if (!run.prompts) {
    return section("prompts", "Prompt by prompt",
      "Single prompts are not known: the run holds means only.");
  }
  const { report } = run;
  const last = report.steps.length - 1;
  Object.assign(state, { sort: "chosen", direction: "up", only: "any", query: "",
    from: 0, to: last, prompt: null, limit: PAGE, kinds: new Set(["chosen", "rejected"]) });
  const list = h("div", { class: "prompt-list" });
  const detail = h("div", { class: "prompt-detail", id: "prompt-detail", tabindex: "-1" },
    h("p", { class: "plain" }, "Choose a prompt to see its responses token by token."));
  const search = h("input", { type: "search", "data-control": "query", autocomplete: "off",
    placeholder: run.prompts.texts ? "in prompts, responses and ids" : "in ids",
    oninput: () => { state.limit = PAGE; change("query", search.value); } });
  const view = section("prompts", "Prompt by prompt",
    `${grouped(run.prompts.count)} prompts, those whose chosen response fell most first. `
    + "Colour shows, token by token, what the model came to expect more or less.",
    controls(h("label", { class: "picker" }, h("span", null, "search"), search),
      choice("prompts", "only", FILTERS),
      picker("by change of", "sort", SORTS),
      picker("order", "direction", [["up", "lowest first"], ["down", "highest first"]]),
      saves(downloads("prompts", promptRecords))),
    h("div", { class: "prompts" }, list, detail));
  const number_ = state.run;
  const begin = async () => {
    const data = await promptsOf(number_);
    const sums = await sumsOf(number_);
    if (!view.isConnected) return; // another run was opened meanwhile
    listen((key) => {
      if ([null, "query", "only", "sort", "direction", "limit"].includes(key)) {
        drawList(list, data, sums, last);
      }
      if (key === "prompt") markOpen(list);
      if (["prompt", "from", "to"].includes(key) && state.prompt !== null) {
        openPrompt(detail, data, sums, report);
      }
    });
    // another part of the page may have asked for a prompt meanwhile
    const first = state.prompt ?? ranked(data, sums, last)[0];
    if (first !== undefined) change("prompt", first);
  };
  whenNear(view, () => begin().catch((error) => {
    list.replaceChildren(h("p", { class: "plain" }, `The prompts cannot be read: ${error.message}. `
      + "A browser of 2024 or later is needed."));
  }));
  return view;
}

/** Calls back once the element comes near the window, or the page is printed. */
function whenNear(element, then) {
  let waiting = true;
  const go = () => {
    if (!waiting) return;
    waiting = false;
    watcher.disconnect();
    if (element.isConnected) then();
  };
  const watcher = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) go();
  }, { rootMargin: "600px" });
  watcher.observe(element);
  addEventListener("beforeprint", go, { once: true });
}

function sumChange(data, sums, row, from, to) {
  const rows = data.rows.tokens.length;
  return sums[to * rows + row] - sums[from * rows + row];
}

/** What the list is sorted by: a change of one prompt between two checkpoints. */
function measureOf(data, sums, probe, which, from, to) {
  const total = (fits) => {
    let [sum, tokens] = [0, 0];
    for (const row of data.rowsOf[probe]) {
      const delta = sumChange(data, sums, row, from, to);
      if (!fits(data.kinds[data.rows.kind[row]]) || Number.isNaN(delta)) continue;
      sum += delta;
      tokens += data.rows.tokens[row];
    }
    return tokens ? [sum, sum / tokens] : [NaN, NaN];
  };
  if (which === "margin") {
    return total((k) => k === "chosen")[0] - total((k) => k === "rejected")[0];
  }
  if (which === "others") return total((k) => k !== "chosen" && k !== "rejected")[1];
  return total((k) => k === which)[1];
}

function promptText(data, probe) {
  const prompt = data.prompts[probe];
  if (prompt === null) return "";
  return typeof prompt === "string" ? prompt : prompt.map((m) => m.content).join("\n");
}

/** What the prompt asks: its text, or the last message of it. */
function asked(data, probe) {
  const prompt = data.prompts[probe];
  return Array.isArray(prompt) ? prompt[prompt.length - 1]?.content || "" : prompt || "";
}

/** Everything that is searched of a prompt, in small letters, made once. */
function haystack(data, probe) {
  data.haystacks = data.haystacks || [];
  if (data.haystacks[probe] === undefined) {
    const texts = data.rowsOf[probe].map((row) => data.texts[row] || "");
    data.haystacks[probe] = [data.probes[probe], promptText(data, probe), ...texts]
      .join("\n").toLowerCase();
  }
  return data.haystacks[probe];
}

function ranked(data, sums, last) {
  const wanted = state.query.trim().toLowerCase();
  const found = [];
  for (let probe = 0; probe < data.probes.length; probe += 1) {
    if (state.only !== "any" && data.trained[probe] !== (state.only === "trained")) continue;
    if (wanted && !haystack(data, probe).includes(wanted)) continue;
    found.push([probe, measureOf(data, sums, probe, state.sort, 0, last)]);
  }
  const sign = state.direction === "up" ? 1 : -1;
  found.sort(([, a], [, b]) => (Number.isNaN(a) ? 1 : Number.isNaN(b) ? -1 : sign * (a - b)));
  return found.map(([probe]) => probe);
}

function drawList(holder, data, sums, last) {
  const found = ranked(data, sums, last);
  const shownNow = found.slice(0, state.limit);
  const value = (probe) => measureOf(data, sums, probe, state.sort, 0, last);
  const most = Math.max(...shownNow.map((probe) => Math.abs(value(probe)) || 0), 1e-9);
  const unit = state.sort === "margin" ? "nats" : "nats/token";
  const items = shownNow.map((probe) => {
    const delta = value(probe);
    const text = asked(data, probe).replace(/\s+/g, " ") || data.probes[probe];
    const clipped = text.length > 160 ? text.slice(0, 160) + "…" : text;
    const bar = h("span", { class: delta < 0 ? "bar-mark less" : "bar-mark more", "aria-hidden": "true" });
    bar.style.setProperty("--a", `${Math.round((100 * Math.abs(delta || 0)) / most)}%`);
    return h("li", null, h("button", {
      type: "button", class: "prompt", "data-probe": String(probe),
      onclick: () => {
        change("prompt", probe);
        document.getElementById("prompt-detail").scrollIntoView({ block: "nearest" });
      },
    }, h("bdi", { class: "prompt-text" }, clipped),
    h("span", { class: "prompt-facts" }, bar, h("b", null, number(delta, 2)),
      ` ${unit} · ${data.trained[probe] ? "trained" : "held-out"}`)));
  });
  const more = found.length - shownNow.length;
  holder.replaceChildren(
    h("p", { class: "note", role: "status" }, `${grouped(found.length)} of ${grouped(data.probes.length)} prompts`),
    h("ol", null, items),
    more > 0 ? h("button", { type: "button", class: "quiet more",
      onclick: () => change("limit", state.limit + PAGE) }, `show ${Math.min(more, PAGE)} more`) : "");
  markOpen(holder);
}

function markOpen(list) {
  for (const button of list.querySelectorAll("button.prompt")) {
    button.setAttribute("aria-current", String(button.dataset.probe === String(state.prompt)));
  }
}

async function openPrompt(holder, data, sums, report) {
  const probe = state.prompt;
  const last = report.steps.length - 1;
  const every = data.isWorst.has(probe);
  if (!every) Object.assign(state, { from: 0, to: last });
  const [from, to] = [Number(state.from), Number(state.to)];
  const entries = data.has_tokens ? await tokensOf(data, probe, from, to, last) : [];
  const moved = await movedOf(data.run);
  if (probe !== state.prompt || from !== Number(state.from) || to !== Number(state.to)) return;
  const steps = [report.steps[from], report.steps[to]];
  const focused = holder.contains(document.activeElement) && document.activeElement.dataset.control;
  holder.replaceChildren(
    h("h3", null, h("bdi", null, data.probes[probe]),
      h("span", { class: "faint" }, ` ${data.trained[probe] ? "trained" : "held-out"} prompt`)),
    promptBox(data, probe),
    stepControls(report, every, entries.length > 0),
    entries.length ? responsesBox(data, probe, entries, steps)
      : h("p", { class: "plain" }, "The tokens of this run were not scored one by one."),
    kindTable(data, sums, probe, report, from, to, moved));
  if (focused) holder.querySelector(`select[data-control="${focused}"]`)?.focus();
}

function promptBox(data, probe) {
  const prompt = data.prompts[probe];
  if (prompt === null) {
    return h("p", { class: "plain" }, "The text of this prompt is not in the page: name the probe "
      + "file with --probes when the report is made.");
  }
  const messages = typeof prompt === "string" ? [{ role: "prompt", content: prompt }] : prompt;
  return h("div", { class: "prompt-box" }, messages.map((message) => h("div", null,
    h("span", { class: "role" }, message.role),
    h("div", { class: "said", dir: "auto" }, shown(message.content, true)))));
}

function stepControls(report, every, tokens) {
  const options = report.steps.map((step, i) => [String(i), `step ${grouped(step)}`]);
  const pick = (label, key) => {
    const select = h("select", { "data-control": key, disabled: !every,
      onchange: () => change(key, Number(select.value)) },
    options.map(([value, text]) => h("option", { value }, text)));
    select.value = String(state[key]);
    return h("label", { class: "picker" }, h("span", null, label), select);
  };
  const kept = every || report.steps.length < 3 ? null : h("span", { class: "note" },
    "first and last only: every checkpoint is kept for the prompts whose chosen response fell most");
  return controls(pick("before", "from"), pick("after", "to"), kept,
    tokens ? choice("colour", "tokens", VIEWS) : null,
    tokens ? choice("the model's own choice", "choices", [["off", "on hover"], ["on", "below"]]) : null);
}

function responsesBox(data, probe, entries, steps) {
  const holder = h("div");
  listenHere(holder, ["kinds"], () => {
    const wanted = entries.filter((entry) => state.kinds.has(entry.kind));
    const pieces = data.pieces ? null : h("p", { class: "note" },
      "Tokens are shown by their ids: name the tokenizer with --tokenizer when the report is made.");
    holder.replaceChildren(tokenLines(data, wanted, steps), tokenScale(), pieces || "",
      fold("These responses as tables", () => wanted.map((entry) => tokenTable(data, entry, steps))),
      downloads("tokens", () => tokenRecords(data, probe, entries, steps)));
  });
  return holder;
}

/** Every kind of the prompt: its path, its change, and whether its tokens are shown. */
function kindTable(data, sums, probe, report, from, to, moved) {
  const rows = data.rowsOf[probe];
  const count = data.rows.tokens.length;
  const keyed = (kind) => ({ probe_id: data.probes[probe], kind });
  const any = rows.some((row) => moved.has(keyOf(keyed(data.kinds[data.rows.kind[row]]))));
  return h("div", { class: "scroll" }, h("table", { class: "prompt-kinds" },
    h("caption", null, `Every response, step ${report.steps[from]} to ${report.steps[to]}`),
    h("thead", null, h("tr", null, ["show", "kind", "path", "Δ per token", "Δ sum", "tokens",
      ...(any ? ["first order"] : [])].map(
      (word, i) => h("th", { scope: "col", class: i < 3 ? "left" : null }, word)))),
    h("tbody", null, rows.map((row) => {
      const kind = data.kinds[data.rows.kind[row]];
      const path = report.steps.map((_, i) => sums[i * count + row]);
      const delta = path[to] - path[from];
      const tokens = data.rows.tokens[row];
      const box = h("input", { type: "checkbox", "data-kind": kind, "aria-label": `show ${kind}`,
        onchange: () => {
          if (!state.kinds.delete(kind)) state.kinds.add(kind);
          change("kinds", state.kinds);
        } });
      box.checked = state.kinds.has(kind);
      return h("tr", null, h("td", null, data.has_tokens ? box : null),
        h("th", { scope: "row" }, swatch(kind), kind), h("td", null, spark(path, kind)),
        h("td", null, number(delta / tokens, 2)), h("td", null, number(delta, 1)),
        h("td", null, String(tokens)), any ? movedCell(keyed(kind), moved) : null);
    }))));
}

/** From a response to the examples that moved it, where they are known. */
function movedCell(row, moved) {
  const place = moved.get(keyOf(row));
  return h("td", null, place === undefined ? null : h("button", { type: "button", class: "quiet",
    "data-to": "movers", "aria-label": plainText(`Which examples moved ${row.kind} of ${row.probe_id}`),
    onclick: () => toMoved(row, place) }, "who moved it"));
}

function spark(path, kind) {
  const known = path.filter(isNumber);
  if (known.length < 2) return null;
  const x = linear(0, path.length - 1, 2, 98);
  const y = linear(Math.min(...known), Math.max(...known), 20, 3);
  const points = path.map((value, i) => (isNumber(value) ? `${x(i).toFixed(1)},${y(value).toFixed(1)}` : ""))
    .filter(Boolean).join(" ");
  return s("svg", { class: "mini", width: 100, height: 23, "aria-hidden": "true" },
    s("polyline", { class: "line", points, stroke: lookOf(kind).line, "stroke-width": 1.5 }));
}

/** Sums of every response at every checkpoint, one row each. */
async function promptRecords() {
  const data = await promptsOf(state.run);
  const sums = await sumsOf(state.run);
  const { steps } = runOf().report;
  const count = data.rows.tokens.length;
  return named(data.rows.probe.flatMap((probe, row) => steps.map((step, i) => ({
    step, probe_id: data.probes[probe], kind: data.kinds[data.rows.kind[row]],
    split: data.trained[probe] ? "trained" : "heldout", n_tokens: data.rows.tokens[row],
    logprob_sum: isNumber(sums[i * count + row]) ? sums[i * count + row] : null,
  }))));
}
