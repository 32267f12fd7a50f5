//! Encoders against the language model: which component of a model the time goes to.
//!
//! A row is a call of an encoder, a forward pass of the language model (the *decoder*), or the cross-attention of a step in which it
//! was timed. Encoder and decoder are apart in time, so that together they are no more than the step; cross-attention is a part
//! of the decoder.

use std::collections::BTreeMap;

use profilemate_session::{Component as Role, Edge, Event, Name, Payload, Session};

use crate::Context;
use crate::batch::percent;
use crate::forward::{Pass, Timing};
use crate::layers;
use crate::statistics::{Samples, Statistics};
use crate::steps::Call;

/// What of a model is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// An encoder of images, video or sound, with what projects its outputs.
    Encoder,
    /// The language model.
    Decoder,
    /// What the language model's layers attend to of the encoder's outputs. A part of the decoder.
    CrossAttention,
}

impl Component {
    /// Every component, in the order of reports.
    pub const ALL: [Self; 3] = [Self::Encoder, Self::Decoder, Self::CrossAttention];

    /// Its name.
    pub fn text(self) -> &'static str {
        match self {
            Self::Encoder => "encoder",
            Self::Decoder => "decoder",
            Self::CrossAttention => "cross_attention",
        }
    }
}

/// What the language model is called in the rows.
const LANGUAGE_MODEL: &str = "language_model";

/// One row. `None` = unknown.
#[derive(Debug, Clone, Copy)]
pub struct Timed<'a> {
    /// When it began: nanoseconds since the session's start.
    pub start_ns: i64,
    /// What was timed.
    pub component: Component,
    /// How long it took, nanoseconds.
    pub duration_ns: Option<u64>,
    /// Which of the model's parts: `vision_encoder`, `language_model`, …; empty = unknown.
    pub context: &'a str,
    /// Inputs of an encoder; sequences of a forward pass.
    pub num_items: Option<u64>,
    /// Embeddings that came out of an encoder; tokens of a forward pass, without padding.
    pub num_tokens: Option<u64>,
    /// How it was timed.
    pub timing: Timing,
    /// Inputs that ran in an encoder CUDA graph; `None` = there were no such graphs.
    pub graph_hits: Option<u64>,
    /// Inputs that no such graph fitted.
    pub graph_misses: Option<u64>,
    /// Layers whose cross-attention it is.
    pub layers: Option<u64>,
    /// Engine step; `None` = none.
    pub step: Option<u64>,
    /// The process: `worker-0`.
    pub process: &'a str,
    /// Index of its log in the session.
    pub log: usize,
}

/// What kind of model it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelType {
    /// A decoder that attends to what an encoder makes of the input (Whisper).
    EncoderDecoder,
    /// Images or video go through an encoder into the language model's own input.
    VisionLanguage,
    /// Sound does.
    AudioLanguage,
    /// A language model and nothing else.
    DecoderOnly,
    /// An encoder and nothing else (BERT); its forward passes are the encoder.
    EncoderOnly,
}

impl ModelType {
    const ALL: [Self; 5] =
        [Self::EncoderDecoder, Self::VisionLanguage, Self::AudioLanguage, Self::DecoderOnly, Self::EncoderOnly];

    /// Its name.
    pub fn text(self) -> &'static str {
        match self {
            Self::EncoderDecoder => "encoder_decoder",
            Self::VisionLanguage => "vision_language",
            Self::AudioLanguage => "audio_language",
            Self::DecoderOnly => "decoder_only",
            Self::EncoderOnly => "encoder_only",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.text() == text)
    }
}

/// What is said of an encoder, or of all.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderSummary {
    /// Which: `vision_encoder`, …; empty = unknown.
    pub context: String,
    /// Calls.
    pub calls: u64,
    /// Times of those whose time is known.
    pub times: Option<Statistics>,
    /// Inputs in them.
    pub items: u64,
    /// Embeddings that came out.
    pub tokens: u64,
}

/// What the scheduler needed encoders for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inputs {
    /// Inputs whose output an encoder had to compute, or a connector brought.
    pub computed: u64,
    /// Embeddings of those.
    pub computed_tokens: u64,
    /// Inputs whose output the encoder cache had.
    pub cached: u64,
    /// Embeddings of those.
    pub cached_tokens: u64,
    /// Outputs that the encoder cache has thrown out.
    pub evicted: u64,
    /// How often an input had to wait for room in the encoder cache: once for each step.
    pub no_room: u64,
    /// How often one had to wait because the step's encoders had enough to do: once for each step.
    pub no_budget: u64,
    /// Most embeddings in the cache that requests needed at once.
    pub most_held: u64,
    /// Embeddings that the cache has room for.
    pub cache_size: u64,
}

