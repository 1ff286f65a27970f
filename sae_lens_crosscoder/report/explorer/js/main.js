// Puts it together: one state, from which everything on the page is drawn anew.
const table = makeTable();
let crosscoder = null;
let order = [];
let drawing = 0;

const overview = html("div", { id: "overview" });
const page = html("div", { id: "page", hidden: true });
const parts = {
  tabs: html("nav", { class: "tabs", "aria-label": "crosscoders" }),
  conclusion: html("p", { class: "conclusion" }),
  histogram: html("div", { class: "chart" }),
  scatter: html("div", { class: "chart" }),
  verdicts: html("div", { class: "verdicts", role: "group", "aria-label": "verdicts" }),
  ranges: html("span", { class: "ranges" }),
  total: html("span", { class: "total", role: "status" }),
  search: html("input", { id: "search", type: "search", placeholder: "token, concept or number", "aria-label": "search", autocomplete: "off", spellcheck: "false" }),
  template: html("input", { id: "template", type: "range", min: 0, max: 1, step: 0.05, "aria-label": "template share at least" }),
  all: html("input", { id: "all", type: "checkbox" }),
  manifest: html("details", { class: "manifest" }),
};

function build() {
  const { search, template, all } = parts;
  search.addEventListener("input", () => go({ q: search.value }, true));
  search.addEventListener("keydown", (event) => event.key === "Enter" && (search.blur(), openCursor()));
  template.addEventListener("input", () => go({ ranges: withRange("frac_template", Number(template.value) > 0 ? [Number(template.value), null] : null) }, true));
  all.addEventListener("change", () => go({ all: all.checked }, true));
  const help = html("button", { class: "plain", title: "help: ?", onclick: () => document.getElementById("help").showModal() }, "?");
  document.querySelector("header").append(parts.tabs, help);
  overview.append(
    parts.conclusion,
    html("div", { class: "charts" },
      html("figure", {}, html("figcaption", {}, "On which model latents write", html("span", { class: "soft" }, "Delta_norm; drag to select, click a class")), parts.histogram),
      html("figure", { id: "scatter" }, html("figcaption", {}, "Which chat-only latents are genuine", html("span", { class: "soft" }, "drag to select")), parts.scatter)),
    html("div", { class: "filters" }, search,
      html("label", { id: "template-label" }, "template share \u2265 ", html("output"), template), html("label", {}, all, " dead ones too"), parts.total),
    html("div", { class: "filters" }, parts.verdicts, parts.ranges),
    table.node,
    parts.manifest);
  document.querySelector("main").append(overview, page, tip);
  document.querySelector("noscript").remove();
}

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
  order = inOrder(crosscoder, passing(crosscoder, tests), state.sort);
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
    table.cursor = Math.max(0, order.indexOf(state.latent));
    scrollTo(0, 0);
  }
  document.title = state.latent === null ? heading : `Latent ${state.latent} \u00b7 ${heading}`;
  // For those who drive the page by a script: what it shows now.
  document.body.dataset.shown = state.latent === null ? `${order.length} latents` : `latent ${state.latent}`;
  performance.mark(document.body.dataset.shown);
}

function drawTabs() {
  parts.tabs.replaceChildren(...(about.crosscoders.length > 1 ? about.crosscoders.map(({ name }) =>
    fill(link({ ...home(), c: name }, name), { "aria-current": name === crosscoder.name ? "page" : null }, [])) : []));
}

function drawOverview(tests) {
  const c = crosscoder;
  parts.conclusion.textContent = c.conclusion ? `${c.conclusion}.` : "";
  const live = passing(c, state.all ? {} : { all: tests.all });
  drawHistogram(parts.histogram, c, passing(c, tests), live);
  const hasNu = c.has("nu_error") && c.has("nu_reconstruction");
  document.getElementById("scatter").hidden = !hasNu;
  if (hasNu) drawScatter(parts.scatter, c, passing(c, tests, ["nu_error", "nu_reconstruction"]), live);
  drawVerdicts(passing(c, tests, ["verdict"]));
  drawFilters();
  parts.total.replaceChildren(html("b", {}, count(order.length)), ` of ${count(c.n)} latents`);
  table.show(c, order);
  parts.manifest.replaceChildren(html("summary", {}, "What this was made from"), manifestList(c.manifest));
}

function drawVerdicts(latents) {
  const name = "verdict" in crosscoder.categories ? "verdict" : "label";
  const counts = new Map();
  for (const j of latents) counts.set(crosscoder.category(name, j), (counts.get(crosscoder.category(name, j)) ?? 0) + 1);
  const names = [...new Set([...counts.keys(), ...state[name]])].sort((a, b) => VERDICTS.indexOf(a) - VERDICTS.indexOf(b));
  parts.verdicts.replaceChildren(...names.map((verdict) => html("button", {
    class: "chip", "aria-pressed": String(state[name].includes(verdict)), onclick: () => go({ [name]: toggled(state[name], verdict) }, true),
  }, dot(verdict), spaced(verdict), html("span", { class: "soft" }, count(counts.get(verdict) ?? 0)))));
}

function drawFilters() {
  const { search, template, all } = parts;
  if (document.activeElement !== search) search.value = state.q;
  all.checked = state.all;
  const label = document.getElementById("template-label");
  label.hidden = !crosscoder.has("frac_template");
  template.value = state.ranges.frac_template?.[0] ?? 0;
  label.querySelector("output").textContent = percent(Number(template.value));
  const ranges = Object.entries(state.ranges).filter(([name]) => name !== "frac_template").map(([name, range]) =>
    html("button", { class: "chip", title: "remove", onclick: () => go({ ranges: withRange(name, null) }, true) }, `${spaced(name)} ${range.map((end) => (end === null ? "" : decimal(end))).join(" to ")} \u00d7`));
  const isFiltered = state.q || state.verdict.length || state.label.length || Object.keys(state.ranges).length;
  const reset = html("button", { class: "chip", onclick: () => go({ ...home(), c: state.c, all: state.all, sort: state.sort }, true) }, "clear all");
  const labels = state.label.map((name) => html("button", { class: "chip", title: "remove", onclick: () => go({ label: toggled(state.label, name) }, true) }, `${spaced(name)} \u00d7`));
  parts.ranges.replaceChildren(...labels, ...ranges, ...(isFiltered ? [reset] : []));
}

function manifestList(manifest) {
  const shown = (value) => {
    if (value === null) return MISSING;
    if (Array.isArray(value)) return value.map(shown).join(", ");
    if (typeof value === "object") return Object.entries(value).map(([name, part]) => `${name} ${shown(part)}`).join(", ");
    return typeof value === "number" ? (Number.isInteger(value) ? count(value) : String(value)) : String(value);
  };
  return html("dl", {}, Object.entries(manifest).map(([name, value]) => [html("dt", {}, spaced(name)), html("dd", {}, shown(value))]));
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
