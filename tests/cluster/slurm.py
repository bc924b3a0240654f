"""A real Slurm on this machine: controller, node daemon, munge; fake GPUs, and the partitions of Iridis."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "setpriv", "mknod")
GPUS = 4
SECONDS_TO_START = 30.0

CONF = """
ClusterName=testing
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=cred_expire=5,socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,requeue_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.txt
JobSubmitPlugins=lua
MailProg={folder}/mail
DefMemPerCPU=1000
EnforcePartLimits=ALL
KillWait=20
InactiveLimit=0
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=64 RealMemory=256000 Gres=gpu:l4:{gpus} State=UNKNOWN
PartitionName=ecsstudents_l4 Nodes={host} Default=YES MaxTime=1-00:00:00 PriorityTier=10 State=UP
PartitionName=a100 Nodes={host} MaxTime=2-12:00:00 PriorityTier=20 State=UP
PartitionName=scavenger_l4 Nodes={host} MaxTime=12:00:00 PriorityTier=1 GraceTime=1 State=UP
PartitionName=scavenger_4a100 Nodes={host} MaxTime=12:00:00 PriorityTier=1 GraceTime=1 State=UP
PartitionName=amd_student Nodes={host} MaxTime=12:00:00 PriorityTier=10 State=UP
"""

# Without slurmdbd Slurm knows no accounts; a site's submit plugin may.
SUBMIT = """
function slurm_job_submit(job, partitions, uid)
   if job.account ~= nil and job.account ~= "ecs" then
      slurm.log_user("Account %s is not known", job.account)
      return slurm.ESLURM_INVALID_ACCOUNT
   end
   return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, uid) return slurm.SUCCESS end
return slurm.SUCCESS
"""


def why_not() -> str | None:
    """Why there can be no Slurm here; None where it can be."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)} missing: apt-get install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "Slurm's daemons have to be started as root here"
    return None


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


class Slurm:
    """A context in which SLURM_CONF points at a cluster of one node, `folder` holding all of its files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.host = folder, socket.gethostname().split(".")[0]
        self._munge = self._controller = self._node = None

    def __enter__(self) -> "Slurm":
        for name in ("state", "spool", "dev"):
            (self.folder / name).mkdir(parents=True)
        ports = [_free_port() for _ in range(2)]
        text = CONF.format(folder=self.folder, host=self.host, ports=ports, gpus=GPUS)
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "job_submit.lua").write_text(SUBMIT)
        devices = f"{self.folder}/dev/gpu[0-{GPUS - 1}]"
        (self.folder / "gres.conf").write_text(
            f"AutoDetect=off\nNodeName={self.host} Name=gpu Type=l4 File={devices}\n"
        )
        for number in range(GPUS):
            subprocess.run(["mknod", f"{self.folder}/dev/gpu{number}", "c", "1", "3"], check=True)
        mail = self.folder / "mail"
        mail.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {self.folder}/mails.txt\n')
        mail.chmod(0o755)
        os.environ["SLURM_CONF"] = str(self.folder / "slurm.conf")
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._node is not None:
            self.cancel_all()
        for daemon in (self._node, self._controller, self._munge):
            if daemon is not None:
                daemon.send_signal(signal.SIGTERM)
                try:
                    daemon.wait(10)
                except subprocess.TimeoutExpired:
                    daemon.kill()
        os.environ.pop("SLURM_CONF", None)

    def queue(self) -> str:
        """What squeue says of all jobs, without its heading."""
        return self.run("squeue", "-h", "-a").strip()

    def cancel_all(self) -> None:
        """Leave an empty queue."""
        self.run("scancel", "--state=PENDING", "--user=root")
        self.run("scancel", "--user=root")
        self._wait(lambda: not self.queue(), 30.0)

    def run(self, *command: str) -> str:
        """Output of one of Slurm's own commands."""
        return subprocess.run(command, capture_output=True, text=True).stdout

    def state(self, job: str) -> dict[str, str]:
        """What scontrol knows of a job; empty when it has forgotten it."""
        words = self.run("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, job: str, states: tuple[str, ...], seconds: float) -> dict[str, str]:
        """Wait until a job is in one of the states. Fails the test otherwise."""
        self._wait(lambda: self.state(job).get("JobState") in states, seconds)
        state = self.state(job)
        assert state.get("JobState") in states, f"job {job} is not {' or '.join(states)}: {state}"
        return state

    def mails(self) -> str:
        path = self.folder / "mails.txt"
        return path.read_text() if path.exists() else ""

    def _start(self) -> None:
        # munged wants its folders for itself, and another user than root, unless it is forced.
        key = self.folder / "munge.key"
        subprocess.run(["mungekey", "--create", f"--keyfile={key}"], check=True, env=_environment())
        self._munge = self._daemon(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket",
            f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/munge.seed",
        )  # fmt: skip
        self._require(lambda: (self.folder / "munge.socket").exists(), "munged")
        self._controller = self._daemon("slurmctld", "-D", "-c")
        self._node = self._daemon("slurmd", "-D")
        self._require(lambda: "idle" in self.run("sinfo", "-h", "-N", "-o", "%t"), "slurmctld or slurmd")

    def _daemon(self, *command: str) -> subprocess.Popen:
        with open(self.folder / f"{command[0]}.out", "wb") as out:
            return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=_environment())

    def _require(self, holds, what: str) -> None:
        if not self._wait(holds, SECONDS_TO_START):
            logs = [path.read_text()[-2000:] for path in self.folder.glob("*.log")]
            raise RuntimeError(f"{what} did not start:\n" + "\n".join(logs))

    @staticmethod
    def _wait(holds, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                return False
            time.sleep(0.2)
        return True


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": _path()}


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
