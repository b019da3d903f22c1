"""What is to be trained, and how it crosses the pipe: bytes in frames, read here on the child's side."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from prefix_engine.template import Template
from prefix_store.evaluation import Evaluation
from prefix_store.hyperparameters import Hyperparameters
from trainer_worker.frames import Frame


@dataclass(frozen=True, slots=True)
class Version:
    """A published version: its bytes and the template stored beside them."""

    version_id: str
    payload: bytes
    template: Template

    def frame(self, kind: str) -> Frame:
        """As a frame."""
        return Frame(kind, {"id": self.version_id, "template": self.template.to_json()}, self.payload)


@dataclass(frozen=True, slots=True)
class Order:
    """One job.

    Attributes:
        training: (id, JSONL bytes) of each training file.
        validation: the held-out rows, if the user gave them.
        start: version to go on from.
        live: version to be compared with.
        evaluation: of the texts that the prefix writes, if it was asked for.
        checkpoint: state that an earlier attempt left.
    """

    wishes: Hyperparameters
    seed: int
    training: Sequence[tuple[str, bytes]]
    validation: tuple[str, bytes] | None = None
    start: Version | None = None
    live: Version | None = None
    checkpoint: bytes | None = None
    checkpoint_seconds: float = 20.0
    evaluation: Evaluation | None = None

    def frames(
        self,
        base: str,
        base_fingerprint: str,
        threads: int | None,
        *,
        device: str | None = None,
        job: str = "",
        joint: bool = False,
    ) -> list[Frame]:
        """As frames of `job`; the first says on which base and how to run, "begin" is the last.

        `joint`: other orders may follow, so that the process does not end with this one.
        """
        head = {
            "base": base,
            "base_fingerprint": base_fingerprint,
            "device": device,
            "threads": threads,
            "joint": joint,
            "hyperparameters": self.wishes.to_json(),
            "seed": self.seed,
            "checkpoint_seconds": self.checkpoint_seconds,
            "evaluation": None if self.evaluation is None else self.evaluation.to_json(),
        }
        found = [Frame("order", head)]
        found += [Frame("training", {"id": file}, data) for file, data in self.training]
        if self.validation is not None:
            found.append(Frame("validation", {"id": self.validation[0]}, self.validation[1]))
        for kind, version in (("start", self.start), ("live", self.live)):
            if version is not None:
                found.append(version.frame(kind))
        if self.checkpoint is not None:
            found.append(Frame("checkpoint", {}, self.checkpoint))
        return [replace(frame, job=job) for frame in (*found, Frame("begin"))]


def order_of(taken: Iterable[Frame]) -> Order:
    """Read what `Order.frames` made, without its "begin"."""
    head, *rest = taken
    asked = head.fields["evaluation"]
    by_kind = {frame.kind: frame for frame in rest}
    validation, checkpoint = by_kind.get("validation"), by_kind.get("checkpoint")
    return Order(
        wishes=Hyperparameters.from_json(head.fields["hyperparameters"]),
        seed=head.fields["seed"],
        training=[(frame.fields["id"], frame.payload) for frame in rest if frame.kind == "training"],
        validation=None if validation is None else (validation.fields["id"], validation.payload),
        start=_version(by_kind.get("start")),
        live=_version(by_kind.get("live")),
        checkpoint=None if checkpoint is None else checkpoint.payload,
        checkpoint_seconds=head.fields["checkpoint_seconds"],
        evaluation=None if asked is None else Evaluation.from_json(asked),
    )


def _version(frame: Frame | None) -> Version | None:
    if frame is None:
        return None
    return Version(frame.fields["id"], frame.payload, Template.from_json(frame.fields["template"]))
