"""The timeline's editor in a real browser: both renderers, on the front end ComfyUI pins and on the newest."""

import json
from pathlib import Path

import pytest
from desk import BLUE, GREEN, HEADER, RED, SCRIPT, SQUARE, Desk
from graphs import WORKFLOWS
from layout import list_covered
from subgraphs import enter, fold, leave, promote

DESKS = [("pinned", "classic"), ("newest", "vue")]  # each front end and each renderer
DESKS += [pytest.param(*desk, marks=pytest.mark.slow) for desk in (("pinned", "vue"), ("newest", "classic"))]
pytestmark = pytest.mark.parametrize(("server", "shared_desk"), DESKS, indirect=True)


def test_typing_reaches_the_script(desk: Desk):
    assert desk.script() == SCRIPT

    desk.prompt(2).fill("")
    desk.prompt(2).press_sequentially(GREEN)

    desk.wait_for_script(f"{HEADER}{RED}{BLUE}1b | {GREEN}\n")


def test_arrows_change_a_duration_by_a_block(desk: Desk):
    desk.duration(1).press("ArrowUp")
    desk.duration(1).press("ArrowUp")
    desk.duration(1).press("ArrowDown")

    desk.wait_for_script(HEADER + RED + BLUE.replace("1b", "2b") + SQUARE)
    assert desk.editor.locator(".longlive-totals").inner_text() == "3 s · 4 blocks"


def test_a_row_blends_and_has_a_seed_where_it_is_asked_to(desk: Desk):
    """Nothing of it is shown before; an empty seed is none."""
    row = desk.editor.locator(".longlive-row").nth(1)
    boundary, blend, seed = (row.locator(f".longlive-{name}") for name in ("boundary", "blend", "seed"))
    assert not any(field.is_visible() for field in desk.editor.locator(".longlive-blend, .longlive-seed").all())

    boundary.select_option("blend")
    desk.wait_for_script(HEADER + RED + BLUE.replace("1b", "1b blend 3b") + SQUARE)
    blend.fill("1.5s spherical")
    blend.press("Tab")
    desk.wait_for_script(HEADER + RED + BLUE.replace("1b", "1b blend 1.5s spherical") + SQUARE)
    boundary.select_option("seed")
    desk.wait_until(seed.is_visible, lambda: "there is no field for the seed")
    drawn = seed.input_value()
    assert drawn.isdecimal()
    desk.wait_for_script(HEADER + RED + BLUE.replace("1b", f"1b blend 1.5s spherical seed {drawn}") + SQUARE)
    assert boundary.input_value() == "blend"

    seed.fill("-1")
    assert seed.get_attribute("aria-invalid") == "true"
    seed.fill("")
    seed.press("Tab")
    boundary.select_option("recache")
    desk.wait_for_script(SCRIPT)
    assert not blend.is_visible()
    assert not seed.is_visible()

    desk.duration(1).fill("1b keep seed 18446744073709551615")
    desk.duration(1).press("Tab")
    desk.wait_for_script(HEADER + RED + BLUE.replace("1b", "1b keep seed 18446744073709551615") + SQUARE)
    assert (desk.duration(1).input_value(), boundary.input_value(), seed.input_value()) == (
        "1b",
        "keep",
        str(2**64 - 1),
    )


def test_the_comment_on_top_stays_there_however_rows_move(desk: Desk):
    desk.prompt(2).press("Alt+ArrowUp")
    desk.wait_for_script(HEADER + RED + SQUARE + BLUE)
    desk.prompt(1).press("Alt+ArrowUp")

    desk.wait_for_script(HEADER + SQUARE + RED + BLUE)


def test_a_row_is_dragged_by_its_grip(desk: Desk):
    desk.editor.locator(".longlive-grip").nth(2).hover()
    desk.page.mouse.down()
    box = desk.editor.locator(".longlive-row").first.bounding_box()
    assert box
    desk.page.mouse.move(box["x"] + 10, box["y"] + 2, steps=8)
    desk.page.mouse.up()

    desk.wait_for_script(HEADER + SQUARE + RED + BLUE)


