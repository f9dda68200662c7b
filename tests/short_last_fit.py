"""What makes the end of a training short, where a test is about something else."""

# Of tax_lightning.modules.calibration.
SHORT_LAST_FIT = {"FIT_STEPS": 40, "FIT_PIXELS": 1024, "MOST_PIXELS": 2**13}
