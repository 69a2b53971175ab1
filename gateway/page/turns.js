// How a question and its answer look. A view reads its answer and changes what is on the page; it decides nothing.
import { advise } from "./advice.js";
import { Markdown } from "./markdown.js";

const QUIET_MS = 450; // an answer whose first token takes longer shows how long it has been waiting

/** Returns the element of a question. */
export function askedElement(text) {
  return make("div", "asked", text);
}

/** Shows an answer while it comes. `announce` is told each block of text that is whole, for who listens. */
export class AnswerView {
  #answer;
  #markdown;
  #announce;
  #text = make("div", "text");
  #waiting = make("div", "waiting");
  #facts = make("div", "facts");
  #figures = new Map();
  #reasoning = null;
  #calls = [];
  #isSettled = false;

  constructor(answer, announce) {
    this.#answer = answer;
    this.#announce = announce;
    this.#markdown = new Markdown(this.#text, announce);
    this.#waiting.append(make("i"), make("i"), make("i"), make("span", "unseen", "Waiting for the first token"));
    this.element = make("article", "answer");
    this.element.setAttribute("aria-busy", "true");
    this.element.append(this.#waiting, this.#text, this.#facts);
  }

  /** Bring the page up to date. */
  draw(nowMs = performance.now()) {
    const answer = this.#answer;
    this.#waiting.hidden = answer.firstAtMs !== null || answer.isOver;
    this.#drawReasoning();
    this.#markdown.show(answer.text || answer.refusal, answer.seams, answer.isOver);
    answer.calls.forEach((call, index) => this.#drawCall(call, index));
    this.#drawFacts(nowMs);
    if (answer.isOver && !this.#isSettled) this.#settle();
  }

  #drawReasoning() {
    const { reasoning, textAtMs, firstAtMs, isOver, endedAtMs } = this.#answer;
    if (!reasoning) return;
    if (!this.#reasoning) {
      const details = make("details", "reasoning");
      const summary = make("summary");
      const body = make("p");
      details.open = true;
      summary.addEventListener("click", () => (this.#reasoning.isChosen = true));
      details.append(summary, body);
      this.#text.before(details);
      this.#reasoning = { details, summary, body: body.appendChild(new Text("")), isChosen: false, hasFolded: false };
    }
    const view = this.#reasoning;
    grow(view.body, reasoning);
    const until = textAtMs ?? (isOver ? endedAtMs : null);
    set(view.summary, until === null ? "Reasoning …" : `Reasoned for ${seconds(until - firstAtMs)}`);
    if (textAtMs !== null && !view.hasFolded) {
      view.hasFolded = true;
      if (!view.isChosen) view.details.open = false;
    }
  }

  #drawCall(call, index) {
    const isWhole = this.#answer.wholeCalls.length > 0;
    const view = (this.#calls[index] ??= this.#makeCall());
    set(view.name, call.name || "…");
    set(view.state, isWhole ? "called" : this.#answer.isOver ? "not whole" : "arguments arrive …");
    grow(view.body, isWhole ? pretty(call.arguments) : call.arguments);
  }

  #makeCall() {
    const details = make("details", "call");
    details.open = true;
    const summary = make("summary");
    const name = summary.appendChild(make("code"));
    const state = summary.appendChild(make("small"));
    const pre = make("pre");
    details.append(summary, pre);
    this.#facts.before(details);
    return { details, name, state, body: pre.appendChild(make("code")).appendChild(new Text("")) };
  }

  #drawFacts(nowMs) {
    const answer = this.#answer;
    const waitedMs = (answer.firstAtMs ?? answer.endedAtMs ?? nowMs) - answer.askedAtMs;
    const isWaiting = answer.firstAtMs === null;
    this.#figure("first", !isWaiting && seconds(waitedMs), "first token");
    this.#figure("rate", answer.tokensPerS !== null && answer.tokensPerS.toFixed(1), "tokens/s");
    this.#figure("tokens", !isWaiting && String(answer.tokenCount), answer.usage ? "tokens" : "tokens so far");
    const clockMs = (answer.endedAtMs ?? nowMs) - answer.askedAtMs;
    this.#figure("clock", (!isWaiting || clockMs > QUIET_MS) && seconds(clockMs), isWaiting && !answer.isOver ? "waiting" : "in all");
  }

  #figure(name, value, unit) {
    let view = this.#figures.get(name); // made even if there is nothing to show yet, for the order
    if (!view) {
      const element = make("span", `figure ${name}`);
      view = { element, value: element.appendChild(make("b")), unit: element.appendChild(new Text("")) };
      this.#figures.set(name, view);
      this.#facts.append(element);
    }
    view.element.hidden = !value;
    if (!value) return;
    set(view.value, value);
    set(view.unit, ` ${unit}`);
  }

  /** Show what can be said and done only when the answer is over. */
  #settle() {
    const answer = this.#answer;
    this.#isSettled = true;
    this.element.setAttribute("aria-busy", "false");
    if (answer.isStopped) this.#facts.before(make("p", "note", "Stopped. What had come is kept."));
    if (answer.problem) this.#facts.before(problemElement(answer.problem));
    if (answer.finishReason === "length") this.#facts.before(make("p", "note", "The answer reached its longest length."));
    if (!answer.problem && answer.wholeCalls.length) this.#askForResults();
    const ends = make("span", "ends");
    if (answer.text) ends.append(action("Copy", "copy", "answer"));
    if (!answer.problem) ends.append(action("Ask again", "do", "again"));
    this.#facts.append(ends, this.#more());
    this.#announce(answer.problem ? "" : answer.isStopped ? "Stopped." : "The answer is complete.");
  }

  #askForResults() {
    this.#answer.calls.forEach((call, index) => {
      const label = make("label", "", "Result");
      const input = make("input");
      input.value = call.result ?? "";
      input.placeholder = "What the tool would say";
      input.addEventListener("input", () => (call.result = input.value));
      label.append(input);
      this.#calls[index].details.append(label);
    });
    const send = action("Send the results", "do", "results");
    send.className = "idea";
    this.#facts.before(send);
  }

  #more() {
    const { target, requestId, finishReason, usage, seams } = this.#answer;
    const details = make("details", "more");
    const list = make("dl");
    const rows = [
      ["answered by", target],
      ["request id", requestId],
      ["finish", finishReason],
      ["tokens", usage && `${usage.prompt_tokens} in, ${usage.completion_tokens} out`],
      ...seams.map(({ target: next, way, attempt, at }) => [
        "went on",
        `${next}, attempt ${attempt}, ${way}, after ${at} characters`,
      ]),
    ];
    for (const [name, value] of rows) if (value) list.append(make("dt", "", name), make("dd", "", value));
    const joined = seams.length ? `, joined ${seams.length === 1 ? "once" : `${seams.length} times`}` : "";
    details.append(make("summary", "", `Details${joined}`), list);
    return details;
  }
}

