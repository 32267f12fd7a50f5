//! The load of experts.
//!
//! A layer's experts work side by side on one GPU, or, with expert parallelism, spread over several. On one GPU an uneven load costs
//! little: what matters is how many tokens there are. Spread over several, a layer takes as long as the GPU with most tokens.

use super::{
    Change, Confidence, Direction, Finding, Found, Level, Severity, Subject, count, evidence, maybe, proof,
    settings, share,
};
use crate::Answers;
use crate::moe_experts::{LayerLoad, Spread};

/// Activations for each expert on average, below which an uneven load may be chance. With so many, the busiest of 256 even experts has
/// about 1.3 times the mean: three standard deviations of a Poisson variable of mean 100.
pub const LEAST_MEAN: f64 = 100.0;

/// How much more than the mean the busiest GPU of expert parallelism must have for it to matter, over all layers.
pub const RANKS_RATIO: f64 = 1.2;

/// How many times the mean the busiest expert of a layer must have.
pub const HOT_RATIO: f64 = 4.0;

/// Share of the experts of all layers that must be idle, percent.
pub const IDLE_PCT: f64 = 5.0;

pub(super) fn judge(answers: &Answers, found: &mut Found) {
    let Some(summary) = answers.moe_experts.as_ref().filter(|summary| !summary.layers.is_empty()) else {
        return found.not_there(Subject::MoeExperts, "no expert was counted");
    };
    let loads = summary.layers.iter().filter_map(|layer| Some((layer, layer.spread()?)));
    let judged: Vec<(&LayerLoad, Spread)> = loads.filter(|(_, spread)| spread.mean >= LEAST_MEAN).collect();
    if judged.is_empty() {
        let most =
            summary.layers.iter().filter_map(LayerLoad::spread).map(|spread| spread.mean).fold(0.0, f64::max);
        let reason = format!("{most:.0} activations for each expert, {LEAST_MEAN:.0} are needed");
        return found.not_judged(Subject::MoeExperts, reason);
    }
    match ranks_ratio(answers, &judged) {
        Some(ranks) if ranks.ratio >= RANKS_RATIO => found.push(ranks_are_uneven(answers, &judged, &ranks)),
        _ => hot_expert(&judged, found),
    }
    idle_experts(&judged, found);
}

/// How uneven the load of the GPUs of expert parallelism is.
struct Ranks {
    /// How many GPUs.
    count: usize,
    /// Mean over the layers of the busiest GPU's load by the mean.
    ratio: f64,
    /// Layer with the greatest.
    worst: (u16, f64),
}

/// `None` without expert parallelism, or when the experts do not lie as they do by default (`linear` placement, vLLM's
/// `determine_expert_map`), or EPLB moves them.
fn ranks_ratio(answers: &Answers, judged: &[(&LayerLoad, Spread)]) -> Option<Ranks> {
    let facts = &answers.facts;
    let is_on = |flag| settings::switch(facts, flag) == Some(true);
    if !is_on("--enable-expert-parallel") || is_on("--enable-eplb") {
        return None;
    }
    let size = |flag| settings::number(facts, flag).unwrap_or(1.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of GPUs")]
    let ranks = (size("--tensor-parallel-size") * size("--data-parallel-size")) as usize;
    if ranks < 2 {
        return None;
    }
    let ratios = judged.iter().filter_map(|(layer, _)| {
        let experts = layer.counts.len();
        (experts % ranks == 0).then_some(())?;
        let loads: Vec<u64> = layer.counts.chunks(experts / ranks).map(|rank| rank.iter().sum()).collect();
        Some((layer.layer, Spread::of(&loads)?.max_mean_ratio()?))
    });
    let ratios: Vec<(u16, f64)> = ratios.collect();
    let worst = ratios.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1))?;
    let ratio = ratios.iter().map(|(_, ratio)| ratio).sum::<f64>() / ratios.len() as f64;
    Some(Ranks { count: ranks, ratio, worst })
}

