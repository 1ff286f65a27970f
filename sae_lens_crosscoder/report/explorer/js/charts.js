// The figures, drawn as SVG (and points on a canvas), in the size of the element that they are in.
const linear = (from, to, low, high) => (value) => low + ((value - from) / (to - from)) * (high - low);

function axisTicks(scale, values, y, format = (value) => decimal(value, 1)) {
  return values.map((value) =>
    svg("g", { class: "tick", transform: `translate(${scale(value)},${y})` },
      svg("line", { y2: 4 }), svg("text", { y: 16, "text-anchor": "middle" }, format(value))));
}

// Lets a rectangle be dragged over a figure; with `y` null, a range of x. A click clears it.
function brush(frame, area, x, y, selected, onSelect) {
  const back = (scale, ends) => (value) => ends[0] + ((value - scale(ends[0])) / (scale(ends[1]) - scale(ends[0]))) * (ends[1] - ends[0]);
  const [fromX, fromY] = [back(x, [0, 1]), y === null ? null : back(y, [0, 1])];
  const shade = svg("rect", { class: "brushed", x: 0, y: 0, width: 0, height: 0 });
  const cover = svg("rect", { class: "cover", ...area });
  const [left, right, top, bottom] = [area.x, area.x + area.width, area.y, area.y + area.height];
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const draw = (x0, x1, y0, y1) => fill(shade, { x: x0, y: y0, width: Math.max(0, x1 - x0), height: Math.max(0, y1 - y0) }, []);
  if (selected !== null) {
    const [[x0, x1], ys] = selected;
    const inX = [x0 === null ? left : clamp(x(x0), left, right), x1 === null ? right : clamp(x(x1), left, right)];
    const inY = y === null || !ys ? [top, bottom] : [ys[1] === null ? top : clamp(y(ys[1]), top, bottom), ys[0] === null ? bottom : clamp(y(ys[0]), top, bottom)];
    draw(...inX, ...inY);
  }
  let start = null;
  const at = (event) => {
    const box = frame.getBoundingClientRect();
    return [clamp(event.clientX - box.left, left, right), clamp(event.clientY - box.top, top, bottom)];
  };
  const spans = (event) => {
    const end = at(event);
    const [xs, ys] = [0, 1].map((i) => [Math.min(start[i], end[i]), Math.max(start[i], end[i])]);
    return [...xs, ...(y === null ? [top, bottom] : ys)];
  };
  cover.addEventListener("pointerdown", (event) => {
    start = at(event);
    cover.setPointerCapture(event.pointerId);
  });
  cover.addEventListener("pointermove", (event) => start !== null && draw(...spans(event)));
  cover.addEventListener("pointerup", (event) => {
    if (start === null) return;
    const [x0, x1, y0, y1] = spans(event);
    start = null;
    if (x1 - x0 < 3 && (y === null || y1 - y0 < 3)) onSelect(null);
    else onSelect([[fromX(x0), fromX(x1)], y === null ? null : [fromY(y1), fromY(y0)]]);
  });
  frame.append(shade, cover);
}

const rounded = (range) => range.map((end) => Number(end.toFixed(3)));

// Delta_norm of the latents that pass, in front of that of all; a log axis, from 0.7 so that one latent has a height.
function drawHistogram(host, crosscoder, shown, all) {
  const [width, height, left, top, bottom] = [host.clientWidth, 210, 38, 34, 24];
  const nBins = 50;
  const column = crosscoder.column("delta_norm");
  const binned = (latents) => {
    const bins = new Uint32Array(nBins);
    for (const j of latents) if (!Number.isNaN(column[j])) bins[Math.min(nBins - 1, Math.floor(column[j] * nBins))]++;
    return bins;
  };
  const [back, front] = [binned(all), binned(shown)];
  const most = Math.max(2, ...back);
  const x = linear(0, 1, left, width - 4);
  const log = linear(Math.log(0.7), Math.log(most * 1.15), height - bottom, top);
  const frame = svg("svg", { width, height, role: "img", "aria-label": "Delta_norm of the latents, 0 base only to 1 chat only" });
  for (let power = 1; power <= most; power *= 10) {
    frame.append(
      svg("line", { class: "grid", x1: left, x2: width - 4, y1: log(Math.log(power)), y2: log(Math.log(power)) }),
      svg("text", { class: "tick", x: left - 6, y: log(Math.log(power)) + 4, "text-anchor": "end" }, count(power)));
  }
  const stops = [0, ...about.classBorders, 1];
  const region = (delta) => about.regions[about.classBorders.filter((border) => border < delta).length];
  for (let i = 0; i < nBins; i++) {
    for (const [bins, layer] of [[back, "back"], [front, "front"]]) {
      if (bins[i] === 0) continue;
      const y = log(Math.log(bins[i]));
      frame.append(svg("rect", {
        class: `bar ${layer} ${region((i + 0.5) / nBins)}`, x: x(i / nBins) + 0.5, width: x(1 / nBins) - x(0) - 1, y, height: height - bottom - y,
      }));
    }
  }
  for (const border of about.classBorders) frame.append(svg("line", { class: "border", x1: x(border), x2: x(border), y1: top - 4, y2: height - bottom }));
  frame.append(svg("line", { class: "axis-line", x1: left, x2: width - 4, y1: height - bottom, y2: height - bottom }));
  frame.append(...axisTicks(x, [0, ...about.classBorders.slice(0, 2), 0.5, ...about.classBorders.slice(2), 1], height - bottom));
  const selected = "delta_norm" in state.ranges ? [state.ranges.delta_norm, null] : null;
  brush(frame, { x: left, y: top, width: width - 4 - left, height: height - bottom - top }, x, null, selected, (range) => {
    const { delta_norm, ...ranges } = state.ranges;
    go({ ranges: range === null ? ranges : { ...ranges, delta_norm: rounded(range[0]) } }, true);
  });
  about.regions.forEach((name, i) => {
    const [low, high] = [stops[i], stops[i + 1]];
    const n = shown.filter((j) => column[j] >= low && column[j] <= high && crosscoder.category("label", j) === name).length;
    const toggle = () => go({ label: toggled(state.label, name) }, true);
    const anchor = i === 0 ? "start" : i === about.regions.length - 1 ? "end" : "middle";
    const middle = i === 0 ? x(0) : anchor === "end" ? x(1) : x((low + high) / 2);
    const key = (event) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), toggle());
    frame.append(svg("text", {
      class: `region ${state.label.includes(name) ? "chosen" : ""}`, x: middle, y: 12, "text-anchor": anchor, role: "button", tabindex: 0, onclick: toggle, onkeydown: key,
    }, svg("tspan", {}, spaced(name)), svg("tspan", { x: middle, dy: 14, class: "n" }, count(n))));
  });
  host.replaceChildren(frame);
}

