// Formats numbers, names them, and ranks them among those of all latents.
const MISSING = "\u2013";
const MINUS = "\u2212";

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const withMinus = (text) => text.replace(/-/g, MINUS);

function decimal(value, digits = 2) {
  if (!isNumber(value)) return MISSING;
  const text = value.toFixed(digits);
  return withMinus(Number(text) === 0 ? text.replace("-", "") : text);
}

// For numbers of any size.
function significant(value, digits = 3) {
  if (!isNumber(value)) return MISSING;
  const isPlain = value === 0 || (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e5);
  if (!isPlain) return withMinus(value.toExponential(1));
  const nBeforePoint = Math.floor(Math.log10(Math.abs(value) || 1)) + 1;
  return withMinus(value.toFixed(Math.max(0, digits - nBeforePoint)));
}

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const count = (value) => (isNumber(value) ? WHOLE.format(Math.round(value)) : MISSING);

function percent(share) {
  if (!isNumber(share)) return MISSING;
  const digits = share === 0 || share >= 0.1 ? 0 : share >= 0.001 ? 1 : 3;
  return `${(100 * share).toFixed(digits)} %`;
}

// The share of live latents below this one's value, ties counting half.
function percentile(crosscoder, name, latent) {
  const value = crosscoder.value(name, latent);
  if (!Number.isFinite(value) || crosscoder.isDead(latent)) return NaN;
  if (!crosscoder.sorted.has(name)) {
    const live = crosscoder.column(name).filter((number, j) => Number.isFinite(number) && !crosscoder.isDead(j));
    crosscoder.sorted.set(name, live.sort());
  }
  const sorted = crosscoder.sorted.get(name);
  return (firstAbove(sorted, value, false) + firstAbove(sorted, value, true)) / 2 / sorted.length;
}

// Counts the ascending numbers below the value or, with `orEqual`, not above it.
function firstAbove(sorted, value, orEqual) {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value || (orEqual && sorted[middle] === value)) low = middle + 1;
    else high = middle;
  }
  return low;
}

const VERDICTS = [
  "chat_specific", "base_specific", "complete_shrinkage", "latent_decoupling", "rotated", "undetermined",
  "shared", "other", "rare", "negligible", "dead", "undefined",
];

// Explains the verdict on a latent that writes into `model` and hardly into `otherModel`.
function meaning(verdict, model, otherModel) {
  return {
    chat_specific: "Genuine: as far as this analysis can tell, only the chat model has it.",
    base_specific: "Genuine: as far as this analysis can tell, only the base model has it.",
    complete_shrinkage: `An artifact: the ${otherModel} model has it too, but its decoder norm there was shrunk away.`,
    latent_decoupling: `An artifact: other latents write it into the ${otherModel} model.`,
    rotated: `Not only the ${model} model's: the ${otherModel} model has it along another direction.`,
    undetermined: "One-sided by its norms, but the data do not decide whether it is genuine.",
    shared: "Writes into both models equally.",
    other: "Writes into both models, more into one of them.",
    rare: "Active on too few tokens to be judged.",
    negligible: "Writes almost nothing: at its strongest less than 1/1000 of the median latent.",
    dead: "Never active on these tokens.",
  }[verdict];
}

const spaced = (name) => name.replace(/_/g, " ");
