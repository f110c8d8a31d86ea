// @ts-check
/**
 * The drift of a film as a small chart: how far each block is from the range of the first seconds, and how much moves.
 * Knows no host. `drift` is what the drift meter gives for a film: its rows, the names of their columns, `fps`.
 */

/**
 * @typedef {{fps: number, columns: string[], rows: any[][], warn: string}} Drift
 * @typedef {object} Block one row, by the names of its columns
 * @property {number} frame
 * @property {number} frames
 * @property {number | null} deviation of a trait, in limits; null soon after a switch
 * @property {string | null} trait
 * @property {number} motion
 * @property {number | null} jump
 * @property {boolean} switch
 * @property {"jump" | "freeze" | "drift" | null} fault
 * @typedef {{x: number, width: number, y: number, height: number, isFault: boolean}} Bar in seconds and shares of a strip
 * @typedef {{drift: Bar[], motion: Bar[], switches: number[], jumps: number[], limit: number, span: number}} DriftLayout
 */

const SVG = "http://www.w3.org/2000/svg";
const TALLEST = 2; // limits: a bar that is higher is cut off
const HEIGHT = 56; // px
const STRIP = 46, GAP = 8; // of 100 parts of the height: a strip, and what is between the two
const MIN_BAR = 0.03; // of a strip, so that a quiet block is seen, too
const SMALLEST_MOTION = 1; // of 255, that may fill the strip
const BAR_GAP = 0.12; // of a block
const USUAL = "var(--longlive-accent, #6fa8dc)", QUIET = "var(--longlive-quiet, var(--descrip-text, #999))";
const FAULT = "var(--longlive-error, var(--error-text, #ff6b6b))", LINE = "var(--longlive-line, var(--border-color, #4e4e4e))";

/** Draw a film's drift into an element, in place of what it shows. The chart is empty without a block. @param {Element} container
 * @param {Partial<Drift> | null | undefined} drift @param {{seconds?: number}} [options] how long the time axis is */
export function drawDrift(container, drift, options = {}) {
  const blocks = readBlocks(drift);
  const { drift: upper, motion, switches, jumps, limit, span } = layDrift(blocks, drift?.fps ?? 1, options.seconds);
  const chart = draw("svg", { viewBox: `0 0 ${span || 1} 100`, preserveAspectRatio: "none", width: "100%", height: HEIGHT, role: "img" });
  chart.style.display = "block";
  chart.setAttribute("aria-label", describeDrift(blocks, drift?.warn));
  for (const [bars, top] of /** @type {[Bar[], number][]} */ ([[upper, 0], [motion, STRIP + GAP]])) {
    chart.append(draw("path", { d: `M0 ${top + STRIP}H${span}`, ...line(LINE) }));
    for (const isFault of [false, true]) {
      const kind = bars.filter((bar) => bar.isFault === isFault);
      if (kind.length) chart.append(draw("path", { d: kind.map((bar) => outline(bar, top)).join(""), fill: isFault ? FAULT : USUAL }));
    }
  }
  chart.append(draw("path", { d: `M0 ${STRIP * (1 - limit)}H${span}`, ...line(QUIET), "stroke-dasharray": "4 3" }));
  for (const [places, color, dashes] of /** @type {[number[], string, string][]} */ ([[switches, QUIET, "1 2"], [jumps, FAULT, "none"]])) {
    if (places.length) chart.append(draw("path", { d: places.map((x) => `M${x} 0V100`).join(""), ...line(color), "stroke-dasharray": dashes }));
  }
  const title = draw("title", {});
  chart.append(title);
  chart.addEventListener("pointermove", (event) => {
    const { left, width } = chart.getBoundingClientRect();
    const block = findBlockAt(blocks, ((event.clientX - left) / width) * span * (drift?.fps ?? 1));
    title.textContent = block ? describeBlock(block, drift?.fps ?? 1) : "";
  });
  const labels = blocks.length ? [label("drift", 0), label("motion", STRIP + GAP)] : [];
  const frame = document.createElement("div");
  frame.style.position = "relative";
  frame.append(chart, ...labels);
  container.replaceChildren(frame);
}

