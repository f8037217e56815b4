"""`python -m starter.train`: trains the starter on drawn scenes, on a CPU or one GPU.

The network computes in bfloat16 (`--precision fp32` switches that off) while a float32 master copy of the weights
learns; an average of the master copy over the last steps is what gets exported. Now and then the whole state is written
to `RUN/state.pt`, atomically; started again, the command continues there.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .losses import round_loss
from .model import FRAME, Starter
from .plan import Plan, parse_stages
from .prompts import Batch, Batches

FIELDS = ("step", "side", "seconds", "rate", "loss", "box", "click", "best_of_three", "corrected")
DECAY, BETAS, CLIP = 0.03, (0.9, 0.98), 1.0


class Trainer:
    """The state of a run: network, master weights, their average, optimiser, step."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.step = plan, 0
        torch.manual_seed(plan.seed)
        model = Starter().to(plan.device)
        # Channels-last weights let the convolutions run on the matrix units without reordering.
        for weight in model.parameters():
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        self.model = model.train()
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.master = [p.detach().clone() for p in self.params]
        self.average = [p.clone() for p in self.master]
        for parameter in self.master:
            parameter.requires_grad_()
        matrices = [p for p in self.master if p.ndim > 1]
        vectors = [p for p in self.master if p.ndim <= 1]
        self.optimiser = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}],
            lr=0.0,
            betas=BETAS,
            fused=True,
        )
        if plan.bf16:
            for parameter in self.params:
                parameter.data = parameter.data.bfloat16()
        if self.state_path.exists():
            self._resume()

    @property
    def state_path(self) -> Path:
        """The file that a run continues from."""
        return self.plan.run / "state.pt"

    def _names(self) -> list[str]:
        return [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]

    def _resume(self) -> None:
        state = torch.load(self.state_path, map_location=self.plan.device, weights_only=True)
        self.step = int(state["step"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.copy_(state["frequencies"])
        with torch.no_grad():
            for name, parameter, master, average in zip(
                self._names(), self.params, self.master, self.average, strict=True
            ):
                master.copy_(state["master"][name])
                average.copy_(state["average"][name])
                parameter.copy_(master)

    def save(self) -> None:
        """Writes the state; a crash leaves the previous one."""
        names = self._names()
        state = {
            "step": self.step,
            "optimiser": self.optimiser.state_dict(),
            "frequencies": self.model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix,
            "master": dict(zip(names, [p.detach() for p in self.master], strict=True)),
            "average": dict(zip(names, self.average, strict=True)),
        }
        partial = self.state_path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.state_path)

    def _correction(self, logits: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clicks at a random wrong pixel of each mask.

        Args:
          logits (Tensor): BxPxHxW. target (Tensor): BxPxHxW in 0..1.

        Returns:
          BxPx1x2 coordinates in the frame and BxPx1 kinds: 1 where the mask lacks the pixel, 0 where it has
          one too many.
        """
        truth = target > 0.5
        wrong = ((logits > 0) != truth).flatten(0, 1).flatten(1).float().cpu() + 1e-9
        picked = torch.multinomial(wrong, 1, generator=generator).to(logits.device)
        side = logits.shape[-1]
        kinds = truth.flatten(0, 1).flatten(1).gather(1, picked).long()
        coords = torch.cat([picked % side, picked // side], 1).float().add(0.5) * (FRAME / side) - 0.5
        return coords.reshape(*logits.shape[:2], 1, 2), kinds.reshape(*logits.shape[:2], 1)

    def losses(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Computes the loss of a batch and what to log about it."""
        model, device = self.model, self.plan.device
        target = batch.targets.to(device).float() / 255
        coords, kinds = batch.coords.to(device), batch.kinds.to(device)
        boxes = kinds[..., 0] > 1
        embedding = model.image_encoder.encode(batch.pixels.to(device, self.params[0].dtype))
        position = model.dense_position(embedding.shape[-1])
        logits, predicted = model.decode(embedding, position, model.embed_prompts(coords, kinds))
        loss, iou = round_loss(logits, predicted, target, (~boxes).float())
        clicks = iou[~boxes][:, 1:]
        chosen = clicks.gather(1, predicted[~boxes][:, 1:].float().argmax(1, keepdim=True))
        told = {
            "box": iou[boxes][:, 0].mean().item(),
            "click": chosen.mean().item(),
            "best_of_three": clicks.max(1).values.mean().item(),
        }
        if torch.rand((), generator=generator).item() < self.plan.corrections:
            with torch.no_grad():
                best = torch.where(boxes, torch.zeros_like(boxes, dtype=torch.long), 1 + predicted[..., 1:].argmax(-1))
                index = best[..., None, None, None].expand(-1, -1, 1, *logits.shape[-2:])
                mask = logits.gather(2, index)[:, :, 0]
                more, label = self._correction(mask.float(), target, generator)
                coords, kinds = torch.cat([coords, more], 2), torch.cat([kinds, label], 2)
                blind = torch.rand((), generator=generator).item() < 0.25  # the click must work without the mask too
            sparse = model.embed_prompts(coords, kinds)
            logits, predicted = model.decode(embedding, position, sparse, None if blind else mask.clamp(-32, 32))
            second, iou = round_loss(logits, predicted, target, torch.zeros_like(target[:, :, 0, 0]))
            loss = loss + second
            told["corrected"] = iou[..., 0].mean().item()
        return loss, told

    def train_step(self, batch: Batch) -> dict[str, float]:
        """Learns from one batch; returns what to log."""
        generator = torch.Generator().manual_seed(self.plan.seed * 1_000_003 + self.step)
        rate = self.plan.rate_at(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss, told = self.losses(batch, generator)
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter, master in zip(self.params, self.master, strict=True):
            # Some weights take no part in some steps (the mask input's, in a single round).
            master.grad = None if parameter.grad is None else parameter.grad.to(master.dtype)
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self.master, CLIP)
        self.optimiser.step()
        self.step += 1
        with torch.no_grad():
            torch._foreach_copy_(list[Tensor](self.params), self.master)
            # A young average follows closely, an old one slowly.
            torch._foreach_lerp_(self.average, self.master, 1 - min(self.plan.average, self.step / (self.step + 9)))
        return {**told, "loss": loss.item(), "rate": rate}


def _log(path: Path, row: dict[str, Any]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        writer.writerow({key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()})


def train(plan: Plan) -> Trainer:
    """Runs a plan to its end (or to `last_step`), from where its folder left off."""
    plan.run.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(plan)
    first, started, window = 0, time.monotonic(), list[dict[str, float]]()
    for stage in plan.stages:
        end = first + stage.steps
        stop = end if plan.last_step is None else min(end, plan.last_step)
        # Large views need scenes drawn as large; fewer of them, because that stretch is short and they cost more.
        pool_side = max(plan.pool_side, stage.side)
        shards = math.ceil(plan.shards * (plan.pool_side / pool_side) ** 2)
        data = Batches(plan.pool, stage, pool_side=pool_side, shards=shards, pace=plan.pace, seed=plan.seed, last=end)
        loader = DataLoader(
            data,
            batch_size=None,
            sampler=range(trainer.step, max(stop, trainer.step)),
            num_workers=plan.workers,
            prefetch_factor=4 if plan.workers else None,
        )
        for batch in loader:
            window.append(trainer.train_step(batch))
            if trainer.step % plan.log_every == 0 or trainer.step == stop:
                row: dict[str, Any] = {"step": trainer.step, "side": stage.side}
                row["seconds"] = round(time.monotonic() - started, 1)
                for key in ("rate", "loss", "box", "click", "best_of_three", "corrected"):
                    values = [told[key] for told in window if key in told]
                    row[key] = sum(values) / len(values) if values else ""
                _log(plan.run / "curve.csv", row)
                window.clear()
            if trainer.step % plan.save_every == 0 or trainer.step == stop:
                trainer.save()
        first = end
    return trainer


def main() -> None:
    """Trains the starter checkpoint, or continues to."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/starter"))
    parser.add_argument("--pool", type=Path, default=None, help="folder of drawn scenes; RUN/pool by default")
    parser.add_argument("--stages", default="128:16:6:6000,256:8:6:1500,512:4:6:250")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument("--cooldown", type=float, default=0.5)
    parser.add_argument("--average", type=float, default=0.998, help="weight of the past in the averaged weights")
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--pool-side", type=int, default=256)
    parser.add_argument("--pace", type=int, default=60, help="steps before the next shard is taken in")
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--until", type=int, default=None, help="stop after this step; the plan stays the same")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(
        Plan(
            run=options.run,
            pool=options.pool or options.run / "pool",
            stages=parse_stages(options.stages),
            device=options.device,
            seed=options.seed,
            rate=options.rate,
            cooldown=options.cooldown,
            average=options.average,
            bf16=options.precision == "bf16",
            shards=options.shards,
            pool_side=options.pool_side,
            pace=options.pace,
            workers=options.workers,
            save_every=options.save_every,
            last_step=options.until,
        )
    )


if __name__ == "__main__":
    main()
