"""A prefix that is called while a real worker trains it: what is served is what the trainer had."""

import contextlib
import threading
import time

from service_making import complete, serving
from trainer_making import Recorder, dataset, order, train

from prefix_engine import Engine, EngineConfig, Prefix, Request
from prefix_engine.template import Template
from prefix_engine.testing import Collected
from trainer_worker.report import Stopped
from trainer_worker.settings import WorkerSettings
from trainer_worker.worker import Worker

WISHES = {"max_steps": 3000, "batch_size": 8, "eval_steps": 4}
PROMPT = "a7"


class Working:
    """A worker in a thread, whose training runs in a real process."""

    def __init__(self, store, folder):
        settings = WorkerSettings(
            base_model=folder, worker_threads=1, worker_poll_seconds=0.05, worker_checkpoint_seconds=0.05
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=Worker(store, settings, self._stop).run)

    def __enter__(self):
        self._thread.start()

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(120)
        assert not self._thread.is_alive()


def until(accept):
    give_up = time.monotonic() + 120
    while not (found := accept()):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    return found


def generated(base, payload, prompt, tokens):
    """What the engine alone writes behind these bytes, greedily."""
    template = Template.of(base.tokenizer)
    engine = Engine(base, EngineConfig(rows=1), lambda _: Prefix.from_bytes(payload, base))
    engine.start()
    sink = Collected()
    asked = tuple(template.prompt_ids(base.tokenizer, prompt))
    engine.submit(Request(asked, tokens, template.end_id, prefix_id="best"), sink)
    sink.wait(120)
    engine.close()
    return sink.text


def bests_of(base, data, until_step):
    """The best prefixes of the same run, told in this process, by the update that led to them."""
    report = Recorder(lambda told: bool(told.bests) and told.bests[-1][0]["metrics"]["step"] >= until_step)
    with contextlib.suppress(Stopped):  # where it is far enough
        train(base, order(data, seed=1, wishes=WISHES, checkpoint_seconds=0.0), report)
    return {fields["metrics"]["step"]: (fields, payload) for fields, payload in report.bests}


def test_what_is_served_while_it_trains_is_the_trainers_best_so_far(tmp_path, folder, base):
    data = dataset(120)
    with serving(tmp_path, base=base) as service:
        acme = service.tenant()
        alice = service.user(acme, "alice")
        file = service.upload(alice, data).json()["id"]
        body = {"model": base.name, "training_file": file, "suffix": "voice", "seed": 1}
        made = alice.post("/v1/fine_tuning/jobs", json={**body, "hyperparameters": WISHES})
        job = made.json()["id"]
        name, path = f"alice:voice@{job}", f"/v1/fine_tuning/jobs/{job}"

        def kept():
            found = alice.get(f"{path}/checkpoints").json()["data"]
            return found[0] if found and found[0]["step_number"] > 0 else None

        with Working(service.store, folder):
            until(kept)
            assert alice.get(path).json()["status"] == "running"
            assert complete(alice, name, PROMPT).status_code == 200
        assert alice.get(path).json()["status"] == "queued"  # cut: its worker was told to stop
        last = kept()
        answer = complete(alice, name, PROMPT, max_tokens=24).json()  # while it waits to be claimed again
        assert answer["prefix_version"] == f"{name}-step-{last['step_number']}"
        resolved = service.store.registry.resolve(acme.scope, name)
        served = service.store.registry.read(resolved)
        fields, payload = bests_of(base, data, last["step_number"])[last["step_number"]]
        assert fields["metrics"] == last["metrics"]
        assert (fields["m"], fields["position_offset"]) == (resolved.m, resolved.position_offset)
        assert (fields["template"], resolved.base_fingerprint) == (resolved.template, base.fingerprint)
        assert served == payload
        assert answer["choices"][0]["text"] == generated(base, payload, PROMPT, 24)
