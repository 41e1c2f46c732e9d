"""The faults: a name, what is done, and the run that it is done to."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from faults import inject
from faults.job import CHECKPOINT_EVERY
from faults.judge import Verdict
from faults.lab import Lab

AT = 2 * CHECKPOINT_EVERY + CHECKPOINT_EVERY // 2
RESUMMED = 1e-4
"""What 1,000 steps may make of gradients that are added up in another order."""


@dataclass(frozen=True)
class Fault:
    """One way in which things go wrong."""

    name: str
    injected: str
    run: Callable[[Lab], Verdict]


FAULTS: list[Fault] = []


def fault(name: str, injected: str) -> Callable[[Callable[[Lab], Verdict]], Callable[[Lab], Verdict]]:
    """Puts a function into the list."""

    def add(run: Callable[[Lab], Verdict]) -> Callable[[Lab], Verdict]:
        FAULTS.append(Fault(name, injected, run))
        return run

    return add


def _killed_on_ray(lab: Lab, title: str, most: int) -> Verdict:
    with lab.on_ray() as job:
        with job.fault_at_step(AT):
            inject.kill_all(inject.ray_processes(title)[:most])
        return lab.verdict(job)


@fault("a worker dies", "SIGKILL of the process of one of two ranks")
def one_worker(lab: Lab) -> Verdict:
    return _killed_on_ray(lab, "RayTrainWorker", 1)


@fault("all workers die", "SIGKILL of the processes of both ranks")
def all_workers(lab: Lab) -> Verdict:
    return _killed_on_ray(lab, "RayTrainWorker", 2)


@fault("Ray's train controller dies", "SIGKILL of the actor that watches the workers")
def controller(lab: Lab) -> Verdict:
    return _killed_on_ray(lab, "TrainController", 1)


@fault("the driver dies", "SIGKILL of the command; given again at once")
def driver(lab: Lab) -> Verdict:
    with lab.on_ray() as job:
        with job.fault_at_step(AT):
            job.kill()
        return lab.verdict(job)


@fault("the driver of a Ray of its own dies", "SIGKILL of the command that had started Ray itself; given again")
def lone_driver(lab: Lab) -> Verdict:
    with lab.tracked(ranks=2, cluster__num_workers=2) as job:
        with job.fault_at_step(AT):
            job.kill()
        return lab.verdict(job)


@fault("a node dies", "SIGKILL of the raylet with one of two ranks; a new node joins")
def raylet(lab: Lab) -> Verdict:
    with lab.on_ray() as job:
        with job.fault_at_step(AT):
            lab.replace_node()
        return lab.verdict(job)


@fault(
    "a node is about to be taken away",
    "Ray is told so half a minute before (`ray drain-node`); SIGKILL of its raylet once a checkpoint is written for it",
)
def node_preempted(lab: Lab) -> Verdict:
    with lab.on_ray() as job:
        with job.fault_at_step(AT):
            lab.announce_loss(seconds=30)
            saved = inject.sleep_until(lambda: any(s % CHECKPOINT_EVERY for s in inject.checkpoints(job.folder)), 30)
            assert saved, "no checkpoint was written before the node was taken away"
            lab.replace_node()
        return lab.verdict(job)


@fault("the command is told to end", "SIGTERM, as a machine sends that is taken away; given again when it has ended")
def told_to_end(lab: Lab) -> Verdict:
    with lab.tracked() as job:
        with job.fault_at_step(AT):
            job.process.terminate()
            job.finish(again=0, timeout=30)
        verdict = lab.verdict(job)
        assert verdict.steps_repeated == 0, f"no checkpoint was written before it ended: {verdict}"
        return verdict


@fault("the scoring task dies", "SIGKILL of the Ray task that takes a score")
def scoring(lab: Lab) -> Verdict:
    with lab.on_ray() as job:
        with job.fault_at_step(CHECKPOINT_EVERY):
            assert inject.sleep_until(lambda: bool(inject.ray_processes("score_step"))), "no score was being taken"
            inject.kill_all(inject.ray_processes("score_step"))
        return lab.verdict(job)


@fault("a rank stands still", "SIGSTOP of one of two ranks, SIGCONT after a minute")
def standstill(lab: Lab) -> Verdict:
    with lab.on_ray() as job:
        with job.fault_at_step(AT), inject.stopped(inject.ray_processes("RayTrainWorker")[0]):
            time.sleep(60)
        return lab.verdict(job)


@fault(
    "a link is cut",
    "each node in a network namespace; the link of one is down for 30 s; a raylet that ends is started again",
)
def link_cut(lab: Lab) -> Verdict:
    with lab.networked(2) as (nodes, job):
        with job.fault_at_step(AT), nodes.without(1):
            time.sleep(30)
        return lab.verdict(job)


@fault(
    "the head dies, and remembers",
    "as below, but the head keeps what it knows in Redis, and the command was given on another node",
)
def head_remembers(lab: Lab) -> Verdict:
    with lab.networked(2, remembers=True) as (nodes, job):
        with job.fault_at_step(AT):
            nodes.kill_head()
        return lab.verdict(job)


@fault("the head dies", "SIGKILL of GCS and raylet of the head; a supervisor starts it and the nodes again")
def head_dies(lab: Lab) -> Verdict:
    with lab.networked(2) as (nodes, job):
        with job.fault_at_step(AT):
            nodes.kill_head()
        return lab.verdict(job)


@fault("a link is slow", "each node in a network namespace; 8 Mbit/s to one of them from then on")
def link_slow(lab: Lab) -> Verdict:
    with lab.networked(2) as (nodes, job):
        with job.fault_at_step(AT):
            nodes.slow(1, kbit=8000)
        return lab.verdict(job)


@fault("a node is gone for good", "its power fails, no word is heard; 1 to 2 workers were asked for, and one goes on")
def node_gone(lab: Lab) -> Verdict:
    with lab.networked(2, cluster__min_workers=1, norm="none") as (nodes, job):
        with job.fault_at_step(AT):
            nodes.lose(1)
        return lab.verdict(job, allowed=RESUMMED)


@fault("a node joins", "1 to 2 workers were asked for; a node is added to the one that there was")
def node_joins(lab: Lab) -> Verdict:
    with lab.networked(1, cluster__min_workers=1, norm="none") as (nodes, job):
        with job.fault_at_step(AT):
            nodes.add(2)
            with inject.stopped(inject.ray_processes("RayTrainWorker")[0]):
                time.sleep(45)  # in which Ray looks for nodes; these steps take no longer in all
        return lab.verdict(job, allowed=RESUMMED)


@fault("the MLflow server dies", "SIGKILL of `mlflow server` and its workers; started again after 5 s")
def server_dies(lab: Lab) -> Verdict:
    with lab.tracked() as job:
        with job.fault_at_step(AT):
            lab.server.kill()
            time.sleep(5)
            lab.server.start()
        return lab.verdict(job)


@fault("MLflow is away when a run goes on", "SIGKILL of command and server; the server is back after 300 more steps")
def server_away(lab: Lab) -> Verdict:
    with lab.tracked() as job:
        with job.fault_at_step(AT):
            job.kill()
            lab.server.kill()
        job.start()
        try:
            job.wait_for(AT + 300)
        finally:
            lab.server.start()
        return lab.verdict(job)


@fault(
    "MLflow is away for good",
    "SIGKILL of the server; back when the command has ended in an error, which is given again",
)
def server_gone(lab: Lab) -> Verdict:
    with lab.tracked() as job:
        with job.fault_at_step(AT):
            lab.server.kill()
        try:
            job.finish(again=0)
        finally:
            lab.server.start()
        assert job.exit_codes == [1], f"nobody was told that nothing is registered: {job.exit_codes}\n{job.tail()}"
        return lab.verdict(job)


@fault("MLflow answers slowly", "a proxy in front of it keeps every answer back for a second from then on")
def server_slow(lab: Lab) -> Verdict:
    with lab.behind_a_proxy() as (proxy, job):
        with job.fault_at_step(AT):
            proxy.delay_s = 1.0
        return lab.verdict(job)


@fault(
    "uploads break off",
    "a proxy in front of MLflow hands on half of each of the next 5, and hangs up; a sample grid every 50 steps",
)
def upload_broken(lab: Lab) -> Verdict:
    with lab.behind_a_proxy(train__sample_every=50) as (proxy, job):
        with job.fault_at_step(AT):
            proxy.uploads_to_break = 5
        verdict = lab.verdict(job)
        assert proxy.uploads_to_break == 0, "too little was uploaded"
        return verdict


@fault("the disk is full at a checkpoint", "a tmpfs is filled but for 16 KiB; emptied when the run has failed")
def full_disk(lab: Lab) -> Verdict:
    with inject.small_disk(lab.folder(), kib=64 * 1024) as disk, lab.job(disk, bare=True) as job:
        with job.fault_at_step(AT):
            ballast = inject.fill(disk, leave_kib=16)
        job.finish(again=0)
        assert job.exit_codes == [1], f"the run did not notice: {job.exit_codes}\n{job.tail()}"
        ballast.unlink()
        return lab.verdict(job)


@fault("the checkpoints' folder is read-only", "`chattr +i`; taken back when the run has failed")
def read_only_folder(lab: Lab) -> Verdict:
    with lab.job(bare=True) as job:
        with job.fault_at_step(AT):
            with inject.read_only(job.folder.local / "checkpoints"):
                job.finish(again=0)
            assert job.exit_codes == [1], f"the run did not notice: {job.exit_codes}\n{job.tail()}"
        return lab.verdict(job)


@fault("killed while a checkpoint is written", "SIGKILL when its half-written folder is seen")
def half_written(lab: Lab) -> Verdict:
    with lab.job(bare=True) as job:
        with job.fault_at_step(AT):
            inject.wait_for_half_a_folder(job.folder.local / "checkpoints")
            job.kill()
            assert list((job.folder.local / "checkpoints").glob(".*.tmp")), "the checkpoint was whole already"
        return lab.verdict(job)


def _damaged(how: str) -> Callable[[Lab], Verdict]:
    def run(lab: Lab) -> Verdict:
        with lab.job(bare=True) as job:
            with job.fault_at_step(AT):
                job.kill()
                inject.DAMAGES[how](inject.newest_checkpoint(job.folder.local))
            return lab.verdict(job)

    return run


fault("the newest checkpoint is cut short", "SIGKILL; its tensors truncated to half")(_damaged("truncated"))
fault("a byte of the newest checkpoint is another", "SIGKILL; one bit of its tensors flipped")(_damaged("flipped"))
fault("the newest checkpoint is half deleted", "SIGKILL; its manifest and state deleted")(_damaged("halved"))


@fault("object storage is away", "an S3-compatible server answers 503 to everything for 15 s")
def storage_away(lab: Lab) -> Verdict:
    with lab.object_store() as (store, storage), lab.job(storage, bare=True) as job:
        with job.fault_at_step(AT), store.away():
            time.sleep(15)
        return lab.verdict(job)


@fault("object storage is slow", "an S3-compatible server takes 64 KiB a second; the command killed and given again")
def storage_slow(lab: Lab) -> Verdict:
    with lab.object_store(kib_a_second=64) as (_, storage), lab.job(storage, bare=True) as job:
        with job.fault_at_step(AT):
            job.kill()
        return lab.verdict(job)


def _poisoned(poison: str, twin_of: str, but: int | None = None) -> Callable[[Lab], Verdict]:
    def run(lab: Lab) -> Verdict:
        with lab.job(bare=True, ranks=2, poison=poison) as job:
            return lab.verdict(job, poison=twin_of, but=but)

    return run


fault("a gradient is not a number", "NaN in a weight's gradient of rank 1 at step 250; the twin has it on rank 0")(
    _poisoned("gradient:1:250", "gradient:0:250")
)
fault(
    "a pixel is infinite",
    "inf in the images of rank 1 at step 250; the twin has a NaN in its gradient, and other figures at that step alone",
)(_poisoned("data:1:250", "gradient:0:250", but=251))
