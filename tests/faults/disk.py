"""A full disk: what does not fit is refused and leaves nothing, texts go on, and with room again everything does.

The embedded form on a small file system of its own; it needs the right to mount one.
"""

import contextlib
import random
import subprocess
import time
from pathlib import Path

import httpx2
from real_processes import Machine
from trainer_making import base_folder, dataset

from faults.site import SHAPE, SMALL
from prefix_store import StoreSettings, open_store

MEBIBYTES = 48
WISHES = {"n_epochs": 1, "batch_size": 4, "max_steps": 2, "prefix_length": 2, "eval_steps": 2}
PATIENCE_S = 240.0


def measure(home, say, *, fillings=20, seed=1):
    """Fill the disk to a few bytes, ask for everything, make room, ask again; what was counted, by name."""
    chosen = random.Random(seed)
    settings = {
        name.removeprefix("PREFIX_").lower(): value for name, value in SMALL.items() if "PREFIX_" in name
    }
    (home / "logs").mkdir()
    base = base_folder(home / "base", **SHAPE)
    with _tmpfs(home / "disk") as disk:
        more = {"data_dir": disk / "store", "base_model": base, "max_attempts": 50}
        with Machine(home / "logs", **settings | more) as machine:
            machine.serve()
            machine.work()
            filling = _Filling(machine, disk / "ballast", chosen)
            for n in range(fillings):
                filling.once(n)
                say(f"{n + 1} of {fillings} fillings, {filling.counts}")
            filling.look_again()
        store = open_store(StoreSettings(data_dir=disk / "store"))
        look = store.fsck.look(deep=True, grace_seconds=0.0)
        store.close()
    counts = filling.counts | {"files missing": len(look.missing), "files damaged": len(look.damaged)}
    return {"fillings": fillings, **counts, "files without a row": len(look.litter)}


@contextlib.contextmanager
def _tmpfs(folder):
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MEBIBYTES}m,mode=0700", "none", folder], check=True)
    try:
        yield Path(folder)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


class _Filling:
    """One user's requests before, while and after the disk is full."""

    def __init__(self, machine, ballast, chosen):
        self._machine, self._ballast, self._random = machine, ballast, chosen
        self._user = machine.user(machine.tenant(), "alice")
        self._files, self._jobs = {}, []
        names = (
            "refused for want of room",
            "stored all the same",
            "texts while full",
            "texts refused while full",
        )
        self.counts = dict.fromkeys(
            (*names, "other answers", "acknowledged and lost", "jobs not succeeded"), 0
        )

    def once(self, number):
        self._upload(number, 2_000, full=False)
        self._fill(self._random.choice([0, 0, 4096, 50_000, 150_000]))
        for n in range(4):
            self._upload(number * 10 + n, self._random.choice([100, 20_000, 400_000]), full=True)
            self._train(full=True)
            self._ask()
        self._ballast.unlink()
        self._upload(number, 2_000, full=False)
        self._train(full=False)

    def look_again(self):
        """Everything that was acknowledged is there, and every job has ended well."""
        for file, data in self._files.items():
            answer = self._user.get(f"/v1/files/{file}/content")
            self.counts["acknowledged and lost"] += answer.status_code != 200 or answer.content != data
        give_up = time.monotonic() + PATIENCE_S
        for job in self._jobs:
            while (told := self._user.get(f"/v1/fine_tuning/jobs/{job}").json())["status"] in {
                "queued",
                "running",
            }:
                if time.monotonic() > give_up:
                    break
                time.sleep(0.1)
            self.counts["jobs not succeeded"] += told["status"] != "succeeded"

    def _fill(self, left):
        """All of the disk but so many bytes."""
        with self._ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"\0" * 65_536) == 65_536:
                pass
            while file.write(b"\0" * 512) == 512:
                pass
        with self._ballast.open("rb+") as file:
            file.truncate(max(0, self._ballast.stat().st_size - left))

    def _upload(self, number, size, *, full):
        data = dataset(max(8, size // 40), number, longest=8)
        files = {"file": ("t.jsonl", data)}
        answer = self._try("POST", "/v1/files", data={"purpose": "fine-tune"}, files=files)
        if self._judge(answer, full=full):
            self._files[answer.json()["id"]] = data

    def _train(self, *, full):
        if not self._files:
            return
        asked = {
            "model": "base",
            "training_file": next(iter(self._files)),
            "suffix": f"v{len(self._jobs)}",
            "seed": 1,
        }
        asked["method"] = {"type": "supervised", "supervised": {"hyperparameters": WISHES}}
        answer = self._try("POST", "/v1/fine_tuning/jobs", json=asked)
        if self._judge(answer, full=full):
            self._jobs.append(answer.json()["id"])

    def _ask(self):
        asked = {"model": "base", "prompt": "a", "max_tokens": 4, "min_tokens": 4}
        answer = self._try("POST", "/v1/completions", json=asked)
        well = answer is not None and answer.status_code == 200
        self.counts["texts while full" if well else "texts refused while full"] += 1

    def _judge(self, answer, *, full):
        """Whether it was stored; counts what was said."""
        if answer is not None and answer.status_code == 200:
            self.counts["stored all the same"] += full
            return True
        refused = answer is not None and answer.status_code == 507 and full
        self.counts["refused for want of room" if refused else "other answers"] += 1
        if not refused:
            print("other answer:", full, None if answer is None else (answer.status_code, answer.text))
        return False

    def _try(self, method, path, **options):
        try:
            return self._user.request(method, path, **options)
        except httpx2.TransportError:
            return None
