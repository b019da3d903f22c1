"""One job from its files to a prefix: read, split, start, run, score.

Knows neither processes nor tables: what it needs comes in an `Order`, what it tells goes to a `Report`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefix_engine.base import Base
from prefix_engine.prefix import Prefix, PrefixError
from prefix_engine.template import Template
from trainer_worker import initial, results
from trainer_worker.auto import TEXT_START, Init, auto_for
from trainer_worker.checkpoint import State
from trainer_worker.evaluate import Score
from trainer_worker.identity import identity
from trainer_worker.order import Order, Version
from trainer_worker.parametrization import Direct, Mlp, Parametrization
from trainer_worker.pieces import Pieces
from trainer_worker.plan import Plan, resolve, resolved
from trainer_worker.refusal import Refused
from trainer_worker.report import Report, Stopped
from trainer_worker.rows import Encoded, Row, check_lengths, encode
from trainer_worker.run import Run, Steps, paused
from trainer_worker.sides import sides_of
from trainer_worker.texts import Writer, chosen, scores, write
from trainer_worker.together import Together
from trainer_worker.updates import Learner


@dataclass(frozen=True, slots=True)
class Trained:
    """What came out; `metrics` are plain JSON values, `files` the result files by name."""

    prefix: Prefix
    template: Template
    metrics: dict[str, Any]
    trained_tokens: int
    files: Mapping[str, bytes]


class Rival(NamedTuple):
    """The live version, its template, the held-out rows as it reads them, and which of all rows these are."""

    prefix: Prefix
    template: Template
    codes: list[Encoded]
    fitting: list[int]


class Training:
    """One job in the making; `steps` is the whole of it, moved by whoever updates its learner."""

    _training: list[Row]
    _held_out: list[Row]
    _codes: list[Encoded]  # of those held out
    _plan: Plan
    _run: Run

    def __init__(self, base: Base, order: Order, report: Report) -> None:
        self._base, self._order, self._report = base, order, report
        self._template = Template.of(base.tokenizer) if order.start is None else order.start.template
        self._rival: Rival | None = None
        self._prepared = False

    def prepare(self) -> Pieces[None]:
        """Read the rows and make the start, in pieces, since a large file takes a minute; `steps` does it if nobody has.

        Raises:
            Refused: its data or settings are to blame.
        """
        base, order = self._base, self._order
        self._training, self._held_out = yield from sides_of(order, self._report)
        self._auto = auto_for(len(self._training))
        started = self._start()
        m, offset = self._shape(started)
        training = yield from self._encoded(self._training, "training_file", offset)
        given = "training_file" if order.validation is None else "validation_file"
        self._codes = yield from self._encoded(self._held_out, given, offset)
        self._plan = resolve(order.wishes, m=m, position_offset=offset, rows=len(training), seed=order.seed)
        which = yield from identity(base, order, self._plan, self._init(), self._template, self._held_out)
        form, self._difference = self._form(started)
        learner, state = Learner(self._plan, form, training), State(which)
        seconds = order.checkpoint_seconds
        self._run = Run(base, learner, self._codes, state, self._report, seconds, self._template)
        self._prepared = True

    def train(self) -> Trained:
        """Run the job by itself; raises what `steps` raises."""
        together: Together[Trained] = Together(self._base)
        together.join("", self.steps())
        while (end := together.step().get("")) is None:
            pass
        if isinstance(end, Exception):
            raise end
        return end

    def steps(self) -> Steps[Trained]:
        """Run the job; see `run.Steps`.

        Raises:
            Refused: its data or settings are to blame.
            Stopped: the report said so; a checkpoint was told before, unless there was nothing to keep yet.
        """
        if not self._prepared:
            yield from paused(self.prepare(), self._report)
        self._tell_plan()
        if self._order.checkpoint is not None and not self._run.resume(self._order.checkpoint):
            self._report.event("warn", "message", "The checkpoint is of another run; training begins anew")
        try:
            return (yield from self._whole())
        except Stopped:
            self._run.save()
            raise

    def _whole(self) -> Steps[Trained]:
        yield from self._compare()
        yield from self._run.steps()
        score = yield from self._run.finish()
        prefix = Prefix(self._run.best.cpu().contiguous(), self._plan.position_offset, self._base.fingerprint)
        prefix.check(self._base)
        metrics = self._metrics(score) | {"compared_loss": (yield from self._compared(score))}
        texts = yield from self._texts(prefix)
        for who, found in texts.items():
            metrics |= {name if who == "prefix" else f"{who}_{name}": value for name, value in found.items()}
        files = results.files(metrics, self._run.state.curve, self._order.evaluation, texts)
        return Trained(prefix, self._template, metrics, self._run.state.trained_tokens, files)

    def _encoded(self, rows: list[Row], param: str, offset: int) -> Pieces[list[Encoded]]:
        codes = yield from encode(rows, self._template, self._base.tokenizer)
        check_lengths(rows, codes, offset, self._base.config.positions, param)
        return codes

    def _start(self) -> Prefix | None:
        version = self._order.start
        if version is None:
            return None
        try:
            return Prefix.from_bytes(version.payload, self._base)
        except PrefixError as error:
            raise Refused(error.code, f"the version to start from: {error}", "model") from None

    def _shape(self, started: Prefix | None) -> tuple[int, int]:
        """(m, position_offset): as asked, else as the version to start from has them."""
        wishes = self._order.wishes
        if started is not None and (wishes.init or wishes.init_text):
            text = "a job that goes on from a version has its start; leave init and init_text out"
            raise Refused("start_given", text, "hyperparameters.init_text")
        if started is None:
            m = initial.length_of(wishes, self._base.tokenizer, self._base.config.positions, self._auto.m)
            return m, m if (wishes.text_start or TEXT_START) == "m" else 0
        if wishes.prefix_length not in (None, started.m):
            raise Refused(
                "prefix_length",
                f"the version to start from has {started.m} positions; leave prefix_length out",
                "hyperparameters.prefix_length",
            )
        asked = {None: started.position_offset, "0": 0, "m": started.m}
        return started.m, asked[wishes.text_start]

    def _form(self, started: Prefix | None) -> tuple[Parametrization, float]:
        """The parameters and how far their prefix lies from where it was meant to start."""
        base, plan, wishes = self._base, self._plan, self._order.wishes
        generator = torch.Generator().manual_seed(plan.seed)
        values: Tensor
        if started is not None:
            values = started.tensor.to(base.device)
        elif self._init() == "random":
            values = initial.random_values(base, plan.m, generator)
        else:
            values = initial.activations(base, initial.word_ids(wishes, base.tokenizer, plan.m))
        if plan.parametrization == "direct":
            return Direct(values), 0.0
        mlp = Mlp(values.shape, generator, base.device)
        return mlp, mlp.fit(values)

    def _init(self) -> Init | None:
        """What the prefix starts from; None if it is a version."""
        wishes = self._order.wishes
        if self._order.start is not None:
            return None
        return wishes.init or ("words" if wishes.init_text else self._auto.init)

    def _compare(self) -> Steps[None]:
        """Score the base and the live version on the held-out rows, unless an earlier attempt did."""
        state, live = self._run.state, self._order.live
        if state.base is None:
            state.base = yield from self._run.score(None, self._codes, 0)
        if live is None or state.live_version != live.version_id:
            state.live, state.live_version = None, None
        self._rival = None if live is None else (yield from self._rival_of(live))
        if live is not None and self._rival is not None and state.live is None:
            prefix, codes = self._rival.prefix, self._rival.codes
            if codes:
                tensor = prefix.tensor.to(self._base.device)
                state.live = yield from self._run.score(tensor, codes, prefix.position_offset)
            state.live_version = live.version_id
        told = f"Held-out loss of the base model: {state.base.loss:.4f}"
        if state.live is not None:
            told += f"; of the live version: {state.live.loss:.4f}"
        self._report.event("info", "message", told)

    def _rival_of(self, live: Version) -> Steps[Rival | None]:
        """The live version and the rows that fit behind it too; None if it cannot serve anybody."""
        base = self._base
        try:
            prefix = Prefix.from_bytes(live.payload, base)
        except PrefixError as error:
            why = f"The live version cannot be compared with ({error.code}); it is passed over"
            self._report.event("warn", "message", why)
            return None
        codes = yield from self._run.paused(encode(self._held_out, live.template, base.tokenizer))
        room = base.config.positions - prefix.position_offset
        fitting = [i for i, code in enumerate(codes) if len(code.tokens) <= room]
        if len(fitting) < len(codes):
            told = f"{len(codes) - len(fitting)} held-out rows do not fit behind the live version; "
            self._report.event("warn", "message", told + "both are compared on the others")
        return Rival(prefix, live.template, [codes[i] for i in fitting], fitting)

    def _compared(self, score: Score) -> Steps[float | None]:
        """The new prefix's loss on the rows that the live version was scored on."""
        if self._rival is None or len(self._rival.fitting) == len(self._codes):
            return score.loss
        if not self._rival.fitting:
            return None
        codes = [self._codes[i] for i in self._rival.fitting]
        found = yield from self._run.score(self._run.best, codes, self._plan.position_offset)
        return found.loss

    def _tell_plan(self) -> None:
        plan, rows = self._plan, len(self._training)
        told = f"Training on {rows} rows, {len(self._held_out)} held out: {plan.words()}"
        if plan.parametrization == "mlp":
            told += f"; the MLP starts within {self._difference:.1e} of the values that it was fitted to"
        self._report.event("info", "message", told, {"hyperparameters": plan.to_json()})
        self._report.resolved(resolved(self._order.wishes, plan, rows=rows, init=self._init()))

    def _texts(self, prefix: Prefix) -> Steps[dict[str, dict[str, float]]]:
        """Scores of what the prefix, the base and the live version write for the same prompts, if they were asked for."""
        asked, base = self._order.evaluation, self._base
        if asked is None:
            return {}
        writers = {"prefix": Writer(prefix, self._template), "base": Writer(None, self._template)}
        if self._rival is not None:
            writers["live"] = Writer(self._rival.prefix, self._rival.template)
        choice = chosen(base, self._held_out, list(writers.values()), asked.prompts)
        prompts = yield from self._run.paused(choice)
        if not prompts:
            told = "No held-out prompt leaves room for an answer; no texts were evaluated"
            self._report.event("warn", "message", told)
            return {}
        found = {}
        for who, writer in writers.items():
            texts = yield from self._run.paused(write(base, writer, prompts, asked.max_tokens))
            found[who] = yield from self._run.paused(scores(asked, texts, prompts))
            shown = ", ".join(f"{name} {value:.4g}" for name, value in found[who].items())
            writes = "the live version" if who == "live" else f"the {who}"
            told = f"Texts of {writes} for {len(prompts)} prompts: {shown}"
            self._report.event("info", "message", told, {"who": who, "prompts": len(prompts), **found[who]})
        return found

    def _metrics(self, score: Score) -> dict[str, Any]:
        state, plan = self._run.state, self._plan
        facts: dict[str, Any] = {
            "held_out_loss": score.loss,
            "held_out_mean_token_accuracy": score.accuracy,
            "held_out_tokens": score.tokens,
            "held_out_rows": len(self._held_out),
            "training_rows": len(self._training),
            "base_loss": None if state.base is None else state.base.loss,
            "live_loss": None if state.live is None else state.live.loss,
            "compared_rows": None if self._rival is None else len(self._rival.fitting),
            "first_loss": state.first_loss,
            "train_loss": state.train_loss,
            "updates": self._run.done,
            "best_update": state.best_update,
            "text_start": "m" if plan.position_offset else "0",
            "parametrization": plan.parametrization,
            "prefix_length": plan.m,
            "learning_rate": plan.learning_rate,
            "batch_size": plan.batch_size,
            "dropout": plan.dropout,
            "max_steps": plan.updates,
            "seed": plan.seed,
            "seconds": round(self._run.elapsed(), 1),
        }
        if plan.parametrization == "mlp":
            facts["init_difference"] = self._difference
        return facts
