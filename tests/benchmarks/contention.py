"""Two trainings on the same cores: `python -m tests.benchmarks.contention`.

One training with a thread a core, then two at once with as many each, as two sweeps on one machine
are. Ours (`startup.SPINS`) against the waiting of GNU OpenMP, which torch comes with, in turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from casting_tune import machine
from casting_tune.execution import ray_cluster
from tests.benchmarks import figures, precision

CASES = tuple(
    (*network, n)
    for network in (("timm:resnet18", 128, 32), ("mobilenetv2", 224, 4))
    for n in (1, 2)
)
"""Network, px, batch, trainings at once."""
WAYS = (ray_cluster.SPINS, "")


def main(words: Sequence[str] | None = None) -> None:
    """Measure in turn and print a table."""
    parser = figures.parser(__doc__, repeats=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=machine.cpus())
    args = parser.parse_args(words)
    record: dict[str, float] = {"n_threads": args.threads, "seconds": args.seconds}
    rates: dict[tuple[str, int, int, int], list[list[float]]] = {case: [[], []] for case in CASES}
    for _ in range(args.repeats):
        for (backbone, px, batch, n), of_case in rates.items():
            for spins, measured in zip(WAYS, of_case, strict=True):
                wish = {"backbone": backbone, "px": px, "batch": batch, "spins": spins}
                measured.append(precision.at_once(n, **record, **wish))  # type: ignore[arg-type]
    header = (
        "network",
        "px",
        "batch",
        "trainings at once",
        "images/s together",
        "as GNU OpenMP waits",
        "times",
    )
    table = figures.table(header, [
        (*case, figures.spread(ours, 1), figures.spread(theirs, 1), figures.ratios(ours, theirs, 2))
        for case, (ours, theirs) in rates.items()
    ])  # fmt: skip
    how = (
        f"Training steps in fp32, {args.threads} threads each, "
        f"{args.repeats} turns of {args.seconds:g} s."
    )
    text = f"{table}\n\n{how} {figures.conditions('torch', 'timm')}"
    figures.publish("contention", text, write_docs=args.write_docs)


if __name__ == "__main__":
    main()
