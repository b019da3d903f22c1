"""The official `openai` client drives the whole loop by its base_url alone: upload, train, generate, delete."""

import asyncio
import time

import openai
import pytest
from real_processes import ADMIN_KEY, Machine, carried, jsonl

from prefix_engine import load_base
from prefix_engine.template import Template

pytestmark = pytest.mark.timeout(600)
QUICK = {"max_steps": 24, "prefix_length": 6}
PROMPT = "category : music | answer : R. Kelly"


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    with Machine(tmp_path_factory.mktemp("machine"), worker_checkpoint_seconds=0.5) as machine:
        machine.serve()
        machine.work()
        yield machine


@pytest.fixture(scope="module")
def acme(machine):
    return machine.tenant()


@pytest.fixture(scope="module")
def alice_key(machine, acme):
    return machine.user(acme, "alice").key


@pytest.fixture(scope="module")
def alice(machine, alice_key):
    with openai.OpenAI(base_url=f"{machine.url}/v1", api_key=alice_key) as client:
        yield client


@pytest.fixture(scope="module")
def trained(machine, alice):
    """A job that went through: from a file with a validation file beside it."""
    rows = carried("quiz_master_train", 160)
    train = alice.files.create(file=("train.jsonl", jsonl(rows[:120])), purpose="fine-tune")
    held_out = alice.files.create(file=("held-out.jsonl", jsonl(rows[120:])), purpose="fine-tune")
    job = alice.fine_tuning.jobs.create(
        model="gpt2-mini",
        training_file=train.id,
        validation_file=held_out.id,
        suffix="quiz",
        seed=3,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
        extra_body={"hyperparameters": QUICK},
    )
    assert job.status == "queued"
    give_up = time.monotonic() + 300
    while job.status in {"queued", "running", "validating_files"}:
        assert time.monotonic() < give_up, machine.said("trainer_worker")[-3000:]
        time.sleep(0.5)
        job = alice.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job
    return job


def test_it_lists_models_base_first(alice, trained):
    models = alice.models.list()
    assert models.data[0].id == "gpt2-mini"
    assert "alice:quiz" in [model.id for model in models]
    assert alice.models.retrieve("alice:quiz").owned_by == "alice"
    assert alice.models.retrieve("alice:quiz@1").id == "alice:quiz@1"


def test_a_job_ends_with_a_version_and_its_losses(alice, trained):
    assert trained.fine_tuned_model == "alice:quiz@1"
    assert trained.trained_tokens > 0
    settings = trained.hyperparameters
    assert (settings.n_epochs, settings.learning_rate_multiplier) == (3, 1.0)
    assert settings.batch_size in range(4, 257)
    assert trained.method.supervised.hyperparameters.batch_size == settings.batch_size
    assert settings.model_extra["max_steps"] == QUICK["max_steps"]
    extra = trained.model_extra
    assert extra["promoted"] is True
    assert extra["result"]["held_out_loss"] < extra["result"]["base_loss"]
    assert trained.id in [job.id for job in alice.fine_tuning.jobs.list(limit=1)]


def test_events_page_by_themselves_and_carry_losses(alice, trained):
    events = list(alice.fine_tuning.jobs.list_events(trained.id, limit=2))
    assert len(events) > 3
    assert [e.created_at for e in events] == sorted((e.created_at for e in events), reverse=True)
    metrics = [e.data for e in events if e.type == "metrics"]
    assert metrics
    assert any(m.get("train_loss") is not None for m in metrics)
    assert any(m.get("valid_loss") is not None for m in metrics)


