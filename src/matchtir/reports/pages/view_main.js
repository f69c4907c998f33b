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
let meta, items, groups, state, found, rows = PAGE_ROWS;

const go = (changes) => { location.hash = address(state, changes); };
const replace = (changes) => { history.replaceState(null, "", address(state, changes)); render(); };
const current = () => items.find((item) => item.key === state.key);
const groupKey = (record) => `${record.place}/${record.group}`;
const groupOf = (record) => groups.get(groupKey(record));

function step(sequence, by) {
  const at = sequence.findIndex((item) => item.key === state.key);
  const next = sequence[at < 0 ? 0 : Math.max(0, Math.min(sequence.length - 1, at + by))];
  if (next && next.key !== state.key) go({ key: next.key, turn: null });
}
function stepTurn(by) {
  const item = current();
  if (item) go({ turn: Math.max(1, Math.min(item.record.turns.length, (state.turn || (by > 0 ? 0 : 2)) + by)), view: "one" });
}
function highlight(call, gold) {
  for (const element of root.querySelectorAll("[data-call],[data-gold]")) {
    const lit = element.dataset.call !== undefined ? call !== null && Number(element.dataset.call) === call
      : gold !== null && Number(element.dataset.gold) === gold;
    element.classList.toggle("lit", lit);
  }
}

const ACTIONS = {
  j: () => step(found, 1), k: () => step(found, -1),
  l: () => current() && step(groupOf(current().record), 1), h: () => current() && step(groupOf(current().record), -1),
  n: () => stepTurn(1), p: () => stepTurn(-1),
  g: () => go({ view: state.view === "group" ? "one" : "group", turn: null }),
  c: () => replace({ color: COLORS[(COLORS.indexOf(state.color) + 1) % COLORS.length] }),
  r: () => { const all = [...root.querySelectorAll("details.result")]; const open = all.some((d) => !d.open); all.forEach((d) => { d.open = open; }); },
  t: toggleTheme, "?": () => help.showModal(),
  "/": () => { if (matchMedia("(max-width: 760px)").matches) go({ key: "", turn: null }); root.querySelector("input[type=search]").focus(); },
  Escape: () => { if (document.activeElement !== document.body) document.activeElement.blur(); else go({ key: "", turn: null }); },
};
addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select, textarea");
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
  const { record } = item, group = groupOf(record);
  const scale = scaleOf(group.map((member) => member.record));
  const colors = h("span", { class: "switch", role: "group", "aria-label": "colour of tokens" }, COLORS.map((color) =>
    h("button", { "aria-pressed": String(color === state.color), onclick: () => replace({ color }) }, color)));
  return h("main", { class: "detail", tabindex: -1 },
    h("section", { class: "head" },
      h("p", { class: "muted number" }, `${/^\d+$/.test(record.place) ? "iteration " : ""}${record.place}, group ${record.group}, attempt ${record.attempt + 1} of ${group.length}   ${record.task}`),
      h("h2", { title: record.question }, asked(record)),
      h("p", { class: "facts" },
        h("span", {}, h("span", { class: "muted" }, "gold answer "), h("b", {}, record.gold_answer)),
        h("span", { class: "number" }, h("span", { class: "muted" }, "reward "), h("b", {}, signed(record.total))),
        h("span", { class: "number" }, h("span", { class: "muted" }, "outcome "), h("b", {}, number(record.outcome))),
        h("span", { class: `chip ${record.stop_reason === "answer" ? "ok" : "bad"}` }, record.stop_reason)),
      groupStrip(group, state, scale),
      h("div", { class: "tools" }, h("button", { "aria-pressed": String(state.view === "group"), onclick: ACTIONS.g }, "side by side"), colors, colorLegend(record, state.color, scale))),
    state.view === "group" ? groupTable(group, state, scale) : h("div", { class: "columns" },
      h("section", { class: "conversation", "aria-label": "conversation" }, conversation(record, state, scale, highlight)),
      h("aside", { class: "side" },
        h("h3", {}, "Calls × gold calls"), matrix(record, highlight),
        h("h3", {}, "Gold calls"), goldList(record),
        h("h3", {}, "Credit by turn"), creditTable(record, state, scale))));
}

function elsewhere() {
  if (!state.key) return h("main", { class: "detail hint" }, h("p", { class: "muted" }, "Choose an attempt, or press j."));
  const [place, group] = state.key.split("/");
  const other = meta.pages.find((page, index) => {
    const range = page.places[place];
    return index !== meta.page && range && range[0] <= Number(group) && Number(group) <= range[1];
  });
  return h("main", { class: "detail hint" }, h("p", {}, `There is no attempt ${state.key} on this page. `,
    other ? h("a", { class: "link", href: `${other.file}${location.hash}` }, `Look on ${other.file}.`) : null));
}

function renderList() {
  found = select(items, state);
  const holder = root.querySelector(".list-rows");
  holder.replaceChildren(h("p", { class: "count muted number" }, `${found.length} of ${items.length} attempts`),
    list(found, state, rows, () => { rows += PAGE_ROWS; renderList(); }));
  holder.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
}
function changeFilter(changes) {
  rows = PAGE_ROWS;
  state = { ...state, ...changes };
  history.replaceState(null, "", address(state, {}));
  renderList();
}
function render() {
  const opened = new Set([...root.querySelectorAll("details.result")].map((d, index) => d.open ? index : -1));
  const same = state && state.key === readAddress().key;
  state = readAddress();
  const item = current();
  const pane = root.querySelector(".list");
  const scrolled = pane ? pane.scrollTop : 0;
  root.className = `app ${state.key ? "has-detail" : "has-list"}`;
  root.replaceChildren(topbar(), h("div", { class: "panes" },
    h("div", { class: "list" }, filters(items, state, changeFilter), h("div", { class: "list-rows" })),
    item ? detail(item) : elsewhere()), help);
  root.querySelector(".list").scrollTop = scrolled;
  renderList();
  if (same) [...root.querySelectorAll("details.result")].forEach((d, index) => { d.open = opened.has(index); });
  const turn = state.turn && root.querySelector(`#turn-${state.turn}`);
  if (turn) { turn.classList.add("target"); turn.scrollIntoView({ block: "start" }); } else if (!same) scrollTo(0, 0);
  document.title = item ? `${state.key} · ${meta.run}` : `Traces of ${meta.run}`;
}

Promise.all([unpack("meta"), unpack("records")]).then(([facts, records]) => {
  meta = facts;
  items = prepare(records);
  groups = new Map();
  for (const item of items) groups.set(groupKey(item.record), [...(groups.get(groupKey(item.record)) || []), item]);
  document.body.append(root);
  addEventListener("hashchange", render);
  render();
});
