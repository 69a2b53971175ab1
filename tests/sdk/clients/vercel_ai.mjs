// Vercel's AI SDK, with its provider for OpenAI and with its provider for whatever is compatible.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, isStepCount, jsonSchema, Output, streamText, tool } from "ai";
import { z } from "zod";
import { hear, run } from "./job.mjs";

const River = z.object({ name: z.string(), length_km: z.number() });

await run((job) => {
  const options = { baseURL: job.baseURL, apiKey: "any" };
  const models = {
    compatible: createOpenAICompatible({
      name: "compatible",
      includeUsage: true,
      supportsStructuredOutputs: true,
      ...options,
    }),
    openai: { chatModel: createOpenAI(options).chat },
  };
  const scenarios = {};
  for (const [name, { chatModel }] of Object.entries(models)) {
    const ask = (way, asked) => () => hear((heard) => way({ model: chatModel("chat"), maxRetries: 0, ...asked }, heard));
    const text = { prompt: job.prompt };
    const tools = { prompt: job.toolPrompt, tools: toolsOf(job) };
    const reasoning = { ...text, providerOptions: { [name]: { reasoningEffort: "medium" } } };
    const object = { ...text, model: chatModel("full"), output: Output.object({ schema: River }) };
    const loop = (model) => () =>
      hear((heard) => {
        const executed = { prompt: job.toolPrompt, tools: toolsOf(job, heard), stopWhen: isStepCount(3) };
        return stream({ model: chatModel(model), maxRetries: 0, ...executed }, heard);
      });
    Object.assign(scenarios, {
      [`${name}-stream-text`]: ask(stream, text),
      [`${name}-stream-tools`]: ask(stream, tools),
      [`${name}-stream-reasoning`]: ask(stream, reasoning),
      [`${name}-stream-loop`]: loop("full"),
      [`${name}-stream-object`]: ask(stream, object),
      [`${name}-whole-object`]: ask(whole, object),
      [`${name}-whole-text`]: ask(whole, text),
      [`${name}-whole-tools`]: ask(whole, tools),
    });
    for (const fault of job.faults) {
      scenarios[`${name}-stream-${fault}`] = ask(stream, { ...text, model: chatModel(fault) });
    }
    for (const half of job.halves) {
      scenarios[`${name}-stream-${half}`] = ask(stream, { ...tools, model: chatModel(half) });
      scenarios[`${name}-loop-${half}`] = loop(half);
    }
  }
  return scenarios;
});

// With a record to fill in the tools are executed, and noted there; without, only described.
function toolsOf(job, heard) {
  const made = Object.entries(job.schemas).map(([name, schema]) => {
    const execute = (input) => {
      heard.executed.push([name, input]);
      return JSON.parse(job.results[name]);
    };
    return [name, tool({ inputSchema: jsonSchema(schema), ...(heard && { execute }) })];
  });
  return Object.fromEntries(made);
}

async function stream(asked, heard) {
  const result = streamText({ ...asked, onError: () => {} });
  heard.told = [];
  heard.parts = [];
  for await (const part of result.fullStream) {
    if (heard.parts.at(-1) !== part.type) heard.parts.push(part.type);
    if (part.type === "text-delta") heard.text += part.text;
    if (part.type === "reasoning-delta") heard.reasoning += part.text;
    if (part.type === "tool-input-delta") heard.pieces += 1;
    if (part.type === "tool-call") heard.calls.push([part.toolName, part.input]);
    if (part.type === "error") {
      heard.error = `${part.error.name ?? "error"}: ${part.error.message}`;
      heard.told.push(part.error.message);
    }
    if (part.type === "finish") [heard.finish, heard.usage] = [part.finishReason, part.totalUsage];
  }
  heard.returned = await result.toolCalls.catch(() => null);
}

async function whole(asked, heard) {
  const result = await generateText(asked);
  heard.text = result.text;
  heard.calls = result.toolCalls.map((call) => [call.toolName, call.input]);
  heard.finish = result.finishReason;
  heard.usage = result.totalUsage;
}