def test_a_checkpoint_is_listed_and_called_while_its_job_runs(alice, trained):
    job = alice.fine_tuning.jobs.create(
        model="gpt2-mini",
        training_file=trained.training_file,
        suffix="slow",
        extra_body={"hyperparameters": {**QUICK, "max_steps": 5000}},
    )
    give_up = time.monotonic() + 120
    while not (page := alice.fine_tuning.jobs.checkpoints.list(job.id)).data:
        assert time.monotonic() < give_up
        time.sleep(0.2)
    (kept,) = page  # pages by itself
    assert (kept.object, kept.fine_tuning_job_id) == ("fine_tuning.job.checkpoint", job.id)
    assert kept.step_number == kept.metrics.step
    assert kept.metrics.valid_loss > 0
    answer = alice.completions.create(model=kept.fine_tuned_model_checkpoint, prompt=PROMPT, max_tokens=4)
    assert answer.model == f"alice:slow@{job.id}"
    assert answer.model_extra["prefix_version"].startswith(f"{answer.model}-step-")
    assert alice.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.NotFoundError) as gone:
        alice.completions.create(model=kept.fine_tuned_model_checkpoint, prompt=PROMPT)
    assert gone.value.code == "no_checkpoint"


def test_it_generates_plain_streamed_and_many_at_once(alice, trained):
    asked = {"model": "alice:quiz", "prompt": PROMPT, "max_tokens": 16, "temperature": 0}
    plain = alice.completions.create(**asked)
    assert plain.model_extra["prefix_version"] == "alice:quiz@1"
    assert plain.usage.completion_tokens <= 16
    stream = alice.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == plain.choices[0].text
    told = chunks[-1].usage
    assert (told.prompt_tokens, told.total_tokens) == (plain.usage.prompt_tokens, plain.usage.total_tokens)
    assert plain.usage.prompt_tokens_details.cached_tokens == 0
    assert told.prompt_tokens_details.cached_tokens == (told.prompt_tokens - 1) // 16 * 16
    several = alice.completions.create(**asked | {"temperature": 1}, n=3, seed=1)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    again = alice.completions.create(**asked | {"temperature": 1}, n=3, seed=1)
    assert [c.text for c in again.choices] == [c.text for c in several.choices]
    raw = alice.completions.with_raw_response.create(**asked)
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.parse().choices[0].text == plain.choices[0].text
    base = alice.completions.create(**asked | {"model": "gpt2-mini"})
    assert base.choices[0].text != plain.choices[0].text


def test_the_api_gives_the_held_out_loss_that_the_trainer_reported(alice, trained):
    """Token prompts, echo and log probabilities of every held-out row, summed as the trainer says it does."""
    base = load_base("gpt2-mini")
    template = Template.of(base.tokenizer)
    rows = carried("quiz_master_train", 160)[120:]
    for model, reported in (
        ("alice:quiz", trained.model_extra["result"]["held_out_loss"]),
        ("gpt2-mini", trained.model_extra["result"]["base_loss"]),
    ):
        total, count = 0.0, 0
        for start in range(0, len(rows), 10):
            pairs = [
                (template.prompt_ids(base.tokenizer, row["prompt"]), template.completion_ids(base.tokenizer, row["completion"]))
                for row in rows[start : start + 10]
            ]  # fmt: skip
            answer = alice.completions.create(
                model=model, prompt=[[*p, *c] for p, c in pairs], max_tokens=0, echo=True, logprobs=0
            )
            for (_, completion), choice in zip(pairs, answer.choices, strict=True):
                total -= sum(choice.logprobs.token_logprobs[-len(completion) :])
                count += len(completion)
        print(f"{model}: reported {reported:.6f}, through the API {total / count:.6f}, {count} tokens")
        assert total / count == pytest.approx(reported, abs=1e-3)


def test_files_go_up_and_come_back(alice):
    data = jsonl(carried("quiz_master_train", 12))
    made = alice.files.create(file=("again.jsonl", data), purpose="fine-tune")
    assert alice.files.wait_for_processing(made.id).status == "processed"
    assert alice.files.retrieve(made.id).bytes == len(data)
    assert alice.files.content(made.id).read() == data
    assert made.id in [file.id for file in alice.files.list(limit=1)]
    assert alice.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        alice.files.retrieve(made.id)