impl Inputs {
    /// Share of the inputs whose output the cache had, percent.
    pub fn hit_rate_pct(&self) -> Option<f64> {
        percent(self.cached, self.cached.saturating_add(self.computed))
    }
}

/// What is said of cross-attention.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CrossAttention {
    /// Layers that have it.
    pub layers: Option<u64>,
    /// Steps in which all of it was timed.
    pub measured_steps: u64,
    /// Share of the forward passes in those, percent.
    pub of_decoder_pct: Option<f64>,
    /// Steps that ran in a full CUDA graph, inside which Python times nothing.
    pub full_graph_steps: u64,
    /// Share of the forward passes by the stamps of layers, which are in full CUDA graphs, too; percent.
    pub stamped_pct: Option<f64>,
    /// Whether some layers stand for all in that.
    pub stamped_is_estimate: bool,
    /// Why it was not timed, or not everywhere; empty if there is nothing to say.
    pub reason: String,
}

/// What is said of a model's components.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// What kind of model it is; `None` = not known.
    pub model_type: Option<ModelType>,
    /// Its parts, each with the names of its modules.
    pub components: Vec<(String, String)>,
    /// Times of rows, by component that has any.
    pub times: Vec<(Component, Statistics)>,
    /// Rows by component, in the order of [`Component::ALL`], those without a time included.
    pub rows: [u64; 3],
    /// By encoder.
    pub encoders: Vec<EncoderSummary>,
    /// Steps in which an encoder was called.
    pub encoder_steps: u64,
    /// Share of the encoder in encoder and decoder of those, percent.
    pub of_encoder_steps_pct: Option<f64>,
    /// Inputs that ran in encoder CUDA graphs, and that no graph fitted; `None` = there are no such graphs.
    pub graphs: Option<[u64; 2]>,
    /// What the scheduler needed encoders for; `None` = nothing.
    pub inputs: Option<Inputs>,
    /// Cross-attention, where the model has it.
    pub cross_attention: Option<CrossAttention>,
}

impl Summary {
    /// Times of a component.
    pub fn times(&self, component: Component) -> Option<&Statistics> {
        self.times.iter().find(|(of, _)| *of == component).map(|(_, times)| times)
    }

    fn total_ms(&self, component: Component) -> f64 {
        self.times(component).map_or(0.0, |times| times.total_ms)
    }

    /// Share of encoder or decoder in the time of both; of cross-attention, which is a part of the decoder, as far as it was timed
    /// wherever it ran. Percent; `None` = not known.
    pub fn share_pct(&self, component: Component) -> Option<f64> {
        let whole_ms = self.total_ms(Component::Encoder) + self.total_ms(Component::Decoder);
        if whole_ms <= 0.0 {
            return None;
        }
        match (component, &self.cross_attention) {
            (Component::CrossAttention, Some(cross)) => {
                let everywhere = cross.of_decoder_pct.filter(|_| cross.full_graph_steps == 0);
                let known = everywhere.or(cross.stamped_pct)?;
                Some(known * self.total_ms(Component::Decoder) / whole_ms)
            }
            _ => Some(100.0 * self.total_ms(component) / whole_ms),
        }
    }

    /// Takes what the stamps of layers say of cross-attention, where there are some.
    pub(crate) fn take_stamps(&mut self, layers: &layers::Summary) {
        let Some(cross) = &mut self.cross_attention else { return };
        let of_it = || layers.components.iter().filter(|of| of.component == "cross_attention");
        let shares = of_it().filter_map(|of| of.forward_share_pct);
        let Some(stamped_pct) = shares.reduce(|sum, share| sum + share) else { return };
        cross.stamped_pct = Some(stamped_pct);
        cross.stamped_is_estimate = of_it().any(|of| of.is_estimate);
        cross.reason.clear();
    }
}

#[derive(Debug, Default)]
struct Encoder {
    calls: u64,
    samples: Samples,
    items: u64,
    tokens: u64,
}

