//! Packets of a trace on their way into its file: names are written once, packets in compressed bundles, nothing is kept.

use std::collections::HashMap;
use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use prost::Message;

use super::proto::{
    BUILTIN_CLOCK_BOOTTIME, BUILTIN_CLOCK_REALTIME, Clock, ClockSnapshot, CounterDescriptor, DebugAnnotation,
    DebugValue, EXPLICIT, InternedData, InternedString, Name, ProcessDescriptor, SEQ_INCREMENTAL_STATE_CLEARED,
    SEQ_NEEDS_INCREMENTAL_STATE, TYPE_COUNTER, TYPE_INSTANT, TYPE_SLICE_BEGIN, TYPE_SLICE_END, TracePacket,
    TrackDescriptor, TrackEvent,
};
use crate::Error;
use crate::replace::NewFile;
use crate::text::visible;

/// Bytes of packets that are compressed together.
const BUNDLE_BYTES: usize = 1 << 20;
/// Most bytes of a text from outside; Perfetto shows less.
const MAX_TEXT_BYTES: usize = 256;
/// Most texts that are written once and then called by number; more are written where they stand.
const MAX_TEXTS: usize = 4096;
/// All packets belong to one sequence, which is what interned names hold for.
const SEQUENCE: u32 = 1;
/// `Trace.packet`: field 1, with a length.
const PACKET_KEY: u8 = 0x0a;

