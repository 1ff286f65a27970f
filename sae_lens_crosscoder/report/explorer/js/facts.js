// The facts about a latent, beside its examples: where it writes, whether that is genuine, when it fires.
function fact(crosscoder, name, title, shown, latent) {
  const rank = percentile(crosscoder, name, latent);
  const mark = html("span", { class: "mark small", vars: { at: rank } }, html("i"));
  const rankTitle = `above ${Math.round(100 * rank)} % of live latents`;
  return [
    html("dt", {}, title),
    html("dd", {}, shown),
    Number.isNaN(rank) ? html("dd") : html("dd", { class: "rank", title: rankTitle }, mark),
  ];
}

const section = (title, ...content) => html("section", {}, html("h3", {}, title), content);

function whereItWrites(c, j) {
  const [base, chat] = c.compared;
  const delta = c.value("delta_norm", j);
  const isExclusive = c.has("exclusive") && c.value("exclusive", j) === 1;
  const shown = isExclusive ? `${decimal(delta, 3)}, by construction` : decimal(delta, 3);
  const rows = [fact(c, "delta_norm", "Delta_norm", shown, j)];
  const add = (name, title, format) => c.has(name) && rows.push(fact(c, name, title, format(c.value(name, j)), j));
  for (const [coder, prefix, cosine] of [["decoder", "dec", "cos_sim"], ["encoder", "enc", "enc_cos_sim"]]) {
    for (const model of c.models) {
      add(`${prefix}_norm_${model}`, `${coder} norm, ${model}`, (norm) => significant(norm, 4));
    }
    add(cosine, `${coder} cosine`, (value) => decimal(value, 3));
  }
  return section("Where it writes", deltaAxis(delta, base, chat), html("dl", { class: "facts" }, RANK_HEAD(), rows));
}

// Once is enough.
const RANK_HEAD = () => [html("dt"), html("dd"), html("dd", { class: "rank soft" }, "percentile")];

function deltaAxis(delta, base, chat) {
  const stops = [0, ...about.classBorders, 1];
  const frame = svg("svg", { viewBox: "0 0 300 34", class: "delta-axis", "aria-hidden": "true" });
  about.regions.forEach((name, i) => {
    const width = 300 * (stops[i + 1] - stops[i]) - 1;
    frame.append(svg("rect", { class: `bar front ${name}`, x: 300 * stops[i], width, y: 12, height: 6 }));
  });
  if (isNumber(delta)) frame.append(svg("path", { class: "pointer", d: `M${4 + 292 * delta} 13 l-4.5 -9 h9 z` }));
  const names = [[0, "start", `${base} only`], [150, "middle", "shared"], [300, "end", `${chat} only`]];
  for (const [x, anchor, name] of names) {
    frame.append(svg("text", { class: "tick", x, y: 31, "text-anchor": anchor }, name));
  }
  return frame;
}

// The nu and their intervals; for latents of the base model, those that were probed with its own decoder.
function whetherGenuine(c, j) {
  const probe = c.category("label", j) === "base_only" ? "_base_probe" : "";
  const { error, reconstruction, free } = about.limits;
  const row = (title, name, limit) => [title, ...["", "_low", "_high"].map((end) => c.value(name + end, j)), limit];
  const rows = [
    row("nu error", `nu_error${probe}`, error),
    row("nu reconstruction", `nu_reconstruction${probe}`, reconstruction),
    row("nu error, basis-free", "nu_error_basis_free", error),
    row("nu reconstruction, basis-free", "nu_reconstruction_basis_free", reconstruction),
    ["nu free", c.value("nu_free", j), NaN, NaN, free],
  ];
  const known = rows.filter(([, value]) => Number.isFinite(value));
  const more = [];
  const add = (name, title, format) => {
    if (Number.isFinite(c.value(name, j))) more.push(fact(c, name, title, format(c.value(name, j)), j));
  };
  add("angle_degrees", "angle of free directions", (angle) => `${decimal(angle, 0)}\u00b0`);
  add("q_value", "q value", (value) => decimal(value, 3));
  add("rho", "rho, distance of its decoders", decimal);
  add("q_rho", "q value of rho", (value) => decimal(value, 3));
  add("q_written", "q value of what it writes of the change", (value) => decimal(value, 3));
  add("rho_limit", "rho limit", (value) => decimal(value, 3));
  if (known.length === 0 && more.length === 0) return null;
  const forest = known.length ? html("div", { class: "forest" }, known.map(forestRow)) : null;
  return section("Is it genuine", forest, html("dl", { class: "facts" }, more));
}

