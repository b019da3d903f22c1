"""The study of the trainer's defaults: what "auto" should mean for a dataset of which size."""
