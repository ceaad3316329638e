"use strict";
// Whatever comes from a result file is set as text, never as markup.

const { norms: NORMS, marks: MARKS, trust: TRUST } = JSON.parse(document.querySelector("main").dataset.signs);

function node(name, attributes = {}, ...children) {
  const drawn = ["svg", "g", "line", "circle", "path", "text", "polyline", "rect", "title"].includes(name);
  const made = drawn ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null).map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

const FACTS = { backbone: "Backbone", recipe: "Recipe", extra: "Extra data", parameters: "Parameters" };
const entries = (value) => (value && typeof value === "object" ? Object.entries(value) : []);
const shown = (value) => (value !== null && typeof value === "object" ? JSON.stringify(value) : String(value));
const threatOf = (attack) => `${NORMS[attack.norm] || attack.norm} ${attack.epsilon}`;

// ------------------------------------------------------------------------------------------------ theme

function initialiseTheme() {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const label = () => { button.textContent = dark() ? "Light" : "Dark"; };
  let stored = null;
  try { stored = localStorage.getItem("theme"); } catch { /* a browser may deny storage to files */ }
  if (stored === "dark" || stored === "light") root.dataset.theme = stored;
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* as above */ }
    label();
  });
  system.addEventListener("change", label);
  button.hidden = false;
  label();
}

// ---------------------------------------------------------------------------------------------- sorting

function makeSortable(table) {
  for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
    const button = node("button", { type: "button", class: "sort" });
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(table, column, nextDirection(head)));
  }
}

function nextDirection(head) {
  const now = head.getAttribute("aria-sort");
  if (now) return now === "ascending" ? "descending" : "ascending";
  return head.dataset.first || "ascending";
}

function sort(table, column, direction) {
  const body = table.tBodies[0];
  const sign = direction === "ascending" ? 1 : -1;
  const value = (row) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? parseFloat(cell.dataset.value) : (cell.querySelector(".label") || cell).textContent;
  };
  const missing = (row) => row.dataset.ranked === "no" || Number.isNaN(value(row));
  const rows = [...body.rows].filter((row) => "row" in row.dataset).sort((one, other) => {
    // What cannot be ranked stays last in either direction; ties keep the order of the ranks.
    if (missing(one) !== missing(other)) return missing(one) ? 1 : -1;
    const [a, b] = [value(one), value(other)];
    const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b || 0;
    return sign * order || one.dataset.row - other.dataset.row;
  });
  for (const row of rows) body.append(row, ...(row.opened ? [row.opened] : []));
  for (const [place, head] of [...table.tHead.rows[0].cells].entries()) {
    if (place === column) head.setAttribute("aria-sort", direction);
    else head.removeAttribute("aria-sort");
  }
}

// ---------------------------------------------------------------------------------------------- filters

