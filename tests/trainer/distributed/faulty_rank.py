"""`train-sr` with a fault in one rank: `RANK=... FAULTY_RANK=1 FAULT=option python -m ... OPTIONS`.

`option`   a wrong setting: the rank fails before it joins
`usage`    an option that does not exist: the rank exits before it can report anything
`shards`   shards that this rank cannot read: it fails after it joined, before the process group opens
`opening`  the rank fails while the other ranks open the process group
`killed`   the rank is killed at the same place
`training` the rank fails after the process group opened
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, NoReturn

from shards.errors import UsrganError
from trainer.cli import train_main

MESSAGE = "fault of the test"


def fail(*_: Any, **__: Any) -> NoReturn:
    """Fail where the replaced function is called."""
    raise UsrganError(MESSAGE)


def kill_itself(*_: Any, **__: Any) -> None:
    """End this process without any report."""
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Inject the fault if this is the faulty rank, then train."""
    fault = os.environ["FAULT"] if os.environ["RANK"] == os.environ["FAULTY_RANK"] else ""
    if fault in ("opening", "killed"):
        import torch.distributed

        torch.distributed.init_process_group = fail if fault == "opening" else kill_itself  # type: ignore[assignment]
    elif fault == "training":
        import trainer.runs.train

        trainer.runs.train.train_stage = fail  # type: ignore[assignment]
    options = {
        "option": ["--set", "optim.typo=1"],
        "usage": ["--no-such-option"],
        "shards": ["--shards", "/no/such/folder"],
    }
    sys.argv[1:] += options.get(fault, [])
    train_main()


if __name__ == "__main__":
    main()
