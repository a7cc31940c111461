//! What is written for other tools, to the letter, and what is refused, by name.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod support;

use adaptis_plan::{Action, Instruction, Plan, Problem, Stage, audit};
use adaptis_planner::export::{Export, Kind, Panel, Refusal, Target, Warning, megatron, svg, torch, torchtitan};
use adaptis_planner::schedule::{Name, named};
use adaptis_planner::search::{self, Control, search};
use adaptis_planner::simulate::simulate;
use proptest::prelude::*;
use support::{any_problem, cost, uniform};

/// A model of four transformer layers, named as torchtitan's modules.
const MODEL: [(&str, &str); 7] = [
    ("tok_embeddings", "embedding"),
    ("layers.0", "block"),
    ("layers.1", "block"),
    ("layers.2", "block"),
    ("layers.3", "block"),
    ("norm", "norm"),
    ("lm_head", "head"),
];

fn model(layers: &[(&str, &str)], devices: usize, microbatches: u32) -> Problem {
    let mut problem = uniform(devices, layers.len(), microbatches, cost(100, 100, 100), 0);
    for (layer, (name, kind)) in problem.layers.iter_mut().zip(layers) {
        (layer.name, layer.signature) = ((*name).to_owned(), format!("{kind}/64/bf16"));
    }
    problem
}

/// Stages by their ends, on their devices; in the order of a named schedule if one is given, else each microbatch alone.
fn plan(problem: &Problem, stages: &[(u32, u32)]) -> Plan {
    let mut plan = named(problem, Name::Gpipe).unwrap();
    let mut start = 0;
    plan.stages = stages
        .iter()
        .map(|&(end, device)| {
            let layers = [std::mem::replace(&mut start, end), end];
            Stage { layers, device, recompute: Vec::new(), note: None }
        })
        .collect();
    let held = |device: usize| (0..stages.len()).filter(move |&stage| stages[stage].1 as usize == device);
    plan.programs = (0..problem.devices.len())
        .map(|device| {
            let all =
                |action, stage| (0..problem.microbatches as usize).map(move |m| Instruction::new(stage, action, m));
            let forward = held(device).flat_map(|stage| all(Action::Forward, stage));
            let mut backward: Vec<usize> = held(device).collect();
            backward.reverse();
            forward.chain(backward.into_iter().flat_map(|stage| all(Action::Backward, stage))).collect()
        })
        .collect();
    plan.predicted = None;
    assert_eq!(audit(problem, &plan), []);
    plan
}

fn text(export: &Result<Export, Refusal>) -> &str {
    &export.as_ref().unwrap().files[0].text
}

/// The refusal names a field and its words stand in it.
fn refuses(export: Result<Export, Refusal>, words: &[&str]) {
    let refusal = export.unwrap_err().to_string();
    for word in words {
        assert!(refusal.contains(word), "`{word}` is not in: {refusal}");
    }
}

#[test]
fn torch_gets_a_row_per_device() {
    let problem = model(&MODEL, 2, 2);
    let plan = named(&problem, Name::ZbH1).unwrap();
    let export = torch::write(&problem, &plan, "schedule.csv");
    assert_eq!(text(&export), "0F0,0F1,0I0,0W0,0I1,0W1\n1F0,1I0,1F1,1I1,1W0,1W1\n");
    let export = export.unwrap();
    assert_eq!(export.ranks, [0, 1]);
    assert_eq!(export.warnings, [Warning::StagesElsewhere, Warning::FirstInputGradient]);
}

#[test]
fn torch_takes_any_placement_and_tells_of_split_recomputation() {
    let problem = model(&MODEL, 2, 1);
    let mut plan = plan(&problem, &[(1, 1), (2, 1), (5, 0), (7, 1)]);
    plan.stages[1].recompute = vec![1];
    plan.programs[1] = ["0F0", "1F0", "3F0", "3B0", "1I0", "1W0", "0B0"].map(|text| text.parse().unwrap()).to_vec();
    let export = torch::write(&problem, &plan, "schedule.csv").unwrap();
    assert_eq!(export.files[0].text, "2F0,2B0\n0F0,1F0,3F0,3B0,1I0,1W0,0B0\n");
    assert_eq!(export.warnings, [Warning::StagesElsewhere, Warning::SplitRecompute { stage: 1 }]);
}

