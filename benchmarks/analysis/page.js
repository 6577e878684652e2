"use strict";
// What the page's switches do: fill the sources of Bokeh's plots; sort, filter and pin the rows of the tables.

const words = (value, digits) => value.toFixed(digits).replace("-", "−");
const amount = value => value.toLocaleString("en", {notation: "compact", maximumSignificantDigits: 4});
const plain = name => (name.length > 26 ? name.slice(0, 25) + "…" : name).replace(/[$\\]/g, "$&\u2060");  // no formula

function fill(source, rows) {
  source.data = Object.fromEntries(Object.keys(source.data).map(column => [column, rows.map(row => row[column])]));
}

function frame(range, [start, end]) {
  Object.assign(range, {start, end, reset_start: start, reset_end: end});
}

// Moves names down that would cover one another: a line is 15 pixels high, a letter about 7 wide, a plot 400 high.
function spread(names, {log, range: [start, end]}, heights, width) {
  const share = log ? x => Math.log(x / start) / Math.log(end / start) : x => (x - start) / (end - start), placed = [];
  for (const name of [...names].sort((a, b) => b.y - a.y)) {
    const left = share(name.x) * width, right = left + 7 * name.text.length;
    const wanted = (heights[1] - name.y) / (heights[1] - heights[0]) * 400;
    const near = placed.filter(other => left < other.right && other.left < right).sort((a, b) => a.y - b.y);
    const y = near.reduce((y, other) => Math.abs(y - other.y) < 15 ? other.y + 15 : y, wanted);
    placed.push({left, right, y});
    name.down = 5 + y - wanted;
  }
  return names;
}

function drawCurves(store, methods, models, look) {
  const {axis: key, choice: name} = look, axis = store.axes[key], choice = store.choices[name], all = store.methods;
  const known = methods.filter(m => m.x[key] && m.y[name]), few = known.length <= 8;
  const at = (m, i) => ({method: m.name, x: m.x[key].at(i), y: m.y[name].at(i), ...look.of(m), marker: m.marker});
  fill(models.lines, known.map(m => ({...look.of(m), x: m.x[key], y: m.y[name], dash: m.dash})));
  fill(models.bands, known.filter(m => m.half[name] && (few || look.pinned(m))).map(m => {
    const [x, edges] = [m.x[key], [-1, 1].map(sign => m.y[name].map((y, i) => y + sign * m.half[name][i]))];
    return {...look.of(m), alpha: 0.15, x: [...x, ...[...x].reverse()], y: [...edges[0], ...edges[1].reverse()]};
  }));
  fill(models.points, known.flatMap(m => m.rounds.map((round, i) => {
    const half = m.half[name] ? " ± " + words(m.half[name][i], choice.digits) : "";
    const value = m.y[name][i] === null ? "" : words(m.y[name][i], choice.digits) + half;
    const x = m.x[key][i] === axis.zero ? "0" : amount(m.x[key][i]);
    return {...at(m, i), round, value: `${choice.label}: ${value}`, at: `${axis.label}: ${x}`, size: i === m.rounds.length - 1 ? 11 : 5};
  })));
  const front = store.fronts[key][name].map(number => all[number]), ends = front.map(m => at(m, -1));
  fill(models.front, ends.length ? [...ends, {x: axis.range[1], y: ends.at(-1).y}] : []);
  const named = known.filter(m => look.pinned(m) || front.includes(m)).map(m => ({...at(m, -1), text: plain(m.name)}));
  fill(models.labels, spread(named, axis, choice.range, look.width));
  frame(models.heights, choice.range);
  for (const kind of ["linear", "log"]) {
    const plot = models[kind];
    plot.visible = axis.log === (kind === "log");
    plot.below[0].axis_label = axis.label;
    plot.left[0].axis_label = choice.label;
    frame(plot.x_range, axis.range);
  }
  models.clients.visible = false;
  const nothing = axis.log && known.some(m => m.x[key].at(-1) === axis.zero);
  const absent = methods.filter(m => !known.includes(m)).map(m => m.name);
  return `${choice.label} against ${axis.label}: means over seeds. The grey line is the Pareto front: `
    + front.map(m => m.name).join(", ") + "." + (nothing ? " The left edge stands for 0." : "") + (absent.length ? ` Not recorded for ${absent.join(", ")}.` : "");
}

