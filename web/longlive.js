// @ts-check
/** The one file that imports ComfyUI's front end: it hands `app` and `api` on to the pages of each node. */
// @ts-ignore: served by the host
import { api } from "../../scripts/api.js";
// @ts-ignore: served by the host
import { app } from "../../scripts/app.js";
import { showFilm, watchFilms } from "./host/films.js";
import { listenToRuns, showLive } from "./host/live.js";
import { followKind } from "./host/options.js";
import { showReport } from "./host/report.js";
import { showPromoted, showTimeline } from "./host/timeline.js";

const SESSION_COLOR = "#7fc97f";

app.registerExtension({
  name: "longlive.timeline",
  setup() {
    colorSessions();
    watchFilms(app, api);
    listenToRuns(app, api);
  },
  nodeCreated(/** @type {any} */ node) {
    if (node.constructor.comfyClass === "LongLiveTimeline") showTimeline(app, node);
    if (node.constructor.comfyClass === "LongLiveLive") showLive(app, api, node);
    if (node.constructor.comfyClass === "LongLiveSessionInfo") showReport(app, node);
    if (node.constructor.comfyClass === "LongLiveOptions") followKind(node);
    if (node.isSubgraphNode?.()) showPromoted(app, node);
    showFilm(app, api, node);
  },
});

/** Give the sockets of sessions a color in both renderers; the host knows only its own types. */
function colorSessions() {
  document.documentElement.style.setProperty("--color-datatype-LONGLIVE_SESSION", SESSION_COLOR);
  app.canvas.default_connection_color_byType.LONGLIVE_SESSION = SESSION_COLOR;
}