#[test]
fn an_invalid_plan_is_handed_to_nobody() {
    let problem = model(&MODEL, 2, 2);
    let mut plan = named(&problem, Name::OneFOneB).unwrap();
    // The last stage out of order: PyTorch would train on it with wrong gradients.
    plan.programs[1] = ["1F1", "1F0", "1B0", "1B1"].map(|text| text.parse().unwrap()).to_vec();
    for export in [
        torch::write(&problem, &plan, "a"),
        torchtitan::write(&problem, &plan, "a", "b"),
        megatron::write(&problem, &plan, "a"),
    ] {
        refuses(export, &["not valid", "order", "adaptis audit"]);
    }
}

#[test]
fn an_idle_device_is_refused() {
    let problem = model(&MODEL, 3, 2);
    let plan = plan(&problem, &[(3, 0), (7, 2)]);
    refuses(torch::write(&problem, &plan, "a"), &["plan.stages", "gpu1", "torch.distributed.pipelining"]);
    refuses(torchtitan::write(&problem, &plan, "a", "b"), &["plan.stages", "gpu1", "torchtitan"]);
    refuses(megatron::write(&problem, &plan, "a"), &["plan.stages", "gpu1", "Megatron-LM"]);
}

#[test]
fn torchtitan_gets_a_function_and_a_schedule() {
    let problem = model(&MODEL, 2, 4);
    let mut plan = plan(&problem, &[(2, 1), (7, 0)]);
    let export = torchtitan::write(&problem, &plan, "parallelism.py", "parallelism.csv");
    let expected = r#"# Plan 1 for torchtitan: call it on the Trainer.Config of a run.
# Pipeline rank 0 is gpu1.
# Pipeline rank 1 is gpu0.


def apply(config):
    parallelism = config.parallelism
    parallelism.pipeline_parallel_degree = 2
    parallelism.num_pp_microbatches = 4
    parallelism.pipeline_parallel_schedule = "PipelineScheduleMulti"
    # A path from where training starts.
    parallelism.pipeline_parallel_schedule_csv = "parallelism.csv"
    # Older releases call it module_fqns_per_model_part.
    parallelism.pipeline_parallel_module_fqns_per_model_part = [
        ["tok_embeddings", "layers.0"],
        ["layers.1", "layers.2", "layers.3", "norm", "lm_head"],
    ]
    config.activation_checkpoint = None
    return config
"#;
    assert_eq!(text(&export), expected);
    let export = export.unwrap();
    assert_eq!(export.ranks, [1, 0]);
    assert_eq!(export.warnings, [Warning::Ranks { devices: vec!["gpu1".into(), "gpu0".into()] }]);
    // The rows are by rank, not by device.
    assert_eq!(export.files[1].name, "parallelism.csv");
    assert!(export.files[1].text.starts_with("0F0,"), "{}", export.files[1].text);
    for stage in &mut plan.stages {
        stage.recompute = (stage.layers[0]..stage.layers[1]).collect();
    }
    let export = torchtitan::write(&problem, &plan, "a", "b").unwrap();
    assert!(export.files[0].text.contains("import FullAC\n"), "{}", export.files[0].text);
    assert!(export.files[0].text.contains("config.activation_checkpoint = FullAC.Config()\n"));
    let names = ["tok_embeddings", "norm", "lm_head"].map(str::to_owned).to_vec();
    assert!(export.warnings.contains(&Warning::NotRecomputed { names }), "{:?}", export.warnings);
}

#[test]
fn torchtitan_is_not_trusted_with_names_of_other_models() {
    let mut problem = model(&MODEL, 2, 4);
    problem.layers[2].name = "half2".to_owned();
    let plan = plan(&problem, &[(2, 0), (7, 1)]);
    let export = torchtitan::write(&problem, &plan, "a", "b").unwrap();
    assert!(export.warnings.contains(&Warning::OtherModules { names: vec!["half2".to_owned()] }));
}

#[test]
fn torchtitan_knows_a_v() {
    let problem = model(&MODEL, 2, 4);
    let plan = named(&problem, Name::ZbV).unwrap();
    let export = torchtitan::write(&problem, &plan, "a", "b");
    assert!(text(&export).contains("pipeline_parallel_schedule = \"ZBVZeroBubble\"\n"), "{}", text(&export));
}

