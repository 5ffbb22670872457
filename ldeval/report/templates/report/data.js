// The data that stands in the page. What is large is packed and unpacked when asked for.

const core = JSON.parse(document.getElementById("core").textContent);
const LOOKS = new Map(core.kinds.map((kind) => [kind.name, kind]));

function lookOf(kind) {
  const look = LOOKS.get(kind);
  if (!look) {
    const region = kind.includes(":") ? "derived" : "other";
    return { dash: "", width: "1.2", line: "var(--muted)", text: "var(--muted)", region };
  }
  return { ...look, line: `var(--k-${look.css})`, text: `var(--t-${look.css})` };
}

function kindOrder(names) {
  const order = core.kinds.map((kind) => kind.name);
  const place = (name) => (order.includes(name) ? order.indexOf(name) : order.length);
  return [...names].sort((a, b) => place(a) - place(b));
}

function runOf() {
  return core.runs[state.run];
}

function splitsOf(report) {
  const have = new Set(report.overall.changes.map((c) => c.split));
  for (const verdict of report.verdicts) have.add(verdict.split);
  return ["trained", "heldout"].filter((split) => have.has(split));
}

function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i += 1) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

async function unpack(name) {
  const element = document.getElementById(`b-${name}`);
  if (!element) throw new Error(`the page holds no block ${name}`);
  const packed = new Blob([bytesOf(element.textContent)]);
  const stream = packed.stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

const kept = new Map();
const KEPT = 24;

/** A block by name, decoded; the latest few are kept. */
function block(name, decode) {
  if (!kept.has(name)) {
    if (kept.size >= KEPT) {
      const old = [...kept.keys()].find((key) => /^(ends|steps)-/.test(key));
      kept.delete(old || kept.keys().next().value);
    }
    kept.set(name, unpack(name).then(decode));
  }
  return kept.get(name);
}

function jsonBlock(name) {
  return block(name, (buffer) => JSON.parse(new TextDecoder().decode(buffer)));
}

function pairsOf(run) {
  return jsonBlock(`pairs-${run}`);
}

/** What first order gave beside a run: one block for each folder of results. */
function dynamicsOf(run, place) {
  return jsonBlock(`dynamics-${run}-${place}`);
}

/** The pair that is looked at: first to last, or one of successive checkpoints. */
async function pairNow() {
  const run = state.run;
  if (state.pair === "overall") return core.runs[run].report.overall;
  return (await pairsOf(run))[Number(state.pair)];
}

/** Draws with the pair that is looked at, and again when it or one of `keys` changes. */
function listenPair(keys, draw) {
  listen(async (key) => {
    if (key !== null && key !== "pair" && !keys.includes(key)) return;
    const { run, pair } = state;
    const found = await pairNow();
    // another may have been asked for while this one was unpacked
    if (run === state.run && pair === state.pair) draw(found);
  });
}

function pairOptions(report) {
  const steps = report.steps;
  const first = [["overall", `first to last: ${steps[0]} to ${steps[steps.length - 1]}`]];
  if (steps.length < 3) return first;
  return first.concat(
    steps.slice(1).map((step, i) => [String(i), `${steps[i]} to ${step}`]));
}

/** What is known of single prompts of a run: names, texts, where their tokens stand. */
async function promptsOf(run) {
  return block(`prompts-${run}`, (buffer) => {
    const data = JSON.parse(new TextDecoder().decode(buffer));
    data.run = run;
    data.offsets = new Uint32Array(data.rows.tokens.length + 1);
    data.rows.tokens.forEach((n, i) => { data.offsets[i + 1] = data.offsets[i] + n; });
    data.rowsOf = data.probes.map(() => []);
    data.rows.probe.forEach((probe, row) => data.rowsOf[probe].push(row));
    data.isWorst = new Set(data.worst);
    return data;
  });
}

function sumsOf(run) {
  return block(`sums-${run}`, (buffer) => new Float32Array(buffer));
}

/** Consecutive columns of a block: `names` wide or narrow places, then 16-bit columns. */
function columnsOf(buffer, wide, names, others, length) {
  const Place = wide ? Uint32Array : Uint16Array;
  const columns = [];
  let at = 0;
  for (let i = 0; i < names + others; i += 1) {
    const Kind = i < names ? Place : Uint16Array;
    columns.push(new Kind(buffer, at, length));
    at += length * Kind.BYTES_PER_ELEMENT;
  }
  return columns;
}

function nats(value) {
  if (value === core.missing) return NaN;
  return -value / core.steps_per_nat;
}

function pieceOf(data, place) {
  if (place >= data.ids.length) return null;
  const text = data.pieces ? data.pieces[place] : null;
  return { id: data.ids[place], text };
}

/**
 * The tokens of a prompt between two checkpoints, one entry a response:
 * {row, kind, label, before, after}, the last two with ln p and the argmax.
 */
async function tokensOf(data, probe, before, after, last) {
  const rows = data.rowsOf[probe];
  const ends = await endsOf(data, rows[0]);
  const every = !(before === 0 && after === last);
  const steps = every ? await stepsOf(data, probe) : null;
  return rows.map((row) => {
    const count = data.rows.tokens[row];
    const at = data.offsets[row] - ends.first;
    const inProbe = data.offsets[row] - data.offsets[rows[0]];
    const side = (step, end) => {
      const take = (columns, start) => columns.map((c) => c.subarray(start, start + count));
      const [argmax, own, top] = steps
        ? take([steps.argmax, steps.own, steps.top], step * steps.length + inProbe)
        : take([ends.argmax[end], ends.own[end], ends.top[end]], at);
      return { argmax, own, top };
    };
    return {
      row,
      kind: data.kinds[data.rows.kind[row]],
      label: ends.label.subarray(at, at + count),
      before: side(before, 0),
      after: side(after, 1),
    };
  });
}

async function endsOf(data, row) {
  const place = data.groups.findIndex(([start, stop]) => row >= start && row < stop);
  const [start, stop] = data.groups[place];
  const first = data.offsets[start];
  const length = data.offsets[stop] - first;
  return block(`ends-${data.run}-${place}`, (buffer) => {
    const c = columnsOf(buffer, data.wide, 3, 4, length);
    return { first, label: c[0], argmax: [c[1], c[2]], own: [c[3], c[4]], top: [c[5], c[6]] };
  });
}

async function stepsOf(data, probe) {
  const rows = data.rowsOf[probe];
  const length = data.offsets[rows[rows.length - 1] + 1] - data.offsets[rows[0]];
  const steps = core.runs[data.run].report.steps.length;
  return block(`steps-${data.run}-${probe}`, (buffer) => {
    const c = columnsOf(buffer, data.wide, 1, 2, length * steps);
    return { length, argmax: c[0], own: c[1], top: c[2] };
  });
}
