use std::time::{Duration, Instant, SystemTime};

use thicket_telemetry::instruments;

/// How often the two clocks are compared.
const LOOK: Duration = Duration::from_secs(5);
/// How far they may drift apart meanwhile: a clock that is being corrected is off by half a thousandth at the most, and a
/// busy machine reads one a little after the other.
const TOLERANCE: Duration = Duration::from_secs(1);

/// The wall clock was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Jump {
    by: Duration,
    is_forward: bool,
}

/// Compares the wall clock with the one that only goes forward.
///
/// Deadlines, queues, back-off and leases go by the latter, so that a jump changes nothing of them. Times that are stored and
/// logged are the wall clock's: an operator should know that they cannot be compared over a jump.
#[derive(Debug)]
struct Clocks {
    steady: Instant,
    wall: SystemTime,
}

impl Clocks {
    /// Reads both clocks; the jump since they were read before, if there was one.
    fn read(&mut self, steady: Instant, wall: SystemTime) -> Option<Jump> {
        let expected = self.wall + steady.saturating_duration_since(self.steady);
        *self = Self { steady, wall };
        let (by, is_forward) = match wall.duration_since(expected) {
            Ok(ahead) => (ahead, true),
            Err(behind) => (behind.duration(), false),
        };
        (by > TOLERANCE).then_some(Jump { by, is_forward })
    }
}

/// Tells of every jump, for ever.
pub(crate) async fn watch() {
    let mut clocks = Clocks { steady: Instant::now(), wall: SystemTime::now() };
    loop {
        tokio::time::sleep(LOOK).await;
        if let Some(Jump { by, is_forward }) = clocks.read(Instant::now(), SystemTime::now()) {
            instruments().clock_jumps.add(1, &[]);
            let direction = if is_forward { "forward" } else { "back" };
            tracing::warn!(
                ?by,
                direction,
                "the wall clock jumped: times in logs and records do too, deadlines and leases do not"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The jumps that are seen where, every five seconds, the wall clock is so many seconds off.
    fn jumps(off: &[f64]) -> Vec<(f64, bool)> {
        let (steady, wall) = (Instant::now(), SystemTime::now());
        let mut clocks = Clocks { steady, wall };
        let mut seen = Vec::new();
        for (step, off) in (1u32..).zip(off) {
            let now = LOOK * step;
            let by = Duration::from_secs_f64(off.abs());
            let shown = if *off < 0.0 { wall + now - by } else { wall + now + by };
            let jump = clocks.read(steady + now, shown);
            seen.extend(jump.map(|Jump { by, is_forward }| (by.as_secs_f64().round(), is_forward)));
        }
        seen
    }

    #[test]
    fn a_clock_that_is_set_is_told_once_whichever_way_it_goes() {
        assert_eq!(jumps(&[0.0, 3_600.0, 3_600.0, 3_600.0]), [(3_600.0, true)]);
        assert_eq!(jumps(&[0.0, -86_400.0, -86_400.0]), [(86_400.0, false)]);
        assert_eq!(jumps(&[0.0, 60.0, 0.0, 0.0]), [(60.0, true), (60.0, false)]);
    }

    #[test]
    fn a_clock_that_is_corrected_slowly_does_not_jump() {
        let slewed: Vec<f64> = (0..1_000).map(|step| f64::from(step) * 5.0 * 0.0005).collect();
        assert_eq!(jumps(&slewed), []);
    }
}
