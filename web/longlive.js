// @ts-check
/** The one file that imports ComfyUI's front end: it hands `app` on to the pages of each node. */
// @ts-ignore: served by the host
import { app } from "../../scripts/app.js";
import { showReport } from "./host/report.js";
import { showPromoted, showTimeline } from "./host/timeline.js";

const SESSION_COLOR = "#7fc97f";

app.registerExtension({
  name: "longlive.timeline",
  setup: colorSessions,
  nodeCreated(/** @type {any} */ node) {
    if (node.constructor.comfyClass === "LongLiveTimeline") showTimeline(app, node);
    if (node.constructor.comfyClass === "LongLiveSessionInfo") showReport(app, node);
    if (node.isSubgraphNode?.()) showPromoted(app, node);
  },
});

/** Give the sockets of sessions a color in both renderers; the host knows only its own types. */
function colorSessions() {
  document.documentElement.style.setProperty("--color-datatype-LONGLIVE_SESSION", SESSION_COLOR);
  app.canvas.default_connection_color_byType.LONGLIVE_SESSION = SESSION_COLOR;
}
