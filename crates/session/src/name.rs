//! What the names in records mean.

/// The part of vLLM that a record is about; a process may hold several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// The engine core: scheduler and step loop.
    EngineCore,
    /// A worker: the model and its runner.
    Worker,
    /// The front end: requests, tokenizer, detokenizer.
    ApiServer,
}

impl Component {
    /// Every component.
    pub const ALL: [Self; 3] = [Self::EngineCore, Self::Worker, Self::ApiServer];

    /// The role of a process that holds it.
    pub fn role(self) -> &'static str {
        match self {
            Self::EngineCore => "engine_core",
            Self::Worker => "worker",
            Self::ApiServer => "api_server",
        }
    }
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident = $text:literal in $component:ident,)*) => {
        /// A name of a span.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Name {
            $($(#[$doc])* $name,)*
            /// A name that this build does not know, or none.
            Other,
        }

        impl Name {
            /// Every known name, in the order in which reports list them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name in the string table and in the tables; empty for [`Name::Other`].
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                    Self::Other => "",
                }
            }

            /// The component that records it; `None` for [`Name::Other`]. Every process collects garbage: it is the engine core's where
            /// there is one, else the process's own.
            pub fn component(self) -> Option<Component> {
                match self {
                    $(Self::$name => Some(Component::$component),)*
                    Self::Other => None,
                }
            }
        }
    };
}

names! {
    /// One call of the scheduler.
    Scheduling = "scheduling" in EngineCore,
    /// From the worker's entry to the model's entry. Derived; no process records it.
    BatchPreparation = "batch_preparation" in Worker,
    /// The worker's part of a step up to the logits; holds `forward`.
    ModelExecution = "model_execution" in Worker,
    /// The model alone.
    Forward = "forward" in Worker,
    /// The model's encoders (vision, audio), one call.
    Encoder = "encoder" in Worker,
    /// Cross-attention of one layer, inside `forward`.
    CrossAttention = "cross_attention" in Worker,
    /// Choosing tokens.
    Sampling = "sampling" in Worker,
    /// The runner's own state after sampling.
    Bookkeeping = "bookkeeping" in Worker,
    /// The scheduler takes the model's output.
    UpdateFromOutput = "update_from_output" in EngineCore,
    /// The front end takes the outputs of one step.
    OutputProcessing = "output_processing" in ApiServer,
    /// Text to tokens, of one request.
    Tokenization = "tokenization" in ApiServer,
    /// Tokens to text, all requests of one step.
    Detokenization = "detokenization" in ApiServer,
    /// One step of the engine.
    EngineStep = "engine_step" in EngineCore,
    /// The engine waits for requests.
    EngineIdle = "engine_idle" in EngineCore,
    /// Python's garbage collector, in any process, inside of whatever that does.
    GarbageCollection = "garbage_collection" in EngineCore,
    /// Loading, profiling, compilation, capture.
    WarmUp = "warm_up" in Worker,
    /// A grammar restricts what may be sampled, before sampling itself.
    GrammarBitmask = "grammar_bitmask" in Worker,
    /// Proposing tokens (speculative decoding).
    Drafting = "drafting" in Worker,
    /// vLLM waits until the tokens of a step have reached the host (lightweight timing).
    OutputReady = "output_ready" in Worker,
    /// Capture of one CUDA graph.
    GraphCapture = "graph_capture" in Worker,
    /// The engine waits for the model's output, by vLLM's own log: what that calls the elapsed time of an iteration.
    Iteration = "iteration" in EngineCore,
}

impl Name {
    /// The name with this text.
    pub fn parse(text: &str) -> Self {
        Self::ALL.iter().copied().find(|name| name.text() == text).unwrap_or(Self::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back() {
        for name in Name::ALL {
            assert_eq!(Name::parse(name.text()), *name);
            assert!(name.component().is_some());
        }
        assert_eq!(Name::parse("from a newer version"), Name::Other);
        assert_eq!(Name::parse(""), Name::Other);
    }
}
