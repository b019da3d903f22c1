"""A job's rows, read from its files in pieces: those that are trained on and those that it is judged by."""

from trainer_worker.order import Order
from trainer_worker.pieces import Pieces
from trainer_worker.report import Report
from trainer_worker.rows import Row, rows_of
from trainer_worker.split import split, unseen


def sides_of(order: Order, report: Report) -> Pieces[tuple[list[Row], list[Row]]]:
    """The rows to train on and those held out, each in the files' order; told is what of a validation file does not count.

    Raises:
        Refused: too few rows on one side.
    """
    rows = yield from rows_of(order.training)
    if order.validation is None:
        sides = split(rows)
        return [rows[i] for i in sides.training], [rows[i] for i in sides.held_out]
    yield
    given = yield from rows_of([order.validation])
    held_out = unseen(given, rows)
    if len(held_out) < len(given):
        told = f"{len(given) - len(held_out)} of {len(given)} validation rows are trained on; they are not scored"
        report.event("warn", "message", told)
    return rows, held_out
