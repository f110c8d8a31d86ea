// Reads scripts, a JSON line [script, block] each, and answers a JSON line each: segments as Python has them, or an error.
import { createInterface } from "node:readline";
import { parse, TimelineError } from "../../web/timeline/model.js";

for await (const line of createInterface({ input: process.stdin })) {
  const [script, block] = JSON.parse(line);
  process.stdout.write(JSON.stringify(answer(script, block)) + "\n");
}

function answer(script, block) {
  try {
    return parse(script, block).map((segment) =>
      [segment.prompt.replaceAll("\n", " "), segment.blocks, segment.boundary, segment.line, segment.asked,
        segment.seed ?? "", segment.blend?.blocks ?? 0, segment.blend?.curve ?? ""]);
  } catch (error) {
    if (!(error instanceof TimelineError)) return { crash: String(error) };
    return { line: error.line, column: error.column, problem: error.problem };
  }
}
