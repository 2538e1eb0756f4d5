// Tables that sort and filter, plots, and a button that copies. The pages read well without it:
// nothing here adds a number or a link.
"use strict";

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// --- tables -------------------------------------------------------------------------------------

function select(table, label, key) {
  const values = [...new Set([...table.tBodies[0].rows].map((row) => row.dataset[key]))];
  if (values.length < 2 || values.includes(undefined)) return null;
  const box = document.createElement("select");
  for (const value of ["", ...values.sort()]) box.add(new Option(value || "all", value));
  const name = document.createElement("label");
  name.textContent = label;
  name.htmlFor = box.id = `${key}-of-${table.id}`;
  const wrapper = document.createElement("div");
  wrapper.append(name, box);
  return { key, box, wrapper };
}

// What is searched for in a ranking: names, and seeds by their number, not by a digit of a hash.
function seeker(table) {
  const box = document.createElement("input");
  box.type = "search";
  box.className = "dt-input";
  box.id = `search-of-${table.id}`;
  const name = document.createElement("label");
  name.textContent = "Search";
  name.htmlFor = box.id;
  const wrapper = document.createElement("div");
  wrapper.className = "dt-search";
  wrapper.append(name, box);
  const finds = ({ search, seed }) => {
    let words = box.value.toLowerCase().replaceAll('"', " ");
    const seeds = [...words.matchAll(/\bseed\s+(\d+)/g)].map((found) => found[1]);
    words = words.replace(/\bseed\s+\d+/g, " ").split(/\s+/);
    return seeds.every((number) => number === seed)
      && words.every((word) => search.toLowerCase().includes(word)
        || (seed !== "" && "seed".startsWith(word)));
  };
  return { box, wrapper, finds };
}

function sortable(table) {
  const frame = table.closest(".scroll");
  const numeric = [...table.tHead.rows[0].cells].flatMap((cell, i) =>
    cell.classList.contains("num") && i > 0 ? [i] : []);
  const filters = [["Method", "method"], ["Model", "model"], ["Level", "level"]]
    .map(([label, key]) => select(table, label, key)).filter(Boolean);
  const row = document.createElement("div");
  row.className = "filters";
  row.append(...filters.map((filter) => filter.wrapper));
  const seek = table.classList.contains("ranking") ? seeker(table) : null;
  const drawn = new window.DataTable(table, {
    paging: false,
    autoWidth: false,
    order: table.classList.contains("ranking") ? [[0, "asc"]] : [],
    columnDefs: [{ targets: numeric, orderSequence: ["desc", "asc"] },
                 { targets: "_all", orderSequence: ["asc", "desc"] }],
    layout: { topStart: filters.length ? () => row : null, topEnd: seek ? () => seek.wrapper : "search",
              bottomStart: "info", bottomEnd: null },
    language: { search: "Search", info: "_TOTAL_ of _MAX_ rows", infoFiltered: "",
                infoEmpty: "None of _MAX_ rows", zeroRecords: "No row matches." },
  });
  // Lines between configurations mean something in the order of the ranks only.
  const group = () => table.classList.toggle("grouped", String(drawn.order()[0]) === "0,asc");
  if (table.classList.contains("ranking")) drawn.on("order", group), group();
  drawn.search.fixed("filters", (text, data, index) => {
    const own = drawn.row(index).node().dataset;
    return (!seek || seek.finds(own))
      && filters.every(({ key, box }) => !box.value || own[key] === box.value);
  });
  if (seek) seek.box.addEventListener("input", () => drawn.draw());
  for (const { box } of filters) box.addEventListener("change", () => drawn.draw());
  // DataTables puts its controls around the table: only the table itself shall scroll.
  const inner = table.parentElement;
  for (const name of ["role", "aria-label", "tabindex"]) {
    inner.setAttribute(name, frame.getAttribute(name));
    frame.removeAttribute(name);
  }
  frame.classList.remove("scroll");
  inner.classList.add("scroll");
}