function initialiseFilters(data, sections) {
  const boards = data.boards;
  const rows = boards.flatMap((board) => board.rows);
  const choices = [
    ["dataset", "Dataset", boards.map((board) => board.dataset)],
    ["threat", "Threat model", boards.flatMap((board) => board.threats)],
    ...Object.entries(FACTS).map(([name, title]) => [name, title, rows.map((row) => row[name])]),
    ["trust", "Trust", rows.map((row) => row.trust)],
  ];
  const text = node("input", { type: "search", id: "filter-text", placeholder: "Model, defense …", autocomplete: "off" });
  const form = node("form", { class: "filters", role: "search" }, field("Filter", text));
  const selects = {};
  for (const [name, title, values] of choices) {
    const options = [...new Set(values.filter((value) => value !== null).map(String))];
    selects[name] = node("select", { id: `filter-${name}` }, node("option", { value: "" }, "all"),
      ...options.map((option) => node("option", { value: option }, name === "trust" ? `${MARKS[option]} ${TRUST[option]}` : optionText(option))));
    const useful = options.length > 1 && (name !== "threat" || boards.length > 1);
    if (useful) form.append(field(title, selects[name]));
  }
  const count = node("output", { class: "count", "aria-live": "polite" });
  form.append(count);
  const apply = () => {
    const wanted = Object.fromEntries(Object.entries(selects).map(([name, select]) => [name, select.value]));
    count.textContent = filter(boards, sections, text.value, wanted);
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  document.querySelector("main").prepend(form);
  apply();
}

const field = (title, input) => node("label", {}, node("span", {}, title), input);
const optionText = (threat) => threat.replace(/^(linf|l2|l1) /, (_, norm) => `${NORMS[norm]} `);

function filter(boards, sections, text, wanted) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  let all = 0;
  sections.forEach((section, number) => {
    const board = boards[number];
    const here = (!wanted.dataset || String(board.dataset) === wanted.dataset)
      && (!wanted.threat || board.threats.includes(wanted.threat));
    let left = 0;
    for (const line of section.querySelectorAll("tr[data-row]")) {
      const row = board.rows[line.dataset.row];
      const searched = [row.name, row.defense, ...Object.keys(FACTS).map((name) => row[name])].join(" ").toLowerCase();
      const stays = here && words.every((word) => searched.includes(word))
        && ["trust", ...Object.keys(FACTS)].every((name) => !wanted[name] || String(row[name]) === wanted[name]);
      line.hidden = !stays;
      if (line.opened) line.opened.hidden = !stays;
      left += stays;
    }
    section.hidden = left === 0;
    if (section.scatter) section.scatter();
    found += left;
    all += board.rows.length;
  });
  return found === all ? `${all} ${all === 1 ? "model" : "models"}` : `${found} of ${all} models`;
}

// ---------------------------------------------------------------------------------------------- columns

const visible = (line) => [...line.cells].filter((cell) => !cell.hidden);

// What a training was made of: columns that are there to be chosen.
function addFacts(table, board) {
  for (const [name, title] of Object.entries(FACTS)) {
    if (board.rows.every((row) => row[name] === null || row[name] === undefined)) continue;
    const count = board.rows.some((row) => typeof row[name] === "number");
    table.tHead.rows[0].append(node("th", { scope: "col", class: count ? "number" : "fact" }, title));
    for (const line of table.tBodies[0].rows) {
      const value = board.rows[line.dataset.row][name];
      const text = value === null || value === undefined ? "-" : typeof value === "number" ? value.toLocaleString("en") : value;
      line.append(node("td", count ? { class: "number", "data-value": value ?? "" } : { class: "fact" }, text));
    }
  }
}

function makeChoosable(section, table, scroll, board) {
  const heads = [...table.tHead.rows[0].cells];
  const title = (head) => (head.firstChild.firstChild || head.firstChild).textContent;
  const optional = heads.filter((head) => !head.matches(".rank, .name, .trust"));
  const boxes = new Map(optional.map((head) => [head, node("input", { type: "checkbox" })]));
  const summary = node("summary", {});
  const show = () => {
    for (const [head, box] of boxes) {
      const place = heads.indexOf(head);
      for (const line of [heads[0].parentElement, ...table.tBodies[0].querySelectorAll("tr[data-row]")]) {
        line.cells[place].hidden = !box.checked;
        if (line.opened) line.opened.cells[0].colSpan = visible(line).length;
      }
    }
    summary.textContent = `Columns (${[...boxes.values()].filter((box) => box.checked).length} of ${boxes.size})`;
  };
  // At first: all that fit without scrolling, the first ones before the last ones; a phone scrolls the table.
  const needed = (head) => ["Clean", board.rank_by].includes(title(head));
  for (const [head, box] of boxes) box.checked = !head.matches(".fact") && !Object.values(FACTS).includes(title(head));
  show();
  for (const head of [...optional].reverse()) {
    if (innerWidth <= 640 || table.offsetWidth <= scroll.clientWidth) break;
    if (boxes.get(head).checked && !needed(head)) {
      boxes.get(head).checked = false;
      show();
    }
  }
  const list = node("div", { class: "choices" }, ...[...boxes].map(([head, box]) => node("label", {}, box, title(head))));
  list.addEventListener("input", show);
  scroll.before(node("details", { class: "chooser" }, summary, list));
}

