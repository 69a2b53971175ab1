// The playground: a conversation with a model behind the gateway, and what can be seen of each answer while it comes.
import { Answer, Problem, complete, listModels } from "./chat.js";
import { BREAKS, isSimulator, scriptOf } from "./faults.js";
import { Follow, batched } from "./screen.js";
import { AnswerView, askedElement } from "./turns.js";

const CLOCK_MS = 100;
const TOOLS = [
  tool("get_weather", "The weather in a city", { city: { type: "string" } }),
  tool("look_up", "What is known about something", { query: { type: "string" } }),
];

const $ = (id) => document.getElementById(id);
const form = $("form"), message = $("message"), model = $("model"), turnsBox = $("turns"), options = $("options");
const follow = new Follow($("scroll"), $("latest"));
const turns = []; // each {question, results, answer, view, asked}: a question of the person's, or the results of tools
let running = null;

// --- asking

/** Ask, and show the answer; `results` are those of the tools that the last answer called. */
async function ask(question, results = null) {
  const answer = new Answer();
  const turn = { question, results, answer };
  turn.view = new AnswerView(answer, announce);
  turn.asked = askedElement(results ? results.map(({ name, content }) => `${name}: ${content}`).join("\n") : question);
  const messages = [...conversation(), ...spoken(turn)];
  turns.push(turn);
  turnsBox.append(turn.asked, turn.view.element);
  $("empty").hidden = true;
  $("fresh").hidden = false;
  const controller = new AbortController();
  const draw = batched(() => {
    turn.view.draw();
    follow.keep();
  });
  const clock = setInterval(draw, CLOCK_MS);
  setRunning({ turn, controller });
  draw();
  follow.resume();
  try {
    await complete(requestOf(messages, results), { answer, key: $("key").value, signal: controller.signal, changed: draw });
  } catch (error) {
    if (controller.signal.aborted) answer.isStopped = true;
    else answer.problem = error instanceof Problem ? error : new Problem({ code: "page_error", message: String(error) });
  } finally {
    clearInterval(clock);
    answer.endedAtMs = performance.now();
    draw();
    setRunning(null);
  }
}

function requestOf(messages, results) {
  const system = $("system").value.trim();
  return {
    model: modelName({ ...chosenFaults(), ...(results && { tools: false }) }), // or it would call them for ever
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    ...($("effort").value && { reasoning_effort: $("effort").value }),
    ...($("offer").checked && { tools: TOOLS }),
  };
}

/** Everything that was said; a question that got no answer is left out. */
function conversation() {
  return turns.flatMap((turn) => {
    if (!turn.answer.hasContent) return [];
    const { text, refusal, wholeCalls } = turn.answer;
    const calls = wholeCalls.map(({ id, name, arguments: given }) => ({
      id,
      type: "function",
      function: { name, arguments: given },
    }));
    return [
      ...spoken(turn),
      { role: "assistant", content: text || refusal || null, ...(calls.length && { tool_calls: calls }) },
      ...(isAnsweredNext(turn) ? [] : wholeCalls.map(({ id }) => toolMessage({ id, content: "no result was given" }))),
    ];
  });
}

function spoken({ question, results }) {
  return results ? results.map(toolMessage) : [{ role: "user", content: question }];
}

function toolMessage({ id, content }) {
  return { role: "tool", tool_call_id: id, content };
}

/** Whether the next turn, or the one that is being asked now, brings the results of this one's tools. */
function isAnsweredNext(turn) {
  const next = turns[turns.indexOf(turn) + 1];
  return Boolean(next ? next.results && next.answer.hasContent : turn.sendsResults);
}

function askAgain(turn) {
  while (turns.length && turns.at(-1) !== turn) drop();
  drop();
  ask(turn.question, turn.results);
}

function drop() {
  const { asked, view } = turns.pop();
  asked.remove();
  view.element.remove();
}

function sendResults(turn) {
  turn.sendsResults = true;
  ask("", turn.answer.wholeCalls.map(({ id, name, result }) => ({ id, name, content: result || "{}" })));
}

function setRunning(now) {
  running = now;
  $("send").hidden = Boolean(now);
  $("stop").hidden = !now;
  for (const button of turnsBox.querySelectorAll("[data-do]")) button.disabled = Boolean(now);
}

function stop() {
  running?.controller.abort();
  message.focus();
}

function announce(text) {
  if (!text) return;
  const line = document.createElement("span");
  line.textContent = `${text} `;
  $("announce").append(line);
  while ($("announce").childNodes.length > 20) $("announce").firstChild.remove();
}

// --- models and options

