"""A worker: the rank that trains its share of the clients, one after another, in one experiment after another."""

import torch
from fedml.core.distributed.communication.message import Message

from benchmarks.federation.experiment import Experiment
from benchmarks.runtime.messages import Kind
from benchmarks.runtime.node import Node
from benchmarks.runtime.share import Share
from benchmarks.runtime.transport import MpiTransport


def pick_device(kind: str, local_rank: int, gpus: int) -> str:
    """Returns the device of a host's rank number ``local_rank``, for torch: the ranks take the ``gpus`` in turn."""
    return f"cuda:{local_rank % gpus}" if kind == "cuda" else kind


class Worker(Node):
    def __init__(self, transport: MpiTransport, node: int, experiments: list[Experiment], local_rank: int) -> None:
        """``local_rank``: this rank's number on its host."""
        super().__init__(transport, node)
        self.experiments, self.local_rank = experiments, local_rank

    def register_message_receive_handlers(self) -> None:
        self.register_message_receive_handler(Kind.SETUP, self.set_up)
        self.register_message_receive_handler(Kind.FINISH, lambda message: self.com_manager.stop_receive_message())
        self.register_message_receive_handler(Kind.WAIT, lambda message: None)

    def run(self) -> None:
        self.com_manager.on_silence = self.on_silence
        super().run()

    def on_silence(self, seconds: float) -> None:
        """Raises TimeoutError where the server has said nothing for ``--comm-timeout`` seconds.

        One worker after another, a second apart: the first ends the others, and they need not say it too.
        """
        if 0 < (limit := self.experiments[0].settings.comm_timeout) < seconds - (self.rank - 1):
            raise TimeoutError(f"nothing from rank 0, the server, for {seconds:.1f} seconds (--comm-timeout {limit:g})")

    def set_up(self, message: Message) -> None:
        """Takes up an experiment: its share of the clients answers what follows."""
        self.message_handler_dict.clear()  # lets go of the share in the experiment before
        self.register_message_receive_handlers()
        experiment = self.experiments[message.get("experiment")]
        torch.set_num_threads(experiment.settings.threads)
        device = pick_device(experiment.settings.device, self.local_rank, torch.cuda.device_count())
        share = Share(self, experiment, device, message.get("partition_sha256"))
        share.restore(message.get("checkpoint"), message.get("states"))
        for kind, answer in share.answers().items():
            self.register_message_receive_handler(kind, answer)
        self.send(Kind.READY, 0)