// ---------------------------------------------------------------------------------------------- scatter

function drawScatter(section, board) {
  const measured = board.rows.every((row) => row.accuracies && row.accuracies.Clean && row.accuracies[board.rank_by]);
  if (!measured || board.rows.length < 2 || board.rank_by === "Clean") return;
  const figure = node("figure", { class: "scatter" });
  section.querySelector("footer").before(figure);
  section.scatter = () => {
    const lines = [...section.querySelectorAll("tr[data-row]")].filter((line) => !line.hidden);
    const rows = lines.map((line) => board.rows[line.dataset.row]);
    const front = frontOf(board, rows.filter((row) => row.ranked));
    const text = `Clean against ${board.rank_by}, in percent, with intervals. The line joins rows that no other row beats in both.`;
    figure.replaceChildren(rows.length ? scatter(board, rows, front, section) : "", node("figcaption", {}, text));
  };
}

const cleanOf = (row) => row.accuracies.Clean.percent;

// The rows that no other row beats in one number without falling behind in the other, by clean accuracy.
function frontOf(board, rows) {
  const robust = (row) => row.accuracies[board.rank_by].percent;
  const beats = (one, other) => cleanOf(one) >= cleanOf(other) && robust(one) >= robust(other)
    && (cleanOf(one) > cleanOf(other) || robust(one) > robust(other));
  return rows.filter((row) => !rows.some((other) => beats(other, row))).sort((one, other) => cleanOf(one) - cleanOf(other));
}