#[derive(Debug)]
pub(crate) struct Collector {
    samples: [Samples; 3],
    rows: [u64; 3],
    encoders: BTreeMap<String, Encoder>,
    graphs: Option<[u64; 2]>,
    inputs: Option<Inputs>,
    model_type: Option<ModelType>,
    components: Vec<(String, String)>,
    /// What the workers said of cross-attention: a number of layers, or why it could not be timed.
    cross_fact: Option<String>,
    encoder_steps: u64,
    /// Encoder, and encoder and decoder, of the steps in which an encoder was called; nanoseconds.
    encoder_steps_ns: [u64; 2],
    /// Cross-attention and decoder, of the steps in which it was timed; nanoseconds.
    cross_ns: [u64; 2],
    full_graph_steps: u64,
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves are taken apart on purpose")]
fn halves(value: u64) -> [u64; 2] {
    [u64::from(value as u32), value >> 32]
}

impl Collector {
    pub(crate) fn new(session: &Session) -> Self {
        let fact = |key: &str| session.logs.iter().find_map(|log| log.head.fact(key));
        let mut components: Vec<(String, String)> = Vec::new();
        for (key, value) in session.logs.iter().flat_map(|log| &log.head.facts) {
            if let Some(name) = key.strip_prefix("component:")
                && components.iter().all(|(known, _)| known != name)
            {
                components.push((name.to_owned(), value.clone()));
            }
        }
        Self {
            samples: Default::default(),
            rows: [0; 3],
            encoders: BTreeMap::new(),
            graphs: None,
            inputs: None,
            model_type: fact("model_type").and_then(ModelType::parse),
            components,
            cross_fact: fact("cross_attention").map(str::to_owned),
            encoder_steps: 0,
            encoder_steps_ns: [0; 2],
            cross_ns: [0; 2],
            full_graph_steps: 0,
        }
    }

