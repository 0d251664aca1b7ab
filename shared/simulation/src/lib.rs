//! The coordinator's interaction and its dispatcher on a virtual clock, against answer replicas that exist in memory.
//!
//! Deterministic: a [`Scenario`] and a seed give one [`Run`], always the same. The decisions are made by the code that
//! runs in production, `thicket_thi::Interaction` and `thicket_dispatch::Dispatcher`; the replicas, the network and
//! what goes wrong with them are simulated: service times, lost messages, partitions, slow machines, crashes, restarts,
//! drains and processes that hang.
//!
//! Two uses: to look for schedules that change a decision or lose a query (the tests of this crate do, over thousands
//! of seeds), and to tell what a number of replicas can do under a load ([`capacity`]) and how many of them one needs
//! ([`enough`]).

mod capacity;
mod cluster;
mod cohort;
mod coordinator;
mod fault;
mod machine;
mod plan;
mod scenario;
mod station;
mod timeline;

pub use capacity::{Capacity, capacity};
pub use cluster::{Run, run};
pub use cohort::Cohort;
pub use coordinator::End;
pub use plan::{Enough, enough};
pub use scenario::{Candidates, Faults, Network, Ranking, Scenario, ScenarioError, Service, Spread};
