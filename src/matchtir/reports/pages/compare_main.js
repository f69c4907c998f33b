// Sections of a comparison: curves, final scores, settings, cost.
const SECTIONS = [["held out", "val/", true], ["training", "train/", true], ["credit", "credit/", false], ["time", "time/", false], ["other", "", false]];
const FIRST = ["success", "reward", "solve_f1", "answer_f1", "answered", "entropy", "kl", "loss", "grad_norm", "turns", "calls"];
const STAGES = [["rollout", "#56b4e9"], ["tools", "#e69f00"], ["credit", "#cc79a7"], ["update", "#009e73"], ["other", "#9a9a9a"]];
const hidden = new Set();

// Long labels break behind their joints, not within words.
const breakable = (label) => label.split(/(?<=[=_,/]|\.(?=\D))/).flatMap((part) => [part, h("wbr", {})]);

// The value that a metric has in every run at every step; null where it changes.
function constantOf(methods) {
  const values = new Set(Object.values(methods).flatMap((points) => points.seeds.flat()).filter((value) => value !== null));
  return values.size === 1 ? [...values][0] : null;
}

function legend(methods) {
  return h("div", { class: "methods" }, methods.map((method, index) => {
    const done = method.runs.filter((run) => run.finished).length;
    const button = h("button", { class: "method", "aria-pressed": "true", "--hue": styleOf(index).color,
      title: method.runs.map((run) => `${run.name}${run.finished ? "" : " (not finished)"}`).join("\n"),
      onclick: () => {
        const off = !hidden.has(index);
        if (off) hidden.add(index); else hidden.delete(index);
        button.setAttribute("aria-pressed", String(!off));
        for (const element of document.querySelectorAll(`[data-method="${index}"]`)) element.classList.toggle("off", off);
      } },
    h("i", { class: styleOf(index).dash && "dashed" }), method.label, done === method.runs.length ? null : h("span", { class: "muted" }, ` ${done} of ${method.runs.length} runs finished`));
    return button;
  }));
}

function curves(data) {
  const labels = data.methods.map((method) => method.label);
  const left = new Set(Object.keys(data.curves).filter((metric) => !/^(test|by)\//.test(metric)));
  return SECTIONS.map(([title, prefix, open]) => {
    const found = [...left].filter((metric) => metric.startsWith(prefix));
    const flat = found.filter((metric) => constantOf(data.curves[metric]) !== null);
    const metrics = found.filter((metric) => !flat.includes(metric));
    const rank = (metric) => { const at = FIRST.indexOf(metric.slice(prefix.length)); return at < 0 ? FIRST.length : at; };
    metrics.sort((a, b) => rank(a) - rank(b));
    const figures = () => metrics.map((metric) => chart(metric, labels.flatMap((label, index) =>
      data.curves[metric][label] ? [{ index, points: data.curves[metric][label] }] : [])));
    const constants = flat.map((metric) => h("span", {}, h("code", {}, metric.slice(prefix.length)), ` ${short(constantOf(data.curves[metric]))}`));
    found.forEach((metric) => left.delete(metric));
    if (!found.length) return null;
    const grid = h("div", { class: "charts" });
    const holder = h("details", { class: "curves", open, ontoggle: () => {
      if (holder.open && !grid.childElementCount) grid.append(...figures());
      for (const index of hidden) for (const element of grid.querySelectorAll(`[data-method="${index}"]`)) element.classList.add("off");
    } }, h("summary", {}, title, h("span", { class: "muted" }, ` ${metrics.length}`)), grid,
      flat.length ? h("p", { class: "constants muted" }, "the same in all runs at all times: ", constants) : null);
    return holder;
  });
}

// By turn, scenario and span: the last value of each method, a table for each kind of place.
function placeTables(data) {
  const found = Object.keys(data.curves).filter((metric) => metric.startsWith("by/")).map((metric) => metric.split("/"));
  const last = (metric, label) => data.curves[metric]?.[label]?.mean.at(-1);
  return [...new Set(found.map(([, kind]) => kind))].map((kind) => {
    const own = found.filter((parts) => parts[1] === kind);
    const names = [...new Set(own.map((parts) => parts.at(-1)))], places = [...new Set(own.map((parts) => parts.slice(2, -1).join("/")))];
    return h("details", { class: "curves" }, h("summary", {}, `by ${kind}`), h("div", { class: "scroll" },
      table("number", [kind, "method", ...names], places.flatMap((place) => data.methods.map(({ label }) => [h("td", {}, place), h("td", { class: "wrap" }, breakable(label)),
        ...names.map((name) => h("td", {}, number(last(`by/${kind}/${place}/${name}`, label) ?? null, 3)))])))));
  });
}

const NEITHER = ["turns", "calls"]; // fewer of them is neither better nor worse
// Of which runs the numbers are: starts and seeds.
const runsOf = (row) => `${row.starts > 1 ? `${row.starts} starts, ` : ""}seed${row.seeds.length > 1 ? "s" : ""} ${row.seeds.join(", ")}`;

// A table whose rows become blocks on narrow screens, each cell under the name of its column.
function table(kind, headings, rows) {
  return h("table", { class: `${kind} stack` }, h("thead", {}, h("tr", {}, headings.map((text) => h("th", {}, breakable(text))))),
    h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell, index) => fill(cell, { "data-label": headings[index] }, []))))));
}
function interval(gain, name, measure) {
  if (!gain) return null;
  const kind = NEITHER.includes(measure) ? "" : gain.low > 0 ? "up" : gain.high < 0 ? "down" : "";
  return h("span", { class: `gain ${kind}`, title: `${name}: ${signed(gain.mean, 3)}, 95 % interval [${signed(gain.low, 3)}, ${signed(gain.high, 3)}]` },
    `${signed(gain.mean, 3)} `, h("small", {}, `[${signed(gain.low, 3)}, ${signed(gain.high, 3)}]`));
}
function finalTable(data) {
  const measures = [...new Set(data.final.flatMap((row) => Object.keys(row.scores)))];
  const best = {};
  for (const measure of measures.filter((m) => m in data.headings)) {
    best[measure] = [...new Set(data.final.map((row) => row.scores[measure]?.mean))].sort((a, b) => b - a);
  }
  const same = new Set(data.final.map(runsOf)).size === 1;
  const cell = (row, measure) => {
    const score = row.scores[measure];
    if (!score) return h("td", {}, "–");
    const place = best[measure]?.length > 1 ? best[measure].indexOf(score.mean) : -1;
    return h("td", {}, h("span", { class: `score ${["best", "second"][place] || ""}` }, number(score.mean, 3)),
      interval(score.gain, `gain over training; by run: ${score.by_seed.map((value) => signed(value, 3)).join(", ")}`, measure),
      score.difference ? h("span", { class: "versus" }, h("small", { class: "muted" }, "vs "), interval(score.difference, `difference from ${data.baseline}`, measure)) : null);
  };
  const name = (row) => h("td", { class: "wrap" }, h("b", {}, breakable(row.method)),
    row.method === data.baseline ? h("small", { class: "muted" }, " baseline") : null, same ? null : h("small", { class: "muted runs" }, runsOf(row)));
  return [h("p", { class: "note muted" }, `${data.final[0].tasks} test tasks`, same ? `, ${runsOf(data.final[0])}` : "", "."),
    table("final number", ["method", ...measures.map((m) => data.headings[m] || m)],
      data.final.map((row) => [name(row), ...measures.map((measure) => cell(row, measure))]))];
}

