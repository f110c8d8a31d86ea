"""The steps of a user who puts nodes into a subgraph and looks inside."""

from desk import Desk


def fold(desk: Desk, *types: str) -> None:
    """Convert nodes to a subgraph, as its button does."""
    desk.select(*types)
    desk.command("Comfy.Graph.ConvertToSubgraph")
    desk.page.wait_for_function("() => app.graph.nodes.some(node => node.isSubgraphNode?.())")


def promote(desk: Desk) -> None:
    """Promote the script to the subgraph's node, as the list of its widgets does."""
    desk.page.evaluate("""() => {
        const host = app.graph.nodes.find(node => node.isSubgraphNode?.());
        const node = host.subgraph.nodes.find(node => node.type === "LongLiveTimeline");
        const slot = node.inputs.find(input => input.widget?.name === "script");
        host.subgraph.addInput("script", "STRING").connect(slot, node);
        host.setSize([520, 480]);
    }""")


def enter(desk: Desk) -> None:
    desk.page.evaluate("() => app.canvas.openSubgraph(app.graph.nodes.find(n => n.isSubgraphNode?.()).subgraph)")
    desk.look_at("LongLiveTimeline")


def leave(desk: Desk) -> None:
    desk.page.evaluate("() => app.canvas.setGraph(app.canvas.graph.rootGraph)")
    desk.page.evaluate("""() => {
        const node = app.graph.nodes.find(node => node.isSubgraphNode?.()), { ds } = app.canvas;
        ds.scale = 1;
        ds.offset[0] = 150 - node.pos[0];
        ds.offset[1] = 130 - node.pos[1];
    }""")
    desk.settle()
