"""A ComfyUI server with this pack in it, driven over HTTP and its web socket.

    with ComfyUI(NEWEST) as host:
        history = host.run({"1": {"class_type": "LongLiveSession", "inputs": {...}}, ...})

`python tests/host/host_process.py PORT` starts the newest host for use in a browser.
"""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_futures
from pathlib import Path
from types import TracebackType
from typing import Self

import model_files
import websocket
from host_messages import Event, Graph, History, HostError, Interrupted, parse_message
from hosts import NEWEST, REPOSITORY, Host

sys.path.append(str(REPOSITORY / "tests"))  # where pytest finds it by itself, and the script does not
from patience import LIMIT_SECONDS, Patience

log = logging.getLogger(__name__)

PACK = "longlive-sessions"  # the folder's name in custom_nodes, and so in /extensions/
TEST_NODES = Path(__file__).parent / "testnodes"
FOLDERS = ("custom_nodes", "input", "models", "output", "temp", "user")


class ComfyUI:
    """A host process with a base directory of its own; `with` starts and ends it."""

    def __init__(
        self,
        host: Host = NEWEST,
        base: Path | None = None,
        *,
        flags: Sequence[str] = (),
        port: int | None = None,
        test_nodes: bool = True,
        media_source: bool = False,
    ) -> None:
        self.host, self.flags, self.port = host, tuple(flags), port or find_free_port()
        self.media_source = media_source  # whether pages may use it, which a host with API nodes lets them
        self.address = f"http://127.0.0.1:{self.port}"
        self.client_id = uuid.uuid4().hex
        self.events: list[Event] = []
        self._changed = threading.Condition()
        self._process: subprocess.Popen | None = None
        self._temporary = tempfile.mkdtemp(prefix="comfyui-") if base is None else None
        self.base = Path(self._temporary or base or "")
        self._furnish(test_nodes)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def output(self) -> Path:
        return self.base / "output"

    @property
    def models(self) -> Path:
        return self.base / "models"

    @property
    def log(self) -> str:
        """All output of the process since the base directory was made."""
        return self._log_file.read_text(errors="replace")

    @property
    def notes(self) -> dict[str, str]:
        """The last text that each node showed below itself, which a page still shows."""
        return {event.data["node"]: event.data["text"] for event in self.events if event.type == "note"}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the process and wait until it answers. A host that was stopped or killed can be started again."""
        command = [sys.executable, str(self.host.main), "--cpu", "--base-directory", str(self.base)]
        command += ["--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch"]
        command += [] if self.media_source else ["--disable-api-nodes"]
        command += ["--database-url", f"sqlite:///{self.base}/user/comfyui.db"]
        command += ["--preview-method", "latent2rgb"]
        environment = os.environ | {"PYTHONPATH": self.host.python_path, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        with self._log_file.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, *self.flags],
                cwd=self.base,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait(self._is_up, "its first answer")
            self._listen()
        except BaseException:
            self.kill()
            raise

    def stop(self, *, seconds: float = 10) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End the process as a power cut would (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def join(self) -> None:
        """Wait until the process ends by itself."""
        if self._process is not None:
            self._process.wait()

    def run(self, graph: Graph) -> History:
        """Queue a prompt and wait for its end."""
        return self.wait(self.queue(graph))

    def queue(self, graph: Graph) -> str:
        """Queue a prompt and return its id; raise `HostError` where the host refuses it."""
        answer = self.post("/prompt", {"prompt": graph, "client_id": self.client_id})
        if answer["node_errors"]:
            raise HostError(json.dumps(answer["node_errors"], indent=1))
        return answer["prompt_id"]

    def wait(self, prompt_id: str) -> History:
        """Wait for the end of a prompt; raise `HostError` or `Interrupted` where it failed."""

        def ended(event: Event) -> bool:
            return event.type == "executing" and event.data["node"] is None and event.data["prompt_id"] == prompt_id

        self.wait_for(ended, f"the end of prompt {prompt_id}")
        record = self.get(f"/history/{prompt_id}")[prompt_id]
        messages = tuple((kind, data) for kind, data in record["status"]["messages"])
        for kind, data in messages:
            if kind == "execution_interrupted":
                raise Interrupted(f"{data['node_type']} (node {data['node_id']}) was interrupted")
            if kind == "execution_error":
                where = f"{data['node_type']} (node {data['node_id']})"
                trace = "".join(data["traceback"])
                raise HostError(f"{where}: {data['exception_type']}: {data['exception_message']}\n{trace}")
        events = tuple(event for event in self.events if event.data.get("prompt_id") == prompt_id)
        ran = (event.data["node"] for event in events if event.type == "executing" and event.data["node"] is not None)
        return History(
            prompt_id=prompt_id,
            outputs=record["outputs"],
            executed=tuple(dict.fromkeys(ran)),
            cached=tuple(node for kind, data in messages if kind == "execution_cached" for node in data["nodes"]),
            events=events,
            messages=messages,
        )

    def wait_for(self, wanted: Callable[[Event], bool], what: str = "an event") -> Event:
        """Wait for the first wanted event, past or new; raises TimeoutError if the host is stuck."""
        seen, found = 0, None

        def is_there() -> bool:
            nonlocal seen, found
            events, seen = self.events[seen:], len(self.events)
            found = found or next(filter(wanted, events), None)
            return found is not None

        with self._changed:
            self._wait(is_there, what, pause=lambda: self._changed.wait(1))
        assert found is not None
        return found

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def free(self) -> None:
        """Unload the models and empty the host's cache, as its button does."""
        self.post("/free", {"unload_models": True, "free_memory": True})
        for number in range(2):  # it frees between two prompts, the first of these or these two
            self.run(make_empty_graph(number))

    def object_info(self) -> dict[str, dict]:
        return self.get("/object_info")

    def get(self, path: str):
        """Fetch a path: parsed if it is JSON, else bytes."""
        return self._request(path)

    def post(self, path: str, body: Mapping[str, object]):
        return self._request(path, json.dumps(body).encode())

    @property
    def _log_file(self) -> Path:
        return self.base / "comfyui.log"

    def _furnish(self, test_nodes: bool) -> None:
        for folder in FOLDERS:
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        link(self.base / "custom_nodes" / PACK, REPOSITORY)
        if test_nodes:
            link(self.base / "custom_nodes" / TEST_NODES.name, TEST_NODES)
        if not (self.models / model_files.DIT).exists():
            model_files.write_models(self.models)

    def _request(self, path: str, body: bytes | None = None):
        answer = Future()
        threading.Thread(target=fetch, args=(self.address + path, body, answer), daemon=True).start()
        self._wait(answer.done, f"an answer to {path}", pause=lambda: wait_for_futures([answer], 1))
        return answer.result()

    def _is_up(self) -> bool:
        try:
            return bool(self.get("/system_stats"))
        except OSError:
            return False

    def _wait(
        self, condition: Callable[[], bool], what: str, pause: Callable[[], object] = lambda: time.sleep(0.1)
    ) -> None:
        patience = Patience(self.pid, f"{what} of ComfyUI {self.host.version}")
        while not condition():
            self._assert_alive()
            try:
                patience.check()
            except TimeoutError as error:
                raise TimeoutError(f"{error}; it says:\n{self.log[-4000:]}") from None
            pause()

    def _assert_alive(self) -> None:
        if self._process is None or self._process.poll() is not None:
            raise HostError(f"ComfyUI {self.host.version} has ended; it said:\n{self.log[-4000:]}")

    def _listen(self) -> None:
        url = f"ws://127.0.0.1:{self.port}/ws?clientId={self.client_id}"
        connection = websocket.create_connection(url, timeout=LIMIT_SECONDS)
        connection.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
        connection.settimeout(None)
        threading.Thread(target=self._receive, args=(connection,), daemon=True).start()

    def _receive(self, connection: websocket.WebSocket) -> None:
        """Collect events until the host ends the connection."""
        try:
            while True:
                event = parse_message(connection.recv())
                if event is not None:
                    with self._changed:
                        self.events.append(event)
                        self._changed.notify_all()
        except (websocket.WebSocketException, OSError):
            connection.close()


