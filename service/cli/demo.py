"""The whole loop once, with real processes: tenant, users, datasets, training, generation, deletion.

The demo is a client like any other: it starts the two processes, then knows only the wire.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from service.cli import demo_table
from service.cli.children import Children, free_port
from service.cli.connection import Connection, Json, Refused
from service.cli.curve import curves
from service.cli.datasets import send
from service.cli.demo_answers import Stream, ask_together
from service.cli.demo_voices import CARRIED, VOICES, Question, Voice, questions, training_file
from service.cli.jobs import start, verdict
from service.cli.progress import Watched, patient, watch
from service.cli.tenancy import erase
from service.cli.terminal import CommandError, complain, plain

QUESTIONS_EACH = 2
SEED = 7
PLAIN_WIDTH = 150  # columns of the table where there is no terminal to ask


@dataclass(slots=True)
class Member:
    """A user of the demo, its key's connection and what came of its training."""

    voice: Voice
    connection: Connection
    job: Json
    questions: list[Question]


def run(data: Path | None, base_model: str, max_steps: int | None) -> None:
    """Start service and worker and tell the story; what fails is raised after the logs' tails were printed."""
    folder = data or CARRIED
    for voice in VOICES:
        training_file(folder, voice)
    with tempfile.TemporaryDirectory(prefix="prefixserve-demo-") as name:
        home = Path(name)
        port = free_port()
        with Children(_environment(home, port, base_model), home) as children:
            try:
                story = Story(children, f"http://127.0.0.1:{port}", max_steps)
                _start(story, children)
                story.tell((home / "store" / "secrets" / "admin_key").read_text().strip(), folder)
                story.say("stopping the processes")
                children.stop()
                story.say("done")
            except BaseException:
                complain(f"the demo failed; its processes wrote last:\n{children.tails()}")
                raise


def _environment(home: Path, port: int, base_model: str) -> dict[str, str]:
    """This process's environment, but with none of its PREFIX_ settings: the demo touches no other store."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFIX_")}
    return kept | {
        "PREFIX_DATA_DIR": str(home / "store"),
        "PREFIX_HOST": "127.0.0.1",
        "PREFIX_PORT": str(port),
        "PREFIX_METRICS_PORT": str(free_port()),
        "PREFIX_BASE_MODEL": base_model,
        "PYTHONUNBUFFERED": "1",
    }


def _start(story: "Story", children: Children) -> None:
    story.say(f"starting service and worker on {story.url}")
    children.start("service", "service")
    children.wait_ready(story.url)
    children.start("worker", "trainer_worker")


class Story:
    """The demo's acts, in order, on a service and a worker that run; `children` are watched meanwhile."""

    def __init__(self, children: Children, url: str, max_steps: int | None) -> None:
        self._children, self.url, self._max_steps = children, url, max_steps
        self._console = Console(highlight=False)
        if not self._console.is_terminal:
            self._console = Console(highlight=False, width=PLAIN_WIDTH)
        self._began = time.monotonic()

    def tell(self, admin_key: str, folder: Path = CARRIED) -> None:
        """Every act; the first failure ends the story."""
        with Connection(self.url, admin_key) as admin:
            made = admin.post("/v1/tenants", {"name": "demo"})
        with Connection(self.url, made["api_key"]) as tenant:
            members = [self._enrol(tenant, voice, folder) for voice in VOICES]
            try:
                self._train(members)
                self._answer(tenant, members)
                self._delete(tenant, members)
            finally:
                for member in members:
                    member.connection.close()

    def _enrol(self, tenant: Connection, voice: Voice, folder: Path) -> Member:
        file = training_file(folder, voice)
        tenant.post("/v1/users", {"id": voice.user})
        key = tenant.post("/v1/keys", {"user": voice.user})["api_key"]
        connection = Connection(self.url, key)
        dataset = send(connection, file)
        steps = self._max_steps or voice.max_steps
        job = start(connection, voice.suffix, dataset["id"], {"max_steps": steps}, seed=SEED)
        self.say(f"{voice.user}: {file.name} uploaded, job queued for {voice.prefix}")
        return Member(voice, connection, job, questions(folder, voice, QUESTIONS_EACH))

    def _train(self, members: Sequence[Member]) -> None:
        self.say("training three prefixes; the worker takes one job after the other")
        watched = [Watched(m.voice.prefix, m.job["id"], m.connection) for m in members]
        ended = watch(watched, self._console, self._children.check)
        for member, job in zip(members, ended, strict=True):
            member.job = job
            self._console.print(plain(f"  {verdict(job)}"))
            told = member.connection.pages(f"/v1/fine_tuning/jobs/{job['id']}/events")
            for line in curves(told):
                self._console.print(plain(f"    {line}"))
            if job["status"] != "succeeded" or not (job.get("result") or {}).get("promoted"):
                raise CommandError(f"{member.voice.prefix} did not go live")

    def _answer(self, tenant: Connection, members: Sequence[Member]) -> None:
        base = tenant.get("/v1/models")["data"][0]["id"]
        pairs: list[tuple[Member, Question, Stream, Stream]] = []
        for member in members:
            for question in member.questions:
                limit, key = member.voice.max_tokens, member.connection
                # The base model reads what a prefix's rows read, the line break after the prompt included.
                plain_stream = Stream(base, question.prompt + "\n", limit, key)
                pairs.append(
                    (member, question, plain_stream, Stream(member.voice.prefix, question.prompt, limit, key))
                )
        streams = [stream for _, _, *both in pairs for stream in both]
        self.say(f"sending {len(streams)} prompts at the same moment: three users and the bare base model")
        most = ask_together(streams, self._console)
        if most < 2:
            raise CommandError("no two answers were streamed at the same moment")
        self.say(f"up to {most} answers were streamed at the same moment")
        for member in members:
            rows = [
                demo_table.Row(question.prompt, left.text, right.text, question.reference)
                for owner, question, left, right in pairs
                if owner is member
            ]
            result = member.job["result"]
            self._console.print(
                demo_table.table(
                    member.voice.prefix, base, rows, result["base_loss"], result["held_out_loss"]
                )
            )

    def _delete(self, tenant: Connection, members: Sequence[Member]) -> None:
        gone, *left = members
        other, name = left[0], gone.voice.prefix
        self._expect(other.connection, name, 404, f"{other.voice.user}'s key asks for {name}")
        self.say(f"deleting {gone.voice.user}")
        erase(tenant, f"/v1/users/{gone.voice.user}", gone.voice.user)
        self._expect(tenant, name, 404, f"the tenant's key asks for {name}")
        self._expect(gone.connection, name, 401, f"{gone.voice.user}'s own key asks for {name}")
        for member in left:
            self._expect(member.connection, member.voice.prefix, 200, f"{member.voice.prefix} still answers")

    def _expect(self, connection: Connection, model: str, status: int, what: str) -> None:
        body = {"model": model, "prompt": "category : music | answer : R. Kelly", "max_tokens": 8}
        try:
            patient(lambda: connection.post("/v1/completions", body))
            got = 200
        except Refused as error:
            got = error.status
        if got != status:
            raise CommandError(f"{what}: {got} instead of {status}")
        self._console.print(plain(f"  {what}: {got}"))

    def say(self, what: str) -> None:
        """One line, with the seconds since the story's begin."""
        self._console.print(plain(f"[{time.monotonic() - self._began:6.1f} s] {what}"))
