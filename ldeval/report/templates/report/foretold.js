// What first order foretold of one step, beside what happened: a point for each response.

const REACH = 22;

/** Places of the results beside a run that hold a part. */
function resultsWith(run, part) {
  return run.dynamics.flatMap((found, place) => (found.parts[part] ? [String(place)] : []));
}

/** Which of several results is looked at; nothing to choose among one. */
function resultsPicker(run, part, key) {
  const places = resultsWith(run, part);
  if (!places.includes(state[key])) [state[key]] = places;
  if (places.length < 2) return null;
  return picker("results", key, places.map((place) => [place, run.dynamics[place].name]));
}

/** What of a part was compared with the run. */
function checkedWords(worded, part) {
  const own = worded.checked.filter((text) => {
    const [, named_] = /^(prediction|influence|risk): /.exec(text) || [];
    return !named_ || named_ === part;
  });
  return h("p", { class: "why" }, own.join("; "), ".");
}

/** Draws with the results that are looked at, and again when others are. */
function withResults(view, part, key, draw) {
  const number_ = state.run;
  const go = async () => {
    const place = state[key];
    const found = (await dynamicsOf(number_, place))[part];
    const data = core.runs[number_].prompts ? await promptsOf(number_) : null;
    if (view.isConnected && place === state[key]) draw(found, data, core.runs[number_].dynamics[place]);
  };
  const failed = (error) => view.append(h("p", { class: "plain" },
    `The results cannot be read: ${error.message}. A browser of 2024 or later is needed.`));
  whenNear(view, () => {
    let first = true;
    listen((changed) => {
      if (first || changed === key) go().catch(failed);
      first = false;
    });
  });
}

/** A section of one part of the results; null where the run has none of it. */
function resultsView(run, part, key, title, words, draw) {
  if (!resultsWith(run, part).length) return null;
  state[key] = null;
  const body = h("div");
  const select = resultsPicker(run, part, key);
  const view = section(key, title, words, select ? controls(select) : null, body);
  withResults(view, part, key, (...found) => body.replaceChildren(...draw(...found)));
  return view;
}

function foretoldView(run) {
  Object.assign(state, { factor: null, unplotted: new Set() });
  return resultsView(run, "prediction", "foretold", "What first order foretold",
    "Of one step: the change of ln π that gradients alone foretell, against the change that was "
    + "measured once the step was taken. On the line they are equal.", foretoldBody);
}

function foretoldBody(found, data, worded) {
  const sizes = found.factors.map((factor) => [String(factor), `${factor}×`]);
  const near = found.factors.map((factor) => Math.abs(Math.log(factor)));
  state.factor = sizes[near.indexOf(Math.min(...near))][0];
  const kinds = kindOrder(new Set(found.responses.map((row) => row.kind)));
  const holder = h("div", { class: "scatter" });
  drawn(holder, (width) => drawScatter(holder, found, data, width), ["factor", "unplotted"]);
  const table = h("div");
  listenHere(table, ["factor"], () => table.replaceChildren(agreementTable(found)));
  const less = found.count - found.responses.length;
  return [checkedWords(worded, "prediction"),
    h("p", null, found.words),
    controls(sizes.length > 1 ? choice("size of the step", "factor", sizes) : null,
      saves(pictures("foretold"), downloads("predictions", () => predictionRecords(found, worded)))),
    h("div", { class: "foretold" }, h("div", null, holder, pointLegend(kinds)), table),
    less > 0 ? h("p", { class: "note" }, `${grouped(found.responses.length)} of ${grouped(found.count)} `
      + "responses are in this page: those furthest from the prediction and every so many-th of "
      + "the others. R² and slopes are of all; the rest is in prediction.json.") : "",
    fold("Where first order was furthest off", () => {
      const furthest = h("div");
      listenHere(furthest, ["factor", "unplotted"], () =>
        furthest.replaceChildren(furthestTable(found, data)));
      return furthest;
    }),
    fold("By size, what moved the responses, settings", () => worded.parts.prediction.map(
      (record) => tableOf(record))),
    h("p", { class: "note" }, "Agreement by size and kind: ",
      downloads("agreements", () => named(found.agreements.map(
        (item) => ({ results: worded.name, ...item })))))];
}