/** Read the rows of a drift as blocks. @param {Partial<Drift> | null | undefined} drift @returns {Block[]} */
export function readBlocks(drift) {
  const columns = drift?.columns ?? [];
  return (drift?.rows ?? []).map((row) => /** @type {Block} */ (Object.fromEntries(columns.map((name, index) => [name, row[index]]))));
}

/** Lay out the bars of each block, in seconds and shares of a strip; y counts from its top. @param {Block[]} blocks @param {number} fps
 * @param {number} [seconds] how long the time axis is @returns {DriftLayout} */
export function layDrift(blocks, fps, seconds) {
  const last = blocks.at(-1);
  const length = last ? (last.frame + last.frames) / fps : 0;
  const span = Math.max(length, seconds ?? 0);
  const most = Math.max(SMALLEST_MOTION, ...blocks.map((block) => block.motion));
  const tallest = Math.max(1, Math.min(TALLEST, Math.max(0, ...blocks.map((block) => Math.abs(block.deviation ?? 0)))));
  const judged = blocks.filter((block) => block.deviation !== null);
  return {
    drift: judged.map((block) => layBar(block, fps, Math.abs(block.deviation ?? 0) / tallest, Math.abs(block.deviation ?? 0) > 1)),
    motion: blocks.map((block) => layBar(block, fps, block.motion / most, block.fault === "freeze")),
    switches: blocks.filter((block) => block.switch).map((block) => block.frame / fps),
    jumps: blocks.filter((block) => block.fault === "jump").map((block) => (block.frame + block.frames / 2) / fps),
    limit: 1 / tallest,
    span,
  };
}

/** Find the block at a pixel frame. @param {Block[]} blocks @param {number} frame */
export function findBlockAt(blocks, frame) {
  return blocks.find((block) => block.frame <= frame && frame < block.frame + block.frames);
}

/** Say the numbers of a block in words. @param {Block} block @param {number} fps */
export function describeBlock(block, fps) {
  const facts = [`${(block.frame / fps).toFixed(2)} s`];
  if (block.switch) facts.push("the prompt changes");
  if (block.deviation === null) facts.push("not judged so soon after a switch");
  else if (block.trait && Math.abs(block.deviation) >= 0.005) facts.push(`${block.trait} at ${signed(block.deviation)} of its limit`);
  else facts.push("in the range of the first seconds");
  facts.push(`motion ${block.motion.toFixed(1)} of 255`);
  if (block.jump !== null) facts.push(`longest step ${block.jump.toFixed(1)} times the usual`);
  if (block.fault) facts.push(block.fault);
  return facts.join(", ");
}

/** @param {Block[]} blocks @param {string} [warn] */
function describeDrift(blocks, warn) {
  if (!blocks.length) return "Drift: nothing is measured yet";
  return `Drift of ${blocks.length} blocks: ${warn || "all is in the range of the first seconds"}`;
}

/** @param {Block} block @param {number} fps @param {number} share of the strip @param {boolean} isFault @returns {Bar} */
function layBar({ frame, frames }, fps, share, isFault) {
  const height = Math.min(1, Math.max(MIN_BAR, share));
  return { x: frame / fps, width: (frames * (1 - BAR_GAP)) / fps, y: 1 - height, height, isFault };
}

/** @param {Bar} bar @param {number} top of its strip, in 100 parts of the height */
function outline(bar, top) {
  return `M${bar.x.toFixed(3)} ${(top + STRIP * bar.y).toFixed(2)}h${bar.width.toFixed(3)}v${(STRIP * bar.height).toFixed(2)}h${(-bar.width).toFixed(3)}z`;
}

/** Name a strip in its upper corner. @param {string} name @param {number} top of the strip, in 100 parts of the height */
function label(name, top) {
  const element = document.createElement("span");
  element.textContent = name;
  Object.assign(element.style, { position: "absolute", left: "2px", top: `${top}%`, font: "9px/1 system-ui, sans-serif", color: QUIET, pointerEvents: "none" });
  return element;
}

/** @param {string} color */
const line = (color) => ({ stroke: color, fill: "none", "stroke-width": 1, "vector-effect": "non-scaling-stroke" });

/** @param {number} value */
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

/** @template {keyof SVGElementTagNameMap} Tag @param {Tag} tag @param {Record<string, string | number>} attributes */
function draw(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  return element;
}
