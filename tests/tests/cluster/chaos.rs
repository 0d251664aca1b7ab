//! A long job on a whole cluster, while one thing after another is killed, stopped and cut off. What is compared is the file
//! of all results; the undisturbed run says what is right.

use std::collections::BTreeSet;
use std::time::Duration;

use thicket_proto::v1::fetch_job_results_response::Result as Fetched;
use thicket_proto::v1::{FetchJobResultsResponse, InteractionSettings, JobState, Outcome};
use thicket_runtime::Role;
use thicket_synth::{Benchmark, Sizes, Split, View, render};

use crate::jobs::Batch;
use crate::person_search::png;
use crate::topology::{LIMIT, Layout, Processes, sample_models};

const QUERIES: usize = 1_000;
const PICTURES: usize = 150;
/// Parts that are done between two disturbances.
const STEP: u32 = 5;
/// Parts that a job must have left for another disturbance.
const LEFT: u32 = 20;
/// How long one process is stopped.
const STOPPED: Duration = Duration::from_secs(20);
/// How long the far side is cut off: longer than leases live and than hanging replicas take to be found out.
const CUT: Duration = Duration::from_secs(12);
/// How long a coordinator is cut off from etcd: longer than its lease lives.
const LONELY: Duration = Duration::from_secs(6);

/// The sample's test split, as views.
fn views() -> Vec<View> {
    let sizes = Sizes { train: 0, val: 0, ..Sizes::default() };
    Benchmark::new(1, sizes).expect("the sample").views(Split::Test).take(QUERIES).collect()
}

/// A description of each view, asked as the sample's models are meant to be.
fn batch(views: &[View]) -> Batch {
    let settings = std::fs::read(sample_models().join("sample-answer/thi.json")).expect("its settings");
    let settings: serde_json::Value = serde_json::from_slice(&settings).expect("its settings");
    let number = |name: &str| settings[name].as_f64().expect("a number");
    Batch {
        texts: views.iter().map(|view| view.captions[0].1.text.clone()).collect(),
        part_size: 5,
        settings: InteractionSettings {
            rounds: Some(3),
            xi: Some(number("xi") as f32),
            lambda: Some(number("lambda") as f32),
            yes_threshold: Some(number("yes_threshold")),
            ..Default::default()
        },
    }
}

/// The job under way and those before it. A machine that is too fast for one gets the same again.
struct Runs {
    batch: Batch,
    ids: Vec<String>,
    /// Parts of the job under way that were done when it was disturbed last.
    seen: u32,
}

impl Runs {
    async fn begin(batch: Batch, processes: &Processes) -> Self {
        let mut runs = Self { batch, ids: Vec::new(), seen: 0 };
        runs.next(processes).await;
        runs
    }

    async fn next(&mut self, processes: &Processes) {
        let id = format!("disturbed-{}", self.ids.len());
        processes.submit(&id, &self.batch).await;
        self.ids.push(id);
        self.seen = 0;
    }

    /// Waits until a job is some parts further than at the last disturbance and far from its end.
    async fn go_on(&mut self, processes: &Processes) {
        let waiting = async {
            loop {
                let job = processes.job(self.ids.last().expect("one was begun")).await;
                let done = job.parts.unwrap_or_default().done;
                if done + LEFT > self.batch.parts() {
                    self.next(processes).await;
                } else if done >= self.seen + STEP {
                    assert_ne!(job.state(), JobState::Done);
                    self.seen = done;
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(LIMIT, waiting).await;
        assert!(waited.is_ok(), "the job does not go on\n{}", processes.said());
    }

    /// Kills a process, lets the others go on without it and has it back.
    async fn kill(&mut self, processes: &mut Processes, role: Role, number: usize) {
        self.go_on(processes).await;
        processes.process(role, number).kill();
        self.go_on(processes).await;
        processes.process(role, number).restart();
        processes.serves(role, number).await;
    }
}

fn outcomes(results: &[FetchJobResultsResponse]) -> BTreeSet<Outcome> {
    let outcome = |result: &FetchJobResultsResponse| match &result.result {
        Some(Fetched::Ranking(ranking)) => ranking.outcome(),
        other => panic!("{}: {other:?}", result.query_id),
    };
    results.iter().map(outcome).collect()
}

/// The first results that differ, as both runs have them.
fn differences(calm: &[FetchJobResultsResponse], disturbed: &[FetchJobResultsResponse]) -> String {
    let others = calm.iter().zip(disturbed).filter(|(calm, disturbed)| calm != disturbed);
    let told =
        others.clone().take(3).map(|(calm, disturbed)| format!("{calm:?}\nand disturbed\n{disturbed:?}\n"));
    format!("{} of {} results differ\n{}", others.clone().count(), calm.len(), told.collect::<String>())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_thousand_queries_ends_alike_whatever_is_killed_stopped_or_cut_off() {
    let Some(mut processes) = Processes::start(Layout::WHOLE).await else { return };
    let views = views();
    processes.ingest_all(views[..PICTURES].iter().map(|view| png(&render(view)))).await;
    // A replica that is still behind would find less, in the undisturbed run too.
    processes.galleries_have(PICTURES).await;
    let batch = batch(&views);
    processes.submit("calm", &batch).await;
    let calm = processes.file("calm", &batch).await;
    let results = processes.results("calm").await;
    batch.assert_complete(&results);
    let ends = outcomes(&results);
    assert!(
        ends.len() >= 3 && ends.contains(&Outcome::Refined),
        "too little happens to be disturbed: {ends:?}"
    );

    let mut runs = Runs::begin(batch, &processes).await;
    for (role, number) in [
        (Role::Coordinator, 0),
        (Role::Answer, 0),
        (Role::Embedding, 0),
        (Role::Gallery, 1),
        // The one that takes writes.
        (Role::Gallery, 0),
    ] {
        runs.kill(&mut processes, role, number).await;
    }

    runs.go_on(&processes).await;
    let leader = processes.etcd_leader().await;
    processes.etcd.nodes[leader].kill();
    runs.go_on(&processes).await;
    processes.etcd.nodes[leader].restart();
    processes.etcd.nodes[leader].answers().await;

    runs.go_on(&processes).await;
    processes.answer[1].signal("-STOP");
    tokio::time::sleep(STOPPED).await;
    processes.answer[1].signal("-CONT");
    processes.serves(Role::Answer, 1).await;

    runs.go_on(&processes).await;
    processes.far_side.fall_silent();
    tokio::time::sleep(CUT).await;
    processes.far_side.mend();
    processes.all_serve().await;

    runs.go_on(&processes).await;
    processes.last_coordinator.fall_silent();
    tokio::time::sleep(LONELY).await;
    processes.last_coordinator.mend();
    processes.all_serve().await;

    let Runs { batch, ids, .. } = runs;
    for id in &ids {
        let file = processes.file(id, &batch).await;
        let disturbed = processes.results(id).await;
        batch.assert_complete(&disturbed);
        let differences = differences(&results, &disturbed);
        assert!(file == calm, "{id} ended with other rankings: {differences}{}", processes.said());
    }
}
