// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";
import { describeBlock, findBlockAt, layDrift, readBlocks } from "../../web/film/chart.js";

const columns = ["frame", "frames", "deviation", "trait", "motion", "jump", "switch", "fault"];
const rows = [
  [0, 9, null, null, 1.5, null, false, null],
  [9, 12, 0, "brightness", 2, 1.2, false, null],
  [21, 12, null, null, 3, 8.5, true, null],
  [33, 12, -0.5, "redness", 4, 1, false, null],
  [45, 12, 3, "redness", 2, 1.1, false, "drift"],
  [57, 12, 0.1, "blueness", 0, 9, false, "jump"],
  [69, 12, 0.1, "blueness", 0, 1, false, "freeze"],
];
const blocks = readBlocks({ fps: 16, columns, rows, warn: "" });

test("a film without numbers has an empty chart", () => {
  for (const nothing of [null, undefined, {}, { fps: 16, columns, rows: [], warn: "" }]) {
    const layout = layDrift(readBlocks(nothing), 16);
    assert.deepEqual([layout.drift, layout.motion, layout.switches, layout.jumps, layout.span], [[], [], [], [], 0]);
  }
});

test("every block has a bar of its own length, and a gap where it is not judged", () => {
  const layout = layDrift(blocks, 16);
  assert.equal(layout.span, 81 / 16);
  assert.deepEqual(layout.motion.map((bar) => bar.x), rows.map(([frame]) => frame / 16));
  assert.deepEqual(layout.drift.map((bar) => bar.x), [9, 33, 45, 57, 69].map((frame) => frame / 16));
  for (const bar of [...layout.motion, ...layout.drift]) {
    assert.ok(bar.height > 0 && bar.y >= 0 && Math.abs(bar.y + bar.height - 1) < 1e-9, JSON.stringify(bar));
  }
});

test("the limit stands where a deviation of 1 would, and higher bars are cut off", () => {
  const { drift, limit } = layDrift(blocks, 16);
  assert.equal(limit, 0.5);
  assert.deepEqual(drift.map((bar) => bar.height), [0.03, 0.25, 1, 0.05, 0.05]);
  assert.equal(layDrift(blocks.slice(0, 4), 16).limit, 1);
});

test("faults are told apart in their own strips, and a switch is no jump", () => {
  const { drift, motion, switches, jumps } = layDrift(blocks, 16);
  assert.deepEqual(drift.map((bar) => bar.isFault), [false, false, true, false, false]);
  assert.deepEqual(motion.map((bar) => bar.isFault), [false, false, false, false, false, false, true]);
  assert.deepEqual(switches, [21 / 16]);
  assert.deepEqual(jumps, [63 / 16]);
});

test("the time axis may be longer than the film, never shorter", () => {
  assert.equal(layDrift(blocks, 16, 20).span, 20);
  assert.equal(layDrift(blocks, 16, 2).span, 81 / 16);
});

test("a block is found by its pixel frame and said in words", () => {
  assert.equal(findBlockAt(blocks, 8)?.frame, 0);
  assert.equal(findBlockAt(blocks, 9)?.frame, 9);
  assert.equal(findBlockAt(blocks, 81), undefined);
  assert.equal(describeBlock(blocks[4], 16), "2.81 s, redness at +3.00 of its limit, motion 2.0 of 255, longest step 1.1 times the usual, drift");
  assert.match(describeBlock(blocks[2], 16), /the prompt changes, not judged so soon/);
  assert.match(describeBlock(blocks[1], 16), /in the range of the first seconds/);
});
