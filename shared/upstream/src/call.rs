use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use futures::future::{AbortHandle, Abortable};
use futures::stream::{FuturesUnordered, StreamExt};
use thicket_dispatch::{AfterFailure, Failure, Lane, ReplicaId, Ticket};
use thicket_runtime::{Deadline, Fault, Peer, Role};
use tonic::{Code, Response, Status};

use crate::Turn;
use crate::place::Place;
use crate::upstream::{Ask, Order, Shared, Upstream};

/// Gives a question up, unless it has ended, when its caller goes.
struct Open<'a> {
    shared: &'a Shared,
    ticket: Ticket,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.shared.forget(self.ticket);
    }
}

impl Upstream {
    /// Has a unary call answered by a replica, by another where one fails before it has answered. `send` makes the call and
    /// may be used several times: it must be one that can be made twice.
    ///
    /// # Errors
    /// [`Fault::Exhausted`] where too many wait, [`Fault::DeadlineExceeded`], [`Fault::Unavailable`] where no replica serves,
    /// and what the last replica that was asked answered.
    ///
    /// # Cancel safety
    /// Dropping the future takes the call out of the queue and drops every copy of it.
    pub async fn call<T, F>(&self, ask: Ask, deadline: Deadline, send: impl Fn(Peer) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        Ok(self.call_in(ask, None, None, deadline, send).await?.1)
    }

    /// The same at a place: answered by the replica that answered the call before, as long as that accepts calls and does not
    /// fail this one, and not hedged; by another, whose place it is from then on, where it must be.
    ///
    /// # Errors
    /// Those of [`Self::call`].
    ///
    /// # Cancel safety
    /// That of [`Self::call`].
    pub async fn call_at<T, F>(
        &self,
        place: &Place,
        ask: Ask,
        deadline: Deadline,
        send: impl Fn(Peer) -> F,
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let (replica, answer) = self.call_in(ask, place.replica(), None, deadline, send).await?;
        place.set(replica);
        Ok(answer)
    }

    /// The same ahead of its turn: it waits in [`Lane::Ahead`], whatever the lane of `ask`, until the turn has come, and in the
    /// low lane from then on, at the place of its arrival. Made after that it is a [`Self::call`].
    ///
    /// # Errors
    /// Those of [`Self::call`].
    ///
    /// # Cancel safety
    /// That of [`Self::call`].
    pub async fn call_ahead<T, F>(
        &self,
        ask: Ask,
        turn: &Turn,
        deadline: Deadline,
        send: impl Fn(Peer) -> F,
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        if turn.has_come() {
            return self.call(ask, deadline, send).await;
        }
        let ask = Ask { lane: Lane::Ahead, ..ask };
        Ok(self.call_in(ask, None, Some(turn), deadline, send).await?.1)
    }

    async fn call_in<T, F>(
        &self,
        ask: Ask,
        kept: Option<ReplicaId>,
        turn: Option<&Turn>,
        deadline: Deadline,
        send: impl Fn(Peer) -> F,
    ) -> Result<(ReplicaId, T), Fault>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let shared = &self.shared;
        let (ticket, mut orders) = shared.submit(ask, kept, deadline)?;
        let _open = Open { shared, ticket };
        let mut copies = FuturesUnordered::new();
        let mut stops: HashMap<ReplicaId, AbortHandle> = HashMap::new();
        let mut last = None;
        let abandoned = shared.abandoned();
        tokio::pin!(abandoned);
        let mut ahead = turn;
        loop {
            tokio::select! {
                Some((replica, outcome)) = copies.next(), if !copies.is_empty() => {
                    // An aborted copy has been reported by whoever aborted it.
                    let Ok(outcome) = outcome else { continue };
                    let fault = match outcome {
                        Ok(response) => {
                            shared.answered(ticket, replica);
                            return Ok((replica, Response::into_inner(response)));
                        }
                        Err(status) => fault_of(shared.role, status),
                    };
                    match shared.failed(ticket, replica, failure_of(&fault)) {
                        // Late: the dispatcher has just given this copy up, and its orders say what comes next.
                        AfterFailure::Queued | AfterFailure::OtherCopy | AfterFailure::Late => last = Some(fault),
                        AfterFailure::Ended { .. } => return Err(fault),
                    }
                }
                order = orders.recv() => match order {
                    Some(Order::Send { replica, peer }) => {
                        let (stop, registration) = AbortHandle::new_pair();
                        stops.insert(replica, stop);
                        let copy = Abortable::new(send(peer), registration);
                        copies.push(async move { (replica, copy.await) });
                    }
                    Some(Order::Stop(replica)) => {
                        if let Some(stop) = stops.remove(&replica) {
                            stop.abort();
                        }
                    }
                    Some(Order::End(fault)) => return Err(fault),
                    None => return Err(shared.no_replica()),
                },
                () = its_turn(ahead), if ahead.is_some() => {
                    ahead = None;
                    shared.promote(ticket);
                }
                () = &mut abandoned, if copies.is_empty() => return Err(last.unwrap_or_else(|| shared.no_replica())),
            }
        }
    }
}

async fn its_turn(turn: Option<&Turn>) {
    match turn {
        Some(turn) => turn.arrives().await,
        None => std::future::pending().await,
    }
}

/// Whether another replica may do better.
fn failure_of(fault: &Fault) -> Failure {
    match fault {
        Fault::Unavailable { .. } => Failure::Unavailable,
        Fault::Exhausted { retry_after: Some(retry_after), .. } => {
            Failure::Overloaded { retry_after: *retry_after }
        }
        _ => Failure::Rejected,
    }
}

/// Reads a replica's status as a fault of the call that asked it. What the replica holds against the caller's own token is
/// not that call's fault.
pub fn fault_of(role: Role, status: Status) -> Fault {
    match (status.code(), Fault::from_status(&status)) {
        (Code::Unauthenticated | Code::PermissionDenied, _) => {
            broken(role, format!("it refuses this role: {}", status.message()))
        }
        // No role answers UNKNOWN or CANCELLED of itself: the connection broke in the middle of the call.
        (Code::Unknown | Code::Cancelled, _) => {
            Fault::unavailable("PEER_LOST", format!("the {role} role was lost in a call"), Duration::ZERO)
        }
        (_, fault) => fault,
    }
}

/// A replica that does not keep the contract.
pub fn broken(role: Role, what: impl Display) -> Fault {
    Fault::internal(format_args!("{role} role: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_token_of_ours_is_not_the_callers_fault() {
        let status = Fault::Unauthenticated { message: "no bearer token".into() }.into_status();
        assert_eq!(fault_of(Role::Gallery, status).code(), Code::Internal);
    }

    #[test]
    fn a_connection_that_breaks_is_unavailable() {
        assert_eq!(fault_of(Role::Answer, Status::unknown("h2 protocol error")).code(), Code::Unavailable);
    }

    #[test]
    fn only_what_another_replica_may_do_better_is_tried_again() {
        let pause = Duration::from_millis(70);
        assert_eq!(failure_of(&Fault::unavailable("DRAINING", "stopping", pause)), Failure::Unavailable);
        let busy = Fault::exhausted("QUEUE_FULL", "full", pause);
        assert_eq!(failure_of(&busy), Failure::Overloaded { retry_after: pause });
        assert_eq!(failure_of(&Fault::not_found("item", "7")), Failure::Rejected);
        assert_eq!(failure_of(&Fault::DeadlineExceeded), Failure::Rejected);
    }
}
