// What figures share: scales, ticks, tooltips, redrawing at another width.

function linear(low, high, from, to) {
  const span = high - low || 1;
  return (value) => from + ((to - from) * (value - low)) / span;
}

function ticks(low, high, about) {
  const rough = (high - low) / Math.max(about, 1);
  if (!(rough > 0)) return [low];
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((f) => f * size).find((f) => f >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) {
    found.push(Number((i * step).toPrecision(12)));
  }
  return found;
}

function tickText(values) {
  const gap = values.length > 1 ? Math.abs(values[1] - values[0]) : Math.abs(values[0]) || 1;
  const digits = Math.min(Math.max(0, -Math.floor(Math.log10(gap) + 1e-9)), 6);
  return (value) => number(value === 0 ? 0 : value, digits, false);
}

/** Calls `draw(width)` now, on every change of width, and on what `listen` brings. */
function drawn(holder, draw, keys) {
  let width = 0;
  const redraw = () => { if (width) draw(width); };
  new ResizeObserver(([entry]) => {
    const now = Math.floor(entry.contentRect.width);
    if (now === width) return;
    width = now;
    redraw();
  }).observe(holder);
  listen((key) => { if (key !== null && keys.includes(key)) redraw(); });
  return redraw;
}

// --------------------------------------------------------------------------- tooltips

const tip = h("div", { class: "tip", id: "tip", role: "tooltip", hidden: true });

/** Shows a tooltip beside a box (in window coordinates), inside the window. */
function showTip(box, ...content) {
  tip.replaceChildren(...content.flat(Infinity).filter(Boolean));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const gap = 10;
  let left = box.left + box.width / 2 - width / 2;
  let top = box.top - height - gap;
  if (box.beside) {
    left = box.right + gap + width > innerWidth ? box.left - width - gap : box.right + gap;
    top = box.top - height / 3;
  } else if (top < gap) {
    top = box.bottom + gap;
  }
  left = Math.min(Math.max(left, 8), innerWidth - width - 8);
  top = Math.min(Math.max(top, 8), innerHeight - height - 8);
  tip.style.left = `${left + scrollX}px`;
  tip.style.top = `${top + scrollY}px`;
}

function hideTip() {
  tip.hidden = true;
}

/** A tooltip for an element under the pointer or with the focus. */
function withTip(element, content) {
  const show = () => showTip(element.getBoundingClientRect(), content());
  element.addEventListener("pointerenter", show);
  element.addEventListener("focus", show);
  element.addEventListener("pointerleave", hideTip);
  element.addEventListener("blur", hideTip);
  return element;
}

/** Arrow keys move the one tab stop among elements laid out in rows. */
function roving(holder, rows) {
  const flat = rows.flat();
  if (!flat.length) return;
  for (const item of flat) item.tabIndex = -1;
  flat[0].tabIndex = 0;
  const place = new Map();
  rows.forEach((row, y) => row.forEach((item, x) => place.set(item, [y, x])));
  holder.addEventListener("focusin", (event) => {
    if (!place.has(event.target)) return;
    for (const item of flat) if (item.tabIndex === 0) item.tabIndex = -1;
    event.target.tabIndex = 0;
  });
  holder.addEventListener("keydown", (event) => {
    const at = place.get(event.target);
    if (!at) return;
    const [y, x] = at;
    const i = flat.indexOf(event.target);
    const pick = (row) => row && row[Math.min(x, row.length - 1)];
    const next = {
      ArrowRight: flat[i + 1], ArrowLeft: flat[i - 1],
      ArrowDown: pick(rows[y + 1]), ArrowUp: pick(rows[y - 1]),
      Home: rows[y][0], End: rows[y][rows[y].length - 1],
    }[event.key];
    if (event.key === "Escape") hideTip();
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
}
