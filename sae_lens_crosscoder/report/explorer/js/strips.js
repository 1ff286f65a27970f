// Examples as strips of tokens. Active tokens have two stripes, base above and chat below: their opacity is the
// activation times that model's share. A line under a token shows the KL between the models' next predictions. Below it
// is a line per model, as dark as the code of that model alone.
const tip = html("div", { id: "tip", role: "status", hidden: true });

const strengthOf = (part) => about.strength[0] + (about.strength[1] - about.strength[0]) * Math.min(1, part);

// Entries of a flat list, such as place, activation, shares, by their place.
function byPlace(flat, width) {
  const entries = new Map();
  for (let i = 0; i < flat.length; i += width) entries.set(flat[i], flat.slice(i + 1, i + width));
  return entries;
}

function strip(tokens, peak, active, models, scale, alone) {
  const marks = byPlace(active, 2 + models.length);
  const codes = byPlace(alone ?? [], 1 + models.length);
  const line = html("span", { class: alone ? "strip alone" : "strip", vars: { models: models.length } });
  tokens.forEach(({ text, kl }, i) => {
    const [score, ...shares] = marks.get(i) ?? [0];
    const vars = {};
    if (score > 0) {
      const strength = strengthOf(score / scale);
      const largest = Math.max(...shares);
      shares.forEach((share, m) => {
        vars[`share-${m}`] = `${Math.round(strength * Math.max(0, share / largest))}%`;
      });
    }
    if (kl !== null && kl >= about.klStep) {
      vars.kl = `${Math.round(100 * Math.sqrt(Math.min(1, kl / about.fullKl)))}%`;
    }
    const names = `tok${i === peak ? " peak" : ""}${score > 0 ? " on" : ""}`;
    const shown = html("span", { class: names, vars }, i === 0 ? text.trimStart() || text : text);
    shown.about = { text, score, shares, kl, models, alone: alone ? codes.get(i) ?? models.map(() => 0) : null };
    (codes.get(i) ?? []).forEach((code, m) => {
      const vars = { track: m, code: `${Math.round(strengthOf(code / scale))}%` };
      if (code > 0) shown.append(html("i", { class: `share-${m % about.nHues}`, vars }));
    });
    line.append(shown);
  });
  return line;
}

function showTip(event) {
  const under = event.target.closest?.(".tok");
  if (!under) {
    tip.hidden = true;
    return;
  }
  const { text, score, shares, kl, models, alone } = under.about;
  const rows = [["token", text.trim() || "space"]];
  rows.push(["activation", score > 0 ? decimal(score) : "inactive"]);
  if (score > 0) models.forEach((model, m) => rows.push([`${model}'s share`, decimal(shares[m])]));
  if (alone) models.forEach((model, m) => rows.push([`${model} alone`, alone[m] > 0 ? decimal(alone[m]) : "inactive"]));
  if (kl !== null) rows.push(["KL after it", `${decimal(kl)} nats`]);
  tip.replaceChildren(html("dl", {}, rows.map(([name, value]) => [html("dt", {}, name), html("dd", {}, value)])));
  tip.hidden = false;
  const box = under.getBoundingClientRect();
  const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const below = box.bottom + 6 + tip.offsetHeight < innerHeight;
  tip.style.setProperty("left", `${Math.max(8, left) + scrollX}px`);
  tip.style.setProperty("top", `${(below ? box.bottom + 6 : box.top - tip.offsetHeight - 6) + scrollY}px`);
}

function stripLegend(models, hasKl, hasAlone) {
  const swatch = (name) => html("span", { class: `swatch ${name}` });
  const places = models.length === 2 ? ["upper stripe", "lower"] : ["upper stripe", ...models.slice(1).map((_, m) => `stripe ${m + 2}`)];
  const caption = (model, m) => `${model}'s${m === 0 ? " share of the activation" : ""} (${places[m]})`;
  return html("p", { class: "legend soft" },
    models.map((model, m) => html("span", {}, swatch(`share-${m}`), caption(model, m))),
    hasKl ? html("span", {}, swatch("kl"), "KL: the models expect different tokens next") : null,
    hasAlone ? models.map((model, m) => html("span", {}, swatch(`line share-${m % about.nHues}`), `${model} alone`)) : null);
}
