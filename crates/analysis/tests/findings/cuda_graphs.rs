//! Coverage of CUDA graphs and the sizes that are captured.

use profilemate_analysis::findings::{Direction, Level, Severity};

use crate::server::{DECODE, PROMPT, Server, Step, changes, ids, number, of, weight};

const EAGER: Step = Step { graph: "NONE", ..DECODE };
/// Batches are large, so that nothing is said of the load.
const GRAPH_64: &str = "FULL num_tokens=64 num_reqs=64 uniform=1 has_lora=0";

fn about_graphs(server: &Server) -> Vec<&'static str> {
    ids(&server.find()).into_iter().filter(|id| *id != "load-below-capacity").collect()
}

#[test]
fn without_graphs_the_flag_is_named() {
    let mut server = Server::new();
    server.worker.fact("setting:enforce_eager", "True");
    server.steps(201, EAGER);
    let findings = server.find();
    let finding = of(&findings, "cuda-graph-coverage-low");
    assert_eq!(weight(finding), (Severity::Critical, Level::High));
    assert_eq!(changes(finding), [("--enforce-eager", Direction::Remove, None, Some("True"))]);
    assert_eq!(number(finding, "decode_steps_in_graphs"), 0.0);

    // Nobody says how it was configured: the flag is a guess.
    let mut server = Server::new();
    server.steps(201, EAGER);
    assert_eq!(of(&server.find(), "cuda-graph-coverage-low").confidence.level, Level::Low);
    // It was not given, and the mode is not known: there is no advice.
    server.worker.fact("setting:enforce_eager", "False");
    assert_eq!(of(&server.find(), "cuda-graph-coverage-low").changes, []);
    server.worker.fact("setting:cudagraph_mode", "NONE");
    let findings = server.find();
    let (flag, direction, _, current) = changes(of(&findings, "cuda-graph-coverage-low"))[0];
    assert_eq!((flag, direction, current), ("--compilation-config", Direction::Set, Some("NONE")));
}

#[test]
fn batches_over_the_largest_graph_want_a_larger_one() {
    let mut server = Server::new();
    server.capture("FULL num_tokens=8 num_reqs=8 uniform=1 has_lora=0", 1);
    server.steps(139, DECODE);
    server.steps(61, Step { seqs: 50, tokens: 50, ..EAGER });
    let findings = server.find();
    let finding = of(&findings, "cuda-graph-coverage-low");
    assert_eq!(weight(finding), (Severity::Warning, Level::High));
    assert_eq!(number(finding, "decode_steps_in_graphs"), 69.5);
    assert_eq!(number(finding, "decode_steps_over_the_largest_size"), 61.0);
    assert_eq!(changes(finding), [("--max-cudagraph-capture-size", Direction::Raise, Some("64"), Some("8"))]);

    // Where a list was given, the list has to change.
    server.worker.fact("command", "vllm serve m --cudagraph-capture-sizes 8");
    server.front.fact("command", "vllm serve m --cudagraph-capture-sizes 8");
    let findings = server.find();
    assert_eq!(
        changes(of(&findings, "cuda-graph-coverage-low")),
        [("--cudagraph-capture-sizes", Direction::Set, Some("8 64"), None)]
    );
}

#[test]
fn graphs_that_are_there_and_not_used_blame_nothing() {
    let mut server = Server::new();
    server.capture(GRAPH_64, 1);
    server.steps(250, Step { seqs: 40, tokens: 40, ..EAGER });
    let findings = server.find();
    let finding = of(&findings, "cuda-graph-coverage-low");
    assert_eq!((finding.confidence.level, finding.changes.len()), (Level::Low, 0));
}

