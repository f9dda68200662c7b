"""A callback that writes down what each process of a distributed run ends with."""

from pathlib import Path

import lightning as L
import torch
from short_last_fit import SHORT_LAST_FIT

from tax_lightning.modules import calibration

vars(calibration).update(SHORT_LAST_FIT)  # as in conftest.py


class Probe(L.Callback):
    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        with (self.folder / f"present-{trainer.global_rank}.txt").open("a") as file:
            file.write("".join(str(int(here)) for here in batch["present"].any(dim=0)) + "\n")

    def on_validation_batch_end(self, trainer, module, outputs, batch, *_) -> None:
        if not trainer.sanity_checking and trainer.current_epoch == 0:
            with (self.folder / f"measured-{trainer.global_rank}.txt").open("a") as file:
                file.write("".join(f"{name}\n" for name in batch["id"]))

    def on_fit_end(self, trainer, module) -> None:
        memory = module.network.memory
        state = {"state": memory.state_dict(), "world": trainer.world_size}
        torch.save(state, self.folder / f"rank-{trainer.global_rank}.pt")
