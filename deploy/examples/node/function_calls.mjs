// Stream function calls, run the functions, and stream the answer that rests on their results.
// A call arrives in pieces: its id and name once, its arguments as JSON that is whole only when the stream has ended.
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.MILLRACE_URL ?? "http://127.0.0.1:8080"}/v1`,
  apiKey: process.env.MILLRACE_KEY ?? "unused",
});
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = ["get_weather", "get_time"].map((name) => ({ type: "function", function: { name, parameters } }));

function call(name, { city }) {
  console.log(`-- ${name}(${city})`);
  return JSON.stringify({ get_weather: { sky: "clear" }, get_time: { hour: 9 } }[name]);
}

/** Stream one answer; returns it as the message to go on with. */
async function answer(messages) {
  let content = "";
  const calls = [];
  for await (const chunk of await client.chat.completions.create({ model: "chat", messages, tools, stream: true })) {
    for (const { delta } of chunk.choices) {
      content += delta.content ?? "";
      process.stdout.write(delta.content ?? "");
      for (const { index, id, function: piece } of delta.tool_calls ?? []) {
        calls[index] ??= { id: "", type: "function", function: { name: "", arguments: "" } };
        calls[index].id ||= id ?? "";
        calls[index].function.name += piece?.name ?? "";
        calls[index].function.arguments += piece?.arguments ?? "";
      }
    }
  }
  return { role: "assistant", content: content || null, ...(calls.length && { tool_calls: calls }) };
}

const question = process.argv.slice(2).join(" ") || "What are weather and time in Oslo?";
const messages = [{ role: "user", content: question }];
for (;;) {
  const message = await answer(messages);
  messages.push(message);
  if (!message.tool_calls) break;
  for (const { id, function: asked } of message.tool_calls) {
    messages.push({ role: "tool", tool_call_id: id, content: call(asked.name, JSON.parse(asked.arguments)) });
  }
}
console.log();
