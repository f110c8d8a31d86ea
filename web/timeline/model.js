// @ts-check
/**
 * The timeline script as plain data, by the rules of `longlive/session/timeline.py`; shared tests compare the two.
 * Knows no DOM. A *frame* is a latent frame; seconds snap to whole blocks, blocks and frames must fit.
 *
 * @typedef {"recache" | "renew" | "keep" | "discard"} Boundary what happens to the KV cache where a segment begins
 *
 * @typedef {"linear" | "spherical"} Curve the way between two prompts
 * @typedef {{asked: string, curve: Curve}} Blend a prompt that changes step by step: over which length, as written
 *
 * @typedef {object} Row what the script says of a segment, as written
 * @property {string} asked the duration
 * @property {Boundary} boundary recache for a blend
 * @property {Blend} [blend]
 * @property {string} [seed] of the noise from here on, in digits: it may be larger than a number is exact
 * @property {string} prompt with a line break wherever the script continues it on an indented line
 * @property {string[]} above comments and blank lines before it
 * @property {string[]} [below] those after it, at the end of the script
 *
 * @typedef {{text: string, start: number, end: number}} Word of a line
 * @typedef {(problem: string, index: number) => TimelineError} Refusal from a problem and its index in a line
 * @typedef {Blend & {blocks: number}} MeasuredBlend
 * @typedef {Row & {blocks: number, line: number, blend?: MeasuredBlend}} Segment
 */

export const FPS = 16; // pixel frames a second
const PIXEL_FRAMES_PER_FRAME = 4;
const MAX_SECONDS = 24 * 60 * 60; // of one segment
const MAX_SEED = 2n ** 64n - 1n;
const MAX_CHARACTERS = 200_000; // of a script; hours of video have fewer

/** @type {Record<Boundary, string>} */
const WORDS = { recache: "", renew: "renew", keep: "keep", discard: "cut" };
const BOUNDARIES = new Map(/** @type {Boundary[]} */ (Object.keys(WORDS)).map((name) => [WORDS[name], name]));
BOUNDARIES.set("recache", "recache"); // what no word means
/** @type {Curve[]} */
const CURVES = ["linear", "spherical"];
const BLEND = "blend";
const SEED = "seed";
const NOT_UNITS = new Set([...BOUNDARIES.keys(), BLEND, SEED, ...CURVES]); // words that follow a unit; no word at all, too
const UNITS = new Map(["seconds", "blocks", "frames"].flatMap((name) =>
  [name[0], name.slice(0, -1), name].map((unit) => [unit, name[0]])));

const SPACE = " \t\u00a0\u3000"; // with the no-break and the ideographic space of pasted text
const LOOKALIKES = "｜│¦"; // bars that are not the plain one
const SHOWN = 40; // characters of a word that a message repeats
// No two adjacent parts of these may match the same text: their time then grows with the text, not with its square.
const NUMBER = /^[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)/;
const DIGITS = /^0*([0-9]{1,20})$/; // of a seed
const WORD = new RegExp(`[^${SPACE}]+`, "g");
const UNIT = `(?:${[...UNITS.keys()].join("|")})`;
const LENGTH = `${NUMBER.source.slice(1)}[${SPACE}]*${UNIT}`;
const SWITCH = `(?:[${SPACE}]+(?:${BLEND}[${SPACE}]+${LENGTH}(?:[${SPACE}]+[a-z]+)?|[a-z]+))?`;
const RESEED = `(?:[${SPACE}]+${SEED}[${SPACE}]+[0-9]+)?`;
const HEAD = new RegExp(`^${LENGTH}${SWITCH}${RESEED}[${SPACE}]*[|${LOOKALIKES}]`, "i");

/** A script that does not parse; line and column count from 1, columns in code points. */
export class TimelineError extends Error {
  /** @param {string} problem @param {number} line @param {number} column */
  constructor(problem, line, column) {
    super(`line ${line}, column ${column}: ${problem}`);
    this.name = "TimelineError";
    this.problem = problem;
    this.line = line;
    this.column = column;
  }
}

