// Markdown that is shown while it is written. What is closed is never touched again; the one block that still grows is
// rendered anew for each frame and laid over what is there, so that text nodes only grow and a selection survives.
//
// Everything becomes text nodes and a closed set of elements: no markup of the text is ever parsed as HTML, and links
// are text. Seams are places in the source, {at, target, …}; each is marked with an empty element.

const FENCE = /^(\s*)(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+)(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const ROW = /^\s*\|(.*)\|\s*$/;
const DELIMITERS = /^\s*\|[\s:|-]+\|\s*$/;
const UNDECIDED = /^\s*([-*+_]{1,2}|\d{1,9}[.)]?|#{1,6}|[`~]{1,2}|[-*]{3,}|\|.*)\s*$/;

export class Markdown {
  #root;
  #from = 0;
  #lists = [];
  #open = null;
  #seamCount = 0;
  #closed;

  /** Renders into an element; `closed` is called with the text of each block that is whole. */
  constructor(root, closed = () => {}) {
    this.#root = root;
    this.#closed = closed;
  }

  /** Show a text that begins as the one shown before; `isWhole` says that no more will come. */
  show(source, seams, isWhole) {
    const blocks = blocksOf(source, this.#from, isWhole);
    blocks.forEach((block, index) => {
      const isOpen = !isWhole && index === blocks.length - 1;
      const pending = seams.slice(this.#seamCount);
      const was = pending.length;
      const placed = this.#place(block, new Ink(block, pending, isOpen));
      if (this.#open && this.#open.parent === placed.parent && this.#open.node.nodeName === placed.node.nodeName) {
        lay(this.#open.node, placed.node);
        placed.node = this.#open.node;
      } else {
        this.#open?.node.remove();
        placed.parent.append(placed.node);
      }
      this.#open = isOpen ? placed : null;
      if (isOpen) return;
      this.#from = block.end;
      this.#seamCount += was - pending.length;
      this.#lists = this.#lists.slice(0, placed.depth);
      if (placed.list) this.#lists.push({ ...placed.list, element: placed.node });
      this.#closed(block.lines.map((line) => line.text).join("\n"));
    });
    if (!blocks.length && this.#open) {
      this.#open.node.remove();
      this.#open = null;
    }
  }

  /** Find where a block belongs, and make its element; items and what is indented below them go into lists. */
  #place(block, ink) {
    let depth = this.#lists.length;
    if (block.kind !== "item") {
      while (depth && block.indent < this.#lists[depth - 1].content) depth -= 1;
      const parent = depth ? this.#lists[depth - 1].element.lastElementChild : this.#root;
      return { parent, node: render(block, ink), depth };
    }
    while (depth && block.indent < this.#lists[depth - 1].indent) depth -= 1;
    const item = render(block, ink);
    const last = this.#lists[depth - 1];
    if (last && block.indent < last.content) {
      if (last.isOrdered === block.isOrdered) return { parent: last.element, node: item, depth };
      depth -= 1;
    }
    const parent = depth ? this.#lists[depth - 1].element.lastElementChild : this.#root;
    const node = element(block.isOrdered ? "ol" : "ul");
    if (block.isOrdered && block.number !== 1) node.setAttribute("start", block.number);
    node.append(item);
    return { parent, node, depth, list: { indent: block.indent, content: block.content, isOrdered: block.isOrdered } };
  }
}

/** Cut a text into blocks from a place on. Every block has its lines, each with its place in the text. */
function blocksOf(source, from, isWhole) {
  const lines = [];
  for (let at = from; at < source.length; ) {
    const found = source.indexOf("\n", at);
    const end = found < 0 ? source.length : found;
    lines.push({ text: source.slice(at, end).replace(/\r$/, ""), at, end: Math.min(end + 1, source.length) });
    at = end + 1;
  }
  const last = lines.at(-1);
  if (!isWhole && last && !source.endsWith("\n") && UNDECIDED.test(last.text)) lines.pop(); // it may become anything
  const blocks = [];
  for (let index = 0; index < lines.length; ) {
    if (!lines[index].text.trim()) index += 1;
    else index = readBlock(lines, index, blocks);
  }
  return blocks;
}

function readBlock(lines, index, blocks) {
  const { text, at } = lines[index];
  const cut = (line, from) => ({ text: line.text.slice(from), at: line.at + from });
  const indent = text.length - text.trimStart().length;
  const block = { kind: "paragraph", indent, lines: [], end: lines[index].end };
  blocks.push(block);
  const take = (line) => {
    block.lines.push(line);
    block.end = lines[index].end;
    index += 1;
  };
  let found;
  if ((found = FENCE.exec(text))) return readCode(lines, index, block, found);
  if ((found = HEADING.exec(text))) {
    Object.assign(block, { kind: "heading", level: found[1].length });
    const from = text.indexOf(found[2], found[1].length);
    take({ text: found[2], at: at + Math.max(from, 0) });
  } else if (RULE.test(text)) {
    block.kind = "rule";
    take({ text: "", at });
  } else if ((found = QUOTE.exec(text))) {
    block.kind = "quote";
    while (index < lines.length && (found = QUOTE.exec(lines[index].text))) {
      take(cut(lines[index], lines[index].text.length - found[1].length));
    }
  } else if (ROW.test(text) && DELIMITERS.test(lines[index + 1]?.text ?? "")) {
    block.kind = "table";
    while (index < lines.length && ROW.test(lines[index].text)) take(lines[index]);
  } else {
    let from = indent;
    if ((found = ITEM.exec(text))) {
      const [, , mark, gap, rest] = found;
      from = text.length - rest.length;
      const number = Number.parseInt(mark, 10);
      const isOrdered = !Number.isNaN(number);
      Object.assign(block, { kind: "item", isOrdered, number, content: indent + mark.length + Math.min(gap.length, 4) });
    }
    take(cut(lines[index], from));
    while (index < lines.length && isContinued(lines[index].text)) {
      const next = lines[index];
      take(cut(next, next.text.length - next.text.trimStart().length));
    }
  }
  return index;
}

function readCode(lines, index, block, [, indent, fence, info]) {
  Object.assign(block, { kind: "code", language: info.trim().split(/\s+/)[0] });
  block.end = lines[index].end;
  index += 1;
  const closing = new RegExp(`^\\s*${fence[0]}{${fence.length},}\\s*$`);
  while (index < lines.length) {
    const { text, at, end } = lines[index];
    block.end = end;
    index += 1;
    if (closing.test(text)) break;
    const strip = Math.min(indent.length, text.length - text.trimStart().length);
    block.lines.push({ text: text.slice(strip), at: at + strip });
  }
  return index;
}

function isContinued(text) {
  return text.trim() !== "" && ![FENCE, HEADING, RULE, ITEM, QUOTE, ROW].some((begin) => begin.test(text));
}

// --- from blocks to elements

function render(block, ink) {
  switch (block.kind) {
    case "heading":
      return ink.inline(element(`h${Math.min(block.level + 2, 6)}`), block.lines);
    case "rule":
      return element("hr");
    case "quote": {
      const quote = element("blockquote");
      quote.append(ink.inline(element("p"), block.lines));
      return quote;
    }
    case "item":
      return ink.inline(element("li"), block.lines);
    case "code":
      return renderCode(block, ink);
    case "table":
      return renderTable(block, ink);
    default:
      return ink.inline(element("p"), block.lines);
  }
}

function renderCode(block, ink) {
  const figure = element("figure", "code");
  const caption = element("figcaption");
  const copy = element("button", "quiet");
  copy.type = "button";
  copy.dataset.copy = "code";
  copy.textContent = "Copy";
  const language = element("span");
  language.textContent = block.language || "text";
  caption.append(language, copy);
  const pre = element("pre");
  pre.tabIndex = 0; // it may have to be scrolled sideways
  const code = element("code");
  ink.plain(code, block.lines);
  pre.append(code);
  figure.append(caption, pre);
  return figure;
}

function renderTable(block, ink) {
  const wrap = element("div", "table");
  const table = element("table");
  block.lines.forEach((line, index) => {
    if (index === 1) return;
    const row = element("tr");
    const inner = ROW.exec(line.text);
    let at = line.at + line.text.indexOf("|") + 1;
    for (const cell of inner[1].split("|")) {
      row.append(ink.inline(element(index ? "td" : "th"), [{ text: cell.trim(), at: at + cell.length - cell.trimStart().length }]));
      at += cell.length + 1;
    }
    table.append(row);
  });
  wrap.append(table);
  return wrap;
}

const PAIRS = [
  ["**", "strong"],
  ["__", "strong"],
  ["~~", "del"],
  ["*", "em"],
  ["_", "em"],
];
const LINK = /^!?\[([^\][]*)\]\(([^()\s]*)(?:\s+"[^"]*")?\)/;
const SPECIAL = /[\\`*_~[!\n]/g;

/** Writes the text of one block into elements, and the seams in it. */
class Ink {
  #seams;
  #isOpen;
  #text = "";
  #starts = [];

  constructor(block, seams, isOpen) {
    this.#seams = seams;
    this.#isOpen = isOpen;
  }

  plain(parent, lines) {
    this.#join(lines);
    this.#write(parent, 0, this.#text.length);
    return parent;
  }

  inline(parent, lines) {
    this.#join(lines);
    this.#run(parent, 0, this.#text.length);
    return parent;
  }

  #join(lines) {
    this.#text = "";
    this.#starts = lines.map(({ text, at }) => {
      const start = { index: this.#text.length, at };
      this.#text += `${text}\n`;
      return start;
    });
    this.#text = this.#text.slice(0, -1);
  }

  #run(parent, from, to) {
    const text = this.#text;
    let plain = from;
    let at = from;
    const flush = (upTo) => {
      this.#write(parent, plain, upTo);
    };
    while (at < to) {
      SPECIAL.lastIndex = at;
      const found = SPECIAL.exec(text);
      if (!found || found.index >= to) break;
      at = found.index;
      const next = this.#special(parent, at, from, to, flush);
      if (next) plain = at = next;
      else at += 1;
    }
    flush(to);
  }

  /** Render what begins with a special character; returns where to go on, or nothing if it is only text. */
  #special(parent, at, from, to, flush) {
    const text = this.#text;
    if (text[at] === "\\") {
      if (!/[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) return 0;
      flush(at);
      this.#write(parent, at + 1, at + 2);
      return at + 2;
    }
    if (text[at] === "\n") {
      const isHard = /( {2,}|\\)$/.exec(text.slice(Math.max(from, at - 8), at));
      if (!isHard) return 0;
      flush(at - isHard[0].length);
      parent.append(element("br"));
      return at + 1;
    }
    if (text[at] === "`") return this.#code(parent, at, to, flush);
    if (text[at] === "[" || text[at] === "!") return this.#link(parent, at, to, flush);
    const pair = PAIRS.find(([mark]) => text.startsWith(mark, at));
    return pair ? this.#pair(parent, at, from, to, flush, ...pair) : 0;
  }

  #code(parent, at, to, flush) {
    const [ticks] = /^`+/.exec(this.#text.slice(at, to));
    const found = new RegExp(`(?<!\`)${ticks}(?!\`)`).exec(this.#text.slice(at + ticks.length, to));
    if (!found && !(this.#isOpen && at + ticks.length < to)) return 0;
    const end = found ? at + ticks.length + found.index : to;
    flush(at);
    const code = element("code");
    this.#write(code, at + ticks.length, end);
    parent.append(code);
    return found ? end + ticks.length : to;
  }

  #link(parent, at, to, flush) {
    const found = LINK.exec(this.#text.slice(at, to));
    if (!found) return 0;
    const begin = at + found[0].indexOf("[") + 1;
    flush(at);
    this.#run(parent, begin, begin + found[1].length);
    if (found[2] && found[2] !== found[1]) {
      const url = element("span", "url");
      url.textContent = ` (${found[2]})`;
      parent.append(url);
    }
    return at + found[0].length;
  }

  #pair(parent, at, from, to, flush, mark, name) {
    const text = this.#text;
    const begin = at + mark.length;
    const isWord = (place) => /\w/.test(text[place] ?? " ");
    if (begin >= to || /\s/.test(text[begin]) || (mark[0] === "_" && at > from && isWord(at - 1))) return 0;
    let end = begin;
    for (;;) {
      end = text.indexOf(mark, end + 1);
      if (end < 0 || end + mark.length > to) {
        end = -1;
        break;
      }
      const isDouble = mark.length === 1 && (text[end + 1] === mark || text[end - 1] === mark);
      const isInside = mark[0] === "_" && isWord(end + mark.length);
      if (!/\s/.test(text[end - 1]) && !isDouble && !isInside) break;
    }
    if (end < 0 && !(this.#isOpen && mark[0] !== "_")) return 0;
    flush(at);
    const node = element(name);
    this.#run(node, begin, end < 0 ? to : end);
    parent.append(node);
    return end < 0 ? to : end + mark.length;
  }

  /** Write a piece of the text, with the seams that are in it or were passed on the way to it. */
  #write(parent, from, to) {
    let begin = from;
    while (begin < to && this.#seams.length && this.#seams[0].at < this.#placeOf(to - 1) + 1) {
      const seam = this.#seams.shift();
      let cut = begin;
      while (cut < to && this.#placeOf(cut) < seam.at) cut += 1;
      if (cut > begin) parent.append(this.#text.slice(begin, cut));
      parent.append(seamOf(seam));
      begin = cut;
    }
    if (begin < to) parent.append(this.#text.slice(begin, to));
  }

  #placeOf(index) {
    const start = this.#starts.findLast((one) => one.index <= index);
    return start.at + index - start.index;
  }
}

function seamOf({ target, way, attempt }) {
  const mark = element("span", "seam");
  mark.setAttribute("role", "note");
  mark.dataset.label = `${target.split("?")[0]} went on here, attempt ${attempt}, ${way}`;
  mark.setAttribute("aria-label", mark.dataset.label);
  return mark;
}

function element(name, className) {
  const made = document.createElement(name);
  if (className) made.className = className;
  return made;
}

/** Make a node like a fresh one while touching as little of it as can be. */
function lay(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (fresh.data.startsWith(old.data)) {
      if (fresh.data.length > old.data.length) old.appendData(fresh.data.slice(old.data.length));
    } else old.data = fresh.data;
    return;
  }
  const nodes = [...fresh.childNodes];
  nodes.forEach((node, index) => {
    const was = old.childNodes[index];
    if (!was) old.append(node);
    else if (was.nodeName === node.nodeName && was.className === node.className) lay(was, node);
    else was.replaceWith(node);
  });
  while (old.childNodes.length > nodes.length) old.lastChild.remove();
}
