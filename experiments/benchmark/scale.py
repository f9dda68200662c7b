"""What training with many annotators, images and GPUs would take, estimated from counts.

    python -m experiments.benchmark.scale
    python -m experiments.benchmark.scale --annotators 1000 --labels 5 --images 1000000 --gpus 64

A training step is run on the CPU, and each operation that PyTorch carries out is counted: its
floating-point operations F, and the bytes B that it reads and writes. Both are a constant, such as
the update of the weights, and a part that grows with the pixels. So two small sizes are enough to
tell those of any size. An operation takes at least

    t = max(F / peak, B / bandwidth)

on a GPU. With T the sum of t over a step of b images a GPU, P parameters of 4 bytes, and G GPUs
that exchange gradients over links of ``--link`` bytes a second,

    exchange = 2 (G - 1) / G * 4 P / link
    hours    = images * epochs / (b G) * (T + exchange) / efficiency / 3600

Nothing here was measured on a GPU. ``--efficiency`` is the share of such a bound that is reached;
0.5 is a guess.
"""

import argparse
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torch.utils.flop_counter import flop_registry

from experiments.benchmark.cost import BATCH, CLASSES, ENCODER, PLAIN, Plain, make_batch
from tax_lightning import Schedule, TAXLightningModule
from tax_lightning.comparison.report import markdown_table

GIB = 2**30
SIDES = 64, 96  # of the images that are counted, in pixels


