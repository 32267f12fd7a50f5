//! The load of experts.

use profilemate_analysis::findings::{Direction, Findings, Level, Severity};
use profilemate_format::record::{Counted, ExpertLoad, Label, Payload, pack_counts};

use crate::server::{DECODE, Server, changes, ids, number, of, weight};

/// A server with one interval of these layers.
fn counting(layers: &[&[u64]]) -> Server {
    let mut server = Server::new();
    server.steps(200, DECODE);
    server.worker.fact("profiler:moe_expert_tracking", "on");
    for (layer, counts) in (0..).zip(layers) {
        let activations = counts.iter().sum();
        let load = ExpertLoad {
            layer,
            experts: u16::try_from(counts.len()).unwrap(),
            top_k: 2,
            tokens: activations / 2,
            activations,
            ..ExpertLoad::default()
        };
        server.worker.push(100_000, 9, Label::Work, 0, Payload::ExpertLoad(load));
        pack_counts(layer, Counted::Activations, counts, |counts| {
            server.worker.push(100_000, 9, Label::Work, 0, Payload::ExpertCounts(counts));
        });
    }
    server
}

fn spread(server: &mut Server, tensor_parallel_size: &str, eplb: &str) {
    server.worker.fact("setting:enable_expert_parallel", "True");
    server.worker.fact("setting:enable_eplb", eplb);
    server.worker.fact("setting:tensor_parallel_size", tensor_parallel_size);
}

fn about_experts(findings: &Findings) -> Vec<&'static str> {
    let known = ["expert-parallel-imbalance", "hot-expert", "idle-experts"];
    ids(findings).into_iter().filter(|id| known.contains(id)).collect()
}

#[test]
fn the_gpu_with_the_busiest_experts_keeps_the_others_waiting() {
    // Two GPUs of two experts: 600 and 400 of 1000, then 700 and 300.
    let mut server = counting(&[&[400, 200, 200, 200], &[350, 350, 150, 150]]);
    spread(&mut server, "2", "False");
    let findings = server.find();
    let finding = of(&findings, "expert-parallel-imbalance");
    assert_eq!(weight(finding), (Severity::Warning, Level::Medium));
    assert_eq!(changes(finding), [("--enable-eplb", Direction::Set, None, Some("False"))]);
    assert!((number(finding, "busiest_gpu_by_mean") - 1.3).abs() < 1e-9);
    assert!((number(finding, "busiest_gpu_by_mean_in_the_least_even_layer") - 1.4).abs() < 1e-9);
    assert_eq!(number(finding, "least_even_layer"), 1.0);
    assert!(finding.expect.contains("up to 23 %"), "{}", finding.expect);
}

#[test]
fn gpus_that_are_nearly_even_or_balanced_by_eplb_are_no_fault() {
    let uneven: &[&[u64]] = &[&[400, 200, 200, 200]];
    for (what, layers, size, eplb) in [
        ("1.19 times the mean", &[&[395_u64, 200, 205, 200][..]][..], "2", "False"),
        ("EPLB moves them", uneven, "2", "True"),
        ("one GPU", uneven, "1", "False"),
        ("three GPUs, over which four experts do not lie evenly", uneven, "3", "False"),
        ("few tokens", &[&[40, 20, 20, 20]], "2", "False"),
    ] {
        let mut server = counting(layers);
        spread(&mut server, size, eplb);
        assert_eq!(about_experts(&server.find()), [""; 0], "{what}");
    }
}

#[test]
fn an_expert_that_is_chosen_much_more_often_is_good_to_know() {
    let findings = counting(&[&[1000; 8], &[4000, 572, 571, 571, 572, 571, 571, 572]]).find();
    let finding = of(&findings, "hot-expert");
    assert_eq!((weight(finding), finding.changes.len()), ((Severity::Info, Level::High), 0));
    assert_eq!(finding.title, "Expert 0 of layer 1 is chosen 4.0 times as often as the mean");
    assert_eq!((number(finding, "share_of_activations"), number(finding, "tokens")), (50.0, 4000.0));
    assert_eq!(about_experts(&counting(&[&[3990, 573, 573, 573, 573, 573, 573, 572]]).find()), [""; 0]);
}

#[test]
fn experts_that_are_never_chosen_are_good_to_know() {
    let even = [200; 20];
    let mut idle = even;
    idle[7] = 0;
    let findings = counting(&[&idle]).find();
    let finding = of(&findings, "idle-experts");
    assert_eq!(weight(finding), (Severity::Info, Level::High));
    assert_eq!(finding.title, "1 of 20 experts, in 1 layers, were never chosen");
    assert_eq!(about_experts(&counting(&[&idle, &even]).find()), [""; 0], "2.5 % of all");
}

#[test]
fn what_is_not_there_or_too_little_is_said() {
    let reason = |server: &Server| {
        let not_judged = server.find().not_judged;
        let about = not_judged.iter().find(|not| not.subject.text() == "moe_experts").unwrap().clone();
        (about.reason, about.is_there)
    };
    let mut dense = Server::new();
    dense.steps(200, DECODE);
    assert_eq!(reason(&dense), ("no expert was counted".to_owned(), false));
    assert_eq!(
        reason(&counting(&[&[99; 4]])),
        ("99 activations for each expert, 100 are needed".to_owned(), true)
    );
}
