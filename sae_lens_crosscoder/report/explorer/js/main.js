// Joins all parts: one state, from which the whole page is drawn.
const table = makeTable();
let crosscoder = null;
let order = [];
let places = new Map();
let filtersOfOrder = null;
let drawing = 0;

const unknown = html("p", { id: "unknown", role: "status", hidden: true });
const overview = html("div", { id: "overview" });
const page = html("div", { id: "page", hidden: true });
const parts = {
  tabs: html("nav", { class: "tabs", "aria-label": "crosscoders" }),
  conclusion: html("p", { class: "conclusion" }),
  histogram: html("div", { class: "chart" }),
  scatter: html("div", { class: "chart" }),
  verdicts: html("div", { class: "verdicts", role: "group", "aria-label": "verdicts" }),
  uses: html("div", { class: "verdicts", role: "group", "aria-label": "use" }),
  ranges: html("span", { class: "ranges" }),
  total: html("span", { class: "total", role: "status" }),
  search: html("input", { id: "search", type: "search", placeholder: "token, concept or number" }),
  template: html("input", { id: "template", type: "range", min: 0, max: 1, step: 0.05 }),
  all: html("input", { id: "all", type: "checkbox" }),
  manifest: html("details", { class: "manifest" }),
};

function build() {
  const { search, template, all } = parts;
  search.addEventListener("input", () => go({ q: search.value }, true));
  search.addEventListener("keydown", (event) => event.key === "Enter" && (search.blur(), openCursor()));
  template.addEventListener("input", () => {
    const least = Number(template.value);
    go({ ranges: withRange("frac_template", least > 0 ? [least, null] : null) }, true);
  });
  all.addEventListener("change", () => go({ all: all.checked }, true));
  const showHelp = () => document.getElementById("help").showModal();
  const help = html("button", { class: "plain", title: "keys and numbers", onclick: showHelp }, "?");
  document.querySelector("header").append(parts.tabs, help);
  overview.append(
    parts.conclusion,
    html("div", { class: "charts" },
      figure("histogram", "Where latents write", "Delta_norm; drag to select, click a class"),
      figure("scatter", "Which chat-only latents are genuine", "drag to select")),
    html("div", { class: "filters" },
      search,
      html("label", { id: "template-label" }, "template share \u2265 ", html("output"), template),
      html("label", {}, all, " dead latents too"),
      parts.total),
    html("div", { class: "filters" }, parts.verdicts, parts.uses, parts.ranges),
    table.node,
    parts.manifest);
  document.querySelector("main").append(unknown, overview, page, tip);
  document.querySelector("noscript").remove();
}

const figure = (name, title, how) =>
  html("figure", { id: name }, html("figcaption", {}, title, soft(how)), parts[name]);

function withRange(name, range) {
  const { [name]: _, ...others } = state.ranges;
  return range === null ? others : { ...others, [name]: range };
}

async function render() {
  const turn = ++drawing;
  const meta = about.crosscoders.find(({ name }) => name === state.c);
  const opened = crosscoder?.name === meta.name ? crosscoder : await openCrosscoder(meta);
  if (turn !== drawing) return;
  crosscoder = opened;
  const tests = testsOf(crosscoder, state);
  drawTabs();
  unknown.textContent = state.unknown.length ? `Parts of the address were left out. ${state.unknown.join(" ")}` : "";
  unknown.hidden = state.unknown.length === 0;
  const filters = hashOf({ ...state, latent: null });
  if (filters !== filtersOfOrder) setOrder(inOrder(crosscoder, passing(crosscoder, tests), state.sort));
  filtersOfOrder = filters;
  if (state.latent === null) {
    page.hidden = true;
    overview.hidden = false;
    drawOverview(tests);
  } else {
    const drawn = await latentPage(crosscoder, state.latent, order);
    if (turn !== drawing) return;
    page.replaceChildren(drawn);
    overview.hidden = true;
    page.hidden = false;
    tip.hidden = true;
    table.cursor = Math.max(0, placeOf(state.latent));
    scrollTo(0, 0);
  }
  if (about.live) drawTry();
  document.title = state.latent === null ? heading : `Latent ${state.latent} \u00b7 ${heading}`;
  // For scripts that drive the page: its current content.
  document.body.dataset.shown = state.latent === null ? `${order.length} latents` : `latent ${state.latent}`;
  performance.mark(document.body.dataset.shown);
}

function setOrder(latents) {
  order = latents;
  places = new Map(latents.map((latent, place) => [latent, place]));
}

// Where a latent is in the order, or -1.
const placeOf = (latent) => places.get(latent) ?? -1;

