// @ts-check
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { lengthen, parse, serialize, TimelineError, addLengths } from "../../web/timeline/model.js";

const vectors = JSON.parse(readFileSync(new URL("../timeline_vectors.json", import.meta.url), "utf8"));

/** As Python has them: continuation lines joined, no comments. */
const plain = (segments) => segments.map(({ above, below, prompt, blend, ...rest }) => ({
  ...rest, prompt: prompt.replaceAll("\n", " "), ...(blend && { blend: { blocks: blend.blocks, curve: blend.curve } }),
}));

for (const { name, script, block, segments, error } of vectors) {
  if (error) {
    test(`refused with its place: ${name}`, () => {
      assert.throws(() => parse(script, block), (refusal) => {
        assert.ok(refusal instanceof TimelineError, String(refusal));
        assert.deepEqual([refusal.line, refusal.column], [error.line, error.column], refusal.message);
        assert.ok(refusal.problem.includes(error.problem), refusal.problem);
        return true;
      });
    });
  } else {
    test(`read: ${name}`, () => assert.deepEqual(plain(parse(script, block)), segments));
    test(`written and read again: ${name}`, () => {
      const whole = parse(script, block);
      const text = serialize(whole);
      const bare = (rows) => plain(rows).map(({ line, ...rest }) => rest);
      assert.deepEqual(bare(parse(text, block)), bare(whole));
      assert.equal(serialize(parse(text, block)), text);
    });
  }
}

test("a script in its own form is written back letter by letter", () => {
  const script = "# a storm\n\n8s | a boat\n    in the rain\n7.5s cut | # a river\n\n  # the end\n";
  assert.equal(serialize(parse(script)), script);
});

test("a prompt line that would read as a comment or a segment joins the line above", () => {
  const row = { asked: "8s", boundary: /** @type {const} */ ("recache"), prompt: "a\n# b\n8s | c\n\nd", above: [] };
  const text = serialize([row]);
  assert.equal(text, "8s | a # b 8s | c\n    d\n");
  assert.equal(parse(text).length, 1);
});

test("totals count pixel frames as 4 n - 3", () => {
  assert.deepEqual(addLengths([{ blocks: 36 }, { blocks: 10 }]), { blocks: 46, frames: 138, pixelFrames: 549, seconds: 34.5 });
  assert.equal(addLengths([]).pixelFrames, 0);
});

test("a duration is lengthened by blocks in its own unit", () => {
  assert.equal(lengthen("8s", 1), "9s");
  assert.equal(lengthen("0.75 s", -1), "0.75s");
  assert.equal(lengthen("10 blocks", -1), "9b");
  assert.equal(lengthen("30F", 1), "33f");
  assert.equal(lengthen("soon", 1), "soon");
});

/** Milliseconds of processor time, the least of several tries: other processes only add to it. */
function cost(/** @type {() => void} */ work) {
  const tries = Array.from({ length: 5 }, () => {
    const begun = process.cpuUsage();
    work();
    const { user, system } = process.cpuUsage(begun);
    return (user + system) / 1000;
  });
  return Math.min(...tries);
}

const SHAPES = {
  "digits": (n) => "1b | a\n " + "1".repeat(n),
  "digits at the margin": (n) => "1".repeat(n),
  "decimals": (n) => "1b | a\n 1." + "0".repeat(n),
  "dots": (n) => "1b | a\n 1" + ".".repeat(n),
  "spaces behind a number": (n) => "1b | a\n 1" + " ".repeat(n) + "x",
  "spaces behind a unit": (n) => "1b | a\n 1b" + " ".repeat(n) + "!",
  "spaces within a prompt": (n) => "1b | a" + " ".repeat(n) + "b",
  "spaces within a line": (n) => "1b | a\n  b" + "\u3000".repeat(n) + "c",
  "a long unit": (n) => "8" + "s".repeat(n),
  "a long boundary": (n) => "1b | a\n 8s " + "k".repeat(n),
  "a long blend": (n) => "1b | a\n 8s blend " + "3".repeat(n),
  "a long seed": (n) => "1b | a\n 8s seed " + "0".repeat(n) + "x",
  "a long seed at the margin": (n) => "8s seed " + "0".repeat(n) + "7 | a",
  "words": (n) => "8s " + "a ".repeat(n / 2) + "| a",
  "bars": (n) => "8s " + "|".repeat(n),
  "lookalikes": (n) => "8s" + " ".repeat(n) + "｜",
  "continuation lines": (n) => "8s | a\n" + " b\n".repeat(n / 3),
  "segments": (n) => "1b|a\n".repeat(n / 5),
  "comments": (n) => "#\n".repeat(n / 2),
  "boats": (n) => "8s " + "🚣".repeat(n) + " | a",
};

for (const [shape, make] of Object.entries(SHAPES)) {
  test(`time to read and write a script grows with its length: ${shape}`, () => {
    const work = (/** @type {string} */ script) => () => {
      try {
        serialize(parse(script));
      } catch (error) {
        assert.ok(error instanceof TimelineError, String(error));
      }
    };
    const [small, large] = [make(8000), make(32_000)].map((script) => cost(work(script)));
    assert.ok(large < 1 || large < 10 * Math.max(small, 0.5), `${large} ms for four times what takes ${small} ms`);
  });
}

test("a script beyond the largest size is refused in code points", () => {
  const script = "8s | ".padEnd(200_000, "a");
  assert.equal(parse(script)[0].blocks, 11);
  assert.equal(parse(script.replaceAll("a", "🚣"))[0].blocks, 11);
  assert.throws(() => parse(`${script}🚣`), { message: /the script has 200001 characters; 200000 at most are read/ });
});
