// The conversation of one attempt, turn by turn, and what each turn earned.
const MEASURES = [
  ["reward", "r", "reward of the turn"],
  ["return", "R", "discounted return from this turn on"],
  ["trajectory_advantage", "A_g", "advantage of the trajectory in its group"],
  ["turn_advantage", "A_l", "advantage of the turn among its group's"],
  ["advantage", "A", "advantage: what the tokens of the turn are weighted with; those of a call by their own, where it has one"],
];
const SMALLEST_RATIO_SCALE = .01; // below it a log-ratio is noise, and stays pale

// Of an attempt, by turn; parts that the chosen advantage does not have are left out.
const measuresOf = (record) =>
  MEASURES.filter(([name]) => record.turns.some((turn) => turn[name] !== undefined) && (name !== "advantage" || isTrained(record)));

function symbol(text) {
  const [letter, below] = text.split("_");
  return [letter, below ? h("sub", {}, below) : null];
}

// The log-ratio of the full colour: the largest of the attempt.
const ratioScale = (record) =>
  Math.max(SMALLEST_RATIO_SCALE, ...record.turns.flatMap((turn) => (turn.log_ratios || []).map(Math.abs)));

function colorLegend(record, color, scale) {
  if (color === "none") return null;
  const [above, below, full] = color === "advantage" ? ["A > 0", "A < 0", scale]
    : ["raised by the update", "lowered", ratioScale(record)];
  return h("span", { class: "legend muted" }, h("i", { class: "swatch above" }), above, h("i", { class: "swatch below" }), below,
    `  full colour at ±${number(full, full < .1 ? 3 : 2)}`);
}

function tokens(turn, color, scale, ratios) {
  const pieces = turn.pieces;
  if (!pieces || color === "none") return h("pre", { class: "text" }, turn.text);
  if (color === "advantage") {
    const calls = turn.calls[Symbol.iterator]();
    return h("pre", { class: "text" }, (turn.spans || [["answer", 0, pieces.length]]).map(([kind, start, end]) => {
      const own = (kind === "call" ? calls.next().value.advantage : undefined) ?? turn.advantage;
      const made = tint(own, scale);
      return h("span", { ...made, class: `${made.class} of-${kind}`, title: `${kind}: A ${signed(own)}` }, pieces.slice(start, end).join(""));
    }));
  }
  return h("pre", { class: "text" }, pieces.map((piece, index) => {
    const ratio = turn.log_ratios[index];
    return h("span", { ...tint(ratio, ratios), title: `token ${index + 1}: log-ratio ${signed(ratio, 4)}` }, piece);
  }));
}

function callCard(record, call, index, highlight) {
  const parsed = call.status === "ok", ended = ending(call), closest = Math.max(0, ...record.similarity[index]);
  return h("div", { class: "call", "data-call": index, onmouseenter: () => highlight(index, call.gold), onmouseleave: () => highlight(null, null) },
    h("div", { class: "call-head" }, h("span", { class: "tag" }, `p${index + 1}`),
      h("code", { class: "signature" }, parsed || call.name ? signature(call) : "unreadable call"),
      h("span", { class: `chip ${ended === "ok" ? "ok" : "bad"}` }, ended)),
    h("div", { class: "call-facts muted number" },
      call.gold === null
        ? h("span", { class: "missing" }, closest > 0 ? `unpaid: similarity ${number(closest)}, but no mass` : "unpaid: like no gold call")
        : h("span", {}, `→ g${call.gold + 1}   similarity ${number(call.similarity)}   mass ${number(call.weight, 3)}`),
      h("span", {}, `earned ${signed(call.reward)}`),
      call.advantage === undefined ? null : h("span", {}, `A ${signed(call.advantage)}`)),
    call.output === null ? null : h("details", { class: "result" },
      h("summary", {}, "result ", h("span", { class: "muted" }, call.output.length > 70 ? `${call.output.slice(0, 70)}…` : call.output || "(empty)")),
      h("pre", {}, call.output)));
}

function turnCard(record, index, state, scale, ratios, firstCall, highlight) {
  const turn = record.turns[index];
  return h("article", { class: "turn", id: `turn-${index + 1}`, "data-turn": index + 1 },
    h("header", { class: "turn-head" },
      h("a", { class: "turn-name", href: address(state, { turn: index + 1 }), title: "link to this turn" }, `Turn ${index + 1}`),
      h("span", { class: "muted" }, `${turn.tokens} tokens`),
      h("span", { class: "measures number" }, measuresOf(record).map(([name, label, title]) => {
        const made = name === "advantage" ? tint(turn.advantage, scale) : { class: "" };
        return h("span", { title, ...made, class: `measure ${made.class}` }, h("span", { class: "muted" }, symbol(label)), ` ${signed(turn[name])}`);
      }))),
    tokens(turn, state.color, scale, ratios),
    turn.calls.map((call, offset) => callCard(record, call, firstCall + offset, highlight)),
    turn.reply ? h("div", { class: "call result" }, h("span", { class: "tag" }, "user"), h("pre", {}, turn.reply)) : null);
}

function creditTable(record, state, scale) {
  const shown = measuresOf(record);
  return h("div", { class: "scroll" }, h("table", { class: "credit number" },
    h("thead", {}, h("tr", {}, h("th", {}, "turn"), shown.map(([, label, title]) => h("th", { title }, symbol(label))))),
    h("tbody", {}, record.turns.map((turn, index) => h("tr", {},
      h("td", {}, h("a", { href: address(state, { turn: index + 1 }), class: "turn-name" }, String(index + 1))),
      shown.map(([name]) => h("td", name.includes("advantage") ? tint(turn[name], scale) : {}, signed(turn[name])))))),
    record.turns.length > 1 ? h("tfoot", {}, h("tr", {}, h("td", {}, "R"), h("td", { title: "reward of the trajectory" }, signed(record.total)), shown.slice(1).map(() => h("td")))) : null));
}

function conversation(record, state, scale, highlight) {
  let first = 0;
  const ratios = ratioScale(record);
  const cards = record.turns.map((turn, index) => {
    const card = turnCard(record, index, state, scale, ratios, first, highlight);
    first += turn.calls.length;
    return card;
  });
  return cards.length ? cards : h("p", { class: "muted" }, "The episode never started.");
}
