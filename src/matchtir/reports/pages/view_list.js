// The list of attempts, and its filters.
const PAGE_ROWS = 100;

function options(values, chosen, all) {
  return [h("option", { value: "", selected: !chosen }, all),
    ...values.map((value) => h("option", { value, selected: value === chosen }, value))];
}
const distinct = (values) => [...new Set(values)];

function filters(items, state, change) {
  const pick = (name, label, values, all) => h("label", {}, h("span", {}, label),
    h("select", { name, onchange: (event) => change({ [name]: event.target.value }) }, options(values, state[name], all)));
  const bound = (name, label) => h("label", {}, h("span", {}, label),
    h("input", { name, type: "number", step: "any", value: state[name], onchange: (event) => change({ [name]: event.target.value }) }));
  const errors = distinct(items.flatMap((item) => item.errors)).sort();
  const records = items.map((item) => item.record);
  return h("form", { class: "filters", onsubmit: (event) => event.preventDefault() },
    h("input", { name: "q", type: "search", value: state.q, placeholder: "search task, question, text  ( / )",
      "aria-label": "search", oninput: (event) => change({ q: event.target.value }) }),
    pick("scenario", "scenario", distinct(records.map((r) => r.scenario)).filter(Boolean).sort(), "every scenario"),
    pick("iteration", "iteration or benchmark", distinct(records.map((r) => r.place)), "all"),
    pick("stop", "stopped by", distinct(records.map((r) => r.stop_reason)).sort(), "any reason"),
    pick("error", "error", errors.length ? ["any", ...errors] : [], "with and without"),
    bound("min", "reward from"), bound("max", "to"),
    pick("sort", "order", Object.keys(SORTS).slice(1), Object.keys(SORTS)[0]));
}

function squares(record, scale) {
  return h("span", { class: "squares", "aria-hidden": "true" },
    record.turns.map((turn) => h("i", tint(turn.advantage, scale))));
}

function row(item, state, scale, alone) {
  const { record, errors } = item;
  const current = item.key === state.key;
  return h("a", { class: "row", href: address(state, { key: item.key, turn: null }), "data-key": item.key,
    "aria-current": current ? "true" : null },
  h("span", { class: "row-top" },
    alone ? null : h("span", { class: "muted number" }, `${record.attempt + 1}`),
    h("b", { class: "number" }, signed(record.total)),
    squares(record, scale),
    errors.length ? h("span", { class: "chip bad", title: errors.join(", ") }, errors[0] + (errors.length > 1 ? ` +${errors.length - 1}` : "")) : null,
    record.stop_reason === "answer" ? null : h("span", { class: "chip", title: record.stop_reason }, record.stop_reason)),
  alone ? title(item) : null);
}
const title = ({ record }) => [h("span", { class: "row-title" }, asked(record)),
  h("span", { class: "row-sub muted number" }, `${record.place}/${record.group}  ${record.scenario || record.task}`)];

// The attempts at a task under its question; a task's only attempt is one row.
function taskRows(members, alone, state, scale) {
  if (alone) return members.map((item) => row(item, state, scale, true));
  return h("section", { class: "task" }, h("header", {}, title(members[0])), members.map((item) => row(item, state, scale, false)));
}

// Rows are made page by page, so that ten thousand attempts open at once: `rows` from the row `first` on.
function list(found, state, first, rows, show) {
  if (!found.length) return h("p", { class: "empty muted" }, "No attempt fits these filters.");
  const shown = found.slice(first, first + rows), left = found.length - first - rows;
  const scale = scaleOf(shown.map((item) => item.record));
  const tasks = Map.groupBy(shown, (item) => groupKey(item.record));
  return h("nav", { class: "rows", "aria-label": "attempts" },
    first > 0 ? h("button", { class: "more", onclick: () => show(first - PAGE_ROWS, rows + PAGE_ROWS) },
      `show ${PAGE_ROWS} of ${first} before`) : null,
    [...tasks].map(([key, members]) => taskRows(members, groups.get(key).length === 1, state, scale)),
    left > 0 ? h("button", { class: "more", onclick: () => show(first, rows + PAGE_ROWS) },
      `show ${Math.min(PAGE_ROWS, left)} more of ${left}`) : null);
}
