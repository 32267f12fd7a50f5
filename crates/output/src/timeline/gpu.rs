//! A worker's GPU: its steps and the bubbles between them, on the session's clock.

use profilemate_analysis::forward::{LONGEST_BUBBLE_NS, Pass};

use super::packets::{Arguments, Called, Happening, Packets, Uuid, Value};
use super::{CATEGORY_GPU, Window, after_start, milliseconds, seconds};
use crate::Error;

/// How far a step may be moved beyond the error of its place before it is drawn over what the GPU's clock says.
const TOLERANCE_NS: u64 = 1_000_000;

#[derive(Debug)]
pub(super) struct Gpu {
    uuid: Uuid,
    /// When the last step ended, on the session's clock.
    end_ns: u64,
}

fn happening(name: &'static str, arguments: Arguments) -> Happening {
    Happening { called: Called::Name(name), category: CATEGORY_GPU, arguments, flows: Vec::new() }
}

impl Gpu {
    pub(super) fn new(uuid: Uuid) -> Self {
        Self { uuid, end_ns: 0 }
    }

    /// A step that the GPU's clock timed; nothing is drawn of others.
    ///
    /// Durations and bubbles are those of the GPU's clock, to the nanosecond. Where a step lies on the session's clock is known
    /// with an error only: so that no step lies over the one before, it is moved by a part of that.
    pub(super) fn step(&mut self, pass: &Pass<'_>, window: Window, packets: &mut Packets) -> Result<(), Error> {
        let (Some(busy_ns), Some(placed)) = (pass.gpu_busy_ns, pass.gpu_start) else { return Ok(()) };
        let placed_ns = after_start(placed.start_ns);
        let mut idle_ns = pass.gpu_idle_ns.unwrap_or(0);
        let mut encoder_ns = pass.gpu_encoder_ns.unwrap_or(0);
        let before_ns = idle_ns.saturating_add(encoder_ns);
        let mut start_ns = placed_ns.max(self.end_ns.saturating_add(before_ns));
        if start_ns - placed_ns > placed.error_ns.saturating_add(TOLERANCE_NS) {
            // The two clocks have parted: what follows is right again.
            start_ns = placed_ns.max(self.end_ns);
            encoder_ns = encoder_ns.min(start_ns - self.end_ns);
            idle_ns = idle_ns.min(start_ns - self.end_ns - encoder_ns);
        }
        let end_ns = start_ns.saturating_add(busy_ns);
        self.end_ns = end_ns;
        // Encoders run as soon as the step's batch is prepared; what is left of the time is put before them.
        let encoder_start_ns = start_ns - encoder_ns;
        if !window.holds(encoder_start_ns - idle_ns, end_ns) {
            return Ok(());
        }
        if let Some(measured_ns) = pass.gpu_idle_ns {
            let name = if measured_ns < LONGEST_BUBBLE_NS { "bubble" } else { "gpu_idle" };
            let mut arguments = vec![("idle_ms", milliseconds(measured_ns))];
            arguments.extend(pass.step.map(|step| ("before_step", Value::Number(step))));
            packets.begin(self.uuid, encoder_start_ns - idle_ns, &happening(name, arguments))?;
            packets.end(self.uuid, encoder_start_ns)?;
        }
        if let Some(measured_ns) = pass.gpu_encoder_ns {
            let mut arguments = vec![("gpu_ms", milliseconds(measured_ns))];
            arguments.extend(pass.step.map(|step| ("before_step", Value::Number(step))));
            packets.begin(self.uuid, encoder_start_ns, &happening("encoder", arguments))?;
            packets.end(self.uuid, start_ns)?;
        }
        let number = |number: Option<u32>| number.map(|number| Value::Number(number.into()));
        let mut arguments: Arguments = [
            ("step", pass.step.map(Value::Number)),
            ("phase", pass.phase.map(|phase| packets.text(phase.text()))),
            ("sequences", number(pass.batch_size)),
            ("tokens", number(pass.num_tokens)),
            ("prefill_tokens", number(pass.prefill_tokens)),
            ("padded_tokens", pass.padded_tokens.map(Value::Number)),
            ("descriptor", pass.descriptor.map(|descriptor| packets.text(descriptor))),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect();
        arguments.extend([
            ("busy_ms", milliseconds(busy_ns)),
            ("gpu_start_sec", seconds(placed.start_ns)),
            ("gpu_start_error_ms", milliseconds(placed.error_ns)),
        ]);
        packets.begin(self.uuid, start_ns, &happening("gpu_step", arguments))?;
        // In the order in which they lie in the step; a clock's resolution may make them longer than the whole.
        let mut at_ns = start_ns;
        for (name, duration_ns) in
            [("forward", pass.duration_ns), ("sampling", pass.sample_ns), ("drafting", pass.draft_ns)]
        {
            let Some(duration_ns) = duration_ns else { continue };
            packets.begin(self.uuid, at_ns, &happening(name, vec![("gpu_ms", milliseconds(duration_ns))]))?;
            at_ns = at_ns.saturating_add(duration_ns).min(end_ns);
            packets.end(self.uuid, at_ns)?;
        }
        packets.end(self.uuid, end_ns)
    }
}