/** Read a script for blocks of `block` frames. @param {string} text @returns {Segment[]} */
export function parse(text, block = 3) {
  const characters = count(text);
  if (characters > MAX_CHARACTERS) {
    const cure = `${MAX_CHARACTERS} at most are read, so use several timelines`;
    throw new TimelineError(`the script has ${characters} characters; ${cure}`, 1, 1);
  }
  /** @type {Segment[]} */ const segments = [];
  /** @type {number[]} */ const columns = []; // where each prompt begins
  /** @type {string[]} */ let above = [];
  text.replace(/^\ufeff/, "").split(/\r\n|\r|\n/).forEach((line, index) => {
    const content = strip(line);
    if (!content || content.startsWith("#")) {
      above.push(line);
    } else if (!SPACE.includes(line[0])) {
      const { column, ...segment } = parseSegment(line, index + 1, block);
      segments.push({ ...segment, above });
      columns.push(column);
      above = [];
    } else if (segments.length && !HEAD.test(content)) {
      const segment = /** @type {Segment} */ (segments.at(-1));
      segment.prompt += segment.prompt ? `\n${content}` : content;
    } else {
      const problem = "an indented line continues the prompt above; to begin a segment, start at the margin";
      throw new TimelineError(problem, index + 1, findColumn(line, line.indexOf(content)));
    }
  });
  if (above.at(-1) === "") above.pop(); // the last line ended, no line was left blank
  if (segments.length && above.length) segments[segments.length - 1].below = above;
  if (!segments.length) {
    throw new TimelineError("the script is empty; write for example: 8s | a paper boat in the rain", 1, 1);
  }
  const mute = segments.findIndex((segment) => !segment.prompt);
  if (mute >= 0) {
    const problem = "the prompt is empty; write it after the |";
    throw new TimelineError(problem, segments[mute].line, columns[mute]);
  }
  return segments;
}

/** Write `rows` as a script, comments included; `parse` reads them back. @param {Row[]} rows */
export function serialize(rows) {
  return rows.map(({ above, asked, boundary, blend, seed, prompt, below = [] }) => {
    const curve = blend && blend.curve !== "linear" ? ` ${blend.curve}` : "";
    const words = blend ? `${BLEND} ${strip(blend.asked)}${curve}` : WORDS[boundary];
    const head = [strip(asked), words, seed === undefined ? "" : `${SEED} ${seed}`].filter(Boolean).join(" ");
    return [...above, strip(`${head} | ${indent(prompt)}`), ...below].join("\n") + "\n";
  }).join("");
}

/** Count the lengths of a video made of `segments`. @param {{blocks: number}[]} segments @param {number} [block] */
export function addLengths(segments, block = 3) {
  const blocks = segments.reduce((sum, segment) => sum + segment.blocks, 0);
  const frames = blocks * block;
  const pixelFrames = Math.max(0, PIXEL_FRAMES_PER_FRAME * (frames - 1) + 1);
  return { blocks, frames, pixelFrames, seconds: convertToSeconds(blocks, block) };
}

/** Seconds that `blocks` blocks add to a video in progress. @param {number} blocks @param {number} [block] */
export function convertToSeconds(blocks, block = 3) {
  return (blocks * block * PIXEL_FRAMES_PER_FRAME) / FPS;
}

/**
 * Lengthen a duration by `blocks` blocks, in its unit and to at least one block; unchanged if it cannot be read.
 * @param {string} asked @param {number} blocks @param {number} [block]
 */
export function lengthen(asked, blocks, block = 3) {
  try {
    const [segment] = parse(`${strip(asked)} | -`, block);
    const count = Math.max(1, segment.blocks + blocks);
    const unit = strip(segment.asked.replace(NUMBER, "")).toLowerCase()[0];
    return { s: `${convertToSeconds(count, block)}s`, b: `${count}b`, f: `${count * block}f` }[unit] ?? asked;
  } catch {
    return asked;
  }
}

