// Elements and text. Text is only ever put into text nodes and attributes, and what has
// no glyph of its own, or could reorder what stands around it, is shown by a name.

const UNSEEN = /[\p{C}\p{Zl}\p{Zp}]/u;
const UNSEEN_ALL = /[\p{C}\p{Zl}\p{Zp}]/gu;
const SVG = "http://www.w3.org/2000/svg";

function nameOf(character) {
  const code = character.codePointAt(0);
  if (character === "\n") return "\\n";
  if (character === "\r") return "\\r";
  if (character === "\t") return "\\t";
  // a byte that is a part of a character, as Python's surrogateescape writes it
  if (code >= 0xdc80 && code <= 0xdcff) return "\\x" + (code - 0xdc00).toString(16);
  if (code < 0x100) return "\\x" + code.toString(16).padStart(2, "0");
  if (code < 0x10000) return "\\u" + code.toString(16).padStart(4, "0");
  return "\\U" + code.toString(16).padStart(8, "0");
}

/** Text for places that hold no elements: labels, options, SVG. */
function plainText(text) {
  return String(text).replace(UNSEEN_ALL, nameOf);
}

/** Text as nodes, the unseen as marks; `keep` lets line breaks and tabs stand. */
function shown(text, keep = false) {
  const whole = String(text);
  if (!UNSEEN.test(whole)) return [document.createTextNode(whole)];
  const nodes = [];
  let seen = "";
  for (const character of whole) {
    if (!UNSEEN.test(character) || (keep && (character === "\n" || character === "\t"))) {
      seen += character;
      continue;
    }
    if (seen) nodes.push(document.createTextNode(seen));
    seen = "";
    const mark = document.createElement("span");
    mark.className = "mark";
    mark.textContent = nameOf(character);
    nodes.push(mark);
  }
  if (seen) nodes.push(document.createTextNode(seen));
  return nodes;
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : plainText(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    if (child instanceof Node) element.append(child);
    else element.append(...shown(child));
  }
  return element;
}

function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function announce(text) {
  document.getElementById("status").textContent = plainText(text);
}

// ------------------------------------------------------------------------------ state

/** What is looked at. Views that show the same thing follow one another. */
const state = {
  run: 0,
  split: "trained",
  pair: "overall",
  measure: "per_token",
  shows: "change",
  axis: "linear",
  bands: "on",
  hidden: new Set(),
};
let listeners = [];

function listen(view) {
  listeners.push(view);
  view(null);
}

/** A view that stops listening once its element has left the page. */
function listenHere(element, keys, view) {
  const wrapped = (key) => {
    if (key !== null && !element.isConnected) {
      listeners = listeners.filter((item) => item !== wrapped);
      return;
    }
    if (key === null || keys.includes(key)) view();
  };
  listen(wrapped);
}

function change(key, value) {
  state[key] = value;
  for (const view of listeners) view(key);
}

// --------------------------------------------------------------------------- controls

let serial = 0;

/** One of a few: a group of radio buttons. Options are [value, label] pairs. */
function choice(label, key, options) {
  const name = `choice-${++serial}`;
  const inputs = options.map(([value, text]) => {
    const input = h("input", {
      type: "radio", name, value, id: `${name}-${value}`, onchange: () => change(key, value),
    });
    return [input, h("label", { for: `${name}-${value}` }, text)];
  });
  const element = h("fieldset", { class: "choice", "data-control": key },
    h("legend", null, label), h("div", null, inputs));
  listenHere(element, [key], () => {
    // what another view alone offers (both splits at once) reads as the first here
    const known = options.some(([value]) => value === state[key]);
    for (const [input] of inputs) {
      input.checked = input.value === (known ? state[key] : options[0][0]);
    }
  });
  return element;
}

/** One of many: a select. */
function picker(label, key, options) {
  const select = h("select", { "data-control": key, onchange: () => change(key, select.value) },
    options.map(([value, text]) => h("option", { value }, plainText(text))));
  listenHere(select, [key], () => { select.value = state[key]; });
  return h("label", { class: "picker" }, h("span", null, label), select);
}

function controls(...items) {
  return h("div", { class: "controls" }, items);
}

function section(id, title, lead, ...children) {
  return h("section", { id, "aria-labelledby": `${id}-title` },
    h("h2", { id: `${id}-title` }, title),
    lead ? h("p", { class: "lead" }, lead) : null, children);
}

function fold(summary, build, attributes = {}) {
  const inside = h("div", { class: "inside" });
  const details = h("details", attributes, h("summary", null, summary), inside);
  let built = false;
  const make = () => {
    if (!built) inside.append(...[build()].flat(Infinity).filter(Boolean));
    built = true;
  };
  // "toggle" comes late, and from keys and printing too: by hand it is filled at once
  details.firstChild.addEventListener("click", make);
  details.addEventListener("toggle", () => { if (details.open) make(); });
  details.make = make;
  return details;
}

function swatch(kind) {
  const look = lookOf(kind);
  return s("svg", { class: "swatch", width: 26, height: 10, "aria-hidden": "true" },
    s("line", {
      x1: 1, x2: 25, y1: 5, y2: 5, class: "line", "stroke-width": look.width,
      "stroke-dasharray": look.dash, stroke: look.line,
    }));
}
