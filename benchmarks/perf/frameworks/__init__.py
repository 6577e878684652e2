"""FedAvg in other frameworks, a script each; benchmarks/perf/peers.py runs them in environments of their own."""
