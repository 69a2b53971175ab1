// Tell apart what can go wrong: refused, not reached, and broken off after it had begun.
// An answer that ends without an exception is whole: the gateway never ends a broken one as if it were.
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.MILLRACE_URL ?? "http://127.0.0.1:8080"}/v1`,
  apiKey: process.env.MILLRACE_KEY ?? "unused",
  maxRetries: 0, // the gateway has retried what may be
});
let answer = "";
try {
  const stream = await client.chat.completions.create({
    model: process.env.MILLRACE_MODEL ?? "chat",
    messages: [{ role: "user", content: process.argv.slice(2).join(" ") || "Tell me a story." }],
    stream: true,
  });
  for await (const chunk of stream) for (const { delta } of chunk.choices) answer += delta.content ?? "";
  console.log(answer);
} catch (error) {
  if (error instanceof OpenAI.APIConnectionError) {
    console.log("the gateway cannot be reached, or was lost");
  } else if (error instanceof OpenAI.APIError && error.status) {
    // before the first token: a status, and nothing has been said
    const wait = error.headers?.get("retry-after");
    const told = wait ? `; try again in ${wait} s` : "";
    console.log(`refused: ${error.status} ${error.code}, request ${error.requestID}${told}`);
  } else if (error instanceof OpenAI.APIError) {
    // after it: what has come is a true beginning, and not all
    console.log(`broke off after ${[...answer].length} characters: ${error.code}`);
  } else throw error;
}
