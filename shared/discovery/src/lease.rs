use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::EtcdConfig;
use crate::held_lease::HeldLease;
use crate::link::Connectivity;
use crate::registration::Standing;
use crate::session::{Dialer, Session, SessionError};
use crate::{Member, MemberError};

/// What the owner of a registration wants of it.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    member: Member,
    value: Vec<u8>,
    pub(crate) listed: bool,
    pub(crate) closing: bool,
}

impl Wanted {
    pub(crate) fn new(member: Member) -> Result<Self, MemberError> {
        Ok(Self { value: member.encode()?, member, listed: true, closing: false })
    }

    /// Role and instance.
    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.member.role, self.member.instance)
    }

    /// Takes another's member; says whether it differs.
    pub(crate) fn replace(&mut self, next: Self) -> bool {
        let differs = self.value != next.value;
        (self.member, self.value) = (next.member, next.value);
        differs
    }
}

/// Keeps a registration until it is closed.
pub(crate) async fn keep(
    config: EtcdConfig,
    wanted: watch::Receiver<Wanted>,
    standing: watch::Sender<Standing>,
    mut link: Connectivity,
) {
    let limit = config.timing.request.min(HeldLease::longest_wait(config.lease_ttl));
    let mut dialer = Dialer::new(config.clone(), limit);
    let key = {
        let member = &wanted.borrow().member;
        config.prefix.member(member.role, &member.instance)
    };
    let lease = HeldLease::new(config.lease_ttl);
    let mut keeper = Keeper { key, wanted, standing, lease, ours: Vec::new(), placed: false };
    loop {
        let began = Instant::now();
        let ended = match dialer.dial().await {
            Ok(session) => keeper.hold(&session, &mut link).await,
            Err(error) => Err(error),
        };
        let Err(error) = ended else { return };
        if matches!(error, SessionError::LeaseLost { .. }) {
            keeper.lost();
        }
        link.failed(&error.to_string());
        let was_closing = keeper.wanted.borrow().closing;
        tokio::select! {
            () = dialer.wait(began.elapsed()) => {}
            () = keeper.closing(), if !was_closing => {}
        }
    }
}

/// A registration over all its sessions.
struct Keeper {
    key: String,
    wanted: watch::Receiver<Wanted>,
    standing: watch::Sender<Standing>,
    lease: HeldLease,
    /// Every lease that the key may be under where it was this process that put it: the one held, and those before it
    /// until the key is known to be under this one.
    ours: Vec<i64>,
    /// Whether the key was put once.
    placed: bool,
}

impl Keeper {
    /// Holds the lease and the key until the session fails, or well until the registration is closed.
    async fn hold(&mut self, session: &Session, link: &mut Connectivity) -> Result<(), SessionError> {
        if self.lease.id().is_none() && self.wanted.borrow().closing {
            self.stand(Standing::Closed);
            return Ok(());
        }
        let lease = self.lease.take(session).await?;
        if !self.ours.contains(&lease) {
            self.ours.push(lease);
        }
        let mut renewals = self.lease.renewals(session).await?;
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            if wanted.closing {
                return self.leave(session).await;
            }
            self.place(session, lease, &wanted).await?;
            link.up(&session.endpoint);
            tokio::select! {
                changed = self.wanted.changed() => {
                    // The owner is gone without a word; so is this, in a moment.
                    if changed.is_err() {
                        return Ok(());
                    }
                }
                () = renewals.due() => self.lease.renew(session, &mut renewals).await?,
            }
        }
    }

    fn lost(&self) {
        tracing::warn!(key = self.key, "the lease of the registration was lost, another is taken");
        if *self.standing.borrow() != Standing::Withdrawn {
            self.stand(Standing::Waiting);
        }
    }

    /// Makes etcd say what is wanted, and knows afterwards whether it does.
    async fn place(&mut self, session: &Session, lease: i64, wanted: &Wanted) -> Result<(), SessionError> {
        if !wanted.listed {
            return self.withdraw(session).await;
        }
        let Some(holder) = self.holder(session, lease, &wanted.value).await? else {
            self.stand(Standing::Registered);
            return Ok(());
        };
        // Who starts takes the name over, from an earlier run that etcd has not forgotten yet.
        let is_free = match holder {
            Holder::Nobody => true,
            Holder::Lease(other) => !self.placed || self.ours.contains(&other),
        };
        if !is_free {
            if *self.standing.borrow() != Standing::Superseded {
                tracing::error!(key = self.key, "another process has registered under the same name");
            }
            self.stand(Standing::Superseded);
            return Ok(());
        }
        let mut client = session.client.kv_client();
        let options = PutOptions::new().with_lease(lease);
        session
            .answer("register", client.put(self.key.as_str(), wanted.value.clone(), Some(options)))
            .await?;
        self.ours = vec![lease];
        self.placed = true;
        if *self.standing.borrow() != Standing::Registered {
            let member = &wanted.member;
            tracing::info!(role = %member.role, instance = %member.instance, address = %member.address, "registered");
        }
        self.stand(Standing::Registered);
        Ok(())
    }

    /// Who holds the key; `None` where all is as wanted.
    async fn holder(
        &self,
        session: &Session,
        lease: i64,
        value: &[u8],
    ) -> Result<Option<Holder>, SessionError> {
        let key = self.key.as_str();
        let as_wanted =
            [Compare::lease(key, CompareOp::Equal, lease), Compare::value(key, CompareOp::Equal, value)];
        let look = Txn::new().when(as_wanted).or_else([TxnOp::get(key, None)]);
        let mut client = session.client.kv_client();
        let answer = session.answer("check the registration", client.txn(look)).await?;
        if answer.succeeded() {
            return Ok(None);
        }
        let holder = answer.op_responses().into_iter().find_map(|response| match response {
            TxnOpResponse::Get(found) => found.kvs().first().map(|entry| Holder::Lease(entry.lease())),
            _ => None,
        });
        Ok(Some(holder.unwrap_or(Holder::Nobody)))
    }

    async fn withdraw(&mut self, session: &Session) -> Result<(), SessionError> {
        if *self.standing.borrow() == Standing::Withdrawn {
            return Ok(());
        }
        self.delete(session).await?;
        self.stand(Standing::Withdrawn);
        Ok(())
    }

    /// Deletes the key, if it is of this process.
    async fn delete(&mut self, session: &Session) -> Result<(), SessionError> {
        let key = self.key.as_str();
        for lease in &self.ours {
            let delete = Txn::new()
                .when([Compare::lease(key, CompareOp::Equal, *lease)])
                .and_then([TxnOp::delete(key, None)]);
            let mut client = session.client.kv_client();
            session.answer("withdraw", client.txn(delete)).await?;
        }
        Ok(())
    }

    async fn leave(&mut self, session: &Session) -> Result<(), SessionError> {
        // With access control etcd revokes a lease only where its caller may write the keys under it.
        self.delete(session).await?;
        self.lease.give_back(session).await?;
        self.stand(Standing::Closed);
        Ok(())
    }

    fn stand(&self, now: Standing) {
        self.standing.send_if_modified(|standing| std::mem::replace(standing, now) != now);
    }

    /// Waits until the registration is to be closed.
    async fn closing(&self) {
        if self.wanted.clone().wait_for(|wanted| wanted.closing).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Who holds the key of a registration.
#[derive(Debug, PartialEq, Eq)]
enum Holder {
    Nobody,
    /// Whoever has this lease.
    Lease(i64),
}