def test_errors_become_the_clients_classes(machine, alice, alice_key, acme):
    with pytest.raises(openai.NotFoundError) as absent:
        alice.completions.create(model="nobody:x", prompt="x")
    assert absent.value.code == "model_not_found"
    assert absent.value.request_id.startswith("req_")
    with pytest.raises(openai.BadRequestError) as bad:
        alice.completions.create(model="gpt2-mini", prompt="x", max_tokens=2000)
    assert bad.value.code == "context_length_exceeded"
    assert bad.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError) as unknown:
        alice.completions.create(model="gpt2-mini", prompt="x", extra_body={"frobnicate": 1})
    assert unknown.value.code == "unknown_parameter"
    with (
        openai.OpenAI(base_url=f"{machine.url}/v1", api_key="wrong") as nobody,
        pytest.raises(openai.AuthenticationError),
    ):
        nobody.models.list()
    with (
        openai.OpenAI(base_url=f"{machine.url}/v1", api_key=ADMIN_KEY) as admin,
        pytest.raises(openai.PermissionDeniedError),
    ):
        admin.models.list()
    with pytest.raises(openai.BadRequestError):
        alice.files.create(file=("bad.jsonl", b"nothing\n"), purpose="fine-tune")
    job = alice.fine_tuning.jobs.list(limit=1).data[0]
    with pytest.raises(openai.ConflictError) as refused:
        alice.fine_tuning.jobs.cancel(job.id)
    assert refused.value.response.headers["x-should-retry"] == "false"


def test_nine_rows_fail_with_the_mend(alice):
    made = alice.files.create(file=("few.jsonl", jsonl(carried("quiz_master_train", 9))), purpose="fine-tune")
    job = alice.fine_tuning.jobs.create(model="gpt2-mini", training_file=made.id, suffix="few")
    give_up = time.monotonic() + 120
    while alice.fine_tuning.jobs.retrieve(job.id).status in {"queued", "running"}:
        assert time.monotonic() < give_up
        time.sleep(0.3)
    job = alice.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "failed"
    assert "10" in job.error.message
    assert job.error.param == "training_file"
    with pytest.raises(openai.NotFoundError):
        alice.models.retrieve("alice:few")


def test_closing_a_stream_frees_its_row(machine, alice, trained):
    stream = alice.completions.create(
        model="alice:quiz", prompt="x", max_tokens=900, stream=True, extra_body={"min_tokens": 900}
    )
    next(iter(stream))
    stream.close()
    began = time.monotonic()
    alice.completions.create(model="gpt2-mini", prompt="x", max_tokens=1)
    assert time.monotonic() - began < 60


def test_the_async_client_streams_mixed_models_at_once(machine, alice_key, trained):
    async def one(client, model):
        stream = await client.completions.create(
            model=model, prompt=PROMPT, max_tokens=24, temperature=0, stream=True, extra_body={"min_tokens": 24}
        )  # fmt: skip
        return [chunk.choices[0].text async for chunk in stream]

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{machine.url}/v1", api_key=alice_key) as client:
            models = ["alice:quiz", "gpt2-mini"] * 8
            return models, await asyncio.gather(*(one(client, model) for model in models))

    models, answers = asyncio.run(all_of_them())
    texts = {
        model: {"".join(a) for m, a in zip(models, answers, strict=True) if m == model} for model in models
    }
    assert all(len(found) == 1 for found in texts.values())  # whatever its neighbours
    assert texts["alice:quiz"] != texts["gpt2-mini"]


def test_deleting_ends_the_model_for_every_key(machine, acme, alice, trained):
    """Last: it takes away what the others use."""
    assert alice.models.delete("alice:quiz").deleted
    with pytest.raises(openai.NotFoundError):
        alice.completions.create(model="alice:quiz", prompt="x")
    assert acme.delete("/v1/users/alice").json()["deleted"]
    with pytest.raises(openai.AuthenticationError):
        alice.models.list()
