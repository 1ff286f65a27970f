// The table of latents: only the rows in sight exist.
const ROW_HEIGHT = 30;
const MAX_PRINTED = 200;

const tokenList = (ids) => Array.from(ids.subarray(0, 5), (id) => html("span", { class: "token" }, texts[id].trim() || "\u2423"));

const named = (category) => [dot(category), spaced(category)];

function axisMark(delta) {
  return html("span", { class: "mark", vars: { at: delta } }, html("i"));
}

// Columns: what they sort by, their head, its help, their width in rem and class, and what a row has there.
const COLUMNS = [
  { name: "latent", head: "latent", width: 4.6, css: "n", cell: (c, j) => [String(j)] },
  { name: "delta_norm", head: "Delta_norm", width: 9.5, css: "n", help: "0: writes on base only, 1: on chat only",
    cell: (c, j) => [axisMark(c.value("delta_norm", j)), decimal(c.value("delta_norm", j), 2)] },
  { name: "label", head: "class", width: 8, css: "t", help: "By Delta_norm alone", cell: (c, j) => named(c.category("label", j)) },
  { name: "verdict", head: "verdict", width: 11.5, css: "t", help: "What to believe about it", cell: (c, j) => named(c.category("verdict", j)) },
  { name: "frequency", head: "on", width: 5, css: "n", help: "The share of tokens on which it is on", cell: (c, j) => [percent(c.value("frequency", j))] },
  { name: "max_activation", head: "max", width: 4.4, css: "n", help: "Its highest score", cell: (c, j) => [decimal(c.value("max_activation", j), 1)] },
  { name: "nu_error", head: "nu error", width: 5.2, css: "n", help: "Near 0: the crosscoder's error on base has nothing of it", cell: (c, j) => [decimal(c.value("nu_error", j))] },
  { name: "nu_reconstruction", head: "nu recon.", width: 5.6, css: "n", help: "Near 0: no other latent writes it into base", cell: (c, j) => [decimal(c.value("nu_reconstruction", j))] },
  { name: "frac_template", head: "template", width: 5.2, css: "n", help: "Of the tokens of conversations on which it is on, the share that are the template's",
    cell: (c, j) => [percent(c.value("frac_template", j))] },
  { name: null, needs: "fires", head: "fires on", css: "t tokens", help: "Tokens at the peaks of its examples", cell: (c, j) => tokenList(c.fires(j)) },
  { name: null, needs: "writes", head: "speaks for", css: "t tokens", help: "Tokens whose logits its decoder raises most, in the model on which it writes more",
    cell: (c, j) => [...Array.from(c.concepts(j), (id) => html("b", { class: "concept" }, spaced(texts[id]))), ...tokenList(c.writes(j))] },
];

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
    return html("tr", { "aria-rowindex": place + 2, class: place === view.cursor ? "cursor" : null, onclick: (event) => {
      if (event.target.closest("a") === null) go({ latent: j });
    } }, cells);
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
      const hasRows = { fires: crosscoder.examples, writes: crosscoder.lenses };
      view.shown = COLUMNS.filter(({ name, needs }) => (needs ? hasRows[needs] : name === "latent" || (crosscoder.has(name) && !(name === "label" && crosscoder.has("verdict")))));
      columns.replaceChildren(...view.shown.map(({ width }) => html("col", width ? { vars: { width: `${width}rem` } } : {})));
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
  return html("th", { class: css, scope: "col", title: help, "aria-sort": isSorted ? (falls ? "descending" : "ascending") : null },
    html("button", { onclick: () => go({ sort }, true) }, head, html("i", { class: "arrow" }, isSorted ? (falls ? "\u2193" : "\u2191") : "")));
}