def test_segments_are_added_removed_and_written_as_text(desk: Desk):
    desk.editor.locator(".longlive-remove").nth(1).click()
    desk.wait_for_script(HEADER + RED + SQUARE)
    desk.editor.locator(".longlive-add").click()
    desk.page.keyboard.type(GREEN)
    desk.wait_for_script(f"{HEADER}{RED}{SQUARE}1b | {GREEN}\n")

    desk.editor.locator(".longlive-toggle").click()
    text = desk.editor.locator(".longlive-script")
    text.fill("2b cut | one\n3b | two")
    desk.editor.locator(".longlive-toggle").click()

    assert desk.prompts() == ["one", "two"]
    assert desk.script() == "2b cut | one\n3b | two"


@pytest.mark.parametrize(
    ("edit", "edited"),
    [
        (lambda desk: desk.editor.locator(".longlive-remove").nth(1).click(), HEADER + RED + SQUARE),
        (lambda desk: desk.prompt(2).press("Alt+ArrowUp"), HEADER + RED + SQUARE + BLUE),
        (lambda desk: desk.duration(0).press("ArrowUp"), HEADER + RED.replace("1b", "2b") + BLUE + SQUARE),
    ],
    ids=["remove", "move", "lengthen"],
)
def test_undo_and_redo_from_inside(desk: Desk, edit, edited):
    desk.prompt(0).click()
    edit(desk)
    desk.wait_for_script(edited)

    desk.page.keyboard.press("Control+z")
    desk.wait_for_script(SCRIPT)
    desk.prompt(0).click()
    desk.page.keyboard.press("Control+y")

    desk.wait_for_script(edited)


def test_typing_is_undone_before_anything_else(desk: Desk):
    desk.editor.locator(".longlive-remove").nth(1).click()
    desk.prompt(0).press("End")
    desk.page.keyboard.type(" and more")
    for _ in " and more":  # a browser takes back one letter or all of them
        if desk.script() != HEADER + RED + SQUARE:
            desk.page.keyboard.press("Control+z")
    desk.wait_for_script(HEADER + RED + SQUARE)
    desk.page.keyboard.press("Control+z")

    desk.wait_for_script(SCRIPT)


def test_pasted_lines_show_what_the_script_keeps(desk: Desk):
    desk.prompt(0).fill("")
    desk.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    desk.page.evaluate("navigator.clipboard.writeText('a fox\\n# not a comment\\n5s | not a segment')")
    desk.page.keyboard.press("Control+v")

    kept = "a fox # not a comment 5s | not a segment"
    desk.wait_for_script(f"{HEADER}1b | {kept}\n{BLUE}{SQUARE}")
    assert desk.prompt(0).input_value() == kept


def test_a_workflow_is_saved_from_inside_and_there_after_a_reload(desk: Desk):
    desk.prompt(2).fill(GREEN)
    name = f"kept {desk.is_vue}"
    desk.page.keyboard.press("Control+s")
    dialog = desk.page.locator("[role=dialog] input:visible").first
    dialog.fill(name)
    dialog.press("Enter")
    edited = f"{HEADER}{RED}{BLUE}1b | {GREEN}\n"
    desk.page.wait_for_function("() => !app.extensionManager.workflow.activeWorkflow.isModified")
    nodes = json.loads(desk.find_saved(name).read_text())["nodes"]
    assert [node["widgets_values"] for node in nodes if node["type"] == "LongLiveTimeline"] == [[edited]]

    desk.open()

    desk.wait_for_script(edited)
    desk.look_at("LongLiveTimeline")
    assert desk.prompts()[2] == GREEN


def test_a_copied_node_has_a_separate_editor(desk: Desk):
    desk.select("LongLiveTimeline")
    desk.page.evaluate("() => { app.canvas.copyToClipboard(); app.canvas.pasteFromClipboard(); }")
    desk.page.wait_for_function("() => app.graph.nodes.filter(node => node.type === 'LongLiveTimeline').length === 2")
    desk.page.evaluate("""() => {
        const [first, second] = app.graph.nodes.filter(node => node.type === "LongLiveTimeline");
        first.pos = [0, 0];
        second.pos = [560, 0];
    }""")
    desk.look_at("LongLiveTimeline")
    desk.editor.nth(1).locator(".longlive-prompt").first.fill(GREEN)

    scripts = desk.page.evaluate(
        "() => app.graph.nodes.filter(n => n.type === 'LongLiveTimeline').map(n => n.widgets[0].value)"
    )
    assert scripts == [SCRIPT, f"{HEADER}1b | {GREEN}\n{BLUE}{SQUARE}"]