    /// An event: a call of an encoder is a row.
    pub(crate) fn see<'a>(&mut self, context: &Context<'a>, event: &Event) -> Option<Timed<'a>> {
        if let Payload::EncoderInput(input) = &event.record.payload {
            let what = context.session.logs[event.log].head.string(event.record.name).unwrap_or("");
            let inputs = self.inputs.get_or_insert_default();
            let (count, tokens) = match what {
                "computed" => (&mut inputs.computed, Some(&mut inputs.computed_tokens)),
                "cached" => (&mut inputs.cached, Some(&mut inputs.cached_tokens)),
                "no_room" => (&mut inputs.no_room, None),
                "no_budget" => (&mut inputs.no_budget, None),
                _ => return None,
            };
            *count += 1;
            if let Some(tokens) = tokens {
                *tokens = tokens.saturating_add(input.embeddings.into());
            }
            inputs.evicted += u64::from(input.evicted);
            inputs.most_held = inputs.most_held.max(input.held.into());
            inputs.cache_size = inputs.cache_size.max(input.size.into());
            return None;
        }
        if event.name != Name::Encoder || event.edge != Edge::End {
            return None;
        }
        let span = event.span()?;
        let log = &context.session.logs[event.log];
        let on_gpu = context.steps.times_on_gpu(event);
        let call = context.steps.calls(event).iter().find(|call| call.ticks == event.record.ticks);
        let [items, tokens] = halves(span.value_a);
        let [hits, misses] = halves(span.value_b);
        let has_graphs = span.value_b != 0;
        let row = Timed {
            start_ns: event.start_ns,
            component: Component::Encoder,
            duration_ns: if on_gpu { call.and_then(|call| call.gpu_ns) } else { Some(event.duration_ns()) },
            context: log.head.string(span.context).unwrap_or(""),
            num_items: Some(items),
            num_tokens: Some(tokens),
            timing: if on_gpu { Timing::Events } else { Timing::Wall },
            graph_hits: has_graphs.then_some(hits),
            graph_misses: has_graphs.then_some(misses),
            layers: None,
            step: Some(event.record.step).filter(|step| *step != 0),
            process: log.process(Role::Worker),
            log: event.log,
        };
        if has_graphs {
            let [all_hits, all_misses] = self.graphs.get_or_insert_default();
            (*all_hits, *all_misses) = (*all_hits + hits, *all_misses + misses);
        }
        let encoder = match self.encoders.get_mut(row.context) {
            Some(encoder) => encoder,
            None => self.encoders.entry(row.context.to_owned()).or_default(),
        };
        encoder.calls += 1;
        encoder.items += items;
        encoder.tokens = encoder.tokens.saturating_add(tokens);
        if let Some(ns) = row.duration_ns {
            encoder.samples.push(ns);
        }
        self.count(&row);
        Some(row)
    }

    fn count(&mut self, row: &Timed<'_>) {
        self.rows[row.component as usize] += 1;
        if let Some(ns) = row.duration_ns {
            self.samples[row.component as usize].push(ns);
        }
    }

    /// A forward pass, of this event: the rows of decoder and cross-attention, if they were timed.
    pub(crate) fn see_pass<'a>(
        &mut self,
        context: &Context<'a>,
        pass: &Pass<'a>,
        event: &Event,
    ) -> (Timed<'a>, Option<Timed<'a>>) {
        let clock = &context.session.logs[event.log].clock;
        let calls = context.steps.calls(event);
        let on_gpu = pass.timing == Timing::Events;
        let time = |call: &Call| if on_gpu { call.gpu_ns } else { Some(clock.duration_ns(call.duration_ticks)) };
        // `None`: one of them is not known.
        let sum = |of: &mut dyn Iterator<Item = &Call>| {
            let mut all_ns = 0_u64;
            for call in of {
                all_ns = all_ns.saturating_add(time(call)?);
            }
            Some(all_ns)
        };
        let inside_ns = sum(&mut calls.iter().filter(|call| call.is_encoder && call.is_in_forward));
        let duration_ns = pass.duration_ns.zip(inside_ns).map(|(whole, inside)| whole.saturating_sub(inside));
        let component =
            if self.model_type == Some(ModelType::EncoderOnly) { Component::Encoder } else { Component::Decoder };
        let decoder = Timed {
            start_ns: pass.start_ns,
            component,
            duration_ns,
            context: LANGUAGE_MODEL,
            num_items: pass.batch_size.map(u64::from),
            num_tokens: pass.num_tokens.map(u64::from),
            timing: pass.timing,
            graph_hits: None,
            graph_misses: None,
            layers: None,
            step: pass.step,
            process: pass.process,
            log: pass.log,
        };
        self.count(&decoder);
        if self.cross_fact.is_some() && pass.cudagraph_mode() == Some("FULL") {
            self.full_graph_steps += 1;
        }
        if calls.iter().any(|call| call.is_encoder) {
            self.encoder_steps += 1;
            let encoder_ns = sum(&mut calls.iter().filter(|call| call.is_encoder));
            if let Some((encoder_ns, decoder_ns)) = encoder_ns.zip(duration_ns) {
                let [encoder, both] = &mut self.encoder_steps_ns;
                *encoder = encoder.saturating_add(encoder_ns);
                *both = both.saturating_add(encoder_ns).saturating_add(decoder_ns);
            }
        }
        let layers = calls.iter().filter(|call| !call.is_encoder).count() as u64;
        if layers == 0 {
            return (decoder, None);
        }
        let cross_ns = sum(&mut calls.iter().filter(|call| !call.is_encoder));
        let cross =
            Timed { component: Component::CrossAttention, duration_ns: cross_ns, layers: Some(layers), ..decoder };
        self.count(&cross);
        if let Some((cross_ns, decoder_ns)) = cross_ns.zip(duration_ns) {
            let [cross, decoder] = &mut self.cross_ns;
            *cross = cross.saturating_add(cross_ns);
            *decoder = decoder.saturating_add(decoder_ns);
        }
        (decoder, Some(cross))
    }

    fn cross_attention(&self) -> Option<CrossAttention> {
        let said = self.cross_fact.as_deref()?;
        let layers = said.parse().ok();
        let measured_steps = self.rows[Component::CrossAttention as usize];
        let steps = self.rows[Component::Decoder as usize];
        let reason = if let Some(reason) = said.strip_prefix("could not attach: ") {
            reason.to_owned()
        } else if self.full_graph_steps > 0 {
            format!(
                "{} of {steps} steps ran in a full CUDA graph, inside which nothing can be timed from Python",
                self.full_graph_steps
            )
        } else if measured_steps == 0 && steps > 0 {
            "Python did not run it in any of the steps in which it would have been timed (one of 16)".to_owned()
        } else {
            String::new()
        };
        let [cross, decoder] = self.cross_ns;
        Some(CrossAttention {
            layers,
            measured_steps,
            of_decoder_pct: percent(cross, decoder),
            full_graph_steps: self.full_graph_steps,
            stamped_pct: None,
            stamped_is_estimate: false,
            reason,
        })
    }

    pub(crate) fn finish(mut self) -> Summary {
        let cross_attention = self.cross_attention();
        let times = Component::ALL
            .into_iter()
            .zip(&mut self.samples)
            .filter_map(|(component, samples)| Some((component, samples.statistics()?)))
            .collect();
        let encoders = self.encoders.into_iter().map(|(context, mut encoder)| EncoderSummary {
            context,
            calls: encoder.calls,
            times: encoder.samples.statistics(),
            items: encoder.items,
            tokens: encoder.tokens,
        });
        let [encoder, both] = self.encoder_steps_ns;
        Summary {
            model_type: self.model_type,
            components: self.components,
            times,
            rows: self.rows,
            encoders: encoders.collect(),
            encoder_steps: self.encoder_steps,
            of_encoder_steps_pct: percent(encoder, both),
            graphs: self.graphs,
            inputs: self.inputs,
            cross_attention,
        }
    }
}
