// A response token by token: its change as colour, the model's own choice beside it.

const VIEWS = [["change", "change"], ["before", "before"], ["after", "after"]];
const STRONGEST = 3;
const RAREST = 10;
state.tokens = "change";
state.choices = "off";

/** Text of a run of tokens. A character that several tokens share stands at the first. */
function spellings(data, places) {
  const pieces = Array.from(places, (place) => pieceOf(data, place));
  const texts = pieces.map((piece) => {
    if (!piece) return NONE;
    return piece.text === null ? `#${piece.id}` : piece.text;
  });
  for (let i = 0; i < texts.length; i += 1) {
    if (!/[\udc80-\udcff]/.test(texts[i].replace(/[\ud800-\udbff][\udc00-\udfff]/g, ""))) continue;
    for (let j = i + 1; j <= Math.min(i + 4, texts.length); j += 1) {
      const whole = wholeText(texts.slice(i, j).join(""));
      if (whole !== null) {
        texts[i] = whole;
        texts.fill("\u2026", i + 1, j);
        break;
      }
    }
  }
  return texts;
}

/** Text in which lone surrogates stand for bytes, decoded; null where they do not fit. */
function wholeText(text) {
  const bytes = [];
  for (const character of text) {
    const code = character.codePointAt(0);
    if (code >= 0xdc80 && code <= 0xdcff) bytes.push(code - 0xdc00);
    else bytes.push(...new TextEncoder().encode(character));
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(bytes));
  } catch {
    return null;
  }
}

function likelihood(logprob) {
  if (Number.isNaN(logprob)) return "not known";
  const p = Math.exp(logprob);
  const floor = core.lowest / core.steps_per_nat;
  if (logprob <= -floor) return `below e^${MINUS}${Math.floor(floor)}`;
  return p >= 0.001 ? `${(100 * p).toFixed(1)}%` : p.toExponential(1).replace("-", MINUS);
}

/** The responses of a prompt, each a line of tokens. */
function tokenLines(data, entries, steps) {
  const rows = [];
  const lines = entries.map((entry) => {
    const texts = spellings(data, entry.label);
    const tokens = texts.map((text, i) => tokenOf(data, entry, text, i, texts.length, steps));
    rows.push(tokens);
    return h("div", { class: "response", "data-kind": entry.kind },
      h("div", { class: "response-name" }, swatch(entry.kind), entry.kind,
        h("span", { class: "faint" }, ` ${texts.length} tokens`)),
      h("div", { class: "tokens", role: "group", dir: "auto",
        "aria-label": `${entry.kind}, token by token; arrow keys move` }, tokens));
  });
  const holder = h("div", { class: "responses" }, lines);
  roving(holder, rows.filter((row) => row.length));
  const restyle = () => rows.flat().forEach((token) => paint(token));
  listenHere(holder, ["tokens", "choices"], () => {
    holder.classList.toggle("with-choices", state.choices === "on" && state.tokens !== "change");
    restyle();
  });
  return holder;
}

const FACTS = new WeakMap();

function tokenOf(data, entry, text, i, count, steps) {
  const own = [nats(entry.before.own[i]), nats(entry.after.own[i])];
  const top = [nats(entry.before.top[i]), nats(entry.after.top[i])];
  const places = [entry.before.argmax[i], entry.after.argmax[i]];
  const choices = places.map((place) => spellings(data, [place])[0]);
  const label = entry.label[i];
  const facts = { own, top, choices, same: places.map((place) => place === label), text };
  const delta = own[1] - own[0];
  const choiceWords = (n) => (Number.isNaN(top[n]) ? "top choice not known"
    : `top choice ${facts.same[n] ? "the same" : `"${plainText(choices[n])}"`} ${likelihood(top[n])}`);
  const element = h("span", {
    class: "token", role: "img", tabindex: -1, "data-at": String(i),
    "aria-label": `token ${i + 1} of ${count}, "${plainText(text)}": ln p ${number(own[0])} to `
      + `${number(own[1])}, change ${number(delta)}; before, ${choiceWords(0)}; after, ${choiceWords(1)}`,
  }, h("bdi", { class: "text" }, shown(text)), text.includes("\n") ? h("br") : null);
  FACTS.set(element, facts);
  return withTip(element, () => tokenTip(facts, i, count, steps, delta));
}

