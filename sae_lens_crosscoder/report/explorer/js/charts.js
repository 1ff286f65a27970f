// The figures, drawn as SVG (and points on a canvas), in the size of the element that they are in.
const linear = (from, to, low, high) => (value) => low + ((value - from) / (to - from)) * (high - low);

function axisTicks(scale, values, y, format = (value) => decimal(value, 1)) {
  return values.map((value) =>
    svg("g", { class: "tick", transform: `translate(${scale(value)},${y})` },
      svg("line", { y2: 4 }), svg("text", { y: 16, "text-anchor": "middle" }, format(value))));
}

// Lets a rectangle be dragged over a figure; with `y` null, a range of x. A click clears it.
function brush(frame, area, x, y, selected, onSelect) {
  const shade = svg("rect", { class: "brushed", width: 0, height: 0 });
  const cover = svg("rect", { class: "cover", ...area });
  const [left, right, top, bottom] = [area.x, area.x + area.width, area.y, area.y + area.height];
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const draw = (x0, x1, y0, y1) =>
    fill(shade, { x: x0, y: y0, width: Math.max(0, x1 - x0), height: Math.max(0, y1 - y0) }, []);
  if (selected !== null) {
    const [xs, ys] = selected;
    const across = [x(xs[0] ?? -1e9), x(xs[1] ?? 1e9)].map((at) => clamp(at, left, right));
    const down = y === null ? [top, bottom] : [y(ys[1] ?? 1e9), y(ys[0] ?? -1e9)].map((at) => clamp(at, top, bottom));
    draw(...across, ...down);
  }
  let start = null;
  const at = (event) => {
    const box = frame.getBoundingClientRect();
    return [clamp(event.clientX - box.left, left, right), clamp(event.clientY - box.top, top, bottom)];
  };
  const spanned = (event) => {
    const end = at(event);
    const [xs, ys] = [0, 1].map((i) => [Math.min(start[i], end[i]), Math.max(start[i], end[i])]);
    return [...xs, ...(y === null ? [top, bottom] : ys)];
  };
  cover.addEventListener("pointerdown", (event) => {
    start = at(event);
    cover.setPointerCapture(event.pointerId);
  });
  cover.addEventListener("pointermove", (event) => start !== null && draw(...spanned(event)));
  cover.addEventListener("pointerup", (event) => {
    if (start === null) return;
    const [x0, x1, y0, y1] = spanned(event);
    start = null;
    const isClick = x1 - x0 < 3 && (y === null || y1 - y0 < 3);
    const down = y === null ? null : [inverse(y, y1), inverse(y, y0)];
    onSelect(isClick ? null : [[inverse(x, x0), inverse(x, x1)], down]);
  });
  frame.append(shade, cover);
}

const inverse = (scale, at) => (at - scale(0)) / (scale(1) - scale(0));
const rounded = (range) => range.map((end) => Number(end.toFixed(3)));

const N_BINS = 50;

function binned(column, latents) {
  const bins = new Uint32Array(N_BINS);
  for (const j of latents) if (!Number.isNaN(column[j])) bins[Math.min(N_BINS - 1, Math.floor(column[j] * N_BINS))]++;
  return bins;
}

