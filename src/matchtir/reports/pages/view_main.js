// Puts the page together and keeps it in step with the address and the keys.
const KEYS = [
  ["j  k", "next, previous attempt of the list"], ["l  h", "next, previous attempt of the group"],
  ["n  p", "next, previous turn"], ["g", "group side by side"], ["c", "colour tokens by advantage, log-ratio, not at all"],
  ["r", "unfold or fold all tool results"], ["/", "search"], ["t", "light or dark"], ["Esc", "back to the list"], ["?", "these keys"],
];
const root = h("div", { class: "app" });
const help = h("dialog", { class: "help" }, h("h2", {}, "Keys"),
  h("dl", {}, KEYS.map(([keys, text]) => [h("dt", {}, h("kbd", {}, keys)), h("dd", {}, text)])),
  h("button", { onclick: () => help.close() }, "close"));
let meta, items, groups, state, found, first = 0, rows = PAGE_ROWS;

const go = (changes) => { location.hash = address(state, changes); };
const replace = (changes) => { history.replaceState(null, "", address(state, changes)); render(); };
// Without a choice the first attempt of the list is shown, where there is room beside it.
const current = () => state.key ? items.find((item) => item.key === state.key) : found[0];
const groupOf = (record) => groups.get(groupKey(record));
const isNarrow = () => matchMedia("(max-width: 760px)").matches; // list or attempt, as in the style

function step(sequence, by) {
  const at = sequence.findIndex((item) => item.key === state.key);
  const next = sequence[at < 0 ? 0 : Math.max(0, Math.min(sequence.length - 1, at + by))];
  if (next && next.key !== state.key) go({ key: next.key, turn: null });
}
function stepTurn(by) {
  const item = current();
  if (item) go({ key: item.key, turn: Math.max(1, Math.min(item.record.turns.length, (state.turn || (by > 0 ? 0 : 2)) + by)), view: "one" });
}
function highlight(call, gold) {
  for (const element of root.querySelectorAll("[data-call],[data-gold]")) {
    const own = element.dataset;
    element.classList.toggle("lit", own.call === undefined ? own.gold === String(gold) : own.call === String(call));
  }
}

const FIELDS = "input, select"; // take letters themselves
const ACTIONS = {
  j: () => step(found, 1), k: () => step(found, -1),
  l: () => current() && step(groupOf(current().record), 1), h: () => current() && step(groupOf(current().record), -1),
  n: () => stepTurn(1), p: () => stepTurn(-1),
  g: () => current() && go({ key: current().key, view: state.view === "group" ? "one" : "group", turn: null }),
  c: () => replace({ color: COLORS[(COLORS.indexOf(state.color) + 1) % COLORS.length] }),
  r: () => { const all = [...root.querySelectorAll("details.result")]; const open = all.some((d) => !d.open); all.forEach((d) => { d.open = open; }); },
  t: toggleTheme, "?": () => help.showModal(),
  "/": () => { if (isNarrow()) replace({ key: "", turn: null }); root.querySelector("input[type=search]").focus(); },
  Escape: () => { if (document.activeElement.matches(FIELDS)) document.activeElement.blur(); else go({ key: "", turn: null }); },
};
addEventListener("keydown", (event) => {
  const typing = event.target.matches(FIELDS);
  if (event.ctrlKey || event.metaKey || event.altKey || help.open || (typing && event.key !== "Escape")) return;
  const action = ACTIONS[event.key];
  if (action) { event.preventDefault(); action(); }
});

function topbar() {
  const { pages, page } = meta;
  return h("header", { class: "topbar" },
    h("a", { class: "back", href: address(state, { key: "", turn: null }), "aria-label": "back to the list" }, "←"),
    h("h1", { class: "grow", title: meta.run }, meta.run),
    pages.length > 1 ? h("label", { class: "muted" }, "page ", h("select", { onchange: (event) => { location.href = event.target.value; } },
      pages.map((other, index) => h("option", { value: other.file, selected: index === page },
        `${index + 1}: ${Object.keys(other.places).join(", ")} (${other.records})`)))) : null,
    h("button", { onclick: ACTIONS["?"], "aria-label": "keys" }, "?"),
    h("button", { onclick: toggleTheme, "aria-label": "light or dark" }, "◐"));
}

