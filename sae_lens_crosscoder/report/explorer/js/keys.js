// The keyboard: as in many readers, j and k, / and ?.
function onKey(event) {
  const isTyping = event.target.matches("input, textarea, select");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    if (isTyping) event.target.blur();
    else if (state.latent !== null) go({ latent: null });
    return;
  }
  if (isTyping || document.querySelector("dialog[open]")) return;
  const isControl = event.target.closest("a, button, [role=button]") !== null;
  const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
  if (event.key === "/") focusSearch();
  else if (event.key === "?") document.getElementById("help").showModal();
  else if (state.latent !== null && (event.key === "j" || event.key === "k")) stepLatent(step);
  else if (state.latent === null && step) table.move(table.cursor + step);
  else if (state.latent === null && event.key === "Enter" && !isControl) openCursor();
  else return;
  event.preventDefault();
}

function focusSearch() {
  if (state.latent !== null) go({ latent: null });
  document.getElementById("search").focus();
}

function stepLatent(step) {
  const next = order[placeOf(state.latent) + step];
  if (next !== undefined) go({ latent: next });
}

function openCursor() {
  if (table.latents.length) go({ latent: table.latents[table.cursor] });
}