function settingsTable(data) {
  if (data.methods.length < 2) return h("p", { class: "muted" }, "There is one method.");
  if (!data.settings.length) return h("p", { class: "muted" }, "The settings are the same.");
  return table("settings", ["setting", ...data.methods.map((method) => method.label)], data.settings.map((row) =>
    [h("td", { class: "wrap" }, h("code", {}, breakable(row.key))), ...row.values.map((value) => h("td", {}, h("code", {}, value.replace(/^matchtir\.(\w+\.)*/, ""))))]));
}

function costTable(data) {
  const most = Math.max(1e-9, ...data.cost.map((row) => STAGES.reduce((sum, [stage]) => sum + (row[stage] || 0), 0)));
  const seconds = (value) => value === null ? "–" : value < 10 ? number(value, 1) : Math.round(value).toLocaleString("en");
  const bar = (row) => h("span", { class: "bar" }, STAGES.map(([stage, hue]) =>
    h("i", { title: `${stage}: ${seconds(row[stage])} s`, "--hue": hue, "--share": ((row[stage] || 0) / most).toFixed(4) })));
  return [h("p", { class: "legend muted" }, STAGES.map(([stage, hue]) => [h("i", { class: "swatch", "--hue": hue }), stage])),
    table("cost number", ["method", "time", "seconds", ...STAGES.map(([stage]) => stage), "sampled tokens"], data.cost.map((row) => [
      h("td", { class: "wrap" }, breakable(row.method)), h("td", {}, bar(row)), h("td", {}, seconds(row.seconds)),
      ...STAGES.map(([stage]) => h("td", {}, seconds(row[stage]))), h("td", {}, row.tokens === null ? "–" : Math.round(row.tokens).toLocaleString("en"))]))];
}

unpack("comparison").then((data) => {
  const section = (title, note, content) => content?.length === 0 ? null : h("section", {}, h("h2", {}, title), note ? h("p", { class: "note muted" }, note) : null, content);
  document.body.append(h("div", { class: "compare" },
    h("header", { class: "topbar" }, h("h1", { class: "grow" }, data.title), h("button", { onclick: toggleTheme, "aria-label": "light or dark" }, "◐")),
    h("main", {}, h("div", { class: "sticky" }, legend(data.methods)), data.notes.map((note) => h("p", { class: "note muted" }, note)),
      section("Final scores", data.final.length ? "Means over test tasks and runs. Below: the gain over training, and the difference from the baseline (vs), each paired by task with its 95 % interval of a bootstrap over starts, seeds and tasks. Bold: best; underlined: second." : null,
        data.final.length ? finalTable(data) : h("p", { class: "muted" }, "No run has finished.")),
      section("Curves", "Mean over runs; the band is Student's 95 % interval, from three runs on; faint lines are single runs. Training metrics are means of the last 10 iterations.", curves(data)),
      section("Where in an attempt", "Means of the last 10 iterations: turn_share is the part of the advantages that the turn level makes, the last of ten turns stands for all later ones.", placeTables(data)),
      section("Settings that differ", null, settingsTable(data)),
      section("Cost", "Seconds and tokens of one run, means over its runs. Rollout is without its tools, other is the warm start, validation and tests.", costTable(data)))));
});