PIPELINE = ("LongLiveSession", "LongLiveTimeline", "LongLiveDecode")


@pytest.mark.parametrize("types", [("LongLiveTimeline",), PIPELINE], ids=["timeline", "pipeline"])
def test_nodes_fold_into_a_subgraph_and_back(desk: Desk, types):
    before = desk.page.evaluate("async () => (await app.graphToPrompt()).output")
    fold(desk, *types)
    enter(desk)
    desk.prompt(2).fill(GREEN)
    edited = f"{HEADER}{RED}{BLUE}1b | {GREEN}\n"
    desk.wait_for_script(edited)
    leave(desk)
    desk.run()

    desk.page.evaluate("() => app.canvas.select(app.graph.nodes.find(node => node.isSubgraphNode?.()))")
    desk.command("Comfy.Graph.UnpackSubgraph")
    desk.page.wait_for_function("() => !app.graph.nodes.some(node => node.isSubgraphNode?.())")

    after = desk.page.evaluate("async () => (await app.graphToPrompt()).output")
    assert sorted(node["class_type"] for node in after.values()) == sorted(
        node["class_type"] for node in before.values()
    )
    desk.look_at("LongLiveTimeline")
    assert desk.script() == edited
    assert desk.prompts()[2] == GREEN


def test_a_promoted_editor_is_in_step_with_the_one_inside(desk: Desk):
    fold(desk, *PIPELINE)
    promote(desk)
    leave(desk)
    desk.prompt(2).fill(GREEN)
    edited = f"{HEADER}{RED}{BLUE}1b | {GREEN}\n"
    desk.wait_for_script(edited)
    desk.editor.locator(".longlive-remove").first.click()
    desk.wait_for_script(edited.replace(RED, ""))
    desk.page.keyboard.press("Control+z")
    desk.wait_for_script(edited)
    desk.run()

    enter(desk)
    assert "subgraph" in desk.editor.locator(".longlive-message").inner_text()
    assert desk.prompts()[2] == GREEN
    leave(desk)
    workflow = json.loads(desk.page.evaluate("() => JSON.stringify(app.graph.serialize())"))
    desk.load(workflow, "promoted")
    leave(desk)

    assert desk.prompts()[2] == GREEN
    assert desk.script() == edited


def test_rows_keep_their_height_after_a_run(desk: Desk):
    node = "app.graph.nodes.find(node => node.type === 'LongLiveTimeline')"
    desk.page.evaluate(f"() => {node}.setSize([520, 330])")
    desk.duration(2).fill("3b")
    desk.prompt(2).fill(
        "a green ring moves up at dusk" + " by day" * desk.is_vue
    )  # not made before, so it is previewed
    desk.run()
    desk.page.wait_for_function(
        f"() => {node}.imgs?.length > 0 || document.querySelector(`[data-node-id='${{{node}.id}}'] img`)"
    )
    desk.settle()

    editor = desk.editor.bounding_box()
    last = desk.prompt(2).bounding_box()
    foot = desk.editor.locator(".longlive-footer").bounding_box()
    assert editor
    assert last
    assert foot
    assert last["height"] >= 20
    assert last["y"] + last["height"] <= foot["y"]
    assert foot["y"] + foot["height"] <= editor["y"] + editor["height"]


def test_the_frame_of_an_error_goes_when_the_script_is_mended(desk: Desk):
    has_error = "() => Boolean(app.graph.nodes.find(node => node.type === 'LongLiveTimeline').has_errors)"
    desk.duration(0).fill("8")
    desk.command("Comfy.QueuePrompt")
    desk.page.wait_for_function(has_error)
    desk.duration(0).fill("1")
    assert desk.page.evaluate(has_error)

    desk.duration(0).fill("1b")

    desk.page.wait_for_function(f"() => !({has_error})()")