// Delta_norm of the latents that pass, in front of that of all; a log axis, from 0.7 so that one latent has a height.
function drawHistogram(host, crosscoder, shown, all) {
  const [width, height, left, right, top, bottom] = [host.clientWidth, 210, 38, 10, 34, 24];
  const column = crosscoder.column("delta_norm");
  const back = binned(column, all);
  const most = Math.max(2, ...back);
  const x = linear(0, 1, left, width - right);
  const log = linear(Math.log(0.7), Math.log(most * 1.15), height - bottom, top);
  const y = (n) => log(Math.log(n));
  const said = "Delta_norm of the latents, from 0, base only, to 1, chat only";
  const frame = svg("svg", { width, height, role: "img", "aria-label": said });
  for (let power = 1; power <= most; power *= 10) {
    frame.append(
      svg("line", { class: "grid", x1: left, x2: width - right, y1: y(power), y2: y(power) }),
      svg("text", { class: "tick", x: left - 6, y: y(power) + 4, "text-anchor": "end" }, count(power)));
  }
  const regionAt = (delta) => about.regions[about.classBorders.filter((border) => border < delta).length];
  for (const [bins, layer] of [[back, "back"], [binned(column, shown), "front"]]) {
    bins.forEach((n, i) => n > 0 && frame.append(svg("rect", {
      class: `bar ${layer} ${regionAt((i + 0.5) / N_BINS)}`,
      x: x(i / N_BINS) + 0.5,
      width: x(1 / N_BINS) - x(0) - 1,
      y: y(n),
      height: height - bottom - y(n),
    })));
  }
  for (const border of about.classBorders) {
    frame.append(svg("line", { class: "border", x1: x(border), x2: x(border), y1: top - 4, y2: height - bottom }));
  }
  const ticks = [0, ...about.classBorders.slice(0, 2), 0.5, ...about.classBorders.slice(2), 1];
  frame.append(
    svg("line", { class: "axis-line", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
    ...axisTicks(x, ticks, height - bottom));
  const selected = "delta_norm" in state.ranges ? [state.ranges.delta_norm, null] : null;
  const area = { x: left, y: top, width: width - right - left, height: height - bottom - top };
  brush(frame, area, x, null, selected, (range) =>
    go({ ranges: withRange("delta_norm", range === null ? null : rounded(range[0])) }, true));
  frame.append(...classNames(crosscoder, shown, x));
  host.replaceChildren(frame);
}

// The classes and their counts above the histogram; a click chooses one.
function classNames(crosscoder, shown, x) {
  const column = crosscoder.column("delta_norm");
  const stops = [0, ...about.classBorders, 1];
  return about.regions.map((name, i) => {
    const [low, high] = [stops[i], stops[i + 1]];
    const isIn = (j) => column[j] >= low && column[j] <= high && crosscoder.category("label", j) === name;
    const n = shown.filter(isIn).length;
    const isLast = i === about.regions.length - 1;
    const [anchor, at] = i === 0 ? ["start", x(0)] : isLast ? ["end", x(1)] : ["middle", x((low + high) / 2)];
    const toggle = () => go({ label: toggled(state.label, name) }, true);
    const onkeydown = (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      toggle();
    };
    const css = `region ${state.label.includes(name) ? "chosen" : ""}`;
    const place = { class: css, x: at, y: 12, "text-anchor": anchor, "aria-label": spaced(name) };
    const isTight = x(1) - x(0) < 400 && name === "other";  // beside names at the ends, which it would touch
    return svg("text", { ...place, role: "button", tabindex: 0, onclick: toggle, onkeydown },
      svg("tspan", {}, isTight ? "\u2026" : spaced(name)), svg("tspan", { x: at, dy: 14, class: "n" }, count(n)));
  });
}

const toggled = (chosen, name) =>
  chosen.includes(name) ? chosen.filter((other) => other !== name) : [...chosen, name];

// nu_error against nu_reconstruction of the latents that pass, one-sided ones on top in the colour of their verdict, in
// front of all. Without base-only ones, for which the mirrored numbers count.
function drawScatter(host, crosscoder, shown, all) {
  const [width, height, left, right, top, bottom] = [host.clientWidth, 210, 38, 12, 8, 36];
  const range = [-0.5, 1.5];
  const x = linear(...range, left, width - right);
  const y = linear(...range, height - bottom, top);
  const frame = svg("svg", { width, height, role: "img", "aria-label": "nu_error against nu_reconstruction" });
  const area = { x: left, y: top, width: width - right - left, height: height - bottom - top };
  const { error, reconstruction } = about.limits;
  const box = { x: left, width: x(error) - left, y: y(reconstruction), height: height - bottom - y(reconstruction) };
  frame.append(svg("rect", { class: "genuine", ...box }));
  for (const tick of [0, 0.5, 1]) {
    frame.append(
      svg("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
      svg("text", { class: "tick", x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, decimal(tick, 1)));
  }
  frame.append(
    svg("line", { class: "axis-line", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
    ...axisTicks(x, [-0.5, 0, 0.5, 1, 1.5], height - bottom),
    svg("text", { class: "tick", x: width - right, y: height - 4, "text-anchor": "end" }, "nu error"),
    svg("text", { class: "tick", x: left + 5, y: top + 10 }, "nu reconstruction"),
    svg("text", { class: "genuine-name", x: left + 5, y: height - bottom - 5 }, "genuine"));
  const ranges = state.ranges;
  const isSelected = "nu_error" in ranges || "nu_reconstruction" in ranges;
  const open = [null, null];
  const selected = isSelected ? [ranges.nu_error ?? open, ranges.nu_reconstruction ?? open] : null;
  brush(frame, area, x, y, selected, (chosen) => {
    const { nu_error, nu_reconstruction, ...rest } = state.ranges;
    const added = chosen === null ? {} : { nu_error: rounded(chosen[0]), nu_reconstruction: rounded(chosen[1]) };
    go({ ranges: { ...rest, ...added } }, true);
  });
  const canvas = makeCanvas(width, height, area);
  const at = (j) => [x(crosscoder.value("nu_error", j)), y(crosscoder.value("nu_reconstruction", j))];
  if (shown.length < all.length) {
    const others = all.filter((j) => crosscoder.category("label", j) !== "base_only");
    drawPoints(canvas, others, at, hueOf("shared"), 0.13, 1.6);
  }
  for (const [group, latents] of groupsOf(crosscoder, shown)) {
    const isCloud = group === "shared" || group === "other";
    drawPoints(canvas, latents, at, hueOf(group), isCloud ? 0.35 : 0.9, isCloud ? 1.6 : 3.2);
  }
  host.replaceChildren(canvas, frame);
}

// Latents by what gives them their colour, in the order in which they are drawn.
function groupsOf(crosscoder, latents) {
  const groups = new Map();
  for (const j of latents) {
    const label = crosscoder.category("label", j);
    if (label === "base_only") continue;
    const group = label === "chat_only" ? crosscoder.category("verdict", j) ?? label : label;
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push(j);
  }
  return [...groups].sort(([a], [b]) => VERDICTS.indexOf(b) - VERDICTS.indexOf(a));
}

// A canvas as sharp as the screen, on which only the area is drawn.
function makeCanvas(width, height, area) {
  const dense = window.devicePixelRatio || 1;
  const size = { width: width * dense, height: height * dense, vars: { width: `${width}px` } };
  const canvas = html("canvas", { class: "points", ...size });
  const context = canvas.getContext("2d");
  context.scale(dense, dense);
  context.beginPath();
  context.rect(area.x, area.y, area.width, area.height);
  context.clip();
  return canvas;
}

function drawPoints(canvas, latents, at, hue, alpha, radius) {
  const context = canvas.getContext("2d");
  [context.fillStyle, context.globalAlpha] = [hue, alpha];
  for (const j of latents) {
    context.beginPath();
    context.arc(...at(j), radius, 0, 2 * Math.PI);
    context.fill();
  }
}

// The stylesheet's colour of a class or verdict.
function hueOf(name) {
  const probe = html("i", { class: name });
  document.body.append(probe);
  const hue = getComputedStyle(probe).getPropertyValue("--hue");
  probe.remove();
  return hue || "gray";
}
