// OpenAI's own client for Node.js, in the three ways of asking for a chat completion.
import OpenAI from "openai";
import { hear, run } from "./job.mjs";

const WAYS = { create, helper, whole };

await run((job) => {
  const client = new OpenAI({ baseURL: job.baseURL, apiKey: "any" });
  const tools = Object.entries(job.schemas).map(([name, parameters]) => ({
    type: "function",
    function: { name, parameters, strict: true },
  }));
  const asked = {
    text: { messages: [{ role: "user", content: job.prompt }] },
    tools: { messages: [{ role: "user", content: job.toolPrompt }], tools },
    reasoning: { messages: [{ role: "user", content: job.prompt }], reasoning_effort: "medium" },
  };
  const scenarios = {};
  for (const [way, listen] of Object.entries(WAYS)) {
    for (const [name, body] of Object.entries(asked)) {
      scenarios[`${way}-${name}`] = () => hear((heard) => listen(client, { model: "chat", ...body }, heard));
    }
  }
  for (const fault of job.faults) {
    const body = { model: fault, ...asked.text };
    scenarios[`create-${fault}`] = () => hear((heard) => create(client, body, heard));
    scenarios[`helper-${fault}`] = () => hear((heard) => helper(client, body, heard));
  }
  for (const half of job.halves) {
    const body = { model: half, ...asked.tools };
    scenarios[`create-${half}`] = () => hear((heard) => create(client, body, heard));
    scenarios[`helper-${half}`] = () => hear((heard) => helper(client, body, heard));
    scenarios[`run-${half}`] = () => hear((heard) => runTools(client, job, body, heard));
  }
  scenarios["run-tools"] = () => hear((heard) => runTools(client, job, { model: "full", ...asked.tools }, heard));
  return scenarios;
});

async function create(client, body, heard) {
  const stream = await client.chat.completions.create({
    ...body,
    stream: true,
    stream_options: { include_usage: true },
  });
  const calls = [];
  heard.identities = [];
  heard.afterUsage = 0;
  for await (const chunk of stream) {
    if (heard.usage) heard.afterUsage += 1;
    if (chunk.usage) heard.usage = chunk.usage;
    const identity = [chunk.id, chunk.created, chunk.model].join(" ");
    if (!heard.identities.includes(identity)) heard.identities.push(identity);
    for (const { delta, finish_reason } of chunk.choices) {
      heard.text += delta.content ?? "";
      heard.reasoning += delta.reasoning_content ?? delta.reasoning ?? "";
      heard.finish = finish_reason ?? heard.finish;
      for (const { index, function: called } of delta.tool_calls ?? []) {
        heard.pieces += 1;
        calls[index] ??= { name: "", arguments: "" };
        calls[index].name += called.name ?? "";
        calls[index].arguments += called.arguments ?? "";
      }
    }
  }
  heard.calls = calls.map((call) => [call.name, JSON.parse(call.arguments)]);
}

async function helper(client, body, heard) {
  const stream = client.chat.completions.stream({ ...body, stream_options: { include_usage: true } });
  stream.on("content", (delta) => (heard.text += delta));
  stream.on("tool_calls.function.arguments.delta", () => (heard.pieces += 1));
  stream.on("tool_calls.function.arguments.done", (done) => heard.calls.push([done.name, JSON.parse(done.arguments)]));
  take(await stream.finalChatCompletion(), heard);
}

async function whole(client, body, heard) {
  take(await client.chat.completions.create(body), heard);
}

function take({ choices: [{ message, finish_reason }], usage }, heard) {
  heard.text = message.content ?? "";
  heard.reasoning = message.reasoning_content ?? message.reasoning ?? "";
  heard.calls = (message.tool_calls ?? []).map(({ function: called }) => [called.name, JSON.parse(called.arguments)]);
  heard.finish = finish_reason;
  heard.usage = usage;
}

async function runTools(client, job, body, heard) {
  const runner = client.chat.completions.runTools({
    ...body,
    stream: true,
    tools: body.tools.map(({ function: { name, ...described } }) => ({
      type: "function",
      function: { name, ...described, parse: JSON.parse, function: (input) => execute(name, input) },
    })),
  });
  heard.text = await runner.finalContent();

  function execute(name, input) {
    heard.executed.push([name, input]);
    return job.results[name];
  }
}