function chosenFaults() {
  return {
    fault: $("fault").value,
    after: Number($("after").value) || 0,
    slowStart: $("slow-start").checked,
    slowPace: $("slow-pace").checked,
    thinks: $("thinks").checked,
    tools: $("calls").checked,
  };
}

/** The model as it is asked for: a simulator's with its script behind it. */
function modelName(faults = chosenFaults()) {
  const script = isSimulator(model.value) ? scriptOf(faults) : "";
  return script ? `${model.value}?${script}` : model.value;
}

function showFaults() {
  const { after } = BREAKS[$("fault").value];
  $("after-field").hidden = after === undefined;
  $("faults").hidden = !simulator();
  $("script").textContent = modelName();
}

function simulator() {
  return [...model.options].map(({ value }) => value).find(isSimulator);
}

/** A switch of the simulator means its model: a name that leads to it cannot carry a script. */
function faultChosen() {
  if (!isSimulator(model.value) && scriptOf(chosenFaults())) model.value = simulator();
  showFaults();
}

async function loadModels() {
  const chosen = model.value;
  try {
    const names = await listModels($("key").value);
    model.replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.includes(chosen)) model.value = chosen;
    $("toggle").classList.remove("wanted");
  } catch (problem) {
    if (problem.status === 401) toggleOptions(true);
    else if (!turns.length) setTimeout(loadModels, 3000);
  }
  showFaults();
}

function toggleOptions(isOpen = options.hidden) {
  options.hidden = !isOpen;
  $("toggle").setAttribute("aria-expanded", String(isOpen));
}

function keep(store, name, value) {
  try {
    if (value) store.setItem(name, value);
    else store.removeItem(name);
  } catch {
    // then it is not kept
  }
}

function kept(store, name) {
  try {
    return store.getItem(name) ?? "";
  } catch {
    return "";
  }
}

function tool(name, description, properties) {
  const parameters = { type: "object", properties, required: Object.keys(properties), additionalProperties: false };
  return { type: "function", function: { name, description, parameters } };
}

function submit() {
  const text = message.value.trim();
  if (running || !text) return;
  message.value = "";
  toggleOptions(false);
  ask(text);
}

// --- what the person does

form.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
message.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (running) stop();
  else if (!options.hidden) {
    toggleOptions(false);
    $("toggle").focus();
  }
});
$("stop").addEventListener("click", stop);
$("toggle").addEventListener("click", () => toggleOptions());
$("fresh").addEventListener("click", () => {
  stop();
  while (turns.length) drop();
  $("empty").hidden = false;
  $("fresh").hidden = true;
  message.focus();
});
turnsBox.addEventListener("click", async ({ target }) => {
  const button = target.closest("button");
  const turn = button && turns.find(({ view }) => view.element.contains(button));
  if (!turn) return;
  if (button.dataset.copy) {
    const text = button.dataset.copy === "answer" ? turn.answer.text : button.closest("figure").querySelector("code").textContent;
    button.textContent = (await copied(text)) ? "Copied" : "Not copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  } else if (!running) {
    if (button.dataset.do === "again") askAgain(turn);
    if (button.dataset.do === "results") sendResults(turn);
    if (button.dataset.do === "key") {
      toggleOptions(true);
      $("key").focus();
    }
  }
});
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // only a secure page may, and only one that is in front
  }
}
for (const idea of document.querySelectorAll(".idea")) {
  idea.hidden = false;
  idea.addEventListener("click", () => {
    if (idea.dataset.fault && simulator()) {
      $("fault").value = idea.dataset.fault;
      $("fault").dispatchEvent(new Event("change"));
      $("seams").checked = true;
      $("seams").dispatchEvent(new Event("change"));
    }
    message.value = idea.textContent.trim();
    submit();
  });
}
for (const [name, { label }] of Object.entries(BREAKS)) $("fault").add(new Option(label, name));
$("fault").addEventListener("change", () => {
  $("after").value = BREAKS[$("fault").value].after ?? "";
  faultChosen();
});
for (const id of ["after", "slow-start", "slow-pace", "thinks", "calls"]) $(id).addEventListener("input", faultChosen);
model.addEventListener("change", showFaults);
$("seams").addEventListener("change", () => turnsBox.classList.toggle("marks-seams", $("seams").checked));
$("key").addEventListener("change", () => {
  keep(sessionStorage, "millrace.key", $("key").value);
  loadModels();
});

$("key").value = kept(sessionStorage, "millrace.key");
turnsBox.classList.toggle("marks-seams", $("seams").checked);
if (!matchMedia("(pointer: coarse)").matches) message.focus(); // where it would not bring up a keyboard
loadModels();
