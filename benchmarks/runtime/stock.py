"""``--runtime fedml``: the same rounds through FedML's own MPI managers, on its own communication manager.

FedML's ``FedAVGServerManager`` draws the rounds and sends the models, its ``FedAVGClientManager`` trains one client a
rank. What they call, FedML's ``FedAVGAggregator`` and ``FedAVGTrainer``, is overridden where it meets this suite: who
takes part, how updates become a model, what a client keeps. Whatever else a run needs (which experiment comes, what a
client's model is worth) goes as messages of this suite's kinds through the same communication manager.
"""

import pickle
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from fedml.core import FedMLCommManager
from fedml.core.distributed.communication.message import Message
from fedml.core.distributed.communication.mpi.com_manager import MpiCommunicationManager
from fedml.simulation.mpi.fedavg import FedAvgServerManager
from fedml.simulation.mpi.fedavg.FedAVGAggregator import FedAVGAggregator
from fedml.simulation.mpi.fedavg.FedAvgClientManager import FedAVGClientManager
from fedml.simulation.mpi.fedavg.FedAvgServerManager import FedAVGServerManager
from fedml.simulation.mpi.fedavg.FedAVGTrainer import FedAVGTrainer
from fedml.simulation.mpi.fedavg.message_define import MyMessage
from mpi4py import MPI
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.base import DivergedError, Params
from benchmarks.federation import work
from benchmarks.federation.experiment import Experiment, Run
from benchmarks.federation.ledger import Entry, Ledger
from benchmarks.federation.participation import Participants, able_clients, draw_participants
from benchmarks.federation.rounds import Downlink, Steps, judged_in_training
from benchmarks.federation.updates import Updates
from benchmarks.runtime.dispatch import Shares
from benchmarks.runtime.launch import Group
from benchmarks.runtime.messages import TENSORS, Kind
from benchmarks.runtime.screen import Screen
from benchmarks.runtime.server import Server
from benchmarks.runtime.worker import Share, Worker

FedAvgServerManager.print = lambda *_: None  # it says who takes part, each round


class StockTransport(MpiCommunicationManager):
    """FedML's communication manager as it is. It notes how many bytes ``comm.send`` has pickled a message into."""

    def __init__(self, group: Group) -> None:
        self.worker_count, self.ledger = group.comm.size - 1, Ledger()
        self.pickled = 0  # bytes of the newest message
        MPI.pickle.__init__(self.dumps)  # type: ignore[misc]
        super().__init__(group.comm, group.comm.rank, group.comm.size)

    def dumps(self, message: Message, protocol: int | None = None) -> bytes:
        content = pickle.dumps(message, protocol)
        self.pickled = len(content)
        return content

    def close(self) -> None:
        """Does nothing: FedML's thread ended with ``stop_receive_message``."""


class Manager(FedMLCommManager):
    """What FedML's server and client managers have in common here: they share the job's communication manager."""

    def __init__(self, transport: StockTransport) -> None:
        super().__init__(SimpleNamespace(comm_round=0), None, transport.comm, transport.rank, transport.size)
        self.com_manager = transport
        self.com_manager.add_observer(self)
        self.register_message_receive_handlers()

    def _init_manager(self) -> None:
        """Makes no manager: the job has one."""

    def receive_message(self, msg_type: int, msg_params: Message) -> None:
        """Calls the handler as it is; leaves the messages of this suite to its node."""
        if handler := self.message_handler_dict.get(msg_type):
            handler(msg_params)

    def send_message(self, message: Message) -> None:
        super().send_message(message)
        if not message.get(TENSORS):
            return
        client = int(self.trainer.client_index if self.rank else message.get(MyMessage.MSG_ARG_KEY_CLIENT_INDEX))
        parameters = sum(tensor.numel() for tensor in message.get(TENSORS).values())
        way, number = "up" if self.rank else "down", self.args.round_idx + 1
        self.com_manager.ledger.entries.append(Entry(number, client, way, parameters, self.com_manager.pickled))

    def finish(self) -> None:
        """Leaves MPI as it is: FedML would end it here, which hangs now and then, and the run is not yet judged."""


