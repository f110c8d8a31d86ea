// @ts-check
/**
 * A directed run as its page knows it: what the host says of it, where things stand on the ruler, what is sent.
 * Knows no DOM. Seconds are of the film. A block is named by its number, from 0.
 *
 * @import { Drift } from "../film/chart.js"
 * @typedef {"recache" | "renew" | "keep" | "cut" | "blend"} Boundary
 * @typedef {"waiting" | "making" | "paused" | "ahead" | "parked" | "stopped" | "complete" | "interrupted" | "failed"} Status
 * @typedef {{number: number, count: number, firstFrame: number, numFrames: number}} Piece one block of the film
 * @typedef {{block: number, boundary: string, text: string, seed: number | null, blend: number}} Switch
 * @typedef {{block: number, text: string, boundary: string, seed: number | null, blend: number | null, curve: string}} Waiting
 *   a prompt that was sent and has not begun
 *
 * @typedef {object} State
 * @property {string} take
 * @property {Status} status
 * @property {string} sentence for the user
 * @property {number} version it grows with every change
 * @property {number} fps
 * @property {number} blockSeconds of a block to come
 * @property {Piece[]} pieces
 * @property {number} begins the first block that can be rewound to
 * @property {Switch[]} switches
 * @property {number[]} cheap blocks that are quick to rewind to
 * @property {Waiting[]} waiting
 * @property {string} script what was directed so far
 * @property {string} beginsWith the script that the run began with
 * @property {number} scriptEnd the block after that script
 * @property {number | null} delay seconds from the last send to its first decoded frame
 * @property {Partial<Drift>} drift what the drift meter says of each block
 *
 * @typedef {{start: number, end: number, blend: number, title: string, text: string, boundary: string}} Bar in seconds
 * @typedef {{span: number, length: number, bars: Bar[], ticks: number[], cheap: {block: number, seconds: number}[],
 *   waiting: {seconds: number, text: string}[]}} Ruler in seconds
 * @typedef {{main: "direct" | "pause" | "resume", label: string, canBegin: boolean, canRewind: boolean,
 *   canReseed: boolean, canStop: boolean}} Actions
 */

export const MAX_PROMPT = 4000; // characters
const SPANS = [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]; // seconds; the ruler grows in steps
const MAX_TICKS = 120; // blocks beyond which ticks are only noise
const RUNNING = ["waiting", "making", "paused", "ahead"];

/** @type {Record<string, string>} */
const WORDS = {
  recache: "recache", renew: "recache with a new sink", keep: "keep cache", cut: "cut", blend: "blend",
  seed: "new seed",
};
/** @type {Record<string, [string, string, string]>} for each status its tone, its word, a sentence where the host has none */
const STATUSES = {
  waiting: ["wait", "waits", "The film begins with your first prompt."],
  making: ["live", "live", "Send the next prompt at any time."],
  ahead: ["live", "live", "Send the next prompt at any time."],
  paused: ["rest", "paused", "Paused. After half a minute the host is free for other work; the film stays."],
  parked: ["rest", "parked", "Parked: the host is free for other work. Go on continues the film."],
  stopped: ["rest", "stopped", "The film is done, and saved in the host's output folder. Go on continues it."],
  complete: ["rest", "complete", "The film has reached its longest length."],
  interrupted: ["bad", "interrupted", "The host interrupted the film. Go on continues it."],
  failed: ["bad", "failed", "The film ended with an error."],
};