function tokenTip(facts, i, count, steps, delta) {
  const line = (n) => h("tr", null, h("th", { scope: "row" }, `step ${grouped(steps[n])}`),
    h("td", null, likelihood(facts.own[n])), h("td", null, number(facts.own[n], 2)),
    h("td", { class: "left" }, Number.isNaN(facts.top[n]) ? "not known" : [
      h("bdi", { class: "choice-text" }, facts.choices[n]), ` ${likelihood(facts.top[n])}`,
      facts.same[n] ? " (this token)" : ""]));
  return [h("p", null, h("bdi", { class: "choice-text" }, facts.text),
    h("span", { class: "faint" }, ` token ${i + 1} of ${count}`)),
  h("table", null, h("thead", null, h("tr", null, h("td"), h("th", { scope: "col" }, "p"),
    h("th", { scope: "col" }, "ln p"), h("th", { scope: "col", class: "left" }, "top choice"))),
  h("tbody", null, line(0), line(1))),
  h("p", null, "change ", h("b", null, `${number(delta, 3)} nats`))];
}

function paint(element) {
  const facts = FACTS.get(element);
  const side = state.tokens === "before" ? 0 : 1;
  const value = state.tokens === "change" ? facts.own[1] - facts.own[0] : facts.own[side];
  element.classList.remove("less", "more", "rare", "unknown");
  const name = Number.isNaN(value) ? "unknown"
    : state.tokens !== "change" ? "rare" : value < 0 ? "less" : "more";
  element.classList.add(name);
  const share = state.tokens === "change"
    ? Math.sqrt(Math.min(Math.abs(value) / STRONGEST, 1)) : Math.min(-value / RAREST, 1);
  element.style.setProperty("--a", `${Math.round((share || 0) * 64)}%`);
  element.querySelector(".choice-text")?.remove();
  if (state.choices === "on" && state.tokens !== "change" && !facts.same[side]) {
    element.append(h("bdi", { class: "choice-text", "aria-hidden": "true" }, facts.choices[side]));
  }
}

function tokenScale() {
  const holder = h("p", { class: "scale" });
  listenHere(holder, ["tokens"], () => {
    const change_ = state.tokens === "change";
    const values = change_ ? [-3, -1, -0.3, 0, 0.3, 1, 3] : [0, -2, -4, -6, -8, -10];
    holder.replaceChildren(h("span", { class: "plain" }, change_ ? "Δ ln p" : "ln p"),
      ...values.map((value) => {
        const cell = h("span", { class: change_ ? (value < 0 ? "less" : "more") : "rare" },
          number(value, value % 1 ? 1 : 0));
        const share = change_ ? Math.sqrt(Math.abs(value) / STRONGEST) : -value / RAREST;
        cell.style.setProperty("--a", `${Math.round(share * 64)}%`);
        return cell;
      }));
  });
  return holder;
}

/** One row a token, for a file and for the table below the view. */
function tokenRecords(data, probe, entries, steps) {
  return named(entries.flatMap((entry) => {
    const texts = spellings(data, entry.label);
    return texts.map((text, i) => ({
      probe_id: data.probes[probe], kind: entry.kind, position: i,
      token_id: pieceOf(data, entry.label[i])?.id, token: text,
      before: steps[0], after: steps[1],
      logprob_before: rounded(entry.before.own[i]), logprob_after: rounded(entry.after.own[i]),
      argmax_before: pieceOf(data, entry.before.argmax[i])?.id,
      argmax_after: pieceOf(data, entry.after.argmax[i])?.id,
      argmax_logprob_before: rounded(entry.before.top[i]),
      argmax_logprob_after: rounded(entry.after.top[i]),
    }));
  }));
}

function rounded(value) {
  const found = nats(value);
  return Number.isNaN(found) ? null : Number(found.toFixed(4));
}

function tokenTable(data, entry, steps) {
  const texts = spellings(data, entry.label);
  return tableOf({
    title: `${entry.kind}, steps ${steps[0]} and ${steps[1]}`,
    columns: [column("position"), column("token", "left"), column("ln p before"),
      column("ln p after"), column("Δ"), column("top choice before", "left"),
      column("top choice after", "left")],
    rows: texts.map((text, i) => {
      const own = [nats(entry.before.own[i]), nats(entry.after.own[i])];
      const choice_ = (side) => {
        const top = nats(side.top[i]);
        return Number.isNaN(top) ? NONE
          : `${spellings(data, [side.argmax[i]])[0]}  ${likelihood(top)}`;
      };
      return [String(i + 1), text, number(own[0]), number(own[1]), number(own[1] - own[0]),
        choice_(entry.before), choice_(entry.after)];
    }),
  });
}
