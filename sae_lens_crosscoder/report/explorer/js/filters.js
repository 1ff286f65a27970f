// Which latents are in the table, and in which order.
function matcher(crosscoder, query) {
  const terms = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (terms.length === 0) return null;
  crosscoder.searched ??= Array.from({ length: crosscoder.n }, (_, j) =>
    [crosscoder.fires(j), crosscoder.writes(j), crosscoder.concepts(j)]
      .map((ids) => Array.from(ids, (id) => texts[id]).join(" "))
      .join(" ")
      .toLowerCase());
  return (j) => terms.every((term) => crosscoder.searched[j].includes(term) || term === String(j));
}

// A test per part of the state, so that a part can be left out where its own choices are counted.
function testsOf(crosscoder, wanted) {
  const tests = {};
  const found = matcher(crosscoder, wanted.q);
  if (found !== null) tests.q = found;
  if (!wanted.all) tests.all = (j) => !crosscoder.isDead(j);
  for (const name of CHOICES) {
    if (wanted[name].length) tests[name] = (j) => wanted[name].includes(crosscoder.category(name, j));
  }
  for (const [name, [low, high]] of Object.entries(wanted.ranges)) {
    const column = crosscoder.column(name);
    // Columns are float32, so the ends are rounded as they are.
    const [from, to] = [Math.fround(low ?? -Infinity), Math.fround(high ?? Infinity)];
    tests[name] = (j) => column[j] >= from && column[j] <= to;
  }
  return tests;
}

function passing(crosscoder, tests, leftOut = []) {
  const used = Object.entries(tests).filter(([name]) => !leftOut.includes(name)).map(([, test]) => test);
  const latents = [];
  for (let j = 0; j < crosscoder.n; j++) if (used.every((test) => test(j))) latents.push(j);
  return latents;
}

// Latents without the number come last, whichever way the others go.
function inOrder(crosscoder, latents, sort) {
  const name = sort.replace(/^-/, "");
  const sign = sort.startsWith("-") ? -1 : 1;
  if (name === "latent") return latents.sort((a, b) => sign * (a - b));
  const column = name in crosscoder.categories && name === "verdict"
    ? Float32Array.from({ length: crosscoder.n }, (_, j) => VERDICTS.indexOf(crosscoder.category(name, j)))
    : crosscoder.column(name);
  const active = crosscoder.column("n_active") ?? column;
  return latents.sort((a, b) => {
    const [missingA, missingB] = [Number.isNaN(column[a]), Number.isNaN(column[b])];
    if (missingA || missingB) return missingA - missingB || a - b;
    return sign * (column[a] - column[b]) || active[b] - active[a] || a - b;
  });
}
