// A latent's page.
const pairsOf = (flat) => Array.from({ length: flat.length / 2 }, (_, i) => [texts[flat[2 * i]], flat[2 * i + 1]]);

async function latentPage(c, j, order) {
  const record = await recordOf(c, j);
  const verdict = c.category("verdict", j) ?? c.category("label", j);
  const label = c.category("user_label", j);
  const [model, otherModel] = c.value("delta_norm", j) < 0.5 ? ["base", "chat"] : ["chat", "base"];
  const facts = [whereItWrites(c, j), whetherGenuine(c, j), howItIsUsed(c, j, record), whenItFires(c, j, record)];
  facts.push(twinsOf(c, record), effectOf(c, record));
  const mark = html("span", { class: "verdict" }, dot(verdict), spaced(verdict));
  return html("article", { class: "latent" },
    pageLinks(order, j),
    html("h2", {}, `Latent ${j}`, mark, label ? html("span", { class: "concept" }, label) : null, (record.concepts ?? []).map(conceptMark),
      about.live ? editButton(j) : null),
    html("p", { class: "meaning" }, meaning(verdict, model, otherModel) ?? ""),
    html("div", { class: "columns" },
      html("aside", {}, facts),
      html("div", { class: "main" }, record.raises ? lensTable(c, record) : null, await examplesOf(c, j, record))));
}

function pageLinks(order, j) {
  const place = placeOf(j);
  const step = (by, text, title) => {
    const next = order[place + by];
    if (place < 0 || next === undefined) return html("span", { class: "off" }, text);
    return fill(link({ ...state, latent: next }, text), { title }, []);
  };
  const where = place < 0 ? "not among the filtered" : `${count(place + 1)} of ${count(order.length)}`;
  const steps = [step(-1, "previous", "key k"), soft(where), step(1, "next", "key j")];
  const back = link({ ...state, latent: null }, "\u2190 all latents");
  return html("nav", {}, back, html("span", { class: "steps" }, steps));
}

function conceptMark({ concept, share, auroc }) {
  const title = "It carries this share of the difference between prompts with and without the concept, on other prompts than those that selected it.";
  return html("span", { class: "concept", title }, spaced(concept), soft(` share ${decimal(share)}, AUROC ${decimal(auroc)}`));
}

// The logit lens of its decoders: through each model's final norm and unembedding.
function lensTable(c, record) {
  const sizes = [...record.raises, ...record.lowers].flatMap(pairsOf).map(([, value]) => Math.abs(value));
  const most = Math.max(...sizes) || 1;
  const row = ([text, value]) => html("li", { vars: { part: Math.abs(value) / most } },
    token(text), html("span", { class: "n" }, significant(value, 2)));
  const column = (flat, title, m) =>
    html("div", { class: `lens share-${m}` }, html("h4", {}, title), html("ol", {}, pairsOf(flat).map(row)));
  const columns = c.models.map((model, m) =>
    [column(record.raises[m], `${model}: raises`, m), column(record.lowers[m], `${model}: lowers`, m)]);
  const note = "Logits per unit of activation, through the model's final norm and unembedding.";
  return section("Logits it raises and lowers", html("div", { class: "lenses" }, columns), html("p", { class: "soft" }, note));
}

const UNREADABLE = "The models have different widths, so the code of one model alone is undefined.";

async function examplesOf(c, j, record) {
  if (!c.examples) return null;
  if (!record.examples) return section("Examples", html("p", { class: "soft" }, "None: it was never active."));
  const [top, ...bands] = record.examples;
  const peakScore = ([, , peak, , , active]) => scoreAt(active, peak, c.models.length);
  const scale = peakScore(top[0]);
  const row = async (example) => {
    const [start, length, peak, prompt, position, active, alone] = example;
    const tokens = await tokensOf(c, start, length);
    const title = `row ${prompt}, position ${position}`;
    const score = html("span", { class: "n score", title }, decimal(peakScore(example)));
    return html("li", {}, score, strip(tokens, peak, active, c.models, scale, alone));
  };
  const list = async (examples) => html("ol", { class: "examples" }, await Promise.all(examples.map(row)));
  const groups = [html("h4", {}, "Strongest"), await list(top)];
  for (const [i, band] of bands.entries()) {
    if (band.length === 0) continue;
    const scores = band.map(peakScore);
    const range = ` activations from ${decimal(Math.min(...scores))} to ${decimal(Math.max(...scores))}`;
    const title = `Quantile ${bands.length - i} of ${bands.length}`;
    groups.push(html("h4", {}, title, soft(range)), await list(band.toReversed()));
  }
  const note = c.sameWidth ? null : html("p", { class: "soft" }, UNREADABLE);
  return section("Examples", stripLegend(c.models, c.hasKl, c.alone), note, groups);
}

function scoreAt(active, place, nModels) {
  for (let i = 0; i < active.length; i += 2 + nModels) if (active[i] === place) return active[i + 1];
  return NaN;
}
