// Every number as a file: JSON as it is in the report, CSV with an estimate's parts in
// columns of their own (the columns of docs/report_schema.md).

const ESTIMATE_PARTS = ["value", "low", "high", "se", "level", "n", "clusters", "reason"];
function isEstimate(value) {
  return value !== null && typeof value === "object" && "clusters" in value && "level" in value;
}

/** A record as flat columns. */
function cells(record) {
  const row = {};
  for (const [key, value] of Object.entries(record)) {
    if (isEstimate(value)) {
      for (const part of ESTIMATE_PARTS) {
        row[part === "value" ? key : `${key}_${part}`] = value[part];
      }
    } else if (key === "quantiles") {
      ["q05", "q25", "q50", "q75", "q95"].forEach((name, i) => { row[name] = value[i]; });
    } else {
      row[key] = value;
    }
  }
  return row;
}

/** A text with apostrophes before what a spreadsheet could run, as escape.for_csv has. */
function guardFormulas(text) {
  const signed = ([opening = ""]) => /^[=+\-@]/.test(opening.normalize("NFKC"));
  const guarded = text.split(/([;\t\r\n])/).map((part, i) =>
    i > 0 && i % 2 === 0 && signed(part.replace(/^["\s\p{C}]+/u, "")) ? "'" + part : part);
  const opens = signed(text.replace(/^[\s\p{C}]+/u, "")) || /^[\t\r\n]/.test(text);
  return (opens ? "'" : "") + guarded.join("");
}

function csvCell(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "string") return String(value);
  const safe = guardFormulas(value);
  return /[",\r\n]/.test(safe) ? '"' + safe.replaceAll('"', '""') + '"' : safe;
}

function toCsv(rows) {
  if (!rows.length) return "";
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const lines = rows.map((row) => names.map((name) => csvCell(row[name])).join(","));
  return [names.map(csvCell).join(","), ...lines].join("\n") + "\n";
}

function save(name, text, type) {
  const link = h("a", { download: name });
  link.href = URL.createObjectURL(new Blob([text], { type }));
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  announce(`${name} was written`);
}

const DRAWN = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity",
  "stroke-dasharray", "stroke-linejoin", "opacity", "font-family", "font-size", "font-weight",
  "text-anchor"];

/** A figure on its own: what the style sheet says is written into its elements. */
function standalone(svg) {
  const copy = svg.cloneNode(true);
  const [from, to] = [svg, copy].map((root) => [root, ...root.querySelectorAll("*")]);
  from.forEach((element, i) => {
    const style = getComputedStyle(element);
    to[i].removeAttribute("class");
    for (const name of DRAWN) to[i].setAttribute(name, style.getPropertyValue(name));
  });
  for (const name of ["tabindex", "role"]) copy.removeAttribute(name);
  const paper = s("rect", { width: "100%", height: "100%" });
  paper.setAttribute("fill", getComputedStyle(document.body).backgroundColor);
  copy.prepend(paper);
  return new XMLSerializer().serializeToString(copy);
}

/** The same as pixels, three for each of the page's, so that it can be printed. */
async function pixels(svg) {
  const address = URL.createObjectURL(new Blob([standalone(svg)], { type: "image/svg+xml" }));
  const image = new Image();
  image.src = address;
  await image.decode();
  const canvas = h("canvas");
  const { width, height } = svg.getBoundingClientRect();
  [canvas.width, canvas.height] = [width * 3, height * 3];
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  URL.revokeObjectURL(address);
  return new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
}

/** Buttons that save the figures of a section as they are drawn now. */
function pictures(id) {
  const button = (format, make, type) => h("button", {
    type: "button", class: "quiet", "data-picture": `${id}.${format}`,
    "aria-label": `Save the figure of ${id} as ${format.toUpperCase()}`,
    onclick: async () => {
      for (const svg of document.querySelectorAll(`#${id} svg.figure`)) {
        const split = svg.dataset.split ? `_${svg.dataset.split}` : "";
        save(fileName(`${id}${split}.${format}`), await make(svg), type);
      }
    },
  }, `\u2193 ${format.toUpperCase()}`);
  return h("span", { class: "downloads" }, button("svg", standalone, "image/svg+xml"),
    button("png", pixels, "image/png"));
}

function fileName(text) {
  const run = runOf().report.run.replace(/[^\w.-]+/g, "_").slice(0, 60) || "run";
  return `${run}_${text}`;
}

/** Buttons that write records, made when pressed, as CSV and JSON. */
function downloads(name, records) {
  const button = (format, make) => h("button", {
    type: "button", class: "quiet", "data-download": `${name}.${format}`,
    "aria-label": `Download ${name.replaceAll("_", " ")} as ${format.toUpperCase()}`,
    onclick: async () => save(fileName(`${name}.${format}`), make(await records()),
      format === "csv" ? "text/csv" : "application/json"),
  }, `\u2193 ${format.toUpperCase()}`);
  return h("span", { class: "downloads" },
    button("csv", (found) => toCsv(found.map(cells))),
    button("json", (found) => JSON.stringify(found, null, 1) + "\n"));
}

/** The buttons of a section, beside its heading. */
function saves(...buttons) {
  return h("div", { class: "saves" }, buttons);
}

function named(records) {
  const run = runOf().report.run;
  return records.map((record) => ({ run, ...record }));
}

/** Records of every pair, as the CSV files of the report have them. */
async function byPair(of) {
  const report = runOf().report;
  const pairs = await pairsOf(state.run);
  const scoped = [["overall", report.overall], ...pairs.map((pair) => ["successive", pair])];
  return named(scoped.flatMap(([scope, pair]) => pair[of].map(
    (item) => ({ scope, before: pair.before, after: pair.after, ...item }))));
}

async function wholeReport() {
  const runs = [];
  for (let i = 0; i < core.runs.length; i += 1) {
    const run = { ...core.runs[i].report, pairs: await pairsOf(i) };
    const places = core.runs[i].dynamics.map((_, place) => dynamicsOf(i, place));
    if (places.length) run.dynamics = await Promise.all(places);
    runs.push(run);
  }
  return { schema_version: core.schema_version, title: core.title, runs };
}
