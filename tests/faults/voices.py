"""Users with a prefix each, and what each says: texts that no other prefix gives, known before anything is asked.

The oracle is the engine alone, one prefix and one prompt at a time.
"""

import secrets
import threading
from dataclasses import dataclass, field

from store_making import rows

from faults.clients import Client, make_tenant, make_user
from prefix_engine import Engine, EngineConfig, Request, Sampling, load_base
from prefix_engine.testing import Collected, random_prefix
from prefix_store.publish import TrainedPrefix

LENGTH, TOKENS = 6, 16
SPREAD = 3.0  # of a prefix's values: enough that every one leads somewhere else


@dataclass(eq=False)
class Voice:
    """One user with one prefix.

    Attributes:
        tenant: a client with the tenant's key.
        user: a client with the user's key.
        scope: what the tenant's key reaches in the store.
        label: the user's name, see `label_of`.
        canary: a word that stands in this user's dataset and nowhere else.
        file: the dataset's id.
        job: the id of the job that made its prefix.
        texts: what it answers to each of the prompts.
        version: id and place of its live version, see `place`.
    """

    tenant: Client
    user: Client
    scope: object
    label: str
    canary: str
    file: str = ""
    job: str = ""
    texts: list[str] = field(default_factory=list)
    version: object = None

    @property
    def model(self):
        return f"{self.label}:voice"


def label_of(tenant, user):
    """A user's name: of every other tenant its own, so that a list that shows it elsewhere is seen, of the others
    the same, so that a name that is looked up in another tenant is seen too.
    """
    return f"user{user}of{tenant:04d}" if tenant % 2 else f"user{user}"


class Voices:
    """All of a site's users.

    Args:
        site: without workers, whose part is played here.
        history: of what is asked to make them.
        tenants: how many.
        users: of each tenant.
        prompts: that there are answers to.
        m: positions of each prefix.
    """

    def __init__(self, site, history, tenants, users=1, prompts=4, m=4):
        self._site, self._m = site, m
        self._base = load_base(site.settings["PREFIX_BASE_MODEL"], "cpu")
        self.prompts = [[(7 * p + 31 * i) % 256 for i in range(LENGTH)] for p in range(prompts)]
        self._prefixes = {}
        self._claiming = threading.Lock()
        self.all = []
        for t in range(tenants):
            tenant = make_tenant(site, history, f"tenant {t}")
            self.all += [self._make(tenant, history, t * users + u, label_of(t, u)) for u in range(users)]
        self._tell()

    def asked(self, prompt, **more):
        """A body to which the answer is known."""
        return {
            "prompt": self.prompts[prompt],
            "max_tokens": TOKENS,
            "min_tokens": TOKENS,
            "temperature": 0,
            **more,
        }

    @property
    def base_name(self):
        """What the base is called among the models."""
        return self._base.name

    def whose(self, text):
        """The one whose prefix gives this text; None if nobody's does."""
        return self._whose.get(text)

    def publish(self, voice, seed):
        """Train nothing, publish a random prefix as a worker does."""
        store = self._site.store()
        owner = store.owners.get(voice.scope, voice.label)
        fingerprint = self._base.fingerprint
        with self._claiming:  # or one takes another's job
            job = store.jobs.create(voice.scope, owner, "voice", [voice.file], base_fingerprint=fingerprint)
            claim = store.jobs.claim("harness")
        assert claim.job_id == job.id
        voice.job = job.id
        prefix = random_prefix(self._base, self._m, seed=seed, spread=SPREAD)
        template = {"separator": "\n", "end_id": self._base.config.end_id}
        metrics = {"held_out_loss": 1.0, "base_loss": 2.0}
        trained = TrainedPrefix(prefix.to_bytes(), self._m, self._m, template, metrics, 9)
        store.jobs.complete(claim, trained, promote=True, compared_with=None, reason="told")
        return prefix

    def furnish(self, voice, seed):
        """A dataset with its canary and a prefix for a user who has neither; the prefix."""
        data = rows(*((f"what is it {n}", voice.canary) for n in range(2)))
        # Sent again with its key where the answer was lost, so that there is one file, whose id is known.
        sent = voice.user.sure(
            "upload",
            "POST",
            "/v1/files",
            headers={"Idempotency-Key": secrets.token_hex(8)},
            data={"purpose": "fine-tune"},
            files={"file": ("t.jsonl", data)},
        )
        voice.file = sent.json()["id"]
        return self.publish(voice, seed)

    def _make(self, tenant, history, number, label):
        voice = Voice(
            tenant,
            make_user(self._site, history, tenant, label),
            self._site.store().keys.verify(tenant.key),
            label,
            f"canary{number:06d}",
        )
        self._prefixes[voice.canary] = self.furnish(voice, number)
        return voice

    def _tell(self):
        """Ask the engine alone."""
        engine = Engine(self._base, EngineConfig(rows=1), self._prefixes.__getitem__)
        engine.start()
        for voice in self.all:
            for prompt in self.prompts:
                sampling = Sampling(min_tokens=TOKENS)
                end_id = self._base.config.end_id
                answer = Collected()
                engine.submit(Request(tuple(prompt), TOKENS, end_id, voice.canary, sampling=sampling), answer)
                answer.wait()
                voice.texts.append(answer.text)
        engine.close()
        told = [text for voice in self.all for text in voice.texts]
        assert len(set(told)) == len(told), "two prefixes say the same"
        self._whose = {text: voice for voice in self.all for text in voice.texts}
