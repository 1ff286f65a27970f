// The panel "Try": a prompt, its tokens with their latents, edits of latents, and what both models answer.
const HOWS = { ablate: "remove", scale: "scale by", steer: "steer by", add: "add the other model's \u00d7", replace: "replace by the other model's \u00d7" };
const trial = { crosscoder: null, isChat: about.live.has_chat_template, reading: null, token: 0, latent: null, running: null };
const editsOf = new Map();
const limits = about.live.limits;

const field = (label, node) => html("label", {}, label, node);
const action = (text, onclick, more = {}) => html("button", { type: "button", class: "chip", onclick, ...more }, text);
const panel = {
  turns: html("div", { class: "turns" }),
  asChat: html("input", { type: "checkbox", onchange: (event) => { trial.isChat = event.target.checked; drawTurns(); } }),
  length: html("input", { type: "number", min: 1, max: limits.max_new_tokens, value: Math.min(32, limits.max_new_tokens) }),
  temperature: html("input", { type: "number", min: 0, max: limits.max_temperature, step: 0.1, value: 0 }),
  seed: html("input", { type: "number", min: 0, step: 1, value: 0 }),
  read: action("Read latents", () => run(readLatents), { id: "read" }),
  answer: action("Answer", () => run(readAnswers), { id: "answer" }),
  cancel: action("Cancel", () => trial.running?.abort(), { id: "cancel", disabled: true }),
  status: html("p", { class: "status soft", role: "status" }),
  reading: html("div", { class: "reading-of" }),
  edits: html("div", { class: "edits" }),
  answers: html("div", { class: "answers", "aria-live": "polite" }),
};

// The turns of a chat, or one text.
function turn(role) {
  const roles = ["system", "user", "assistant"];
  const select = html("select", { "aria-label": "role" }, roles.map((name) => html("option", { selected: name === role }, name)));
  const text = html("textarea", { rows: 2, "aria-label": "prompt", placeholder: "prompt", onkeydown: onPromptKey });
  const node = html("div", { class: "turn" }, select, text,
    action("\u00d7", () => { node.remove(); drawTurns(); }, { "aria-label": "remove this turn" }));
  return node;
}

function addTurn() {
  const last = panel.turns.lastElementChild?.querySelector("select").value;
  const added = turn(last === "user" ? "assistant" : "user");
  panel.turns.append(added);
  drawTurns();
  added.querySelector("textarea").focus();
}

function drawTurns() {
  if (panel.turns.childElementCount === 0) panel.turns.append(turn("user"));
  [...panel.turns.children].forEach((node, i) => {
    node.hidden = !trial.isChat && i > 0;
    node.querySelector("select").hidden = !trial.isChat;
    node.querySelector("button").hidden = !trial.isChat || panel.turns.childElementCount === 1;
  });
  document.getElementById("add-turn").hidden = !trial.isChat;
}

function onPromptKey(event) {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  run(event.shiftKey ? readLatents : readAnswers);
}

function promptOf() {
  const turns = [...panel.turns.children].map((node) => ({
    role: node.querySelector("select").value, content: node.querySelector("textarea").value,
  }));
  return trial.isChat ? { messages: turns } : { prompt: turns[0].content };
}

// One request at a time; pressing Cancel closes its connection, which stops the models.
async function run(request) {
  if (trial.running) return;
  trial.running = new AbortController();
  drawBusy(true);
  say("asking");
  try {
    await request(trial.running.signal);
    say("");
  } catch (error) {
    say(error.name === "AbortError" ? "cancelled" : error.message, error.name !== "AbortError");
  }
  trial.running = null;
  drawBusy(false);
}

function drawBusy(isBusy) {
  panel.read.disabled = panel.answer.disabled = isBusy;
  panel.cancel.disabled = !isBusy;
}

function say(text, isError = false) {
  panel.status.textContent = seen(text);
  panel.status.classList.toggle("error", isError);
}

function sayPosition(line) {
  if (line.event !== "queued") return;
  say(line.position === 0 ? "running" : `waiting: ${count(line.position)} ${line.position === 1 ? "request" : "requests"} before this one`);
}