class Counter(TorchDispatchMode):
    """Time that all operations take at least, and the bytes that wait for the backward pass."""

    def __init__(self, peak: float, bandwidth: float) -> None:
        super().__init__()
        self.peak, self.bandwidth = peak, bandwidth
        self.flops = self.traffic = self.seconds = 0.0
        self.kept: dict[int, int] = {}  # storage -> bytes
        self._hooks = saved_tensors_hooks(self._keep, lambda saved: saved)

    def __enter__(self) -> "Counter":
        self._hooks.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:  # noqa: ANN401
        super().__exit__(*error)
        self._hooks.__exit__(*error)

    def _keep(self, saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        self.kept[storage.data_ptr()] = storage.nbytes()
        return saved

    def __torch_dispatch__(
        self,
        operation: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Carry out an operation and count it."""
        kwargs = kwargs or {}
        result = operation(*args, **kwargs)
        if operation.is_view:
            return result
        count: Callable[..., int] | None = flop_registry.get(operation.overloadpacket)
        flops = 0 if count is None else count(*args, **kwargs, out_val=result)
        tensors, _ = torch.utils._pytree.tree_flatten((args, kwargs, result))
        traffic = sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
        self.flops += flops
        self.traffic += traffic
        self.seconds += max(flops / self.peak, traffic / self.bandwidth)
        return result


class CountSecondStep(Callback):
    """Counts the second training step; the first makes what is made once."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:  # noqa: ANN401, D102
        if trainer.global_step == 1:
            self.counter.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:  # noqa: ANN401, D102
        if trainer.global_step == 2:
            self.counter.__exit__(None, None, None)


class Counts(NamedTuple):
    """What a step takes, or a part of it."""

    flops: float
    traffic: float
    seconds: float
    kept: float


def count(module: L.LightningModule, annotators: int, side: int, counter: Counter) -> Counts:
    """Count a step with a batch of images of this side."""
    trainer = L.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        callbacks=[CountSecondStep(counter)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([make_batch(annotators, side)] * 2, batch_size=None))
    return Counts(counter.flops, counter.traffic, counter.seconds, sum(counter.kept.values()))


def constant_and_by_pixel(
    module: L.LightningModule, annotators: int, gpu: tuple[float, float]
) -> tuple[Counts, Counts]:
    """What a step takes at all, and what each pixel adds to it."""
    small, large = (count(module, annotators, side, Counter(*gpu)) for side in SIDES)
    pixels = [BATCH * side**2 for side in SIDES]
    slopes = [(b - a) / (pixels[1] - pixels[0]) for a, b in zip(small, large, strict=True)]
    base = [a - slope * pixels[0] for a, slope in zip(small, slopes, strict=True)]
    return Counts(*base), Counts(*slopes)


def make(annotators: int, drawn: int | None) -> L.LightningModule:
    """A model with all terms at full weight; without annotators the plain network."""
    torch.manual_seed(0)
    if not annotators:
        return Plain()
    return TAXLightningModule(
        [f"annotator {n}" for n in range(annotators)],
        CLASSES,
        encoder=ENCODER,
        reference="given",
        schedule=Schedule(enabled=False),
        annotators_per_step=drawn,
    )


def report(options: argparse.Namespace) -> None:
    """Count and print the table."""
    gpu = options.peak, options.bandwidth
    many = options.annotators
    cases = [(PLAIN, 0, None), ("TAX, 5 annotators", 5, None)]
    cases += [(f"TAX, {many}, {m} a step", many, m) for m in options.drawn]
    cases += [(f"TAX, {many}, all in each step", many, None)]
    rows = [
        [
            "Model",
            "parameters, 10⁶",
            "10⁹ operations an image",
            "GiB moved an image",
            "GiB kept an image",
            "images a GPU",
            "step, ms",
            "exchange, ms",
            f"hours, {options.gpus} GPUs",
        ]
    ]
    for name, annotators, drawn in cases:
        module = make(annotators, drawn)
        parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
        base, pixel = constant_and_by_pixel(module, max(annotators, 1), gpu)
        image = Counts(*(options.side**2 * value for value in pixel))
        # Labels are in int64 while they are used; the weights have a gradient and two moments.
        kept = (image.kept + 8 * annotators * options.side**2) / GIB
        images = int(min(options.most_images, (options.memory - 16 * parameters / GIB) // kept))
        if images < 1:
            row = ["-", "-", "-", "does not fit"]
        else:
            step = base.seconds + images * image.seconds
            exchange = 2 * (options.gpus - 1) / options.gpus * 4 * parameters / options.link
            steps = options.images * options.epochs / (images * options.gpus)
            hours = steps * (step + exchange) / options.efficiency / 3600
            row = [str(images), f"{1e3 * step:.0f}", f"{1e3 * exchange:.1f}", f"{hours:.1f}"]
        counts = [f"{parameters / 1e6:.1f}", f"{image.flops / 1e9:.0f}"]
        rows.append([name, *counts, f"{image.traffic / GIB:.1f}", f"{kept:.2f}", *row])
    print(markdown_table(rows))
    pixels = options.images * options.side**2
    print(f"\nImages of 3 x 8 bits, without compression: {3 * pixels / 1e12:.2f} TB.")
    print(f"Masks, a bit a pixel and label: {options.labels * pixels / 8 / 1e12:.2f} TB.")
    print(f"Masks of one image in a batch, a byte each: {many * options.side**2 / 1e6:.0f} MB.")


def main() -> None:
    """Read the arguments and count."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("--annotators", type=int, default=1000)
    parser.add_argument("--labels", type=int, default=5, help="annotators who drew an image")
    parser.add_argument("--drawn", type=int, nargs="*", default=[16, 64], help="in a step")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--side", type=int, default=512, help="of an image, in pixels")
    parser.add_argument("--most_images", type=int, default=16, help="in the batch of a GPU")
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--memory", type=float, default=70, help="of a GPU, GiB")
    parser.add_argument("--peak", type=float, default=60e12, help="operations a second, float32")
    parser.add_argument("--bandwidth", type=float, default=3e12, help="of its memory, bytes/s")
    parser.add_argument("--link", type=float, default=25e9, help="between GPUs, bytes/s")
    parser.add_argument("--efficiency", type=float, default=0.5)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    report(options)


if __name__ == "__main__":
    main()