function scatter(board, rows, front, section) {
  const width = Math.min(640, section.clientWidth || 640);
  const [height, left, right, top, bottom] = [340, 44, width < 500 ? 20 : 90, 12, 40];
  const axis = (title) => {
    const ends = rows.flatMap((row) => bounds(row.accuracies[title]) || [row.accuracies[title].percent]);
    const step = Math.max(...ends) - Math.min(...ends) > 50 ? 20 : 10;
    const [low, high] = [Math.floor(Math.min(...ends) / step) * step, Math.ceil(Math.max(...ends) / step) * step];
    return { low, high: Math.max(high, low + step), step };
  };
  const [across, up] = [axis("Clean"), axis(board.rank_by)];
  const x = (percent) => left + (width - left - right) * (percent - across.low) / (across.high - across.low);
  const y = (percent) => top + (height - top - bottom) * (1 - (percent - up.low) / (up.high - up.low));
  const at = (row) => [x(cleanOf(row)), y(row.accuracies[board.rank_by].percent)];
  const told = (row) => `${row.name}: clean ${cleanOf(row).toFixed(1)}, ${board.rank_by} ${row.accuracies[board.rank_by].percent.toFixed(1)}`;
  const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": rows.map(told).join("; ") });
  for (let percent = across.low; percent <= across.high; percent += across.step) {
    svg.append(node("line", { class: "grid", x1: x(percent), x2: x(percent), y1: top, y2: height - bottom }),
      node("text", { x: x(percent), y: height - bottom + 15, "text-anchor": "middle" }, percent));
  }
  for (let percent = up.low; percent <= up.high; percent += up.step) {
    svg.append(node("line", { class: "grid", x1: left, x2: width - right, y1: y(percent), y2: y(percent) }),
      node("text", { x: left - 7, y: y(percent) + 3.5, "text-anchor": "end" }, percent));
  }
  svg.append(node("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, "Clean"),
    node("text", { transform: `rotate(-90) translate(${-(top + height - bottom) / 2} 12)`, "text-anchor": "middle" }, board.rank_by));
  if (front.length > 1) svg.append(node("path", { class: "front", d: `M${front.map((row) => at(row).join(" ")).join("L")}` }));
  const taken = rows.map(at).map(([px, py]) => [px - 5, py - 5, px + 5, py + 5]);
  for (const row of [...front, ...rows.filter((one) => !front.includes(one))]) {
    const [px, py] = at(row);
    const [wide, tall] = [bounds(row.accuracies.Clean), bounds(row.accuracies[board.rank_by])];
    const whisker = (wide ? `M${x(wide[0])} ${py}H${x(wide[1])}` : "") + (tall ? `M${px} ${y(tall[0])}V${y(tall[1])}` : "");
    const dot = node("circle", { cx: px, cy: py, r: 4.5, class: row.ranked ? "" : "unranked" }, node("title", {}, told(row)));
    dot.addEventListener("click", () => openRow(section, board.rows.indexOf(row)));
    svg.append(node("path", { class: "interval", d: whisker || "M0 0" }), dot);
    // A name stands where nothing else does, or only in the title of its point.
    const length = row.name.length * 6.4;
    const free = [[8, 4, "start"], [-8, 4, "end"], [0, -9, "middle"], [0, 17, "middle"]].map(([dx, dy, anchor]) => {
      const from = px + dx - { start: 0, end: length, middle: length / 2 }[anchor];
      return { dx, dy, anchor, box: [from, py + dy - 9, from + length, py + dy + 2] };
    }).find(({ box }) => box[0] >= left && box[2] <= width && taken.every((other) => box[2] <= other[0] || other[2] <= box[0] || box[3] <= other[1] || other[3] <= box[1]));
    if (!free) continue;
    taken.push(free.box);
    svg.append(node("text", { class: front.includes(row) ? "named" : "", x: px + free.dx, y: py + free.dy, "text-anchor": free.anchor }, row.name));
  }
  return svg;
}

function openRow(section, number) {
  const button = section.querySelector(`tr[data-row="${number}"] button.label`);
  if (button.getAttribute("aria-expanded") === "false") button.click();
  button.focus();
}

// ------------------------------------------------------------------------------------------------- rows

function makeOpenable(section, data, board) {
  for (const line of section.querySelectorAll("tr[data-row]")) {
    const row = board.rows[line.dataset.row];
    if (!row.ranked) line.dataset.ranked = "no";
    const label = line.querySelector(".label");
    const id = `${section.id}-row-${line.dataset.row}`;
    const button = node("button", { type: "button", class: "label", "aria-expanded": "false", "aria-controls": id });
    button.append(...label.childNodes);
    label.replaceWith(button);
    line.addEventListener("click", () => {
      if (!String(getSelection())) toggle(line, button, id, () => details(data, board, row));
    });
  }
}

function toggle(line, button, id, make) {
  if (!line.opened) {
    const cell = node("td", { colspan: visible(line).length }, node("div", { class: "panel" }, ...make()));
    line.opened = node("tr", { class: "opened", id }, cell);
    line.opened.hidden = true;
    line.after(line.opened);
    line.opened.closed = true;
  }
  line.opened.closed = !line.opened.closed;
  line.opened.classList.toggle("closed", line.opened.closed);
  line.opened.hidden = false;
  line.classList.toggle("open", !line.opened.closed);
  button.setAttribute("aria-expanded", String(!line.opened.closed));
}

function details(data, board, row) {
  return [
    block(...accuracies(board, row), "attacks"),
    row.classes ? block("Accuracy by class", classMap(row), "classes") : null,
    row.features ? block("Feature spaces", features(board, row), "features") : null,
    board.curves.length ? block("Accuracy by radius", curves(board, row), "curves") : null,
    block("Trust report", trustReport(data, row), "report"),
    block("Hyperparameters", hyperparameters(row), "settings"),
    block("Reproduce", reproduce(board, row), "reproduce"),
  ];
}

const block = (title, content, name) => node("section", { class: `block ${name}` }, node("h3", {}, title), ...content);

// ------------------------------------------------------------------------------- bars and curves, as SVG

const bounds = (accuracy) => ("low" in accuracy ? [accuracy.low, accuracy.high] : null);

function accuracies(board, row) {
  if (board.kind === "corruptions") {
    return ["Accuracy by corruption and severity", [...bars(board, row, board.columns), ...heat(board, row)]];
  }
  return ["Accuracy by attack", bars(board, row, board.kind === "features" ? Object.keys(row.accuracies) : board.columns)];
}

function bars(board, row, titles) {
  const list = node("dl", { class: "bars" });
  for (const title of titles) {
    const accuracy = row.accuracies[title];
    const attack = board.attacks[title];
    const own = row.results.map((result) => result.objectives[title]).find(Boolean);
    const about = [attack ? threatOf(attack) : null, own ? `loss: ${own}` : null].filter(Boolean).join(", ");
    const error = bounds(accuracy);
    const between = error ? ` (${error.map((bound) => bound.toFixed(1)).join(" to ")})` : "";
    const text = accuracy.percent.toFixed(1) + between + ("sd" in accuracy ? `, sd ${accuracy.sd.toFixed(1)}` : "");
    const seeds = row.results.length > 1 ? row.results.map((result) => result.accuracies[title].percent) : [];
    list.append(node("dt", {}, title, about ? node("small", {}, about) : null),
      node("dd", {}, bar(accuracy.percent, error, seeds), node("span", { class: "value" }, text)));
  }
  const merged = row.results.length > 1;
  const meaning = merged ? "Means, with 95 % intervals over seeds and test images; sd: standard deviation over seeds; each line is a seed."
    : "With 95 % intervals.";
  return [list, node("p", { class: "aside" }, meaning)];
}

// A cell is the fuller the more accurate; its number says it as well.
const heatCell = (percent, decimals) => node("td", { style: `--v:${percent}%` }, percent.toFixed(decimals));

function heat(board, row) {
  const { names, severities } = board.corruptions;
  const heading = (text) => node("th", { scope: "col" }, text);
  const lines = names.map((name) => {
    const percents = severities.map((severity) => row.corruptions[`${name}-${severity}`].percent);
    const mean = percents.reduce((sum, percent) => sum + percent, 0) / percents.length;
    return node("tr", {}, node("th", { scope: "row" }, shown(name).replaceAll("_", " ")), ...percents.map((percent) => heatCell(percent, 1)), heatCell(mean, 1));
  });
  const head = node("tr", {}, heading("Severity"), ...severities.map(heading), heading("Mean"));
  const table = node("table", { class: "heat" }, node("thead", {}, head), node("tbody", {}, ...lines));
  const widest = Math.max(...Object.values(row.corruptions).map(({ low, high }) => (high - low) / 2));
  const merged = row.results.length > 1 ? "Means over seeds. " : "";
  const error = `${merged}The 95 % interval of one number is up to ± ${widest.toFixed(1)} points.`;
  return [table, node("p", { class: "aside" }, error)];
}

function classMap({ classes: { labels, accuracies }, results }) {
  const line = ([title, percents]) => node("tr", {}, node("th", { scope: "row" }, title), ...percents.map((percent) => heatCell(percent, 0)));
  const head = node("tr", {}, node("th", { scope: "col" }, "Class"), ...labels.map((label) => node("th", { scope: "col" }, label)));
  const table = node("table", { class: "heat" }, node("thead", {}, head), node("tbody", {}, ...entries(accuracies).map(line)));
  const merged = results.length > 1 ? "means over seeds, " : "";
  return [node("div", { class: "wide" }, table), node("p", { class: "aside" }, `Of each true class, ${merged}without intervals: few images are of one class.`)];
}

function features(board, row) {
  const number = (title, value) => (typeof value === "number" ? value.toFixed(board.scales[title].decimals) : shown(value));
  const text = (title, { value, sd }) => number(title, value) + (sd === undefined ? "" : ` ± ${number(title, sd)}`);
  const seeds = (title) => (row.results.length > 1
    ? node("small", {}, row.results.map((result) => number(title, result.features[title].value)).join(", ")) : null);
  return [node("dl", { class: "values" },
    ...board.columns.map((title) => node("div", {}, node("dt", {}, title), node("dd", {}, text(title, row.features[title]), seeds(title)))))];
}

function bar(percent, error, seeds) {
  const svg = node("svg", { viewBox: "0 0 100 14", preserveAspectRatio: "none", class: "drawn", "aria-hidden": "true" });
  svg.append(node("rect", { class: "track", x: 0, y: 3, width: 100, height: 8 }),
    node("rect", { class: "fill", x: 0, y: 3, width: percent, height: 8 }));
  if (error) {
    const [low, high] = error;
    svg.append(node("path", { class: "whisker", d: `M${low} 7H${high}M${low} 4V10M${high} 4V10` }));
  }
  for (const seed of seeds) svg.append(node("path", { class: "seed", d: `M${seed} 1V13` }));
  return svg;
}

function curves(board, row) {
  return board.curves.map((labels) => {
    const attack = board.attacks[labels[0]];
    const clean = { radius: 0, epsilon: "0", accuracy: row.accuracies.Clean };
    const points = labels.map((label) => ({ ...board.attacks[label], accuracy: row.accuracies[label] }));
    const caption = `${attack.attack}, ${NORMS[attack.norm] || attack.norm}`;
    return node("figure", {}, curve([...(points[0].radius > 0 ? [clean] : []), ...points], caption), node("figcaption", {}, caption));
  });
}

function curve(points, caption) {
  const [width, height, left, right, top, bottom] = [360, 200, 34, 22, 10, 30];
  const widest = Math.max(...points.map((point) => point.radius)) || 1;
  const x = (radius) => left + (width - left - right) * radius / widest;
  const y = (percent) => top + (height - top - bottom) * (1 - percent / 100);
  const values = points.map((point) => `${point.epsilon}: ${point.accuracy.percent.toFixed(1)} %`).join(", ");
  const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, class: "curve", role: "img", "aria-label": `${caption}. ${values}` });
  for (const percent of [0, 25, 50, 75, 100]) {
    svg.append(node("line", { class: "grid", x1: left, x2: width - right, y1: y(percent), y2: y(percent) }),
      node("text", { x: left - 6, y: y(percent) + 3.5, "text-anchor": "end" }, percent));
  }
  const intervals = points.map((point) => bounds(point.accuracy) || [point.accuracy.percent, point.accuracy.percent]);
  const ring = [...points.map((point, place) => [x(point.radius), y(intervals[place][1])]),
    ...points.map((point, place) => [x(point.radius), y(intervals[place][0])]).reverse()];
  const line = (pairs) => pairs.map((pair) => pair.map((value) => value.toFixed(2)).join(" ")).join("L");
  svg.append(node("path", { class: "band", d: `M${line(ring)}Z` }),
    node("path", { class: "line", d: `M${line(points.map((point) => [x(point.radius), y(point.accuracy.percent)]))}` }));
  let free = -Infinity;
  for (const point of points) {
    svg.append(node("circle", { cx: x(point.radius), cy: y(point.accuracy.percent), r: 2.6 }));
    const half = 3.2 * point.epsilon.length;
    if (x(point.radius) - half < free) continue;
    free = x(point.radius) + half + 4;
    svg.append(node("text", { x: x(point.radius), y: height - 12, "text-anchor": "middle" }, point.epsilon));
  }
  return svg;
}

