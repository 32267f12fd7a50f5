//! Requests of a made-up run.

use profilemate_format::record::{
    ClientRequest, Label, Outputs, Payload, RequestAdmitted, RequestFinished, RequestFirstToken, RequestPreempted,
    RequestQueued, RequestText, TEXT_BYTES,
};
use xxhash_rust::xxh3::xxh3_64;

use crate::common::Log;
use crate::run::Run;

/// `CLOCK_REALTIME` at the start of every session here, seconds.
const REALTIME: f64 = 1_767_323_045.0;

/// A request: microseconds since the run's beginning at 10 ms, and how long each of its parts takes.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    pub(crate) number: u64,
    pub(crate) id: String,
    pub(crate) client_id: Option<String>,
    pub(crate) arrived: u64,
    pub(crate) arriving: u64,
    pub(crate) queued: u64,
    pub(crate) prefill: u64,
    /// In the middle of decoding.
    pub(crate) preempted: u64,
    pub(crate) per_token: u64,
    pub(crate) prompt: u32,
    pub(crate) output: u32,
    pub(crate) ends: bool,
}

impl Life {
    pub(crate) fn usual(number: u64) -> Self {
        Self {
            number,
            id: format!("request-{number}"),
            client_id: None,
            arrived: 20_000 + number * 5_000,
            arriving: 1_000,
            queued: 2_000 + number % 3 * 10,
            prefill: 20_000,
            preempted: 0,
            per_token: 10_000,
            prompt: 100,
            output: 11,
            ends: true,
        }
    }

    pub(crate) fn write(self, run: &mut Run) {
        let number = self.number;
        let put = |run: &mut Run, at: u64, step: u64, name: &'static str, payload: Payload| {
            run.engine(at, move |log| {
                let name = if name.is_empty() { 0 } else { log.name(name) };
                log.push(at, step, Label::Work, name, payload);
            });
        };
        if let Some(client) = &self.client_id {
            let payload = Payload::ClientRequest(ClientRequest {
                number: number + 1_000,
                engine_id_hash: xxh3_64(self.id.as_bytes()),
                id_bytes: u16::try_from(client.len()).unwrap(),
                ..ClientRequest::default()
            });
            put(run, self.arrived, 0, "", payload);
            Self::id(run, self.arrived, number + 1_000, client);
        }
        let mut now = self.arrived + self.arriving;
        let queued = RequestQueued {
            number,
            arrival_bits: (REALTIME + self.arrived as f64 / 1e6).to_bits(),
            prompt_tokens: self.prompt,
            id_bytes: u16::try_from(self.id.len()).unwrap(),
            ..RequestQueued::default()
        };
        put(run, now, 0, "", Payload::RequestQueued(queued));
        Self::id(run, now, number, &self.id);
        now += self.queued;
        let admitted = RequestAdmitted { number, num_tokens: self.prompt, ..RequestAdmitted::default() };
        put(run, now, 0, "", Payload::RequestAdmitted(admitted));
        now += self.prefill;
        put(
            run,
            now,
            0,
            "",
            Payload::RequestFirstToken(RequestFirstToken { number, output_tokens: 1, client: 0 }),
        );
        let decoding = u64::from(self.output - 1) * self.per_token;
        if self.preempted > 0 {
            let at = now + decoding / 2;
            let preempted =
                RequestPreempted { number, computed_tokens: 105, beneficiary: 1, ..RequestPreempted::default() };
            put(run, at, 0, "kv_cache_full", Payload::RequestPreempted(preempted));
            put(run, at + self.preempted, 0, "", Payload::RequestAdmitted(admitted));
        }
        now += decoding + self.preempted;
        if self.ends {
            let finished = RequestFinished {
                number,
                prompt_tokens: self.prompt,
                output_tokens: self.output,
                preemptions: u32::from(self.preempted > 0),
                ..RequestFinished::default()
            };
            // Its last output is what it waits for; without a step it is over at once.
            put(run, now, 0, "", Payload::Outputs(Outputs::default()));
            put(run, now, 0, "FINISHED_STOPPED", Payload::RequestFinished(finished));
        }
    }

    fn id(run: &mut Run, at: u64, number: u64, id: &str) {
        for (part, piece) in id.as_bytes().chunks(TEXT_BYTES).enumerate() {
            let mut bytes = [0; TEXT_BYTES];
            bytes[..piece.len()].copy_from_slice(piece);
            let text = RequestText { number, part: u16::try_from(part).unwrap(), bytes };
            run.engine(at, move |log: &mut Log| log.push(at, 0, Label::Work, 0, Payload::RequestText(text)));
        }
    }
}