function detail(item) {
  const { record } = item, group = groupOf(record), shown = { ...state, key: item.key };
  const scale = scaleOf(group.map((member) => member.record));
  const colors = h("span", { class: "switch", role: "group", "aria-label": "colour of tokens" }, COLORS.map((color) =>
    h("button", { "aria-pressed": String(color === state.color), onclick: () => replace({ color }) }, color)));
  const sideBySide = state.view === "group";
  return h("main", { class: "detail" },
    h("section", { class: "head" },
      h("p", { class: "muted number" }, `${/^\d+$/.test(record.place) ? "iteration " : ""}${record.place}, group ${record.group}, attempt ${record.attempt + 1} of ${group.length}   ${record.task}`),
      h("h2", { title: record.question }, asked(record)),
      h("p", { class: "facts" },
        h("span", {}, h("span", { class: "muted" }, "answer "), record.answer === null ? h("span", { class: record.gold_answer ? "missing" : "muted" }, "none") : h("b", {}, record.answer)),
        h("span", {}, h("span", { class: "muted" }, "gold "), h("b", {}, record.gold_answer || "(none)")),
        h("span", { class: "number" }, h("span", { class: "muted" }, "reward "), h("b", {}, signed(record.total))),
        h("span", { class: "number" }, h("span", { class: "muted" }, "outcome "), h("b", {}, number(record.outcome))),
        h("span", { class: `chip ${record.stop_reason !== "answer" ? "bad" : record.outcome >= 1 ? "ok" : ""}` }, record.stop_reason)),
      record.values ? h("p", { class: "muted number" }, Object.entries(record.values).map(([name, value]) =>
        `${name} ${typeof value === "number" ? number(value) : JSON.stringify(value)}`).join("   ")) : null,
      group.length > 1 ? groupStrip(group, shown, scale) : null,
      h("div", { class: "tools" },
        group.length > 1 ? h("button", { "aria-pressed": String(sideBySide), onclick: ACTIONS.g }, "side by side") : null,
        isTrained(record) ? [sideBySide ? null : colors, colorLegend(record, sideBySide ? "advantage" : state.color, scale)] : null)),
    sideBySide ? groupTable(group, shown, scale) : h("div", { class: "columns" },
      h("section", { class: "conversation", "aria-label": "conversation" }, conversation(record, shown, scale, highlight)),
      h("aside", { class: "side" },
        h("h3", {}, "Credit by turn"), creditTable(record, shown, scale),
        penalties(record).map((line) => h("p", { class: "legend penalty" }, line)),
        h("h3", {}, "What calls were paid"), matrix(record, highlight),
        h("h3", {}, "Gold calls"), goldList(record))));
}

function elsewhere() {
  if (!state.key) return h("main", { class: "detail hint" }, h("p", { class: "muted" }, "No attempt fits these filters."));
  const [place, group] = state.key.split("/");
  const other = meta.pages.find((page, index) => {
    const range = page.places[place];
    return index !== meta.page && range && range[0] <= Number(group) && Number(group) <= range[1];
  });
  return h("main", { class: "detail hint" }, h("p", {}, `There is no attempt ${state.key} on this page. `,
    other ? h("a", { class: "link", href: `${other.file}${location.hash}` }, `Look on ${other.file}.`) : null));
}

const pane = () => { const item = current(); return item ? detail(item) : elsewhere(); };

function renderList() {
  const holder = root.querySelector(".list-rows");
  holder.replaceChildren(h("p", { class: "count muted number" }, `${found.length} of ${items.length} attempts`),
    list(found, { ...state, key: current()?.key || "" }, first, rows, (from, count) => { first = from; rows = count; renderList(); }));
}
function changeFilter(changes) {
  first = 0; rows = PAGE_ROWS;
  state = { ...state, ...changes };
  history.replaceState(null, "", address(state, {}));
  found = select(items, state);
  if (!state.key) root.querySelector("main").replaceWith(pane());
  renderList();
}
function render() {
  const opened = new Set([...root.querySelectorAll("details.result")].map((d, index) => d.open ? index : -1));
  const before = state;
  state = readAddress();
  const same = before?.key === state.key;
  found = select(items, state);
  const left = !state.key && isNarrow() ? before?.key : null; // what the list is come back to from
  const place = found.findIndex((item) => item.key === (state.key || left || found[0].key));
  if (place < first || place >= first + rows) { first = place - place % PAGE_ROWS; rows = PAGE_ROWS; } // not there: the first
  const item = current();
  const scrolled = root.querySelector(".list")?.scrollTop || 0;
  root.className = `app ${state.key ? "has-detail" : "has-list"}`;
  root.replaceChildren(topbar(), h("div", { class: "panes" },
    h("div", { class: "list" }, filters(items, state, changeFilter), h("div", { class: "list-rows" })),
    pane()));
  renderList();
  root.querySelector(".list").scrollTop = scrolled;
  if (same) [...root.querySelectorAll("details.result")].forEach((d, index) => { d.open = opened.has(index); });
  else for (const element of root.querySelectorAll("[aria-current]")) element.scrollIntoView({ block: "nearest", inline: "nearest" });
  const turn = state.turn && root.querySelector(`#turn-${state.turn}`);
  if (turn) turn.classList.add("target");
  if (turn && !(same && before.turn === state.turn)) turn.scrollIntoView({ block: "start" });
  else if (!same) scrollTo(0, 0);
  if (left) [...root.querySelectorAll(".row")].find((element) => element.dataset.key === left)?.scrollIntoView({ block: "center" });
  document.title = item ? `${item.key} · ${meta.run}` : `Traces of ${meta.run}`;
}

Promise.all([unpack("meta"), unpack("records")]).then(([facts, records]) => {
  meta = facts;
  items = prepare(records);
  groups = Map.groupBy(items, (item) => groupKey(item.record));
  document.body.append(root, help);
  addEventListener("hashchange", render);
  render();
});
