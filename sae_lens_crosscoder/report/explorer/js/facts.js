// The facts about a latent, beside its examples: where it writes, whether that is genuine, when it fires.
function fact(crosscoder, name, title, shown, latent) {
  const rank = percentile(crosscoder, name, latent);
  return [
    html("dt", {}, title),
    html("dd", {}, shown),
    html("dd", { class: "rank", title: Number.isNaN(rank) ? "" : `above ${Math.round(100 * rank)} % of live latents` },
      Number.isNaN(rank) ? "" : html("span", { class: "mark small", vars: { at: rank } }, html("i"))),
  ];
}

const section = (title, ...content) => html("section", {}, html("h3", {}, title), content);

function whereItWrites(c, j) {
  const [base, chat] = c.models;
  const delta = c.value("delta_norm", j);
  const rows = [fact(c, "delta_norm", "Delta_norm", decimal(delta, 3), j)];
  for (const model of c.models) if (c.has(`dec_norm_${model}`)) rows.push(fact(c, `dec_norm_${model}`, `decoder norm, ${model}`, significant(c.value(`dec_norm_${model}`, j), 4), j));
  if (c.has("cos_sim")) rows.push(fact(c, "cos_sim", "decoder cosine", decimal(c.value("cos_sim", j), 3), j));
  for (const model of c.models) if (c.has(`enc_norm_${model}`)) rows.push(fact(c, `enc_norm_${model}`, `encoder norm, ${model}`, significant(c.value(`enc_norm_${model}`, j), 4), j));
  if (c.has("enc_cos_sim")) rows.push(fact(c, "enc_cos_sim", "encoder cosine", decimal(c.value("enc_cos_sim", j), 3), j));
  return section("Where it writes", deltaAxis(delta, base, chat), html("dl", { class: "facts" }, RANK_HEAD(), rows));
}

// Once is enough.
const RANK_HEAD = () => [html("dt"), html("dd"), html("dd", { class: "rank soft" }, "percentile")];

function deltaAxis(delta, base, chat) {
  const stops = [0, ...about.classBorders, 1];
  const frame = svg("svg", { viewBox: "0 0 300 34", class: "delta-axis", role: "img", "aria-label": `Delta_norm ${decimal(delta, 3)}` });
  about.regions.forEach((name, i) => frame.append(svg("rect", { class: `bar front ${name}`, x: 300 * stops[i], width: 300 * (stops[i + 1] - stops[i]) - 1, y: 12, height: 6 })));
  if (Number.isFinite(delta)) frame.append(svg("path", { class: "pointer", d: `M${4 + 292 * delta} 13 l-4.5 -9 h9 z` }));
  frame.append(svg("text", { class: "tick", x: 0, y: 31 }, `${base} only`), svg("text", { class: "tick", x: 150, y: 31, "text-anchor": "middle" }, "shared"), svg("text", { class: "tick", x: 300, y: 31, "text-anchor": "end" }, `${chat} only`));
  return frame;
}

// The nu and their intervals; for latents of the base model, those that were probed with its own decoder.
function whetherGenuine(c, j) {
  const probe = c.category("label", j) === "base_only" ? "_base_probe" : "";
  const { error, reconstruction, free } = about.limits;
  const rows = [["nu error", `nu_error${probe}`, error], ["nu reconstruction", `nu_reconstruction${probe}`, reconstruction]]
    .map(([title, name, limit]) => [title, c.value(name, j), c.value(`${name}_low`, j), c.value(`${name}_high`, j), limit]);
  rows.push(["nu free", c.value("nu_free", j), NaN, NaN, free]);
  const known = rows.filter(([, value]) => Number.isFinite(value));
  const more = [];
  for (const [name, title] of [["angle_degrees", "angle of free directions"], ["q_value", "q value"], ["rho_limit", "rho limit"]]) {
    if (Number.isFinite(c.value(name, j))) more.push(fact(c, name, title, decimal(c.value(name, j), name === "angle_degrees" ? 0 : 3) + (name === "angle_degrees" ? "\u00b0" : ""), j));
  }
  if (known.length === 0 && more.length === 0) return null;
  return section("Is it genuine", known.length ? html("div", { class: "forest" }, known.map(forestRow)) : null, html("dl", { class: "facts" }, more));
}

function forestRow([title, value, low, high, limit]) {
  const x = (number) => 4 + 132 * (Math.min(Math.max(number, -0.5), 1.5) + 0.5) / 2;
  const frame = svg("svg", { viewBox: "0 0 140 18", class: "interval-plot", "aria-hidden": "true" },
    svg("rect", { class: "genuine", x: 4, y: 1, width: x(limit) - 4, height: 16 }),
    svg("line", { class: "grid", x1: x(0), x2: x(0), y1: 1, y2: 17 }),
    Number.isFinite(low) && Number.isFinite(high) ? svg("line", { class: "whisker", x1: x(low), x2: x(high), y1: 9, y2: 9 }) : null,
    svg("circle", { class: value < limit ? "inside" : "outside", cx: x(value), cy: 9, r: 3.5 }));
  const interval = Number.isFinite(low) && Number.isFinite(high) ? `[${decimal(low)}, ${decimal(high)}]` : "";
  return [html("span", {}, title), frame, html("span", { class: "n" }, decimal(value)), html("span", { class: "n interval" }, interval)];
}

