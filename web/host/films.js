// @ts-check
/** The film of a node that is watched: it appears on the node with its first block and grows while the node runs. */
import { FilmFeed } from "../film/feed.js";
import { FilmPlayer } from "../film/player.js";
import { keepEvents } from "./canvas.js";
import { addStyle, bringHome, chain, rememberHome } from "./nodes.js";

/**
 * @import { Change } from "../film/feed.js"
 */

const EVENT = "longlive.film"; // of the host's socket
const WATCHED = ["LongLiveTimeline", "LongLiveChunkSampler"];
const HEIGHTS = [120, 360]; // px that a film takes at least, and at most by itself
/** @type {WeakMap<object, NodeFilm>} by node */
const films = new WeakMap();

/** Listen to what the host says of films. */
export function watchFilms(/** @type {any} */ app, /** @type {any} */ api) {
  api.addEventListener(EVENT, (/** @type {CustomEvent<Change & {node: string}>} */ { detail }) => {
    const node = findNode(app, detail.node);
    if (WATCHED.includes(node?.constructor.comfyClass)) find(app, api, node).notice(detail);
  });
}

/** Let a node show the film of its last run, which its output names. */
export function showFilm(/** @type {any} */ app, /** @type {any} */ api, /** @type {any} */ node) {
  if (!WATCHED.includes(node.constructor.comfyClass) || !node.addDOMWidget) return;
  const open = (/** @type {any} */ output) => {
    const id = output?.longlive_film?.[0];
    if (id) find(app, api, node).finish(id);
  };
  chain(node, "onExecuted", open);
  chain(node, "onConfigure", () => setTimeout(() => open(app.nodeOutputs?.[node.id]))); // after undo, or in another tab
}

/** The film that a node shows. */
class NodeFilm {
  /** @type {FilmFeed | null} */
  #feed = null;
  /** @type {FilmPlayer | null} */
  #player = null;
  #stage = Object.assign(document.createElement("div"), { className: "longlive-film-stage" });

  constructor(/** @type {any} */ app, /** @type {any} */ api, /** @type {any} */ node) {
    this.app = app;
    this.api = api;
    this.node = node;
  }

  /** Take notice of a change of a film of this node. @param {Change} change */
  notice(change) {
    if (change.id !== this.#feed?.id && change.number < 0) return; // an empty film takes no room
    this.#open(change.id)?.notice(change);
  }

  /** Show a film that is finished. @param {string} id */
  finish(id) {
    this.#open(id)?.refresh();
    this.#player?.finish();
  }

  #open(/** @type {string} */ id) {
    if (id === this.#feed?.id) return this.#feed;
    this.#player?.dispose();
    const { api } = this;
    const fetch = (/** @type {string} */ path, /** @type {object} */ options) => api.fetchApi(path, options);
    const player = (this.#player = new FilmPlayer(fetch, (path) => api.apiURL(path), id));
    const feed = (this.#feed = new FilmFeed(fetch, id));
    feed.addEventListener("state", () => feed.state && (this.#place(), player.show(feed.state)));
    this.#stage.replaceChildren(player.element);
    return feed;
  }

  /** Make room for the film on its node, when it has its first block. */
  #place() {
    const { node } = this;
    if (!this.#feed?.state?.pieces.length) return;
    if (!this.#stage.dataset.place) {
      const [columns, rows] = this.#feed.state.size ?? [1, 1];
      this.#addStage(Math.round(Math.min(Math.max((node.size[0] * rows) / columns, HEIGHTS[0]), HEIGHTS[1])));
    }
    const smallest = node.computeSize()[1]; // the host may have added texts
    if (node.size[1] >= smallest) return;
    node.setSize([node.size[0], smallest]);
    node.setDirtyCanvas(true, true);
  }

  #addStage(/** @type {number} */ height) {
    const { app, node } = this;
    const place = { id: `film of ${node.id}` }; // beside the editor's on the same node
    this.#stage.dataset.place = place.id;
    this.#stage.style.minHeight = `${height}px`;
    addStyle("../film/film.css");
    keepEvents(app, this.#stage);
    const widget = node.addDOMWidget("film", "LONGLIVE_FILM", this.#stage, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => height,
      getValue: () => "",
    });
    widget.serialize = false;
    chain(widget, "onRemove", () => {
      rememberHome(place, this.#stage);
      this.#player?.dispose();
      films.delete(node);
    });
    setTimeout(() => bringHome(place, this.#stage));
  }
}

function find(/** @type {any} */ app, /** @type {any} */ api, /** @type {any} */ node) {
  const film = films.get(node) ?? new NodeFilm(app, api, node);
  films.set(node, film);
  return film;
}

/** Find a node by the name that the host gives it: its number, behind those of the subgraphs around it. */
export function findNode(/** @type {any} */ app, /** @type {string} */ name) {
  let graph = app.graph.rootGraph ?? app.graph;
  const numbers = String(name).split(":").map(Number);
  for (const number of numbers.slice(0, -1)) graph = graph?.getNodeById(number)?.subgraph;
  return graph?.getNodeById(numbers[numbers.length - 1]);
}