class RunAggregator(FedAVGAggregator):
    """FedML's aggregator, whose participants, mean and evaluation are those of a run."""

    def __init__(self, run: Run, server: "StockServer", args: SimpleNamespace) -> None:
        self.run, self.server = run, server
        workers = len(server.workers)
        super().__init__(None, None, sum(run.sizes), None, None, None, workers, "cpu", args, run.aggregator)

    def client_sampling(self, round_idx: int, client_num_in_total: int, client_num_per_round: int) -> list[int]:
        return draw_participants(self.run.settings, round_idx + 1, self.run.sizes).drawn

    def _fedavg_aggregation_(self, model_list: list[tuple[int, Params]]) -> Params:
        self.server.go_on(model_list)
        return self.run.aggregator.get_model_params()

    def test_on_server_for_all_clients(self, round_idx: int) -> None:
        """Waits until the round is judged, and recorded. FedML sends the next models when this returns."""
        self.server.catch_up()
        if self.run.progress.diverged:
            self.server.manager.round_num = round_idx + 1


class ServerManager(Manager, FedAVGServerManager):
    """FedML's server manager, which takes the rounds of one run after another."""

    def __init__(self, transport: StockTransport, server: "StockServer") -> None:
        super().__init__(transport)
        self.args: Any = SimpleNamespace()
        self.round_num = 0
        self.aggregator: Any = None
        self.server = server
        self.within = False  # a handler of FedML's is at work

    def begin(self, run: Run) -> None:
        """Sends the first models. ``run``: in the round that it takes first."""
        s = run.settings
        self.args = SimpleNamespace(
            comm_round=s.rounds,
            round_idx=run.progress.round - 1,
            client_num_in_total=s.clients,
            client_num_per_round=s.clients_per_round,
            dataset=s.dataset,
        )
        self.round_num, self.aggregator = s.rounds, RunAggregator(run, self.server, self.args)
        if not self.args.round_idx:
            self.send_init_msg()
            return
        clients = self.aggregator.client_sampling(self.args.round_idx, s.clients, s.clients_per_round)
        for receiver, client in enumerate(clients, 1):
            self.send_message_sync_model_to_client(receiver, self.aggregator.get_global_model_params(), client)

    def handle_message_receive_model_from_client(self, msg_params: Message) -> None:
        self.within = True
        super().handle_message_receive_model_from_client(msg_params)
        self.within = False
        if self.server.between:
            self.server.go_on(None)


class StockServer(Server):
    """The server's part in what FedML has no messages for, and the rounds as this suite takes and records them."""

    def __init__(
        self, transport: StockTransport, experiments: list[Experiment], screen: Screen, launched: float
    ) -> None:
        super().__init__(transport, experiments, screen, launched)
        self.manager = ServerManager(transport, self)
        self.run_by_fedml: Run | None = None
        self.fedmls_turn = False  # what comes next is up to FedML's manager
        self.between = False  # one run has ended, and FedML's handler of its last message has not

    def receive_message(self, msg_type: int, msg_params: Message) -> None:
        if msg_type in set(Kind):
            super().receive_message(msg_type, msg_params)

    def catch_up(self) -> None:
        """Hears the workers until FedML's manager is to go on."""
        while not (self.fedmls_turn or self.between or self.com_manager._stop_running):
            self.com_manager.notify(self.com_manager.q_receiver.get())

    def set_up(self, run: Run, index: int) -> Steps[None]:
        if self.manager.within:
            self.between = True
            yield
            self.between = False
        yield from super().set_up(run, index)

    def first_shares(self, run: Run) -> Shares:
        """As FedML has it: where all take part, the first client is on the first worker."""
        shares: Shares = {worker: [] for worker in self.workers}
        able = able_clients(run.sizes)
        for place, client in enumerate([*able, *({*range(run.settings.clients)} - {*able})]):
            shares[1 + place % len(self.workers)].append(client)
        return shares

    def train(self, run: Run, participants: Participants, downlink: Downlink, updates: Updates) -> Steps[None]:
        """As ``Clients.train``, where FedML's manager sends and collects."""
        self.busy = f"server, {run.settings.label}, round {run.progress.round}"
        self.home |= {client: worker for worker, client in enumerate(participants.drawn, 1)}
        if self.run_by_fedml is not run:
            self.run_by_fedml = run
            self.manager.begin(run)
        self.fedmls_turn = True
        while isinstance(models := (yield), Message):
            run.give_up(models.get("client"), models.get("reason"))
        self.fedmls_turn = False
        if not run.progress.diverged:
            for client, (_, params) in zip(participants.drawn, models, strict=True):
                updates.take(client, params)

    def price(self, run: Run, downlink: Downlink, to: Mapping[int, int], *_: Any, **__: Any) -> list[Entry]:
        """As FedML would send it: pickled, and all that travels to each."""
        params, entries = run.aggregator.get_model_params(), []
        parameters = sum(tensor.numel() for tensor in params.values())
        for client, worker in to.items() if params else ():
            message = Message(MyMessage.MSG_TYPE_S2C_SYNC_MODEL_TO_CLIENT, 0, worker)
            message.add_params(TENSORS, params)
            message.add_params(MyMessage.MSG_ARG_KEY_CLIENT_INDEX, str(client))
            size = len(pickle.dumps(message, MPI.pickle.PROTOCOL))
            entries.append(Entry(run.progress.round + 1, client, "down", parameters, size))
        return entries