function drawTabs() {
  parts.tabs.replaceChildren(...(about.crosscoders.length > 1 ? about.crosscoders.map(({ name }) =>
    fill(link({ ...home(), c: name }, name), { "aria-current": name === crosscoder.name ? "page" : null }, [])) : []));
}

function drawOverview(tests) {
  const c = crosscoder;
  parts.conclusion.textContent = c.conclusion ? `${c.conclusion}.` : "";
  const live = passing(c, state.all ? {} : { all: tests.all });
  drawHistogram(parts.histogram, c, passing(c, tests), live);
  const hasNu = c.has("nu_error") && c.has("nu_reconstruction") && !c.has("nu_error_basis_free");
  document.getElementById("scatter").hidden = !hasNu;
  if (hasNu) drawScatter(parts.scatter, c, passing(c, tests, ["nu_error", "nu_reconstruction"]), live);
  drawVerdicts(passing(c, tests, ["verdict"]));
  drawUses(passing(c, tests, ["use"]));
  drawFilters();
  parts.total.replaceChildren(html("b", {}, count(order.length)), ` of ${count(c.n)} latents`);
  table.show(c, order);
  parts.manifest.replaceChildren(html("summary", {}, "What this was made from"), manifestList(c.manifest));
}

function drawVerdicts(latents) {
  const name = "verdict" in crosscoder.categories ? "verdict" : "label";
  const chips = choices(name, latents, (a, b) => VERDICTS.indexOf(a) - VERDICTS.indexOf(b), (verdict) => [dot(verdict)]);
  parts.verdicts.replaceChildren(...chips);
}

function drawUses(latents) {
  const chips = "use" in crosscoder.categories ? choices("use", latents, undefined, () => ["use: "]) : [];
  parts.uses.replaceChildren(...chips);
}

// A button per category, with the number of latents in it.
function choices(name, latents, order, mark) {
  const counts = new Map();
  for (const j of latents) {
    const category = crosscoder.category(name, j);
    counts.set(category, (counts.get(category) ?? 0) + 1);
  }
  return [...new Set([...counts.keys(), ...state[name]])].sort(order).map((category) => {
    const n = soft(count(counts.get(category) ?? 0));
    const button = chip({ [name]: toggled(state[name], category) }, mark(category), spaced(category), n);
    return fill(button, { "aria-pressed": String(state[name].includes(category)) }, []);
  });
}

function drawFilters() {
  const { search, template, all } = parts;
  if (document.activeElement !== search) search.value = state.q;
  all.checked = state.all;
  const label = document.getElementById("template-label");
  label.hidden = !crosscoder.has("frac_template");
  template.value = state.ranges.frac_template?.[0] ?? 0;
  label.querySelector("output").textContent = percent(Number(template.value));
  const { frac_template, ...ranges } = state.ranges;
  const removable = Object.entries(ranges).map(([name, ends]) => {
    const range = ends.map((end) => (end === null ? "" : decimal(end))).join(" to ");
    return chip({ ranges: withRange(name, null) }, `${spaced(name)} ${range} \u00d7`);
  });
  const labels = state.label.map((name) => chip({ label: toggled(state.label, name) }, `${spaced(name)} \u00d7`));
  const isFiltered = state.q || CHOICES.some((name) => state[name].length) || Object.keys(state.ranges).length;
  const { c, all: alsoDead, sort } = state;
  const clear = isFiltered ? [chip({ ...home(), c, all: alsoDead, sort }, "clear all")] : [];
  parts.ranges.replaceChildren(...labels, ...removable, ...clear);
}

const chip = (changes, ...children) => html("button", { class: "chip", onclick: () => go(changes, true) }, ...children);

function manifestList(manifest) {
  const shown = (value) => {
    if (value === null) return MISSING;
    if (Array.isArray(value)) return value.map(shown).join(", ");
    if (typeof value === "object") return shown(Object.entries(value).map(([name, part]) => `${name} ${shown(part)}`));
    return typeof value === "number" ? (Number.isInteger(value) ? count(value) : String(value)) : String(value);
  };
  const row = ([name, value]) => [html("dt", {}, spaced(name)), html("dd", {}, shown(value))];
  return html("dl", {}, Object.entries(manifest).map(row));
}

const heading = document.querySelector("h1").textContent;
const redraw = () => crosscoder !== null && render();

build();
state = stateOf(location.hash);
addEventListener("hashchange", () => { state = stateOf(location.hash); render(); });
addEventListener("keydown", onKey);
addEventListener("resize", () => requestAnimationFrame(redraw));
addEventListener("beforeprint", () => state.latent === null && table.drawForPrint());
addEventListener("afterprint", () => state.latent === null && table.draw());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
document.addEventListener("pointerover", showTip);
render();