async function readLatents(signal) {
  const body = { ...promptOf(), crosscoder: crosscoder.name };
  const reading = await ask("api/latents", body, signal, sayPosition);
  const token = Math.max(0, reading.tokens.findLastIndex(({ top }) => top.length > 0));
  Object.assign(trial, { reading, token, latent: reading.tokens[token].top[0]?.latent ?? null });
  drawReading();
}

async function readAnswers(signal) {
  const edits = editsOf.get(crosscoder.name) ?? [];
  const [max_new_tokens, temperature, seed] = [panel.length, panel.temperature, panel.seed].map(({ value }) => Number(value));
  const body = { ...promptOf(), crosscoder: crosscoder.name, edits, max_new_tokens, temperature, seed };
  const texts = drawAnswers(edits.length > 0);
  const onLine = (line) => {
    sayPosition(line);
    if (line.event === "text") texts[`${line.model} ${line.edited}`].append(seen(line.text));
  };
  const { answers } = await ask("api/answers", body, signal, onLine);
  for (const { model, edited, text, ended } of answers) {
    texts[`${model} ${edited}`].replaceChildren(text ? seen(text) : soft("nothing"), ended ? "" : soft(" \u2026"));
  }
}

function drawAnswers(areEdited) {
  const texts = {};
  const cells = (areEdited ? [false, true] : [false]).map((edited) => crosscoder.models.map((model, m) => {
    const text = html("p", { class: "answer" });
    texts[`${["base", "chat"][m]} ${edited}`] = text;
    return html("section", { class: `share-${m}` }, html("h4", {}, model, soft(edited ? " with the edits" : areEdited ? " as it is" : "")), text);
  }));
  panel.answers.replaceChildren(...cells.flat());
  return texts;
}

// The prompt's tokens, shaded by one latent, and the latents of one token.
function drawReading() {
  const { reading, token, latent } = trial;
  if (reading === null) {
    panel.reading.replaceChildren();
    return;
  }
  const shown = reading.latents.find((each) => each.latent === latent);
  const active = shown ? shown.tokens.flatMap((place, i) => [place, shown.activations[i], ...shown.shares[i]]) : [];
  const tokens = reading.tokens.map(({ text, kl_nats }) => ({ text: seen(text).replaceAll("\n", "\u21b5"), kl: kl_nats }));
  const line = strip(tokens, token, active, crosscoder.models, Math.max(...(shown?.activations ?? [1])));
  fill(line, { tabindex: 0, "aria-label": "tokens of the prompt; left and right choose one", onclick: chooseToken, onkeydown: onStripKey }, []);
  panel.reading.replaceChildren(
    html("h4", {}, latent === null ? "The prompt" : ["The prompt, shaded by latent ", link({ ...state, latent }, String(latent))]),
    line, stripLegend(crosscoder.models, true), ...latentsOfToken(reading.tokens[token]));
}

function latentsOfToken({ text, top, n_active, kl_nats, dominant }) {
  const what = dominant ? "its norm dominates, so latents are not read" : `${count(n_active)} latents are active`;
  const head = html("h4", {}, "At ", token(seen(text)), soft(` ${what}; KL after it ${decimal(kl_nats)} nats`));
  const row = ({ latent, activation, shares }) => html("tr", { class: latent === trial.latent ? "cursor" : null },
    html("td", { class: "n" }, link({ ...state, latent }, String(latent))),
    html("td", { class: "n" }, decimal(activation)),
    shares.map((share) => html("td", { class: "n" }, decimal(share))),
    html("td", {}, action("shade", () => { trial.latent = latent; drawReading(); }), " ",
      action("ablate", () => addEdit(latent, "ablate")), " ",
      about.live.crosscoders.find(({ name }) => name === crosscoder.name).can_steer ? action("steer", () => addEdit(latent, "steer")) : null),
    html("td", { class: "t tokens" }, tokenList(crosscoder.fires(latent))));
  const heads = ["latent", "activation", ...crosscoder.models.map((model) => `${model}'s share`)];
  const table = html("table", {}, html("thead", {}, html("tr", {}, heads.map((name) => html("th", { class: "n", scope: "col" }, name)),
    html("th", {}), html("th", { class: "t" }, "active on"))), html("tbody", {}, top.map(row)));
  return [head, html("div", { class: "scroll" }, table)];
}