#[test]
fn torchtitan_refuses_by_field() {
    let problem = model(&MODEL, 2, 2);
    let write = |problem: &Problem, plan: &Plan| torchtitan::write(problem, plan, "a", "b");
    let uneven = plan(&problem, &[(2, 0), (4, 1), (7, 0)]);
    refuses(write(&problem, &uneven), &["plan.stages", "gpu1 holds 1", "gpu0 2", "equally many"]);
    let twice = plan(&problem, &[(1, 0), (2, 0), (4, 1), (7, 1)]);
    refuses(write(&problem, &twice), &["plan.stages[1].device", "gpu0", "another rank"]);
    let three = plan(&problem, &[(1, 0), (2, 1), (3, 1), (4, 0), (5, 0), (7, 1)]);
    refuses(write(&problem, &three), &["plan.stages[2].device", "gpu1", "on gpu0", "zb-v"]);
    let mut some = plan(&problem, &[(3, 0), (7, 1)]);
    some.stages[1].recompute = vec![3];
    refuses(write(&problem, &some), &["plan.stages[0].recompute", "`layers.0`", "not recomputed", "every one"]);
    let alone = model(&MODEL, 1, 2);
    refuses(write(&alone, &plan(&alone, &[(7, 0)])), &["problem.devices", "one rank"]);
    let mut deeper = problem.clone();
    deeper.layers[2].name = "layers.1.attention".into();
    refuses(write(&deeper, &plan(&deeper, &[(3, 0), (7, 1)])), &["problem.layers[2].name", "layers.1.attention"]);
}

#[test]
fn what_a_tool_does_not_recompute_must_fit() {
    let mut problem = model(&MODEL, 2, 2);
    let mut plan = plan(&problem, &[(3, 0), (7, 1)]);
    for stage in &mut plan.stages {
        stage.recompute = (stage.layers[0]..stage.layers[1]).collect();
    }
    // Recomputed, a microbatch holds nothing but while it is at work: 4 and 2 for each layer behind. The embedding, not
    // recomputed, holds 4 for each microbatch in flight.
    problem.devices[0].memory_bytes = 12;
    assert_eq!(audit(&problem, &plan), []);
    let words = ["problem.devices", "gpu0 needs 14 bytes and has 12", "take 2 off"];
    refuses(torchtitan::write(&problem, &plan, "a", "b"), &words);
    refuses(megatron::write(&problem, &plan, "a"), &words);
    // Nearly all of it: no plan that leaves as much free is near this one.
    problem.devices[0].memory_bytes = 8;
    let words = ["problem.devices", "gpu0 needs 14 bytes and has 8", "plan with --schedule 1f1b"];
    refuses(torchtitan::write(&problem, &plan, "a", "b"), &words);
}

#[test]
fn megatron_gets_its_layout() {
    let problem = model(&MODEL, 2, 4);
    let mut one = named(&problem, Name::OneFOneB).unwrap();
    one.stages[0].layers = [0, 3];
    one.stages[1].layers = [3, 7];
    let export = megatron::write(&problem, &one, "arguments.txt");
    let expected = "--num-layers 4\n--pipeline-model-parallel-size 2\n--pipeline-model-parallel-layout \"Ett|ttL\"\n";
    assert_eq!(text(&export), expected);
    assert_eq!(export.unwrap().warnings, []);
    one.stages[0].recompute = vec![1];
    one.stages[1].recompute = vec![3];
    let flags = "--recompute-granularity full\n--recompute-method block\n--recompute-num-layers 1\n";
    assert_eq!(text(&megatron::write(&problem, &one, "a")), format!("{expected}{flags}"));
    one.stages[0].recompute = vec![1, 2];
    one.stages[1].recompute = vec![3, 4];
    let flags = "--recompute-granularity full\n--recompute-method uniform\n--recompute-num-layers 1\n";
    assert_eq!(text(&megatron::write(&problem, &one, "a")), format!("{expected}{flags}"));
}

#[test]
fn megatron_interleaves_and_writes_runs_short() {
    let names: Vec<String> = (0..14).map(|at| format!("layer{at}")).collect();
    let kinds = |at: usize| {
        if at == 0 {
            "model/embed"
        } else if at == 13 {
            "lm_head"
        } else {
            "Transformer"
        }
    };
    let layers: Vec<(&str, &str)> = names.iter().enumerate().map(|(at, name)| (name.as_str(), kinds(at))).collect();
    let problem = model(&layers, 2, 4);
    let mut plan = named(&problem, Name::Interleaved).unwrap();
    let ends = match plan.stages.len() {
        4 => vec![5, 7, 8, 14],
        6 => vec![5, 6, 7, 8, 9, 14],
        _ => vec![5, 6, 7, 8, 9, 10, 11, 14],
    };
    let mut start = 0;
    for (stage, end) in plan.stages.iter_mut().zip(ends) {
        stage.layers = [std::mem::replace(&mut start, end), end];
    }
    let export = megatron::write(&problem, &plan, "a");
    let text = text(&export);
    assert!(text.contains("layout \"Et*4|t"), "{text}");
    assert!(text.contains("L\"\n") && text.contains("--num-layers 12\n"), "{text}");
    assert_eq!(export.unwrap().warnings, []);
    let odd = Problem { microbatches: 3, ..problem };
    let plan = named(&odd, Name::Interleaved).unwrap();
    refuses(megatron::write(&odd, &plan, "a"), &["problem.microbatches is 3", "2 ranks"]);
}

