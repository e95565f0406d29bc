"""`bco node watch|leave`: on each machine of a cluster, beside Ray."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from bco_ray.errors import ClusterError

app = typer.Typer(no_args_is_help=True, help="For machines of a Ray cluster that may be taken away.")

NodeId = Annotated[
    str | None, typer.Option("--node-id", help="Ray's name of the node.", show_default="the one on this machine")
]


@app.command("watch")
def watch_(node_id: NodeId = None) -> None:
    """Wait for the cloud's notice that this machine goes (EC2, Compute Engine), and drain its Ray node then.

    Ends when that is done, or at once where no cloud's metadata server answers.
    """
    from bco_ray.nodes.draining import drain, node_here
    from bco_ray.nodes.notices import Amazon, Google
    from bco_ray.nodes.watch import watch

    def drain_here(because: str, seconds: float) -> None:
        drain(node_here(node_id), because, seconds)  # looked up then: Ray may have been started anew

    watch([Google(), Amazon()], drain_here)


@app.command()
def leave(
    seconds: Annotated[float, typer.Option("--seconds", help="Until this machine is gone.", min=1)],
    node_id: NodeId = None,
) -> None:
    """Drain this machine's Ray node, and wait until nothing runs on it: for a pod's preStop hook."""
    from bco_ray.nodes.draining import drain, node_here, runs
    from bco_ray.nodes.watch import wait_for_end

    node = node_here(node_id)
    drain(node, "the machine is being stopped", seconds)
    if not wait_for_end(partial(runs, node), seconds):
        raise ClusterError(f"something still ran on node {node.id} after {seconds:.0f} s.")
