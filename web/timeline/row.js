// @ts-check
/** A segment as a row of the page: its fields, what they say, and what is wrong with it. */
import { make } from "./elements.js";
import { convertToSeconds, lengthen, parse, serialize } from "./model.js";

/**
 * @import { Boundary, Row, TimelineError } from "./model.js"
 * @typedef {{blocks: number, boundary: string, prompt: string}} Length a segment as the ruler shows it
 */

/** @type {[Boundary, string, string][]} */
const BOUNDARIES = [
  ["recache", "recache", "Recompute the KV cache under the new prompt; the sink stays. The motion continues."],
  ["renew", "renew: recache, new sink", "Recompute the KV cache under the new prompt; the window's oldest frames become the sink."],
  ["keep", "keep: keep cache", "Leave the KV cache as it is and change only the text. The new prompt is obeyed slowly."],
  ["discard", "cut: discard cache", "Empty the KV cache: a hard cut."],
];

export class SegmentRow {
  /** @param {Row} row what the script says */
  constructor({ asked, boundary, prompt, above }) {
    this.above = above;
    this.number = make("span", { className: "longlive-number" });
    this.asked = make("input", { className: "longlive-asked", value: asked, spellcheck: false, ariaLabel: "Duration" });
    this.asked.title = "8s, 10b (blocks) or 30f (latent frames); the up and down arrows change it by one block";
    this.snapped = make("span", { className: "longlive-snapped" });
    this.boundary = make("select", { className: "longlive-boundary", ariaLabel: "KV cache where the segment begins" });
    this.boundary.append(...BOUNDARIES.map(([value, textContent]) => make("option", { value, textContent })));
    this.boundary.value = boundary;
    this.prompt = make("textarea", { className: "longlive-prompt", value: prompt, rows: 2, ariaLabel: "Prompt" });
    this.prompt.placeholder = "What the video shows";

    const grip = make("button", { className: "longlive-grip", type: "button", ariaLabel: "Move the segment" });
    grip.title = "Drag, or press the up and down arrows; Alt with an arrow moves from any field";
    grip.append(this.number);
    const remove = make("button", { className: "longlive-remove", type: "button", textContent: "×" });
    remove.ariaLabel = remove.title = "Remove the segment";
    this.element = make("li", { className: "longlive-row" });
    this.element.append(grip, this.asked, this.snapped, this.boundary, remove, this.prompt);
  }

  /** Read what the fields say. @returns {Row} */
  read() {
    const duration = this.asked.value.replace(/[#|]/g, ""); // a hash would begin a comment, a bar end the duration
    const boundary = /** @type {Boundary} */ (this.boundary.value);
    return { asked: duration, boundary, prompt: this.prompt.value, above: this.above };
  }

  /** Show the row's place and snapped length, and mark what is wrong. @param {number} index @param {number} block */
  refresh(index, block) {
    const { blocks, problem } = this.#measure(block);
    const isSilent = !this.prompt.value.trim();
    this.number.textContent = String(index + 1);
    this.snapped.textContent = blocks ? `${convertToSeconds(blocks, block)} s` : "";
    this.snapped.title = blocks ? `${blocks} blocks, ${blocks * block} frames` : "";
    this.boundary.title = BOUNDARIES[this.boundary.selectedIndex][2]
      + (index ? "" : " On the first segment this applies only if the session already has frames.");
    this.asked.ariaInvalid = String(Boolean(problem));
    this.prompt.ariaInvalid = String(isSilent);
    const length = { blocks, boundary: this.boundary.value, prompt: this.prompt.value };
    return { length, problem: problem || (isSilent ? "the prompt is empty" : "") };
  }

  /** Show what a field that was left says: "8s cut" sets the boundary. @param {Element} field @param {number} block */
  settle(field, block) {
    if (field === this.asked) {
      const { asked, boundary } = this.#measure(block);
      this.asked.value = asked;
      this.boundary.value = boundary;
    }
    if (field === this.prompt) this.showKeptPrompt();
  }

  /** Show the prompt as the script has it, which joins lines that would be read as comments or segments. */
  showKeptPrompt() {
    try {
      const [{ prompt }] = parse(serialize([{ ...this.read(), asked: "1b", above: [] }]));
      if (prompt !== this.prompt.value) this.prompt.value = prompt;
    } catch {
      // the prompt is empty; the row says so
    }
  }

  /** @param {number} blocks @param {number} block */
  lengthen(blocks, block) {
    this.asked.value = lengthen(this.asked.value, blocks, block);
  }

  /** Read duration and boundary, whatever the prompt; 0 blocks if they cannot be read. @param {number} block */
  #measure(block) {
    const row = this.read();
    try {
      return { ...parse(serialize([{ ...row, prompt: "-", above: [] }]), block)[0], problem: "" };
    } catch (error) {
      return { ...row, blocks: 0, problem: /** @type {TimelineError} */ (error).problem };
    }
  }
}
