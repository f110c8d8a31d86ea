// @ts-check
/** For each line of JSON on standard input, `[script, block]`, a line: what the editor's parser makes of it. */
import { createInterface } from "node:readline";
import { parse, TimelineError } from "../../web/timeline/model.js";

/** @param {string} script @param {number} block */
function outcome(script, block) {
  try {
    return parse(script, block).map(({ prompt, blocks, boundary, line, asked, seed, blend }) =>
      [prompt.replaceAll("\n", " "), blocks, boundary, line, asked, seed ?? null, blend ? [blend.blocks, blend.curve] : null]);
  } catch (error) {
    if (error instanceof TimelineError) return [error.line, error.column, error.problem];
    throw error;
  }
}

for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
  const [script, block] = JSON.parse(line);
  process.stdout.write(`${JSON.stringify(outcome(script, block))}\n`);
}
