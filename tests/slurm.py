"""A Slurm cluster of two nodes on this machine, with daemons, keys and files of its own."""

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "squeue")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
MISSING = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
CONFIGURATION = """
ClusterName=two
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=pmi2
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
KillWait=10
SchedulerParameters=batch_sched_delay=0,requeue_delay=1
NodeName=s1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 State=UNKNOWN
NodeName=s2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 State=UNKNOWN
PartitionName=all Nodes=s1,s2 Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Cluster:
    def __init__(self, folder: Path) -> None:
        """Writes its configuration into ``folder``, where its daemons keep all they write."""
        self.folder = folder
        for name in ("state", "spool-s1", "spool-s2"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        about = {"host": socket.gethostname(), "user": getpass.getuser(), "ports": free_ports(3), "folder": folder}
        (folder / "slurm.conf").write_text(CONFIGURATION.format(**about))
        own = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | own
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Cluster":
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        own = [f"--{option}={self.folder}/munge.{name}" for option, name in files.items()]
        self.begin("munged", "--force", "--foreground", *own)  # --force: whoever owns the folders above
        self.wait_for((self.folder / "munge.socket").exists)
        self.begin("slurmctld", "-D")
        self.begin_node("s1")
        self.begin_node("s2")
        self.wait_for(lambda: self.states() == {"s1": "IDLE", "s2": "IDLE"})
        return self

    def __exit__(self, *error: object) -> None:
        for name in reversed(self.daemons):
            self.daemons[name].terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def begin(self, name: str, *options: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            words = [name.split("-")[0], *options]
            self.daemons[name] = subprocess.Popen(words, env=self.env, stdout=out, stderr=out, stdin=subprocess.DEVNULL)

    def begin_node(self, node: str) -> None:
        self.begin(f"slurmd-{node}", "-D", "-N", node)

    def call(self, *words: str, cwd: Path | None = None) -> str:
        """Runs a command of Slurm's. Returns what it writes."""
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=60, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def states(self) -> dict[str, str]:
        try:
            words = [line.split() for line in self.call("sinfo", "-h", "-N", "-o", "%N %T").splitlines()]
        except AssertionError:  # slurmctld does not answer yet
            return {}
        return {name: state.upper() for name, state in words}

    def state(self, job: str) -> str:
        """Returns a job's state in Slurm's words: RUNNING, COMPLETED, TIMEOUT, NODE_FAIL …"""
        shown = self.call("scontrol", "show", "job", job)
        return shown.split("JobState=")[1].split()[0]

    def wait_for(self, fulfilled: Callable[[], bool], seconds: float = 60) -> None:
        """Raises TimeoutError with the ends of the daemons' logs where that does not come true."""
        end = time.monotonic() + seconds
        while not fulfilled():
            if time.monotonic() > end:
                logs = [path.read_text(errors="replace")[-2000:] for path in sorted(self.folder.glob("*.log"))]
                raise TimeoutError("\n".join(logs))
            time.sleep(0.1)
