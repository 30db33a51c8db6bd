"""The names of what a run writes into its output folder, beside the pipeline itself."""

CONFIG = "training_config.json"
METRICS = "metrics.json"
CARD = "README.md"
LOGS = "logs"
SAMPLES = "samples.png"
ARRAY_OF_SAMPLES = "samples.npy"
"""In place of it where samples are no pictures."""
FORWARD_PROCESS = "forward_process.png"
NOISE_SCHEDULE = "noise_schedule.png"
TRAINING_CURVE = "training_curve.png"
BITS_MAP = "bits_map.png"
"""Of images in pixels alone, grey or in colour."""
REPORT = "report.html"
UNREADABLE = "unreadable_images.txt"
"""Lists the images that were left out because they can't be read."""
CHECKPOINT = "checkpoint-"
"""Begins the name of a checkpoint, which ends in its step. Other folders with this in their names are none."""
LOCKS = ".run-lock"
"""The folder of a run's locks. Its files stay when the run has ended: else two processes could lock files of one name."""
STAGING = ".upload"
"""A folder with a copy of the others' contents, which is uploaded while the run goes on."""

NOT_UPLOADED = (f"*{CHECKPOINT}*", STAGING, LOCKS)
"""Patterns of the folders that are not uploaded."""


def samples_of(step: int) -> str:
    """The samples drawn at a validation."""
    return f"samples/step-{step}.png"
