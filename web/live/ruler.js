// @ts-check
/**
 * The ruler of a growing film: each prompt at its place, marks at places quick to rewind to, the play-head.
 * A click or the arrow keys choose a block. Emits `choose` when the choice changed, `later` with the seconds in `detail`
 * on a click behind the end of the film, and `hold` on the space bar.
 */
import { make } from "../timeline/elements.js";
import { findBlock, findCheap, layRuler, locateBlock, writeTime } from "./model.js";

/** @import { Bar, State } from "./model.js" */

export class RulerView extends EventTarget {
  /** @type {number | null} the block to rewind to */
  chosen = null;
  /** @type {State | null} */
  #state = null;
  #layout = layRuler(null);
  #seconds = 0;

  constructor() {
    super();
    this.bars = make("div", { className: "longlive-live-bars" });
    this.plans = make("div", {});
    this.ticks = make("div", {});
    this.marks = make("div", {});
    this.head = make("div", { className: "longlive-live-head" });
    this.pin = make("div", { className: "longlive-live-pin", hidden: true });
    this.scale = make("div", { className: "longlive-live-scale" });
    this.track = make("div", { className: "longlive-live-track", tabIndex: 0, role: "slider" });
    this.track.ariaLabel = "Place in the film";
    this.track.ariaValueMin = "0";
    this.track.title = "Click to choose a place, behind the end to choose a time for the next prompt. "
      + "The arrow keys move by a block, Page Up and Page Down to the next mark, Escape chooses nothing; "
      + "the space bar holds the film.";
    this.track.append(this.bars, this.plans, this.ticks, this.marks, this.pin, this.head);
    this.element = make("div", { className: "longlive-live-ruler" });
    this.element.append(this.track, this.scale);
    for (const part of [this.track, this.scale]) part.addEventListener("click", (event) => this.#takeClick(event));
    this.track.addEventListener("keydown", (event) => this.#takeKey(event));
    this.show(null);
  }

  /** @param {State | null} state */
  show(state) {
    this.#state = state;
    this.#layout = layRuler(state);
    if (this.chosen !== null && this.chosen >= (state?.pieces.length ?? 0)) this.#choose(null);
    const { bars, waiting, ticks, cheap, span } = this.#layout;
    fit(this.bars, "longlive-live-bar", bars).forEach((element, index) => this.#drawBar(element, bars[index]));
    fit(this.plans, "longlive-live-waiting", waiting).forEach((element, index) => {
      element.title = `waits: ${waiting[index].text}`;
      this.#place(element, waiting[index].seconds);
    });
    fit(this.ticks, "longlive-live-tick", ticks).forEach((element, index) => this.#place(element, ticks[index]));
    fit(this.marks, "longlive-live-cheap", cheap).forEach((element, index) => {
      element.title = `block ${cheap[index].block}: quick to rewind to`;
      this.#place(element, cheap[index].seconds);
    });
    fit(this.scale, "", [0, 1, 2, 3, 4]).forEach((element, quarter) => {
      element.textContent = writeTime((span * quarter) / 4);
    });
    this.#refresh();
  }

  /** Move the play-head. @param {number} seconds */
  play(seconds) {
    this.#seconds = seconds;
    this.head.hidden = !this.#layout.length;
    this.#place(this.head, Math.min(seconds, this.#layout.span));
  }

  /** Choose nothing. */
  release() {
    this.#choose(null);
  }

  /** Choose a block, or none. @param {number | null} block */
  #choose(block) {
    if (block === this.chosen) return;
    this.chosen = block;
    this.#refresh();
    this.dispatchEvent(new Event("choose"));
  }

  #refresh() {
    const { length } = this.#layout;
    const seconds = this.chosen === null || !this.#state ? null : locateBlock(this.#state, this.chosen);
    this.pin.hidden = seconds === null;
    if (seconds !== null) this.#place(this.pin, seconds);
    this.track.ariaValueMax = length.toFixed(2);
    this.track.ariaValueNow = (seconds ?? this.#seconds).toFixed(2);
    this.track.ariaValueText = seconds === null ? "no place is chosen" : `block ${this.chosen}, at ${writeTime(seconds, 2)}`;
    this.play(this.#seconds);
  }

  /** @param {HTMLElement} element @param {Bar} bar */
  #drawBar(element, { start, end, blend, title, text, boundary }) {
    element.title = title;
    element.textContent = boundary === "seed" ? "" : text;
    element.dataset.boundary = start > 0 ? boundary : "";
    element.style.width = this.#scaleBy(end - start);
    element.style.setProperty("--longlive-blend", `${(100 * blend) / Math.max(end - start, 0.01)}%`);
    this.#place(element, start);
  }

  /** @param {HTMLElement} element @param {number} seconds */
  #place(element, seconds) {
    element.style.insetInlineStart = this.#scaleBy(seconds);
  }

  /** @param {number} seconds */
  #scaleBy(seconds) {
    return `${((100 * seconds) / this.#layout.span).toFixed(3)}%`;
  }

  /** @param {MouseEvent} event */
  #takeClick(event) {
    const box = this.track.getBoundingClientRect();
    const seconds = ((event.clientX - box.left) / box.width) * this.#layout.span;
    const block = findCheap(this.#layout, seconds) ?? findBlock(this.#state, seconds);
    if (block === null && this.#state) this.dispatchEvent(new CustomEvent("later", { detail: seconds }));
    this.#choose(block);
  }

  /** @param {KeyboardEvent} event */
  #takeKey(event) {
    const [first, last] = [this.#state?.begins ?? 0, (this.#state?.pieces.length ?? 0) - 1];
    const from = this.chosen ?? last + 1;
    const cheap = this.#layout.cheap.map(({ block }) => block);
    /** @type {Record<string, () => number | null>} */
    const moves = {
      ArrowLeft: () => Math.max(first, from - 1),
      ArrowRight: () => (from < last ? from + 1 : null),
      Home: () => first,
      End: () => null,
      PageUp: () => cheap.findLast((block) => block < from) ?? first,
      PageDown: () => cheap.find((block) => block > from) ?? null,
      Escape: () => null,
    };
    if (event.key === " ") {
      event.preventDefault();
      this.dispatchEvent(new Event("hold"));
    }
    if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.#choose(last < 0 ? null : moves[event.key]());
  }
}

/**
 * Give an element as many children as there are items; those it has stay, so that they glide and keep their tooltips.
 * @param {HTMLElement} parent @param {string} className @param {unknown[]} items
 */
function fit(parent, className, items) {
  while (parent.childElementCount > items.length) parent.lastElementChild?.remove();
  while (parent.childElementCount < items.length) parent.append(make("div", { className }));
  return /** @type {HTMLElement[]} */ ([...parent.children]);
}