def fetch(url: str, body: bytes | None, answer: Future) -> None:
    """Request a URL and put its answer, or the error, into `answer`."""
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=LIMIT_SECONDS) as reply:
            content, kind = reply.read(), reply.headers.get_content_type()
        answer.set_result(json.loads(content) if kind == "application/json" and content else content)
    except urllib.error.HTTPError as error:
        with error:
            reply = error.read().decode(errors="replace")
        answer.set_exception(HostError(f"{urllib.parse.urlsplit(url).path}: {error.code}: {reply}"))
    except BaseException as error:
        answer.set_exception(error)


def make_empty_graph(number: int) -> Graph:
    """Make a prompt that does no work."""
    value = {"class_type": "PrimitiveInt", "inputs": {"value": number}}
    return {"value": value, "shown": {"class_type": "PreviewAny", "inputs": {"source": ["value", 0]}}}


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_symlink():
        path.symlink_to(target, target_is_directory=True)


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main(port: int) -> None:
    """Run the newest host until Ctrl-C; its base directory is kept."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the host never outlives this process
    base = REPOSITORY / ".cache" / "comfyui"
    with ComfyUI(NEWEST, base, port=port) as host:
        log.info("ComfyUI %s is at %s", host.host.version, host.address)
        log.info("Open Templates > %s, choose a workflow and run it.", PACK)
        log.info("It writes into %s. Ctrl-C ends it.", host.base)
        try:
            host.join()
        except KeyboardInterrupt:
            log.info("Ended")


if __name__ == "__main__":
    main(int(sys.argv[1]))
