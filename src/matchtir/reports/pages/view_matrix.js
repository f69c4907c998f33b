// Predicted calls against gold calls: what each pair paid, and under it how similar it is.
// A soft plan has mass everywhere, so it is its product with the similarity that tells who is paid.
const paid = (record, index, column) => record.plan[index][column] * record.similarity[index][column];
const rowSum = (record, index) => record.plan[index].reduce((sum, _, column) => sum + paid(record, index, column), 0);
const mostPaid = (record) => Math.max(1e-12, ...record.plan.flatMap((row, index) => row.map((_, column) => paid(record, index, column))));
const VISIBLE = 1e-4; // of the largest
const NOTICED = .0005; // of a reward
const digits2 = (value) => number(value, 2).replace(/^(−?)0\./, "$1.");

function matrix(record, highlight) {
  const predicted = calls(record), gold = record.gold_calls;
  if (!predicted.length || !gold.length) {
    return h("p", { class: "muted" }, predicted.length ? "The task has no gold calls." : "No calls were made.");
  }
  const cell = Math.max(26, Math.min(40, Math.floor(240 / gold.length)));
  const left = 54, top = 22, right = 96;
  const end = left + gold.length * cell, width = end + right, height = top + predicted.length * cell + 4;
  const most = mostPaid(record);
  const label = (x, y, text, attributes = {}, title = null) => s("text", { x, y, class: "axis", "text-anchor": "middle", ...attributes }, text, title && s("title", {}, title));
  const parts = [label(end + 24, top - 7, "Σ"), label(end + 70, top - 7, "earned")];
  gold.forEach((call, column) => parts.push(label(left + (column + .5) * cell, top - 7, `g${column + 1}`, {}, signature(call))));
  predicted.forEach((call, index) => {
    const y = top + index * cell, middle = y + cell / 2;
    const cells = gold.map((target, column) => {
      const similarity = record.similarity[index][column], mass = record.plan[index][column], pay = paid(record, index, column);
      const x = left + column * cell, shown = pay > VISIBLE * most, centre = { x: x + cell / 2, "text-anchor": "middle" };
      return s("g", { class: "cell", onmouseenter: () => highlight(index, column), onmouseleave: () => highlight(null, null) },
        s("rect", { x: x + 1, y: y + 1, width: cell - 2, height: cell - 2, rx: 4, class: "shade", "--paid": (shown ? pay / most : 0).toFixed(3) }),
        shown ? s("text", { ...centre, y: middle, class: pay > .6 * most ? "value paid strong" : "value paid" }, digits2(pay)) : null,
        similarity > 0 ? s("text", { ...centre, y: middle + 11, class: shown && pay > .6 * most ? "value strong" : "value" }, digits2(similarity)) : null,
        s("title", {}, `p${index + 1} ${signature(call)}\ng${column + 1} ${signature(target)}\nsimilarity ${number(similarity, 4)} × mass ${number(mass, 5)} = paid ${number(pay, 5)}`));
    });
    parts.push(s("g", { class: "matrix-row", "data-call": index },
      label(left - 8, middle + 4, `p${index + 1}`, { "text-anchor": "end" }, signature(call)), cells,
      label(end + 24, middle + 4, digits2(rowSum(record, index)), { class: "axis earned" }),
      label(end + 70, middle + 4, signed(call.reward), { class: `axis earned ${call.reward < 0 ? "lost" : ""}` })));
  });
  // turns at the left, each a bracket over its calls
  let first = 0;
  record.turns.forEach((turn, index) => {
    if (!turn.calls.length) return;
    const from = top + first * cell + 3, to = top + (first + turn.calls.length) * cell - 3;
    parts.push(s("path", { d: `M20 ${from}H16V${to}H20`, class: "bracket" }), label(11, (from + to) / 2 + 4, String(index + 1), { "text-anchor": "end" }));
    first += turn.calls.length;
  });
  return h("div", {},
    h("div", { class: "scroll" }, s("svg", { class: "matrix", width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": `what ${predicted.length} calls were paid for ${gold.length} gold calls` }, parts)),
    h("p", { class: "legend muted" }, h("i", { class: "swatch shade-swatch" }), "paid: similarity × mass of the plan; the small number is the similarity. Σ: sum of the row. Left: turn."));
}

// Why calls and the last turn earned other than what they were paid and what the answer is worth.
function penalties(record) {
  const made = calls(record), sums = made.map((_, index) => rowSum(record, index));
  const lines = [];
  const unmatched = made.flatMap((call, index) => sums[index] < NOTICED && call.reward < -NOTICED ? [index] : []);
  if (unmatched.length) {
    lines.push(`Unmatched: ${unmatched.map((index) => `p${index + 1} ${signed(made[index].reward)}`).join(", ")}, the penalty for a call that no gold call pays.`);
  }
  const scaled = made.flatMap((call, index) => sums[index] >= NOTICED && Math.abs(call.reward - sums[index]) > NOTICED ? [call.reward / sums[index]] : []);
  if (scaled.length) {
    const same = Math.max(...scaled) - Math.min(...scaled) < .01;
    lines.push(same ? `A call earns its Σ × ${number(scaled[0])}.` : "Calls earn other than their Σ: the reward is not that of the plan alone.");
  }
  const isUnpaid = (turn, index) => !turn.calls.length
    || Math.abs(turn.reward - (index === record.turns.length - 1 ? record.outcome_reward : 0)) < NOTICED;
  if (made.some((call) => Math.abs(call.reward) > NOTICED) && record.turns.every(isUnpaid)) {
    lines.push("No turn earned anything for its calls.");
  }
  const taken = record.outcome_reward - record.outcome;
  if (taken < -NOTICED && record.answer === null) lines.push(`No answer: ${signed(taken)} in the last turn.`);
  return lines;
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
