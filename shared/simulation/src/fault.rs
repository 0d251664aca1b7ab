use std::time::Duration;

use rand::Rng;

use crate::Faults;

/// Something that goes wrong with a replica, or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process is gone with all that it had. Those who wait for it are told, or not.
    Crash { is_silent: bool },
    /// It drains; whatever it still has when it stops is lost.
    Drain,
    /// A drained process stops.
    Stop,
    /// A new process starts under the old name.
    Start,
    /// Messages to and from it are lost, and with them its lease or not.
    Partition { loses_lease: bool },
    /// They arrive again.
    Heal,
    /// It is ten times slower.
    Slow,
    /// It is as fast as before.
    Recover,
    /// It answers nothing and keeps its lease.
    Hang,
    /// It works again; what it would have answered meanwhile is lost.
    Resume,
}

/// Draws when what happens to which replica. Faults of one replica may overlap.
pub(crate) fn draw(faults: &Faults, replicas: usize, rng: &mut impl Rng) -> Vec<(Duration, usize, Fault)> {
    let mut plan = Vec::new();
    let mut add = |count: usize, kind: fn(bool) -> [Fault; 2], end: Option<Fault>| {
        for _ in 0..count {
            let replica = rng.random_range(0..replicas);
            let start = faults.during.mul_f64(rng.random());
            let [begins, ends] = kind(rng.random());
            plan.push((start, replica, begins));
            let over = start + faults.lasting.draw(rng);
            plan.push((over, replica, ends));
            if let Some(end) = end {
                plan.push((over + faults.lasting.draw(rng), replica, end));
            }
        }
    };
    add(faults.crashes, |is_silent| [Fault::Crash { is_silent }, Fault::Start], None);
    add(faults.partitions, |loses_lease| [Fault::Partition { loses_lease }, Fault::Heal], None);
    add(faults.slow, |_| [Fault::Slow, Fault::Recover], None);
    add(faults.drains, |_| [Fault::Drain, Fault::Stop], Some(Fault::Start));
    add(faults.hangs, |_| [Fault::Hang, Fault::Resume], None);
    plan
}
