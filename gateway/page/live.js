// The live view: draws what the admin port's event stream tells, for as long as somebody looks at it.
import { EventParser } from "./sse.js";

const AGAIN_MS = 2000;
const HIDDEN_MS = 2000; // a tab in the background for longer lets its stream go
const IDLE_S = 2;
const POINTS = 60;
const SVG = "http://www.w3.org/2000/svg";
const STATES = { closed: "well", open: "not asked", half_open: "being tried" };

const $ = (id) => document.getElementById(id);
const rows = new Map();
const cards = new Map();
const totals = new Map();
let controller = null;
let longest = 200; // how many tokens a full bar is
let recentKey = "";

// --- what is told

const show = {
  streams(told) {
    setStatus(told.is_ready ? "Ready" : "Takes no requests", told.is_ready ? "well" : "ill");
    const waiting = told.phases.prefill ?? 0;
    total("In flight", told.total);
    total("Waiting for a first token", waiting);
    total("Tokens a second", Math.round(told.tokens_per_s).toLocaleString("en"));
    const kept = told.recent.filter(({ outcome }) => !["client_aborted", "rejected", "drained"].includes(outcome));
    const whole = kept.filter(({ outcome }) => outcome === "completed").length;
    total("Of the last ended, completed", kept.length ? `${Math.floor((100 * whole) / kept.length)} %` : "–");
    showFlight(told);
    showRecent(told.recent);
  },
  upstreams(told) {
    const names = new Set(told.map(({ name }) => name));
    for (const [name, card] of cards) if (!names.has(name)) remove(cards, name, card);
    for (const upstream of told) showUpstream(upstream);
  },
};

function showFlight({ in_flight, total: count }) {
  const ids = new Set(in_flight.map(({ id }) => id));
  for (const [id, row] of rows) if (!ids.has(id)) remove(rows, id, row);
  longest = Math.max(200, longest * 0.98, ...in_flight.map(({ tokens }) => tokens * 1.15));
  for (const stream of in_flight) showStream(stream);
  $("calm").hidden = count > 0;
  set($("flight-note"), count > in_flight.length ? `the oldest ${in_flight.length} of ${count}` : "");
}

function showStream({ id, model, target, phase, tokens, tokens_per_s, idle_s, age_s, attempts }) {
  const row = rows.get(id) ?? addRow(id);
  const isIdle = phase !== "prefill" && idle_s > IDLE_S;
  row.element.className = `${phase} ${isIdle ? "idle" : ""}`;
  set(row.name, target?.split("?")[0] ?? model);
  set(row.note, attempts > 1 ? `attempt ${attempts}` : isIdle ? `silent for ${seconds(idle_s)}` : "");
  row.element.title = `${id} · ${model} · ${phase}`;
  row.bar.style.transform = `translateX(${Math.min(100, (100 * tokens) / longest) - 100}%)`;
  set(row.tokens, `${tokens}`);
  set(row.rate, tokens_per_s ? `${tokens_per_s.toFixed(0)} /s` : "");
  set(row.age, seconds(age_s));
}

function addRow(id) {
  const element = make("li");
  const who = element.appendChild(make("span", "who"));
  const track = element.appendChild(make("div", "track"));
  const told = element.appendChild(make("span", "told"));
  const row = {
    element,
    name: who.appendChild(make("span")),
    note: who.appendChild(make("small")),
    bar: track.appendChild(make("i")),
    tokens: told.appendChild(make("b")),
    rate: told.appendChild(make("span")),
    age: told.appendChild(make("span")),
  };
  $("flight").append(element);
  rows.set(id, row);
  return row;
}

function showUpstream({ name, state, in_flight, attempts, failed, resumed, ttft_s, tokens_per_s }) {
  const card = cards.get(name) ?? addCard(name);
  card.state.className = `state ${state}`;
  set(card.state, STATES[state] ?? state);
  drawChart(card.first, ttft_s, seconds);
  drawChart(card.rate, tokens_per_s, (value) => value.toFixed(value < 10 ? 1 : 0));
  const told = [`${in_flight} in flight`, `${attempts} ${attempts === 1 ? "attempt" : "attempts"}`, `${failed} failed`];
  if (resumed) told.push(`${resumed} resumed`);
  set(card.values, told.join(" · "));
}

function addCard(name) {
  const element = make("li");
  const head = element.appendChild(make("div", "head"));
  const title = head.appendChild(make("strong", "", name));
  title.title = name;
  const state = head.appendChild(make("span"));
  const charts = element.appendChild(make("div", "charts"));
  const card = {
    element,
    state,
    first: addChart(charts, "First token"),
    rate: addChart(charts, "Tokens/s"),
    values: element.appendChild(make("p", "values")),
  };
  $("upstreams").append(element);
  cards.set(name, card);
  return card;
}

