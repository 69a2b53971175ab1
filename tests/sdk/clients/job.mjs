// Runs every scenario of a client at once and prints what each heard, as one JSON object.
// The job comes as the first argument: {baseURL, prompt, toolPrompt, schemas, results, faults, halves}:
// the last two are the models that break, in the text or inside a tool call.
export async function run(scenariosOf) {
  const scenarios = scenariosOf(JSON.parse(process.argv[2]));
  const heard = await Promise.all(
    Object.entries(scenarios).map(async ([name, scenario]) => [name, await scenario()]),
  );
  process.stdout.write(JSON.stringify(Object.fromEntries(heard)));
}

// Runs `listen` with a record to fill in; an error is noted beside what came before it. `calls` are those that the
// client says are whole, `executed` those whose tool it ran, `pieces` counts what came of them on the way.
export async function hear(listen) {
  const heard = {
    text: "",
    reasoning: "",
    calls: [],
    executed: [],
    pieces: 0,
    finish: null,
    usage: null,
    error: null,
  };
  try {
    await listen(heard);
  } catch (error) {
    heard.error = `${error.constructor.name}: ${error.message}`;
  }
  return heard;
}
