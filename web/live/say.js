// @ts-check
/**
 * The form that says the next prompt: its field, when it begins, how it begins.
 * Emits `say` with the message in `detail`, `typed` when typing pauses, `problem` with a sentence in `detail`.
 */
import { make } from "../timeline/elements.js";
import { checkPrompt, composeSay, readTime, writeTime } from "./model.js";

/** @import { Boundary } from "./model.js" */

const PAUSE = 600; // ms without a key after which typing has paused
const BLEND = { value: "3", min: "1", max: "40" }; // blocks

/** @type {[Boundary, string, string][]} */
const BOUNDARIES = [
  ["recache", "recache", "The motion continues and the new prompt is obeyed."],
  ["renew", "renew", "As recache, and the oldest frames of the window become the sink, because the scene has moved on."],
  ["keep", "keep", "The motion continues; the new prompt is obeyed slowly."],
  ["cut", "cut", "A hard cut: nothing of the scene before is remembered."],
  ["blend", "blend", "The old prompt turns into the new one, block by block."],
];

export class SayForm extends EventTarget {
  #timer = 0;
  #last = ""; // the prompt that was sent last

  constructor() {
    super();
    this.field = make("textarea", { className: "longlive-live-prompt", rows: 2, ariaLabel: "Next prompt" });
    this.field.placeholder = "What the video shows next";
    this.field.title = "Enter sends, Shift+Enter begins a line, the up arrow brings back the prompt sent last";
    this.submit = make("button", { className: "longlive-live-send", type: "submit", textContent: "Send", title: "Enter" });
    this.when = choose("When the prompt begins", [["now", "now"], ["later", "at"]]);
    this.when.title = "Now is the next block; or choose a time on the ruler, behind the end of the film.";
    this.time = make("input", { className: "longlive-live-time", value: "0:08", ariaLabel: "Time in the film", hidden: true });
    this.time.title = "Minutes and seconds of the film";
    this.boundary = choose("How the prompt begins", BOUNDARIES.map(([value, label]) => [value, label]));
    this.blend = make("input", { className: "longlive-live-blend", type: "number", ...BLEND, ariaLabel: "Blocks of the blend" });
    this.over = make("label", { className: "longlive-live-over", hidden: true });
    this.over.append("over", this.blend, "blocks");
    const choices = make("div", { className: "longlive-live-choices" });
    choices.append(this.when, this.time, this.boundary, this.over);
    const line = make("div", { className: "longlive-live-line" });
    line.append(this.field, this.submit);
    this.element = make("form", { className: "longlive-live-say", ariaLabel: "Next prompt", noValidate: true });
    this.element.append(line, choices);
    this.element.addEventListener("submit", (event) => (event.preventDefault(), this.send()));
    this.element.addEventListener("change", () => this.#refresh());
    this.field.addEventListener("input", () => this.#wait());
    this.field.addEventListener("keydown", (event) => {
      if (event.key === "ArrowUp" && !this.field.value) this.field.value = this.#last;
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      this.send();
    });
    this.#refresh();
  }

  dispose() {
    clearTimeout(this.#timer);
  }

  /** The prompt that is typed but not sent. */
  get prompt() {
    return this.field.value;
  }

  /** Choose a time for the next prompt. @param {number} seconds */
  plan(seconds) {
    this.when.value = "later";
    this.time.value = writeTime(seconds, 1);
    this.#refresh();
    this.field.focus();
  }

  #refresh() {
    this.time.hidden = this.when.value === "now";
    this.over.hidden = this.boundary.value !== "blend";
    this.boundary.title = BOUNDARIES[this.boundary.selectedIndex][2];
    this.time.ariaInvalid = String(!this.time.hidden && readTime(this.time.value) === null);
  }

  #wait() {
    clearTimeout(this.#timer);
    this.#timer = window.setTimeout(() => this.dispatchEvent(new Event("typed")), PAUSE);
  }

  /** Send what is typed. */
  send() {
    const at = this.when.value === "now" ? null : readTime(this.time.value);
    const blend = Math.min(Number(BLEND.max), Math.max(1, Math.round(Number(this.blend.value)) || 1));
    const boundary = /** @type {Boundary} */ (this.boundary.value);
    const message = composeSay({ prompt: this.field.value, boundary, blend, at });
    const late = at === null && this.when.value !== "now" ? "Write the time as minutes and seconds, for example 0:08." : "";
    const problem = checkPrompt(message.prompt) || late;
    if (problem) {
      this.dispatchEvent(new CustomEvent("problem", { detail: problem }));
      return;
    }
    clearTimeout(this.#timer);
    this.#last = this.field.value;
    this.field.value = "";
    this.when.value = "now";
    this.#refresh();
    this.dispatchEvent(new CustomEvent("say", { detail: message }));
  }
}

/** Make a list to choose from. @param {string} ariaLabel @param {string[][]} options */
function choose(ariaLabel, options) {
  const list = make("select", { ariaLabel });
  list.append(...options.map(([value, textContent]) => make("option", { value, textContent })));
  return list;
}
