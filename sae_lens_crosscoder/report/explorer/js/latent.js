// A latent's page.
const pairsOf = (flat) => Array.from({ length: flat.length / 2 }, (_, i) => [texts[flat[2 * i]], flat[2 * i + 1]]);

async function latentPage(c, j, order) {
  const record = await recordOf(c, j);
  const verdict = c.category("verdict", j) ?? c.category("label", j);
  const [own, other] = c.value("delta_norm", j) < 0.5 ? ["base", "chat"] : ["chat", "base"];
  const facts = [whereItWrites(c, j), whetherGenuine(c, j), whenItFires(c, j, record), twinsOf(c, record), effectOf(c, record)];
  return html("article", { class: "latent" },
    pageLinks(order, j),
    html("h2", {}, `Latent ${j}`, html("span", { class: "verdict" }, dot(verdict), spaced(verdict)), (record.concepts ?? []).map(conceptMark)),
    html("p", { class: "meaning" }, meaning(verdict, own, other) ?? ""),
    html("div", { class: "columns" },
      html("aside", {}, facts),
      html("div", { class: "main" }, record.raises ? lensTable(c, record) : null, await examplesOf(c, j, record))));
}

function pageLinks(order, j) {
  const place = order.indexOf(j);
  const step = (by, text, title) => {
    const next = order[place + by];
    return place >= 0 && next !== undefined ? fill(link({ ...state, latent: next }, text), { title }, []) : html("span", { class: "off" }, text);
  };
  return html("nav", {}, link({ ...state, latent: null }, "\u2190 all latents"), html("span", { class: "steps" },
    step(-1, "previous", "key k"), html("span", { class: "soft" }, place >= 0 ? `${count(place + 1)} of ${count(order.length)}` : "not among the filtered"), step(1, "next", "key j")));
}

function conceptMark({ concept, auroc, kind_of_change }) {
  const title = `the best latent of the concept: AUROC ${decimal(auroc)} on held-out prompts; ${spaced(kind_of_change)} by construction`;
  return html("span", { class: "concept", title }, spaced(concept), html("span", { class: "soft" }, ` AUROC ${decimal(auroc)}`));
}

// What its decoders come to in the vocabulary, through each model's final norm and unembedding.
function lensTable(c, record) {
  const column = (flat, title, m) => {
    const tokens = pairsOf(flat);
    const most = Math.max(...record.raises.concat(record.lowers).flatMap((list) => pairsOf(list).map(([, value]) => Math.abs(value)))) || 1;
    return html("div", { class: `lens share-${m}` }, html("h4", {}, title), html("ol", {}, tokens.map(([text, value]) =>
      html("li", { vars: { part: Math.abs(value) / most } }, html("span", { class: "token" }, text.trim() || "\u2423"), html("span", { class: "n" }, significant(value, 2))))));
  };
  return section("What it speaks for", html("div", { class: "lenses" },
    c.models.map((model, m) => [column(record.raises[m], `${model}: raises`, m), column(record.lowers[m], `${model}: lowers`, m)])),
    html("p", { class: "soft" }, "Logits per unit of activation, through the model's final norm and unembedding."));
}

async function examplesOf(c, j, record) {
  if (!record.examples) return c.examples ? section("Examples", html("p", { class: "soft" }, "None: it was never on.")) : null;
  const [top, ...bands] = record.examples;
  const peakScore = ([, , peak, , , active]) => scoreAt(active, peak, c.models.length);
  const scale = peakScore(top[0]);
  const rows = async (examples) => Promise.all(examples.map(async (example) => {
    const [start, length, peak, prompt, position, active] = example;
    const title = `row ${prompt}, position ${position}`;
    return html("li", {}, html("span", { class: "n score", title }, decimal(peakScore(example))), strip(await tokensOf(c, start, length), peak, active, c.models, scale));
  }));
  const groups = [html("h4", {}, "Strongest"), html("ol", { class: "examples" }, await rows(top))];
  for (const [i, band] of bands.entries()) {
    if (band.length === 0) continue;
    const scores = band.map(peakScore);
    const title = `Quantile ${bands.length - i} of ${bands.length}`;
    groups.push(html("h4", {}, title, html("span", { class: "soft" }, ` scores from ${decimal(Math.min(...scores))} to ${decimal(Math.max(...scores))}`)),
      html("ol", { class: "examples" }, await rows(band.toReversed())));
  }
  return section("Examples", stripLegend(c.models, c.hasKl), groups);
}

function scoreAt(active, place, nModels) {
  for (let i = 0; i < active.length; i += 2 + nModels) if (active[i] === place) return active[i + 1];
  return NaN;
}
