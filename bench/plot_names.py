"""The plots by their file names, and what they show; apart from the drawing, so that naming them is light."""

from bench.process import ROOT

DRAWN = ROOT / "docs" / "plots"
PLOTS = {
    "contest": "W1 tokens a second of each contestant",
    "length": "time per token against the length of the prefixes, with the lower bound",
    "prefixes": "cost against the number of prefixes",
    "throughput": "throughput of the service against load",
    "latency": "latency of the service against load",
    "to_loss": "held-out loss against the time of training, beside PEFT's",
}