// ----------------------------------------------------------------------- trust, hyperparameters, commands

function trustReport(data, row) {
  const checks = findingsByCheck(data, row);
  if (!checks.length) return [node("p", {}, "The result holds no trust report. Evaluate again with `bench eval` to get one.")];
  const list = (chosen) => node("ul", { class: "findings" }, ...chosen.map(checkItem));
  const rest = checks.filter((check) => check.severity !== "passed");
  const passed = checks.filter((check) => check.severity === "passed");
  const made = rest.length ? [list(rest)] : [];
  if (passed.length) {
    made.push(node("details", {}, node("summary", {}, `${passed.length} ${passed.length === 1 ? "check" : "checks"} passed`), list(passed)));
  }
  return made;
}

// A check appears once for each severity it had, the worst first, with what it saw in each seed.
function findingsByCheck(data, row) {
  const checks = new Map();
  for (const result of row.results) {
    for (const finding of result.findings) {
      const severity = finding.severity in MARKS ? finding.severity : "note";
      const texts = { ...data.checks[finding.name], ...finding };
      const key = JSON.stringify([severity, texts.name, texts.meaning, texts.advice]);
      if (!checks.has(key)) checks.set(key, { ...texts, severity, seen: new Map() });
      const { seen } = checks.get(key);
      seen.set(shown(texts.message), [...(seen.get(shown(texts.message)) || []), result.seed]);
    }
  }
  const order = Object.keys(MARKS);
  return [...checks.values()].sort((one, other) => order.indexOf(one.severity) - order.indexOf(other.severity))
    .map((check) => ({ ...check, several: row.results.length > 1 }));
}