function chooseToken(event) {
  const place = [...event.currentTarget.children].indexOf(event.target.closest(".tok"));
  if (place >= 0) showToken(place);
}

function onStripKey(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  showToken(Math.min(Math.max(0, trial.token + step), trial.reading.tokens.length - 1));
  panel.reading.querySelector(".strip").focus();
}

function showToken(place) {
  const { top } = trial.reading.tokens[place];
  trial.token = place;
  if (!top.some(({ latent }) => latent === trial.latent)) trial.latent = top[0]?.latent ?? trial.latent;
  drawReading();
}

// Edits are kept for each crosscoder, as the server takes them.
function addEdit(latent, how) {
  const edits = editsOf.get(crosscoder.name) ?? [];
  if (edits.length < limits.max_edits) editsOf.set(crosscoder.name, [...edits, { latents: [latent], how, model: null, coefficient: 1 }]);
  else say(`There are ${edits.length} edits already, and the limit is ${limits.max_edits}.`, true);
  drawEdits();
}

function drawEdits() {
  const edits = editsOf.get(crosscoder.name) ?? [];
  const { can_steer } = about.live.crosscoders.find(({ name }) => name === crosscoder.name);
  const hows = Object.keys(HOWS).filter((how) => how !== "steer" || can_steer);
  panel.edits.replaceChildren(...edits.map((edit) => {
    const coefficient = html("input", { type: "number", step: 0.5, value: edit.coefficient, "aria-label": "coefficient",
      hidden: edit.how === "ablate", oninput: (event) => { edit.coefficient = Number(event.target.value); } });
    const how = html("select", { "aria-label": "edit", onchange: (event) => { edit.how = event.target.value; drawEdits(); } },
      hows.map((name) => html("option", { value: name, selected: name === edit.how }, HOWS[name])));
    const models = [["", "both models"], ["base", crosscoder.models[0]], ["chat", crosscoder.models[1]]];
    const carries = edit.how === "add" || edit.how === "replace";
    const model = html("select", { "aria-label": "model", onchange: (event) => { edit.model = event.target.value || null; } },
      models.filter(([value]) => value || !carries).map(([value, name]) => html("option", { value, selected: value === (edit.model ?? (carries ? "base" : "")) }, name)));
    const remove = () => { editsOf.set(crosscoder.name, edits.filter((each) => each !== edit)); drawEdits(); };
    return html("div", { class: "edit" }, "latent ", edit.latents.map((latent) => link({ ...state, latent }, String(latent))),
      how, coefficient, "in", model, action("\u00d7", remove, { "aria-label": "remove this edit" }));
  }));
}

const editButton = (latent) => action("edit in Try", () => { addEdit(latent, "ablate"); tryPanel.open = true; });

// Called whenever the page shows something else: another crosscoder has other latents.
function drawTry() {
  if (trial.crosscoder === crosscoder.name) return;
  Object.assign(trial, { crosscoder: crosscoder.name, reading: null, latent: null });
  drawReading();
  drawEdits();
  panel.answers.replaceChildren();
}

panel.asChat.checked = trial.isChat;
const tryPanel = html("details", { id: "try", open: true },
  html("summary", {}, "Try"),
  panel.turns,
  html("div", { class: "filters" },
    action("add a turn", addTurn, { id: "add-turn" }),
    about.live.has_chat_template ? field("as a chat", panel.asChat) : null,
    field("longest answer ", panel.length), field("temperature ", panel.temperature), field("seed ", panel.seed), panel.read, panel.answer, panel.cancel),
  panel.status, panel.edits, panel.answers, panel.reading);
document.querySelector("header").after(tryPanel);
drawTurns();
