// What is looked at, kept in the address: #/place/group/attempt?color=...&filter=...
const COLORS = ["advantage", "log-ratio", "none"];
const FILTERS = ["q", "scenario", "iteration", "stop", "error", "min", "max", "sort"];

const groupKey = (record) => `${record.place}/${record.group}`;
const key = (record) => `${groupKey(record)}/${record.attempt}`;

// FTRL's rows put the same instructions before each question.
const asked = (record) => record.question.split("\nQuestion: ").pop();

const calls = (record) => record.turns.flatMap((turn) => turn.calls);

// An evaluation keeps no tokens, and the advantages in its traces mean nothing.
const isTrained = (record) => record.turns.some((turn) => turn.pieces);

// How a call ended: "ok", what it was refused for, how its execution failed, or that its tool said so.
function ending(call) {
  if (call.status !== "ok") return call.status;
  if (call.result_status === null) return "no result";
  return call.result_status === "ok" && call.succeeded === false ? "tool error" : call.result_status;
}
const errorsOf = (record) => [...new Set(calls(record).map(ending))].filter((kind) => kind !== "ok");

// The facts of each attempt that lists and filters use.
function prepare(records) {
  return records.map((record, order) => ({
    record, order, key: key(record), errors: errorsOf(record),
    tokens: record.turns.reduce((sum, turn) => sum + turn.tokens, 0),
    text: [record.task, record.question, ...record.turns.map((turn) => turn.text)].join("\n").toLowerCase(),
  }));
}

const SORTS = {
  "as sampled": (item) => item.order,
  "reward, highest": (item) => -item.record.total,
  "reward, lowest": (item) => item.record.total,
  "outcome, lowest": (item) => item.record.outcome,
  "longest": (item) => -item.tokens,
  "most turns": (item) => -item.record.turns.length,
  "most calls": (item) => -calls(item.record).length,
  "largest |A|": (item) => -Math.max(0, ...item.record.turns.map((turn) => Math.abs(turn.advantage))),
};

function select(items, state) {
  const words = state.q.toLowerCase();
  const low = state.min === "" ? -Infinity : Number(state.min);
  const high = state.max === "" ? Infinity : Number(state.max);
  const kept = items.filter(({ record, errors, text }) =>
    (!words || text.includes(words))
    && (!state.scenario || record.scenario === state.scenario)
    && (!state.iteration || record.place === state.iteration)
    && (!state.stop || record.stop_reason === state.stop)
    && (!state.error || errors.includes(state.error) || (state.error === "any" && errors.length > 0))
    && record.total >= low && record.total <= high);
  const rank = SORTS[state.sort] || SORTS["as sampled"];
  kept.sort((a, b) => rank(a) - rank(b) || a.order - b.order);
  return [...Map.groupBy(kept, (item) => groupKey(item.record)).values()].flat(); // attempts at a task together
}

function readAddress() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const parameters = new URLSearchParams(query || "");
  const state = { key: path, turn: Number(parameters.get("turn")) || null };
  for (const name of FILTERS) state[name] = parameters.get(name) || "";
  state.color = COLORS.includes(parameters.get("color")) ? parameters.get("color") : COLORS[0];
  state.view = parameters.get("view") === "group" ? "group" : "one";
  return state;
}

function address(state, changes) {
  const next = { ...state, ...changes };
  const parameters = new URLSearchParams();
  if (next.color !== COLORS[0]) parameters.set("color", next.color);
  if (next.view === "group") parameters.set("view", "group");
  if (next.turn) parameters.set("turn", next.turn);
  for (const name of FILTERS) if (next[name]) parameters.set(name, next[name]);
  const query = parameters.toString();
  return `#/${next.key}${query ? `?${query}` : ""}`;
}

// Blue above zero, orange below, full at the largest advantage of the group or at 1.
function tint(value, scale) {
  const strength = Math.min(1, Math.abs(value ?? 0) / scale).toFixed(3);
  return { class: `tint ${Number(strength) === 0 ? "" : value > 0 ? "pos" : "neg"}`, "--strength": strength };
}
const scaleOf = (records) =>
  Math.max(1, ...records.flatMap((record) => [...record.turns, ...calls(record)]).map((earned) => Math.abs(earned.advantage ?? 0)));

function signature(call) {
  const given = call.arguments;
  const named = given !== null && typeof given === "object" && !Array.isArray(given);
  const inside = named ? Object.entries(given).map(([name, value]) => `${name}=${JSON.stringify(value)}`).join(", ")
    : given === null ? "" : JSON.stringify(given);
  return `${call.name || "?"}(${inside})`;
}
