// Server-sent events, comments too, out of text that comes in any pieces.

/** Takes text as it comes and returns what is whole by then: events as {event, data}, comments as {comment}. */
export class EventParser {
  #rest = "";
  #event = "";
  #data = [];

  feed(text) {
    const found = [];
    const all = this.#rest + text;
    const end = all.endsWith("\r") ? all.length - 1 : all.length; // it may be half of a line's end
    const lines = all.slice(0, end).split(/\r\n|\n|\r/);
    this.#rest = lines.pop() + all.slice(end);
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length) found.push({ event: this.#event, data: this.#data.join("\n") });
        this.#event = "";
        this.#data = [];
      } else if (line.startsWith(":")) {
        found.push({ comment: line.slice(1).trim() });
      } else {
        const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(line);
        if (name === "data") this.#data.push(value);
        if (name === "event") this.#event = value;
      }
    }
    return found;
  }
}
