// The page speaks to the gateway with the browser's own reader: no library, no parser.
const $ = (id) => document.getElementById(id);
const form = $("form"), model = $("model"), message = $("message"), send = $("send"), stop = $("stop");
const answer = $("answer"), problem = $("problem"), clock = $("clock");
let controller = null;

async function listModels() {
  const response = await fetch("/v1/models");
  if (!response.ok) return;
  for (const { id } of (await response.json()).data) model.add(new Option(id, id));
}

function tell(text) {
  problem.textContent = text;
  problem.hidden = !text;
}

function running(is) {
  send.disabled = is;
  stop.disabled = !is;
  answer.setAttribute("aria-busy", String(is));
}

async function ask() {
  controller = new AbortController();
  const began = performance.now();
  let first = null;
  answer.textContent = "";
  tell("");
  running(true);
  try {
    const response = await fetch("/api/chat/stream", {
      method: "POST",
      body: JSON.stringify({ message: message.value, ...(model.value && { model: model.value }) }),
      signal: controller.signal,
    });
    if (!response.ok) {
      tell((await response.json()).error.message);
      return;
    }
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      first ??= performance.now();
      answer.append(decoder.decode(value, { stream: true }));
      clock.value = `first text after ${Math.round(first - began)} ms, ${((performance.now() - began) / 1000).toFixed(1)} s`;
    }
  } catch (error) {
    tell(error.name === "AbortError" ? "Stopped." : "The answer broke off before its end.");
  } finally {
    running(false);
    controller = null;
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!controller) ask();
});
message.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});
stop.addEventListener("click", () => controller?.abort());
listModels();
