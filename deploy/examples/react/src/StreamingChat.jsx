import { useEffect, useRef, useState } from "react";

/** What a person can be told: the gateway's own words, or that the connection broke. */
class ChatError extends Error {}

/** Asks, and hands on each piece of text as it comes. Throws a ChatError, or AbortError. */
async function stream(message, { signal, onText }) {
  const response = await fetch("/api/chat/stream", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ message }),
    signal,
  }).catch((error) => {
    throw error.name === "AbortError" ? error : new ChatError("The gateway does not answer.");
  });
  if (!response.ok) {
    const told = await response.json().catch(() => null);
    throw new ChatError(told?.error?.message ?? `The gateway answered with status ${response.status}.`);
  }
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  for (;;) {
    // A broken answer makes this reject: only an answer that is whole ends with `done`.
    const { done, value } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new ChatError("The answer broke off before its end.");
    });
    if (done) return;
    onText(decoder.decode(value, { stream: true })); // a letter may be cut between two chunks
  }
}

export function StreamingChat() {
  const [message, setMessage] = useState("");
  const [asked, setAsked] = useState("");
  const [answer, setAnswer] = useState("");
  const [status, setStatus] = useState("idle"); // idle, waiting, streaming, done, stopped or failed
  const [problem, setProblem] = useState("");
  const controller = useRef(null);
  const isBusy = status === "waiting" || status === "streaming";

  useEffect(() => () => controller.current?.abort(), []); // whoever leaves pays for nothing more

  async function ask(text) {
    const mine = new AbortController();
    controller.current = mine;
    setAsked(text);
    setAnswer("");
    setProblem("");
    setStatus("waiting");
    try {
      await stream(text, {
        signal: mine.signal,
        onText(chunk) {
          setStatus("streaming");
          setAnswer((answer) => answer + chunk);
        },
      });
      setStatus("done");
    } catch (error) {
      if (error.name === "AbortError") return setStatus("stopped");
      setStatus("failed");
      if (error instanceof ChatError) setProblem(error.message);
      else setStatus(() => { throw error; }); // a mistake of ours: for the error boundary
    }
  }

  function submit(event) {
    event.preventDefault();
    if (isBusy || !message.trim()) return;
    ask(message);
    setMessage("");
  }

  return (
    <section>
      {asked && <p className="asked">{asked}</p>}
      <article aria-busy={isBusy} data-status={status}>
        {status === "waiting" && <span className="waiting" aria-label="Waiting for the first words" />}
        {answer}
      </article>
      {status === "stopped" && <p className="note">Stopped.</p>}
      {problem && (
        <div role="alert" className="problem">
          <p>{problem}</p>
          <button type="button" onClick={() => ask(asked)}>
            Try again
          </button>
        </div>
      )}
      <form onSubmit={submit}>
        <input aria-label="Message" placeholder="Message" value={message} onChange={(event) => setMessage(event.target.value)} />
        {isBusy ? (
          <button type="button" className="stop" onClick={() => controller.current.abort()}>
            Stop
          </button>
        ) : (
          <button type="submit">Send</button>
        )}
      </form>
    </section>
  );
}