function forestRow([title, value, low, high, limit]) {
  const x = (number) => 4 + 132 * (Math.min(Math.max(number, -0.5), 1.5) + 0.5) / 2;
  const hasInterval = Number.isFinite(low) && Number.isFinite(high);
  const frame = svg("svg", { viewBox: "0 0 140 18", "aria-hidden": "true" },
    svg("rect", { class: "genuine", x: 4, y: 1, width: x(limit) - 4, height: 16 }),
    svg("line", { class: "grid", x1: x(0), x2: x(0), y1: 1, y2: 17 }),
    hasInterval ? svg("line", { class: "whisker", x1: x(low), x2: x(high), y1: 9, y2: 9 }) : null,
    svg("circle", { class: value < limit ? "inside" : "outside", cx: x(value), cy: 9, r: 3.5 }));
  return forestCells(title, frame, decimal(value), hasInterval ? `[${decimal(low)}, ${decimal(high)}]` : "");
}

const forestCells = (title, frame, value, interval) => [
  html("span", {}, title),
  frame,
  html("span", { class: "n" }, value),
  html("span", { class: "n interval" }, interval),
];

const USE = "Each model is read alone, in the place of both. Rates are of strong firings.";

function howItIsUsed(c, j, record) {
  if (!c.has("use")) return null;
  const rows = [[html("dt", {}, "use"), html("dd", {}, spaced(c.category("use", j))), html("dd")]];
  const add = (name, title, format) => c.has(name) && rows.push(fact(c, name, title, format(c.value(name, j)), j));
  const [low, high] = ["_low", "_high"].map((end) => decimal(c.value(`log_use_ratio${end}`, j)));
  add("log_use_ratio", "log use ratio", (ratio) => `${decimal(ratio)} [${low}, ${high}]`);
  for (const model of c.models) {
    add(`rate_${model}`, `strongly active in ${model}`, percent);
    add(`magnitude_${model}`, `activation there, ${model}`, (score) => decimal(score));
    add(`moved_by_${model}`, `moves without ${model}`, percent);
  }
  add("q_use", "q value of use", (value) => decimal(value, 3));
  return section("How it is used", html("p", { class: "soft" }, USE), html("dl", { class: "facts" }, rows),
    record.uses ? c.usedBy.map((model, m) => useBars(c.useGroups, record.uses[m], model, record.uses)) : null);
}

// Rates by token group of one model; both models' bars have one scale.
function useBars(groups, rates, model, both) {
  const most = Math.max(...both.flat().map((rate) => rate ?? 0)) || 1;
  const rows = groups.map((name, g) => [
    html("span", {}, name),
    html("span", { class: "bar-track", vars: { part: (rates[g] ?? 0) / most } }, html("i")),
    html("span", { class: "n" }, percent(rates[g])),
  ]);
  const caption = `share of strongly active tokens in each group, ${model}`;
  return html("figure", {}, html("figcaption", {}, caption), html("div", { class: "places" }, rows));
}

function whenItFires(c, j, record) {
  const nActive = c.value("n_active", j);
  const rows = [];
  const add = (name, title, format) => c.has(name) && rows.push(fact(c, name, title, format(c.value(name, j)), j));
  add("frequency", "active", (share) => `${percent(share)} (${count(nActive)} tokens)`);
  add("max_activation", "highest activation", (score) => decimal(score));
  add("mean_activation", "mean activation where active", (score) => decimal(score));
  add("frac_template", "template share", percent);
  if (record.contexts) rows.push([html("dt", {}, "contexts"), html("dd", {}, count(record.contexts)), html("dd")]);
  return section("When it fires", html("dl", { class: "facts" }, rows),
    nActive > 0 && record.histogram ? activationHistogram(record.histogram, c.value("max_activation", j)) : null,
    nActive > 0 && record.positions ? positionProfile(record.positions, c.lastPosition) : null,
    nActive > 0 && record.places ? placeBars(c.groups, record.places) : null);
}

