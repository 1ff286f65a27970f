// What is looked at, as the address says it: "#c=l1&verdict=rotated&delta_norm=0.9..1&q=dog&sort=-n_active&latent=12".
const DEFAULT_SORT = "-delta_norm";
// Parts that name categories of the column of the same name.
const CHOICES = ["label", "verdict", "use"];
const home = () => ({
  c: about.crosscoders[0].name, latent: null, q: "", label: [], verdict: [], use: [], ranges: {}, all: false,
  sort: DEFAULT_SORT, unknown: [],
});

let state = home();

function hashOf(wanted) {
  const parts = new URLSearchParams();
  if (wanted.c !== about.crosscoders[0].name) parts.set("c", wanted.c);
  if (wanted.q) parts.set("q", wanted.q);
  for (const name of CHOICES) if (wanted[name].length) parts.set(name, wanted[name].join(","));
  for (const [name, [low, high]] of Object.entries(wanted.ranges)) parts.set(name, `${low ?? ""}..${high ?? ""}`);
  if (wanted.all) parts.set("all", "1");
  if (wanted.sort !== DEFAULT_SORT) parts.set("sort", wanted.sort);
  if (wanted.latent !== null) parts.set("latent", wanted.latent);
  return parts.toString().replaceAll("%2C", ",");
}

// Whatever in the address makes no sense is left out, and `unknown` says so, in sentences for the page.
function stateOf(hash) {
  const parsed = home();
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  const meta = about.crosscoders.find(({ name }) => name === parts.get("c")) ?? about.crosscoders[0];
  parsed.c = meta.name;
  for (const [name, value] of parts) {
    const range = rangeOf(value);
    if (name === "q") parsed.q = value;
    else if (CHOICES.includes(name)) parsed[name] = value.split(",").filter(Boolean);
    else if (name === "all") parsed.all = value === "1";
    else if (name === "sort" && meta.columns.concat("latent").includes(value.replace(/^-/, ""))) parsed.sort = value;
    else if (name === "latent" && /^\d+$/.test(value) && Number(value) < meta.n) parsed.latent = Number(value);
    else if (meta.columns.includes(name) && range !== null) parsed.ranges[name] = range;
    else if (name !== "c" || value !== meta.name) parsed.unknown.push(unknownPart(meta, name, value));
  }
  for (const name of CHOICES) {
    const known = (meta.categories[name] ?? []).concat(VERDICTS);
    const others = parsed[name].filter((value) => !known.includes(value));
    if (others.length) parsed.unknown.push(`No latent can have the ${name} ${others.map(quoted).join(" or ")}.`);
  }
  return parsed;
}

function rangeOf(value) {
  const ends = value.split("..").map((end) => (end === "" ? null : Number(end)));
  return ends.length === 2 && !ends.some(Number.isNaN) ? ends : null;
}

function unknownPart(meta, name, value) {
  if (name === "c") return `There is no crosscoder ${quoted(value)} here, so this is ${quoted(meta.name)}.`;
  if (name === "latent") return `There is no latent ${quoted(value)}: ${quoted(meta.name)} has latents 0 to ${meta.n - 1}.`;
  if (name === "sort") return `There is no column ${quoted(value.replace(/^-/, ""))} to sort by.`;
  if (meta.columns.includes(name)) return `${quoted(value)} is no range of ${spaced(name)}, such as 0.9..1.`;
  return `There is no filter ${quoted(name)}.`;
}

// Without characters that are not seen, or that turn the text around them.
const quoted = (text) => `\u201c${text.replace(/\p{C}/gu, "\ufffd")}\u201d`;

// Go on to what `changes` says; `quietly`, without an entry in the history. The address is not ours to write
// everywhere: where the browser refuses, the page goes on without.
function go(changes, quietly = false) {
  state = { ...state, unknown: [], ...changes };
  const address = `${location.href.split("#")[0]}#${hashOf(state)}`;
  try {
    if (quietly) history.replaceState(null, "", address);
    else history.pushState(null, "", address);
  } catch {
    // A frame without an address of its own.
  }
  return render();
}
