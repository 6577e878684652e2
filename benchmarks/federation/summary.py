"""What a run leaves when it has ended: summary.json."""

import hashlib
import math
import platform
from importlib.metadata import version
from typing import Any

import torch

from baselines.base import Params
from benchmarks.federation import lock, poison, privacy, work
from benchmarks.federation.experiment import Run
from benchmarks.federation.fairness import classes_held, spread
from benchmarks.federation.ledger import totals
from benchmarks.federation.metrics import METRICS
from benchmarks.federation.pace import links_of
from benchmarks.federation.provenance import provenance
from benchmarks.federation.recorder import summarize_clients, summarize_figures, summarize_newcomers


def digest(params: Params) -> str:
    """Returns the SHA-256 of the names, shapes and bits of ``params``."""
    content = hashlib.sha256()
    for name, tensor in params.items():
        content.update(f"{name}{tuple(tensor.shape)}".encode())
        content.update(tensor.numpy().tobytes())
    return content.hexdigest()


def finish(run: Run, workers: int) -> None:
    """Writes the run's summary, and lets other jobs into its directory. ``workers``: ranks that trained."""
    run.recorder.finish(summarize(run) | {"provenance": provenance(run.settings, workers)})
    run.recorder.close()
    lock.release(run.settings.directory)


def cost_of_newcomers(run: Run) -> dict[str, Any]:
    """Returns what all clients that took no part receive, and what they compute to adapt to it."""
    new, x = run.newcomers, torch.from_numpy(run.store.samples(0, "train")[0][:1])
    return {
        "transmitted": totals(new.downlinks, ("down",)),
        "gradients": work.gradients(new.adapted_by),
        "flops": work.flops(new.adapted_by, run.trainer.model, x),
    }


def summarize_work(run: Run) -> dict[str, dict[str, int | None]] | None:
    """Returns the gradients and floating-point operations of training, and of what precedes the last judging.

    Those of all clients together; None where the run began without counting.
    """
    if run.progress.trained is None:
        return None
    x = torch.from_numpy(run.store.samples(0, "train")[0][:1])
    done = {"training": run.progress.trained, "adaptation": run.progress.adapted}
    return {
        "gradients": {name: work.gradients(each) for name, each in done.items()},
        "flops": {name: work.flops(each, run.trainer.model, x) for name, each in done.items()},
    }


def summarize_access(run: Run) -> dict[str, Any]:
    """Returns who has which link, whom the server never heard, and how accuracy is spread over fast and slow clients.

    ``joined`` is accuracy once more, where each client that was never heard adapts the last aggregate to its own data
    as a new client does: whether its update arrived or not, it holds the model.
    """
    s = run.settings
    links, counts = links_of(s), run.store.counts("train")[: s.clients]
    accuracy = {client: float(known["accuracy"]) for client, known in sorted(run.figures.deployed.items())}
    outside = {client: known["adapted"] for client, known in run.outsiders.figures.items()}
    adapted = {client: math.nan if value is None else value for client, value in outside.items()}
    joined, speed = summarize_clients(accuracy | adapted), links.speed.tolist()
    return {
        "down": links.down.tolist(),
        "up": links.up.tolist(),
        "samples": counts.sum(axis=1).tolist(),
        "classes": classes_held(counts).tolist(),
        "never_heard": run.unheard,
        "deployed": spread([*accuracy.values()], speed),
        "joined": joined | spread(joined["per_client"], speed),
    }


def summarize(run: Run) -> dict[str, Any]:
    s, progress, traffic = run.settings, run.progress, run.traffic
    downloads = progress.round * s.clients_per_round
    messages = {"up": max(downloads - sum(progress.absent.values()), 1), "down": max(downloads, 1)}
    results: dict[str, Any] = {"accuracy": None, "validation_accuracy": None, "accuracy_received_mean": None}
    if progress.diverged:
        results["diverged"] = progress.diverged
    else:
        results |= summarize_figures(run.figures.deployed, run.recorder.metrics)
        results["accuracy_received_mean"] = summarize_clients(run.figures.received)["mean"]
        if s.links:
            results["access"] = summarize_access(run)
        if s.new_clients:
            results["new_clients"] = summarize_newcomers(run.newcomers.figures) | cost_of_newcomers(run)
    return {
        "algo": s.algo,
        "label": s.label,
        "parameterization": s.parameterization,
        "tuned": s.tuned,
        "dataset": s.dataset,
        "partition": s.partition,
        "model": s.model,
        "seed": s.seed,
        "rounds": s.rounds,
        "clients": s.clients,
        **({"poisoners": sorted(run.poisoners)} if s.poison != poison.NONE else {}),
        **results,
        **({"metrics": {m.name: m.words for m in own}} if (own := run.recorder.metrics[len(METRICS) :]) else {}),
        "parameters_per_client_round": {
            way: traffic.sent[f"parameters_{way}"] // count for way, count in messages.items()
        },
        "transmitted": traffic.sent,
        "traffic_to_model": None if progress.diverged else traffic.to_model,
        "moved": {unit: traffic.moved[f"{unit}_move"] for unit in ("parameters", "bytes")},
        "absent": progress.absent,
        **({"privacy": privacy.summarize(s, run.sizes, run.noise, progress.diverged is not None)} if s.dp_clip else {}),
        "work": summarize_work(run),
        "seconds": run.counts["seconds"],
        "shared_sha256": digest(run.aggregator.get_model_params()),
        "partition_sha256": run.store.sha256,
        "samples_sha256": run.store.recipe["samples_sha256"],
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("torch", "fedml", "numpy", "mpi4py")},
    }
