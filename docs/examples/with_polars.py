"""Where the GPU's time goes and how long requests wait, with polars.

python with_polars.py [SESSION]        # default: the newest session
"""

import sys

import polars as pl

import profilemate

session = profilemate.open_session(*sys.argv[1:2])
print(f"session {session.id}: {', '.join(session.tables)}")

if "forward_pass_timing" in session:
    passes = pl.DataFrame(session["forward_pass_timing"]).with_columns(pl.col("phase").cast(pl.String))
    time = pl.col("forward_time_ms")
    phases = (
        passes.drop_nulls("phase")
        .group_by("phase")
        .agg(time.count().alias("steps"), time.sum().alias("total"), time.median().alias("median"))
        .sort("phase")
    )
    for phase, steps, total, median in phases.iter_rows():
        print(f"{phase}: {steps} steps, {total:.3f} ms, median {median:.3f} ms")

if "request_lifecycle" in session:
    requests = pl.DataFrame(session["request_lifecycle"])
    over = requests.drop_nulls("finish_reason")
    preempted = requests.filter(pl.col("num_preemptions") > 0)
    print(f"{len(over)} of {len(requests)} requests are over, {len(preempted)} were preempted")
    print(f"slowest first token: {requests['ttft_sec'].max():.6f} s")

for name in session.summaries:
    print(f"summary {name}: {len(session.summary(name))} keys")
