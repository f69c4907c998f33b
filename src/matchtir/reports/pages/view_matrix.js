// Predicted calls against gold calls: similarity as shade, what was paid as circles on it.
// A soft plan has mass everywhere, so it is its product with the similarity that tells who is paid.
const paid = (record, index, column) => record.plan[index][column] * record.similarity[index][column];
const mostPaid = (record) => Math.max(1e-12, ...record.plan.flatMap((row, index) => row.map((_, column) => paid(record, index, column))));
const VISIBLE = 1e-4; // of the largest

function matrix(record, highlight) {
  const predicted = calls(record);
  const gold = record.gold_calls;
  if (!predicted.length || !gold.length) {
    return h("p", { class: "muted" }, predicted.length ? "The task has no gold calls." : "No calls were made.");
  }
  const cell = Math.max(20, Math.min(38, Math.floor(300 / gold.length)));
  const left = 54, top = 22, right = 52;
  const width = left + gold.length * cell + right, height = top + predicted.length * cell + 4;
  const most = mostPaid(record);
  const digits = cell >= 30 ? 2 : 1;
  const parts = [];
  gold.forEach((call, column) => parts.push(s("text",
    { x: left + (column + .5) * cell, y: top - 7, class: "axis", "text-anchor": "middle" },
    `g${column + 1}`, s("title", {}, signature(call)))));
  predicted.forEach((call, index) => {
    const y = top + index * cell;
    const cells = gold.map((target, column) => {
      const similarity = record.similarity[index][column], mass = record.plan[index][column], pay = paid(record, index, column);
      const x = left + column * cell;
      return s("g", { class: "cell", onmouseenter: () => highlight(index, column), onmouseleave: () => highlight(null, null) },
        s("rect", { x: x + 1, y: y + 1, width: cell - 2, height: cell - 2, rx: 4, class: "shade", "--similarity": similarity.toFixed(3) }),
        similarity > 0 ? s("text", { x: x + cell / 2, y: y + cell / 2 + 3.5, "text-anchor": "middle",
          class: similarity > .6 ? "value strong" : "value" }, number(similarity, digits).replace(/^0\./, ".")) : null,
        pay > VISIBLE * most ? s("circle", { cx: x + cell / 2, cy: y + cell / 2, class: "mass",
          r: (Math.sqrt(pay / most) * (cell / 2 - 2)).toFixed(2), "stroke-width": (1 + 1.5 * pay / most).toFixed(2) }) : null,
        s("title", {}, `p${index + 1} ${signature(call)}\ng${column + 1} ${signature(target)}\nsimilarity ${number(similarity, 4)}, plan ${number(mass, 5)}, paid ${number(pay, 5)}`));
    });
    parts.push(s("g", { class: "matrix-row", "data-call": index },
      s("text", { x: left - 8, y: y + cell / 2 + 4, class: "axis", "text-anchor": "end" }, `p${index + 1}`, s("title", {}, signature(call))),
      cells,
      s("text", { x: left + gold.length * cell + 8, y: y + cell / 2 + 4, class: "axis earned" }, signed(call.reward))));
  });
  // turns at the left, each a bracket over its calls
  let first = 0;
  record.turns.forEach((turn, index) => {
    if (!turn.calls.length) return;
    const from = top + first * cell + 3, to = top + (first + turn.calls.length) * cell - 3;
    parts.push(s("path", { d: `M20 ${from}H16V${to}H20`, class: "bracket" }),
      s("text", { x: 11, y: (from + to) / 2 + 4, class: "axis", "text-anchor": "end" }, String(index + 1)));
    first += turn.calls.length;
  });
  return h("div", {},
    h("div", { class: "scroll" }, s("svg", { class: "matrix", width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": `similarity and plan of ${predicted.length} calls and ${gold.length} gold calls` }, parts)),
    h("p", { class: "legend muted" }, h("i", { class: "swatch shade-swatch" }), "similarity ", h("i", { class: "swatch ring" }),
      "paid (area: similarity × mass of the plan) ", "left: turn; right: what the call earned"));
}

function goldList(record) {
  const matched = new Map();
  const most = mostPaid(record);
  record.plan.forEach((row, index) => row.forEach((_, column) => {
    if (paid(record, index, column) > VISIBLE * most) matched.set(column, [...(matched.get(column) || []), `p${index + 1}`]);
  }));
  return h("ol", { class: "gold" }, record.gold_calls.map((call, index) => {
    const by = matched.get(index);
    return h("li", { "data-gold": index },
      h("span", { class: "tag" }, `g${index + 1}`), h("code", {}, signature(call)),
      h("span", { class: by ? "muted" : "missing" }, by ? `← ${by.join(", ")}` : "not matched"));
  }));
}