/** Indent the further lines of a prompt, unless they would be read as something else. */
function indent(/** @type {string} */ prompt) {
  return prompt.split(/\r\n|\r|\n/).map(strip).filter(Boolean)
    .reduce((text, line) => text + (line.startsWith("#") || HEAD.test(line) ? " " : "\n    ") + line, "")
    .replace(/^\n? +/, "");
}

/**
 * Read a segment from the line it begins on, and the column of its prompt.
 * @param {string} line @param {number} number @param {number} block
 */
function parseSegment(line, number, block) {
  /** @type {Refusal} */
  const error = (problem, index) => new TimelineError(problem, number, findColumn(line, index));

  const bar = line.indexOf("|");
  const head = bar < 0 ? line : line.slice(0, bar);
  const lookalike = head.search(new RegExp(`[${LOOKALIKES}]`));
  if (lookalike >= 0) throw error(`'${head[lookalike]}' only looks like a bar; use the plain |`, lookalike);

  const value = head.match(NUMBER)?.[0];
  if (value === undefined) {
    const choices = "8s (seconds), 10b (blocks) or 30f (frames)";
    const problem = `a segment begins with its duration: ${choices}, as in 8s | a prompt`;
    throw error(bar < 0 ? `${problem}; to continue the prompt above, indent the line` : problem, 0);
  }
  const unit = findUnit(head, value, 0, "duration", error);
  let words = findWords(head, unit.end);
  const word = lowerAscii(words[0]?.text ?? "");
  const known = BOUNDARIES.get(word);
  if (bar < 0) {
    const behind = word && known ? words[0] : unit;
    throw error("a bar is missing between duration and prompt, as in 8s | a prompt", behind.end);
  }
  /** @type {MeasuredBlend | undefined} */ let blend;
  /** @type {string | undefined} */ let seed;
  if (word === BLEND) {
    [blend, words] = parseBlend(head, words, block, error);
  } else if (known) {
    words = words.slice(1);
  } else if (word !== SEED) {
    const near = findNearest(word);
    const cure = near ? `did you mean ${near}?` : "use renew, keep, cut or blend, or no word to recache";
    throw error(`unknown boundary '${shorten(words[0].text)}'; ${cure}`, words[0].start);
  }
  if (lowerAscii(words[0]?.text ?? "") === SEED) {
    seed = parseSeed(words, error);
    words = words.slice(2);
  }
  if (words.length) throw error(`'${shorten(words[0].text)}' is one word too many before the bar`, words[0].start);

  const blocks = readDuration(value, unit.name, block);
  if (typeof blocks === "string") throw error(blocks, 0);
  const asked = head.slice(0, unit.end);
  return {
    prompt: strip(line.slice(bar + 1)), blocks, boundary: known ?? "recache", line: number, asked,
    ...(blend && { blend }), ...(seed !== undefined && { seed }), column: findColumn(line, bar + 1),
  };
}

/**
 * Find the words of a line from `from` on.
 * @param {string} head @param {number} from @returns {Word[]}
 */
function findWords(head, from) {
  return [...head.slice(from).matchAll(WORD)].map((match) => {
    const start = from + match.index;
    return { text: match[0], start, end: start + match[0].length };
  });
}

/**
 * Find the unit behind the number `value`, which begins at `start`; `what` is what the number measures.
 * @param {string} head @param {string} value @param {number} start @param {string} what @param {Refusal} error
 * @returns {{name: string, end: number}}
 */
function findUnit(head, value, start, what, error) {
  const behind = start + value.length;
  const [word] = findWords(head, behind);
  const unit = lowerAscii(word?.text ?? "");
  if (NOT_UNITS.has(unit)) { // also the empty word
    const written = shorten(value);
    const choices = `${written}s (seconds), ${written}b (blocks) or ${written}f (frames)`;
    throw error(`the ${what} has no unit; write ${choices}`, behind);
  }
  const name = UNITS.get(unit);
  if (!name) throw error(`unknown unit '${shorten(word.text)}'; use s (seconds), b (blocks) or f (frames)`, word.start);
  return { name, end: word.end };
}

/**
 * Read `blend LENGTH [CURVE]`: the blend, and the words behind it.
 * @param {string} head @param {Word[]} words @param {number} block @param {Refusal} error
 * @returns {[MeasuredBlend, Word[]]}
 */
