"""perf_analyzer, the load generator that Triton's makers measure with."""
