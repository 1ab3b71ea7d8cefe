"""Simulated counts by skipping between expressed genes against numpy's dense gamma-Poisson draws, in the same run.

    python benchmarks/bench_simulate.py [--samples 2048] [--genes 8000]

Prints CPU microseconds per cell and ratios at several depths, and what packing costs. One thread.
"""

from __future__ import annotations

import argparse
import time
import zlib

import numpy as np
import scipy.sparse as sp

from txeval.data.simulate import _ROWS, Simulation, _Design


def cpu(function, repeats: int) -> float:
    """CPU seconds of one call, the best of some."""
    best = np.inf
    for _ in range(repeats):
        start = time.process_time()
        function()
        best = min(best, time.process_time() - start)
    return best


def dense(design: _Design, part: int) -> sp.csr_matrix:
    """The same counts the plain way."""
    where = slice(part * _ROWS, (part + 1) * _ROWS)
    rng = np.random.default_rng(part)
    label, batch = design.label[where], design.batch[where]
    m = len(label)
    state = design.shifts[label] + rng.normal(0, design.asked.program_noise, (m, design.q))
    loadings = np.zeros((design.q, design.g), np.float32)
    loadings[design.program, design.inside] = design.loading
    rate = design.base[batch] * np.exp(state.astype(np.float32) @ loadings)
    hit = np.flatnonzero(design.knocked_down[label] >= 0)
    rate[hit, design.knocked_down[label[hit]]] *= design.asked.knock_down
    rate *= (design.depth * np.exp(rng.normal(0, 0.25, m)) / rate.sum(axis=1))[:, None]
    return sp.csr_matrix(rng.poisson(rate * rng.standard_gamma(1 / design.spread, rate.shape) * design.spread))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--genes", type=int, default=8000)
    options = parser.parse_args()
    for depth in (500.0, 1000.0, 2000.0, 5000.0):
        design = _Design(
            Simulation(
                n_samples=options.samples,
                n_genes=options.genes,
                n_perturbations=200,
                n_batches=20,
                n_programs=50,
                depth=depth,
            ),
            None,
        )
        parts = range(options.samples // _ROWS)
        design.rows(0)
        blocks = [design.rows(part)[1] for part in parts]
        nnz = sum(block.nnz for block in blocks)
        ours = cpu(lambda design=design, parts=parts: [design.rows(part) for part in parts], 3)
        few = parts[:2]
        plain = cpu(lambda design=design, few=few: [dense(design, part) for part in few], 1) * len(parts) / len(few)

        def pack(blocks=blocks) -> None:
            for block in blocks:
                for array in (block.data.astype(np.uint16), block.indices):
                    raw = array.view(np.uint8).reshape(-1, array.dtype.itemsize)
                    zlib.compress(raw.T.tobytes(), 1)

        packed = cpu(pack, 1)
        n = len(parts) * _ROWS
        print(
            f"density {nnz / n / options.genes:.3f}: {1e6 * ours / n:.0f} us per cell ({n / ours:,.0f} cells/s), "
            f"dense numpy {1e6 * plain / n:.0f} us, ratio {plain / ours:.1f}; packing {1e6 * packed / n:.0f} us"
        )


if __name__ == "__main__":
    main()