/** Buttons that show and hide the points of a kind. */
function pointLegend(kinds) {
  const buttons = kinds.map((kind) => h("button", { type: "button", class: "kind", "data-kind": kind,
    title: plainText(lookOf(kind).summary || kind),
    onclick: () => {
      if (!state.unplotted.delete(kind)) state.unplotted.add(kind);
      change("unplotted", state.unplotted);
    },
    onpointerenter: () => brighten(kind), onpointerleave: () => brighten(null),
    onfocus: () => brighten(kind), onblur: () => brighten(null) },
  s("svg", { class: "swatch", width: 10, height: 10, "aria-hidden": "true" },
    s("circle", { cx: 5, cy: 5, r: 3.6, ...pointLook(kind) })), h("span", null, kind)));
  const quick = (label, off) => h("button", { type: "button", class: "quiet",
    onclick: () => change("unplotted", new Set(off)) }, label);
  const legend_ = h("div", { class: "legend" },
    h("div", { class: "kinds", role: "group", "aria-label": "kinds of response" }, buttons),
    h("div", { class: "quick" }, quick("all", []), quick("none", kinds)));
  listenHere(legend_, ["unplotted"], () => buttons.forEach((button, i) =>
    button.setAttribute("aria-pressed", String(!state.unplotted.has(kinds[i])))));
  return legend_;
}

