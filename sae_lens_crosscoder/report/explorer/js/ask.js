// Asks the server that this page comes from. Its answers are lines of JSON, of which the last is the result.
const accessToken = new URLSearchParams(location.search).get("token") ?? "";

async function* linesOf(path, body, signal) {
  const headers = { Authorization: `Bearer ${accessToken}`, "Content-Type": "application/json" };
  const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) throw new Error((await response.json()).error.message);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

// The result; `onLine` gets every line before it.
async function ask(path, body, signal, onLine) {
  for await (const line of linesOf(path, body, signal)) {
    if (line.event === "error") throw new Error(line.error.message);
    if (line.event === "latents" || line.event === "answers") return line;
    onLine(line);
  }
  throw new Error("The server stopped before the result.");
}

// Text of models as it can be shown: characters that are not seen, or that turn the text around them, by their numbers.
const seen = (text) => text.replace(/[^\P{C}\n\t]/gu, (char) => `\\u${char.codePointAt(0).toString(16).padStart(4, "0")}`);
