// Show an answer while it comes, and have it whole at the end, with what it cost.
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.MILLRACE_URL ?? "http://127.0.0.1:8080"}/v1`,
  apiKey: process.env.MILLRACE_KEY ?? "unused",
});
const stream = await client.chat.completions.create({
  model: "chat",
  messages: [{ role: "user", content: process.argv.slice(2).join(" ") || "Tell me a story." }],
  stream: true,
  stream_options: { include_usage: true },
});
let answer = "";
let usage = null;
for await (const chunk of stream) {
  for (const { delta } of chunk.choices) {
    answer += delta.content ?? "";
    process.stdout.write(delta.content ?? "");
  }
  usage = chunk.usage ?? usage;
}
console.log(`\n-- ${[...answer].length} characters, ${usage?.completion_tokens ?? "an unknown number of"} tokens`);