def test_wheel_and_buttons_reach_the_canvas_where_nothing_needs_them(desk: Desk):
    box = desk.editor.locator(".longlive-ruler").bounding_box()
    assert box
    desk.page.mouse.move(box["x"] + 30, box["y"] + 10)
    view = "() => [app.canvas.ds.scale, ...app.canvas.ds.offset]"
    desk.page.mouse.wheel(0, -120)
    desk.page.wait_for_function("() => app.canvas.ds.scale > 1")
    desk.settle()
    before = desk.page.evaluate(view)

    box = desk.editor.locator(".longlive-ruler").bounding_box()
    assert box
    desk.page.mouse.move(box["x"] + 30, box["y"] + 10)
    desk.page.mouse.down(button="middle")
    desk.page.mouse.move(box["x"] + 130, box["y"] + 60, steps=5)
    desk.page.mouse.up(button="middle")
    desk.settle()
    after = desk.page.evaluate(view)
    assert after[0] == before[0]
    assert after[1] - before[1] == pytest.approx(100 / after[0], abs=2)
    assert after[2] - before[2] == pytest.approx(50 / after[0], abs=2)

    desk.page.mouse.click(box["x"] + 130, box["y"] + 60, button="right")
    desk.page.get_by_text("Bypass", exact=True).first.wait_for()
    desk.page.keyboard.press("Escape")


def test_a_linked_script_is_shown_and_its_socket_seen(desk: Desk):
    desk.page.evaluate("""async () => {
        const text = LiteGraph.createNode("PrimitiveStringMultiline");
        text.pos = [100, -400];
        text.title = "My words";
        app.graph.add(text);
        text.widgets[0].value = "1b | linked\\n2b | words";
        const timeline = app.graph.nodes.find(node => node.type === "LongLiveTimeline");
        text.connect(0, timeline, "script");
    }""")
    box = desk.editor.bounding_box()
    assert box
    desk.page.mouse.move(box["x"] + 50, box["y"] + 50)
    assert "My words" in desk.editor.locator(".longlive-message").inner_text()
    assert desk.prompts() == ["linked", "words"]
    y = desk.page.evaluate("""() => {
        const node = app.graph.nodes.find(node => node.type === "LongLiveTimeline");
        return ["session", "clip", "script"].map(name => node.getInputPos(node.findInputSlot(name))[1]);
    }""")
    assert y[2] - y[1] > 10
    assert y[1] - y[0] > 10


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_no_node_overlaps_another_and_no_wire_runs_behind_one(any_desk: Desk, workflow: Path):
    any_desk.load(json.loads(workflow.read_text()), workflow.stem)
    any_desk.page.evaluate("() => { app.canvas.ds.scale = 0.3; app.canvas.ds.offset = [800, 400]; }")
    any_desk.page.wait_for_function(
        "() => { app.canvas.draw(true, true); return [...app.canvas.renderedPaths].length; }"
    )
    any_desk.settle()

    assert list_covered(any_desk) == []


OWN_NUMBERS = {
    "LongLive": [12, 3, 3, "1000, 750, 500, 250", "absolute"],
    "Rolling Forcing": [21, 3, 3, "1000, 800, 600, 400, 200", "unbounded"],
}
CHOOSE_KIND = """kind => {
    const node = app.graph.nodes.find(node => node.type === "LongLiveOptions");
    const widget = node.widgets.find(widget => widget.name === "kind");
    if (kind) widget.setValue(kind, { e: {}, node, canvas: app.canvas });
    return ["window", "sink", "block", "steps", "positions"].map(
        name => node.widgets.find(widget => widget.name === name).value);
}"""


def test_a_chosen_kind_sets_the_released_numbers_and_an_opened_workflow_keeps_its_own(any_desk: Desk):
    workflow = json.loads(WORKFLOWS[7].read_text())
    options = next(node for node in workflow["nodes"] if node["type"] == "LongLiveOptions")
    options["widgets_values"][0] = 24
    any_desk.load(workflow, "kinds")

    assert any_desk.page.evaluate(CHOOSE_KIND) == [24, *OWN_NUMBERS["Rolling Forcing"][1:]]
    assert any_desk.page.evaluate(CHOOSE_KIND, "Rolling Forcing")[0] == 24  # it is that already
    for kind in OWN_NUMBERS:
        assert any_desk.page.evaluate(CHOOSE_KIND, kind) == OWN_NUMBERS[kind]