/** Kinds of one colour are told apart: those after the first have open points. */
function pointLook(kind) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--k-${(LOOKS.get(name) || {}).css}`);
  const names = core.kinds.map((found) => found.name);
  const open = names.slice(0, Math.max(names.indexOf(kind), 0))
    .some((name) => colour(name) === colour(kind));
  return open ? { fill: "none", stroke: lookOf(kind).line, "stroke-width": 1.6 } : { fill: lookOf(kind).line };
}

function brighten(kind) {
  for (const group of document.querySelectorAll("#foretold g[data-kind]")) {
    group.classList.toggle("faded", kind !== null && group.dataset.kind !== kind);
  }
}

/** Points of the size that is looked at, from left to right. */
function pointsOf(found) {
  const place = found.factors.indexOf(Number(state.factor));
  return found.responses.filter((row) => !state.unplotted.has(row.kind)).map((row) => ({
    row, x: row.predicted * found.factors[place], y: row.measured[place],
  })).filter((point) => isNumber(point.x) && isNumber(point.y)).sort((a, b) => a.x - b.x);
}

function drawScatter(holder, found, data, width) {
  const points = pointsOf(found);
  const height = Math.min(Math.max(width, 300), 560);
  const pad = { top: 26, right: 12, bottom: 44, left: 58 };
  let [low, high] = [Infinity, -Infinity];
  for (const { x, y } of points) [low, high] = [Math.min(low, x, y), Math.max(high, x, y)];
  if (!(high > low)) [low, high] = Number.isFinite(low) ? [low - 1, low + 1] : [-1, 1];
  const margin = (high - low) * 0.05;
  [low, high] = [low - margin, high + margin];
  const across = linear(low, high, pad.left, width - pad.right);
  const up = linear(low, high, height - pad.bottom, pad.top);
  const marks = [ticks(low, high, (width - pad.left) / 80), ticks(low, high, height / 60)];
  const words = marks.map((some) => tickText(some));
  const groups = kindOrder(new Set(points.map(({ row }) => row.kind))).map((kind) =>
    s("g", { "data-kind": kind, ...pointLook(kind) }, points.filter(({ row }) => row.kind === kind)
      .map(({ x, y }) => s("circle", { cx: across(x).toFixed(1), cy: up(y).toFixed(1), r: 3.4 }))));
  const ring = s("g", { class: "ring" });
  const overall = found.agreements.find((a) => a.kind === null && a.factor === Number(state.factor));
  const svg = s("svg", { class: "figure", width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
    tabindex: 0, "aria-label": `Measured against predicted change of ${grouped(points.length)} responses at `
      + `${state.factor} times the step, R² ${number(overall.r2, 4, false)}, slope ${number(overall.slope, 3, false)}. `
      + "Arrow keys read the responses, Enter opens the prompt." },
  marks[0].map((value) => [
    s("line", { class: value === 0 ? "zero" : "grid", x1: across(value), x2: across(value), y1: pad.top, y2: height - pad.bottom }),
    s("text", { class: "tick", x: across(value), y: height - pad.bottom + 18, "text-anchor": "middle" }, words[0](value))]),
  marks[1].map((value) => [
    s("line", { class: value === 0 ? "zero" : "grid", x1: pad.left, x2: width - pad.right, y1: up(value), y2: up(value) }),
    s("text", { class: "tick", x: pad.left - 8, y: up(value) + 4, "text-anchor": "end" }, words[1](value))]),
  s("line", { class: "identity", x1: across(low), y1: up(low), x2: across(high), y2: up(high) }),
  s("text", { class: "axis-title", x: 0, y: 13 }, "measured Δ ln π, nats/response"),
  s("text", { class: "axis-title", x: width - pad.right, y: height - 6, "text-anchor": "end" },
    "predicted Δ ln π, nats/response"),
  s("g", { class: "points" }, groups), ring);
  readPoints(svg, ring, points, ({ x, y }) => [across(x), up(y)], data);
  holder.replaceChildren(h("figure", null, svg));
}

/** The pointer reads the nearest point, the arrow keys one after another. */
function readPoints(svg, ring, points, at, data) {
  let current = -1;
  const show = (i, spoken) => {
    current = i;
    const { row, x, y } = points[i];
    const [left, top] = at(points[i]);
    ring.replaceChildren(s("circle", { cx: left, cy: top, r: 6.5 }));
    const box = svg.getBoundingClientRect();
    showTip({ left: box.left + left, right: box.left + left, width: 0, top: box.top + top - 8,
      bottom: box.top + top + 8 },
    h("p", null, swatch(row.kind), " ", h("b", null, row.kind),
      h("span", { class: "faint" }, ` ${SPLIT_WORDS[row.split]}, ${grouped(row.n_tokens)} tokens`)),
    h("p", null, h("bdi", null, clipped(promptOf(data, row.probe_id), 160))),
    h("p", null, `predicted ${sized(x)}, measured ${sized(y)} nats`));
    if (spoken) {
      announce(`${row.kind} of ${row.probe_id}: predicted ${sized(x)}, measured ${sized(y)} nats`);
    }
  };
  const clear = () => { current = -1; ring.replaceChildren(); hideTip(); };
  const nearest = (event) => {
    const box = svg.getBoundingClientRect();
    let [best, least] = [-1, REACH];
    points.forEach((point, i) => {
      const [left, top] = at(point);
      const far = Math.hypot(event.clientX - box.left - left, event.clientY - box.top - top);
      if (far < least) [best, least] = [i, far];
    });
    return best;
  };
  svg.addEventListener("pointermove", (event) => {
    const i = nearest(event);
    if (i < 0) clear();
    else if (i !== current) show(i, false);
  });
  svg.addEventListener("click", (event) => {
    const i = nearest(event);
    if (i >= 0) toPrompt(data, points[i].row.probe_id);
  });
  svg.addEventListener("pointerleave", clear);
  svg.addEventListener("blur", clear);
  svg.addEventListener("keydown", (event) => {
    const last = points.length - 1;
    const next = { ArrowRight: Math.min(current + 1, last), ArrowLeft: Math.max(current - 1, 0),
      Home: 0, End: last }[event.key];
    if (event.key === "Escape") clear();
    if (event.key === "Enter" && current >= 0) toPrompt(data, points[current].row.probe_id);
    if (next === undefined || last < 0) return;
    event.preventDefault();
    show(next, true);
  });
}

function agreementTable(found) {
  const factor = Number(state.factor);
  const rows = found.agreements.filter((item) => item.factor === factor);
  const of = (kind) => rows.find((item) => item.kind === kind);
  const kinds = kindOrder(new Set(rows.map((item) => item.kind).filter((kind) => kind !== null)));
  const line = (item, head) => h("tr", null, h("th", { scope: "row" }, head),
    [grouped(item.n), number(item.r2, 3, false), number(item.slope, 3, false), percent(item.sign),
      sized(item.rms_error), sized(item.rms_measured)].map((text) => h("td", null, text)));
  return h("div", null, h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Agreement by kind" },
    h("table", { class: "agreement" }, h("caption", null, `How well, at ${factor}× the step`),
      h("thead", null, h("tr", null, ["kind", "n", "R²", "slope", "sign right", "rms error", "rms change"].map(
        (word) => h("th", { scope: "col" }, word)))),
      h("tbody", null, of(null) ? line(of(null), "all") : null,
        kinds.map((kind) => line(of(kind), kind))))),
  h("p", { class: "note" }, "R² of the prediction itself, no line is fitted; within a kind it is low where "
    + "its responses hardly differ. Slope: measured per predicted. Errors and changes in nats/response."));
}

function furthestTable(found, data) {
  const points = pointsOf(found).sort((a, b) => Math.abs(b.y - b.x) - Math.abs(a.y - a.x)).slice(0, 12);
  return tableOf({
    title: `At ${state.factor}× the step, among the kinds that are shown`,
    columns: [column("prompt", "left"), column("kind", "left"), column("predicted"), column("measured"),
      column("measured − predicted")],
    rows: points.map(({ row, x, y }) => [clipped(promptOf(data, row.probe_id), 70), row.kind, sized(x), sized(y), sized(y - x)]),
  });
}

function predictionRecords(found, worded) {
  return named(found.responses.flatMap((row) => found.factors.map((factor, i) => ({
    results: worded.name, probe_id: row.probe_id, kind: row.kind, split: row.split,
    n_tokens: row.n_tokens, logprob: row.logprob, factor, predicted: factor * row.predicted,
    measured: row.measured[i],
  }))));
}