function addChart(parent, label) {
  const figure = parent.appendChild(make("figure", "chart"));
  const caption = figure.appendChild(make("figcaption", "", label));
  const value = caption.appendChild(make("b"));
  const svg = figure.appendChild(document.createElementNS(SVG, "svg"));
  svg.setAttribute("viewBox", `0 0 ${POINTS - 1} 40`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  const [area, line] = ["area", "line"].map((name) => {
    const path = svg.appendChild(document.createElementNS(SVG, "path"));
    path.setAttribute("class", name);
    return path;
  });
  return { label, value, svg, area, line };
}

/** Draw what was measured, the latest at the right; where nothing was, the line is broken. */
function drawChart(chart, { all, points }, write) {
  const highest = Math.max(...points.map((point) => point ?? 0)) * 1.1 || 1;
  const from = POINTS - points.length;
  const pieces = [];
  points.forEach((point, index) => {
    if (point === null) return;
    const place = [from + index, 40 - (point / highest) * 38];
    if (index && points[index - 1] !== null) pieces.at(-1).push(place);
    else pieces.push([place]);
  });
  const drawn = pieces.map((piece) => (piece.length > 1 ? piece : [piece[0], [piece[0][0] + 0.01, piece[0][1]]]));
  const lines = drawn.map((piece) => `M${piece.map(([x, y]) => `${x} ${y.toFixed(1)}`).join("L")}`);
  chart.line.setAttribute("d", lines.join(""));
  chart.area.setAttribute("d", lines.map((line, index) => `${line}V40H${drawn[index][0][0]}Z`).join(""));
  const latest = points.at(-1) ?? all;
  set(chart.value, latest === null ? "–" : write(latest));
  chart.svg.setAttribute("aria-label", `${chart.label}: ${chart.value.textContent}`);
}

function showRecent(recent) {
  const key = recent.map(({ id }) => id).join(" ");
  if (key === recentKey) return;
  recentKey = key;
  $("unused").hidden = recent.length > 0;
  $("recent").replaceChildren(...recent.map(recentRow));
}

function recentRow({ id, outcome, model, target, ttft_s, tokens, tokens_per_s, age_s, attempts }) {
  const row = make("tr", `${outcome} ${attempts > 1 ? "joined" : ""}`);
  row.title = id;
  const first = make("td");
  first.append(make("span", "outcome", outcome.replaceAll("_", " ")));
  row.append(first, make("td", "", model), make("td", "", target?.split("?")[0] ?? "–"));
  const numbers = [ttft_s === null ? "–" : seconds(ttft_s), tokens, tokens_per_s?.toFixed(1) ?? "–", seconds(age_s), attempts];
  for (const number of numbers) row.append(make("td", "number", String(number)));
  return row;
}

function total(name, value) {
  if (!totals.has(name)) {
    const box = $("totals").appendChild(make("div"));
    box.append(make("dt", "", name));
    totals.set(name, box.appendChild(make("dd")));
  }
  set(totals.get(name), String(value));
}

function setStatus(text, kind) {
  $("status").className = `status ${kind}`;
  set($("status"), text);
}

// --- the stream

/** Read the stream until it ends; returns whether it should be asked for again. */
async function watch() {
  controller = new AbortController();
  const key = kept();
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const response = await fetch("/admin/events", { headers, signal: controller.signal });
  if (response.status === 401) return askForKey(Boolean(key));
  if (!response.ok) throw new Error((await response.json()).error.message);
  $("login").hidden = true;
  $("view").hidden = false;
  const parser = new EventParser();
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return true;
    const latest = new Map(parser.feed(decoder.decode(value, { stream: true })).map((one) => [one.event, one.data]));
    for (const [name, data] of latest) show[name]?.(JSON.parse(data));
  }
}

async function run() {
  let isWanted = true;
  while (isWanted) {
    try {
      isWanted = await watch();
    } catch (error) {
      if (controller.signal.aborted) return;
      setStatus(error instanceof TypeError ? "No connection; trying again" : error.message, "ill");
    }
    if (isWanted) await new Promise((resume) => setTimeout(resume, AGAIN_MS));
  }
}

function askForKey(wasWrong) {
  setStatus("A key is needed", "");
  $("view").hidden = true;
  $("login").hidden = false;
  $("refused").hidden = !wasWrong;
  $("key").focus();
  return false;
}

function kept() {
  return $("key").value || (sessionStorage.getItem("millrace.admin-key") ?? "");
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("millrace.admin-key", $("key").value);
  run();
});

let leaving = 0;
document.addEventListener("visibilitychange", () => {
  clearTimeout(leaving);
  if (document.hidden) leaving = setTimeout(rest, HIDDEN_MS);
  else if (controller.signal.aborted) run();
});

function rest() {
  controller.abort();
  setStatus("Resting", "");
}

// --- small things

function remove(map, name, { element }) {
  element.remove();
  map.delete(name);
}

function seconds(value) {
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  return value < 100 ? `${value.toFixed(1)} s` : `${Math.round(value)} s`;
}

function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function make(name, className = "", text = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

run();