function problemElement(problem) {
  const { title, advice } = advise(problem);
  const element = make("div", "problem");
  element.setAttribute("role", "alert");
  const told = [problem.status && `status ${problem.status}`, problem.code, problem.requestId && `request ${problem.requestId}`];
  const after = problem.retryAfterS === null ? "" : ` The provider asks for ${Math.ceil(problem.retryAfterS)} s of patience.`;
  element.append(
    make("strong", "", title),
    make("span", "", advice + after),
    make("span", "told", `“${problem.message}” · ${told.filter(Boolean).join(" · ")}`),
    action(problem.code.endsWith("_api_key") ? "Enter a key" : "Ask again", "do", problem.code.endsWith("_api_key") ? "key" : "again"),
  );
  return element;
}

function action(label, name, value) {
  const button = make("button", "quiet", label);
  button.type = "button";
  button.dataset[name] = value;
  return button;
}

/** Let a text node grow without being replaced; only what is not its beginning is set anew. */
function grow(node, text) {
  if (text === node.data) return;
  if (text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else node.data = text;
}

function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function pretty(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}

function seconds(ms) {
  return ms < 10_000 ? `${(ms / 1000).toFixed(ms < 1000 ? 2 : 1)} s` : `${Math.round(ms / 1000)} s`;
}

function make(name, className = "", text = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}
