// The simulator's switches: from what is chosen to the script behind its model's name, such as mill?cut_after_tokens=20.

/** How an answer may break: the keys of the script, and whether it takes a number of tokens to break after. */
export const BREAKS = {
  none: { label: "Goes well", script: () => ({}) },
  cut: { label: "Connection cut", after: 120, script: (count) => ({ cut_after_tokens: count }) },
  stall: { label: "Stalls for 6 s", after: 40, script: (count) => ({ stall_after: count, stall_s: 6 }) },
  error: { label: "Error event", after: 120, script: (count) => ({ error_after: count }) },
  malformed: { label: "Malformed event", after: 120, script: (count) => ({ malformed_after: count }) },
  no_end: { label: "No end marker", script: () => ({ no_end: "on" }) },
  half_tool: { label: "Half a tool call", script: () => ({ tools: 1, half_tool: "on" }) },
  limited: { label: "429, come back later", script: () => ({ status: 429, retry_after_s: 90 }) },
  failed: { label: "503 at once", script: () => ({ status: 503 }) },
  refused: { label: "Connection reset", script: () => ({ refuse: "rst" }) },
};

/** Whether a model is a simulator's: its name has one by default, and only there. */
export function isSimulator(model) {
  return /\/mill(\?|$)/.test(model);
}

/** Returns the script for what is chosen: {fault, after, slowStart, slowPace, thinks, tools}. */
export function scriptOf({ fault, after, slowStart, slowPace, thinks, tools }) {
  const chosen = BREAKS[fault] ?? BREAKS.none;
  const keys = {
    ...(slowStart && { first_token_s: 3 }),
    ...(slowPace && { interval_s: 0.12 }),
    ...(thinks && { reasoning: "on" }),
    ...(tools && { tools: 2, lead: "on" }),
    ...chosen.script(after),
  };
  return Object.entries(keys)
    .map(([key, value]) => `${key}=${value}`)
    .join("&");
}
