// @ts-check
/** A segment as a row of the page: its fields, what they say, and what is wrong with it. */
import { make } from "./elements.js";
import { convertToSeconds, lengthen, parse, serialize } from "./model.js";

/**
 * @import { Boundary, Row, TimelineError } from "./model.js"
 * @typedef {{blocks: number, boundary: string, blend?: object, prompt: string}} Length a segment as the ruler shows it
 */

const BLEND = "blend";
const RESEED = "seed"; // not a boundary: choosing it fills in another seed
const USUAL_BLEND = "3b";

/** @type {[Boundary | "blend", string, string][]} */
const BOUNDARIES = [
  ["recache", "recache", "Recompute the KV cache under the new prompt; the sink stays. The motion continues."],
  ["renew", "renew: recache, new sink", "Recompute the KV cache under the new prompt; the window's oldest frames become the sink."],
  ["keep", "keep: keep cache", "Leave the KV cache as it is and change only the text. The new prompt is obeyed slowly."],
  ["discard", "cut: discard cache", "Empty the KV cache: a hard cut."],
  [BLEND, "blend: step by step", "Change the prompt step by step over a few blocks, with a recache at each."],
];

/** @type {Row} */
const BARE = { asked: "1b", boundary: "recache", prompt: "-", above: [] };

export class SegmentRow {
  #chosen = ""; // the boundary, or that it blends

  /** @param {Row} row what the script says */
  constructor({ asked, boundary, blend, seed, prompt, above }) {
    this.above = above;
    this.number = make("span", { className: "longlive-number" });
    this.asked = make("input", { className: "longlive-asked", value: asked, spellcheck: false, ariaLabel: "Duration" });
    this.asked.title = "8s, 10b (blocks) or 30f (latent frames); the up and down arrows change it by one block";
    this.snapped = make("span", { className: "longlive-snapped" });
    this.boundary = make("select", { className: "longlive-boundary", ariaLabel: "KV cache where the segment begins" });
    this.boundary.append(...BOUNDARIES.map(([value, textContent]) => make("option", { value, textContent })));
    this.boundary.append(make("hr", {}), make("option", { value: RESEED, textContent: "+ new seed" }));
    this.blend = make("input", { className: "longlive-blend", spellcheck: false, ariaLabel: "Length of the blend" });
    this.blend.title = "3b (blocks) or 2s, perhaps with spherical: the prompt changes in as many steps as it has blocks";
    this.seed = make("input", { className: "longlive-seed", spellcheck: false, ariaLabel: "Seed" });
    this.seed.title = "Seed of the noise from here on; empty: the one before";
    this.#showSwitch({ boundary, blend, seed });
    const change = make("div", { className: "longlive-switch" });
    change.append(this.boundary, this.blend, this.seed);
    this.prompt = make("textarea", { className: "longlive-prompt", value: prompt, rows: 2, ariaLabel: "Prompt" });
    this.prompt.placeholder = "What the video shows";

    const grip = make("button", { className: "longlive-grip", type: "button", ariaLabel: "Move the segment" });
    grip.title = "Drag, or press the up and down arrows; Alt with an arrow moves from any field";
    grip.append(this.number);
    const remove = make("button", { className: "longlive-remove", type: "button", textContent: "×" });
    remove.ariaLabel = remove.title = "Remove the segment";
    this.element = make("li", { className: "longlive-row" });
    this.element.append(grip, this.asked, this.snapped, change, remove, this.prompt);
  }

  /** Read what the fields say. @returns {Row} */
  read() {
    const clean = (/** @type {HTMLInputElement} */ field) => field.value.replace(/[#|]/g, ""); // they would end the head
    const chosen = this.boundary.value === RESEED ? this.#chosen : this.boundary.value;
    const boundary = /** @type {Boundary} */ (chosen === BLEND ? "recache" : chosen);
    return {
      asked: clean(this.asked), boundary, prompt: this.prompt.value, above: this.above,
      ...(chosen === BLEND && { blend: { asked: clean(this.blend) || USUAL_BLEND, curve: "linear" } }),
      ...(this.seed.value.trim() && { seed: clean(this.seed).trim() }),
    };
  }

  /** Show the row's place and snapped length, and mark what is wrong. @param {number} index @param {number} block */
  refresh(index, block) {
    const { blocks, problem } = this.#measure(block);
    const isSilent = !this.prompt.value.trim();
    this.number.textContent = String(index + 1);
    this.snapped.textContent = blocks ? `${convertToSeconds(blocks, block)} s` : "";
    this.snapped.title = blocks ? `${blocks} blocks, ${blocks * block} frames` : "";
    const { boundary, blend, seed, prompt } = this.read();
    const chosen = BOUNDARIES.find(([value]) => value === (blend ? BLEND : boundary));
    this.boundary.title = (chosen?.[2] ?? "")
      + (index ? "" : " On the first segment this applies only if the session already has frames.");
    const [blendIsWrong, seedIsWrong] = [isWrong({ blend }, block), isWrong({ seed }, block)];
    this.blend.ariaInvalid = String(blendIsWrong);
    this.seed.ariaInvalid = String(seedIsWrong);
    this.asked.ariaInvalid = String(Boolean(problem) && !blendIsWrong && !seedIsWrong);
    this.prompt.ariaInvalid = String(isSilent);
    const length = { blocks, boundary, blend, prompt };
    return { length, problem: problem || (isSilent ? "the prompt is empty" : "") };
  }

  /** Show what a field that was left says: "8s cut" sets the boundary. @param {Element} field @param {number} block */
  settle(field, block) {
    if (field === this.prompt) return this.showKeptPrompt();
    if (this.boundary.value === RESEED) {
      this.seed.value = String(Math.floor(Math.random() * 2 ** 32));
      this.boundary.value = this.#chosen;
    }
    const row = this.#measure(block);
    if (field === this.asked) this.asked.value = row.asked;
    this.#showSwitch(row);
  }

  /** Show a boundary, and of the length of a blend and a seed what there is. @param {Pick<Row, "boundary" | "blend" | "seed">} row */
  #showSwitch({ boundary, blend, seed }) {
    this.boundary.value = this.#chosen = blend ? BLEND : boundary;
    this.blend.value = blend ? [blend.asked, ...(blend.curve === "linear" ? [] : [blend.curve])].join(" ") : "";
    this.seed.value = seed ?? "";
    this.blend.hidden = !blend;
    this.seed.hidden = seed === undefined;
  }

  /** Show the prompt as the script has it, which joins lines that would be read as comments or segments. */
  showKeptPrompt() {
    try {
      const [{ prompt }] = parse(serialize([{ ...BARE, prompt: this.prompt.value }]));
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

/** Whether these fields of a row cannot be read. @param {Partial<Row>} fields @param {number} block */
function isWrong(fields, block) {
  try {
    parse(serialize([{ ...BARE, ...fields }]), block);
    return false;
  } catch {
    return true;
  }
}
