// When things are drawn, and where the reader looks.

const HIDDEN_MS = 250;

/** Returns a function that asks for a drawing: at most one per frame, and by a timer where no frames are drawn. */
export function batched(draw) {
  let frame = 0;
  let timer = 0;
  const run = () => {
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    frame = timer = 0;
    draw();
  };
  document.addEventListener("visibilitychange", () => {
    if (timer) run();
  });
  return () => {
    if (timer) return;
    timer = setTimeout(run, HIDDEN_MS); // a tab in the background draws no frames, but has to be up to date
    frame = requestAnimationFrame(run);
  };
}

/** Keeps the end of what grows in sight, until the reader scrolls up; the button brings them back. */
export class Follow {
  #box;
  #button;
  #isFollowing = true;
  #top = 0;
  #height = 0;

  constructor(box, button) {
    this.#box = box;
    this.#button = button;
    box.addEventListener("scroll", () => this.#noteScroll(), { passive: true });
    button.addEventListener("click", () => this.resume());
    new ResizeObserver(() => this.keep()).observe(box);
  }

  /** Follow from now on. */
  resume() {
    this.#isFollowing = true;
    this.keep();
  }

  /** Something has grown. */
  keep() {
    if (this.#isFollowing) this.#box.scrollTop = this.#box.scrollHeight;
    this.#note();
  }

  #noteScroll() {
    const { scrollTop, scrollHeight } = this.#box;
    if (scrollTop < this.#top && scrollHeight >= this.#height) this.#isFollowing = false; // not what shrank, the reader
    else if (scrollTop > this.#top && this.#isAtEnd()) this.#isFollowing = true;
    this.#note();
  }

  #note() {
    this.#top = this.#box.scrollTop;
    this.#height = this.#box.scrollHeight;
    this.#button.hidden = this.#isFollowing || this.#isAtEnd();
  }

  #isAtEnd() {
    return this.#box.scrollHeight - this.#box.clientHeight - this.#box.scrollTop < 24;
  }
}
