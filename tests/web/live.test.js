// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  checkPrompt, composeSay, DelayMeter, describeStatus, findBlock, findCheap, isRunning, layRuler, listActions, locateBlock,
  measureLength, planAgain, readState, readTime, writeTake, writeTime,
} from "../../web/live/model.js";
import { LiveRun } from "../../web/live/run.js";

const TAKE = "0123456789abcdef".repeat(2);
const RED = { block: 0, text: "a red ring", boundary: "recache", seed: null, blend: null, curve: "linear" };
const BLUE = { block: 3, text: "a blue ring", boundary: "blend", seed: null, blend: 2, curve: "linear" };
const GREEN = { block: 6, text: "a green ring", boundary: "cut", seed: 7, blend: null, curve: "linear" };

/** What the host answers of a film of nine pixel frames, then twelve a block. */
function answer(/** @type {object} */ changes = {}, blocks = 8) {
  const pieces = Array.from({ length: blocks }, (_, n) => [n, n + 1, n ? 12 * n - 3 : 0, n ? 12 : 9]);
  const film = { fps: 16, codec: "avc1.64000a", size: [64, 64], pieces };
  const run = { take: TAKE, version: 1, status: "making", sentence: "", blocks, begins: 0, script: "", delay: null, drift: {} };
  return { ...run, ...film, switches: [RED, BLUE, GREEN].filter(({ block }) => block < blocks), waiting: [], cheap: [0, 7], ...changes };
}

const read = (/** @type {any[]} */ ...of) => readState(answer(...of));
const PAGE = { script: "", chosen: null, isQueued: false };

test("a take is 128 bits in hex digits, zeros included", () => {
  const bytes = Uint8Array.from({ length: 16 }, (_, n) => n * 17);
  assert.equal(writeTake(bytes), "00112233445566778899aabbccddeeff");
});

test("a block is where its first frame is, also one to come", () => {
  const state = read();
  assert.equal(measureLength(state), 93 / 16);
  assert.equal(locateBlock(state, 3), 33 / 16);
  assert.equal(locateBlock(state, 10), 93 / 16 + 1.5);
  assert.equal(locateBlock(read({ block_seconds: 0.5 }), 10), 93 / 16 + 1);
});

test("a time names the block shown then, and none behind the end", () => {
  const state = read();
  for (const piece of state.pieces) {
    assert.equal(findBlock(state, piece.firstFrame / 16), piece.number);
    assert.equal(findBlock(state, (piece.firstFrame + piece.numFrames - 0.5) / 16), piece.number);
  }
  assert.equal(findBlock(state, 93 / 16), null);
  assert.equal(findBlock(null, 0), null);
  assert.equal(findBlock(read({ begins: 2 }), 0), 2);
});

test("the ruler has a bar a prompt, each as long as its blocks, and the length of a blend", () => {
  const { bars, span, length, ticks } = layRuler(read());
  assert.deepEqual(bars.map(({ start, end }) => [start * 16, end * 16]), [[0, 33], [33, 69], [69, 93]]);
  assert.deepEqual(bars.map(({ blend }) => blend * 16), [0, 24, 0]);
  assert.deepEqual([span, length * 16, ticks.length], [8, 93, 7]);
  assert.match(bars[1].title, /blend over 2 blocks\na blue ring$/);
  assert.match(bars[2].title, /cut · seed 7/);
});

test("a new seed is a bar that repeats no text", () => {
  const seed = { ...RED, block: 4, boundary: "keep", seed: 9 };
  const { bars } = layRuler(read({ switches: [RED, seed] }));
  assert.equal(bars[1].boundary, "seed");
  assert.match(bars[1].title, /new seed · seed 9/);
});

test("the ruler makes room for the film and for what waits, in steps", () => {
  assert.equal(layRuler(null).span, 8);
  assert.equal(layRuler(read({}, 11)).span, 12);
  assert.equal(layRuler(read({ waiting: [{ ...GREEN, block: 20 }] })).span, 16);
  assert.ok(layRuler(read({}, 9000)).span > 9000 * 0.75);
  assert.deepEqual(layRuler(read({}, 9000)).ticks, []);
});

test("a click near a place that is quick to rewind to means that place", () => {
  const ruler = layRuler(read());
  assert.equal(findCheap(ruler, 81 / 16 + 0.1), 7);
  assert.equal(findCheap(ruler, 81 / 16 + 0.2), null);
});