#[test]
fn megatron_joins_attention_and_mlp_and_keeps_multi_token_prediction_together() {
    let halves = [
        ("e", "embedding"),
        ("a0", "attention"),
        ("m0", "mlp"),
        ("a1", "attention"),
        ("m1", "moe"),
        ("n", "norm"),
        ("x0", "mtp"),
        ("x1", "mtp"),
        ("h", "head"),
    ];
    let problem = model(&halves, 2, 2);
    let export = megatron::write(&problem, &plan(&problem, &[(3, 0), (9, 1)]), "a");
    assert!(text(&export).contains("layout \"Et|tmmL\"\n--mtp-num-layers 2\n"), "{}", text(&export));
    let cut = |ends: &[(u32, u32)]| megatron::write(&problem, &plan(&problem, ends), "a");
    refuses(cut(&[(2, 0), (9, 1)]), &["plan.stages[1].layers", "`m0`", "does not cut"]);
    refuses(cut(&[(5, 0), (9, 1)]), &["plan.stages[1].layers", "`n`", "last transformer layer"]);
    refuses(cut(&[(7, 0), (9, 1)]), &["plan.stages[1].layers", "`x1`", "in one stage"]);
    refuses(cut(&[(8, 0), (9, 1)]), &["plan.stages[0].layers", "first rank"]);
    refuses(cut(&[(3, 0), (8, 1), (9, 0), (9, 1)][..3]), &["plan.stages", "equally many"]);
    let mut part = plan(&problem, &[(3, 0), (9, 1)]);
    part.stages[0].recompute = vec![1];
    refuses(megatron::write(&problem, &part, "a"), &["plan.stages[0].recompute", "`a0`", "rest of its transformer"]);
}

#[test]
fn megatron_refuses_layers_without_a_letter_or_out_of_place() {
    let refuses = |change: &[(usize, &str)], words: &[&str]| {
        let mut layers = MODEL;
        for &(at, kind) in change {
            layers[at].1 = kind;
        }
        let problem = model(&layers, 2, 2);
        refuses(megatron::write(&problem, &plan(&problem, &[(3, 0), (7, 1)]), "a"), words);
    };
    refuses(&[(2, "mamba")], &["problem.layers[2].signature", "mamba", "embedding; transformer"]);
    refuses(&[(0, "block")], &["problem.layers[0]", "first layer must be the embedding"]);
    refuses(&[(6, "block")], &["problem.layers[5]", "only the final norm"]);
    refuses(&[(5, "block"), (6, "block")], &["problem.layers[6]", "last layer must be the head"]);
    refuses(&[(2, "embedding")], &["problem.layers[2]", "only the first"]);
    refuses(&[(2, "head")], &["problem.layers[2]", "only the last"]);
    refuses(&[(2, "norm")], &["problem.layers[2]", "only the final norm"]);
    refuses(&[(2, "mlp")], &["problem.layers[2]", "behind an attention"]);
    refuses(&[(2, "attention")], &["problem.layers[2]", "behind an attention"]);
    refuses(&[(2, "mtp")], &["problem.layers[3]", "before multi-token prediction"]);
}

