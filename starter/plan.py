"""What a training run depends on: its stages, its rates, its folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .prompts import Stage


@dataclass(frozen=True)
class Plan:
    """All that a run depends on.

    Attributes:
      run, pool (Path): folders of the run's state and of the drawn scenes.
      stages (tuple): what is trained in which order.
      rate (float): peak learning rate, reached after `warmup` steps.
      cooldown (float): share of the work, at the end, during which the rate falls to 0. Before it a run can be
        lengthened or shortened: started again with other stages, it goes on under the new plan.
      corrections (float): share of steps with a second round: a click where the mask was wrong, and the mask as input.
      average (float): weight of the past in the averaged weights, per step.
      bf16 (bool): compute in bfloat16.
    """

    run: Path
    pool: Path
    stages: tuple[Stage, ...]
    device: str = "cpu"
    seed: int = 1
    rate: float = 8e-4
    warmup: int = 200
    cooldown: float = 0.5
    corrections: float = 0.2
    average: float = 0.998
    bf16: bool = True
    pool_side: int = 256
    shards: int = 24
    pace: int = 60
    workers: int = 1
    save_every: int = 100
    log_every: int = 20
    last_step: int | None = None

    def progress(self, step: int) -> float:
        """Share of the planned work done before a step; a step's work grows with the pixels of its masks."""
        done = total = 0.0
        first = 0
        for stage in self.stages:
            cost = stage.side**2 * stage.images * stage.prompts
            total += cost * stage.steps
            done += cost * min(max(step - first, 0), stage.steps)
            first += stage.steps
        return done / total

    def rate_at(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, level stretch, linear cool-down."""
        return self.rate * min(1, (step + 1) / self.warmup, (1 - self.progress(step)) / self.cooldown)


def parse_stages(text: str) -> tuple[Stage, ...]:
    """Reads `SIDE:IMAGES:PROMPTS:STEPS,...`."""
    return tuple(Stage(*(int(number) for number in part.split(":"))) for part in text.split(","))
