//! The report and the JSON of presets, and of what does not fit.

use serde_json::Value;

use super::*;
use crate::config::{Command, Settings};

fn command(line: &str) -> PlanCommand {
    let words = std::iter::once("lnserve").chain(line.split_whitespace());
    let settings = Settings::parse(words.map(Into::into).collect(), None).expect(line);
    match settings.command {
        Command::Plan(command) => command,
        other => panic!("{line} is {other:?}"),
    }
}

fn json_of(line: &str) -> Value {
    let command = command(line);
    let planned = Planned::open(&command).expect(line);
    json::of(&planned, &planned.plan())
}

/// The sum of a rank's terms, by the rule that is documented for programs.
fn sum_of_terms(rank: &Value) -> u64 {
    let fields = rank.as_object().expect("a rank is an object").iter();
    let is_term =
        |name: &str| name.ends_with("_bytes") && !["total_bytes", "device_bytes"].contains(&name);
    fields
        .filter(|(name, _)| is_term(name))
        .map(|(_, value)| value.as_u64().expect("a count"))
        .sum()
}

#[test]
fn ultra_holds_three_million_tokens_and_its_terms_add_up() {
    let plan = json_of("plan ultra-253b --gpus 8 --gpu-memory 81559MiB --kv-dtype fp8 --json");
    assert_eq!(plan["fits"], true);
    assert!(plan["kv_tokens"].as_u64().expect("a count") >= 3_000_000, "{}", plan["kv_tokens"]);
    let ranks = plan["ranks"].as_array().expect("ranks");
    assert_eq!(ranks.len(), 8);
    for rank in ranks {
        assert_eq!(rank["device_bytes"], 81_559_u64 << 20);
        assert_eq!(rank["total_bytes"], sum_of_terms(rank));
        assert!(rank["total_bytes"].as_u64() <= rank["device_bytes"].as_u64());
        // 249,196,183,552 parameters in FP8, 4,202,692,608 in embedding and head in BF16, the rest
        // norms and scales in f32.
        let weights = rank["weights_bytes"].as_u64().expect("a count");
        let matrices = (249_196_183_552 + 2 * 2 * 128_256 * 16_384) / 8;
        assert!((matrices..matrices + matrices / 1000).contains(&weights), "{weights}");
        let kinds = rank["weights"].as_object().expect("kinds").values();
        assert_eq!(kinds.map(|kind| kind.as_u64().expect("a count")).sum::<u64>(), weights);
    }
    let sources = plan["sources"].as_object().expect("sources");
    assert!(sources["nccl_bytes"].as_str().expect("words").contains("NVIDIA/nccl#"));
}

#[test]
fn bf16_and_super_hold_what_was_published() {
    let tokens = |line: &str| json_of(line)["kv_tokens"].as_u64().expect("a count");
    assert!(tokens("plan ultra-253b --format bf16 --json") >= 580_000);
    assert!(tokens("plan super-49b --gpus 1 --json") >= 300_000);
    assert!(tokens("plan nano-8b --gpus 1 --json") > 1_000_000);
}

#[test]
fn what_does_not_fit_says_what_would() {
    let plan = json_of("plan ultra-253b --format bf16 --gpus 4 --json");
    assert_eq!((&plan["fits"], &plan["kv_tokens"]), (&Value::from(false), &Value::from(0)));
    let rank = &plan["ranks"][0];
    assert!(rank["total_bytes"].as_u64() > rank["device_bytes"].as_u64());
    assert_eq!(rank["total_bytes"], sum_of_terms(rank));
    let alternatives = plan["alternatives"].as_array().expect("some").iter();
    let fitting: Vec<&str> = alternatives
        .filter(|one| !one["kv_tokens"].is_null())
        .map(|one| one["with"].as_str().expect("words"))
        .collect();
    assert_eq!(fitting, ["--gpus 8", "--format modelopt-fp8"]);

    let command = command("plan ultra-253b --format bf16 --gpus 4");
    let planned = Planned::open(&command).expect("a preset");
    let text = report::of(&planned, &planned.plan(), false);
    assert!(text.contains("It does NOT fit.") && text.contains("TOO MUCH by"), "{text}");
    let refused = run(&command, false).expect_err("it does not fit").to_string();
    assert!(refused.starts_with("ultra-253b does not fit: CUDA device 0 has"), "{refused}");
}

#[test]
fn the_report_names_every_term_and_calls_predictions_so() {
    let command = command("plan super-49b --gpus 1");
    let planned = Planned::open(&command).expect("a preset");
    let plan = planned.plan();
    let text = report::of(&planned, &plan, false);
    let plan = plan.expect("it fits");
    for term in plan.ranks[0].terms() {
        assert!(text.contains(term.label), "{}: {text}", term.label);
        let is_cited = term.source.starts_with("counted") || text.contains(term.source);
        assert!(is_cited || term.n_bytes == 0, "{}: {text}", term.label);
    }
    for words in ["PREDICTED", "what fits", "what would change it", "blocks 64 to 79"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains('\x1b'));
    assert!(report::of(&planned, &planned.plan(), true).contains("\x1b[32m"));
}

#[test]
fn other_mistakes_are_told_as_ever() {
    let refused = |line: &str| run(&command(line), false).expect_err(line).to_string();
    assert!(refused("plan ultra").contains("neither a file nor a preset"));
    assert!(refused("plan ultra-253b --gpus 3").contains("3 ranks cannot share evenly"));
    assert!(refused("plan nano-8b --gpus 16").contains("the number of devices of a node is 16"));
    assert!(refused("plan ultra-253b --max-seqs 600").contains("raise --max-tokens-per-step"));
}
