"""Runs started by torchrun, as a user does, and one whose process is killed."""

import os
import subprocess
import sys

KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from dmdistill.commands.distill.command import distill
from dmdistill.training.trainer import Trainer

advance = Trainer.advance

def killed(self, iterate):
    if self.step == 3 and self.processes.rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        self.checkpoints.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    return advance(self, iterate)

Trainer.advance = killed
distill(pickle.loads(Path(sys.argv[1]).read_bytes()))
"""


def torchrun(script, count, *flags, restarts=0):
    """Run a script in so many processes, started as a user does."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += ["--max-restarts", str(restarts), str(script), *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