test("the buttons follow the run", () => {
  const before = listActions(null, PAGE);
  assert.deepEqual([before.main, before.label, before.canStop, before.canReseed], ["direct", "Direct", false, false]);
  assert.equal(listActions(null, { ...PAGE, script: "8s | a ring" }).label, "Direct");
  assert.equal(listActions(null, { ...PAGE, isQueued: true }).canBegin, false);
  const during = listActions(read(), { ...PAGE, chosen: 2 });
  assert.deepEqual([during.main, during.canRewind, during.canStop, during.canReseed], ["pause", true, true, true]);
  assert.equal(listActions(read(), PAGE).canRewind, false);
  assert.equal(listActions(read({ status: "paused" }), PAGE).main, "resume");
  for (const status of ["parked", "stopped", "complete", "interrupted", "failed"]) {
    const after = listActions(read({ status }), { ...PAGE, chosen: 2 });
    assert.deepEqual([after.main, after.label, after.canRewind, after.canStop], ["direct", "Direct", false, false], status);
    assert.equal(listActions(read({ status }), { ...PAGE, script: "8s | a ring" }).label, "Go on");
    assert.equal(isRunning(read({ status })), false);
  }
});

test("a message says only what was chosen, on one line", () => {
  const choice = { prompt: " a ring\n in  the rain ", boundary: /** @type {const} */ ("recache"), blend: 3, at: null };
  assert.deepEqual(composeSay(choice), { do: "say", prompt: "a ring in the rain", boundary: "recache" });
  assert.deepEqual(composeSay({ ...choice, boundary: "blend", at: 8.25 }), {
    do: "say", prompt: "a ring in the rain", boundary: "blend", blend: 3, at: 8.25,
  });
});

test("a prompt that cannot be sent is refused in one sentence", () => {
  assert.match(checkPrompt(""), /Write/);
  assert.equal(checkPrompt("🚣".repeat(4000)), "");
  assert.match(checkPrompt("🚣".repeat(4001)), /4001 characters; 4000/);
});

test("times are written and read", () => {
  assert.deepEqual([0, 9.99, 75, 3725].map((seconds) => writeTime(seconds)), ["0:00", "0:09", "1:15", "1:02:05"]);
  assert.deepEqual([9.96, 59.97, 119.99].map((seconds) => writeTime(seconds, 1)), ["0:10.0", "1:00.0", "2:00.0"]);
  assert.deepEqual(["8", "0:08.5", "1:15", "1:02:05", "8s"].map(readTime), [8, 8.5, 75, 3725, 8]);
  assert.deepEqual(["", "soon", "1:", "-3"].map(readTime), [null, null, null, null]);
});

test("the delay runs from a send to the first frame of the block under it", () => {
  const meter = new DelayMeter();
  meter.send("a red ring", 10, read({ switches: [RED] }, 4));
  meter.see(read({ switches: [RED] }, 5));
  assert.equal(meter.show(4, 10.1), null); // still the red ring of before
  meter.see(read({ switches: [RED, { ...RED, block: 5 }] }, 6));
  assert.equal(meter.show(4, 10.2), null);
  assert.equal(meter.show(5, 10.75), 0.75);
  assert.equal(meter.show(6, 11), null);
});

test("what was planned for later than the script is planned again", () => {
  const planned = { block: 12, text: "a blue ring", boundary: "blend", seed: 7, blend: 3, curve: "linear" };
  const state = readState({ ...answer({ waiting: [{ ...planned, block: 3 }, planned, { ...planned, boundary: "cut", seed: null, blend: null }] }, 4), script_end: 10 });
  assert.deepEqual(planAgain(state), [
    { do: "say", prompt: "a blue ring", boundary: "blend", at: 9, blend: 3, curve: "linear", seed: 7 },
    { do: "say", prompt: "a blue ring", boundary: "cut", at: 9 },
  ]);
});

test("every status has a word, a refusal has its own tone", () => {
  for (const status of ["waiting", "making", "paused", "ahead", "parked", "stopped", "complete", "interrupted", "failed"]) {
    assert.ok(describeStatus(read({ status }), false).word, status);
  }
  assert.equal(describeStatus(read({ status: "failed" }), false).tone, "bad");
  assert.equal(describeStatus(null, true).tone, "wait");
});