/// Text from outside as it is shown: what would not be seen written out, and bounded.
pub(super) fn shown(text: &str) -> String {
    let text = visible(text);
    if text.len() <= MAX_TEXT_BYTES {
        return text.into_owned();
    }
    let end = (0..=MAX_TEXT_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

/// A track's number in the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Uuid(u64);

/// What is said of a slice besides its time.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Number(u64),
    Real(f64),
    /// A text that was written before, see [`Packets::text`].
    Known(u64),
    Text(Box<str>),
}

/// Arguments of a slice.
pub(super) type Arguments = Vec<(&'static str, Value)>;

/// What a slice or an instant is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Called {
    Name(&'static str),
    /// A text from outside, [`shown`].
    Text(Box<str>),
}

/// Something that begins, or just happens.
#[derive(Debug, Clone)]
pub(super) struct Happening {
    pub(super) called: Called,
    pub(super) category: &'static str,
    pub(super) arguments: Arguments,
    /// Ends of flows; each has two.
    pub(super) flows: Vec<u64>,
}

/// Names that have a number.
#[derive(Debug, Default)]
struct Names(HashMap<&'static str, u64>);

impl Names {
    /// The number of a name; a new one goes into `new` too.
    fn iid(&mut self, name: &'static str, new: &mut Vec<Name>) -> u64 {
        if let Some(iid) = self.0.get(name) {
            return *iid;
        }
        let iid = self.0.len() as u64 + 1;
        self.0.insert(name, iid);
        new.push(Name { iid: Some(iid), name: Some(name.to_owned()) });
        iid
    }
}

/// The file of a trace.
pub(super) struct Packets {
    file: NewFile,
    bundle: Vec<u8>,
    /// Names that the next packet brings.
    new: InternedData,
    is_first: bool,
    names: Names,
    categories: Names,
    argument_names: Names,
    texts: HashMap<Box<str>, u64>,
    tracks: u64,
    /// Slices and instants that were written.
    pub(super) slices: u64,
}

impl Packets {
    /// Begins a trace whose moment 0 was `realtime_ns` nanoseconds after 1970; 0 = unknown.
    pub(super) fn new(file: NewFile, realtime_ns: u64) -> Result<Self, Error> {
        let mut packets = Self {
            file,
            bundle: Vec::with_capacity(BUNDLE_BYTES + (64 << 10)),
            new: InternedData::default(),
            is_first: true,
            names: Names::default(),
            categories: Names::default(),
            argument_names: Names::default(),
            texts: HashMap::new(),
            tracks: 0,
            slices: 0,
        };
        if realtime_ns != 0 {
            let clock = |id, timestamp| Clock { clock_id: Some(id), timestamp: Some(timestamp) };
            let snapshot = ClockSnapshot {
                clocks: vec![clock(BUILTIN_CLOCK_BOOTTIME, 0), clock(BUILTIN_CLOCK_REALTIME, realtime_ns)],
                primary_trace_clock: Some(BUILTIN_CLOCK_BOOTTIME.cast_signed()),
            };
            packets.put(TracePacket { clock_snapshot: Some(snapshot), ..TracePacket::default() })?;
        }
        Ok(packets)
    }

    /// A text as a value: by number, if there is room for one more.
    pub(super) fn text(&mut self, text: &str) -> Value {
        if let Some(iid) = self.texts.get(text) {
            return Value::Known(*iid);
        }
        let shown = shown(text);
        if self.texts.len() >= MAX_TEXTS || text.len() > MAX_TEXT_BYTES {
            return Value::Text(shown.into_boxed_str());
        }
        let iid = self.texts.len() as u64 + 1;
        self.texts.insert(text.into(), iid);
        let string = InternedString { iid: Some(iid), str: Some(shown.into_bytes()) };
        self.new.debug_annotation_string_values.push(string);
        Value::Known(iid)
    }

    fn describe(&mut self, track: TrackDescriptor) -> Result<Uuid, Error> {
        self.tracks += 1;
        let uuid = self.tracks;
        let track = TrackDescriptor { uuid: Some(uuid), ..track };
        self.put(TracePacket { track_descriptor: Some(track), ..TracePacket::default() })?;
        Ok(Uuid(uuid))
    }

    /// A process, whose tracks lie together.
    pub(super) fn process(&mut self, pid: u32, name: &str, rank: i32) -> Result<Uuid, Error> {
        let process = ProcessDescriptor { pid: i32::try_from(pid).ok(), process_name: Some(shown(name)) };
        self.describe(TrackDescriptor {
            process: Some(process),
            child_ordering: Some(EXPLICIT),
            sibling_order_rank: Some(rank),
            ..TrackDescriptor::default()
        })
    }

    /// A track for slices; those of the same name and parent are shown as one.
    pub(super) fn track(&mut self, parent: Uuid, name: &str, rank: i32) -> Result<Uuid, Error> {
        self.describe(TrackDescriptor {
            name: Some(shown(name)),
            parent_uuid: Some(parent.0),
            sibling_order_rank: Some(rank),
            ..TrackDescriptor::default()
        })
    }

    /// A track for a number that changes.
    pub(super) fn counter(&mut self, parent: Uuid, name: &str, unit: &str, rank: i32) -> Result<Uuid, Error> {
        self.describe(TrackDescriptor {
            name: Some(shown(name)),
            parent_uuid: Some(parent.0),
            counter: Some(CounterDescriptor { unit_name: Some(unit.to_owned()) }),
            sibling_order_rank: Some(rank),
            ..TrackDescriptor::default()
        })
    }

    pub(super) fn begin(&mut self, track: Uuid, at_ns: u64, what: &Happening) -> Result<(), Error> {
        self.happen(track, at_ns, what, TYPE_SLICE_BEGIN)
    }

    pub(super) fn instant(&mut self, track: Uuid, at_ns: u64, what: &Happening) -> Result<(), Error> {
        self.happen(track, at_ns, what, TYPE_INSTANT)
    }

    pub(super) fn end(&mut self, track: Uuid, at_ns: u64) -> Result<(), Error> {
        self.event(track, at_ns, TrackEvent { r#type: Some(TYPE_SLICE_END), ..TrackEvent::default() })
    }

    /// A counter's value from now on.
    pub(super) fn count(&mut self, track: Uuid, at_ns: u64, value: u64) -> Result<(), Error> {
        let counter_value = Some(i64::try_from(value).unwrap_or(i64::MAX));
        self.event(track, at_ns, TrackEvent { r#type: Some(TYPE_COUNTER), counter_value, ..TrackEvent::default() })
    }

    /// A counter's value from now on.
    pub(super) fn measure(&mut self, track: Uuid, at_ns: u64, value: f64) -> Result<(), Error> {
        let double_counter_value = Some(value);
        self.event(
            track,
            at_ns,
            TrackEvent { r#type: Some(TYPE_COUNTER), double_counter_value, ..TrackEvent::default() },
        )
    }

    fn happen(&mut self, track: Uuid, at_ns: u64, what: &Happening, kind: i32) -> Result<(), Error> {
        self.slices += 1;
        let category = self.categories.iid(what.category, &mut self.new.event_categories);
        let (name_iid, name) = match &what.called {
            Called::Name(name) => (Some(self.names.iid(name, &mut self.new.event_names)), None),
            Called::Text(text) => (None, Some(text.to_string())),
        };
        let mut debug_annotations = Vec::with_capacity(what.arguments.len());
        for (name, value) in &what.arguments {
            let name_iid = Some(self.argument_names.iid(name, &mut self.new.debug_annotation_names));
            let value = Some(match value {
                Value::Number(number) => DebugValue::Uint(*number),
                Value::Real(number) => DebugValue::Double(*number),
                Value::Known(iid) => DebugValue::TextIid(*iid),
                Value::Text(text) => DebugValue::Text(text.to_string()),
            });
            debug_annotations.push(DebugAnnotation { name_iid, value });
        }
        let event = TrackEvent {
            category_iids: vec![category],
            debug_annotations,
            r#type: Some(kind),
            name_iid,
            name,
            flow_ids: what.flows.clone(),
            ..TrackEvent::default()
        };
        self.event(track, at_ns, event)
    }

    fn event(&mut self, track: Uuid, at_ns: u64, event: TrackEvent) -> Result<(), Error> {
        let event = TrackEvent { track_uuid: Some(track.0), ..event };
        self.put(TracePacket {
            timestamp: Some(at_ns),
            sequence_flags: Some(SEQ_NEEDS_INCREMENTAL_STATE),
            track_event: Some(event),
            ..TracePacket::default()
        })
    }

    fn put(&mut self, packet: TracePacket) -> Result<(), Error> {
        let mut packet = TracePacket { trusted_packet_sequence_id: Some(SEQUENCE), ..packet };
        if self.is_first {
            self.is_first = false;
            packet.sequence_flags = Some(packet.sequence_flags.unwrap_or(0) | SEQ_INCREMENTAL_STATE_CLEARED);
        }
        if self.new != InternedData::default() {
            packet.interned_data = Some(std::mem::take(&mut self.new));
        }
        append(&mut self.bundle, &packet);
        if self.bundle.len() >= BUNDLE_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Error> {
        if self.bundle.is_empty() {
            return Ok(());
        }
        let mut encoder = ZlibEncoder::new(Vec::with_capacity(BUNDLE_BYTES / 4), Compression::fast());
        // Into memory: neither of these fails.
        let compressed = encoder.write_all(&self.bundle).and_then(|()| encoder.finish());
        let compressed = compressed.map_err(|cause| self.file.failed(cause))?;
        self.bundle.clear();
        let mut bytes = Vec::with_capacity(compressed.len() + 16);
        append(&mut bytes, &TracePacket { compressed_packets: Some(compressed), ..TracePacket::default() });
        self.file.append(&bytes)
    }

    /// The file, complete but for its name.
    pub(super) fn finish(mut self) -> Result<NewFile, Error> {
        self.flush()?;
        self.file.finish()?;
        Ok(self.file)
    }
}

/// A packet as a field of a `Trace`.
fn append(bytes: &mut Vec<u8>, packet: &TracePacket) {
    bytes.push(PACKET_KEY);
    // A `Vec` has room for whatever there is.
    let _ = packet.encode_length_delimited(bytes);
}