function smallBars(heights, title, left, right) {
  const width = 300 / heights.length;
  const bar = (height, i) => `M${i * width} 48h${width - 1}v${-46 * height}h${1 - width}z`;
  const frame = svg("svg", { viewBox: "0 0 300 62", class: "small-bars", role: "img", "aria-label": title },
    svg("line", { class: "axis-line", x1: 0, x2: 300, y1: 48, y2: 48 }),
    svg("path", { class: "plain", d: heights.map(bar).join("") }),
    svg("text", { class: "tick", x: 0, y: 60 }, left),
    svg("text", { class: "tick", x: 300, y: 60, "text-anchor": "end" }, right));
  return html("figure", {}, html("figcaption", {}, title), frame);
}

function activationHistogram(bins, highest) {
  const most = Math.log(Math.max(...bins) + 1) || 1;
  return smallBars(bins.map((n) => Math.log(n + 1) / most), "tokens by activation, log scale", "0", decimal(highest));
}

function positionProfile(shares, last) {
  const most = Math.max(...shares) || 1;
  const title = `by position in the context, up to ${percent(most)}`;
  return smallBars(shares.map((share) => share / most), title, "0", String(last));
}

function placeBars(groups, places) {
  const most = Math.max(...places.map(([, frequency]) => frequency ?? 0)) || 1;
  const rows = groups.map((name, g) => {
    const [nActive, frequency, highest] = places[g];
    const title = `${count(nActive)} tokens, highest activation ${decimal(highest)}`;
    const bar = html("span", { class: "bar-track", title, vars: { part: (frequency ?? 0) / most } }, html("i"));
    return [html("span", {}, name), bar, html("span", { class: "n" }, percent(frequency))];
  });
  const caption = "share of active tokens in each group";
  return html("figure", {}, html("figcaption", {}, caption), html("div", { class: "places" }, rows));
}

const TWINS = "Latents that write the same direction into the other model. Divergence 0: both are always high on the "
  + "same tokens, 1: never. Then the numbers of tokens on which only this one is high, only the twin, and either.";

function twinsOf(c, record) {
  if (!record.twins) return null;
  const heads = ["latent", "cosine", "divergence", "this / twin / either high"];
  const rows = record.twins.map((twin) => {
    const counts = [twin.n_only_own, twin.n_only_twin, twin.n_high].map(count).join(" / ");
    const twinLink = link({ ...state, latent: twin.latent }, String(twin.latent));
    const cells = [twinLink, decimal(twin.cosine), decimal(twin.divergence), counts];
    return html("tr", {}, cells.map((cell) => html("td", { class: "n" }, cell)));
  });
  const head = html("tr", {}, heads.map((text) => html("th", { class: "n", scope: "col" }, text)));
  return section("Twins", html("p", { class: "soft" }, TWINS),
    html("div", { class: "scroll" }, html("table", {}, html("thead", {}, head), html("tbody", {}, rows))));
}

const EFFECTS = "Change of the KL from the chat model, in nats per token of its answers; below 0 is nearer to it.";

function effectOf(c, record) {
  const effect = record.effect;
  if (!effect) return null;
  const rows = [["added to base", "kl_change_added"], ["removed from chat", "kl_change_removed"]]
    .filter(([, name]) => Number.isFinite(effect[name]))
    .map(([title, name]) => effectRow(title, effect[name], c.random?.bands[name]));
  const band = c.random ? ` Shaded: the central 95 % of ${c.random.n} random latents.` : "";
  const changed = (list) =>
    html("span", { class: "tokens" }, pairsOf(list).map(([text, change]) => token(text, `${decimal(change)} logits`)));
  return section("What it causes", html("p", { class: "soft" }, EFFECTS + band), html("div", { class: "forest" }, rows),
    effect.raises?.length
      ? html("p", { class: "soft" }, "It raises ", changed(effect.raises), "and lowers ", changed(effect.lowers))
      : null);
}

function effectRow(title, value, band) {
  const ends = [0, value, ...(band ?? [])];
  const margin = (Math.max(...ends) - Math.min(...ends)) * 0.08 || 1;
  const x = linear(Math.min(...ends) - margin, Math.max(...ends) + margin, 4, 136);
  const frame = svg("svg", { viewBox: "0 0 140 18", "aria-hidden": "true" },
    band ? svg("rect", { class: "random", x: x(band[0]), width: x(band[1]) - x(band[0]), y: 3, height: 12 }) : null,
    svg("line", { class: "grid", x1: x(0), x2: x(0), y1: 1, y2: 17 }),
    svg("circle", { class: "outside", cx: x(value), cy: 9, r: 3.5 }));
  return forestCells(title, frame, decimal(value, 4), band ? `[${decimal(band[0], 4)}, ${decimal(band[1], 4)}]` : "");
}
