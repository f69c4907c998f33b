// The attempts of a group side by side, turn under turn: what the advantages compare.
function groupStrip(group, state, scale) {
  return h("nav", { class: "strip", "aria-label": "attempts of the group" }, group.map((item) =>
    h("a", { href: address(state, { key: item.key, turn: null }), "aria-current": item.key === state.key ? "true" : null,
      title: `attempt ${item.record.attempt + 1}: reward ${number(item.record.total)}, ${item.record.stop_reason}` },
    h("b", { class: "number" }, signed(item.record.total)), squares(item.record, scale))));
}

function brief(turn) {
  if (turn.calls.length) {
    return turn.calls.map((call) => h("div", { class: "brief" },
      h("code", {}, call.name || call.status),
      h("span", { class: call.gold === null ? "missing" : "muted" }, call.gold === null ? "–" : `g${call.gold + 1}`)));
  }
  const text = turn.text.trim();
  return h("div", { class: "brief-text", title: text }, text.length > 160 ? `${text.slice(0, 160)}…` : text || "(nothing)");
}

function groupTable(group, state, scale) {
  const longest = Math.max(...group.map((item) => item.record.turns.length));
  const head = h("tr", {}, h("th", {}, "turn"), group.map(({ key: own, record }) => h("th", { "aria-current": own === state.key ? "true" : null },
    h("a", { href: address(state, { key: own, view: "one", turn: null }) },
      h("b", {}, `attempt ${record.attempt + 1}`), h("span", { class: "number" }, `R ${signed(record.total)}   outcome ${number(record.outcome)}`),
      h("span", { class: "chip" }, record.stop_reason)))));
  const rows = Array.from({ length: longest }, (_, index) => h("tr", {}, h("th", { class: "number" }, String(index + 1)),
    group.map(({ key: own, record }) => {
      const turn = record.turns[index];
      if (!turn) return h("td", { class: "absent" });
      const made = tint(turn.advantage, scale);
      return h("td", made, h("a", { href: address(state, { key: own, view: "one", turn: index + 1 }) },
        h("span", { class: "pair number" }, h("span", {}, `r ${signed(turn.reward)}`), isTrained(record) ? h("b", {}, `A ${signed(turn.advantage)}`) : null),
        brief(turn)));
    })));
  return h("div", { class: "scroll" }, h("table", { class: "group" }, h("thead", {}, head), h("tbody", {}, rows)));
}
