// @ts-check
/** LongLive Options: when its kind changes, the other numbers become the released ones of that kind. */
import { chain } from "./nodes.js";

/** Follow the kind that the user chooses; a workflow that is opened keeps its numbers. */
export function followKind(/** @type {any} */ node) {
  const kind = findWidget(node, "kind");
  const released = node.constructor.nodeData?.input?.optional?.kind?.[1]?.longlive_released;
  if (!kind || !released) return;
  let known = kind.value;
  chain(node, "onConfigure", () => (known = kind.value));
  chain(kind, "callback", (/** @type {string} */ chosen) => {
    if (chosen === known) return;
    known = chosen;
    for (const [name, value] of Object.entries(released[chosen] ?? {})) setWidget(node, name, value);
    node.setDirtyCanvas?.(true, true);
  });
}

function findWidget(/** @type {any} */ node, /** @type {string} */ name) {
  return node.widgets?.find((/** @type {any} */ widget) => widget.name === name);
}

function setWidget(/** @type {any} */ node, /** @type {string} */ name, /** @type {unknown} */ value) {
  const widget = findWidget(node, name);
  if (!widget) return;
  widget.value = value;
  widget.callback?.(value);
}
