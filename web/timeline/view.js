// @ts-check
/**
 * The timeline as a form: one row per segment, a ruler of whole blocks, or the script itself as text.
 * Knows no host. The script is the only truth. Emits `change` on every keystroke, `changed` after every finished edit,
 * and `undo` and `redo` for those keys where no typing is left to undo.
 */
import { findMiddle, make } from "./elements.js";
import { addLengths, convertToSeconds, parse, serialize } from "./model.js";
import { SegmentRow } from "./row.js";

/** @import { Row, Segment } from "./model.js" @import { Length } from "./row.js" */

const MAX_TICKS = 120; // blocks on the ruler beyond which ticks are only noise
const FRAME_HEIGHT = 116; // px of all but the rows: ruler, a line of message, foot
const ROW_HEIGHT = 56; // px of a row whose prompt fits one line
const MOST_ROWS = 6; // that an editor has room for, however small its node is made

export class TimelineView extends EventTarget {
  #text = "";
  #settled = ""; // the text at the last finished edit
  #undone = false; // typing was undone since then, and may be redone
  #reason = ""; // why nothing can be edited
  #linked = ""; // the script used instead
  /** @type {string[]} */
  #header = []; // comments that stay on top when rows move
  /** @type {string[]} */
  #end = []; // comments that stay at the end
  #wantsText = false;
  #isText = false; // also when the script does not parse
  #block = 3;
  #listeners = new AbortController();
  /** @type {Map<Element, SegmentRow>} in the order of the page */
  #rows = new Map();