function drawClients(store, methods, models, look) {
  const name = look.choice in store.methods[0].clients || look.choice === "below_local" ? look.choice : "accuracy";
  const choice = store.choices[name], apart = name === "below_local", known = methods.filter(m => m.clients[name]);
  const label = apart ? "points above the same client's local-only accuracy" : `${choice.label} of a client`;
  fill(models.dots, known.flatMap((m, row) => m.clients[name].flatMap((values, run, {length}) => values.map(x => (
    {x, y: row + (run + 1) / (length + 1) * 0.8 - 0.4, method: m.name, value: `${label}: ${words(x, choice.digits)}`,
      ...look.of(m), marker: m.marker})))));
  fill(models.means, known.map((m, y) => {
    const values = m.clients[name].flat();
    return {x: values.reduce((sum, value) => sum + value, 0) / values.length, y};
  }));
  const plot = models.clients, [low, high] = [Math.min, Math.max].map(f => f(...models.dots.data.x));
  plot.left[0].ticker.ticks = known.map((_, row) => row);
  plot.left[0].major_label_overrides = new Map(known.map((m, row) => [row, plain(m.name)]));
  plot.below[0].axis_label = label;
  plot.height = 120 + 34 * known.length;
  frame(plot.x_range, [low - 0.03 * (high - low), high + 0.03 * (high - low)]);
  frame(plot.y_range, [known.length - 0.4, -0.6]);
  models.alone.visible = apart;
  models.linear.visible = models.log.visible = false;
  plot.visible = true;
  return `${label}, after the last round: a dot for each client, a row of dots for each seed, a bar at the mean.`;
}

function sortRows(table, column, sign) {
  const value = row => row.cells[column].dataset.value, text = row => row.cells[column].textContent;
  const order = (a, b) => value(a) === value(b) ? sign * text(a).localeCompare(text(b), "en", {numeric: true})
    : value(a) === "" ? 1 : value(b) === "" ? -1 : sign * (value(a) - value(b));
  const rows = [...table.tBodies[0].rows].sort(order), pinned = row => row.classList.contains("pinned");
  table.tBodies[0].append(...rows.filter(pinned), ...rows.filter(row => !pinned(row)));
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    const button = document.createElement("button");
    button.append(...cell.childNodes);
    cell.append(button);
    button.addEventListener("click", () => {
      const first = column ? "descending" : "ascending", before = cell.ariaSort;
      [...table.tHead.rows[0].cells].forEach(other => other.ariaSort = null);
      cell.ariaSort = !before ? first : before === "descending" ? "ascending" : "descending";
      sortRows(table, column, cell.ariaSort === "ascending" ? 1 : -1);
    });
  });
}

function start(section) {
  const store = JSON.parse(section.querySelector(":scope > script").textContent), form = section.querySelector("form");
  const target = section.querySelector(".plot"), caption = section.querySelector(".plot + figcaption");
  const buttons = [...section.querySelectorAll(".methods button")], tables = [...section.querySelectorAll("table")];
  let models = null;

  function update() {
    const wanted = form.filter.value.toLowerCase().split(/[\s,]+/).filter(Boolean);
    const pins = new Set(buttons.filter(button => button.ariaPressed === "true").map(button => button.value));
    const shows = name => pins.has(name) || !wanted.length || wanted.some(part => name.toLowerCase().includes(part));
    for (const row of tables.flatMap(table => [...table.tBodies[0].rows])) {
      row.hidden = !shows(row.cells[0].textContent);
      row.classList.toggle("pinned", pins.has(row.cells[0].textContent));
    }
    for (const table of tables) table.tBodies[0].prepend(...table.querySelectorAll(".pinned"));
    buttons.forEach(button => button.parentElement.hidden = !shows(button.value));
    form.axis.disabled = form.view.value === "clients";
    if (!models) return;
    const ink = getComputedStyle(section).color, pinned = m => pins.has(m.name);
    const of = m => ({color: m.color === "#000000" ? ink : m.color, width: pinned(m) ? 4 : 2,
      alpha: pins.size && !pinned(m) ? 0.2 : 1});
    const look = {axis: form.axis.value, choice: form.choice.value, of, pinned, width: target.clientWidth - 80};
    const draw = form.view.value === "clients" ? drawClients : drawCurves;
    caption.textContent = draw(store, store.methods.filter(m => shows(m.name)), models, look);
    target.ariaLabel = caption.textContent;
  }

  async function embed() {
    const css = getComputedStyle(section), text = document.getElementById("plots").textContent;
    const item = JSON.parse(text.replaceAll("#010203", css.color).replaceAll("#040506", css.getPropertyValue("--line")));
    target.replaceChildren();
    const {roots: [{model}]} = await Bokeh.embed.embed_item(item, target);
    models = Object.fromEntries([...model.references()].filter(each => each.name).map(each => [each.name, each]));
    target.style.minHeight = 0;
    update();
  }

  form.hidden = false;
  form.addEventListener("input", update);
  form.addEventListener("submit", event => event.preventDefault());
  for (const button of buttons) {
    button.addEventListener("click", () => {
      button.ariaPressed = button.ariaPressed !== "true";
      update();
    });
  }
  tables.forEach(makeSortable);
  new IntersectionObserver(([{isIntersecting}], observer) => {
    if (!isIntersecting) return;
    observer.disconnect();
    embed();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", embed);
  }, {rootMargin: "300px"}).observe(section);
}

document.querySelectorAll("section.comparison").forEach(start);
