"""What each asker may see: every id and every name in an answer is held against the asker's own.

What is one's own is known exactly: files are uploaded with an idempotency key until they are acknowledged, jobs and
versions are made by the harness itself, all before the first fault, and nothing is made while faults happen.
"""

import collections
import re

MARK = re.compile(r"canary\d{6}|\b(?:file|ftjob|ten)-[0-9A-Za-z]+|\buser\d+(?:of\d+)?\b")
VERSION = "@1"

# What is asked for by somebody else's id: the path, and which of a voice's ids stands in it.
BY_USER = (
    ("/v1/files/{}", "file"),
    ("/v1/files/{}/content", "file"),
    ("/v1/fine_tuning/jobs/{}", "job"),
    ("/v1/fine_tuning/jobs/{}/events", "job"),
    ("/v1/fine_tuning/jobs/{}/checkpoints", "job"),
    ("/v1/completions", "label"),
    ("/v1/prefixes/{}:voice", "label"),
    ("/v1/models/{}:voice", "label"),
    ("/v1/models/{}:voice" + VERSION, "label"),
)
# What a tenant's key reaches beside that.
BY_TENANT = (("/v1/users/{}", "label"),)


def marks(voice):
    """Every word that an answer to this one may hold, of those that tell who somebody is."""
    return {voice.canary, voice.label, voice.file, voice.job, voice.scope.tenant_id}


def lists(voice, base):
    """The ids that each list must hold for a tenant of this one user, by path; the last for the tenant's key alone.

    Args:
        voice: the user.
        base: the base model's name, which is everybody's.
    """
    return {
        "/v1/files": [voice.file],
        "/v1/fine_tuning/jobs": [voice.job],
        "/v1/models": [base, voice.model],
        "/v1/prefixes": [voice.model],
        "/v1/users": [voice.label],
    }


def foreign_word(text, voice, asked=""):
    """Whether there is an id, a name or a canary in it that is not this one's.

    Args:
        text: of an answer.
        voice: the asker.
        asked: an id that the asker has named, which an answer may repeat.
    """
    return not marks(voice).issuperset(MARK.findall(text.replace(asked, "") if asked else text))


def compared(shown, ids):
    """`foreign` if a list's answer holds more than these ids, `wrong` if it lacks one, else `right`.

    One's own id shown twice is more, too: of users that are called alike it may be another's.
    """
    found = collections.Counter(row["id"] for row in shown["data"])
    wanted = collections.Counter(ids)
    if found - wanted:
        return "foreign"
    # A page behind this one would not have been looked at.
    return "wrong" if wanted - found or shown.get("has_more") else "right"


def absent(some_id, kind):
    """An id of the same shape that is nobody's."""
    if kind == "label":
        return re.sub(r"\d", "9", some_id)
    head, _, tail = some_id.partition("-")
    return f"{head}-{'0' * len(tail)}"