#[test]
fn megatron_refuses_placements_recomputations_and_orders_by_field() {
    let mut problem = model(&MODEL, 2, 4);
    let write = |problem: &Problem, plan: &Plan| megatron::write(problem, plan, "a");
    let v = plan(&problem, &[(1, 0), (2, 1), (3, 1), (7, 0)]);
    refuses(write(&problem, &v), &["plan.stages[2].device is gpu1", "Megatron-LM", "on gpu0"]);
    let head = plan(&problem, &[(6, 0), (7, 1)]);
    refuses(write(&problem, &head), &["plan.stages[1].layers", "`lm_head`", "final norm with the head"]);
    let mut late = plan(&problem, &[(3, 0), (7, 1)]);
    late.stages[1].recompute = vec![4];
    refuses(write(&problem, &late), &["plan.stages[1].recompute", "`layers.3`", "first layers of a stage"]);
    late.stages[0].recompute = vec![1];
    late.stages[1].recompute = Vec::new();
    refuses(write(&problem, &late), &["plan.stages[1].recompute", "0 of its 2", "1 elsewhere"]);
    let alone = model(&MODEL, 1, 2);
    refuses(write(&alone, &plan(&alone, &[(7, 0)])), &["problem.devices", "one rank"]);
    // All forwards first is not Megatron-LM's order: told, with both times.
    let gpipe = plan(&problem, &[(3, 0), (7, 1)]);
    let warnings = write(&problem, &gpipe).unwrap().warnings;
    let [Warning::OtherOrder { order: "1f1b", plan_ns, tool_ns }] = warnings[..] else { panic!("{warnings:?}") };
    assert!(plan_ns > 0 && tool_ns > 0);
    // One microbatch at a time fits where 1F1B does not.
    let mut careful = gpipe.clone();
    let one = |stage: usize| {
        let both = move |m| [Action::Forward, Action::Backward].map(|action| Instruction::new(stage, action, m));
        (0..4).flat_map(both).collect()
    };
    careful.programs = vec![one(0), one(1)];
    problem.devices[0].memory_bytes = 12;
    let refusal = write(&problem, &careful).unwrap_err();
    let Refusal::Memory { target: Target::Megatron, order: "1f1b", needed_bytes: 24, .. } = refusal else {
        panic!("{refusal}")
    };
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_plan_is_exported_or_refused(mut problem in any_problem(), schedule in 0..9_usize) {
        let last = problem.layers.len() - 1;
        for (at, layer) in problem.layers.iter_mut().enumerate() {
            layer.signature = if at == 0 { "embedding" } else if at == last { "head" } else { "block" }.to_owned();
        }
        let options = search::Options { evaluations: Some(150), ..search::Options::default() };
        let found = match Name::ALL.get(schedule) {
            Some(&name) => named(&problem, name),
            None => search(&problem, None, &options, &mut |_| Control::Go).map(|found| found.plan),
        };
        let Ok(plan) = found else { return Ok(()) };
        let is_used = |device: usize| plan.stages.iter().any(|stage| stage.device as usize == device);
        match torch::write(&problem, &plan, "a") {
            Ok(export) => {
                let rows: Vec<Vec<Instruction>> = export.files[0]
                    .text
                    .lines()
                    .map(|row| row.split(',').map(|text| text.parse().unwrap()).collect())
                    .collect();
                prop_assert_eq!(&rows, &plan.programs);
            }
            Err(Refusal::Idle { .. }) => prop_assert!((0..problem.devices.len()).any(|device| !is_used(device))),
            Err(other) => prop_assert!(false, "{}", other),
        }
        for export in [torchtitan::write(&problem, &plan, "a", "b"), megatron::write(&problem, &plan, "a")] {
            match export {
                Ok(export) => prop_assert_eq!(export.ranks.len(), problem.devices.len()),
                Err(refusal) => {
                    let text = refusal.to_string();
                    prop_assert!(text.contains("plan.") || text.contains("problem."), "{}", text);
                }
            }
        }
    }
}

fn panel(problem: &Problem, plan: &Plan) -> Panel {
    Panel::of_plan("plan".to_owned(), problem, plan, &simulate(problem, plan).unwrap())
}

#[test]
fn what_is_recomputed_is_drawn_apart() {
    let problem = model(&MODEL, 2, 1);
    let mut plan = plan(&problem, &[(2, 0), (7, 1)]);
    plan.stages[1].recompute = vec![3, 4];
    let panel = panel(&problem, &plan);
    let bars = |lane: usize| -> Vec<(Kind, u64, u64)> {
        panel.lanes[lane].bars.iter().map(|bar| (bar.kind, bar.start_ns, bar.end_ns)).collect()
    };
    assert_eq!(bars(0), [(Kind::Forward, 0, 200), (Kind::Backward, 1_900, 2_300)]);
    // Five layers forward; two of them again, before the backward of all five.
    assert_eq!(bars(1), [(Kind::Forward, 200, 700), (Kind::Recompute, 700, 900), (Kind::Backward, 900, 1_900)]);
    let picture = svg::draw("plan", &[panel]);
    assert!(picture.contains("recompute of stage 1, microbatch 0"), "{picture}");
}

#[test]
fn a_picture_does_not_grow_with_the_microbatches() {
    let size = |microbatches: u32| {
        let problem = model(&MODEL, 2, microbatches);
        let plan = named(&problem, Name::ZbH1).unwrap();
        svg::draw("plan", &[panel(&problem, &plan)]).len()
    };
    assert!(size(20_000) < 1_000_000, "{} bytes", size(20_000));
    assert!(size(20_000) < size(2_000) * 2, "{} and {} bytes", size(20_000), size(2_000));
}
