"""The node that makes a video while somebody directs it."""

from comfy_api.latest import InputImpl, io

from ..longlive.live.take import ADDRESS
from .decode import describe_workflow
from .host import paths
from .host.directing import Studio
from .inputs import make_clip_input
from .sampling import check_script
from .sockets import LiveSession, SessionSocket

LONGEST_SECONDS = 240.0  # the longest video of the paper


class Live(io.ComfyNode):
    """Make the video block by block until told to stop, and obey what its panel is told meanwhile (LongLive §3.1)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLiveLive",
            display_name="LongLive Live",
            category="LongLive",
            description="Directs a video while it is made: press Direct, watch, type the next prompt.",
            search_aliases=["longlive", "interactive", "direct", "realtime", "live video", "stream"],
            is_output_node=True,
            inputs=[
                SessionSocket.Input("session", tooltip="The video so far, or a new LongLive Session."),
                make_clip_input(),
                io.Vae.Input(
                    "vae",
                    tooltip="The Wan2.1 VAE, or the miniature's. Or a tiny VAE: many times faster, softer pictures.",
                ),
                io.String.Input(
                    "script",
                    multiline=True,
                    default="",
                    tooltip="What was directed, as a timeline. Run makes this video again; Direct continues it.",
                ),
                io.String.Input(
                    "take",
                    default="",
                    tooltip="The address of one directed run. The panel writes it; leave it as it is.",
                ),
                io.Float.Input(
                    "longest",
                    default=LONGEST_SECONDS,
                    min=1.0,
                    max=3600.0,
                    step=1.0,
                    tooltip="Seconds of video after which a directed run stops by itself.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="video/LongLive_live",
                    tooltip="Folder and beginning of the file name, in the output folder.",
                ),
            ],
            outputs=[
                SessionSocket.Output(display_name="session", tooltip="The video as it was directed."),
                io.Video.Output(display_name="video", tooltip="The finished file."),
                io.String.Output(display_name="script", tooltip="What was directed, as a timeline."),
            ],
        )

    @classmethod
    def validate_inputs(cls, script: str | None = None, take: str | None = None) -> bool | str:
        """Refuse a script that does not parse, and a take that is no address, before any model is loaded."""
        if take and not (isinstance(take, str) and ADDRESS.fullmatch(take)):
            return "take is not an address of 32 hexadecimal digits; leave it empty, or let the panel write it"
        return check_script(script) if script and (not isinstance(script, str) or script.strip()) else True

    @classmethod
    def execute(
        cls, session: LiveSession, clip, vae, script: str, take: str, longest: float, filename_prefix: str
    ) -> io.NodeOutput:
        video = session.session
        path, subfolder = paths.choose_video_path(filename_prefix, video.width, video.height)
        directed = Studio(session.model, clip, vae).direct(video, script, take, longest)
        shown = {"longlive_film": [directed.film_id]}
        if not directed.script:
            return io.NodeOutput(ui=shown, block_execution="nothing was directed, so there is no video yet")
        directed.film.save(path, describe_workflow(cls))
        shown |= {"longlive_video": [{"filename": path.name, "subfolder": subfolder, "type": io.FolderType.output}]}
        return io.NodeOutput(
            session.with_session(directed.session),
            InputImpl.VideoFromFile(str(path)),
            directed.script,
            ui=shown,
        )


NODES = [Live]
