// Ask for a stream, and where that breaks off, once more for the whole answer at once.
// The second answer may be worded differently: it takes the place of what was shown, and is not joined to it. Worth it for
// answers that must be had, or where a proxy on the way lets no stream through.
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.MILLRACE_URL ?? "http://127.0.0.1:8080"}/v1`,
  apiKey: process.env.MILLRACE_KEY ?? "unused",
  maxRetries: 0,
});

/** Returns the whole answer; `show` gets its pieces for as long as they come. */
async function ask(question, show) {
  const body = { model: "chat", messages: [{ role: "user", content: question }] };
  let answer = "";
  try {
    for await (const chunk of await client.chat.completions.create({ ...body, stream: true })) {
      for (const { delta } of chunk.choices) {
        answer += delta.content ?? "";
        show(delta.content ?? "");
      }
    }
    return answer;
  } catch (error) {
    if (!(error instanceof OpenAI.APIError) || error.status) throw error; // the request itself will not do
    console.log(`\n-- ${error.message}; asking for all of it`);
    const { choices } = await client.chat.completions.create(body);
    return choices[0].message.content ?? "";
  }
}

const question = process.argv.slice(2).join(" ") || "Tell me a story.";
const answer = await ask(question, (piece) => process.stdout.write(piece));
console.log(`\n-- the answer:\n${answer}`);
