//! Inside a worker's forward passes: the parts that were timed, in the steps that were.

use profilemate_analysis::layers::{COLLECTIVES, Interval};

use super::packets::{Arguments, Called, Happening, Packets, Value, shown};
use super::tracks::Slice;
use super::{CATEGORY_LAYER, after_start, milliseconds};

/// Components that are known.
const COMPONENTS: [&str; 7] =
    ["attention", "linear_attention", "cross_attention", "router", "experts", "router_and_experts", "sampler"];

/// A part as a slice; `None` if nobody knows where on the session's clock it lies. `waited`: how long a collective waited for other
/// ranks, and how long it took then.
pub(super) fn slice(interval: &Interval<'_>, waited: Option<(u64, u64)>, packets: &mut Packets) -> Option<Slice> {
    let error_ns = interval.error_ns?;
    let start_ns = after_start(interval.start_ns);
    let known = COMPONENTS.into_iter().chain(COLLECTIVES).find(|name| *name == interval.component);
    let called = known.map_or_else(|| Called::Text(shown(interval.component).into_boxed_str()), Called::Name);
    let mut arguments: Arguments = vec![("step", Value::Number(interval.step))];
    arguments.extend(interval.layer.map(|layer| ("layer", Value::Number(layer.into()))));
    if !interval.kind.is_empty() {
        let key = if COLLECTIVES.contains(&interval.component) { "call" } else { "kind" };
        arguments.push((key, packets.text(interval.kind)));
    }
    arguments.extend(interval.phase.map(|phase| ("phase", packets.text(phase.text()))));
    if let Some((wait_ns, transfer_ns)) = waited {
        arguments.extend([("wait_ms", milliseconds(wait_ns)), ("transfer_ms", milliseconds(transfer_ns))]);
    }
    arguments.push(("start_error_ms", milliseconds(error_ns)));
    let what = Happening { called, category: CATEGORY_LAYER, arguments, flows: Vec::new() };
    Some(Slice { start_ns, end_ns: Some(start_ns.saturating_add(interval.duration_ns)), is_loose: false, what })
}
