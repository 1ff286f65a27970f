// Examples as strips of tokens: behind each token the models' shares of the score, base above and chat below, and
// under it a line for how far the models are apart about what comes next.
const FULL_KL = 4; // nats at which the line is darkest

const tip = html("div", { id: "tip", role: "status", hidden: true });

function strip(tokens, peak, active, models, scale) {
  const marks = new Map();
  const width = 2 + models.length;
  for (let i = 0; i < active.length; i += width) marks.set(active[i], active.slice(i + 1, i + width));
  const line = html("span", { class: "strip" });
  tokens.forEach(({ text, kl }, i) => {
    const [score, ...shares] = marks.get(i) ?? [0];
    const token = html("span", { class: `tok${i === peak ? " peak" : ""}` }, text);
    if (score > 0) {
      token.classList.add("on");
      models.forEach((_, m) => token.style.setProperty(`--share-${m}`, `${Math.round(75 * Math.max(0, Math.min(1, shares[m] / scale)))}%`));
    }
    if (kl !== null && kl >= about.klStep) token.style.setProperty("--kl", `${Math.round(100 * Math.sqrt(Math.min(1, kl / FULL_KL)))}%`);
    token.about = { text, score, shares, kl, models };
    line.append(token);
  });
  return line;
}

function showTip(event) {
  const token = event.target.closest?.(".tok");
  if (!token) {
    tip.hidden = true;
    return;
  }
  const { text, score, shares, kl, models } = token.about;
  const rows = [["token", text.trim() || "space"]];
  if (score > 0) rows.push(["score", decimal(score)], ...models.map((model, m) => [`${model}'s share`, decimal(shares[m])]));
  else rows.push(["score", "off"]);
  if (kl !== null) rows.push(["KL after it", `${decimal(kl)} nats`]);
  tip.replaceChildren(html("dl", {}, rows.map(([name, value]) => [html("dt", {}, name), html("dd", {}, value)])));
  tip.hidden = false;
  const box = token.getBoundingClientRect();
  const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const below = box.bottom + 6 + tip.offsetHeight < innerHeight;
  tip.style.setProperty("left", `${Math.max(8, left) + scrollX}px`);
  tip.style.setProperty("top", `${(below ? box.bottom + 6 : box.top - tip.offsetHeight - 6) + scrollY}px`);
}

function stripLegend(models, hasKl) {
  const swatch = (m) => html("span", { class: `swatch share-${m}` });
  return html("p", { class: "legend soft" },
    models.map((model, m) => [swatch(m), m === 0 ? `${model}'s share of the score (upper half)` : `${model}'s (lower half)`]),
    hasKl ? [html("span", { class: "swatch kl" }), "how far the models are apart about the next token (KL)"] : null);
}
