// @ts-check
/**
 * The timeline as a form: one row per segment, a ruler of whole blocks, or the script itself as text.
 * Knows no host. The script is the only truth. Emits `change` on every keystroke, `changed` after every finished edit,
 * and `undo` and `redo` for those keys where no typing is left to undo.
 */
import { lengthen, parse, secondsOf, serialize, totals } from "./model.js";

/**
 * @import { Boundary, Row, Segment, TimelineError } from "./model.js"
 * @typedef {{blocks: number, boundary: string, prompt: string}} Length a segment as the ruler shows it
 *
 * @typedef {object} RowElements a row on the page, which holds what was typed
 * @property {HTMLInputElement} asked
 * @property {HTMLSelectElement} boundary
 * @property {HTMLTextAreaElement} prompt
 * @property {HTMLElement} number
 * @property {HTMLElement} snapped
 * @property {string[]} above
 */

/** @type {[Boundary, string, string][]} */
const BOUNDARIES = [
  ["recache", "recache", "Recompute the KV cache under the new prompt; the sink stays. The motion continues."],
  ["renew", "renew: recache, new sink", "Recompute the KV cache under the new prompt and take a new sink from it."],
  ["keep", "keep: keep cache", "Leave the KV cache as it is and change only the text."],
  ["discard", "cut: discard cache", "Empty the KV cache: a hard cut."],
];
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
  /** @type {Map<Element, RowElements>} */
  #parts = new Map();

  constructor() {
    super();
    this.ruler = make("div", { className: "longlive-ruler", role: "group", ariaLabel: "Ruler" });
    this.rows = make("ol", { className: "longlive-rows" });
    this.script = make("textarea", { className: "longlive-script", ariaLabel: "Timeline script", spellcheck: false });
    this.message = make("p", { className: "longlive-message", role: "status" });
    this.totals = make("output", { className: "longlive-totals", ariaLabel: "Length of the video" });
    this.add = make("button", { className: "longlive-add", textContent: "+ segment", type: "button" });
    this.toggle = make("button", { className: "longlive-toggle", textContent: "text", type: "button" });
    this.element = make("section", { className: "longlive-timeline", ariaLabel: "Timeline" });
    this.footer = make("footer", { className: "longlive-footer" });
    this.footer.append(this.totals, this.toggle);
    this.element.append(this.ruler, this.rows, this.add, this.script, this.message, this.footer);

    this.#on(this.add, "click", () => this.#append());
    this.#on(this.toggle, "click", () => this.#switch());
    this.#on(this.script, "input", () => this.#edited(this.script.value));
    this.#on(this.script, "change", () => this.#emit("changed"));
    this.#on(this.ruler, "click", (event) => {
      this.#focusPrompt([...this.ruler.children].indexOf(/** @type {Element} */ (event.target)));
    });
    this.#on(this.rows, "click", (event) => this.#clicked(/** @type {Element} */ (event.target)));
    this.#on(this.element, "input", (event) => {
      this.#undone = /** @type {InputEvent} */ (event).inputType.startsWith("history");
    });
    this.#on(this.element, "keydown", (event) => this.#recalled(/** @type {KeyboardEvent} */ (event)));
    this.#on(this.rows, "input", (event) => this.#typed(/** @type {InputEvent} */ (event)));
    this.#on(this.rows, "change", (event) => this.#committed(/** @type {Element} */ (event.target)));
    this.#on(this.rows, "keydown", (event) => this.#pressed(/** @type {KeyboardEvent} */ (event)));
    this.#on(this.rows, "pointerdown", (event) => this.#grabbed(/** @type {PointerEvent} */ (event)));
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
    return FRAME_HEIGHT + ROW_HEIGHT * Math.min(Math.max(this.#parts.size, 2), MOST_ROWS);
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
    for (const part of [this.ruler, this.rows, this.add, this.script, this.footer]) part.inert = Boolean(reason);
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
    this.#parts.clear();
    this.rows.replaceChildren(...segments.map((segment) => this.#row(segment)));
    this.#refresh();
  }

  /** Update numbers, ruler, totals and message from the page. */
  #refresh() {
    const [segments, problem] = this.#isText ? this.#readText() : this.#readRows();
    this.#say(this.#reason || problem, Boolean(this.#reason) || (!this.#isText && !segments.length));
    this.element.style.minHeight = `${this.minHeight}px`; // Nodes 2.0 asks here
    this.toggle.disabled = Boolean(this.#isText && problem && this.#shown.trim()); // rows cannot show it
    this.toggle.title = this.toggle.disabled ? "Correct the script first" : "Edit the script as rows or as text";
    const { seconds, blocks, pixelFrames } = totals(segments, this.#block);
    const lengths = `${seconds} s · ${blocks} ${blocks === 1 ? "block" : "blocks"}`;
    this.totals.textContent = segments.length ? lengths : "";
    this.totals.title = `${pixelFrames} pixel frames`;
    this.ruler.classList.toggle("longlive-ticks", blocks <= MAX_TICKS);
    let start = 0;
    this.ruler.replaceChildren(...segments.map(({ blocks, boundary, prompt }, index) => {
      const end = start + secondsOf(blocks, this.#block);
      const bar = make("button", { className: "longlive-bar", type: "button", textContent: String(index + 1) });
      bar.title = `${start}–${end} s · ${prompt}`;
      bar.ariaLabel = `Segment ${index + 1}, ${start} to ${end} seconds`;
      bar.dataset.boundary = index ? boundary : "";
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
    let problem = this.#parts.size ? "" : "No segment yet.";
    const segments = [...this.#parts.values()].map((parts, index) => {
      const { blocks, problem: wrong } = this.#measure(parts);
      const silent = !parts.prompt.value.trim();
      parts.number.textContent = String(index + 1);
      parts.snapped.textContent = blocks ? `${secondsOf(blocks, this.#block)} s` : "";
      parts.snapped.title = blocks ? `${blocks} blocks, ${blocks * this.#block} frames` : "";
      parts.boundary.title = BOUNDARIES[parts.boundary.selectedIndex][2]
        + (index ? "" : " On the first segment: only when the session already has frames.");
      parts.asked.ariaInvalid = String(Boolean(wrong));
      parts.prompt.ariaInvalid = String(silent);
      if (wrong || silent) problem ||= `Segment ${index + 1}: ${wrong || "the prompt is empty"}.`;
      return { blocks, boundary: parts.boundary.value, prompt: parts.prompt.value };
    });
    return [segments, problem];
  }

  /** Read the head of a row, whatever its prompt; 0 blocks if it cannot be read. @param {RowElements} parts */
  #measure(parts) {
    const row = read(parts);
    try {
      return { ...parse(serialize([{ ...row, prompt: "-", above: [] }]), this.#block)[0], problem: "" };
    } catch (error) {
      return { ...row, blocks: 0, problem: /** @type {TimelineError} */ (error).problem };
    }
  }

  /** @param {Row} row */
  #row({ asked, boundary, prompt, above }) {
    const element = make("li", { className: "longlive-row" });
    const grip = make("button", { className: "longlive-grip", type: "button", ariaLabel: "Move the segment" });
    grip.title = "Drag, or press the up and down arrows; Alt with an arrow moves from any field";
    const remove = make("button", { className: "longlive-remove", type: "button", textContent: "×" });
    remove.ariaLabel = remove.title = "Remove the segment";
    const parts = {
      number: make("span", { className: "longlive-number" }),
      asked: make("input", { className: "longlive-asked", value: asked, spellcheck: false, ariaLabel: "Duration" }),
      snapped: make("span", { className: "longlive-snapped" }),
      boundary: make("select", { className: "longlive-boundary", ariaLabel: "KV cache where the segment begins" }),
      prompt: make("textarea", { className: "longlive-prompt", value: prompt, rows: 2, ariaLabel: "Prompt" }),
      above,
    };
    parts.asked.title = "8s, 10b (blocks) or 30f (frames); the up and down arrows change it by a block";
    parts.prompt.placeholder = "What the video shows";
    parts.boundary.append(...BOUNDARIES.map(([value, textContent]) => make("option", { value, textContent })));
    parts.boundary.value = boundary;
    grip.append(parts.number);
    element.append(grip, parts.asked, parts.snapped, parts.boundary, remove, parts.prompt);
    this.#parts.set(element, parts);
    return element;
  }

  #append() {
    const asked = [...this.#parts.values()].at(-1)?.asked.value || "8s";
    this.rows.append(this.#row({ asked, boundary: "recache", prompt: "", above: [] }));
    this.#finished();
    this.#focusPrompt(this.rows.childElementCount - 1);
  }

  /** @param {Element} button */
  #clicked(button) {
    if (!button.classList.contains("longlive-remove")) return;
    const index = [...this.rows.children].findIndex((row) => row.contains(button));
    this.rows.children[index].remove();
    this.#finished();
    this.#focusPrompt(Math.min(index, this.rows.childElementCount - 1));
  }

  /** @param {number} index */
  #focusPrompt(index) {
    (this.#parts.get(this.rows.children[index])?.prompt ?? this.add).focus();
  }

  /** Move a row by one place. Its neighbour moves, so focus stays. @param {Element} row @param {boolean} down */
  #move(row, down) {
    const neighbour = down ? row.nextElementSibling : row.previousElementSibling;
    if (!neighbour) return;
    row[down ? "before" : "after"](neighbour);
    this.#edited();
  }

  #switch() {
    this.#wantsText = !this.#isText;
    this.#show();
    if (this.#isText) this.script.focus();
  }

  /** @param {string} [text] the script; that of the rows when none is given */
  #edited(text) {
    if (text === undefined) {
      const parts = (/** @type {Element} */ row) => /** @type {RowElements} */ (this.#parts.get(row));
      this.#parts = new Map([...this.rows.children].map((row) => [row, parts(row)])); // in the order of the page
      this.#text = serialize(this.#read());
    } else {
      this.#text = text;
    }
    this.#refresh();
    this.#emit("change");
  }

  /** Read the rows of the page, with the comments that stay at either end. @returns {Row[]} */
  #read() {
    const rows = [...this.#parts.values()].map(read);
    if (rows.length) {
      rows[0].above = [...this.#header, ...rows[0].above];
      rows[rows.length - 1].below = this.#end;
    }
    return rows;
  }

  #finished() {
    this.#edited();
    this.#emit("changed");
  }

  /** @param {InputEvent} event */
  #typed(event) {
    const field = /** @type {HTMLTextAreaElement} */ (event.target);
    if (event.inputType.startsWith("insertFrom") && field.classList.contains("longlive-prompt")) showKept(field);
    this.#edited();
  }

  /** A field was left: show a duration such as "8s cut" as what it says. @param {Element} field */
  #committed(field) {
    const parts = this.#parts.get(/** @type {Element} */ (field.closest("li")));
    if (parts?.asked === field) {
      const { asked, boundary } = this.#measure(parts);
      parts.asked.value = asked;
      parts.boundary.value = boundary;
    }
    if (parts?.prompt === field) showKept(parts.prompt);
    this.#finished();
  }

  /** @param {KeyboardEvent} event */
  #pressed(event) {
    const field = /** @type {HTMLInputElement} */ (event.target);
    const row = field.closest("li");
    const steps = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (!row || !steps) return;
    if (event.altKey || field.classList.contains("longlive-grip")) this.#move(row, steps < 0);
    else if (field.classList.contains("longlive-asked")) field.value = lengthen(field.value, steps, this.#block);
    else return;
    event.preventDefault();
    this.#finished();
  }

  /** Leave the undo of typing to the field, and that of finished edits to the host. @param {KeyboardEvent} event */
  #recalled(event) {
    const key = event.key.toLowerCase();
    if (!(event.ctrlKey || event.metaKey) || event.altKey || (key !== "z" && key !== "y")) return;
    const redo = key === "y" || event.shiftKey;
    if (redo ? this.#undone : this.#text !== this.#settled) return;
    event.preventDefault();
    this.#emit(redo ? "redo" : "undo");
  }

  /** Drag a row by its grip. @param {PointerEvent} event */
  #grabbed(event) {
    const grip = /** @type {Element} */ (event.target).closest(".longlive-grip");
    const row = grip?.closest("li");
    if (!grip || !row || event.button !== 0) return;
    const drag = new AbortController();
    const signal = AbortSignal.any([drag.signal, this.#listeners.signal]);
    grip.setPointerCapture(event.pointerId);
    row.classList.add("longlive-dragged");
    grip.addEventListener("pointermove", (move) => {
      const y = /** @type {PointerEvent} */ (move).clientY;
      if (y < middle(row.previousElementSibling, -Infinity)) this.#move(row, false);
      else if (y > middle(row.nextElementSibling, Infinity)) this.#move(row, true);
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

/** Height of an element's middle on the screen. @param {Element | null} element @param {number} otherwise */
function middle(element, otherwise) {
  const box = element?.getBoundingClientRect();
  return box ? box.top + box.height / 2 : otherwise;
}

/**
 * Show a prompt as the script has it, which joins lines that would be read as comments or segments.
 * @param {HTMLTextAreaElement} field
 */
function showKept(field) {
  const row = { asked: "1b", boundary: /** @type {Boundary} */ ("recache"), prompt: field.value, above: [] };
  try {
    const [{ prompt }] = parse(serialize([row]));
    if (prompt !== field.value) field.value = prompt;
  } catch {
    // the prompt is empty; its row says so
  }
}

/** @param {RowElements} parts @returns {Row} */
function read({ asked, boundary, prompt, above }) {
  // a hash would turn the line into a comment, a bar would end the duration
  const duration = asked.value.replace(/[#|]/g, "");
  return { asked: duration, boundary: /** @type {Boundary} */ (boundary.value), prompt: prompt.value, above };
}

/** @template {keyof HTMLElementTagNameMap} Tag @param {Tag} tag @param {object} properties */
function make(tag, properties) {
  const element = document.createElement(tag);
  Object.assign(element, properties);
  return element;
}
