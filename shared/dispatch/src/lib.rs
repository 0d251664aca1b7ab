//! Decides which waiting question goes to which answer replica next. Pure: no I/O, no async, no clock, no randomness.
//!
//! Time is a [`Duration`](std::time::Duration) since a moment the caller chose, passed in with every event; a time
//! before one that was passed in already counts as that one. What goes in: questions, replicas that come and go,
//! answers and failures. What comes out, one at a time from [`Dispatcher::poll`]: questions to send and questions that
//! expired. Equal inputs give equal decisions.
//!
//! **Lanes.** [`Lane::High`] goes first, but of [`Settings::high_burst`]` + 1` questions started in a row while the low
//! lane waits, at least one is the low lane's. [`Lane::Ahead`] goes when both are empty, and only to replicas that have
//! nothing else to do: it holds up no question that somebody waits for. Within a lane interactive goes
//! before batch, then the earliest deadline, then arrival; the bound is the lane's, so that batch work waits for as long
//! as interactive work fills its lane. The first of the lane whose turn it is goes next, whatever image it asks about,
//! unless [`Settings::pass_over`] lets that many questions of its urgency behind it go first, to where their images are.
//! Then a question of its lane and urgency is passed over at most so often in all, and the lane's bound stays.
//!
//! **Admission.** A lane takes questions up to its limit and refuses the rest with a delay. A question that was taken
//! keeps its right to a place: those that come back from a replica, or are moved by [`Dispatcher::promote`], wait beside
//! the limit, so that a lane never holds more than its limit, the ahead lane's limit and what was in flight together.
//!
//! **Affinity.** Questions about one image go to one replica, which has the image's keys and values: the one with the
//! highest random weight (rendezvous hashing: Thaler and Ravishankar, "Using name-based mappings to increase hit rates",
//! IEEE/ACM Transactions on Networking 6(1), 1998), weights in proportion to capacity (Schindelhauer and Schomaker,
//! "Weighted distributed hash tables", SPAA 2005). A replica that comes or goes moves its own images alone. No replica
//! is sent more than its share of `c (m + 1)` questions, rounded up, `m` being what is in flight on the replicas that
//! accept questions and `c` [`Settings::load_percent`] (bounded loads: Mirrokni, Thorup and Zadimoghaddam, "Consistent
//! hashing with bounded loads", SODA 2018); the next in the order takes the rest. [`Replica`](ReplicaView) capacity is a
//! hard limit beside it. The two together never let a question of the other lanes wait while an accepting replica has room:
//! if every replica with room were at its bound, each would hold at least its share of `m + 1`, and so would those without
//! room, which makes more than `m`.
//!
//! **Failures.** A replica that fails is left alone for a while, doubled each time up to a cap, and then tried with one
//! question; an overloaded one for as long as it asks. A copy that is not answered for too long counts as failed, and a
//! replica that leaves several unanswered in a row as hung ([`Silence`]; "outlier detection" of Envoy). A question is sent
//! at most [`Settings::attempts`] times, hedges among them, and only while nothing of an answer has come. Of any `n` questions sent for the first time, at most
//! `burst + n * percent / 100` are sent again after a failure ([`Settings::retries`]; "retry budgets" of Finagle), and
//! as a hedge ([`Settings::hedges`]; Dean and Barroso, "The tail at scale", CACM 56(2), 2013). What a lost replica had
//! in flight goes back without being counted there, nor is what an overloaded one refuses: neither is load that feeds on
//! itself, and attempts bound both.
//!
//! **Ends.** Every question that was taken ends exactly once: answered, failed, expired or cancelled. What is said about
//! it afterwards is late and changes nothing. A copy that is to be stopped no longer counts as in flight.

mod budget;
mod decision;
mod dispatcher;
mod fleet;
mod hedge;
mod lane;
mod lanes;
mod overdue;
mod question;
mod rendezvous;
mod replica;
mod settings;
mod times;

pub use decision::{Action, AfterFailure, Answered, Failure, GaveUp, Refused, Why};
pub use dispatcher::Dispatcher;
pub use fleet::{AlreadyJoined, UnknownReplica};
pub use question::{ImageKey, Kind, Lane, Question, Ticket, Urgency};
pub use replica::{ReplicaId, ReplicaState, ReplicaView};
pub use settings::{Backoff, HedgeAfter, QueueLimits, Settings, SettingsError, Share, Silence};
