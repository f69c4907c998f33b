// Curves as small charts: mean over seeds, interval, single seeds; all with the same colours.
const HUES = ["#2f86d1", "#e0661f", "#12a37a", "#d178ae", "#c8961d", "#6cc0ee", "#9a7be0", "#8a8a8a"];
const styleOf = (index) => ({ color: HUES[index % HUES.length], dash: index < HUES.length ? null : "5 3" });
const WIDTH = 380, HEIGHT = 200, PAD = { left: 54, right: 10, top: 8, bottom: 24 };

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((candidate) => candidate >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) found.push(Math.abs(value) < step / 1e6 ? 0 : value);
  return found;
}
function short(value, digits = 3) {
  const size = Math.abs(value);
  if (size >= 1e5 || (size > 0 && size < 1e-3)) return value.toExponential(1);
  return String(Number(value.toPrecision(Math.max(digits, size >= 100 ? 4 : 3))));
}
// The digits that tell neighbouring ticks apart.
function digitsOf(values) {
  if (values.length < 2) return 3;
  const largest = Math.max(...values.map(Math.abs));
  return Math.min(10, Math.ceil(Math.log10(largest / (values[1] - values[0]))) + 1);
}

// The range of all seeds and means; an interval that reaches beyond is cut off.
function range(drawn) {
  const values = drawn.flatMap(({ points }) => [...points.mean, ...points.seeds.flat()]).filter((v) => v !== null);
  let low = Math.min(...values), high = Math.max(...values);
  if (low === high) { low -= Math.abs(low) * .1 || .1; high += Math.abs(high) * .1 || .1; }
  const margin = (high - low) * .06;
  return [low - margin, high + margin];
}

function path(steps, values, x, y) {
  let text = "", open = false;
  steps.forEach((step, index) => {
    const value = values[index];
    if (value === null) { open = false; return; }
    text += `${open ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`;
    open = true;
  });
  return text;
}
function band(points, x, y) {
  const known = points.steps.map((step, index) => [step, points.low[index], points.high[index]]).filter(([, low]) => low !== null);
  if (known.length < 2) return "";
  const above = known.map(([step, , high]) => `${x(step).toFixed(1)} ${y(high).toFixed(1)}`);
  const below = known.reverse().map(([step, low]) => `${x(step).toFixed(1)} ${y(low).toFixed(1)}`);
  return `M${above.join("L")}L${below.join("L")}Z`;
}

let charts = 0;
function chart(metric, drawn) {
  const steps = [...new Set(drawn.flatMap(({ points }) => points.steps))].sort((a, b) => a - b);
  const [low, high] = range(drawn);
  const alone = steps.length === 1 ? 1 : 0; // one step stands in the middle
  const first = steps[0] - alone, last = steps[steps.length - 1] + alone;
  const x = (step) => PAD.left + (step - first) / (last - first) * (WIDTH - PAD.left - PAD.right);
  const y = (value) => PAD.top + (high - value) / (high - low) * (HEIGHT - PAD.top - PAD.bottom);
  const clip = `clip-${charts += 1}`;
  const marks = ticks(low, high, 5), digits = digitsOf(marks);
  const lines = drawn.map(({ index, points }) => {
    const { color, dash } = styleOf(index);
    return s("g", { "data-method": index },
      s("path", { d: band(points, x, y), fill: color, opacity: .14 }),
      points.seeds.length > 1 ? points.seeds.map((seed) => s("path", { d: path(points.steps, seed, x, y), fill: "none", stroke: color, opacity: .3 })) : null,
      s("path", { d: path(points.steps, points.mean, x, y), fill: "none", stroke: color, "stroke-width": 2, "stroke-dasharray": dash, "stroke-linejoin": "round" }),
      points.steps.length < 12 ? points.mean.map((value, at) => s("circle", { cx: x(points.steps[at]), cy: y(value), r: 2.6, fill: color })) : null);
  });
  const rule = s("line", { class: "rule", y1: PAD.top, y2: HEIGHT - PAD.bottom, visibility: "hidden" });
  const readout = h("p", { class: "readout number" });
  const svg = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": metric },
    s("clipPath", { id: clip }, s("rect", { x: PAD.left, y: PAD.top, width: WIDTH - PAD.left - PAD.right, height: HEIGHT - PAD.top - PAD.bottom })),
    marks.map((value) => [s("line", { class: "grid", x1: PAD.left, x2: WIDTH - PAD.right, y1: y(value), y2: y(value) }),
      s("text", { x: PAD.left - 6, y: y(value) + 3.5, "text-anchor": "end" }, short(value, digits))]),
    ticks(first, last, 5).filter(Number.isInteger).map((value) => s("text", { x: x(value), y: HEIGHT - 8, "text-anchor": "middle" }, short(value))),
    s("g", { "clip-path": `url(#${clip})` }, lines), rule);
  const show = (step) => {
    rule.setAttribute("x1", x(step)); rule.setAttribute("x2", x(step)); rule.setAttribute("visibility", "visible");
    readout.replaceChildren(h("b", {}, `${step} `), ...drawn.flatMap(({ index, points }) => {
      const at = points.steps.indexOf(step);
      return at < 0 || hidden.has(index) ? [] : [h("span", { "data-method": index, "--hue": styleOf(index).color, class: `value ${styleOf(index).dash ? "dashed" : ""}` }, short(points.mean[at]))];
    }));
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = first + ((event.clientX - box.left) / box.width * WIDTH - PAD.left) / (WIDTH - PAD.left - PAD.right) * (last - first);
    show(steps.reduce((best, step) => Math.abs(step - at) < Math.abs(best - at) ? step : best));
  });
  svg.addEventListener("pointerleave", () => { rule.setAttribute("visibility", "hidden"); readout.replaceChildren(); });
  return h("figure", { class: "chart", "data-metric": metric }, h("figcaption", {}, h("span", {}, metric), readout), svg);
}
