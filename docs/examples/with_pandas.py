"""Where the GPU's time goes and how long requests wait, with pandas.

python with_pandas.py [SESSION]        # default: the newest session
"""

import sys

import profilemate

session = profilemate.open_session(*sys.argv[1:2])
print(f"session {session.id}: {', '.join(session.tables)}")

if "forward_pass_timing" in session:
    passes = session["forward_pass_timing"].to_pandas()
    times = passes.groupby("phase", observed=True).forward_time_ms
    for phase in sorted(times.groups):
        print(
            f"{phase}: {times.count()[phase]} steps, {times.sum()[phase]:.3f} ms, median {times.median()[phase]:.3f} ms"
        )

if "request_lifecycle" in session:
    requests = session["request_lifecycle"].to_pandas()
    over = requests[requests.finish_reason.notna()]
    print(
        f"{len(over)} of {len(requests)} requests are over, {(requests.num_preemptions > 0).sum()} were preempted"
    )
    print(f"slowest first token: {requests.ttft_sec.max():.6f} s")

for name in session.summaries:
    print(f"summary {name}: {len(session.summary(name))} keys")
