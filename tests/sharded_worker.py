"""`python -m percov2_core` under FSDP on CPUs, with the settings of a file for `accelerate launch`.

Accelerate shards on accelerators only, PyTorch anywhere: this tells Accelerate that it may.

python -m torch.distributed.run --nproc_per_node 2 tests/sharded_worker.py CONFIG train ...
"""

import os
import sys

from accelerate import state
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

from percov2_core.cli import main


def launch_arguments(config):
    """What `accelerate launch --config_file CONFIG` would understand."""
    words = ["--config_file", config, "-m", "percov2_core", "train"]
    return _validate_launch_command(launch_command_parser().parse_args(words))[0]


def allow_cpus():
    prepared = state.AcceleratorState.__init__

    def prepare(self, *args, fsdp_plugin=None, **kwargs):
        prepared(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            fsdp_plugin.set_mixed_precision("bf16")
            self.fsdp_plugin = fsdp_plugin

    state.AcceleratorState.__init__ = prepare


if __name__ == "__main__":
    found = prepare_multi_gpu_env(launch_arguments(sys.argv[1]))
    os.environ.update({name: value for name, value in found.items() if "FSDP" in name})
    allow_cpus()
    sys.exit(main(sys.argv[2:]))
