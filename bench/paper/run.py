"""One model from its job to its record: train, score the held-out rows, write texts, score the texts."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from bench.paper import decoding, metrics, slots
from bench.paper.fitting import fit
from bench.paper.host import Host
from bench.paper.job import BEAMS, Job
from bench.paper.methods import make
from bench.paper.methods.method import Method
from bench.paper.methods.prefix import ProductPrefix
from bench.paper.records import Record
from bench.paper.settings import UNTRAINED, Settings, kind_of
from bench.paper.tasks import Scored, Task, cut, load, sized
from prefix_store.hyperparameters import Hyperparameters
from trainer_worker.parametrization import MID
from trainer_worker.pieces import at_once
from trainer_worker.plan import Plan, resolve
from trainer_worker.rows import Encoded, encode


def task_of(job: Job, host: Host) -> Task:
    """The task at the job's sizes."""
    whole = load(job.task, extrapolate=job.study == "extrapolation")
    return cut(sized(whole, job.rows, job.sample, job.limit_inputs, low=job.low), host)


def run(host: Host, job: Job) -> tuple[Record, dict[str, Sequence[str]]]:
    """Train, write and score; the record and the texts by decoding."""
    settings, task = job.settings(host.base.name), task_of(job, host)
    method, facts = trained(host, task, job, settings)
    began = time.monotonic()
    prompts = [asked.prompt for asked in task.scored]
    texts = {
        name: decoding.write(method, prompts, beams=BEAMS[name], most=task.most_tokens)
        for name in (job.decodings if prompts else ())
    }
    written = time.monotonic() - began
    scores, missing = scores_of(task, texts)
    record = {
        "key": job.key(host.base.name, host.base.fingerprint),
        "base": host.base.name,
        **asdict(job),
        "draw": job.draw,
        "search": job.search,
        "settings": asdict(settings),
        "training_rows": len(task.training),
        "held_out_rows": len(task.held_out),
        "scored_inputs": len(task.scored),
        **facts,
        "writing_seconds": round(written, 1),
        "scores": scores,
        "missing": missing,
        "versions": metrics.VERSIONS,
    }
    return record, texts


def scores_of(task: Task, texts: dict[str, Sequence[str]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Scores by decoding, group and metric, and the metrics that could not be had."""
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for decoding_name, written in texts.items():
        found[decoding_name] = {}
        for group in groups(task.scored):
            places = [i for i, asked in enumerate(task.scored) if group in ("all", asked.group)]
            some, asked = [written[i] for i in places], [task.scored[i] for i in places]
            scores, lacking = metrics.measure(
                some, [one.references for one in asked], metrics.names(task.name)
            )
            if task.name == "e2e":
                scores |= slots.rates([one.prompt for one in asked], some)
            found[decoding_name][group] = scores
            missing |= lacking
    return found, missing


def groups(scored: Sequence[Scored]) -> tuple[str, ...]:
    """Groups of the inputs, "all" first."""
    return "all", *sorted({asked.group for asked in scored} - {""})


def trained(host: Host, task: Task, job: Job, settings: Settings) -> tuple[Method, dict[str, Any]]:
    """The method at its best by the held-out rows, and the facts of its training."""
    torch.manual_seed(job.seed)  # dropout; whatever else begins by chance has a generator of its own
    codes = [
        at_once(encode(rows, host.template, host.base.tokenizer)) for rows in (task.training, task.held_out)
    ]
    began = time.monotonic()
    method = make(host, task, job.method, settings, job.seed, job.words, codes[1])
    facts: dict[str, Any] = {"updates": 0, "best_update": 0}
    moved = method.trained
    if isinstance(method, ProductPrefix):
        wishes = wishes_of(job, settings, task)
        result = method.train(wishes, job.seed, task.training, task.held_out, job.start)
        facts = {name: result.metrics[name] for name in ("updates", "best_update")}
        moved = _moved(host, settings, method.trained)
    elif job.method not in UNTRAINED:
        plan = plan_of(job, settings, codes[0])
        fitted = fit(method, codes[0], codes[1], plan)
        facts = {"updates": fitted.updates, "best_update": fitted.best_update, "curve": fitted.curve}
    return method, facts | {
        "seconds": round(time.monotonic() - began, 1),
        "held_out_loss": method.score(codes[1]),
        "base_loss": make(host, task, "base", settings, 0, None, codes[1]).score(codes[1]),
        "trained": moved,
        "kept": method.trained,
        "stored_bytes": method.stored_bytes,
        "base_parameters": host.size,
    }


def wishes_of(job: Job, settings: Settings, task: Task) -> Hyperparameters:
    """The settings as a job of the product."""
    words = {"init_text": job.words or task.words} if job.start == "words" else {}
    return replace(
        _shared(job, settings),
        prefix_length=settings.size,
        parametrization=settings.form,
        init="random" if job.start == "random" else None,
        text_start=settings.text_start,
        **words,
    )


def plan_of(job: Job, settings: Settings, rows: Sequence[Encoded]) -> Plan:
    """The plan of any other method, by the product's own rules: the same updates, batches, warm-up and looks.

    A search moves by chance and in jumps, so looks without a better loss do not end it.
    """
    plan = resolve(_shared(job, settings), m=1, position_offset=0, rows=len(rows), seed=job.seed)
    return replace(plan, patience=plan.updates + 1) if kind_of(job.method) == "search" else plan


def _shared(job: Job, settings: Settings) -> Hyperparameters:
    """What every method is asked alike."""
    steps = job.steps or settings.steps
    return Hyperparameters(
        n_epochs=None if steps else settings.epochs,
        batch_size=settings.batch,
        learning_rate=settings.rate or None,
        max_steps=steps,
        warmup_steps=settings.warmup,
    )


def _moved(host: Host, settings: Settings, kept: int) -> int:
    """Numbers that the optimiser moves: the prefix itself, or the MLP that makes it and is thrown away."""
    if settings.form == "direct":
        return kept
    width, out = host.base.config.width, kept // settings.size
    return settings.size * width + (width + 1) * MID + (MID + 1) * out


def rescored(host: Host, job: Job, record: Record, texts: dict[str, list[str]]) -> Record:
    """The record with the scores of its kept texts taken again."""
    scores, missing = scores_of(task_of(job, host), texts)
    return {**record, "scores": scores, "missing": missing, "versions": metrics.VERSIONS}