#[test]
fn steps_without_graphs_that_need_none_are_no_fault() {
    for (what, parts) in [
        ("large prompts run without by design", vec![(400, PROMPT), (200, DECODE)]),
        ("70 % of the decodes run in one", vec![(210, DECODE), (90, EAGER)]),
        ("too few decodes", vec![(199, EAGER), (200, PROMPT)]),
    ] {
        let mut server = Server::new();
        server.run(&parts);
        assert!(about_graphs(&server).is_empty(), "{what}: {:?}", about_graphs(&server));
    }
    // There are no graphs without a GPU.
    let mut server = Server::without_gpu();
    server.steps(400, EAGER);
    assert!(about_graphs(&server).is_empty());
}

/// Small steps with prompts, of which so many run in pieces of graphs.
fn mixed(eager: u64, in_graph: u64) -> Server {
    let small = Step { seqs: 9, tokens: 60, prefill: 50, graph: "NONE", padded: 60, ..DECODE };
    let mut server = Server::new();
    server.capture(GRAPH_64, 1);
    server.steps(300, Step { seqs: 64, tokens: 64, padded: 64, graph: GRAPH_64, ..DECODE });
    server.steps(eager, small);
    server.steps(in_graph, Step { padded: 64, graph: "PIECEWISE num_tokens=64", ..small });
    server
}

#[test]
fn small_steps_with_prompts_can_run_in_pieces() {
    let mut server = mixed(141, 60);
    server.worker.fact("setting:cudagraph_mode", "FULL_DECODE_ONLY");
    let findings = server.find();
    let finding = of(&findings, "mixed-steps-eager");
    assert_eq!(weight(finding), (Severity::Warning, Level::High));
    let (flag, _, value, current) = changes(finding)[0];
    assert_eq!((flag, current), ("--compilation-config", Some("FULL_DECODE_ONLY")));
    assert_eq!(value, Some("'{\"cudagraph_mode\": \"FULL_AND_PIECEWISE\"}'"));
    assert_eq!(number(finding, "small_steps_with_prompts_in_graphs"), 100.0 * 60.0 / 201.0);
    assert!(about_graphs(&mixed(90, 210)).is_empty(), "70 % run in pieces");
    assert!(about_graphs(&mixed(199, 0)).is_empty(), "too few");
}

const SIZES: [(u32, &str, u32); 5] = [
    (1, "FULL num_tokens=1 num_reqs=1 uniform=1 has_lora=0", 1_000),
    (16, "FULL num_tokens=16 num_reqs=16 uniform=1 has_lora=0", 1_150),
    (32, "FULL num_tokens=32 num_reqs=32 uniform=1 has_lora=0", 1_310),
    (48, "FULL num_tokens=48 num_reqs=48 uniform=1 has_lora=0", 1_470),
    (64, GRAPH_64, 1_630),
];

/// Decodes of these sizes, padded to the next captured size; a graph takes 0.99 ms and `us_per_token`.
fn padded(batches: &[(u32, u64)], us_per_token: u32, seconds: u64) -> Server {
    let mut server = Server::new();
    for (_, graph, _) in SIZES {
        server.capture(graph, seconds);
    }
    for (tokens, count) in batches {
        let (padded, graph, _) = SIZES.into_iter().find(|(size, ..)| size >= tokens).unwrap();
        let forward_us = 990 + us_per_token * padded;
        server.steps(
            *count,
            Step { seqs: *tokens, tokens: *tokens, padded, graph, forward_us, idle_us: 10, ..DECODE },
        );
    }
    server
}

