// Unpacks what the page carries: gzip in base64, in elements of their own, each unpacked when it is first asked for.
const about = JSON.parse(document.getElementById("about").textContent);
const unpackings = new Map();

// The element with this id, when the browser has read all of it.
async function placed(id) {
  const isWhole = (node) => node !== null && (node.nextElementSibling !== null || document.readyState !== "loading");
  if (!isWhole(document.getElementById(id)) && document.readyState === "loading") {
    await new Promise((resolve) => document.addEventListener("DOMContentLoaded", resolve, { once: true }));
  }
  return document.getElementById(id);
}

// For browsers without Uint8Array.fromBase64, which is many times as fast.
const decoded = (text) => Uint8Array.fromBase64?.(text) ?? Uint8Array.from(atob(text), (byte) => byte.charCodeAt(0));

async function unpack(id) {
  const bytes = decoded((await placed(id)).textContent);
  // Written into the stream here: a blob's bytes would come back from another process.
  const stream = new DecompressionStream("gzip");
  const writer = stream.writable.getWriter();
  writer.write(bytes);
  writer.close();
  return new Response(stream.readable).arrayBuffer();
}

function once(id, read) {
  if (!unpackings.has(id)) unpackings.set(id, unpack(id).then(read));
  return unpackings.get(id);
}

const asJson = (buffer) => JSON.parse(new TextDecoder().decode(buffer));

// Rows of unequal length: where each ends, then all entries.
function asRagged(n) {
  return (buffer) => {
    const numbers = new Uint32Array(buffer);
    return (row) => numbers.subarray(n + (row > 0 ? numbers[row - 1] : 0), n + numbers[row]);
  };
}

let texts = [];

async function openCrosscoder(meta) {
  const [words, numbers, fires, writes, concepts] = await Promise.all([
    once("texts", asJson),
    once(`${meta.key}-columns`, (buffer) => new Float32Array(buffer)),
    ...["fires", "writes", "concepts"].map((name) => once(`${meta.key}-${name}`, asRagged(meta.n))),
  ]);
  texts = words;
  const columns = new Map(meta.columns.map((name, i) => [name, numbers.subarray(i * meta.n, (i + 1) * meta.n)]));
  const value = (name, latent) => (columns.has(name) ? columns.get(name)[latent] : NaN);
  return {
    ...meta,
    has: (name) => columns.has(name) && columns.get(name).some((number) => !Number.isNaN(number)),
    column: (name) => columns.get(name),
    value,
    category: (name, latent) => (name in meta.categories ? meta.categories[name][value(name, latent)] : undefined),
    isDead: (latent) => value("dead", latent) === 1,
    fires,
    writes,
    concepts,
    sorted: new Map(),
  };
}

async function recordOf(crosscoder, latent) {
  const size = about.latentsPerBlock;
  const block = await once(`${crosscoder.key}-latents-${Math.floor(latent / size)}`, asJson);
  return block[latent % size];
}

// Texts, and KL where it is known, of `length` tokens from `start`, which may lie in two blocks of the pool.
async function tokensOf(crosscoder, start, length) {
  const size = about.tokensPerBlock;
  const tokens = [];
  for (let b = Math.floor(start / size); b * size < start + length; b++) {
    const block = await once(`${crosscoder.key}-tokens-${b}`, asPool(crosscoder.hasKl));
    const last = Math.min(start + length - b * size, block.texts.length);
    for (let i = Math.max(0, start - b * size); i < last; i++) {
      tokens.push({ text: texts[block.texts[i]], kl: block.kl === null ? null : block.kl[i] * about.klStep });
    }
  }
  return tokens;
}

// uint32 texts, then, if KL is known, as many bytes.
function asPool(hasKl) {
  return (buffer) => {
    const n = buffer.byteLength / (hasKl ? 5 : 4);
    return { texts: new Uint32Array(buffer, 0, n), kl: hasKl ? new Uint8Array(buffer, 4 * n, n) : null };
  };
}
