// How numbers read: the same rules as ldeval/report/rounding.py.

const MINUS = "\u2212";
const NONE = "\u2013";
const SPLIT_WORDS = { trained: "trained", heldout: "held-out" };
const STATE_WORDS = {
  holds: "holds", does_not_hold: "does not hold", undecided: "undecided",
};

function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

function placesOf(estimate) {
  if (!estimate || !isNumber(estimate.value)) return 1;
  const ends = isNumber(estimate.low) && isNumber(estimate.high);
  const half = ends
    ? Math.max(estimate.high - estimate.value, estimate.value - estimate.low) : 0;
  const scale = half > 0 ? half / 2 : Math.abs(estimate.value) / 100;
  if (!(scale > 0)) return 1;
  return Math.min(Math.max(-Math.floor(Math.log10(scale)), 1), 6);
}

function number(value, digits = 2, signed = true) {
  if (!isNumber(value)) return NONE;
  const size = Math.abs(value).toLocaleString("en-US", {
    minimumFractionDigits: digits, maximumFractionDigits: digits,
  });
  if (value < 0) return MINUS + size;
  return signed && value > 0 ? "+" + size : size;
}

function unsigned(unit) {
  return unit === "ratio";
}

function unitOf(estimate) {
  return ["", "1", "dimensionless", "ratio"].includes(estimate.unit) ? "" : estimate.unit;
}

function interval(estimate, digits = placesOf(estimate)) {
  if (!isNumber(estimate.low) || !isNumber(estimate.high)) return NONE;
  const signed = !unsigned(estimate.unit);
  return `${number(estimate.low, digits, signed)} to ${number(estimate.high, digits, signed)}`;
}

function short(estimate, digits = placesOf(estimate)) {
  if (!estimate) return NONE;
  return number(estimate.value, digits, !unsigned(estimate.unit));
}

function quote(estimate) {
  if (!estimate) return "not known";
  const reason = estimate.reason || "no reason was given";
  if (!isNumber(estimate.value)) return `undefined (${reason})`;
  const unit = unitOf(estimate);
  const value = short(estimate) + (unit ? ` ${unit}` : "");
  if (!isNumber(estimate.low) || !isNumber(estimate.high)) {
    return `${value} (no interval: ${reason})`;
  }
  const level = Math.round(estimate.level * 1000) / 10;
  return `${value} (${level}% interval ${interval(estimate)})`;
}

/** A number of unknown size, as `significant` in dynamics_tables.py writes it. */
function sized(value, digits = 3) {
  if (!isNumber(value)) return NONE;
  if (value === 0) return "0";
  const size = Math.floor(Math.log10(Math.abs(value)));
  if (size >= -4 && size < 5) return number(value, Math.max(0, digits - 1 - size), false);
  return value.toExponential(digits - 1).replace(/-/g, MINUS);
}

function percent(share) {
  if (!isNumber(share)) return NONE;
  if (share > 0 && share < 0.01) return "<1%";
  if (share > 0.99 && share < 1) return ">99%";
  return `${Math.round(share * 100)}%`.replace("-", MINUS);
}

function chance(value) {
  if (!isNumber(value)) return NONE;
  return value < 0.001 ? "<0.001" : value.toFixed(3);
}

function grouped(value) {
  return value.toLocaleString("en-US");
}
