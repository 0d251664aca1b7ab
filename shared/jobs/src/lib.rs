//! What a durable job may do next: its parts, who has them, and what follows from its end, its cancelling and its deletion.
//!
//! Pure: no I/O, no async, no clock. A store keeps what a [`Job`] says and asks it before it changes anything; whoever works
//! on jobs asks [`next`] what to take.
//!
//! A job is cut into parts ([`Plan`]). Each unit of work ([`Unit`]) is pending, leased under a [`Token`], or done. A token is
//! given out once and is larger than every one before it, so an owner that comes back late holds an old one and changes
//! nothing.
//!
//! ```
//! use thicket_jobs::{Counts, Finish, Job, Plan, Token, Unit};
//!
//! let plan = Plan::new(50, 32).unwrap();
//! assert_eq!((plan.parts(), plan.range(1)), (2, 32..50));
//! let mut job = Job::new(plan, None);
//! job.take(Unit::Part(0), Token(7)).unwrap();
//! job.release(Unit::Part(0), Token(7)).unwrap(); // its owner died
//! job.take(Unit::Part(0), Token(9)).unwrap();
//! let counts = Counts { succeeded: 31, failed: 1 };
//! assert!(job.finish(Unit::Part(0), Token(7), counts).is_err()); // the first owner was not dead after all
//! assert_eq!(job.finish(Unit::Part(0), Token(9), counts), Ok(Finish::Now));
//! ```

mod id;
mod job;
mod order;
mod pause;
mod plan;

pub use id::{IdError, JobId, MAX_ID_BYTES};
pub use job::{Change, Counts, Finish, Job, Place, Progress, Refusal, State, Token, Unit, Wish};
pub use order::next;
pub use pause::Pauses;
pub use plan::{MAX_PART_SIZE, MAX_PARTS, MAX_QUERIES, Plan, PlanError};
