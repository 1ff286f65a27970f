// Examples as strips of tokens. Active tokens have two stripes, base above and chat below: their opacity is the
// activation times that model's share. A line under a token shows the KL between the models' next predictions.
const tip = html("div", { id: "tip", role: "status", hidden: true });

function strip(tokens, peak, active, models, scale) {
  const marks = new Map();
  const width = 2 + models.length;
  const [faintest, strongest] = about.strength;
  for (let i = 0; i < active.length; i += width) marks.set(active[i], active.slice(i + 1, i + width));
  const line = html("span", { class: "strip" });
  tokens.forEach(({ text, kl }, i) => {
    const [score, ...shares] = marks.get(i) ?? [0];
    const vars = {};
    if (score > 0) {
      const strength = faintest + (strongest - faintest) * Math.min(1, score / scale);
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
    shown.about = { text, score, shares, kl, models };
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
  const { text, score, shares, kl, models } = under.about;
  const rows = [["token", text.trim() || "space"]];
  rows.push(["activation", score > 0 ? decimal(score) : "inactive"]);
  if (score > 0) models.forEach((model, m) => rows.push([`${model}'s share`, decimal(shares[m])]));
  if (kl !== null) rows.push(["KL after it", `${decimal(kl)} nats`]);
  tip.replaceChildren(html("dl", {}, rows.map(([name, value]) => [html("dt", {}, name), html("dd", {}, value)])));
  tip.hidden = false;
  const box = under.getBoundingClientRect();
  const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const below = box.bottom + 6 + tip.offsetHeight < innerHeight;
  tip.style.setProperty("left", `${Math.max(8, left) + scrollX}px`);
  tip.style.setProperty("top", `${(below ? box.bottom + 6 : box.top - tip.offsetHeight - 6) + scrollY}px`);
}

function stripLegend(models, hasKl) {
  const swatch = (name) => html("span", { class: `swatch ${name}` });
  const caption = (model, m) => (m === 0 ? `${model}'s share of the activation (upper stripe)` : `${model}'s (lower)`);
  return html("p", { class: "legend soft" },
    models.map((model, m) => html("span", {}, swatch(`share-${m}`), caption(model, m))),
    hasKl ? html("span", {}, swatch("kl"), "KL: the models expect different tokens next") : null);
}