function whenItFires(c, j, record) {
  const nActive = c.value("n_active", j);
  const rows = [];
  if (c.has("frequency")) rows.push(fact(c, "frequency", "on", `${percent(c.value("frequency", j))} (${count(nActive)} tokens)`, j));
  for (const [name, title] of [["max_activation", "highest score"], ["mean_activation", "mean score where on"]]) {
    if (c.has(name)) rows.push(fact(c, name, title, decimal(c.value(name, j)), j));
  }
  if (c.has("frac_template")) rows.push(fact(c, "frac_template", "template share", percent(c.value("frac_template", j)), j));
  if (record.contexts) rows.push([html("dt", {}, "contexts"), html("dd", {}, count(record.contexts)), html("dd")]);
  return section("When it fires", html("dl", { class: "facts" }, rows),
    nActive > 0 && record.histogram ? scoreHistogram(record.histogram, c.value("max_activation", j)) : null,
    nActive > 0 && record.positions ? positionProfile(record.positions, c.firstPositions, c.contextSize) : null,
    nActive > 0 && record.places ? placeBars(c.groups, record.places) : null);
}

function smallBars(heights, title, left, right) {
  const width = 300 / heights.length;
  const frame = svg("svg", { viewBox: "0 0 300 62", class: "small-bars", role: "img", "aria-label": title }, svg("line", { class: "axis-line", x1: 0, x2: 300, y1: 48, y2: 48 }),
    heights.map((height, i) => svg("rect", { class: "plain", x: i * width, width: width - 1, y: 48 - 46 * height, height: 46 * height })),
    svg("text", { class: "tick", x: 0, y: 60 }, left), svg("text", { class: "tick", x: 300, y: 60, "text-anchor": "end" }, right));
  return html("figure", {}, html("figcaption", {}, title), frame);
}

function scoreHistogram(bins, highest) {
  const most = Math.log(Math.max(...bins) + 1);
  return smallBars(bins.map((n) => Math.log(n + 1) / most), "tokens by score, log scale", "0", decimal(highest));
}

function positionProfile(shares, first, contextSize) {
  const most = Math.max(...shares);
  const last = contextSize === null ? first[first.length - 1] : contextSize - 1;
  return smallBars(shares.map((share) => share / most), `by position in the context, up to ${percent(most)}`, "0", String(last));
}

function placeBars(groups, places) {
  const most = Math.max(...places.map(([, frequency]) => frequency ?? 0)) || 1;
  const rows = groups.map((name, g) => {
    const [nActive, frequency, highest] = places[g];
    const title = `${count(nActive)} tokens, highest score ${decimal(highest)}`;
    return [html("span", {}, name), html("span", { class: "bar-track", title, vars: { part: (frequency ?? 0) / most } }, html("i")), html("span", { class: "n" }, percent(frequency))];
  });
  return html("figure", {}, html("figcaption", {}, "share of each group's tokens on which it is on"), html("div", { class: "places" }, rows));
}

function twinsOf(c, record) {
  if (!record.twins) return null;
  const heads = ["latent", "cosine", "divergence", "this / twin / either high"];
  const rows = record.twins.map((twin) => html("tr", {},
    html("td", { class: "n" }, link({ ...state, latent: twin.latent }, String(twin.latent))),
    [decimal(twin.cosine), decimal(twin.divergence), [twin.n_only_own, twin.n_only_twin, twin.n_high].map(count).join(" / ")].map((text) => html("td", { class: "n" }, text))));
  const said = "Latents that write the same direction into the other model. Divergence 0: both are always high on the same tokens, 1: never. Then the tokens on which this one alone is high, the twin alone, and either.";
  return section("Twins", html("p", { class: "soft" }, said),
    html("div", { class: "scroll" }, html("table", {}, html("thead", {}, html("tr", {}, heads.map((head) => html("th", { class: "n" }, head)))), html("tbody", {}, rows))));
}

function effectOf(c, record) {
  if (!record.effect) return null;
  const rows = [["added to base", "kl_change_added"], ["removed from chat", "kl_change_removed"]]
    .filter(([, name]) => Number.isFinite(record.effect[name]))
    .map(([title, name]) => effectRow(title, record.effect[name], c.random?.bands[name]));
  const tokens = (list) => html("span", { class: "tokens" }, pairsOf(list ?? []).map(([text, change]) => html("span", { class: "token", title: `${decimal(change)} logits` }, text.trim())));
  const band = c.random ? ` Shaded: the central 95 % of ${c.random.n} random latents.` : "";
  return section("What it causes", html("p", { class: "soft" }, `Change of the KL from the chat model, in nats per token of its answers; below 0 is nearer to it.${band}`),
    html("div", { class: "forest" }, rows),
    record.effect.raises?.length ? html("p", { class: "soft" }, "Raises ", tokens(record.effect.raises), " lowers ", tokens(record.effect.lowers)) : null);
}

function effectRow(title, value, band) {
  const ends = [0, value, ...(band ?? [])];
  const margin = (Math.max(...ends) - Math.min(...ends)) * 0.08 || 1;
  const x = linear(Math.min(...ends) - margin, Math.max(...ends) + margin, 4, 136);
  const frame = svg("svg", { viewBox: "0 0 140 18", class: "interval-plot", "aria-hidden": "true" },
    band ? svg("rect", { class: "random", x: x(band[0]), width: x(band[1]) - x(band[0]), y: 3, height: 12 }) : null,
    svg("line", { class: "grid", x1: x(0), x2: x(0), y1: 1, y2: 17 }), svg("circle", { class: "outside", cx: x(value), cy: 9, r: 3.5 }));
  return [html("span", {}, title), frame, html("span", { class: "n" }, decimal(value, 4)), html("span", { class: "n interval" }, band ? `[${decimal(band[0], 4)}, ${decimal(band[1], 4)}]` : "")];
}