/** Write 16 random bytes as the name of a take. @param {Uint8Array} bytes */
export function writeTake(bytes) {
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Read what the host says of a run. @param {any} answer @returns {State} */
export function readState(answer) {
  const { take, status = "interrupted", sentence = "", version = 0, fps = 16, begins = 0 } = answer; // none if it was killed early
  const { block_seconds: blockSeconds = 0.75, script = "", delay = null, drift = {} } = answer;
  const pieces = (answer.pieces ?? []).map((/** @type {number[]} */ [number, count, firstFrame, numFrames]) =>
    ({ number, count, firstFrame, numFrames }));
  const switches = (answer.switches ?? []).map((/** @type {any} */ { block, boundary, text, seed, blend }) =>
    ({ block, boundary, text, seed: seed ?? null, blend: blend ?? 0 }));
  const known = { take, status, sentence, version, fps, begins, blockSeconds, script, delay, drift };
  const { waiting = [], begins_with: beginsWith = "", script_end: scriptEnd = 0 } = answer;
  return { ...known, pieces, switches, cheap: answer.cheap ?? [], waiting, beginsWith, scriptEnd };
}

/** Whether the run takes messages. @param {State | null} state */
export function isRunning(state) {
  return state !== null && RUNNING.includes(state.status);
}

/** Seconds of the film so far. @param {State | null} state */
export function measureLength(state) {
  const last = state?.pieces.at(-1);
  return state && last ? (last.firstFrame + last.numFrames) / state.fps : 0;
}

/** Seconds at which a block begins, also one that is not made yet. @param {State} state @param {number} block */
export function locateBlock(state, block) {
  const piece = state.pieces[block];
  if (piece) return piece.firstFrame / state.fps;
  return measureLength(state) + (block - state.pieces.length) * state.blockSeconds;
}

/** Find the block at a time, or null behind the end of the film. @param {State | null} state @param {number} seconds */
export function findBlock(state, seconds) {
  if (!state || seconds >= measureLength(state)) return null;
  const frame = Math.max(0, seconds) * state.fps;
  const block = state.pieces.findLastIndex((piece) => piece.firstFrame <= frame + 1e-6);
  return Math.max(block, state.begins);
}

/** Find the nearest place that is quick to rewind to, if one is near enough. @param {Ruler} ruler @param {number} seconds */
export function findCheap(ruler, seconds) {
  const reach = ruler.span / 60;
  const near = ruler.cheap.filter((mark) => Math.abs(mark.seconds - seconds) <= reach);
  near.sort((one, other) => Math.abs(one.seconds - seconds) - Math.abs(other.seconds - seconds));
  return near[0]?.block ?? null;
}

/** Lay out the ruler: a bar a prompt, a tick a block. @param {State | null} state @returns {Ruler} */
export function layRuler(state) {
  if (!state) return { span: SPANS[0], length: 0, bars: [], ticks: [], cheap: [], waiting: [] };
  const length = measureLength(state);
  const locate = (/** @type {number} */ block) => locateBlock(state, block);
  const waiting = state.waiting.map(({ text, block }) => ({ text, seconds: Math.max(locate(block), length) }));
  const needed = Math.max(length, ...waiting.map(({ seconds }) => seconds)) * 1.04;
  const shown = state.switches.filter(({ block }) => block < state.pieces.length);
  return {
    span: SPANS.find((span) => span >= needed) ?? needed,
    length,
    bars: shown.map((each, index) => {
      const [start, end] = [locate(each.block), index + 1 < shown.length ? locate(shown[index + 1].block) : length];
      const blend = Math.min(end, locate(each.block + each.blend)) - start;
      const boundary = index && each.text === shown[index - 1].text && each.boundary === "keep" ? "seed" : each.boundary;
      return { start, end, blend, title: describeSwitch({ ...each, boundary }, start, end), text: each.text, boundary };
    }),
    ticks: state.pieces.length > MAX_TICKS ? [] : state.pieces.slice(1).map(({ firstFrame }) => firstFrame / state.fps),
    cheap: state.cheap.filter((block) => block < state.pieces.length).map((block) => ({ block, seconds: locate(block) })),
    waiting,
  };
}

/** Say what the user can do. @param {State | null} state @param {{script: string, chosen: number | null, isQueued: boolean}} page */
export function listActions(state, { script, chosen, isQueued }) {
  const isLive = isRunning(state);
  const isPaused = isLive && state?.status === "paused";
  /** @type {Actions["main"]} */
  const main = !isLive ? "direct" : isPaused ? "resume" : "pause";
  const label = { direct: state && script.trim() ? "Go on" : "Direct", pause: "Pause", resume: "Go on" }[main];
  const hasFilm = measureLength(state) > 0;
  return { main, label, canBegin: !isQueued, canRewind: isLive && chosen !== null, canReseed: isLive && hasFilm, canStop: isLive };
}

/** Join a prompt to one line, as the host does. @param {string} text */
export function joinLines(text) {
  return text.split(/\s+/).filter(Boolean).join(" ");
}

/** Find what is wrong with a prompt, or "". @param {string} prompt */
export function checkPrompt(prompt) {
  const length = [...prompt].length;
  if (!length) return "Write what the video shows next, then send it.";
  if (length > MAX_PROMPT) return `The prompt has ${length} characters; ${MAX_PROMPT} at most can be sent.`;
  return "";
}

/**
 * Compose the message that says a prompt.
 * @param {{prompt: string, boundary: Boundary, blend: number, at: number | null}} choice blend in blocks, `at` in seconds
 */
export function composeSay({ prompt, boundary, blend, at }) {
  return {
    do: "say",
    prompt: joinLines(prompt),
    boundary,
    ...(boundary === "blend" ? { blend } : {}),
    ...(at === null ? {} : { at }),
  };
}

/** Write again what was planned for later than a run's script. @param {State} state @returns {object[]} messages */
export function planAgain(state) {
  const end = Math.max(state.pieces.length, state.scriptEnd);
  return state.waiting.filter(({ block }) => block >= end).map(({ block, text, boundary, seed, blend, curve }) => ({
    do: "say", prompt: text, boundary, at: block * state.blockSeconds,
    ...(boundary === "blend" ? { blend, curve } : {}),
    ...(seed === null ? {} : { seed }),
  }));
}

/** Say how the run stands. @param {State | null} state @param {boolean} isQueued */
export function describeStatus(state, isQueued) {
  if (isQueued) return { tone: "wait", word: "starts", sentence: "The film begins when its models are loaded, and what was asked before is done." };
  if (!state) return { tone: "rest", word: "", sentence: "Press Direct, or write a prompt and send it: the film grows while you watch." };
  const [tone, word, sentence] = STATUSES[state.status];
  return { tone, word, sentence: state.sentence || sentence };
}

/** Write seconds as minutes and seconds. @param {number} seconds @param {number} [digits] behind the point */
export function writeTime(seconds, digits = 0) {
  const unit = 10 ** digits;
  const whole = Math.max(0, digits ? Math.round(seconds * unit) / unit : Math.floor(seconds));
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const rest = (whole % 60).toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

/** Read minutes and seconds, or plain seconds; null if it is neither. @param {string} text */
export function readTime(text) {
  const match = text.trim().match(/^(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?)\s*s?$/i);
  if (!match) return null;
  const [hours, minutes, seconds] = match.slice(1).map((part) => Number(part ?? 0));
  return hours * 3600 + minutes * 60 + seconds;
}

/** Measures how long it takes from a send to the first frame of its block on the screen. */
export class DelayMeter {
  /** @type {{text: string, since: number, blocks: number, block: number | null} | null} */
  #sent = null;

  /** Begin to measure. @param {string} text @param {number} now in seconds @param {State | null} state */
  send(text, now, state) {
    this.#sent = { text, since: now, blocks: state?.pieces.length ?? 0, block: null };
  }

  /** Look for the block where the prompt begins. @param {State} state */
  see(state) {
    const sent = this.#sent;
    if (!sent) return;
    const begun = state.switches.findLast(({ text, block }) => text === sent.text && block >= sent.blocks);
    sent.block = begun?.block ?? null;
  }

  /** Seconds since the send if this block is the first under the prompt. @param {number} block @param {number} now */
  show(block, now) {
    if (!this.#sent || this.#sent.block === null || block < this.#sent.block) return null;
    const seconds = now - this.#sent.since;
    this.#sent = null;
    return seconds;
  }
}

/** @param {Switch} each @param {number} start @param {number} end in seconds */
function describeSwitch({ boundary, text, seed, blend, block }, start, end) {
  const how = block === 0 ? "" : ` · ${WORDS[boundary] ?? boundary}${blend ? ` over ${blend} blocks` : ""}`;
  return `${writeTime(start, 1)}–${writeTime(end, 1)}${how}${seed === null ? "" : ` · seed ${seed}`}\n${text}`;
}
