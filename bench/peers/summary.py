"""Medians and spreads, over the turns of a round and over the rounds."""

import math
import statistics


def of_turns(values):
    """The summary of one round. Percentiles are measured values: the nearest rank, as kvmesh bench's."""
    ordered = sorted(values)

    def at(fraction):
        return ordered[max(math.ceil(fraction * len(ordered)), 1) - 1]

    return {"median": at(0.5), "p10": at(0.1), "p90": at(0.9)}


def of_rounds(rounds):
    """The median of the rounds' medians; the widest spread of any round."""
    return {"median": statistics.median(one["median"] for one in rounds),
            "p10": min(one["p10"] for one in rounds),
            "p90": max(one["p90"] for one in rounds)}