  constructor() {
    super();
    this.ruler = make("div", { className: "longlive-ruler", role: "group", ariaLabel: "Ruler" });
    this.list = make("ol", { className: "longlive-rows" });
    this.script = make("textarea", { className: "longlive-script", ariaLabel: "Timeline script", spellcheck: false });
    this.message = make("p", { className: "longlive-message", role: "status" });
    this.totals = make("output", { className: "longlive-totals", ariaLabel: "Length of the video" });
    this.add = make("button", { className: "longlive-add", textContent: "+ segment", type: "button" });
    this.toggle = make("button", { className: "longlive-toggle", textContent: "text", type: "button" });
    this.element = make("section", { className: "longlive-panel longlive-timeline", ariaLabel: "Timeline" });
    this.footer = make("footer", { className: "longlive-footer" });
    this.footer.append(this.totals, this.toggle);
    this.element.append(this.ruler, this.list, this.add, this.script, this.message, this.footer);

    this.#on(this.add, "click", () => this.#append());
    this.#on(this.toggle, "click", () => this.#toggleText());
    this.#on(this.script, "input", () => this.#edit(this.script.value));
    this.#on(this.script, "change", () => this.#emit("changed"));
    this.#on(this.ruler, "click", (event) => {
      this.#focusPrompt([...this.ruler.children].indexOf(/** @type {Element} */ (event.target)));
    });
    this.#on(this.list, "click", (event) => this.#takeClick(/** @type {Element} */ (event.target)));
    this.#on(this.element, "input", (event) => {
      this.#undone = isInput(event, "history");
    });
    this.#on(this.element, "keydown", (event) => this.#takeUndoKey(/** @type {KeyboardEvent} */ (event)));
    this.#on(this.list, "input", (event) => this.#takeTyping(event));
    this.#on(this.list, "change", (event) => this.#leave(/** @type {Element} */ (event.target)));
    this.#on(this.list, "keydown", (event) => this.#takeKey(/** @type {KeyboardEvent} */ (event)));
    this.#on(this.list, "pointerdown", (event) => this.#drag(/** @type {PointerEvent} */ (event)));
    this.#show();
  }

  /** The script. Setting it emits nothing. */
  get value() {
    return this.#text;
  }

  set value(text) {
    if (text === this.#text) return;
    this.#text = this.#settled = text;
    this.#show();
  }

  /** What is wrong with the script, or "". */
  get problem() {
    return this.message.classList.contains("longlive-problem") ? this.message.textContent : "";
  }

  /** Height in px below which rows would be hidden, except those of a long script. */
  get minHeight() {
    return FRAME_HEIGHT + ROW_HEIGHT * Math.min(Math.max(this.#rows.size, 2), MOST_ROWS);
  }

  /** Frames in a block, by which durations are snapped. */
  get block() {
    return this.#block;
  }

  set block(frames) {
    if (frames === this.#block) return;
    this.#block = frames;
    this.#show();
  }

  /**
   * Lock the timeline for a reason, and show the script used instead where it is known; "" unlocks it.
   * @param {string} reason @param {string} [linked]
   */
  lock(reason, linked = "") {
    if (reason === this.#reason && linked === this.#linked) return;
    this.#reason = reason;
    this.#linked = linked;
    this.element.classList.toggle("longlive-locked", Boolean(reason));
    for (const part of [this.ruler, this.list, this.add, this.script, this.footer]) part.inert = Boolean(reason);
    this.#show();
  }

  dispose() {
    this.#listeners.abort();
    this.element.remove();
  }

  /** Build the page from the script. */
  #show() {
    const [segments, problem] = this.#readText();
    this.#isText = this.#wantsText || Boolean(problem && this.#shown.trim());
    this.element.classList.toggle("longlive-as-text", this.#isText);
    this.toggle.ariaPressed = String(this.#isText);
    this.toggle.textContent = this.#isText ? "rows" : "text";
    this.script.value = this.#shown;
    this.#header = segments[0]?.above.splice(0) ?? [];
    this.#end = segments.at(-1)?.below ?? [];
    this.#rows.clear();
    this.list.replaceChildren(...segments.map((segment) => this.#addRow(segment)));
    this.#refresh();
  }

  /** Update numbers, ruler, totals and message from the page. */
  #refresh() {
    const [segments, problem] = this.#isText ? this.#readText() : this.#readRows();
    this.#say(this.#reason || problem, Boolean(this.#reason) || (!this.#isText && !segments.length));
    this.element.style.minHeight = `${this.minHeight}px`; // Nodes 2.0 asks here
    this.toggle.disabled = Boolean(this.#isText && problem && this.#shown.trim()); // rows cannot show it
    this.toggle.title = this.toggle.disabled ? "Correct the script first" : "Edit the script as rows or as text";
    const { seconds, blocks, pixelFrames } = addLengths(segments, this.#block);
    const lengths = `${seconds} s · ${blocks} ${blocks === 1 ? "block" : "blocks"}`;
    this.totals.textContent = segments.length ? lengths : "";
    this.totals.title = `${pixelFrames} pixel frames`;
    this.ruler.classList.toggle("longlive-ticks", blocks <= MAX_TICKS);
    let start = 0;
    this.ruler.replaceChildren(...segments.map(({ blocks, boundary, blend, prompt }, index) => {
      const end = start + convertToSeconds(blocks, this.#block);
      const bar = make("button", { className: "longlive-bar", type: "button", textContent: String(index + 1) });
      bar.title = `${start}–${end} s · ${prompt}`;
      bar.ariaLabel = `Segment ${index + 1}, ${start} to ${end} seconds`;
      bar.dataset.boundary = index ? (blend ? "blend" : boundary) : "";
      bar.style.setProperty("--longlive-blocks", String(blocks));
      start = end;
      return bar;
    }));
  }

  /** The script on the page. */
  get #shown() {
    return this.#reason ? this.#linked : this.#text;
  }

  /** @returns {[Segment[], string]} */
  #readText() {
    try {
      return [parse(this.#shown, this.#block), ""];
    } catch (error) {
      return [[], /** @type {Error} */ (error).message];
    }
  }

  /** Measure each row by itself and mark what is wrong with it. @returns {[Length[], string]} */
  #readRows() {
    let problem = this.#rows.size ? "" : "No segment yet.";
    const segments = [...this.#rows.values()].map((row, index) => {
      const { length, problem: wrong } = row.refresh(index, this.#block);
      if (wrong) problem ||= `Segment ${index + 1}: ${wrong}.`;
      return length;
    });
    return [segments, problem];
  }

  /** Add a row and return its element, which is not on the page yet. @param {Row} written */
  #addRow(written) {
    const row = new SegmentRow(written);
    this.#rows.set(row.element, row);
    return row.element;
  }

  #append() {
    const asked = [...this.#rows.values()].at(-1)?.asked.value || "8s";
    this.list.append(this.#addRow({ asked, boundary: "recache", prompt: "", above: [] }));
    this.#finish();
    this.#focusPrompt(this.list.childElementCount - 1);
  }

  /** @param {Element} button */
  #takeClick(button) {
    if (!button.classList.contains("longlive-remove")) return;
    const index = [...this.list.children].findIndex((row) => row.contains(button));
    this.list.children[index].remove();
    this.#finish();
    this.#focusPrompt(Math.min(index, this.list.childElementCount - 1));
  }

  /** @param {number} index */
  #focusPrompt(index) {
    (this.#rows.get(this.list.children[index])?.prompt ?? this.add).focus();
  }

  /** Move a row by one place. Its neighbour moves, so focus stays. @param {Element} row @param {boolean} down */
  #move(row, down) {
    const neighbour = down ? row.nextElementSibling : row.previousElementSibling;
    if (!neighbour) return;
    row[down ? "before" : "after"](neighbour);
    this.#edit();
  }

  #toggleText() {
    this.#wantsText = !this.#isText;
    this.#show();
    if (this.#isText) this.script.focus();
  }

  /** @param {string} [text] the script; that of the rows when none is given */
  #edit(text) {
    if (text === undefined) {
      const find = (/** @type {Element} */ element) => /** @type {SegmentRow} */ (this.#rows.get(element));
      this.#rows = new Map([...this.list.children].map((element) => [element, find(element)]));
      this.#text = serialize(this.#read());
    } else {
      this.#text = text;
    }
    this.#refresh();
    this.#emit("change");
  }

  /** Read the rows of the page, with the comments that stay at either end. @returns {Row[]} */
  #read() {
    const rows = [...this.#rows.values()].map((row) => row.read());
    if (rows.length) {
      rows[0].above = [...this.#header, ...rows[0].above];
      rows[rows.length - 1].below = this.#end;
    }
    return rows;
  }

  #finish() {
    this.#edit();
    this.#emit("changed");
  }

  /** @param {Event} event */
  #takeTyping(event) {
    const field = /** @type {Element} */ (event.target);
    const row = this.#findRow(field);
    if (isInput(event, "insertFrom") && row?.prompt === field) row.showKeptPrompt();
    this.#edit();
  }

  /** Show what a field that was left says. @param {Element} field */
  #leave(field) {
    this.#findRow(field)?.settle(field, this.#block);
    this.#finish();
  }

  /** Find the row around an element. @param {Element} element */
  #findRow(element) {
    return this.#rows.get(/** @type {Element} */ (element.closest("li")));
  }

  /** @param {KeyboardEvent} event */
  #takeKey(event) {
    const field = /** @type {Element} */ (event.target);
    const row = this.#findRow(field);
    const steps = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (!row || !steps) return;
    if (event.altKey || field.classList.contains("longlive-grip")) this.#move(row.element, steps < 0);
    else if (field === row.asked) row.lengthen(steps, this.#block);
    else return;
    event.preventDefault();
    this.#finish();
  }

  /** Leave the undo of typing to the field, and that of finished edits to the host. @param {KeyboardEvent} event */
  #takeUndoKey(event) {
    const key = event.key.toLowerCase();
    if (!(event.ctrlKey || event.metaKey) || event.altKey || (key !== "z" && key !== "y")) return;
    const redo = key === "y" || event.shiftKey;
    if (redo ? this.#undone : this.#text !== this.#settled) return;
    event.preventDefault();
    this.#emit(redo ? "redo" : "undo");
  }

  /** Drag a row by its grip. @param {PointerEvent} event */
  #drag(event) {
    const grip = /** @type {Element} */ (event.target).closest(".longlive-grip");
    const row = grip?.closest("li");
    if (!grip || !row || event.button !== 0) return;
    const drag = new AbortController();
    const signal = AbortSignal.any([drag.signal, this.#listeners.signal]);
    grip.setPointerCapture(event.pointerId);
    row.classList.add("longlive-dragged");
    grip.addEventListener("pointermove", (move) => {
      const y = /** @type {PointerEvent} */ (move).clientY;
      if (y < findMiddle(row.previousElementSibling, -Infinity)) this.#move(row, false);
      else if (y > findMiddle(row.nextElementSibling, Infinity)) this.#move(row, true);
    }, { signal });
    grip.addEventListener("lostpointercapture", () => {
      row.classList.remove("longlive-dragged");
      drag.abort();
      this.#emit("changed");
    }, { signal });
  }

  /** @param {string} text @param {boolean} harmless */
  #say(text, harmless) {
    this.message.textContent = text;
    this.message.hidden = !text;
    this.message.classList.toggle("longlive-problem", !harmless);
  }

  /** @param {"change" | "changed" | "undo" | "redo"} type */
  #emit(type) {
    if (type === "changed") {
      this.#settled = this.#text;
      this.#undone = false;
    }
    this.dispatchEvent(new Event(type));
  }

  /** @param {EventTarget} target @param {string} type @param {(event: Event) => void} listener */
  #on(target, type, listener) {
    target.addEventListener(type, listener, { signal: this.#listeners.signal });
  }
}

/** Whether an event is typing of a kind, such as "history" for undo and redo; a choice in a list is none. @param {Event} event @param {string} kind */
function isInput(event, kind) {
  return event instanceof InputEvent && event.inputType.startsWith(kind);
}
