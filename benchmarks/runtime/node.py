"""What server and worker have in common: one of FedML's managers on our transport."""

from types import SimpleNamespace
from typing import Any

import torch
from fedml.core import FedMLCommManager
from fedml.core.distributed.communication.message import Message

from benchmarks.runtime.messages import TENSORS, Kind, MessageError, check
from benchmarks.runtime.transport import MpiTransport


class Node(FedMLCommManager):
    def __init__(self, transport: MpiTransport, node: int) -> None:
        super().__init__(SimpleNamespace(), transport, node, transport.worker_count + 1)
        self.com_manager = transport
        self.com_manager.add_observer(self)
        self.busy = ""  # what to name if this rank fails

    def _init_manager(self) -> None:
        """Makes no manager of FedML's."""

    def receive_message(self, msg_type: int, msg_params: Message) -> None:
        """Calls the handler as it is: FedML's way turns a KeyError in it into a complaint about the message's type."""
        check(msg_params, self.size - 1)
        if msg_type not in self.message_handler_dict:
            raise MessageError(msg_params, "it is not for this node")
        self.message_handler_dict[msg_type](msg_params)

    def message(self, kind: Kind, receiver: int, tensors: torch.Tensor | None = None, **params: Any) -> Message:
        message = Message(int(kind), self.rank, receiver)
        for key, value in params.items():
            message.add_params(key, value)
        if tensors is not None and len(tensors):
            message.add_params(TENSORS, tensors)
        return message

    def send(self, kind: Kind, receiver: int, tensors: torch.Tensor | None = None, **params: Any) -> None:
        self.send_message(self.message(kind, receiver, tensors, **params))