/** A host that answers from a list, and what it was asked. */
function pretendHost(/** @type {any[]} */ answers) {
  /** @type {[string, any][]} */ const asked = [];
  const fetch = async (/** @type {string} */ path, /** @type {any} */ options) => {
    asked.push([options?.method ?? "GET", options ? JSON.parse(options.body) : path]);
    const [status, value] = options ? [200, {}] : answers.length > 1 ? answers.shift() : answers[0];
    return new Response(JSON.stringify(value), { status });
  };
  return { fetch, asked };
}

/** Begin a run that ends with its test. */
function begin(/** @type {any} */ t, /** @type {any} */ fetch, playhead = () => 0) {
  const run = new LiveRun(fetch, "0123abcd", playhead);
  t.after(() => run.dispose());
  return run;
}

const settle = () => new Promise((done) => setTimeout(done));

test("a message to a run that has not begun is sent when it begins", async (t) => {
  const { fetch, asked } = pretendHost([[404, {}], [200, answer()]]);
  const run = begin(t, fetch);
  run.open(TAKE);
  await settle();
  await run.send({ do: "pause" });
  assert.deepEqual(asked.map(([method]) => method), ["GET"]);
  run.notice({ take: TAKE, version: 1 });
  await settle();
  assert.deepEqual(asked.slice(1), [["GET", `/longlive/live/${TAKE}`], ["POST", { do: "pause" }]]);
});

test("changes that come while the state is on its way are asked for once", async (t) => {
  const { fetch, asked } = pretendHost([[200, answer({ version: 3 })]]);
  const run = begin(t, fetch);
  run.open(TAKE);
  for (const version of [1, 2, 3]) run.notice({ take: TAKE, version });
  run.notice({ take: "f".repeat(32), version: 9 });
  await settle();
  await settle();
  assert.equal(asked.length, 2);
  run.notice({ take: TAKE, version: 3 });
  await settle();
  assert.equal(asked.length, 2);
});

test("what the host refuses is said, a lost hint is not", async (t) => {
  const fetch = async (/** @type {string} */ path, /** @type {any} */ options) =>
    new Response(JSON.stringify(options ? { error: "the prompt is empty" } : answer()), { status: options ? 400 : 200 });
  const run = begin(t, fetch);
  /** @type {string[]} */ const problems = [];
  run.addEventListener("problem", (event) => problems.push(/** @type {CustomEvent} */ (event).detail));
  run.open(TAKE);
  await settle();
  await run.hint({ do: "prepare", prompt: "" });
  assert.deepEqual(problems, []);
  await run.send({ do: "say", prompt: "" });
  assert.deepEqual(problems, ["the prompt is empty"]);
});

test("the answer for a take that was left is not shown", async (t) => {
  const { fetch } = pretendHost([[200, answer()]]);
  const run = begin(t, fetch);
  run.open(TAKE);
  run.open("");
  await settle();
  assert.equal(run.state, null);
});

test("a viewer of a run says every two seconds where it is, and of a run that is over nothing", async (t) => {
  t.mock.timers.enable({ apis: ["setInterval"] });
  const { fetch, asked } = pretendHost([[200, answer()], [200, answer({ status: "stopped" })]]);
  const run = begin(t, fetch, () => 1.5);
  run.open(TAKE);
  await settle();
  t.mock.timers.tick(4000);
  await settle();
  const beat = ["POST", { do: "watch", seconds: 1.5, viewer: "0123abcd" }];
  assert.deepEqual(asked.slice(1), [beat, beat]);
  run.notice({ take: TAKE, version: 2 });
  await settle();
  t.mock.timers.tick(60_000);
  await settle();
  assert.equal(asked.length, 4);
});

test("a new run is looked for now and then, one that is not there is left alone", async (t) => {
  t.mock.timers.enable({ apis: ["setInterval"] });
  for (const [isNew, expected] of /** @type {[boolean, number][]} */ ([[true, 3], [false, 1]])) {
    const { fetch, asked } = pretendHost([[404, {}]]);
    const run = begin(t, fetch);
    run.open(TAKE, { isNew });
    for (let second = 0; second < 24; second += 1) {
      t.mock.timers.tick(1000);
      await settle();
    }
    assert.equal(asked.length, expected, String(isNew));
  }
});

test("a prompt can be planned for the beginning", () => {
  assert.equal(composeSay({ prompt: "a", boundary: "cut", blend: 3, at: 0 }).at, 0);
});
