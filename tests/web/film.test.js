// A film as a page has it: what the events tell, and what its buffer holds.
import assert from "node:assert/strict";
import { test } from "node:test";
import { FilmFeed, chooseStep, nameCodec, readFilm } from "../../web/film/feed.js";

/** A film of `count` blocks of 12 frames; the block `from` and those after it were made again. */
function makeState(count, from = count) {
  const pieces = Array.from({ length: count }, (_, n) => [n, n < from ? n + 1 : 100 + n, n * 12, 12]);
  return readFilm({ version: count, fps: 16, pieces });
}

const SPAN = { behind: 3, ahead: 3 };

function fill(held, state, seconds) {
  const steps = [];
  for (let step = chooseStep(held, state, seconds, SPAN); step; step = chooseStep(held, state, seconds, SPAN)) {
    assert.ok(steps.length < 100);
    if ("fetch" in step) held.set(step.fetch.number, step.fetch), steps.push(step.fetch.number);
    else step.remove.forEach(({ number }) => held.delete(number)), steps.push(`-${step.remove.map(({ number }) => number)}`);
  }
  return steps;
}

test("a buffer holds the film around the play-head and no more", () => {
  const held = new Map();
  const state = makeState(40);
  assert.deepEqual(fill(held, state, 0), [0, 1, 2, 3, 4]);
  assert.deepEqual(fill(held, state, 6), ["-0,1,2", 8, 9, 10, 11, 12]);
  assert.deepEqual(fill(held, state, 1.2), ["-10,11,12", 1, 2, 5]); // back to where it was
});

test("after a rewind the dropped pieces leave the buffer before others come", () => {
  const held = new Map();
  fill(held, makeState(5), 0);
  assert.deepEqual(fill(held, makeState(3), 0), ["-3,4"]);
  assert.deepEqual(fill(held, makeState(5, 2), 0), ["-2", 2, 3, 4]);
});

test("a block without frames is not fetched", () => {
  const state = readFilm({ fps: 16, pieces: [[0, 1, 0, 9], [1, 2, 9, 0], [2, 3, 9, 12]] });
  assert.deepEqual(fill(new Map(), state, 0), [0, 2]);
});

test("the codec is read from the header", () => {
  const header = new Uint8Array([0, 0, 0, 9, ...Buffer.from("avcC"), 1, 0x64, 0, 0x0a, 7]);
  assert.equal(nameCodec(header), 'video/mp4; codecs="avc1.64000a"');
});

test("a feed asks once, appends what events tell, and asks again when it has missed one", async () => {
  const asked = [];
  let answer = { version: 1, fps: 16, pieces: [[0, 1, 0, 9]] };
  const feed = new FilmFeed(async (path) => (asked.push(path), { ok: true, json: async () => answer }), "f1");
  const change = (version, number, count) => ({ id: "f1", version, number, count, first_frame: 9, num_frames: 12 });
  await feed.notice(change(1, 0, 1));
  feed.notice(change(2, 1, 2));
  assert.deepEqual(asked, ["/longlive/film/f1"]);
  assert.deepEqual(feed.state.pieces[1], { number: 1, count: 2, firstFrame: 9, numFrames: 12 });
  answer = { version: 5, fps: 16, pieces: [[0, 1, 0, 9], [1, 4, 9, 12]] };
  await feed.notice(change(5, 1, 4)); // a rewind and another block
  assert.deepEqual([asked.length, feed.state.pieces[1].count, feed.state.version], [2, 4, 5]);
});
