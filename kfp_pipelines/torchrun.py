"""torchrun, whose processes have more than 30 s to end after SIGTERM: they send the state to the store.

python -m kfp_pipelines.torchrun --standalone --nproc-per-node 8 -m kfp_pipelines.fit --worker …
"""

from torch.distributed.elastic.multiprocessing.api import PContext
from torch.distributed.run import main

# Less than the terminationGracePeriodSeconds of k8s/trainjob.yaml.
SECONDS = 270


def be_patient() -> None:
    """Let a stopped torchrun wait for its processes; it has no option for that."""
    PContext.close.__defaults__ = (None, SECONDS)


if __name__ == "__main__":
    be_patient()
    main()