function parseBlend(head, words, block, error) {
  const value = words[1]?.text.match(NUMBER)?.[0];
  if (value === undefined) throw error("a blend needs its length, as in 8s blend 3b | a prompt", words[0].end);
  const { start } = words[1];
  const unit = findUnit(head, value, start, "blend", error);
  const blocks = readDuration(value, unit.name, block, "blend");
  if (typeof blocks === "string") throw error(blocks, start);
  const rest = findWords(head, unit.end);
  const curve = CURVES.find((name) => name === lowerAscii(rest[0]?.text ?? ""));
  return [{ asked: head.slice(start, unit.end), blocks, curve: curve ?? "linear" }, curve ? rest.slice(1) : rest];
}

/** Read `seed NUMBER`. @param {Word[]} words @param {Refusal} error */
function parseSeed(words, error) {
  const digits = words[1]?.text.match(DIGITS)?.[1];
  if (digits === undefined || BigInt(digits) > MAX_SEED) {
    const place = words[1]?.start ?? words[0].end;
    throw error(`a seed is a whole number from 0 to ${MAX_SEED}, as in 8s seed 7 | a prompt`, place);
  }
  return String(BigInt(digits));
}

/**
 * Read the duration of a segment, or of what else `kind` names, in blocks, or say what is wrong with it.
 * @param {string} written @param {string} unit @param {number} block @returns {number | string}
 */
function readDuration(written, unit, block, kind = "segment") {
  const value = Number(written);
  if (unit === "s" && value <= 0) return `the duration is ${shorten(written)} s; use more than 0 seconds`;
  const step = unit === "f" ? block : 1;
  const seconds = unit === "s" ? value : convertToSeconds(value / step, block);
  if (seconds > MAX_SECONDS) {
    return `the duration is ${shorten(written)}${unit}; one ${kind} may last ${MAX_SECONDS} s (a day) at most`;
  }
  if (unit === "s") return Math.max(1, Math.floor((FPS * value) / (PIXEL_FRAMES_PER_FRAME * block) + 0.5));
  if (value > 0 && value % step === 0) return value / step;
  const low = Math.floor(Math.max(0, value) / step) * step;
  const fitting = [low, low + step].filter(Boolean).map((number) => number + unit).join(" or ");
  const goal = unit === "f" ? `blocks of ${block} frames` : "whole blocks";
  return `a ${kind} of ${shorten(written)}${unit} does not fill ${goal}; use ${fitting}`;
}

/** Find the boundary of about this length that has all letters but one in common. @param {string} word */
function findNearest(word) {
  const misses = (/** @type {string} */ known) => [...new Set(known)].filter((letter) => !word.includes(letter)).length;
  const length = count(word);
  return ["renew", "keep", "cut", "blend", "recache"].find((known) => Math.abs(known.length - length) <= 2 && misses(known) <= 1);
}

/** Lower ASCII text; leave other text unchanged: JavaScript and Python differ there. @param {string} word */
function lowerAscii(word) {
  return /[^\x00-\x7f]/.test(word) ? word : word.toLowerCase();
}

/** Shorten a text for a message. @param {string} text */
function shorten(text) {
  const beginning = [...text.slice(0, 2 * SHOWN + 2)]; // a code point has two units at most
  return beginning.length <= SHOWN ? text : `${beginning.slice(0, SHOWN).join("")}...`;
}

/** Remove the spaces at both ends; a regular expression would try at each space inside. @param {string} text */
function strip(text) {
  let [start, end] = [0, text.length];
  while (start < end && SPACE.includes(text[start])) start += 1;
  while (end > start && SPACE.includes(text[end - 1])) end -= 1;
  return text.slice(start, end);
}

/** Count code points, as Python does. @param {string} text */
function count(text) {
  let number = 0;
  for (const _ of text) number += 1;
  return number;
}

/** @param {string} line @param {number} index */
function findColumn(line, index) {
  return count(line.slice(0, index)) + 1;
}
