// The table of latents: only the rows in sight exist.
const ROW_HEIGHT = 30;
const MAX_PRINTED = 200;

const tokenList = (ids) => Array.from(ids.subarray(0, 5), (id) => token(texts[id]));
const named = (category) => [dot(category), spaced(category)];

function axisMark(delta) {
  return html("span", { class: "mark", vars: { at: delta } }, html("i"));
}

const numbers = (name, format) => (c, j) => [format(c.value(name, j))];

// Columns: what they sort by, their head, their width in rem and class, what a row has there, and their help.
const COLUMNS = [
  ["latent", "latent", 4.6, "n", (c, j) => [String(j)]],
  ["delta_norm", "Delta_norm", 9.5, "n", numbers("delta_norm", (delta) => [axisMark(delta), decimal(delta)]),
    "0: writes into base only, 1: into chat only"],
  ["label", "class", 8, "t", (c, j) => named(c.category("label", j)), "by Delta_norm alone"],
  ["verdict", "verdict", 11.5, "t", (c, j) => named(c.category("verdict", j)), "the verdict of Latent Scaling"],
  ["rho", "rho", 4.4, "n", numbers("rho", decimal), "0: the same decoder in both models, 1: in one model only; between, it turned"],
  ["use", "use", 8, "t", (c, j) => [spaced(c.category("use", j) ?? "")], "the model that uses it more, when each is read alone"],
  ["log_use_ratio", "log use ratio", 7.6, "n", numbers("log_use_ratio", decimal),
    "above 0: chat uses it more, below 0: base does; 0.22 is a factor of 1.25"],
  ["frequency", "active", 5, "n", numbers("frequency", percent), "share of active tokens"],
  ["max_activation", "max", 4.4, "n", numbers("max_activation", (score) => decimal(score, 1)), "highest activation"],
  ["nu_error", "nu error", 5.2, "n", numbers("nu_error", decimal), "near 0: the error on the other model has nothing of it"],
  ["nu_reconstruction", "nu recon.", 5.6, "n", numbers("nu_reconstruction", decimal),
    "near 0: no other latent writes it into the other model"],
  ["nu_error_basis_free", "nu error, basis-free", 6.4, "n", numbers("nu_error_basis_free", decimal),
    "near 0: the error on the other model has no direction of it, by length alone"],
  ["nu_reconstruction_basis_free", "nu recon., basis-free", 6.8, "n", numbers("nu_reconstruction_basis_free", decimal),
    "near 0: no other latent writes it into the other model, by length alone"],
  ["frac_template", "template", 5.2, "n", numbers("frac_template", percent),
    "share of template tokens among its active tokens in conversations"],
  [null, "active on", null, "t tokens", (c, j) => tokenList(c.fires(j)), "tokens at the peaks of its examples"],
  [null, "raises", null, "t tokens", (c, j) => [conceptsOf(c, j), tokenList(c.writes(j))],
    "tokens whose logits its decoder raises most, in the model on which it writes more"],
].map(([name, head, width, css, cell, help]) => ({ name, head, width, css, cell, help }));

const conceptsOf = (c, j) => Array.from(c.concepts(j), (id) => html("b", { class: "concept" }, spaced(texts[id])));

// Whether there is anything to show in a column.
function isThere(c, { name, head }) {
  if (name === null) return head === "active on" ? c.examples : c.lenses || c.hasConcepts;
  if (name === "label") return !c.has("verdict");
  if (["nu_error", "nu_reconstruction"].includes(name) && c.has(`${name}_basis_free`)) return false;
  return name === "latent" || c.has(name);
}

function makeTable() {
  const head = html("tr");
  const body = html("tbody");
  const columns = html("colgroup");
  const table = html("table", { class: "latent-table" }, columns, html("thead", {}, head), body);
  const scroller = html("div", { class: "scroller", tabindex: 0, "aria-label": "latents" }, table);
  const view = { node: scroller, latents: [], cursor: 0, crosscoder: null, shown: [] };

  const row = (place) => {
    const [c, j] = [view.crosscoder, view.latents[place]];
    const cells = view.shown.map(({ css, cell }) => html("td", { class: css }, cell(c, j)));
    cells[0].replaceChildren(link({ ...state, latent: j }, String(j)));
    const open = (event) => event.target.closest("a") === null && go({ latent: j });
    const isCursor = place === view.cursor;
    return html("tr", { "aria-rowindex": place + 2, class: isCursor ? "cursor" : null, onclick: open }, cells);
  };
  const space = (rows) => html("tr", { class: "space", vars: { height: `${rows * ROW_HEIGHT}px` } });

  const draw = (first, last) => body.replaceChildren(
    space(first), ...Array.from({ length: last - first }, (_, i) => row(first + i)), space(view.latents.length - last));
  view.draw = () => {
    const first = Math.max(0, Math.floor(scroller.scrollTop / ROW_HEIGHT) - 8);
    draw(first, Math.min(view.latents.length, first + Math.ceil(scroller.clientHeight / ROW_HEIGHT) + 16));
  };
  view.drawForPrint = () => draw(0, Math.min(view.latents.length, MAX_PRINTED));

  view.show = (crosscoder, latents) => {
    const isOther = crosscoder !== view.crosscoder;
    Object.assign(view, { crosscoder, latents, cursor: Math.min(view.cursor, Math.max(0, latents.length - 1)) });
    if (isOther) {
      view.shown = COLUMNS.filter((column) => isThere(crosscoder, column));
      const widths = view.shown.map(({ width }) => (width === null ? {} : { vars: { width: `${width}rem` } }));
      columns.replaceChildren(...widths.map((attributes) => html("col", attributes)));
    }
    head.replaceChildren(...view.shown.map(headCell));
    table.setAttribute("aria-rowcount", latents.length + 1);
    view.draw();
  };
  view.move = (place) => {
    view.cursor = Math.min(Math.max(0, place), view.latents.length - 1);
    const top = view.cursor * ROW_HEIGHT;
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    const below = top + 2 * ROW_HEIGHT - (scroller.scrollTop + scroller.clientHeight);
    if (below > 0) scroller.scrollTop += below;
    view.draw();
  };
  scroller.addEventListener("scroll", () => requestAnimationFrame(view.draw));
  return view;
}

function headCell({ name, head, css, help }) {
  if (name === null) return html("th", { class: css, scope: "col", title: help }, head);
  const isSorted = state.sort.replace(/^-/, "") === name;
  const falls = state.sort.startsWith("-");
  const sort = isSorted && falls ? name : `-${name}`;
  const [said, arrow] = !isSorted ? [null, ""] : falls ? ["descending", "\u2193"] : ["ascending", "\u2191"];
  return html("th", { class: css, scope: "col", title: help, "aria-sort": said },
    html("button", { onclick: () => go({ sort }, true) }, head, html("i", { class: "arrow" }, arrow)));
}
