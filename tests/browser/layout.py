"""Overlaps in a graph as the page draws it."""

from desk import Desk


def list_covered(desk: Desk) -> list[str]:
    """List the nodes that overlap another node, and the wires that pass behind one."""
    return desk.page.evaluate(COVERED)


# First the boxes of the nodes as they are drawn, in units of the canvas. To find wires behind a node, the wires of
# other nodes are drawn again on an empty canvas of the node's size: a mark there means that one passes behind the node.
COVERED = """() => {
    const { ds, renderedPaths } = app.canvas, graph = app.graph;
    const boxOf = node => {
        const element = document.querySelector(`[data-node-id="${node.id}"]`);
        if (!element) return [...node.boundingRect];
        const page = element.getBoundingClientRect(), canvas = app.canvas.canvas.getBoundingClientRect();
        const [x, y] = app.canvas.convertCanvasToOffset([page.left - canvas.left, page.top - canvas.top]);
        return [x, y, page.width / ds.scale, page.height / ds.scale];
    };
    const nodes = graph.nodes.map(node => ({ id: node.id, name: `${node.id} ${node.title}`, box: boxOf(node) }));
    const found = [];
    for (const [i, { name, box: [x, y, w, h] }] of nodes.entries()) {
        for (const { name: other, box: [x2, y2, w2, h2] } of nodes.slice(i + 1)) {
            if (x < x2 + w2 && x2 < x + w && y < y2 + h2 && y2 < y + h) found.push(`${name} lies on ${other}`);
        }
    }
    const page = document.createElement("canvas"), context = page.getContext("2d", { willReadFrequently: true });
    const wires = [...renderedPaths].map(wire => {
        const ids = wire.linkIds ? [...wire.linkIds] : [wire.id];
        const links = ids.map(id => graph.getLink ? graph.getLink(id) : graph.links.get(id));
        return { ids, path: wire.path, ends: links.flatMap(link => [link.origin_id, link.target_id]).map(String) };
    });
    const isDrawn = (wires, [x, y, w, h]) => {
        [page.width, page.height] = [w, h];
        context.translate(-x, -y);
        context.lineWidth = 1;
        for (const { path } of wires) context.stroke(path);
        return new Uint32Array(context.getImageData(0, 0, page.width, page.height).data.buffer).some(pixel => pixel);
    };
    for (const { id, name, box } of nodes) {
        const others = wires.filter(({ ends }) => !ends.includes(String(id)));
        if (!isDrawn(others, box)) continue;  // most often: it reads one picture in the place of one per wire
        for (const wire of others) {
            if (isDrawn([wire], box)) found.push(`wire ${wire.ids} passes behind ${name}`);
        }
    }
    return found;
}"""