function tables() {
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const fold = table.closest("details");
    if (!fold || fold.open) sortable(table);
    else fold.addEventListener("toggle", () => { sortable(table); frames(); }, { once: true });
  }
}

// --- plots --------------------------------------------------------------------------------------

// After Okabe and Ito, darkened to a contrast of 3 on either page; shapes tell series apart as well.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#b5548a", "#a87b00", "#3d93cc", "#7f5fc7"];
const SHAPES = ["circle", "square", "diamond", "triangle-up", "cross"];
const PATHS = { "circle": "M5 0a5 5 0 1 0 0 10a5 5 0 1 0 0-10z", "square": "M1 1h8v8h-8z",
                "diamond": "M5 0l5 5l-5 5l-5-5z", "triangle-up": "M5 0l5 9h-10z",
                "cross": "M3.5 0h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z" };
const look = (i) => ({ color: COLOURS[i % COLOURS.length], symbol: SHAPES[i % SHAPES.length] });
const faint = (i) => `${look(i).color}59`;
const KINDS = {
  plane: { key: "seconds", title: "training time, machine-dependent" },
  tradeoff: { key: "clean", title: "clean accuracy, %" },
};
// Plotly reads a little HTML in its labels.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const two = (value) => value.toFixed(2);

// Few-shot boards rank by clean accuracy: that is what they show against time.
const height = (kind, data) => kind === "plane" && data.fewshot ? "clean" : "robust";
const HEIGHTS = { robust: "accuracy under attack, %", clean: "clean accuracy, %" };

function traces(kind, data) {
  const { key } = KINDS[kind], up = height(kind, data);
  const found = data.series.map((series, i) => {
    const points = series.points.filter((point) => point[key] !== null && point[up] !== null);
    return {
      type: "scatter", mode: "markers", name: plain(series.name),
      x: points.map((point) => point[key]), y: points.map((point) => point[up]),
      customdata: points.map((point) => point.href),
      text: points.map((point) => `<b>${plain(point.label)}</b><br>`
        + (point.robust === null ? "" : `robust ${two(point.robust)} %, `)
        + `clean ${two(point.clean)} %<br>training ${plain(point.time)}`
        + (point.passes === null ? "" : `<br>passes ${plain(point.passes)}`)),
      hovertemplate: "%{text}<extra></extra>",
      // One lies above another: what is below shows through.
      marker: { size: 10, ...look(i), color: faint(i), line: { width: 1.5, color: look(i).color } },
    };
  }).filter((trace) => trace.x.length);
  if (kind === "tradeoff" && data.published.length) {
    found.unshift({
      type: "scatter", mode: "markers", name: "RobustBench, published",
      visible: data.aside ? "legendonly" : true, // unseen it does not stretch the axes
      x: data.published.map((row) => row.clean), y: data.published.map((row) => row.robust),
      text: data.published.map((row) => `${plain(row.label)}<br>AutoAttack ${two(row.robust)} %, `
        + `clean ${two(row.clean)} %<br>published by RobustBench, not verified here`),
      hovertemplate: "%{text}<extra></extra>",
      marker: { size: 7, color: colour("--strong-line"), opacity: 0.8, symbol: "circle-open" },
    });
  }
  return found;
}

// A logarithmic axis whose ticks are times that people say: 5 s, 20 min, 10 h.
const UNITS = [["s", 1, [1, 2, 5, 10, 20, 30]], ["min", 60, [1, 2, 5, 10, 20, 30]],
               ["h", 3600, [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]]];

function times(drawn) {
  const all = drawn.flatMap((trace) => trace.x);
  const low = Math.min(...all) / 1.25, high = Math.max(...all) * 1.25;
  let ticks = UNITS.flatMap(([unit, length, values]) =>
    values.map((value) => ({ at: value * length, text: `${value} ${unit}` })))
    .filter((tick) => low <= tick.at && tick.at <= high);
  while (ticks.length > 6) ticks = ticks.filter((tick, i) => i % 2 === 0);
  const range = [Math.log10(low), Math.log10(high)];
  const named = { tickvals: ticks.map((tick) => tick.at), ticktext: ticks.map((tick) => tick.text) };
  return { type: "log", range, ...(ticks.length > 1 ? named : { ticksuffix: " s" }) };
}