const toggled = (chosen, name) => (chosen.includes(name) ? chosen.filter((other) => other !== name) : [...chosen, name]);

// nu_error against nu_reconstruction of the latents that pass, one-sided ones on top in the colour of their verdict.
function drawScatter(host, crosscoder, shown) {
  const [width, height, left, top, bottom] = [host.clientWidth, 210, 38, 8, 36];
  const range = [-0.5, 1.5];
  const x = linear(...range, left, width - 6);
  const y = linear(...range, height - bottom, top);
  const frame = svg("svg", { width, height, role: "img", "aria-label": "nu_error against nu_reconstruction" });
  const area = { x: left, y: top, width: width - 6 - left, height: height - bottom - top };
  const { error, reconstruction } = about.limits;
  frame.append(svg("rect", { class: "genuine", x: left, width: x(error) - left, y: y(reconstruction), height: height - bottom - y(reconstruction) }));
  for (const tick of [0, 0.5, 1]) {
    frame.append(svg("line", { class: "grid", x1: left, x2: width - 6, y1: y(tick), y2: y(tick) }), svg("text", { class: "tick", x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, decimal(tick, 1)));
  }
  frame.append(svg("line", { class: "axis-line", x1: left, x2: width - 6, y1: height - bottom, y2: height - bottom }), ...axisTicks(x, [-0.5, 0, 0.5, 1, 1.5], height - bottom));
  frame.append(
    svg("text", { class: "tick", x: width - 6, y: height - 4, "text-anchor": "end" }, "nu error"),
    svg("text", { class: "tick", x: left + 5, y: top + 10 }, "nu reconstruction"),
    svg("text", { class: "genuine-name", x: left + 5, y: height - bottom - 5 }, "genuine"));
  const ranges = state.ranges;
  const selected = "nu_error" in ranges || "nu_reconstruction" in ranges ? [ranges.nu_error ?? [null, null], ranges.nu_reconstruction ?? [null, null]] : null;
  brush(frame, area, x, y, selected, (chosen) => {
    const { nu_error, nu_reconstruction, ...rest } = state.ranges;
    go({ ranges: chosen === null ? rest : { ...rest, nu_error: rounded(chosen[0]), nu_reconstruction: rounded(chosen[1]) } }, true);
  });
  host.replaceChildren(drawPoints(crosscoder, shown, width, height, x, y, area), frame);
}

function drawPoints(crosscoder, shown, width, height, x, y, area) {
  const dense = window.devicePixelRatio || 1;
  const canvas = html("canvas", { width: width * dense, height: height * dense, class: "points", vars: { width: `${width}px` } });
  const context = canvas.getContext("2d");
  context.scale(dense, dense);
  context.beginPath();
  context.rect(area.x, area.y, area.width, area.height);
  context.clip();
  const [error, reconstruction] = ["nu_error", "nu_reconstruction"].map((name) => crosscoder.column(name));
  const groups = new Map();
  for (const j of shown) {
    const label = crosscoder.category("label", j);
    if (label === "base_only") continue;  // for these, other numbers count
    const group = label === "chat_only" ? crosscoder.category("verdict", j) : label;
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push(j);
  }
  const order = [...groups.keys()].sort((a, b) => VERDICTS.indexOf(b) - VERDICTS.indexOf(a));
  for (const group of order) {
    const isCloud = group === "shared" || group === "other";
    context.fillStyle = hueOf(group);
    context.globalAlpha = isCloud ? 0.35 : 0.9;
    for (const j of groups.get(group)) {
      context.beginPath();
      context.arc(x(error[j]), y(reconstruction[j]), isCloud ? 1.6 : 3.2, 0, 2 * Math.PI);
      context.fill();
    }
  }
  return canvas;
}

// The stylesheet's colour of a class or verdict.
function hueOf(name) {
  const probe = html("i", { class: name });
  document.body.append(probe);
  const hue = getComputedStyle(probe).getPropertyValue("--hue");
  probe.remove();
  return hue || "gray";
}
