// Tables: those that come worded, and those made from rows here.

function tableOf(record, attributes = {}) {
  const left = record.columns.map((column) => column.align === "left");
  const cell = (tag, text, i, more = {}) =>
    h(tag, { class: left[i] ? "left" : null, ...more }, text);
  return h("div", { class: "scroll", tabindex: "0", role: "region",
    "aria-label": record.title || "table" },
  h("table", attributes,
    record.title ? h("caption", null, record.title) : null,
    h("thead", null, h("tr", null, record.columns.map(
      (column, i) => cell("th", column.heading, i, { scope: "col" })))),
    h("tbody", null, record.rows.map((row) => h("tr", null, row.map((text, i) => (
      i ? cell("td", text, i) : cell("th", text, i, { scope: "row" }))))))),
  record.caption ? h("p", { class: "note" }, record.caption) : null,
  (record.notes || []).map((note) => h("p", { class: "note" }, note)));
}

function column(heading, align = "right") {
  return { heading, align };
}

function badge(truth) {
  return h("span", { class: `badge ${truth}` },
    h("span", { class: "sign", "aria-hidden": "true" }), STATE_WORDS[truth] || truth);
}

/** An interval on a line with zero in it; the number stands beside it as text. */
function whisker(estimate, low, high, width = 150) {
  const at = (value) => 4 + ((width - 8) * (value - low)) / (high - low || 1);
  const parts = [];
  if (low <= 0 && high >= 0) {
    parts.push(s("line", { class: "zero", x1: at(0), x2: at(0), y1: 1, y2: 17 }));
  }
  if (isNumber(estimate.low) && isNumber(estimate.high)) {
    parts.push(s("line", {
      class: "whisker", x1: at(Math.max(estimate.low, low)),
      x2: at(Math.min(estimate.high, high)), y1: 9, y2: 9,
    }));
  }
  if (isNumber(estimate.value)) parts.push(s("circle", { cx: at(estimate.value), cy: 9, r: 3.5 }));
  return s("svg", { class: "mini", width, height: 18, viewBox: `0 0 ${width} 18`, "aria-hidden": "true" }, parts);
}

/** Estimates by name, drawn on scales shared by those of one unit. */
function estimateTable(entries, caption) {
  const ranges = new Map();
  for (const [, estimate] of entries) {
    const range = ranges.get(estimate.unit) || [0, 0];
    for (const end of [estimate.value, estimate.low, estimate.high]) {
      if (isNumber(end)) {
        range[0] = Math.min(range[0], end);
        range[1] = Math.max(range[1], end);
      }
    }
    ranges.set(estimate.unit, range);
  }
  return h("div", { class: "scroll" }, h("table", { class: "estimates" },
    caption ? h("caption", null, caption) : null,
    h("tbody", null, entries.map(([name, estimate]) => h("tr", null,
      h("th", { scope: "row" }, name.replaceAll("_", " ")),
      h("td", null, isNumber(estimate.value)
        ? whisker(estimate, ...ranges.get(estimate.unit)) : null),
      isNumber(estimate.value) && isNumber(estimate.low) ? [
        h("td", null, short(estimate)),
        h("td", { class: "left between" }, `${interval(estimate)} `
          + `(${Math.round(estimate.level * 100)}%) ${unitOf(estimate)}`),
      ] : h("td", { class: "left", colspan: 2 }, quote(estimate)))))));
}