#[test]
fn sizes_that_fit_the_batches_are_proposed() {
    // 17 of 32, 33 of 48, 49 of 64: nearly half of some batches is padding, and each token takes 10 us.
    let server = padded(&[(17, 300), (33, 100), (49, 20), (10, 20), (21, 10), (37, 1)], 10, 1);
    let findings = server.find();
    let finding = of(&findings, "capture-sizes-do-not-fit");
    assert_eq!(weight(finding), (Severity::Warning, Level::Medium));
    let real = 17.0 * 300.0 + 33.0 * 100.0 + 49.0 * 20.0 + 10.0 * 20.0 + 21.0 * 10.0 + 37.0;
    let padding = 15.0 * 420.0 + 6.0 * 20.0 + 11.0 * 11.0;
    assert_eq!(number(finding, "padding_of_tokens_in_graphs"), 100.0 * padding / (real + padding));
    // 1, 2, 4, …, 64, and the sizes that save most, until one in a hundred tokens is padding.
    assert_eq!(
        changes(finding),
        [(
            "--cudagraph-capture-sizes",
            Direction::Set,
            Some("1 2 4 8 10 16 17 21 32 33 49 64"),
            Some("1 16 32 48 64")
        )]
    );
    let saved = padding - 12.0;
    assert_eq!(number(finding, "padding_tokens_saved"), saved);
    let all_ms = 1.31 * 310.0 + 1.47 * 101.0 + 1.63 * 20.0 + 1.15 * 20.0;
    let time_pct = number(finding, "time_in_graphs_saved");
    assert!((time_pct - saved * 0.01 / all_ms * 100.0).abs() < 1e-3, "{time_pct}");
}

#[test]
fn padding_that_costs_no_time_is_no_fault() {
    assert_eq!(about_graphs(&padded(&[(17, 300), (33, 100), (49, 20)], 0, 1)), Vec::<&str>::new());
}

#[test]
fn padding_of_few_tokens_or_in_few_steps_is_no_fault() {
    for (what, server) in [
        ("9.6 % are padding", padded(&[(29, 200), (43, 200), (58, 200)], 10, 1)),
        ("other sizes save little: every size is there", padded(&[(16, 200), (32, 200), (48, 200)], 10, 1)),
        ("too few steps", padded(&[(17, 150), (33, 40), (49, 9)], 10, 1)),
    ] {
        assert!(about_graphs(&server).is_empty(), "{what}: {:?}", about_graphs(&server));
    }
}

#[test]
fn padding_without_times_is_mentioned() {
    // One size is used: what a token costs cannot be said.
    let findings = padded(&[(17, 300)], 10, 1).find();
    let finding = of(&findings, "capture-sizes-do-not-fit");
    assert_eq!(weight(finding), (Severity::Info, Level::Low));
}

/// Twelve captured graphs, of which so many are used.
fn captured(used: u32, seconds: u64, steps: u64) -> Server {
    let graphs: Vec<String> = (1..=12).map(|size| format!("FULL num_tokens={}", size * 4)).collect();
    let graphs: Vec<&'static str> = graphs.into_iter().map(|graph| &*graph.leak()).collect();
    let mut server = Server::new();
    for graph in &graphs {
        server.capture(graph, seconds);
    }
    for at in 0..used {
        let (tokens, graph) = (4 * (at + 1), graphs[at as usize]);
        server.steps(steps / u64::from(used), Step { seqs: tokens, tokens, padded: tokens, graph, ..DECODE });
    }
    server
}

#[test]
fn graphs_that_are_never_used_cost_a_start_of_a_server() {
    let findings = captured(4, 1, 1000).find();
    let finding = of(&findings, "cuda-graphs-unused");
    assert_eq!(weight(finding), (Severity::Info, Level::Medium));
    assert_eq!(number(finding, "captured_graphs_never_used"), 8.0);
    assert_eq!(
        changes(finding),
        [(
            "--cudagraph-capture-sizes",
            Direction::Set,
            Some("1 2 4 8 12 16 32 48"),
            Some("4 8 12 16 20 24 28 32 36 40 44 48")
        )]
    );
    for (what, server) in [
        ("fewer than half are unused", captured(7, 1, 1000)),
        ("they were captured in no time", captured(4, 0, 1000)),
        ("too few steps", captured(4, 1, 996)),
    ] {
        assert!(about_graphs(&server).is_empty(), "{what}: {:?}", about_graphs(&server));
    }
}