function checkItem({ severity, name, meaning, advice, seen, several }) {
  const lines = [...seen].map(([message, seeds]) => node("p", {}, message,
    several ? node("span", { class: "seed" }, ` (${seeds.length === 1 ? "seed" : "seeds"} ${seeds.join(", ")})`) : null));
  return node("li", { class: severity },
    node("span", { class: `mark ${severity}`, role: "img", "aria-label": severity }, MARKS[severity]),
    node("div", {}, node("p", {}, node("b", {}, shown(name))), ...lines,
      meaning ? node("p", { class: "meaning" }, `${shown(meaning)}.`) : null,
      advice && severity !== "passed" ? node("p", { class: "advice" }, `To do: ${shown(advice)}.`) : null));
}

function hyperparameters(row) {
  const first = row.results[0];
  const table = (value) => node("dl", { class: "values" },
    ...entries(value).map(([name, item]) => node("div", {}, node("dt", {}, name), node("dd", {}, shown(item)))));
  const made = [entries(first.hyperparameters).length ? table(first.hyperparameters) : node("p", {}, "None are recorded.")];
  if (entries(first.protocol).length) {
    made.push(node("details", {}, node("summary", {}, "Training protocol"), table(first.protocol)));
  }
  return made;
}

function reproduce(board, row) {
  const commands = row.results.flatMap((result) => result.commands).join("\n");
  const copy = node("button", { type: "button", class: "copy" }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(commands);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(copy.parentElement.querySelector("pre"));
    }
  });
  const facts = row.results.map((result) => {
    const versions = (result.environment || {}).versions || {};
    const made = ["bench", "torch"].filter((name) => name in versions).map((name) => `${name} ${shown(versions[name])}`);
    const parts = [row.results.length > 1 ? `seed ${result.seed}` : null,
      result.checkpoint_digest ? `checkpoint ${shown(result.checkpoint_digest).slice(0, 12)}` : null,
      result.epoch === null ? null : `epoch ${result.epoch}`, `result ${result.digest.slice(0, 12)}`,
      ...made, (result.environment || {}).device ? shown(result.environment.device) : null];
    return node("li", {}, parts.filter(Boolean).join(" · "));
  });
  const command = (text, ...more) => node("div", { class: "command" }, node("pre", { tabindex: "0" }, text), ...more);
  const weights = [...new Set(row.results.map((result) => result.address).filter(Boolean))];
  const links = weights.map((address) => node("li", {}, "Weights: ", node("a", { href: address, rel: "noreferrer" }, address)));
  const checks = [...new Set(row.results.flatMap((result) => result.verify))].join("\n");
  return [command(commands, copy), node("h3", { class: "second" }, "Verify"), command(checks),
    node("ul", { class: "facts" }, ...links, ...facts)];
}

// ------------------------------------------------------------------------------------------------ start

function initialise() {
  initialiseTheme();
  const data = JSON.parse(document.getElementById("data").textContent);
  if (!data) return;
  const sections = [...document.querySelectorAll("section.board")];
  for (const section of sections) {
    const [scroll, table] = [section.querySelector(".scroll"), section.querySelector("table")];
    const board = data.boards[section.dataset.board];
    addFacts(table, board);
    makeSortable(table);
    makeOpenable(section, data, board);
    makeChoosable(section, table, scroll, board);
    drawScatter(section, board);
    // A header can stick to the window only where nothing scrolls sideways.
    new ResizeObserver(() => {
      scroll.classList.remove("fits");
      scroll.classList.toggle("fits", table.offsetWidth <= scroll.clientWidth);
    }).observe(scroll);
  }
  initialiseFilters(data, sections);
}

initialise();