function axis(title, more) {
  return { title: { text: title, standoff: 12 }, gridcolor: colour("--line"), zeroline: false,
           linecolor: colour("--strong-line"), automargin: true, ...more };
}

function draw(place, data) {
  const kind = place.dataset.kind;
  const drawn = traces(kind, data);
  const layout = {
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("--text") },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 50, r: 12, t: 12, b: 45 },
    xaxis: axis(KINDS[kind].title, kind === "plane" ? times(drawn) : {}),
    yaxis: axis(HEIGHTS[height(kind, data)], {}),
    showlegend: false,
    hovermode: "closest", dragmode: false,
    hoverlabel: { align: "left", bgcolor: colour("--raised"), bordercolor: colour("--strong-line"),
                  font: { color: colour("--text") } },
  };
  return window.Plotly.react(place, drawn, layout, { responsive: true, displayModeBar: false });
}

function swatch(name, path, attributes) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 10 10");
  svg.setAttribute("aria-hidden", "true");
  shape.setAttribute("d", path);
  for (const [key, value] of Object.entries(attributes)) shape.style.setProperty(key, value);
  svg.append(shape);
  const item = document.createElement("li");
  item.append(svg, name);
  return item;
}

// One legend for both plots.
function legend(data, redraw) {
  const list = document.createElement("ul");
  list.className = "legend";
  data.series.forEach((series, i) =>
    list.append(swatch(series.name, PATHS[look(i).symbol], { fill: faint(i), stroke: look(i).color })));
  if (data.published.length) {
    const ring = { fill: "none", stroke: "var(--strong-line)" };
    const item = swatch("RobustBench, published", "M5 1a4 4 0 1 0 0 8a4 4 0 1 0 0-8z", ring);
    const button = document.createElement("button");
    button.type = "button";
    button.append(...item.childNodes);
    button.setAttribute("aria-pressed", String(!data.aside));
    button.addEventListener("click", () => {
      data.aside = !data.aside;
      button.setAttribute("aria-pressed", String(!data.aside));
      redraw();
    });
    item.append(button);
    list.append(item);
  }
  return list;
}

function plots() {
  for (const group of document.querySelectorAll(".plots")) {
    const data = JSON.parse(group.querySelector("script.points").textContent);
    const places = [...group.querySelectorAll(".plot")];
    group.prepend(legend(data, () => places.forEach((place) => draw(place, data))));
    for (const place of places) {
      draw(place, data).then(() => {
        place.on("plotly_click", (event) => {
          const address = event.points[0].customdata;
          if (address) window.location.href = address;
        });
      });
      dark.addEventListener("change", () => draw(place, data));
    }
  }
}

// --- frames -------------------------------------------------------------------------------------

// A frame is a stop of the Tab key only while there is something to scroll.
function frames() {
  for (const frame of document.querySelectorAll(".scroll")) {
    frame.tabIndex = frame.scrollWidth > frame.clientWidth ? 0 : -1;
  }
}

// --- the rest -----------------------------------------------------------------------------------

function copying() {
  for (const button of document.querySelectorAll("button.copy")) {
    const code = button.parentElement.querySelector("code");
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        window.getSelection().selectAllChildren(code);
        button.textContent = "Selected: copy it with the keyboard";
      }
    });
  }
}

function unfold() {
  // A link to a folded part opens it.
  const target = window.location.hash && document.getElementById(window.location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) target.open = true;
}

function theme() {
  document.documentElement.classList.toggle("dark", dark.matches);
}

theme();
dark.addEventListener("change", theme);
window.addEventListener("hashchange", unfold);
unfold();
if (window.DataTable) tables();
if (window.Plotly) plots();
copying();
frames();
window.addEventListener("resize", frames);