fn ranks_are_uneven(answers: &Answers, judged: &[(&LayerLoad, Spread)], ranks: &Ranks) -> Finding {
    let change = Change::new("--enable-eplb", Direction::Set)
        .from(settings::switch(&answers.facts, "--enable-eplb").map(|on| if on { "True" } else { "False" }))
        .note("it copies experts that are asked most, which takes memory");
    Finding {
        id: "expert-parallel-imbalance",
        subject: Subject::MoeExperts,
        severity: Severity::Warning,
        confidence: Confidence::new(
            Level::Medium,
            "every choice was counted; that experts lie in order is concluded",
        ),
        title: format!(
            "The busiest of {} GPUs gets {:.2} times the mean of the experts' work, and the others wait for it",
            ranks.count, ranks.ratio
        ),
        evidence: vec![
            evidence("busiest_gpu_by_mean", ranks.ratio, "x"),
            evidence("busiest_gpu_by_mean_in_the_least_even_layer", ranks.worst.1, "x"),
            count("least_even_layer", ranks.worst.0.into(), "layer"),
            count("layers", judged.len() as u64, "layers"),
        ],
        changes: vec![change],
        expect: format!(
            "With even GPUs the experts' part of a forward pass takes up to {:.0} % less time.",
            100.0 * (1.0 - 1.0 / ranks.ratio)
        ),
        proof: vec![
            proof("moe_expert_activations.csv", "activation_count"),
            proof("moe_load_imbalance.csv", "max_mean_ratio"),
        ],
    }
}

fn hot_expert(judged: &[(&LayerLoad, Spread)], found: &mut Found) {
    let hot = judged.iter().filter_map(|(layer, spread)| Some((layer, spread, spread.max_mean_ratio()?)));
    let Some((layer, spread, ratio)) = hot.max_by(|a, b| a.2.total_cmp(&b.2)).filter(|hot| hot.2 >= HOT_RATIO)
    else {
        return;
    };
    let expert = layer.counts.iter().position(|count| *count == spread.max).unwrap_or(0);
    let layers = judged.iter().filter(|(_, spread)| spread.max_mean_ratio() >= Some(HOT_RATIO)).count();
    let mut evidence = vec![
        super::evidence("busiest_expert_by_mean", ratio, "x"),
        count("layer", layer.layer.into(), "layer"),
        count("expert", expert as u64, "expert"),
        count("layers_with_such_an_expert", layers as u64, "layers"),
        super::evidence("share_of_activations", share(spread.max, spread.total), "%"),
        count("tokens", layer.tokens, "tokens"),
    ];
    evidence.extend(maybe("deviation_by_mean", Some(spread.std_dev / spread.mean), "x"));
    found.push(Finding {
        id: "hot-expert",
        subject: Subject::MoeExperts,
        severity: Severity::Info,
        confidence: Confidence::new(Level::High, "every choice was counted"),
        title: format!("Expert {expert} of layer {} is chosen {ratio:.1} times as often as the mean", layer.layer),
        evidence,
        // On one GPU it costs little, and no setting changes what a router chooses.
        changes: vec![],
        expect: "On one GPU nothing has to change. Before experts are spread over several (--enable-expert-parallel), know that \
                 the GPU that holds this one has the longest steps; --enable-eplb copies it."
            .to_owned(),
        proof: vec![proof("moe_expert_activations.csv", "percentage"), proof("moe_summary.json", "max_mean_ratio")],
    });
}

fn idle_experts(judged: &[(&LayerLoad, Spread)], found: &mut Found) {
    let idle: u64 = judged.iter().map(|(_, spread)| spread.idle).sum();
    let all: u64 = judged.iter().map(|(layer, _)| layer.counts.len() as u64).sum();
    let idle_pct = share(idle, all);
    if idle_pct < IDLE_PCT {
        return;
    }
    let layers = judged.iter().filter(|(_, spread)| spread.idle > 0).count();
    found.push(Finding {
        id: "idle-experts",
        subject: Subject::MoeExperts,
        severity: Severity::Info,
        confidence: Confidence::new(Level::High, "every choice was counted"),
        title: format!("{idle} of {all} experts, in {layers} layers, were never chosen"),
        evidence: vec![
            count("idle_experts", idle, "experts"),
            evidence("share_of_experts", idle_pct, "%"),
            count("layers_with_idle_experts", layers as u64, "layers"),
            maybe("mean_activations_for_each_expert", judged.iter().map(|(_, spread)| spread.mean).reduce(f64::min), "activations")
                .unwrap_or_else(|| evidence("mean_activations_for_each_expert", 0.0, "activations")),
        ],
        changes: vec![],
        expect: "They take memory and do nothing for this traffic. Other traffic may need them: record that before anything is \
                 left out."
            .to_owned(),
        proof: vec![proof("moe_expert_activations.csv", "activation_count"), proof("moe_summary.json", "idle_experts")],
    });
}