class ShareTrainer(FedAVGTrainer):
    """FedML's trainer, which trains clients of a share."""

    def __init__(self, share: Share, args: SimpleNamespace) -> None:
        super().__init__(0, None, None, None, 0, share.device, args, share.trainer)
        self.share = share
        self.received: Params = {}
        self.client_index, self.local_sample_number = 0, 0
        self.train_local: TensorDataset = TensorDataset()

    def update_model(self, weights: Params) -> None:
        self.received = weights

    def update_dataset(self, client_index: int) -> None:
        """Makes the trainer that client's, with what came last."""
        self.share.take_up(client_index, self.received)
        self.trainer.set_id(client_index)
        self.client_index, self.train_local = client_index, self.share.training_data(client_index)
        self.local_sample_number = len(self.train_local)

    def train(self, round_idx: int | None = None) -> tuple[Params, int]:
        node, client, number = self.share.node, self.client_index, self.args.round_idx + 1
        node.busy = f"client {client}, round {number}"
        try:
            found = super().train(round_idx)
        except DivergedError as error:
            node.send(Kind.DIVERGED, 0, client=client, round=number, reason=str(error))
            return self.trainer.get_model_params(), self.local_sample_number
        finally:
            work.add(self.share.trained_by, self.trainer.take_work())
        self.trainer.settle(found[0])
        self.share.keep_state(client)
        return found


class ClientManager(Manager, FedAVGClientManager):
    """FedML's client manager, which trains for one run after another."""

    def __init__(self, transport: StockTransport) -> None:
        super().__init__(transport)
        self.args: Any = SimpleNamespace()
        self.num_rounds = 0
        self.trainer: Any = None

    def begin(self, share: Share, number: int) -> None:
        """``number``: the rounds that the run has taken."""
        s = share.settings
        self.args = SimpleNamespace(comm_round=s.rounds, round_idx=number - 1, random_seed=s.seed)
        self.num_rounds, self.trainer = s.rounds, ShareTrainer(share, self.args)

    def send_model_to_server(self, receive_id: int, weights: Params, local_sample_num: int) -> None:
        super().send_model_to_server(receive_id, weights, local_sample_num)
        share, number = self.trainer.share, self.args.round_idx + 1
        if judged_in_training(share.settings, number):
            share.judge_trained(RoundContext(share.settings.seed, self.trainer.client_index, number - 1))
        share.node.busy = ""


class StockWorker(Worker):
    """A worker's part in what FedML has no messages for."""

    def __init__(self, transport: StockTransport, node: int, experiments: list[Experiment], local_rank: int) -> None:
        super().__init__(transport, node, experiments, local_rank)
        self.manager = ClientManager(transport)

    def receive_message(self, msg_type: int, msg_params: Message) -> None:
        if msg_type in set(Kind):
            super().receive_message(msg_type, msg_params)

    def take_up(self, share: Share, number: int) -> None:
        super().take_up(share, number)
        self.manager.begin(share, number)
