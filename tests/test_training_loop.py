"""The loop that all stages share: groups, processes, and checkpoints that must fit."""

from types import SimpleNamespace

import pytest
import torch

from percov2_core.errors import ConfigError
from percov2_core.training import checkpoint, loop


class Line(torch.nn.Module):
    """Two numbers that a step moves down."""

    def __init__(self):
        super().__init__()
        self.slow = torch.nn.Parameter(torch.zeros(1))
        self.fast = torch.nn.Parameter(torch.zeros(1))

    def forward(self, batch, progress):
        return loop.StepLoss((self.slow + self.fast).sum(), {})


def test_a_group_learns_at_its_own_multiple_of_the_rate(tmp_path):
    config = loop.LoopConfig(steps=1, lr=1e-3, warmup_steps=1, device="cpu", ema=0.0)

    def groups(module):
        return [{"params": [module.slow]}, {"params": [module.fast], "lr_scale": 10.0}]

    line = Line()
    loop.run(line, lambda step: None, tmp_path, config=config, groups=groups)
    assert line.slow.item() == pytest.approx(-1e-3) and line.fast.item() == pytest.approx(-1e-2)


def test_each_process_draws_its_own_batches():
    rank = SimpleNamespace(num_processes=4, process_index=1)
    numbers = loop._Trainer._numbers(SimpleNamespace(step=3, accelerator=rank))
    assert [next(numbers) for _ in range(3)] == [13, 17, 21]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("fast"), "'fast' is missing, expected torch.Size"),
        (lambda state: state.update(other=torch.ones(1)), "expected no such name"),
        (lambda state: state.update(slow=torch.ones(2)), r"'slow' is torch.Size\(\[2\]\)"),
    ],
)
def test_a_checkpoint_of_another_module_is_refused(change, message):
    state = checkpoint.kept(Line())
    change(state)
    with pytest.raises(ConfigError, match=message):
        checkpoint.fill(Line(), state)
